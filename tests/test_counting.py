"""Counting in shared memory: exact over threads and processes, whole after any death, bounded."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from hsmd import counting
from hsmd.counting import Counter, Gauge, Histogram
from hsmd.daemon import exposition


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Counter, Gauge, Histogram]]:
    """Three metrics and nothing else, with sheets for two processes; this one is the first."""
    for name, value in (("METRICS", {}), ("_sheets", {}), ("_here", None)):
        monkeypatch.setattr(counting, name, value)
    monkeypatch.setattr(exposition, "METRICS", counting.METRICS)
    made = (
        Counter("t_total", "text", "kind"),
        Gauge("t_now", "text"),
        Histogram("t_seconds", "text", bounds=(0.1, 1)),
    )
    counting.prepare(("first", "second"))
    yield made
    counting.enter("")


def shown() -> dict[str, float]:
    """Every sample by name and label values."""
    found = exposition.Exposition({}, of_gateway=False).collect()
    return {
        " ".join([each.name, *each.labels.values()]): each.value
        for family in found
        for each in family.samples
    }


def forked(body: Callable[[], None]) -> int:
    """The body in a process of its own, which is the second one; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            counting.enter("second")
            body()
        finally:
            os._exit(0)
    return pid


def test_threads_lose_nothing(metrics: tuple[Counter, Gauge, Histogram]) -> None:
    counter, _, histogram = metrics

    def work() -> None:
        for _ in range(10_000):
            counter.inc("a")
            histogram.observe(0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = shown()
    assert found["t_total a"] == found["t_seconds_count"] == 40_000
    assert found["t_seconds_sum"] == 20_000


def test_bounds_belong_to_their_buckets(metrics: tuple[Counter, Gauge, Histogram]) -> None:
    for seconds in (0.05, 0.1, 0.100001, 1, 7):
        metrics[2].observe(seconds)
    found = shown()
    assert [found[f"t_seconds_bucket {bound}"] for bound in ("0.1", "1", "+Inf")] == [2, 4, 5]
    assert math.isclose(found["t_seconds_sum"], 8.250001)


def test_what_a_killed_process_counted_stays_and_another_goes_on(
    metrics: tuple[Counter, Gauge, Histogram],
) -> None:
    counter, gauge, _ = metrics
    counter.inc("a")
    gauge.set(1)

    def work() -> None:
        gauge.set(7)
        while True:
            counter.inc("a")
            counter.inc("b")

    for round_ in (1, 2):
        before = shown().get("t_total b", 0.0)
        pid = forked(work)
        while shown().get("t_total b", 0.0) < before + 1000:
            time.sleep(0.001)
        assert shown()["t_now second"] == 7
        assert shown()["hsmd_process_up second"] == 1
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = shown()
        assert found["hsmd_process_starts_total second"] == round_
        assert found["hsmd_process_up second"] == 0
        assert "t_now second" not in found  # nobody knows how it is
        assert found["t_now first"] == 1
        assert 0 <= found["t_total a"] - 1 - found["t_total b"] <= round_  # one a death
    used = counting.sheets()["second"]._numbers[counting._USED]
    os.waitpid(forked(lambda: counter.inc("b")), 0)
    assert counting.sheets()["second"]._numbers[counting._USED] == used  # restarts take no room


def test_a_process_killed_while_it_adds_a_series_leaves_nothing(
    metrics: tuple[Counter, Gauge, Histogram],
) -> None:
    sheet = counting.sheets()["first"]
    used = sheet._numbers[counting._USED]
    metrics[0].inc("of a long name, more than another one will have")
    sheet._numbers[counting._USED] = used  # as it was before the last step
    counting.enter("first")
    metrics[0].inc("short")
    metrics[0].inc("also short")
    found = shown()
    assert (found["t_total short"], found["t_total also short"]) == (1, 1)
    assert not [name for name in found if "long name" in name]


def test_gauges_of_the_process_before_are_forgotten(metrics: tuple[Counter, Gauge, Histogram]) -> None:
    metrics[1].set(5)
    assert shown()["t_now first"] == 5
    counting.enter("first")
    assert "t_now first" not in shown()


def test_a_full_sheet_loses_series_and_says_so(
    metrics: tuple[Counter, Gauge, Histogram], monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, _, histogram = metrics
    counter.inc("known")
    monkeypatch.setattr(counting, "_CELLS", 200)
    for number in range(1000):
        counter.inc(f"kind-{number}")
    histogram.observe(1)
    counter.inc("known")
    found = shown()
    assert found["t_total known"] == 2
    assert 900 < found["hsmd_process_metrics_lost_total first"] < 1000
    assert len(counter.places) < 100  # nor does the process keep what found no room
    assert found["t_seconds_count"] == 1  # it had its place from the start


def test_labels_are_those_declared(metrics: tuple[Counter, Gauge, Histogram]) -> None:
    for labels in ((), ("a", "b")):
        with pytest.raises(ValueError, match="labels"):
            metrics[0].inc(*labels)


def test_who_has_no_sheet_counts_nothing(metrics: tuple[Counter, Gauge, Histogram]) -> None:
    before = shown()
    counting.enter("nobody")
    metrics[0].inc("a")
    metrics[0].inc("too", "many")
    metrics[1].set(1)
    metrics[2].observe(1)
    assert shown() == before
