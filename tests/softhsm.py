"""A token of one's own: SoftHSM2's, in its own folder, with random PINs, chosen by no global file.

With HSMD_TEST_TOKEN=opencryptoki it is one of opencryptoki's soft tokens (tests/opencryptoki.py).
"""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests import opencryptoki

OPENCRYPTOKI = os.environ.get("HSMD_TEST_TOKEN") == "opencryptoki"
# opencryptoki 3.27 writes eight bytes past its buffer when a wrapped key fails its check (it hands OpenSSL
# eight bytes less than were wrapped, and OpenSSL wipes that many): sooner or later the process dies. So there
# the tests try no blobs that were changed.
FORGED_BLOBS_KILL = OPENCRYPTOKI
_SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
MODULE = opencryptoki.MODULE if OPENCRYPTOKI else _SOFTHSM
MODEL = "Soft" if OPENCRYPTOKI else "SoftHSM v2"

no_forgeries = pytest.mark.skipif(FORGED_BLOBS_KILL, reason="opencryptoki overruns a buffer (decision 0012)")
needs_folder = pytest.mark.skipif(
    OPENCRYPTOKI, reason="a token of opencryptoki is no folder that could be moved away from who uses it"
)
other_process = pytest.mark.skipif(
    OPENCRYPTOKI, reason="of a module in another process, whose token does not matter: SoftHSM2's serves"
)


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
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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


def late_token(folder: Path, label: str = "hsmd-late") -> tuple[DevToken, Callable[[], None]]:
    """A token that is not there until the function is called; another one in its place is."""
    if OPENCRYPTOKI:
        slot, so_pin, pin = opencryptoki.next_slot(), secrets.token_hex(4), secrets.token_hex(4)
        folder.mkdir(parents=True)
        made = DevToken(
            opencryptoki.uri(slot, label), pin, so_pin, folder / "none.conf", folder / "token.lock"
        )
        return made, lambda: opencryptoki.initialise(slot, label, so_pin, pin)
    place = make_token(folder, "another")
    made = make_token(folder / "elsewhere", label)

    def come() -> None:
        for each in (folder / "elsewhere" / "tokens").iterdir():
            each.rename(folder / "tokens" / each.name)

    return replace(made, conf=place.conf), come


def pinless_token(folder: Path, label: str) -> DevToken:
    """A token that nobody gave a user PIN."""
    if OPENCRYPTOKI:
        slot, so_pin = opencryptoki.next_slot(), secrets.token_hex(4)
        folder.mkdir(parents=True, exist_ok=True)
        opencryptoki.initialise(slot, label, so_pin)
        return DevToken(
            opencryptoki.uri(slot, label), "12345678", so_pin, folder / "none.conf", folder / "lock"
        )
    made = make_token(folder, label)
    (token,) = (folder / "tokens").iterdir()
    shutil.rmtree(token)
    program = (
        "import ctypes, sys; p = ctypes.CDLL(sys.argv[1]); p.C_Initialize(None);"
        "n = ctypes.c_ulong(8); s = (ctypes.c_ulong * 8)(); p.C_GetSlotList(1, s, ctypes.byref(n));"
        "label = sys.argv[2].encode().ljust(32);"
        "assert p.C_InitToken(s[n.value - 1], b'12345678', 8, label) == 0; p.C_Finalize(None)"
    )
    subprocess.run([sys.executable, "-c", program, str(_SOFTHSM), label], env=made.environment, check=True)
    return made


def _softhsm(conf: Path, label: str, lock: Path) -> DevToken:
    made = DevToken(
        uri=f"pkcs11:token={label}?module-path={_SOFTHSM}",
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
