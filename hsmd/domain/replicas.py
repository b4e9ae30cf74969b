"""A primary key and its replicas: what is sent, what each was told, and how all of them keep in step.

The primary is what it says to be, replicas follow. So that whatever one region encrypts every other decrypts:

- A new version *waits* (stored, not current) in the primary first, then in every replica, then it becomes
  current in the primary, then in the replicas. What waits is sent again as it is until it is current: of a
  version number there is never more than one material in use.
- The store is never held for a change while a peer is asked: two that ask each other would wait for ever.
- A replica is known to the primary before the peer hears of it (PENDING), and counts (REPLICATED) once the
  peer has every version. That a pending one is not there is believed only when no offer can be on its way.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from hsmd.algorithms import AES_256, KEY_SPECS
from hsmd.domain.core import Call
from hsmd.domain.lines import SHARE, VERSIONS_AT_ONCE, Handover, Line, Material, RootKey, Versions
from hsmd.errors import REGION_UNAVAILABLE, REPLICA_REFUSED, REPLICAS_PRESENT, Error
from hsmd.keyring import with_token_key
from hsmd.store import Tx, keys
from hsmd.store import replicas as rows
from hsmd.store.keys import Key, KeyVersion
from hsmd.store.replicas import HEIR, PENDING, REPLICATED, Replica

_SERVER_FAULT = 500
# An offer is made within the first time of its row, and takes no longer than a line waits: a minute at most.
# The rest of the second is what the clocks of two nodes may differ by.
OFFER_MILLIS = 60 * 1000
_LANDED_MILLIS = 3 * OFFER_MILLIS
_FRESH_MILLIS = 2 * 1000  # what was read so long ago makes nobody the primary

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version that waits, and the regions of the replicas that have it."""

    version: KeyVersion
    regions: frozenset[str]


Pick = Callable[[Tx], tuple[Key, int | None] | None]
"""The key to rotate, checked in this transaction, and when it is due next (ms); None: not any more."""


def check_primary(call: Call, key: Key) -> None:
    """Raises Error(REPLICA_REFUSED) for a key whose primary is elsewhere."""
    if key.primary_region not in (None, call.core.region):
        raise Error(REPLICA_REFUSED, key=key.id, region=key.primary_region)


def settled(call: Call, tx: Tx, key: Key) -> list[Replica]:
    """The primary's replicas. Raises Error(REGION_UNAVAILABLE) while another region is becoming primary."""
    check_primary(call, key)
    found = rows.replicas_of(tx, key.id)
    for each in found:
        if each.state == HEIR:
            reason = "the key's primary is moving there, which update-primary-region completes"
            raise Error(REGION_UNAVAILABLE, region=each.region, reason=reason)
    return found


def line(call: Call, region: str) -> Line:
    """The way to a region that has a replica. Raises Error(REGION_UNAVAILABLE) when there is none."""
    found = call.core.peers.get(region)
    if found is None:
        raise Error(REGION_UNAVAILABLE, region=region, reason="it is no configured peer any more")
    return found


def messages(replica: Replica, number: int) -> int:
    """How many messages the replica may encrypt with that version."""
    if number == replica.share_version:
        return replica.share
    return SHARE if number > replica.share_version else 0


def packed(call: Call, replica: Replica, versions: Iterable[KeyVersion]) -> Versions:
    """Versions as they travel to the replica."""
    token = call.core.token
    materials = [
        Material(
            version=each.version,
            wrapped=each.wrapped or b"",
            root_label=each.root_label,
            created=each.created,
            public_key=each.public_key or b"",
            messages=messages(replica, each.version),
        )
        for each in versions
    ]
    labels = sorted({each.root_label for each in materials})
    roots = [RootKey(label, with_token_key(token, label, token.check_value)) for label in labels]
    return Versions(roots, materials)


