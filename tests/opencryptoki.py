"""Soft tokens of opencryptoki for tests, inside the Debian forky root that scripts/test_opencryptoki makes.

opencryptoki has one daemon and one list of slots a system, so there are as many tokens as slots in its
configuration: each test takes the next one. Run as a program, before pkcsslotd starts, this module writes
that configuration, and empties the tokens of an earlier run.
"""

import fcntl
import secrets
import shutil
import subprocess
from pathlib import Path

MODULE = Path("/usr/lib/x86_64-linux-gnu/opencryptoki/libopencryptoki.so.0")
SLOTS = 96
_CONFIGURATION = Path("/etc/opencryptoki/opencryptoki.conf")
_DATA = Path("/var/lib/opencryptoki")
_TAKEN = Path("/run/opencryptoki-slots-taken")
_GROUP = "pkcs11"
_FIRST_SO_PIN = "87654321"  # as opencryptoki ships it


def make_token(label: str) -> tuple[str, str, str]:
    """Initialise the next slot's token; its URI, PIN and SO PIN."""
    slot = _next_slot()
    so_pin, pin = secrets.token_hex(4), secrets.token_hex(4)  # no longer than 8
    pkcsconf = ("pkcsconf", "-c", str(slot))
    for arguments, said in (
        (("-I", "-S", _FIRST_SO_PIN), f"{label}\n"),
        (("-P", "-S", _FIRST_SO_PIN, "-n", so_pin), ""),
        (("-u", "-S", so_pin, "-n", pin), ""),
    ):
        subprocess.run([*pkcsconf, *arguments], input=said, text=True, check=True, capture_output=True)
    return f"pkcs11:token={label};slot-id={slot}?module-path={MODULE}", pin, so_pin


def _next_slot() -> int:
    with _TAKEN.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        slot = file.seek(0, 2)
        assert slot < SLOTS, "more tokens than slots"
        file.write(".")
    return slot


def _prepare() -> None:
    slots = [
        f"slot {slot}\n{{\n  stdll = libpkcs11_sw.so\n  tokname = t{slot}\n}}\n" for slot in range(SLOTS)
    ]
    _CONFIGURATION.write_text("version opencryptoki-3.27\n" + "".join(slots))
    for slot in range(SLOTS):
        shutil.rmtree(_DATA / f"t{slot}", ignore_errors=True)
        for folder in (_DATA / f"t{slot}", _DATA / f"t{slot}" / "TOK_OBJ"):
            folder.mkdir()
            shutil.chown(folder, group=_GROUP)
            folder.chmod(0o770)
        (locks := Path("/run/lock/opencryptoki") / f"t{slot}").mkdir(parents=True)
        for folder in (locks.parent, locks):
            shutil.chown(folder, group=_GROUP)
            folder.chmod(0o770)


if __name__ == "__main__":
    _prepare()
