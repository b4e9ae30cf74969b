"""Agencies: another domain's users act in this one, by tokens and temporary keys, as long as it lets them."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import huaweicloudsdkiam.v3 as iam
import huaweicloudsdkkms.v2 as kms
import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.client import Client
from hsmd.domain import builtin
from hsmd.pb.v1 import agencies_pb2 as pb
from hsmd.pb.v1 import assignments_pb2, identity_pb2
from tests.calls import fresh, record, refusal, refused
from tests.credentials import ask, domain_token, iam_by, issued, show, temporary_kms
from tests.people import iam_client, login, name, person
from tests.policies import made as policy_made
from tests.policies import role_of_user
from tests.stand import Stand, Tenant, elsewhere
from tests.test_sdk import checked

ISO = "%Y-%m-%dT%H:%M:%S.%fZ"
ASSUME = "iam:agencies:assume"
TEMPORARY = "/v3.0/OS-CREDENTIAL/securitytokens"
KMS_ADMINISTRATOR = builtin.BY_NAME["KMS Administrator"].id
AGENT_OPERATOR = builtin.BY_NAME["Agent Operator"].id


def create(client: Client, domain_id: str, trust: str = "development", **fields: Any) -> pb.Agency:
    """An agency of the client's domain."""
    given = {"name": name("agency"), "domain_id": domain_id, "trust_domain_name": trust, **fields}
    request = pb.CreateAgencyRequest(agency=pb.CreateAgencyRequest.Option(**given))
    agency: pb.Agency = client.agencies.CreateAgency(request).agency
    return agency


def give(client: Client, agency: pb.Agency, project_id: str, role: str = KMS_ADMINISTRATOR) -> None:
    """Give it a role in a project."""
    client.assignments.GrantRoleToAgencyOnProject(
        assignments_pb2.AgencyRoleRequest(project_id=project_id, agency_id=agency.id, role_id=role)
    )


@pytest.fixture(scope="module")
def agency(strange: Client, stranger: Tenant) -> pb.Agency:
    """The stranger lets the development domain act in its project."""
    made = create(strange, stranger.domain_id)
    give(strange, made, stranger.project_id)
    return made


def _role(agency: pb.Agency, **changes: Any) -> dict[str, Any]:
    return {"agency_name": agency.name, "domain_name": "domain-stranger", **changes}


# Acting as one


def test_a_token_as_an_agency(
    stand: Stand, client: Client, strange: Client, stranger: Tenant, agency: pb.Agency
) -> None:
    key = strange.create_key(fresh())
    own = domain_token(stand)
    scope = {"project": {"id": stranger.project_id}}
    answer = ask(stand, "assume_role", _role(agency), scope, token=own)
    token = issued(answer)
    described = answer.json["token"]
    domain = {"id": stranger.domain_id, "name": "domain-stranger"}
    assert described["methods"] == ["assume_role"]
    assert described["user"]["id"] == agency.id
    assert described["user"]["name"] == f"domain-stranger/{agency.name}"
    assert described["user"]["domain"] == described["project"]["domain"] == domain
    assert described["project"]["id"] == stranger.project_id
    assert [each["name"] for each in described["roles"]] == ["KMS Administrator"]
    assumed = described["assumed_by"]["user"]
    assert (assumed["id"], assumed["name"]) == (stand.dev.user_id, stand.dev.user)
    assert assumed["domain"] == {"id": stand.dev.domain_id, "name": "development"}
    one = record(stand, answer.headers["X-Request-Id"])
    assert (one["event"], one["result"], one["resource"]) == ("createToken", "OK", f"agency/{agency.id}")
    assert one["assumed_by"] == stand.dev.user_id

    shown = stand.kms("describe-key", {"key_id": key}, token=token, project=stranger.project_id)
    assert shown.json["key_info"]["key_id"] == key
    one = record(stand, shown.headers["X-Request-Id"])
    assert (one["user_id"], one["user"], one["assumed_by"]) == (agency.id, agency.name, stand.dev.user_id)
    assert (one["domain_id"], one["project_id"]) == (stranger.domain_id, stranger.project_id)
    refused(stand.kms("list-keys", {}, token=token), "KMS.0321")  # not in its own any more
    assert show(stand, token).json["token"] == described
    rescoped = issued(ask(stand, "token", {"id": token}, {"domain": {"id": stranger.domain_id}}))
    refused(stand.kms("list-keys", {}, token=rescoped, project=stranger.project_id), "KMS.0305")
    projects = stand.rest("GET", "/v3/auth/projects", token=rescoped).json["projects"]
    assert [each["id"] for each in projects] == [stranger.project_id]


