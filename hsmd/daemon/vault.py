"""Where the supervising process keeps the PINs while it is unsealed: in bytes that can be wiped.

Nothing here makes a copy of them. Only the processes that are forked read them out, into memory that ends
with them.
"""

import json
import socket

from hsmd import sealfile
from hsmd.config import ConfigError, Settings
from hsmd.daemon import wiring
from hsmd.hsm import Refusal

SOURCE = "seal"
_ROOM = 64 * 1024
_OURS = ""  # the refusal of [hsm], beside those of keystores by cluster id
_NEXT = json.dumps(sealfile.HSM + sealfile.NEXT).encode()  # with its quotes: no PIN holds them unescaped


class Vault:
    """The PINs of one daemon, or none; made before any process is forked."""

    def __init__(self) -> None:
        self._room = bytearray(_ROOM)
        self._begin = self._end = 0
        self._promoted = False
        self._refusals: dict[str, Refusal] = {}

    def take(self, end: socket.socket, head: int, settings: Settings) -> None:
        """Keep what comes from there now, but for its first `head` bytes: PINs by name, as JSON.

        Whatever was kept is wiped. Raises OSError.
        """
        self.wipe()
        size = end.recv_into(self._room, flags=socket.MSG_DONTWAIT)
        self._begin, self._end = head, max(size, head)
        self._refusals = {each.cluster_id: Refusal() for each in settings.keystores}
        self._refusals[_OURS] = Refusal()

    def wipe(self) -> None:
        """Keep nothing any more."""
        self._room[:] = bytes(len(self._room))
        self._begin = self._end = 0
        self._promoted = False

    def promote(self) -> bool:
        """The HSM refuses its PIN: from now on it is the next one, if a change of the PIN was cut short."""
        there = self._room.find(_NEXT, self._begin, self._end) >= 0
        if self._promoted or not there:
            return False
        self._promoted = True
        self._refusals = {**self._refusals, _OURS: Refusal()}
        return True

    def pins(self, settings: Settings) -> wiring.Pin:
        """The PINs. For a forked process: what it reads stays in its memory. Raises ConfigError."""
        kept: dict[str, str] = json.loads(self._room[self._begin : self._end])
        own = kept.get(sealfile.HSM + sealfile.NEXT if self._promoted else sealfile.HSM)
        if own is None:
            raise ConfigError("the seal holds no PIN of [hsm]")
        keystores = {
            each.cluster_id: wiring.Pin(
                kept[sealfile.KEYSTORE + each.cluster_id], SOURCE, self._refusals[each.cluster_id]
            )
            if sealfile.KEYSTORE + each.cluster_id in kept
            else wiring.read_keystore_pin(settings, index, self._refusals[each.cluster_id])
            for index, each in enumerate(settings.keystores)
        }
        return wiring.Pin(own, SOURCE, self._refusals[_OURS], keystores)


def discard(end: socket.socket) -> None:
    """Read what comes from there now, and forget it."""
    room = bytearray(_ROOM)
    end.recv_into(room, flags=socket.MSG_DONTWAIT)
    room[:] = bytes(len(room))
