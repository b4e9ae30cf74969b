"""Wrapped key version to loaded handle: bounded, forgetful, and whole again after the token was away.

Handles live in the HSM; this is only the list of what is loaded there. A key version is unwrapped when
it is first used, used by its handle from then on, and destroyed in the token when it is forgotten: the
oldest use goes first when the ring is full, and the change feed forgets keys that changed.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, TypeVar

from hsmd.algorithms import BY_NAME
from hsmd.hsm import BadData, Handle, ObjectGone, Token

Result = TypeVar("Result")


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

    def use(self, owner: str, version: int, key: WrappedKey, operation: Callable[[Handle], Result]) -> Result:
        """Run the operation on the key's handle; loads the key when it is not there, repeats once.

        Raises what the operation raises, and Error(UNAVAILABLE) when the token is away.
        """
        try:
            return self._run(owner, version, key, operation)
        except ObjectGone:
            self._drop((owner, version))
        return self._run(owner, version, key, operation)

    def forget(self, owner: str) -> None:
        """Unload every version of the owner's."""
        with self._lock:
            # A load that began before this must not put its handle in afterwards.
            self._generation += 1
            versions = self._versions.pop(owner, set())
            gone = [handle for each in versions if (handle := self._loaded.pop((owner, each), None))]
        self._destroy(gone)

    def clear(self) -> None:
        """Unload everything: the token was away, or is about to be left."""
        with self._lock:
            self._generation += 1
            gone = list(self._loaded.values())
            self._loaded.clear()
            self._versions.clear()
        self._destroy(gone)

    def _run(
        self, owner: str, version: int, key: WrappedKey, operation: Callable[[Handle], Result]
    ) -> Result:
        slot = (owner, version)
        with self._lock:
            handle = self._loaded.get(slot)
            generation = self._generation
            if handle is not None:
                self._loaded.move_to_end(slot)
        if handle is not None:
            return operation(handle)
        handle = self._load(slot, key)
        kept = self._keep(slot, handle, generation)
        try:
            return operation(handle)
        finally:
            if not kept:
                self._token.destroy(handle)

    def _load(self, slot: tuple[str, int], key: WrappedKey) -> Handle:
        if key.wrapped is None:
            raise LookupError(f"version {slot[1]} of {slot[0]} has no material")
        root = self._token.find(key.root_label)
        try:
            return self._token.unwrap(BY_NAME[key.algorithm], key.wrapped, root)
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
        self._destroy(evicted)
        return True

    def _drop(self, slot: tuple[str, int]) -> None:
        with self._lock:
            handle = self._loaded.pop(slot, None)
            self._unlist(slot)
        self._destroy([handle] if handle else [])

    def _unlist(self, slot: tuple[str, int]) -> None:
        versions = self._versions.get(slot[0])
        if versions is not None:
            versions.discard(slot[1])
            if not versions:
                del self._versions[slot[0]]

    def _destroy(self, handles: list[Handle]) -> None:
        for handle in handles:
            self._token.destroy(handle)