def test_over_grpc_by_certificate(client: Client, stand: Stand, stranger: Tenant, agency: pb.Agency) -> None:
    request = identity_pb2.CreateTokenRequest()
    proof = request.auth.identity
    proof.methods.append("assume_role")
    proof.assume_role.agency_name, proof.assume_role.domain_id = agency.name, stranger.domain_id
    request.auth.scope.project.id = stranger.project_id
    made = client.identity.CreateToken(request)
    assert made.token.user.id == agency.id
    used = stand.kms("list-keys", {}, token=made.subject_token, project=stranger.project_id)
    assert used.status == 200


def test_temporary_keys_as_an_agency(
    stand: Stand, strange: Client, stranger: Tenant, agency: pb.Agency
) -> None:
    key = strange.create_key(fresh())
    sdk = iam_client(stand)
    session = iam.AssumeroleSessionuser(name="build-7")
    role = iam.IdentityAssumerole(
        agency_name=agency.name, domain_id=stranger.domain_id, duration_seconds=3600, session_user=session
    )
    identity = iam.AgencyAuthIdentity(methods=["assume_role"], assume_role=role)
    body = iam.CreateTemporaryAccessKeyByAgencyRequestBody(auth=iam.AgencyAuth(identity=identity))
    made = checked(
        sdk.create_temporary_access_key_by_agency(
            iam.CreateTemporaryAccessKeyByAgencyRequest(body=body)
        ).credential
    )
    theirs = temporary_kms(stand, made, stranger.project_id)
    asked = kms.ListKeyDetailRequest(body=kms.OperateKeyRequestBody(key_id=key))
    assert theirs.list_key_detail(asked).key_info.key_id == key
    (one,) = [
        each for each in stand.audit() if each["resource"] == key and each["identity"] == "temporary-key"
    ]
    assert (one["user_id"], one["user"]) == (agency.id, f"{agency.name}/build-7")
    mine = temporary_kms(stand, made)
    with pytest.raises(ClientRequestException) as caught:
        mine.list_keys(kms.ListKeysRequest(body=kms.ListKeysRequestBody()))
    assert caught.value.status_code == 403


def test_the_sdk_takes_a_token_as_an_agency(stand: Stand, stranger: Tenant, agency: pb.Agency) -> None:
    sdk = iam_client(stand)
    role = iam.AgencyTokenAssumerole(domain_name="domain-stranger", agency_name=agency.name)
    identity = iam.AgencyTokenIdentity(methods=["assume_role"], assume_role=role)
    scope = iam.AgencyTokenScope(project=iam.AgencyTokenScopeProject(id=stranger.project_id))
    auth = iam.AgencyTokenAuth(identity=identity, scope=scope)
    body = iam.KeystoneCreateAgencyTokenRequestBody(auth=auth)
    made = sdk.keystone_create_agency_token(iam.KeystoneCreateAgencyTokenRequest(body=body))
    checked(made.token, absent=frozenset({"AgencyTokenResult.catalog", "AgencyTokenResult.domain"}))
    assert made.token.assumed_by.user.id == stand.dev.user_id
    assert stand.kms("list-keys", {}, token=made.x_subject_token, project=stranger.project_id).status == 200


# Who may not


