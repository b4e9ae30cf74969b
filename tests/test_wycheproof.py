"""Wycheproof's cases through the daemon's operations: each verdict held.

Secrets and private keys come in by import-key-material: RSAES-OAEP by decrypt-data, ECDH by
derive-shared-secret, HMAC by generate-mac and verify-mac. Of signatures there are public keys only: these
are put in the place of a key's own (tests/planted.py), and verify is asked.

What no operation can carry:
- AES-GCM: decrypt-data and decrypt-datakey take what hsmd made, with its header and random IV, under its
  own additional data; a vector has its own. The header's bytes are held one by one in test_bad_input.py.
- AES-KWP with a vector's own blob: what an import unwraps is PKCS#8, and no vector holds one. Their mistakes
  are made in right blobs here; the vectors themselves are unwrapped on the token (test_hsm_wycheproof.py).
- ECDH with keys that have a case or two, and HMAC with such keys: an import has a new RSA-3072 pair made for
  it, so those are on the token there, as are HMAC keys of lengths that no key_spec has.
- OAEP with a label: refused, valid or not, as DEW has none.
- Ed25519 and ML-DSA where the token lacks them: such keys can't be made; what verify calls is asked instead.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from hsmd.algorithms import SIGNATURE_ALGORITHMS
from hsmd.client import ApiError, Client
from hsmd.domain.publickeys import verifies
from hsmd.pb.v1 import agreement_pb2, imports_pb2
from tests.calls import fresh, refusal
from tests.planted import plant
from tests.specs import Keys
from tests.stand import Stand
from tests.vectors import cases
from tests.wrapping import parameters

_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None)
_MANY = 16  # cases that make an import worth its while


def _request(client: Client, key: str, temporary: bytes, blob: bytes = b"") -> Any:
    """A right request but for what is wrong with `blob`, a private key under the temporary key."""
    made = parameters(client, key)
    public: Any = load_der_public_key(made.public_key)
    return imports_pb2.ImportKeyMaterialRequest(
        key_id=key,
        import_token=made.import_token,
        encrypted_key_material=public.encrypt(temporary, _OAEP),
        encrypted_privatekey=blob,
    )


def _imported(client: Client, spec: str, usage: str, *, secret: bytes = b"", pkcs8: bytes = b"") -> str:
    """A key with this material."""
    key = client.create_key(fresh("vector"), spec=spec, usage=usage, origin="external")
    temporary = secret or os.urandom(32)
    blob = aes_key_wrap_with_padding(temporary, pkcs8) if pkcs8 else b""
    client.imports.ImportKeyMaterial(_request(client, key, temporary, blob))
    return key


def _pkcs8(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _check_code(error: ApiError, code: str, sent: str | bytes) -> None:
    """An input that is not there is missing, whatever it would be."""
    assert error.code == (code if sent else "KMS.0204"), error


# Decryption


@pytest.mark.parametrize("bits", [2048, 3072])
def test_oaep(client: Client, bits: int) -> None:
    verdicts: Counter[str] = Counter()
    keys: dict[str, str] = {}
    for group, case in cases(f"rsa_oaep_{bits}_sha256_mgf1sha256_test"):
        pkcs8 = group["privateKeyPkcs8"]
        if pkcs8 not in keys:
            keys[pkcs8] = _imported(client, f"RSA_{bits}", "ENCRYPT_DECRYPT", pkcs8=bytes.fromhex(pkcs8))
        try:
            data = client.decrypt(
                bytes.fromhex(case["ct"]), key_id=keys[pkcs8], algorithm="RSAES_OAEP_SHA_256"
            )
        except ApiError as error:
            _check_code(error, "KMS.2201", case["ct"])
            verdicts["refused"] += 1
            assert case["result"] == "invalid" or case["label"], case["tcId"]
        else:
            verdicts["decrypted"] += 1
            assert case["result"] != "invalid", case["tcId"]
            assert (data.hex(), case["label"]) == (case["msg"], ""), case["tcId"]
    assert verdicts["refused"] >= 27
    assert verdicts["decrypted"] >= 10


# Agreement


def _by_many(name: str, field: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The cases of each key that has many, by the field that holds the key."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for group, case in cases(name):
        found[case[field]].append({**group, **case})
    yield from ((key, each) for key, each in found.items() if len(each) >= _MANY)


@pytest.mark.parametrize(
    ("name", "spec", "curve"),
    [("secp256r1", "EC_P256", ec.SECP256R1()), ("secp384r1", "EC_P384", ec.SECP384R1())],
)
def test_ecdh(client: Client, name: str, spec: str, curve: ec.EllipticCurve) -> None:
    verdicts: Counter[str] = Counter()
    for private, group in _by_many(f"ecdh_{name}_test", "private"):
        pkcs8 = _pkcs8(ec.derive_private_key(int(private, 16), curve))
        key = _imported(client, spec, "KEY_AGREEMENT", pkcs8=pkcs8)
        for case in group:
            request = agreement_pb2.DeriveSharedSecretRequest(
                key_id=key,
                key_agreement_algorithm=agreement_pb2.KEY_AGREEMENT_ALGORITHM_ECDH,
                public_key=bytes.fromhex(case["public"]),
            )
            try:
                shared = client.agreement.DeriveSharedSecret(request).shared_secret
            except ApiError as error:
                _check_code(error, "KMS.0308", case["public"])
                verdicts[f"{case['result']} refused"] += 1
                assert case["result"] != "valid", case["tcId"]
            else:
                verdicts[f"{case['result']} agreed"] += 1
                assert case["result"] != "invalid", case["tcId"]
                assert shared.hex() == case["shared"], case["tcId"]
    assert verdicts["valid agreed"] >= 300
    assert verdicts["invalid refused"] >= 40


# MACs


@pytest.mark.parametrize("bits", [256, 384, 512])
def test_hmac(client: Client, bits: int) -> None:
    algorithm, done = f"HMAC_SHA_{bits}", 0
    for secret, group in _by_many(f"hmac_sha{bits}_test", "key"):
        key = _imported(client, f"HMAC_{bits}", "", secret=bytes.fromhex(secret))
        for case in group:
            message, tag, valid = (
                bytes.fromhex(case["msg"]),
                bytes.fromhex(case["tag"]),
                case["result"] == "valid",
            )
            if not message:
                continue  # KMS.0204: a message has a byte at least
            whole = client.mac(key, algorithm, message)
            assert (whole[: len(tag)] == tag) is valid, case["tcId"]
            # A part of a MAC is none of the key's, though it be the right one.
            assert client.verify_mac(key, algorithm, message, tag) is (valid and len(tag) == bits // 8)
            done += 1
    assert done >= 54


# Signatures

_SIGNATURES = {
    "rsa_signature_2048_sha256": ("RSA_2048", "RSASSA_PKCS1_V1_5_SHA_256"),
    "rsa_signature_3072_sha384": ("RSA_3072", "RSASSA_PKCS1_V1_5_SHA_384"),
    "rsa_signature_4096_sha512": ("RSA_4096", "RSASSA_PKCS1_V1_5_SHA_512"),
    "rsa_pss_2048_sha256_mgf1_32": ("RSA_2048", "RSASSA_PSS_SHA_256"),
    "rsa_pss_3072_sha256_mgf1_32": ("RSA_3072", "RSASSA_PSS_SHA_256"),
    "rsa_pss_4096_sha512_mgf1_64": ("RSA_4096", "RSASSA_PSS_SHA_512"),
    "ecdsa_secp256r1_sha256": ("EC_P256", "ECDSA_SHA_256"),
    "ecdsa_secp384r1_sha384": ("EC_P384", "ECDSA_SHA_384"),
    "ecdsa_secp256k1_sha256": ("SECP256K1", "ECDSA_SHA_256"),
    "ed25519": ("ED25519", "ED25519_SHA_512"),
    "mldsa_44_verify": ("ML_DSA_44", "ML_DSA"),
    "mldsa_65_verify": ("ML_DSA_65", "ML_DSA"),
    "mldsa_87_verify": ("ML_DSA_87", "ML_DSA"),
}


Verify = Callable[[str, bytes, bytes], bool]
"""Whether it is a signature by the owner of this public key (DER in hex) of this message."""


def _asked(client: Client, algorithm: str, keys: Mapping[str, str]) -> Verify:
    """The daemon's verify, for keys that have a vector's public key each."""
    hash_name = SIGNATURE_ALGORITHMS[algorithm].hash

    def verify(public: str, message: bytes, signature: bytes) -> bool:
        digest = bool(hash_name) and len(message) % 2 == 0  # every second one so, the others whole
        if digest:
            message = hashlib.new(hash_name, message).digest()
        try:
            return client.verify(keys[public], algorithm, message, signature, digest=digest)
        except ApiError as error:  # one that is longer than any
            _check_code(error, "KMS.0308", signature)
            return False

    return verify


def _unheard(algorithm: str) -> Verify:
    """What verify calls, where the token makes no such keys."""
    row = SIGNATURE_ALGORITHMS[algorithm]

    def verify(public: str, message: bytes, signature: bytes) -> bool:
        key: Any = load_der_public_key(bytes.fromhex(public))
        return verifies(key, row, message, signature, digest=False)

    return verify


def _publics(found: list[tuple[dict[str, Any], dict[str, Any]]]) -> set[str]:
    """The public keys that are such; no key of hsmd's has any other."""
    publics = set()
    for group, _ in found:
        with suppress(ValueError):
            load_der_public_key(bytes.fromhex(group["publicKeyDer"]))
            publics.add(group["publicKeyDer"])
    return publics


