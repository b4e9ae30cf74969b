"""Secrets shared with the owner of another EC key, by ECDH."""

from hsmd.domain import access, kinds, material
from hsmd.domain.core import Call
from hsmd.errors import PARAMETER_INVALID, Error
from hsmd.hsm import BadData


def derive(call: Call, reference: str, peer: bytes) -> tuple[str, bytes]:
    """The key's id and the shared secret: the x coordinate, as long as the curve's field.

    `peer` is a DER SubjectPublicKeyInfo on the same curve; anything else is refused before the HSM sees it.
    DEW: derive-shared-secret.
    """
    key = access.usable(access.key(call, reference))
    row = kinds.agreeing(key)
    try:
        secret = material.use(
            call, material.current(call, key), lambda token, handle: token.derive(handle, row, peer)
        )
    except BadData as error:
        reason = f"the DER SubjectPublicKeyInfo of a point on {row.name} is due"
        raise Error(PARAMETER_INVALID, name="public_key", reason=reason) from error
    return key.id, secret
