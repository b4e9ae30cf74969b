"""Which roles and policies count for a caller in the project or domain that it acts in, and through what."""

from collections.abc import Iterator
from dataclasses import dataclass

from hsmd.domain import builtin
from hsmd.domain.core import Core
from hsmd.store import Tx, policies
from hsmd.store import identity as rows
from hsmd.store.identity import Project
from hsmd.store.policies import AGENCY, ALL_PROJECTS, DOMAIN, PROJECT, USER, Assignment


@dataclass(frozen=True, slots=True)
class Held:
    """A role or policy that counts here: its id, the name people know it by, its JSON, and how it came.

    `through` is "user", "agency" or "group NAME".
    """

    role_id: str
    name: str
    document: str
    through: str


def in_project(core: Core, kind: str, subject_id: str, project_id: str) -> tuple[Held, ...]:
    """What the user or agency holds in the project, from the cache; nothing where there is none."""
    found = core.cache.get(
        subject_id, f"held in {project_id}", lambda: _load(core, kind, subject_id, project_id)
    )
    return found or ()


def in_domain(core: Core, kind: str, subject_id: str, domain_id: str) -> tuple[Held, ...]:
    """What the user or agency holds in the domain itself, from the cache."""

    def load() -> tuple[Held, ...]:
        with core.store.read() as tx:
            return tuple(_given(tx, kind, subject_id, {(DOMAIN, domain_id)}))

    return core.cache.get(subject_id, f"held in domain {domain_id}", load) or ()


def projects_of(tx: Tx, kind: str, subject_id: str, domain_id: str) -> list[Project]:
    """The domain's projects in which the user or agency holds anything, by name."""
    return [each for each in rows.find_projects(tx, domain_id) if _held(tx, kind, subject_id, each)]


def _load(core: Core, kind: str, subject_id: str, project_id: str) -> tuple[Held, ...]:
    with core.store.read() as tx:
        project = rows.get_project(tx, project_id)
        return _held(tx, kind, subject_id, project) if project else ()


def _held(tx: Tx, kind: str, subject_id: str, project: Project) -> tuple[Held, ...]:
    scopes = {(PROJECT, project.id), (ALL_PROJECTS, project.domain_id)}
    return (*_direct(tx, kind, subject_id, project.id), *_given(tx, kind, subject_id, scopes))


def _direct(tx: Tx, kind: str, subject_id: str, project_id: str) -> Iterator[Held]:
    """What stands in the users' roles of the first days: the name of a built-in role in one project."""
    for each in rows.roles_of(tx, subject_id) if kind == USER else ():
        role = builtin.BY_NAME.get(each.role)
        if role is not None and each.project_id == project_id:
            yield Held(role.id, role.display_name, role.document, USER)


def _given(tx: Tx, kind: str, subject_id: str, scopes: set[tuple[str, str]]) -> Iterator[Held]:
    subjects = {(kind, subject_id): AGENCY if kind == AGENCY else USER}
    for (subject_kind, subject), through in subjects.items():
        for each in policies.held_by(tx, subject_kind, [subject]):
            if (each.scope_kind, each.scope_id) in scopes:
                yield from _role(tx, each, through)


def _role(tx: Tx, assignment: Assignment, through: str) -> Iterator[Held]:
    role = builtin.BY_ID.get(assignment.role_id)
    if role is not None:
        yield Held(role.id, role.display_name, role.document, through)
        return
    policy = policies.get_policy(tx, assignment.role_id)
    if policy is not None:
        yield Held(policy.id, policy.display_name, policy.document, through)
