"""Custom policies, and who is given which role where. Their changes empty what processes have cached.

An assignment gives a role, built-in or custom, to a subject (a user, group or agency) in a scope: a domain,
all projects of a domain, or one project.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, func, select

from hsmd.store import identity
from hsmd.store.core import Tx
from hsmd.store.schema import ASSIGNMENTS, POLICIES
from hsmd.store.seals import Sealed

SUBJECT = "policies"  # in the change feed

# Kinds of subjects and of scopes.
USER, GROUP, AGENCY = "user", "group", "agency"
DOMAIN, ALL_PROJECTS, PROJECT = "domain", "all-projects", "project"


@dataclass(frozen=True, slots=True)
class Policy:
    """A custom policy of a domain. `document` is its JSON; times in ms since 1970 UTC.

    `type` tells where it is meant to be given, as IAM has it: "AX" on domains, "XA" on projects.
    """

    id: str
    domain_id: str
    name: str
    display_name: str
    description: str
    description_cn: str
    type: str
    document: str
    created: int
    updated: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """A role given to a subject in a scope; `scope_id` is a domain's id for "domain" and "all-projects"."""

    subject_kind: str
    subject_id: str
    scope_kind: str
    scope_id: str
    role_id: str


_POLICIES = Sealed(POLICIES, Policy)
_ASSIGNMENTS = Sealed(ASSIGNMENTS, Assignment)

_by_id = _POLICIES.where(POLICIES.c.id == bindparam("policy_id"))
_by_display_name = _POLICIES.where(
    POLICIES.c.domain_id == bindparam("domain"), POLICIES.c.display_name == bindparam("wanted")
)
_of_domain = _POLICIES.where(POLICIES.c.domain_id == bindparam("domain")).order_by(
    POLICIES.c.created, POLICIES.c.id
)
_count_of_domain = (
    select(func.count()).select_from(POLICIES).where(POLICIES.c.domain_id == bindparam("domain"))
)
_delete_policy = delete(POLICIES).where(POLICIES.c.id == bindparam("policy_id"))

_of_subject = (
    ASSIGNMENTS.c.subject_kind == bindparam("kind"),
    ASSIGNMENTS.c.subject_id == bindparam("subject"),
)
_of_subjects = (
    ASSIGNMENTS.c.subject_kind == bindparam("kind"),
    ASSIGNMENTS.c.subject_id.in_(bindparam("subjects", expanding=True)),
)
_in_scope = (
    ASSIGNMENTS.c.scope_kind == bindparam("scope_kind_"),
    ASSIGNMENTS.c.scope_id == bindparam("scope"),
)
_of_role = ASSIGNMENTS.c.role_id == bindparam("role")
_order = (
    ASSIGNMENTS.c.subject_kind,
    ASSIGNMENTS.c.subject_id,
    ASSIGNMENTS.c.scope_kind,
    ASSIGNMENTS.c.scope_id,
    ASSIGNMENTS.c.role_id,
)
_held = _ASSIGNMENTS.where(*_of_subjects).order_by(*_order)
_given_here = _ASSIGNMENTS.where(*_in_scope).order_by(*_order)
_given = _ASSIGNMENTS.where(_of_role).order_by(*_order)
_count_given = select(func.count()).select_from(ASSIGNMENTS).where(_of_role)
_one = _ASSIGNMENTS.where(*_of_subject, *_in_scope, _of_role)
_delete_one = delete(ASSIGNMENTS).where(*_of_subject, *_in_scope, _of_role)
_delete_of_subject = delete(ASSIGNMENTS).where(*_of_subject)
_delete_of_scope = delete(ASSIGNMENTS).where(ASSIGNMENTS.c.scope_id == bindparam("scope"))
_delete_of_role = delete(ASSIGNMENTS).where(_of_role)


def insert_policy(tx: Tx, policy: Policy) -> None:
    """Add a policy; its display name is unique in its domain."""
    _POLICIES.insert(tx, policy)
    tx.changed(SUBJECT, policy.id, policy.domain_id)


def update_policy(tx: Tx, policy: Policy) -> None:
    """Replace the row of this id. Raises SealBroken when it is gone."""
    _POLICIES.update(tx, policy)
    tx.changed(SUBJECT, policy.id, policy.domain_id)