def test_who_may_not_act_as_one(
    stand: Stand, client: Client, strange: Client, stranger: Tenant, reader: Tenant, agency: pb.Agency
) -> None:
    own, theirs = domain_token(stand), domain_token(stand, stranger)
    for role in (
        _role(agency, agency_name="none"),
        _role(agency, domain_name="nowhere"),
        _role(agency, domain_name="development"),
        {"agency_name": agency.name},
    ):
        for path in ("/v3/auth/tokens", TEMPORARY):
            refused(ask(stand, "assume_role", role, token=own, path=path), "IAM.0002")
    # of a domain that is not trusted: the same answer as for an agency that there is not
    for token in (theirs, domain_token(stand, reader)):
        told = refused(ask(stand, "assume_role", _role(agency), token=token), "IAM.0002")
        assert (
            told.message
            == refused(
                ask(stand, "assume_role", _role(agency, agency_name="none"), token=token), "IAM.0002"
            ).message
        )
    # without evidence, with a wrong one, or without the permission
    refused(ask(stand, "assume_role", _role(agency)), "APIGW.0301")
    assert ask(stand, "assume_role", _role(agency), token="x" * 300).status == 403
    ann = person(client)
    refused(ask(stand, "assume_role", _role(agency), token=login(stand, ann)), "IAM.0003")
    client.assignments.GrantRoleToUser(
        assignments_pb2.UserRoleRequest(user_id=ann.id, role_id=AGENT_OPERATOR)
    )
    token = issued(ask(stand, "assume_role", _role(agency), token=login(stand, ann)))
    # an agency takes on no other, and has no access keys of its own
    refused(ask(stand, "assume_role", _role(agency), token=token), "APIGW.0301")
    body = {"credential": {"user_id": agency.id}}
    refused(stand.rest("POST", "/v3.0/OS-CREDENTIAL/credentials", body, token=token), "IAM.0003")
    refused(
        ask(stand, "assume_role", _role(agency), {"project": {"id": stand.dev.project_id}}, token=own),
        "IAM.0001",
    )


def test_a_policy_for_some_agencies_only(
    stand: Stand, client: Client, strange: Client, stranger: Tenant, agency: pb.Agency
) -> None:
    other = create(strange, stranger.domain_id)
    give(strange, other, stranger.project_id)
    ann = person(client)
    statement = {
        "Effect": "Allow",
        "Action": ["iam:agencies:assume"],
        "Resource": {"uri": [f"/iam/agencies/{agency.id}"]},
    }
    policy = policy_made(client, statement, on="AX")
    client.assignments.GrantRoleToUser(assignments_pb2.UserRoleRequest(user_id=ann.id, role_id=policy.id))
    token = login(stand, ann)
    assert issued(ask(stand, "assume_role", _role(agency), token=token))
    for path in ("/v3/auth/tokens", TEMPORARY):
        told = refused(ask(stand, "assume_role", _role(other), token=token, path=path), "IAM.0003")
        absent = _role(other, agency_name="none")
        assert (
            refused(ask(stand, "assume_role", absent, token=token, path=path), "IAM.0003").message
            == told.message
        )


# Ending


@pytest.fixture
def passing(strange: Client, stranger: Tenant) -> Iterator[pb.Agency]:
    made = create(strange, stranger.domain_id)
    give(strange, made, stranger.project_id)
    yield made
    strange.agencies.DeleteAgency(pb.DeleteAgencyRequest(agency_id=made.id))


def _both(stand: Stand, agency: pb.Agency, project_id: str) -> tuple[str, kms.KmsClient]:
    """A token and a temporary key as the agency."""
    own = domain_token(stand)
    token = issued(ask(stand, "assume_role", _role(agency), {"project": {"id": project_id}}, token=own))
    made = ask(stand, "assume_role", _role(agency), token=own, path=TEMPORARY).json["credential"]
    credential = iam.Credential(**made)
    return token, temporary_kms(stand, credential, project_id)


def _statuses(stand: Stand, token: str, by_key: kms.KmsClient, project_id: str) -> tuple[int, int]:
    used = stand.kms("list-keys", {}, token=token, project=project_id, source=elsewhere())
    try:
        by_key.list_keys(kms.ListKeysRequest(body=kms.ListKeysRequestBody()))
    except ClientRequestException as error:
        return used.status, error.status_code
    return used.status, 200


def test_what_was_made_ends_with_the_trust(
    stand: Stand, strange: Client, stranger: Tenant, reader: Tenant, passing: pb.Agency
) -> None:
    project = stranger.project_id
    token, by_key = _both(stand, passing, project)
    assert _statuses(stand, token, by_key, project) == (200, 200)

    def update(**fields: Any) -> None:
        wanted = pb.UpdateAgencyRequest.Option(**fields)
        strange.agencies.UpdateAgency(pb.UpdateAgencyRequest(agency_id=passing.id, agency=wanted))

    update(trust_domain_id=reader.domain_id)
    assert _statuses(stand, token, by_key, project) == (403, 401)
    update(trust_domain_id=stand.dev.domain_id)
    assert _statuses(stand, token, by_key, project) == (200, 200)
    strange.assignments.RevokeRoleFromAgencyOnProject(
        assignments_pb2.AgencyRoleRequest(project_id=project, agency_id=passing.id, role_id=KMS_ADMINISTRATOR)
    )
    assert _statuses(stand, token, by_key, project) == (403, 403)


