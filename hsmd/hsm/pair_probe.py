"""What the token can do with key pairs, found by doing it, and held against another implementation.

A pair counts as available when it is born in the token, wrapped, unwrapped, and signs with every algorithm of
its kind so that its public key verifies. RSA pairs take the token too long to make: there a key made
here is imported, and the sizes are taken from what the token claims of its generator.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pkcs11 import Mechanism
from pkcs11.types import Session

from hsmd.algorithms import (
    AGREEMENT,
    EC_P521,
    KEY_SPECS,
    SIGNATURE_ALGORITHMS,
    KeyAlgorithm,
)
from hsmd.hsm import oaep, operations, points, schemes, templates
from hsmd.hsm.faults import BadData
from hsmd.hsm.module import Module, oaep_parameter
from hsmd.hsm.probe import Capability, Found, Wrong, tried

_MESSAGE = b"hsmd"
_TRIAL_BITS = 2048
_RSA_ROWS = tuple(row for row in KEY_SPECS.values() if row.kind == "rsa")
_BORN_ROWS = (*(row for row in KEY_SPECS.values() if row.kind in ("ec", "ml-dsa")), EC_P521)
_EDWARDS = KEY_SPECS["ED25519"]
_AGREEING = tuple(row for row in KEY_SPECS.values() if AGREEMENT in row.usages)
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


def probe_pairs(module: Module, session: Session, found: Found) -> Found:
    """Add what is found about pairs to what was found before. Raises PKCS11Error when the token fails."""
    if found.key_wrap is None:
        return found
    with _bench(module, session, found.key_wrap, said=found.extractable_said) as bench:
        edwards = [
            (curve, tried(_EDWARDS.name, partial(bench.born, _EDWARDS, curve)))
            for curve in templates.EDWARDS_CURVES
        ]
        curve, edwards_found = next((each for each in edwards if each[1].available), edwards[0])
        by_oaep = tried("oaep-sha-256", bench.oaep)
        unwraps = tried("oaep-sha-256-unwrap", bench.oaep_unwrap)
        signing = tried("rsa-sign", bench.rsa_signs)
        return replace(
            found,
            capabilities=(
                *found.capabilities,
                *(tried(row.name, partial(bench.born, row, row.curve)) for row in _BORN_ROWS),
                edwards_found,
                *(_sized(row, signing, session) for row in _RSA_ROWS),
                tried("ecdh", bench.ecdh),
                by_oaep,
                unwraps,
                tried("rsa-bare", bench.bare),
            ),
            edwards_curve=curve,
            oaep=by_oaep.available,
            oaep_unwrap=unwraps.available,
        )


def _sized(row: KeyAlgorithm, signing: Capability, session: Session) -> Capability:
    if not signing.available:
        return replace(signing, name=row.name)
    return tried(row.name, partial(_claimed, row, session))


def _claimed(row: KeyAlgorithm, session: Session) -> str:
    info = session.token.slot.get_mechanism_info(templates.PAIR_GENERATORS["rsa"])
    least, most = info.min_key_length or 0, info.max_key_length or 0
    if not least <= row.bits <= most:
        raise Wrong(f"it makes keys of {least} to {most} bits")
    return f"all signatures verified with {_TRIAL_BITS} bits; the size as claimed"


@cache
def trial_key() -> rsa.RSAPrivateKey:
    """Thrown away with the process, or with those forked from it; it takes longer than all the rest."""
    return rsa.generate_private_key(65537, _TRIAL_BITS)


@contextmanager
def _bench(module: Module, session: Session, key_wrap: Mechanism, *, said: bool) -> "Iterator[_Bench]":
    value = secrets.token_bytes(32)
    root = module.create(session, templates.trial("aes", value))
    try:
        yield _Bench(module, session, key_wrap, root, value, said=said)
    finally:
        module.destroy(session, root)


class _Bench:
    """Trials under a throw-away root key of known value; each leaves no object behind."""

    def __init__(
        self,
        module: Module,
        session: Session,
        key_wrap: Mechanism,
        root: int,
        root_value: bytes,
        *,
        said: bool,
    ) -> None:
        self._module = module
        self._session = session
        self._key_wrap = key_wrap
        self._root = root
        self._root_value = root_value
        self._unwrapped = templates.trial_unwrapped(said=said)

    def born(self, row: KeyAlgorithm, curve: bytes) -> str:
        public, private = self._module.generate_pair(
            self._session,
            templates.PAIR_GENERATORS[row.kind],
            templates.newborn_public(row, curve),
            templates.newborn_private(row),
        )
        try:
            info = _public_key(row, partial(self._module.read, self._session, public))
            blob = operations.wrap(self._session, self._key_wrap, self._root, private)
        finally:
            self._module.destroy(self._session, public)
            self._module.destroy(self._session, private)
        with self._loaded(row, blob) as key:
            return self._signs(row, key, info)

    def rsa_signs(self) -> str:
        row, blob = self._imported_rsa()
        with self._loaded(row, blob) as key:
            info = _public_key(row, partial(self._module.read, self._session, key))
            if info != _info(trial_key().public_key()):
                raise Wrong("another public key than imported")
            return self._signs(row, key, info)

    def oaep(self) -> str:
        return self._opens(lambda key, data: operations.decrypt_oaep(self._session, key, data))

    def bare(self) -> str:
        return self._opens(lambda key, data: oaep.decode(operations.decrypt_bare(self._session, key, data)))

    def oaep_unwrap(self) -> str:
        row, blob = self._imported_rsa()
        value = secrets.token_bytes(32)
        secret = secrets.token_bytes(32)
        with self._loaded(row, blob) as key:
            kek = self._module.unwrap(
                self._session,
                Mechanism.RSA_PKCS_OAEP,
                key,
                trial_key().public_key().encrypt(value, _OAEP),
                templates.UNWRAPPER,
                oaep_parameter(),
            )
        try:
            wrapped = aes_key_wrap_with_padding(value, secret)
            made = self._module.unwrap(self._session, self._key_wrap, kek, wrapped, self._unwrapped)
            self._module.destroy(self._session, made)
        finally:
            self._module.destroy(self._session, kek)
        return "an AES key of known value unwraps"

    def ecdh(self) -> str:
        for row in _AGREEING:
            curve = points.curve(row)
            own, peer = ec.generate_private_key(curve), ec.generate_private_key(curve)
            with self._loaded(row, self._wrapped(own)) as key:
                point = points.peer_point(row, _info(peer.public_key()))
                if schemes.agree(self._module, self._session, key, row, point) != own.exchange(
                    ec.ECDH(), peer.public_key()
                ):
                    raise Wrong(f"it does not agree on {row.name}")
        return "agrees on " + ", ".join(row.name for row in _AGREEING)

    def _opens(self, decrypt: Callable[[int, bytes], bytes]) -> str:
        row, blob = self._imported_rsa()
        data = secrets.token_bytes(33)
        with self._loaded(row, blob) as key:
            try:
                opened = decrypt(key, trial_key().public_key().encrypt(data, _OAEP))
            except BadData as error:
                raise Wrong("it does not decrypt") from error
        if opened != data:
            raise Wrong("it does not decrypt")
        return f"{_TRIAL_BITS} bits, encrypted elsewhere"

    def _imported_rsa(self) -> tuple[KeyAlgorithm, bytes]:
        return KEY_SPECS[f"RSA_{_TRIAL_BITS}"], self._wrapped(trial_key())

    def _wrapped(self, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
        return aes_key_wrap_with_padding(
            self._root_value, key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        )

    @contextmanager
    def _loaded(self, row: KeyAlgorithm, blob: bytes) -> Iterator[int]:
        key = self._module.unwrap(self._session, self._key_wrap, self._root, blob, templates.at_work(row))
        try:
            yield key
        finally:
            self._module.destroy(self._session, key)

    def _signs(self, row: KeyAlgorithm, key: int, info: bytes) -> str:
        for algorithm in SIGNATURE_ALGORITHMS.values():
            if algorithm.kind == row.kind:
                made = schemes.sign(self._session, key, row, algorithm, _MESSAGE, digest=False)
                if not points.verifies(info, algorithm, made, _MESSAGE):
                    raise Wrong(f"its signature by {algorithm.name} does not verify")
        return "born, wrapped, unwrapped; all signatures verified"


def _public_key(row: KeyAlgorithm, read: points.Read) -> bytes:
    try:
        return points.public_key(row, read)
    except BadData as error:
        raise Wrong(str(error)) from error


def _info(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
