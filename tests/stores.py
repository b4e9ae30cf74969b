"""Stores for tests: on SQLite always, on PostgreSQL where it is installed."""

import hmac
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from hsmd.store import Store, upgrade
from hsmd.store.keys import Key, KeyVersion
from tests import postgresql

KINDS = ["sqlite", "postgresql"]


def seal(content: bytes) -> bytes:
    return hmac.digest(b"the sealing key", content, "sha256")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a superuser of a PostgreSQL that these tests have for themselves."""
    if not postgresql.is_installed():
        pytest.skip("PostgreSQL is not installed")
    with postgresql.serving() as url:
        yield url


@contextmanager
def new_url(
    request: pytest.FixtureRequest, kind: str, directory: Path, *, upgraded: bool = False
) -> Iterator[str]:
    """The URL of a database that is empty, or not there yet; or that has our tables."""
    if kind == "sqlite":
        yield _sqlite(directory) if upgraded else f"sqlite:///{directory}/store.db"
        return
    server, name = request.getfixturevalue("postgresql_server"), f"hsmd_test_{uuid.uuid4().hex}"
    url = postgresql.new_database(server, name, *([] if upgraded else ["template0"]))
    try:
        yield url
    finally:
        behind_its_back(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables, of each kind."""
    with new_url(request, request.param, tmp_path) as url:
        yield url


@pytest.fixture(params=KINDS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with our tables, of each kind."""
    with new_url(request, request.param, tmp_path, upgraded=True) as url:
        yield url


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An open store of each kind."""
    with closing(Store(store_url, seal)) as store:
        yield store


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """An SQLite store."""
    return _sqlite(tmp_path)


def _sqlite(directory: Path) -> str:
    """A copy of one with our tables; to make them step by step takes longer than most tests."""
    path = directory / "store.db"
    path.write_bytes(_template())
    path.chmod(0o600)
    return f"sqlite:///{path}"


@cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        upgrade(f"sqlite:///{path}")
        return path.read_bytes()


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[Store]:
    """An open SQLite store."""
    with closing(Store(sqlite_url, seal)) as store:
        yield store


def path_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def is_sqlite(url: str) -> bool:
    return url.startswith("sqlite")


def behind_its_back(url: str, statement: str, *values: object) -> list[Any]:
    """Run SQL as someone who has the database but not our program: no foreign keys, no seals."""
    if is_sqlite(url):
        with closing(sqlite3.connect(path_of(url), timeout=30, isolation_level=None)) as connection:
            return connection.execute(statement, values).fetchall()
    if _superuser(url).closed:
        _superuser.cache_clear()
    cursor = _superuser(url).execute(statement.replace("?", "%s").encode(), values)
    return cursor.fetchall() if cursor.description else []


@lru_cache(maxsize=1)
def _superuser(url: str) -> psycopg.Connection[Any]:
    """Kept, since one test may run a thousand statements."""
    connection = psycopg.connect(url, autocommit=True)
    connection.execute("SET session_replication_role = replica")
    return connection


def make_key(number: int = 1, **changes: Any) -> Key:
    key = Key(
        id=f"key-{number}",
        project_id="project",
        domain_id="domain",
        alias=f"alias-{number}",
        description="",
        spec="AES_256",
        usage="ENCRYPT_DECRYPT",
        origin="kms",
        state=2,
        is_default=False,
        created=1_700_000_000_000 + number,
        deletion_date=None,
        enterprise_project_id="0",
        current_version=1,
    )
    return replace(key, **changes)


def make_version(key: Key) -> KeyVersion:
    wrapped = b"wrapped " + key.id.encode() * 4
    return KeyVersion(key.id, 1, "AES_256", wrapped, "hsmd-root-1", key.created, destroyed=None)


def child(body: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process that runs `body`, which finds its arguments in `sys.argv` and this module's names."""
    head = "import sys\nfrom tests.stores import *\nfrom hsmd.store import *\nfrom hsmd.store.keys import *\n"
    command = [sys.executable, "-c", head + body, *map(str, arguments)]
    root = Path(__file__).parent.parent
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, bufsize=1
    )
