"""How keys sign, authenticate and agree: each DEW scheme as PKCS#11 mechanisms, on a session and a handle.

RSA hashes messages in the token. ECDSA hashes here: CKM_ECDSA over a digest is what every token has
(SoftHSM2 2.6.1 knows no CKM_ECDSA_SHA256), and a message is no secret of the key. The standard leaves to
the token what becomes of a digest longer than the group's order; so it is cut here (FIPS 186-5, 6.4.1).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import MGF, Attribute, Mechanism
from pkcs11.types import Session

from hsmd.algorithms import DIGEST_BYTES, KeyAlgorithm, SignatureAlgorithm
from hsmd.hsm import templates
from hsmd.hsm.module import Module
from hsmd.hsm.operations import BoundKey


@dataclass(frozen=True, slots=True)
class _Hash:
    """What goes with a hash; `info`: DER of DigestInfo up to the digest (RFC 8017, 9.2, note 1)."""

    mechanism: Mechanism
    mgf: MGF
    pkcs1: Mechanism
    pss: Mechanism
    hmac: Mechanism
    info: bytes


_HASHES = {
    name: _Hash(
        getattr(Mechanism, upper),
        getattr(MGF, upper),
        getattr(Mechanism, f"{upper}_RSA_PKCS"),
        getattr(Mechanism, f"{upper}_RSA_PKCS_PSS"),
        getattr(Mechanism, f"{upper}_HMAC"),
        bytes.fromhex(info),
    )
    for name, upper, info in (
        ("sha256", "SHA256", "3031300d060960864801650304020105000420"),
        ("sha384", "SHA384", "3041300d060960864801650304020205000430"),
        ("sha512", "SHA512", "3051300d060960864801650304020305000440"),
    )
}

DIGEST_INFO = {name: each.info for name, each in _HASHES.items()}  # for CKM_RSA_PKCS

# Bytes of a signature that stands for itself: Ed25519 (RFC 8032) and ML-DSA (FIPS 204, table 2).
_WHOLE_BYTES = {"edwards": {256: 64}, "ml-dsa": {44: 2420, 65: 3309, 87: 4627}}
_WHOLE_MECHANISMS = {"eddsa": Mechanism.EDDSA, "ml-dsa": Mechanism.ML_DSA}

_Signer = Callable[[BoundKey, KeyAlgorithm, SignatureAlgorithm, bytes, bool], bytes]


def sign(
    session: Session,
    key: int,
    row: KeyAlgorithm,
    algorithm: SignatureAlgorithm,
    message: bytes,
    *,
    digest: bool,
) -> bytes:
    """A signature in the form that Token.sign names. Raises PKCS11Error."""
    return _SIGNERS[algorithm.scheme](BoundKey(session, key), row, algorithm, message, digest)


def mac(session: Session, key: int, hash_name: str, data: bytes) -> bytes:
    """An HMAC. Raises PKCS11Error."""
    made: bytes = BoundKey(session, key).sign(
        data, mechanism=_HASHES[hash_name].hmac, buffer_size=DIGEST_BYTES[hash_name]
    )
    return made


def agree(module: Module, session: Session, key: int, row: KeyAlgorithm, point: bytes) -> bytes:
    """The x coordinate of the product of key and point, as long as the field. Raises PKCS11Error."""
    size = field_bytes(row)
    made = module.derive(session, key, point, templates.agreed(size))
    try:
        return module.read(session, made, Attribute.VALUE, size)
    finally:
        module.destroy(session, made)


def field_bytes(row: KeyAlgorithm) -> int:
    """The bytes of a coordinate, or of a modulus."""
    return (row.bits + 7) // 8


def _pkcs1(
    key: BoundKey, row: KeyAlgorithm, algorithm: SignatureAlgorithm, message: bytes, digest: bool
) -> bytes:
    used = _HASHES[algorithm.hash]
    mechanism, data = (Mechanism.RSA_PKCS, used.info + message) if digest else (used.pkcs1, message)
    made: bytes = key.sign(data, mechanism=mechanism, buffer_size=field_bytes(row))
    return made


def _pss(
    key: BoundKey, row: KeyAlgorithm, algorithm: SignatureAlgorithm, message: bytes, digest: bool
) -> bytes:
    used = _HASHES[algorithm.hash]
    made: bytes = key.sign(
        message,
        mechanism=Mechanism.RSA_PKCS_PSS if digest else used.pss,
        mechanism_param=(used.mechanism, used.mgf, DIGEST_BYTES[algorithm.hash]),
        buffer_size=field_bytes(row),
    )
    return made


def _ecdsa(
    key: BoundKey, row: KeyAlgorithm, algorithm: SignatureAlgorithm, message: bytes, digest: bool
) -> bytes:
    size = field_bytes(row)  # also of the order, on the curves that sign here
    hashed = message if digest else hashlib.new(algorithm.hash, message).digest()
    made: bytes = key.sign(hashed[:size], mechanism=Mechanism.ECDSA, buffer_size=2 * size)
    half = len(made) // 2
    return encode_dss_signature(int.from_bytes(made[:half], "big"), int.from_bytes(made[half:], "big"))


def _whole(
    key: BoundKey, row: KeyAlgorithm, algorithm: SignatureAlgorithm, message: bytes, _digest: bool
) -> bytes:
    made: bytes = key.sign(
        message,
        mechanism=_WHOLE_MECHANISMS[algorithm.scheme],
        buffer_size=_WHOLE_BYTES[row.kind][row.bits],
    )
    return made


_SIGNERS: dict[str, _Signer] = {
    "pkcs1": _pkcs1,
    "pss": _pss,
    "ecdsa": _ecdsa,
    "eddsa": _whole,
    "ml-dsa": _whole,
}
