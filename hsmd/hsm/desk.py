"""A thread's place at the token: its session, its deadline, and the border where faults are translated."""

import os
import threading
from contextlib import suppress
from math import inf
from time import monotonic
from types import TracebackType
from typing import NoReturn

from pkcs11 import PKCS11Error
from pkcs11.types import Session

from hsmd import metrics
from hsmd.errors import DEADLINE, INTERNAL, UNAVAILABLE, Error
from hsmd.hsm.connection import Connection
from hsmd.hsm.faults import BadData, ObjectGone, Sort, TokenRefused, name_of, sort_of
from hsmd.hsm.handles import Handle
from hsmd.hsm.link import Link

Work = tuple[str, str]  # an operation and its algorithm, as metrics name them
OTHER_WORK: Work = ("other", "")


class Within:
    """See Token.within."""

    __slots__ = ("_before", "_desk", "_until")

    def __init__(self, desk: "Desk", seconds: float) -> None:
        self._desk, self._until = desk, monotonic() + seconds

    def __enter__(self) -> None:
        self._before = self._desk.until
        self._desk.until = min(self._before, self._until)

    def __exit__(self, *_: object) -> None:
        self._desk.until = self._before


class Desk:
    """What one thread has at the token; `with desk.call(key):` is one call into the module.

    Within it the thread is registered as inside, has a session of the live connection, and any PKCS#11
    fault leaves as BadData, ObjectGone or Error. Calls do not nest.
    """

    __slots__ = (
        "_began",
        "_blob",
        "_calls",
        "_inside",
        "_key",
        "_link",
        "_work",
        "connection",
        "limit",
        "object",
        "session",
        "thread",
        "thread_id",
        "until",
    )
    session: Session
    connection: Connection
    object: int  # the token's handle of the key

    def __init__(self, link: Link) -> None:
        self._link = link
        self._calls = link.calls
        self._inside = link.calls.inside
        self.thread = threading.current_thread()
        self.thread_id = threading.get_ident()
        self.limit = link.settings.deadline
        self.until = inf  # the end of Token.within
        self._key: Handle | None = None
        self._work = OTHER_WORK
        self._blob = False

    def call(self, key: Handle | None = None, work: Work = OTHER_WORK, *, blob: bool = False) -> "Desk":
        """Prepare a call that uses `key`; `blob`: the data may be forged, and unclear faults its own."""
        self._key = key
        self._work = work
        self._blob = blob
        return self

    def __enter__(self) -> "Desk":
        link = self._link
        self._began = now = monotonic()
        # First registered, then looked: who reconnects does it the other way round.
        self._inside[self.thread_id] = now + self.limit
        connection = link.live
        key = self._key
        try:
            if connection is None or now > self.until:
                self._refuse(connection)
            if key is not None:
                self.object = self._look_up(connection, key)
            if getattr(self, "connection", None) is not connection:
                self._sit_down(connection)
        except BaseException:
            self._calls.leave(self.thread_id)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure: Exception | None = None
        try:
            if isinstance(error, PKCS11Error):
                metrics.HSM_ERRORS.inc(*self._work, sort_of(error).name.lower())
                failure = self._translated(error)
        finally:
            late = self._calls.leave(self.thread_id)
        now = monotonic()
        metrics.HSM_SECONDS.observe(now - self._began, *self._work)
        if late:
            metrics.HSM_ERRORS.inc(*self._work, "late")
            failure = self._link.back_late()
        elif now > self.until:
            failure = Error(DEADLINE, reason="the HSM answered too late")
        if failure is not None:
            raise failure from error

    def uses(self, key: Handle) -> bool:
        """Whether the thread is inside with this key, or about to find out that it may not."""
        return self._key == key and self.thread_id in self._inside

    def _look_up(self, connection: Connection, key: Handle) -> int:
        found = connection.handles.objects.get(key.value)
        if found is None or key.generation != connection.generation:
            raise ObjectGone("destroyed, or of an earlier connection")
        return found

    def _refuse(self, connection: Connection | None) -> NoReturn:
        if os.getpid() != self._link.pid:
            raise TokenRefused("the HSM was connected before this process was forked")
        if connection is None:
            raise self._link.refusal()
        raise Error(DEADLINE, reason="the time was over before the HSM was asked")

    def _sit_down(self, connection: Connection) -> None:
        try:
            self.session = connection.open_session()
        except PKCS11Error as error:
            raise self._link.lost(connection, error) from error
        self.connection = connection

    def _translated(self, error: PKCS11Error) -> Exception:
        sort = sort_of(error)
        if sort is Sort.UNCLEAR and not self._blob:
            sort = Sort.TOKEN
        if sort in (Sort.UNCLEAR, Sort.UNKNOWN, Sort.OBJECT):  # or is it the token after all?
            try:
                self.connection.feel(self.session)
            except PKCS11Error as worse:
                return self._link.lost(self.connection, worse)
        if sort is Sort.OBJECT:
            self._forget()
            return ObjectGone(name_of(error))
        if sort in (Sort.UNCLEAR, Sort.DATA) or (sort is Sort.UNKNOWN and self._blob):
            return BadData(name_of(error))
        if sort in (Sort.USE, Sort.UNKNOWN):
            return Error(INTERNAL)
        if sort is Sort.SESSION:
            self.leave_session()
            return Error(UNAVAILABLE, reason="the HSM was busy with another operation")
        return self._link.lost(self.connection, error)

    def _forget(self) -> None:
        if self._key is not None:
            self.connection.handles.withdraw(self._key)
            self.connection.labelled.clear()  # it may have been one of these

    def leave_session(self) -> None:
        """Close this thread's session; the next call opens another."""
        with suppress(PKCS11Error):  # it may be closed already
            self.session.close()
        del self.connection, self.session
