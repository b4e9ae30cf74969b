"""Data keys, symmetric ones and pairs: born in the HSM, wrapped by a CMK, given away and never kept."""

import hashlib
import hmac
from dataclasses import dataclass, field

from hsmd.algorithms import DATA_KEY_BITS, DATA_KEY_PAIRS, KeyAlgorithm
from hsmd.domain import access, envelope, keys, kinds, publickeys
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
from hsmd.store.keys import Key

_DEFAULT_BITS = 256
_LARGEST_BITS = 8192
_LARGEST_BYTES = _LARGEST_BITS // 8
_DIGEST_BYTES = 32

# DEW spells the curves of data key pairs otherwise than those of CMKs.
_PAIRS: dict[str, KeyAlgorithm] = {
    **{name: row for name, row in DATA_KEY_PAIRS.items() if row.kind == "rsa"},
    "ECC_NIST_P256": DATA_KEY_PAIRS["EC_P256"],
    "ECC_NIST_P384": DATA_KEY_PAIRS["EC_P384"],
    "ECC_NIST_P521": DATA_KEY_PAIRS["EC_P521"],
    "ECC_SECG_P256K1": DATA_KEY_PAIRS["SECP256K1"],
}


@dataclass(frozen=True, slots=True)
class DataKeyPair:
    """A pair that is given away: `private` is DER PKCS#8, `wrapped` the same under the CMK, `public` PEM."""

    key_id: str
    public: str
    private: bytes = field(repr=False)
    wrapped: bytes


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
    key = _wrapping_key(call, reference)
    dek = call.core.token.random(bits // 8)
    return key.id, dek, envelope.seal(call, key, envelope.KIND_DATA_KEY, dek, context)


def create_pair(call: Call, reference: str, spec: str, context: bytes) -> DataKeyPair:
    """A new pair of this DEW key_spec. DEW: create-rsa-datakey-pair, create-ec-datakey-pair."""
    row = _PAIRS[spec]
    key = _wrapping_key(call, reference)
    if not call.core.token.supports(row):
        raise Error(DATAKEY_SPEC_INVALID)
    private, public = call.core.token.generate_exportable_pair(row)
    wrapped = envelope.seal(call, key, envelope.KIND_DATA_KEY_PAIR, private, context)
    return DataKeyPair(key.id, publickeys.pem(public), private, wrapped)


def encrypt(call: Call, reference: str, data: bytes, length: int, context: bytes) -> tuple[str, bytes]:
    """(key id, wrapped DEK) of a DEK followed by its SHA-256; `length` is the DEK's. DEW: encrypt-datakey."""
    if not 1 <= length <= _LARGEST_BYTES:
        raise Error(PLAIN_LENGTH_INVALID)
    if len(data) != length + _DIGEST_BYTES:
        raise Error(PLAIN_LENGTH_DIFFERS)
    dek, digest = data[:length], data[length:]
    if not hmac.compare_digest(hashlib.sha256(dek).digest(), digest):
        raise Error(PLAIN_DIGEST_DIFFERS)
    key = _wrapping_key(call, reference)
    return key.id, envelope.seal(call, key, envelope.KIND_DATA_KEY, dek, context)


def decrypt(call: Call, reference: str, blob: bytes, length: int, context: bytes) -> tuple[bytes, bytes]:
    """(DEK, its SHA-256), or those of a pair's private key. DEW: decrypt-datakey.

    `length` is that of the DEK or of the wrapped DEK: DEW's text says one and its examples the other
    (docs/decisions/0002).
    """
    if length not in envelope.CIPHER_LENGTHS:
        raise Error(CIPHER_LENGTH_INVALID)
    kinds.wrapping(access.usable(access.key(call, reference)))
    dek = envelope.open_sealed(call, blob, envelope.DATA_KEYS, context, reference).data
    if length not in (len(dek), len(blob)):
        raise Error(CIPHER_LENGTH_DIFFERS)
    return dek, hashlib.sha256(dek).digest()


def refuse_pin(pin: str, pin_type: str) -> None:
    """Raises Error(PARAMETER_INVALID): PINs belong to trusted keyspaces, which are not offered here."""
    if pin or pin_type:
        raise Error(PARAMETER_INVALID, name="pin", reason="PINs for data keys are not supported")


def _wrapping_key(call: Call, reference: str) -> Key:
    return kinds.wrapping(keys.key_for_encryption(call, reference))
