"""Counters, gauges and histograms of several processes, in memory that they shared before they were forked.

Each process has a sheet of its own and writes nowhere else. A process that takes the place of another one
goes on in its sheet: what was counted survives any death, and nothing grows with restarts. One process more
reads all sheets (daemon/exposition.py). Counting costs some 0.5 µs, and next to nothing where it is off.

A sheet is cells of 8 bytes: pid, cells in use, series lost, starts, last start; then one entry a series: how
long its name is and how many values it has, the name (JSON: metric, label values), the values. Only the last
step of adding an entry makes it count, so that a process may be killed at any time.
"""

import json
import math
import mmap
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import ClassVar

_CELL = 8
_CELLS = 2 * 1024 * 1024 // _CELL  # a sheet; what is not used takes no memory
_PID, _USED, _LOST, _STARTS, _STARTED, _SCRAP = range(6)
_FIRST = 64  # where entries begin; up to there is room for what finds no room
_WIDTH_SHIFT = 32

Labels = tuple[str, ...]


class Sheet:
    """The counts of one process."""

    def __init__(self, memory: memoryview) -> None:
        self.lock = threading.Lock()
        self.values = memory.cast("d")
        self._memory = memory
        self._numbers = memory.cast("Q")
        if not self._numbers[_USED]:
            self._numbers[_USED] = _FIRST

    def enter(self) -> None:
        """Write here from now on; what gauges of the process before said does not count any more."""
        self._numbers[_PID] = os.getpid()
        self._numbers[_STARTS] += 1
        self.values[_STARTED] = time.time()
        for metric in METRICS.values():
            metric.places.clear()
        for metric, labels, place in self._entries():
            if isinstance(metric, Gauge):
                self.values[place] = math.nan
            metric.places[labels] = place
        for metric in METRICS.values():
            if not metric.labels and not metric.places and not isinstance(metric, Gauge):
                self.add(metric, ())  # a rate can be told from its first one on

    def add(self, metric: "Metric", labels: Labels) -> int:
        """The place of a new series; one that is nobody's when the sheet is full."""
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has the labels {metric.labels}, not {labels}")
        name = json.dumps([metric.name, *labels]).encode()
        begin = self._numbers[_USED]
        place = begin + 1 + math.ceil(len(name) / _CELL)
        if place + metric.width > _CELLS:
            self._numbers[_LOST] += 1
            return _SCRAP
        self._numbers[begin] = metric.width << _WIDTH_SHIFT | len(name)
        self._memory[(begin + 1) * _CELL : (begin + 1) * _CELL + len(name)] = name
        for cell in range(place, place + metric.width):
            self.values[cell] = 0  # somebody may have been killed while adding here
        metric.places[labels] = place
        self._numbers[_USED] = place + metric.width
        return place

    # For who reads

    @property
    def pid(self) -> int:
        """The process that wrote here last; 0: none did yet."""
        return self._numbers[_PID]

    @property
    def starts(self) -> int:
        """How many processes have written here, one after the other."""
        return self._numbers[_STARTS]

    @property
    def started(self) -> float:
        """When the last of them began, in seconds since 1970."""
        return self.values[_STARTED]

    @property
    def lost(self) -> int:
        """How often something was not counted since the sheet was full."""
        return self._numbers[_LOST]

    def read(self) -> Iterator[tuple["Metric", Labels, list[float]]]:
        """All series."""
        for metric, labels, place in self._entries():
            yield metric, labels, list(self.values[place : place + metric.width])

    def _entries(self) -> Iterator[tuple["Metric", Labels, int]]:
        at, used = _FIRST, self._numbers[_USED]
        while at < used:
            width, length = divmod(self._numbers[at], 1 << _WIDTH_SHIFT)
            begin = (at + 1) * _CELL
            name, *labels = json.loads(bytes(self._memory[begin : begin + length]))
            place = at + 1 + math.ceil(length / _CELL)
            yield METRICS[name], tuple(labels), place
            at = place + width


class Metric:
    """What is counted; `labels` are the names of those, whose values come from fixed sets.

    Never ids, names of tenants or anything else that callers choose.
    """

    kind: ClassVar[str]
    width = 1

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name = name
        self.text = text
        self.labels = labels
        self.places: dict[Labels, int] = {}  # in the sheet of this process
        METRICS[name] = self


class Counter(Metric):
    """What only grows."""

    kind = "counter"

    def inc(self, *labels: str, by: float = 1.0) -> None:
        """Count."""
        if (sheet := _here) is None:
            return
        with sheet.lock:
            place = self.places.get(labels)
            sheet.values[sheet.add(self, labels) if place is None else place] += by


class Gauge(Metric):
    """How something is now, in each process."""

    kind = "gauge"

    def set(self, value: float, *labels: str) -> None:
        """Say how it is."""
        if (sheet := _here) is None:
            return
        with sheet.lock:
            place = self.places.get(labels)
            sheet.values[sheet.add(self, labels) if place is None else place] = value


class Reading(Gauge):
    """What only grows while a process lives, and is read from elsewhere."""

    kind = "counter"


class Histogram(Metric):
    """How long something takes. A series is the sum, then how many fall between the bounds (seconds)."""

    kind = "histogram"

    def __init__(self, name: str, text: str, *labels: str, bounds: Sequence[float]) -> None:
        super().__init__(name, text, *labels)
        self.bounds = tuple(bounds)
        self.width = 1 + len(self.bounds) + 1

    def observe(self, seconds: float, *labels: str) -> None:
        """Count one that took so long."""
        if (sheet := _here) is None:
            return
        with sheet.lock:
            place = self.places.get(labels)
            if place is None:
                place = sheet.add(self, labels)
            values = sheet.values
            values[place] += seconds
            values[place + 1 + bisect_left(self.bounds, seconds)] += 1


METRICS: dict[str, Metric] = {}  # all that are defined, as modules are loaded

# The one state of a module that changes. Whatever counts would else have to be handed its counters, down to a
# thread's place at the token; like a logger's, this state is the process's, and is set once in its life.
_sheets: dict[str, Sheet] = {}
_here: Sheet | None = None


def prepare(names: Sequence[str]) -> None:
    """Make a sheet for each process that will `enter` by such a name; the first is this one's."""
    memory = memoryview(mmap.mmap(-1, len(names) * _CELLS * _CELL))
    size = _CELLS * _CELL
    _sheets.update(
        (name, Sheet(memory[number * size : (number + 1) * size])) for number, name in enumerate(names)
    )
    enter(names[0])


def enter(name: str) -> None:
    """Count on that name's sheet from now on; nothing, if it has none."""
    global _here
    _here = _sheets.get(name)
    if _here is not None:
        _here.lock = threading.Lock()  # of a process that forked, somebody may hold it
        _here.enter()


def sheets() -> dict[str, Sheet]:
    """All of them by name."""
    return _sheets


class Timer:
    """`with Timer(histogram, label):` counts how long the block took, whatever its end."""

    __slots__ = ("_histogram", "_labels", "_started")

    def __init__(self, histogram: Histogram, *labels: str) -> None:
        self._histogram = histogram
        self._labels = labels

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._histogram.observe(time.monotonic() - self._started, *self._labels)
