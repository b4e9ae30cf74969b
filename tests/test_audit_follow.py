"""What follows the log while it is written sees every record once, over rotation, and what is done to it."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from hsmd.audit import checkpoints
from hsmd.audit.file import Rotation
from hsmd.audit.follow import Follower
from tests.audits import Notary, lines


def follower(notary: Notary) -> Follower:
    found = checkpoints.last(notary.directory)
    return Follower(notary.directory, found.chains if found else {})


@pytest.mark.parametrize("size", [0, 600, 2000])
def test_every_record_is_seen_once(tmp_path: Path, size: int) -> None:
    notary = Notary(tmp_path, Rotation(size=size))
    one, seen = follower(notary), list[tuple[str, bytes]]()
    count = 0
    for batch in (1, 0, 7, 30, 2, 1):
        notary.fill("worker-0", batch)
        notary.fill("warden", batch // 2)
        count += one.look(lambda name, line: seen.append((name, line)))
    assert count == len(seen) == 41 + 19
    assert len(set(seen)) == count
    assert {name: head.seq for name, head in one.heads.items()} == {"worker-0": 41, "warden": 19}
    assert one.trouble() == []
    one.close()


@pytest.mark.parametrize("packed", [False, True])
def test_another_one_goes_on_at_the_checkpoint(tmp_path: Path, packed: bool) -> None:
    notary = Notary(tmp_path, Rotation(size=2000))
    notary.fill("worker-0", 17)
    notary.checkpoint()
    if packed:
        for path in tmp_path.glob("worker-0.0*"):
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    one = follower(notary)
    assert one.look() == 0
    notary.fill("worker-0", 9)
    assert one.look() == 9
    assert one.heads["worker-0"].seq == 26
    assert one.trouble() == []


def cut(path: Path) -> None:
    path.write_bytes(b"".join(lines(path)[:-2]))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


def changed(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10] + b"x" + path.read_bytes()[-9:])


@pytest.mark.parametrize("fault", [cut, emptied, removed, changed])
def test_what_was_done_while_nobody_looked(tmp_path: Path, fault: Callable[[Path], None]) -> None:
    notary = Notary(tmp_path)
    notary.fill("worker-0", 10)
    notary.checkpoint()
    notary.close()
    fault(tmp_path / "worker-0.jsonl")
    one = follower(notary)
    one.look()
    one.look()
    (text,) = one.trouble()  # once
    assert "worker-0" in text
    assert "gone" in text or "changed" in text


def test_what_is_done_while_somebody_looks(tmp_path: Path) -> None:
    notary = Notary(tmp_path)
    notary.fill("worker-0", 10)
    one = follower(notary)
    one.look()
    path = tmp_path / "worker-0.jsonl"
    handle = path.open("r+b")
    handle.truncate(len(b"".join(lines(path)[:5])))
    one.look()
    assert one.trouble() == ["worker-0 was cut behind record 10"]
    notary.fill("worker-0", 1)  # the writer knows better
    one.look()
    assert one.trouble() == []
    assert [(each.chain, each.seq) for each in notary.verify().faults] == [("worker-0", 6)]
    handle.close()


def test_half_a_line_is_no_line(tmp_path: Path) -> None:
    notary = Notary(tmp_path)
    notary.fill("worker-0", 2)
    path, one = tmp_path / "worker-0.jsonl", follower(notary)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert one.look() == 1
    path.write_bytes(whole)
    assert one.look() == 1
    assert one.trouble() == []
