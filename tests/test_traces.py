"""Tenants see what happened in their project, and nothing of anybody else, as the cloud's SDK asks for it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import huaweicloudsdkcts.v3 as cts
import pytest
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.http.http_config import HttpConfig
from huaweicloudsdkcore.region.region import Region

from hsmd.client import ApiError, Client
from hsmd.domain import builtin
from hsmd.pb.v1 import assignments_pb2, crypto_pb2, traces_pb2
from tests.calls import fresh
from tests.people import login, person
from tests.stand import Stand, Tenant
from tests.test_sdk import checked

# What is not recorded, and what the SDK knows of other clouds' users.
_ABSENT = frozenset(
    f"Traces.{each}"
    for each in (
        *("request", "response", "api_version", "location_info", "endpoint", "resource_url"),
        *("enterprise_project_id", "resource_account_id", "read_only", "operation_id"),
    )
) | {
    f"UserInfo.{each}"
    for each in (
        *("access_key_id", "principal_urn", "principal_id", "principal_is_root_user"),
        *("invoked_by", "session_context"),
    )
} | {"BaseUser.name"}  # fmt: skip


@pytest.fixture(scope="module")
def watcher(stand: Stand) -> Tenant:
    """Somebody who makes keys and may see what happened, in a domain of its own."""
    return stand.add_tenant("watcher", ("KMS Administrator", "CTS ReadOnlyAccess"))


@pytest.fixture(scope="module")
def own(stand: Stand, watcher: Tenant) -> Iterator[Client]:
    with stand.client(watcher) as one:
        yield one


@pytest.fixture(scope="module")
def sdk(stand: Stand, watcher: Tenant) -> cts.CtsClient:
    return client_of(stand, watcher)


def client_of(stand: Stand, who: Tenant, project: str = "") -> cts.CtsClient:
    """The official SDK, with an access key only."""
    credentials = BasicCredentials(who.access_key, who.secret_key, project or who.project_id)
    config = HttpConfig.get_default_config()
    config.ssl_ca_cert = str(stand.dev.ca)
    builder = cts.CtsClient.new_builder().with_http_config(config).with_credentials(credentials)
    client: cts.CtsClient = builder.with_region(Region(stand.dev.region, stand.dev.rest)).build()
    return client


@pytest.fixture(scope="module")
def key_id(own: Client) -> str:
    """A key of which there are seven events: made, used five times, and refused once."""
    key = own.create_key(fresh("traced"))
    for _ in range(5):
        own.encrypt(key, b"x")
    own.disable(key)
    with pytest.raises(ApiError):
        own.encrypt(key, b"x")
    return key


def asked(sdk: cts.CtsClient, **given: Any) -> Any:
    return sdk.list_traces(cts.ListTracesRequest(trace_type="system", **given))


def test_by_the_sdk(sdk: cts.CtsClient, watcher: Tenant, key_id: str) -> None:
    answer = checked(asked(sdk, resource_id=key_id, limit=200), absent=_ABSENT)
    names = [each.trace_name for each in answer.traces]
    assert names == ["encryptData", "disableKey", *["encryptData"] * 5, "createKey"]
    assert (answer.meta_data.count, answer.meta_data.marker) == (8, "")
    refused, disabled, *_ = answer.traces
    assert (refused.code, refused.message, refused.trace_rating) == ("400", "KMS.0209", "warning")
    assert (disabled.code, disabled.message, disabled.trace_rating) == ("200", "", "normal")
    for each in answer.traces:
        assert (each.user.id, each.user.user_name) == (watcher.user_id, "watcher")
        assert (each.user.domain.id, each.user.type) == (watcher.domain_id, "certificate")
        assert (each.service_type, each.resource_type, each.resource_id) == ("KMS", "CMK", key_id)
        assert (each.trace_type, each.source_ip) == ("ApiCall", "127.0.0.1")
        assert len(each.request_id) == 32
        assert each.time == each.record_time
    assert len({each.trace_id for each in answer.traces}) == 8


def test_what_is_not_for_tenants_does_not_leave(stand: Stand, watcher: Tenant, key_id: str) -> None:
    answer = stand.rest("GET", f"/v3/{watcher.project_id}/traces?limit=200", token=stand.token(watcher))
    assert answer.status == 200
    assert key_id.encode() in answer.raw
    for each in (b"worker-", b"prev", b"seq", b"duration", b"hsmd.v1"):
        assert each not in answer.raw


def test_page_by_page(sdk: cts.CtsClient, key_id: str) -> None:
    whole = [each.trace_id for each in asked(sdk, resource_id=key_id, limit=200).traces]
    found, marker = [], None
    for _ in range(20):
        page = asked(sdk, resource_id=key_id, limit=3, next=marker)
        assert page.meta_data.count == len(page.traces) <= 3
        found += [each.trace_id for each in page.traces]
        marker = page.meta_data.marker
        if not marker:
            break
    assert found == whole


def test_filters(sdk: cts.CtsClient, own: Client, watcher: Tenant, key_id: str) -> None:
    everything = asked(sdk, limit=200).traces
    one = next(each for each in everything if each.trace_name == "disableKey")

    def found(**given: Any) -> set[str]:
        return {each.trace_id for each in asked(sdk, limit=200, **given).traces}

    mine = found(resource_id=key_id)
    assert found(trace_id=one.trace_id, resource_id="nothing counts beside it") == {one.trace_id}
    assert found(trace_name="disableKey") == {one.trace_id}
    assert found(resource_id=key_id, trace_rating="warning") < mine
    assert len(found(resource_id=key_id, trace_rating="warning")) == 1
    assert found(resource_id=key_id, trace_rating="incident") == set()
    assert found(resource_name=key_id, user="watcher", service_type="KMS", resource_type="CMK") == mine
    for nothing in ({"user": "somebody"}, {"service_type": "OBS"}, {"resource_type": "RNG"}):
        assert found(resource_id=key_id, **nothing) == set()
    own.crypto.GenRandom(crypto_pb2.GenRandomRequest(random_data_length=512))
    assert len(found(resource_type="RNG")) == 1
    assert found(trace_name="listTraces", service_type="CTS"), "who looked is seen, too"
    span = {"_from": one.time - 1, "to": one.time + 1}
    assert one.trace_id in found(resource_id=key_id, **span) <= mine
    assert one.trace_id not in found(_from=one.time)
    assert one.trace_id not in found(to=one.time)
    assert asked(sdk, tracker_name="mine").traces == []
    data = sdk.list_traces(cts.ListTracesRequest(trace_type="data"))
    assert (data.traces, data.meta_data.count) == ([], 0)


@pytest.fixture(scope="module")
def onlooker(stand: Stand, client: Client) -> str:
    """A token of somebody who may see what happened in another project."""
    who, role = person(client), builtin.BY_NAME["CTS ReadOnlyAccess"].id
    request = assignments_pb2.UserRoleRequest(user_id=who.id, role_id=role, project=stand.dev.project_id)
    client.assignments.GrantRoleToUser(request)
    return login(stand, who, {"project": {"id": stand.dev.project_id}})


def test_nobody_sees_what_others_do(
    stand: Stand, sdk: cts.CtsClient, client: Client, watcher: Tenant, onlooker: str, key_id: str
) -> None:
    """Not in one's own project, not in theirs, and not with their marker."""
    dev = stand.dev
    client.create_key(fresh("theirs"))
    assert {each.user.domain.id for each in asked(sdk, limit=200).traces} == {watcher.domain_id}
    theirs = stand.rest("GET", f"/v3/{dev.project_id}/traces?limit=200", token=onlooker).json["traces"]
    domains = {each["user"]["domain"]["id"] for each in theirs}  # also those who were granted keys there
    assert dev.domain_id in domains
    assert watcher.domain_id not in domains
    assert "createKey" in {each["trace_name"] for each in theirs}
    marker = asked(sdk, limit=1).meta_data.marker
    answer = stand.rest("GET", f"/v3/{dev.project_id}/traces?next={marker}", token=onlooker)
    assert (answer.status, answer.json["error_code"]) == (400, "KMS.0308")
    for place in (watcher.project_id, watcher.domain_id):
        assert stand.rest("GET", f"/v3/{place}/traces", token=onlooker).status == 403
        with pytest.raises(ApiError) as refused:
            client.traces.ListTraces(traces_pb2.ListTracesRequest(project_id=place))
        assert refused.value.code in ("KMS.0307", "KMS.0330")


