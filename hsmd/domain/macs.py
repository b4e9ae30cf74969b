"""Message authentication codes by HMAC keys."""

import hmac

from hsmd.domain import access, kinds, material
from hsmd.domain.core import Call


def generate(call: Call, reference: str, algorithm: str, message: bytes) -> tuple[str, bytes]:
    """The key's id and the HMAC of the message, made in the HSM. DEW: generate-mac."""
    key = access.usable(access.key(call, reference))
    hash_name = kinds.authenticating(key, algorithm)
    return key.id, material.use(
        call, material.current(call, key), lambda token, handle: token.mac(handle, hash_name, message)
    )


def verify(call: Call, reference: str, algorithm: str, message: bytes, mac: bytes) -> tuple[str, bool]:
    """The key's id, and whether this is the HMAC of the message. DEW: verify-mac."""
    key_id, right = generate(call, reference, algorithm, message)
    return key_id, hmac.compare_digest(mac, right)
