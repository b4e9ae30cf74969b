"""Access points: machines, clusters and programs that key policies name, and how each proves that it is it.

A Custom access point has a key pair that is born in the HSM. Its private key is given to who may have it, as
often as asked for, and is kept wrapped by the root key in between. ECS machines and CCE clusters can be named
as well; their evidence is refused (capsules.proto), so by now they open nothing.
"""

import hashlib
from dataclasses import dataclass, replace

from hsmd.algorithms import KEY_SPECS
from hsmd.domain import keyspaces
from hsmd.domain.core import Call
from hsmd.domain.keyspaces import Page
from hsmd.errors import (
    ACCESS_POINT_NOT_DISABLED,
    ACCESS_POINT_NOT_ENABLED,
    KEYSPACE_NAME_IN_USE,
    KEYSPACE_QUOTA_EXCEEDED,
    KEYSPACE_THING_NOT_FOUND,
    PARAMETER_INVALID,
    PARAMETER_MISSING,
    Error,
)
from hsmd.hsm import BadData, Pair
from hsmd.keyring import with_token_key
from hsmd.store import Tx
from hsmd.store import access_points as rows
from hsmd.store.access_points import AccessPoint

ECS, CCE, CUSTOM = 1, 2, 3
POINTS_PER_PROJECT = 100

_PAIR = KEY_SPECS["EC_P256"]
# What is due besides the name, by kind: (identity, cluster_id).
_DUE = {ECS: (True, False), CCE: (True, True), CUSTOM: (False, False)}
_NAMES = {ECS: "ECS", CCE: "CCE", CUSTOM: "Custom"}


@dataclass(frozen=True, slots=True)
class Draft:
    """What is asked for; `kind` is DEW's type."""

    keyspace_id: str
    name: str
    kind: int
    identity: str = ""
    cluster_id: str = ""
    description: str = ""


def create(call: Call, draft: Draft) -> AccessPoint:
    """A new enabled access point. DEW: create access point."""
    keyspace = keyspaces.checked_id("keyspace_id", draft.keyspace_id)
    keyspaces.check_name("access_point_name", draft.name)
    keyspaces.check_description(draft.description)
    _check_evidence(draft)
    label = call.core.root_label()
    pair = _new_pair(call, label) if draft.kind == CUSTOM else None
    now = call.core.clock()
    point = AccessPoint(
        id=keyspaces.new_id(call),
        project_id=call.caller.project_id,
        domain_id=call.caller.domain_id,
        keyspace_id=keyspace,
        name=draft.name,
        kind=draft.kind,
        identity=draft.identity,
        cluster_id=draft.cluster_id,
        description=draft.description,
        enabled=True,
        created_by=call.caller.user_id,
        created=now,
        updated=now,
        wrapped=pair.wrapped if pair else None,
        root_label=label if pair else None,
        public_key=pair.public_key if pair else None,
        fingerprint=fingerprint(pair.public_key) if pair else None,
    )
    with call.change() as tx:
        if rows.count(tx, point.project_id) >= POINTS_PER_PROJECT:
            raise Error(KEYSPACE_QUOTA_EXCEEDED, quota=POINTS_PER_PROJECT, what="access points")
        if rows.by_name(tx, point.project_id, keyspace, point.name) is not None:
            raise Error(KEYSPACE_NAME_IN_USE, name=point.name, what="an access point")
        rows.insert(tx, point)
        call.resource = point.id
    return point


def page(call: Call, keyspace_id: str, *, limit: int | None, marker: str) -> Page[AccessPoint]:
    """The keyspace's access points behind `marker`, by id. DEW: list access points."""
    keyspace = keyspaces.checked_id("keyspace_id", keyspace_id)
    size, after = keyspaces.page_bounds(limit, marker)
    with call.read() as tx:
        found = rows.page(tx, call.caller.project_id, keyspace, after=after, limit=size + 1)
    return keyspaces.cut(found, size)


def delete(call: Call, point_id: str) -> None:
    """DEW: delete access point."""
    with call.change() as tx:
        rows.remove(tx, _own(call, tx, point_id))


def enable(call: Call, point_id: str) -> None:
    """DEW: enable access point."""
    with call.change() as tx:
        point = _own(call, tx, point_id)
        if point.enabled:
            raise Error(ACCESS_POINT_NOT_DISABLED, id=point.id)
        rows.update(tx, replace(point, enabled=True, updated=call.core.clock()))


def disable(call: Call, point_id: str) -> None:
    """DEW: disable access point."""
    with call.change() as tx:
        point = _own(call, tx, point_id)
        if not point.enabled:
            raise Error(ACCESS_POINT_NOT_ENABLED, id=point.id)
        rows.update(tx, replace(point, enabled=False, updated=call.core.clock()))


def private_key(call: Call, point_id: str) -> tuple[str, bytes]:
    """The id and the private key of a Custom access point, DER PKCS#8. DEW: get-privatekey."""
    with call.read() as tx:
        point = _own(call, tx, point_id)
    if point.wrapped is None or point.root_label is None:
        reason = "only Custom access points have a private key"
        raise Error(PARAMETER_INVALID, name="access_point_id", reason=reason)
    token, wrapped = call.core.token, point.wrapped
    try:
        private, public = with_token_key(
            token, point.root_label, lambda root: token.disclose_pair(_PAIR, wrapped, root)
        )
    except BadData as error:  # the store's fault, never the caller's
        raise LookupError(f"the private key of {point.id} is not wrapped by {point.root_label}") from error
    if public != point.public_key:
        raise LookupError(f"the private key of {point.id} is another one's")
    return point.id, private


def fingerprint(public_key: bytes) -> str:
    """What finds an access point by its public key."""
    return hashlib.sha256(public_key).hexdigest()


def _own(call: Call, tx: Tx, point_id: str) -> AccessPoint:
    wanted = keyspaces.checked_id("access_point_id", point_id)
    point = rows.get(tx, call.caller.project_id, wanted)
    if point is None:
        raise Error(KEYSPACE_THING_NOT_FOUND, what="access point", id=wanted)
    call.resource = point.id
    return point


def _check_evidence(draft: Draft) -> None:
    """What proves its identity later must be there, and nothing that would be looked at by nobody."""
    given = {"identity": draft.identity, "cluster_id": draft.cluster_id}
    for (name, value), due in zip(given.items(), _DUE[draft.kind], strict=True):
        if due and not value:
            raise Error(PARAMETER_MISSING, name=name)
        if value and not due:
            reason = f"{_NAMES[draft.kind]} access points have none"
            raise Error(PARAMETER_INVALID, name=name, reason=reason)


def _new_pair(call: Call, label: str) -> Pair:
    token = call.core.token
    return with_token_key(token, label, lambda root: token.generate_pair(_PAIR, root))
