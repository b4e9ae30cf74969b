"""A consistent copy of the store while others write to it, and whether a copy is whole.

Of an SQLite store: one state, compacted, so that nothing of what was deleted comes along. PostgreSQL has
means of its own for that (pg_dump, base backups), which hsmd does not replace.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from hsmd.disk import sync_directory
from hsmd.store import engine
from hsmd.store.core import Seal
from hsmd.store.engine import StoreError
from hsmd.store.schema import METADATA, REVISION
from hsmd.store.seals import holds

_MODE = 0o600
_ROWS = 500


@dataclass(frozen=True, slots=True)
class Whole:
    """What was found in a copy: its schema, how many rows each table has, and which fail their seals."""

    schema: str
    rows: dict[str, int]
    broken: list[str] = field(default_factory=list)


def path_of(url: str) -> Path:
    """The file of an SQLite store. Raises StoreError for PostgreSQL."""
    path = engine.sqlite_path(engine.parse(url))
    if path is None:
        raise StoreError(
            "the store is PostgreSQL: back it up by its own means (pg_dump or a base backup), which are "
            "consistent while hsmd runs; what keys are in it is wrapped by the root key"
        )
    return path


def copy(url: str, into: Path) -> None:
    """The store as it is at one moment, in a new file for its owner only. Raises StoreError, OSError."""
    source = path_of(url)
    os.close(os.open(into, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _MODE))
    try:
        with closing(_opened(source)) as connection:
            connection.execute("VACUUM INTO ?", (str(into),))
    except sqlite3.Error as error:
        raise StoreError(f"the store can't be copied: {error}") from error


def check(path: Path, seal: Seal, told: Callable[[str], object] = lambda _: None) -> Whole:
    """Look at all of a store that nobody uses: its pages, its references, its schema, every row's seal.

    `told` hears the name of each table. Raises StoreError when it is damaged or of a newer hsmd.
    """
    try:
        with closing(_opened(path)) as connection:
            _check_pages(connection)
            (schema,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if schema > REVISION:
                raise StoreError(f"it has schema {schema}, this hsmd knows {REVISION}: a newer hsmd is due")
            return _rows(connection, schema, seal, told)
    except (sqlite3.Error, TypeError) as error:
        raise StoreError(f"the store in it is damaged: {error}") from error


def wrapped(path: Path) -> Iterator[tuple[str, str, bytes, str]]:
    """All that root keys have wrapped in a store that nobody uses: its name, algorithm, blob, root label."""
    queries = (
        ("key", "key_id || '/' || version", "algorithm", "key_versions"),
        ("access key", "id", "'ACCESS_KEY'", "access_keys"),
        ("access point", "id", "'EC_P256'", "access_points"),
    )
    with closing(_opened(path)) as connection:
        for kind, name, algorithm, table in queries:
            found = connection.execute(
                f"SELECT {name}, {algorithm}, wrapped, root_label FROM {table}"  # noqa: S608  # all ours
                " WHERE wrapped IS NOT NULL AND root_label != ''"
            )
            for identifier, row, blob, label in found:
                yield f"{kind} {identifier}", row, blob, label


def take_place(copied: Path, url: str) -> None:
    """The copy becomes the store, where there is none; whole or not at all. Raises StoreError, OSError."""
    target = path_of(url)
    check_free(url)
    with closing(sqlite3.connect(copied, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with copied.open("rb") as file:
        os.fsync(file.fileno())
    try:
        os.link(copied, target)  # unlike a renaming, it replaces nothing that came meanwhile
    except FileExistsError as error:
        raise StoreError(f"there is a store at {target}") from error
    copied.unlink()
    sync_directory(target.parent)


def check_free(url: str) -> None:
    """Raises StoreError when something stands where the store is to be."""
    target = path_of(url)
    for path in (target, *(target.with_name(target.name + end) for end in ("-wal", "-shm", "-journal"))):
        if path.is_symlink() or path.exists():
            raise StoreError(f"{path} is there: a store is restored where there is none; move it away first")


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None, timeout=30
    )
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    for pragma in ("PRAGMA trusted_schema=OFF", "PRAGMA cell_size_check=ON"):
        connection.execute(pragma)
    return connection


def _check_pages(connection: sqlite3.Connection) -> None:
    found = [text for (text,) in connection.execute("PRAGMA integrity_check(1)")]
    if found != ["ok"]:
        raise StoreError(f"the store in it is damaged: {found[0] if found else 'no answer'}")
    if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise StoreError("the store in it is damaged: rows refer to rows that are not there")


def _rows(connection: sqlite3.Connection, schema: str, seal: Seal, told: Callable[[str], object]) -> Whole:
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    whole = Whole(schema, {})
    for table in METADATA.sorted_tables:
        if table.name not in present:  # of an older schema
            continue
        told(table.name)
        (whole.rows[table.name],) = connection.execute(f"SELECT count(*) FROM {table.name}").fetchone()  # noqa: S608  # ours
        if "seal" in table.c:
            cursor = connection.execute(f"SELECT * FROM {table.name}")  # noqa: S608  # our own table's name
            names = [each[0] for each in cursor.description]
            key = [column.name for column in table.primary_key]
            while found := cursor.fetchmany(_ROWS):
                for values in found:
                    row = dict(zip(names, values, strict=True))
                    if not holds(table, row, seal):
                        whole.broken.append(f"{table.name} {'/'.join(str(row[name]) for name in key)}")
    return whole
