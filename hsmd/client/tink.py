"""Tink users' way in: a tink.KmsClient whose keys are CMKs, named by URIs such as `hsmd://alias/NAME`.

    kms = HsmdKmsClient(Client.from_environment())
    remote = kms.get_aead("hsmd://alias/files")
    envelope = aead.KmsEnvelopeAead(aead.aead_key_templates.AES256_GCM, remote)

Everything here raises tink.TinkError; its cause is the ApiError, where there is one.
"""

import hashlib
import re

from hsmd.client.client import Client
from hsmd.client.errors import NO_TINK, ApiError

try:
    import tink
    from tink import aead
except ImportError as error:
    raise ImportError(NO_TINK) from error

PREFIX = "hsmd://"
# A key id, alias/NAME or an alias URN; aliases are of these characters (DEW), and bounded.
_URI = re.compile(rf"{PREFIX}([a-zA-Z0-9:/_-]{{1,400}})")
_LARGEST_PLAINTEXT = 4096
_LARGEST_CONTEXT = 128
_DIGEST_DOMAIN = b"hsmd tink associated data 1\n"


def key_of(key_uri: str) -> str:
    """The key_id in an `hsmd://` URI, "" when it is none."""
    match = _URI.fullmatch(key_uri)
    return match[1] if match else ""


def context_of(associated_data: bytes) -> bytes:
    """What stands for Tink's associated data (of any length) in a call, which takes 128 bytes at most.

    Empty stays empty, so that what KmsEnvelopeAead and KeysetHandle.write make (both use none) opens by a
    plain decrypt-data. Up to 127 bytes: 00, then the data. More: 01, then SHA-256 over a domain line and
    the data. The three kinds can't meet: they differ in length zero or in the first byte; within a kind,
    the first two are the data itself, and the third collides only where SHA-256 does. This mapping is
    part of every ciphertext made with it and never changes.
    """
    if not associated_data:
        return b""
    if len(associated_data) < _LARGEST_CONTEXT:
        return b"\x00" + associated_data
    return b"\x01" + hashlib.sha256(_DIGEST_DOMAIN + associated_data).digest()


class HsmdKmsClient(tink.KmsClient):
    """Aeads by the CMKs behind `client`; with `key_uri`, by that one only."""

    def __init__(self, client: Client, key_uri: str = "") -> None:
        if key_uri and not key_of(key_uri):
            raise tink.TinkError(f"{key_uri!r} is no key URI: {PREFIX}KEY_ID or {PREFIX}alias/NAME is due")
        self._client = client
        self._key_uri = key_uri

    def does_support(self, key_uri: str) -> bool:
        """Whether get_aead takes this URI."""
        return bool(key_of(key_uri)) and self._key_uri in ("", key_uri)

    def get_aead(self, key_uri: str) -> aead.Aead:
        """The Aead of one CMK; no call is made yet."""
        if not self.does_support(key_uri):
            bound = f"; this client is bound to {self._key_uri}" if self._key_uri else ""
            raise tink.TinkError(f"{key_uri!r} is not supported{bound}")
        return HsmdAead(self._client, key_of(key_uri))


class HsmdAead(aead.Aead):
    """encrypt-data and decrypt-data by one CMK: 1 to 4096 bytes, associated data of any length.

    For more, and for many: KmsEnvelopeAead over this one. A ciphertext of another CMK is refused.
    """

    def __init__(self, client: Client, key_id: str) -> None:
        self._client = client
        self._key_id = key_id

    def encrypt(self, plaintext: bytes, associated_data: bytes) -> bytes:
        """Encrypt by one call."""
        if not 1 <= len(plaintext) <= _LARGEST_PLAINTEXT:
            raise tink.TinkError(
                f"a CMK encrypts 1 to {_LARGEST_PLAINTEXT} bytes, not {len(plaintext)}: use KmsEnvelopeAead"
            )
        try:
            return self._client.encrypt(self._key_id, plaintext, context_of(associated_data))
        except ApiError as error:
            raise tink.TinkError(str(error)) from error

    def decrypt(self, ciphertext: bytes, associated_data: bytes) -> bytes:
        """Decrypt by one call."""
        try:
            return self._client.decrypt(ciphertext, context_of(associated_data), self._key_id)
        except ApiError as error:
            raise tink.TinkError(str(error)) from error
