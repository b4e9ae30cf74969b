"""Policies and roles over REST, gRPC and hsmctl: made, given, taken, explained; what of it is refused."""

import json
from collections.abc import Callable
from typing import Any

import huaweicloudsdkiam.v3 as iam
import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.client import Client
from hsmd.domain import builtin
from hsmd.pb.v1 import (
    agencies_pb2,
    assignments_pb2,
    domains_pb2,
    groups_pb2,
    policies_pb2,
)
from tests.calls import record, refusal, refused
from tests.people import iam_client, login, name, person
from tests.policies import (
    LEFT_OUT,
    LOOK,
    Worker,
    changed,
    document,
    made,
    new_group,
    role_of_user,
)
from tests.stand import Stand, Tenant
from tests.test_sdk import checked
from tests.test_users import domain_token


@pytest.fixture(scope="module")
def admin(stand: Stand) -> iam.IamClient:
    return iam_client(stand)


# Policies over REST, as the SDK sends and parses them


def test_the_sdk_makes_shows_and_removes_a_policy(stand: Stand, admin: iam.IamClient) -> None:
    condition = {"StringEquals": {"g:UserName": ["ann"]}}
    resource = [f"KMS:*:{stand.dev.domain_id}:KeyId:*"]
    statement = iam.ServiceStatement(
        action=["kms:cmk:get"], effect="Allow", condition=condition, resource=resource
    )
    option = iam.ServicePolicyRoleOption(
        display_name=name("policy"),
        type="XA",
        description="one",
        description_cn="一",
        policy=iam.ServicePolicy(version="1.1", statement=[statement]),
    )
    body = iam.CreateCloudServiceCustomPolicyRequestBody(role=option)
    created = admin.create_cloud_service_custom_policy(iam.CreateCloudServiceCustomPolicyRequest(body=body))
    role = checked(created, absent=LEFT_OUT).role
    assert created.status_code == 201
    assert role.description_cn == "一"
    assert role.name == f"custom_{stand.dev.domain_id}_{role.id[:8]}"
    request = iam.ShowCustomPolicyRequest(role_id=role.id)
    shown = checked(admin.show_custom_policy(request), absent=LEFT_OUT).role
    assert (shown.id, shown.references, shown.created_time) == (role.id, 0, role.created_time)
    (kept,) = admin.show_custom_policy(request).role.policy.statement
    assert (kept.action, kept.effect) == (["kms:cmk:get"], "Allow")
    assert (kept.condition, kept.resource) == (condition, resource)
    listed = checked(admin.list_custom_policies(iam.ListCustomPoliciesRequest()), absent=LEFT_OUT)
    assert role.id in {each.id for each in listed.roles}
    assert listed.total_number == len(listed.roles)
    gone = admin.delete_custom_policy(iam.DeleteCustomPolicyRequest(role_id=role.id))
    assert gone.status_code == 200
    with pytest.raises(ClientRequestException) as caught:
        admin.show_custom_policy(request)
    assert caught.value.status_code == 404


def test_the_sdk_makes_a_policy_for_agencies(admin: iam.IamClient) -> None:
    agency = "0123456789abcdef" * 2
    statement = iam.AgencyPolicyStatement(
        action=["iam:agencies:assume"],
        effect="Allow",
        resource=iam.AgencyPolicyResource(uri=[f"/iam/agencies/{agency}"]),
    )
    option = iam.AgencyPolicyRoleOption(
        display_name=name("policy"),
        type="AX",
        description="one",
        policy=iam.AgencyPolicy(version="1.1", statement=[statement]),
    )
    body = iam.CreateAgencyCustomPolicyRequestBody(role=option)
    request = iam.CreateAgencyCustomPolicyRequest(body=body)
    role = checked(admin.create_agency_custom_policy(request), absent=LEFT_OUT).role
    (kept,) = role.policy.statement
    assert kept.resource.uri == [f"/iam/agencies/{agency}"]


