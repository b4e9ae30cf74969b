"""Who sees which events, page by page, by the rules; what the SDK makes of it stands in test_traces.py."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from hsmd.api import traces as servicer
from hsmd.audit import Log
from hsmd.audit.records import of_call
from hsmd.caller import Caller
from hsmd.descriptors import services
from hsmd.domain.core import in_either
from hsmd.errors import BY_CODE, Error
from hsmd.gateway.routes import Match
from hsmd.gateway.transcoder import build, query_pairs
from hsmd.pb.v1 import traces_pb2 as pb
from tests.house import CALLER, House, furnished

OURS, THEIRS = CALLER._replace(source="10.0.0.7", user_name="ann"), CALLER._replace(project_id="4" * 32)
DOMAIN = CALLER._replace(project_id="")
KEY = "0d0466b0-e727-4d9c-b35d-f84bb474a37f"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with furnished(tmp_path_factory.mktemp("house")) as one:
        one.core.audit_directory = one.folder / "audit"
        worker = Log(one.folder / "audit" / "worker-0.jsonl", durable=False)
        for number in range(40):
            write(worker, OURS, "encryptData", "Crypto/EncryptData", KEY, number=number)
            write(one.audit, THEIRS, "encryptData", "Crypto/EncryptData", KEY)
        write(worker, OURS, "disableKey", "Keys/DisableKey", KEY, result="KMS.1301")
        write(worker, OURS, "genRandom", "Crypto/GenRandom", "", result="KMS.0104")
        write(one.audit, OURS._replace(kind="system", user_name=""), "deleteKey", "warden/due-deletions", KEY)
        write(worker, DOMAIN, "createUser", "Users/CreateUser", "user/abc")
        write(worker, DOMAIN._replace(domain_id="5" * 32), "createUser", "Users/CreateUser", "user/def")
        write(worker, Caller("anonymous", source="10.0.0.9"), "encryptData", "Crypto/EncryptData", KEY)
        one.now = int(time.time() * 1000) + 1000
        yield one
        worker.close()


def write(
    log: Log, caller: Caller, event: str, method: str, resource: str, *, result: str = "OK", number: int = 0
) -> None:
    record = of_call(
        caller._replace(request_id=f"{number:032x}"),
        event=event,
        method=method if method.startswith("warden") else f"hsmd.v1.{method}",
        result=result,
        resource=resource,
        key_version=1,
        process="worker-0",
        seconds=0.001,
    )
    log.append(record, timeout=60)


def asked(house: House, caller: Caller = OURS, **fields: Any) -> pb.ListTracesResponse:
    call = house.call()
    call.caller = caller
    return servicer.list_traces(call, pb.ListTracesRequest(**fields))


def names(answer: pb.ListTracesResponse) -> list[str]:
    return [each.trace_name for each in answer.traces]


def test_a_project_sees_its_own(house: House) -> None:
    answer = asked(house, limit=200)
    assert sorted(set(names(answer))) == ["deleteKey", "disableKey", "encryptData", "genRandom"]
    assert len(answer.traces) == answer.meta_data.count == 43
    assert answer.meta_data.marker == ""
    assert [each.time.ToMilliseconds() for each in answer.traces] == sorted(
        (each.time.ToMilliseconds() for each in answer.traces), reverse=True
    )
    assert len({each.trace_id for each in answer.traces}) == 43
    assert names(asked(house, THEIRS, limit=200)) == ["encryptData"] * 40
    assert names(asked(house, OURS._replace(project_id="6" * 32), limit=200)) == []


def test_a_domain_sees_what_is_in_no_project(house: House) -> None:
    (trace,) = asked(house, DOMAIN).traces
    assert (trace.trace_name, trace.resource_id) == ("createUser", "user/abc")
    assert (trace.service_type, trace.resource_type) == ("IAM", "users")
    with pytest.raises(Error):
        asked(house, Caller("anonymous"))


def test_what_an_event_tells(house: House) -> None:
    (refused,) = asked(house, trace_name="disableKey").traces
    fault = BY_CODE["KMS.1301"]
    assert (refused.code, refused.message, refused.trace_rating) == (str(fault.http), "KMS.1301", "warning")
    assert (refused.user.name, refused.user.id, refused.source_ip) == ("ann", OURS.user_id, "10.0.0.7")
    assert (refused.user.domain.id, refused.user.type) == (OURS.domain_id, "certificate")
    assert (refused.service_type, refused.resource_type, refused.trace_type) == ("KMS", "CMK", "ApiCall")
    (failed,) = asked(house, resource_type="RNG").traces
    assert (failed.trace_name, failed.trace_rating) == ("genRandom", "incident")
    (deleted,) = asked(house, trace_name="deleteKey").traces
    assert (deleted.trace_type, deleted.service_type, deleted.resource_type) == ("SystemAction", "KMS", "CMK")
    told = str(asked(house, limit=200))
    for each in ("worker-", "warden", "hsmd.v1", "prev"):
        assert each not in told


def test_page_by_page(house: House) -> None:
    whole = [each.trace_id for each in asked(house, limit=200).traces]
    found, marker, pages = [], "", 0
    while pages == 0 or marker:
        answer = asked(house, limit=7, next=marker)
        assert answer.meta_data.count == len(answer.traces) <= 7
        found += [each.trace_id for each in answer.traces]
        marker, pages = answer.meta_data.marker, pages + 1
    assert found == whole
    assert pages <= 8
    assert len(asked(house).traces) == 10


def test_filters(house: House) -> None:
    def count(**fields: Any) -> int:
        return len(asked(house, limit=200, **fields).traces)

    assert count(resource_id=KEY) == count(resource_name=KEY) == 42
    assert count(trace_rating="normal") == 41
    assert count(user="ann") == 42
    assert count(service_type="KMS", resource_type="CMK", trace_name="encryptData") == 40
    assert count(service_type="OBS") == count(user="an") == count(resource_id="0d04") == 0
    one = asked(house).traces[5]
    beside: dict[str, Any] = {"trace_id": one.trace_id, "user": "nobody", "since": {"seconds": 1}}
    assert [each.trace_id for each in asked(house, **beside).traces] == [one.trace_id]
    assert asked(house, THEIRS, trace_id=one.trace_id).traces == []
    assert count(since=one.time) < 43
    assert one.trace_id not in [each.trace_id for each in asked(house, limit=200, since=one.time).traces]
    assert one.trace_id not in [each.trace_id for each in asked(house, limit=200, until=one.time).traces]
    assert count(until={"seconds": 1}) == count(trace_type="data") == count(tracker_name="mine") == 0
    house.now += 3_700_000
    assert count() == 0, "the last hour, unless another time is asked for"
    assert count(since={"seconds": 1}) == 43
    house.now -= 3_700_000


def test_a_marker_is_good_for_its_project_only(house: House) -> None:
    marker = asked(house, limit=1).meta_data.marker
    assert "worker" not in marker
    for caller in (THEIRS, DOMAIN, OURS._replace(domain_id="7" * 32)):
        with pytest.raises(Error) as refused:
            asked(house, caller, next=marker)
        assert refused.value.fault.code == "KMS.0308"


@pytest.mark.parametrize(
    "fields",
    [
        *({"limit": 0}, {"limit": -1}, {"limit": 201}, {"trace_type": "x"}, {"trace_rating": "x"}),
        *({"next": "x"}, {"next": "\N{SNOWMAN}"}, {"next": "A" * 80}, {"trace_id": "x"}),
        *({"since": {"seconds": -(10**13)}}, {"until": {"seconds": 10**13}}, {"trace_id": "f" * 32}),
    ],
)
def test_wrong_parameters(house: House, fields: dict[str, Any]) -> None:
    with pytest.raises(Error) as refused:
        asked(house, **fields)
    assert refused.value.fault.code == "KMS.0308"


def test_few_read_at_once(house: House) -> None:
    with house.core.log_readers, house.core.log_readers:
        with pytest.raises(Error) as refused:
            asked(house)
        assert (refused.value.fault.code, refused.value.retry_after) == ("APIGW.0308", 1.0)
    assert asked(house).traces


def test_the_route() -> None:
    tree, _ = build(services())
    found = tree.find("GET", f"/v3/{OURS.project_id}/traces")
    assert isinstance(found, Match)
    assert found.target.call == "/hsmd.v1.Traces/ListTraces"
    query = b"limit=5&from=1497341531000&to=1497341531999&next=abc&user=a+b"
    request = pb.ListTracesRequest.FromString(
        found.target.request(found.variables, query_pairs(query), {}, b"")
    )
    assert (request.project_id, request.limit, request.next) == (OURS.project_id, 5, "abc")
    assert (request.since.ToMilliseconds(), request.until.ToMilliseconds()) == (1497341531000, 1497341531999)
    assert request.user == "a b"
    answer = pb.ListTracesResponse(traces=[pb.Trace(time={"seconds": 5, "nanos": 7_000_000})])
    assert b'"time":5007' in found.target.response(answer.SerializeToString()).body
    assert in_either("cts:trace:list")
