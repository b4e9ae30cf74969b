"""The seal: shares are gathered while the daemon is sealed; else they are kept in step with the registry.

A sealed daemon can't check a row of the store, since the key of its seals is in the HSM. So whose share it
is, is told by the seal file alone: a UKey that stands there signs what it gives, and what it gives opens the
file or doesn't.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from hsmd import sealfile, ukey
from hsmd.config import ConfigError
from hsmd.domain import throttle, ukeys
from hsmd.domain.core import Call, Core
from hsmd.errors import (
    NOT_SEALED,
    SEAL_MISSING,
    SEAL_REFUSED,
    SEALED,
    SHARE_REFUSED,
    UNSEAL_FAILED,
    Error,
)
from hsmd.sealfile import Holder, Seal, SealRefused, Share
from hsmd.store import SealBroken, Tx

_FAILURES = 10  # from one address, before it has to wait
_AHEAD_SECONDS = 10.0  # for a change to be committed after the seal was made for it

log = logging.getLogger(__name__)


class Outcome(Enum):
    """What became of PINs that were handed over."""

    DONE = "done"
    PIN_REFUSED = "the HSM refuses the PIN that is in the seal"
    FAILED = "the service can't be started with it, its log says why"
    NOT_NOW = "it is being unsealed or sealed just now"


HandOver = Callable[[str, bytes], Outcome]  # (id of the seal, PINs by name as JSON)


@dataclass(slots=True)
class Attempt:
    """One gathering of shares for one seal file, in memory only. `expires` in ms since 1970."""

    id: str
    seal: Seal
    expires: int
    key: ec.EllipticCurvePrivateKey
    given: dict[str, bytes] = field(default_factory=dict)  # shares by UKey id
    trying: bool = False

    @property
    def public_key(self) -> bytes:
        """DER SubjectPublicKeyInfo."""
        return ukey.encoded(self.key.public_key())

    @property
    def names(self) -> list[str]:
        """Of the UKeys that have given theirs."""
        return [each.holder.name for each in self.seal.shares if each.holder.ukey_id in self.given]


@dataclass(frozen=True, slots=True)
class Invitation:
    """What one UKey is asked for."""

    attempt: Attempt
    share: Share


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it has come."""

    unsealed: bool
    threshold: int
    given: list[str]


class Unsealing:
    """The attempts of a sealed daemon, one at a time; of any number of operators, each at its own moment.

    `refused` is the id of a seal whose PIN the HSM has refused: it isn't tried again, which might lock the
    token. `failure` says why unsealing failed last. `seconds` is how long an attempt lasts.
    """

    def __init__(
        self, path: Path, hand_over: HandOver, *, seconds: float, failure: str = "", refused: str = ""
    ) -> None:
        self._path = path
        self._hand_over = hand_over
        self._seconds = seconds
        self._refused = refused
        self._lock = threading.Lock()
        self._attempt: Attempt | None = None
        self.failure = failure

    def seal(self) -> Seal:
        """The seal file as it is now. Raises Error(SEAL_MISSING)."""
        return _read(self._path)

    def attempt(self, now: int) -> Attempt | None:
        """The attempt under way."""
        with self._lock:
            if self._attempt is not None and self._attempt.expires <= now and not self._attempt.trying:
                self._attempt = None  # and with it its key and the shares
            return self._attempt

    def begin(self, call: Call, fingerprint: str) -> Invitation:
        """Ask a UKey for its share; of the attempt under way, or a new one.

        Raises Error(SHARE_REFUSED) for a UKey without a share, Error(UNSEAL_FAILED, SEAL_MISSING).
        """
        seal, now = self.seal(), call.core.clock()
        if seal.id == self._refused:
            raise Error(UNSEAL_FAILED, reason=Outcome.PIN_REFUSED.value)
        held = _held(call, seal, fingerprint)
        current = self.attempt(now)
        with self._lock:
            if self._attempt is not None and self._attempt is current and current.seal == seal:
                return Invitation(current, held)
            if self._attempt is not None and self._attempt.trying:
                raise Error(UNSEAL_FAILED, reason=Outcome.NOT_NOW.value)
            expires = now + int(self._seconds * 1000)
            key = ec.generate_private_key(ec.SECP256R1())
            self._attempt = Attempt(uuid.uuid4().hex, seal, expires, key)
            return Invitation(self._attempt, held)

    def give(self, call: Call, attempt_id: str, fingerprint: str, box: bytes, signature: bytes) -> Progress:
        """Take a share; the last one that is due unseals the daemon. Given once more it counts once.

        Raises Error(SHARE_REFUSED) for a share that isn't the UKey's of this attempt, Error(UNSEAL_FAILED).
        """
        attempt = self.attempt(call.core.clock())
        if attempt is None or attempt.id != attempt_id:
            raise Error(SHARE_REFUSED, reason="there is no such attempt, or it has expired: begin anew")
        held = _held(call, attempt.seal, fingerprint)
        share = self._opened(call, attempt, held, box, signature)
        with self._lock:
            if self._attempt is not attempt:
                raise Error(SHARE_REFUSED, reason="there is no such attempt, or it has expired: begin anew")
            attempt.given[held.holder.ukey_id] = share
            due = len(attempt.given) >= attempt.seal.threshold and not attempt.trying
            attempt.trying = attempt.trying or due
        if due:
            self._unseal(call, attempt)
        return Progress(due, attempt.seal.threshold, attempt.names)

    def _opened(self, call: Call, attempt: Attempt, held: Share, box: bytes, signature: bytes) -> bytes:
        """The share in the box. Who is refused learns nothing of what was wrong with it."""
        source = [throttle.Limit(throttle.key("share from", throttle.network(call.caller.source)), _FAILURES)]
        call.core.throttle.admit(source, time.monotonic())
        holder, seal_id = held.holder, attempt.seal.id
        signed = sealfile.share_statement(attempt.id, attempt.public_key, seal_id, holder.ukey_id, box)
        context = sealfile.attempt_context(attempt.id, seal_id, holder.ukey_id)
        try:
            if ukey.verify(holder.public_key, signed, signature):
                _is_known(call, holder)
                share = ukey.open_box(attempt.public_key, box, context, ukey.SoftOpener(attempt.key))
                if sealfile.is_share(attempt.seal, holder.ukey_id, share):
                    return share
        except ukey.UKeyError:
            pass
        call.core.throttle.failed(source, time.monotonic())
        raise Error(SHARE_REFUSED, reason="it is not the share that this UKey holds, signed for this attempt")

    def _unseal(self, call: Call, attempt: Attempt) -> None:
        """Open the PINs and hand them over; whatever happens, the attempt is over."""
        try:
            call.begin("unseal")
            pins = json.dumps(sealfile.unseal(attempt.seal, attempt.given)).encode()
            outcome = self._hand_over(attempt.seal.id, pins)
        except SealRefused as error:
            self.failure = "the shares don't open the seal"
            raise Error(UNSEAL_FAILED, reason=self.failure) from error
        finally:
            with self._lock:
                self._attempt = None
        if outcome is not Outcome.DONE:
            self.failure = outcome.value
            if outcome is Outcome.PIN_REFUSED:
                self._refused = attempt.seal.id
            raise Error(UNSEAL_FAILED, reason=outcome.value)


