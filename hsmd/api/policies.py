"""Servicer of policies.proto."""

from collections.abc import Sequence
from typing import TypeVar

from hsmd.api.convert import timestamp
from hsmd.domain import builtin, policies
from hsmd.domain.core import Call
from hsmd.domain.permissions import Answer, Reason
from hsmd.domain.policies import Draft, Question, Role
from hsmd.errors import IAM_INPUT_INVALID, Error
from hsmd.pb.v1 import policies_pb2 as pb
from hsmd.pb.v1.identity_pb2 import Links

SERVICE = pb.DESCRIPTOR.services_by_name["Policies"]

Item = TypeVar("Item")

_LARGEST_PAGE = 300
_CUSTOM = "CUSTOMED"
_FLAG = "fine_grained"
_TYPES = {"domain": builtin.ON_DOMAINS, "project": builtin.ON_PROJECTS, "all": builtin.ANYWHERE}


def list_roles(call: Call, request: pb.ListRolesRequest) -> pb.ListRolesResponse:
    """IAM: KeystoneListPermissions."""
    found = [each for each in policies.find_roles(call, request.domain_id) if _fits(each, request)]
    shown = page(found, request.page, request.per_page, _LARGEST_PAGE)
    return pb.ListRolesResponse(roles=[role(each) for each in shown], links=Links(), total_number=len(found))


def show_role(call: Call, request: pb.ShowRoleRequest) -> pb.ShowRoleResponse:
    """IAM: KeystoneShowPermission."""
    return pb.ShowRoleResponse(role=role(policies.show_role(call, request.role_id)))


def create_policy(call: Call, request: pb.CreatePolicyRequest) -> pb.CreatePolicyResponse:
    """IAM: CreateCloudServiceCustomPolicy, CreateAgencyCustomPolicy."""
    given = request.role
    draft = Draft(given.display_name, given.type, given.description, given.description_cn, given.policy)
    return pb.CreatePolicyResponse(role=role(policies.create(call, draft)))


def list_policies(call: Call, request: pb.ListPoliciesRequest) -> pb.ListPoliciesResponse:
    """IAM: ListCustomPolicies."""
    found = policies.find(call)
    shown = page(found, request.page, request.per_page, _LARGEST_PAGE)
    return pb.ListPoliciesResponse(
        roles=[role(each) for each in shown], links=Links(), total_number=len(found)
    )


def show_policy(call: Call, request: pb.ShowPolicyRequest) -> pb.ShowPolicyResponse:
    """IAM: ShowCustomPolicy."""
    policy, references = policies.show(call, request.role_id)
    shown = role(policy)
    shown.references = references
    return pb.ShowPolicyResponse(role=shown)


def update_policy(call: Call, request: pb.UpdatePolicyRequest) -> pb.UpdatePolicyResponse:
    """IAM: UpdateCloudServiceCustomPolicy, UpdateAgencyCustomPolicy."""
    given = request.role
    draft = Draft(
        given.display_name if given.HasField("display_name") else None,
        given.type if given.HasField("type") else None,
        given.description if given.HasField("description") else None,
        given.description_cn if given.HasField("description_cn") else None,
        given.policy if given.HasField("policy") else None,
    )
    return pb.UpdatePolicyResponse(role=role(policies.update(call, request.role_id, draft)))


def delete_policy(call: Call, request: pb.DeletePolicyRequest) -> pb.DeletePolicyResponse:
    """IAM: DeleteCustomPolicy."""
    policies.delete(call, request.role_id)
    return pb.DeletePolicyResponse()


def test_permission(call: Call, request: pb.TestPermissionRequest) -> pb.TestPermissionResponse:
    """The decision that a caller would get, with its reasons."""
    question = Question(
        user_id=request.user_id,
        agency_id=request.agency_id,
        project=request.project,
        action=request.action,
        resource=request.resource,
        facts={each.key: list(each.values) for each in request.context},
    )
    verdict = policies.test(call, question)
    return pb.TestPermissionResponse(
        allowed=verdict.answer is Answer.ALLOWED,
        why=verdict.why,
        reasons=[_reason(each) for each in verdict.reasons],
    )


def role(found: Role) -> pb.Role:
    """A built-in role or a policy as IAM shows it."""
    custom = None if isinstance(found, builtin.Role) else found
    return pb.Role(
        id=found.id,
        name=found.name,
        display_name=found.display_name,
        domain_id=custom.domain_id if custom else "",
        type=found.type,
        catalog=_catalog(found),
        flag="" if custom else _FLAG,
        description=found.description,
        description_cn=custom.description_cn if custom else "",
        policy=found.document,
        created_time=timestamp(custom.created) if custom else None,
        updated_time=timestamp(custom.updated) if custom else None,
        links=Links(),
    )


def page(found: Sequence[Item], number: int, size: int, largest: int) -> Sequence[Item]:
    """The page of that number, from 1, as IAM counts; everything when neither is given."""
    if not number and not size:
        return found
    if number < 1 or not 1 <= size <= largest:
        reason = f"page from 1 together with per_page from 1 to {largest} is due"
        raise Error(IAM_INPUT_INVALID, name="page", reason=reason)
    return found[(number - 1) * size : number * size]


def _fits(found: Role, wanted: pb.ListRolesRequest) -> bool:
    return (
        wanted.name in ("", found.name)
        and wanted.display_name.lower() in found.display_name.lower()
        and wanted.catalog in ("", _catalog(found))
        and wanted.permission_type in ("", "policy")
        and (not wanted.type or found.type == _TYPES.get(wanted.type))
    )


def _catalog(found: Role) -> str:
    return found.catalog if isinstance(found, builtin.Role) else _CUSTOM


def _reason(reason: Reason) -> pb.TestPermissionResponse.Reason:
    return pb.TestPermissionResponse.Reason(
        policy_id=reason.held.role_id,
        policy=reason.held.name,
        through=reason.held.through,
        statement=reason.statement.index,
        allows=reason.statement.allows,
        applies=reason.applies,
        failed=reason.failed,
    )
