"""The threads that serve calls: a fixed number, and one more for each that somebody holds fast."""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_STUCK = "the PKCS#11 module holds threads"

log = logging.getLogger(__name__)


class Pool(futures.Executor):
    """An executor that can be given more threads, `most_spares` at most, while some of its own are held."""

    def __init__(self, threads: int, most_spares: int) -> None:
        self.most_spares = most_spares
        self._tasks: queue.SimpleQueue[tuple[futures.Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._wanted: dict[str, int] = {}  # reason → spare threads
        self._spares = 0
        for _ in range(threads):
            self._start(self._serve)

    def submit(
        self, task: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> futures.Future[Result]:
        """Run the task on some thread of the pool."""
        future: futures.Future[Result] = futures.Future()
        self._tasks.put((future, lambda: task(*args, **kwargs)))
        return future

    @property
    def queued(self) -> int:
        """How many tasks wait for a thread."""
        return self._tasks.qsize()

    def have_spares(self, count: int, reason: str = _STUCK) -> None:
        """See that `count` more threads than the fixed number serve, and those that other reasons ask for.

        Ends those that are too many.
        """
        with self._lock:
            self._wanted[reason] = count
            wanted = min(sum(self._wanted.values()), self.most_spares)
            try:
                while self._spares < wanted:
                    self._start(self._serve)
                    self._spares += 1
            except RuntimeError as error:  # the system gives no more threads: those that are there go on
                log.error("%d of %d spare threads: %s", self._spares, wanted, error)  # noqa: TRY400 -- foreseen
            while self._spares > wanted:
                self._tasks.put(None)
                self._spares -= 1

    def _start(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name="call", daemon=True).start()

    def _serve(self) -> None:
        while (item := self._tasks.get()) is not None:
            future, task = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(task())
            except BaseException as error:  # the future carries whatever the task raised
                future.set_exception(error)
