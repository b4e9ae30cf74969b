"""What every rule is handed: `Core`, the process's parts, and `Call`, one request through them."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from hsmd.caller import Caller
from hsmd.config import Limits
from hsmd.domain.conditions import Told
from hsmd.domain.lines import Line
from hsmd.domain.permissions import Rules
from hsmd.domain.rates import Buckets
from hsmd.domain.throttle import Recent, Throttle
from hsmd.errors import ACTION_REFUSED, IAM_ACTION_REFUSED, IDENTITY_REFUSED, Error
from hsmd.hsm import Token
from hsmd.idp import Providers
from hsmd.keyring import Keyring
from hsmd.store import Store, Tx, aliases, keys

if TYPE_CHECKING:
    from hsmd.domain.facts import CallFacts
    from hsmd.domain.identity import Identity  # which needs what stands here

Row = TypeVar("Row")

_IV_BYTES = 12  # of AES-GCM
_IVS_AT_ONCE = 64

DAY_MILLIS = 24 * 60 * 60 * 1000

# Labels of the token objects that initialisation makes.
ROOT_KEY_LABEL = "hsmd-root-1"
SEALING_KEY_LABEL = "hsmd-sealing"
CREDENTIAL_KEY_LABEL = "hsmd-credential"
AUDIT_KEY_LABEL = "hsmd-audit-1"  # EC P-256; tokens from before it was there get it at the next start
TOKEN_KEYS = (ROOT_KEY_LABEL, SEALING_KEY_LABEL, CREDENTIAL_KEY_LABEL)


@dataclass(slots=True)
class Reserve:
    """Messages this process may still encrypt without asking the store, by (key id, version)."""

    left: dict[tuple[str, int], int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Ivs:
    """IVs from the token's generator, fetched many at a time: one alone costs as much as half an AES-GCM."""

    def __init__(self) -> None:
        self._left: list[bytes] = []

    def take(self, token: Token) -> bytes:
        """12 bytes that nobody else gets. Raises Error(UNAVAILABLE) while the token is away."""
        try:
            return self._left.pop()  # a list's pop and extend are whole for threads
        except IndexError:
            block = token.random(_IV_BYTES * _IVS_AT_ONCE)
        fresh = [block[start : start + _IV_BYTES] for start in range(0, len(block), _IV_BYTES)]
        taken = fresh.pop()
        self._left.extend(fresh)
        return taken


@dataclass(slots=True)
class Running:
    """How many calls of each project this process carries out now."""

    calls: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Cache:
    """Verified rows by owner and name, evicted by the change feed; bounded, oldest owner first."""

    def __init__(self, capacity: int = 50_000) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._rows: dict[str, dict[str | int, Any]] = {}
        self._evictions = 0

    def get(self, owner: str, name: str | int, load: Callable[[], Row | None]) -> Row | None:
        """The owner's row of that name, loaded when it is not there; an absent row (None) is not kept."""
        rows = self._rows.get(owner)
        row: Row | None = rows.get(name) if rows else None
        if row is not None:
            return row
        evictions = self._evictions
        row = load()
        if row is not None:
            with self._lock:
                # What was evicted while we read may be what we have read: then it is used once, not kept.
                if evictions == self._evictions:
                    self._rows.setdefault(owner, {})[name] = row
                    while len(self._rows) > self._capacity:
                        del self._rows[next(iter(self._rows))]
        return row

    def evict(self, owner: str) -> None:
        """Drop the owner's rows."""
        with self._lock:
            self._evictions += 1
            self._rows.pop(owner, None)

    def evict_all(self) -> None:
        """Drop everything."""
        with self._lock:
            self._evictions += 1
            self._rows.clear()


@dataclass(frozen=True, slots=True)
class Backing:
    """What a dedicated keystore is made on: a token of its own, and who may (ids of domains)."""

    token: Token
    domains: frozenset[str]


def _no_list(_mark: str) -> None:
    pass


