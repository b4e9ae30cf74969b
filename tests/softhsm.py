"""A token of one's own: SoftHSM2's, in its own folder, with random PINs, chosen by no global file.

With HSMD_TEST_TOKEN=opencryptoki it is one of opencryptoki's soft tokens (tests/opencryptoki.py).
"""

import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests import opencryptoki

OPENCRYPTOKI = os.environ.get("HSMD_TEST_TOKEN") == "opencryptoki"
# opencryptoki 3.27 writes eight bytes past its buffer when a wrapped key fails its check (it hands OpenSSL
# eight bytes less than were wrapped, and OpenSSL wipes that many): sooner or later the process dies. So there
# the tests try no blobs that were changed.
FORGED_BLOBS_KILL = OPENCRYPTOKI
MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")


@dataclass(frozen=True, slots=True)
class DevToken:
    """A token made for a test. `conf` is its SOFTHSM2_CONF, `lock` the lock file for its users."""

    uri: str
    pin: str
    so_pin: str
    conf: Path
    lock: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SOFTHSM2_CONF": str(self.conf)}


def make_token(folder: Path, label: str = "hsmd-test") -> DevToken:
    """Make a token in the folder; a second one in the same folder stands beside the first."""
    if OPENCRYPTOKI:
        uri, pin, so_pin = opencryptoki.make_token(label)
        return DevToken(uri, pin, so_pin, folder / "none.conf", folder / "token.lock")
    tokens = folder / "tokens"
    tokens.mkdir(mode=0o700, parents=True, exist_ok=True)
    conf = folder / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    return _softhsm(conf, label, folder / "token.lock")


def another_token(conf: Path, label: str) -> DevToken:
    """Make one more token among those of a SOFTHSM2_CONF."""
    if OPENCRYPTOKI:
        return make_token(conf.parent, label)
    return _softhsm(conf, label, conf.parent / f"{label}.lock")


def _softhsm(conf: Path, label: str, lock: Path) -> DevToken:
    made = DevToken(
        uri=f"pkcs11:token={label}?module-path={MODULE}",
        pin=secrets.token_hex(8),
        so_pin=secrets.token_hex(8),
        conf=conf,
        lock=lock,
    )
    subprocess.run(
        [
            *("softhsm2-util", "--init-token", "--free", "--label", label),
            *("--pin", made.pin, "--so-pin", made.so_pin),
        ],
        env=made.environment,
        check=True,
        capture_output=True,
    )
    return made
