"""Public keys of others' put in place of keys' own, for `verify` to be asked about signatures made elsewhere.

python -m tests.planted CONFIG    reads {key id: DER in hex} as JSON; a process of its own, as of backstage.py
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hsmd import config
from hsmd.daemon import wiring
from hsmd.store import imports, keys
from tests.stand import Stand


def plant(stand: Stand, publics: Mapping[str, bytes]) -> None:
    """Put these DER public keys in place of those of the keys with these ids."""
    subprocess.run(
        [sys.executable, "-m", "tests.planted", str(stand.dev.config)],
        input=json.dumps({key_id: der.hex() for key_id, der in publics.items()}).encode(),
        cwd=Path(__file__).parents[1],
        env={**os.environ, **stand.settings},
        check=True,
    )


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


if __name__ == "__main__":
    _main(*sys.argv[1:])
