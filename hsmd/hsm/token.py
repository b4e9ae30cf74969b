"""The token: everything the daemon has done inside the HSM goes through one object of this class."""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic

from pkcs11 import Mechanism, NoSuchKey
from pkcs11.types import Session

from hsmd import metrics
from hsmd.algorithms import KeyAlgorithm
from hsmd.errors import FORMAT_INVALID, UNAVAILABLE, Error
from hsmd.hsm import operations, templates
from hsmd.hsm.address import Address
from hsmd.hsm.connection import locked, persisting
from hsmd.hsm.desk import OTHER_WORK, Desk, Within, Work
from hsmd.hsm.faults import BadData, ObjectGone, TokenRefused
from hsmd.hsm.handles import Handle
from hsmd.hsm.link import MAIN, STATES, Link, Settings, TokenStatus
from hsmd.hsm.loading import confined, key_wrap, load, wrapped_up
from hsmd.hsm.module import Module, Template
from hsmd.hsm.passage import PassageWork
from hsmd.hsm.probe import Capability
from hsmd.hsm.refusal import Refusal
from hsmd.tracing import span

_PING_LIMIT = 3.0  # a ping is short work: after this long the token counts as hung,
_PING_SHARE = 0.3  # or after this share of a deadline that is longer than the usual one
_CHECK_VALUE_BYTES = 8
_ENCRYPT: Work = ("encrypt", "AES_GCM")
_DECRYPT: Work = ("decrypt", "AES_GCM")
_HMAC: Work = ("mac", "HMAC_SHA_256")


def _nothing(*_: object) -> None:
    pass