def test_what_was_made_ends_with_the_agency(stand: Stand, strange: Client, stranger: Tenant) -> None:
    project = stranger.project_id
    made = create(strange, stranger.domain_id)
    give(strange, made, project)
    token, by_key = _both(stand, made, project)
    assert _statuses(stand, token, by_key, project) == (200, 200)
    strange.agencies.DeleteAgency(pb.DeleteAgencyRequest(agency_id=made.id))
    assert _statuses(stand, token, by_key, project) == (403, 401)
    again = create(strange, stranger.domain_id, name=made.name)  # of that name, and without its roles
    assert _statuses(stand, token, by_key, project) == (403, 401)
    refused(
        ask(stand, "assume_role", _role(again), {"project": {"id": project}}, token=domain_token(stand)),
        "IAM.0001",
    )


def test_what_was_made_ends_with_the_right_to_act_as_agencies(
    stand: Stand, client: Client, stranger: Tenant, agency: pb.Agency
) -> None:
    ann, project = person(client), stranger.project_id
    operator = assignments_pb2.UserRoleRequest(user_id=ann.id, role_id=AGENT_OPERATOR)
    client.assignments.GrantRoleToUser(operator)
    own = login(stand, ann)
    scope = {"project": {"id": project}}
    token = issued(ask(stand, "assume_role", _role(agency), scope, token=own))
    made = ask(stand, "assume_role", _role(agency), token=own, path=TEMPORARY).json["credential"]
    by_key = temporary_kms(stand, iam.Credential(**made), project)
    again = issued(ask(stand, "token", {"id": token}))

    def statuses() -> set[int]:
        one = _statuses(stand, token, by_key, project)
        other = stand.rest("GET", "/v3/regions", token=again, source=elsewhere()).status
        return {*one, other}

    assert statuses() == {200}
    client.assignments.RevokeRoleFromUser(operator)
    for _ in range(4):
        assert statuses() == {403, 401}
    # not by a policy for another agency, nor past one that denies it; what it asks of a call was asked before
    elsewhere_only = {"Resource": {"uri": [f"/iam/agencies/{'0' * 32}"]}}
    by_certificate = {"Condition": {"StringEquals": {"hsmd:IdentityKind": ["certificate"]}}}
    for effect, more, expected in (
        ("Allow", elsewhere_only, {403, 401}),
        ("Allow", by_certificate, {200}),
        ("Deny", by_certificate, {200}),
        ("Deny", elsewhere_only, {200}),
        ("Deny", {}, {403, 401}),
    ):
        statement = {"Effect": effect, "Action": [ASSUME], **more}
        policy = policy_made(client, statement, on="AX")
        client.assignments.GrantRoleToUser(assignments_pb2.UserRoleRequest(user_id=ann.id, role_id=policy.id))
        assert statuses() == expected, statement


# Keeping them


def test_the_sdk_sees_to_agencies(stand: Stand, stranger: Tenant) -> None:
    sdk, domain = iam_client(stand), stand.dev.domain_id
    wanted = name("agency")
    option = iam.CreateAgencyOption(
        name=wanted, domain_id=domain, trust_domain_name="domain-stranger", description="d", duration="ONEDAY"
    )
    body = iam.CreateAgencyRequestBody(agency=option)
    made = checked(sdk.create_agency(iam.CreateAgencyRequest(body=body)).agency)
    assert (made.name, made.trust_domain_id, made.duration) == (wanted, stranger.domain_id, "24")
    ending = datetime.strptime(made.expire_time, ISO) - datetime.strptime(made.create_time, ISO)
    assert ending == timedelta(days=1)

    shown = checked(sdk.show_agency(iam.ShowAgencyRequest(made.id)).agency)
    assert (shown.trust_domain_name, shown.description) == ("domain-stranger", "d")
    found = sdk.list_agencies(iam.ListAgenciesRequest(domain_id=domain, name=wanted)).agencies
    assert [checked(each).id for each in found] == [made.id]

    body = iam.UpdateAgencyRequestBody(agency=iam.UpdateAgencyOption(duration=20, description=""))
    changed = sdk.update_agency(iam.UpdateAgencyRequest(made.id, body)).agency
    assert (changed.duration, changed.description) == ("480", "")
    body = iam.UpdateAgencyRequestBody(agency=iam.UpdateAgencyOption(duration="FOREVER"))
    changed = sdk.update_agency(iam.UpdateAgencyRequest(made.id, body)).agency
    assert (changed.duration, changed.expire_time) == ("FOREVER", None)
    sdk.delete_agency(iam.DeleteAgencyRequest(made.id))
    with pytest.raises(ClientRequestException) as caught:
        sdk.show_agency(iam.ShowAgencyRequest(made.id))
    assert caught.value.status_code == 404


