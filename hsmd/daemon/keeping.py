"""Makes the keeper of the seal in the warden of an unsealed daemon."""

from pathlib import Path

from hsmd import sealfile
from hsmd.daemon import seal_line
from hsmd.daemon.seal_line import SealLine
from hsmd.daemon.wiring import Pin
from hsmd.domain.sealing import Keeper, Outcome

_SECONDS = 10.0
_OUTCOMES = {
    seal_line.DONE: Outcome.DONE,
    seal_line.PIN_REFUSED: Outcome.PIN_REFUSED,
    seal_line.NOT_NOW: Outcome.NOT_NOW,
}


def keeper(path: Path, pin: Pin, line: SealLine) -> Keeper:
    """The keeper of the seal file at `path`, which knows the PINs."""
    line.enter()
    pins = {sealfile.HSM: pin.value}
    pins |= {sealfile.KEYSTORE + cluster: each.value for cluster, each in pin.keystores.items()}
    return Keeper(
        path,
        pins,
        lambda seal_id, renewed: outcome(line.ask(seal_line.RENEW, seal_id, renewed, seconds=_SECONDS)),
        lambda: outcome(line.ask(seal_line.SEAL, seal_line.NO_SEAL, seconds=_SECONDS)),
    )


def outcome(answer: bytes) -> Outcome:
    """What the supervising process's answer means."""
    return _OUTCOMES.get(answer, Outcome.FAILED)
