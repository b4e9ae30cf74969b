"""What every rule is handed: `Core`, the process's parts, and `Call`, one request through them."""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hsmd.audit.records import Refusal
from hsmd.caller import Caller
from hsmd.config import Limits
from hsmd.domain.board import Board
from hsmd.domain.cache import Cache
from hsmd.domain.lines import Line
from hsmd.domain.permissions import NOTHING, Permissions, Rules
from hsmd.domain.rates import Buckets
from hsmd.domain.throttle import Recent, Throttle
from hsmd.errors import ACTION_REFUSED, IAM_ACTION_REFUSED, IDENTITY_REFUSED, Error
from hsmd.hsm import Token
from hsmd.idp import Providers
from hsmd.keyring import Keyring
from hsmd.store import Forgotten, Store, Tx, aliases, keys, keystores, roots
from hsmd.store.feed import Change
from hsmd.store.roots import RootKey

if TYPE_CHECKING:
    from hsmd.domain.backups import Workshop
    from hsmd.domain.facts import CallFacts
    from hsmd.domain.identity import Identity  # which needs what stands here
    from hsmd.domain.sealing import Keeper, Unsealing

_IV_BYTES = 12  # of AES-GCM
_IVS_AT_ONCE = 64

DAY_MILLIS = 24 * 60 * 60 * 1000

# Labels of the token objects that initialisation makes. Another root key may have replaced the first one
# since: what is new is wrapped by that of `Core.root_label`.
ROOT_KEY_LABEL = roots.FIRST
SEALING_KEY_LABEL = "hsmd-sealing"
CREDENTIAL_KEY_LABEL = "hsmd-credential"
AUDIT_KEY_LABEL = "hsmd-audit-1"  # EC P-256; older tokens get it at the next start
TOKEN_KEYS = (ROOT_KEY_LABEL, SEALING_KEY_LABEL, CREDENTIAL_KEY_LABEL)


@dataclass(slots=True)
class Reserve:
    """Messages this process may still encrypt without asking the store.

    By key id: (its newest version that encrypted here, how many), since older ones encrypt no more.
    """

    left: dict[str, tuple[int, int]] = field(default_factory=dict)
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

    `cache` holds what is known of keys, aliases and keystores, by their ids; `people` what is known of who
    calls and what they may, which hangs together within a domain. `board` is all processes'.

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
    people: Cache = field(default_factory=Cache)
    reserve: Reserve = field(default_factory=Reserve)
    ivs: Ivs = field(default_factory=Ivs)
    throttle: Throttle = field(default_factory=Throttle)
    unknown_access_keys: Recent = field(default_factory=Recent)
    peers: Mapping[str, Line] = field(default_factory=dict)
    keystores: Mapping[str, Backing] = field(default_factory=dict)
    access_key_uses: dict[str, int] = field(default_factory=dict)  # when each was last noted to be used
    providers: Providers = field(default_factory=Providers)
    rates: Buckets = field(default_factory=Buckets)
    board: Board = field(default_factory=Board)
    running: Running = field(default_factory=Running)
    finishing: threading.Lock = field(default_factory=threading.Lock)  # what a quorum decided
    seal: "Unsealing | Keeper | None" = None  # of the warden, where there is a seal file
    backups: "Workshop | None" = None  # of the warden
    pin_source: str = ""
    audit_directory: Path | None = None  # where the log can be read
    log_readers: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(2))
    sealed: bool = False  # then nothing of the store counts: the key of its seals is in the HSM
    proposals_seen: int = 0  # how often one was made or changed when that was looked at last
    ukeys_seen: int = 0  # how often the registry of UKeys had been changed when it was read last
    check_certificate: Callable[[str], None] = _no_list
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen_version: Hashable = None
    _seen_change: int = -1

    def refresh(self) -> None:
        """Make every change that was answered before now count from now on; a µs when there is none."""
        if self.sealed:
            return
        version = self.store.version()
        if version == self._seen_version:
            return
        with self._lock:
            version = self.store.version()
            if version == self._seen_version:
                return
            for change in self._unseen():
                self._evict(change)
                self._seen_change = change.seq
            self._seen_version = version

    def root_keys(self) -> tuple[RootKey, ...]:
        """The root keys there have been, from the cache."""
        return self.cache.get("root keys", "all", self._root_keys)

    def root_label(self) -> str:
        """Label of the root key that wraps what is new."""
        return next(each.label for each in self.root_keys() if each.state == roots.CURRENT)

    def _root_keys(self) -> tuple[RootKey, ...]:
        with self.store.read() as tx:
            return roots.root_keys(tx)

    def _unseen(self) -> list[Change]:
        """What changed since the last look; nothing, and all is evicted, when that is not known in full."""
        if self._seen_change >= 0:
            try:
                return self.store.changes(self._seen_change)
            except Forgotten:
                pass
        self._seen_change = self.store.last_change()  # before the eviction: what comes now is seen next time
        self._evict_all()
        self.keyring.clear()
        return []

    def _evict(self, change: Change) -> None:
        if change.subject in (keys.SUBJECT, aliases.SUBJECT, keystores.SUBJECT):
            self.cache.evict(change.id)
        elif change.domain:  # what a tenant changes at its own rate costs no other one what is known of it
            self.people.evict_domain(change.domain)
        else:
            self._evict_all()
        self.keyring.forget(change.id)

    def _evict_all(self) -> None:
        self.cache.evict_all()
        self.people.evict_all()


