"""One node of the service for its operators: how its processes are, and how loud they log."""

import logging

from hsmd.domain.board import Loudness
from hsmd.domain.core import Call
from hsmd.errors import PARAMETER_INVALID, Error

OURS = "hsmd"  # of others' logs nobody knows what they would say
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
MOST_SECONDS = 24 * 60 * 60
_LOGGER_BYTES = 64


def number_of(level: str) -> int:
    """The number that logging has for one of LEVELS."""
    return logging.getLevelNamesMapping()[level]


def set_log_level(call: Call, level: str, logger: str, seconds: int) -> Loudness:
    """Let every process of this node log so, within a second, until the time is over or the node stops.

    It takes the place of what was set before. Raises Error(PARAMETER_INVALID).
    """
    if level not in LEVELS:
        raise Error(PARAMETER_INVALID, name="level", reason=f"one of {', '.join(LEVELS)} is due")
    name = logger or OURS
    if not (name == OURS or name.startswith(f"{OURS}.")) or not name.isascii() or len(name) > _LOGGER_BYTES:
        raise Error(PARAMETER_INVALID, name="logger", reason=f"{OURS} or one below it is due, like hsmd.hsm")
    if not 1 <= seconds <= MOST_SECONDS:
        raise Error(PARAMETER_INVALID, name="seconds", reason=f"1 to {MOST_SECONDS} is due")
    loudness = Loudness(number_of(level), call.core.clock() + seconds * 1000, name)
    call.resource = f"{name} {level}"
    call.before_commit()
    call.core.board.post(loudness)
    return loudness
