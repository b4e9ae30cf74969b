"""derive-shared-secret from end to end: the other side is `cryptography`."""

import base64
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from hsmd.client import Client
from hsmd.pb.v1 import agreement_pb2 as pb
from tests.calls import Operation, record, refusal, refused
from tests.specs import Keys
from tests.stand import Stand, b64

CURVES: dict[str, ec.EllipticCurve] = {
    "EC_P256": ec.SECP256R1(),
    "EC_P384": ec.SECP384R1(),
    "SECP256K1": ec.SECP256K1(),
}
SIZES = {"EC_P256": 32, "EC_P384": 48, "SECP256K1": 32}


def _der(public: Any) -> bytes:
    der: bytes = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der


def _derive(client: Client, key_id: str, peer: bytes) -> bytes:
    response: pb.DeriveSharedSecretResponse = client.agreement.DeriveSharedSecret(
        pb.DeriveSharedSecretRequest(
            key_id=key_id, key_agreement_algorithm=pb.KEY_AGREEMENT_ALGORITHM_ECDH, public_key=peer
        )
    )
    assert (response.key_id, response.key_agreement_algorithm) == (key_id, pb.KEY_AGREEMENT_ALGORITHM_ECDH)
    return response.shared_secret


@pytest.mark.parametrize("spec", CURVES)
def test_both_sides_agree(client: Client, keys: Keys, spec: str) -> None:
    key_id = keys(spec, "KEY_AGREEMENT")
    ours: Any = load_pem_public_key(client.public_key(key_id).encode())
    for _ in range(5):
        peer = ec.generate_private_key(CURVES[spec])
        expected = peer.exchange(ec.ECDH(), ours)
        assert len(expected) == SIZES[spec]
        assert _derive(client, key_id, _der(peer.public_key())) == expected


def test_two_keys_of_ours_agree(client: Client, keys: Keys) -> None:
    one = keys("EC_P256", "KEY_AGREEMENT")
    other = client.create_key("agreement-other", spec="EC_P256", usage="KEY_AGREEMENT")
    publics = {each: _der(load_pem_public_key(client.public_key(each).encode())) for each in (one, other)}
    assert _derive(client, one, publics[other]) == _derive(client, other, publics[one])


@pytest.mark.parametrize("spec", CURVES)
def test_over_rest_and_by_the_sdk(
    stand: Stand, client: Client, rest: Operation, keys: Keys, spec: str
) -> None:
    key_id = keys(spec, "KEY_AGREEMENT")
    ours: Any = load_pem_public_key(client.public_key(key_id).encode())
    peer = ec.generate_private_key(CURVES[spec])
    expected = b64(peer.exchange(ec.ECDH(), ours))
    body = {"key_id": key_id, "key_agreement_algorithm": "ECDH", "public_key": b64(_der(peer.public_key()))}
    answer = rest("derive-shared-secret", body)
    assert answer.status == 200
    assert answer.json == {
        "key_id": key_id,
        "key_agreement_algorithm": "ECDH",
        "shared_secret": expected,
    }
    one = record(stand, answer.headers["X-Request-Id"])
    assert (one["event"], one["resource"], one["key_version"]) == ("deriveSharedSecret", key_id, 1)
    assert expected not in str(one)
    request = kms.DeriveSharedSecretRequest(body=kms.DeriveSharedSecretRequestBody(**body))
    told = stand.sdk().derive_shared_secret(request)
    assert (told.key_id, told.key_agreement_algorithm, told.shared_secret) == (key_id, "ECDH", expected)
    assert told.ciphertext_recipient is None


def _on_no_curve() -> bytes:
    """A point of P-256 with another y: on no curve, or on one where secrets leak."""
    der = bytearray(_der(ec.generate_private_key(ec.SECP256R1()).public_key()))
    der[-1] ^= 1
    return bytes(der)


