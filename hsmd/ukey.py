"""What a UKey signs and opens: the same bytes for who asks it and for who checks. No state, no token.

A *statement* is what a UKey signs: a purpose and named values, in one spelling only, so that a signature for
one purpose is worth nothing for another. A *box* is what only a UKey can open: data for its public key, bound
to a context. The format of boxes, version 1, is canonical JSON of `v`, `kind`, `wrapped` (what the UKey
opens: an RSA ciphertext or a point) and `sealed` (AES-256-GCM by a key that comes from it by HKDF-SHA-256;
it is used once, so the nonce is zero). Another format is another version; this one stays readable.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_STATEMENT = b"hsmd-ukey-1\0"
_BOX = b"hsmd-ukey-box-1\0"
_BOX_VERSION = 1
_NONCE = bytes(12)
_SECRET_BYTES = 32
_STATEMENT_BYTES = 64 * 1024
_BOX_BYTES = 64 * 1024
_KEY_BYTES = 2048
_RSA_BITS = range(2048, 8192 + 1)
_CURVES: Mapping[str, tuple[ec.EllipticCurve, hashes.HashAlgorithm]] = {
    "secp256r1": (ec.SECP256R1(), hashes.SHA256()),
    "secp384r1": (ec.SECP384R1(), hashes.SHA384()),
}
_OAEP: Mapping[str, hashes.HashAlgorithm] = {
    "rsa-oaep-sha256": hashes.SHA256(),
    "rsa-oaep-sha1": hashes.SHA1(),  # noqa: S303  # all that some tokens know; OAEP needs no collisions
}
_ECDH = "ecdh"
_BINARY = ("public_key", "certificate", "opened", "signature")


class UKeyError(ValueError):
    """A public key, statement or box is not what it should be; the text says why and repeats no value."""


class Purpose(StrEnum):
    """What a UKey signs for."""

    LOGIN = "login"
    ENROL = "enrol"
    APPROVE = "approve"
    SHARE = "share"
    RESTORE = "restore"
    CEREMONY = "ceremony"


class Opener(Protocol):
    """What a UKey does with its private key, inside itself, to open boxes."""

    def decrypt(self, wrapped: bytes, digest: str) -> bytes:
        """RSAES-OAEP with "sha256" or "sha1", MGF1 of the same and an empty label. Raises UKeyError."""

    def agree(self, point: bytes) -> bytes:
        """ECDH with a point of its curve, uncompressed: the shared secret. Raises UKeyError."""


# Public keys


def public_key(der: bytes) -> PublicKey:
    """The public key (DER SubjectPublicKeyInfo). Raises UKeyError for one that no UKey may have."""
    if len(der) > _KEY_BYTES:
        raise UKeyError(f"a public key of at most {_KEY_BYTES} bytes is due")
    try:
        key = serialization.load_der_public_key(der)
    except Exception as error:  # cryptography raises many kinds for what is none
        raise UKeyError("a public key (DER SubjectPublicKeyInfo) is due") from error
    if encoded(key) != der:  # else one key had several fingerprints
        raise UKeyError("the public key is not DER")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS and key.public_numbers().e >= 65537:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return key
    raise UKeyError("a UKey's key is RSA of 2048 to 8192 bits, or EC on P-256 or P-384")


def encoded(key: object) -> bytes:
    """DER SubjectPublicKeyInfo. Raises UKeyError."""
    try:
        return key.public_bytes(  # type: ignore[attr-defined, no-any-return]  # any public key of the library
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise UKeyError("a public key is due") from error


def fingerprint(der: bytes) -> str:
    """SHA-256 of the public key, 64 hex digits."""
    return hashlib.sha256(der).hexdigest()


def describe(der: bytes) -> str:
    """The key's kind for people, like "RSA-2048" or "EC P-256". Raises UKeyError."""
    key = public_key(der)
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA-{key.key_size}"
    return {"secp256r1": "EC P-256", "secp384r1": "EC P-384"}[key.curve.name]


# Statements


def canonical(values: Mapping[str, object]) -> bytes:
    """The one JSON of these values: names sorted, no spaces, ASCII. Text, whole numbers, bools, lists, maps.

    Raises UKeyError for anything else: there is more than one way to write it.
    """
    _check_values(values)
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def statement(purpose: Purpose, values: Mapping[str, object]) -> bytes:
    """What a UKey signs. Raises UKeyError for values that can't stand there, or too many."""
    content = canonical(values)
    if len(content) > _STATEMENT_BYTES:
        raise UKeyError(f"a statement has at most {_STATEMENT_BYTES} bytes")
    return _STATEMENT + purpose.encode() + b"\0" + content