def bring(call: Call, replica: Replica, after: int, newest: int, current: int = 0) -> bool:
    """Send the versions behind `after` up to `newest`, the last with `current` (see Line.send).

    False when the replica is not there any more: it is forgotten then.
    """
    while after < newest:
        with call.read() as tx:
            page = rows.versions_after(tx, replica.key_id, after, newest, VERSIONS_AT_ONCE)
        if not page:
            raise LookupError(f"key {replica.key_id} lacks its version {newest}")
        after = page[-1].version
        versions, told = packed(call, replica, page), current if after == newest else 0
        if not line(call, replica.region).send(replica.key_id, versions, told, call.caller.request_id):
            _note(call, replica, None)
            return False
    return True


def prepare(call: Call, key_id: str, pick: Pick, wrapped: bytes, label: str) -> Prepared | None:
    """The key's next version, waiting here and with every replica; None for a key that has none.

    It has the material `wrapped` by the root key of that label, or one that an earlier rotation left waiting.
    Raises Error(REGION_UNAVAILABLE) when a replica can't be reached: the version then goes on waiting.
    """
    with call.read() as tx:
        if not rows.replicas_of(tx, key_id):
            return None
    with call.core.store.write() as tx:
        picked = pick(tx)
        if picked is None:
            return None
        key = picked[0]
        found = settled(call, tx, key)
        number = key.current_version + 1
        waiting = keys.get_version(tx, key.id, number)
        if waiting is None:
            waiting = _version(key, number, wrapped, label, call.core.clock())
            rows.put_version(tx, waiting, used=SHARE * len(found))
    counting = [each for each in found if each.state == REPLICATED]
    for each in counting:
        _bring_to_agree(call, each, number)
    return Prepared(waiting, frozenset(each.region for each in counting))


def is_prepared(tx: Tx, key: Key, found: list[Replica], prepared: Prepared) -> bool:
    """Whether what waited may become current: it is still the next version, and all that count have it.

    Others may have rotated the key meanwhile, added a replica, or moved the primary there and back: then what
    waits here may be of another material, brought by a primary in between.
    """
    waiting = prepared.version
    return (
        waiting.version == key.current_version + 1
        and keys.get_version(tx, key.id, waiting.version) == waiting
        and all(each.region in prepared.regions for each in found if each.state == REPLICATED)
    )


def tell(call: Call, key: Key) -> None:
    """Have every replica encrypt with the current version; Error(REGION_UNAVAILABLE) if one is not reached.

    Nothing is lost when that fails: the replica decrypts what the primary encrypts, and the reverse.
    """
    with call.read() as tx:
        behind = [each for each in rows.replicas_of(tx, key.id) if _is_behind(each, key)]
    for each in behind:
        if bring(call, each, each.told, key.current_version, key.current_version):
            _note(call, each, replace(each, told=key.current_version))


def tell_if_possible(call: Call, key: Key) -> None:
    """The same at the end of a call that has done its work: the warden does what can't be done now."""
    with suppress(Error):
        tell(call, key)


def review(call: Call, key: Key) -> None:
    """Forget the primary's replicas that are gone, as far as their regions can be asked.

    Not one that is being made: it may not be there yet.
    """
    if key.primary_region != call.core.region:
        return
    with call.read() as tx:
        found = rows.replicas_of(tx, key.id)
    for each in found:
        if each.state == HEIR or (each.state == PENDING and _may_be_on_its_way(call, each)):
            continue
        with suppress(Error):
            if not line(call, each.region).find(key.id, call.caller.request_id):
                _note(call, each, None)


def check_alone(call: Call, tx: Tx, key: Key) -> None:
    """Raises Error(REPLICAS_PRESENT) for a primary that may have replicas."""
    if key.primary_region == call.core.region and (found := rows.replicas_of(tx, key.id)):
        raise Error(REPLICAS_PRESENT, key=key.id, regions=", ".join(each.region for each in found))


