"""What a process that holds a core says of itself in the metrics, a few times a second."""

from hsmd import metrics
from hsmd.audit import Log
from hsmd.domain.core import Core


def measure(core: Core, audit: Log) -> None:
    """How its tokens, loaded keys and audit log are, and what it uses itself."""
    core.token.measure()
    for each in core.keystores.values():
        each.token.measure()
    metrics.KEYRING_KEYS.set(len(core.keyring))
    audit.measure()
    metrics.measure_process()
