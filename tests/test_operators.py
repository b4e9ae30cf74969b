"""Who administers the operators' domain comes no nearer to the daemon's own role by any way round."""

from collections.abc import Callable, Iterator

import pytest

from hsmd.client import Client
from hsmd.domain import builtin
from hsmd.pb.v1 import access_keys_pb2, agencies_pb2, assignments_pb2, groups_pb2
from tests.calls import record, refused
from tests.credentials import domain_token, good, void
from tests.people import PASSWORD, Person, login, name, person
from tests.policies import made
from tests.stand import Answer, Stand, Tenant, elsewhere

ADMINISTRATOR = builtin.SECURITY_ADMINISTRATOR.id
OPERATOR = builtin.OPERATOR.id
REFUSED = "IAM.0003"

Ask = Callable[..., Answer]


def _give(client: Client, user: Person, role: str) -> None:
    client.assignments.GrantRoleToUser(assignments_pb2.UserRoleRequest(user_id=user.id, role_id=role))


@pytest.fixture(scope="module")
def administrator(stand: Stand, client: Client) -> Person:
    """Of the domain, with all of IAM, and no operator."""
    made = person(client)
    _give(client, made, ADMINISTRATOR)
    return made


@pytest.fixture(scope="module")
def ask(stand: Stand, administrator: Person) -> Ask:
    token = login(stand, administrator)
    return lambda verb, path, body=None: stand.rest(verb, path, body, token=token, source=elsewhere())


@pytest.fixture
def team(client: Client, administrator: Person) -> Iterator[str]:
    """A group that operates."""
    made = client.groups.CreateGroup(
        groups_pb2.CreateGroupRequest(group=groups_pb2.CreateGroupRequest.Group(name=name("team")))
    ).group
    client.assignments.GrantRoleToGroupOnDomain(
        assignments_pb2.GroupRoleRequest(
            domain_id=administrator.domain_id, group_id=made.id, role_id=OPERATOR
        )
    )
    yield made.id
    client.groups.DeleteGroup(groups_pb2.DeleteGroupRequest(group_id=made.id))


def test_an_operator_is_not_an_administrators(stand: Stand, client: Client, ask: Ask) -> None:
    operator = person(client)
    path = f"/v3.0/OS-USER/users/{operator.id}"
    assert ask("PUT", path, {"user": {"description": "one of many"}}).status == 200
    _give(client, operator, OPERATOR)
    request = access_keys_pb2.CreatePermanentAccessKeyRequest()
    request.credential.user_id = operator.id
    made = client.access_keys.CreatePermanentAccessKey(request).credential
    credential = f"/v3.0/OS-CREDENTIAL/credentials/{made.access}"
    password = {"user": {"password": "Another-Horse-8"}}
    for answer in (
        ask("PUT", path, password),
        ask("PATCH", f"/v3/users/{operator.id}", {"user": {"enabled": False}}),
        ask("DELETE", f"/v3/users/{operator.id}"),
        ask("POST", "/v3.0/OS-CREDENTIAL/credentials", _credential(operator)),
        ask("PUT", credential, {"credential": {"status": "inactive"}}),
        ask("DELETE", credential),
    ):
        refused(answer, REFUSED)
        assert record(stand, answer.headers["X-Request-Id"])["result"] == REFUSED
    assert login(stand, Person(operator.id, operator.name, operator.domain_id, PASSWORD))
    assert ask("GET", credential).status == 200  # to look at is another matter


def test_nobody_joins_operators_but_by_them(
    stand: Stand, client: Client, ask: Ask, administrator: Person, team: str
) -> None:
    place = f"/v3/groups/{team}/users/{administrator.id}"
    refused(ask("PUT", place), REFUSED)
    refused(ask("DELETE", f"/v3/groups/{team}"), REFUSED)
    joined = person(client)
    client.groups.AddUserToGroup(groups_pb2.AddUserToGroupRequest(group_id=team, user_id=joined.id))
    refused(ask("DELETE", f"/v3/groups/{team}/users/{joined.id}"), REFUSED)
    refused(ask("DELETE", f"/v3/users/{joined.id}"), REFUSED)  # who operates through a group does, too
    client.groups.RemoveUserFromGroup(groups_pb2.RemoveUserFromGroupRequest(group_id=team, user_id=joined.id))
    assert ask("DELETE", f"/v3/users/{joined.id}").status == 204


