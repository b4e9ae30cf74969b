"""The way along one chain, as far as it is whole, and what is wrong with the first line that is not."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hsmd.audit import chain, segments
from hsmd.audit.chain import START, Head
from hsmd.audit.segments import Segment

_OWN_EVENT = b'"event":"audit'


class Mark(NamedTuple):
    """The digest that a record has to have, and the number of the checkpoint that says so."""

    digest: str
    checkpoint: int


@dataclass(frozen=True, slots=True)
class Fault:
    """The first bad record of a chain: its number, where it stands or should (file, line), what is wrong."""

    seq: int
    file: str
    line: int
    reason: str
    chain: str = ""

    def of(self, name: str) -> "Fault":
        """The same, of that chain."""
        return replace(self, chain=name)

    def __str__(self) -> str:
        where = f" ({self.file}{f', line {self.line}' if self.line else ''})" if self.file else ""
        return f"{self.chain}: record {self.seq}{where}: {self.reason}"


class _Line(NamedTuple):
    file: str
    number: int
    text: bytes


_NO_LINE = _Line("", 0, b"")


def _nothing_wrong(_line: bytes) -> str:
    return ""


class Walk:
    """Over the segments of one chain.

    `marks` are what checkpoints say of its records, by number. `judge` says what else is wrong with a line.
    `partial`: the chain may begin behind a marked record. Afterwards: `fault`, the first one; `head` and
    `count`, how far it is whole; `torn`, bytes of a last line without an end; `notices`, the log's own
    records.
    """

    def __init__(
        self,
        known: Sequence[Segment],
        marks: Mapping[int, Mark],
        *,
        judge: Callable[[bytes], str] = _nothing_wrong,
        partial: bool = False,
    ) -> None:
        self._segments = known
        self._marks = marks
        self._judge = judge
        self._partial = partial
        self._before = _NO_LINE
        self.head = START
        self.count = 0
        self.torn = 0
        self.fault: Fault | None = None
        self.notices: list[dict[str, object]] = []

    def run(self) -> None:
        """Go on to the end or the first fault. Raises OSError."""
        for segment in self._segments:
            lines = segments.Lines(segment)
            try:
                self._read(segment, lines)
            except segments.UnreadableError as error:
                self._bad(self.head.seq + 1, segment.path.name, 0, f"the file can't be read on: {error}")
            if self.fault is None and lines.torn and segment.first != segments.ACTIVE:
                self._bad(self.head.seq + 1, segment.path.name, 0, "cut off in the midst of its line")
            if self.fault is not None:
                return
            self.torn = len(lines.torn)
        self._expect_all()

    def _expect_all(self) -> None:
        """Nothing that a checkpoint counts may be missing at the end."""
        last, before = max(self._marks, default=0), self._before
        if last > self.head.seq:
            if before.text and _json(before.text) is None:  # its newline went, and it swallowed the next one
                self._bad(self.head.seq, before.file, before.number, "changed: it can't be read")
            behind = f", like all to {last}" if last > self.head.seq + 1 else ""
            counted = f"checkpoint {self._marks[last].checkpoint} counted up to {last}"
            torn = f"; {self.torn} bytes without an end are there" if self.torn else ""
            self._bad(self.head.seq + 1, "", 0, f"missing{behind}: {counted}{torn}")

    def _read(self, segment: Segment, lines: segments.Lines) -> None:
        """Every line must say its number and the digest of the one before; this loop is what takes time."""
        name, marks, judge = segment.path.name, self._marks, self._judge
        each = iter(lines)
        seq, digest, text, number = self.head.seq, self.head.digest.encode(), self._before.text, 0
        for line in each:
            number += 1
            if not line.startswith(b'{"seq":%d,"prev":"%b"' % (seq + 1, digest)):
                if number == 1 and (late := self._late(line)):
                    seq = late
                else:
                    self._reach(seq, digest, _Line(name, number - 1, text) if number > 1 else self._before)
                    self._misfit(_Line(name, number, line), next(each, b""))
                    return
            seq += 1
            digest = chain.digest(line)
            if (mark := marks.get(seq)) and mark.digest != digest.decode():
                self._contradicted(seq, name, number)
                return
            if reason := judge(line):
                self._bad(seq, name, number, reason)
                return
            if _OWN_EVENT in line:
                self._notice(line)
            text = line
            self.count += 1
        self._reach(seq, digest, _Line(name, number, text) if number else self._before)

    def _reach(self, seq: int, digest: bytes, line: _Line) -> None:
        self.head, self._before = Head(seq, digest.decode()), line

    def _late(self, line: bytes) -> int:
        """The number of the record before the first one, of a chain that may begin late; else 0."""
        begins = chain.beginning(line)
        if not self._partial or begins is None or self.head != START:
            return 0
        mark = self._marks.get(begins.seq - 1)
        return begins.seq - 1 if mark and mark.digest == begins.digest else 0

    def _notice(self, line: bytes) -> None:
        record = _json(line)
        if isinstance(record, dict) and str(record.get("event")).startswith("audit"):
            self.notices.append(record)

    def _misfit(self, line: _Line, behind: bytes) -> None:
        """Name the record that is bad where a line does not follow the one before it."""
        seq, found, before = self.head.seq + 1, chain.beginning(line.text), self._before
        if before.text and _json(before.text) is None:
            self._bad(seq - 1, before.file, before.number, "changed: it can't be read")
        elif found is None:
            self._bad(seq, line.file, line.number, "changed: it can't be read")
        elif found.seq < seq:
            self._bad(seq, line.file, line.number, f"record {found.seq} stands there once more")
        elif found.seq > seq:
            self._bad(seq, line.file, line.number, f"missing: record {found.seq} stands there")
        elif seq > 1 and self._is_good(seq, line.text, behind) and not self._judge(line.text):
            self._bad(seq - 1, before.file, before.number, "changed: the next one has another hash for it")
        else:
            self._bad(seq, line.file, line.number, "changed: it does not follow the one before it")

    def _is_good(self, seq: int, line: bytes, behind: bytes) -> bool:
        """Of two lines that don't fit one was changed: the earlier one when others vouch for the later."""
        digest, after, mark = chain.digest(line).decode(), chain.beginning(behind), self._marks.get(seq)
        if mark is not None:
            return mark.digest == digest
        return after == Head(seq + 1, digest) or not behind

    def _contradicted(self, seq: int, name: str, number: int) -> None:
        """The chain is whole in itself, but not the one that was signed for."""
        earlier = max((each for each in self._marks if each < seq), default=0)
        span = f"it, or one from {earlier + 1} on, was" if earlier + 1 < seq else "it was"
        signed = f"checkpoint {self._marks[seq].checkpoint} has another hash for it"
        self._bad(seq, name, number, f"{span} changed and linked anew: {signed}")

    def _bad(self, seq: int, name: str, number: int, reason: str) -> None:
        if self.fault is None:
            self.fault = Fault(seq, name, number, reason)


def _json(line: bytes) -> object:
    """What the line says; None when it says nothing."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