def test_agencies_of_others_are_not_there(
    stand: Stand, client: Client, strange: Client, stranger: Tenant, agency: pb.Agency
) -> None:
    for call in (
        lambda: client.agencies.ShowAgency(pb.ShowAgencyRequest(agency_id=agency.id)),
        lambda: client.agencies.DeleteAgency(pb.DeleteAgencyRequest(agency_id=agency.id)),
        lambda: client.agencies.ListAgencies(pb.ListAgenciesRequest(domain_id=stranger.domain_id)),
        lambda: create(client, stranger.domain_id),
        lambda: create(client, stand.dev.domain_id, "nowhere"),
    ):
        with refusal("IAM.0004"):
            call()
    with refusal("IAM.0005"):
        create(strange, stranger.domain_id, name=agency.name)
    assert strange.agencies.ShowAgency(pb.ShowAgencyRequest(agency_id=agency.id)).agency.id == agency.id


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a/b"},
        {"name": "n" * 65},
        {"description": "d" * 256},
        {"duration": "ALWAYS"},
        {"duration": "0"},
        {"duration": "-1"},
        {"duration": "99999"},
        {"trust_domain_name": ""},
    ],
)
def test_agencies_that_can_be_none(stand: Stand, client: Client, fields: dict[str, str]) -> None:
    option = {
        "name": name("agency"),
        "domain_id": stand.dev.domain_id,
        "trust_domain_name": "domain-stranger",
        **fields,
    }
    admin = iam_by(stand, stand.dev.access_key, stand.dev.secret_key, stand.dev.domain_id)
    body = iam.CreateAgencyRequestBody(agency=iam.CreateAgencyOption(**option))
    with pytest.raises(ClientRequestException) as caught:
        admin.create_agency(iam.CreateAgencyRequest(body=body))
    assert caught.value.status_code in (400, 404)


def test_who_may_not_keep_them(stand: Stand, client: Client) -> None:
    token = login(stand, person(client))
    option = {"name": "a", "domain_id": stand.dev.domain_id, "trust_domain_name": "development"}
    refused(stand.rest("POST", "/v3.0/OS-AGENCY/agencies", {"agency": option}, token=token), "IAM.0003")
    path = f"/v3.0/OS-AGENCY/agencies?domain_id={stand.dev.domain_id}"
    refused(stand.rest("GET", path, token=token), "IAM.0003")


def test_a_policy_may_name_agencies(
    stand: Stand, client: Client, strange: Client, stranger: Tenant, agency: pb.Agency
) -> None:
    other = create(strange, stranger.domain_id)
    ann, bob = person(client), person(client)
    assume = {"Action": [ASSUME], "Resource": {"uri": [f"/iam/agencies/{agency.id}"]}}
    for who, statements in (
        (ann, [{"Effect": "Allow", **assume}]),
        (bob, [{"Effect": "Allow", "Action": [ASSUME]}, {"Effect": "Deny", **assume}]),
    ):
        role = policy_made(client, *statements, on="AX")
        client.assignments.GrantRoleToUser(role_of_user(user_id=who.id, role_id=role.id))
    for who, theirs, not_theirs in ((ann, agency, other), (bob, other, agency)):
        token = login(stand, who)
        for path in ("/v3/auth/tokens", TEMPORARY):
            assert ask(stand, "assume_role", _role(theirs), token=token, path=path).status == 201
            refused(ask(stand, "assume_role", _role(not_theirs), token=token, path=path), "IAM.0003")
    refused(ask(stand, "assume_role", _role(agency, agency_name="none"), token=login(stand, ann)), "IAM.0003")
