"""Who administers a domain: the group it begins with, and the way back when nobody is left who may."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsmd.client import Client
from hsmd.domain import builtin
from hsmd.pb.v1 import assignments_pb2, domains_pb2, groups_pb2, users_pb2
from tests.calls import refusal
from tests.people import PASSWORD, name
from tests.stand import Stand, Tenant, standing

SECURITY, OPERATOR = builtin.SECURITY_ADMINISTRATOR.id, builtin.OPERATOR.id
_HSMD = Path(sys.executable).with_name("hsmd")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A daemon whose administrators come and go."""
    with standing(tmp_path_factory.mktemp("own"), gateway=False) as one:
        yield one


def admins(client: Client) -> groups_pb2.Group:
    group: groups_pb2.Group
    (group,) = client.groups.ListGroups(groups_pb2.ListGroupsRequest(name="admin")).groups
    return group


def roles(client: Client, group: groups_pb2.Group) -> set[str]:
    request = assignments_pb2.GroupRolesRequest(group_id=group.id, domain_id=group.domain_id)
    return {each.id for each in client.assignments.ListRolesForGroupOnDomain(request).roles}


def appoint(stand: Stand, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [str(_HSMD), "appoint", "--config", str(stand.dev.config), *words]
    environment = {**os.environ, **stand.settings}
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def tenant(own: Stand) -> Tenant:
    return own.add_tenant("tenant")


def test_a_domain_begins_with_its_administrators(own: Stand, tenant: Tenant) -> None:
    with own.client() as first, own.client(tenant) as second:
        assert roles(first, admins(first)) == {SECURITY, OPERATOR}
        assert roles(second, admins(second)) == {SECURITY}  # a tenant does not run the daemon
        request = groups_pb2.ListUsersForGroupRequest(group_id=admins(second).id)
        assert [each.id for each in second.groups.ListUsersForGroup(request).users] == [tenant.user_id]
        with refusal("IAM.0003"):
            second.domains.ListAllDomains(domains_pb2.ListAllDomainsRequest())
        wanted = domains_pb2.CreateDomainRequest(name=name("domain"), user="ann", password=PASSWORD)
        made = first.domains.CreateDomain(wanted)
        assert made.domain.id
        member = groups_pb2.AddUserToGroupRequest(group_id=admins(first).id)
        user = users_pb2.CreateUserRequest.User(name=name(), password=PASSWORD)
        member.user_id = first.users.CreateUser(users_pb2.CreateUserRequest(user=user)).user.id
        first.groups.AddUserToGroup(member)


def test_who_locked_everybody_out_comes_back(own: Stand, tenant: Tenant) -> None:
    with own.client(tenant) as client:
        group = admins(client)
        client.assignments.RevokeRoleFromGroupOnDomain(
            assignments_pb2.GroupRoleRequest(group_id=group.id, domain_id=tenant.domain_id, role_id=SECURITY)
        )
        with refusal("IAM.0003"):
            admins(client)
        done = appoint(own, "--domain", "domain-tenant", "--user", "tenant")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"tenant ({tenant.user_id}) administers domain-tenant.\n"
        assert admins(client).id == group.id
        assert roles(client, group) == {SECURITY}
        (one,) = [each for each in own.audit() if each["event"] == "appointAdministrator"]
        assert (one["resource"], one["result"], one["identity"]) == (f"user/{tenant.user_id}", "OK", "system")
        done = appoint(own, "--domain", "domain-tenant", "--user", "tenant", "--operator")
        assert done.stdout.endswith("administers domain-tenant and the daemon.\n")
        assert roles(client, group) == {SECURITY, OPERATOR}
        client.domains.ListAllDomains(domains_pb2.ListAllDomainsRequest())


@pytest.mark.parametrize(("domain", "user"), [("none", "tenant"), ("domain-tenant", "none")])
def test_nobody_is_appointed_who_is_not_there(own: Stand, tenant: Tenant, domain: str, user: str) -> None:
    done = appoint(own, "--domain", domain, "--user", user)
    assert done.returncode == 78
    assert done.stderr.endswith(f"hsmd: there is no user {user} in a domain {domain}\n")
