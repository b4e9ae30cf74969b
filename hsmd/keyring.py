"""Wrapped key version to loaded handle: bounded, forgetful, and whole again after the token was away.

Handles live in the HSM; this is only the list of what is loaded there. A key version is unwrapped when
it is first used, used by its handle from then on, and destroyed in the token when it is forgotten: the
oldest use goes first when the ring is full, and the change feed forgets keys that changed.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, TypeVar

from hsmd import metrics
from hsmd.algorithms import BY_NAME
from hsmd.errors import UNAVAILABLE, Error
from hsmd.hsm import BadData, Handle, ObjectGone, Token
from hsmd.tracing import span

Result = TypeVar("Result")


def with_token_key(token: Token, label: str, operation: Callable[[Handle], Result]) -> Result:
    """Run the operation on the token object labelled so; finds it anew and repeats once when it is gone.

    Raises what the operation raises, and Error(UNAVAILABLE) when the token is away or has no such key.
    """
    try:
        return operation(token.find(label))
    except ObjectGone:
        pass  # of an earlier connection, perhaps
    try:
        return operation(token.find(label))
    except ObjectGone as error:
        raise Error(UNAVAILABLE, reason=f"the HSM lost {label} while it was used") from error


class WrappedKey(Protocol):
    """What the ring needs of a row: the algorithm's name, the blob and the label of its root key."""

    @property
    def algorithm(self) -> str:
        """Name of a row of hsmd.algorithms."""

    @property
    def wrapped(self) -> bytes | None:
        """The blob; None when it was destroyed."""

    @property
    def root_label(self) -> str:
        """Label of the root key that wrapped it."""


class Keyring:
    """Loaded key versions of one process, by owner ("key id" or "access key id") and version."""

    def __init__(self, token: Token, capacity: int) -> None:
        self._token = token
        self._capacity = max(capacity, 1)
        self._lock = threading.Lock()
        self._loaded: OrderedDict[tuple[str, int], Handle] = OrderedDict()
        self._versions: dict[str, set[int]] = {}
        self._generation = 0

    def __len__(self) -> int:
        return len(self._loaded)

    @property
    def moment(self) -> int:
        """A number that changes when anything is forgotten; taken before a key's row is read."""
        return self._generation

    def use(
        self, owner: str, version: int, key: WrappedKey, operation: Callable[[Handle], Result], moment: int
    ) -> Result:
        """Run the operation on the key's handle; loads the key when it is not there, or no longer.

        When something was forgotten since `moment`, that may be this key: it is then loaded for this once.
        Raises what the operation raises, and Error(UNAVAILABLE) when the token is away.
        """
        slot = (owner, version)
        handle = self._found(slot)
        if handle is not None:
            try:
                metrics.KEYRING_USES.inc("hit")
                return operation(handle)
            except ObjectGone:
                self._drop(slot, handle)
        return self._use_anew(slot, key, operation, moment)

    def forget(self, owner: str) -> None:
        """Unload every version of the owner's."""
        with self._lock:
            # A load that began before this must not put its handle in afterwards.
            self._generation += 1
            versions = self._versions.pop(owner, set())
            gone = [handle for each in versions if (handle := self._loaded.pop((owner, each), None))]
        self._destroy(gone, "changed")

    def clear(self) -> None:
        """Unload everything: the token was away, or is about to be left."""
        with self._lock:
            self._generation += 1
            gone = list(self._loaded.values())
            self._loaded.clear()
            self._versions.clear()
        self._destroy(gone, "lost")

    def _found(self, slot: tuple[str, int]) -> Handle | None:
        """Without the lock, as this is the way of each call: either step is whole for threads."""
        try:
            handle = self._loaded[slot]
            self._loaded.move_to_end(slot)
        except KeyError:  # not there, or forgotten this moment
            return None
        return handle

    def _use_anew(
        self,
        slot: tuple[str, int],
        key: WrappedKey,
        operation: Callable[[Handle], Result],
        generation: int,
    ) -> Result:
        """Load the key, use it, and only then let others have it: nobody can forget it meanwhile."""
        metrics.KEYRING_USES.inc("miss")
        handle = self._load(slot, key)
        try:
            return operation(handle)
        except ObjectGone as error:
            raise Error(UNAVAILABLE, reason="the HSM lost a key while it was used") from error
        finally:
            if not self._keep(slot, handle, generation):
                self._token.destroy(handle)

    def _load(self, slot: tuple[str, int], key: WrappedKey) -> Handle:
        if key.wrapped is None:
            raise LookupError(f"version {slot[1]} of {slot[0]} has no material")
        algorithm, wrapped = BY_NAME[key.algorithm], key.wrapped
        try:
            with span("load key"):
                return with_token_key(
                    self._token, key.root_label, lambda root: self._token.unwrap(algorithm, wrapped, root)
                )
        except BadData as error:  # the store's fault, never the caller's
            raise LookupError(f"version {slot[1]} of {slot[0]} is not wrapped by {key.root_label}") from error

    def _keep(self, slot: tuple[str, int], handle: Handle, generation: int) -> bool:
        """Put the handle in, unless another thread was faster or something was forgotten meanwhile."""
        evicted: list[Handle] = []
        with self._lock:
            if generation != self._generation or slot in self._loaded:
                return False
            self._loaded[slot] = handle
            self._versions.setdefault(slot[0], set()).add(slot[1])
            while len(self._loaded) > self._capacity:
                oldest, gone = self._loaded.popitem(last=False)
                self._unlist(oldest)
                evicted.append(gone)
        self._destroy(evicted, "full")
        return True

    def _drop(self, slot: tuple[str, int], handle: Handle) -> None:
        with self._lock:
            if self._loaded.get(slot) == handle:
                del self._loaded[slot]
                self._unlist(slot)
        self._destroy([handle], "lost")

    def _unlist(self, slot: tuple[str, int]) -> None:
        versions = self._versions.get(slot[0])
        if versions is not None:
            versions.discard(slot[1])
            if not versions:
                del self._versions[slot[0]]

    def _destroy(self, handles: list[Handle], reason: str) -> None:
        if handles:
            metrics.KEYRING_UNLOADED.inc(reason, by=len(handles))
        for handle in handles:
            self._token.destroy(handle)
