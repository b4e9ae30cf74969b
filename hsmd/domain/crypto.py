"""Small data encrypted, decrypted and encrypted anew by CMKs, and random bytes.

A symmetric key seals data in an envelope that names the key (envelope.py). An RSA key gives the bare
RSAES-OAEP ciphertext, so that data encrypted elsewhere with the public key decrypts here and the other way
round; it names no key and binds no additional data.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple, cast

from hsmd.algorithms import KeyAlgorithm
from hsmd.domain import access, envelope, keys, kinds, material, publickeys
from hsmd.domain.core import Call
from hsmd.domain.envelope import Plaintext
from hsmd.domain.kinds import RSAES_OAEP
from hsmd.errors import (
    CIPHER_LENGTH_DIFFERS,
    CIPHER_LENGTH_INVALID,
    CIPHERTEXT_INVALID,
    CONTEXT_INVALID,
    PARAMETER_INVALID,
    PARAMETER_MISSING,
    PLAINTEXT_INVALID,
    PLAINTEXT_TOO_LONG,
    RANDOM_LENGTH_INVALID,
    RANDOM_LENGTH_UNEVEN,
    Error,
)
from hsmd.hsm import BadData
from hsmd.store.keys import Key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

_PLAINTEXT_BYTES = 4096
_RANDOM_BITS = range(8, 8193)
_ANYTHING = (envelope.KIND_DATA, *envelope.DATA_KEYS)


class Side(NamedTuple):
    """A key, an algorithm ("" is SYMMETRIC_DEFAULT) and additional data, of one side of a re-encryption."""

    reference: str
    algorithm: str
    context: bytes


class Moved(NamedTuple):
    """A re-encryption's result."""

    source_id: str
    destination_id: str
    cipher_text: bytes


def encrypt_data(
    call: Call, reference: str, data: bytes, algorithm: str, context: bytes
) -> tuple[str, bytes]:
    """The key's id and the ciphertext of 1 to 4096 bytes. DEW: encrypt-data."""
    if not 1 <= len(data) <= _PLAINTEXT_BYTES:
        raise Error(PLAINTEXT_INVALID, reason=f"1 to {_PLAINTEXT_BYTES} bytes are due")
    key = keys.key_for_encryption(call, reference)
    row = _encrypting(key, algorithm, context)
    return key.id, _encrypted(call, key, row, envelope.KIND_DATA, data, context)


def decrypt_data(call: Call, reference: str, blob: bytes, algorithm: str, context: bytes) -> Plaintext:
    """What encrypt-data took. DEW: decrypt-data.

    `reference` may be empty for a symmetric key: the ciphertext names it.
    """
    return _decrypted(call, Side(reference, algorithm, context), blob, (envelope.KIND_DATA,), "key_id")


def re_encrypt(call: Call, source: Side, destination: Side, blob: bytes, length: int | None) -> Moved:
    """The same data under another key, or with other additional data. DEW: re-encrypt.

    A data key stays one, so it needs a symmetric key to go to. `length`, if one is given, is that of what is
    encrypted or of the ciphertext, as for decrypt-datakey.
    """
    if length is not None and length not in envelope.CIPHER_LENGTHS:
        raise Error(CIPHER_LENGTH_INVALID)
    key = keys.key_for_encryption(call, destination.reference)
    row = _encrypting(key, destination.algorithm, destination.context)
    opened = _decrypted(call, source, blob, _ANYTHING, "source_key_id")
    if length not in (None, len(opened.data), len(blob)):
        raise Error(CIPHER_LENGTH_DIFFERS)
    if row.asymmetric and opened.kind != envelope.KIND_DATA:
        reason = "a data key stays one, under a symmetric key"
        raise Error(PARAMETER_INVALID, name="destination_key_id", reason=reason)
    call.resource = key.id
    made = _encrypted(call, key, row, opened.kind, opened.data, destination.context)
    return Moved(opened.key_id, key.id, made)


def random_data(call: Call, bits: int) -> bytes:
    """Random bytes, 8 to 8192 bits, from the HSM's generator. DEW: gen-random."""
    if bits not in _RANDOM_BITS:
        raise Error(RANDOM_LENGTH_INVALID)
    if bits % 8:
        raise Error(RANDOM_LENGTH_UNEVEN)
    return call.core.token.random(bits // 8)


def _encrypting(key: Key, algorithm: str, context: bytes) -> KeyAlgorithm:
    row = kinds.encrypting(key, algorithm)
    if row.asymmetric:
        _expect_no_context(context)
    return row


def _encrypted(call: Call, key: Key, row: KeyAlgorithm, kind: int, data: bytes, context: bytes) -> bytes:
    if not row.asymmetric:
        return envelope.seal(call, key, kind, data, context)
    public = cast("RSAPublicKey", material.public_key(call, key))  # no other pairs encrypt
    limit = publickeys.oaep_limit(public)
    if len(data) > limit:
        raise Error(PLAINTEXT_TOO_LONG, spec=row.name, limit=limit)
    return publickeys.encrypt_oaep(public, data)


def _decrypted(call: Call, side: Side, blob: bytes, allowed: Collection[int], name: str) -> Plaintext:
    """`name` is the field that holds the reference."""
    if side.reference:
        kinds.encrypting(access.usable(access.key(call, side.reference)), side.algorithm)
    if side.algorithm != RSAES_OAEP:
        return envelope.open_sealed(call, blob, allowed, side.context, side.reference)
    if not side.reference:
        raise Error(PARAMETER_MISSING, name=name)
    return _decrypted_oaep(call, side, blob)


def _decrypted_oaep(call: Call, side: Side, blob: bytes) -> Plaintext:
    _expect_no_context(side.context)
    key = access.key(call, side.reference)
    row = kinds.encrypting(key, side.algorithm)
    try:
        data = material.use(
            call, material.current(call, key), lambda token, handle: token.decrypt_oaep(handle, row, blob)
        )
    except BadData as error:
        raise Error(CIPHERTEXT_INVALID) from error
    return Plaintext(key.id, data)


def _expect_no_context(context: bytes) -> None:
    if context:
        raise Error(CONTEXT_INVALID, reason="RSAES_OAEP_SHA_256 binds none")
