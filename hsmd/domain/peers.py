"""What peers may do here: bring replicas of their keys, keep them in step, and make one of them the primary.

A peer is another region, known by its certificate. It is believed about keys whose primary region it is, and
about no others. Where its keys may go is configured here: pairs of a domain of theirs and one of ours. The
project must be of such a domain, its quota and its names hold as for everybody (docs/decisions/0010).
"""

import hmac
import re
from dataclasses import replace

from hsmd.algorithms import AES_256, GCM_MESSAGES_PER_VERSION, KEY_SPECS, KeyAlgorithm
from hsmd.domain import access, keys, material, publickeys, replicas, tags
from hsmd.domain.core import Call
from hsmd.domain.lines import Handover, Material, Offer, RootKey, Versions
from hsmd.errors import (
    KEY_ID_INVALID,
    NOT_A_REPLICA,
    PARAMETER_INVALID,
    PROJECT_REFUSED,
    QUOTA_EXCEEDED,
    ROOT_KEY_DIFFERS,
    SPEC_INVALID,
    Error,
)
from hsmd.hsm import BadData
from hsmd.keyring import with_token_key
from hsmd.store import Tx, identity
from hsmd.store import keys as key_rows
from hsmd.store import replicas as rows
from hsmd.store import tags as tag_rows
from hsmd.store.keys import DESTROYED, Key, KeyVersion
from hsmd.store.replicas import HEIR, REPLICATED, Replica
from hsmd.store.tags import Tag

_ROOT_LABEL = re.compile(r"hsmd-root-[0-9]{1,9}")  # no other key of the token is to unwrap anything
_LAST_MILLIS = 253_402_300_799_000  # the year 9999 ends
_LARGEST = 2**31 - 1
_DAYS = range(30, 366)
_SAME = b"hsmd same material\0"


def accept(call: Call, offer: Offer) -> str:
    """A replica of the peer's key, enabled; the id of its domain. The same again gives the same answer."""
    row = _checked_offer(call, offer)
    _check_versions(call, row, offer.versions)
    if offer.current_version not in {each.version for each in offer.versions.materials}:
        raise _wrong("current_version", "one of the versions is due")
    with call.change() as tx:
        _enter_project(call, tx, offer)
        present = key_rows.get_key(tx, offer.key_id)
        if present is None or _is_tombstone(call, offer, present):
            key = _made(call, tx, offer, present)
        else:
            key = _same(call, tx, offer, present)
        _put(call, tx, key, row, offer.versions)
        call.resource, call.key_version = key.id, key.current_version
    return key.domain_id


def take(call: Call, key_id: str, versions: Versions, current: int) -> bool:
    """Versions of a replica, which encrypts with `current` from now on, unless that is 0.

    What is newer than its current version waits. False: it is not here any more.
    """
    with call.read() as tx:
        key = access.key_of_peer(call, tx, key_id, call.caller.user_name)
    if key is None:
        return False
    row = KEY_SPECS[key.spec]
    _check_versions(call, row, versions)
    with call.change() as tx:
        key = access.key_of_peer(call, tx, key_id, call.caller.user_name)
        if key is None:
            return False
        _put(call, tx, key, row, versions)
        call.key_version = max(each.version for each in versions.materials)
        if current:
            _check_held(tx, key, current)
            key_rows.update_key(tx, replace(key, current_version=max(current, key.current_version)))
    return True


def become_primary(call: Call, handover: Handover) -> None:
    """The replica here is the primary, and looks after the replicas of all other regions, the peer's too."""
    peer = call.caller.user_name
    with call.change() as tx:
        key = access.key_of_peer(call, tx, handover.key_id, peer, call.core.region)
        if key is None:
            raise Error(NOT_A_REPLICA)
        if key.primary_region == call.core.region:
            if rows.get_replica(tx, key.id, peer) is None:
                raise Error(NOT_A_REPLICA)
            return
        if key.state not in (access.ENABLED, access.DISABLED):
            access.usable(key)
        _check_handover(call, key, handover)
        _check_held(tx, key, handover.current_version)
        rows.release(tx, key.id)
        now = call.core.clock()
        for region, told in ((peer, handover.current_version), *handover.replicas):
            rows.put_replica(tx, Replica(key.id, region, REPLICATED, told, 0, 0, now))
        key = replace(
            key,
            primary_region=call.core.region,
            current_version=handover.current_version,
            rotation_days=handover.rotation_days,
            rotation_due=handover.rotation_due,
        )
        key_rows.update_key(tx, key)
        call.key_version = key.current_version


