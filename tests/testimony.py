"""What only one key can do, kept to ask for it again: after another root key took over, or a restore."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from hsmd.client import Client
from hsmd.pb.v1 import agreement_pb2 as pb
from tests.calls import fresh
from tests.specs import OPTIONAL, USAGES

KINDS = [(spec, usage) for spec in USAGES if spec not in OPTIONAL for usage in USAGES[spec]]
_CURVES: dict[str, ec.EllipticCurve] = {
    "EC_P256": ec.SECP256R1(),
    "EC_P384": ec.SECP384R1(),
    "SECP256K1": ec.SECP256K1(),
}
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
_MESSAGE = b"message"


@dataclass(frozen=True)
class Testimony:
    """`given` goes to the key, and `expected` comes back; both in hex."""

    __test__ = False  # nothing that pytest should collect

    key: str
    spec: str
    usage: str
    given: str
    expected: str
    public: str = ""


def kinds(client: Client) -> list[tuple[str, str]]:
    """All kinds of keys that the token can do."""
    names = {each.name for each in client.status().capabilities if each.available}
    return KINDS + [(spec, USAGES[spec][0]) for spec in OPTIONAL if spec in names]


def testify(client: Client, key: str, spec: str, usage: str) -> Testimony:
    """Have the key do something."""
    data = key.encode()
    if spec == "AES_256":
        return Testimony(key, spec, usage, client.encrypt(key, data, b"aad").hex(), data.hex())
    if spec.startswith("HMAC"):
        return Testimony(key, spec, usage, data.hex(), _mac(client, key, spec, data).hex())
    public: Any = client.public_key(key)
    told = Testimony(key, spec, usage, "", "", public)
    if usage == "ENCRYPT_DECRYPT":
        loaded: Any = load_pem_public_key(public.encode())
        return replace(told, given=loaded.encrypt(data, _OAEP).hex(), expected=data.hex())
    if usage == "KEY_AGREEMENT":
        own = ec.generate_private_key(_CURVES[spec])
        peer = own.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        theirs: Any = load_pem_public_key(public.encode())
        return replace(told, given=peer.hex(), expected=own.exchange(ec.ECDH(), theirs).hex())
    return told


def make(client: Client, spec: str, usage: str, alias: str = "") -> Testimony:
    """A new key and what it can do."""
    return testify(client, client.create_key(alias or fresh("witness"), spec=spec, usage=usage), spec, usage)


def check(client: Client, told: Testimony) -> None:
    """It is the same key still."""
    given = bytes.fromhex(told.given)
    if told.spec == "AES_256":
        answer = client.decrypt(given, b"aad")
        assert client.decrypt(client.encrypt(told.key, b"more")) == b"more"
    elif told.spec.startswith("HMAC"):
        answer = _mac(client, told.key, told.spec, given)
    elif told.usage == "ENCRYPT_DECRYPT":
        answer = client.decrypt(given, key_id=told.key, algorithm="RSAES_OAEP_SHA_256")
    elif told.usage == "KEY_AGREEMENT":
        request = pb.DeriveSharedSecretRequest(
            key_id=told.key, key_agreement_algorithm=pb.KEY_AGREEMENT_ALGORITHM_ECDH, public_key=given
        )
        answer = client.agreement.DeriveSharedSecret(request).shared_secret
    else:
        answer = b""
        _check_signature(client, told)
    assert answer.hex() == told.expected
    assert not told.public or client.public_key(told.key) == told.public


def save(path: Path, told: list[Testimony]) -> None:
    path.write_text(json.dumps([asdict(each) for each in told]))


def load(path: Path) -> list[Testimony]:
    return [Testimony(**each) for each in json.loads(path.read_text())]


def _mac(client: Client, key: str, spec: str, data: bytes) -> bytes:
    return client.mac(key, f"HMAC_SHA_{spec[-3:]}", data)


def _check_signature(client: Client, told: Testimony) -> None:
    public: Any = load_pem_public_key(told.public.encode())
    if told.spec.startswith("RSA"):
        signature = client.sign(told.key, "RSASSA_PKCS1_V1_5_SHA_256", _MESSAGE)
        public.verify(signature, _MESSAGE, padding.PKCS1v15(), hashes.SHA256())
    elif told.spec in _CURVES:
        public.verify(client.sign(told.key, "ECDSA_SHA_256", _MESSAGE), _MESSAGE, ec.ECDSA(hashes.SHA256()))
    else:
        name = "ED25519_SHA_512" if told.spec == "ED25519" else "ML_DSA"
        public.verify(client.sign(told.key, name, _MESSAGE), _MESSAGE)
