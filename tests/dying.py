"""Programs that end by kill -9 at a place that a test names, as a power cut would.

python -m tests.dying PLACE ARGUMENTS...   runs hsmctl with these arguments
python -m tests.dying PLACE -m MODULE ARGUMENTS...   runs that module

PLACE is "module:name:before" or "module:name:after", with ":N" for the Nth time it comes there. A name may be
"Class.method". "-" is nowhere.
"""

import importlib
import os
import runpy
import signal
import sys
from itertools import count
from typing import Any


def die_at(place: str) -> None:
    """This process ends when it comes there."""
    module, name, when, *times = place.split(":")
    owner: Any = importlib.import_module(module)
    *path, name = name.split(".")
    for each in path:
        owner = getattr(owner, each)
    real, turns, due = getattr(owner, name), count(1), int(times[0]) if times else 1

    def dying(*arguments: Any, **options: Any) -> Any:
        now = next(turns) == due
        if now and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **options)
        if now and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


def _main(place: str, *arguments: str) -> None:
    if place != "-":
        die_at(place)
    if arguments[:1] == ("-m",):
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    from hsmd.cli import hsmctl

    sys.argv = ["hsmctl", *arguments]
    hsmctl.main()


if __name__ == "__main__":
    _main(*sys.argv[1:])
