"""Backups on a host where no daemon runs: looked through, and brought back. With the HSM, by its PIN."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from hsmd import backupfile, configtext
from hsmd import store as stores
from hsmd.algorithms import BY_NAME, KEY_SPECS
from hsmd.audit.records import of_call
from hsmd.backupfile import BackupError, Header, Opening, Part, Reader
from hsmd.caller import Caller
from hsmd.config import ConfigError, Settings
from hsmd.daemon.wiring import Pin, now_millis, open_audit, open_core, open_token
from hsmd.domain import backups, restores, ukeys
from hsmd.domain.backups import CONFIGURATION, FILE, STORE, Made, Place
from hsmd.domain.core import SEALING_KEY_LABEL
from hsmd.domain.restores import Statement
from hsmd.errors import Error
from hsmd.hsm import BadData, Token
from hsmd.keyring import with_token_key
from hsmd.store import copies

_AUDIT_SECONDS = 5.0
_UNFINISHED = ".hsmd-restore-*.part"
_HOUR_MILLIS = 60 * 60 * 1000
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_CONFIGURATION_FILE = "hsmd.toml"
_POINT = KEY_SPECS["EC_P256"]

Told = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Looked:
    """What a backup holds: rows by table, keys that were unwrapped, names of files; and what is wrong."""

    header: Header
    digest: str
    rows: dict[str, int]
    keys: int
    files: list[str]
    trouble: list[str] = field(default_factory=list)
    approved: list[str] = field(default_factory=list)


def place(settings: Settings) -> Place:
    """Where this daemon's backups go, and what they hold of its configuration."""

    def configuration() -> list[tuple[str, str, bytes]]:
        found = [(CONFIGURATION, "", configtext.rendered(settings).encode())]
        for path in configtext.files(settings):
            with suppress(OSError):  # the gateway's, perhaps, on another host
                found.append((FILE, str(path), path.read_bytes()))
        return found

    return Place(settings.backup.directory, settings.store.url, configuration)


def create(settings: Settings, pin: Pin) -> Made:
    """A backup without a quorum, where there is none. Raises ConfigError, Error."""
    core = open_core(settings, pin)
    core.token.connect()
    try:
        core.store.check()
        with core.store.read() as tx:
            if ukeys.quorum(tx).administrators:
                raise ConfigError(
                    "administrators decide about backups: `hsmctl propose create-backup` is due"
                )
        audit = open_audit(settings, "backup")
        try:
            made = backups.create(core, place(settings))
            audit.append(_record("createBackup", made.digest, made.path.name), timeout=_AUDIT_SECONDS)
        finally:
            audit.close()
    finally:
        core.store.close()
        core.token.close()
    return made


def read(path: Path) -> Opening:
    """A backup's header as it stands there: only the HSM can tell whether it is right. Raises BackupError."""
    with path.open("rb") as file:
        return backupfile.read_opening(file)


def statement(path: Path, hours: float) -> Statement:
    """What administrators sign for the restore of this backup on this host, within so many hours."""
    return restores.statement(read(path), socket.gethostname(), now_millis() + round(hours * _HOUR_MILLIS))


def verify(settings: Settings, pin: Pin, path: Path, told: Told) -> Looked:
    """Look through a backup with the HSM: all bytes, rows, seals, wrapped keys. Raises BackupError, Error."""
    with _token(settings, pin) as token, _opened(path) as (file, opening):
        backups.check(token, opening)
        with tempfile.TemporaryDirectory(prefix="hsmd-verify-") as scratch:
            copied = Path(scratch) / "store.db"
            with copied.open("xb") as into:
                files = _unpack(token, file, opening, into, None, told)
            return _looked(token, opening, copied, files, told)


