"""Public keys: from attributes to DER SubjectPublicKeyInfo (RFC 5280), and peers' keys back to points."""

from collections.abc import Callable

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from pkcs11 import Attribute

from hsmd.algorithms import KeyAlgorithm, SignatureAlgorithm
from hsmd.hsm.faults import BadData

Read = Callable[[Attribute, int], bytes]  # an attribute of one object, of at most so many bytes

_CURVES: dict[bytes, ec.EllipticCurve] = {
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("06052b81040022"): ec.SECP384R1(),
    bytes.fromhex("06052b81040023"): ec.SECP521R1(),
    bytes.fromhex("06052b8104000a"): ec.SECP256K1(),
}
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_LONGEST = 1024  # bytes of an attribute, but for ML-DSA's
_ED25519_BYTES = 32

# Bytes of an ML-DSA public key (FIPS 204, table 2), and the last arc of its OID 2.16.840.1.101.3.4.3.
_ML_DSA = {44: (1312, 17), 65: (1952, 18), 87: (2592, 19)}
_ML_DSA_ARC = bytes.fromhex("06096086480165030403")


def curve(row: KeyAlgorithm) -> ec.EllipticCurve:
    """The row's curve."""
    return _CURVES[row.curve]


def public_key(row: KeyAlgorithm, read: Read) -> bytes:
    """The SubjectPublicKeyInfo of a pair's public object (of RSA, the private one will do).

    Raises PKCS11Error, and BadData when the attributes are no key of this row.
    """
    try:
        return _READERS[row.kind](row, read)
    except ValueError as error:
        raise BadData(f"no public key of {row.name}: {error}") from error


def _rsa(row: KeyAlgorithm, read: Read) -> bytes:
    modulus, exponent = (
        int.from_bytes(read(name, _LONGEST), "big") for name in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT)
    )
    if modulus.bit_length() != row.bits:
        raise ValueError("another size")
    return _der(rsa.RSAPublicNumbers(exponent, modulus).public_key())


def _ec(row: KeyAlgorithm, read: Read) -> bytes:
    point = _octets(read(Attribute.EC_POINT, _LONGEST), 1 + 2 * ((row.bits + 7) // 8))
    return _der(ec.EllipticCurvePublicKey.from_encoded_point(curve(row), point))


def _edwards(_row: KeyAlgorithm, read: Read) -> bytes:
    return _der(
        Ed25519PublicKey.from_public_bytes(_octets(read(Attribute.EC_POINT, _LONGEST), _ED25519_BYTES))
    )


def _ml_dsa(row: KeyAlgorithm, read: Read) -> bytes:
    size, arc = _ML_DSA[row.bits]
    value = read(Attribute.VALUE, size)
    if len(value) != size:
        raise ValueError("another size")
    return _sequence(_sequence(_ML_DSA_ARC + bytes([arc])) + _tagged(0x03, b"\0" + value))


_READERS: dict[str, Callable[[KeyAlgorithm, Read], bytes]] = {
    "rsa": _rsa,
    "ec": _ec,
    "edwards": _edwards,
    "ml-dsa": _ml_dsa,
}


def _octets(value: bytes, size: int) -> bytes:
    """CKA_EC_POINT: a DER OCTET STRING by the standard, the bare bytes on some tokens."""
    if len(value) == size:
        return value
    if value[:-size] != _tagged(0x04, bytes(size))[:-size]:
        raise ValueError("another form of point")
    return value[-size:]


def peer_point(row: KeyAlgorithm, peer: bytes) -> bytes:
    """The uncompressed point of a SubjectPublicKeyInfo: on the row's curve, not infinity; else BadData."""
    try:
        key = load_der_public_key(peer)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadData("no public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != curve(row).name:
        raise BadData("a public key of another kind or curve")
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def ec_point(row: KeyAlgorithm, public: bytes) -> bytes:
    """CKA_EC_POINT of a SubjectPublicKeyInfo: uncompressed, in a DER OCTET STRING. Raises BadData."""
    return _tagged(0x04, peer_point(row, public))


def base_point(row: KeyAlgorithm) -> bytes:
    """The curve's generator, uncompressed: 1 times itself."""
    one = ec.derive_private_key(1, curve(row))
    return one.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def with_x(row: KeyAlgorithm, x: bytes) -> list[bytes]:
    """The SubjectPublicKeyInfo of the two points with this x coordinate. Raises BadData if there are none."""
    try:
        return [
            _der(ec.EllipticCurvePublicKey.from_encoded_point(curve(row), sign + x))
            for sign in (b"\2", b"\3")
        ]
    except ValueError as error:
        raise BadData("no point of the curve") from error


def verifies(public: bytes, algorithm: SignatureAlgorithm, signature: bytes, message: bytes) -> bool:
    """Whether a message was signed by the key of this SubjectPublicKeyInfo (PSS salt: a digest long)."""
    key = load_der_public_key(public)
    try:
        if isinstance(key, rsa.RSAPublicKey):
            used = _HASHES[algorithm.hash]
            pss = padding.PSS(padding.MGF1(used), padding.PSS.DIGEST_LENGTH)
            form = padding.PKCS1v15() if algorithm.scheme == "pkcs1" else pss
            key.verify(signature, message, form, used)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(_HASHES[algorithm.hash]))
        else:
            key.verify(signature, message)  # type: ignore[union-attr, call-arg]  # Ed25519 and ML-DSA alone
    except InvalidSignature:
        return False
    return True


def _der(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _sequence(content: bytes) -> bytes:
    return _tagged(0x30, content)


def _tagged(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")
    if 0x80 <= size < 0x100:
        length = bytes([0x81, size])
    return bytes([tag]) + length + content
