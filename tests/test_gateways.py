"""What a gateway refuses by itself is on record too, at a rate that a flood can't drive up."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from hsmd.client.errors import from_rpc
from hsmd.pb.v1 import gateways_pb2 as pb
from hsmd.pb.v1.gateways_pb2_grpc import GatewaysStub
from tests.calls import fresh
from tests.stand import Stand, elsewhere, eventually, standing

EVENT = "refuseRequest"
KMS = "/v1.0/{project_id}/kms"


@pytest.fixture(scope="module")
def gateway(stand: Stand) -> Iterator[GatewaysStub]:
    """What has the gateway's certificate."""
    with channel(stand, "gateway-client") as one:
        yield GatewaysStub(one)


def channel(stand: Stand, name: str) -> grpc.Channel:
    folder = stand.dev.ca.parent
    files = (stand.dev.ca, folder / f"{name}.key", folder / f"{name}.pem")
    return grpc.secure_channel(
        stand.dev.grpc, grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    )


def records(stand: Stand, source: str) -> list[dict[str, Any]]:
    """Of refusals of requests from there."""
    return [each for each in stand.audit() if each["event"] == EVENT and each["source"] == source]


def code_of(stub: GatewaysStub, *refusals: pb.Refusal) -> str:
    """With which it is refused; "" where it is not."""
    try:
        stub.ReportRefusals(pb.ReportRefusalsRequest(refusals=refusals), timeout=30)
    except grpc.RpcError as error:
        return from_rpc(error, "").code
    return ""


def test_each_refusal_is_on_record(stand: Stand) -> None:
    source, kms = elsewhere(), f"/v1.0/{stand.dev.project_id}/kms"
    token = stand.token()
    secret = fresh()
    cases = [
        (
            ("POST", f"{kms}/encrypt-data", b'{"plain_text": "x"'),
            token,
            f"POST {KMS}/encrypt-data",
            "KMS.0202",
        ),
        (
            ("POST", f"{kms}/encrypt-data", {"key_id": [secret]}),
            token,
            f"POST {KMS}/encrypt-data",
            "KMS.0205",
        ),
        (("POST", f"{kms}/list-keys", {}), "", f"POST {KMS}/list-keys", "APIGW.0301"),
        (("POST", f"/v9/{secret}", {}), token, "POST -", "APIGW.0101"),
        (("DELETE", f"{kms}/list-keys", {}), token, "DELETE -", "KMS.0215"),
        (("POST", f"{kms}/list-keys", bytes(13 << 20)), token, f"POST {KMS}/list-keys", "APIGW.0201"),
    ]
    sent = {}
    for request, shown, name, code in cases:
        answer = stand.rest(*request, token=shown, source=source)
        assert code.encode() in answer.raw
        sent[answer.headers["X-Request-Id"]] = (f"gateway/{name}", code)
    found = eventually(lambda: len(records(stand, source)) >= len(cases) and records(stand, source))
    assert {each["request_id"]: (each["method"], each["result"]) for each in found} == sent
    assert {each["identity"] for each in found} == {"anonymous"}
    assert {(each["detail"]["gateway"], each["detail"]["count"]) for each in found} == {
        ("CN:hsmd-gateway", 1)
    }
    assert secret not in str(found)


def test_a_gateway_that_starts_tells_with_what(stand: Stand) -> None:
    """And which version it is; each of its processes does."""
    found = eventually(
        lambda: [
            each
            for each in stand.audit()
            if each["method"] == "hsmd.v1.Gateways/ReportStart" and each["result"] == "OK"
        ]
    )
    assert {(each["event"], each["identity"], each["user"]) for each in found} == {
        ("loadConfiguration", "gateway", "CN:hsmd-gateway")
    }
    assert re.fullmatch(r"hsmd [0-9.]+, sha256 [0-9a-f]{64}", found[0]["resource"])