def test_an_agency_that_operates_is_trusted_by_operators(
    client: Client, ask: Ask, administrator: Person
) -> None:
    option = agencies_pb2.CreateAgencyRequest.Option(
        name=name("agency"), domain_id=administrator.domain_id, trust_domain_name="development"
    )
    agency = client.agencies.CreateAgency(agencies_pb2.CreateAgencyRequest(agency=option)).agency
    client.assignments.GrantRoleToAgencyOnDomain(
        assignments_pb2.AgencyRoleRequest(
            domain_id=administrator.domain_id, agency_id=agency.id, role_id=OPERATOR
        )
    )
    path = f"/v3.0/OS-AGENCY/agencies/{agency.id}"
    refused(ask("PUT", path, {"agency": {"trust_domain_name": "development"}}), REFUSED)
    refused(ask("DELETE", path), REFUSED)
    client.agencies.DeleteAgency(agencies_pb2.DeleteAgencyRequest(agency_id=agency.id))


def test_operators_are_not_locked_out_by_the_domain_s_rules(
    stand: Stand, stranger: Tenant, ask: Ask, administrator: Person
) -> None:
    nowhere = {"allow_address_netmasks": [{"address_netmask": "192.0.2.0/24"}], "allow_ip_ranges": []}
    rules: dict[str, dict[str, object]] = {
        "api-acl-policy": {"api_acl_policy": nowhere},
        "login-policy": {"login_policy": {"account_validity_period": 1}},
        "password-policy": {"password_policy": {"minimum_password_length": 32}},
    }
    for policy, body in rules.items():
        path = f"/v3.0/OS-SECURITYPOLICY/domains/{administrator.domain_id}/{policy}"
        before = ask("GET", path).json
        refused(ask("PUT", path, body), REFUSED)
        assert ask("GET", path).json == before
    # where nobody operates, its administrators settle them
    token = domain_token(stand, stranger)
    path = f"/v3.0/OS-SECURITYPOLICY/domains/{stranger.domain_id}/login-policy"
    body = {"login_policy": {"session_timeout": 61}}
    assert stand.rest("PUT", path, body, token=token, source=elsewhere()).status == 200


def test_an_operators_tokens_are_not_an_administrators_to_end(stand: Stand, client: Client, ask: Ask) -> None:
    operator, other = person(client), person(client)
    token, others = login(stand, operator), login(stand, other)
    _give(client, operator, OPERATOR)
    refused(ask("DELETE", f"/v3/users/{operator.id}/tokens"), REFUSED)
    assert ask("DELETE", f"/v3/users/{other.id}/tokens").status == 204
    assert good(stand, token)
    assert void(stand, others)
    own = stand.rest("DELETE", f"/v3/users/{operator.id}/tokens", token=token, source=elsewhere())
    assert own.status == 204
    assert void(stand, token)


def test_nobody_else_gives_operators_a_policy(
    client: Client, ask: Ask, administrator: Person, team: str
) -> None:
    domain = administrator.domain_id
    operator, joined = person(client), person(client)
    _give(client, operator, OPERATOR)
    client.groups.AddUserToGroup(groups_pb2.AddUserToGroupRequest(group_id=team, user_id=joined.id))
    staff = client.groups.CreateGroup(
        groups_pb2.CreateGroupRequest(group=groups_pb2.CreateGroupRequest.Group(name=name("staff")))
    ).group.id
    denies = made(client, {"Effect": "Deny", "Action": ["hsmd:*:*"]}, on="AX")
    harmless = made(client, {"Effect": "Allow", "Action": ["iam:users:listUsers"]}, on="AX")
    given = f"/v3/domains/{domain}/groups/{staff}/roles"
    assert ask("PUT", f"{given}/{harmless.id}").status == 204  # while no operator is in it
    for user in (operator, joined):
        refused(ask("PUT", f"/v3/groups/{staff}/users/{user.id}"), REFUSED)
        request = assignments_pb2.UserRoleRequest(user_id=user.id, role_id=denies.id)
        client.groups.AddUserToGroup(groups_pb2.AddUserToGroupRequest(group_id=staff, user_id=user.id))
        refused(ask("PUT", f"{given}/{denies.id}"), REFUSED)
        statement = {"Effect": "Deny", "Action": ["hsmd:*:*"]}
        change = {"role": {"policy": {"Version": "1.1", "Statement": [statement]}}}
        refused(ask("PATCH", f"/v3.0/OS-ROLE/roles/{harmless.id}", change), REFUSED)
        client.groups.RemoveUserFromGroup(
            groups_pb2.RemoveUserFromGroupRequest(group_id=staff, user_id=user.id)
        )
        client.assignments.GrantRoleToUser(request)  # operators may
        client.assignments.RevokeRoleFromUser(request)
    refused(ask("PUT", f"/v3/domains/{domain}/groups/{team}/roles/{denies.id}"), REFUSED)


def _credential(of: Person) -> dict[str, dict[str, str]]:
    return {"credential": {"user_id": of.id}}