def test_the_sdk_lists_the_built_in_roles(admin: iam.IamClient) -> None:
    listed = checked(admin.keystone_list_permissions(iam.KeystoneListPermissionsRequest()), absent=LEFT_OUT)
    assert {each.display_name for each in listed.roles} == set(builtin.BY_NAME)
    assert listed.total_number == len(builtin.ROLES)
    request = iam.KeystoneListPermissionsRequest(display_name="CMK", catalog="KMS", page=2, per_page=1)
    paged = admin.keystone_list_permissions(request)
    assert [each.display_name for each in paged.roles] == ["KMS CMKReadOnlyAccess"]
    assert paged.total_number == 2
    (found,) = paged.roles
    show = iam.KeystoneShowPermissionRequest(role_id=found.id)
    shown = checked(admin.keystone_show_permission(show), absent=LEFT_OUT).role
    assert (shown.id, shown.type, shown.flag) == (found.id, "XA", "fine_grained")
    assert "kms:cmk:get*" in shown.policy.statement[0].action


def test_the_sdk_gives_and_takes_roles_of_groups(stand: Stand, admin: iam.IamClient) -> None:
    dev = stand.dev
    option = iam.KeystoneCreateGroupOption(name=name("group"), domain_id=dev.domain_id)
    group = admin.keystone_create_group(
        iam.KeystoneCreateGroupRequest(body=iam.KeystoneCreateGroupRequestBody(group=option))
    ).group
    reader, security = (builtin.BY_NAME[each].id for each in ("Tenant Guest", "Security Administrator"))
    on_domain = {"domain_id": dev.domain_id, "group_id": group.id}
    on_project = {"project_id": dev.project_id, "group_id": group.id}
    scopes: list[tuple[Any, Any, Any, Any, str, dict[str, str]]] = [
        (
            lambda **at: admin.keystone_associate_group_with_domain_permission(
                iam.KeystoneAssociateGroupWithDomainPermissionRequest(**at)
            ),
            lambda **at: admin.keystone_check_domain_permission_for_group(
                iam.KeystoneCheckDomainPermissionForGroupRequest(**at)
            ),
            lambda **at: admin.keystone_remove_domain_permission_from_group(
                iam.KeystoneRemoveDomainPermissionFromGroupRequest(**at)
            ),
            lambda **at: admin.keystone_list_domain_permissions_for_group(
                iam.KeystoneListDomainPermissionsForGroupRequest(**at)
            ),
            security,
            on_domain,
        ),
        (
            lambda **at: admin.keystone_associate_group_with_project_permission(
                iam.KeystoneAssociateGroupWithProjectPermissionRequest(**at)
            ),
            lambda **at: admin.keystone_check_project_permission_for_group(
                iam.KeystoneCheckProjectPermissionForGroupRequest(**at)
            ),
            lambda **at: admin.keystone_remove_project_permission_from_group(
                iam.KeystoneRemoveProjectPermissionFromGroupRequest(**at)
            ),
            lambda **at: admin.keystone_list_project_permissions_for_group(
                iam.KeystoneListProjectPermissionsForGroupRequest(**at)
            ),
            reader,
            on_project,
        ),
        (
            lambda **at: admin.update_domain_group_inherit_role(
                iam.UpdateDomainGroupInheritRoleRequest(**at)
            ),
            lambda **at: admin.keystone_checkrole_for_group(iam.KeystoneCheckroleForGroupRequest(**at)),
            lambda **at: admin.delete_domain_group_inherited_role(
                iam.DeleteDomainGroupInheritedRoleRequest(**at)
            ),
            lambda **at: admin.keystone_list_all_project_permissions_for_group(
                iam.KeystoneListAllProjectPermissionsForGroupRequest(**at)
            ),
            reader,
            on_domain,
        ),
    ]
    for give, check, take, held, role_id, at in scopes:
        with pytest.raises(ClientRequestException) as caught:
            check(**at, role_id=role_id)
        assert caught.value.status_code == 404
        for _ in range(2):  # again changes nothing
            assert give(**at, role_id=role_id).status_code == 204
        assert check(**at, role_id=role_id).status_code == 204
        absent = LEFT_OUT | {f"InheritedRoleResult.{each}" for each in ("created_time", "updated_time")}
        (found,) = checked(held(**at), absent=absent).roles
        assert found.id == role_id
        assert take(**at, role_id=role_id).status_code == 204
        with pytest.raises(ClientRequestException) as caught:
            take(**at, role_id=role_id)
        assert caught.value.status_code == 404
        assert held(**at).roles == []


