"""Domains: made by who operates the daemon; nobody comes from a disabled one."""

from collections.abc import Iterator
from typing import Any

import huaweicloudsdkiam.v3 as iam
import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.client import Client
from hsmd.pb.v1 import domains_pb2 as pb
from tests.calls import record, refusal, refused
from tests.people import PASSWORD, Person, ask_token, iam_client, login, name
from tests.stand import Stand, Tenant, standing
from tests.test_sdk import checked


def made(client: Client, **changes: Any) -> pb.CreateDomainResponse:
    given = {"name": name("domain"), "user": "owner", "password": PASSWORD, **changes}
    response: pb.CreateDomainResponse = client.domains.CreateDomain(pb.CreateDomainRequest(**given))
    return response


def owner(domain: pb.CreateDomainResponse) -> Person:
    return Person(domain.user_id, "owner", domain.domain.id)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Domains stay: a stand of their own."""
    with standing(tmp_path_factory.mktemp("domains"), {"HSMD__GRPC__WORKERS": "2"}) as one:
        yield one


@pytest.fixture(scope="module")
def operator(own: Stand) -> Iterator[Client]:
    with own.client() as one:
        yield one


def test_a_domain_comes_with_who_administers_it(own: Stand, operator: Client) -> None:
    domain = made(operator, description="Sales")
    assert (domain.domain.description, domain.domain.enabled) == ("Sales", True)
    assert domain.domain.owner_id == domain.user_id
    token = login(own, owner(domain))
    for _ in range(2):
        found = own.rest("POST", "/v3/users", {"user": {"name": name()}}, token=token)
        assert found.status == 201
        assert found.json["user"]["domain_id"] == domain.domain.id
    (project,) = own.rest("GET", "/v3/projects", token=token).json["projects"]
    assert (project["id"], project["name"]) == (domain.project_id, own.dev.region)
    there = login(own, owner(domain), {"project": {"id": domain.project_id}})
    key = own.kms("create-key", {"key_alias": "books"}, token=there, project=domain.project_id)
    assert key.status == 200
    shown = own.rest("GET", f"/v3.0/OS-USER/users/{domain.user_id}", token=token).json["user"]
    assert (shown["is_domain_owner"], shown["pwd_status"]) == (True, False)


def test_who_administers_a_domain_makes_none(own: Stand, operator: Client) -> None:
    domain = made(operator)
    tenant = own.add_tenant("tenant")
    with own.client(tenant) as other:
        for call in (
            lambda: made(other),
            lambda: other.domains.ListAllDomains(pb.ListAllDomainsRequest()),
            lambda: other.domains.ShowDomain(pb.ShowDomainRequest(domain_id=domain.domain.id)),
            lambda: other.domains.UpdateDomain(
                pb.UpdateDomainRequest(domain_id=domain.domain.id, enabled=False)
            ),
        ):
            with refusal("IAM.0003"):
                call()


def test_there_is_no_rest_face(own: Stand) -> None:
    for verb, path in (("POST", "/v3/domains"), ("GET", "/v3/domains"), ("PATCH", "/v3/domains/x")):
        refused(own.rest(verb, path, {}, token=own.token()), "APIGW.0101")


def test_all_domains_by_name(own: Stand, operator: Client) -> None:
    domain = made(operator)
    found = operator.domains.ListAllDomains(pb.ListAllDomainsRequest()).domains
    names = [each.name for each in found]
    assert names == sorted(names)
    assert {"development", domain.domain.name} <= set(names)
    shown = operator.domains.ShowDomain(pb.ShowDomainRequest(domain_id=domain.domain.id)).domain
    assert shown == domain.domain
    with refusal("IAM.0004"):
        operator.domains.ShowDomain(pb.ShowDomainRequest(domain_id="0" * 32))


def test_from_a_disabled_domain_nobody_comes(own: Stand, operator: Client) -> None:
    domain = made(operator)
    who = owner(domain)
    token = login(own, who)
    assert own.rest("GET", "/v3/users", token=token).status == 200
    update = pb.UpdateDomainRequest(domain_id=domain.domain.id, enabled=False)
    assert operator.domains.UpdateDomain(update).domain.enabled is False
    for _ in range(12):  # on every worker
        assert own.rest("GET", "/v3/users", token=token).status == 401
    refused(ask_token(own, who.id, PASSWORD), "IAM.0001")
    body = {"user": {"original_password": PASSWORD, "password": "Another-Horse-8"}}
    refused(own.rest("POST", f"/v3/users/{who.id}/password", body), "IAM.0001")
    update = pb.UpdateDomainRequest(domain_id=domain.domain.id, enabled=True, description="back")
    assert operator.domains.UpdateDomain(update).domain.description == "back"
    assert ask_token(own, who.id, PASSWORD).status == 201
    mine = pb.UpdateDomainRequest(domain_id=own.dev.domain_id, enabled=False)
    with refusal("IAM.0104"):
        operator.domains.UpdateDomain(mine)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": ""}, "KMS.0204"),
        ({"name": "development"}, "IAM.0005"),
        ({"name": "a/b"}, "IAM.0073"),
        ({"name": "a" * 65}, "KMS.0308"),
        ({"user": ""}, "KMS.0204"),
        ({"user": "1"}, "IAM.0073"),
        ({"password": ""}, "KMS.0204"),
        ({"password": "weak"}, "IAM.0102"),
        ({"project": "a b"}, "IAM.0073"),
        ({"description": "x" * 256}, "KMS.0308"),
    ],
)
def test_bad_input(operator: Client, changes: dict[str, Any], code: str) -> None:
    before = len(operator.domains.ListAllDomains(pb.ListAllDomainsRequest()).domains)
    with refusal(code):
        made(operator, **changes)
    assert len(operator.domains.ListAllDomains(pb.ListAllDomainsRequest()).domains) == before


def test_a_restart_keeps_domains_and_the_audit_names_them(own: Stand, operator: Client) -> None:
    domain = made(operator)
    one = [
        each
        for each in own.audit()
        if each["event"] == "createDomain" and each["resource"] == f"domain/{domain.domain.id}"
    ]
    assert [each["result"] for each in one] == ["OK"]
    own.restart_daemon()
    with own.client() as again:
        shown = again.domains.ShowDomain(pb.ShowDomainRequest(domain_id=domain.domain.id)).domain
    assert shown == domain.domain
    assert ask_token(own, domain.user_id, PASSWORD).status == 201


# Quotas, by the SDK


def test_the_sdk_shows_quotas(stand: Stand, stranger: Tenant) -> None:
    admin = iam_client(stand)
    request = iam.ShowDomainQuotaRequest(domain_id=stand.dev.domain_id)
    found = checked(admin.show_domain_quota(request)).quotas.resources
    assert {each.type: each.quota for each in found} == {"user": 1000, "group": 200, "project": 200}
    assert all(0 <= each.used <= each.quota == each.max for each in found)
    only = iam.ShowDomainQuotaRequest(domain_id=stand.dev.domain_id, type="group")
    assert [each.type for each in admin.show_domain_quota(only).quotas.resources] == ["group"]
    for domain_id, kind, status in (
        (stand.dev.domain_id, "idp", 400),
        (stranger.domain_id, "user", 404),
        ("0" * 32, "user", 404),
    ):
        with pytest.raises(ClientRequestException) as caught:
            admin.show_domain_quota(iam.ShowDomainQuotaRequest(domain_id=domain_id, type=kind))
        assert caught.value.status_code == status
        assert record(stand, caught.value.request_id)["event"] == "showDomainQuota"
