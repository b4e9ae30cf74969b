"""Data key pairs from end to end: `cryptography` and openssl use what comes out."""

import subprocess
from pathlib import Path
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
)

from hsmd.client import Client
from hsmd.pb.v1 import datakeys_pb2 as pb
from tests.calls import Operation, fresh, record, refusal, refused, sequence
from tests.specs import Keys
from tests.stand import Stand

RSA = {"RSA_2048": 2048, "RSA_3072": 3072, "RSA_4096": 4096}
EC = {
    "ECC_NIST_P256": "secp256r1",
    "ECC_NIST_P384": "secp384r1",
    "ECC_NIST_P521": "secp521r1",
    "ECC_SECG_P256K1": "secp256k1",
}
SPECS = [*RSA, *EC]


def _operation(spec: str) -> str:
    return f"create-{'rsa' if spec in RSA else 'ec'}-datakey-pair"


def _fits(spec: str, private_der: bytes, public_pem: str) -> None:
    """The pair is one, of the kind asked for, the private key PKCS#8 without a byte too many."""
    private: Any = load_der_private_key(private_der, None)
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert pem.decode() == public_pem
    if spec in RSA:
        assert isinstance(private, rsa.RSAPrivateKey)
        assert private.key_size == RSA[spec]
    else:
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert private.curve.name == EC[spec]


