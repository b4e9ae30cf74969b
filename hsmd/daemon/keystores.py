"""The tokens of dedicated keystores in one process: made, connected, looked after and left apart from ours.

None of this waits for such a token, or ends the process because of one: its loss is its own keys' alone.
"""

import logging
import threading
import time
from collections.abc import Mapping

from hsmd.config import ConfigError, Settings
from hsmd.daemon.wiring import Pin
from hsmd.domain.core import Backing, Core
from hsmd.errors import Error
from hsmd.hsm import AddressError, Token, TokenRefused, parse_address
from hsmd.store import keystores as rows

_START_SECONDS = 5.0  # a start waits so long for these tokens, which then go on connecting
_PAUSE_SECONDS = 0.2
_HELD_SECONDS = 0.25

log = logging.getLogger(__name__)


def backings(settings: Settings, pin: Pin) -> Mapping[str, Backing]:
    """The configured tokens by cluster id, not yet connected. Raises ConfigError for a wrong address."""
    return {
        each.cluster_id: Backing(
            _token(settings, index, pin.keystores[each.cluster_id]), frozenset(each.domains)
        )
        for index, each in enumerate(settings.keystores)
    }


def connect(core: Core) -> None:
    """Connect and watch all of them at once; those that take long come later."""
    end = time.monotonic() + _START_SECONDS
    threads = [
        threading.Thread(target=_connect, args=(each.token, end), daemon=True, name="keystore-connect")
        for each in core.keystores.values()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))


def report_strays(core: Core) -> None:
    """Tell of keystores that are in the store and have no configured token."""
    with core.store.read() as tx:
        strays = rows.clusters_in_use(tx) - core.keystores.keys()
    for cluster in sorted(strays):
        log.error("no token is configured for the keystore on cluster %s: its keys can't be had", cluster)


def held(core: Core) -> int:
    """How many threads these tokens hold for longer than a moment: they are missing elsewhere."""
    return sum(each.token.holds(_HELD_SECONDS) for each in core.keystores.values())


def close(core: Core) -> None:
    """Leave all of them."""
    for each in core.keystores.values():
        each.token.close()


def _token(settings: Settings, index: int, pin: Pin) -> Token:
    configured, hsm = settings.keystores[index], settings.hsm
    try:
        address = parse_address(configured.token)
    except AddressError as error:
        raise ConfigError(f"keystores[{index}].token: {error}") from error
    return Token(
        address,
        pin.value,
        lock_file=hsm.lock_file.with_name(f"{hsm.lock_file.name}.{configured.cluster_id}"),
        softhsm_conf=hsm.softhsm_conf,
        deadline_seconds=hsm.deadline_seconds,
        oaep_fallback=hsm.oaep_fallback,
        refusal=pin.refusal,
        name=f"keystore cluster {configured.cluster_id}",
        apart=True,
    )


def _connect(token: Token, end: float) -> None:
    while True:
        try:
            token.connect()
        except (Error, TokenRefused) as error:
            # SoftHSM2 stumbles while other processes log into its other tokens: that passes.
            if error.__cause__ is not None and time.monotonic() < end:
                time.sleep(_PAUSE_SECONDS)
                continue
            log.warning("keystores: %s", error)
        return token.watch()
