"""The door's fourth part: keys of hsmd's own that may pass to another token, until they are closed.

A ceremony makes them extractable: so long they can leave the token, wrapped by another token's transport key
or by a key that UKeys hold. Closing them is for good. All wrapping is done inside the tokens; what passes
through here is wrapped, but for a carrier key that was made here to be split.
"""

import hashlib
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, PKCS11Error
from pkcs11.exceptions import PinInvalid
from pkcs11.types import Session

from hsmd.algorithms import KEY_SPECS, SIGNATURE_ALGORITHMS
from hsmd.errors import FORMAT_INVALID, UNAVAILABLE, Error
from hsmd.hsm import operations, points, schemes, templates
from hsmd.hsm.connection import locked
from hsmd.hsm.desk import Desk
from hsmd.hsm.faults import BadData, Sort, TokenRefused, name_of, sort_of
from hsmd.hsm.kept import KeptWork
from hsmd.hsm.link import Link
from hsmd.hsm.loading import key_wrap, passing
from hsmd.hsm.module import Template, oaep_parameter

CARRIER_BYTES = 32
TRANSPORT_BITS = 3072
_CHECK_BYTES = 8
_CHECK_TEXT = b"hsmd key check value 1\0"  # no sealed row, token or other text of ours begins so
_MOST_OBJECTS = 4096
_LABEL_BYTES = 256
_SEVERAL = 16
_P256 = KEY_SPECS["EC_P256"]
_SIGNING = SIGNATURE_ALGORITHMS["ECDSA_SHA_256"]
_OAEP = ("sha256", "sha1")  # the better one first; SoftHSM2 knows only the other
_KINDS: dict[tuple[int, int], str] = {
    (ObjectClass.SECRET_KEY, KeyType.AES): "aes",
    (ObjectClass.SECRET_KEY, KeyType.GENERIC_SECRET): "generic-secret",
    (ObjectClass.PRIVATE_KEY, KeyType.EC): "ec",
    (ObjectClass.PRIVATE_KEY, KeyType.RSA): "rsa",
}


@dataclass(frozen=True, slots=True)
class Held:
    """An object that persists in the token.

    `kind` is "aes", "generic-secret", "ec" or "rsa" of a secret or private key, "" of anything else; the
    flags are those of keys. `born`: in this token, CKA_LOCAL.
    """

    label: str
    kind: str
    private: bool
    sensitive: bool
    extractable: bool
    born: bool
    uses: tuple[str, ...]

    @property
    def closed(self) -> bool:
        """Whether it can't leave the token any more."""
        return self.private and self.sensitive and not self.extractable


@dataclass(frozen=True, slots=True)
class Passed:
    """A key on its way: wrapped by a carrier key (RFC 5649), with what proves it on arrival.

    `public_key` is the DER SubjectPublicKeyInfo of a pair, b"" of a secret key.
    """

    label: str
    kind: str
    check_value: str
    wrapped: bytes
    public_key: bytes = b""


@dataclass(frozen=True, slots=True)
class Carrier:
    """The carrier key for another token: by RSAES-OAEP with `digest`, for its transport key."""

    wrapped: bytes
    digest: str


