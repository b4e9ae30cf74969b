"""A PostgreSQL server for tests: on a socket in a folder of its own, nothing kept safe, gone with them."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL

from hsmd.store import upgrade

_INITDB = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)  # as Debian has it
_OWNER = "postgres"  # the server does not run as root
_OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "200",
    "autovacuum": "off",
}
_BEGIN_SECONDS = 120.0
# It ends when our end of its standard input is closed, also by kill -9.
_SERVE = 'exe=$1; shift; "$exe" "$@" & cat >/dev/null; kill -QUIT $!; wait'
_TEMPLATE = "hsmd_template"


def is_installed() -> bool:
    """Whether there is one to begin."""
    return _INITDB is not None


@contextmanager
def serving() -> Iterator[str]:
    """The URL of a superuser of a new server, which has a database with our tables to copy."""
    folder = Path(tempfile.mkdtemp(prefix="hsmd-pg-", dir="/tmp"))  # a socket's path is short
    try:
        with _server(folder) as url:
            prepared = new_database(url, _TEMPLATE, template="template0")
            upgrade(prepared)
            yield url
    finally:
        shutil.rmtree(folder)


def new_database(url: str, name: str, template: str = _TEMPLATE) -> str:
    """Another database on that server, a copy of the one with our tables unless said; its URL."""
    with closing(psycopg.connect(url, autocommit=True)) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY".encode())
    return url.replace("/postgres?", f"/{name}?")


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    assert _INITDB is not None
    how: dict[str, Any] = {"env": {"PATH": os.defpath, "LC_ALL": "C"}, "cwd": "/"}
    if os.geteuid() == 0:
        shutil.chown(folder, _OWNER, _OWNER)
        how |= {"user": _OWNER, "group": _OWNER, "extra_groups": []}
    data = folder / "data"
    initdb = [str(_INITDB), "--no-sync", "--no-instructions", "-A", "trust", "-U", _OWNER, "-E", "UTF8"]
    subprocess.run([*initdb, "-D", str(data)], check=True, capture_output=True, **how)
    options = [word for name, value in _OPTIONS.items() for word in ("-c", f"{name}={value}")]
    postgres = [str(_INITDB.with_name("postgres")), "-D", str(data), "-k", str(folder), *options]
    with (folder / "log").open("wb") as log:
        serve = ["sh", "-c", _SERVE, "sh", *postgres]
        process = subprocess.Popen(serve, stdin=subprocess.PIPE, stdout=log, stderr=log, **how)
    url = URL.create("postgresql", username=_OWNER, database="postgres", query={"host": str(folder)})
    try:
        _wait(process, address := url.render_as_string(hide_password=False), folder / "log")
        yield address
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + _BEGIN_SECONDS
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"no PostgreSQL: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)
        else:
            return