def hand_over(call: Call, key_id: str) -> Key | None:
    """Complete what began when a replica became HEIR: it is the primary, all others follow it, this one too.

    None when there is nothing to complete. A refusal by the heir takes it back. Raises
    Error(REGION_UNAVAILABLE) when a region can't be reached: it can be completed later.
    """
    began = call.core.clock()
    with call.read() as tx:
        key = keys.get_key(tx, key_id)
        found = rows.replicas_of(tx, key_id)
    heir = next((each for each in found if each.state == HEIR), None)
    if key is None or heir is None:
        return None
    others = [each for each in found if each is not heir]
    handover = Handover(
        key.id,
        key.current_version,
        key.rotation_days,
        key.rotation_due,
        [(each.region, each.told) for each in others],
    )
    if call.core.clock() - began > _FRESH_MILLIS:  # others may have completed it, and moved the key back
        raise Error(REGION_UNAVAILABLE, region=heir.region, reason="it took too long; try again")
    try:
        line(call, heir.region).hand_over(handover, call.caller.request_id)
    except Error as error:
        if error.fault is not REGION_UNAVAILABLE:
            _note(call, heir, replace(heir, state=REPLICATED))
        raise
    for each in others:
        line(call, each.region).follow(key.id, heir.region, call.caller.request_id)
    return _step_back(call, key_id, heir.region)


def step_back(tx: Tx, key: Key, region: str) -> Key:
    """The primary's row from now on: a replica of that region's."""
    key = replace(key, primary_region=region, rotation_days=None, rotation_due=None)
    rows.release(tx, key.id)
    keys.update_key(tx, key)
    return key


def due(call: Call) -> list[str]:
    """Ids of the keys with something left to do: a primary that moves, a replica that is behind."""
    with call.read() as tx:
        return rows.unfinished(tx)


def finish(call: Call, key_id: str) -> bool:
    """Do what is left to do for the key. False when nothing is."""
    if hand_over(call, key_id) is not None:
        return True
    with call.read() as tx:
        key = keys.get_key(tx, key_id)
        if key is None or not any(_is_behind(each, key) for each in rows.replicas_of(tx, key_id)):
            return False
    tell(call, key)
    return True


def withdraw(call: Call, begun: Replica) -> None:
    """Take back a replica that was begun and refused; not if another call has begun it since."""
    with call.core.store.write() as tx:
        if rows.get_replica(tx, begun.key_id, begun.region) == begun:
            rows.delete_replica(tx, begun.key_id, begun.region)
            keys.return_usage(tx, begun.key_id, begun.share_version, begun.share)


def _may_be_on_its_way(call: Call, pending: Replica) -> bool:
    return call.core.clock() - pending.created < _LANDED_MILLIS


def _is_behind(replica: Replica, key: Key) -> bool:
    return replica.state == REPLICATED and replica.told < key.current_version


def _version(key: Key, number: int, wrapped: bytes, label: str, now: int) -> KeyVersion:
    if KEY_SPECS[key.spec] is not AES_256:
        raise LookupError(f"key {key.id} is no key that rotates")
    return KeyVersion(key.id, number, AES_256.name, wrapped, label, now, destroyed=None)


def _bring_to_agree(call: Call, replica: Replica, number: int) -> None:
    """Raises Error(REGION_UNAVAILABLE) unless the replica has all versions up to this one now, or is gone."""
    try:
        bring(call, replica, replica.told, number)
    except Error as error:
        if error.fault.http >= _SERVER_FAULT:
            raise
        # Nothing that the caller has asked for is wrong: the regions don't agree about the key.
        reason = f"it refused: {error.message}"
        raise Error(REGION_UNAVAILABLE, region=replica.region, reason=reason) from error


def _note(call: Call, known: Replica, now: Replica | None) -> None:
    """Replace the row, or remove it, unless somebody else has changed it meanwhile."""
    with call.core.store.write() as tx:
        if rows.get_replica(tx, known.key_id, known.region) != known:
            return
        if now is None:
            rows.delete_replica(tx, known.key_id, known.region)
            log.info("key %s has no replica in %s any more", known.key_id, known.region)
        else:
            rows.put_replica(tx, now)


def _step_back(call: Call, key_id: str, heir: str) -> Key | None:
    """The primary has moved: what is here is a replica of it. None when another call has done so."""
    with call.core.store.write() as tx:
        key = keys.get_key(tx, key_id)
        row = rows.get_replica(tx, key_id, heir)
        if key is None or row is None or row.state != HEIR:
            return None
        key = step_back(tx, key, heir)
        call.resource = key.id
        call.caller = call.caller._replace(domain_id=key.domain_id, project_id=key.project_id)
        call.before_commit()
    return key
