"""Keys in a dedicated keystore: token objects of its token, which are found by the key's id and version.

The store tells of every object: a draft is written before the object is made and goes with the commit of the
key's row; the row of a key that is deleted becomes a tombstone and a draft in one change, which has its audit
record, and only then the object goes. So whatever is interrupted leaves a draft by which the warden finishes
it, and no object is gone of which row or record say otherwise.

A keystore's token that is away, hung or without a login is UNAVAILABLE for its own keys alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from hsmd.algorithms import BY_NAME, KeyAlgorithm
from hsmd.domain import keystores
from hsmd.domain.core import Call
from hsmd.errors import KEYSTORE_UNAVAILABLE, SPEC_INVALID, UNAVAILABLE, Error
from hsmd.hsm import Handle, ObjectGone, Token
from hsmd.store import Tx
from hsmd.store import keys as key_rows
from hsmd.store import keystores as rows
from hsmd.store.keys import Key, KeyVersion
from hsmd.store.keystores import Draft, Keystore

Result = TypeVar("Result")

_MINUTE_MILLIS = 60 * 1000
# A key is made within the first time or not at all. What is left of it after the second comes to nothing:
# the clocks of two nodes may differ by what lies between.
_MAKING_MILLIS, _ABANDONED_MILLIS = 10 * _MINUTE_MILLIS, 30 * _MINUTE_MILLIS
_VERSION = 1  # keys in keystores don't rotate


@contextmanager
def making(call: Call, key: Key, row: KeyAlgorithm, check: Callable[[Tx], None]) -> Iterator[KeyVersion]:
    """The first version of a key to be, born in its keystore's token if `check` has nothing against the key.

    Unless the block ends with the key's row in the store, the object is destroyed again.
    """
    keystore = _begun(call, key, row, check)
    try:
        with _at(call, keystore) as token:
            public_key = token.make_kept(row, _label(key.id))
        yield KeyVersion(
            key_id=key.id,
            version=_VERSION,
            algorithm=row.name,
            wrapped=b"",
            root_label="",
            created=key.created,
            destroyed=None,
            public_key=public_key,
            keystore_id=keystore.id,
        )
    finally:
        with suppress(Error):  # what is left over is the warden's
            _settle(call, keystore, key.id)


def take(call: Call, tx: Tx, key: Key) -> None:
    """The key's row comes with this change. Raises Error for a keystore that is no longer enabled."""
    if key.keystore_id is not None:
        keystores.of_caller(call, tx, key.keystore_id)
        draft = rows.get_draft(tx, key.id)
        if draft is None or call.core.clock() - draft.created > _MAKING_MILLIS:
            raise Error(UNAVAILABLE, reason="making the key took too long")
        rows.delete_draft(tx, key.id)


def use(
    call: Call, found: KeyVersion, keystore_id: str, operation: Callable[[Token, Handle], Result]
) -> Result:
    """Run the operation on the version's object and the token that holds it.

    Raises what it raises, Error(KEYSTORE_REFUSED) and Error(KEYSTORE_UNAVAILABLE).
    """
    keystore = keystores.of_key(call, keystore_id)
    row, label = BY_NAME[found.algorithm], _label(found.key_id)
    with _at(call, keystore) as token:
        try:
            return operation(token, token.find_kept(row, label))
        except ObjectGone:
            pass  # of an earlier connection, perhaps
        try:
            return operation(token, token.find_kept(row, label))
        except ObjectGone as error:
            raise Error(UNAVAILABLE, reason="the HSM lost a key while it was used") from error


def check_reachable(call: Call, key: Key) -> None:
    """Raises KEYSTORE_UNAVAILABLE for a key in a keystore whose token can't let its object go now."""
    if key.keystore_id is not None:
        with _at(call, _of(call, key.keystore_id)) as token:
            token.check_kept(_label(key.id))


def let_go(call: Call, tx: Tx, key: Key) -> None:
    """With this change the key becomes a tombstone: from now on a draft tells of an object that it has."""
    if key.keystore_id is not None:
        rows.delete_draft(tx, key.id)
        rows.insert_draft(tx, Draft(key.id, key.keystore_id, call.core.clock()))


