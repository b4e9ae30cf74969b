"""Logging of every process: lines for people or JSON for machines, to standard error."""

import json
import logging
import sys
from datetime import UTC, datetime

from hsmd.config import ConfigError, Log


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
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(settings: Log, process: str) -> None:
    """Set the root logger up. Raises ConfigError for an unknown level."""
    level = logging.getLevelNamesMapping().get(settings.level.upper())
    if level is None:
        raise ConfigError(f"log.level: {settings.level!r} is none of DEBUG, INFO, WARNING, ERROR, CRITICAL")
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter(f"%(asctime)s %(levelname)-7s {process} %(name)s: %(message)s")
    handler.setFormatter(_JsonLines(process) if settings.json else plain)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # its own doings, step by step
