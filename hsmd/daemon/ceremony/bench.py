"""The HSM on the ceremony's table: its PINs, for as long as a step needs them, and what the token holds."""

import hashlib
import secrets
import string
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hsmd import sealfile
from hsmd.audit.records import of_call
from hsmd.caller import Caller
from hsmd.config import ConfigError, Settings
from hsmd.daemon import wiring
from hsmd.daemon.ceremony.papers import CeremonyRefused, Key, Machine, Member, Record, data, text
from hsmd.daemon.ceremony.party import Party
from hsmd.daemon.certificates import write_private
from hsmd.daemon.wiring import Pin, now_millis
from hsmd.domain import ukeys
from hsmd.domain.core import AUDIT_KEY_LABEL, CREDENTIAL_KEY_LABEL, SEALING_KEY_LABEL, Core
from hsmd.errors import Error
from hsmd.hsm import AddressError, Blank, Officer, Token, TokenRefused, parse_address
from hsmd.sealfile import Holder, Seal
from hsmd.store import roots

TRANSPORT_LABEL = "hsmd-transport-1"
SO_PIN_FILE = "so-pin.seal"
MARK_FILE = "token.begun"
SO_PURPOSE, BACKUP_PURPOSE = "so-pin", "backup"
_PIN_CHARACTERS = string.ascii_letters + string.digits
_LONGEST_PIN, _SHORTEST_PIN = 32, 8
_AUDIT_SECONDS = 5.0
_OURS = frozenset((SEALING_KEY_LABEL, CREDENTIAL_KEY_LABEL, AUDIT_KEY_LABEL))


@dataclass(frozen=True, slots=True)
class Pins:
    """The token's PINs; never shown. `so_pin` is "" when nobody here has it."""

    pin: str
    so_pin: str = ""

    def __repr__(self) -> str:
        return "Pins()"


@dataclass(frozen=True, slots=True)
class TokenAnswers:
    """What is known of the token before: nothing of one that this ceremony makes.

    `so_pin_file`: the SO PIN that a blank token comes with. `pin_file`: the user PIN of one that its maker's
    tool has made; then `so_pin_file` is its SO PIN, where that is to be split too.
    """

    so_pin_file: Path | None = None
    pin_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Sealing:
    """Who holds the PINs: operators that of the user, administrators that of the security officer."""

    members: tuple[Member, ...]
    administrators: int
    operators: int

    def seal(self, role: str, pins: Mapping[str, str], purpose: str) -> Seal:
        """The PINs, for those of a role who can open boxes. Raises CeremonyRefused."""
        holders = [
            Holder(each.id, each.name, each.der, each.opens)
            for each in self.members
            if each.role == role and each.opens
        ]
        needed = self.administrators if role == ukeys.ADMINISTRATOR else self.operators
        try:
            return sealfile.make(pins, holders, needed, now=now_millis(), purpose=purpose)
        except ValueError as error:
            raise CeremonyRefused(f"the PIN can't be split among the {role}s: {error}") from error


def officer(settings: Settings) -> Officer:
    """The security officer's side of the configured token. Raises ConfigError."""
    hsm = settings.hsm
    try:
        address = parse_address(hsm.token)
    except AddressError as error:
        raise ConfigError(f"hsm.token: {error}") from error
    return Officer(address, lock_file=hsm.lock_file, softhsm_conf=hsm.softhsm_conf)


