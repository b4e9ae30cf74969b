"""A process that this one starts, waits for until it says READY=1 (sd_notify), and ends."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_POLL_SECONDS = 0.1
_LAST_LINES = 25


class ChildFailed(Exception):  # noqa: N818 -- named after what happened, as CalledProcess and the like are
    """A child died or did not get ready; the text holds the end of its log."""


class Child:
    """One child, its output in a log file; leaving the context ends it.

    The child gets its own session, so that Ctrl-C reaches only us, and SIGTERM if we die without a word.
    """

    def __init__(self, name: str, argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Start argv; its output is appended to log."""
        self.name = name
        self._log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        self._folder = tempfile.TemporaryDirectory(prefix="hsmd-")  # a socket's path has 108 bytes at most
        address = Path(self._folder.name) / "notify"
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.bind(str(address))
        self._notices.settimeout(_POLL_SECONDS)
        with log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603 -- argv is our caller's own
                [*_tied_to_us(), *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, "NOTIFY_SOCKET": str(address)},
                start_new_session=True,
            )

    def wait_until_ready(self, seconds: float) -> None:
        """Return once the child has said READY=1. Raises ChildFailed when it dies first or takes longer."""
        end = time.monotonic() + seconds
        while not self._has_said_ready():
            self.check()
            if time.monotonic() > end:
                raise ChildFailed(f"{self.name} was not ready after {seconds:g} s.{self._last_words()}")

    def check(self) -> None:
        """Raise ChildFailed when the child is gone."""
        code = self.process.poll()
        if code is not None:
            how = f"exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
            raise ChildFailed(f"{self.name} ended ({how}).{self._last_words()}")

    def stop(self, seconds: float) -> None:
        """End the child: SIGTERM, and SIGKILL to its whole session if it is still there then."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self._notices.close()
        self._folder.cleanup()

    def _has_said_ready(self) -> bool:
        try:
            return b"READY=1" in self._notices.recv(4096).split(b"\n")
        except TimeoutError:
            return False

    def _last_words(self) -> str:
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
        return f" The end of {self._log}:\n" + "\n".join(f"    {line}" for line in lines or ["(empty)"])


class Children:
    """Children that are ended together, the last started first."""

    def __init__(self, grace_seconds: float) -> None:
        """Leave each child grace_seconds to end by itself."""
        self._grace = grace_seconds
        self._started: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._started):
            child.stop(self._grace)

    def start(self, name: str, argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> Child:
        """Start one more."""
        child = Child(name, argv, log, environment)
        self._started.append(child)
        return child

    def check(self) -> None:
        """Raise ChildFailed when one of them is gone."""
        for child in self._started:
            child.check()


def _tied_to_us() -> list[str]:
    """Return a prefix that has the kernel send the child SIGTERM when we die (util-linux), if it is there."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
