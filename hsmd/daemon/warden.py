"""The warden: one a node, carries out what is due; each job under a lease, so that many nodes can run.

The jobs have a thread of their own. One that is stuck inside the HSM's module may hold the store's write
lock, and only the end of the process gives that back: so the main thread stays free to leave.
"""

import hashlib
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

from hsmd import __version__
from hsmd.audit import Log
from hsmd.audit.records import of_call, of_log
from hsmd.caller import Caller
from hsmd.config import Jobs as Pace
from hsmd.config import Settings
from hsmd.daemon import keystores, watch, wiring
from hsmd.daemon.notary import Notary
from hsmd.daemon.supervisor import EX_FAILED
from hsmd.domain import deletion, imports, kept, replicas, rotation
from hsmd.domain.core import Call, Core
from hsmd.errors import UNAVAILABLE, Error
from hsmd.store import SealBroken, leases

_WATCH_SECONDS = 0.25
_AUDIT_SECONDS = 5.0
_PEER_PAUSE = 60.0  # for a peer that hangs: other keys are waiting
_STUCK_PATIENCE = timedelta(seconds=5)  # in the midst of a job: all who change anything wait for it

log = logging.getLogger(__name__)


def run(settings: Settings, pin: wiring.Pin, ready: Callable[[], None]) -> int:
    """Do the jobs round by round until SIGTERM; the exit code. Raises ConfigError and TokenRefused."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    core = wiring.open_core(settings, pin, pause=_PEER_PAUSE)
    core.keystores = keystores.backings(settings, pin)
    audit = wiring.open_audit(settings, "warden")
    core.store.check()
    keystores.report_strays(core)
    try:
        core.token.connect()
    except Error as error:
        log.warning("%s", error)
    core.token.watch()
    keystores.connect(core)
    _record_start(audit, settings)
    ready()
    holder = f"{socket.gethostname()}:{os.getpid()}"
    # A keystore's token may hold the thread that uses it: so each has its own.
    everything = [
        Jobs(core, audit, holder, each, settings.jobs)
        for each in (_JOBS, *map(jobs_of_keystore, core.keystores))
    ]
    threads = [
        threading.Thread(target=jobs.run, args=(stopping,), daemon=True, name="jobs") for jobs in everything
    ]
    notary = Notary(settings.audit, core.token)
    threads.append(threading.Thread(target=notary.run, args=(stopping,), daemon=True, name="notary"))
    for thread in threads:
        thread.start()
    while not stopping.wait(_WATCH_SECONDS):
        at_work = any(jobs.at_work for jobs in everything)
        if watch.hopeless(core.token, _STUCK_PATIENCE if at_work else watch.PATIENCE):
            return EX_FAILED

    def close() -> None:
        for thread in threads:
            thread.join()
        audit.close()
        notary.part(settings.grpc.grace_seconds)
        core.store.close()
        core.token.close()
        keystores.close(core)

    watch.part(close, settings.grpc.grace_seconds + watch.PARTING_SECONDS)
    return 0


def _record_start(audit: Log, settings: Settings) -> None:
    """The record of the configuration that counts from now on, by its hash: nothing of it is secret."""
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()
    detail = {"sha256": digest, "version": __version__}
    try:
        audit.append(of_log("loadConfiguration", "warden", detail), timeout=_AUDIT_SECONDS)
    except Error as error:  # calls will be refused, too, until it can be written
        log.error("the start is not recorded: %s", error)  # noqa: TRY400  # the reason says it all


@dataclass(frozen=True, slots=True)
class Job:
    """What is done to each key whose day has come, under its lease. `do` is False for one that isn't due."""

    lease: str
    event: str
    done: str
    due: Callable[[Call], list[str]]
    do: Callable[[Call, str], bool]

    @property
    def method(self) -> str:
        """What audit records call it."""
        return "warden/" + self.lease.replace(" ", "-")


