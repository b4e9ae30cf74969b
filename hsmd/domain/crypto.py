"""Small data encrypted and decrypted by a CMK, and random bytes, all inside the HSM."""

from hsmd.domain import envelope, keys
from hsmd.domain.core import Call
from hsmd.domain.envelope import Plaintext
from hsmd.errors import (
    ALGORITHM_REFUSED,
    PLAINTEXT_INVALID,
    RANDOM_LENGTH_INVALID,
    RANDOM_LENGTH_UNEVEN,
    Error,
)

SYMMETRIC_DEFAULT = "SYMMETRIC_DEFAULT"
_PLAINTEXT_BYTES = 4096
_RANDOM_BITS = range(8, 8193)


def encrypt_data(
    call: Call, reference: str, data: bytes, algorithm: str, context: bytes
) -> tuple[str, bytes]:
    """The key's id and the ciphertext of 1 to 4096 bytes. DEW: encrypt-data."""
    if not 1 <= len(data) <= _PLAINTEXT_BYTES:
        raise Error(PLAINTEXT_INVALID, reason=f"1 to {_PLAINTEXT_BYTES} bytes are due")
    _check_algorithm(algorithm)
    key = keys.key_for_encryption(call, reference)
    return key.id, envelope.seal(call, key, envelope.KIND_DATA, data, context)


def decrypt_data(call: Call, reference: str, blob: bytes, algorithm: str, context: bytes) -> Plaintext:
    """What encrypt-data took; `reference` may be empty: the ciphertext names its key. DEW: decrypt-data."""
    _check_algorithm(algorithm)
    return envelope.open_sealed(call, blob, envelope.KIND_DATA, context, reference)


def random_data(call: Call, bits: int) -> bytes:
    """Random bytes, 8 to 8192 bits, from the HSM's generator. DEW: gen-random."""
    if bits not in _RANDOM_BITS:
        raise Error(RANDOM_LENGTH_INVALID)
    if bits % 8:
        raise Error(RANDOM_LENGTH_UNEVEN)
    return call.core.token.random(bits // 8)


def _check_algorithm(algorithm: str) -> None:
    if algorithm not in ("", SYMMETRIC_DEFAULT):
        raise Error(ALGORITHM_REFUSED)
