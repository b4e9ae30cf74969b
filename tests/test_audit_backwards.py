"""The log is read from its end: every record once, page by page, over rotation, packing and what is torn."""

import gzip
import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hsmd.audit import blocks
from hsmd.audit.backwards import Page, newest
from hsmd.audit.file import Rotation
from hsmd.audit.search import ANYTHING, Wanted
from tests.audits import Notary, like

BEGIN = datetime(2026, 11, 22, 5, tzinfo=UTC)
PROJECTS = ("a" * 32, "b" * 32, "c" * 32)
_ENOUGH = 1 << 30


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short log has many of them."""
    monkeypatch.setattr(blocks, "BLOCK", 10_000)
    monkeypatch.setattr(blocks, "PROBE", 2_000)


def made(number: int, seconds: float = 1.0, **more: Any) -> dict[str, Any]:
    moment = BEGIN + timedelta(seconds=number * seconds)
    return {**like(number), "time": moment.isoformat(timespec="milliseconds"), **more}


def fill(notary: Notary, count: int, chance: random.Random) -> None:
    """Records of three projects in two chains, some a little out of the order of time."""
    for number in range(count):
        name = chance.choice(("worker-0", "worker-1"))
        at = number + chance.choice((0, 0, 0, 0.4, -0.4))
        notary.write(
            name, made(0, project_id=chance.choice(PROJECTS), process=name, request_id=f"{number:032x}")
            | {"time": (BEGIN + timedelta(seconds=at)).isoformat(timespec="milliseconds")},
        )  # fmt: skip


def pack(directory: Path, *, last: bool = True) -> None:
    paths = sorted(directory.glob("*.0*.jsonl"))
    for path in paths if last else paths[:-1]:
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def pages(directory: Path, wanted: Wanted, count: int, bound: int = _ENOUGH) -> Iterator[Page]:
    before = None
    while before != {}:
        page = newest(directory, wanted, count, lambda _: True, bound=bound, before=before)
        yield page
        assert page.before != before, "each page gets on"
        before = page.before


def ids(found: Iterator[Page]) -> list[str]:
    return [each.record["request_id"] for page in found for each in page.found]


@pytest.fixture(scope="module", params=["one file", "rotated", "packed", "some packed"])
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("audit")
    whole = request.param == "one file"
    notary = Notary(directory, Rotation() if whole else Rotation(size=30_000))
    fill(notary, 400, random.Random(6))  # noqa: S311  # no secret
    notary.close()
    if "packed" in request.param:
        pack(directory, last=request.param == "packed")
    return directory


def everything(directory: Path) -> list[dict[str, Any]]:
    found = []
    for path in directory.iterdir():
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found += [json.loads(line) for line in data.splitlines()]
    return found


@pytest.mark.parametrize(("count", "bound"), [(10_000, _ENOUGH), (7, _ENOUGH), (50, 1), (20, 20_000)])
def test_every_record_once(log: Path, count: int, bound: int) -> None:
    wanted = Wanted(project_id=PROJECTS[1])
    found = ids(pages(log, wanted, count, bound))
    expected = {each["request_id"] for each in everything(log) if each["project_id"] == PROJECTS[1]}
    assert len(found) == len(expected) > 100
    assert set(found) == expected
    if bound == _ENOUGH:  # a page that was cut short goes on with whatever chain there is more of
        places = [int(each, 16) for each in found]
        assert all(earlier <= later + 1 for later, earlier in pairwise(places))


def test_a_span_of_time(log: Path) -> None:
    since, until = BEGIN + timedelta(seconds=200), BEGIN + timedelta(seconds=260)
    found = ids(pages(log, Wanted(project_id=PROJECTS[0], since=since, until=until), 20))
    expected = {
        each["request_id"]
        for each in everything(log)
        if each["project_id"] == PROJECTS[0] and since <= datetime.fromisoformat(each["time"]) < until
    }
    assert len(found) == len(expected) > 10
    assert set(found) == expected


def test_little_is_read_for_what_is_elsewhere_in_time(tmp_path: Path) -> None:
    """Bytes are counted by the bound: a page that is not cut short has read no more."""
    notary = Notary(tmp_path, Rotation(size=10_000))
    for number in range(300):
        notary.write("worker-0", made(number, 10.0))
    notary.close()
    pack(tmp_path)
    day = BEGIN + timedelta(seconds=1500)
    wanted = Wanted(since=day, until=day + timedelta(seconds=30))
    page = newest(tmp_path, wanted, 200, lambda _: True, bound=25_000)
    assert (len(page.found), page.before) == (3, {})
    (late,) = newest(tmp_path, ANYTHING, 1, lambda _: True, bound=1).found
    assert late.record["seq"] == 300


def test_a_torn_end_and_damage_are_passed_over(tmp_path: Path) -> None:
    notary = Notary(tmp_path, Rotation(size=20_000))
    notary.fill("worker-0", 200)
    notary.close()
    pack(tmp_path)
    active = tmp_path / "worker-0.jsonl"
    active.write_bytes(active.read_bytes() + b'{"seq":201,"prev":"torn')
    assert len(ids(pages(tmp_path, ANYTHING, 50))) == 200
    damaged = sorted(tmp_path.glob("*.gz"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-200])
    assert 100 < len(ids(pages(tmp_path, ANYTHING, 50))) < 200
    damaged.unlink()
    assert 100 < len(ids(pages(tmp_path, ANYTHING, 50))) < 200
    (tmp_path / "worker-1.jsonl").write_bytes(b"x" * 3_000_000)
    assert 100 < len(ids(pages(tmp_path, ANYTHING, 50, 10_000))) < 200


def test_rotation_between_pages_and_new_chains_change_nothing(tmp_path: Path) -> None:
    notary = Notary(tmp_path)
    notary.fill("worker-0", 100)
    found, before = [], None
    for turn in range(100):
        page = newest(tmp_path, ANYTHING, 10, lambda _: True, bound=_ENOUGH, before=before)
        found += [each.record["seq"] for each in page.found]
        before = page.before
        if not before:
            break
        notary.close()
        notary.rotation = Rotation(size=1)
        notary.fill("worker-0", 2)
        notary.fill(f"worker-{turn + 1}", 2)
        pack(tmp_path, last=turn % 2 == 0)
    notary.close()
    assert found == list(range(100, 0, -1))


def test_an_empty_log(tmp_path: Path) -> None:
    assert newest(tmp_path, ANYTHING, 10, lambda _: True, bound=1) == Page([], {})
    (tmp_path / "worker-0.jsonl").touch()
    assert newest(tmp_path, ANYTHING, 10, lambda _: True, bound=1) == Page([], {})


@pytest.mark.soak
def test_a_million_records(tmp_path: Path) -> None:
    """What one page costs for who has few of them, and none, in files of 64 MB, packed and not."""
    notary = Notary(tmp_path, Rotation(size=64 * 1024 * 1024))
    for start in range(0, 1_000_000, 500):
        notary.write("worker-0", *(made(number, 0.01) for number in range(start, start + 500)))
    notary.close()
    for packed in (False, True):
        if packed:
            pack(tmp_path)
        for project in ("c" * 32, "d" * 32):
            began = time.process_time()
            page = newest(tmp_path, Wanted(project_id=project), 200, lambda _: True, bound=64 * 1024 * 1024)
            took = time.process_time() - began
            print(f"packed {packed}, project {project[0]}: {len(page.found)} in {took:.3f} s")
            assert took < 3
