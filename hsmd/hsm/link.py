"""Keeps the connection: notices its loss and hung calls, and makes it anew.

    connected ──fault, failed ping──▶ away ──reconnected──▶ connected
        └──────deadline passed──────▶ unresponsive ──all stuck threads are back──▶ reconnected ──▶ connected

Two threads. The *watch* never enters the module, so nothing can hold it up: it finds overdue calls and
tells the owner. The *keeper* pings and reconnects; while it hangs, callers are refused at once, as the
state says so. A reconnection finalises the module, and so waits until no other thread is inside.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args
from weakref import WeakSet

from pkcs11 import PKCS11Error, UserPinNotInitialized

from hsmd import metrics
from hsmd.errors import UNAVAILABLE, Error
from hsmd.hsm.address import Address
from hsmd.hsm.calls import Calls
from hsmd.hsm.connection import Connection, establish
from hsmd.hsm.faults import TokenRefused, name_of
from hsmd.hsm.module import Module
from hsmd.hsm.refusal import Refusal

if TYPE_CHECKING:
    from hsmd.hsm.probe import Capability

State = Literal["connected", "away", "unresponsive"]
STATES: tuple[State, ...] = get_args(State)
MAIN = "main"  # what metrics call the token without a name

_TICK = 0.2  # how often the watch looks
_PING = 1.0  # how often the keeper uses an idle token
_OVERSLEPT = 1.0  # the watch itself: it was this process that stood still
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # between attempts to reconnect
_ATTEMPTS = 3  # of connect(): SoftHSM2 fails now and then while another process logs in

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """How the token is. `since` is when this state began, in UTC; `detail` is for operators."""

    label: str
    serial: str
    model: str
    module: str
    state: State
    since: datetime
    detail: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What the owner chose; see Token."""

    address: Address
    lock_file: Path
    softhsm_conf: Path | None
    deadline: float
    on_lost: Callable[[], None]
    on_stuck: Callable[[int], None]
    refusal: Refusal
    name: str
    apart: bool


_links: "WeakSet[Link]" = WeakSet()


def _forked() -> None:
    """What was connected before a fork is not the child's to use (2.40, 2.5.2)."""
    for link in list(_links):
        link.live = None


os.register_at_fork(after_in_child=_forked)  # to ask each time which process this is would take a system call


