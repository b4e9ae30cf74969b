"""Threads that use a daemon and check every answer, while a test breaks things around them."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hsmd.client import ApiError, Client
from tests.stand import Stand, eventually

Turn = Callable[[Client, int], bool]


def encrypts(keys: Sequence[str]) -> Turn:
    """Encrypt under each key in turn and decrypt again."""

    def turn(client: Client, number: int) -> bool:
        data, aad = os.urandom(1 + number % 64), os.urandom(number % 8)
        return client.decrypt(client.encrypt(keys[number % len(keys)], data, aad), aad) == data

    return turn


class Load:
    """`threads` threads over `channels` connections; each turn gives whether its answers were right.

    What is not answered is counted by its gRPC status; anything else that goes wrong is kept in `wrong`.
    """

    def __init__(
        self, stand: Stand, turn: Turn, *, threads: int = 8, channels: int = 4, deadline: float = 20
    ) -> None:
        self.done = [0] * threads
        self.unanswered: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.longest = 0.0
        self._turn = turn
        self._clients = [stand.client(deadline=deadline) for _ in range(channels)]
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if any(thread.is_alive() for thread in self._threads):
            self.wrong.append("a thread hangs")
        for client in self._clients:
            client.close()

    def goes_on(self) -> None:
        """Return when some more turns of every thread have gone well."""
        before = list(self.done)
        eventually(
            lambda: self.wrong or all(now > then + 1 for now, then in zip(self.done, before, strict=True))
        )

    def is_refused(self) -> None:
        """Return when some more calls have not been answered."""
        enough = self.unanswered.total() + len(self._threads)
        eventually(lambda: self.wrong or self.unanswered.total() >= enough)

    def _work(self, number: int) -> None:
        client = self._clients[number % len(self._clients)]
        turn = number
        while not self._stop.is_set():
            started = time.monotonic()
            right, failure = False, None
            try:
                right = self._turn(client, turn)
            except Exception as error:  # whatever it is, the test is to see it
                failure = error
            with self._lock:
                self._count(number, right, failure, time.monotonic() - started)
            if failure is not None:
                self._stop.wait(0.05)
            turn += 1

    def _count(self, number: int, right: bool, failure: Exception | None, seconds: float) -> None:
        self.longest = max(self.longest, seconds)
        if right:
            self.done[number] += 1
        elif isinstance(failure, ApiError) and failure.unanswered:
            self.unanswered[failure.status.name] += 1
        else:
            self.wrong.append(repr(failure or "a wrong answer"))


def is_serving(channel: grpc.Channel) -> bool:
    """What the standard health service answers on this connection."""
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
