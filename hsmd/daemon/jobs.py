"""What is due, done round by round: to each key whose day has come, under a lease, on record.

A job that is stuck inside the HSM's module may hold the store's write lock, and only the end of the process
gives that back: `Jobs.at_work` tells that one is in the midst of a change.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from hsmd import metrics
from hsmd.audit import Log
from hsmd.audit.records import of_call
from hsmd.caller import Caller, logged_as
from hsmd.config import Jobs as Pace
from hsmd.domain import deletion, housekeeping, imports, kept, replicas, roots, rotation
from hsmd.domain.core import Call, Core
from hsmd.errors import INTERNAL, NAMES, UNAVAILABLE, Error
from hsmd.store import SealBroken, leases

_AUDIT_SECONDS = 5.0
_ALL = ""  # stands for all keys among those that are in trouble

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What is done to each key whose day has come, under its lease. `do` is False for one that isn't due.

    One that is no key names itself. One without an event leaves no records.
    """

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
MOVES = Job("root key moves", "moveKey", "moved to the new root key", roots.due, roots.move)
ROOTS = Job("root key ends", "settleRootKey", "settled", roots.settling, roots.settle)
PRUNING = Job("old changes", "", "pruned", housekeeping.due, housekeeping.prune)
OF_ALL = (DELETIONS, ROTATIONS, EXPIRATIONS, REPLICAS, MOVES, ROOTS, PRUNING)


def of_keystore(cluster_id: str) -> tuple[Job, ...]:
    """What is due in the keystore on that cluster."""
    due, abandoned = partial(kept.due, cluster_id=cluster_id), partial(kept.abandoned, cluster_id=cluster_id)
    return (
        replace(DELETIONS, lease=f"due deletions in {cluster_id}", due=due),
        replace(DELETIONS, lease=f"abandoned keys in {cluster_id}", due=abandoned, do=kept.clear),
    )


class Jobs:
    """What is to be done round by round, by one thread.

    What goes wrong is logged, and on record, when it begins, not each round.
    """

    def __init__(
        self,
        core: Core,
        audit: Log,
        holder: str,
        jobs: Sequence[Job] = OF_ALL,
        pace: Pace = Pace(),  # noqa: B008  # frozen
    ) -> None:
        """`holder` names this process in leases."""
        self._jobs = jobs
        self._pace = pace
        self.at_work = False  # inside a change, which may hold the write lock
        self._core = core
        self._audit = audit
        self._holder = holder
        self._trouble: dict[str, str] = {}  # what was logged last: by key id, or _ALL
        self._failing: dict[str, set[str]] = {}  # by lease: key ids, or _ALL, whose failure is on record
        self._started = 0.0  # when the last call began
        self._due: dict[str, int] = {}  # what is due and not done, by lease
        self._to_scrub = True  # whoever was here before may have left it undone

    @property
    def due(self) -> int:
        """What was due at the last look and is not done."""
        return sum(self._due.values())

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
                else:  # another node sees to it, and counts
                    metrics.JOB_BACKLOG.set(0, job.lease)
                    self._failing.pop(job.lease, None)
            if self._to_scrub:
                self._to_scrub = not self._core.store.scrub()
        except Error as error:
            trouble[_ALL] = f"nothing is done: {error}"
        self._tell(trouble)

    def carry_out(self, job: Job, trouble: dict[str, str]) -> int:
        """Do the job to every key whose day has come; how many it was done to.

        `trouble` takes up why others stay, by key id; with _ALL for what prevents all: then it ends at once.
        """
        count = 0
        due = job.due(self._call(job))
        left = self._due[job.lease] = len(due)
        metrics.JOB_BACKLOG.set(left, job.lease)
        before, failing = self._failing.get(job.lease, set()), set[str]()
        for key_id in due:
            self.at_work = True
            call = self._call(job)
            try:
                with logged_as(call.caller.request_id):
                    count += job.do(call, key_id)
                left = self._due[job.lease] = left - 1
            except Exception as error:  # whatever it is: one key's trouble is not the others'
                metrics.JOB_FAILURES.inc(job.lease)
                stops = isinstance(error, Error) and error.fault is UNAVAILABLE  # but this is
                met = _ALL if stops else key_id
                trouble[met] = f"nothing is done: {error}" if stops else f"not {job.done}: {error}"
                if met in before or self._record(job, call, key_id, error):
                    failing.add(met)
                if stops:
                    failing |= before  # of the others nothing is known
                    break
            finally:
                self.at_work = False
                metrics.JOB_BACKLOG.set(left, job.lease)
        self._failing[job.lease] = failing
        metrics.JOB_DONE.inc(job.lease, by=count)
        if not left:
            metrics.JOB_SUCCESS.set(self._core.clock() / 1000, job.lease)
        self._to_scrub |= job not in (ROTATIONS, REPLICAS, MOVES, PRUNING) and count > 0
        return count

    def _tell(self, trouble: dict[str, str]) -> None:
        for key_id, why in trouble.items():
            if self._trouble.get(key_id) != why:
                log.error("%s due but %s", "keys may be" if key_id == _ALL else f"key {key_id} is", why)
        if _ALL in self._trouble and _ALL not in trouble:
            log.info("due keys are seen to again")
        self._trouble = trouble

    def _call(self, job: Job) -> Call:
        self._started = time.monotonic()
        caller = Caller(kind="system", user_name="warden", source="local", request_id=uuid.uuid4().hex)
        call = Call(self._core, caller, lambda: self._append(job, call, "OK"))
        return call

    def _record(self, job: Job, call: Call, key_id: str, error: Exception) -> bool:
        """Put on record that a failure begins; whether it is there."""
        if not isinstance(error, (Error, SealBroken, LookupError)):
            log.error("%s: unexpected", job.lease, exc_info=error)
        if not job.event:
            return True
        call.resource = call.resource or key_id
        code, reason = _named(error)
        try:
            self._append(job, call, code, {"reason": reason})
        except Error:  # the log says so by itself; the next round tries again
            return False
        return True

    def _append(self, job: Job, call: Call, result: str, detail: Mapping[str, str] | None = None) -> None:
        record = of_call(
            call.caller,
            event=job.event,
            method=job.method,
            result=result,
            resource=call.resource,
            key_version=call.key_version,
            process="warden",
            seconds=time.monotonic() - self._started,
        )
        self._audit.append({**record, **({"detail": detail} if detail else {})}, timeout=_AUDIT_SECONDS)


def _named(error: Exception) -> tuple[str, str]:
    """The code of what went wrong, and its name: that of a fault in the table, else its class."""
    if isinstance(error, Error):
        return error.fault.code, NAMES[error.fault]
    return INTERNAL.code, type(error).__name__