def make_token(
    settings: Settings, folder: Path, party: Party, sealing: Sealing, answers: TokenAnswers
) -> Pins:
    """The token with its PINs; they are sealed before it has them, so that no kill loses them.

    Repeatable: a mark in the folder says that the token is this ceremony's. Raises CeremonyRefused,
    TokenRefused.
    """
    begun = (folder / MARK_FILE).exists()
    its = officer(settings)
    blank = its.look()
    current = _read(settings, answers.so_pin_file)
    if answers.pin_file is not None:
        return _adopt(settings, folder, sealing, Pins(_read(settings, answers.pin_file) or "", current or ""))
    if blank.has_pin:
        if not begun:
            raise CeremonyRefused(
                f"the token {blank.label} has a user PIN: it is in use, or its maker's tool has made it; "
                "then its PIN has to be given ([token] pin_file)"
            )
        return Pins(open_pin(settings, party))
    pins = _sealed_before(settings, folder, party) if blank.initialised and begun else None
    if pins is None:
        if blank.initialised and current is None:
            raise CeremonyRefused(
                f"the token {blank.label} has an SO PIN that is not known here ([token] so_pin_file)"
            )
        pins = Pins(_new_pin(settings, blank), _random_pin(blank))
        _seal(settings, folder, sealing, pins)
    party.tell(f"Initialising the token {parse_address(settings.hsm.token).token}.")
    its.initialise(pins.so_pin, pins.pin, current)
    return pins


def open_pin(settings: Settings, party: Party) -> str:
    """The user PIN: opened by operators where there is a seal, else as the daemon has it."""
    if settings.seal.file is None:
        return wiring.read_pin(settings.hsm).value
    seal = sealfile.read(settings.seal.file)
    opened = party.open_seal(seal, ukeys.OPERATOR, "to open the HSM's PIN")
    if sealfile.HSM not in opened:
        raise CeremonyRefused(f"{settings.seal.file} holds no PIN of [hsm]")
    following = opened.get(sealfile.HSM + sealfile.NEXT)
    if following is None or _takes(settings, opened[sealfile.HSM]):
        return opened[sealfile.HSM]
    return following


def reseal(settings: Settings, sealing: Sealing, pin: str) -> None:
    """Split the user PIN anew, where there is a seal."""
    if settings.seal.file is not None:
        made = sealing.seal(ukeys.OPERATOR, {sealfile.HSM: pin}, sealfile.UNSEAL)
        sealfile.write(settings.seal.file, made)


@contextmanager
def opened(settings: Settings, pin: str) -> Iterator[Core]:
    """All parts, with the HSM logged in. Raises TokenRefused, Error."""
    core = wiring.open_core(replace(settings, peers=(), oidc=()), Pin(pin, "ceremony"))
    try:
        core.token.connect()
        yield core
    finally:
        core.store.close()
        core.token.close()


@contextmanager
def recorded(settings: Settings, event: str, resource: str) -> Iterator[None]:
    """The step leaves an audit record: that it was begun, and what became of it. Raises Error."""
    audit = wiring.open_audit(settings, "ceremony")
    started = time.monotonic()

    def append(result: str) -> None:
        record = of_call(
            Caller("system", user_name="ceremony", source="local"),
            event=event,
            method="hsmctl ceremony",
            result=result,
            resource=resource,
            key_version=0,
            process="ceremony",
            seconds=time.monotonic() - started,
        )
        audit.append(record, timeout=_AUDIT_SECONDS)

    try:
        append("BEGUN")
        try:
            yield
        except BaseException as error:
            append(error.fault.code if isinstance(error, Error) else "REFUSED")
            raise
        append("OK")
    finally:
        audit.close()


def is_ours(label: str) -> bool:
    """Whether the label is one of hsmd's own keys, which pass to another token."""
    return label in _OURS or roots.number(label) > 0


def keys_of(token: Token) -> tuple[Key, ...]:
    """Hsmd's own keys in the token, with their check values. Raises Error(UNAVAILABLE), BadData."""
    return tuple(
        Key(
            label=each.label,
            kind=each.kind,
            check_value=token.proof(each.label),
            closed=each.closed,
            public_key=text(token.public_key_of(each.label)) if each.kind == "ec" else "",
        )
        for each in token.held()
        if each.kind and is_ours(each.label)
    )


def machine(token: Token) -> Machine:
    """The token as it tells of itself."""
    status = token.status()
    return Machine(status.label, status.serial.strip(), status.model, status.module)


def signed(token: Token, record: Record) -> Record:
    """The record, signed by the audit key in the token."""
    return replace(record, signature=text(token.sign_with(AUDIT_KEY_LABEL, record.signed())))