def test_what_the_daemon_refuses_is_on_record_once(stand: Stand) -> None:
    source = elsewhere()
    answer = stand.kms("describe-key", {"key_id": "11111111-2222-3333-4444-555555555555"}, source=source)
    assert answer.status == 404
    stand.rest("POST", "/v9/none", {}, source=source)
    eventually(lambda: records(stand, source))  # the one after it is there
    mine = [each for each in stand.audit() if each["request_id"] == answer.headers["X-Request-Id"]]
    assert [each["result"] for each in mine] == ["KMS.0207"]


def test_a_flood_costs_some_records_a_second(stand: Stand) -> None:
    """However many requests there are, from however many addresses; and none is missing in the counts."""
    sources = [elsewhere() for _ in range(100)]
    before, began = stand.audit(), time.monotonic()

    def refused(source: str) -> bool:
        return stand.rest("POST", "/v9/none", {}, source=source).status == 404

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(refused, sources * 3))
    seen = {(each["process"], each["seq"]) for each in before}

    def new() -> list[dict[str, Any]]:
        found = [each for each in stand.audit() if (each["process"], each["seq"]) not in seen]
        return [each for each in found if (each["event"], each["result"]) == (EVENT, "APIGW.0101")]

    eventually(lambda: sum(each["detail"]["count"] for each in new()) >= 3 * len(sources))
    found = new()
    seconds = time.monotonic() - began  # once they were read: some may have come meanwhile
    processes = int(stand.settings["HSMD__GATEWAY__WORKERS"])
    assert len(found) <= processes * 33 * (seconds + 1)  # each tells once a second: 32 kinds and the rest


def test_gateways_alone_report(stand: Stand, gateway: GatewaysStub) -> None:
    good = pb.Refusal(code="KMS.0202", count=1)
    assert code_of(gateway, good) == ""
    with channel(stand, "admin") as one:
        assert code_of(GatewaysStub(one), good) == "KMS.0330"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"code": "KMS.9999"}, "KMS.0308"),
        ({"code": "OK"}, "KMS.0308"),
        ({"code": ""}, "KMS.0204"),
        ({"count": 0}, "KMS.0204"),
        ({"count": -1}, "KMS.0308"),
        ({"first": -1}, "KMS.0308"),
        ({"first": 1 << 62}, "KMS.0308"),
        ({"request": "x" * 201}, "KMS.0308"),
        ({"source": "x" * 65}, "KMS.0308"),
        ({"request_id": "x" * 33}, "KMS.0308"),
    ],
)
def test_what_can_not_be_is_not_recorded(
    stand: Stand, gateway: GatewaysStub, wrong: dict[str, Any], code: str
) -> None:
    """Nor is what came along with it."""
    source = elsewhere()
    good: dict[str, Any] = {"code": "KMS.0202", "count": 1, "source": source}
    assert code_of(gateway, pb.Refusal(**good), pb.Refusal(**{**good, **wrong})) == code
    assert records(stand, source) == []


def test_a_daemon_that_was_away_hears_of_all(tmp_path: Path) -> None:
    with standing(tmp_path, {"HSMD__GRPC__WORKERS": "1"}) as stand:
        assert stand.daemon is not None
        assert stand.gateway is not None
        source, token = elsewhere(), stand.token()
        stand.daemon.stop(20)
        for _ in range(5):
            assert stand.kms("list-keys", {}, token=token, source=source).status == 503
        stand.restart_daemon()
        eventually(lambda: sum(each["detail"]["count"] for each in records(stand, source)) == 5)
        assert {each["result"] for each in records(stand, source)} == {"KMS.0104"}
        for _ in range(3):
            last, before = elsewhere(), stand.log("gateway")
            stand.rest("POST", "/v9/none", {}, source=last)
            stand.gateway.stop(20)
            told = records(stand, last)
            if told or "not in the audit log" not in stand.log("gateway").removeprefix(before):
                break  # there is a second for it: a daemon that was late is asked once more
            stand.start_gateway()
        assert [each["result"] for each in told] == ["APIGW.0101"]
