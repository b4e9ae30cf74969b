"""Public keys of others' put in place of keys' own: `verify` is asked about signatures made elsewhere."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hsmd import config
from hsmd.daemon import wiring
from hsmd.store import imports, keys
from tests.forked import output_of
from tests.stand import Stand


def plant(stand: Stand, publics: Mapping[str, bytes]) -> None:
    """Put these DER public keys in place of those of the keys with these ids."""
    given = json.dumps({key_id: der.hex() for key_id, der in publics.items()})
    output_of(_main, str(stand.dev.config), settings=stand.settings, given=given)


def _main(path: str) -> None:
    settings = config.load(Path(path), os.environ)
    core = wiring.open_core(settings, wiring.read_pin(settings.hsm))
    core.token.connect()
    try:
        with core.store.write() as tx:
            for key_id, der in json.load(sys.stdin).items():
                key = keys.get_key(tx, key_id)
                assert key is not None
                version = keys.get_version(tx, key_id, key.current_version)
                assert version is not None
                imports.put_material(tx, key, replace(version, public_key=bytes.fromhex(der)))
    finally:
        core.store.close()
        core.token.close()
