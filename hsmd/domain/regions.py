"""Regions: a key is replicated to another hsmd with the same root key, and its primary moves there.

Who may place a replica in which project is the other region's to say: see `peers`. How the regions keep in
step afterwards: see `replicas`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hsmd.algorithms import AES_256, GCM_MESSAGES_PER_VERSION, KEY_SPECS
from hsmd.domain import access, keys, replicas, tags
from hsmd.domain.core import Call
from hsmd.domain.lines import SHARE, VERSIONS_AT_ONCE, Offer
from hsmd.errors import (
    KEYSTORE_REFUSED,
    LIMIT_INVALID,
    PARAMETER_INVALID,
    REGION_OFFSET_INVALID,
    REGION_UNAVAILABLE,
    Error,
)
from hsmd.store import Tx
from hsmd.store import keys as key_rows
from hsmd.store import replicas as rows
from hsmd.store.keys import Key, KeyVersion
from hsmd.store.replicas import HEIR, PENDING, REPLICATED, Replica

_PAGE = 10
_LARGEST_PAGE = 1000
_ID = re.compile(r"[0-9a-f]{32}")
_ENTERPRISE_LENGTH = 36


@dataclass(frozen=True, slots=True)
class Wanted:
    """A replica as it is asked for; everything is the replica's own."""

    region: str
    project_id: str
    alias: str
    description: str
    enterprise_project_id: str
    tags: Sequence[tuple[str, str]]


def supported(call: Call, *, limit: int | None, offset: int | None) -> list[str]:
    """The names of this region and its peers, in order, from `offset` on. DEW: list-support-regions."""
    limit, offset = _PAGE if limit is None else limit, offset or 0
    if not 1 <= limit <= _LARGEST_PAGE:
        raise Error(LIMIT_INVALID)
    if offset < 0:
        raise Error(REGION_OFFSET_INVALID)
    return sorted([call.core.region, *call.core.peers])[offset : offset + limit]


def replicate(call: Call, reference: str, wanted: Wanted) -> tuple[str, str]:
    """(key id, the replica's domain id) of an enabled key, now in the wanted region too. DEW: replicate-key.

    The same again gives the same answer. Raises Error(REGION_UNAVAILABLE) when the region can't be reached:
    it may have the key then, and the same again finds out.
    """
    access.key(call, reference)
    _check_wanted(call, wanted)
    with call.core.store.write(lambda: call.begin("sendReplica")) as tx:
        key = _replicable(call, access.key_for_change(call, tx, reference))
        row, is_new = _begun(call, tx, key, wanted.region)
    try:
        domain_id, key, page = _offered(call, key.id, row, wanted)
    except Error as error:
        if is_new and error.fault is not REGION_UNAVAILABLE:  # nothing was sent, or it was refused
            replicas.withdraw(call, row)
        raise
    newest, current = page[0].version, key.current_version
    _send_older(call, row, page)
    with call.change() as tx:
        present = rows.get_replica(tx, key.id, wanted.region)
        if present is None:
            raise Error(
                REGION_UNAVAILABLE, region=wanted.region, reason="the key changes just now; try again"
            )
        # From now on rotations count on the replica; what they have brought meanwhile is sent below.
        state = REPLICATED if present.state == PENDING else present.state
        row = replace(present, state=state, told=max(current, present.told))
        rows.put_replica(tx, row)
        call.resource, call.key_version = key.id, current
        missing = rows.newest_version(tx, key.id)
    replicas.bring(call, row, newest, missing)
    return key.id, domain_id


def update_primary(call: Call, reference: str, region: str) -> Key:
    """The key, whose primary is now in that region. DEW: update-primary-region.

    Raises Error(REGION_UNAVAILABLE) when a region can't be reached: the primary may have moved then, the
    same again completes it, and until then neither side rotates or replicates the key.
    """
    key = access.usable(keys.custom(access.key(call, reference)))
    if key.primary_region == region != call.core.region:
        return key  # it was done before
    replicas.check_primary(call, key)
    replicas.review(call, key)
    with call.core.store.write() as tx:
        key = access.usable(keys.custom(access.key_for_change(call, tx, reference)))
        if key.primary_region != region or _heirs(tx, key):
            _appoint(call, tx, key, region)
    moved = replicas.hand_over(call, key.id)
    return moved or replace(key, primary_region=region)


