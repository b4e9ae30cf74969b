"""A UKey in its holder's hands: opened by address and PIN, it signs statements and opens boxes, inside.

For the process of `hsmctl` and of the ceremony; the daemon never has one. One key of the token is the UKey's:
the one that the address names by `object` or `id`, or the only one that signs.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import MGF, Attribute, KeyType, Mechanism, ObjectClass, PKCS11Error, TokenFlag
from pkcs11.types import PROTECTED_AUTH, Session, Token

from hsmd import ukey
from hsmd.errors import Error
from hsmd.hsm import schemes, templates
from hsmd.hsm.address import AddressError, UKeyAddress, parse_ukey_address
from hsmd.hsm.connection import find_token, locked
from hsmd.hsm.faults import Sort, TokenRefused, name_of, sort_of
from hsmd.hsm.module import Module
from hsmd.hsm.operations import BoundKey
from hsmd.ukey import UKeyError

KINDS: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "rsa-2048": ("rsa", 2048),
        "rsa-3072": ("rsa", 3072),
        "rsa-4096": ("rsa", 4096),
        "ec-p256": ("ec", 256),
        "ec-p384": ("ec", 384),
    }
)
_CURVES: Mapping[bytes, ec.EllipticCurve] = {
    templates.UKEY_CURVES[256]: ec.SECP256R1(),
    templates.UKEY_CURVES[384]: ec.SECP384R1(),
}
_OAEP = {"sha256": (Mechanism.SHA256, MGF.SHA256), "sha1": (Mechanism.SHA_1, MGF.SHA1)}
_TRIAL = b"hsmd"
_MOST_OBJECTS = 64
_ATTRIBUTE_BYTES = 8192
_ID_BYTES = 16
_LOCK_SECONDS = 30.0

Pin = Callable[[], str]


@dataclass(frozen=True, slots=True)
class _Found:
    """The UKey's private key: its handle, CKA_ID and label, and the public half (DER)."""

    handle: int
    key_id: bytes
    label: str
    public_key: bytes


class UKeyToken:
    """A UKey, logged in; made by `open_ukey`. It does what `ukey.Opener` asks for, and signs."""

    def __init__(self, module: Module, session: Session, token: Token, found: _Found) -> None:
        self._module, self._token, self._found = module, token, found
        self.serial = _printable(token.serial)
        self.token_label = token.label
        self.label = found.label
        self.public_key = found.public_key
        self.fingerprint = ukey.fingerprint(found.public_key)
        self.certificate = _certificate(module, session, found)

    def sign(self, signed: bytes) -> bytes:
        """A signature of a statement, as `ukey.verify` takes it. Raises UKeyError."""
        name, digest = ukey.digest(self.public_key, signed)
        with _told("sign"), self._at_work() as session:
            key: Any = BoundKey(session, self._found.handle)
            if isinstance(ukey.public_key(self.public_key), rsa.RSAPublicKey):
                data = schemes.DIGEST_INFO[name] + digest
                made: bytes = key.sign(data, mechanism=Mechanism.RSA_PKCS)
                return made
            made = key.sign(digest, mechanism=Mechanism.ECDSA)
        half = len(made) // 2
        return encode_dss_signature(int.from_bytes(made[:half], "big"), int.from_bytes(made[half:], "big"))

    def decrypt(self, wrapped: bytes, digest: str) -> bytes:
        """RSAES-OAEP with "sha256" or "sha1". Raises UKeyError."""
        mechanism, mgf = _OAEP[digest]
        with _told("open the box"), self._at_work() as session:
            key: Any = BoundKey(session, self._found.handle)
            opened: bytes = key.decrypt(
                wrapped, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=(mechanism, mgf, None)
            )
            return opened

    def agree(self, point: bytes) -> bytes:
        """ECDH with an uncompressed point of its curve. Raises UKeyError."""
        size = len(point) // 2
        with _told("open the box"), self._at_work() as session:
            made = self._module.derive(session, self._found.handle, point, templates.agreed(size))
            try:
                return self._module.read(session, made, Attribute.VALUE, size)
            finally:
                self._module.destroy(session, made)

    def opens(self) -> str:
        """The kind of boxes that this token opens, tried with one of each; "" for none."""
        for kind in ukey.box_kinds(self.public_key):
            context = {"for": "trial", "nonce": secrets.token_hex(_ID_BYTES)}
            box = ukey.make_box(self.public_key, kind, _TRIAL, context)
            with suppress(UKeyError):
                if ukey.open_box(self.public_key, box, context, self) == _TRIAL:
                    return kind
        return ""

    @contextmanager
    def _at_work(self) -> Iterator[Session]:
        """A session for one operation: one that failed may stay begun in its session (tpm2-pkcs11)."""
        session = self._token.open()
        try:
            yield session
        finally:
            with suppress(PKCS11Error):
                session.close()


@contextmanager
def open_ukey(uri: str, pin: Pin, lock_file: Path | None = None) -> Iterator[UKeyToken]:
    """The UKey at a PKCS#11 URI (RFC 7512), until the block ends; `pin` is asked once it is there.

    `lock_file` is held while others on this machine must not start on the token. Raises UKeyError.
    """
    address = _address(uri)
    with _entered(address, pin, lock_file, write=False) as (module, session, token):
        with _told("be looked at"):
            found = _the_key(module, session, address)
            opened = UKeyToken(module, session, token, found)
        yield opened


