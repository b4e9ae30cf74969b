"""Limits of projects and addresses: counted by all workers together, set and reset by operators."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from hsmd.caller import Caller
from hsmd.client import ApiError, Client
from hsmd.config import Limits
from hsmd.domain import limits
from hsmd.domain.core import Call, Core
from hsmd.errors import RATE_EXCEEDED, Error
from hsmd.hsm import Token
from hsmd.keyring import Keyring
from hsmd.pb.v1 import datakeys_pb2, keys_pb2, limits_pb2
from hsmd.store import Store
from tests.calls import record, refusal, refused
from tests.credentials import ask
from tests.stand import PATIENT, Answer, Stand, Tenant, elsewhere, eventually, standing

_HSMCTL = Path(sys.executable).with_name("hsmctl")


def own_limits(client: Client, project: str) -> dict[str, tuple[int, int, bool]]:
    found = client.limits.ListLimits(limits_pb2.ListLimitsRequest(of_project=project)).limits
    return {each.name: (each.value, each.default, each.own) for each in found}


def set_limit(client: Client, project: str, name: str, value: int) -> limits_pb2.Limit:
    request = limits_pb2.SetLimitRequest(of_project=project, name=name, value=value)
    limit: limits_pb2.Limit = client.limits.SetLimit(request).limit
    return limit


def reset_limit(client: Client, project: str, name: str) -> limits_pb2.Limit:
    request = limits_pb2.ResetLimitRequest(of_project=project, name=name)
    limit: limits_pb2.Limit = client.limits.ResetLimit(request).limit
    return limit


def admitted(client: Client, calls: int) -> int:
    """How many of so many calls, one after the other, were not refused."""
    done = 0
    for _ in range(calls):
        try:
            client.random(8)
            done += 1
        except ApiError as error:
            assert error.code == "APIGW.0308", error  # noqa: PT017 # counted, not expected
    return done


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Two workers; a call a second for each project, and twenty at once."""
    settings = {
        "HSMD__GRPC__WORKERS": "2",
        "HSMD__LIMITS__REQUESTS_PER_PROJECT": "1",
        "HSMD__LIMITS__BURST_SECONDS": "20",
    }
    with standing(tmp_path_factory.mktemp("limited"), settings) as one:
        yield one


@pytest.fixture(scope="module")
def tenants(limited: Stand) -> list[Tenant]:
    return [limited.add_tenant(f"tenant-{number}") for number in range(5)]


# Rates


def test_workers_count_a_project_s_calls_together(limited: Stand, tenants: list[Tenant]) -> None:
    started = time.monotonic()
    clients = [limited.client(tenants[0]) for _ in range(6)]  # over both workers
    try:
        done = sum(admitted(each, 20) for each in clients)
    finally:
        for each in clients:
            each.close()
    took = time.monotonic() - started
    assert 20 <= done <= 22 + took  # and one more each second


def test_another_project_has_its_own(limited: Stand, tenants: list[Tenant]) -> None:
    with limited.client(tenants[1]) as one:
        assert admitted(one, 15) == 15


def test_a_worker_that_is_killed_takes_nothing_along(limited: Stand, tenants: list[Tenant]) -> None:
    started = time.monotonic()
    with limited.client(tenants[2]) as one:
        assert admitted(one, 10) == 10
    for pid in limited.workers()[:2]:
        os.kill(pid, signal.SIGKILL)

    def answers() -> bool:
        try:
            with limited.client(tenants[1], deadline=8) as one:
                one.random(8)
        except ApiError as error:
            return error.code == "APIGW.0308"
        return True

    eventually(answers, 60)
    with limited.client(tenants[2]) as one:
        done = admitted(one, 40)
    took = time.monotonic() - started
    assert 8 <= done <= 12 + took  # what was taken before stays taken