def _check_wanted(call: Call, wanted: Wanted) -> None:
    if wanted.region not in call.core.peers:
        due = ", ".join(sorted(call.core.peers)) or "a configured peer"
        raise Error(PARAMETER_INVALID, name="replica_region", reason=f"{due} is due")
    keys.check_alias(wanted.alias)
    keys.check_description(wanted.description)
    if not _ID.fullmatch(wanted.project_id):
        raise Error(PARAMETER_INVALID, name="replica_project_id", reason="32 hex digits are due")
    if len(wanted.enterprise_project_id) > _ENTERPRISE_LENGTH:
        reason = f"at most {_ENTERPRISE_LENGTH} characters are due"
        raise Error(PARAMETER_INVALID, name="enterprise_project_id", reason=reason)
    if wanted.tags:
        tags.check_pairs(wanted.tags)


def _replicable(call: Call, key: Key) -> Key:
    """The key itself, if it is of the kind and in the state to be replicated."""
    keys.custom(key)
    if key.keystore_id is not None:
        raise Error(KEYSTORE_REFUSED, reason="the keys of a dedicated keystore do not leave its HSM")
    if key.origin != "kms":
        reason = "imported material is not replicated: import it there"
        raise Error(PARAMETER_INVALID, name="key_id", reason=reason)
    replicas.check_primary(call, key)
    return access.usable(key)


def _begun(call: Call, tx: Tx, key: Key, region: str) -> tuple[Replica, bool]:
    """The replica's row, made before the region hears of the key: it counts, with what it may encrypt.

    And whether it is new. One that was there says when it was begun anew: nobody who has seen it before, or
    withdraws it, takes it for the same.
    """
    found = {each.region: each for each in replicas.settled(call, tx, key)}
    if region in found:
        row = replace(found[region], created=max(call.core.clock(), found[region].created + 1))
        rows.put_replica(tx, row)
        return row, False
    share = 0
    if KEY_SPECS[key.spec] is AES_256:
        # Of a version that waits, too; the version in use may have less left than that.
        for number in range(key.current_version, rows.newest_version(tx, key.id) + 1):
            granted = key_rows.reserve_usage(tx, key.id, number, SHARE, GCM_MESSAGES_PER_VERSION)
            share = granted if number == key.current_version else share
    row = Replica(key.id, region, PENDING, 0, share, key.current_version, call.core.clock())
    rows.put_replica(tx, row)
    if key.primary_region is None:
        key_rows.update_key(tx, replace(key, primary_region=call.core.region))
    return row, True


def _offered(call: Call, key_id: str, row: Replica, wanted: Wanted) -> tuple[str, Key, list[KeyVersion]]:
    """The replica's domain id, the key as it was sent, and the versions with it: the newest, newest first."""
    line, request_id = replicas.line(call, wanted.region), call.caller.request_id
    with call.read() as tx:
        key = access.key_for_change(call, tx, key_id)
        newest = rows.newest_version(tx, key_id)
        page = rows.versions_below(tx, key_id, newest + 1, VERSIONS_AT_ONCE)
    offer = Offer(
        key_id=key.id,
        spec=key.spec,
        usage=key.usage,
        domain_id=key.domain_id,
        project_id=wanted.project_id,
        alias=wanted.alias,
        description=wanted.description,
        enterprise_project_id=wanted.enterprise_project_id or "0",
        tags=wanted.tags,
        current_version=key.current_version,
        versions=replicas.packed(call, row, page),
    )
    if call.core.clock() - row.created > replicas.OFFER_MILLIS:
        raise Error(REGION_UNAVAILABLE, region=wanted.region, reason="it took too long; try again")
    return line.offer(offer, request_id), key, page


def _send_older(call: Call, row: Replica, page: list[KeyVersion]) -> None:
    """The versions that did not fit into the offer, whose versions were `page`."""
    line, request_id = replicas.line(call, row.region), call.caller.request_id
    while len(page) == VERSIONS_AT_ONCE:
        with call.read() as tx:
            page = rows.versions_below(tx, row.key_id, page[-1].version, VERSIONS_AT_ONCE)
        if page and not line.send(row.key_id, replicas.packed(call, row, page), 0, request_id):
            raise Error(REGION_UNAVAILABLE, region=row.region, reason="it lost the key; try again")


def _heirs(tx: Tx, key: Key) -> list[str]:
    return [each.region for each in rows.replicas_of(tx, key.id) if each.state == HEIR]


def _appoint(call: Call, tx: Tx, key: Key, region: str) -> None:
    """From now on this region does nothing as the primary but complete the move."""
    if region not in _heirs(tx, key):
        found = {each.region: each for each in replicas.settled(call, tx, key)}
        if region not in found or found[region].state == PENDING:
            reason = "a region with a replica of the key is due"
            raise Error(PARAMETER_INVALID, name="primary_region", reason=reason)
        for each in found.values():
            if each.state == PENDING:
                reason = "replicate-key did not end there; repeat it"
                raise Error(REGION_UNAVAILABLE, region=each.region, reason=reason)
        rows.put_replica(tx, replace(found[region], state=HEIR))
        call.begin("appointPrimary")
