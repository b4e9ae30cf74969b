"""The warden: one a node, carries out what is due; each job under a lease, so that many nodes can run."""

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable

from hsmd.audit import Log
from hsmd.audit.records import of_call
from hsmd.caller import Caller
from hsmd.config import Settings
from hsmd.daemon import wiring
from hsmd.domain import deletion, imports, rotation
from hsmd.domain.core import Call, Core
from hsmd.errors import UNAVAILABLE, Error
from hsmd.store import SealBroken, leases
from hsmd.store import keys as rows
from hsmd.store.keys import Key

_ROUND_SECONDS = 5.0
_LEASE_MILLIS = 60_000
_AUDIT_SECONDS = 5.0

log = logging.getLogger(__name__)


def run(settings: Settings, pin: wiring.Pin, ready: Callable[[], None]) -> int:
    """Do the jobs round by round until SIGTERM. Raises ConfigError and TokenRefused at its start."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    core = wiring.open_core(settings, pin)
    audit = wiring.open_audit(settings, "warden")
    core.store.check()
    try:
        core.token.connect()
    except Error as error:
        log.warning("%s", error)
    core.token.watch()
    ready()
    holder = f"{socket.gethostname()}:{os.getpid()}"
    while not stopping.wait(_ROUND_SECONDS):
        try:
            do_jobs(core, audit, holder)
        except Exception:
            log.exception("the jobs failed; the next round tries again")
    audit.close()
    core.store.close()
    core.token.close()
    return 0


def do_jobs(core: Core, audit: Log, holder: str) -> None:
    """One round of every job whose lease is to be had."""
    for name, job in _JOBS.items():
        now = core.clock()
        with core.store.write() as tx:
            mine = leases.take(tx, name, holder, now, now + _LEASE_MILLIS)
        if mine:
            core.refresh()
            job(core, audit)


def carry_out_deletions(core: Core, audit: Log) -> int:
    """Destroy every key whose day has come; how many went."""
    gone = 0
    for key in deletion.due(_system_call(core, audit, "deleteKey", "warden/due-deletions")):
        call = _system_call(core, audit, "deleteKey", "warden/due-deletions", key)
        try:
            gone += deletion.destroy(call, key.id)
        except Error as error:  # one key's trouble is not the others'
            log.warning("key %s is due but was not destroyed: %s", key.id, error)
    return gone


def carry_out_rotations(core: Core, audit: Log) -> int:
    """Rotate every key whose day has come; how many did."""
    event = ("rotateKey", "warden/due-rotations")
    turned = 0
    for key_id in rotation.due(_system_call(core, audit, *event)):
        try:
            with core.store.read() as tx:
                key = rows.get_key(tx, key_id)
            turned += rotation.rotate_due(_system_call(core, audit, *event, key), key_id)
        except (Error, SealBroken) as error:  # one key's trouble is not the others'
            log.warning("key %s is due but was not rotated: %s", key_id, error)
            if isinstance(error, Error) and error.fault is UNAVAILABLE:
                break  # no key will do better in this round
    return turned


def carry_out_expirations(core: Core, audit: Log) -> int:
    """Destroy imported material whose time is over; of how many keys."""
    event = ("deleteImportedKeyMaterial", "warden/expired-material")
    gone = 0
    for key_id in imports.due(_system_call(core, audit, *event)):
        try:
            with core.store.read() as tx:
                key = rows.get_key(tx, key_id)
            gone += imports.expire(_system_call(core, audit, *event, key), key_id)
        except (Error, SealBroken) as error:  # one key's trouble is not the others'
            log.warning("material of key %s has expired but was not destroyed: %s", key_id, error)
    return gone


# By the names of their leases. A job that was cut short goes on in the next round.
_JOBS: dict[str, Callable[[Core, Log], int]] = {
    "due deletions": carry_out_deletions,
    "due rotations": carry_out_rotations,
    "expired material": carry_out_expirations,
}


def _system_call(core: Core, audit: Log, event: str, method: str, key: Key | None = None) -> Call:
    started = time.monotonic()
    caller = Caller(
        kind="system",
        user_name="warden",
        domain_id=key.domain_id if key else "",
        project_id=key.project_id if key else "",
        source="local",
        request_id=uuid.uuid4().hex,
    )

    def before_commit() -> None:
        record = of_call(
            caller,
            event=event,
            method=method,
            result="OK",
            resource=call.resource,
            key_version=call.key_version,
            process="warden",
            seconds=time.monotonic() - started,
        )
        audit.append(record, timeout=_AUDIT_SECONDS)

    call = Call(core, caller, before_commit, key.id if key else "")  # named: the record tells of it
    return call
