"""Signatures: made in the HSM, verified by the public key (docs/decisions/0008)."""

from hsmd.algorithms import DIGEST_BYTES, SIGNATURE_ALGORITHMS, SignatureAlgorithm
from hsmd.domain import access, kinds, material, publickeys
from hsmd.domain.core import Call
from hsmd.errors import DIGEST_INVALID, PARAMETER_INVALID, Error

DIGEST, RAW = "DIGEST", "RAW"


def sign(
    call: Call, reference: str, algorithm_name: str, message: bytes, message_type: str
) -> tuple[str, bytes]:
    """The key's id and its signature of a message, or of the message that has this digest. DEW: sign.

    `message_type` is DIGEST, RAW or "": the digest where the algorithm has one, else the message itself.
    RSA by PKCS#1 v1.5 or PSS (salt: a digest long), ECDSA as DER, Ed25519 and ML-DSA as they are.
    """
    algorithm = SIGNATURE_ALGORITHMS[algorithm_name]
    digest = _is_digest(algorithm, message, message_type)
    key = access.usable(access.key(call, reference))
    row = kinds.signing(key, algorithm)
    return key.id, material.use(
        call,
        material.current(call, key),
        lambda token, handle: token.sign(handle, row, algorithm, message, digest=digest),
    )


def verify(
    call: Call, reference: str, algorithm_name: str, message: bytes, message_type: str, signature: bytes
) -> tuple[str, bool]:
    """The key's id, and whether the signature is one that it makes. DEW: verify."""
    algorithm = SIGNATURE_ALGORITHMS[algorithm_name]
    digest = _is_digest(algorithm, message, message_type)
    key = access.usable(access.key(call, reference))
    kinds.signing(key, algorithm)
    public = material.public_key(call, key)
    return key.id, publickeys.verifies(public, algorithm, message, signature, digest=digest)


def public_key(call: Call, reference: str) -> tuple[str, str]:
    """The key's id and its public key as PEM SubjectPublicKeyInfo. DEW: get-publickey."""
    key = kinds.public(access.usable(access.key(call, reference)))
    return key.id, publickeys.pem(material.public_der(call, key))


def _is_digest(algorithm: SignatureAlgorithm, message: bytes, message_type: str) -> bool:
    """Whether the message is a digest; Error(DIGEST_INVALID) when it should be and can't."""
    if message_type == RAW or (not message_type and not algorithm.hash):
        return False
    if not algorithm.hash:
        reason = f"RAW is due for {algorithm.name}, which hashes by itself"
        raise Error(PARAMETER_INVALID, name="message_type", reason=reason)
    length = DIGEST_BYTES[algorithm.hash]
    if len(message) != length:
        raise Error(DIGEST_INVALID, algorithm=algorithm.name, length=length)
    return True
