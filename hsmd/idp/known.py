"""What was found out a short while ago, so that it need not be asked at every call."""

import hashlib
import threading
from typing import Generic, TypeVar

Found = TypeVar("Found")


class Known(Generic[Found]):
    """What is known of texts (kept as digests), each until its time; at most `capacity`, oldest out first."""

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._found: dict[bytes, tuple[Found, float]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def get(self, text: str, now: float) -> Found | None:
        """What is known still."""
        found = self._found.get(_digest(text))
        return found[0] if found is not None and now < found[1] else None

    def put(self, text: str, found: Found, until: float) -> None:
        """Know it until then."""
        digest = _digest(text)
        with self._lock:
            self._found.pop(digest, None)
            self._found[digest] = found, until
            while len(self._found) > self._capacity:
                del self._found[next(iter(self._found))]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
