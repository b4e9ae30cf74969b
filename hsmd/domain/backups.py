"""Backups: the store as it is at one moment, the configuration, and what says how they come back.

The keys in a backup are wrapped by the root key, as in the store; the backup besides is encrypted by a key of
its own, which is born in the HSM, used there, and stands in it wrapped by the root key. So it is worth
nothing without an HSM that holds the root key and the sealing key: this one, or one that the ceremony has
restored. Who restores needs as many administrators' UKeys as the quorum was when the backup was made.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from hsmd import __version__, backupfile
from hsmd.algorithms import AES_256
from hsmd.backupfile import Administrator, BackupError, Header, Opening, Part, Reader, Writer
from hsmd.disk import sync_directory
from hsmd.domain import ukeys
from hsmd.domain.core import SEALING_KEY_LABEL, Core
from hsmd.errors import BACKUP_REFUSED, UNAVAILABLE, Error
from hsmd.hsm import BadData, Handle, Token
from hsmd.keyring import with_token_key
from hsmd.store import StoreError, Tx, copies, roots
from hsmd.store.schema import REVISION

STORE, CONFIGURATION, FILE = "store", "configuration", "file"  # names of parts
_PIECE = 1 << 20
_MODE = 0o600
_UNFINISHED = ".hsmd-*.part"
_END = ".backup"


@dataclass(frozen=True, slots=True)
class Place:
    """Where backups go, and what of the configuration goes into them: (name, path, content) of each part.

    `url` is the store's.
    """

    folder: Path
    url: str
    configuration: Callable[[], list[tuple[str, str, bytes]]]


@dataclass(frozen=True, slots=True)
class Made:
    """A backup. `digest` names it, `size` is in bytes."""

    path: Path
    digest: str
    size: int
    header: Header


class Workshop:
    """Makes backups for calls that may not wait for as long as that takes."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[Made]] = {}

    def made(self, core: Core, name: str, seconds: float) -> Made:
        """The backup of that name, begun now or by an earlier call.

        Raises Error(UNAVAILABLE) when it is not done in time: it goes on, and the same call finds it later.
        Raises what `create` does; the same call then begins anew.
        """
        with self._lock:
            found = self._under_way.get(name)
            if found is None:
                found = self._under_way[name] = Future()
                threading.Thread(target=self._make, args=(core, found), name="backup", daemon=True).start()
        try:
            made = found.result(timeout=seconds)
        except TimeoutError as error:
            reason = "the backup is still being made: carry the same out once more to see its end"
            raise Error(UNAVAILABLE, reason=reason) from error
        except BaseException:
            self._forget(name, found)
            raise
        self._forget(name, found)
        return made

    def _make(self, core: Core, future: "Future[Made]") -> None:
        try:
            future.set_result(create(core, self.place))
        except BaseException as error:  # told to whoever waits
            future.set_exception(error)

    def _forget(self, name: str, future: "Future[Made]") -> None:
        with self._lock:
            if self._under_way.get(name) is future:
                del self._under_way[name]


def check_place(place: Place) -> None:
    """Raises Error(BACKUP_REFUSED) for a store that is backed up by other means."""
    try:
        copies.path_of(place.url)
    except StoreError as error:
        raise Error(BACKUP_REFUSED, reason=str(error)) from error


def create(core: Core, place: Place) -> Made:
    """Make a backup of what stands now. Raises Error(BACKUP_REFUSED); then nothing is left behind."""
    core.refresh()
    try:
        with _alone(place.folder):
            return _create(core, place)
    except StoreError as error:
        raise Error(BACKUP_REFUSED, reason=str(error)) from error
    except OSError as error:
        reason = (
            "there is no room for it"
            if error.errno == errno.ENOSPC
            else f"it can't be written: {error.strerror}"
        )
        raise Error(BACKUP_REFUSED, reason=reason) from error


def check(token: Token, opening: Opening) -> None:
    """That this HSM has what the backup needs, and its header is as it was written. Raises BackupError."""
    header, labels = opening.header, token.labels()
    if not roots.number(header.root_label) or header.root_label not in labels:
        raise BackupError(f"this HSM lacks the root key {header.root_label[:64]} that it needs")
    found = with_token_key(token, header.root_label, token.check_value)
    if found != header.check_value:
        raise BackupError(f"the {header.root_label} of this HSM is another one than that of the backup")
    if SEALING_KEY_LABEL not in labels:
        raise BackupError(f"this HSM lacks the key {SEALING_KEY_LABEL} that the store needs")
    if not opening.is_whole(_mac(token)):
        raise BackupError("its header was changed, or this HSM has another sealing key than the backup's")


