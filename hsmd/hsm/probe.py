"""What the token can do, found by doing it with throw-away keys; the mechanism list only tells its claims."""

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from pkcs11 import Attribute, Mechanism, PKCS11Error
from pkcs11.types import Session

from hsmd.algorithms import AES_256, DIGEST_BYTES
from hsmd.hsm import operations, schemes, templates
from hsmd.hsm.faults import Sort, name_of, sort_of
from hsmd.hsm.module import Module, Template

# Manufacturer and model of tokens that corrupt their process's memory when a wrapped key fails its check,
# which can't be found out by trying: opencryptoki's soft token since 3.24 (docs/decisions/0012).
_FRAGILE = {("IBM", "Soft")}


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing tried: `detail` says how it is done, or what the token answered instead."""

    name: str
    available: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Found:
    """The probe's result; `key_wrap` is None when the token can't do RFC 5649.

    `extractable_said`: how an unwrapped key can be wrapped again, see templates.trial_unwrapped.
    `confined_afterwards`: keys stay inside only when told so after unwrapping, too.
    `edwards_curve`: CKA_EC_PARAMS of Ed25519 as this token takes it. `oaep`, `oaep_unwrap`: whether it
    decrypts data, and unwraps AES keys, by RSAES-OAEP with SHA-256.
    """

    capabilities: tuple[Capability, ...]
    key_wrap: Mechanism | None
    extractable_said: bool = True
    confined_afterwards: bool = False
    edwards_curve: bytes = b""
    oaep: bool = False
    oaep_unwrap: bool = False


class Wrong(Exception):  # noqa: N818 -- named for what is found
    """The token answered, but not what the standard says."""


def probe(module: Module, session: Session) -> Found:
    """Try everything the service builds on. Raises PKCS11Error when the token fails meanwhile."""
    bench = _Bench(module, session)
    wraps = [
        (each, said, tried("aes-key-wrap-kwp", partial(bench.key_wrap, each, said=said)))
        for each in templates.KEY_WRAPS
        for said in (True, False)
    ]
    key_wrap, said, wrapping = next((each for each in wraps if each[2].available), wraps[0])
    inside = [
        tried("unwrapped-stays-inside", partial(bench.stays_inside, key_wrap, afterwards=afterwards))
        for afterwards in (False, True)
    ]
    return Found(
        capabilities=(
            tried("random", bench.random),
            tried("aes-256-generate", bench.generate),
            wrapping,
            tried("refuses-forged-wraps", bench.refuses_forged),
            next((each for each in inside if each.available), inside[0]),
            tried("aes-256-gcm", bench.gcm),
            *(tried(f"hmac-sha-{name[3:]}", partial(bench.hmac, name)) for name in DIGEST_BYTES),
        ),
        key_wrap=key_wrap if wrapping.available else None,
        extractable_said=said,
        confined_afterwards=not inside[0].available,
    )


def tried(name: str, trial: Callable[[], str]) -> Capability:
    """Run a trial, which says how it is done. Raises PKCS11Error when the token itself fails."""
    try:
        return Capability(name, True, trial())
    except Wrong as wrong:
        return Capability(name, False, str(wrong))
    except PKCS11Error as error:
        if sort_of(error) is Sort.TOKEN:
            raise
        return Capability(name, False, name_of(error))


class _Bench:
    """Trials on one session; each leaves no object behind."""

    def __init__(self, module: Module, session: Session) -> None:
        self._module = module
        self._session = session

    def random(self) -> str:
        first, second = (self._session.generate_random(256) for _ in range(2))
        if len(first) != 32 or first == second:
            raise Wrong("the generator repeats itself")
        return "32 bytes drawn twice"

    def generate(self) -> str:
        mechanism = templates.GENERATORS[AES_256.kind]
        made = self._module.generate(self._session, mechanism, templates.newborn(AES_256))
        self._destroy(made)
        return f"0x{mechanism:X}"

    def key_wrap(self, mechanism: Mechanism, *, said: bool) -> str:
        kek, value = secrets.token_bytes(32), secrets.token_bytes(32)
        expected = aes_key_wrap_with_padding(kek, value)
        root, key = self._create("aes", kek), self._create("aes", value)
        made = None
        try:
            if operations.wrap(self._session, mechanism, root, key) != expected:
                raise Wrong(f"0x{mechanism:X} wraps, but not as RFC 5649 says")
            made = self._unwrap(mechanism, root, expected, templates.trial_unwrapped(said=said))
            if operations.wrap(self._session, mechanism, root, made) != expected:
                raise Wrong(f"0x{mechanism:X} unwraps, but not as RFC 5649 says")
        finally:
            self._destroy(root, key, *([] if made is None else [made]))
        return f"0x{mechanism:X}, known answer both ways"

    def refuses_forged(self) -> str:
        token = self._session.token
        if (token.manufacturer_id, token.model) in _FRAGILE:
            raise Wrong("it overruns a buffer: private keys are checked before it unwraps them")
        return "no defect is known"

    def stays_inside(self, mechanism: Mechanism, *, afterwards: bool) -> str:
        kek = secrets.token_bytes(32)
        root = self._create("aes", kek)
        try:
            wrapped = aes_key_wrap_with_padding(kek, secrets.token_bytes(32))
            made = self._unwrap(mechanism, root, wrapped, templates.at_work(AES_256))
            try:
                if afterwards:
                    self._module.change(self._session, made, templates.CONFINED)
                told = [
                    self._module.read(self._session, made, each, 1)
                    for each in (Attribute.SENSITIVE, Attribute.EXTRACTABLE)
                ]
            finally:
                self._destroy(made)
        finally:
            self._destroy(root)
        if told != [b"\1", b"\0"]:
            raise Wrong("an unwrapped key can be taken out, whatever its template says")
        return "told again after unwrapping" if afterwards else "as told on unwrapping"

    def gcm(self) -> str:
        value, iv, aad, data = (secrets.token_bytes(size) for size in (32, 12, 20, 33))
        key = self._create("aes", value)
        try:
            sealed = operations.encrypt(self._session, key, iv, data, aad)
            opened = operations.decrypt(self._session, key, iv, sealed, aad)
        finally:
            self._destroy(key)
        if sealed != AESGCM(value).encrypt(iv, data, aad) or opened != data:
            raise Wrong("0x1087 does not do as NIST SP 800-38D says")
        return "0x1087, known answer both ways"

    def hmac(self, hash_name: str) -> str:
        value, data = secrets.token_bytes(64), secrets.token_bytes(33)
        key = self._create("generic-secret", value)
        try:
            mac = schemes.mac(self._session, key, hash_name, data)
        finally:
            self._destroy(key)
        if mac != hmac.digest(value, data, hash_name):
            raise Wrong("it does not do as RFC 2104 says")
        return "known answer"

    def _create(self, kind: str, value: bytes) -> int:
        return self._module.create(self._session, templates.trial(kind, value))

    def _unwrap(self, mechanism: Mechanism, root: int, wrapped: bytes, template: Template) -> int:
        return self._module.unwrap(self._session, mechanism, root, wrapped, template)

    def _destroy(self, *handles: int) -> None:
        for handle in handles:
            self._module.destroy(self._session, handle)
