"""Rotation: a key gets a new version to encrypt with, and keeps the old ones to decrypt with for ever.

A key rotates by itself when it is enabled and its day has come; the day of one that is not enabled waits, and
counts when it is enabled again. However long a rotation is overdue, it is one rotation. On demand a key may
rotate at any time, which leaves the day of the next one as it is.

A key with replicas rotates in its primary region only, and only when every other region has the new version
(replicas.py): while one can't be reached it doesn't, and a rotation that was due is made later.
"""

import uuid
from dataclasses import dataclass, replace

from hsmd.algorithms import AES_256, KEY_SPECS
from hsmd.domain import access, keys, replicas
from hsmd.domain.core import DAY_MILLIS, Call
from hsmd.domain.replicas import Pick
from hsmd.errors import (
    ASYMMETRIC_NOT_ROTATED,
    EXTERNAL_NOT_ROTATED,
    HMAC_KEY_REFUSED,
    INTERVAL_INVALID,
    KEY_PENDING_DELETION,
    KEYSTORE_NOT_ROTATED,
    RATE_EXCEEDED,
    ROTATION_IS_OFF,
    ROTATION_IS_ON,
    UNAVAILABLE,
    Error,
)
from hsmd.keyring import with_token_key
from hsmd.store import Tx
from hsmd.store import keys as key_rows
from hsmd.store import rotation as rows
from hsmd.store.keys import Key, KeyVersion

DEFAULT_DAYS = 365
_DAYS = range(30, 366)
# Versions stay for ever, so what a caller can add to a key must have a bound. DEW names none.
ROTATIONS_PER_DAY = 100
_MATERIALS = 1000
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Material:
    """A version as its history tells it; `id` is a UUID, times in milliseconds since 1970 UTC."""

    id: str
    created: int
    expires: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """`days` is the interval, or the one that it would have; `last` is None when it never rotated."""

    enabled: bool
    days: int
    last: int | None
    rotations: int
    materials: list[Material]


def enable(call: Call, reference: str) -> None:
    """From now on it rotates every 365 days. DEW: enable-key-rotation."""
    with call.change() as tx:
        key = access.usable(_rotatable(access.key_for_change(call, tx, reference)))
        replicas.settled(call, tx, key)
        if key.rotation_days is not None:
            raise Error(ROTATION_IS_ON, key=key.id)
        _schedule(call, tx, key, DEFAULT_DAYS)


def disable(call: Call, reference: str) -> None:
    """It does not rotate by itself any more. DEW: disable-key-rotation."""
    with call.change() as tx:
        key = _rotating(call, tx, reference)
        key_rows.update_key(tx, replace(key, rotation_days=None, rotation_due=None))


def set_interval(call: Call, reference: str, days: int) -> None:
    """The next rotation is due in `days` (30 to 365), and so on. DEW: update-key-rotation-interval."""
    if days not in _DAYS:
        raise Error(INTERVAL_INVALID)
    with call.change() as tx:
        _schedule(call, tx, _rotating(call, tx, reference), days)


def status(call: Call, reference: str) -> Status:
    """DEW: get-key-rotation-status. Of more than 1000 versions only the newest are told."""
    key = access.key(call, reference)
    with call.read() as tx:
        versions = rows.newest_versions(tx, key, _MATERIALS)
    present = [each for each in reversed(versions) if each.wrapped is not None]
    newest = versions[0] if versions else None
    return Status(
        enabled=key.rotation_days is not None,
        days=key.rotation_days or DEFAULT_DAYS,
        last=newest.created if newest and newest.version > 1 else None,
        rotations=max(newest.version - 1, 0) if newest else 0,
        materials=[Material(_material_id(each), each.created, key.expires) for each in present],
    )


def rotate(call: Call, reference: str) -> Key:
    """A new current version, now. DEW: rotate-on-demand.

    Raises Error(RATE_EXCEEDED) for more than 100 rotations of a key within 24 hours.
    """
    known = access.usable(_rotatable(access.key(call, reference)))
    replicas.check_primary(call, known)

    def pick(tx: Tx) -> tuple[Key, int | None]:
        key = access.usable(_rotatable(access.key_for_change(call, tx, reference)))
        if rows.rotations_since(tx, key, call.core.clock() - DAY_MILLIS) >= ROTATIONS_PER_DAY:
            raise Error(
                RATE_EXCEEDED, reason=f"the key was rotated {ROTATIONS_PER_DAY} times within 24 hours"
            )
        return key, key.rotation_due

    return _rotated(call, known.id, pick) or known


