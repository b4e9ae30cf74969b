"""Logging of every process: lines for people or JSON for machines, to standard error.

A line that belongs to a call or job names its request id. What comes from elsewhere can't make a line of its
own: in a message control characters are spelled out, and what follows a first line is indented.
"""

import json
import logging
import mmap
import sys
from datetime import UTC, datetime

from hsmd.caller import logged_request
from hsmd.config import ConfigError, Log
from hsmd.domain.board import Board, Loudness
from hsmd.printable import clean

_INDENT = "    "

log = logging.getLogger(__name__)


class _JsonLines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": self._process,
            "request_id": logged_request(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value})


class _Lines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {process} %(name)s: ")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's own name
        request_id = logged_request()
        return (
            super().formatMessage(record) + (f"[{request_id}] " if request_id else "") + clean(record.message)
        )

    def formatException(self, ei: object) -> str:  # noqa: N802 -- logging's own name
        text = super().formatException(ei)  # type: ignore[arg-type]  # as it was given to us
        return "\n".join(_INDENT + clean(line) for line in text.splitlines())


def configure(settings: Log, process: str) -> None:
    """Set the root logger up. Raises ConfigError for an unknown level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(process) if settings.json else _Lines(process))
    logging.basicConfig(level=_number(settings), handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # its own doings, step by step


def _number(settings: Log) -> int:
    level = logging.getLevelNamesMapping().get(settings.level.upper())
    if level is None:
        raise ConfigError(f"log.level: {settings.level!r} is none of DEBUG, INFO, WARNING, ERROR, CRITICAL")
    return level


class SharedLevel:
    """The configured level of all processes that are forked from now on; it may change while they run.

    It lies in memory that they share. So nobody has to be told, and who starts later has it at once.
    """

    def __init__(self, settings: Log) -> None:
        self._word = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self.change(settings)

    def change(self, settings: Log) -> None:
        """From now on it is this. Raises ConfigError for an unknown level."""
        self._word[0] = _number(settings)

    def tend(self) -> None:
        """Keep this process to it; to be called now and then."""
        root, level = logging.getLogger(), self._word[0]
        if level == root.level:
            return
        root.setLevel(min(level, root.level))  # so that it is told
        log.warning("the log's level is %s from now on", logging.getLevelName(level))
        root.setLevel(level)


class Levels:
    """Keeps this process as loud as the board says; without a word there, as it was configured."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._now: Loudness | None = None

    def tend(self) -> None:
        """To be called a few times a second."""
        asked = self._board.posted()
        if asked == self._now:
            return
        if self._now is not None:
            logging.getLogger(self._now.logger).setLevel(logging.NOTSET)
        if asked is not None:
            log.warning("%s logs %s from now on", asked.logger, logging.getLevelName(asked.level))
            logging.getLogger(asked.logger).setLevel(asked.level)
        else:
            log.warning("the log is as it was configured")
        self._now = asked
