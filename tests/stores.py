"""Stores for tests: on SQLite always, on PostgreSQL when HSMD_TEST_POSTGRESQL is a superuser's URL."""

import hmac
import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from hsmd.store import Store, upgrade
from hsmd.store.keys import Key, KeyVersion

POSTGRESQL = os.environ.get("HSMD_TEST_POSTGRESQL", "")


def seal(content: bytes) -> bytes:
    return hmac.digest(b"the sealing key", content, "sha256")


@contextmanager
def new_url(kind: str, directory: Path) -> Iterator[str]:
    """The URL of a database that is empty, or not there yet."""
    if kind == "sqlite":
        yield f"sqlite:///{directory}/store.db"
        return
    if not POSTGRESQL:
        pytest.skip("HSMD_TEST_POSTGRESQL names no server")
    name = f"hsmd_test_{uuid.uuid4().hex}"
    with closing(psycopg.connect(POSTGRESQL, autocommit=True)) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield make_url(POSTGRESQL).set(database=name).render_as_string(hide_password=False)
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables, of each kind."""
    with new_url(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def store_url(empty_url: str) -> str:
    """A database with our tables, of each kind."""
    upgrade(empty_url)
    return empty_url


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An open store of each kind."""
    with closing(Store(store_url, seal)) as store:
        yield store


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """An SQLite store."""
    url = f"sqlite:///{tmp_path}/store.db"
    upgrade(url)
    return url


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
        with closing(sqlite3.connect(path_of(url), isolation_level=None)) as connection:
            return connection.execute(statement, values).fetchall()
    with closing(psycopg.connect(url, autocommit=True)) as server:
        server.execute("SET session_replication_role = replica")
        cursor = server.execute(statement.replace("?", "%s").encode(), values)
        return cursor.fetchall() if cursor.description else []


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
