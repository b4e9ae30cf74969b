"""The end of a key: scheduled, cancellable until its day, then its material is gone for good."""

from dataclasses import replace

from hsmd.domain import access, imports, kept, keys, replicas
from hsmd.domain.core import DAY_MILLIS, Call
from hsmd.errors import ALREADY_PENDING_DELETION, DAYS_INVALID, NOT_PENDING_DELETION, Error
from hsmd.store import aliases, grants, tags
from hsmd.store import keys as rows
from hsmd.store.keys import Key


def schedule(call: Call, reference: str, days: int) -> Key:
    """To PENDING_DELETION, due in `days` (7 to 1096). DEW: schedule-key-deletion.

    Not of a primary key while it has replicas: nobody could rotate those any more.
    """
    if not 7 <= days <= 1096:
        raise Error(DAYS_INVALID)
    replicas.review(call, access.key(call, reference))
    with call.change() as tx:
        key = keys.custom(access.key_for_change(call, tx, reference))
        if key.state == access.PENDING_DELETION:
            raise Error(ALREADY_PENDING_DELETION, key=key.id)
        replicas.check_alone(call, tx, key)
        due = call.core.clock() + days * DAY_MILLIS
        key = replace(key, state=access.PENDING_DELETION, deletion_date=due)
        rows.update_key(tx, key)
        return key


def cancel(call: Call, reference: str) -> Key:
    """Back to DISABLED, while the day has not come; without material to PENDING_IMPORT.

    DEW: cancel-key-deletion.
    """
    with call.change() as tx:
        key = access.key_for_change(call, tx, reference)
        if key.state != access.PENDING_DELETION:
            raise Error(NOT_PENDING_DELETION, key=key.id)
        state = access.PENDING_IMPORT if imports.is_without_material(call, tx, key) else access.DISABLED
        key = replace(key, state=state, deletion_date=None)
        rows.update_key(tx, key)
        return key


def due(call: Call) -> list[str]:
    """Ids of keys whose day has come."""
    with call.read() as tx:
        return rows.due_deletions(tx, call.core.clock())


def destroy(call: Call, key_id: str) -> bool:
    """Destroy a due key's material, free its names; a tombstone stays. False when it is not due (any more).

    Raises SealBroken for a row that was changed: it stays, with its material.
    """
    now = call.core.clock()
    with call.core.store.read() as tx:
        key = rows.get_key(tx, key_id)
    if key is None or not _is_due(key, now):
        return False
    kept.check_reachable(call, key)
    with call.change() as tx:
        key = rows.get_key(tx, key_id)
        if key is None or not _is_due(key, now):
            raise Error(NOT_PENDING_DELETION, key=key_id)
        rows.destroy_versions(tx, key.id, now)
        grants.delete_of_key(tx, key.id)
        aliases.release(tx, key)
        tags.release(tx, key.id)
        rows.update_key(tx, replace(key, state=rows.DESTROYED))
        kept.let_go(call, tx, key)
        call.resource = key.id
        call.caller = call.caller._replace(domain_id=key.domain_id, project_id=key.project_id)
    kept.destroy(call, key)  # after row and record say so: whatever stops this is done again by the draft
    return True


def _is_due(key: Key, now: int) -> bool:
    return key.state == access.PENDING_DELETION and key.deletion_date is not None and key.deletion_date <= now
