"""Soft tokens of opencryptoki for tests, inside the Debian forky root that scripts/test_opencryptoki makes.

opencryptoki has one daemon and one list of slots a system, so there are as many tokens as slots in its
configuration: who needs one takes the next. Run as a program, before pkcsslotd starts, this module writes
that configuration, and empties the tokens of an earlier run.
"""

import fcntl
import secrets
import shutil
import subprocess
from pathlib import Path

MODULE = Path("/usr/lib/x86_64-linux-gnu/opencryptoki/libopencryptoki.so.0")
SLOTS = 500  # hsmd's tests take about 200; the module knows 1024 at most
_CONFIGURATION = Path("/etc/opencryptoki/opencryptoki.conf")
_DATA = Path("/var/lib/opencryptoki")
_TAKEN = Path("/run/opencryptoki-slots-taken")
_LOCKS = Path("/run/lock/opencryptoki")
_GROUP = "pkcs11"
_FIRST_SO_PIN = "87654321"  # as opencryptoki ships it


def make_token(label: str) -> tuple[str, str, str]:
    """Initialise the next slot's token; its URI, PIN and SO PIN."""
    slot = next_slot()
    so_pin, pin = secrets.token_hex(4), secrets.token_hex(4)  # no longer than 8
    initialise(slot, label, so_pin, pin)
    return uri(slot, label), pin, so_pin


def uri(slot: int, label: str) -> str:
    """Where hsmd finds the slot's token."""
    return f"pkcs11:token={label};slot-id={slot}?module-path={MODULE}"


def initialise(slot: int, label: str, so_pin: str, pin: str = "") -> None:
    """Give the slot's token its label and PINs; without `pin` it is left without a user PIN."""
    for arguments, said in (
        (("-I", "-S", _FIRST_SO_PIN), f"{label}\n"),
        (("-P", "-S", _FIRST_SO_PIN, "-n", so_pin), ""),
        *([(("-u", "-S", so_pin, "-n", pin), "")] if pin else []),
    ):
        command = ["pkcsconf", "-c", str(slot), *arguments]
        subprocess.run(command, input=said, text=True, check=True, capture_output=True)


def lock_file(address: str) -> Path:
    """What the module locks, by flock, whenever it touches an object that persists in the token."""
    slot = address.partition("slot-id=")[2].partition("?")[0]
    return _LOCKS / f"t{slot}" / f"LCK..t{slot}"


def next_slot() -> int:
    """A slot that nobody else gets."""
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
        (locks := _LOCKS / f"t{slot}").mkdir(parents=True)
        for folder in (locks.parent, locks):
            shutil.chown(folder, group=_GROUP)
            folder.chmod(0o770)


if __name__ == "__main__":
    _prepare()
