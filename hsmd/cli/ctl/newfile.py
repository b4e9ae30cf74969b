"""A file that appears under its name only when it is whole, and otherwise leaves nothing behind."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_MODE = 0o600
# What open() answers where unnamed files are not supported: by the file system, by the kernel.
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file to write, mode 0600; it becomes `path`, synced, when the block ends without an exception.

    Until then it has no name, so that even a killed process or a power cut leaves nothing; where the file
    system has no unnamed files it is called `.hsmctl-*.part`. An existing regular file is replaced in
    one step, with `force` only. Raises OSError.
    """
    target = Path(os.path.realpath(path))
    _check(target, force=force)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    temporary = target.parent / f".hsmctl-{secrets.token_hex(8)}.part"
    try:
        with _open(target.parent, temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not temporary.exists():
                # follow_symlinks takes effect only together with a directory's descriptor
                os.link(f"/proc/self/fd/{file.fileno()}", temporary, src_dir_fd=folder, follow_symlinks=True)
        _publish(temporary, target, force=force)
        os.fsync(folder)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(folder)


def _check(target: Path, *, force: bool) -> None:
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file; --out - writes to standard output", str(target))
    if not force:
        raise _exists(target)


def _exists(target: Path) -> OSError:
    return FileExistsError(errno.EEXIST, "exists already; --force replaces it", str(target))


def _open(folder: Path, temporary: Path) -> BinaryIO:
    try:
        if Path("/proc/self/fd").exists():  # the way from the unnamed file to its name
            return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_WRONLY, _MODE), "wb")
    except OSError as error:
        if error.errno not in _NO_UNNAMED:
            raise
    return os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _MODE), "wb")


def _publish(temporary: Path, target: Path, *, force: bool) -> None:
    if force:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)  # unlike rename(), it refuses a name that was taken meanwhile
    except FileExistsError:
        raise _exists(target) from None
    except OSError:  # no hard links here (FAT)
        _check(target, force=False)
        temporary.rename(target)
