"""How often a key version may still encrypt, counted in blocks reserved from the store.

AES-GCM with random IVs is good for 2^32 messages under one key (NIST SP 800-38D, 8.3). A process reserves
a block of uses at a time, so that a message costs no write; what a stopped process had left is lost.
"""

from hsmd.algorithms import GCM_MESSAGES_PER_VERSION
from hsmd.domain.core import Call
from hsmd.errors import KEY_USED_UP, Error
from hsmd.store import keys
from hsmd.store.keys import Key

BLOCK = 1 << 16


def count(call: Call, key: Key, version: int) -> None:
    """Count one message. Raises Error(KEY_USED_UP) when the version has had all of its 2^32."""
    reserve = call.core.reserve
    with reserve.lock:
        held, left = reserve.left.get(key.id, (version, 0))
        if held == version and left > 0:
            reserve.left[key.id] = (version, left - 1)
            return
    # Two threads may both reserve a block: it is added, not lost.
    with call.core.store.write() as tx:
        granted = keys.reserve_usage(tx, key.id, version, BLOCK, GCM_MESSAGES_PER_VERSION)
    if granted == 0:
        raise Error(KEY_USED_UP, key=key.id, version=version)
    with reserve.lock:
        held, left = reserve.left.get(key.id, (version, 0))
        if held <= version:  # else the key was rotated meanwhile, and the rest of the block is lost
            reserve.left[key.id] = (version, granted - 1 + (left if held == version else 0))
