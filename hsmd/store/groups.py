"""Groups of users in the store, and who is in them. Their changes empty what processes have cached."""

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, func, select

from hsmd.store import identity
from hsmd.store.core import Tx
from hsmd.store.identity import SUBJECT, User
from hsmd.store.schema import GROUPS, MEMBERSHIPS
from hsmd.store.seals import Sealed


@dataclass(frozen=True, slots=True)
class Group:
    """Users of a domain who are given the same roles. `created` in ms since 1970 UTC."""

    id: str
    domain_id: str
    name: str
    description: str
    created: int


@dataclass(frozen=True, slots=True)
class Membership:
    """That a user is in a group."""

    group_id: str
    user_id: str


_GROUPS = Sealed(GROUPS, Group)
_MEMBERSHIPS = Sealed(MEMBERSHIPS, Membership)

_by_id = _GROUPS.where(GROUPS.c.id == bindparam("group"))
_by_name = _GROUPS.where(GROUPS.c.domain_id == bindparam("domain"), GROUPS.c.name == bindparam("wanted"))
_of_domain = _GROUPS.where(GROUPS.c.domain_id == bindparam("domain")).order_by(GROUPS.c.name)
_count_of_domain = select(func.count()).select_from(GROUPS).where(GROUPS.c.domain_id == bindparam("domain"))
_delete = delete(GROUPS).where(GROUPS.c.id == bindparam("group"))

_of_user = _MEMBERSHIPS.where(MEMBERSHIPS.c.user_id == bindparam("user")).order_by(MEMBERSHIPS.c.group_id)
_of_group = _MEMBERSHIPS.where(MEMBERSHIPS.c.group_id == bindparam("group")).order_by(MEMBERSHIPS.c.user_id)
_both = (MEMBERSHIPS.c.group_id == bindparam("group"), MEMBERSHIPS.c.user_id == bindparam("user"))
_one = _MEMBERSHIPS.where(*_both)
_delete_one = delete(MEMBERSHIPS).where(*_both)
_delete_of_group = delete(MEMBERSHIPS).where(MEMBERSHIPS.c.group_id == bindparam("group"))


def insert_group(tx: Tx, group: Group) -> None:
    """Add a group; its name is unique in its domain."""
    _GROUPS.insert(tx, group)
    tx.changed(SUBJECT, group.id, group.domain_id)


def update_group(tx: Tx, group: Group) -> None:
    """Replace the row of this id. Raises SealBroken when it is gone."""
    _GROUPS.update(tx, group)
    tx.changed(SUBJECT, group.id, group.domain_id)


def delete_group(tx: Tx, group_id: str) -> None:
    """Remove the group, and its members from it. Raises SealBroken."""
    domain_id = _domain_of(tx, group_id)
    tx.connection.execute(_delete_of_group, {"group": group_id})
    tx.connection.execute(_delete, {"group": group_id})
    tx.changed(SUBJECT, group_id, domain_id)


def get_group(tx: Tx, group_id: str) -> Group | None:
    """The group of that id. Raises SealBroken."""
    return _GROUPS.one(tx, _by_id, group=group_id)


def get_group_by_name(tx: Tx, domain_id: str, name: str) -> Group | None:
    """The domain's group of that name. Raises SealBroken."""
    return _GROUPS.one(tx, _by_name, domain=domain_id, wanted=name)


def find_groups(tx: Tx, domain_id: str) -> list[Group]:
    """The domain's groups, by name. Raises SealBroken."""
    return _GROUPS.many(tx, _of_domain, domain=domain_id)


def count_groups(tx: Tx, domain_id: str) -> int:
    """How many groups the domain has."""
    return tx.connection.execute(_count_of_domain, {"domain": domain_id}).scalar_one()


def add_member(tx: Tx, membership: Membership) -> None:
    """Put the user into the group; nothing happens for one who is in it."""
    if not is_member(tx, membership):
        _MEMBERSHIPS.insert(tx, membership)
        tx.changed(SUBJECT, membership.user_id, _domain_of(tx, membership.group_id))


def remove_member(tx: Tx, membership: Membership) -> None:
    """Take the user out of the group."""
    tx.connection.execute(_delete_one, {"group": membership.group_id, "user": membership.user_id})
    tx.changed(SUBJECT, membership.user_id, _domain_of(tx, membership.group_id))


def is_member(tx: Tx, membership: Membership) -> bool:
    """Whether the user is in the group. Raises SealBroken."""
    found = _MEMBERSHIPS.one(tx, _one, group=membership.group_id, user=membership.user_id)
    return found is not None


def groups_of(tx: Tx, user_id: str) -> list[str]:
    """The ids of the groups that the user is in. Raises SealBroken."""
    return [each.group_id for each in _MEMBERSHIPS.many(tx, _of_user, user=user_id)]


def members_of(tx: Tx, group_id: str) -> list[User]:
    """The users in the group, by name. Raises SealBroken."""
    found = (identity.get_user(tx, each.user_id) for each in _MEMBERSHIPS.many(tx, _of_group, group=group_id))
    return sorted((user for user in found if user is not None), key=lambda user: user.name)


def _domain_of(tx: Tx, group_id: str) -> str:
    """The id of the group's domain, and so of its members'; "" for a group that is not there."""
    group = get_group(tx, group_id)
    return group.domain_id if group else ""