def check_record(record: Record) -> None:
    """Whether the audit key that the record names has signed it. Raises CeremonyRefused."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    for each in record.keys:
        if each.label == AUDIT_KEY_LABEL and each.public_key:
            try:
                key = load_der_public_key(data(each.public_key))
                if isinstance(key, ec.EllipticCurvePublicKey):
                    return key.verify(data(record.signature), record.signed(), ec.ECDSA(hashes.SHA256()))
            except (InvalidSignature, ValueError):
                break
    raise CeremonyRefused("the record was changed: its signature does not hold")


def check_ukeys(record: Record) -> None:
    """Whether the fingerprints are those of the public keys. Raises CeremonyRefused."""
    if any(hashlib.sha256(each.der).hexdigest() != each.fingerprint for each in record.ukeys):
        raise CeremonyRefused("the record was changed: a fingerprint is not that of its key")


def _adopt(settings: Settings, folder: Path, sealing: Sealing, pins: Pins) -> Pins:
    """The PINs of a token that was made before: tried, then sealed."""
    if not pins.pin or not _takes(settings, pins.pin):
        raise CeremonyRefused("the token does not take the PIN that was given")
    _seal(settings, folder, sealing, pins)
    return pins


def _takes(settings: Settings, pin: str) -> bool:
    token = wiring.open_token(settings.hsm, Pin(pin, "ceremony"))
    try:
        token.connect()
    except TokenRefused as error:
        if error.pin:
            return False
        raise
    finally:
        token.close()
    return True


def _sealed_before(settings: Settings, folder: Path, party: Party) -> Pins | None:
    """What an attempt sealed that was cut short while the token was made; None where nothing is sealed."""
    path = folder / SO_PIN_FILE
    if not path.exists():
        return None
    party.tell("An earlier attempt was cut short while the token was made: its PINs are needed.")
    so_pin = party.open_seal(sealfile.read(path), ukeys.ADMINISTRATOR, "to open the SO PIN")[SO_PURPOSE]
    return Pins(open_pin(settings, party), so_pin)


def _seal(settings: Settings, folder: Path, sealing: Sealing, pins: Pins) -> None:
    if not (folder / MARK_FILE).exists():
        if settings.seal.file is not None and settings.seal.file.exists():
            raise CeremonyRefused(
                f"{settings.seal.file} is there already, and may hold the PIN of another HSM that nobody has "
                "but so: name another [seal] file, or move it away"
            )
        write_private(folder / MARK_FILE, b"")
    if pins.so_pin:
        made = sealing.seal(ukeys.ADMINISTRATOR, {SO_PURPOSE: pins.so_pin}, SO_PURPOSE)
        sealfile.write(folder / SO_PIN_FILE, made)
    if settings.seal.file is not None:
        reseal(settings, sealing, pins.pin)
    elif settings.hsm.pin_file is not None and not settings.hsm.pin_file.exists():
        write_private(settings.hsm.pin_file, pins.pin.encode())


def _new_pin(settings: Settings, blank: Blank) -> str:
    """Random, unless the daemon's PIN is in a file that is there already."""
    if settings.seal.file is not None:
        return _random_pin(blank)
    if settings.hsm.pin_file is None:
        raise CeremonyRefused("the PIN can't be kept: [seal] file is due, or [hsm] pin_file")
    there = settings.hsm.pin_file if settings.hsm.pin_file.exists() else None
    return _read(settings, there) or _random_pin(blank)


def _random_pin(blank: Blank) -> str:
    size = min(_LONGEST_PIN, blank.longest or _LONGEST_PIN)
    if size < max(_SHORTEST_PIN, blank.shortest):
        raise CeremonyRefused(f"the token takes PINs of {size} characters only")
    return "".join(secrets.choice(_PIN_CHARACTERS) for _ in range(size))


def _read(settings: Settings, path: Path | None) -> str | None:
    """The PIN in a file, which has to be its owner's alone, and not empty. Raises ConfigError."""
    return None if path is None else wiring.read_pin(replace(settings.hsm, pin_file=path)).value
