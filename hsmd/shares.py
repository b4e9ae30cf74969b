"""A secret in N shares of which M give it back, and fewer say nothing of it: Shamir's scheme.

The arithmetic is PyCryptodome's. It knows secrets of 16 bytes, so one of 32 is split as two halves.
"""

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir

SECRET_BYTES = 32
LEAST, MOST = 2, 64  # shares that are due, shares there are: one alone never suffices
_HALF = 16


def split(secret: bytes, threshold: int, count: int) -> dict[int, bytes]:
    """Shares of 32 bytes by index, 1 to `count`; any `threshold` of them give the secret back.

    Raises ValueError unless the secret has 32 bytes and 2 <= threshold <= count <= 64.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret of {SECRET_BYTES} bytes is due")
    if not LEAST <= threshold <= count <= MOST:
        raise ValueError(f"{threshold} of {count}: {LEAST} at least are due, of {MOST} at most")
    left, right = (
        Shamir.split(threshold, count, half, ssss=False) for half in (secret[:_HALF], secret[_HALF:])
    )
    return {index: one + other for (index, one), (_, other) in zip(left, right, strict=True)}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret from exactly `threshold` shares by index: a wrong one, if any of them is another's.

    Raises ValueError for another number of shares, and for one that can't be a share.
    """
    if len(shares) != threshold or threshold < LEAST:
        raise ValueError(f"{threshold} shares are due")
    if any(len(share) != SECRET_BYTES or not 1 <= index <= MOST for index, share in shares.items()):
        raise ValueError("this can't be a share")
    halves = ([(index, share[at : at + _HALF]) for index, share in shares.items()] for at in (0, _HALF))
    return b"".join(Shamir.combine(half, ssss=False) for half in halves)