def restore(
    settings: Settings,
    pin: Pin,
    path: Path,
    *,
    wanted: Statement | None,
    approvals: Sequence[bytes],
    files: Path | None,
    tolerant: bool,
    told: Told,
) -> Looked:
    """Bring the store back where there is none, once everything in the backup has been found right.

    `files`: a folder, not there yet, for the configuration and the files that it names. `tolerant`: rows that
    were broken when the backup was made come along. Cut short anywhere, it has changed nothing, or it is all
    done.
    Raises BackupError, StoreError, Error, OSError.
    """
    copies.check_free(settings.store.url)
    target = copies.path_of(settings.store.url)
    with _token(settings, pin) as token, _opened(path) as (file, opening), ExitStack() as after:
        backups.check(token, opening)
        names = restores.check_approvals(opening, wanted, approvals, socket.gethostname(), now_millis())
        for left in target.parent.glob(_UNFINISHED):
            left.unlink(missing_ok=True)
        copied = target.parent / f".hsmd-restore-{os.getpid()}.part"
        after.callback(lambda: copied.unlink(missing_ok=True))
        folder = _new_folder(files, after) if files else None
        with open(os.open(copied, os.O_CREAT | os.O_EXCL | os.O_RDWR, _FILE_MODE), "wb") as into:  # noqa: PTH123  # its mode
            present = _unpack(token, file, opening, into, folder, told)
        found = _looked(token, opening, copied, present, told)
        if found.trouble and not tolerant:
            raise BackupError("; ".join(found.trouble[:5]))
        audit = open_audit(settings, "restore")
        after.callback(audit.close)
        if folder is not None and files is not None:
            folder.rename(files)
        audit.append(_record("restoreBackup", opening.digest, ", ".join(names)), timeout=_AUDIT_SECONDS)
        copies.take_place(copied, settings.store.url)
    stores.upgrade(settings.store.url)
    return replace(found, approved=names)


@contextmanager
def _token(settings: Settings, pin: Pin) -> Iterator[Token]:
    token = open_token(settings.hsm, pin)
    token.connect()
    try:
        yield token
    finally:
        token.close()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Opening]]:
    with path.open("rb") as file:
        yield file, backupfile.read_opening(file)


def _unpack(
    token: Token, file: BinaryIO, opening: Opening, store: BinaryIO, folder: Path | None, told: Told
) -> list[str]:
    """The store into its file, all else into the folder; the paths of all else."""
    found = []
    told("decrypting")
    with backups.reading(token, file, opening) as reader:
        for part in reader.parts():
            if part.name == STORE:
                reader.copy(part, store.write)
            else:
                found.append(part.path or _CONFIGURATION_FILE)
                _keep(reader, part, folder)
        reader.end()
    store.flush()
    os.fsync(store.fileno())
    return found


def _keep(reader: Reader, part: Part, folder: Path | None) -> None:
    if folder is None:
        reader.copy(part, lambda _: None)
        return
    inside = PurePosixPath(part.path or _CONFIGURATION_FILE)
    parts = [each for each in inside.parts if each not in ("/", "..", ".")]
    target = folder.joinpath(*parts)
    target.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    with open(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _FILE_MODE), "wb") as into:  # noqa: PTH123  # its mode
        reader.copy(part, into.write)


def _new_folder(files: Path, after: ExitStack) -> Path:
    """A folder that becomes `files` in the end."""
    if files.exists() or files.is_symlink():
        raise BackupError(f"{files} is there already: name a folder that is not")
    made = Path(tempfile.mkdtemp(prefix=".hsmd-restore-", dir=files.parent))

    after.callback(partial(shutil.rmtree, made, ignore_errors=True))
    return made


def _looked(token: Token, opening: Opening, copied: Path, files: list[str], told: Told) -> Looked:
    def seal(content: bytes) -> bytes:
        return with_token_key(token, SEALING_KEY_LABEL, lambda key: token.hmac(key, content))

    told("checking rows")
    whole = copies.check(copied, seal)
    trouble = [f"the row {each} fails its seal" for each in whole.broken]
    told("unwrapping keys")
    keys = 0
    for name, row, wrapped, label in copies.wrapped(copied):
        try:
            _unwraps(token, row, wrapped, label)
        except (BadData, Error) as error:
            trouble.append(f"{name} can't be unwrapped by {label}: {type(error).__name__}")
        keys += 1
    return Looked(opening.header, opening.digest, whole.rows, keys, files, trouble)


def _unwraps(token: Token, row: str, wrapped: bytes, label: str) -> None:
    handle = with_token_key(token, label, lambda root: token.unwrap(BY_NAME[row], wrapped, root))
    token.destroy(handle)


def _record(event: str, digest: str, text: str) -> dict[str, object]:
    return of_call(
        Caller("system", user_name=text, source="local"),
        event=event,
        method="hsmctl backup",
        result="OK",
        resource=f"backup/{digest}",
        key_version=0,
        process="backup",
        seconds=0.0,
    )
