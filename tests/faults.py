"""Ways to break a standing daemon for real, from outside, and to look at what is left."""

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests import opencryptoki
from tests.softhsm import OPENCRYPTOKI
from tests.stand import Stand, children_of, eventually


@contextmanager
def frozen_token(stand: Stand) -> Iterator[None]:
    """The token hangs: its module waits, inside, for a lock on its objects' files.

    Whatever uses a token object hangs (unwrapping a key, sealing or checking a row); what needs nothing but
    loaded keys does not.
    """
    if OPENCRYPTOKI:
        with opencryptoki.lock_file(stand.settings["HSMD__HSM__TOKEN"]).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        return
    paths = list((stand.dev.data / "token").rglob("*.object"))
    assert len(paths) > 3  # the token's own, and three keys
    with ExitStack() as stack:
        for path in paths:
            fcntl.lockf(stack.enter_context(path.open("r+b")), fcntl.LOCK_EX)
        yield


@contextmanager
def absent_token(stand: Stand) -> Iterator[None]:
    """The token is gone, and comes back in the end."""
    (token,) = [path for path in (stand.dev.data / "token").iterdir() if path.is_dir()]
    aside = stand.dev.data / "token-aside"
    token.rename(aside)
    try:
        yield
    finally:
        aside.rename(token)


@contextmanager
def locked_store(stand: Stand) -> Iterator[None]:
    """Another process writes to the store and does not end."""
    with closing(sqlite3.connect(store_file(stand), timeout=30, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield


def store_file(stand: Stand) -> Path:
    return stand.dev.data / "store" / "hsmd.db"


def writable(stand: Stand) -> bool:
    """Whether nobody is writing to the store."""
    with closing(sqlite3.connect(store_file(stand), timeout=0, isolation_level=None)) as other:
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True


def rows(stand: Stand, query: str, *values: object) -> list[tuple[Any, ...]]:
    """What is in the store, read past hsmd."""
    with closing(sqlite3.connect(store_file(stand), timeout=30)) as connection:
        return connection.execute(query, values).fetchall()


def change_rows(stand: Stand, statement: str, *values: object) -> None:
    """Change the store behind hsmd's back."""
    with closing(sqlite3.connect(store_file(stand), timeout=30)) as connection, connection:
        assert connection.execute(statement, values).rowcount == 1


def supervisor(stand: Stand) -> int:
    assert stand.daemon is not None
    return stand.daemon.process.pid


def processes(stand: Stand, *, workers: int = 2) -> dict[int, str]:
    """Workers and warden by pid, once all of them are there."""

    def found() -> dict[int, str]:
        with suppress(FileNotFoundError, ProcessLookupError):
            named = {
                pid: Path(f"/proc/{pid}/comm").read_text().strip().removeprefix("hsmd-").partition("-")[0]
                for pid in children_of(supervisor(stand))
            }
            if sorted(named.values()) == ["warden", *["worker"] * workers]:
                return named
        return {}

    done: dict[int, str] = eventually(found)
    return done


def gone(pid: int) -> bool:
    """Whether the process has ended; one that only nobody has reaped counts as ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True
