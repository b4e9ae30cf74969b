"""When a process has to leave, and that it gets to leave: what a hung module or a wrong PIN would prevent."""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from hsmd.hsm import Token

PATIENCE = timedelta(minutes=1)
PARTING_SECONDS = 3.0  # beyond the grace time, less than the supervisor's margin

log = logging.getLogger(__name__)


def hopeless(token: Token, patience: timedelta = PATIENCE) -> bool:
    """Whether the module has held threads fast for so long that only a new process will help.

    Raises TokenRefused when the PIN was refused: then no process will help.
    """
    if token.refused is not None:
        raise token.refused
    status = token.status()
    over = status.state == "unresponsive" and datetime.now(UTC) - status.since > patience
    if over:
        log.critical(
            "the PKCS#11 module does not answer any more: this process ends, another takes its place"
        )
    return over


def part(steps: Callable[[], None], seconds: float) -> None:
    """Take the last steps, but leave after `seconds` also when they are not done."""

    def take() -> None:
        try:
            steps()
        except Exception:
            log.exception("parting failed")

    thread = threading.Thread(target=take, daemon=True, name="parting")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        log.warning("leaving before all was closed: the PKCS#11 module or a disk does not answer")