class Link:
    """The connection of this process to its token. `live` is None whenever calls are to be refused."""

    def __init__(self, settings: Settings, pin: str) -> None:
        self.settings = settings
        self.calls = Calls()
        self.live: Connection | None = None
        self.pid = os.getpid()
        _links.add(self)
        self.capabilities: tuple[Capability, ...] = ()
        self.refused: TokenRefused | None = None  # the PIN: nothing will be tried any more
        self._address = settings.address
        self._pin = pin
        self._module: Module | None = None
        self._initialized = False
        self._generation = 0
        self._identity = (settings.address.token or "", settings.address.serial or "", "")
        self._state: State = "away"
        self._since = datetime.now(UTC)
        self._detail = "not connected yet"
        self._untold = False  # a loss that on_lost has not heard of
        self._lock = threading.Lock()  # of the fields above
        self._connecting = threading.Lock()  # one attempt at a time
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    # What callers see

    def status(self) -> TokenStatus:
        """The state now."""
        with self._lock:
            label, serial, model = self._identity
            module = str(self.settings.address.module_path)
            return TokenStatus(label, serial, model, module, self._state, self._since, self._detail)

    def refusal(self) -> Error:
        """Why there is no `live` connection."""
        answer = "does not answer" if self._state == "unresponsive" else "is away"
        return Error(UNAVAILABLE, reason=f"the HSM {answer}")

    def lost(self, connection: Connection, error: PKCS11Error) -> Error:
        """The token failed: from now on calls are refused, until it is reconnected."""
        with self._lock:
            if self.live is connection:
                self._down("away", name_of(error))
        self._wake.set()
        return Error(UNAVAILABLE, reason="the HSM failed")

    def back_late(self) -> Error:
        """A thread came out of the module after its deadline; its answer is dropped."""
        self._wake.set()
        return Error(UNAVAILABLE, reason="the HSM did not answer in time")

    # Connecting

    def connect(self) -> None:
        """Connect, in a thread of its own, since the module may hang. Raises TokenRefused, Error."""
        outcome: Future[None] = Future()
        threading.Thread(target=self._attempt, args=(outcome,), daemon=True, name="hsm-connect").start()
        try:
            outcome.result(timeout=3 * self.settings.deadline)  # the lock, the login, the probe
        except TimeoutError as error:
            with self._lock:
                self._down("unresponsive", "the module hangs while connecting")
            raise self.refusal() from error

    def _attempt(self, outcome: Future[None]) -> None:
        for left in reversed(range(_ATTEMPTS)):
            try:
                self._connect_once()
                return outcome.set_result(None)
            except PKCS11Error as error:
                if not left:
                    failure = _failure(error)
                    failure.__cause__ = error
                    return outcome.set_exception(failure)
            except Exception as error:  # raised again by the thread that waits
                return outcome.set_exception(error)
            time.sleep(_FIRST_PAUSE)
        return None

    def _connect_once(self) -> None:
        """Raises TokenRefused, Error(UNAVAILABLE), PKCS11Error; the status tells it as well."""
        if self.refused:
            raise self.refused
        if self._closing.is_set():
            raise Error(UNAVAILABLE, reason="the HSM's connection was closed")
        if not self._connecting.acquire(blocking=False):
            raise Error(UNAVAILABLE, reason="the HSM is being connected")
        try:
            if self.live is None:
                self._replace()
        except (TokenRefused, Error, PKCS11Error) as error:
            with self._lock:
                self._down("away", name_of(error) if isinstance(error, PKCS11Error) else str(error))
                if isinstance(error, TokenRefused) and error.pin:
                    self.refused = error
            raise
        finally:
            self.calls.leave(threading.get_ident())
            self._connecting.release()

    def _replace(self) -> None:
        if self.calls.others():
            raise Error(UNAVAILABLE, reason="calls are still inside the HSM's module")
        if self._module is None:
            self._module = Module(self.settings.address.module_path, apart=self.settings.apart)
        if self._module.pid != os.getpid():
            raise TokenRefused("the HSM was connected before this process was forked")
        self._enter()
        self._finalize()
        self.calls.leave(threading.get_ident())
        if self.settings.softhsm_conf is not None:  # read by SoftHSM2 at C_Initialize
            os.environ["SOFTHSM2_CONF"] = str(self.settings.softhsm_conf)
        made = establish(
            self._module,
            self._address,
            self._pin,
            self.settings.refusal,
            self._generation + 1,
            self.settings.lock_file,
            self.settings.deadline,
            self._enter,
        )
        self._initialized = True
        self.calls.leave(threading.get_ident())
        with self._lock:
            self._generation = made.generation
            serial = made.token.serial.decode(errors="replace")
            self._identity = (made.token.label, serial, made.token.model)
            # From now on this token and no other: its namesake would be offered the PIN.
            self._address = replace(self._address, serial=serial)
            self.capabilities = made.found.capabilities
            if not self._closing.is_set():
                self._turn("connected", "")
                self.live = made
                metrics.TOKEN_CONNECTIONS.inc(self.settings.name or MAIN)

    def _enter(self) -> None:
        self.calls.inside[threading.get_ident()] = time.monotonic() + self.settings.deadline

    def _finalize(self) -> None:
        if self._initialized and self._module is not None:
            self._initialized = False
            with suppress(PKCS11Error):  # of a module whose token is gone nothing better is to be had
                self._module.finalize()

    # The states, under the lock

    def _down(self, state: State, detail: str) -> None:
        self._untold |= self.live is not None
        self.live = None
        self._turn(state, detail)

    def _turn(self, state: State, detail: str) -> None:
        if (state, detail) != (self._state, self._detail):
            _log.log(  # why it is away may change with each attempt: the first one is the news
                logging.WARNING if state not in ("connected", self._state) else logging.INFO,
                "The HSM token%s is %s%s",
                self.settings.name and f" of {self.settings.name}",
                state,
                detail and f": {detail}",
            )
        if state != self._state:
            self._since = datetime.now(UTC)
        self._state, self._detail = state, detail

    # Watching

    def watch(self, ping: Callable[[], None]) -> None:
        """Start the two threads; `ping` uses the token in earnest and raises Error."""
        if self._threads:
            return
        self._threads = [
            threading.Thread(target=self._look, daemon=True, name="hsm-watch"),
            threading.Thread(target=self._keep, args=(ping,), daemon=True, name="hsm-keeper"),
        ]
        for thread in self._threads:
            thread.start()

    def _look(self) -> None:
        told = 0
        tick = min(_TICK, self.settings.deadline / 4)
        now = time.monotonic()
        while not self._closing.wait(tick):
            before, now = now, time.monotonic()
            if now - before > tick + _OVERSLEPT:
                continue  # this process stood still, not the module
            stuck = self.calls.sweep(now)
            if stuck and self._state != "unresponsive":
                with self._lock:
                    self._down("unresponsive", "a call passed its deadline inside the module")
            if stuck != told:
                told = stuck
                self._tell(lambda count=stuck: self.settings.on_stuck(count))  # type: ignore[misc]  # bound now
            with self._lock:
                untold, self._untold = self._untold, False
            if untold:
                self._tell(self.settings.on_lost)

    def _tell(self, hook: Callable[[], None]) -> None:
        try:
            hook()
        except Exception:
            _log.exception("A hook of the HSM failed")

    def _keep(self, ping: Callable[[], None]) -> None:
        pause = _FIRST_PAUSE
        while not self._closing.is_set():
            if self.live is not None:
                pause = _FIRST_PAUSE
                with suppress(Error):  # lost() has noted it
                    ping()
                self._rest(_PING)
            elif self.refused or self.calls.others():
                self._rest(_FIRST_PAUSE)
            else:
                with suppress(TokenRefused, Error, PKCS11Error):  # the status tells it
                    self._connect_once()
                    continue
                self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _rest(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def close(self) -> None:
        """Stop watching, then leave the module, unless a thread is stuck inside."""
        self._closing.set()
        self._wake.set()
        with self._lock:
            self.live = None
            self._turn("away", "closed")
        for thread in self._threads:
            thread.join(self.settings.deadline)
        until = time.monotonic() + self.settings.deadline
        while self.calls.others() and time.monotonic() < until:
            time.sleep(0.01)
        if not self.calls.others():
            leaving = threading.Thread(target=self._finalize, daemon=True, name="hsm-close")
            leaving.start()
            leaving.join(self.settings.deadline)


def _failure(error: PKCS11Error) -> TokenRefused | Error:
    """What `error` means when repeating did not help. SoftHSM2 speaks of a missing PIN now and then, too."""
    if isinstance(error, UserPinNotInitialized):
        return TokenRefused("the token has no user PIN yet")
    return Error(UNAVAILABLE, reason="the HSM failed")
