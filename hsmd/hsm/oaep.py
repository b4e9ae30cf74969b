"""RSAES-OAEP with SHA-256 and an empty label (RFC 8017, 7.1.2), the decoding alone, for tokens that can't.

The token does the private-key operation (CKM_RSA_X_509) and gives back the encoded message. Whoever learns
from an answer, or from how long it took, whether its first byte was zero, decrypts any ciphertext with a
thousand questions (Manger, CRYPTO 2001). So nothing here looks at the message before all of it was
worked through: no early end, no branch, no length and no index that depends on it; the verdict is
collected in one integer and asked for once. Python promises no constant time below that; numbers are
therefore kept in the range of one byte, or at a fixed length by a bit above them.
"""

import hmac
from hashlib import sha256

from hsmd.hsm.faults import BadData

HASH_BYTES = 32
_EMPTY_LABEL = sha256(b"").digest()


def decode(encoded: bytes) -> bytes:
    """The message in an encoded message as long as the modulus. Raises BadData, the same for every reason."""
    seed = _xor(encoded[1 : 1 + HASH_BYTES], _mgf1(encoded[1 + HASH_BYTES :], HASH_BYTES))
    block = _xor(encoded[1 + HASH_BYTES :], _mgf1(seed, len(encoded) - 1 - HASH_BYTES))
    wrong = encoded[0] | (1 - hmac.compare_digest(block[:HASH_BYTES], _EMPTY_LABEL))
    padding = 1  # 1 until the 0x01 that ends it was seen
    start = HASH_BYTES
    for byte in block[HASH_BYTES:]:
        is_zero = (byte - 1) >> 8 & 1
        is_one = ((byte ^ 1) - 1) >> 8 & 1
        start += padding
        wrong |= padding & (1 - is_zero) & (1 - is_one)
        padding &= 1 - is_one
    if wrong | padding:
        raise BadData("not encrypted for this key by RSAES-OAEP")
    return block[start:]


def _mgf1(seed: bytes, size: int) -> bytes:
    """MGF1 with SHA-256 (RFC 8017, B.2.1)."""
    blocks = range(-(-size // HASH_BYTES))
    return b"".join(sha256(seed + count.to_bytes(4, "big")).digest() for count in blocks)[:size]


def _xor(left: bytes, right: bytes) -> bytes:
    """Exclusive or of equally long strings; a bit above each keeps the integers at one length."""
    both = int.from_bytes(b"\x01" + left, "big") ^ int.from_bytes(b"\x02" + right, "big")
    return both.to_bytes(len(left) + 1, "big")[1:]
