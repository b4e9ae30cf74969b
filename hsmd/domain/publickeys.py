"""What anybody can do with a public key: verify, encrypt, write it down. No secret is involved.

So the daemon does it itself, by `cryptography`, and the HSM's time is left to private keys
(docs/decisions/0008).
"""

import base64
from textwrap import wrap
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hsmd.algorithms import KeyAlgorithm, SignatureAlgorithm


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
_CURVES: dict[str, type[ec.EllipticCurve]] = {
    "EC_P256": ec.SECP256R1,
    "EC_P384": ec.SECP384R1,
    "SECP256K1": ec.SECP256K1,
}
# What stands before the key itself, which fills the rest (RFC 8410; RFC 9881), and the length of all.
_WHOLE: dict[str, tuple[bytes, int]] = {
    "ED25519": (bytes.fromhex("302a300506032b6570032100"), 44),
    "ML_DSA_44": (bytes.fromhex("30820532300b06096086480165030403110382052100"), 1334),
    "ML_DSA_65": (bytes.fromhex("308207b2300b0609608648016503040312038207a100"), 1974),
    "ML_DSA_87": (bytes.fromhex("30820a32300b060960864801650304031303820a2100"), 2614),
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


def is_one(row: KeyAlgorithm, der: bytes) -> bool:
    """Whether it is the DER SubjectPublicKeyInfo of a key of this row: kind, size, curve."""
    if row.name in _WHOLE:
        front, length = _WHOLE[row.name]
        return der.startswith(front) and len(der) == length
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        return False
    if isinstance(key, RSAPublicKey):
        return (row.kind, row.bits) == ("rsa", key.key_size)
    return isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, _CURVES.get(row.name, ()))


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
