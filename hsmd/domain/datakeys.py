"""Data keys, symmetric ones and pairs: born in the HSM, wrapped by a CMK, given away and never kept."""

import hashlib
import hmac
from contextlib import nullcontext
from dataclasses import dataclass, field

from hsmd.algorithms import DATA_KEY_BITS, DATA_KEY_PAIRS, KeyAlgorithm
from hsmd.domain import access, envelope, guesses, keys, kinds, pins, publickeys
from hsmd.domain.core import Call
from hsmd.domain.pins import NO_PIN, Pin
from hsmd.errors import (
    CIPHER_LENGTH_DIFFERS,
    CIPHER_LENGTH_INVALID,
    DATAKEY_LENGTH_INVALID,
    DATAKEY_LENGTH_UNEVEN,
    DATAKEY_SPEC_INVALID,
    PARAMETER_MISSING,
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
    call: Call, reference: str, spec: str, bits: int | None, context: bytes, pin: Pin = NO_PIN
) -> tuple[str, bytes, bytes]:
    """(key id, DEK, wrapped DEK). `bits` wins over `spec`; 256 by default. DEW: create-datakey.

    What is made with a PIN is decrypted with the same PIN only.
    """
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
    return key.id, dek, _sealed(call, key, dek, context, pin)


def create_pair(call: Call, reference: str, spec: str, context: bytes, pin: Pin = NO_PIN) -> DataKeyPair:
    """A new pair of this DEW key_spec. DEW: create-rsa-datakey-pair, create-ec-datakey-pair."""
    row = _PAIRS[spec]
    key = _wrapping_key(call, reference)
    if not call.core.token.supports(row):
        raise Error(DATAKEY_SPEC_INVALID)
    private, public = call.core.token.generate_exportable_pair(row)
    bound = pins.binding(call, key, pin)
    kind = envelope.KIND_PINNED_DATA_KEY_PAIR if bound else envelope.KIND_DATA_KEY_PAIR
    wrapped = envelope.seal(call, key, kind, private, bound + context)
    return DataKeyPair(key.id, publickeys.pem(public), private, wrapped)


def encrypt(
    call: Call, reference: str, data: bytes, length: int, context: bytes, pin: Pin = NO_PIN
) -> tuple[str, bytes]:
    """(key id, wrapped DEK) of a DEK followed by its SHA-256; `length` is the DEK's. DEW: encrypt-datakey."""
    if not 1 <= length <= _LARGEST_BYTES:
        raise Error(PLAIN_LENGTH_INVALID)
    if len(data) != length + _DIGEST_BYTES:
        raise Error(PLAIN_LENGTH_DIFFERS)
    dek, digest = data[:length], data[length:]
    if not hmac.compare_digest(hashlib.sha256(dek).digest(), digest):
        raise Error(PLAIN_DIGEST_DIFFERS)
    key = _wrapping_key(call, reference)
    return key.id, _sealed(call, key, dek, context, pin)


def decrypt(
    call: Call, reference: str, blob: bytes, length: int, context: bytes, pin: Pin = NO_PIN
) -> tuple[bytes, bytes]:
    """(DEK, its SHA-256), or those of a pair's private key. DEW: decrypt-datakey.

    Raises Error(RATE_EXCEEDED) after wrong PINs, for a while that gets ever longer.

    `length` is that of the DEK or of the wrapped DEK: DEW's text says one and its examples the other
    (docs/decisions/0002).
    """
    if length not in envelope.CIPHER_LENGTHS:
        raise Error(CIPHER_LENGTH_INVALID)
    key = kinds.wrapping(access.usable(access.key(call, reference)))
    bound = pins.binding(call, key, pin)
    if not bound and envelope.is_pinned(blob):
        raise Error(PARAMETER_MISSING, name="pin")
    kind = envelope.PINNED_DATA_KEYS if bound else envelope.DATA_KEYS
    with guesses.of_pin(call, hashlib.sha256(blob).hexdigest()) if bound else nullcontext():
        dek = envelope.open_sealed(call, blob, kind, bound + context, reference).data
    if length not in (len(dek), len(blob)):
        raise Error(CIPHER_LENGTH_DIFFERS)
    return dek, hashlib.sha256(dek).digest()


def _wrapping_key(call: Call, reference: str) -> Key:
    return kinds.wrapping(keys.key_for_encryption(call, reference))


def _sealed(call: Call, key: Key, dek: bytes, context: bytes, pin: Pin) -> bytes:
    bound = pins.binding(call, key, pin)
    kind = envelope.KIND_PINNED_DATA_KEY if bound else envelope.KIND_DATA_KEY
    return envelope.seal(call, key, kind, dek, bound + context)
