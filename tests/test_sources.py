"""A domain's address rules count for every kind of evidence, for the next call on every worker."""

import ipaddress
import json
import random
from collections.abc import Iterator

import grpc
import pytest
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.signer import Signer

from hsmd.client import ApiError
from hsmd.domain.sources import LOCAL, UNKNOWN, parsed, read, spelled
from tests.backstage import backstage
from tests.calls import record, refused
from tests.stand import Answer, Stand, Tenant, standing

HERE, INSIDE = "127.0.0.1", "127.44.5.6"


def rules(*, masks: tuple[str, ...] = (), ranges: tuple[str, ...] = ()) -> str:
    """The document as IAM has it."""
    return json.dumps(
        {
            "allow_address_netmasks": [{"address_netmask": each, "description": "x"} for each in masks],
            "allow_ip_ranges": [{"ip_range": each, "description": ""} for each in ranges],
        }
    )


@pytest.fixture(scope="module")
def walled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("walled"), {"HSMD__GRPC__WORKERS": "2"}) as one:
        yield one


@pytest.fixture(scope="module")
def tenant(walled: Stand) -> Tenant:
    return walled.add_tenant("inside")


@pytest.fixture
def wall(walled: Stand, tenant: Tenant) -> Iterator[None]:
    """The tenant's domain may be used from 127.44.0.0/16 only."""
    backstage(walled, "setting", tenant.domain_id, "api-acl", rules(masks=("127.44.0.0/16",)))
    yield
    backstage(walled, "setting", tenant.domain_id, "api-acl", rules())


def list_keys(stand: Stand, tenant: Tenant, source: str, token: str) -> Answer:
    return stand.rest("POST", f"/v1.0/{tenant.project_id}/kms/list-keys", {}, token=token, source=source)


def log_in(stand: Stand, tenant: Tenant, source: str, password: str = "") -> Answer:
    user = {"id": tenant.user_id, "password": password or tenant.password}
    identity = {"methods": ["password"], "password": {"user": user}}
    body = {"auth": {"identity": identity, "scope": {"project": {"id": tenant.project_id}}}}
    return stand.rest("POST", "/v3/auth/tokens", body, source=source)


def signed(stand: Stand, tenant: Tenant, source: str) -> Answer:
    request = SdkRequest(
        method="POST",
        schema="https",
        host=stand.dev.rest.removeprefix("https://"),
        resource_path=f"/v1.0/{tenant.project_id}/kms/list-keys",
        query_params=[],
        header_params={"Content-Type": "application/json"},
        body=b"{}",
    )
    done = Signer(BasicCredentials(tenant.access_key, tenant.secret_key)).sign(request)
    return stand.rest("POST", request.resource_path, b"{}", headers=done.header_params, source=source)


def test_everywhere_while_nothing_is_settled(walled: Stand, tenant: Tenant) -> None:
    token = walled.token(tenant)
    assert list_keys(walled, tenant, HERE, token).status == 200
    assert list_keys(walled, tenant, INSIDE, token).status == 200


def test_tokens(walled: Stand, tenant: Tenant) -> None:
    token = walled.token(tenant)
    backstage(walled, "setting", tenant.domain_id, "api-acl", rules(masks=("127.44.0.0/16",)))
    for _ in range(8):  # whichever worker it is, at the next call
        answer = list_keys(walled, tenant, HERE, token)
        told = refused(answer, "APIGW.0301")
        assert told.message == f"Incorrect IAM authentication information: current ip:{HERE} refused."
    assert list_keys(walled, tenant, INSIDE, token).status == 200
    seen = record(walled, told.request_id)
    assert (seen["result"], seen["source"]) == ("APIGW.0301", HERE)
    backstage(walled, "setting", tenant.domain_id, "api-acl", rules())
    assert list_keys(walled, tenant, HERE, token).status == 200


def test_signatures(walled: Stand, tenant: Tenant, wall: None) -> None:
    told = refused(signed(walled, tenant, HERE), "APIGW.0301")
    assert f"current ip:{HERE} refused" in told.message
    assert signed(walled, tenant, INSIDE).status == 200


def test_passwords(walled: Stand, tenant: Tenant, wall: None) -> None:
    refused(log_in(walled, tenant, HERE), "APIGW.0301")
    assert log_in(walled, tenant, INSIDE).status == 201


def test_certificates(walled: Stand, tenant: Tenant, wall: None) -> None:
    with walled.client(tenant) as one, pytest.raises(ApiError) as caught:
        one.random(8)
    assert caught.value.code == "APIGW.0301"
    assert caught.value.status is grpc.StatusCode.UNAUTHENTICATED
    assert f"current ip:{HERE} refused" in caught.value.message


def test_other_domains_have_their_own(walled: Stand, wall: None) -> None:
    with walled.client() as one:
        assert one.random(8)


def test_a_header_does_not_move_a_caller(walled: Stand, tenant: Tenant, wall: None) -> None:
    path = f"/v1.0/{tenant.project_id}/kms/list-keys"
    token = log_in(walled, tenant, INSIDE).headers["X-Subject-Token"]
    for headers in ({"X-Forwarded-For": INSIDE}, {"Forwarded": f"for={INSIDE}"}, {"X-Real-IP": INSIDE}):
        refused(walled.rest("POST", path, {}, token=token, headers=headers), "APIGW.0301")


