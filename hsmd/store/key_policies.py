"""Key policies in the store. Nobody keeps them in memory, so they write nothing to the change feed."""

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, func, select

from hsmd.store.core import Tx
from hsmd.store.schema import KEY_POLICIES
from hsmd.store.seals import Sealed


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """Who may open capsules bound to it, and when. Times are in milliseconds since 1970 UTC.

    `terms` is JSON text, as domain/key_policies.py writes it; `accessed` is when it last let one be opened.
    """

    id: str
    project_id: str
    domain_id: str
    keyspace_id: str
    name: str
    terms: str
    description: str
    created_by: str
    created: int
    updated: int
    accessed: int | None = None


_POLICIES = Sealed(KEY_POLICIES, KeyPolicy)

_of_project = KEY_POLICIES.c.project_id == bindparam("project")
_of_keyspace = (_of_project, KEY_POLICIES.c.keyspace_id == bindparam("keyspace"))
_by_id = _POLICIES.where(_of_project, KEY_POLICIES.c.id == bindparam("policy"))
_by_name = _POLICIES.where(*_of_keyspace, KEY_POLICIES.c.name == bindparam("called"))
_page = _POLICIES.where(*_of_keyspace, KEY_POLICIES.c.id > bindparam("after")).order_by(KEY_POLICIES.c.id)
_count = select(func.count()).select_from(KEY_POLICIES).where(_of_project)
_delete = delete(KEY_POLICIES).where(KEY_POLICIES.c.id == bindparam("policy"))


def insert(tx: Tx, policy: KeyPolicy) -> None:
    """Add a policy."""
    _POLICIES.insert(tx, policy)


def get(tx: Tx, project_id: str, policy_id: str) -> KeyPolicy | None:
    """The project's policy of that id. Raises SealBroken."""
    return _POLICIES.one(tx, _by_id, project=project_id, policy=policy_id)


def by_name(tx: Tx, project_id: str, keyspace_id: str, name: str) -> KeyPolicy | None:
    """The keyspace's policy of that name. Raises SealBroken."""
    return _POLICIES.one(tx, _by_name, project=project_id, keyspace=keyspace_id, called=name)


def page(tx: Tx, project_id: str, keyspace_id: str, *, after: str, limit: int) -> list[KeyPolicy]:
    """The keyspace's policies behind that id, by id. Raises SealBroken."""
    return _POLICIES.many(tx, _page.limit(limit), project=project_id, keyspace=keyspace_id, after=after)


def count(tx: Tx, project_id: str) -> int:
    """How many policies the project has, in all its keyspaces."""
    return tx.connection.execute(_count, {"project": project_id}).scalar_one()


def update(tx: Tx, policy: KeyPolicy) -> None:
    """Replace the policy of this id. Raises SealBroken when it is gone."""
    _POLICIES.update(tx, policy)


def remove(tx: Tx, policy: KeyPolicy) -> None:
    """Take it out."""
    tx.connection.execute(_delete, {"policy": policy.id})
