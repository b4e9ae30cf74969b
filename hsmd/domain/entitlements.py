"""Which roles and policies count for a caller in the project or domain that it acts in, and through what."""

from collections.abc import Iterator
from functools import lru_cache

from hsmd.caller import Caller
from hsmd.domain import builtin
from hsmd.domain.cache import ANY
from hsmd.domain.core import Core
from hsmd.domain.permissions import NOTHING, Held, Permissions, Rules
from hsmd.store import Tx, agencies, groups, policies
from hsmd.store import identity as rows
from hsmd.store.identity import Project
from hsmd.store.policies import AGENCY, ALL_PROJECTS, DOMAIN, GROUP, PROJECT, USER, Assignment

__all__ = [
    "Held",
    "domain_name",
    "in_domain",
    "in_project",
    "of_session",
    "project_name",
    "projects_of",
    "rules_in_domain",
]

_SESSION = "session"


def subject(caller: Caller) -> tuple[str, str]:
    """Whose roles count: kind and id; several groups' ids stand one after the other."""
    if caller.groups:
        return GROUP, " ".join(caller.groups)
    return AGENCY if caller.assumed_by else USER, caller.user_id


@lru_cache(maxsize=256)  # a text says the same for ever; few, since callers may think of any number
def of_session(policy: str) -> Permissions:
    """What a session policy allows. Raises DocumentError."""
    return Permissions([Held("", _SESSION, policy, _SESSION)])


def in_project(core: Core, kind: str, subject_id: str, project_id: str) -> Permissions:
    """What the user or agency holds in the project, from the cache; nothing where there is none.

    Nor in a project that is suspended.
    """
    name = f"permissions in {project_id}"
    known: Permissions | None = core.people.known(subject_id, name)
    if known is not None:  # mostly
        return known

    def load() -> Permissions | None:
        with core.store.read() as tx:
            project = rows.get_project(tx, project_id)
            if project is None:
                return None  # and nothing is kept of it: anybody can name projects that are not there
            if not project.is_enabled:
                return NOTHING
            return Permissions(_held(tx, kind, subject_id, project))

    def domains(_found: Permissions) -> set[str]:
        with core.store.read() as tx:
            project = rows.get_project(tx, project_id)
            return {project.domain_id if project else ANY} | _homes(tx, kind, subject_id)

    return core.people.get(subject_id, name, load, domains) or NOTHING


def in_domain(core: Core, kind: str, subject_id: str, domain_id: str) -> Permissions:
    """What the user or agency holds in the domain itself, from the cache."""

    def load() -> Permissions:
        with core.store.read() as tx:
            return Permissions(_given(tx, kind, subject_id, {(DOMAIN, domain_id)}))

    def domains(_found: Permissions) -> set[str]:
        with core.store.read() as tx:
            return {domain_id} | _homes(tx, kind, subject_id)

    return core.people.get(subject_id, f"permissions in domain {domain_id}", load, domains)


def rules_in_domain(core: Core, user_id: str, domain_id: str, action: str) -> Rules:
    """What a user's policies in the domain itself say to an action, from the cache."""
    return in_domain(core, USER, user_id, domain_id).rules(action)


def domain_name(core: Core, domain_id: str) -> str:
    """The domain's name, from the cache; "" when there is no such domain."""

    def load() -> str | None:
        with core.store.read() as tx:
            found = rows.get_domain(tx, domain_id)
        return found.name if found else None

    return core.people.get(domain_id, "domain name", load, lambda _: (domain_id,)) or ""


def project_name(core: Core, project_id: str) -> str:
    """The project's name, from the cache; "" when there is no such project."""

    def load() -> str | None:
        with core.store.read() as tx:
            found = rows.get_project(tx, project_id)
        return found.name if found else None

    return core.people.get(project_id, "project name", load) or ""


def projects_of(tx: Tx, kind: str, subject_id: str, domain_id: str) -> list[Project]:
    """The domain's projects in which the user or agency holds anything, by name."""
    return [each for each in rows.find_projects(tx, domain_id) if _held(tx, kind, subject_id, each)]


def _homes(tx: Tx, kind: str, subject_id: str) -> set[str]:
    """The domains of the subject or subjects."""
    get = {USER: rows.get_user, GROUP: groups.get_group, AGENCY: agencies.get_agency}[kind]
    return {row.domain_id if row else ANY for row in (get(tx, each) for each in subject_id.split())}


def _held(tx: Tx, kind: str, subject_id: str, project: Project) -> list[Held]:
    scopes = {(PROJECT, project.id), (ALL_PROJECTS, project.domain_id)}
    return [*_direct(tx, kind, subject_id, project.id), *_given(tx, kind, subject_id, scopes)]


def _direct(tx: Tx, kind: str, subject_id: str, project_id: str) -> Iterator[Held]:
    """What stands in the users' roles of the first days: the name of a built-in role in one project."""
    for each in rows.roles_of(tx, subject_id) if kind == USER else ():
        role = builtin.BY_NAME.get(each.role)
        if role is not None and each.project_id == project_id:
            yield _built_in(role, USER)


def _given(tx: Tx, kind: str, subject_id: str, scopes: set[tuple[str, str]]) -> Iterator[Held]:
    """What is given to the subject or subjects, and to a user's groups, in any of these scopes."""
    for each in policies.held_by(tx, kind, subject_id.split()):
        if (each.scope_kind, each.scope_id) in scopes:
            yield from _role(tx, each, kind)
    if kind == USER:
        for each in policies.held_by(tx, GROUP, groups.groups_of(tx, subject_id)):
            group = groups.get_group(tx, each.subject_id)
            if group is not None and (each.scope_kind, each.scope_id) in scopes:
                yield from _role(tx, each, f"group {group.name}")


def _role(tx: Tx, assignment: Assignment, through: str) -> Iterator[Held]:
    role = builtin.BY_ID.get(assignment.role_id)
    if role is not None:
        yield _built_in(role, through)
        return
    policy = policies.get_policy(tx, assignment.role_id)
    if policy is not None:
        yield Held(policy.id, policy.display_name, policy.document, through)


def _built_in(role: builtin.Role, through: str) -> Held:
    return Held(role.id, role.display_name, role.document, through, role is builtin.OPERATOR)