def test_the_sdk_gives_and_takes_roles_of_agencies(
    stand: Stand, client: Client, stranger: Tenant, admin: iam.IamClient
) -> None:
    dev = stand.dev
    wanted = agencies_pb2.CreateAgencyRequest.Option(
        name=name("agency"), domain_id=dev.domain_id, trust_domain_id=stranger.domain_id
    )
    agency = client.agencies.CreateAgency(agencies_pb2.CreateAgencyRequest(agency=wanted)).agency
    reader, security = (builtin.BY_NAME[each].id for each in ("Tenant Guest", "Security Administrator"))
    on_domain = {"domain_id": dev.domain_id, "agency_id": agency.id}
    on_project = {"project_id": dev.project_id, "agency_id": agency.id}
    for what, role_id, at in (
        ("domain", security, on_domain),
        ("project", reader, on_project),
        ("all_projects", reader, on_domain),
    ):
        Word = what.title().replace("_", "")  # noqa: N806 # part of class names
        give = getattr(admin, f"associate_agency_with_{what}_permission")
        give_request = getattr(iam, f"AssociateAgencyWith{Word}PermissionRequest")
        check = getattr(admin, f"check_{what}_permission_for_agency")
        check_request = getattr(iam, f"Check{Word}PermissionForAgencyRequest")
        take = getattr(admin, f"remove_{what}_permission_from_agency")
        take_request = getattr(iam, f"Remove{Word}PermissionFromAgencyRequest")
        held = getattr(admin, f"list_{what}_permissions_for_agency")
        held_request = getattr(iam, f"List{Word}PermissionsForAgencyRequest")
        assert give(give_request(**at, role_id=role_id)).status_code == 204
        assert check(check_request(**at, role_id=role_id)).status_code == 204
        (found,) = held(held_request(**at)).roles
        assert found.id == role_id
        assert take(take_request(**at, role_id=role_id)).status_code == 204
        with pytest.raises(ClientRequestException) as caught:
            check(check_request(**at, role_id=role_id))
        assert caught.value.status_code == 404


def test_the_sdk_lists_who_has_what(stand: Stand, client: Client, admin: iam.IamClient) -> None:
    ann, policy, group = person(client), made(client, LOOK), new_group(client)
    client.groups.AddUserToGroup(groups_pb2.AddUserToGroupRequest(group_id=group, user_id=ann.id))
    place = {"group_id": group, "role_id": policy.id, "project_id": stand.dev.project_id}
    client.assignments.GrantRoleToGroupOnProject(assignments_pb2.GroupRoleRequest(**place))

    def assignments(**filters: Any) -> list[Any]:
        request = iam.ShowDomainRoleAssignmentsRequest(domain_id=stand.dev.domain_id, **filters)
        answer = admin.show_domain_role_assignments(request)
        assert answer.total_num >= len(answer.role_assignments)
        return list(checked(answer, absent=LEFT_OUT).role_assignments)

    (one,) = assignments(role_id=policy.id)
    assert (one.group.id, one.scope.project.id) == (group, stand.dev.project_id)
    assert one.is_inherited is False
    assert {each.scope.domain.id for each in assignments(scope="domain")} == {stand.dev.domain_id}
    assert all(each.group for each in assignments(subject="group"))
    assert assignments(subject_user_id=ann.id) == []
    (same,) = assignments(subject_user_id=ann.id, include_group=True)
    assert same.role.id == policy.id
    assert assignments(subject_group_id=group, is_inherited=True) == []
    assert len(assignments(page=1, per_page=1)) == 1


