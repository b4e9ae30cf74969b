"""Grants in the store. The feed tells a change of them as one of their key: all cached of it goes."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, or_, select

from hsmd.store import keys
from hsmd.store.core import Tx
from hsmd.store.schema import GRANTS
from hsmd.store.seals import Sealed


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave for a principal to use a key. `created` is in milliseconds since 1970 UTC.

    `project_id` is the key's, `grantee_type` "user" or "domain", `retiring` a user or "", `issuing` the user
    who made it, `operations` sorted and separated by a space.
    """

    id: str
    key_id: str
    project_id: str
    name: str
    grantee: str
    grantee_type: str
    retiring: str
    issuing: str
    operations: str
    created: int


_GRANTS = Sealed(GRANTS, Grant)

_by_id = _GRANTS.where(GRANTS.c.id == bindparam("grant_id"))
_of_key = _GRANTS.where(GRANTS.c.key_id == bindparam("key"))
_count_of_key = select(func.count()).select_from(GRANTS).where(GRANTS.c.key_id == bindparam("key"))
_retirable_by = or_(
    GRANTS.c.retiring == bindparam("user"),
    GRANTS.c.issuing == bindparam("user"),
    and_(
        or_(
            and_(GRANTS.c.grantee == bindparam("user"), GRANTS.c.grantee_type == "user"),
            and_(GRANTS.c.grantee == bindparam("domain"), GRANTS.c.grantee_type == "domain"),
        ),
        GRANTS.c.operations.contains("retire-grant"),
    ),
)
_retirable = _GRANTS.where(_retirable_by)
_count_retirable = select(func.count()).select_from(GRANTS).where(_retirable_by)
_delete = delete(GRANTS).where(GRANTS.c.id == bindparam("grant_id"))
_delete_of_key = delete(GRANTS).where(GRANTS.c.key_id == bindparam("key"))


def insert_grant(tx: Tx, grant: Grant) -> None:
    """Add a grant."""
    _GRANTS.insert(tx, grant)
    tx.changed(keys.SUBJECT, grant.key_id)


def get_grant(tx: Tx, grant_id: str) -> Grant | None:
    """The grant. Raises SealBroken."""
    return _GRANTS.one(tx, _by_id, grant_id=grant_id)


def grants_of_key(tx: Tx, key_id: str, *, limit: int | None = None, offset: int = 0) -> list[Grant]:
    """The key's grants in the order of their making. Raises SealBroken."""
    return _GRANTS.many(tx, _page(_of_key, limit, offset), key=key_id)


def count_of_key(tx: Tx, key_id: str) -> int:
    """How many grants the key has."""
    return tx.connection.execute(_count_of_key, {"key": key_id}).scalar_one()


def retirable(tx: Tx, user_id: str, domain_id: str, *, limit: int, offset: int) -> list[Grant]:
    """The grants that this user may retire, in the order of their making. Raises SealBroken.

    They name it for that, were made by it, or are given to it or its domain with leave to retire.
    """
    return _GRANTS.many(tx, _page(_retirable, limit, offset), user=user_id, domain=domain_id)


def count_retirable(tx: Tx, user_id: str, domain_id: str) -> int:
    """How many those are."""
    return tx.connection.execute(_count_retirable, {"user": user_id, "domain": domain_id}).scalar_one()


def delete_grant(tx: Tx, grant: Grant) -> None:
    """Remove the grant."""
    tx.connection.execute(_delete, {"grant_id": grant.id})
    tx.changed(keys.SUBJECT, grant.key_id)


def delete_of_key(tx: Tx, key_id: str) -> None:
    """Remove all grants of the key."""
    tx.connection.execute(_delete_of_key, {"key": key_id})
    tx.changed(keys.SUBJECT, key_id)


def _page(query: Any, limit: int | None, offset: int) -> Any:
    return query.order_by(GRANTS.c.created, GRANTS.c.id).limit(limit).offset(offset)
