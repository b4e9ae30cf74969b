"""Who may come: domains, projects, users and their roles.

Every function that adds raises the store's fault when the id or name is taken. Every one that finds
raises SealBroken, and gives None where there is nothing. Changes come in the feed as subject "identity"
with the id of what was added, for a role the user's; those of a domain's users and projects with the domain.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, bindparam, delete, func, select

from hsmd.store import schema
from hsmd.store.core import Tx
from hsmd.store.seals import SealBroken, Sealed

SUBJECT = "identity"  # in the change feed


@dataclass(frozen=True, slots=True)
class Domain:
    """A tenant: an account with its own users and projects. `owner_id`: the user whom it was made for."""

    id: str
    name: str
    description: str | None = None
    enabled: bool | None = None
    owner_id: str | None = None
    created: int | None = None

    @property
    def is_enabled(self) -> bool:
        """Whether its users may come."""
        return self.enabled is not False


@dataclass(frozen=True, slots=True)
class Project:
    """Where a domain's keys live; `parent_id` is another project's, or None."""

    id: str
    domain_id: str
    name: str
    description: str | None = None
    enabled: bool | None = None
    parent_id: str | None = None

    @property
    def is_enabled(self) -> bool:
        """Whether calls may act in it."""
        return self.enabled is not False


@dataclass(frozen=True, slots=True)
class User:
    """Someone of a domain; `password_hash` is Argon2's own text form, "" for one without a password.

    `password_reset`: the user shall choose another password. `password_history`: the hashes before this one,
    the latest first, one a line. Tokens issued before `tokens_not_before` are void. Times in ms since 1970.
    """

    id: str
    domain_id: str
    name: str
    password_hash: str
    enabled: bool
    description: str | None = None
    email: str | None = None
    areacode: str | None = None
    phone: str | None = None
    access_mode: str | None = None
    xuser_id: str | None = None
    xuser_type: str | None = None
    created: int | None = None
    updated: int | None = None
    password_changed: int | None = None
    password_reset: bool | None = None
    password_history: str | None = None
    tokens_not_before: int | None = None

    def __repr__(self) -> str:
        return (
            f"User(id={self.id!r}, domain_id={self.domain_id!r}, name={self.name!r}, enabled={self.enabled})"
        )


@dataclass(frozen=True, slots=True)
class RoleAssignment:
    """What a user may do in a project, by the role's name."""

    user_id: str
    project_id: str
    role: str


_DOMAINS = Sealed(schema.DOMAINS, Domain)
_PROJECTS = Sealed(schema.PROJECTS, Project)
_USERS = Sealed(schema.USERS, User)
_ROLES = Sealed(schema.ROLES, RoleAssignment)

_domain_by_id = _DOMAINS.where(schema.DOMAINS.c.id == bindparam("id"))
_domain_ids = select(schema.DOMAINS.c.id).limit(100)
_domain_by_name = _DOMAINS.where(schema.DOMAINS.c.name == bindparam("name"))
_project_by_id = _PROJECTS.where(schema.PROJECTS.c.id == bindparam("id"))
_projects = _PROJECTS.where(schema.PROJECTS.c.domain_id == bindparam("domain_id")).order_by(
    schema.PROJECTS.c.name
)
_user_by_id = _USERS.where(schema.USERS.c.id == bindparam("id"))
_user_by_name = _USERS.where(
    schema.USERS.c.domain_id == bindparam("domain_id"), schema.USERS.c.name == bindparam("name")
)
_roles = _ROLES.where(schema.ROLES.c.user_id == bindparam("user_id")).order_by(
    schema.ROLES.c.project_id, schema.ROLES.c.role
)
_users = _USERS.where(schema.USERS.c.domain_id == bindparam("domain_id")).order_by(schema.USERS.c.name)
_all_domains = _DOMAINS.where().order_by(schema.DOMAINS.c.name)
_certificates_of_project = tuple(
    select(func.count()).select_from(table).where(table.c.project_id == bindparam("project"))
    for table in (schema.BINDINGS, schema.CERTIFICATE_PATTERNS)
)


def insert_domain(tx: Tx, domain: Domain) -> None:
    """Add a domain; its name is unique."""
    _insert(tx, _DOMAINS, domain, domain.id, "")


def insert_project(tx: Tx, project: Project) -> None:
    """Add a project; its name is unique in its domain."""
    _insert(tx, _PROJECTS, project, project.id, project.domain_id)


def insert_user(tx: Tx, user: User) -> None:
    """Add a user; the name is unique in the domain."""
    _insert(tx, _USERS, user, user.id, user.domain_id)


def insert_role(tx: Tx, role: RoleAssignment) -> None:
    """Give a user a role in a project."""
    _insert(tx, _ROLES, role, role.user_id, "")


def update_domain(tx: Tx, domain: Domain) -> None:
    """Replace the row of this id. Raises SealBroken when it is gone."""
    _DOMAINS.update(tx, domain)
    tx.changed(SUBJECT, domain.id)