def in_domain(action: str) -> bool:
    """Whether the action is one of the caller's domain, wherever else the caller may act."""
    return action.startswith(("iam:", "hsmd:"))


def in_either(action: str) -> bool:
    """Whether the action is one of a project or, where that is named instead, of the caller's domain."""
    return action.startswith("cts:")


def refusal(action: str) -> Error:
    """What a caller is told who may not do this."""
    return Error(IAM_ACTION_REFUSED if in_domain(action) else ACTION_REFUSED, action=action)


def _nothing_else(_event: str, _resource: str) -> None:
    pass


def _nobody() -> "Identity":
    raise Error(IDENTITY_REFUSED, reason="nothing shows who calls")


def _no_report(_refusal: Refusal) -> None:
    pass


def _no_fact(_name: str) -> tuple[str, ...]:
    return ()


def _no_beginning(_event: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Channel:
    """The connection that a call came by.

    Its other end like "ipv4:127.0.0.1:5", as gRPC names it, and the SHA-256 of that one's certificate (DER)
    in hex; both "" where it does not count.
    """

    peer: str = ""
    certificate: str = ""


@dataclass(slots=True)
class Call:
    """One request: who asks, with which parts, and what its audit record will name.

    `before_commit` runs when all of a change stands and before it is committed: the place where the audit
    record is written, so that a change and its record happen together or not at all. `begin` writes one of
    the first of several changes, by its event, so that it is known whose call it was that never ended. `also`
    writes the record of something else that the call brings about: its event and its resource; `report` that
    of requests which a gateway refused. `moment` is when it began, for the keyring.

    `permissions` is what the caller holds where it acts. `grant` is the operation by which a grant may allow
    the call. `refused` is the action that no role of the caller's allows; `granted` becomes true when a
    grant, or what else is asked for, allows the call instead. What policies say of the `action` may depend on
    the key (`depends`): then `rules`, the caller's policies and its session policy, are asked for each one,
    and `settled` tells that they were. `asked` tells what the request says of a condition's key, `facts` are
    that and what else is known of the call.

    `identify` gives who calls, where a method asks for that only with some requests (access WELCOME).
    `channel` is known at the administrators' door.
    """

    core: Core
    caller: Caller
    before_commit: Callable[[], None]
    resource: str = ""
    key_version: int = 0
    begin: Callable[[str], None] = _no_beginning
    also: Callable[[str, str], None] = _nothing_else
    report: Callable[[Refusal], None] = _no_report
    permissions: Permissions = NOTHING
    grant: str = ""
    refused: str = ""
    granted: bool = False
    action: str = ""
    depends: bool = False
    settled: bool = False
    rules: tuple[Rules, ...] = ()
    asked: Callable[[str], tuple[str, ...]] = _no_fact
    facts: "CallFacts | None" = None
    identify: "Callable[[], Identity]" = _nobody
    channel: Channel = Channel()
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