def generate(uri: str, pin: Pin, kind: str, label: str, lock_file: Path | None = None) -> None:
    """Generate the UKey's pair in the token: `kind` is one of KINDS.

    Raises UKeyError, also when there is a key of that label: it stays.
    """
    address = _address(uri)
    name, bits = KINDS[kind]
    mechanism = Mechanism.RSA_PKCS_KEY_PAIR_GEN if name == "rsa" else Mechanism.EC_KEY_PAIR_GEN
    with _entered(address, pin, lock_file, write=True) as (module, session, _), _told("make a key"):
        if _privates(module, session, label, None):
            raise UKeyError(f"there is a key {label!r} already")
        key_id = secrets.token_bytes(_ID_BYTES)
        public = templates.ukey_public(name, bits, label, key_id)
        module.generate_pair(session, mechanism, public, templates.ukey_private(name, label, key_id))


def lock_path() -> Path | None:
    """Where `hsmctl` locks UKeys on this machine, for its user; None where nothing can be written."""
    base = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "hsmctl"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder / "ukey.lock" if os.access(folder, os.W_OK) else None


@contextmanager
def _entered(
    address: UKeyAddress, pin: Pin, lock_file: Path | None, *, write: bool
) -> Iterator[tuple[Module, Session, Token]]:
    with _told("be opened"):
        module = Module(address.token.module_path, apart=True)
        with locked(lock_file, _LOCK_SECONDS) if lock_file else nullcontext():
            module.initialize()
    try:
        with _told("be opened"):
            token = find_token(module.slots(), address.token)
            guarded = TokenFlag.PROTECTED_AUTHENTICATION_PATH in token.flags
            secret = PROTECTED_AUTH if guarded else pin()
            session = token.open(user_pin=secret, rw=write)
        yield module, session, token
    finally:
        with suppress(PKCS11Error):  # the process ends soon, and what went wrong before is what counts
            module.finalize()


def _address(uri: str) -> UKeyAddress:
    try:
        return parse_ukey_address(uri)
    except AddressError as error:
        raise UKeyError(f"the UKey's address: {error}") from error


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Faults of the token and of its module, in a line for its holder."""
    try:
        yield
    except PKCS11Error as error:
        if sort_of(error) is Sort.PIN:
            raise UKeyError(f"the UKey refuses the PIN ({name_of(error)}); a few more lock it") from error
        raise UKeyError(f"the UKey can't {what}: {name_of(error)}") from error
    except TokenRefused as error:
        raise UKeyError(f"the UKey can't {what}: {error}") from error
    except Error as error:
        raise UKeyError(f"the UKey can't {what}: {error.message}") from error


def _the_key(module: Module, session: Session, address: UKeyAddress) -> _Found:
    handles = _privates(module, session, address.label, address.key_id)
    found = []
    for handle in handles:
        key_id = _read(module, session, handle, Attribute.ID)
        label = _read(module, session, handle, Attribute.LABEL).decode(errors="replace")
        with suppress(UKeyError):
            found.append(_Found(handle, key_id, label, _public(module, session, handle, key_id)))
    if not found:
        raise UKeyError("the UKey has no key that could be used; `hsmctl ukey init` makes one")
    if len(found) > 1:
        names = ", ".join(f"object={each.label} id={each.key_id.hex()}" for each in found)
        raise UKeyError(f"the UKey has several keys; its address has to name one by object or id: {names}")
    return found[0]


def _privates(module: Module, session: Session, label: str | None, key_id: bytes | None) -> list[int]:
    return module.find(
        session,
        templates.like(ObjectClass.PRIVATE_KEY, label=label, key_id=key_id, signs=True),
        _MOST_OBJECTS,
    )


def _public(module: Module, session: Session, private: int, key_id: bytes) -> bytes:
    """The public half, DER: from the private object, the public one or the certificate of that CKA_ID."""
    kind = int.from_bytes(_read(module, session, private, Attribute.KEY_TYPE), "little")
    others = module.find(session, templates.like(ObjectClass.PUBLIC_KEY, key_id=key_id), _MOST_OBJECTS)
    for handle in (*others, private):
        key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | None = None
        with suppress(PKCS11Error, ValueError):
            key = _rsa(module, session, handle) if kind == KeyType.RSA else _ec(module, session, handle)
        if key is not None:
            der = ukey.encoded(key)
            ukey.public_key(der)  # raises UKeyError for one that no UKey may have
            return der
    raise UKeyError("the public half of the UKey's key is not to be found")


def _rsa(module: Module, session: Session, handle: int) -> rsa.RSAPublicKey:
    modulus, exponent = (
        int.from_bytes(_read(module, session, handle, name), "big")
        for name in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT)
    )
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _ec(module: Module, session: Session, handle: int) -> ec.EllipticCurvePublicKey:
    curve = _CURVES.get(_read(module, session, handle, Attribute.EC_PARAMS))
    if curve is None:
        raise ValueError("another curve")
    point = _read(module, session, handle, Attribute.EC_POINT)
    size = 1 + 2 * ((curve.key_size + 7) // 8)
    return ec.EllipticCurvePublicKey.from_encoded_point(curve, point[-size:])  # behind a DER head or not


def _certificate(module: Module, session: Session, found: _Found) -> bytes:
    """DER, b"" for none: of the same CKA_ID."""
    with suppress(PKCS11Error):
        wanted = templates.like(ObjectClass.CERTIFICATE, key_id=found.key_id)
        for handle in module.find(session, wanted, _MOST_OBJECTS):
            return _read(module, session, handle, Attribute.VALUE)
    return b""


def _read(module: Module, session: Session, handle: int, attribute: Attribute) -> bytes:
    return module.read(session, handle, attribute, _ATTRIBUTE_BYTES)


def _printable(serial: bytes) -> str:
    text = serial.decode("ascii", "replace").strip("\0 ")
    return "".join(each for each in text if "!" <= each <= "~")[:64]