def test_a_refusal_says_when_to_come_again(limited: Stand, tenants: list[Tenant]) -> None:
    with limited.client(tenants[3]) as one:
        while True:
            try:
                one.random(8)
            except ApiError as caught:
                error = caught
                break
    assert error.code == "APIGW.0308"
    assert error.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "this project may make 1 a second" in error.message
    cause: Any = error.__cause__
    assert isinstance(cause, grpc.RpcError)
    packed = {each.key: each.value for each in cause.trailing_metadata()}["grpc-status-details-bin"]
    retry = error_details_pb2.RetryInfo()
    assert sum(each.Unpack(retry) for each in status_pb2.Status.FromString(packed).details) == 1
    assert 0 < retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 <= 1
    assert record(limited, error.request_id)["result"] == "APIGW.0308"


def test_on_rest_by_a_header(limited: Stand, tenants: list[Tenant]) -> None:
    token = limited.token(tenants[4])
    path = f"/v1.0/{tenants[4].project_id}/kms/gen-random"
    answer: Answer | None = None
    for _ in range(200):
        answer = limited.rest("POST", path, {"random_data_length": "64"}, token=token)
        if answer.status == 429:
            break
    assert answer is not None
    refused(answer, "APIGW.0308")
    assert answer.headers["Retry-After"] == "1"


def issuing(stand: Stand, tenant: Tenant) -> list[tuple[str, object, str]]:
    """The ways to tokens and temporary keys: method, what is shown, path."""
    token = {"id": stand.token(tenant)}
    password = {"user": {"id": tenant.user_id, "password": tenant.password}}
    access_key = {"access": {"key": tenant.access_key}, "secret": {"key": tenant.secret_key}}
    return [
        ("token", token, "/v3/auth/tokens"),
        ("password", password, "/v3/auth/tokens"),
        ("hw_ak_sk", access_key, "/v3/auth/tokens"),
        ("token", token, "/v3.0/OS-CREDENTIAL/securitytokens"),
    ]


@pytest.mark.parametrize("way", range(4))
def test_tokens_and_temporary_keys_use_up_calls_of_the_project(limited: Stand, way: int) -> None:
    tenant = limited.add_tenant(f"using-{way}")
    method, proof, path = issuing(limited, tenant)[way]
    scope, began = {"project": {"id": tenant.project_id}}, time.monotonic()
    answers = [ask(limited, method, proof, scope, path=path) for _ in range(10)]
    assert {each.status for each in answers} == {201}
    with limited.client(tenant) as one:
        others = admitted(one, 30)
    assert 0 < len(answers) + others <= 20 + (time.monotonic() - began) + 1


def test_tokens_and_temporary_keys_are_calls_of_the_project(limited: Stand) -> None:
    tenant = limited.add_tenant("issuing")
    scope = {"project": {"id": tenant.project_id}}
    over = threading.Event()

    def take_all() -> None:
        """Whatever there is, at once: a password takes longer than the second in which a call comes back."""
        with limited.client(tenant) as one:
            while not over.wait(0.02):
                admitted(one, 1)

    def kept_out(method: str, proof: object, path: str) -> Answer | None:
        answer = ask(limited, method, proof, scope, path=path)
        return answer if answer.status != 201 else None

    ways = issuing(limited, tenant)
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(take_all)
        try:
            for method, proof, path in ways:
                answer = eventually(lambda: kept_out(method, proof, path), 120)  # noqa: B023 -- called at once
                refused(answer, "APIGW.0308")
                assert record(limited, answer.headers["X-Request-Id"])["project_id"] == tenant.project_id
        finally:
            over.set()
    taking.result()


def test_answers_have_no_such_header(limited: Stand) -> None:
    assert "Retry-After" not in limited.rest("GET", "/").headers