def follow(call: Call, key_id: str, region: str) -> bool:
    """The replica's primary is in that region from now on. False: the replica is not here any more.

    The heir of a primary here, too, may say so: it took over, and has moved the primary on before its answer
    came here. Else the two would wait for each other.
    """
    if region not in call.core.peers:
        raise _wrong("primary_region", "a peer of this region is due")
    with call.change() as tx:
        own, peer = call.core.region, call.caller.user_name
        key = access.key_of_peer(call, tx, key_id, peer, region, own)
        if key is None:
            return False
        if key.primary_region == own:
            heir = rows.get_replica(tx, key.id, peer)
            if heir is None or heir.state != HEIR:
                raise Error(NOT_A_REPLICA)
            replicas.step_back(tx, key, region)
        elif key.primary_region != region:
            key_rows.update_key(tx, replace(key, primary_region=region))
    return True


def find(call: Call, key_id: str) -> bool:
    """Whether the peer's replica is here."""
    with call.read() as tx:
        return access.key_of_peer(call, tx, key_id, call.caller.user_name) is not None


def _wrong(name: str, reason: str) -> Error:
    return Error(PARAMETER_INVALID, name=name, reason=reason)


def _checked_offer(call: Call, offer: Offer) -> KeyAlgorithm:
    if not access.is_key_id(offer.key_id):
        raise Error(KEY_ID_INVALID)
    row = KEY_SPECS.get(offer.spec)
    if row is None or not call.core.token.supports(row):
        raise Error(SPEC_INVALID, reason="the HSM of that region can't do it")
    if offer.usage not in row.usages:
        raise _wrong("key_usage", f"{', '.join(row.usages)} is due for {row.name}")
    keys.check_alias(offer.alias)
    keys.check_description(offer.description)
    if offer.tags:
        tags.check_pairs(offer.tags)
    return row


def _enter_project(call: Call, tx: Tx, offer: Offer) -> None:
    """Act in the project, if a key of that domain may go there. Else it looks as if there was none."""
    shared = call.core.peers[call.caller.user_name].shared_domains
    project = identity.get_project(tx, offer.project_id)
    if project is None or (offer.domain_id, project.domain_id) not in shared:
        raise Error(PROJECT_REFUSED, project=offer.project_id)
    call.caller = call.caller._replace(domain_id=project.domain_id, project_id=project.id)


def _is_tombstone(call: Call, offer: Offer, present: Key) -> bool:
    """Whether the peer brings back a key whose replica was destroyed here."""
    return present.state == DESTROYED and (present.primary_region, present.spec) == (
        call.caller.user_name,
        offer.spec,
    )


def _made(call: Call, tx: Tx, offer: Offer, tombstone: Key | None) -> Key:
    quota = call.core.limits.keys_per_project
    if key_rows.count_keys(tx, offer.project_id, custom_only=True, at_most=quota) >= quota:
        raise Error(QUOTA_EXCEEDED, quota=quota)
    key = Key(
        id=offer.key_id,
        project_id=offer.project_id,
        domain_id=call.caller.domain_id,
        alias=offer.alias,
        description=offer.description,
        spec=offer.spec,
        usage=offer.usage,
        origin="kms",
        state=access.ENABLED,
        is_default=False,
        created=call.core.clock(),
        deletion_date=None,
        enterprise_project_id=offer.enterprise_project_id,
        current_version=offer.current_version,
        primary_region=call.caller.user_name,
    )
    if tombstone is None:
        key_rows.insert_key(tx, key, None)
    else:
        key_rows.update_key(tx, key)
    for name, value in offer.tags:
        tag_rows.put_tag(tx, Tag(key.id, name, value, key.project_id))
    return key


def _same(call: Call, tx: Tx, offer: Offer, present: Key) -> Key:
    """The replica that the same offer has made before; what its tenant has changed since stays so.

    Of another alias it is not the same offer, though the tenant may have renamed the key since: else a caller
    who wants it by another name would hear that it is so. Its present name is right.
    """
    key = access.key_of_peer(call, tx, present.id, call.caller.user_name)
    wanted = (offer.project_id, offer.alias, offer.spec, offer.usage)
    if key is None or (key.project_id, key.alias, key.spec, key.usage) != wanted:
        reason = f"{call.core.region} has this key already, by another alias or in another project"
        raise _wrong("replica_region", reason)
    if offer.current_version > key.current_version:
        key = replace(key, current_version=offer.current_version)
        key_rows.update_key(tx, key)
    return key


