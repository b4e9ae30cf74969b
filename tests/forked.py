"""Programs of ours in processes forked from one that has imported them: starting Python anew takes seconds.

A process each, since a PKCS#11 module loads once. test_hsmctl.py runs the command as it is installed.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

_SECONDS = 240.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.backstage", "hsmd.daemon.setup", "hsmd.cli.hsmctl"])


def run(
    program: Callable[..., object], *words: str, environment: Mapping[str, str], given: str = ""
) -> CompletedProcess[str]:
    """A function of a module, called with these words, as a process; standard input is `given`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "0").write_text(given)
        process = _context.Process(target=_run, args=(folder, program, words, dict(environment)))
        process.start()
        process.join(_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutExpired(words, _SECONDS)
        printed, said = (Path(folder, each).read_text() for each in "12")
        return CompletedProcess(words, process.exitcode, printed, said)


def output_of(
    program: Callable[..., object], *words: str, settings: Mapping[str, str], given: str = ""
) -> str:
    """What it printed, when all went well; the settings are variables beside our own."""
    done = run(program, *words, environment={**os.environ, **settings}, given=given)
    assert done.returncode == 0, f"{program.__module__} {' '.join(words)}: {done.stderr}"
    return done.stdout


def hsmd(*words: str) -> None:
    """The command."""
    from hsmd.cli import hsmd as command

    sys.argv = ["hsmd", *words]
    command.main()


def hsmctl(*words: str) -> None:
    """The command."""
    from hsmd.cli import hsmctl as command

    sys.argv = ["hsmctl", *words]
    command.main()


def _run(
    folder: str, program: Callable[..., object], words: tuple[str, ...], environment: dict[str, str]
) -> None:
    for stream in range(3):
        file = os.open(Path(folder, str(stream)), os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, stream)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # multiprocessing has closed it
    os.environ.clear()
    os.environ.update(environment)
    program(*words)
