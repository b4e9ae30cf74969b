"""The door's second half: key pairs, from birth or import to signatures, decryption and agreement; HMACs."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)
from pkcs11 import Attribute, Mechanism, PKCS11Error
from pkcs11.types import Session

from hsmd.algorithms import DIGEST_BYTES, SIGNATURE_ALGORITHMS, KeyAlgorithm, SignatureAlgorithm
from hsmd.errors import INTERNAL, PARAMETER_INVALID, SPEC_INVALID, Error
from hsmd.hsm import oaep, operations, points, schemes, templates
from hsmd.hsm.connection import Connection
from hsmd.hsm.desk import OTHER_WORK, Desk, Work
from hsmd.hsm.faults import BadData, Sort, WrongSize, name_of, sort_of
from hsmd.hsm.handles import Handle
from hsmd.hsm.loading import confined, key_wrap, passing, second, wrapped_up
from hsmd.hsm.module import Module, Template, oaep_parameter
from hsmd.hsm.probe import Capability

TEMPORARY_KEY_BYTES = (16, 32)
_LONGEST_CURVE = 512  # bytes of CKA_EC_PARAMS: explicit parameters are long, and refused
_GENERATION_SECONDS = 60.0  # primes are found by luck: RSA-4096 takes 1 s or, on small or busy HSMs, 30 s
_OAEP = "RSAES_OAEP_SHA_256"
_PROOF = {"rsa": "RSASSA_PKCS1_V1_5_SHA_256", "ec": "ECDSA_SHA_256"}
# What a token can do under names of its own; every other row is probed under the row's name.
_NEEDS = {"aes": ("aes-256-generate", "aes-256-gcm"), "generic-secret": ("hmac-sha-256",)}


@dataclass(frozen=True, slots=True)
class Pair:
    """A key pair as it is kept: private key under a root key, public key as DER SubjectPublicKeyInfo."""

    wrapped: bytes
    public_key: bytes


class PairWork(ABC):
    """What Token does with key pairs and HMAC keys. Faults as with all of Token, see there."""

    _oaep_fallback: bool

    @property
    @abstractmethod
    def capabilities(self) -> tuple[Capability, ...]:
        """What the last probe found."""

    @abstractmethod
    def wrap_value(self, row: KeyAlgorithm, value: bytes, root: Handle) -> bytes:
        """A secret key of known value, wrapped by the root key."""

    @abstractmethod
    def _desk(self) -> Desk: ...

    @abstractmethod
    def _load(self, call: Desk, make: Callable[[Desk, Module, Session], int]) -> Handle:
        """Make an object that outlives this thread; unloaded again when it came too late."""

    @abstractmethod
    def _call(self, key: Handle, work: Work = OTHER_WORK, *, blob: bool = False) -> Desk: ...

    # What the token can do

    def supports(self, row: KeyAlgorithm) -> bool:
        """Whether keys of this row can be made and used, by the last probe."""
        return self._has("aes-key-wrap-kwp", "unwrapped-stays-inside", *needed(row))

    def supports_oaep(self) -> bool:
        """Whether RSAES-OAEP with SHA-256 is done: by the token, or, unless refused, decoded here."""
        return self._has("oaep-sha-256") or (self._oaep_fallback and self._has("rsa-bare"))

    def supports_agreement(self) -> bool:
        """Whether the token does ECDH."""
        return self._has("ecdh")

    def supports_foreign_pairs(self) -> bool:
        """Whether private keys can be imported: checked by the token, or, unless refused, here."""
        return self._oaep_fallback or self._has("refuses-forged-wraps")

    # From birth or import to the blob

    def generate_pair(self, row: KeyAlgorithm, root: Handle) -> Pair:
        """A new pair, born in the token, the private key wrapped by the root key, both destroyed there.

        Raises Error(SPEC_INVALID) when the token can't do such keys.
        """
        self._expect(row)
        with (
            self._patience(),
            self._call(root, ("generate", row.name)) as desk,
            _newborn(desk, row) as (public, private),
        ):
            wrapped = operations.wrap(desk.session, key_wrap(desk.connection), desk.object, private)
            return Pair(wrapped, public_key(desk, row, public))

    def generate_exportable_pair(self, row: KeyAlgorithm) -> tuple[bytes, bytes]:
        """A pair to be given away: the private key as DER PKCS#8, the public one as SubjectPublicKeyInfo.

        Born in the token, and taken out under a key made here for this once. Raises Error(SPEC_INVALID).
        """
        self._expect(row)
        value = os.urandom(32)
        with self._patience(), self._desk().call(work=("generate", row.name)) as desk:
            wrapper = desk.connection.module.create(desk.session, templates.wrapper(value))
            with passing(desk, wrapper), _newborn(desk, row) as (_, private):
                wrapped = operations.wrap(desk.session, key_wrap(desk.connection), wrapper, private)
        return _opened(value, wrapped)

    def disclose_pair(self, row: KeyAlgorithm, wrapped: bytes, root: Handle) -> tuple[bytes, bytes]:
        """The same of a pair that is kept wrapped by the root key, for pairs that were made to be given away.

        Raises BadData when it can't be unwrapped.
        """
        value = os.urandom(32)
        with self._call(root, ("wrap", row.name), blob=True) as desk:
            module, wrap = desk.connection.module, key_wrap(desk.connection)
            template = templates.candidate(row, said=desk.connection.found.extractable_said)
            wrapper = module.create(desk.session, templates.wrapper(value))
            with passing(desk, wrapper):
                key = module.unwrap(desk.session, wrap, desk.object, wrapped, template)
                with passing(desk, key):
                    taken = operations.wrap(desk.session, wrap, wrapper, key)
        return _opened(value, taken)

    def import_pair(
        self,
        row: KeyAlgorithm,
        encrypted_pkcs8: bytes,
        kek: Handle,
        root: Handle,
        kek_value: bytes | None = None,
    ) -> Pair:
        """A private RSA or EC key from outside: PKCS#8 under an AES key by KWP, unwrapped inside the token.

        Its public key is made from what the token tells of it, never from what came along. RSA: modulus and
        exponent. EC: tokens don't keep a private key's point, so the key agrees with the curve's base point,
        which gives the x coordinate of its public point; of the two points that have it, its
        signature of a random message picks one. RSA keys prove themselves by such a signature as well. So
        what is returned is the public key that verifies what the private key signs, or BadData: it was no
        PKCS#8 under `kek`, of another kind, size or curve, or inconsistent.
        Raises Error(SPEC_INVALID) when the token can't do such keys, ValueError for other kinds.
        A token that a forged blob can harm gets none: there `kek_value`, the AES key's value, is due as well,
        and the blob is checked here first (docs/decisions/0012).
        """
        if row.kind not in _PROOF:
            raise ValueError(f"{row.name} is not imported")
        self._expect(row)
        if not self._has("refuses-forged-wraps"):
            self._expect_foreign_pairs()
            _check_wrapped(encrypted_pkcs8, kek_value)
        with self._call(kek, ("unwrap", row.name), blob=True) as desk, _of_the_data():
            root_object = second(desk, root)
            wrap = key_wrap(desk.connection)
            module = desk.connection.module
            template = templates.candidate(row, said=desk.connection.found.extractable_said)
            key = module.unwrap(desk.session, wrap, desk.object, encrypted_pkcs8, template)
            with passing(desk, key):
                public = _proven(desk, row, key)
                return Pair(operations.wrap(desk.session, wrap, root_object, key), public)

    def temporary_key(self, value: bytes) -> Handle:
        """An AES key of 16 or 32 bytes that only unwraps. Raises WrongSize for another length."""
        if len(value) not in TEMPORARY_KEY_BYTES:
            raise WrongSize("no AES key of 128 or 256 bits")
        template = templates.unwrapper(value)
        return self._load(self._desk().call(), lambda _desk, module, anchor: module.create(anchor, template))

    def unwrap_oaep(self, key: Handle, row: KeyAlgorithm, data: bytes) -> Handle | None:
        """The same inside the token, from an RSAES-OAEP ciphertext; None when decrypt_oaep is due instead.

        That is when the token can't, or when import_pair will want the value. Raises WrongSize for a key of
        another length than temporary_key takes, BadData, the same for every reason, when `data` is nothing
        encrypted for `key`, Error(SPEC_INVALID) when the token takes no private keys from outside.
        """
        self._expect_foreign_pairs()
        if not self._has("oaep-sha-256-unwrap", "refuses-forged-wraps"):
            return None
        with _alike():
            if len(data) != schemes.field_bytes(row):
                raise BadData
            return self._load(
                self._call(key, ("unwrap", _OAEP), blob=True),
                lambda desk, _, anchor: _unwrapper(desk.connection, anchor, desk.object, data),
            )

    def import_oaep(
        self, key: Handle, row: KeyAlgorithm, data: bytes, wanted: KeyAlgorithm, root: Handle
    ) -> bytes:
        """A secret key from outside, an RSAES-OAEP ciphertext for `key` (of `row`): wrapped by the root key.

        It stays inside the token where that can unwrap so, else as with decrypt_oaep. Raises WrongSize when
        it is not as long as `wanted`, BadData, the same for every reason, when it can't be decrypted.
        """
        size = wanted.bits // 8
        if not self._has("oaep-sha-256-unwrap"):
            value = self.decrypt_oaep(key, row, data)
            if len(value) != size:
                raise WrongSize
            return self.wrap_value(wanted, value, root)
        with _alike(), self._call(key, ("unwrap", _OAEP), blob=True) as desk, _of_the_data():
            if len(data) != schemes.field_bytes(row):
                raise BadData
            root_object = second(desk, root)
            template = templates.candidate_secret(said=desk.connection.found.extractable_said)
            made = _unwrap_oaep(desk.connection.module, desk.session, desk.object, data, template, (size,))
            return wrapped_up(desk, root_object, made)

    def rewrap(self, row: KeyAlgorithm, wrapped: bytes, old: Handle, new: Handle) -> bytes:
        """What one root key has wrapped, wrapped by the other: inside the token, where nothing of it stays.

        Raises BadData when it can't be unwrapped.
        """
        with self._call(old, ("unwrap", row.name), blob=True) as desk:
            new_object, wrap = second(desk, new), key_wrap(desk.connection)
            template = templates.in_passing(row, said=desk.connection.found.extractable_said)
            key = desk.connection.module.unwrap(desk.session, wrap, desk.object, wrapped, template)
            return wrapped_up(desk, new_object, key)

    # Keys at work

    def sign(
        self,
        key: Handle,
        row: KeyAlgorithm,
        algorithm: SignatureAlgorithm,
        message: bytes,
        *,
        digest: bool,
    ) -> bytes:
        """A signature of the message, or with `digest` of the message whose digest this is.

        PKCS#1 v1.5; PSS with MGF1 of the same hash and a salt as long as the digest; ECDSA as DER
        Ecdsa-Sig-Value; Ed25519 and ML-DSA (no context, hedged as the token likes) as they are. Raises
        ValueError when the algorithm is none of the row's, or the digest not of its length.
        """
        if algorithm.kind != row.kind or (digest and len(message) != DIGEST_BYTES.get(algorithm.hash)):
            raise ValueError(f"{algorithm.name} does not go with {row.name} or this digest")
        with self._call(key, ("sign", algorithm.name)) as desk:
            return schemes.sign(desk.session, desk.object, row, algorithm, message, digest=digest)

    def mac(self, key: Handle, hash_name: str, data: bytes) -> bytes:
        """HMAC with "sha256", "sha384" or "sha512". Tokens may refuse keys shorter than the digest."""
        with self._call(key, ("mac", f"HMAC_SHA_{hash_name[3:]}")) as desk:
            return schemes.mac(desk.session, desk.object, hash_name, data)

    def decrypt_oaep(self, key: Handle, row: KeyAlgorithm, data: bytes) -> bytes:
        """RSAES-OAEP with SHA-256, MGF1 of the same, an empty label. Raises BadData, always the same.

        In the token where it can; else the token does the bare RSA and the decoding is done here (oaep.py),
        unless that was refused: Error(PARAMETER_INVALID).
        """
        if not self.supports_oaep():
            reason = "this HSM can't do RSAES_OAEP_SHA_256"
            raise Error(PARAMETER_INVALID, name="encryption_algorithm", reason=reason)
        with _alike():
            if len(data) != schemes.field_bytes(row):
                raise BadData
            with self._call(key, ("decrypt", _OAEP), blob=True) as desk:
                if desk.connection.found.oaep:
                    return operations.decrypt_oaep(desk.session, desk.object, data)
                encoded = operations.decrypt_bare(desk.session, desk.object, data)
            return oaep.decode(encoded)

    def derive(self, key: Handle, row: KeyAlgorithm, public_key: bytes) -> bytes:
        """ECDH with the peer's SubjectPublicKeyInfo (DER): the x coordinate, as long as the field.

        Raises BadData before the token sees it, unless it is a point of the row's curve.
        """
        point = points.peer_point(row, public_key)
        with self._call(key, ("derive", row.name), blob=True) as desk:
            return schemes.agree(desk.connection.module, desk.session, desk.object, row, point)

    # Behind the door

    def _has(self, *names: str) -> bool:
        available = {each.name for each in self.capabilities if each.available}
        return available.issuperset(names)

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """The calling thread may be inside the module for long, without the token counting as hung."""
        desk = self._desk()
        before = desk.limit
        desk.limit = max(before, _GENERATION_SECONDS)
        try:
            yield
        finally:
            desk.limit = before

    def _expect(self, row: KeyAlgorithm) -> None:
        if not self.supports(row):
            raise Error(SPEC_INVALID, reason=f"this HSM can't do {row.name}")

    def _expect_foreign_pairs(self) -> None:
        if not self.supports_foreign_pairs():
            raise Error(SPEC_INVALID, reason="this HSM can't be given private keys from outside")


@contextmanager
def _newborn(desk: Desk, row: KeyAlgorithm) -> Iterator[tuple[int, int]]:
    """A public and a private key, extractable; destroyed in the end."""
    connection = desk.connection
    curve = connection.found.edwards_curve if row.kind == "edwards" else row.curve
    public, private = connection.module.generate_pair(
        desk.session,
        templates.PAIR_GENERATORS[row.kind],
        templates.newborn_public(row, curve),
        templates.newborn_private(row),
    )
    with passing(desk, public, private):
        yield public, private


def needed(row: KeyAlgorithm) -> tuple[str, ...]:
    """Names of what a token must be able to do for keys of this row, beyond wrapping them."""
    if row.kind == "generic-secret" and row.bits in (384, 512):
        return (f"hmac-sha-{row.bits}",)
    return _NEEDS.get(row.kind, (row.name,))


def public_key(desk: Desk, row: KeyAlgorithm, key: int) -> bytes:
    """The SubjectPublicKeyInfo of an object. Raises PKCS11Error, BadData."""
    return points.public_key(row, partial(desk.connection.module.read, desk.session, key))


def _proven(desk: Desk, row: KeyAlgorithm, key: int) -> bytes:
    """The public key of a private one, as import_pair tells."""
    session, module = desk.session, desk.connection.module
    if row.kind == "rsa":
        publics = [public_key(desk, row, key)]
    else:
        if module.read(session, key, Attribute.EC_PARAMS, _LONGEST_CURVE) != row.curve:
            raise BadData("a key of another curve")
        base = points.base_point(row)
        publics = points.with_x(row, schemes.agree(module, session, key, row, base))
    algorithm, message = SIGNATURE_ALGORITHMS[_PROOF[row.kind]], os.urandom(32)
    proof = schemes.sign(session, key, row, algorithm, message, digest=False)
    for public in publics:
        if points.verifies(public, algorithm, proof, message):
            return public
    raise BadData("an inconsistent private key")


def _check_wrapped(blob: bytes, kek: bytes | None) -> None:
    """Raises BadData unless the token will find the blob (RFC 5649) whole."""
    if kek is None:
        raise ValueError("this token needs the temporary key's value")
    try:
        aes_key_unwrap_with_padding(kek, blob)
    except (InvalidUnwrap, ValueError) as error:
        raise BadData("not wrapped by this key") from error


def _unwrapper(connection: Connection, session: Session, key: int, data: bytes) -> int:
    with _of_the_data():
        made = _unwrap_oaep(connection.module, session, key, data, templates.UNWRAPPER, TEMPORARY_KEY_BYTES)
    return confined(connection, session, made)


def _unwrap_oaep(
    module: Module, session: Session, key: int, data: bytes, template: Template, sizes: Collection[int]
) -> int:
    made = module.unwrap(session, Mechanism.RSA_PKCS_OAEP, key, data, template, oaep_parameter())
    size = int.from_bytes(module.read(session, made, Attribute.VALUE_LEN, 8), sys.byteorder)
    if size not in sizes:
        module.destroy(session, made)
        raise WrongSize
    return made


def _opened(kek: bytes, wrapped: bytes) -> tuple[bytes, bytes]:
    """Both halves of a wrapped private key. SoftHSM2 fills its PKCS#8 up to 8 bytes with zeros: cut off."""
    try:
        info = aes_key_unwrap_with_padding(kek, wrapped)
        key = load_der_private_key(info[: _der_length(info)], None)
    except (InvalidUnwrap, ValueError) as error:
        raise Error(INTERNAL) from error
    return (
        key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )


def _der_length(data: bytes) -> int:
    """Bytes of the first DER element of `data`."""
    if data[1] < 0x80:
        return 2 + data[1]
    count = data[1] & 0x7F
    return 2 + count + int.from_bytes(data[2 : 2 + count], "big")


@contextmanager
def _of_the_data() -> Iterator[None]:
    """Tokens refuse foreign keys by return values that elsewhere mean a wrong use: here it is the data."""
    try:
        yield
    except PKCS11Error as error:
        if sort_of(error) is Sort.USE:
            raise BadData(name_of(error)) from error
        raise


@contextmanager
def _alike() -> Iterator[None]:
    """One BadData for all that can't be decrypted."""
    try:
        yield
    except WrongSize:
        raise
    except BadData:
        raise BadData("not encrypted for this key by RSAES-OAEP") from None