def _check_versions(call: Call, row: KeyAlgorithm, versions: Versions) -> None:
    """That their root keys are the same here: by label and check value, then by unwrapping them."""
    for root in versions.roots:
        _check_root(call, root)
    labels = {root.label for root in versions.roots}
    numbers = [each.version for each in versions.materials]
    if len(set(numbers)) != len(numbers) or not all(1 <= each <= _LARGEST for each in numbers):
        raise _wrong("versions", "different numbers from 1 are due")
    for each in versions.materials:
        if each.root_label not in labels:
            raise _wrong("versions", "each one's root key is due in roots")
        _check_material(call, row, each)


def _check_root(call: Call, root: RootKey) -> None:
    token = call.core.token
    known = _ROOT_LABEL.fullmatch(root.label) is not None and root.label in token.labels()
    if not known or with_token_key(token, root.label, token.check_value) != root.check_value:
        raise _other_root(call, root.label)


def _other_root(call: Call, label: str) -> Error:
    shown = label if _ROOT_LABEL.fullmatch(label) else "than hsmd's"
    return Error(ROOT_KEY_DIFFERS, region=call.core.region, label=shown)


def _check_material(call: Call, row: KeyAlgorithm, each: Material) -> None:
    _check_millis("versions", each.created)
    if not 0 <= each.messages <= GCM_MESSAGES_PER_VERSION:
        raise _wrong("versions", "0 to 2^32 messages are due")
    if not (publickeys.is_one(row, each.public_key) if row.asymmetric else not each.public_key):
        raise _wrong("versions", f"the public key of a pair of {row.name} is due, and of nothing else")
    token = call.core.token
    try:
        handle = with_token_key(token, each.root_label, lambda root: token.unwrap(row, each.wrapped, root))
    except BadData:
        raise _other_root(call, each.root_label) from None
    token.destroy(handle)


def _check_millis(name: str, millis: int) -> None:
    if not 0 <= millis <= _LAST_MILLIS:
        raise _wrong(name, "milliseconds since 1970 are due")


def _put(call: Call, tx: Tx, key: Key, row: KeyAlgorithm, versions: Versions) -> None:
    """Store them. What the replica already uses is never replaced: it must be the same."""
    for each in versions.materials:
        present = key_rows.get_version(tx, key.id, each.version)
        if present is not None and present.wrapped is not None and each.version <= key.current_version:
            if not _is_same(call, row, present, present.wrapped, each):
                raise _wrong("versions", f"version {each.version} is in use here with another material")
            continue
        version = KeyVersion(
            key_id=key.id,
            version=each.version,
            algorithm=row.name,
            wrapped=each.wrapped,
            root_label=each.root_label,
            created=each.created,
            destroyed=None,
            public_key=each.public_key or None,
        )
        rows.put_version(tx, version, used=GCM_MESSAGES_PER_VERSION - each.messages)


def _is_same(call: Call, row: KeyAlgorithm, present: KeyVersion, wrapped: bytes, each: Material) -> bool:
    """Whether both are of one material: AES-KWP wraps it always in the same way under the same root key."""
    if (present.public_key or b"") != each.public_key:
        return False
    if present.root_label == each.root_label:
        return wrapped == each.wrapped
    return row.asymmetric or hmac.compare_digest(
        material.proof(call, row, wrapped, present.root_label, _SAME),
        material.proof(call, row, each.wrapped, each.root_label, _SAME),
    )


def _check_held(tx: Tx, key: Key, number: int) -> None:
    version = key_rows.get_version(tx, key.id, number) if 1 <= number <= _LARGEST else None
    if version is None or version.wrapped is None:
        raise _wrong("current_version", "one that the replica has is due")


def _check_handover(call: Call, key: Key, handover: Handover) -> None:
    regions = [call.caller.user_name, *(region for region, _ in handover.replicas)]
    if len(set(regions)) != len(regions) or not set(regions) <= set(call.core.peers):
        raise _wrong(
            "primary_region", f"a region with all others as its peers is due, not {call.core.region}"
        )
    if handover.current_version < key.current_version:
        raise _wrong("current_version", f"from {key.current_version} on is due")
    if any(not 0 <= told <= _LARGEST for _, told in handover.replicas):
        raise _wrong("replicas", "numbers of versions are due")
    days, due = handover.rotation_days, handover.rotation_due
    if days is not None and (days not in _DAYS or KEY_SPECS[key.spec] is not AES_256):
        raise _wrong("rotation_days", "30 to 365 is due, for a key that rotates")
    if (days is None) is not (due is None):
        raise _wrong("rotation_due", "it is due with rotation_days, and never without")
    _check_millis("rotation_due", due or 0)
