"""Servicer of assignments.proto: three scopes for groups and agencies, the same four methods each."""

from collections.abc import Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty

from hsmd.api.policies import page, role
from hsmd.domain import assignments
from hsmd.domain.assignments import Filters, Place
from hsmd.domain.core import Call
from hsmd.errors import IAM_INPUT_INVALID, Error
from hsmd.pb.v1 import assignments_pb2 as pb
from hsmd.pb.v1.identity_pb2 import Links
from hsmd.store.policies import AGENCY, ALL_PROJECTS, DOMAIN, GROUP, PROJECT, USER, Assignment

SERVICE = pb.DESCRIPTOR.services_by_name["Assignments"]

_LARGEST_PAGE = 50

_Locate = Callable[[Any], Place]
_Change = Callable[[Call, Any], Empty]


def _locate(subject_kind: str, scope_kind: str) -> _Locate:
    """From a request to who and where, by the fields that its route fills."""
    subject = f"{subject_kind}_id"
    scope = "project_id" if scope_kind == PROJECT else "domain_id"
    return lambda request: Place(subject_kind, getattr(request, subject), scope_kind, getattr(request, scope))


def _giving(locate: _Locate) -> _Change:
    def give(call: Call, request: Any) -> Empty:
        assignments.give(call, locate(request), request.role_id)
        return Empty()

    return give


def _checking(locate: _Locate) -> _Change:
    def check(call: Call, request: Any) -> Empty:
        assignments.check(call, locate(request), request.role_id)
        return Empty()

    return check


def _taking(locate: _Locate) -> _Change:
    def take(call: Call, request: Any) -> Empty:
        assignments.take(call, locate(request), request.role_id)
        return Empty()

    return take


def _listing(locate: _Locate) -> Callable[[Call, Any], pb.AssignedRolesResponse]:
    def held(call: Call, request: Any) -> pb.AssignedRolesResponse:
        found = assignments.held(call, locate(request))
        return pb.AssignedRolesResponse(roles=[role(each) for each in found], links=Links())

    return held


_GROUP_DOMAIN, _GROUP_PROJECTS, _GROUP_PROJECT = (
    _locate(GROUP, scope) for scope in (DOMAIN, ALL_PROJECTS, PROJECT)
)
_AGENCY_DOMAIN, _AGENCY_PROJECTS, _AGENCY_PROJECT = (
    _locate(AGENCY, scope) for scope in (DOMAIN, ALL_PROJECTS, PROJECT)
)

grant_role_to_group_on_domain = _giving(_GROUP_DOMAIN)
grant_role_to_group_on_projects = _giving(_GROUP_PROJECTS)
grant_role_to_group_on_project = _giving(_GROUP_PROJECT)
grant_role_to_agency_on_domain = _giving(_AGENCY_DOMAIN)
grant_role_to_agency_on_projects = _giving(_AGENCY_PROJECTS)
grant_role_to_agency_on_project = _giving(_AGENCY_PROJECT)

check_role_for_group_on_domain = _checking(_GROUP_DOMAIN)
check_role_for_group_on_projects = _checking(_GROUP_PROJECTS)
check_role_for_group_on_project = _checking(_GROUP_PROJECT)
check_role_for_agency_on_domain = _checking(_AGENCY_DOMAIN)
check_role_for_agency_on_projects = _checking(_AGENCY_PROJECTS)
check_role_for_agency_on_project = _checking(_AGENCY_PROJECT)

revoke_role_from_group_on_domain = _taking(_GROUP_DOMAIN)
revoke_role_from_group_on_projects = _taking(_GROUP_PROJECTS)
revoke_role_from_group_on_project = _taking(_GROUP_PROJECT)
revoke_role_from_agency_on_domain = _taking(_AGENCY_DOMAIN)
revoke_role_from_agency_on_projects = _taking(_AGENCY_PROJECTS)
revoke_role_from_agency_on_project = _taking(_AGENCY_PROJECT)

list_roles_for_group_on_domain = _listing(_GROUP_DOMAIN)
list_roles_for_group_on_projects = _listing(_GROUP_PROJECTS)
list_roles_for_group_on_project = _listing(_GROUP_PROJECT)
list_roles_for_agency_on_domain = _listing(_AGENCY_DOMAIN)
list_roles_for_agency_on_projects = _listing(_AGENCY_PROJECTS)
list_roles_for_agency_on_project = _listing(_AGENCY_PROJECT)


def grant_role_to_user(call: Call, request: pb.UserRoleRequest) -> Empty:
    """A role of the user's own."""
    assignments.give(call, _place_of_user(call, request), request.role_id)
    return Empty()


def revoke_role_from_user(call: Call, request: pb.UserRoleRequest) -> Empty:
    """It is the user's no longer."""
    assignments.take(call, _place_of_user(call, request), request.role_id)
    return Empty()


def list_role_assignments(
    call: Call, request: pb.ListRoleAssignmentsRequest
) -> pb.ListRoleAssignmentsResponse:
    """IAM: ShowDomainRoleAssignments."""
    found = assignments.find(call, request.domain_id, _filters(request))
    shown = page(found, request.page, request.per_page, _LARGEST_PAGE)
    return pb.ListRoleAssignmentsResponse(
        total_num=len(found), role_assignments=[_assignment(each) for each in shown]
    )


def _place_of_user(call: Call, request: pb.UserRoleRequest) -> Place:
    if request.project:
        return Place(USER, request.user_id, PROJECT, request.project)
    scope = ALL_PROJECTS if request.all_projects else DOMAIN
    return Place(USER, request.user_id, scope, call.caller.domain_id)


def _filters(request: pb.ListRoleAssignmentsRequest) -> Filters:
    subjects = {USER: request.user_id, GROUP: request.group_id, AGENCY: request.agency_id}
    subject_kind, subject_id = _one_of("subject", request.subject, subjects)
    scopes = {PROJECT: request.of_project, DOMAIN: request.of_domain}
    scope_kind, scope_id = _one_of("scope", request.scope, scopes)
    return Filters(
        role_id=request.role_id,
        subject_kind=subject_kind,
        subject_id=subject_id,
        scope_kind=scope_kind,
        scope_id=scope_id,
        inherited=request.is_inherited if request.HasField("is_inherited") else None,
        with_groups=request.include_group,
    )


def _one_of(name: str, kind: str, ids: dict[str, str]) -> tuple[str, str]:
    """The kind and the id that are asked for: either may be "", an id says its kind."""
    given = [(each, found) for each, found in ids.items() if found]
    if kind not in ("", *ids) or len(given) > 1 or (given and kind not in ("", given[0][0])):
        reason = f"{', '.join(ids)} is due, and the id of one such"
        raise Error(IAM_INPUT_INVALID, name=name, reason=reason)
    return given[0] if given else (kind, "")


def _assignment(found: Assignment) -> pb.RoleAssignment:
    shown = pb.RoleAssignment(is_inherited=found.scope_kind == ALL_PROJECTS)
    getattr(shown, found.subject_kind).id = found.subject_id
    shown.role.id = found.role_id
    getattr(shown.scope, PROJECT if found.scope_kind == PROJECT else DOMAIN).id = found.scope_id
    return shown
