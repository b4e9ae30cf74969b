"""What a page of events costs in a log of a million records, asked of a daemon that has it."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from hsmd.audit import checkpoints
from hsmd.audit.file import Rotation
from hsmd.client import Client
from hsmd.pb.v1 import traces_pb2
from tests.audits import Notary
from tests.stand import Stand, Tenant, eventually
from tests.test_audit_backwards import BEGIN, made

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

MANY, PAGE = 1_000_000, 200
_RARE, _RARELY = "5f0c7d1e-0000-4000-8000-00000000cafe", (10, MANY // 2, MANY - 10)
_APART = 0.01  # seconds from record to record


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path, {"HSMD__GRPC__WORKERS": "1"})


def fill(stand: Stand, who: Tenant) -> None:
    """A chain of a process that was there before, in files as the daemon has them: all of this project."""
    notary = Notary(stand.dev.data / "audit", Rotation(size=64 * 1024 * 1024))
    for start in range(0, MANY, 500):
        records = [
            made(number, _APART, project_id=who.project_id, process="earlier")
            for number in range(start, start + 500)
        ]
        for number in set(_RARELY) & set(range(start, start + 500)):
            records[number - start]["resource"] = _RARE
        notary.write("earlier", *records)
    notary.close()


def pages(client: Client, until: float, most: int = 100, **wanted: Any) -> tuple[list[str], list[float]]:
    """Ids of requests, over so many pages, and how long each took; `until` in seconds since the beginning."""
    found, seconds, marker = list[str](), list[float](), ""
    moments = [Timestamp(), Timestamp()]
    for moment, at in zip(moments, (-1.0, until), strict=True):
        moment.FromDatetime(BEGIN + timedelta(seconds=at))
    since, before = moments
    while (marker or not seconds) and len(seconds) < most:
        began = time.perf_counter()
        request = traces_pb2.ListTracesRequest(limit=PAGE, since=since, until=before, next=marker, **wanted)
        answer = client.traces.ListTraces(request)
        seconds.append(time.perf_counter() - began)
        found += [each.request_id for each in answer.traces]
        marker = answer.meta_data.marker
    return found, seconds


def ids(*numbers: int) -> list[str]:
    return [f"{number:032x}" for number in numbers]


def test_pages(stand: Stand) -> None:
    who = stand.add_tenant("watcher", ("CTS ReadOnlyAccess",))
    fill(stand, who)
    directory = stand.dev.data / "audit"

    def show(what: str, seconds: list[float]) -> None:
        print(f"{what}: {len(seconds)} calls, {sum(seconds):.2f} s, the longest {max(seconds):.3f} s")

    try:
        stand.start(gateway=False)
        eventually(
            lambda: (last := checkpoints.last(directory)) and last.chains["earlier"].seq == MANY, seconds=300
        )
        eventually(lambda: list(directory.glob("earlier.0*")) == list(directory.glob("earlier.0*.gz")), 300)
        with stand.client(who, deadline=60) as client:
            for what, at in (("the newest", MANY), ("the middle", MANY // 2), ("the last", PAGE * 10)):
                found, took = pages(client, at * _APART, 10)
                assert found == ids(*range(at - 1, at - 1 - len(found), -1))
                assert len(found) > PAGE * 8  # where a file ends a page may have less
                show(f"ten pages of {PAGE}, {what}", took)
            found, took = pages(client, PAGE * _APART)
            assert found == ids(*range(PAGE - 1, -1, -1))
            show("the very last page", took)
            found, took = pages(client, MANY * _APART, resource_id=_RARE)
            assert found == ids(*sorted(_RARELY, reverse=True))
            show("a rare key", took)
    finally:
        stand.stop()