@pytest.mark.parametrize("spec", SPECS)
def test_over_rest(rest: Operation, client: Client, keys: Keys, spec: str) -> None:
    key_id = keys("AES_256")
    body = {"key_id": key_id, "key_spec": spec, "sequence": sequence()}
    made = rest(_operation(spec), {**body, "additional_authenticated_data": "aad"})
    assert made.status == 200
    assert set(made.json) == {
        "key_id",
        "key_spec",
        "public_key",
        "private_key_cipher_text",
        "private_key_plain_text",
    }
    assert (made.json["key_id"], made.json["key_spec"]) == (key_id, spec)
    private = bytes.fromhex(made.json["private_key_plain_text"])
    _fits(spec, private, made.json["public_key"])
    wrapped = bytes.fromhex(made.json["private_key_cipher_text"])
    assert len(wrapped) == 124 + 16 * -(-len(private) // 16)
    assert private not in wrapped
    for length in (len(private), len(wrapped)):
        opening = {
            "key_id": key_id,
            "cipher_text": wrapped.hex(),
            "datakey_cipher_length": str(length),
            "additional_authenticated_data": "aad",
        }
        opened = rest("decrypt-datakey", opening)
        assert opened.json["data_key"] == private.hex()
        assert opened.json["datakey_length"] == str(len(private))
    refused(rest("decrypt-datakey", {**opening, "datakey_cipher_length": "32"}), "KMS.2204")
    with refusal("KMS.2201"):
        client.decrypt_data_key(key_id, wrapped)  # without the additional data
    with refusal("KMS.2201"):
        client.decrypt(wrapped, b"aad")


@pytest.mark.parametrize("spec", ["RSA_2048", *EC])
def test_without_plaintext(rest: Operation, client: Client, keys: Keys, spec: str) -> None:
    key_id = keys("AES_256")
    made = rest(_operation(spec), {"key_id": key_id, "key_spec": spec, "with_plain_text": False})
    assert set(made.json) == {"key_id", "key_spec", "public_key", "private_key_cipher_text"}
    private = client.decrypt_data_key(key_id, bytes.fromhex(made.json["private_key_cipher_text"]))
    _fits(spec, private, made.json["public_key"])


def test_over_grpc(client: Client, keys: Keys) -> None:
    key_id = keys("AES_256")
    rsa_pair = client.data_keys.CreateRsaDataKeyPair(
        pb.CreateRsaDataKeyPairRequest(key_id=key_id, key_spec=pb.RSA_DATA_KEY_PAIR_SPEC_RSA_2048)
    )
    assert rsa_pair.key_spec == pb.RSA_DATA_KEY_PAIR_SPEC_RSA_2048
    _fits("RSA_2048", rsa_pair.private_key_plain_text, rsa_pair.public_key)
    ec_pair = client.data_keys.CreateEcDataKeyPair(
        pb.CreateEcDataKeyPairRequest(
            key_id=key_id, key_spec=pb.EC_DATA_KEY_PAIR_SPEC_ECC_NIST_P521, with_plain_text=False
        )
    )
    assert not ec_pair.HasField("private_key_plain_text")
    opened = client.decrypt_data_key(key_id, ec_pair.private_key_cipher_text)
    _fits("ECC_NIST_P521", opened, ec_pair.public_key)


@pytest.mark.parametrize("spec", ["RSA_2048", "ECC_NIST_P256", "ECC_SECG_P256K1"])
def test_openssl_takes_the_private_key(rest: Operation, keys: Keys, tmp_path: Path, spec: str) -> None:
    made = rest(_operation(spec), {"key_id": keys("AES_256"), "key_spec": spec}).json
    key = tmp_path / "key.der"
    key.write_bytes(bytes.fromhex(made["private_key_plain_text"]))
    argv = ["openssl", "pkey", "-inform", "DER", "-in", str(key), "-check", "-pubout"]
    shown = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert made["public_key"].strip() in shown


@pytest.mark.parametrize("spec", SPECS)
def test_the_sdk(stand: Stand, keys: Keys, spec: str) -> None:
    sdk, key_id = stand.sdk(), keys("AES_256")
    fields = {"key_id": key_id, "key_spec": spec, "with_plain_text": True}
    if spec in RSA:
        told = sdk.create_rsa_datakey_pair(
            kms.CreateRsaDatakeyPairRequest(body=kms.CreateRsaDatakeyPairRequestBody(**fields))
        )
    else:
        told = sdk.create_ec_datakey_pair(
            kms.CreateEcDatakeyPairRequest(body=kms.CreateEcDatakeyPairRequestBody(**fields))
        )
    assert (told.key_id, told.key_spec) == (key_id, spec)
    _fits(spec, bytes.fromhex(told.private_key_plain_text), told.public_key)
    assert (told.wrapped_private_key, told.ciphertext_recipient) == (None, None)
    body = kms.DecryptDatakeyRequestBody(
        key_id=key_id,
        cipher_text=told.private_key_cipher_text,
        datakey_cipher_length=str(len(told.private_key_plain_text) // 2),
    )
    assert sdk.decrypt_datakey(kms.DecryptDatakeyRequest(body=body)).data_key == told.private_key_plain_text


def test_no_two_are_alike(rest: Operation, keys: Keys) -> None:
    body = {"key_id": keys("AES_256"), "key_spec": "ECC_NIST_P256"}
    made = [rest("create-ec-datakey-pair", body).json for _ in range(5)]
    assert len({each["public_key"] for each in made}) == 5
    assert len({each["private_key_cipher_text"] for each in made}) == 5


def test_moved_to_another_key(rest: Operation, client: Client, keys: Keys) -> None:
    other = client.create_key(fresh())
    made = rest("create-ec-datakey-pair", {"key_id": keys("AES_256"), "key_spec": "ECC_NIST_P384"}).json
    moved = rest(
        "re-encrypt", {"cipher_text": made["private_key_cipher_text"], "destination_key_id": other}
    ).json
    opened = client.decrypt_data_key(other, bytes.fromhex(moved["cipher_text"]))
    assert opened.hex() == made["private_key_plain_text"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key_id": None}, "KMS.0204"),
        ({"key_id": "no reference"}, "KMS.0205"),
        ({"key_id": "alias/nobody"}, "KMS.0207"),
        ({"key_spec": None}, "KMS.0204"),
        ({"key_spec": "SM2"}, "KMS.1902"),
        ({"key_spec": "EC_P256"}, "KMS.1902"),
        ({"key_spec": "rsa_2048"}, "KMS.1902"),
        ({"key_spec": 1}, "KMS.1902"),
        ({"with_plain_text": "maybe"}, "KMS.0308"),
        ({"with_plain_text": 1}, "KMS.0308"),
        ({"additional_authenticated_data": "x" * 129}, "KMS.0208"),
        ({"sequence": "short"}, "KMS.0206"),
    ],
)
@pytest.mark.parametrize("spec", ["RSA_2048", "ECC_NIST_P256"])
def test_bad_input(rest: Operation, keys: Keys, spec: str, changes: dict[str, object], code: str) -> None:
    refused(rest(_operation(spec), {"key_id": keys("AES_256"), "key_spec": spec, **changes}), code)


def test_specs_of_the_other_operation(rest: Operation, keys: Keys) -> None:
    key_id = keys("AES_256")
    refused(rest("create-rsa-datakey-pair", {"key_id": key_id, "key_spec": "ECC_NIST_P256"}), "KMS.1902")
    refused(rest("create-ec-datakey-pair", {"key_id": key_id, "key_spec": "RSA_2048"}), "KMS.1902")
    pinned = {"key_id": key_id, "key_spec": "ECC_NIST_P256", "pin": "123456"}
    assert "123456" not in refused(rest("create-ec-datakey-pair", pinned), "KMS.0308").message


def test_keys_of_another_kind(client: Client, keys: Keys) -> None:
    for (spec, _), key_id in keys.of_every_kind().items():
        if spec != "AES_256":
            with refusal("KMS.0341" if spec.startswith("HMAC") else "KMS.0325"):
                client.data_keys.CreateEcDataKeyPair(
                    pb.CreateEcDataKeyPairRequest(
                        key_id=key_id, key_spec=pb.EC_DATA_KEY_PAIR_SPEC_ECC_NIST_P256
                    )
                )


def test_tenants_roles_and_records(
    stand: Stand, strange: Client, reader: Any, rest: Operation, client: Client, keys: Keys
) -> None:
    request = pb.CreateEcDataKeyPairRequest(
        key_id=keys("AES_256"), key_spec=pb.EC_DATA_KEY_PAIR_SPEC_ECC_NIST_P256
    )
    with refusal("KMS.0207"):
        strange.data_keys.CreateEcDataKeyPair(request)
    with stand.client(reader) as looking, refusal("KMS.0330"):
        looking.data_keys.CreateEcDataKeyPair(request)
    off = client.create_key(fresh())
    client.disable(off)
    refused(rest("create-ec-datakey-pair", {"key_id": off, "key_spec": "ECC_NIST_P256"}), "KMS.0209")
    for operation, spec, event in (
        ("create-rsa-datakey-pair", "RSA_2048", "createRsaDatakeyPair"),
        ("create-ec-datakey-pair", "ECC_NIST_P256", "createEcDatakeyPair"),
    ):
        made = rest(operation, {"key_id": keys("AES_256"), "key_spec": spec})
        one = record(stand, made.headers["X-Request-Id"])
        assert (one["event"], one["resource"], one["key_version"]) == (event, keys("AES_256"), 1)
        assert made.json["private_key_plain_text"] not in str(one)
