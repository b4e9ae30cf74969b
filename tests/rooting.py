"""A root key's replacement step by step, each in a process of its own, so that it can be killed there.

python -m tests.rooting CONFIG rotate LABEL    it wraps what is new
python -m tests.rooting CONFIG move            the warden moves all there is
python -m tests.rooting CONFIG destroy LABEL   a day and more later: it is ending
python -m tests.rooting CONFIG settle          after that: the warden destroys it
"""

import os
import sys
from pathlib import Path

from hsmd import config
from hsmd.caller import Caller
from hsmd.daemon import jobs, wiring
from hsmd.domain import roots
from hsmd.domain.core import Call

_HOUR = 60 * 60 * 1000
_LATER = {"rotate": 0, "move": 1, "destroy": 26, "settle": 27}


def _main(path: str, action: str, *words: str) -> None:
    settings = config.load(Path(path), os.environ)
    core = wiring.open_core(settings, wiring.read_pins(settings))
    core.clock = lambda: wiring.now_millis() + _LATER[action] * _HOUR
    core.token.connect()
    audit = wiring.open_audit(settings, "rooting")
    call = Call(core, Caller("system"), lambda: None)
    try:
        if action == "rotate":
            roots.rotate(call, *words)
        elif action == "destroy":
            roots.destroy(call, *words, lose_pins=True)
        else:
            work, trouble = jobs.Jobs(core, audit, "test"), dict[str, str]()
            while work.carry_out(jobs.MOVES, trouble) + work.carry_out(jobs.ROOTS, trouble):
                pass
            assert not trouble, trouble
    finally:
        audit.close()
        core.store.close()
        core.token.close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