class PassageWork(KeptWork):
    """What Token does for the ceremony. Faults as with all of Token."""

    _link: Link

    def make_signing_key(self, label: str, *, extractable: bool) -> bytes:
        """Make an EC P-256 pair that signs, nothing else; its public key as SubjectPublicKeyInfo.

        Raises Error(FORMAT_INVALID) if the label is taken.
        """
        public, private = templates.signing_pair(label, _P256.curve, extractable=extractable)
        return self._make_pair(label, Mechanism.EC_KEY_PAIR_GEN, public, private)

    def make_transport_key(self, label: str) -> bytes:
        """Make an RSA pair that takes keys in; its public key as SubjectPublicKeyInfo.

        Raises Error(FORMAT_INVALID) if the label is taken.
        """
        public, private = templates.transport_pair(label, TRANSPORT_BITS)
        with self._patience():
            return self._make_pair(label, Mechanism.RSA_PKCS_KEY_PAIR_GEN, public, private)

    def held(self) -> list[Held]:
        """All that persists in the token, by label."""
        with self._desk().call() as desk:
            found = desk.connection.module.find(desk.session, templates.PERSISTING, _MOST_OBJECTS)
            return sorted((_held(desk, each) for each in found), key=lambda each: (each.label, each.kind))

    def has_signing_key(self, label: str) -> bool:
        """Whether there is such a pair, both halves of it."""
        with self._desk().call() as desk:
            found = desk.connection.module.find(desk.session, templates.labelled(label), _SEVERAL)
            kinds = {_number(desk, each, Attribute.CLASS) for each in found}
            return kinds >= {ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY}

    def public_key_of(self, label: str) -> bytes:
        """The public half of a pair of ours, SubjectPublicKeyInfo. Raises Error(UNAVAILABLE) without one."""
        with self._desk().call() as desk:
            return _public_key(desk, label)

    def sign_with(self, label: str, message: bytes) -> bytes:
        """ECDSA with SHA-256, DER, by the pair of that label. Raises Error(UNAVAILABLE) without one."""
        with self._desk().call(work=("sign", _SIGNING.name)) as desk:
            key, _ = _only(desk, label, ("ec",))
            return schemes.sign(desk.session, key, _P256, _SIGNING, message, digest=False)

    def proof(self, label: str) -> str:
        """The check value of the key of that label, 16 hex digits; the same on every token that has this key.

        Of an AES key: of 32 zeros wrapped by it. Of an HMAC key: of a text of ours. Of a pair: of its public
        key, when that verifies what the private one signs. Raises Error(UNAVAILABLE) unless there is one key.
        """
        with self._desk().call() as desk:
            key, kind = _only(desk, label)
            public = _public_key(desk, label) if kind == "ec" else b""
            return _proof(desk, key, kind, public)

    def close_key(self, label: str) -> bool:
        """Never let the key leave the token any more; whether it could so far. Raises Error(UNAVAILABLE)."""
        with self._writing() as (desk, session):
            key, _ = _only(desk, label)
            if not _is(desk, key, Attribute.EXTRACTABLE):
                return False
            desk.connection.module.change(session, key, templates.CLOSED)
            if _is(desk, key, Attribute.EXTRACTABLE):
                raise Error(UNAVAILABLE, reason=f"the HSM does not close the key {label}")
            return True

    def pack(self, labels: Collection[str], transport_key: bytes) -> tuple[Carrier, list[Passed]]:
        """Keys for another token, under a carrier key made here that only that one opens.

        `transport_key` is its transport key's public half. Raises Error(FORMAT_INVALID) for one that is none,
        and for keys that are closed.
        """
        modulus, exponent = _rsa_numbers(transport_key)
        with self._desk().call() as desk:
            module, session = desk.connection.module, desk.session
            carrier = module.generate(session, Mechanism.AES_KEY_GEN, templates.CARRIER)
            with passing(desk, carrier):
                public = module.create(session, templates.transport_public(modulus, exponent))
                with passing(desk, public):
                    wrapped = _wrapped_carrier(session, public, carrier)
                return wrapped, _packed(desk, carrier, labels)

    def pack_under(self, labels: Collection[str], carrier: bytes) -> list[Passed]:
        """The same under a carrier key of known value, 32 bytes, which others hold in shares."""
        with self._desk().call() as desk:
            key = desk.connection.module.create(desk.session, templates.wrapper(carrier))
            with passing(desk, key):
                return _packed(desk, key, labels)

    def unpack(self, passed: Collection[Passed], carrier: Carrier, transport_label: str) -> list[str]:
        """Take in what another token packed for this one's transport key; labels of what is new here.

        All of it or nothing: each has to have its check value. What stands already has to be the same key.
        Raises BadData for what was changed or is for another token, Error(FORMAT_INVALID) for a label that
        another key has.
        """
        with self._writing(blob=True) as (desk, session):
            transport, _ = _only(desk, transport_label, ("rsa",))
            opener = desk.connection.module.unwrap(
                session,
                Mechanism.RSA_PKCS_OAEP,
                transport,
                carrier.wrapped,
                templates.UNWRAPPER,
                oaep_parameter(carrier.digest),
            )
            try:
                return _unpacked(desk, session, opener, passed)
            finally:
                desk.connection.module.destroy(session, opener)

    def unpack_under(self, passed: Collection[Passed], carrier: bytes) -> list[str]:
        """The same under a carrier key of known value, 32 bytes."""
        with self._writing(blob=True) as (desk, session):
            opener = desk.connection.module.create(session, templates.unwrapper(carrier))
            try:
                return _unpacked(desk, session, opener, passed)
            finally:
                desk.connection.module.destroy(session, opener)

    def destroy_labelled(self, labels: Collection[str]) -> int:
        """Destroy whatever persists under these labels, for good; how many objects. None is well."""
        with self._writing() as (desk, session):
            connection, count = desk.connection, 0
            for label in labels:
                known = connection.labelled.pop(label, None)
                if known is not None:
                    connection.handles.withdraw(known)
                connection.seen.discard(label)
                for each in connection.module.find(session, templates.labelled(label), _SEVERAL):
                    connection.module.destroy(session, each)
                    count += 1
            return count

    def change_pin(self, old: str, new: str) -> None:
        """Change the user PIN; logins of before go on. Raises TokenRefused for a PIN that it refuses."""
        with self._writing() as (_, session):
            try:
                session.set_pin(old, new)
            except PKCS11Error as error:
                if sort_of(error) is Sort.PIN:
                    raise TokenRefused(f"the token refuses to change the PIN: {name_of(error)}") from error
                raise

    def has_pin(self, pin: str, instead_of: str) -> bool:
        """Whether the user PIN is `pin` and no longer the other one. Raises Error(UNAVAILABLE).

        No login would tell, as this process is logged in. Each is tried by a change to itself. Some tokens
        want another one then, and say so (PinInvalid) to who knows the PIN; others say it of a PIN's form
        before they look whether it is right: hence the other one must be refused, too.
        """
        return not self._knows(instead_of) and self._knows(pin)

    def _knows(self, pin: str) -> bool:
        with self._writing() as (_, session):
            try:
                session.set_pin(pin, pin)
            except PinInvalid:
                return True
            except PKCS11Error as error:
                if sort_of(error) is Sort.PIN:
                    return False
                raise
        return True

    def longest_pin(self) -> int:
        """How many bytes a user PIN may have."""
        with self._desk().call() as desk:
            longest: int = desk.connection.module.token_info(desk.connection.token.slot).longest_pin
            return longest

    def empty(self) -> int:
        """Destroy all that persists in the token, for good; how many objects."""
        count = 0
        with self._writing() as (desk, session):
            connection = desk.connection
            for known in connection.labelled.values():
                connection.handles.withdraw(known)
            connection.labelled.clear()
            connection.seen.clear()
            while found := connection.module.find(session, templates.PERSISTING, _MOST_OBJECTS):
                for each in found:
                    connection.module.destroy(session, each)
                count += len(found)
        return count

    @contextmanager
    def _writing(self, *, blob: bool = False) -> Iterator[tuple[Desk, Session]]:
        """A session that may change what persists, while no other process does."""
        settings = self._link.settings
        with locked(settings.lock_file, settings.deadline), self._desk().call(blob=blob) as desk:
            session = desk.connection.open_session(write=True)
            try:
                yield desk, session
            finally:
                session.close()

    def _make_pair(self, label: str, mechanism: Mechanism, public: Template, private: Template) -> bytes:
        with self._writing() as (desk, session):
            if desk.connection.module.find(session, templates.labelled(label), 1):
                raise Error(FORMAT_INVALID, reason=f"the HSM holds something labelled {label} already")
            desk.connection.module.generate_pair(session, mechanism, public, private)
            return _public_key(desk, label)