def test_rules_that_can_not_be_read_let_nobody_in(walled: Stand, tenant: Tenant) -> None:
    token = walled.token(tenant)
    backstage(walled, "setting", tenant.domain_id, "api-acl", '{"allow_ip_ranges": [{"ip_range": "here"}]}')
    try:
        refused(list_keys(walled, tenant, HERE, token), "APIGW.0301")
        assert "can't be read" in walled.log()
    finally:
        backstage(walled, "setting", tenant.domain_id, "api-acl", rules())


def test_rules_outlive_a_restart(walled: Stand, tenant: Tenant, wall: None) -> None:
    walled.restart_daemon()
    with walled.client(tenant) as one, pytest.raises(ApiError):
        one.random(8)


def test_behind_a_trusted_proxy(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"HSMD__GRPC__WORKERS": "1", "HSMD__GATEWAY__TRUSTED_PROXIES": '["127.0.0.0/30"]'}
    with standing(tmp_path_factory.mktemp("proxied"), settings) as stand:
        token, path = stand.token(), f"/v1.0/{stand.dev.project_id}/kms/list-keys"
        backstage(stand, "setting", stand.dev.domain_id, "api-acl", rules(masks=("192.0.2.0/24",)))
        right = {"X-Forwarded-For": "203.0.113.9, 192.0.2.7, 127.0.0.2"}
        answer = stand.rest("POST", path, {}, token=token, headers=right)
        assert answer.status == 200, answer.raw
        assert record(stand, answer.headers["X-Request-Id"])["source"] == "192.0.2.7"
        told = refused(
            stand.rest("POST", path, {}, token=token, headers=right, source="127.9.9.9"), "APIGW.0301"
        )
        assert "current ip:127.9.9.9 refused" in told.message
        for line in ("192.0.2.7, 203.0.113.9", "192.0.2.7, unknown", ""):
            refused(
                stand.rest("POST", path, {}, token=token, headers={"X-Forwarded-For": line}), "APIGW.0301"
            )


# The rules themselves


@pytest.mark.parametrize(
    ("masks", "ranges", "inside", "outside"),
    [
        (
            ("10.0.0.0/8",),
            (),
            ("10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"),
            ("9.255.255.255", "11.0.0.0"),
        ),
        (("10.1.2.3",), (), ("10.1.2.3",), ("10.1.2.2", "10.1.2.4")),
        (("10.1.2.3/8",), (), ("10.9.9.9",), ("11.1.2.3",)),
        (("10.0.0.0/255.0.0.0",), (), ("10.9.9.9",), ("11.1.2.3",)),
        ((), ("10.0.0.1-10.0.0.9",), ("10.0.0.1", "10.0.0.9"), ("10.0.0.0", "10.0.0.10")),
        ((), ("10.0.0.9-10.0.0.1",), (), ("10.0.0.5",)),
        (("2001:db8::/32",), (), ("2001:db8:ffff::1",), ("2001:db9::", "10.0.0.1")),
        ((), ("2001:db8::1-2001:db8::f",), ("2001:DB8:0::A",), ("2001:db8::10",)),
        (("0.0.0.0/0",), (), ("1.2.3.4",), ("::1",)),
        (("10.0.0.0/8",), ("192.0.2.1-192.0.2.2",), ("10.1.1.1", "192.0.2.2"), ("192.0.2.3",)),
    ],
)
def test_ranges(
    masks: tuple[str, ...], ranges: tuple[str, ...], inside: tuple[str, ...], outside: tuple[str, ...]
) -> None:
    found = read(rules(masks=masks, ranges=ranges))
    assert all(found.allow(each) for each in inside)
    assert not any(found.allow(each) for each in outside)
    assert not found.allow(UNKNOWN)
    assert not found.allow("")
    assert found.allow(LOCAL)


def test_no_ranges_are_no_rules() -> None:
    for document in (rules(), "{}", '{"allow_ip_ranges": null}'):
        assert read(document).allow("1.2.3.4")
        assert read(document).allow(UNKNOWN)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{",
        "null",
        '"text"',
        '{"allow_ip_ranges": 5}',
        '{"allow_ip_ranges": [{}]}',
        '{"allow_ip_ranges": ["10.0.0.1"]}',
        '{"allow_ip_ranges": [{"ip_range": 5}]}',
        '{"allow_ip_ranges": [{"ip_range": "10.0.0.1-2001:db8::1"}]}',
        '{"allow_address_netmasks": [{"address_netmask": "10.0.0.0/33"}]}',
    ],
)
def test_documents_that_are_none(document: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # of json's and ours
        read(document)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:C000:0201", "192.0.2.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("192.0.2.01", UNKNOWN),
        ("192.0.2", UNKNOWN),
        ("fe80::1%eth0", UNKNOWN),
        ("local", UNKNOWN),
        ("", UNKNOWN),
        ("1" * 100, UNKNOWN),
        ("3221225985", UNKNOWN),
    ],
)
def test_one_spelling(text: str, expected: str) -> None:
    assert spelled(text) == expected


def test_spelling_is_stable() -> None:
    dice = random.Random(4)  # noqa: S311 -- no secret
    for _ in range(1000):
        address = ipaddress.ip_address(dice.randbytes(dice.choice((4, 16))))
        assert parsed(spelled(str(address))) == parsed(str(address))
