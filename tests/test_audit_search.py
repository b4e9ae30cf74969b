"""Searching and exporting take every record once, over rotation, packing and what was set aside."""

import gzip
import io
import itertools
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsmd.audit.file import Rotation
from hsmd.audit.search import COLUMNS, Search, Wanted, export
from tests.audits import Notary, like

_TIME = datetime(2026, 11, 22, 5, 0, 30, tzinfo=UTC)


def found(directory: Path, **wanted: object) -> list[int]:
    return [int(each.record["request_id"], 16) for each in Search(directory, Wanted(**wanted))]  # type: ignore[arg-type]  # the fields of Wanted


def test_all_of_it_in_the_order_of_time(tmp_path: Path) -> None:
    (tmp_path / "worker-0.jsonl").write_bytes(json.dumps(like(0)).encode() + b"\n")  # of an older version
    notary = Notary(tmp_path, Rotation(size=1500))
    for number in range(1, 60):
        notary.write(f"worker-{number % 3}", like(number))
    for path in list(tmp_path.glob("worker-1.0*"))[:2]:
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    wanted = Wanted(event="encryptData")
    numbers = [int(each.record["request_id"], 16) for each in Search(tmp_path, wanted)]
    assert numbers == list(range(60))
    assert [int(each.record["request_id"], 16) for each in Search(tmp_path, wanted).last(7)] == numbers[-7:]
    assert len(Search(tmp_path, wanted).last(1000)) == 60


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_rotated_meanwhile_is_there_once(tmp_path: Path, packed: bool) -> None:
    notary = Notary(tmp_path, Rotation(size=1500))
    notary.fill("worker-0", 10)
    search = iter(Search(tmp_path))
    first = next(search)
    notary.fill("worker-0", 10)
    if packed:
        for path in tmp_path.glob("worker-0.0*"):
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    numbers = [each.record["seq"] for each in itertools.chain([first], search)]
    assert numbers[:10] == list(range(1, 11))
    assert numbers == sorted(set(numbers))


def test_times_keys_and_principals(tmp_path: Path) -> None:
    notary = Notary(tmp_path)
    notary.fill("worker-0", 60)
    notary.write(
        "worker-0", {**like(60), "resource": "user/" + "d" * 32, "assumed_by": 'Zoë "Z"', "user": None}
    )
    assert found(tmp_path, since=_TIME, until=_TIME.replace(second=33)) == [30, 31, 32]
    assert found(tmp_path, since=_TIME.astimezone().replace(second=59)) == [59, 60]
    assert found(tmp_path, key="d" * 32) == found(tmp_path, key="user/" + "d" * 32) == [60]
    assert found(tmp_path, key="d" * 31) == []
    assert found(tmp_path, principal='Zoë "Z"') == [60]
    assert found(tmp_path, principal="admin") == list(range(60))
    assert found(tmp_path, principal="a" * 32, request_id=f"{7:032x}") == [7]


def test_lines_that_are_none_are_counted(tmp_path: Path) -> None:
    notary = Notary(tmp_path)
    notary.fill("worker-0", 3)
    with (tmp_path / "worker-0.jsonl").open("ab") as file:
        file.write(b"nonsense\n[1]\n" + b"[" * 100_000 + b"\n")
    out = io.BytesIO()
    assert export(tmp_path, out, "jsonl") == (3, 3)
    assert out.getvalue() == b"".join((tmp_path / "worker-0.jsonl").read_bytes().splitlines(True)[:3])
    out = io.BytesIO()
    assert export(tmp_path, out, "csv", most=2) == (2, 0)
    assert out.getvalue().count(b"\r\n") == 3
    assert out.getvalue().startswith(b'"' + b'","'.join(each.encode() for each in COLUMNS) + b'"\r\n')