def _held(desk: Desk, handle: int) -> Held:
    read = partial(desk.connection.module.read, desk.session, handle)
    kind, is_key = _kind(desk, handle)
    uses = (each for each in templates.USES if is_key and _is(desk, handle, each))
    return Held(
        label=read(Attribute.LABEL, _LABEL_BYTES).decode(errors="replace"),
        kind=kind,
        private=_is(desk, handle, Attribute.PRIVATE),
        sensitive=is_key and _is(desk, handle, Attribute.SENSITIVE),
        extractable=is_key and _is(desk, handle, Attribute.EXTRACTABLE),
        born=is_key and _is(desk, handle, Attribute.LOCAL),
        uses=tuple(each.name.lower() for each in uses),
    )


def _kind(desk: Desk, handle: int) -> tuple[str, bool]:
    """What kind of key it is, and whether it is a secret or private one."""
    sort = _number(desk, handle, Attribute.CLASS)
    if sort not in (ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY):
        return "", False
    return _KINDS.get((sort, _number(desk, handle, Attribute.KEY_TYPE)), ""), True


def _number(desk: Desk, handle: int, attribute: Attribute) -> int:
    return int.from_bytes(desk.connection.module.read(desk.session, handle, attribute, 8), sys.byteorder)


def _is(desk: Desk, handle: int, attribute: Attribute) -> bool:
    try:
        return desk.connection.module.read(desk.session, handle, attribute, 1) == b"\1"
    except PKCS11Error as error:
        if sort_of(error) is Sort.USE:  # objects of this class have no such attribute
            return False
        raise