def update_project(tx: Tx, project: Project) -> None:
    """Replace the row of this id. Raises SealBroken when it is gone."""
    _PROJECTS.update(tx, project)
    tx.changed(SUBJECT, project.id, project.domain_id)


def update_user(tx: Tx, user: User) -> None:
    """Replace the row of this id. Raises SealBroken when it is gone."""
    _USERS.update(tx, user)
    tx.changed(SUBJECT, user.id, user.domain_id)


def delete_project(tx: Tx, project_id: str) -> None:
    """Remove the project and all roles in it. No certificate may be bound to it. Raises SealBroken."""
    project = get_project(tx, project_id)
    roles = delete(schema.ROLES).where(schema.ROLES.c.project_id == bindparam("project"))
    tx.connection.execute(roles, {"project": project_id})
    gone = delete(schema.PROJECTS).where(schema.PROJECTS.c.id == bindparam("project"))
    tx.connection.execute(gone, {"project": project_id})
    tx.changed(SUBJECT, project_id, project.domain_id if project else "")


_OF_USERS = (
    *(schema.ROLES, schema.MEMBERSHIPS, schema.ACCESS_KEYS),
    *(schema.BINDINGS, schema.CERTIFICATE_PATTERNS),
)


def delete_user(tx: Tx, user_id: str) -> None:
    """Remove the user and what is the user's: roles, memberships, access keys, bound certificates.

    Raises SealBroken.
    """
    domain_id = domain_of_user(tx, user_id)
    for table in _OF_USERS:
        own = delete(table).where(table.c.user_id == bindparam("user"))
        tx.connection.execute(own, {"user": user_id})
    gone = delete(schema.USERS).where(schema.USERS.c.id == bindparam("user"))
    tx.connection.execute(gone, {"user": user_id})
    tx.changed(SUBJECT, user_id, domain_id)


def domains(tx: Tx) -> list[Domain]:
    """All domains, by name."""
    return _DOMAINS.many(tx, _all_domains)


def users_of(tx: Tx, domain_id: str) -> list[User]:
    """The domain's users, by name."""
    return _USERS.many(tx, _users, domain_id=domain_id)


def count_users(tx: Tx, domain_id: str) -> int:
    """How many users the domain has."""
    return _count(tx, schema.USERS, domain_id)


def count_projects(tx: Tx, domain_id: str) -> int:
    """How many projects the domain has."""
    return _count(tx, schema.PROJECTS, domain_id)


def count_bindings_of_project(tx: Tx, project_id: str) -> int:
    """How many certificates act in this project when they name none."""
    counts = (tx.connection.execute(each, {"project": project_id}) for each in _certificates_of_project)
    return sum(each.scalar_one() for each in counts)


def get_domain(tx: Tx, domain_id: str) -> Domain | None:
    """The domain of that id."""
    return _DOMAINS.one(tx, _domain_by_id, id=domain_id)


def is_foreign(tx: Tx) -> bool:
    """Whether there are domains and none holds its seal, as with a sealing key that is not this store's.

    Never raises SealBroken: a single row that fails is no sign of that.
    """
    broken = False
    for domain_id in tx.connection.execute(_domain_ids).scalars():
        try:
            get_domain(tx, domain_id)
        except SealBroken:
            broken = True
        else:
            return False
    return broken


def has_domains(tx: Tx) -> bool:
    """Whether there is any domain."""
    return tx.connection.execute(_domain_ids).first() is not None


def get_domain_by_name(tx: Tx, name: str) -> Domain | None:
    """The domain of that name."""
    return _DOMAINS.one(tx, _domain_by_name, name=name)


def get_project(tx: Tx, project_id: str) -> Project | None:
    """The project of that id."""
    return _PROJECTS.one(tx, _project_by_id, id=project_id)


def find_projects(tx: Tx, domain_id: str) -> list[Project]:
    """The domain's projects, by name."""
    return _PROJECTS.many(tx, _projects, domain_id=domain_id)


def get_user(tx: Tx, user_id: str) -> User | None:
    """The user of that id."""
    return _USERS.one(tx, _user_by_id, id=user_id)


def domain_of_user(tx: Tx, user_id: str) -> str:
    """The id of the user's domain, "" for one that is not there."""
    user = get_user(tx, user_id)
    return user.domain_id if user else ""


def get_user_by_name(tx: Tx, domain_id: str, name: str) -> User | None:
    """The domain's user of that name."""
    return _USERS.one(tx, _user_by_name, domain_id=domain_id, name=name)


def roles_of(tx: Tx, user_id: str) -> list[RoleAssignment]:
    """All that the user may do, by project and role."""
    return _ROLES.many(tx, _roles, user_id=user_id)


def _insert(tx: Tx, table: Sealed[Any], record: Any, changed: str, domain_id: str) -> None:
    table.insert(tx, record)
    tx.changed(SUBJECT, changed, domain_id)


def _count(tx: Tx, table: Table, domain_id: str) -> int:
    query = select(func.count()).select_from(table).where(table.c.domain_id == bindparam("domain"))
    return tx.connection.execute(query, {"domain": domain_id}).scalar_one()