def test_who_may_not(client: Client) -> None:
    """A KMS Administrator has no right to it by that."""
    with pytest.raises(ApiError) as refused:
        client.traces.ListTraces(traces_pb2.ListTracesRequest())
    assert refused.value.code == "KMS.0330"


def test_those_of_the_domain(stand: Stand, client: Client) -> None:
    """By its id, for its administrator; what is done in projects is not among them."""
    who = person(client)
    dev = stand.dev
    request = traces_pb2.ListTracesRequest(project_id=dev.domain_id, limit=200)
    found = client.traces.ListTraces(request).traces
    made = [each for each in found if each.trace_name == "createUser" and who.id in each.resource_id]
    assert len(made) == 1
    assert (made[0].service_type, made[0].resource_type) == ("IAM", "users")
    assert "encryptData" not in {each.trace_name for each in found}
    assert {each.user.domain.id for each in found} == {dev.domain_id}
    answer = stand.rest("GET", f"/v3/{dev.domain_id}/traces?limit=1", token=login(stand, who))
    assert answer.status == 403
    assert stand.rest("GET", f"/v3/{dev.domain_id}/traces", token=stand.token()).status == 403


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=201", "limit=x", "trace_type=other", "trace_rating=bad", "next=x", "next=%00"),
        *(
            "trace_id=x",
            "from=x",
            "access_key_id=x",
            "enterprise_project_id=0",
            "from=-1",
            "next=" + "A" * 80,
        ),
        *(f"user={'x' * 300}", f"next={'A' * 20000}"),
    ],
)
def test_wrong_parameters(stand: Stand, watcher: Tenant, query: str) -> None:
    answer = stand.rest("GET", f"/v3/{watcher.project_id}/traces?{query}", token=token_of(stand, watcher))
    assert (answer.status, answer.json["error_code"]) == (400, "KMS.0308"), answer.raw
    assert b"Traceback" not in json.dumps(answer.json).encode()


_TOKENS: dict[str, str] = {}


def token_of(stand: Stand, who: Tenant) -> str:
    return _TOKENS.setdefault(who.user_id, stand.token(who))


def test_readers_are_few(own: Client, key_id: str) -> None:
    """Many at once get an answer, or are told to come again; other calls go on meanwhile."""

    def code(_: int) -> str:
        try:
            own.traces.ListTraces(traces_pb2.ListTracesRequest(limit=200))
        except ApiError as error:
            return error.code
        return "OK"

    with ThreadPoolExecutor(12) as pool:
        codes = pool.map(code, range(36))
        own.enable(key_id)
        assert "OK" in set(codes) <= {"OK", "APIGW.0308"}
