"""The store's one door: transactions, and what changed since. Both databases give the same promises.

A `Store` is made in the process that uses it, after the fork: connections don't survive one.

One writer at a time: on SQLite by BEGIN IMMEDIATE, on PostgreSQL by an advisory lock held to the
transaction's end, so that the change feed's numbers become visible in their order there too. The writers of
one process queue at a lock before that, since SQLite's own waiting is polling.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, bindparam, func, insert, select

from hsmd import metrics
from hsmd.counting import Timer
from hsmd.store import engine, feed
from hsmd.store.engine import WAIT_SECONDS, StoreError
from hsmd.store.faults import BUSY, TRANSLATED, faulted
from hsmd.store.feed import Change, Forgotten
from hsmd.store.schema import CHANGES, REVISION
from hsmd.store.wal_index import WalIndex
from hsmd.tracing import span

if TYPE_CHECKING:
    from sqlalchemy.pool import PoolProxiedConnection

Seal = Callable[[bytes], bytes]

ADVISORY_LOCK = 0x68736D64  # "hsmd", taken by who writes to PostgreSQL
_UPGRADE = "run `hsmctl db upgrade`"
_SCRUB_MILLIS = 250  # longest wait for readers that still need the old log

_log = logging.getLogger(__name__)
_record_change = insert(CHANGES)
_last_change = select(func.coalesce(func.max(CHANGES.c.seq), 0))
_oldest_change = select(func.min(CHANGES.c.seq))
_changes = (
    select(CHANGES.c.seq, CHANGES.c.subject, CHANGES.c.id)
    .where(CHANGES.c.seq > bindparam("since"))
    .order_by(CHANGES.c.seq)
)


class Tx:
    """A transaction under way. `connection` is for this room only."""

    __slots__ = ("_store", "connection", "scrub")

    def __init__(self, store: "Store", connection: Connection) -> None:
        self._store = store
        self.connection = connection
        self.scrub = False  # set by who destroys: the commit is followed by overwriting what was

    def seal(self, content: bytes) -> bytes:
        """HMAC-SHA-256 by the sealing key, 32 bytes. Raises what the token raises."""
        if self._store.seal is None:
            raise RuntimeError("this store was given no seal: sealed rows can't be read or written")
        return self._store.seal(content)

    def changed(self, subject: str, id: str, domain: str = "") -> None:  # noqa: A002 # the column's name
        """Tell the other processes and nodes, with the commit, that this changed.

        `domain` is the id of the domain, if what was known of any other one holds as it did.
        """
        self.connection.execute(_record_change, {"subject": feed.written(subject, domain), "id": id})


class Store:
    """All of the metadata store, for any thread of the process that made it.

    `url` is `sqlite:////absolute/path` or `postgresql://...`. `seal` is HMAC-SHA-256 by the token's
    sealing key; None while only unsealed tables are touched. Nothing is opened yet. Raises StoreError
    for a URL that can't be used.
    """

    def __init__(self, url: str, seal: Seal | None) -> None:
        self.seal = seal
        self._url = engine.parse(url)
        self._sqlite = self._url.get_backend_name() == "sqlite"
        self._readers = engine.build(self._url, writing=False)
        self._writers = engine.build(self._url, writing=True)
        self._writing = threading.Lock()
        self._watching = threading.Lock()
        self._watch: PoolProxiedConnection | None = None
        self._index: WalIndex | None = None  # while that is open
        self._pid = os.getpid()

    def check(self) -> None:
        """The store is there and has this program's schema. Raises StoreError, Error."""
        path = engine.sqlite_path(self._url)
        if path is not None and not path.exists():
            raise StoreError(f"there is no store at {path}: {_UPGRADE}")
        found = self._revision()
        if found is None:
            raise StoreError(f"the store is empty: {_UPGRADE}")
        if found < REVISION:
            raise StoreError(f"the store has schema {found}, this hsmd needs {REVISION}: {_UPGRADE}")
        if found > REVISION:
            raise StoreError(f"the store has schema {found}, this hsmd knows {REVISION}: a newer hsmd is due")
        if self._sqlite:
            if self._journal_mode() != "wal":
                raise StoreError(f"the store is a copy that lost its journal mode: {_UPGRADE}")
            self.version()  # or each call would be refused

    def describe(self) -> str:
        """The kind of database and its schema, like "sqlite, schema 0001". Raises Error."""
        return f"{self._url.get_backend_name()}, schema {self._revision() or 'none'}"

    @contextmanager
    def read(self) -> Iterator[Tx]:
        """All reads inside see one state. Raises Error for the store's faults."""
        timer = Timer(metrics.STORE_SECONDS, "read")
        with timer, span("store read"), TRANSLATED, self._connect(self._readers) as connection:
            yield Tx(self, connection)

    @contextmanager
    def write(self, before_commit: Callable[[], None] | None = None) -> Iterator[Tx]:
        """A change: all of it, durable when this returns, or nothing. One writer at a time, everywhere.

        `before_commit` is called after the body. Any exception, also its, undoes the change and goes on.
        Doesn't nest. Raises Error for the store's faults; when a PostgreSQL is lost while it commits,
        that is UNAVAILABLE and the change may have been made.
        """
        timer, alone = Timer(metrics.STORE_SECONDS, "write"), self._alone()
        with timer, alone, span("store write"), TRANSLATED, self._connect(self._writers) as connection:
            connection.begin()
            if not self._sqlite:
                connection.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK)))
            tx = Tx(self, connection)
            yield tx
            if before_commit is not None:
                before_commit()
            connection.commit()
            if tx.scrub and self._sqlite:
                _scrub(connection)

    def version(self) -> Hashable:
        """What differs after any commit, by whichever thread or process. Less than a µs on SQLite.

        Good for "the same as before?" only. Raises Error.
        """
        if not self._sqlite:
            return self.last_change()
        index = self._index
        return (self._watched() if index is None else index).header()

    def scrub(self) -> bool:
        """Overwrite what commits replaced, as destroying does by itself; False when others prevented it.

        Raises Error.
        """
        if not self._sqlite:
            return True
        with self._alone(), TRANSLATED, self._connect(self._writers) as connection:
            return _scrub(connection)

    def last_change(self) -> int:
        """The number of the newest change in the feed, 0 when there is none. Raises Error."""
        with self.read() as tx:
            number: int = tx.connection.execute(_last_change).scalar_one()
            return number

    def changes(self, since: int) -> list[Change]:
        """The changes after the number `since`, in order. Raises Forgotten where some may be gone, Error."""
        with self.read() as tx:
            oldest = tx.connection.execute(_oldest_change).scalar_one()
            if oldest is not None and oldest > since + 1:
                raise Forgotten
            return [feed.read(*row) for row in tx.connection.execute(_changes, {"since": since}).all()]

    def close(self) -> None:
        """Close what is open. A later call opens it again."""
        with self._watching:
            self._drop_watch()
        self._readers.dispose()
        self._writers.dispose()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The turn of one of this process's writers. Raises Error when it does not come in time."""
        if not self._writing.acquire(timeout=WAIT_SECONDS):
            raise faulted(BUSY)
        try:
            yield
        finally:
            self._writing.release()

    def _connect(self, pool: Engine) -> Connection:
        self._same_process()
        return pool.connect()

    def _same_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("a store doesn't survive a fork: make it in the process that uses it")

    def _revision(self) -> str | None:
        with self.read() as tx:
            return engine.revision(tx.connection)

    def _journal_mode(self) -> object:
        with self.read() as tx:
            return tx.connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()

    def _watched(self) -> WalIndex:
        """The store's index, and a connection of our own, which keeps it there."""
        with TRANSLATED, self._watching:
            index = self._index
            if index is None:
                self._same_process()
                self._drop_watch()
                self._watch = watch = self._readers.raw_connection()
                index = self._index = WalIndex(_driven(watch))
            return index

    def _drop_watch(self) -> None:
        watch, self._watch, self._index = self._watch, None, None
        if watch is not None:
            watch.invalidate()


def _driven(connection: "PoolProxiedConnection") -> sqlite3.Connection:
    """The driver's own connection."""
    driver = connection.driver_connection
    if not isinstance(driver, sqlite3.Connection):
        raise TypeError("an SQLite connection is due")
    return driver


def _scrub(connection: Connection) -> bool:
    """Overwrite what commits replaced, which SQLite's log still holds; whether it is done. Commits stand."""
    driver = _driven(connection.connection)
    try:
        driver.execute(f"PRAGMA busy_timeout={_SCRUB_MILLIS}")
        try:
            busy: int = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        finally:
            driver.execute(f"PRAGMA busy_timeout={round(WAIT_SECONDS * 1000)}")
    except sqlite3.Error:
        _log.warning("the log of the store could not be truncated after a deletion", exc_info=True)
        return False
    return not busy