@pytest.fixture(scope="module")
def pots(client: Client) -> Callable[[str, int], list[str]]:
    """So many keys of a spec, the same ones whenever asked: to have other public keys planted."""
    made: dict[str, list[str]] = defaultdict(list)

    def some(spec: str, count: int) -> list[str]:
        while len(made[spec]) < count:
            made[spec].append(client.create_key(fresh("vector"), spec=spec))
        return made[spec]

    return some


@pytest.mark.parametrize("name", _SIGNATURES)
def test_signatures(
    stand: Stand, client: Client, keys: Keys, pots: Callable[[str, int], list[str]], name: str
) -> None:
    spec, algorithm = _SIGNATURES[name]
    found = [(group, case) for group, case in cases(f"{name}_test") if not case.get("ctx")]
    publics = _publics(found)
    verify = _unheard(algorithm)
    if keys.can(spec):
        planted = dict(zip(sorted(publics), pots(spec, len(publics)), strict=False))
        plant(stand, {key: bytes.fromhex(public) for public, key in planted.items()})
        verify = _asked(client, algorithm, planted)
    verdicts: Counter[bool] = Counter()
    for group, case in found:
        if group["publicKeyDer"] not in publics:
            assert case["result"] == "invalid", case["tcId"]
            continue
        message = bytes.fromhex(case["msg"])
        if not message and not SIGNATURE_ALGORITHMS[algorithm].hash:
            continue  # no message is signed that has not a byte at least
        held = verify(group["publicKeyDer"], message, bytes.fromhex(case["sig"]))
        assert case["result"] == "acceptable" or held is (case["result"] == "valid"), case["tcId"]
        verdicts[held] += 1
    assert verdicts[True] >= 7
    assert verdicts[False] >= 40


