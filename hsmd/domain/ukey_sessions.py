"""How a UKey logs in: by signing a challenge, for a session that is bound to a connection and a service.

What is signed names the daemon (its instance and certificate), the caller's certificate and end of the
connection as the daemon sees them, the purpose and when it ends: so it is worth nothing to anybody between
the two, nor later, nor for anything else. Challenges and sessions are in this process's memory only.
"""

import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from hsmd import ukey as keys
from hsmd.domain import identity, ukeys
from hsmd.domain.attempts import named_when_refused, throttled
from hsmd.domain.core import Call, Channel
from hsmd.domain.identity import Identity
from hsmd.errors import IDENTITY_REFUSED, PARAMETER_INVALID, Error
from hsmd.store.ukeys import UKey
from hsmd.ukey import Purpose

CHALLENGE_SECONDS = 60
_BYTES = 32
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_MOST = 4096  # challenges, and sessions, the oldest out first
_MOST_EACH = 16  # of one certificate, and of one UKey

log = logging.getLogger(__name__)

Thing = TypeVar("Thing")


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a UKey is asked to sign. `expires` in ms since 1970 UTC, `end` by the process's clock (s)."""

    challenge: str
    instance: str
    server_certificate: str
    channel: Channel
    key: str
    purpose: str
    expires: int
    end: float

    def statement(self) -> bytes:
        """The bytes that are signed."""
        values = keys.login_values(
            challenge=self.challenge,
            instance=self.instance,
            server_certificate=self.server_certificate,
            client_certificate=self.channel.certificate,
            peer=self.channel.peer,
            key=self.key,
            purpose=self.purpose,
            expires=self.expires,
        )
        return keys.statement(Purpose.LOGIN, values)


@dataclass(frozen=True, slots=True)
class Session:
    """A UKey at work: for one service, on one connection, until `end` by the process's clock."""

    ukey_id: str
    purpose: str
    channel: Channel
    end: float


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The session's name, which is told once, and when it ends (milliseconds since 1970 UTC)."""

    session: str
    expires: int
    ukey: UKey


class Shelf(Generic[Thing]):
    """Things by name: a bounded number, and a bounded number of each owner's; the oldest go first."""

    def __init__(self, most: int = _MOST, each: int = _MOST_EACH) -> None:
        self._most, self._each = most, each
        self._lock = threading.Lock()
        self._things: dict[str, tuple[str, Thing]] = {}

    def put(self, name: str, owner: str, thing: Thing) -> None:
        """Keep it."""
        with self._lock:
            mine = [other for other, (its, _) in self._things.items() if its == owner]
            for other in mine[: max(len(mine) - self._each + 1, 0)]:
                del self._things[other]
            self._things[name] = owner, thing
            while len(self._things) > self._most:
                del self._things[next(iter(self._things))]

    def get(self, name: str) -> Thing | None:
        """Look at it."""
        found = self._things.get(name)
        return found[1] if found else None

    def take(self, name: str) -> Thing | None:
        """Take it away: of two who come at once only one gets it."""
        with self._lock:
            found = self._things.pop(name, None)
        return found[1] if found else None

    def drop(self, which: Callable[[Thing], bool]) -> None:
        """Take away those that are so."""
        with self._lock:
            for name in [name for name, (_, thing) in self._things.items() if which(thing)]:
                del self._things[name]


