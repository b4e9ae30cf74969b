"""The processes of scripts/bench that measure by themselves (bench_meters.py), and how they are asked."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

METERS = Path(__file__).with_name("bench_meters.py")


class Meters:
    """Processes that measure at the same time; their rates are added."""

    def __init__(self, stack: ExitStack, *commands: list[str]) -> None:
        """They start when they are asked first, one after the other: tokens mind many that log in at once."""
        self._stack, self._commands = stack, commands
        self._processes: list[subprocess.Popen[str]] = []

    def __call__(self, seconds: float) -> float:
        """Measure; operations a second."""
        return sum(float(each) for each in self.ask(seconds))

    def ask(self, seconds: float) -> list[str]:
        """What each of them says."""
        if not self._processes:
            self._processes = [self._stack.enter_context(meter(command)) for command in self._commands]
        for process in self._processes:
            _tell(process, str(seconds))
        return [_hear(process) for process in self._processes]


class Turns:
    """Operations of one process that take turns: what befalls the machine meanwhile befalls all of them."""

    def __init__(self, stack: ExitStack, command: list[str]) -> None:
        self._meters = Meters(stack, command)
        self._found: dict[int, float] = {}

    def of(self, number: int) -> Callable[[float], float]:
        """What gives the rate of one of them, of a measurement of all that it has given none of yet."""

        def measure(seconds: float) -> float:
            if number not in self._found:
                (line,) = self._meters.ask(seconds)
                self._found = dict(enumerate(map(float, line.split())))
            return self._found.pop(number)

        return measure


@contextmanager
def meter(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Such a process, ready. Raises ClickException for one that can't be."""
    with subprocess.Popen(  # noqa: S603 -- our own
        [sys.executable, METERS, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if _hear(process) != "ready":
            raise click.ClickException(f"{command[0]} can't be measured; its message stands above")
        yield process
        process.kill()


def _tell(process: subprocess.Popen[str], text: str) -> None:
    if process.stdin is not None:
        process.stdin.write(f"{text}\n")
        process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip() if process.stdout is not None else ""
