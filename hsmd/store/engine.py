"""SQLAlchemy engines for both databases, set up so that nothing acknowledged is lost and BEGIN means BEGIN.

SQLite's driver would start transactions by itself, late and only for writes. So its own control is off
(`isolation_level=None`) and each transaction is begun here:
https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#enabling-non-legacy-sqlite-transactional-modes-with-the-sqlite3-or-aiosqlite-driver
"""

import sqlite3
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, select, table
from sqlalchemy import column as sql_column
from sqlalchemy import inspect as inspect_engine
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

WAIT_SECONDS = 5.0  # for other writers
POOL_SIZE = 16  # connections kept open; more are made when more threads come, and closed again

_PRAGMAS = (
    "PRAGMA synchronous=FULL",  # a commit is on disk before it is answered
    "PRAGMA foreign_keys=ON",
    "PRAGMA trusted_schema=OFF",  # a changed file must not run functions
    "PRAGMA cell_size_check=ON",  # damage is found before it is followed
    "PRAGMA secure_delete=ON",  # destroyed key material is overwritten, not only unlinked
)


class StoreError(Exception):
    """The store can't be used as it is; the text says why and what to do."""


def parse(url: str) -> URL:
    """The store's address: an SQLite file, or PostgreSQL by psycopg. Raises StoreError."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError(
            "the store's url is not one: sqlite:////path/to/file or postgresql://... is due"
        ) from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise StoreError(f"the store's url names {backend}: sqlite or postgresql is due")
    if not parsed.database or ":memory:" in parsed.database:
        raise StoreError("the store's url names no file: sqlite:////path/to/file is due")
    return parsed


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite store."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database)


def build(url: URL, *, writing: bool, wait_seconds: float = WAIT_SECONDS) -> Engine:
    """An engine whose transactions read one state, or write alone. Opens nothing yet."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, writing, wait_seconds)
    return _postgresql(url, writing, wait_seconds)


def _sqlite(url: URL, writing: bool, wait_seconds: float) -> Engine:
    # mode=rw: a file that is gone is an error, not a new and empty store
    address = url.set(database=f"file:{quote(str(sqlite_path(url)))}", query={"mode": "rw", "uri": "true"})
    engine = create_engine(
        address,
        poolclass=QueuePool,
        pool_size=POOL_SIZE,
        max_overflow=-1,
        hide_parameters=True,  # an error's text, and so the log, holds no content
        connect_args={"timeout": wait_seconds, "isolation_level": None, "check_same_thread": False},
    )
    begin = "BEGIN IMMEDIATE" if writing else "BEGIN"

    def prepare(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        # Text that isn't UTF-8 comes as surrogates: its row then fails its seal and is named.
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        for pragma in _PRAGMAS if writing else (*_PRAGMAS, "PRAGMA query_only=ON"):
            connection.execute(pragma)

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _postgresql(url: URL, writing: bool, wait_seconds: float) -> Engine:
    options = [url.query.get("options", ""), "-c synchronous_commit=on"]
    options += [f"-c lock_timeout={round(wait_seconds * 1000)}"]
    options += [] if writing else ["-c default_transaction_read_only=on"]
    try:
        return create_engine(
            url,
            pool_size=POOL_SIZE,
            max_overflow=-1,
            pool_pre_ping=True,  # the server may have been restarted meanwhile
            hide_parameters=True,  # as above
            isolation_level="READ COMMITTED" if writing else "REPEATABLE READ",
            connect_args={"connect_timeout": 5, "options": " ".join(map(str, options))},
        )
    except ModuleNotFoundError as error:
        raise StoreError("PostgreSQL needs the package psycopg: pip install 'hsmd[postgresql]'") from error


_VERSION = table("alembic_version", sql_column("version_num"))


def revision(connection: Connection) -> str | None:
    """The schema that the store has; None for none."""
    if not inspect_engine(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(select(_VERSION.c.version_num)).scalar_one_or_none()
    return found
