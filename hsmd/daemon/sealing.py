"""The supervising process of a daemon with a seal: sealed and unsealed, it keeps other processes alive.

Sealed, workers refuse every call and the warden takes nothing but shares. When enough have come it hands the
PINs over; a process of its own tries them, and if they are right the sealed processes end and those that
serve begin. Sealing is the way back: the PINs are wiped, then all that know them end. So nothing that is
alive while sealed has ever known a PIN, but for the vault, which forgets.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hsmd import metrics
from hsmd.config import Settings
from hsmd.daemon import seal_line
from hsmd.daemon.notify import notify
from hsmd.daemon.seal_line import HEAD_BYTES, Question, SealLine
from hsmd.daemon.supervisor import EX_PIN, Body, Supervisor
from hsmd.daemon.vault import Vault, discard

PIN_REFUSED = "the HSM refuses the PIN that is in the seal"
NOT_STARTED = "the service can't be started, its log says why"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an unsealing failed, and the id of the seal whose PIN the HSM has refused, if that was it."""

    why: str = ""
    refused: str = ""


LastFailure = Callable[[], Failure]  # for a forked process, which asks once


class SealedSupervisor(Supervisor):
    """Starts sealed.

    `sealed` gives the processes of a sealed daemon, and is told where to ask for the last failure; `serving`
    those of an unsealed one, `check` what must go well before, `lasting` those that are there all the time.
    """

    def __init__(
        self,
        settings: Settings,
        line: SealLine,
        vault: Vault,
        *,
        sealed: Callable[[LastFailure], Mapping[str, Body]],
        serving: Callable[[], Mapping[str, Body]],
        check: Body,
        lasting: Mapping[str, Body],
    ) -> None:
        grpc = settings.grpc
        self._failure = Failure()
        place = f"{grpc.address} port {grpc.port}"
        super().__init__(sealed(self._last_failure), grpc.grace_seconds, place, lasting)
        self._settings, self._line, self._vault = settings, line, vault
        self._sealed, self._serving, self._check = sealed, serving, check
        self._open = False
        self._trying: Question | None = None
        self._seal_id = ""  # of the seal that the vault's PINs came from
        self.listen(line.ours.fileno())

    def started(self) -> None:
        """All processes are ready, sealed or not."""
        if self._open:
            notify("STATUS=unsealed")
            return super().started()
        metrics.SEALED.set(1)
        log.warning("sealed: operators are due to unseal")
        notify("STATUS=sealed: operators are due to unseal")
        return notify("READY=1")

    def heard(self) -> None:
        """The warden asks."""
        try:
            question = self._line.look()
            fits = question is not None and self._fits(question.kind)
            if fits and question is not None and question.kind in (seal_line.UNSEAL, seal_line.RENEW):
                self._vault.take(self._line.ours, HEAD_BYTES, self._settings)
            else:
                discard(self._line.ours)
        except OSError:
            log.exception("the warden can't be heard")
            return
        if fits and question is not None:
            self._act(question)
        elif question is not None:
            self._line.answer(question, seal_line.NOT_NOW)

    def _fits(self, kind: bytes) -> bool:
        if kind == seal_line.UNSEAL:
            return not self._open and self._trying is None
        return self._open and kind in (seal_line.SEAL, seal_line.RENEW)

    def _act(self, question: Question) -> None:
        if question.kind == seal_line.UNSEAL:
            self._trying, self._seal_id = question, question.seal_id
            self.beside("check", self._check, self._tried)
        elif question.kind == seal_line.RENEW:
            self._seal_id = question.seal_id
            self._line.answer(question, seal_line.DONE)
            self.refresh()  # what runs knows the PIN of before, and would offer it if it had to log in again
        else:
            self._failure = Failure()
            self._close()
            self._line.answer(question, seal_line.DONE)
            log.warning("sealed by an operator")

    def _tried(self, code: int) -> None:
        """The PINs were tried."""
        question, self._trying = self._trying, None
        if question is None:
            return
        if code == EX_PIN and self._vault.promote():
            self._trying = question
            self.beside("check", self._check, self._tried)
            return
        if code == 0:
            log.info("unsealed")
            self._open = True
            self._line.answer(question, seal_line.DONE)
            self.replace(self._serving())
            return
        self._vault.wipe()
        self._failed(code, question.seal_id)
        log.error("not unsealed: %s", self._failure.why)
        self._line.answer(question, seal_line.PIN_REFUSED if code == EX_PIN else seal_line.FAILED)

    def given_up(self, code: int) -> int:
        """What serves can't go on: then it is sealed again, for to end would not be better."""
        if not self._open:
            return code
        if code == EX_PIN and self._vault.promote():
            self.replace(self._serving())
            return 0
        self._failed(code, self._seal_id)
        log.critical("sealed: %s", self._failure.why)
        self._close()
        return 0

    def _failed(self, code: int, seal_id: str) -> None:
        refused = code == EX_PIN
        self._failure = Failure(PIN_REFUSED if refused else NOT_STARTED, seal_id if refused else "")

    def _last_failure(self) -> Failure:
        return self._failure

    def _close(self) -> None:
        self._vault.wipe()
        self._open, self._seal_id = False, ""
        metrics.SEALED.set(1)
        self.replace(self._sealed(self._last_failure))