@dataclass(slots=True)
class Core:
    """The parts of one process. `clock` gives milliseconds since 1970 UTC; `rates` are all workers'.

    `peers` are by region, `keystores` by cluster id. `check_certificate` raises Error(IDENTITY_REFUSED) for
    the mark of a client certificate that is revoked.
    """

    store: Store
    token: Token
    keyring: Keyring
    clock: Callable[[], int]
    limits: Limits
    region: str
    cache: Cache = field(default_factory=Cache)
    reserve: Reserve = field(default_factory=Reserve)
    ivs: Ivs = field(default_factory=Ivs)
    throttle: Throttle = field(default_factory=Throttle)
    unknown_access_keys: Recent = field(default_factory=Recent)
    peers: Mapping[str, Line] = field(default_factory=dict)
    keystores: Mapping[str, Backing] = field(default_factory=dict)
    access_key_uses: dict[str, int] = field(default_factory=dict)  # when each was last noted to be used
    providers: Providers = field(default_factory=Providers)
    rates: Buckets = field(default_factory=Buckets)
    running: Running = field(default_factory=Running)
    check_certificate: Callable[[str], None] = _no_list
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen_version: int = -1
    _seen_change: int = -1

    def refresh(self) -> None:
        """Make every change that was answered before now count from now on; a few µs when there is none."""
        version = self.store.version()
        if version == self._seen_version:
            return
        with self._lock:
            version = self.store.version()
            if version == self._seen_version:
                return
            if self._seen_change < 0:
                self._seen_change = self.store.last_change()
                self.cache.evict_all()
                self.keyring.clear()
            for change in self.store.changes(self._seen_change):
                self._evict(change.subject, change.id)
                self._seen_change = change.seq
            self._seen_version = version

    def _evict(self, subject: str, identifier: str) -> None:
        if subject in (keys.SUBJECT, aliases.SUBJECT):
            self.cache.evict(identifier)
        else:  # identities hang together (users, roles, projects), and change seldom
            self.cache.evict_all()
        self.keyring.forget(identifier)


def in_domain(action: str) -> bool:
    """Whether the action is one of the caller's domain, wherever else the caller may act."""
    return action.startswith(("iam:", "hsmd:"))


def refusal(action: str) -> Error:
    """What a caller is told who may not do this."""
    return Error(IAM_ACTION_REFUSED if in_domain(action) else ACTION_REFUSED, action=action)


def _nothing_else(_event: str, _resource: str) -> None:
    pass


def _nobody() -> "Identity":
    raise Error(IDENTITY_REFUSED, reason="nothing shows who calls")


def _no_facts() -> Told:
    return {}


def _no_beginning(_event: str) -> None:
    pass


@dataclass(slots=True)
class Call:
    """One request: who asks, with which parts, and what its audit record will name.

    `before_commit` runs when all of a change stands and before it is committed: the place where the audit
    record is written, so that a change and its record happen together or not at all. `begin` writes one of
    the first of several changes, by its event, so that it is known whose call it was that never ended. `also`
    writes the record of something else that the call brings about: its event and its resource. `moment` is
    when it began, for the keyring.

    `grant` is the operation by which a grant may allow the call. `refused` is the action that no role of the
    caller's allows; `granted` becomes true when a grant, or what else is asked for, allows the call instead.
    What policies say of the `action` may depend on the key (`depends`): then `rules`, the caller's policies
    and its session policy, are asked for each one, and `settled` tells that they were. `asked` tells what of
    the request conditions may be on, `facts` are that and what else is known of the call.

    `identify` gives who calls, where a method asks for that only with some requests (access WELCOME).
    """

    core: Core
    caller: Caller
    before_commit: Callable[[], None]
    resource: str = ""
    key_version: int = 0
    begin: Callable[[str], None] = _no_beginning
    also: Callable[[str, str], None] = _nothing_else
    grant: str = ""
    refused: str = ""
    granted: bool = False
    action: str = ""
    depends: bool = False
    settled: bool = False
    rules: tuple[Rules, ...] = ()
    asked: Callable[[], Told] = _no_facts
    facts: "CallFacts | None" = None
    identify: "Callable[[], Identity]" = _nobody
    moment: int = field(init=False)

    def __post_init__(self) -> None:
        self.moment = self.core.keyring.moment

    def check_allowed(self) -> None:
        """Raises Error(ACTION_REFUSED) when neither roles nor anything else have allowed the call."""
        waits = self.depends and not self.settled
        if (self.refused or waits) and not self.granted:
            raise refusal(self.action)

    def read(self) -> AbstractContextManager[Tx]:
        """A consistent look at the store."""
        return self.core.store.read()

    @contextmanager
    def change(self) -> Iterator[Tx]:
        """A change of the store, committed with its audit record when the block ends."""
        with self.core.store.write(before_commit=self.before_commit) as tx:
            yield tx
            self.check_allowed()
