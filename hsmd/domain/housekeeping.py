"""What has had its time in the store and goes: old entries of the change feed."""

from hsmd.domain.core import Call
from hsmd.store import feed

KEPT_CHANGES = 10_000  # a process that has missed more forgets all that it knows
_AT_ONCE = 10_000  # others wait for their changes meanwhile
_FEED = "the change feed"


def due(call: Call) -> list[str]:
    """What has grown too long; not for each entry, that would be a change every few seconds."""
    with call.read() as tx:
        return [_FEED] if feed.surplus(tx, KEPT_CHANGES) > KEPT_CHANGES // 10 else []


def prune(call: Call, _what: str) -> bool:
    """Forget the oldest entries. It is no change of anything, and leaves no record."""
    with call.core.store.write() as tx:
        feed.prune(tx, KEPT_CHANGES, _AT_ONCE)
    return True
