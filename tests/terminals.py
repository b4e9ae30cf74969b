"""A command at a terminal of 80 by 24, as a person has it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


class Terminal:
    """What the command wrote so far, and its keyboard."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm"}
        )
        os.close(theirs)
        self.shown = b""

    def shows(self, text: bytes, seconds: float = 60.0) -> None:
        """Return when it shows that text, from now on."""
        end = time.monotonic() + seconds
        seen = len(self.shown)
        while text not in self.shown[seen:]:
            left = end - time.monotonic()
            assert left > 0, self.shown[-2000:]
            if select.select([self._ours], [], [], left)[0]:
                self.shown += os.read(self._ours, 65536)

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def terminal(argv: Sequence[str], environment: Mapping[str, str]) -> Iterator[Terminal]:
    """The command, ended with the block."""
    one = Terminal(argv, environment)
    try:
        yield one
    finally:
        one.close()