class Sessions:
    """The challenges and sessions of one door.

    `server_certificate` is the SHA-256 of the door's own (DER, hex), `purposes` are the services it has, of
    which `common` is open to sessions for any other, too. A session lives `seconds`.
    """

    def __init__(
        self,
        server_certificate: str,
        purposes: Collection[str],
        common: str,
        seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server_certificate = server_certificate
        self._purposes = frozenset(purposes)
        self._common = common
        self._seconds = seconds
        self._now = now
        self._challenges: Shelf[Challenge] = Shelf()
        self._sessions: Shelf[Session] = Shelf()
        # Of nobody: what an unknown UKey signed is looked at like what a known one did.
        self._nobody = keys.encoded(ec.generate_private_key(ec.SECP256R1()).public_key())

    def begin(self, call: Call, fingerprint: str, purpose: str) -> Challenge:
        """A challenge for the UKey of that key, also for one that is not enrolled.

        Raises Error(PARAMETER_INVALID) for what is no fingerprint, or no service of this door.
        """
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise Error(PARAMETER_INVALID, name="fingerprint", reason="64 hex digits are due")
        if purpose not in self._purposes:
            raise Error(PARAMETER_INVALID, name="purpose", reason="the name of a service here is due")
        made = Challenge(
            challenge=secrets.token_hex(_BYTES),
            instance=ukeys.instance(call.core),
            server_certificate=self._server_certificate,
            channel=call.channel,
            key=fingerprint,
            purpose=purpose,
            expires=call.core.clock() + CHALLENGE_SECONDS * 1000,
            end=self._now() + CHALLENGE_SECONDS,
        )
        self._challenges.put(made.challenge, call.channel.certificate, made)
        return made

    def log_in(self, call: Call, challenge: str, signature: bytes) -> LoggedIn:
        """A session for the signed challenge, which counts once, whatever comes of it.

        Raises Error(IDENTITY_REFUSED, RATE_EXCEEDED); one answer for whatever was wrong, and the log knows.
        """
        asked = self._challenges.take(challenge)
        claimed = asked.key if asked else ""
        ukey = ukeys.registry(call.core).by_fingerprint.get(claimed)
        call.resource = ukey.id if ukey else claimed
        with throttled(call, "ukey", claimed, counted=IDENTITY_REFUSED):
            wrong = self._wrong(call, asked, ukey, signature)
            if asked is None or ukey is None or wrong:
                log.warning("a UKey is not let in: %s", wrong)
                raise Error(IDENTITY_REFUSED, reason="the UKey or what it signed is not accepted")
        name = secrets.token_hex(_BYTES)
        session = Session(ukey.id, asked.purpose, asked.channel, self._now() + self._seconds)
        self._sessions.put(_hidden(name), ukey.id, session)
        identity.act(call, identity.by_ukey(ukey.id, ukey.name, ukey.role), "")
        return LoggedIn(name, call.core.clock() + round(self._seconds * 1000), ukey)

    def identify(self, call: Call, name: str, service: str) -> Identity:
        """Whose session it is, if it is one of this connection and service and its UKey still counts.

        Raises Error(IDENTITY_REFUSED).
        """
        session = self._sessions.get(_hidden(name))
        ukey = ukeys.registry(call.core).by_id.get(session.ukey_id) if session else None
        wrong = ""
        if session is None or ukey is None:
            wrong = "there is none of that name"
        elif session.end <= self._now():
            self._sessions.take(_hidden(name))
            wrong = "it is over"
        elif session.channel != call.channel:
            wrong = "it is another connection's"
        elif service not in (session.purpose, self._common):
            wrong = "it is for another service"
        elif not ukeys.counts(ukey):
            wrong = "its UKey is revoked"
        if wrong or ukey is None:
            with named_when_refused(call, ukey.id if ukey else ""):
                log.warning("a UKey's session does not count: %s", wrong)
                raise Error(IDENTITY_REFUSED, reason="a session of a UKey is due, on this connection")
        return identity.by_ukey(ukey.id, ukey.name, ukey.role)

    def log_out(self, call: Call) -> None:
        """All sessions of the caller on this connection are over."""
        self._sessions.drop(lambda each: each.ukey_id == call.caller.user_id and each.channel == call.channel)

    def _wrong(self, call: Call, asked: Challenge | None, ukey: UKey | None, signature: bytes) -> str:
        """What is wrong with a login, "" when nothing is."""
        signed = asked.statement() if asked else b""
        holds = keys.verify(ukey.public_key if ukey else self._nobody, signed, signature)
        if asked is None:
            return "there is no such challenge, or it was used"
        if asked.end <= self._now():
            return "the challenge is too old"
        if asked.channel != call.channel:
            return "the challenge was another connection's"
        if ukey is None:
            return "no UKey has this key"
        if not ukeys.counts(ukey):
            return f"the UKey {ukey.name} is revoked"
        return "" if holds else f"the signature is not that of {ukey.name}, or not of this"


def _hidden(name: str) -> str:
    """What stands for a session's name in memory: finding it takes no time that tells of the name."""
    return hashlib.sha256(name.encode()).hexdigest()
