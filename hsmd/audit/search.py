"""Looks for records in the files of the log, over all processes in the order of time, and gives them away.

What is found is told as it stands. Whether it is as it was written, `verify.py` tells.
"""

import csv
import heapq
import io
import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from hsmd.audit import segments
from hsmd.audit.segments import Lines

Form = Literal["jsonl", "csv"]

COLUMNS = (
    *("time", "process", "seq", "request_id", "event", "method", "result", "identity", "user_id", "user"),
    *("assumed_by", "domain_id", "project_id", "source", "resource", "key_version", "duration_ms", "detail"),
    "prev",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take for one


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a record must be; "" and None for anything.

    `key` is a resource's id, a key's in most cases; `principal` a user's id or name, or that of who acts as
    an agency. `since` (inclusive) and `until` (exclusive) have a time zone. `domain_id` wants what was done
    outside of projects.
    """

    key: str = ""
    principal: str = ""
    event: str = ""
    result: str = ""
    request_id: str = ""
    source: str = ""
    project_id: str = ""
    domain_id: str = ""
    since: datetime | None = None
    until: datetime | None = None

    def fits(self, record: dict[str, Any]) -> bool:
        """Whether the record is such a one."""
        resource = str(record.get("resource", ""))
        return (
            (not self.key or resource == self.key or resource.endswith(f"/{self.key}"))
            and (not self.principal or self.principal in map(record.get, ("user_id", "user", "assumed_by")))
            and all(
                not value or record.get(name) == value
                for name, value in (
                    ("event", self.event),
                    ("result", self.result),
                    ("request_id", self.request_id),
                    ("source", self.source),
                    ("project_id", self.project_id),
                    ("domain_id", self.domain_id),
                )
            )
            and (not self.domain_id or not record.get("project_id"))
            and spelled(self.since) <= str(record.get("time", ""))
            and (self.until is None or str(record.get("time", "")) < spelled(self.until))
        )

    def texts(self) -> list[bytes]:
        """What must stand in its line, whatever else does."""
        values = (self.key, self.principal, self.event, self.result, self.request_id, self.source)
        return [
            json.dumps(each, ensure_ascii=False)[1:-1].encode("utf-8", "backslashreplace")
            for each in (*values, self.project_id, self.domain_id)
            if each
        ]


ANYTHING = Wanted()


def spelled(moment: datetime | None) -> str:
    """As records have it, so that texts compare like times."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds") if moment else ""


@dataclass(frozen=True, slots=True)
class Found:
    """A record with its line as it stands, without the newline."""

    line: bytes
    record: dict[str, Any]

    @property
    def place(self) -> tuple[str, str, int]:
        """What found records are sorted by."""
        seq = self.record.get("seq")
        return (
            str(self.record.get("time", "")),
            str(self.record.get("process", "")),
            seq if type(seq) is int else 0,
        )


class Search:
    """The records that are wanted, in the order of time. `unreadable` counts lines that are none.

    Iterating raises OSError, and segments.UnreadableError for a packed file that can't be read to its end.
    """

    def __init__(self, directory: Path, wanted: Wanted = ANYTHING) -> None:
        self._directory = directory
        self._wanted = wanted
        self._texts = wanted.texts()
        self.unreadable = 0

    def __iter__(self) -> Iterator[Found]:
        sources = [self._of(known) for known in _sources(self._directory)]
        return heapq.merge(*sources, key=lambda each: each.place)

    def last(self, count: int) -> list[Found]:
        """The latest ones."""
        found: list[Found] = []
        for known in _sources(self._directory):
            of_chain: deque[Found] = deque(maxlen=count)
            for lines in reversed(known):
                newer, missing = list(of_chain), count - len(of_chain)
                of_chain = deque([*deque(self._of([lines]), maxlen=missing), *newer], maxlen=count)
                if len(of_chain) >= count:
                    break
            found += of_chain
        found.sort(key=lambda each: each.place)
        return found[-count:]

    def take(self, line: bytes) -> Found | None:
        """The record of a line, if it is wanted."""
        if any(text not in line for text in self._texts):
            return None
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            self.unreadable += 1
            return None
        return Found(line, record) if self._wanted.fits(record) else None

    def _of(self, known: Iterable[Lines]) -> Iterator[Found]:
        for lines in known:
            for line in lines:
                found = self.take(line)
                if found is not None:
                    yield found


def _sources(directory: Path) -> list[list[Lines]]:
    """Chains, and what was set aside from before there were any."""
    return [*segments.snapshot(directory).values(), *([Lines(each)] for each in segments.aside(directory))]


def export(
    directory: Path, out: IO[bytes], form: Form, wanted: Wanted = ANYTHING, most: int | None = None
) -> tuple[int, int]:
    """Write the wanted records to `out`; how many, and how many lines could not be read.

    "jsonl" has the lines as they stand, so that they can be compared; "csv" (RFC 4180) has COLUMNS, a head,
    and a ' before what a spreadsheet would take for a formula. Raises as Search does.
    """
    search = Search(directory, wanted)
    count = 0
    if form == "csv":
        out.write(_row(COLUMNS))
    for each in islice(search, most):
        out.write(each.line + b"\n" if form == "jsonl" else _row(_cells(each.record)))
        count += 1
    return count, search.unreadable


def _cells(record: dict[str, Any]) -> list[str]:
    return [_cell(record.get(name)) for name in COLUMNS]


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    if not isinstance(value, str):
        return "" if value is None else str(value)
    return f"'{value}" if value.startswith(_FORMULA) else value


def _row(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")