def _only(
    desk: Desk, label: str, kinds: Collection[str] = ("aes", "generic-secret", "ec")
) -> tuple[int, str]:
    """The one secret or private key of that label, and its kind."""
    found = []
    for each in desk.connection.module.find(desk.session, templates.labelled(label), _SEVERAL):
        kind, _ = _kind(desk, each)
        if kind in kinds:
            found.append((each, kind))
    if len(found) != 1:
        raise Error(UNAVAILABLE, reason=f"the HSM holds {len(found) or 'no'} keys labelled {label}")
    return found[0]


def _public_key(desk: Desk, label: str) -> bytes:
    module = desk.connection.module
    for each in module.find(desk.session, templates.labelled(label), _SEVERAL):
        if _number(desk, each, Attribute.CLASS) == ObjectClass.PUBLIC_KEY:
            is_ec = _number(desk, each, Attribute.KEY_TYPE) == KeyType.EC
            row = _P256 if is_ec else KEY_SPECS[f"RSA_{TRANSPORT_BITS}"]
            return points.public_key(row, partial(module.read, desk.session, each))
    raise Error(UNAVAILABLE, reason=f"the HSM holds no public key labelled {label}")


def _proof(desk: Desk, key: int, kind: str, public: bytes) -> str:
    """See PassageWork.proof. Raises BadData for a pair whose halves don't belong together."""
    module, session = desk.connection.module, desk.session
    if kind == "aes":
        zeros = module.create(session, templates.trial("aes", bytes(32)))
        with passing(desk, zeros):
            value = operations.wrap(session, key_wrap(desk.connection), key, zeros)
    elif kind == "generic-secret":
        value = operations.hmac(session, key, _CHECK_TEXT)
    else:
        message = os.urandom(32)
        made = schemes.sign(session, key, _P256, _SIGNING, message, digest=False)
        if not points.verifies(public, _SIGNING, made, message):
            raise BadData("the halves of a pair that don't belong together")
        value = hashlib.sha256(public).digest()
    return value[:_CHECK_BYTES].hex()


