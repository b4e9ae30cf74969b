"""The notary: follows all chains of the audit log, has checkpoints signed in the HSM, packs what is full.

One a node, in the warden. It holds the lock on the chain of checkpoints.
"""

import fcntl
import gzip
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from hsmd import metrics
from hsmd.audit import checkpoints, segments
from hsmd.audit.checkpoints import CheckpointFile
from hsmd.audit.file import Rotation
from hsmd.audit.follow import Follower
from hsmd.audit.segments import Segment
from hsmd.config import Audit, ConfigError
from hsmd.disk import sync_directory
from hsmd.domain.core import AUDIT_KEY_LABEL
from hsmd.errors import Error
from hsmd.hsm import Token

_LOOK_SECONDS = 1.0
_PARTING_LOOK_SECONDS = 0.1
_PART = ".part"
_LOCK = "daemon.lock"

log = logging.getLogger(__name__)


def rotation(settings: Audit) -> Rotation:
    """When a segment is full."""
    return Rotation(int(settings.segment_megabytes * 1024 * 1024), settings.segment_hours * 3600)


def ensure_key(settings: Audit, token: Token) -> None:
    """Make the audit key, unless it is there. Raises ConfigError when it was there: it signed checkpoints."""
    if token.has_signing_key(AUDIT_KEY_LABEL):
        return
    try:
        signed = checkpoints.last(settings.directory)
    except OSError:  # what can't be read says nothing; calls will be refused anyway
        signed = None
    if signed is not None:
        raise ConfigError(
            f"the token lacks {AUDIT_KEY_LABEL}, which has signed {settings.directory}: restore the key, or"
            " keep that directory elsewhere and begin a new one"
        )
    token.destroy_labelled([AUDIT_KEY_LABEL])  # half of a pair, perhaps, by which nothing was signed
    token.make_signing_key(AUDIT_KEY_LABEL, extractable=False)
    log.info("the token has an audit key from now on: %s", AUDIT_KEY_LABEL)


@contextmanager
def only_daemon(settings: Audit) -> Iterator[None]:
    """Keep other daemons from this log, for as long as this process lives. Raises ConfigError.

    What is not known when the directory can't be used yet: then its files keep them out, one by one.
    """
    path = settings.directory / _LOCK
    try:
        settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = _open_private(path)
    except OSError as error:
        log.warning("the audit log's directory can't be used, calls will be refused: %s", error)
        yield
        return
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: forks don't hold it
        except OSError as error:
            raise ConfigError(f"audit.directory: another daemon writes to {settings.directory}") from error
        yield


class Notary:
    """Signs for the log in one directory, with one token. For one thread."""

    def __init__(self, settings: Audit, token: Token) -> None:
        self._settings = settings
        self._token = token
        self._follower: Follower | None = None
        self._file: CheckpointFile | None = None
        self.unsigned = 0  # records that no checkpoint counts yet
        self.since = 0.0  # when the first of them was seen
        self._trouble = ""

    def run(self, stopping: threading.Event) -> None:
        """Look after the log until told to stop."""
        while not stopping.wait(min(_LOOK_SECONDS, self._settings.checkpoint_seconds)):
            self.attend()

    def attend(self, *, last: bool = False) -> None:
        """One look; what goes wrong is logged when it begins. `last`: sign whatever there is."""
        trouble = ""
        try:
            self._look()
            if self._is_due() or (last and self.unsigned):
                self._sign()
            self._pack()
        except (Error, ConfigError, OSError, ValueError) as error:
            trouble = str(error)
        if trouble and trouble != self._trouble:
            log.error("the audit log gets no checkpoints: %s", trouble)
        elif self._trouble and not trouble:
            log.info("the audit log gets checkpoints again")
        self._trouble = trouble
        metrics.AUDIT_UNSIGNED.set(self.unsigned)
        metrics.AUDIT_LAG.set(time.monotonic() - self.since if self.unsigned else 0)

    def part(self, seconds: float) -> None:
        """Sign for all that was written, once nobody writes any more, or after that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._is_written():
            time.sleep(_PARTING_LOOK_SECONDS)
        self.attend(last=True)
        self._let_go()

    def _let_go(self) -> None:
        if self._follower is not None:
            self._follower.close()
        if self._file is not None:
            self._file.close()
        self._follower = self._file = None

    def _look(self) -> None:
        if self._follower is None:
            found = checkpoints.last(self._settings.directory)
            self._follower = Follower(self._settings.directory, found.chains if found else {})
        new = self._follower.look()
        for text in self._follower.trouble():
            log.critical("the audit log was changed: %s", text)
            metrics.AUDIT_CHANGED.inc()
        if new and not self.unsigned:
            self.since = time.monotonic()
        self.unsigned += new

    def _is_due(self) -> bool:
        if self.unsigned >= self._settings.checkpoint_records:
            return True
        return self.unsigned > 0 and time.monotonic() - self.since >= self._settings.checkpoint_seconds

    def _sign(self) -> None:
        assert self._follower is not None  # noqa: S101  # there was a look
        if self._settings.durable:
            self._follower.sync()  # a checkpoint must not outlive what it counts
        if self._file is None:
            ensure_key(self._settings, self._token)  # it may have been away when the daemon started
            self._file = CheckpointFile(
                self._settings.directory,
                lambda message: self._token.sign_with(AUDIT_KEY_LABEL, message),
                durable=self._settings.durable,
                rotation=rotation(self._settings),
            )
        # Asked for each time: another token may have come in its place.
        self._file.append(self._follower.heads, self._token.public_key_of(AUDIT_KEY_LABEL))
        self.unsigned = 0

    def _is_written(self) -> bool:
        """Whether a process still holds its file."""
        with suppress(OSError):
            for known in segments.chains(self._settings.directory).values():
                if known[-1].first == segments.ACTIVE and segments.is_held(known[-1].path):
                    return True
        return False

    def _pack(self) -> None:
        """Compress one rotated segment that is counted, if there is one."""
        if not self._settings.compress or not self._settings.directory.exists():
            return
        found = checkpoints.last(self._settings.directory)
        signed = {name: head.seq for name, head in found.chains.items()} if found else {}
        for suffix in (segments.RECORDS, segments.CHECKPOINTS):
            for name, known in segments.chains(self._settings.directory, suffix).items():
                counted = signed.get(name, 0) if suffix == segments.RECORDS else known[-1].first
                for segment, following in pairwise(known):
                    end = _end(following)
                    if not segment.packed and 0 < end <= counted + 1:
                        pack(segment)
                        return


def _end(following: Segment) -> int:
    """The number of the record that the segment begins with; 0 when that can't be told yet."""
    return following.first if following.first != segments.ACTIVE else segments.first_record(following.path)


def pack(segment: Segment) -> None:
    """Compress a segment; the packed one takes its place only when it is whole, on disk. Raises OSError."""
    target = Path(f"{segment.path}{segments.PACKED}")
    part = Path(f"{target}{_PART}")
    with segment.path.open("rb") as plain, _open_private(part) as raw:
        raw.truncate()
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
            shutil.copyfileobj(plain, packed, 1024 * 1024)
        raw.flush()
        os.fsync(raw.fileno())
    part.replace(target)
    sync_directory(target.parent)
    segment.path.unlink()
    sync_directory(target.parent)


def _open_private(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+b")
