"""What is done with keys: any handle on any session of this process, by a class that costs nothing.

python-pkcs11 binds an object to the session that made it and builds a class for each. Here its mixins are
put over a handle and the session of the calling thread for the length of one call.
"""

from typing import Any

from pkcs11 import MGF, GCMParams, KeyType, Mechanism, _pkcs11, types
from pkcs11.types import Session

from hsmd.tracing import span

TAG_BYTES = 16
HMAC_BYTES = 32

_native: Any = _pkcs11  # its type stub leaves the mixins out
_Key: Any = types.Key  # declares the attributes below read-only
_GCM = Mechanism.AES_GCM
_HMAC = Mechanism.SHA256_HMAC


class BoundKey(
    _native.EncryptMixin,  # type: ignore[misc]  # a compiled class without a stub; the next alike
    _native.DecryptMixin,  # type: ignore[misc]  # the same
    _native.SignMixin,  # type: ignore[misc]  # the same
    _native.WrapMixin,  # type: ignore[misc]  # the same
    _Key,  # type: ignore[misc]  # read-only there, set here
):
    """A handle on a session. The mixins ask for the three attributes and nothing else."""

    key_type = KeyType.AES  # only picks a default mechanism, and every call here names its own
    __slots__ = ("handle", "session")  # in place of the library's properties

    def __init__(self, session: Session, handle: int) -> None:
        self.session = session
        self.handle = handle

    def encrypt(self, data: bytes, **how: Any) -> Any:
        """C_Encrypt; `how` is here and below what the library takes, its mechanism always."""
        with span("C_Encrypt", mechanism=how["mechanism"]):
            return super().encrypt(data, **how)

    def decrypt(self, data: bytes, **how: Any) -> Any:
        """C_Decrypt."""
        with span("C_Decrypt", mechanism=how["mechanism"]):
            return super().decrypt(data, **how)

    def sign(self, data: bytes, **how: Any) -> Any:
        """C_Sign."""
        with span("C_Sign", mechanism=how["mechanism"]):
            return super().sign(data, **how)

    def wrap_key(self, key: "BoundKey", **how: Any) -> Any:
        """C_WrapKey."""
        with span("C_WrapKey", mechanism=how["mechanism"]):
            return super().wrap_key(key, **how)


def encrypt(session: Session, key: int, iv: bytes, data: bytes, aad: bytes) -> bytes:
    """AES-GCM: ciphertext, then the tag. Raises PKCS11Error."""
    sealed: bytes = BoundKey(session, key).encrypt(
        data, mechanism=_GCM, mechanism_param=GCMParams(iv, aad), buffer_size=len(data) + TAG_BYTES
    )
    return sealed


def decrypt(session: Session, key: int, iv: bytes, data: bytes, aad: bytes) -> bytes:
    """AES-GCM of ciphertext and tag. Raises PKCS11Error."""
    opened: bytes = BoundKey(session, key).decrypt(
        data, mechanism=_GCM, mechanism_param=GCMParams(iv, aad), buffer_size=len(data)
    )
    return opened


def hmac(session: Session, key: int, data: bytes) -> bytes:
    """HMAC-SHA-256. Raises PKCS11Error."""
    mac: bytes = BoundKey(session, key).sign(data, mechanism=_HMAC, buffer_size=HMAC_BYTES)
    return mac


def decrypt_oaep(session: Session, key: int, data: bytes) -> bytes:
    """RSAES-OAEP with SHA-256, MGF1 of the same and an empty label. Raises PKCS11Error."""
    opened: bytes = BoundKey(session, key).decrypt(
        data, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=(Mechanism.SHA256, MGF.SHA256, None)
    )
    return opened


def decrypt_bare(session: Session, key: int, data: bytes) -> bytes:
    """RSA without a padding: as long as `data`, which is as long as the modulus. Raises PKCS11Error."""
    opened: bytes = BoundKey(session, key).decrypt(data, mechanism=Mechanism.RSA_X_509, buffer_size=len(data))
    return opened.rjust(len(data), b"\0")


def wrap(session: Session, mechanism: Mechanism, root: int, key: int) -> bytes:
    """The key under the root, by KWP. Raises PKCS11Error."""
    wrapped: bytes = BoundKey(session, root).wrap_key(BoundKey(session, key), mechanism=mechanism)
    return wrapped


def wrap_oaep(session: Session, public: int, key: int, digest: str) -> bytes:
    """The key by RSAES-OAEP with "sha256" or "sha1", MGF1 of the same, an empty label. Raises PKCS11Error."""
    used = {"sha1": (Mechanism.SHA_1, MGF.SHA1, None), "sha256": (Mechanism.SHA256, MGF.SHA256, None)}[digest]
    wrapped: bytes = BoundKey(session, public).wrap_key(
        BoundKey(session, key), mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=used
    )
    return wrapped