def _packed(desk: Desk, carrier: int, labels: Collection[str]) -> list[Passed]:
    wrap, found = key_wrap(desk.connection), []
    for label in labels:
        key, kind = _only(desk, label)
        if not _is(desk, key, Attribute.EXTRACTABLE):
            raise Error(FORMAT_INVALID, reason=f"the key {label} is closed: it can't leave this HSM any more")
        public = _public_key(desk, label) if kind == "ec" else b""
        wrapped = operations.wrap(desk.session, wrap, carrier, key)
        found.append(Passed(label, kind, _proof(desk, key, kind, public), wrapped, public))
    return found


def _unpacked(desk: Desk, session: Session, opener: int, passed: Collection[Passed]) -> list[str]:
    """All of them or none; see PassageWork.unpack."""
    made: list[tuple[str, list[int]]] = []
    try:
        for each in passed:
            if _stands(desk, session, each):
                continue
            made.append((each.label, []))
            _take_in(desk, session, opener, each, made[-1][1])
    except BaseException:
        for _, handles in made:
            for handle in handles:
                desk.connection.module.destroy(session, handle)
        raise
    return [label for label, _ in made]


def _stands(desk: Desk, session: Session, passed: Passed) -> bool:
    """Whether this very key is there already; what a killed attempt left undone of it is done."""
    module = desk.connection.module
    if not module.find(desk.session, templates.labelled(passed.label), 1):
        return False
    key, kind = _only(desk, passed.label)
    if kind != passed.kind or _proof(desk, key, kind, passed.public_key) != passed.check_value:
        raise Error(FORMAT_INVALID, reason=f"the HSM holds another key labelled {passed.label}")
    _complete(desk, session, passed, key)
    return True


def _complete(desk: Desk, session: Session, passed: Passed, key: int) -> list[int]:
    """What unwrapping does not do by itself: the handles of what was made."""
    module = desk.connection.module
    if not _is(desk, key, Attribute.SENSITIVE):
        module.change(session, key, templates.SENSITIVE)
    if passed.kind != "ec" or module.find(session, templates.labelled_public(passed.label), 1):
        return []
    point = points.ec_point(_P256, passed.public_key)
    return [module.create(session, templates.signing_public(passed.label, _P256.curve, point))]


def _take_in(desk: Desk, session: Session, opener: int, passed: Passed, made: list[int]) -> None:
    """`made` takes up the handles of what is there, whatever happens."""
    connection, module = desk.connection, desk.connection.module
    template = templates.passed(passed.kind, passed.label, said=connection.found.extractable_said)
    try:
        key = module.unwrap(session, key_wrap(connection), opener, passed.wrapped, template)
    except PKCS11Error as error:
        if sort_of(error) is Sort.USE:
            raise BadData(name_of(error)) from error
        raise
    made.append(key)
    made += _complete(desk, session, passed, key)
    if _proof(desk, key, passed.kind, passed.public_key) != passed.check_value:
        raise BadData(f"the key {passed.label} has another check value than it should have")


def _wrapped_carrier(session: Session, public: int, carrier: int) -> Carrier:
    for digest in _OAEP:
        try:
            return Carrier(operations.wrap_oaep(session, public, carrier, digest), digest)
        except PKCS11Error as error:
            if sort_of(error) is not Sort.USE or digest == _OAEP[-1]:
                raise
    raise AssertionError("there is a last one")


def _rsa_numbers(public_key: bytes) -> tuple[bytes, bytes]:
    try:
        key = load_der_public_key(public_key)
    except ValueError as error:
        raise Error(FORMAT_INVALID, reason="a transport key's public half (DER) is due") from error
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < TRANSPORT_BITS:
        raise Error(FORMAT_INVALID, reason=f"a transport key is RSA with {TRANSPORT_BITS} bits or more")
    numbers = key.public_numbers()
    return _big_endian(numbers.n), _big_endian(numbers.e)


def _big_endian(number: int) -> bytes:
    return number.to_bytes(-(-number.bit_length() // 8), "big")
