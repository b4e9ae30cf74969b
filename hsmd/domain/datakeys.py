"""Data encryption keys: random from the HSM, wrapped by a CMK, returned to the caller and never kept."""

import hashlib
import hmac

from hsmd.algorithms import DATA_KEY_BITS
from hsmd.domain import envelope, keys
from hsmd.domain.core import Call
from hsmd.errors import (
    CIPHER_LENGTH_DIFFERS,
    CIPHER_LENGTH_INVALID,
    DATAKEY_LENGTH_INVALID,
    DATAKEY_LENGTH_UNEVEN,
    DATAKEY_SPEC_INVALID,
    PARAMETER_INVALID,
    PLAIN_DIGEST_DIFFERS,
    PLAIN_LENGTH_DIFFERS,
    PLAIN_LENGTH_INVALID,
    Error,
)

_DEFAULT_BITS = 256
_LARGEST_BITS = 8192
_LARGEST_BYTES = _LARGEST_BITS // 8
_DIGEST_BYTES = 32


def create(
    call: Call, reference: str, spec: str, bits: int | None, context: bytes
) -> tuple[str, bytes, bytes]:
    """(key id, DEK, wrapped DEK). `bits` wins over `spec`; 256 by default. DEW: create-datakey."""
    if bits is None:
        bits = DATA_KEY_BITS.get(spec, 0) if spec else _DEFAULT_BITS
        if not bits:
            raise Error(DATAKEY_SPEC_INVALID)
    if not 8 <= bits <= _LARGEST_BITS:
        raise Error(DATAKEY_LENGTH_INVALID)
    if bits % 8:
        raise Error(DATAKEY_LENGTH_UNEVEN)
    key = keys.key_for_encryption(call, reference)
    dek = call.core.token.random(bits // 8)
    return key.id, dek, envelope.seal(call, key, envelope.KIND_DATA_KEY, dek, context)


def encrypt(call: Call, reference: str, data: bytes, length: int, context: bytes) -> tuple[str, bytes]:
    """(key id, wrapped DEK) of a DEK followed by its SHA-256; `length` is the DEK's. DEW: encrypt-datakey."""
    if not 1 <= length <= _LARGEST_BYTES:
        raise Error(PLAIN_LENGTH_INVALID)
    if len(data) != length + _DIGEST_BYTES:
        raise Error(PLAIN_LENGTH_DIFFERS)
    dek, digest = data[:length], data[length:]
    if not hmac.compare_digest(hashlib.sha256(dek).digest(), digest):
        raise Error(PLAIN_DIGEST_DIFFERS)
    key = keys.key_for_encryption(call, reference)
    return key.id, envelope.seal(call, key, envelope.KIND_DATA_KEY, dek, context)


def decrypt(call: Call, reference: str, blob: bytes, length: int, context: bytes) -> tuple[bytes, bytes]:
    """(DEK, its SHA-256). DEW: decrypt-datakey.

    `length` is that of the DEK or of the wrapped DEK: DEW's text says one and its examples the other
    (docs/decisions/0002).
    """
    if not 1 <= length <= _LARGEST_BYTES + envelope.HEADER_BYTES:
        raise Error(CIPHER_LENGTH_INVALID)
    dek = envelope.open_sealed(call, blob, envelope.KIND_DATA_KEY, context, reference).data
    if length not in (len(dek), len(blob)):
        raise Error(CIPHER_LENGTH_DIFFERS)
    return dek, hashlib.sha256(dek).digest()


def refuse_pin(pin: str, pin_type: str) -> None:
    """Raises Error(PARAMETER_INVALID): PINs belong to trusted keyspaces, which are not offered here."""
    if pin or pin_type:
        raise Error(PARAMETER_INVALID, name="pin", reason="PINs for data keys are not supported")
