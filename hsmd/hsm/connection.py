"""One connection to the token: from loading the module to a session that is logged in and probed.

Reconnecting is the same again, as a whole: after a loss nothing of the old connection is trusted.
"""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pkcs11 import Attribute, ObjectClass, PKCS11Error, TokenFlag
from pkcs11 import exceptions as p11
from pkcs11.types import Session, Slot, Token

from hsmd.errors import UNAVAILABLE, Error
from hsmd.hsm import operations, templates
from hsmd.hsm.address import TOKEN_FIELDS, Address
from hsmd.hsm.faults import Sort, TokenRefused, name_of, sort_of
from hsmd.hsm.handles import Handle, Handles
from hsmd.hsm.module import Module
from hsmd.hsm.pair_probe import probe_pairs
from hsmd.hsm.probe import Found, probe
from hsmd.hsm.refusal import Refusal

_PULSE_TEXT = b"hsmd"
_LOCK_PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class _Pulse:
    """A throw-away HMAC key, and what it answers: its loss tells that sessions or the login are lost."""

    key: int
    answer: bytes


@dataclass(eq=False)
class Connection:
    """A logged-in token. `generation` counts connections; handles of another one mean nothing here."""

    generation: int
    handles: Handles
    module: Module
    token: Token
    anchor: Session  # owns the login and every loaded key; one call at a time
    found: Found
    pulse: _Pulse | None
    seen: set[str]  # labels of token objects: all that were there at the login, or found since
    anchor_lock: threading.Lock = field(default_factory=threading.Lock)
    labelled: dict[str, Handle] = field(default_factory=dict)  # token objects found so far
    made: float = field(default_factory=time.monotonic)
    kept: dict[str, Handle] = field(default_factory=dict)  # the same of keys that stay here, see kept.py

    def open_session(self, *, write: bool = False) -> Session:
        """A session of this process's login. Raises PKCS11Error."""
        return self.token.open(rw=write)

    def feel(self, session: Session) -> None:
        """Use the token in earnest. Raises PKCS11Error, also when it answers wrongly."""
        session.generate_random(64)
        if self.pulse and operations.hmac(session, self.pulse.key, _PULSE_TEXT) != self.pulse.answer:
            raise p11.DeviceError("a wrong HMAC")


def establish(
    module: Module,
    address: Address,
    pin: str,
    refusal: Refusal,
    generation: int,
    lock_file: Path,
    patience: float,
    entering: Callable[[], None],
) -> Connection:
    """Initialise, find the token, log in and probe, one process after the other.

    Processes that start together on one SoftHSM2 token break each other; so all of it happens under a lock,
    for which this waits at most `patience` seconds. `entering` is called when the module is about to be.
    A refusal of the PIN is noted, and looked for, under the lock: of processes that come together, one tries.
    Raises TokenRefused, Error(UNAVAILABLE), PKCS11Error; the module is finalised then.
    """
    with locked(lock_file, patience):
        if refusal:
            raise TokenRefused("the PIN was refused before and is not tried again", pin=True)
        entering()
        module.initialize()
        try:
            token = find_token(module.slots(), address)
            anchor = _log_in(token, pin, refusal)
            found = probe_pairs(module, anchor, probe(module, anchor))
            pulse = _pulse(module, anchor)
            seen = {label for _, label in persisting(anchor)}
            return Connection(generation, Handles(generation), module, token, anchor, found, pulse, seen)
        except BaseException:
            with suppress(PKCS11Error):  # what went wrong before is what counts
                module.finalize()
            raise


def persisting(session: Session, label: str | None = None) -> list[tuple[int, str]]:
    """Handle and label of the secret keys that persist in the token. Raises PKCS11Error."""
    wanted: dict[Attribute, object] = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.TOKEN: True}
    if label is not None:
        wanted[Attribute.LABEL] = label
    return [(cast("int", each.handle), each[Attribute.LABEL]) for each in session.get_objects(wanted)]


def _log_in(token: Token, pin: str, refusal: Refusal) -> Session:
    try:
        return token.open(user_pin=pin)
    except PKCS11Error as error:
        if sort_of(error) is Sort.PIN:
            refusal.note()
            raise TokenRefused(f"the token refuses the PIN: {name_of(error)}", pin=True) from error
        raise


def _pulse(module: Module, anchor: Session) -> _Pulse | None:
    try:
        key = module.generate(anchor, templates.GENERATORS["generic-secret"], templates.PULSE)
        return _Pulse(key, operations.hmac(anchor, key, _PULSE_TEXT))
    except PKCS11Error as error:
        if sort_of(error) is Sort.USE:
            return None  # the probe reports what this token lacks
        raise


def find_token(slots: list[Slot], address: Address) -> Token:
    """The one token that the address means. Raises TokenRefused, Error(UNAVAILABLE), PKCS11Error."""
    tokens = [token for token in map(_token_in, slots) if token]
    matching = [token for token in tokens if agrees(token, address, TOKEN_FIELDS)]
    if len(matching) > 1:
        serials = [_text(token.serial) for token in matching]
        if all(serials):
            hint = f"a serial: {', '.join(serials)}"
        else:  # opencryptoki's soft tokens have none
            hint = f"a slot-id: {', '.join(str(token.slot.slot_id) for token in matching)}"
        raise TokenRefused(f"{address} means {len(matching)} tokens; add {hint}")
    if matching:
        return matching[0]
    namesakes = [token for token in tokens if address.token and token.label == address.token]
    if namesakes:
        raise TokenRefused(
            f"another token than {address}: the one labelled so is {_text(namesakes[0].serial)},"
            f" {namesakes[0].model}, {namesakes[0].manufacturer_id}"
        )
    raise Error(UNAVAILABLE, reason="the HSM token is absent")


def _token_in(slot: Slot) -> Token | None:
    try:
        token = slot.get_token()
    except (p11.TokenNotPresent, p11.TokenNotRecognised):
        return None
    return token if TokenFlag.TOKEN_INITIALIZED in token.flags else None


def agrees(token: Token, address: Address, names: tuple[str, ...]) -> bool:
    """Whether the token is as these fields of the address say."""
    has = {
        "token": token.label,
        "serial": _text(token.serial),
        "manufacturer": token.manufacturer_id,
        "model": token.model,
        "slot_description": token.slot.slot_description,
        "slot_manufacturer": token.slot.manufacturer_id,
        "slot_id": token.slot.slot_id,
    }
    return all(getattr(address, name) in (None, has[name]) for name in names)


def _text(serial: bytes) -> str:
    return serial.decode(errors="replace")


@contextmanager
def locked(path: Path, patience: float) -> Iterator[None]:
    """Hold the lock between processes. Raises Error(UNAVAILABLE) after `patience` seconds, TokenRefused."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TokenRefused(f"the lock file can't be opened: {error}") from error
    try:
        _flock(file, time.monotonic() + patience)
        yield
    finally:
        os.close(file)  # and with it the lock


def _flock(file: int, until: float) -> None:
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise Error(UNAVAILABLE, reason="another process keeps the HSM's start locked") from error
        time.sleep(_LOCK_PAUSE)