def destroy(call: Call, key: Key) -> None:
    """Destroy a tombstone's object, if it has one, and its draft. Raises KEYSTORE_UNAVAILABLE."""
    if key.keystore_id is not None:
        _settle(call, _of(call, key.keystore_id), key.id)


def due(call: Call, cluster_id: str) -> list[str]:
    """Ids of keys on the cluster that are to be deleted, and whose day has come."""
    with call.read() as tx:
        return rows.due_deletions(tx, cluster_id, call.core.clock())


def abandoned(call: Call, cluster_id: str) -> list[str]:
    """Ids of keys on the cluster that were begun and came to nothing, or whose objects outlived them."""
    with call.read() as tx:
        return rows.old_drafts(tx, cluster_id, call.core.clock() - _ABANDONED_MILLIS)


def clear(call: Call, key_id: str) -> bool:
    """Destroy what is left of an abandoned or deleted key. False when there is nothing (any more)."""
    with call.read() as tx:
        draft = rows.get_draft(tx, key_id)
        keystore = None if draft is None else rows.get_keystore(tx, draft.keystore_id)
        deleted = _is_tombstone(key_rows.get_key(tx, key_id))
    if draft is None or keystore is None:
        return False
    if not deleted and call.core.clock() - draft.created < _ABANDONED_MILLIS:
        return False
    _settle(call, keystore, key_id)
    return True


def _label(key_id: str) -> str:
    return f"hsmd-key-{key_id}-{_VERSION}"


def _is_tombstone(key: Key | None) -> bool:
    return key is not None and key.state == key_rows.DESTROYED


def _of(call: Call, keystore_id: str) -> Keystore:
    """A key's keystore, enabled or not."""
    with call.read() as tx:
        keystore = rows.get_keystore(tx, keystore_id)
    if keystore is None:
        raise LookupError(f"the keystore {keystore_id}, which has keys, is not there")
    return keystore


def _begun(call: Call, key: Key, row: KeyAlgorithm, check: Callable[[Tx], None]) -> Keystore:
    """The key's keystore, which holds a draft of it from now on; not if its token is away or can't do it."""
    if key.keystore_id is None:
        raise LookupError(f"key {key.id} is in the default keystore")
    with _at(call, keystores.of_key(call, key.keystore_id)) as token:
        token.alive()
        if not token.keeps(row):
            raise Error(SPEC_INVALID, reason=f"the keystore's HSM can't do {row.name}")
    with call.core.store.write() as tx:
        keystore = keystores.of_caller(call, tx, key.keystore_id)
        check(tx)
        rows.insert_draft(tx, Draft(key.id, keystore.id, call.core.clock()))
    return keystore


def _settle(call: Call, keystore: Keystore, key_id: str) -> None:
    """See that a draft without a living key's row goes, and its object with it."""
    with call.read() as tx:
        if rows.get_draft(tx, key_id) is None:
            return
    # Looked at once more as a writer: a commit whose answer was lost with the database has ended by then.
    with call.core.store.write() as tx:
        key = key_rows.get_key(tx, key_id)
        if rows.get_draft(tx, key_id) is None or not (key is None or _is_tombstone(key)):
            rows.delete_draft(tx, key_id)
            return
    with _at(call, keystore) as token:
        token.destroy_kept(_label(key_id))
    with call.core.store.write() as tx:
        rows.delete_draft(tx, key_id)


@contextmanager
def _at(call: Call, keystore: Keystore) -> Iterator[Token]:
    """The keystore's token, for as long as the call may take."""
    backing = call.core.keystores.get(keystore.cluster_id)
    if backing is None:
        reason = f"no token is configured for its cluster {keystore.cluster_id}"
        raise Error(KEYSTORE_UNAVAILABLE, keystore=keystore.id, reason=reason)
    try:
        with backing.token.within(call.core.token.left):
            yield backing.token
    except Error as error:
        if error.fault is not UNAVAILABLE:
            raise
        raise Error(KEYSTORE_UNAVAILABLE, keystore=keystore.id, reason="its HSM is away") from error.__cause__