@contextmanager
def reading(token: Token, file: BinaryIO, opening: Opening) -> Iterator[Reader]:
    """What is in a backup whose header was checked. Raises BackupError."""
    wrapped = opening.header.data_key
    try:
        key = with_token_key(
            token, opening.header.root_label, lambda root: token.unwrap(AES_256, wrapped, root)
        )
    except BadData as error:
        raise BackupError("its data key is not wrapped by the root key that it names") from error
    try:
        yield Reader(file, opening, lambda iv, data, aad: token.decrypt(key, iv, data, aad), BadData)
    finally:
        token.destroy(key)


def _create(core: Core, place: Place) -> Made:
    name = f"hsmd-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    ukeys.instance(core)  # made now, if ever, so that it is in the copy
    target, written = place.folder / (name + _END), place.folder / f".{name}.part"
    copied = place.folder / f".{name}.db.part"
    try:
        copies.copy(place.url, copied)
        with copied.open("rb") as store:
            copied.unlink()  # it stays as long as it is open: a kill -9 leaves nothing from now on
            configuration = place.configuration()
            opening = _written(core, written, store, place, configuration)
        os.link(written, target)
        sync_directory(place.folder)
    finally:
        for each in (copied, written):
            each.unlink(missing_ok=True)
    return Made(target, opening.digest, target.stat().st_size, opening.header)


def _written(
    core: Core, path: Path, store: BinaryIO, place: Place, configuration: Sequence[tuple[str, str, bytes]]
) -> Opening:
    token, label = core.token, core.root_label()
    data_key = with_token_key(token, label, lambda root: token.generate(AES_256, root))
    with core.store.read() as tx:
        header = _header(core, tx, label, data_key)
    front, digest = backupfile.begin(header, _mac(token))
    parts = [_part(STORE, str(copies.path_of(place.url)), _pieces(store))]
    parts += [_part(name, where, [content]) for name, where, content in configuration]
    key = with_token_key(token, label, lambda root: token.unwrap(AES_256, data_key, root))
    try:
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _MODE), "wb") as file:  # noqa: PTH123  # its mode
            file.write(front)
            writer = Writer(file, digest, lambda iv, data, aad: token.encrypt(key, iv, data, aad))
            writer.begin_parts(parts)
            for piece in _pieces(store):
                writer.write(piece)
            for _, _, content in configuration:
                writer.write(content)
            writer.end()
            file.flush()
            os.fsync(file.fileno())
    finally:
        _unload(token, key)
    with path.open("rb") as file:
        return backupfile.read_opening(file)


def _header(core: Core, tx: Tx, label: str, data_key: bytes) -> Header:
    return Header(
        created=core.clock(),
        version=__version__,
        instance=ukeys.instance(core),
        region=core.region,
        schema=REVISION,
        root_label=label,
        check_value=with_token_key(core.token, label, core.token.check_value),
        data_key=data_key,
        needed=ukeys.quorum(tx).administrators,
        administrators=tuple(
            Administrator(each.id, each.name, each.fingerprint, each.public_key)
            for each in ukeys.registry_in(tx).living(ukeys.ADMINISTRATOR)
        ),
    )


def _part(name: str, path: str, pieces: Iterator[bytes] | list[bytes]) -> Part:
    hashed, size = hashlib.sha256(), 0
    for piece in pieces:
        hashed.update(piece)
        size += len(piece)
    return Part(name, path, size, hashed.hexdigest())


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(_PIECE):
        yield piece


def _mac(token: Token) -> backupfile.Mac:
    return lambda data: with_token_key(token, SEALING_KEY_LABEL, lambda key: token.hmac(key, data))


def _unload(token: Token, key: Handle) -> None:
    with suppress(Error):  # gone with the token
        token.destroy(key)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One backup at a time, in a folder for its owner only; what an earlier one left unfinished goes."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Error(BACKUP_REFUSED, reason="another one is being made") from error
        for left in folder.glob(_UNFINISHED):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)