DELETIONS = Job("due deletions", "deleteKey", "destroyed", deletion.due, deletion.destroy)
ROTATIONS = Job("due rotations", "rotateKey", "rotated", rotation.due, rotation.rotate_due)
EXPIRATIONS = Job("expired material", "deleteImportedKeyMaterial", "destroyed", imports.due, imports.expire)
REPLICAS = Job("unfinished replicas", "updatePrimaryRegion", "in step", replicas.due, replicas.finish)
_JOBS = (DELETIONS, ROTATIONS, EXPIRATIONS, REPLICAS)


def jobs_of_keystore(cluster_id: str) -> tuple[Job, ...]:
    """What is due in the keystore on that cluster."""
    due, abandoned = partial(kept.due, cluster_id=cluster_id), partial(kept.abandoned, cluster_id=cluster_id)
    return (
        replace(DELETIONS, lease=f"due deletions in {cluster_id}", due=due),
        replace(DELETIONS, lease=f"abandoned keys in {cluster_id}", due=abandoned, do=kept.clear),
    )


class Jobs:
    """What is to be done round by round. What goes wrong is logged when it begins, not each round."""

    def __init__(
        self,
        core: Core,
        audit: Log,
        holder: str,
        jobs: Sequence[Job] = _JOBS,
        pace: Pace = Pace(),  # noqa: B008  # frozen
    ) -> None:
        """`holder` names this process in leases."""
        self._jobs = jobs
        self._pace = pace
        self.at_work = False  # inside a change, which may hold the write lock
        self._core = core
        self._audit = audit
        self._holder = holder
        self._trouble: dict[str, str] = {}  # what was logged last: by key id, "" for all of them
        self._to_scrub = True  # whoever was here before may have left it undone

    def run(self, stopping: threading.Event) -> None:
        """Rounds until told to stop."""
        while not stopping.wait(self._pace.round_seconds):
            try:
                self.do_round()
            except Exception:
                log.exception("the jobs failed; the next round tries again")

    def do_round(self) -> None:
        """One round of every job whose lease is to be had."""
        trouble: dict[str, str] = {}
        try:
            for job in self._jobs:
                now, lease = self._core.clock(), int(self._pace.lease_seconds * 1000)
                with self._core.store.write() as tx:
                    mine = leases.take(tx, job.lease, self._holder, now, now + lease)
                if mine:
                    self._core.refresh()
                    self.carry_out(job, trouble)
            if self._to_scrub:
                self._to_scrub = not self._core.store.scrub()
        except Error as error:
            trouble[""] = f"nothing is done: {error}"
        self._tell(trouble)

    def carry_out(self, job: Job, trouble: dict[str, str]) -> int:
        """Do the job to every key whose day has come; how many it was done to.

        `trouble` takes up why others stay, by key id; with "" for what prevents all: then it ends at once.
        """
        count = 0
        for key_id in job.due(self._call(job)):
            self.at_work = True
            try:
                count += job.do(self._call(job), key_id)
            except (Error, SealBroken, LookupError) as error:  # one key's trouble is not the others'
                if isinstance(error, Error) and error.fault is UNAVAILABLE:  # but this is
                    trouble[""] = f"nothing is done: {error}"
                    break
                trouble[key_id] = f"not {job.done}: {error}"
            finally:
                self.at_work = False
        self._to_scrub |= job not in (ROTATIONS, REPLICAS) and count > 0
        return count

    def _tell(self, trouble: dict[str, str]) -> None:
        for key_id, why in trouble.items():
            if self._trouble.get(key_id) != why:
                log.error("%s due but %s", f"key {key_id} is" if key_id else "keys may be", why)
        if "" in self._trouble and "" not in trouble:
            log.info("due keys are seen to again")
        self._trouble = trouble

    def _call(self, job: Job) -> Call:
        started = time.monotonic()
        caller = Caller(kind="system", user_name="warden", source="local", request_id=uuid.uuid4().hex)

        def before_commit() -> None:
            record = of_call(
                call.caller,
                event=job.event,
                method=job.method,
                result="OK",
                resource=call.resource,
                key_version=call.key_version,
                process="warden",
                seconds=time.monotonic() - started,
            )
            self._audit.append(record, timeout=_AUDIT_SECONDS)

        call = Call(self._core, caller, before_commit)
        return call
