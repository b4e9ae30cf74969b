"""What anybody can do with a public key: verify, encrypt, write it down. No secret is involved.

So the daemon does it itself, by `cryptography`, and the HSM's time is left to private keys
(docs/decisions/0008).
"""

import base64
from textwrap import wrap
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from hsmd.algorithms import SignatureAlgorithm


class WholePublicKey(Protocol):
    """A key whose scheme hashes by itself: Ed25519, ML-DSA."""

    def verify(self, signature: bytes, data: bytes) -> None:
        """Raises InvalidSignature."""


PublicKey = RSAPublicKey | EllipticCurvePublicKey | WholePublicKey

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None)
_OAEP_OVERHEAD = 2 * 32 + 2  # RFC 8017, 7.1.1
_PEM_COLUMNS = 64  # RFC 7468


def verifies(
    key: PublicKey, algorithm: SignatureAlgorithm, message: bytes, signature: bytes, *, digest: bool
) -> bool:
    """Whether the signature is one of the message, or with `digest` of the message whose digest this is.

    Anything that is no signature at all is none either. `algorithm` and the digest's length fit the key.
    """
    try:
        if isinstance(key, RSAPublicKey):
            key.verify(signature, message, _padding(algorithm), _hash(algorithm, digest=digest))
        elif isinstance(key, EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(_hash(algorithm, digest=digest)))
        else:
            key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def oaep_limit(key: RSAPublicKey) -> int:
    """The most bytes that RSAES-OAEP with SHA-256 encrypts."""
    return key.key_size // 8 - _OAEP_OVERHEAD


def encrypt_oaep(key: RSAPublicKey, data: bytes) -> bytes:
    """RSAES-OAEP with SHA-256, MGF1 of the same, an empty label. ValueError beyond `oaep_limit`."""
    return key.encrypt(data, _OAEP)


def pem(der: bytes) -> str:
    """DER SubjectPublicKeyInfo as PEM."""
    lines = wrap(base64.b64encode(der).decode(), _PEM_COLUMNS)
    return "\n".join(("-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""))


def _padding(algorithm: SignatureAlgorithm) -> padding.PKCS1v15 | padding.PSS:
    if algorithm.scheme == "pkcs1":
        return padding.PKCS1v15()
    return padding.PSS(padding.MGF1(_HASHES[algorithm.hash]), padding.PSS.DIGEST_LENGTH)


def _hash(algorithm: SignatureAlgorithm, *, digest: bool) -> hashes.HashAlgorithm | Prehashed:
    used = _HASHES[algorithm.hash]
    return Prehashed(used) if digest else used
