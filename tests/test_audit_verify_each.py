"""Of a long log each record is changed, removed, doubled, swapped, and cut behind and within: all is found.

Each time by the whole verifier, over the files as they then are; but files that a checkpoint vouches for and
that are far before the change are kept elsewhere (`partial`), as it would only walk over them.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsmd.audit import segments
from hsmd.audit.verify import Keys, verify
from tests.audits import Notary, lines

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

MANY, EACH = 10_000, 500  # records, and those of a file, behind which there is a checkpoint
_RANDOM = random.Random(6)  # noqa: S311  # no secret

Files = dict[int, list[bytes]]
"""By the number of a file: its lines, each with its newline."""


def edits(files: Files, number: int, place: int) -> Iterator[tuple[str, Files, int]]:
    """What is done to a record: how it is called, the files that are then others, the record to be named."""
    here, behind = files[number], files.get(number + 1)
    before, one, after, seq = here[:place], here[place], here[place + 1 :], number * EACH + place + 1
    at = _RANDOM.randrange(len(one))
    changed = one[:at] + bytes([one[at] ^ _RANDOM.randrange(1, 256)]) + one[at + 1 :]
    yield "changed", {number: [*before, changed, *after]}, seq
    yield "removed", {number: [*before, *after]}, seq
    yield "doubled", {number: [*before, one, one, *after]}, seq + 1
    if after:
        yield "swapped", {number: [*before, after[0], one, *after[1:]]}, seq
    elif behind is not None:
        yield "swapped", {number: [*before, behind[0]], number + 1: [one, *behind[1:]]}, seq


def cuts(files: Files, number: int, place: int) -> Iterator[tuple[str, list[bytes], int]]:
    """Where the log ends: what is left of the last file, the record to be named."""
    before, one, seq = files[number][:place], files[number][place], number * EACH + place + 1
    if seq < MANY:
        yield "cut behind", [*before, one], seq + 1
    yield "cut within", [*before, one[: _RANDOM.randrange(1, len(one))]], seq


def test_each_record_of_a_long_log(tmp_path: Path) -> None:
    notary = Notary(tmp_path)
    for _ in range(MANY // EACH):
        notary.fill("worker-0", EACH, 50)
        notary.checkpoint()
    notary.close()
    active = tmp_path / "worker-0.jsonl"
    texts, keys = lines(active), Keys.of([notary.public])
    active.unlink()
    files = {number: texts[number * EACH : (number + 1) * EACH] for number in range(MANY // EACH)}
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "checkpoints.chain").write_bytes((tmp_path / "checkpoints.chain").read_bytes())

    def write(folder: Path, changed: Files) -> None:
        for number, content in changed.items():
            path = segments.rotated(folder / active.name, number * EACH + 1)
            path.write_bytes(b"".join(content))

    def named(folder: Path) -> int:
        (fault,) = verify(folder, keys, partial=True).faults
        assert fault.chain == "worker-0"
        return fault.seq

    write(tmp_path, files)
    assert verify(tmp_path, keys).faults == []
    began, found = time.monotonic(), Counter[str]()
    for number in files:
        for folder in (tmp_path, cut):
            write(folder, {number - 1: files[number - 1]} if number else {})
            segments.rotated(folder / active.name, (number - 2) * EACH + 1).unlink(missing_ok=True)
        assert verify(tmp_path, keys, partial=True).faults == []
        for place in range(EACH):
            for what, changed, seq in edits(files, number, place):
                write(tmp_path, changed)
                assert named(tmp_path) == seq, what
                write(tmp_path, {each: files[each] for each in changed})
                found[what] += 1
            for what, left, seq in cuts(files, number, place):
                (cut / active.name).write_bytes(b"".join(left))
                assert named(cut) == seq, what
                found[what] += 1
        assert verify(tmp_path, keys, partial=True).faults == []
    seconds = time.monotonic() - began
    print(f"{MANY} records, {found.total()} times something else in {seconds:.0f} s: {dict(found)}")
    assert set(found.values()) == {MANY, MANY - 1}
