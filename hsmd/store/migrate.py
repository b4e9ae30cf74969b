"""Runs the migrations, one process at a time.

SQLite: a lock on the file's directory from before the file is made until all is done; PostgreSQL: the
advisory lock of writers. Either way all migrations are one transaction: done or not begun.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, func, select

from hsmd.store import engine
from hsmd.store.core import ADVISORY_LOCK
from hsmd.store.engine import StoreError
from hsmd.store.faults import BUSY, FAILED, TRANSLATED
from hsmd.store.schema import REVISION

_WAIT_SECONDS = 60.0  # for another process that migrates


def upgrade(url: str) -> str:
    """See `hsmd.store.upgrade`."""
    address = engine.parse(url)
    path = engine.sqlite_path(address)
    writers = engine.build(address, writing=True, wait_seconds=_WAIT_SECONDS)
    try:
        if path is None:
            with TRANSLATED, writers.connect() as connection:
                connection.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK)))
                _migrate(connection)
        else:
            with _alone(path.parent):
                _create(path)
                with TRANSLATED, closing(writers.raw_connection()) as raw:
                    raw.cursor().execute("PRAGMA journal_mode=WAL")
                with TRANSLATED, writers.connect() as connection:
                    _migrate(connection)
    finally:
        writers.dispose()
    return REVISION


def _migrate(connection: Connection) -> None:
    found = engine.revision(connection)
    if found is not None and found > REVISION:
        raise StoreError(f"the store has schema {found}, this hsmd knows {REVISION}: a newer hsmd is due")
    if found == REVISION:
        return
    from alembic import command  # half a second, which most starts have no need of
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "hsmd.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.commit()


def _create(path: Path) -> None:
    """Make the file, for its owner only; SQLite gives its log the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StoreError(f"the store {path} can't be opened or made: {error.strerror}") from error


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StoreError(f"the store's directory {directory} can't be opened: {error.strerror}") from error
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise BUSY() from error
            time.sleep(0.05)
        except OSError as error:
            raise FAILED() from error
        else:
            return
