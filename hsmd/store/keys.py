"""Keys in the store: the CMK's record, its wrapped versions, and how often each has encrypted.

A destroyed key stays as a tombstone (state 0): found by its id, but neither listed nor counted, and its
alias is free again. What a state means is the domain's; here count only `LIVING` and `PENDING_DELETION`.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sqlalchemy import Integer, Select, bindparam, func, literal_column, select

from hsmd.errors import ALIAS_IN_USE, Error
from hsmd.store import roots, schema
from hsmd.store.core import Tx
from hsmd.store.schema import KEYS, LIVING, PENDING_DELETION
from hsmd.store.seals import SealBroken, Sealed

SUBJECT = "keys"  # in the change feed
DESTROYED = 0  # the state of a tombstone, as `LIVING` has it


@dataclass(frozen=True, slots=True)
class Key:
    """A CMK. `created`, `deletion_date`, `rotation_due` and `expires` are milliseconds since 1970 UTC.

    `rotation_days` and `rotation_due` are None unless it rotates by itself, `expires` is None for material
    that stays, `keystore_id` for the default keystore, `primary_region` for a key that was never replicated.
    `frozen_from` is the state that a frozen key had before.
    """

    id: str
    project_id: str
    domain_id: str
    alias: str
    description: str
    spec: str
    usage: str
    origin: str
    state: int
    is_default: bool
    created: int
    deletion_date: int | None
    enterprise_project_id: str
    current_version: int
    rotation_days: int | None = None
    rotation_due: int | None = None
    expires: int | None = None
    keystore_id: str | None = None
    primary_region: str | None = None
    frozen_from: int | None = None


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """A version's material, wrapped by the root key of that label; `wrapped` is None when destroyed.

    Of a key in a dedicated keystore `wrapped` and `root_label` are empty: its token holds the material.
    `public_key` is the DER SubjectPublicKeyInfo of a key pair, `material_check` the keyed check value by
    which imported material is known again.
    """

    key_id: str
    version: int
    algorithm: str
    wrapped: bytes | None
    root_label: str
    created: int
    destroyed: int | None
    public_key: bytes | None = None
    material_check: bytes | None = None
    keystore_id: str | None = None


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """How many messages a version may have encrypted: what was reserved, used or not."""

    key_id: str
    version: int
    used: int


_KEYS = Sealed(KEYS, Key)
_VERSIONS = Sealed(schema.VERSIONS, KeyVersion)
_USAGE = Sealed(schema.USAGE, KeyUsage)

_by_id = _KEYS.where(KEYS.c.id == bindparam("key_id"))
_has_alias = (KEYS.c.project_id == bindparam("project_id"), KEYS.c.alias == bindparam("alias"), LIVING)
_by_alias = _KEYS.where(*_has_alias)
_alias_holder = select(KEYS.c.id).where(*_has_alias)
_alias_row = select(schema.ALIASES.c.key_id).where(
    schema.ALIASES.c.project_id == bindparam("project_id"), schema.ALIASES.c.alias == bindparam("alias")
)
_due = (
    select(KEYS.c.id)
    .where(PENDING_DELETION, KEYS.c.deletion_date <= bindparam("now"), KEYS.c.keystore_id.is_(None))
    .order_by(KEYS.c.deletion_date)
    .limit(bindparam("limit"))
)
_versions = _VERSIONS.where(schema.VERSIONS.c.key_id == bindparam("key_id"))
_version = _versions.where(schema.VERSIONS.c.version == bindparam("version"))
_usage = _USAGE.where(
    schema.USAGE.c.key_id == bindparam("key_id"), schema.USAGE.c.version == bindparam("version")
)


def insert_key(tx: Tx, key: Key, version: KeyVersion | None) -> None:
    """Add a key with its first version, or without one that is yet to come. Raises ALIAS_IN_USE."""
    check_alias_free(tx, key)
    _KEYS.insert(tx, key)
    if version is not None:
        roots.check_usable(tx, version.root_label)
        _VERSIONS.insert(tx, version)
        _USAGE.insert(tx, KeyUsage(version.key_id, version.version, used=0))
    tx.changed(SUBJECT, key.id)


def check_alias_free(tx: Tx, key: Key) -> None:
    """Raises ALIAS_IN_USE when another living key of the key's project has its alias."""
    # Asked before, not seen from the index's refusal: there is one writer at a time, so it stays true, and
    # the drivers tell which of the rules was hurt in different ways.
    if key.state != DESTROYED:
        values = {"project_id": key.project_id, "alias": key.alias}
        holder = tx.connection.execute(_alias_holder, values).scalar_one_or_none()
        if holder not in (None, key.id) or tx.connection.execute(_alias_row, values).first():
            raise Error(ALIAS_IN_USE, alias=key.alias)


def update_key(tx: Tx, key: Key) -> None:
    """Replace the row of this id. Raises ALIAS_IN_USE; SealBroken when the row is gone."""
    check_alias_free(tx, key)
    _KEYS.update(tx, key)
    tx.changed(SUBJECT, key.id)