def delete_policy(tx: Tx, policy_id: str) -> None:
    """Remove the policy and take it from all who have it. Raises SealBroken."""
    policy = get_policy(tx, policy_id)
    tx.connection.execute(_delete_of_role, {"role": policy_id})
    tx.connection.execute(_delete_policy, {"policy_id": policy_id})
    tx.changed(SUBJECT, policy_id, policy.domain_id if policy else "")


def get_policy(tx: Tx, policy_id: str) -> Policy | None:
    """The policy. Raises SealBroken."""
    return _POLICIES.one(tx, _by_id, policy_id=policy_id)


def get_policy_by_display_name(tx: Tx, domain_id: str, display_name: str) -> Policy | None:
    """The domain's policy of that display name. Raises SealBroken."""
    return _POLICIES.one(tx, _by_display_name, domain=domain_id, wanted=display_name)


def policies_of(tx: Tx, domain_id: str) -> list[Policy]:
    """The domain's policies in the order of their making. Raises SealBroken."""
    return _POLICIES.many(tx, _of_domain, domain=domain_id)


def count_policies(tx: Tx, domain_id: str) -> int:
    """How many policies the domain has."""
    return tx.connection.execute(_count_of_domain, {"domain": domain_id}).scalar_one()


def assign(tx: Tx, assignment: Assignment) -> None:
    """Give the role; nothing happens when the subject has it there."""
    if not has(tx, assignment):
        _ASSIGNMENTS.insert(tx, assignment)
        tx.changed(SUBJECT, assignment.subject_id, _domain_of(tx, assignment))


def unassign(tx: Tx, assignment: Assignment) -> None:
    """Take the role away, if the subject has it there."""
    tx.connection.execute(_delete_one, _bound(assignment))
    tx.changed(SUBJECT, assignment.subject_id, _domain_of(tx, assignment))


def has(tx: Tx, assignment: Assignment) -> bool:
    """Whether the subject has the role there. Raises SealBroken."""
    return _ASSIGNMENTS.one(tx, _one, **_bound(assignment)) is not None


def held_by(tx: Tx, kind: str, subject_ids: Iterable[str]) -> list[Assignment]:
    """What the subjects of this kind are given, in any scope. Raises SealBroken."""
    return _ASSIGNMENTS.many(tx, _held, kind=kind, subjects=list(subject_ids))


def given_in(tx: Tx, scope_kind: str, scope_id: str) -> list[Assignment]:
    """What anybody is given in the scope. Raises SealBroken."""
    return _ASSIGNMENTS.many(tx, _given_here, scope_kind_=scope_kind, scope=scope_id)


def count_given(tx: Tx, role_id: str) -> int:
    """How often the role is given."""
    return tx.connection.execute(_count_given, {"role": role_id}).scalar_one()


def given_role(tx: Tx, role_id: str) -> list[Assignment]:
    """Who is given the role, and where. Raises SealBroken."""
    return _ASSIGNMENTS.many(tx, _given, role=role_id)


def forget_subject(tx: Tx, kind: str, subject_id: str, domain_id: str) -> None:
    """Take everything from a user, group or agency of the domain that goes."""
    tx.connection.execute(_delete_of_subject, {"kind": kind, "subject": subject_id})
    tx.changed(SUBJECT, subject_id, domain_id)


def forget_project(tx: Tx, project_id: str, domain_id: str) -> None:
    """Take everything that was given in a project of the domain that goes."""
    tx.connection.execute(_delete_of_scope, {"scope": project_id})
    tx.changed(SUBJECT, project_id, domain_id)


def _domain_of(tx: Tx, assignment: Assignment) -> str:
    """The id of the domain in which it counts; "" for a project that is not there."""
    if assignment.scope_kind != PROJECT:
        return assignment.scope_id
    project = identity.get_project(tx, assignment.scope_id)
    return project.domain_id if project else ""


def _bound(assignment: Assignment) -> dict[str, str]:
    return {
        "kind": assignment.subject_kind,
        "subject": assignment.subject_id,
        "scope_kind_": assignment.scope_kind,
        "scope": assignment.scope_id,
        "role": assignment.role_id,
    }