def digest(der: bytes, signed: bytes) -> tuple[str, bytes]:
    """Name ("sha256", "sha384") and value of the digest that a key signs of a statement. Raises UKeyError."""
    algorithm = _digest_of(public_key(der))
    return algorithm.name, hashlib.new(algorithm.name, signed).digest()


def verify(der: bytes, signed: bytes, signature: bytes) -> bool:
    """Whether it is this key's signature of the statement.

    RSA: PKCS #1 v1.5 or PSS with SHA-256; EC: ECDSA, DER, with SHA-256 (P-256) or SHA-384 (P-384).
    Raises UKeyError for a public key that no UKey may have.
    """
    key = public_key(der)
    algorithm = _digest_of(key)
    hashed = hashlib.new(algorithm.name, signed).digest()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _holds(lambda: key.verify(signature, hashed, ec.ECDSA(Prehashed(algorithm))))
    pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH)
    return any(
        _holds(lambda way=way: key.verify(signature, hashed, way, Prehashed(algorithm)))  # type: ignore[misc]  # bound now
        for way in (padding.PKCS1v15(), pss)
    )


def login_values(
    *,
    challenge: str,
    instance: str,
    server_certificate: str,
    client_certificate: str,
    peer: str,
    key: str,
    purpose: str,
    expires: int,
) -> Mapping[str, object]:
    """What a UKey signs to log in (proto: BeginLoginResponse)."""
    return {
        "challenge": challenge,
        "instance": instance,
        "server_certificate": server_certificate,
        "client_certificate": client_certificate,
        "peer": peer,
        "key": key,
        "purpose": purpose,
        "expires": expires,
    }


# Enrolment


@dataclass(frozen=True, slots=True)
class Candidate:
    """A UKey that is to be enrolled, and the proof that its holder has it.

    `public_key` is DER SubjectPublicKeyInfo, `certificate` DER or empty, `opens` the kind of boxes that it
    can open or "". The daemon gave the nonce and a box, `opened` is what was in it, `signature` the UKey's.
    """

    name: str
    role: str
    serial: str
    public_key: bytes
    certificate: bytes = b""
    opens: str = ""
    nonce: str = ""
    opened: bytes = b""
    signature: bytes = b""

    def statement(self, instance: str) -> bytes:
        """What the UKey signs, for the daemon of that instance. Raises UKeyError."""
        values = {
            "instance": instance,
            "nonce": self.nonce,
            "name": self.name,
            "role": self.role,
            "serial": self.serial,
            "key": fingerprint(self.public_key),
            "certificate": hashlib.sha256(self.certificate).hexdigest() if self.certificate else "",
            "opens": self.opens,
            "opened": hashlib.sha256(self.opened).hexdigest() if self.opened else "",
        }
        return statement(Purpose.ENROL, values)

    def to_values(self) -> dict[str, str]:
        """As text, for a file and for a proposal's parameters; bytes in base64."""
        return {
            name: _text(value) if isinstance(value, bytes) else value
            for name, value in ((name, getattr(self, name)) for name in self.__slots__)
        }

    @classmethod
    def of_values(cls, values: Mapping[str, object]) -> "Candidate":
        """From what `to_values` gave. Raises UKeyError."""
        if set(values) != set(cls.__slots__) or not all(isinstance(each, str) for each in values.values()):
            raise UKeyError(f"these texts are due: {', '.join(cls.__slots__)}")
        texts = {name: str(value) for name, value in values.items()}
        if sum(map(len, texts.values())) > _STATEMENT_BYTES:
            raise UKeyError("it is too long")
        try:
            raw = {name: base64.b64decode(texts[name], validate=True) for name in _BINARY}
        except ValueError as error:
            raise UKeyError(f"base64 is due for {', '.join(_BINARY)}") from error
        return cls(**{name: text for name, text in texts.items() if name not in _BINARY}, **raw)  # type: ignore[arg-type]  # each by its name


def possession_context(instance: str, nonce: str) -> Mapping[str, object]:
    """What the box of an enrolment is bound to."""
    return {"for": "possession", "instance": instance, "nonce": nonce}


# Boxes


def box_kinds(der: bytes) -> tuple[str, ...]:
    """How boxes for this key can be made, the best first. Raises UKeyError."""
    return tuple(_OAEP) if isinstance(public_key(der), rsa.RSAPublicKey) else (_ECDH,)


