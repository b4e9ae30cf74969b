"""Programs of ours in processes forked from one that has imported them: starting Python anew takes seconds.

A process each, since a PKCS#11 module loads once.
"""

import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from multiprocessing.connection import Connection

from hsmd.cli import hsmd as command

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.backstage", "hsmd.daemon.setup"])


def output_of(program: Callable[..., object], *words: str, settings: Mapping[str, str]) -> str:
    """What the program, a function of a module, printed; the settings are variables beside our own."""
    ours, its = _context.Pipe(duplex=False)
    process = _context.Process(target=_run, args=(its, program, words, {**os.environ, **settings}))
    process.start()
    its.close()
    try:
        printed, failure = ours.recv()
    except EOFError:
        printed, failure = "", "it died"
    process.join()
    assert not failure, f"{program.__module__} {' '.join(words)}: {failure}"
    return str(printed)


def hsmd(*words: str) -> None:
    """The command."""
    sys.argv = ["hsmd", *words]
    command.main()


def _run(
    told: Connection, program: Callable[..., object], words: tuple[str, ...], environment: dict[str, str]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    failure, printed = "", io.StringIO()
    try:
        with redirect_stdout(printed):
            program(*words)
    except BaseException:  # SystemExit, too
        failure = traceback.format_exc()
    told.send((printed.getvalue(), failure))