@pytest.mark.parametrize(
    "peer",
    [
        _der(ec.generate_private_key(ec.SECP384R1()).public_key()),
        _der(ec.generate_private_key(ec.SECP256K1()).public_key()),
        _der(rsa.generate_private_key(65537, 2048).public_key()),
        _der(x25519.X25519PrivateKey.generate().public_key()),
        _der(ed25519.Ed25519PrivateKey.generate().public_key()),
        _on_no_curve(),
        _der(ec.generate_private_key(ec.SECP256R1()).public_key())[:-1],
        bytes.fromhex("3019301306072a8648ce3d020106082a8648ce3d03010703020000"),  # the point at infinity
        b"\4" + bytes(64),
        b"not a key",
        bytes(1024),
    ],
    ids=["p384", "k1", "rsa", "x25519", "ed25519", "off", "short", "infinity", "bare", "text", "zero"],
)
def test_peers_that_are_none(client: Client, rest: Operation, keys: Keys, peer: bytes) -> None:
    key_id = keys("EC_P256", "KEY_AGREEMENT")
    with refusal("KMS.0308") as seen:
        _derive(client, key_id, peer)
    assert "public_key" in seen.last.message
    body = {"key_id": key_id, "key_agreement_algorithm": "ECDH", "public_key": b64(peer)}
    refused(rest("derive-shared-secret", body), "KMS.0308")


def test_keys_of_another_kind(client: Client, keys: Keys) -> None:
    peer = _der(ec.generate_private_key(ec.SECP256R1()).public_key())
    codes = {"ENCRYPT_DECRYPT": "KMS.0334", "SIGN_VERIFY": "KMS.0335", "GENERATE_VERIFY_MAC": "KMS.0341"}
    for (spec, usage), key_id in keys.of_every_kind().items():
        if usage != "KEY_AGREEMENT":
            with refusal("KMS.0331" if spec == "AES_256" else codes[usage]):
                _derive(client, key_id, peer)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key_id": None}, "KMS.0204"),
        ({"key_id": "no reference"}, "KMS.0205"),
        ({"key_agreement_algorithm": None}, "KMS.0204"),
        ({"key_agreement_algorithm": "DH"}, "KMS.0308"),
        ({"key_agreement_algorithm": 1}, "KMS.0308"),
        ({"public_key": None}, "KMS.0204"),
        ({"public_key": ""}, "KMS.0204"),
        ({"public_key": "-----BEGIN PUBLIC KEY-----"}, "KMS.0308"),
        ({"public_key": 4}, "KMS.0308"),
        ({"public_key": b64(bytes(1025))}, "KMS.0308"),
        ({"recipient": "x"}, "KMS.0308"),
        ({"recipient": {}}, "KMS.0308"),
        ({"recipient": {"attestation_document": "eA==", "key_encryption_algorithm": "x"}}, "KMS.0308"),
    ],
)
def test_bad_input(rest: Operation, keys: Keys, changes: dict[str, object], code: str) -> None:
    peer = b64(_der(ec.generate_private_key(ec.SECP256R1()).public_key()))
    key_id = keys("EC_P256", "KEY_AGREEMENT")
    body = {"key_id": key_id, "key_agreement_algorithm": "ECDH", "public_key": peer}
    assert rest("derive-shared-secret", body).status == 200
    seen = refused(rest("derive-shared-secret", {**body, **changes}), code)
    if "recipient" in changes:
        assert "recipient" in seen.message


def test_tenants_and_roles(stand: Stand, client: Client, strange: Client, reader: Any, keys: Keys) -> None:
    key_id = keys("EC_P256", "KEY_AGREEMENT")
    peer = _der(ec.generate_private_key(ec.SECP256R1()).public_key())
    with refusal("KMS.0207"):
        _derive(strange, key_id, peer)
    with stand.client(reader) as looking, refusal("KMS.0330"):
        _derive(looking, key_id, peer)
    client.disable(other := client.create_key("agreement-off", spec="EC_P256", usage="KEY_AGREEMENT"))
    with refusal("KMS.0209"):
        _derive(client, other, peer)
    assert base64.b64encode(_derive(client, key_id, peer))
