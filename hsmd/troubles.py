"""Faults that many calls meet at once: the log has a line when they begin and one when they are over."""

import logging
import threading
import time
from collections.abc import Callable

QUIET_SECONDS = 5.0  # without another call that met it, a trouble is over
_MOST = 64  # that are told apart; what comes beyond these is one more
_OTHERS = "other faults"


class Troubles:
    """What calls meet now. The calls after the first are lines at DEBUG; safe for threads."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._met: dict[str, tuple[int, float]] = {}  # trouble → calls, and when it was met last
        self._lock = threading.Lock()

    def meet(self, trouble: str, method: str, error: BaseException | None = None) -> None:
        """A call of that method met it; `error` is what is behind it, for the first line."""
        with self._lock:
            key = trouble if trouble in self._met or len(self._met) < _MOST else _OTHERS
            count, _ = self._met.get(key, (0, 0.0))
            self._met[key] = count + 1, self._clock()
        if count:
            self._log.debug("%s: %s", method, trouble)
        else:
            self._log.error("%s: %s", method, trouble, exc_info=error)

    def tend(self) -> None:
        """Tell which are over; to be called again and again."""
        if not self._met:
            return
        before = self._clock() - QUIET_SECONDS
        with self._lock:
            over = {key: count for key, (count, last) in self._met.items() if last < before}
            for key in over:
                del self._met[key]
        for key, count in over.items():
            self._log.info("over, after %d calls: %s", count, key)
