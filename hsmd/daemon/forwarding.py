"""Forwards the audit log to receivers elsewhere, at least once: the log itself is the spool.

One thread a receiver, in the warden, sealed or not: neither the token nor the store is needed. A cursor on
disk says how far the receiver has taken each chain, and moves only then; so whatever breaks, what the cursor
does not count is sent again. Within a chain the order stays. Who is far behind costs no more memory than a
batch.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from hsmd.audit import cursors, segments
from hsmd.audit.cursors import SUFFIXES, Cursor
from hsmd.audit.onwards import Onwards, Record
from hsmd.config import Audit, Forward
from hsmd.daemon.receivers import ForwardError, Receiver, open_receiver

_LOOK_SECONDS = 1.0
_CONFIRM_SECONDS = 10.0  # after which what was sent is confirmed, however little
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_PARTING_SECONDS = 2.0
_BATCH_BYTES = 1024 * 1024

log = logging.getLogger(__name__)

Chain = tuple[str, str]
"""Its files' suffix, and its name."""


def threads(settings: Audit, stopping: threading.Event) -> list[threading.Thread]:
    """One a receiver, not yet started. Raises ConfigError."""
    forwarders = [
        Forwarder(settings, each, open_receiver(f"audit.forward[{index}]", each))
        for index, each in enumerate(settings.forward)
    ]
    return [
        threading.Thread(target=each.run, args=(stopping,), daemon=True, name="forward")
        for each in forwarders
    ]


def part(forwarders: Sequence[threading.Thread]) -> None:
    """Wait for those that were told to stop; one whose receiver hangs is left to itself."""
    for each in forwarders:
        each.join(_PARTING_SECONDS)


class Forwarder:
    """Forwards all chains of one directory, and then the checkpoints, to one receiver. For one thread."""

    def __init__(self, settings: Audit, target: Forward, receiver: Receiver) -> None:
        self._directory = settings.directory
        self._target = target
        self._receiver = receiver
        self._path = cursors.path_of(settings.directory, target.name)
        self._cursor: Cursor | None = None
        self._sent: dict[Chain, int] = {}  # all of it, confirmed or not
        self._readers: dict[Chain, Onwards] = {}
        self._unconfirmed = 0
        self._lost = 0  # before those
        self._missed: dict[Chain, int] = {}  # the last one that was told to be gone
        self._since = 0.0  # when the first of them was sent
        self._window = target.batch_records  # smaller for who is too slow for that
        self.pause = 0.0  # seconds before the next try, after a failure
        self._failing = False
        self._unsaved = ""  # why the cursor can't be written

    def run(self, stopping: threading.Event) -> None:
        """Forward until told to stop."""
        while not stopping.is_set():
            if not self.attend():
                stopping.wait(self.pause or _LOOK_SECONDS)
        self.part()

    def attend(self) -> bool:
        """One round over all chains; whether there is more to do at once. What goes wrong is told once."""
        try:
            more = self._round()
            if self._unconfirmed and (
                self._unconfirmed >= self._window or time.monotonic() - self._since >= _CONFIRM_SECONDS
            ):
                self._confirm()
        except (ForwardError, OSError, ValueError, segments.UnreadableError) as error:
            self._fail(error)
            return False
        except Exception as error:
            log.exception("the audit log is not forwarded to %s", self._target.name)
            self._fail(error)
            return False
        return more

    def part(self) -> None:
        """Confirm what was sent, and let go of everything."""
        try:
            if self._unconfirmed:
                self._confirm()
        except (ForwardError, OSError) as error:
            self._fail(error)
        self._drop()

    def _round(self) -> bool:
        if self._cursor is None:
            self._cursor = cursors.read(self._path)
            self._sent = dict(self._cursor.taken)
        more = False
        for suffix in SUFFIXES:
            there = segments.chains(self._directory, suffix) if self._directory.exists() else ()
            for name in there:
                more |= self._forward((suffix, name))
        return more

    def _forward(self, chain: Chain) -> bool:
        """One batch of a chain; whether there was one."""
        suffix, name = chain
        after = self._sent.get(chain, 0)
        reader = self._readers.get(chain)
        if reader is None:
            reader = self._readers[chain] = Onwards(self._directory, name, suffix, after)
        batch = reader.take(self._window, _BATCH_BYTES)
        if not batch:
            return False
        self._miss(chain, after, batch)
        self._receiver.send(name, batch)
        self._sent[chain] = batch[-1][0]
        if not self._unconfirmed:
            self._since = time.monotonic()
        self._unconfirmed += len(batch)
        if not self._receiver.holds or self._unconfirmed >= self._window:
            self._confirm()
        return True

    def _miss(self, chain: Chain, after: int, batch: Sequence[Record]) -> None:
        """Tell what is not on this disk any more, and was not forwarded: by the numbers of the records.

        Once, however often the batch comes again.
        """
        expected = after + 1
        for seq, _ in batch:
            if seq > expected:
                if seq - 1 > self._missed.get(chain, 0):
                    log.error(
                        "records %d to %d of %s are gone and were not forwarded to %s",
                        *(expected, seq - 1, chain[1], self._target.name),
                    )
                    self._missed[chain] = seq - 1
                self._lost += seq - expected
            expected = seq + 1

    def _confirm(self) -> None:
        self._receiver.confirm()
        assert self._cursor is not None  # noqa: S101  # it was read before
        if self._failing or self._cursor.error:
            log.warning("the audit log is forwarded to %s again", self._target.name)
        self._failing = False
        lost = self._cursor.lost + self._lost
        self._cursor = replace(self._cursor, taken=dict(self._sent), lost=lost, since="", error="")
        self._unconfirmed, self._lost, self.pause = 0, 0, 0.0
        self._window = min(self._window * 2, self._target.batch_records)
        self._save()

    def _fail(self, error: Exception) -> None:
        """Begin anew at the cursor, later and with less at a time."""
        self._drop()
        cursor = self._cursor or Cursor()
        pause = error.pause if isinstance(error, ForwardError) else 0.0
        self.pause = pause or min(max(self.pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
        self._window = max(self._window // 2, 1)
        if not self._failing:
            log.error("the audit log is not forwarded to %s: %s", self._target.name, error)
        self._failing = True
        if self._cursor is not None:
            since = cursor.since or datetime.now(UTC).isoformat(timespec="seconds")
            self._cursor = replace(cursor, since=since, error=str(error) or type(error).__name__)
            self._save()

    def _drop(self) -> None:
        self._receiver.drop()
        for each in self._readers.values():
            each.close()
        self._readers.clear()
        self._sent = dict(self._cursor.taken) if self._cursor else {}
        self._unconfirmed = self._lost = 0

    def _save(self) -> None:
        """A cursor that can't be written costs nothing but records that come twice, if this process ends."""
        assert self._cursor is not None  # noqa: S101  # it was read before
        trouble = ""
        try:
            cursors.write(self._path, self._cursor)
        except OSError as error:
            trouble = str(error)
        if trouble and not self._unsaved:
            log.error("%s can't be written, records may be forwarded twice: %s", self._path, trouble)
        self._unsaved = trouble
