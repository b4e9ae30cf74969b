"""Dedicated keystores: made on a configured token by a domain that may, switched on and off, deleted.

What is in one, and how that is used, is kept.py's.
"""

import re
import uuid
from dataclasses import dataclass, replace

from hsmd.domain.core import Call
from hsmd.errors import (
    KEYSTORE_ALIAS_IN_USE,
    KEYSTORE_ALIAS_INVALID,
    KEYSTORE_NOT_DISABLED,
    KEYSTORE_NOT_ENABLED,
    KEYSTORE_OFFSET_INVALID,
    KEYSTORE_REFUSED,
    KEYSTORES_EXCEEDED,
    LIMIT_INVALID,
    PARAMETER_INVALID,
    PARAMETER_MISSING,
    Error,
)
from hsmd.store import Tx
from hsmd.store import keystores as rows
from hsmd.store.keystores import Keystore

KIND = "DHSM"  # DEW's name for a keystore on an HSM of one's own, the only kind here

_ALIAS = re.compile(r"[a-zA-Z0-9:/_-]{1,255}")
_CERTIFICATE = re.compile(r"[A-Za-z0-9+/= \r\n-]{0,16384}")
_ABSENT = "there is no such keystore"
_PAGE = 10
_LARGEST_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the domain's keystores, and how many it has."""

    keystores: list[Keystore]
    total: int


def create(
    call: Call, *, alias: str, cluster_id: str, hsm_cluster_id: str, certificate: str, kind: str
) -> Keystore:
    """A new enabled keystore on the cluster, by either of its names. DEW: create-keystore.

    A cluster that is not configured and one that the domain may not use look the same. The `certificate` of
    its CA is of no use here: how its token is reached is configured, and no caller's to say.
    """
    if not _ALIAS.fullmatch(alias):
        raise Error(KEYSTORE_ALIAS_INVALID)
    if not _CERTIFICATE.fullmatch(certificate):
        raise Error(PARAMETER_INVALID, name="hsm_ca_cert", reason="a certificate in PEM or base64 is due")
    if kind not in ("", KIND):
        raise Error(KEYSTORE_REFUSED, reason=f"{kind} is not offered here, {KIND} is")
    keystore = Keystore(
        id=str(uuid.UUID(bytes=call.core.token.random(16), version=4)),
        domain_id=call.caller.domain_id,
        alias=alias,
        cluster_id=_cluster(call, cluster_id, hsm_cluster_id),
        enabled=True,
        created=call.core.clock(),
    )
    quota = call.core.limits.keystores_per_domain
    with call.change() as tx:
        if rows.with_alias(tx, keystore.domain_id, alias) is not None:
            raise Error(KEYSTORE_ALIAS_IN_USE, alias=alias)
        if rows.on_cluster(tx, keystore.cluster_id) is not None:
            raise Error(KEYSTORE_REFUSED, reason=f"the cluster {keystore.cluster_id} has a keystore already")
        if rows.count_keystores(tx, keystore.domain_id) >= quota:
            raise Error(KEYSTORES_EXCEEDED, quota=quota)
        rows.insert_keystore(tx, keystore)
        call.resource = keystore.id
    return keystore


def show(call: Call, keystore_id: str) -> Keystore:
    """DEW: show-keystore."""
    with call.read() as tx:
        return _own(call, rows.get_keystore(tx, keystore_id))


def list_of_domain(call: Call, *, limit: int | None, offset: int | None) -> Page:
    """The domain's keystores from position `offset` on, oldest first. DEW: list-keystores."""
    limit, offset = _PAGE if limit is None else limit, offset or 0
    if not 1 <= limit <= _LARGEST_PAGE:
        raise Error(LIMIT_INVALID)
    if offset < 0:
        raise Error(KEYSTORE_OFFSET_INVALID)
    domain = call.caller.domain_id
    with call.read() as tx:
        found = rows.list_keystores(tx, domain, limit=limit, offset=offset)
        return Page(found, rows.count_keystores(tx, domain))


def enable(call: Call, keystore_id: str) -> Keystore:
    """Its keys can be used again. DEW: enable-keystore."""
    with call.change() as tx:
        keystore = _own(call, rows.get_keystore(tx, keystore_id))
        if keystore.enabled:
            raise Error(KEYSTORE_NOT_DISABLED, keystore=keystore.id)
        return _save(tx, replace(keystore, enabled=True))


def disable(call: Call, keystore_id: str) -> Keystore:
    """No key is made in it or used, whoever calls. DEW: disable-keystore."""
    with call.change() as tx:
        keystore = _own(call, rows.get_keystore(tx, keystore_id))
        if not keystore.enabled:
            raise Error(KEYSTORE_NOT_ENABLED, keystore=keystore.id)
        return _save(tx, replace(keystore, enabled=False))


def delete(call: Call, keystore_id: str) -> None:
    """An empty keystore goes; keys that wait for their deletion count. DEW: delete-keystore."""
    with call.change() as tx:
        keystore = _own(call, rows.get_keystore(tx, keystore_id))
        if content := rows.content(tx, keystore.id):
            keys = "1 key" if content == 1 else f"{content} keys"
            raise Error(KEYSTORE_REFUSED, reason=f"{keystore.id} is not empty, it holds {keys}")
        rows.delete_keystore(tx, keystore.id)


def of_caller(call: Call, tx: Tx, keystore_id: str) -> Keystore:
    """An enabled keystore of the caller's domain. Raises Error(KEYSTORE_REFUSED)."""
    row = rows.get_keystore(tx, keystore_id)
    if row is None or row.domain_id != call.caller.domain_id:
        raise Error(KEYSTORE_REFUSED, reason=_ABSENT)
    return _enabled(row)


def of_key(call: Call, keystore_id: str) -> Keystore:
    """The enabled keystore of a key that the caller has, from the cache. Raises KEYSTORE_REFUSED."""

    def load() -> Keystore | None:
        with call.read() as tx:
            return rows.get_keystore(tx, keystore_id)

    row = call.core.cache.get(keystore_id, "keystore", load)
    if row is None:
        raise LookupError(f"the keystore {keystore_id}, which has keys, is not there")
    return _enabled(row)


def _cluster(call: Call, cluster_id: str, hsm_cluster_id: str) -> str:
    """The cluster that the caller names, if its domain may make a keystore there."""
    if cluster_id and hsm_cluster_id and cluster_id != hsm_cluster_id:
        raise Error(PARAMETER_INVALID, name="cluster_id", reason="it is not hsm_cluster_id")
    named = cluster_id or hsm_cluster_id
    if not named:
        raise Error(PARAMETER_MISSING, name="cluster_id")
    backing = call.core.keystores.get(named)
    if backing is None or call.caller.domain_id not in backing.domains:
        raise Error(KEYSTORE_REFUSED, reason="there is no such cluster for your domain")
    return named


def _own(call: Call, row: Keystore | None) -> Keystore:
    if row is None or row.domain_id != call.caller.domain_id:
        raise Error(KEYSTORE_REFUSED, reason=_ABSENT)
    call.resource = row.id
    return row


def _enabled(keystore: Keystore) -> Keystore:
    if not keystore.enabled:
        raise Error(KEYSTORE_REFUSED, reason=f"{keystore.id} is disabled")
    return keystore


def _save(tx: Tx, keystore: Keystore) -> Keystore:
    rows.update_keystore(tx, keystore)
    return keystore
