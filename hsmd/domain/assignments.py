"""Who is given which role where. In force for the next call, on every worker.

What belongs to another domain looks like what is not there. Nobody gives away the daemon's own role who does
not have it: it is about all domains. Nor does anybody else give a policy, which may deny, to who has it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from hsmd.domain import builtin, operators, policies
from hsmd.domain.core import Call
from hsmd.domain.policies import Role
from hsmd.errors import IAM_INPUT_INVALID, IAM_NOT_FOUND, Error
from hsmd.store import Tx, agencies, groups
from hsmd.store import identity as people
from hsmd.store import policies as rows
from hsmd.store.policies import AGENCY, ALL_PROJECTS, DOMAIN, GROUP, PROJECT, USER, Assignment


@dataclass(frozen=True, slots=True)
class Place:
    """Who, and where: kinds as the store has them, ids of 32 hex digits."""

    subject_kind: str
    subject_id: str
    scope_kind: str
    scope_id: str


@dataclass(frozen=True, slots=True)
class Filters:
    """What is looked for of a domain's assignments; "" and None: anything."""

    role_id: str = ""
    subject_kind: str = ""
    subject_id: str = ""
    scope_kind: str = ""
    scope_id: str = ""
    inherited: bool | None = None
    with_groups: bool = False


def give(call: Call, place: Place, role_id: str) -> None:
    """The subject gets the role there, or keeps it. Raises Error(IAM_NOT_FOUND, IAM_ACTION_REFUSED)."""
    with call.change() as tx:
        _check_place(call, tx, place)
        _check_scope(policies.role(call, tx, role_id), place)
        _check_operation(call, role_id)
        if role_id not in builtin.BY_ID:
            operators.check_policy(call, tx, [(place.subject_kind, place.subject_id)])
        rows.assign(tx, _assignment(call, place, role_id))


def take(call: Call, place: Place, role_id: str) -> None:
    """The subject loses the role there. Raises Error(IAM_NOT_FOUND) also when it does not have it."""
    with call.change() as tx:
        _check_place(call, tx, place)
        _check_operation(call, role_id)
        rows.unassign(tx, _present(call, tx, place, role_id))


def check(call: Call, place: Place, role_id: str) -> None:
    """Raises Error(IAM_NOT_FOUND) when the subject does not have the role there."""
    with call.read() as tx:
        _check_place(call, tx, place)
        _present(call, tx, place, role_id)


def held(call: Call, place: Place) -> list[Role]:
    """The roles that the subject is given there."""
    with call.read() as tx:
        _check_place(call, tx, place)
        found = rows.held_by(tx, place.subject_kind, [place.subject_id])
        here = [
            each for each in found if (each.scope_kind, each.scope_id) == (place.scope_kind, place.scope_id)
        ]
        return [policies.role(call, tx, each.role_id) for each in here]


def find(call: Call, domain_id: str, wanted: Filters) -> list[Assignment]:
    """The domain's assignments that fit. IAM: ShowDomainRoleAssignments."""
    if domain_id != call.caller.domain_id:
        raise Error(IAM_NOT_FOUND, kind="domain", id=domain_id)
    with call.read() as tx:
        subjects = {(wanted.subject_kind, wanted.subject_id)}
        if wanted.with_groups and wanted.subject_kind == USER:
            subjects |= {(GROUP, each) for each in groups.groups_of(tx, wanted.subject_id)}
        return [each for each in _of_domain(tx, domain_id) if _fits(each, wanted, subjects)]


def _of_domain(tx: Tx, domain_id: str) -> Iterable[Assignment]:
    for scope in (DOMAIN, ALL_PROJECTS):
        yield from rows.given_in(tx, scope, domain_id)
    for project in people.find_projects(tx, domain_id):
        yield from rows.given_in(tx, PROJECT, project.id)


def _fits(each: Assignment, wanted: Filters, subjects: set[tuple[str, str]]) -> bool:
    inherited = each.scope_kind == ALL_PROJECTS
    by_subject = (each.subject_kind, each.subject_id) in subjects
    by_kind = wanted.subject_kind in ("", each.subject_kind)
    return (
        wanted.role_id in ("", each.role_id)
        and (by_subject if wanted.subject_id else by_kind)
        and wanted.scope_kind in ("", DOMAIN if inherited else each.scope_kind)
        and wanted.scope_id in ("", each.scope_id)
        and wanted.inherited in (None, inherited)
    )


def _check_place(call: Call, tx: Tx, place: Place) -> None:
    """Raises Error(IAM_NOT_FOUND) for a subject or scope that the caller's domain does not have."""
    own = call.caller.domain_id
    if place.scope_kind == PROJECT:
        project = people.get_project(tx, place.scope_id)
        if project is None or project.domain_id != own:
            raise Error(IAM_NOT_FOUND, kind="project", id=place.scope_id)
    elif place.scope_id != own:
        raise Error(IAM_NOT_FOUND, kind="domain", id=place.scope_id)
    if _domain_of(tx, place) != own:
        raise Error(IAM_NOT_FOUND, kind=place.subject_kind, id=place.subject_id)


def _domain_of(tx: Tx, place: Place) -> str | None:
    found = {
        USER: people.get_user,
        GROUP: groups.get_group,
        AGENCY: agencies.get_agency,
    }[place.subject_kind](tx, place.subject_id)
    return None if found is None else found.domain_id


def _check_scope(role: Role, place: Place) -> None:
    """A role that means nothing there is a mistake, and better said than kept."""
    on_domain = place.scope_kind == DOMAIN
    if (role.type, on_domain) in ((builtin.ON_PROJECTS, True), (builtin.ON_DOMAINS, False)):
        where = "domains" if role.type == builtin.ON_DOMAINS else "projects"
        raise Error(IAM_INPUT_INVALID, name="role_id", reason=f"{role.display_name} is given on {where}")


def _check_operation(call: Call, role_id: str) -> None:
    if role_id == builtin.OPERATOR.id:
        operators.check_caller(call)


def _present(call: Call, tx: Tx, place: Place, role_id: str) -> Assignment:
    found = _assignment(call, place, role_id)
    if not rows.has(tx, found):
        raise Error(IAM_NOT_FOUND, kind=f"role of the {place.subject_kind}", id=role_id)
    return found


def _assignment(call: Call, place: Place, role_id: str) -> Assignment:
    call.resource = f"{place.subject_kind}/{place.subject_id}/role/{role_id}"
    return Assignment(place.subject_kind, place.subject_id, place.scope_kind, place.scope_id, role_id)
