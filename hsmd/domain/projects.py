"""Projects, in which keys live. One of another domain looks like one that is not there.

In a suspended project nobody has a role. A project goes only when no key lives in it and no certificate is
bound to it: neither could be used any more.
"""

import re
import uuid
from dataclasses import dataclass, replace

from hsmd.domain import entitlements, users
from hsmd.domain.core import Call
from hsmd.errors import (
    IAM_EXISTS,
    IAM_IN_USE,
    IAM_INPUT_INVALID,
    IAM_NOT_FOUND,
    IAM_QUOTA_EXCEEDED,
    Error,
)
from hsmd.store import Tx, keys, policies
from hsmd.store import identity as rows
from hsmd.store.identity import Project
from hsmd.store.policies import USER

NORMAL, SUSPENDED = "normal", "suspended"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_ON_A_PAGE = 5000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which projects of a list: "" and None for any. `page` from 1 on, with `per_page` from 1 to 5000."""

    domain_id: str = ""
    name: str = ""
    parent_id: str = ""
    enabled: bool | None = None
    page: int | None = None
    per_page: int | None = None


def create(call: Call, domain_id: str, *, name: str, parent_id: str = "", description: str = "") -> Project:
    """A project of the caller's domain, below the domain itself or one of its projects that is.

    Raises Error(IAM_INPUT_INVALID, IAM_NOT_FOUND, IAM_EXISTS, IAM_QUOTA_EXCEEDED). IAM: POST /v3/projects.
    """
    own = call.caller.domain_id
    users.check_domain(call, domain_id)
    check_name(name)
    project = Project(uuid.uuid4().hex, own, name, description, enabled=True, parent_id=parent_id or None)
    call.resource = f"project/{project.id}"
    with call.change() as tx:
        quota = call.core.limits.projects_per_domain
        if rows.count_projects(tx, own) >= quota:
            raise Error(IAM_QUOTA_EXCEEDED, quota=quota, kind="projects")
        if parent_id in ("", own):
            project = replace(project, parent_id=None)
        else:
            _check_parent(_existing(call, tx, parent_id))
        _check_free(tx, own, name)
        rows.insert_project(tx, project)
    return project


def show(call: Call, project_id: str) -> Project:
    """One project; everybody may see those in which one has a role. IAM: GET /v3/projects/{project_id}."""
    call.resource = f"project/{project_id}"
    with call.read() as tx:
        if call.refused and project_id in {each.id for each in _held(call, tx)}:
            call.granted = True
        call.check_allowed()
        return _existing(call, tx, project_id)


def find(call: Call, wanted: Wanted) -> list[Project]:
    """The domain's projects for who may list them, and else those in which the caller has a role; by name.

    IAM: GET /v3/projects.
    """
    if (wanted.page is None) != (wanted.per_page is None):
        raise Error(IAM_INPUT_INVALID, name="page", reason="it goes together with per_page")
    page, size = wanted.page or 1, wanted.per_page or _MOST_ON_A_PAGE
    if wanted.page == 0 or page < 1 or wanted.per_page == 0 or not 1 <= size <= _MOST_ON_A_PAGE:
        raise Error(
            IAM_INPUT_INVALID, name="page", reason=f"a page from 1 on, of 1 to {_MOST_ON_A_PAGE} is due"
        )
    with call.read() as tx:
        seen = _held(call, tx) if call.refused else rows.find_projects(tx, call.caller.domain_id)
    call.granted = True  # it shows nobody more than what is the caller's
    found = [
        each
        for each in seen
        if wanted.name in ("", each.name)
        and wanted.domain_id in ("", each.domain_id)
        and wanted.parent_id in ("", each.parent_id or each.domain_id)
        and wanted.enabled in (None, each.is_enabled)
    ]
    return found[(page - 1) * size : page * size]


def own(call: Call) -> list[Project]:
    """The projects in which the caller has a role, by name. IAM: GET /v3/auth/projects."""
    with call.read() as tx:
        return _held(call, tx)


def of_user(call: Call, user_id: str) -> list[Project]:
    """The projects in which a user has a role; everybody may see one's own.

    IAM: GET /v3/users/{user_id}/projects.
    """
    users.allow_oneself(call, user_id)
    with call.read() as tx:
        user = users.existing(call, tx, user_id)
        return entitlements.projects_of(tx, USER, user.id, user.domain_id)


def update(
    call: Call, project_id: str, *, name: str | None = None, description: str | None = None
) -> Project:
    """Change what is given. IAM: PATCH /v3/projects/{project_id}."""
    with call.change() as tx:
        project = _existing(call, tx, project_id)
        if name is not None and name != project.name:
            check_name(name)
            _check_free(tx, project.domain_id, name)
            project = replace(project, name=name)
        if description is not None:
            project = replace(project, description=description)
        rows.update_project(tx, project)
    return project


def set_status(call: Call, project_id: str, status: str) -> None:
    """Suspend a project, or make it normal again. IAM: PUT /v3-ext/projects/{project_id}."""
    call.resource = f"project/{project_id}"
    if status not in (NORMAL, SUSPENDED):
        raise Error(IAM_INPUT_INVALID, name="status", reason=f"{NORMAL} or {SUSPENDED} is due")
    with call.change() as tx:
        project = _existing(call, tx, project_id)
        rows.update_project(tx, replace(project, enabled=status == NORMAL))


def delete(call: Call, project_id: str) -> None:
    """Remove a project with the roles in it.

    Raises Error(IAM_IN_USE) while it has keys, bound certificates or projects below it. IAM: DELETE
    /v3/projects/{project_id}.
    """
    with call.change() as tx:
        project = _existing(call, tx, project_id)
        for reason, found in (
            ("keys live in it", keys.count_keys(tx, project.id, at_most=1)),
            ("certificates are bound to it", rows.count_bindings_of_project(tx, project.id)),
            ("there are projects below it", _count_below(tx, project)),
        ):
            if found:
                raise Error(IAM_IN_USE, kind="project", id=project.id, reason=reason)
        policies.forget_project(tx, project.id, project.domain_id)
        rows.delete_project(tx, project.id)


def quota(call: Call, project_id: str) -> tuple[int, int]:
    """(how many projects the domain may have, how many it has).

    IAM: GET /v3.0/OS-QUOTA/projects/{project_id}.
    """
    with call.read() as tx:
        project = _existing(call, tx, project_id)
        return call.core.limits.projects_per_domain, rows.count_projects(tx, project.domain_id)


def check_name(name: str) -> None:
    """Raises Error(IAM_INPUT_INVALID) for what can't be a project's name."""
    if not _NAME.fullmatch(name):
        raise Error(IAM_INPUT_INVALID, name="name", reason="1 to 64 letters, digits and -_. are due")


def _held(call: Call, tx: Tx) -> list[Project]:
    caller = call.caller
    return entitlements.projects_of(tx, *entitlements.subject(caller), caller.domain_id)


def _existing(call: Call, tx: Tx, project_id: str) -> Project:
    call.resource = f"project/{project_id}"
    project = rows.get_project(tx, project_id)
    if project is None or project.domain_id != call.caller.domain_id:
        raise Error(IAM_NOT_FOUND, kind="project", id=project_id)
    return project


def _check_parent(parent: Project) -> None:
    if parent.parent_id is not None:
        raise Error(
            IAM_INPUT_INVALID, name="parent_id", reason="the domain or a project right below it is due"
        )


def _check_free(tx: Tx, domain_id: str, name: str) -> None:
    if any(each.name == name for each in rows.find_projects(tx, domain_id)):
        raise Error(IAM_EXISTS, kind="project")


def _count_below(tx: Tx, project: Project) -> int:
    return sum(each.parent_id == project.id for each in rows.find_projects(tx, project.domain_id))