def due(call: Call) -> list[str]:
    """Ids of the keys whose day has come."""
    with call.read() as tx:
        return rows.due_rotations(tx, call.core.clock())


def rotate_due(call: Call, key_id: str) -> bool:
    """Rotate a key whose day has come. False when it is not due (any more)."""
    with call.read() as tx:
        if _days_if_due(call, key_rows.get_key(tx, key_id)) is None:
            return False

    def pick(tx: Tx) -> tuple[Key, int | None] | None:
        key = key_rows.get_key(tx, key_id)
        days = _days_if_due(call, key)
        if key is None or days is None:
            return None
        call.caller = call.caller._replace(domain_id=key.domain_id, project_id=key.project_id)
        return key, call.core.clock() + days * DAY_MILLIS

    return _rotated(call, key_id, pick) is not None


def _rotated(call: Call, key_id: str, pick: Pick) -> Key | None:
    """The key with its new version; None when it is not to be rotated any more."""
    label, wrapped = _new_material(call)
    for _ in range(_ATTEMPTS):
        prepared = replicas.prepare(call, key_id, pick, wrapped, label)
        # Not `call.change`: what another call or node did meanwhile is no change, and leaves no record.
        with call.core.store.write() as tx:
            picked = pick(tx)
            if picked is None:
                return None
            key, next_due = picked
            found = replicas.settled(call, tx, key)
            if prepared is None and not found:
                key = _advance(call, tx, key, _version(key, wrapped, label), next_due)
            elif prepared is not None and replicas.is_prepared(tx, key, found, prepared):
                key = _advance(call, tx, key, prepared.version, next_due)
            else:
                continue
            call.check_allowed()
            call.before_commit()
        if prepared is not None:
            replicas.tell_if_possible(call, key)
        return key
    raise Error(UNAVAILABLE, reason="the key changes too often just now")


def _rotatable(key: Key) -> Key:
    """The key itself, if it is of the kind that rotates at all; else the fault of its kind."""
    row = KEY_SPECS[keys.custom(key).spec]
    if key.origin != "kms":
        raise Error(EXTERNAL_NOT_ROTATED, key=key.id)
    if row.asymmetric:
        raise Error(ASYMMETRIC_NOT_ROTATED, key=key.id)
    if key.keystore_id is not None:
        raise Error(KEYSTORE_NOT_ROTATED, key=key.id)
    if row is not AES_256:
        raise Error(HMAC_KEY_REFUSED, key=key.id)
    return key


def _rotating(call: Call, tx: Tx, reference: str) -> Key:
    """A key that rotates by itself; its settings may change while it is disabled."""
    key = _rotatable(access.key_for_change(call, tx, reference))
    replicas.settled(call, tx, key)
    if key.state == access.PENDING_DELETION:
        raise Error(KEY_PENDING_DELETION, key=key.id)
    if key.rotation_days is None:
        raise Error(ROTATION_IS_OFF, key=key.id)
    return key


def _schedule(call: Call, tx: Tx, key: Key, days: int) -> None:
    next_due = call.core.clock() + days * DAY_MILLIS
    key_rows.update_key(tx, replace(key, rotation_days=days, rotation_due=next_due))


def _new_material(call: Call) -> tuple[str, bytes]:
    """An AES-256 key, born in the token and wrapped there, behind the label of the root key that did.

    Made before the store is held for a change.
    """
    token, label = call.core.token, call.core.root_label()
    return label, with_token_key(token, label, lambda root: token.generate(AES_256, root))


def _version(key: Key, wrapped: bytes, label: str) -> KeyVersion:
    return KeyVersion(
        key_id=key.id,
        version=key.current_version + 1,
        algorithm=AES_256.name,
        wrapped=wrapped,
        root_label=label,
        created=0,
        destroyed=None,
    )


def _advance(call: Call, tx: Tx, key: Key, version: KeyVersion, next_due: int | None) -> Key:
    """The version, which may have waited for its time, becomes the key's current one."""
    key = replace(key, current_version=version.version, rotation_due=next_due)
    rows.rotate(tx, key, replace(version, created=call.core.clock()))
    call.resource, call.key_version = key.id, version.version
    return key


def _days_if_due(call: Call, key: Key | None) -> int | None:
    """The interval of an enabled key whose day has come."""
    if key is None or key.state != access.ENABLED or key.rotation_due is None:
        return None
    return key.rotation_days if key.rotation_due <= call.core.clock() else None


def _material_id(version: KeyVersion) -> str:
    return str(uuid.uuid5(uuid.UUID(version.key_id), str(version.version)))