# Addresses


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A call a second for each address, thirty at once."""
    settings = {
        "HSMD__GRPC__WORKERS": "1",
        "HSMD__LIMITS__REQUESTS_PER_SOURCE": "1",
        "HSMD__LIMITS__BURST_SECONDS": "30",
    }
    with standing(tmp_path_factory.mktemp("narrow"), settings) as one:
        yield one


def test_an_address_s_failed_attempts_count(narrow: Stand) -> None:
    here, there = elsewhere(), elsewhere()
    token = narrow.token()
    codes = [narrow.rest("GET", "/v3/projects", token=f"SFRL{number}", source=here) for number in range(60)]
    assert {each.status for each in codes} == {403, 429}

    def kept_out() -> Answer | None:  # but for a call each second
        answer = narrow.rest("GET", "/v3/projects", token=token, source=here)
        return answer if answer.status == 429 else None

    answer = eventually(kept_out)
    refused(answer, "APIGW.0308")
    assert int(answer.headers["Retry-After"]) >= 1
    assert narrow.rest("GET", "/v3/projects", token=token, source=there).status == 200


def test_calls_without_identity_count_too(narrow: Stand) -> None:
    here = elsewhere()
    answers = [narrow.rest("GET", "/v2", source=here).status for _ in range(60)]
    assert answers[:30] == [200] * 30
    assert 429 in answers


# Calls at once


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Three calls at once for each project."""
    settings = {**PATIENT, "HSMD__GRPC__WORKERS": "1", "HSMD__LIMITS__CALLS_PER_PROJECT": "3"}
    with standing(tmp_path_factory.mktemp("tight"), settings, gateway=False) as one:
        yield one


def test_a_project_has_so_many_calls_at_once(tight: Stand) -> None:
    busy, quiet = tight.add_tenant("busy"), tight.add_tenant("quiet")
    with tight.client(busy, deadline=60) as one, tight.client(quiet, deadline=60) as other:
        key = one.create_key("for-pairs")
        spec = datakeys_pb2.RSA_DATA_KEY_PAIR_SPEC_RSA_2048
        slow = datakeys_pb2.CreateRsaDataKeyPairRequest(key_id=key, key_spec=spec)
        stop = threading.Event()
        seen: list[str] = []

        def work() -> None:
            while not stop.is_set():
                try:
                    one.data_keys.CreateRsaDataKeyPair(slow)
                    seen.append("OK")
                except ApiError as error:
                    seen.append(error.message if error.code == "APIGW.0308" else str(error))
                    time.sleep(0.02)

        with ThreadPoolExecutor(8) as pool:
            for _ in range(8):
                pool.submit(work)
            eventually(lambda: len(set(seen)) > 1 and "OK" in seen)
            assert other.random(8)  # though eight threads would be taken
            stop.set()
        assert set(seen) == {"OK", "Too many requests: this project may have 3 calls at once."}
        assert one.random(8)  # places are given back


# Operators


