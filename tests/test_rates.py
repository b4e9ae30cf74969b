"""Buckets fill at their rate and hold their depth, for all processes together, whatever becomes of one."""

import os
import signal
import time

import pytest

from hsmd.domain.rates import Buckets

SECOND = 1_000_000_000
NOW = 1_000 * SECOND


def taken(buckets: Buckets, name: str, rate: float, depth: float, now: int, tries: int) -> int:
    return sum(buckets.take(name, rate, depth, now) == 0 for _ in range(tries))


@pytest.mark.parametrize(("rate", "depth", "most"), [(10, 1.0, 10), (10, 0.5, 5), (10, 0, 1), (1, 0.2, 1)])
def test_a_full_bucket_holds_its_depth_and_at_least_one(rate: float, depth: float, most: int) -> None:
    assert taken(Buckets(), "a", rate, depth, NOW, 100) == most


def test_it_fills_at_its_rate() -> None:
    buckets = Buckets()
    assert taken(buckets, "a", 10, 1.0, NOW, 100) == 10
    assert taken(buckets, "a", 10, 1.0, NOW + SECOND // 10, 100) == 1
    assert taken(buckets, "a", 10, 1.0, NOW + SECOND // 2, 100) == 4
    assert taken(buckets, "a", 10, 1.0, NOW + 60 * SECOND, 100) == 10


def test_who_is_refused_is_told_when_there_is_a_token() -> None:
    buckets = Buckets()
    taken(buckets, "a", 4, 1.0, NOW, 4)
    wait = buckets.take("a", 4, 1.0, NOW)
    assert wait == pytest.approx(0.25)
    assert buckets.take("a", 4, 1.0, NOW + int(0.24 * SECOND)) > 0
    assert buckets.take("a", 4, 1.0, NOW + int(wait * SECOND)) == 0


def test_refusals_cost_nothing() -> None:
    buckets = Buckets()
    for step in range(1000):  # 100 tries in each tenth of a second
        now = NOW + step * SECOND // 1000
        buckets.take("a", 10, 0, now)
    assert buckets.take("a", 10, 0, NOW + SECOND) == 0


def test_names_have_buckets_of_their_own() -> None:
    buckets = Buckets()
    for number in range(1000):
        assert taken(buckets, f"name {number}", 5, 1.0, NOW, 10) == 5


def test_a_table_that_is_full_goes_on_and_keeps_who_is_furthest_ahead() -> None:
    buckets = Buckets(slots=8)
    assert taken(buckets, "greedy", 1, 60.0, NOW, 100) == 60
    for number in range(100):
        assert buckets.take(f"name {number}", 1, 60.0, NOW) == 0
    assert buckets.take("greedy", 1, 60.0, NOW) > 0


def test_a_limit_that_changes_counts_at_once() -> None:
    buckets = Buckets()
    taken(buckets, "a", 1000, 1.0, NOW, 1000)
    assert buckets.take("a", 1, 1.0, NOW) > 0
    assert buckets.take("b", 1, 1.0, NOW) == 0
    assert buckets.take("b", 1000, 1.0, NOW + SECOND) == 0


def _forked(body: object) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            body()  # type: ignore[operator]  # a function
        finally:
            os._exit(0)
    return pid


def test_processes_count_together() -> None:
    buckets = Buckets()
    reading, writing = os.pipe()

    def take(name: str) -> None:
        os.write(writing, bytes([taken(buckets, name, 100, 1.0, NOW, 60)]))

    def race(name: str) -> int:
        """How many tokens four processes get that take at once, and one more that comes late."""
        for pid in [_forked(lambda: take(name)) for _ in range(4)]:
            os.waitpid(pid, 0)
        each = os.read(reading, 4)
        assert len(each) == 4
        return sum(each) + taken(buckets, name, 100, 1.0, NOW, 1)

    for _ in range(3):
        os.waitpid(_forked(lambda: take("in turn")), 0)
    assert os.read(reading, 3) == bytes([60, 40, 0])
    # Two that take in the same microsecond may have one token for two; and one that stands still just then
    # gives back what others take meanwhile, on a busy machine. So this is the rule, not each race.
    got = sorted(race(f"race {number}") for number in range(5))
    assert got[0] >= 100
    assert got[2] <= 120


def test_processes_that_are_killed_leave_nothing_behind() -> None:
    buckets = Buckets()

    def hammer() -> None:
        while True:
            buckets.take("a", 1e6, 0.001, time.monotonic_ns())

    for _ in range(20):
        pid = _forked(hammer)
        time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert buckets.take("a", 1e6, 0.001, time.monotonic_ns() + SECOND) == 0