def make_box(der: bytes, kind: str, data: bytes, context: Mapping[str, object]) -> bytes:
    """Data of at most 32 KiB that only the UKey opens, and only as what it is for. Raises UKeyError.

    `kind` is one of the key's `box_kinds`, the one that its token can open.
    """
    if kind not in box_kinds(der):
        raise UKeyError("a box of this kind can't be made for this key")
    if len(data) > _BOX_BYTES // 2:
        raise UKeyError(f"a box holds at most {_BOX_BYTES // 2} bytes")
    key = public_key(der)
    if isinstance(key, rsa.RSAPublicKey):
        secret = secrets.token_bytes(_SECRET_BYTES)
        wrapped = key.encrypt(secret, _oaep(_OAEP[kind]))
    else:
        once = ec.generate_private_key(key.curve)
        wrapped = _point(once.public_key())
        secret = once.exchange(ec.ECDH(), key)
    sealed = AESGCM(_box_key(der, kind, wrapped, secret, context)).encrypt(_NONCE, data, None)
    return canonical({"v": _BOX_VERSION, "kind": kind, "wrapped": _text(wrapped), "sealed": _text(sealed)})


def open_box(der: bytes, box: bytes, context: Mapping[str, object], key: Opener) -> bytes:
    """What is in the box that was made for this key and context. Raises UKeyError, and what `key` raises."""
    kind, wrapped, sealed = _parts(box)
    if kind not in box_kinds(der):
        raise UKeyError("the box is not for this key")
    secret = key.agree(wrapped) if kind == _ECDH else key.decrypt(wrapped, _OAEP[kind].name)
    try:
        return AESGCM(_box_key(der, kind, wrapped, secret, context)).decrypt(_NONCE, sealed, None)
    except InvalidTag as error:
        raise UKeyError("the box is for another key or purpose, or it was changed") from error


class SoftOpener:
    """A private key in memory: of a daemon's unsealing attempt, and of tests."""

    def __init__(self, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    def decrypt(self, wrapped: bytes, digest: str) -> bytes:
        """See Opener."""
        if not isinstance(self._key, rsa.RSAPrivateKey):
            raise UKeyError("the box is not for this key")
        algorithm = next(each for each in _OAEP.values() if each.name == digest)
        try:
            return self._key.decrypt(wrapped, _oaep(algorithm))
        except ValueError as error:
            raise UKeyError("the box is for another key or purpose, or it was changed") from error

    def agree(self, point: bytes) -> bytes:
        """See Opener."""
        if not isinstance(self._key, ec.EllipticCurvePrivateKey):
            raise UKeyError("the box is not for this key")
        try:
            other = ec.EllipticCurvePublicKey.from_encoded_point(self._key.curve, point)
        except ValueError as error:
            raise UKeyError("the box is for another key or purpose, or it was changed") from error
        return self._key.exchange(ec.ECDH(), other)


def _parts(box: bytes) -> tuple[str, bytes, bytes]:
    if len(box) > _BOX_BYTES:
        raise UKeyError(f"a box has at most {_BOX_BYTES} bytes")
    try:
        tree = json.loads(box)
        version, kind = tree["v"], str(tree["kind"])
        wrapped, sealed = (base64.b64decode(tree[name], validate=True) for name in ("wrapped", "sealed"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UKeyError("this is no box") from error
    if version != _BOX_VERSION:
        raise UKeyError("this is a box of another version")
    return kind, wrapped, sealed


def _box_key(der: bytes, kind: str, wrapped: bytes, secret: bytes, context: Mapping[str, object]) -> bytes:
    """Everything that the box stands on goes into its key: another context opens nothing."""
    bound = (
        kind.encode(),
        hashlib.sha256(der).digest(),
        hashlib.sha256(wrapped).digest(),
        canonical(context),
    )
    info = _BOX + b"".join(len(each).to_bytes(4, "big") + each for each in bound)
    return HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(secret)


def _oaep(algorithm: hashes.HashAlgorithm) -> padding.OAEP:
    return padding.OAEP(padding.MGF1(algorithm), algorithm, None)


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def _digest_of(key: PublicKey) -> hashes.HashAlgorithm:
    return hashes.SHA256() if isinstance(key, rsa.RSAPublicKey) else _CURVES[key.curve.name][1]


def _holds(check: Callable[[], None]) -> bool:
    try:
        check()
    except (InvalidSignature, ValueError):
        return False
    return True


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _check_values(value: object, depth: int = 0) -> None:
    if depth > 8:
        raise UKeyError("the values are nested too deeply")
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise UKeyError("names are text")
        for each in value.values():
            _check_values(each, depth + 1)
    elif isinstance(value, list | tuple):
        for each in value:
            _check_values(each, depth + 1)
    elif not isinstance(value, str | int):  # bool is an int
        raise UKeyError("only text, whole numbers, bools, lists and maps can be signed")