def test_each_peer_region_has_its_own_rate(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic_ns", lambda: 10**12)  # a second may pass between any two lines
    token = Token.__new__(Token)  # which nothing here asks
    core = Core(sqlite_store, token, Keyring(token, 1), lambda: 1, Limits(requests_per_project=1), "here")

    def admitted(region: str) -> bool:
        try:
            limits.admit_project(Call(core, Caller("peer", user_name=region), lambda: None))
        except Error as error:
            assert error.fault is RATE_EXCEEDED  # noqa: PT017 # asked for, not expected
            return False
        return True

    assert [admitted(region) for region in ("north", "north", "south", "south")] == [True, False, True, False]


def test_an_operator_sets_and_resets(limited: Stand, tenants: list[Tenant]) -> None:
    project = tenants[1].project_id
    with limited.client() as operator, limited.client(tenants[1]) as one:
        assert own_limits(operator, project) == {
            "calls": (0, 0, False),
            "keys": (100, 100, False),
            "requests": (1, 1, False),
        }
        changed = set_limit(operator, project, "requests", 0)
        assert (changed.name, changed.value, changed.default, changed.own) == ("requests", 0, 1, True)
        assert changed.unit
        assert admitted(one, 60) == 60  # in force for the next call
        assert set_limit(operator, project, "requests", 2).value == 2
        assert own_limits(operator, project)["requests"] == (2, 1, True)
        assert reset_limit(operator, project, "requests").own is False
        assert reset_limit(operator, project, "requests").own is False  # no fault
        assert own_limits(operator, project)["requests"] == (1, 1, False)


def test_a_quota_of_keys(tight: Stand) -> None:
    few = tight.add_tenant("few")
    with tight.client() as operator, tight.client(few) as one:
        set_limit(operator, few.project_id, "keys", 2)
        one.create_key("one")
        one.create_key("two")
        with refusal("KMS.1105") as seen:
            one.create_key("three")
        assert "2" in seen.last.message
        quota = one.keys.ShowQuotas(keys_pb2.ShowQuotasRequest()).quotas.resources[0]
        assert (quota.used, quota.quota) == (2, 2)
        set_limit(operator, few.project_id, "keys", 3)
        one.create_key("three")


def test_limits_outlive_a_restart(tight: Stand) -> None:
    kept = tight.add_tenant("kept")
    with tight.client() as operator:
        set_limit(operator, kept.project_id, "keys", 7)
    tight.restart_daemon()
    with tight.client() as operator:
        assert own_limits(operator, kept.project_id)["keys"] == (7, 100, True)


def test_only_operators_may(stand: Stand, strange: Client, stranger: Tenant) -> None:
    for call in (
        lambda: own_limits(strange, stranger.project_id),
        lambda: set_limit(strange, stranger.project_id, "keys", 1_000_000),
        lambda: reset_limit(strange, stranger.project_id, "keys"),
    ):
        with pytest.raises(ApiError) as caught:
            call()
        assert caught.value.status is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("name", "value"),
    [("keys", -1), ("keys", 1_000_000_001), ("requests", 1_000_001), ("calls", 1025), ("calls", -(2**63))],
)
def test_values_out_of_bounds_are_refused(client: Client, stranger: Tenant, name: str, value: int) -> None:
    with refusal("KMS.0308"):
        set_limit(client, stranger.project_id, name, value)


@pytest.mark.parametrize("name", ["other", "Keys", "k" * 33, "keys\0"])
def test_limits_there_are_not_are_refused(client: Client, stranger: Tenant, name: str) -> None:
    with refusal("KMS.0308"):
        set_limit(client, stranger.project_id, name, 1)
    with refusal("KMS.0308"):
        reset_limit(client, stranger.project_id, name)


@pytest.mark.parametrize("project", ["f" * 32, "x", "f" * 65])
def test_projects_there_are_not_are_refused(client: Client, project: str) -> None:
    with refusal("KMS.0308"):
        own_limits(client, project)
    with refusal("KMS.0308"):
        set_limit(client, project, "keys", 1)


def test_what_is_missing_is_refused(client: Client, stranger: Tenant) -> None:
    project = stranger.project_id
    for request in (
        limits_pb2.SetLimitRequest(name="keys", value=1),
        limits_pb2.SetLimitRequest(of_project=project, value=1),
        limits_pb2.SetLimitRequest(of_project=project, name="keys"),
    ):
        with refusal("KMS.0204"):
            client.limits.SetLimit(request)


def test_a_change_is_audited(stand: Stand, client: Client, stranger: Tenant) -> None:
    set_limit(client, stranger.project_id, "calls", 1000)
    reset_limit(client, stranger.project_id, "calls")
    found = [each for each in stand.audit() if each["resource"] == stranger.project_id]
    assert [each["event"] for each in found[-2:]] == ["setLimit", "resetLimit"] or {
        each["event"] for each in found
    } >= {"setLimit", "resetLimit"}


def test_hsmctl(stand: Stand, stranger: Tenant) -> None:
    def run(*words: str) -> str:
        environment = {**os.environ, **stand.dev.environment()}
        done = subprocess.run(
            [str(_HSMCTL), "limits", *words], check=True, capture_output=True, text=True, env=environment
        )
        return done.stdout

    project = stranger.project_id
    told = json.loads(run("set", project, "requests", "987654", "--json"))
    assert told["project_id"] == project
    assert [(each["name"], each["value"], each["own"]) for each in told["limits"]] == [
        ("requests", 987654, True)
    ]
    assert "987654" in run("show", project)
    assert json.loads(run("reset", project, "requests", "--json"))["limits"][0]["own"] is False
    assert "987654" not in run("show", project)