class Token(PassageWork):
    """One token, used by all threads of this process. All sizes are bytes, all times seconds.

    `pin` stays in memory and is tried once: after a refusal nobody tries again who was given the same
    `refusal`, made before the processes were forked (None: this process alone). `lock_file` is held while
    a process connects. `softhsm_conf` becomes SOFTHSM2_CONF of this process. `deadline_seconds` is the
    longest wait for one answer; who passes it makes the token *unresponsive*. `on_lost` is called once for
    each lost connection, `on_stuck` with the number of threads stuck inside the module whenever it
    changes; both by the watch thread, so they must be quick. `oaep_fallback`: whether what was encrypted by
    RSAES-OAEP may pass through here where the token can't keep it inside: decoded, where it knows no such
    padding (see oaep.py), or to check an imported private key (see import_pair). `name` is what the log
    calls it, and `apart` keeps it from all other tokens of the same module (see Module). Work with key
    pairs: pairs.py; with keys that stay in the token: kept.py; with those of the ceremony: passage.py.

    Every method that uses the token raises Error(UNAVAILABLE) at once while it is not connected,
    Error(DEADLINE) when the time of `within` is over, and ObjectGone for a handle whose object is gone.
    """

    def __init__(
        self,
        address: Address,
        pin: str,
        *,
        lock_file: Path,
        softhsm_conf: Path | None = None,
        deadline_seconds: float = 10.0,
        on_lost: Callable[[], None] = _nothing,
        on_stuck: Callable[[int], None] = _nothing,
        oaep_fallback: bool = True,
        refusal: Refusal | None = None,
        name: str = "",
        apart: bool = False,
    ) -> None:
        settings = Settings(
            address,
            lock_file,
            softhsm_conf,
            deadline_seconds,
            on_lost,
            on_stuck,
            Refusal() if refusal is None else refusal,
            name,
            apart,
        )
        self._link = Link(settings, pin)
        self._oaep_fallback = oaep_fallback
        self._local = threading.local()
        self._desks: list[Desk] = []
        self._desks_lock = threading.Lock()
        self._missing: dict[str, int] = {}

    # The connection

    def connect(self) -> None:
        """Load the module, log in, probe; once connected, nothing happens.

        Raises TokenRefused (module missing, PIN wrong or locked, another token there, module in use)
        or Error(UNAVAILABLE) (token absent, module fails or hangs).
        """
        self._link.connect()

    def watch(self, use: Callable[[], None] = _nothing) -> None:
        """From now on notice loss and hung calls, and reconnect; also when `connect` failed.

        `use` is what the keeper does each second besides, like using a key: it notices what the module's own
        random numbers and session keys don't need.
        """

        def ping() -> None:
            self._ping()
            use()

        self._link.watch(ping)

    def close(self) -> None:
        """End all sessions and leave the module."""
        self._link.close()

    def status(self) -> TokenStatus:
        """How the token is; never waits for it."""
        return self._link.status()

    @property
    def refused(self) -> TokenRefused | None:
        """The refusal of the PIN, by `connect` or later: from then on nothing is tried any more."""
        return self._link.refused

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """What the last probe found; empty before the first connection."""
        return self._link.capabilities

    def within(self, seconds: float) -> Within:
        """Calls of this thread begin and end within this time, else Error(DEADLINE).

        A caller's impatience says nothing about the token: its state follows `deadline_seconds` alone.
        """
        return Within(self._desk(), seconds)

    @property
    def left(self) -> float:
        """Seconds that `within` leaves to this thread."""
        return max(self._desk().until - monotonic(), 0.0)

    def holds(self, seconds: float) -> int:
        """How many threads have been inside the module for so long; those that make a pair may not count."""
        return self._link.calls.lasting(monotonic() + self._link.settings.deadline - seconds)

    def measure(self) -> None:
        """Say in the metrics how the token is; never waits for it."""
        link = self._link
        name, now = link.settings.name or MAIN, link.status().state
        for state in STATES:
            metrics.TOKEN_STATE.set(state == now, name, state)
        live = link.live
        seated = sum(getattr(each, "connection", None) is live for each in list(self._desks)) if live else 0
        metrics.HSM_SESSIONS.set(seated, name)
        metrics.HSM_INSIDE.set(len(link.calls.inside), name)
        metrics.HSM_STUCK.set(link.calls.stuck, name)

    def alive(self) -> None:
        """Use the token in earnest (random numbers and an HMAC)."""
        with self._desk().call(work=("ping", "")) as desk:
            desk.connection.feel(desk.session)

    # Token objects

    def make_root_key(self, label: str, *, extractable: bool = False) -> None:
        """Make an AES-256 key that wraps and unwraps. Raises Error(FORMAT_INVALID) if the label is taken.

        `extractable`: for the ceremony, which backs it up and closes it.
        """
        self._make(label, Mechanism.AES_KEY_GEN, templates.root_key(label, extractable=extractable))

    def make_hmac_key(self, label: str, *, extractable: bool = False) -> None:
        """Make an HMAC-SHA-256 key. Raises Error(FORMAT_INVALID) if the label is taken."""
        template = templates.hmac_key(label, extractable=extractable)
        self._make(label, Mechanism.GENERIC_SECRET_KEY_GEN, template)

    def find(self, label: str) -> Handle:
        """The key labelled so. Raises Error(UNAVAILABLE) unless there is exactly one."""
        with self._desk().call(work=("find", "")) as desk:
            connection = desk.connection
            known = connection.labelled.get(label)
            if known is None:
                found = persisting(desk.session, label)
                if not found and label in connection.seen:
                    # SoftHSM2 whose folder was away keeps these objects dead: only a new connection helps.
                    raise self._link.lost(connection, NoSuchKey(f"no key labelled {label} any more"))
                if len(found) != 1:
                    count = len(found) or "no"
                    raise Error(UNAVAILABLE, reason=f"the HSM holds {count} keys labelled {label}")
                known = connection.labelled[label] = connection.handles.admit(found[0][0])
                connection.seen.add(label)
            return known

    def labels(self) -> list[str]:
        """The labels of all secret keys that persist in the token, sorted."""
        with self._desk().call() as desk:
            return sorted(label for _, label in persisting(desk.session))

    def check_value(self, handle: Handle) -> str:
        """The check value of a root key, 16 hex digits; the same on every token that has this key.

        The first bytes of 32 zeros wrapped by it. CKA_CHECK_VALUE won't do: SoftHSM2 has none of a key that
        was unwrapped, opencryptoki has none at all.
        """
        with self._call(handle) as desk:
            zeros = desk.connection.module.create(desk.session, templates.trial("aes", bytes(32)))
            return wrapped_up(desk, desk.object, zeros)[:_CHECK_VALUE_BYTES].hex()

    # Session objects

    def generate(self, row: KeyAlgorithm, root: Handle) -> bytes:
        """A new key, born in the token, wrapped by the root key and destroyed there."""
        with self._call(root, ("generate", row.name)) as desk:
            made = desk.connection.module.generate(
                desk.session, templates.GENERATORS[row.kind], templates.newborn(row)
            )
            return wrapped_up(desk, desk.object, made)

    def wrap_value(self, row: KeyAlgorithm, value: bytes, root: Handle) -> bytes:
        """A key of this value, `row.bits` long, wrapped by the root key. Raises ValueError otherwise."""
        if len(value) * 8 != row.bits:
            raise ValueError(f"{row.name} has {row.bits} bits")
        with self._call(root, ("wrap", row.name)) as desk:
            made = desk.connection.module.create(desk.session, templates.imported(row, value))
            return wrapped_up(desk, desk.object, made)

    def unwrap(self, row: KeyAlgorithm, wrapped: bytes, root: Handle) -> Handle:
        """Load a wrapped key, not extractable, until destroyed. Raises BadData when it can't be unwrapped."""
        template = templates.at_work(row)
        return self._load(
            self._call(root, ("unwrap", row.name), blob=True),
            lambda desk, module, anchor: confined(
                desk.connection,
                anchor,
                module.unwrap(anchor, key_wrap(desk.connection), desk.object, wrapped, template),
            ),
        )

    def destroy(self, handle: Handle) -> None:
        """Unload a key; from now on it is refused. What is gone already, alone or with the token, is well.

        Its object goes when no thread uses it any more, at the latest at the keeper's next turn. Not for
        keys that persist: ValueError.
        """
        connection = self._link.live
        if connection is None or handle.generation != connection.generation:
            return
        if handle in tuple(connection.labelled.values()):  # a copy: other threads add to it
            raise ValueError("a key that persists in the token is not unloaded")
        token_handle = connection.handles.withdraw(handle)
        if token_handle is not None:
            connection.handles.withdrawn.append((handle, token_handle))
            self._destroy_withdrawn()

    def encrypt(self, key: Handle, iv: bytes, data: bytes, aad: bytes) -> bytes:
        """AES-GCM: the ciphertext and its 16-byte tag. `iv`: 12 bytes, never twice with one key."""
        with self._call(key, _ENCRYPT) as desk:
            return operations.encrypt(desk.session, desk.object, iv, data, aad)

    def decrypt(self, key: Handle, iv: bytes, data: bytes, aad: bytes) -> bytes:
        """AES-GCM of ciphertext and tag. Raises BadData unless data, `iv`, `aad` and key belong together."""
        if len(data) < operations.TAG_BYTES:
            raise BadData("shorter than a tag")
        with self._call(key, _DECRYPT, blob=True) as desk:
            return operations.decrypt(desk.session, desk.object, iv, data, aad)

    def hmac(self, key: Handle, data: bytes) -> bytes:
        """HMAC-SHA-256, 32 bytes."""
        with self._call(key, _HMAC) as desk:
            return operations.hmac(desk.session, desk.object, data)

    def random(self, size: int) -> bytes:
        """Random bytes from the token's generator."""
        with self._desk().call(work=("random", "")) as desk, span("C_GenerateRandom"):
            return desk.session.generate_random(8 * size) if size else b""

    # Threads

    def _desk(self) -> Desk:
        try:
            desk: Desk = self._local.desk
        except AttributeError:
            desk = self._local.desk = Desk(self._link)
            with self._desks_lock:
                self._desks.append(desk)
        return desk

    def _call(self, key: Handle, work: Work = OTHER_WORK, *, blob: bool = False) -> Desk:
        return self._desk().call(key, work, blob=blob)

    def _lost(self, desk: Desk, reason: str) -> Error:
        return self._link.lost(desk.connection, NoSuchKey(reason))

    def _destroy_withdrawn(self) -> None:
        """Destroy what was withdrawn, but for what a thread is inside with; whatever the caller's time."""
        desk = self._desk()
        until, desk.until = desk.until, inf
        try:
            # Gone already, or the token is lost, and its objects with it; or another thread took the last.
            with suppress(ObjectGone, Error, IndexError), desk.call():
                withdrawn = desk.connection.handles.withdrawn
                for _ in range(len(withdrawn)):
                    handle, token_handle = withdrawn.pop(0)
                    if any(each.uses(handle) for each in list(self._desks)):
                        withdrawn.append((handle, token_handle))
                    else:
                        desk.connection.module.destroy(desk.session, token_handle)
        finally:
            desk.until = until

    def _ping(self) -> None:
        """The keeper's turn: use the token, and tidy up what others left behind."""
        desk = self._desk()
        deadline = self._link.settings.deadline
        desk.limit = min(max(_PING_LIMIT, _PING_SHARE * deadline), deadline)
        self.alive()
        self._destroy_withdrawn()
        with self._desks_lock:
            ended = [each for each in self._desks if not each.thread.is_alive()]
            self._desks = [each for each in self._desks if each.thread.is_alive()]
        with desk.call():
            for each in ended:
                if getattr(each, "connection", None) is desk.connection:
                    each.leave_session()

    # The longer work

    def _make(self, label: str, mechanism: Mechanism, template: Template) -> None:
        settings = self._link.settings
        with locked(settings.lock_file, settings.deadline), self._desk().call() as desk:
            if persisting(desk.session, label):
                raise Error(FORMAT_INVALID, reason=f"the HSM holds a key labelled {label} already")
            session = desk.connection.open_session(write=True)
            try:
                desk.connection.module.generate(session, mechanism, template)
            finally:
                session.close()

    def _load(self, call: Desk, make: Callable[[Desk, Module, Session], int]) -> Handle:
        made: Handle | None = None
        try:
            with call as desk:
                made = load(desk, partial(make, desk))
        except Error:
            if made is not None:  # it came too late for the caller, and nobody else knows of it
                self.destroy(made)
            raise
        return made