# Imports with the mistakes of AES-KWP's vectors


def _raw(key: bytes, blob: bytes) -> tuple[bytes, bytes]:
    """(AIV, padded text) of a blob of two or more blocks, whatever they are: W^-1 of RFC 3394, 2.2.2."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).decryptor()  # noqa: S305  # a step of AES-KW
    front, *parts = (blob[place : place + 8] for place in range(0, len(blob), 8))
    for turn in range(6 * len(parts), 0, -1):
        index = (turn - 1) % len(parts)
        front = (int.from_bytes(front) ^ turn).to_bytes(8)
        block = aes.update(front + parts[index])
        front, parts[index] = block[:8], block[8:]
    return front, b"".join(parts)


def _cooked(key: bytes, front: bytes, text: bytes) -> bytes:
    """W of RFC 3394, 2.2.1: the blob of this AIV and padded text."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  # a step of AES-KW
    parts = [text[place : place + 8] for place in range(0, len(text), 8)]
    for turn in range(1, 6 * len(parts) + 1):
        index = (turn - 1) % len(parts)
        block = aes.update(front + parts[index])
        front, parts[index] = (int.from_bytes(block[:8]) ^ turn).to_bytes(8), block[8:]
    return front + b"".join(parts)


def _mistakes() -> set[tuple[bytes, bytes]]:
    """(what differs in the AIV, what differs in the last block) of each vector that is not valid."""
    found = set()
    for _, case in cases("aes_kwp_test"):
        key, blob, text = (bytes.fromhex(case[name]) for name in ("key", "ct", "msg"))
        if case["result"] == "valid" or len(blob) < 24 or len(blob) % 8:
            continue
        front, padded = _raw(key, blob)
        right = b"\xa6\x59\x59\xa6" + len(text).to_bytes(4)
        last = text[len(padded) - 8 :].ljust(8, b"\0")
        found.add((_xor(front, right), _xor(padded[-8:], last)))
    return found - {(bytes(8), bytes(8))}


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def test_mistakes_of_key_wrap(client: Client) -> None:
    private, temporary = ec.generate_private_key(ec.SECP384R1()), os.urandom(32)
    pkcs8 = _pkcs8(private)
    padded = pkcs8 + bytes(7)
    assert len(padded) % 8 == 0  # so each vector's mistake in the padding is one here
    front = b"\xa6\x59\x59\xa6" + len(pkcs8).to_bytes(4)
    assert _cooked(temporary, front, padded) == aes_key_wrap_with_padding(temporary, pkcs8)
    key = client.create_key(fresh("vector"), spec="EC_P384", origin="external")
    request = _request(client, key, temporary)
    mistakes = _mistakes()
    assert len(mistakes) >= 20
    for in_front, in_last in sorted(mistakes):
        text = padded[:-8] + _xor(padded[-8:], in_last)
        request.encrypted_privatekey = _cooked(temporary, _xor(front, in_front), text)
        with refusal("KMS.2609"):
            client.imports.ImportKeyMaterial(request)
    request.encrypted_privatekey = _cooked(temporary, front, padded)
    client.imports.ImportKeyMaterial(request)
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert client.public_key(key) == pem.decode()
