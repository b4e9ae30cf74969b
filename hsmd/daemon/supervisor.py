"""A supervisor: forks processes, replaces what dies, passes SIGTERM on, tells systemd when all are ready.

What must not be shared by a fork (gRPC, the PKCS#11 module, event loops) is made by the processes' own
bodies. What can't get better by itself (a wrong PIN, an unreadable certificate) ends a process with
EX_CONFIG, and with it all of them. Once they serve, only a refused PIN does, as trying that again would lock
the token; of anything else (a certificate half written) the others go on, and that one is started again.
"""

import ctypes
import logging
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from hsmd import counting, metrics
from hsmd.config import ConfigError
from hsmd.daemon.notify import notify
from hsmd.errors import Error
from hsmd.hsm import TokenRefused
from hsmd.store import StoreError

EX_FAILED, EX_CONFIG = 1, 78
EX_PIN = 77  # between processes only: a refused PIN, for which the daemon ends with EX_CONFIG
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME = 1, 4, 15
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_STEADY_SECONDS = 30.0
_GRACE_MARGIN = 5.0
_POLL_SECONDS = 0.02
_READY = b"R"
_ENDINGS = (signal.SIGTERM, signal.SIGINT)
_OURS = (*_ENDINGS, signal.SIGHUP)

log = logging.getLogger(__name__)

Ready = Callable[[], None]
Body = Callable[[Ready], int]


@dataclass(slots=True)
class Child:
    """A process to keep alive. `pause` grows while it keeps dying; `due` is when it starts again.

    One that is `lasting` goes on while others take the place of those beside it.
    """

    name: str
    body: Body
    lasting: bool = False
    pid: int = 0
    ready: bool = False
    started: float = 0.0
    pause: float = _FIRST_PAUSE
    due: float = 0.0


def harden() -> None:
    """No core dumps and no reading of our memory by others, for the PIN is in it; forks inherit this."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


class Supervisor:
    """A set of processes, kept alive until SIGTERM or SIGINT.

    What serves may become another set (`replace`), and a process may be run beside them (`beside`): that is
    for who extends this, by `heard` for what it listens to, `given_up` for what can't get better by itself.
    """

    def __init__(
        self,
        bodies: Mapping[str, Body],
        grace_seconds: float,
        place: str,
        lasting: Mapping[str, Body] = MappingProxyType({}),
        reload: Callable[[], None] | None = None,
    ) -> None:
        """`bodies` by process name, `lasting` those that `replace` leaves alone.

        `place` is where they serve, for the log. `reload` is done on SIGHUP, which otherwise ends all.
        """
        self._children = [Child(name, body) for name, body in bodies.items()]
        self._children += [Child(name, body, lasting=True) for name, body in lasting.items()]
        self._grace = grace_seconds
        self._place = place
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._reload = reload
        self._reloading = False
        self._announced = False
        self._next: list[Child] | None = None  # they start when all that serve now are gone
        self._deadline = 0.0  # of those
        self._beside: tuple[Child, Callable[[int], None]] | None = None
        self._stale: list[Child] = []  # to be ended and started again, one by one
        self._ending: Child | None = None  # the one that was told to

    def run(self) -> int:
        """Start, watch, stop; the exit code."""
        wake, signalled = os.pipe()
        for end in (wake, signalled):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(signalled)
        for number in _ENDINGS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if self._reload is not None:
            signal.signal(signal.SIGHUP, self._hang_up)
        self._selector.register(wake, selectors.EVENT_READ, lambda: os.read(wake, 4096))
        code = 0
        while not self._stopping:
            self._start_due()
            self._wait()
            self._reload_if_asked()
            code = self._reap()
            if code:
                break
        return self._end(code)

    # For who extends this

    def listen(self, descriptor: int) -> None:
        """From now on `heard` is called when there is something to read."""
        self._selector.register(descriptor, selectors.EVENT_READ, self.heard)

    def heard(self) -> None:
        """There is something to read."""

    def given_up(self, code: int) -> int:
        """A process ended for what can't get better by itself; the exit code, 0 to go on."""
        return code

    def started(self) -> None:
        """All processes are ready."""
        metrics.SEALED.set(0)
        log.info("serving on %s", self._place)
        notify("READY=1")

    def replace(self, bodies: Mapping[str, Body]) -> None:
        """End all processes, then keep these alive instead."""
        self._next = [Child(name, body) for name, body in bodies.items()]
        self._deadline = time.monotonic() + self._grace + _GRACE_MARGIN
        for child in self._children:
            if child.pid and not child.lasting:
                os.kill(child.pid, signal.SIGTERM)

    def refresh(self) -> None:
        """End each process and start it again, one after the other, while the others serve."""
        self._stale = [child for child in self._children if not child.lasting]

    def beside(self, name: str, body: Body, done: Callable[[int], None]) -> None:
        """Run one process beside the others, once; `done` is told its exit code, as `run_once` has it."""
        child = Child(name, body)
        self._beside = child, done
        child.pid = _fork(child, None)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _hang_up(self, *_: object) -> None:
        self._reloading = True

    def _reload_if_asked(self) -> None:
        if self._reloading and self._reload is not None:
            self._reloading = False
            self._reload()

    def _start_due(self) -> None:
        if self._next is not None:
            lasting = [child for child in self._children if child.lasting]
            if any(child.pid for child in self._children if not child.lasting):
                return
            self._children, self._next, self._announced = self._next + lasting, None, False
            self._stale, self._ending = [], None
        now = time.monotonic()
        for child in self._children:
            if child.pid == 0 and child.due <= now:
                reading, writing = os.pipe()
                child.ready, child.started = False, now
                child.pid = _fork(child, writing)
                os.close(writing)
                self._selector.register(reading, selectors.EVENT_READ, partial(self._told, reading, child))

    def _told(self, reading: int, child: Child) -> None:
        child.ready = os.read(reading, 1) == _READY
        self._selector.unregister(reading)
        os.close(reading)

    def _wait(self) -> None:
        """Until a signal, a child's word, or the moment when the next one starts again or must be gone."""
        now = time.monotonic()
        if self._next is None:
            dues = [child.due - now for child in self._children if child.pid == 0]
        else:
            dues = [self._deadline - now]
        for key, _ in self._selector.select(max(min(dues), 0) if dues else None):
            key.data()
        if self._stale and self._ending is None and self._next is None and self._all_ready():
            self._ending = self._stale.pop(0)
            log.info("%s is started again", self._ending.name)
            os.kill(self._ending.pid, signal.SIGTERM)
        if not self._announced and self._next is None and all(child.ready for child in self._children):
            self._announced = True
            self.started()

    def _reap(self) -> int:
        """Plan the restart of what died; the exit code when it died of what can't get better by itself."""
        self._reap_beside()
        for child in self._children:
            pid, status = os.waitpid(child.pid, os.WNOHANG) if child.pid else (0, 0)
            if pid == 0:
                continue
            if self._next is not None and not child.lasting:  # it was told to
                child.pid = 0
                continue
            code = os.waitstatus_to_exitcode(status)
            if child is self._ending:
                self._ending, child.pid, child.ready, child.due = None, 0, False, 0.0
                continue
            log.error("%s ended unexpectedly (%s)", child.name, code)
            if child.lasting:  # the others do without it meanwhile
                self._postpone(child)
                continue
            if code == EX_PIN or (code == EX_CONFIG and not self._announced):
                child.pid = 0
                return self.given_up(code)
            self._postpone(child)
            if not self._announced and child.pause >= _LONGEST_PAUSE:
                log.critical("%s can't be started", child.name)
                return self.given_up(EX_FAILED)
        if self._next is not None and time.monotonic() >= self._deadline:
            self._kill(child for child in self._children if not child.lasting)
        return 0

    def _postpone(self, child: Child) -> None:
        """Plan its restart: the more it died of late, the later."""
        lasted = time.monotonic() - child.started
        child.pause = _FIRST_PAUSE if lasted > _STEADY_SECONDS else min(child.pause * 2, _LONGEST_PAUSE)
        child.pid, child.ready, child.due = 0, False, time.monotonic() + child.pause

    def _all_ready(self) -> bool:
        return all(child.pid and child.ready for child in self._children)

    def _reap_beside(self) -> None:
        if self._beside is None:
            return
        child, done = self._beside
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if pid:
            self._beside = None
            done(_exit_code(status))

    def _kill(self, children: Iterable[Child]) -> None:
        for child in children:
            if child.pid:
                log.error("%s did not end within the grace time", child.name)
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
                child.pid = 0

    def _end(self, code: int) -> int:
        """Pass SIGTERM on and wait; what outlives the grace time is killed."""
        notify("STOPPING=1")
        alive = [child for child in self._children if child.pid]
        if self._beside is not None:
            alive.append(self._beside[0])
        for child in alive:
            os.kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + self._grace + _GRACE_MARGIN
        while alive and time.monotonic() < deadline:
            alive = [child for child in alive if os.waitpid(child.pid, os.WNOHANG)[0] == 0]
            time.sleep(_POLL_SECONDS)
        self._kill(alive)
        return EX_CONFIG if code == EX_PIN else code