class Keeper:
    """The seal of a daemon that is unsealed: knows the PINs, and who is to hold a share of them.

    `pins` are by the seal file's names, `announce` tells the supervising process of changed ones, `shut` has
    everything sealed.
    """

    def __init__(
        self, path: Path, pins: Mapping[str, str], announce: HandOver, shut: Callable[[], Outcome]
    ) -> None:
        self._path = path
        self._pins = dict(pins)
        self._announce = announce
        self._shut = shut
        self._lock = threading.Lock()
        self._next: dict[str, str] = {}  # the PIN that the HSM may have already
        self._ahead = 0.0  # until then (monotonic) the file may know what the registry will say
        self._trouble = ""

    def seal(self) -> Seal:
        """The seal file as it is now. Raises Error(SEAL_MISSING)."""
        return _read(self._path)

    def shut(self) -> None:
        """Have everything sealed. Raises Error(UNSEAL_FAILED)."""
        outcome = self._shut()
        if outcome is not Outcome.DONE:
            raise Error(UNSEAL_FAILED, reason=outcome.value)

    def reshare(self, tx: Tx, now: int) -> None:
        """Seal anew to who will be an operator when this change is committed; to be called last in it.

        What was sealed before still opens with the shares of before: who has them and a copy of the old file
        is kept out by a change of the PIN alone. Raises Error(SEAL_REFUSED).
        """
        with self._lock:
            self._ahead = time.monotonic() + _AHEAD_SECONDS
            self._write(self._pins | self._next, tx, now)

    def prepare(self, tx: Tx, pin: str, now: int) -> str:
        """The HSM's PIN is about to be changed: from now on unsealing tries the old one, then the answer.

        That is this one, unless a change was begun whose end nobody knows: the HSM may have that one's PIN.
        It stays so until `settle` or `abandon`, or until a later process was let in with the old one.
        Raises Error(SEAL_REFUSED).
        """
        name = sealfile.HSM + sealfile.NEXT
        with self._lock:
            following = self._next or {name: pin}
            self._write(self._pins | following, tx, now)
            self._next = following
            return following[name]

    def settle(self, tx: Tx, pin: str, now: int) -> None:
        """The HSM's PIN is changed: seal it, and let processes that start from now on have it.

        Raises Error(SEAL_REFUSED, UNSEAL_FAILED).
        """
        with self._lock:
            pins = self._pins | {sealfile.HSM: pin}
            made = self._write(pins, tx, now)
            self._pins, self._next = pins, {}
        outcome = self._announce(made.id, json.dumps(pins).encode())
        if outcome is not Outcome.DONE:
            raise Error(UNSEAL_FAILED, reason=outcome.value)

    def abandon(self) -> None:
        """It is certain that the PIN was not changed: the seal may forget the one that was to come."""
        with self._lock:
            self._next = {}

    @property
    def pin(self) -> str:
        """The HSM's user PIN, for who changes it."""
        return self._pins[sealfile.HSM]

    def keep(self, core: Core) -> bool:
        """Seal anew if the file and the registry differ, or the file is gone; whether that was so.

        That is how a change ends that was cut short, and how other nodes' changes come to this one.
        """
        with self._lock:
            if time.monotonic() < self._ahead:
                return False
            try:
                with core.store.read() as tx:
                    if not self._differs(tx):
                        return False
                    self._write(self._pins | self._next, tx, core.clock())
            except (Error, SealBroken) as error:
                if str(error) != self._trouble:
                    log.error("the seal can't be kept in step with the registry: %s", error)  # noqa: TRY400  # it says it all
                    self._trouble = str(error)
                return False
            self._trouble = ""
        log.info("the seal was made anew: operators, their number or the PINs are others")
        return True

    def _differs(self, tx: Tx) -> bool:
        try:
            seal = sealfile.read(self._path)
        except ConfigError:
            return True
        holders, threshold = _wanted(tx)
        return (
            {each.holder for each in seal.shares} != set(holders)
            or seal.threshold != threshold
            or seal.purpose != sealfile.UNSEAL
            or set(seal.names) != {*self._pins, *self._next}
        )

    def _write(self, pins: Mapping[str, str], tx: Tx, now: int) -> Seal:
        holders, threshold = _wanted(tx)
        try:
            made = sealfile.make(pins, holders, threshold, now=now)
            sealfile.write(self._path, made)
        except ValueError as error:
            raise Error(SEAL_REFUSED, reason=str(error)) from error
        except OSError as error:
            raise Error(SEAL_REFUSED, reason=f"the seal file can't be written: {error.strerror}") from error
        return made


