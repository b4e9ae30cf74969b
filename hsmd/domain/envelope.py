"""The ciphertext of encrypt-data and of data keys: a 124-byte header, then AES-GCM padded to 16 bytes.

Layout (big-endian), lengths as DEW users have planned for them, `124 + 16 * ceil(n / 16)` bytes:

    0 magic and format version (4)   4 key id (36)      40 algorithm (1)   41 kind (1)   42 zero (2)
    44 key version (4)   48 plaintext length (4)   52 IV (12)   64 GCM tag (16)
    80 SHA-256 of the ciphertext (32)   112 zero (12)   124 ciphertext

GCM binds the header without tag and digest, then the caller's additional authenticated data. A new layout
gets a new magic; old magics are read for ever. Whatever is wrong with a ciphertext, the answer is KMS.2201.
"""

import hashlib
import hmac
import json
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hsmd.algorithms import BY_NAME, KeyAlgorithm
from hsmd.domain import access, material, usage
from hsmd.domain.core import Call
from hsmd.errors import CIPHERTEXT_INVALID, CONTEXT_INVALID, KEY_NOT_FOUND, Error
from hsmd.hsm import BadData
from hsmd.store.keys import Key

MAGIC = b"HSM\x01"
HEADER_BYTES = 124
IV_BYTES = 12
_FRONT = struct.Struct(">4s36sBB2xII12s")  # bytes 0 to 64
_KIND_AT = 41
_TAG_BYTES = 16
_ZERO = bytes(12)
_BLOCK = 16

KIND_DATA, KIND_DATA_KEY, KIND_DATA_KEY_PAIR = 1, 2, 3
KIND_CAPSULE, KIND_PINNED_DATA_KEY, KIND_PINNED_DATA_KEY_PAIR = 4, 5, 6
DATA_KEYS = (KIND_DATA_KEY, KIND_DATA_KEY_PAIR)
PINNED_DATA_KEYS = (KIND_PINNED_DATA_KEY, KIND_PINNED_DATA_KEY_PAIR)

# What a caller may give as the length of a data key or of its ciphertext, in bytes: private keys are longest.
CIPHER_LENGTHS = range(1, 4097)

_CONTEXT_CHARACTERS = 8192
_CONTEXT_BYTES = 128


class Plaintext(NamedTuple):
    """What a ciphertext held, and the key that it named."""

    key_id: str
    data: bytes
    kind: int = KIND_DATA


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a ciphertext that say how to open it."""

    front: bytes
    key_id: str
    algorithm: int
    kind: int
    version: int
    length: int
    iv: bytes
    body: bytes  # ciphertext and tag, as the token takes them


def seal(call: Call, key: Key, kind: int, data: bytes, context: bytes) -> bytes:
    """Encrypt under the key's current version. Raises Error(KEY_USED_UP) and the token's."""
    version = material.current(call, key)
    usage.count(call, key, version.version)
    iv = call.core.ivs.take(call.core.token)
    number = BY_NAME[version.algorithm].number
    front = _FRONT.pack(MAGIC, key.id.encode(), number, kind, version.version, len(data), iv)
    padded = data + bytes(-len(data) % _BLOCK)
    sealed = material.use(
        call,
        version,
        lambda token, handle: token.encrypt(handle, iv, padded, front + _ZERO + context),
    )
    body, tag = sealed[:-_TAG_BYTES], sealed[-_TAG_BYTES:]
    return b"".join((front, tag, hashlib.sha256(body).digest(), _ZERO, body))


def open_sealed(
    call: Call, blob: bytes, kinds: Collection[int], context: bytes, reference: str = ""
) -> Plaintext:
    """Decrypt with the key that the ciphertext names, which must be the referenced one, if one is.

    Raises Error(CIPHERTEXT_INVALID) for anything but such a ciphertext, and the faults of the key's state.
    """
    header = _parse(blob, kinds)
    key = _named_key(call, header.key_id, reference)
    access.usable(key)
    version = material.version(call, key.id, header.version)
    if version is None or version.wrapped is None or not _fits(header, BY_NAME[version.algorithm]):
        raise Error(CIPHERTEXT_INVALID)
    call.key_version = version.version
    try:
        padded = material.use(
            call,
            version,
            lambda token, handle: token.decrypt(
                handle, header.iv, header.body, header.front + _ZERO + context
            ),
        )
    except BadData as error:
        raise Error(CIPHERTEXT_INVALID) from error
    return Plaintext(key.id, padded[: header.length], header.kind)


def is_pinned(blob: bytes) -> bool:
    """Whether it says of itself that it is a data key bound to a PIN; nothing is checked."""
    return blob.startswith(MAGIC) and len(blob) > _KIND_AT and blob[_KIND_AT] in PINNED_DATA_KEYS


def context_bytes(data: bytes, pairs: Mapping[str, str]) -> bytes:
    """The bytes that GCM binds for a caller's additional data: given as bytes, or as DEW's older pairs.

    Pairs become JSON with sorted keys. Raises Error(CONTEXT_INVALID) for both at once or too much.
    """
    if len(data) > _CONTEXT_BYTES:
        raise Error(CONTEXT_INVALID, reason=f"at most {_CONTEXT_BYTES} bytes are due")
    if not pairs:
        return data
    if data:
        raise Error(
            CONTEXT_INVALID, reason="additional_authenticated_data and encryption_context exclude each other"
        )
    text = json.dumps(dict(pairs), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if len(text) > _CONTEXT_CHARACTERS:
        raise Error(CONTEXT_INVALID, reason=f"encryption_context may have {_CONTEXT_CHARACTERS} characters")
    return text.encode()


def _parse(blob: bytes, kinds: Collection[int]) -> Header:
    body = blob[HEADER_BYTES:]
    if len(blob) < HEADER_BYTES + _BLOCK or len(body) % _BLOCK:
        raise Error(CIPHERTEXT_INVALID)
    front = blob[: _FRONT.size]
    magic, key_id, algorithm, found_kind, version, length, iv = _FRONT.unpack(front)
    sound = (
        magic == MAGIC
        and found_kind in kinds
        and blob[42:44] == b"\0\0"
        and blob[112:HEADER_BYTES] == _ZERO
        and len(body) - _BLOCK < length <= len(body)
        and hmac.compare_digest(hashlib.sha256(body).digest(), blob[80:112])
    )
    if not sound:
        raise Error(CIPHERTEXT_INVALID)
    return Header(
        front=front,
        key_id=key_id.decode("latin-1"),
        algorithm=algorithm,
        kind=found_kind,
        version=version,
        length=length,
        iv=iv,
        body=body + blob[64:80],
    )


def _fits(header: Header, row: KeyAlgorithm) -> bool:
    """Whether it is what such a key makes; a header may name any key, those that don't encrypt so too."""
    return row.kind == "aes" and row.number == header.algorithm


def _named_key(call: Call, key_id: str, reference: str) -> Key:
    """The key that the header names, if it is the caller's; a stranger learns nothing about it."""
    expected = access.key(call, reference) if reference else None
    if not access.is_key_id(key_id) or (expected is not None and expected.id != key_id):
        raise Error(CIPHERTEXT_INVALID)
    try:
        return expected or access.key(call, key_id)
    except Error as error:
        if error.fault is KEY_NOT_FOUND:
            raise Error(CIPHERTEXT_INVALID) from error
        raise
