"""The threads that serve calls: a fixed number, and one more for each that the token holds fast."""

import queue
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_MOST_SPARE_THREADS = 64


class Pool(futures.Executor):
    """An executor that can be given more threads while some of its own are stuck in the PKCS#11 module."""

    def __init__(self, threads: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[futures.Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
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

    def have_spares(self, count: int) -> None:
        """See that `count` more threads than the fixed number serve; ends those that are too many."""
        with self._lock:
            missing = min(count, _MOST_SPARE_THREADS) - self._spares
            self._spares += missing
        for _ in range(missing):
            self._start(self._serve)
        for _ in range(-missing):
            self._tasks.put(None)

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