@dataclass(frozen=True, slots=True)
class SealStatus:
    """What is told of the seal. `source` is where the PIN came from, `seal` None without a seal file."""

    sealed: bool
    source: str
    seal: Seal | None
    attempt: Attempt | None
    failure: str


def status(call: Call) -> SealStatus:
    """How it is."""
    state = call.core.seal
    if isinstance(state, Unsealing):
        return SealStatus(True, "none", state.seal(), state.attempt(call.core.clock()), state.failure)
    if state is None:
        return SealStatus(False, call.core.pin_source, None, None, "")
    return SealStatus(False, call.core.pin_source, state.seal(), None, "")


def begin(call: Call, fingerprint: str) -> Invitation:
    """Ask the UKey of that key for its share. Raises Error(NOT_SEALED) and what Unsealing.begin does."""
    return _unsealing(call).begin(call, fingerprint)


def give(call: Call, attempt: str, fingerprint: str, box: bytes, signature: bytes) -> Progress:
    """Take a share. Raises Error(NOT_SEALED) and what Unsealing.give does."""
    return _unsealing(call).give(call, attempt, fingerprint, box, signature)


def shut(call: Call) -> None:
    """Seal the daemon. The record is there before it happens. Raises Error(SEAL_MISSING, SEALED)."""
    state = call.core.seal
    if isinstance(state, Unsealing):
        raise Error(SEALED)
    if state is None:
        raise Error(SEAL_MISSING, reason=f"this daemon's PIN comes by {call.core.pin_source}")
    call.before_commit()
    state.shut()


def reshare(call: Call, tx: Tx) -> None:
    """Last in a change of operators or of their number: the seal follows, where there is one.

    Raises Error(SEAL_REFUSED): then the change must not be made either.
    """
    if isinstance(call.core.seal, Keeper):
        call.core.seal.reshare(tx, call.core.clock())


def _unsealing(call: Call) -> Unsealing:
    if not isinstance(call.core.seal, Unsealing):
        raise Error(NOT_SEALED)
    return call.core.seal


def _wanted(tx: Tx) -> tuple[list[Holder], int]:
    """Who is to hold a share, and how many of them are due. Raises SealBroken."""
    operators = ukeys.registry_in(tx).living(ukeys.OPERATOR)
    holders = [Holder(each.id, each.name, each.public_key, each.opens) for each in operators]
    return holders, ukeys.quorum(tx).operators


def _held(call: Call, seal: Seal, fingerprint: str) -> Share:
    for each in seal.shares:
        if ukey.fingerprint(each.holder.public_key) == fingerprint:
            call.resource = each.holder.ukey_id
            return each
    raise Error(SHARE_REFUSED, reason="this UKey holds no share of the seal")


def _is_known(call: Call, holder: Holder) -> None:
    """The record names who gave."""
    call.caller = call.caller._replace(kind="ukey", user_id=holder.ukey_id, user_name=holder.name)


def _read(path: Path) -> Seal:
    try:
        return sealfile.read(path)
    except ConfigError as error:
        log.error("%s", error)  # noqa: TRY400  # foreseen
        raise Error(SEAL_MISSING, reason="the seal file can't be read, the log says why") from error
