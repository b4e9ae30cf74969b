"""Dedicated keystores in the store, and the drafts: of keys that are being made in them, and unmade."""

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, func, literal_column, or_, select

from hsmd.store.core import Tx
from hsmd.store.schema import KEYS, KEYSTORE_DRAFTS, KEYSTORES, LIVING, PENDING_DELETION
from hsmd.store.seals import Sealed

SUBJECT = "keystores"  # in the change feed


@dataclass(frozen=True, slots=True)
class Keystore:
    """A dedicated keystore. `cluster_id` names its token; `created` is in milliseconds since 1970 UTC."""

    id: str
    domain_id: str
    alias: str
    cluster_id: str
    enabled: bool
    created: int


@dataclass(frozen=True, slots=True)
class Draft:
    """An object in a keystore's token that no living key's row tells of, if it is there at all.

    Of a key that is being made it is written before the token is asked, and goes with the commit of the key's
    row. Of a deleted key it comes with the tombstone, and goes after the object.
    """

    key_id: str
    keystore_id: str
    created: int


_KEYSTORES = Sealed(KEYSTORES, Keystore)
_DRAFTS = Sealed(KEYSTORE_DRAFTS, Draft)

_by_id = _KEYSTORES.where(KEYSTORES.c.id == bindparam("keystore_id"))
_by_alias = _KEYSTORES.where(
    KEYSTORES.c.domain_id == bindparam("domain"), KEYSTORES.c.alias == bindparam("name")
)
_by_cluster = _KEYSTORES.where(KEYSTORES.c.cluster_id == bindparam("cluster"))
_of_domain = _KEYSTORES.where(KEYSTORES.c.domain_id == bindparam("domain"))
_count = select(func.count()).select_from(KEYSTORES).where(KEYSTORES.c.domain_id == bindparam("domain"))
_delete = delete(KEYSTORES).where(KEYSTORES.c.id == bindparam("keystore_id"))
_keys = (
    select(func.count())
    .select_from(KEYS)
    # said for the index's sake, which knows no other rows
    .where(KEYS.c.keystore_id == bindparam("keystore_id"), KEYS.c.keystore_id.is_not(None), LIVING)
)
_drafts = (
    select(func.count())
    .select_from(KEYSTORE_DRAFTS)
    .where(KEYSTORE_DRAFTS.c.keystore_id == bindparam("keystore_id"))
)
_draft = _DRAFTS.where(KEYSTORE_DRAFTS.c.key_id == bindparam("key"))
_delete_draft = delete(KEYSTORE_DRAFTS).where(KEYSTORE_DRAFTS.c.key_id == bindparam("key"))
_old_drafts = (
    select(KEYSTORE_DRAFTS.c.key_id)
    .join(KEYSTORES, KEYSTORES.c.id == KEYSTORE_DRAFTS.c.keystore_id)
    .outerjoin(KEYS, KEYS.c.id == KEYSTORE_DRAFTS.c.key_id)
    .where(
        KEYSTORES.c.cluster_id == bindparam("cluster"),
        or_(KEYSTORE_DRAFTS.c.created < bindparam("before"), KEYS.c.state == literal_column("0")),
    )
    .order_by(KEYSTORE_DRAFTS.c.created)
    .limit(bindparam("limit"))
)
_due = (
    select(KEYS.c.id)
    .join(KEYSTORES, KEYSTORES.c.id == KEYS.c.keystore_id)
    .where(
        PENDING_DELETION,
        KEYS.c.deletion_date <= bindparam("now"),
        KEYSTORES.c.cluster_id == bindparam("cluster"),
    )
    .order_by(KEYS.c.deletion_date)
    .limit(bindparam("limit"))
)
_clusters = select(KEYSTORES.c.cluster_id)


def insert_keystore(tx: Tx, keystore: Keystore) -> None:
    """Add a keystore."""
    _KEYSTORES.insert(tx, keystore)
    tx.changed(SUBJECT, keystore.id)


def update_keystore(tx: Tx, keystore: Keystore) -> None:
    """Replace the row of this id. Raises SealBroken when it is gone."""
    _KEYSTORES.update(tx, keystore)
    tx.changed(SUBJECT, keystore.id)


def delete_keystore(tx: Tx, keystore_id: str) -> None:
    """Remove the keystore."""
    tx.connection.execute(_delete, {"keystore_id": keystore_id})
    tx.changed(SUBJECT, keystore_id)


def get_keystore(tx: Tx, keystore_id: str) -> Keystore | None:
    """The keystore. Raises SealBroken."""
    return _KEYSTORES.one(tx, _by_id, keystore_id=keystore_id)


def with_alias(tx: Tx, domain_id: str, alias: str) -> Keystore | None:
    """The domain's keystore of that alias. Raises SealBroken."""
    return _KEYSTORES.one(tx, _by_alias, domain=domain_id, name=alias)


def on_cluster(tx: Tx, cluster_id: str) -> Keystore | None:
    """The one keystore, of whatever domain, on that cluster. Raises SealBroken."""
    return _KEYSTORES.one(tx, _by_cluster, cluster=cluster_id)


def list_keystores(tx: Tx, domain_id: str, *, limit: int, offset: int) -> list[Keystore]:
    """The domain's keystores in the order of their making. Raises SealBroken."""
    page = _of_domain.order_by(KEYSTORES.c.created, KEYSTORES.c.id).limit(limit).offset(offset)
    return _KEYSTORES.many(tx, page, domain=domain_id)


def count_keystores(tx: Tx, domain_id: str) -> int:
    """How many keystores the domain has."""
    return tx.connection.execute(_count, {"domain": domain_id}).scalar_one()


def clusters_in_use(tx: Tx) -> set[str]:
    """The clusters of all keystores."""
    return set(tx.connection.execute(_clusters).scalars())


def content(tx: Tx, keystore_id: str) -> int:
    """How many keys it holds, those that wait for their deletion too, and drafts."""
    values = {"keystore_id": keystore_id}
    return sum(tx.connection.execute(each, values).scalar_one() for each in (_keys, _drafts))


def due_deletions(tx: Tx, cluster_id: str, now: int, *, limit: int = 1000) -> list[str]:
    """As keys.due_deletions, of the keys in the keystore on that cluster."""
    values = {"cluster": cluster_id, "now": now, "limit": limit}
    return list(tx.connection.execute(_due, values).scalars())


def insert_draft(tx: Tx, draft: Draft) -> None:
    """Add a draft."""
    _DRAFTS.insert(tx, draft)


def get_draft(tx: Tx, key_id: str) -> Draft | None:
    """The key's draft. Raises SealBroken."""
    return _DRAFTS.one(tx, _draft, key=key_id)


def delete_draft(tx: Tx, key_id: str) -> None:
    """Remove the key's draft, if there is one."""
    tx.connection.execute(_delete_draft, {"key": key_id})


def old_drafts(tx: Tx, cluster_id: str, before: int, *, limit: int = 1000) -> list[str]:
    """Key ids of the drafts on that cluster that are older, or of tombstones; seals are not looked at."""
    values = {"cluster": cluster_id, "before": before, "limit": limit}
    return list(tx.connection.execute(_old_drafts, values).scalars())