def run_once(body: Body) -> int:
    """Run the body in a process of its own; its exit code, 128 + the number of a signal that ended it."""
    code = _exit_code(os.waitpid(_fork(Child("once", body), None), 0)[1])
    return EX_CONFIG if code == EX_PIN else code


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _fork(child: Child, ready: int | None) -> int:
    """Start a process, which `top` shows by its name; its pid. It ends with its parent, however that ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # Held back until the child has let go of our handlers, which would swallow a SIGTERM meant for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
        return pid
    code = 1
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        _prctl(_PR_SET_NAME, f"hsmd-{child.name}".encode())
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *_ENDINGS):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it is for the supervisor, and may go to all of us
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
        counting.enter(child.name)
        if os.getppid() == parent:
            code = child.body(partial(_tell, ready))
    except (ConfigError, TokenRefused, StoreError) as error:
        log.critical("%s", error)
        code = EX_PIN if isinstance(error, TokenRefused) and error.pin else EX_CONFIG
    except Error as error:
        log.critical("%s (%s)", error, error.__cause__)
    except BaseException:  # a forked child must not run its parent's code
        log.critical("unexpected", exc_info=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without the parent's atexit handlers


def _tell(ready: int | None) -> None:
    if ready is not None:
        os.write(ready, _READY)


def _prctl(option: int, value: int | bytes) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


@contextmanager
def reserved_port(address: str, port: int, table: str) -> Iterator[None]:
    """Hold the port while workers share it. Raises ConfigError when somebody else has it.

    Workers bind with SO_REUSEPORT, which would let two daemons share a port without a word. So it is bound
    exclusively first, then with SO_REUSEPORT but without listening, which keeps others' exclusive binds out.
    """
    with _bound(address, port, table):
        yield


def _bound(address: str, port: int, table: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((address, port))
    except OSError as error:
        holder.close()
        raise ConfigError(f"{table}: can't listen on {address}:{port}: {error.strerror}") from error
    return holder
