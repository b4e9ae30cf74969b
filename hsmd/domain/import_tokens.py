"""Import tokens: who imports brings back the private key to unwrap with, sealed; nothing is kept here.

    offset  bytes  field
    0       4      magic and format version
    4       36     id of the only key that it is for
    40      8      when it expires, milliseconds since 1970 UTC, big-endian
    48      1      n, length of the next field
    49      n      label of the root key that wraps the private key
    49 + n  ...    the private key of the wrapping pair, wrapped
    -32     32     HMAC by the credential key, in the HSM, over the purpose, domain, project and all before

A new layout gets a new magic; tokens live for a day, so an old one is read for a day more.
"""

import hmac
import struct
from dataclasses import dataclass

from hsmd.domain.core import CREDENTIAL_KEY_LABEL, Call
from hsmd.errors import (
    IMPORT_TOKEN_EXPIRED,
    IMPORT_TOKEN_INVALID,
    IMPORT_TOKEN_OF_OTHER_KEY,
    Error,
)
from hsmd.keyring import with_token_key
from hsmd.store.keys import Key

_MAGIC = b"HSI\x01"
_FRONT = struct.Struct(">4s36sqB")
_MAC_BYTES = 32
_PURPOSE = b"hsmd import token\0"


@dataclass(frozen=True, slots=True)
class WrappingKey:
    """The private key of a wrapping pair, wrapped by the root key of that label."""

    wrapped: bytes
    root_label: str


def seal(call: Call, key: Key, wrapping: WrappingKey, expires: int) -> bytes:
    """A token for this key, good until `expires` (ms)."""
    label = wrapping.root_label.encode()
    body = _FRONT.pack(_MAGIC, key.id.encode(), expires, len(label)) + label + wrapping.wrapped
    return body + _mac(call, key, body)


def unseal(call: Call, key: Key, token: bytes) -> WrappingKey:
    """What `seal` put in.

    Raises Error(IMPORT_TOKEN_INVALID) for what was not sealed here for the key's project, then
    Error(IMPORT_TOKEN_OF_OTHER_KEY) and Error(IMPORT_TOKEN_EXPIRED).
    """
    body, mac = token[:-_MAC_BYTES], token[-_MAC_BYTES:]
    if not hmac.compare_digest(_mac(call, key, body), mac) or not body.startswith(_MAGIC):
        raise Error(IMPORT_TOKEN_INVALID)
    _, key_id, expires, size = _FRONT.unpack_from(body)
    if key_id != key.id.encode():
        raise Error(IMPORT_TOKEN_OF_OTHER_KEY)
    if expires <= call.core.clock():
        raise Error(IMPORT_TOKEN_EXPIRED)
    rest = body[_FRONT.size :]
    return WrappingKey(wrapped=rest[size:], root_label=rest[:size].decode())


def _mac(call: Call, key: Key, body: bytes) -> bytes:
    token = call.core.token
    place = f"{key.domain_id}\0{key.project_id}\0".encode()
    return with_token_key(token, CREDENTIAL_KEY_LABEL, lambda key: token.hmac(key, _PURPOSE + place + body))
