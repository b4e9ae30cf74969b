"""Domains: made by who operates the daemon, each with a first project and a user who administers it."""

import re
import uuid
from dataclasses import dataclass, replace

from hsmd.domain import administrators, builtin, projects, users
from hsmd.domain.core import Call
from hsmd.domain.users import Profile
from hsmd.errors import IAM_EXISTS, IAM_INPUT_INVALID, IAM_NOT_FOUND, IAM_PROTECTED, Error
from hsmd.store import Tx, groups
from hsmd.store import identity as rows
from hsmd.store.identity import Domain, Project, RoleAssignment, User

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Founded:
    """A domain just made."""

    domain: Domain
    project: Project
    owner: User


@dataclass(frozen=True, slots=True)
class Quota:
    """How many there may be of a kind ("user", "group" or "project"), and how many there are."""

    kind: str
    quota: int
    used: int


def create(call: Call, *, name: str, description: str, project: str, user: str, password: str) -> Founded:
    """A domain, a project of that name (the region's unless given), a user who administers both.

    The password is held against the rules that count where none are settled. Raises Error(IAM_INPUT_INVALID,
    PASSWORD_REFUSED, IAM_EXISTS).
    """
    if not _NAME.fullmatch(name):
        raise Error(IAM_INPUT_INVALID, name="name", reason="1 to 64 letters, digits, spaces and -_. are due")
    project = project or call.core.region
    projects.check_name(project)
    domain_id = uuid.uuid4().hex
    call.resource = f"domain/{domain_id}"
    owner = users.new_user(call, domain_id, Profile(name=user, password=password, password_reset=False))
    domain = Domain(domain_id, name, description, enabled=True, owner_id=owner.id, created=call.core.clock())
    first = Project(uuid.uuid4().hex, domain_id, project, enabled=True)
    with call.change() as tx:
        if rows.get_domain_by_name(tx, name) is not None:
            raise Error(IAM_EXISTS, kind="domain")
        rows.insert_domain(tx, domain)
        rows.insert_project(tx, first)
        rows.insert_user(tx, owner)
        rows.insert_role(tx, RoleAssignment(owner.id, first.id, builtin.KMS_ADMINISTRATOR.display_name))
        administrators.appoint(tx, domain_id, owner.id, call.core.clock())
    return Founded(domain, first, owner)


def every(call: Call) -> list[Domain]:
    """All domains, by name."""
    with call.read() as tx:
        return rows.domains(tx)


def show(call: Call, domain_id: str) -> Domain:
    """One domain."""
    with call.read() as tx:
        return _existing(call, tx, domain_id)


def update(
    call: Call, domain_id: str, *, description: str | None = None, enabled: bool | None = None
) -> Domain:
    """Change what is given. Of a disabled domain nobody comes in; Error(IAM_PROTECTED) for the caller's."""
    with call.change() as tx:
        domain = _existing(call, tx, domain_id)
        if enabled is False and domain.id == call.caller.domain_id:
            raise Error(IAM_PROTECTED, reason="one's own domain can't be disabled")
        if description is not None:
            domain = replace(domain, description=description)
        if enabled is not None:
            domain = replace(domain, enabled=enabled)
        rows.update_domain(tx, domain)
    return domain


def quotas(call: Call, domain_id: str, kind: str) -> list[Quota]:
    """Of the caller's domain, of one kind or ("") of all. IAM: GET /v3.0/OS-QUOTA/domains/{domain_id}."""
    call.resource = f"domain/{domain_id}"
    if domain_id != call.caller.domain_id:
        raise Error(IAM_NOT_FOUND, kind="domain", id=domain_id)
    limits = call.core.limits
    with call.read() as tx:
        found = [
            Quota("user", limits.users_per_domain, rows.count_users(tx, domain_id)),
            Quota("group", limits.groups_per_domain, groups.count_groups(tx, domain_id)),
            Quota("project", limits.projects_per_domain, rows.count_projects(tx, domain_id)),
        ]
    if kind and kind not in {each.kind for each in found}:
        kinds = ", ".join(each.kind for each in found)
        raise Error(IAM_INPUT_INVALID, name="type", reason=f"of {kinds} one is due")
    return [each for each in found if kind in ("", each.kind)]


def _existing(call: Call, tx: Tx, domain_id: str) -> Domain:
    call.resource = f"domain/{domain_id}"
    domain = rows.get_domain(tx, domain_id)
    if domain is None:
        raise Error(IAM_NOT_FOUND, kind="domain", id=domain_id)
    return domain
