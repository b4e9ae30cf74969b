"""Whether a process can serve: token, store and audit log are used in earnest, once a second.

The token's own keeper uses the token, one thread here uses the other two: however long something hangs, it
holds these two threads and no more, and what was found out long ago doesn't count.
"""

import logging
import threading
import time
from collections.abc import Callable

from hsmd.audit import Log
from hsmd.domain.core import SEALING_KEY_LABEL, Core
from hsmd.keyring import with_token_key

TOKEN, STORE, AUDIT = "token", "store", "audit log"
PARTS = frozenset({TOKEN, STORE, AUDIT})  # what serving takes
_ORDER = sorted(PARTS)
FRESH_SECONDS = 5.0  # for so long counts what was found out last
PAUSE_SECONDS = 1.0
_AUDIT_SECONDS = 2.0
_BLOCK = b"hsmd: is the token there?"

log = logging.getLogger(__name__)


def bits_of(failing: frozenset[str]) -> int:
    """Parts as a number, for the board."""
    return sum(1 << _ORDER.index(part) for part in failing)


def parts_of(bits: int) -> list[str]:
    """The parts of such a number."""
    return [part for place, part in enumerate(_ORDER) if bits >> place & 1]


class Readiness:
    """What one process has found out of the parts that it needs."""

    def __init__(self, core: Core, audit: Log) -> None:
        self._core = core
        self._audit = audit
        self._used: dict[str, float] = {}  # when each part was used with success, or tried in vain: 0
        self._why: dict[str, str] = {}
        self._told: frozenset[str] = frozenset()

    def begin(self, stopping: threading.Event) -> None:
        """Try each part once, if the token is connected, and from now on again and again."""
        if self._core.token.status().state == "connected":
            self._use_token()
        self._look()
        self._core.token.watch(self._use_token)
        threading.Thread(target=self._run, args=(stopping,), daemon=True, name="readiness").start()

    def failing(self) -> frozenset[str]:
        """The parts that can't be used now; tells the log when that begins, changes and is over."""
        oldest = time.monotonic() - FRESH_SECONDS
        failing = frozenset(part for part in PARTS if self._used.get(part, 0.0) < oldest)
        token = self._core.token.status()
        if token.state != "connected":
            failing |= {TOKEN}
        if failing - self._told:
            log.warning("not ready: %s", "; ".join(self._reason(part) for part in sorted(failing)))
        elif self._told and not failing:
            log.info("ready again")
        self._told = failing
        return failing

    def _reason(self, part: str) -> str:
        if part == TOKEN:
            status = self._core.token.status()
            if status.state != "connected":
                return f"the HSM token is {status.state}"
        return f"the {part} {self._why.get(part) or 'does not answer'}"

    def _use_token(self) -> None:
        token = self._core.token
        self._try(
            TOKEN, lambda: with_token_key(token, SEALING_KEY_LABEL, lambda key: token.hmac(key, _BLOCK))
        )

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.wait(PAUSE_SECONDS):
            self._look()

    def _look(self) -> None:
        self._try(STORE, self._core.store.check)
        self._try(AUDIT, lambda: self._audit.check(_AUDIT_SECONDS))

    def _try(self, part: str, use: Callable[[], object]) -> None:
        try:
            use()
        except Exception as error:  # whatever it is, the part can't be used
            self._used[part] = 0.0
            self._why[part] = f"can't be used: {error}"
        else:
            self._used[part] = time.monotonic()
            self._why.pop(part, None)
