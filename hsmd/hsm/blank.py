"""A token before its user can log in: found, initialised and given its PINs, as the security officer."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pkcs11 import PKCS11Error, TokenFlag
from pkcs11 import exceptions as p11
from pkcs11.types import Session, Slot, Token

from hsmd.errors import UNAVAILABLE, Error
from hsmd.hsm.address import TOKEN_FIELDS, Address
from hsmd.hsm.connection import agrees, locked
from hsmd.hsm.faults import Sort, TokenRefused, name_of, sort_of
from hsmd.hsm.module import Module

_LABEL_BYTES = 32
# What a blank token can be known by: SoftHSM2 gives it its serial number only with the label.
_OF_BLANKS = tuple(name for name in TOKEN_FIELDS if name not in ("token", "serial"))


@dataclass(frozen=True, slots=True)
class Blank:
    """What is at an address: `initialised` with a label and SO PIN, and whether there is a user PIN.

    A user PIN may have `shortest` to `longest` bytes; `serial` may be "", and be told only later.
    """

    label: str
    serial: str
    model: str
    manufacturer: str
    initialised: bool
    has_pin: bool
    shortest: int
    longest: int


class Officer:
    """The security officer's side of one token. Nothing is kept open between the calls.

    `patience` is how long others may hold the lock, in seconds.
    """

    def __init__(
        self, address: Address, *, lock_file: Path, softhsm_conf: Path | None, patience: float = 30.0
    ) -> None:
        self._address = address
        self._lock_file = lock_file
        self._conf = softhsm_conf
        self._patience = patience
        self._module: Module | None = None

    def look(self) -> Blank:
        """What is there: the token of that address, or one that could become it.

        Raises TokenRefused when there are several or none, and when the module can't be used.
        """
        with self._entered() as module:
            slot = self._slot(module)
            return _described(module, slot)

    def initialise(self, so_pin: str, pin: str, current_so_pin: str | None = None) -> Blank:
        """Make it a token with that label and these PINs: whatever it held is gone, unless it was half made.

        `current_so_pin` is that of a token that comes with one (its maker tells it). What a killed attempt
        with the same PINs left is completed. Raises TokenRefused, also for a token that has a user PIN.
        """
        label = self._address.token or ""
        if not 0 < len(label.encode()) <= _LABEL_BYTES:
            raise TokenRefused("the address has to name the label that the token is to have")
        with self._entered() as module:
            slot = self._slot(module)
            if _described(module, slot).has_pin:
                raise TokenRefused("the token has a user PIN already: it is in use")
            if not _described(module, slot).initialised:
                _refused(lambda: module.init_token(slot, current_so_pin or so_pin, label))
                slot = self._slot(module)  # SoftHSM2 moves it to another slot
            _refused(lambda: _set_pins(slot.get_token(), so_pin, pin, current_so_pin))
            return _described(module, slot)

    @contextmanager
    def _entered(self) -> Iterator[Module]:
        with locked(self._lock_file, self._patience):
            if self._conf is not None:  # read by SoftHSM2 at C_Initialize
                os.environ["SOFTHSM2_CONF"] = str(self._conf)
            if self._module is None:
                self._module = Module(self._address.module_path)
            try:
                self._module.initialize()
                yield self._module
            except PKCS11Error as error:
                raise Error(UNAVAILABLE, reason=f"the HSM failed: {name_of(error)}") from error
            finally:
                with suppress(PKCS11Error):
                    self._module.finalize()

    def _slot(self, module: Module) -> Slot:
        """Where the token is: the one with that label, else the one blank token that fits the rest."""
        made, blank = [], []
        for slot in module.slots():
            token = _token_in(slot)
            if token is None:
                continue
            if TokenFlag.TOKEN_INITIALIZED in token.flags:
                made += [slot] if agrees(token, self._address, TOKEN_FIELDS) else []
            elif agrees(token, self._address, _OF_BLANKS):
                blank.append(slot)
        found = made or blank
        if not found:
            raise TokenRefused(f"there is no token {self._address}, and no blank one that could become it")
        if len(found) > 1:
            numbers = ", ".join(str(slot.slot_id) for slot in found)
            raise TokenRefused(f"{self._address} means {len(found)} tokens; add a slot-id: {numbers}")
        return found[0]


def _token_in(slot: Slot) -> Token | None:
    try:
        return slot.get_token()
    except (p11.TokenNotPresent, p11.TokenNotRecognised):
        return None


def _described(module: Module, slot: Slot) -> Blank:
    token, info = slot.get_token(), module.token_info(slot)
    return Blank(
        label=token.label,
        serial=token.serial.decode(errors="replace"),
        model=token.model,
        manufacturer=token.manufacturer_id,
        initialised=TokenFlag.TOKEN_INITIALIZED in token.flags,
        has_pin=TokenFlag.USER_PIN_INITIALIZED in token.flags,
        shortest=info.shortest_pin,
        longest=info.longest_pin,
    )


def _set_pins(token: Token, so_pin: str, pin: str, current: str | None) -> None:
    """Both PINs, whichever SO PIN counts now: the first of them, or the last, of an attempt that was cut."""
    session = _as_officer(token, so_pin, current)
    try:
        session.init_pin(pin)
    finally:
        session.close()


def _as_officer(token: Token, so_pin: str, current: str | None) -> Session:
    if current is None or current == so_pin:
        return token.open(rw=True, so_pin=so_pin)
    try:
        session = token.open(rw=True, so_pin=current)
    except p11.PinIncorrect:
        return token.open(rw=True, so_pin=so_pin)
    session.set_pin(current, so_pin)
    return session


def _refused(what: Callable[[], object]) -> None:
    try:
        what()
    except PKCS11Error as error:
        if sort_of(error) is Sort.PIN:
            raise TokenRefused(
                f"the token refuses the SO PIN or the new PIN: {name_of(error)}", pin=True
            ) from error
        raise
