"""What a process has read of the store and checked, until the change feed tells that it changed."""

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

Row = TypeVar("Row")

ANY = ""  # instead of a domain: what is known may be of any


def _of_any(_row: object) -> Iterable[str]:
    return (ANY,)


def of_none(_row: object) -> Iterable[str]:
    """The domains of what no change in any domain touches."""
    return ()


class Cache:
    """Verified rows by owner and name, evicted by the change feed; bounded, oldest owner first."""

    def __init__(self, capacity: int = 50_000) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._rows: dict[str, dict[str | int, Any]] = {}
        self._domains: dict[str, set[str]] = {}  # of each owner's rows
        self._owners: dict[str, set[str]] = {}  # with rows of each domain
        self._evictions = 0

    def known(self, owner: str, name: str | int) -> Any:
        """The owner's row of that name if it is there, else None."""
        rows = self._rows.get(owner)
        return rows.get(name) if rows else None

    @overload
    def get(
        self,
        owner: str,
        name: str | int,
        load: Callable[[], Row],
        domains: Callable[[Row], Iterable[str]] = ...,
    ) -> Row: ...

    @overload
    def get(
        self,
        owner: str,
        name: str | int,
        load: Callable[[], Row | None],
        domains: Callable[[Row], Iterable[str]] = ...,
    ) -> Row | None: ...

    def get(
        self,
        owner: str,
        name: str | int,
        load: Callable[[], Row | None],
        domains: Callable[[Row], Iterable[str]] = _of_any,
    ) -> Row | None:
        """The owner's row of that name, loaded when it is not there; an absent row (None) is not kept.

        `domains` tells the ids of all domains whose changes it may depend on; unless it is told, any change
        of any of them evicts it.
        """
        row: Row | None = self.known(owner, name)
        if row is not None:
            return row
        evictions = self._evictions
        row = load()
        if row is not None:
            touching = set(domains(row))
            with self._lock:
                # What was evicted while we read may be what we have read: then it is used once, not kept.
                if evictions == self._evictions:
                    self._put(owner, name, row, touching)
        return row

    def evict(self, owner: str) -> None:
        """Drop the owner's rows."""
        with self._lock:
            self._evictions += 1
            self._drop(owner)

    def evict_domain(self, domain_id: str) -> None:
        """Drop what may depend on changes of that domain."""
        with self._lock:
            self._evictions += 1
            for owner in self._owners.get(domain_id, set()) | self._owners.get(ANY, set()):
                self._drop(owner)

    def evict_all(self) -> None:
        """Drop everything."""
        with self._lock:
            self._evictions += 1
            for each in (self._rows, self._domains, self._owners):
                each.clear()

    def _put(self, owner: str, name: str | int, row: object, touching: set[str]) -> None:
        self._rows.setdefault(owner, {})[name] = row
        if touching:
            self._domains.setdefault(owner, set()).update(touching)
            for each in touching:
                self._owners.setdefault(each, set()).add(owner)
        while len(self._rows) > self._capacity:
            self._drop(next(iter(self._rows)))

    def _drop(self, owner: str) -> None:
        self._rows.pop(owner, None)
        for each in self._domains.pop(owner, ()):
            owners = self._owners[each]
            owners.discard(owner)
            if not owners:
                del self._owners[each]
