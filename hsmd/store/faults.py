"""Foreign errors of the store become ours here, once: SQLAlchemy's, SQLite's, PostgreSQL's.

By class and by the database's own error codes, never by a message's text. Whatever is raised has its
cause behind it (`from`), for the log.
"""

import sqlite3
from collections.abc import Callable
from functools import partial
from types import TracebackType

from sqlalchemy import exc

from hsmd import metrics
from hsmd.errors import INTERNAL, STORAGE_FAILED, UNAVAILABLE, Error

Outcome = Callable[[], Error]

BUSY: Outcome = partial(Error, UNAVAILABLE, reason="the store is busy")
AWAY: Outcome = partial(Error, UNAVAILABLE, reason="the store can't be reached")
FAILED: Outcome = partial(Error, STORAGE_FAILED)  # it is reached and can't: full, read-only, damaged
MISUSED: Outcome = partial(Error, INTERNAL)  # this program used the library wrongly
_NAMES = {BUSY: "busy", AWAY: "away", FAILED: "failed", MISUSED: "misused"}  # for metrics

# SQLite's primary result codes, https://www.sqlite.org/rescode.html; any other is FAILED.
BY_SQLITE_CODE: dict[int, Outcome] = {
    sqlite3.SQLITE_BUSY: BUSY,
    sqlite3.SQLITE_LOCKED: BUSY,
    sqlite3.SQLITE_PROTOCOL: BUSY,  # the locks of the WAL were raced for too long
    sqlite3.SQLITE_INTERRUPT: BUSY,
    sqlite3.SQLITE_CANTOPEN: AWAY,
    sqlite3.SQLITE_NOMEM: AWAY,
}

# SQLSTATE, whole or its class, https://www.postgresql.org/docs/current/errcodes-appendix.html;
# any other is FAILED.
BY_SQLSTATE: dict[str, Outcome] = {
    "08": AWAY,  # connection exception
    "25006": AWAY,  # read-only: a standby, until it is promoted
    "28": AWAY,  # our authorization was refused
    "3D": AWAY,  # no such database
    "40": BUSY,  # serialization failure, deadlock
    "53": AWAY,  # out of memory, too many connections
    "53100": FAILED,  # disk full
    "55": BUSY,  # a lock or an object is not available
    "57": AWAY,  # shutdown, cannot connect now
    "57014": BUSY,  # statement timeout
}

# For errors that carry no code. A test finds classes of the libraries that nothing here covers.
BY_CLASS: dict[type[BaseException], Outcome] = {
    exc.OperationalError: AWAY,
    exc.InterfaceError: AWAY,
    exc.DisconnectionError: AWAY,
    exc.TimeoutError: BUSY,  # no pooled connection in time
    exc.DatabaseError: FAILED,
    exc.ProgrammingError: MISUSED,
    exc.NotSupportedError: MISUSED,
    exc.StatementError: MISUSED,
    exc.ArgumentError: MISUSED,
    exc.CircularDependencyError: MISUSED,
    exc.CompileError: MISUSED,
    exc.IdentifierError: MISUSED,
    exc.InvalidRequestError: MISUSED,
    exc.SQLAlchemyError: MISUSED,
    sqlite3.Warning: MISUSED,
    sqlite3.Error: FAILED,
}


def outcome(error: BaseException) -> Outcome | None:
    """What a foreign error means here; None when it is not foreign."""
    origin = error.orig if isinstance(error, exc.DBAPIError) else error
    code = getattr(origin, "sqlite_errorcode", None)
    if code is not None:
        return BY_SQLITE_CODE.get(code & 0xFF, FAILED)
    state = getattr(origin, "sqlstate", None)
    if state is not None:
        return BY_SQLSTATE.get(state) or BY_SQLSTATE.get(state[:2], FAILED)
    return next((BY_CLASS[kind] for kind in type(error).__mro__ if kind in BY_CLASS), None)


def faulted(made: Outcome) -> Error:
    """The error to raise; it is counted."""
    metrics.STORE_ERRORS.inc(_NAMES[made])
    return made()


class _Translated:
    """The border: `with TRANSLATED:`. It holds no state, so one serves all."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        made = outcome(error) if error is not None else None
        if made is not None:
            raise faulted(made) from error


TRANSLATED = _Translated()
