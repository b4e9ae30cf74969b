"""The audit log's front: any thread appends a record and goes on when it is written, or is refused in time.

One thread of the log's own does the writing. It takes all records that wait, links, writes and synchronises
them together and lets their callers go: the slower the disk, the more calls share one turn. A disk that
stalls holds up this thread only; callers wait as long as they can and are refused, and the log goes on by
itself when the disk does. (One of the callers could write for the others and save a switch of threads, some
10 µs, but no timeout could free it from a stalled disk.) A record whose caller gave up may still be written:
a call that was refused can be in the log, one that was answered always is.
"""

import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue

from hsmd import metrics
from hsmd.audit import checkpoints
from hsmd.audit.file import UNROTATED, ChainFile, Rotation
from hsmd.audit.records import of_log
from hsmd.counting import Timer
from hsmd.errors import UNAVAILABLE, Error

WAITING_RECORDS = 4096  # more are refused at once: the disk has stalled
_CLOSE_SECONDS = 5.0

_log = logging.getLogger(__name__)
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class _Entry:
    __slots__ = ("body", "done", "failure", "given_up", "trial")

    def __init__(self, body: bytes, *, trial: bool = False) -> None:
        self.body = body  # b"" of a mere trial
        self.trial = trial
        self.failure: Exception | None = None
        self.given_up = False
        self.done = threading.Lock()  # held until the record's fate is known
        self.done.acquire()


class Log:
    """The audit log of one process, made after the fork; safe for threads.

    `path` is this process's own file, mode 0600, made when it is needed, in a directory of mode 0700; its
    name without the suffix names the chain. `durable`: on disk before `append` returns, not only with the
    operating system. `forgiving`: a record that can't be written is counted, not refused, and how many there
    were is a record of its own as soon as that can be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        durable: bool,
        rotation: Rotation = UNROTATED,
        forgiving: bool = False,
    ) -> None:
        self._path = path
        self._file = ChainFile(
            path,
            durable=durable,
            rotation=rotation,
            witness=lambda: checkpoints.witness(path.parent, path.stem),
        )
        self._forgiving = forgiving
        self._lost = 0  # records that were neither written nor refused
        self._counting = threading.Lock()
        self._waiting: SimpleQueue[_Entry | None] = SimpleQueue()  # None: close
        self._closed = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def append(self, record: Mapping[str, object], timeout: float) -> None:
        """Write the record as one line of JSON: its place in the chain, then its fields in their order.

        Raises Error(UNAVAILABLE) when it isn't written after `timeout` seconds or can't be; ValueError or
        TypeError for what JSON can't hold. A later call may work again.
        """
        # What UTF-8 can't hold, lone surrogates, becomes an escape like \ud800, JSON's own spelling.
        entry = _Entry(_encode(dict(record)).encode("utf-8", "backslashreplace"))
        try:
            with Timer(metrics.AUDIT_SECONDS):
                self._put(entry, timeout)
        except Error:
            if not self._forgiving:
                metrics.AUDIT_REFUSED.inc()
                raise
            metrics.AUDIT_LOST.inc()
            with self._counting:
                self._lost += 1

    def check(self, timeout: float) -> None:
        """Raises Error(UNAVAILABLE) where calls would be refused now, as their records can't be written.

        After a write that failed only another one proves anything: then it is the record of that.
        """
        if self._forgiving:
            return
        body = _encode(of_log("auditLogResumed", self._path.stem, {})).encode() if self._failing else b""
        self._put(_Entry(body, trial=True), timeout)

    def measure(self) -> None:
        """Say in the metrics how the log is."""
        metrics.AUDIT_WAITING.set(self._waiting.qsize())
        metrics.AUDIT_FAILING.set(self._failing)

    def close(self) -> None:
        """Write what waits and let go of the file; gives up on a disk that stalls."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join(_CLOSE_SECONDS)

    def _put(self, entry: _Entry, timeout: float) -> None:
        if self._closed:
            raise Error(UNAVAILABLE, reason="the audit log is closed")
        if self._waiting.qsize() >= WAITING_RECORDS:
            raise Error(UNAVAILABLE, reason="too many audit records wait to be written")
        self._waiting.put(entry)
        if not entry.done.acquire(timeout=max(0.0, timeout)):
            entry.given_up = True
            raise Error(UNAVAILABLE, reason="the audit record was not written in time")
        if entry.failure is not None:
            raise Error(UNAVAILABLE, reason="the audit record can't be written") from entry.failure

    def _run(self) -> None:
        closing = False
        while not closing:
            batch, closing = self._take()
            if batch:
                self._write(batch)
        self._file.close()

    def _take(self) -> tuple[list[_Entry], bool]:
        """Wait for a record, and take all that are there; whether the log closes after them."""
        batch: list[_Entry] = []
        try:
            entry = self._waiting.get()
            while entry is not None:
                if not entry.given_up:
                    batch.append(entry)
                entry = self._waiting.get_nowait()
        except Empty:
            return batch, False
        return batch, True

    def _write(self, batch: list[_Entry]) -> None:
        failure: Exception | None = None
        started = time.monotonic()
        lost = self._lost
        try:
            if all(entry.trial for entry in batch):
                self._file.check()
            bodies = [*self._loss(lost), *(entry.body for entry in batch if entry.body)]
            if bodies:
                self._file.append(bodies)
            if lost:
                with self._counting:
                    self._lost -= lost
        except Exception as error:  # whatever it is: these calls are refused, and the thread lives on
            failure = error
        for entry in batch:
            entry.failure = failure
            entry.done.release()
        self._report(failure, time.monotonic() - started)

    def _loss(self, lost: int) -> list[bytes]:
        if not lost:
            return []
        return [_encode(of_log("auditRecordsLost", self._path.stem, {"records": lost})).encode()]

    def _report(self, failure: Exception | None, seconds: float) -> None:
        """Tell operators when writing begins to fail and when it works again, not at every call."""
        if failure is not None and not self._failing:
            fate = "calls go unrecorded" if self._forgiving else "calls are refused"
            _log.error("the audit log %s can't be written, %s: %s", self._path, fate, failure)
        elif failure is None and self._failing:
            _log.warning("the audit log %s is written again", self._path)
        elif seconds > 1.0:
            _log.warning("the audit log %s was slow: %.1f s for one write", self._path, seconds)
        self._failing = failure is not None