# What is refused, and how


@pytest.mark.parametrize(
    ("role", "code", "told"),
    [
        ({"display_name": ""}, "IAM.0011", "display_name"),
        ({"display_name": "x" * 129}, "IAM.0011", "display_name"),
        ({"display_name": "a\nb"}, "IAM.0073", "role.display_name"),
        ({"display_name": "KMS Administrator"}, "IAM.0005", "policy"),
        ({"type": "XX"}, "IAM.0073", "role.type"),
        ({"type": 3}, "IAM.0011", "type"),
        ({"description": "x" * 257}, "IAM.0011", "description"),
        ({"policy": None}, "IAM.0011", "policy"),
        ({"policy": "text"}, "IAM.0073", "role.policy"),
        ({"policy": {"Version": "1.1", "Statement": []}}, "IAM.0073", "role.policy.Statement"),
        (
            {"policy": {"Version": "1.1", "Statement": [{**LOOK, "Effect": "Maybe"}]}},
            "IAM.0073",
            "role.policy.Statement[0].Effect",
        ),
        ({"policy": {"Version": "1.1", "Statement": [LOOK], "x": "y" * 20000}}, "IAM.0011", "policy"),
    ],
)
def test_a_policy_that_is_refused(stand: Stand, role: dict[str, Any], code: str, told: str) -> None:
    good = {
        "display_name": name("policy"),
        "type": "XA",
        "description": "",
        "policy": json.loads(document(LOOK)),
    }
    wrong = {key: value for key, value in {**good, **role}.items() if value is not None}
    answer = stand.rest("POST", "/v3.0/OS-ROLE/roles", {"role": wrong}, token=domain_token(stand))
    assert told in refused(answer, code).message
    if code != "IAM.0011":  # which the gateway says by itself
        assert record(stand, answer.headers["X-Request-Id"])["result"] == code


def test_a_name_is_a_domains_only_once(client: Client, strange: Client) -> None:
    one, other = made(client, LOOK), made(client, LOOK)
    wanted = policies_pb2.CreatePolicyRequest.Role(
        display_name=one.display_name, type="XA", policy=document(LOOK)
    )
    with refusal("IAM.0005"):
        client.policies.CreatePolicy(policies_pb2.CreatePolicyRequest(role=wanted))
    strange.policies.CreatePolicy(policies_pb2.CreatePolicyRequest(role=wanted))
    rename = policies_pb2.UpdatePolicyRequest.Role(display_name=one.display_name)
    with refusal("IAM.0005"):
        client.policies.UpdatePolicy(policies_pb2.UpdatePolicyRequest(role_id=other.id, role=rename))
    client.policies.UpdatePolicy(policies_pb2.UpdatePolicyRequest(role_id=one.id, role=rename))


def test_what_is_anothers_is_not_there(
    stand: Stand, client: Client, strange: Client, stranger: Tenant
) -> None:
    theirs = made(strange, LOOK)
    for call in (
        lambda: client.policies.ShowPolicy(policies_pb2.ShowPolicyRequest(role_id=theirs.id)),
        lambda: client.policies.ShowRole(policies_pb2.ShowRoleRequest(role_id=theirs.id)),
        lambda: client.policies.DeletePolicy(policies_pb2.DeletePolicyRequest(role_id=theirs.id)),
        lambda: changed(client, theirs.id, LOOK),
    ):
        with refusal("IAM.0004"):
            call()
    listing = policies_pb2.ListRolesRequest(domain_id=stranger.domain_id)
    assert list(client.policies.ListRoles(listing).roles) == []
    own = new_group(client)
    reader = builtin.BY_NAME["Tenant Guest"].id
    for place in (
        {"group_id": own, "role_id": theirs.id, "domain_id": stand.dev.domain_id},
        {"group_id": own, "role_id": reader, "domain_id": stranger.domain_id},
        {"group_id": "0" * 32, "role_id": reader, "domain_id": stand.dev.domain_id},
    ):
        with refusal("IAM.0004"):
            client.assignments.GrantRoleToGroupOnDomain(assignments_pb2.GroupRoleRequest(**place))
    with refusal("IAM.0004"):
        client.assignments.GrantRoleToGroupOnProject(
            assignments_pb2.GroupRoleRequest(group_id=own, role_id=reader, project_id=stranger.project_id)
        )
    with refusal("IAM.0004"):
        client.assignments.ListRoleAssignments(
            assignments_pb2.ListRoleAssignmentsRequest(domain_id=stranger.domain_id)
        )