def get_key(tx: Tx, key_id: str) -> Key | None:
    """The key, also as a tombstone. Raises SealBroken."""
    return _KEYS.one(tx, _by_id, key_id=key_id)


def get_key_by_alias(tx: Tx, project_id: str, alias: str) -> Key | None:
    """The living key of that alias. Raises SealBroken."""
    return _KEYS.one(tx, _by_alias, project_id=project_id, alias=alias)


def get_version(tx: Tx, key_id: str, version: int) -> KeyVersion | None:
    """A version, destroyed ones too. Raises SealBroken."""
    return _VERSIONS.one(tx, _version, key_id=key_id, version=version)


def list_keys(
    tx: Tx,
    project_id: str,
    *,
    limit: int | None = None,
    offset: int = 0,
    state: int | None = None,
    spec: str | None = None,
    enterprise: str | None = None,
    broken: list[SealBroken] | None = None,
) -> list[Key]:
    """Living keys of the project (and enterprise project) in the order of their making.

    Raises SealBroken, or with `broken` leaves those rows out and says there which.
    """
    query = _KEYS.where(KEYS.c.project_id == project_id, LIVING).order_by(KEYS.c.created, KEYS.c.id)
    return _KEYS.many(tx, _filtered(query, state, spec, enterprise).limit(limit).offset(offset), broken)


def count_keys(
    tx: Tx,
    project_id: str,
    *,
    state: int | None = None,
    spec: str | None = None,
    enterprise: str | None = None,
    custom_only: bool = False,
    at_most: int | None = None,
) -> int:
    """How many living keys the project has; `custom_only` leaves out default keys.

    With `at_most` counting stops there: enough to hold against a quota, however many there are.
    """
    wanted = {"state": state, "spec": spec, "enterprise_project_id": enterprise, "most": at_most}
    values = {name: value for name, value in wanted.items() if value is not None}
    counting = _counting(frozenset(values), custom_only=custom_only)
    number: int = tx.connection.execute(counting, values | {"project_id": project_id}).scalar_one()
    return number


def due_deletions(tx: Tx, now: int, *, limit: int = 1000) -> list[str]:
    """Ids of keys in the default keystore whose deletion was due at `now` (ms), longest due first.

    Ask again for more. Seals are not looked at here: a row that fails its own doesn't hide the others.
    """
    return list(tx.connection.execute(_due, {"now": now, "limit": limit}).scalars())


def destroy_versions(tx: Tx, key_id: str, now: int) -> None:
    """Forget the material of all versions: the rows stay, `wrapped` goes. Raises SealBroken.

    On SQLite the old content is overwritten in the file and, as far as other readers let, in its log.
    """
    for version in _VERSIONS.many(tx, _versions, key_id=key_id):
        if version.wrapped is not None:
            _VERSIONS.update(tx, replace(version, wrapped=None, destroyed=now))
    tx.scrub = True
    tx.changed(SUBJECT, key_id)


def reserve_usage(tx: Tx, key_id: str, version: int, block: int, limit: int) -> int:
    """Reserve `block` messages of the version's `limit`: how many are granted, 0 when it is used up.

    No change of the feed. Raises SealBroken, also when the count's row is gone.
    """
    usage = _USAGE.one(tx, _usage, key_id=key_id, version=version)
    if usage is None:
        raise SealBroken(schema.USAGE.name, f"{key_id}/{version}")
    granted = max(0, min(block, limit - usage.used))
    if granted:
        _USAGE.update(tx, replace(usage, used=usage.used + granted))
    return granted


def return_usage(tx: Tx, key_id: str, version: int, messages: int) -> None:
    """Give back messages that were reserved, and that nobody can have used. Raises SealBroken."""
    usage = _USAGE.one(tx, _usage, key_id=key_id, version=version)
    if usage is not None and messages:
        _USAGE.update(tx, replace(usage, used=max(0, usage.used - messages)))


@cache  # to build a query costs more than to run it
def _counting(given: frozenset[str], *, custom_only: bool) -> Select[Any]:
    """The query that counts by project and by what else is given, each by its name."""
    columns = (KEYS.c.project_id, KEYS.c.state, KEYS.c.spec, KEYS.c.enterprise_project_id)
    bound = [column == bindparam(column.name) for column in columns if column.name in given | {"project_id"}]
    query = select(KEYS.c.state).where(*bound, LIVING)
    if custom_only:
        query = query.where(KEYS.c.is_default == literal_column("0"))
    rows = (query.limit(bindparam("most", type_=Integer)) if "most" in given else query).subquery()
    return select(func.count()).select_from(rows)


def _filtered(query: Select[Any], state: int | None, spec: str | None, enterprise: str | None) -> Select[Any]:
    if state is not None:
        query = query.where(KEYS.c.state == state)
    if spec is not None:
        query = query.where(KEYS.c.spec == spec)
    if enterprise is not None:
        query = query.where(KEYS.c.enterprise_project_id == enterprise)
    return query