def test_who_may_not_administer(stand: Stand, client: Client, worker: Callable[..., Worker]) -> None:
    ann = worker({"Effect": "Allow", "Action": ["kms:*:*", "iam:*:*", "*:*:*"]})
    for token in (ann.token, login(stand, ann.who)):  # of the project; of the domain, where she has nothing
        answer = stand.rest("GET", "/v3/roles", token=token)
        assert "iam:roles:listRoles" in refused(answer, "IAM.0003").message
    project = stand.token()  # an administrator's, but of one project
    refused(stand.rest("GET", "/v3.0/OS-ROLE/roles", token=project), "IAM.0003")
    assert stand.rest("GET", "/v3.0/OS-ROLE/roles", token=domain_token(stand)).status == 200


def test_nobody_gives_away_the_daemons_role_without_it(
    stand: Stand, client: Client, strange: Client, stranger: Tenant
) -> None:
    place = {"user_id": stranger.user_id, "role_id": builtin.OPERATOR.id}
    with refusal("IAM.0003"):
        strange.assignments.GrantRoleToUser(role_of_user(**place))
    ann = person(client)
    mine = {"user_id": ann.id, "role_id": builtin.OPERATOR.id}
    client.assignments.GrantRoleToUser(role_of_user(**mine))
    client.assignments.RevokeRoleFromUser(role_of_user(**mine))
    everything = made(strange, {"Effect": "Allow", "Action": ["*:*:*", "hsmd:*:*"]}, on="AX")
    all_of_it = {"user_id": stranger.user_id, "role_id": everything.id}
    strange.assignments.GrantRoleToUser(role_of_user(**all_of_it))
    with refusal("IAM.0003"):
        strange.domains.ListAllDomains(domains_pb2.ListAllDomainsRequest())
    client.domains.ListAllDomains(domains_pb2.ListAllDomainsRequest())


def test_roles_are_given_where_they_mean_something(stand: Stand, client: Client) -> None:
    ann = person(client)
    for role, place in (
        ("KMS Administrator", {}),
        ("Security Administrator", {"all_projects": True}),
        ("Security Administrator", {"project": stand.dev.project_id}),
    ):
        wanted = {"user_id": ann.id, "role_id": builtin.BY_NAME[role].id, **place}
        with refusal("IAM.0073"):
            client.assignments.GrantRoleToUser(role_of_user(**wanted))


def test_records_say_who_did_what(stand: Stand, client: Client) -> None:
    body = {"role": {"display_name": name("policy"), "type": "XA", "policy": json.loads(document(LOOK))}}
    answer = stand.rest("POST", "/v3.0/OS-ROLE/roles", body, token=domain_token(stand))
    role_id = answer.json["role"]["id"]
    one = record(stand, answer.headers["X-Request-Id"])
    assert (one["event"], one["resource"], one["result"]) == ("createPolicy", f"policy/{role_id}", "OK")
    group = new_group(client)
    path = f"/v3/projects/{stand.dev.project_id}/groups/{group}/roles/{role_id}"
    answer = stand.rest("PUT", path, token=domain_token(stand))
    assert answer.status == 204
    one = record(stand, answer.headers["X-Request-Id"])
    assert (one["event"], one["user"]) == ("grantRoleToGroupOnProject", stand.dev.user)
    assert one["resource"] == f"group/{group}/role/{role_id}"
