"""RSAES-OAEP and re-encrypt from end to end; ciphertexts are held against `cryptography` and openssl."""

import base64
import struct
import subprocess
from pathlib import Path
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from hsmd.client import Client
from hsmd.pb.v1 import crypto_pb2, datakeys_pb2
from tests.calls import Operation, fresh, record, refusal, refused
from tests.specs import Keys
from tests.stand import Stand, b64

OAEP, SYMMETRIC = "RSAES_OAEP_SHA_256", "SYMMETRIC_DEFAULT"
LIMITS = {"RSA_2048": 190, "RSA_3072": 318, "RSA_4096": 446}
_SHA256 = hashes.SHA256()


def _rsa(keys: Keys, spec: str = "RSA_2048") -> str:
    return keys(spec, "ENCRYPT_DECRYPT")


def _outside(client: Client, key_id: str, data: bytes, form: Any = None) -> bytes:
    """Encrypted by `cryptography` with the key's public key."""
    public: Any = load_pem_public_key(client.public_key(key_id).encode())
    oaep = padding.OAEP(padding.MGF1(_SHA256), _SHA256, None)
    made: bytes = public.encrypt(data, form or oaep)
    return made


# OAEP


@pytest.mark.parametrize("spec", LIMITS)
def test_there_and_back(client: Client, keys: Keys, spec: str) -> None:
    key_id, limit = _rsa(keys, spec), LIMITS[spec]
    for size in (1, 32, limit - 1, limit):
        data = bytes(range(256)) * 2
        blob = client.encrypt(key_id, data[:size], algorithm=OAEP)
        assert len(blob) == int(spec[4:]) // 8
        assert client.decrypt(blob, key_id=key_id, algorithm=OAEP) == data[:size]
        offline = _outside(client, key_id, data[:size])
        assert client.decrypt(offline, key_id=key_id, algorithm=OAEP) == data[:size]
    for size in (limit + 1, 4096):
        with refusal("KMS.2108") as seen:
            client.encrypt(key_id, b"x" * size, algorithm=OAEP)
        assert str(limit) in seen.last.message
    for size, code in ((0, "KMS.0204"), (4097, "KMS.2101")):
        with refusal(code):
            client.encrypt(key_id, b"x" * size, algorithm=OAEP)


@pytest.mark.parametrize("spec", LIMITS)
def test_openssl_encrypts(client: Client, keys: Keys, tmp_path: Path, spec: str) -> None:
    key_id = _rsa(keys, spec)
    pem, plain, blob = tmp_path / "key.pem", tmp_path / "plain", tmp_path / "blob"
    pem.write_text(client.public_key(key_id))
    plain.write_bytes(b"offline")
    argv = ["openssl", "pkeyutl", "-encrypt", "-pubin", "-inkey", str(pem), "-in", str(plain)]
    argv += ["-out", str(blob), "-pkeyopt", "rsa_padding_mode:oaep"]
    argv += ["-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha256"]
    subprocess.run(argv, check=True, capture_output=True)
    assert client.decrypt(blob.read_bytes(), key_id=key_id, algorithm=OAEP) == b"offline"


@pytest.mark.parametrize("spec", LIMITS)
def test_openssl_decrypts(client: Client, tmp_path: Path, keys: Keys, spec: str) -> None:
    """With the private key of a data key pair: the same encryption, under a key that openssl may have."""
    pair = client.data_keys.CreateRsaDataKeyPair(
        datakeys_pb2.CreateRsaDataKeyPairRequest(
            key_id=keys("AES_256"), key_spec=f"RSA_DATA_KEY_PAIR_SPEC_{spec}"
        )
    )
    from hsmd.domain.publickeys import encrypt_oaep  # the very function that encrypt-data calls

    public: Any = load_pem_public_key(pair.public_key.encode())
    key, blob = tmp_path / "key.der", tmp_path / "blob"
    key.write_bytes(pair.private_key_plain_text)
    blob.write_bytes(encrypt_oaep(public, b"to openssl"))
    argv = ["openssl", "pkeyutl", "-decrypt", "-keyform", "DER", "-inkey", str(key), "-in", str(blob)]
    argv += ["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256"]
    assert subprocess.run(argv, check=True, capture_output=True).stdout == b"to openssl"


def test_over_rest_and_by_the_sdk(stand: Stand, rest: Operation, keys: Keys) -> None:
    key_id = _rsa(keys)
    body = {"key_id": key_id, "plain_text": "ünïcödé", "encryption_algorithm": OAEP}
    made = rest("encrypt-data", body)
    assert (made.status, set(made.json), made.json["key_id"]) == (200, {"key_id", "cipher_text"}, key_id)
    assert len(base64.b64decode(made.json["cipher_text"], validate=True)) == 256
    opening = {
        "key_id": key_id,
        "cipher_text": made.json["cipher_text"],
        "encryption_algorithm": OAEP,
    }
    opened = rest("decrypt-data", opening)
    text = "ünïcödé"
    assert opened.json == {
        "key_id": key_id,
        "plain_text": text,
        "plain_text_base64": b64(text.encode()),
    }
    for answer, event in ((made, "encryptData"), (opened, "decryptData")):
        one = record(stand, answer.headers["X-Request-Id"])
        assert (one["event"], one["resource"], one["key_version"]) == (event, key_id, 1)
    sdk = stand.sdk()
    told = sdk.encrypt_data(kms.EncryptDataRequest(body=kms.EncryptDataRequestBody(**body)))
    request = kms.DecryptDataRequestBody(**{**opening, "cipher_text": told.cipher_text})
    assert sdk.decrypt_data(kms.DecryptDataRequest(body=request)).plain_text == text


def test_ciphertexts_that_are_none(client: Client, keys: Keys) -> None:
    key_id = _rsa(keys)
    other = client.create_key(fresh(), spec="RSA_2048", usage="ENCRYPT_DECRYPT")
    right = client.encrypt(key_id, b"x", algorithm=OAEP)
    sha1 = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303  # what we refuse
    mixed = padding.OAEP(padding.MGF1(hashes.SHA1()), _SHA256, None)  # noqa: S303  # what we refuse
    messages = set()
    for wrong in (
        client.encrypt(other, b"x", algorithm=OAEP),
        right[:-1] + bytes([right[-1] ^ 1]),
        right[:-1],
        right + b"\0",
        bytes(256),
        b"\xff" * 256,
        b"x",
        b"x" * 4096,
        _outside(client, key_id, b"x", sha1),
        _outside(client, key_id, b"x", mixed),
        _outside(client, key_id, b"x", padding.OAEP(padding.MGF1(_SHA256), _SHA256, b"label")),
        _outside(client, key_id, b"x", padding.PKCS1v15()),
        client.encrypt(keys("AES_256"), b"x"),
    ):
        with refusal("KMS.2201") as seen:
            client.decrypt(wrong, key_id=key_id, algorithm=OAEP)
        messages.add(seen.last.message)
    assert len(messages) == 1


def test_rsa_binds_no_additional_data(client: Client, rest: Operation, keys: Keys) -> None:
    key_id = _rsa(keys)
    with refusal("KMS.0208"):
        client.encrypt(key_id, b"x", b"aad", algorithm=OAEP)
    blob = client.encrypt(key_id, b"x", algorithm=OAEP)
    with refusal("KMS.0208"):
        client.decrypt(blob, b"aad", key_id, algorithm=OAEP)
    body = {"key_id": key_id, "plain_text": "x", "encryption_algorithm": OAEP}
    refused(rest("encrypt-data", {**body, "encryption_context": {"a": "b"}}), "KMS.0208")


def test_the_key_has_to_be_named(client: Client, keys: Keys) -> None:
    blob = client.encrypt(_rsa(keys), b"x", algorithm=OAEP)
    with refusal("KMS.0204") as seen:
        client.decrypt(blob, algorithm=OAEP)
    assert "key_id" in seen.last.message


def test_algorithms_and_kinds(client: Client, keys: Keys) -> None:
    codes = {
        ("AES_256", "ENCRYPT_DECRYPT", OAEP): "KMS.2105",
        ("RSA_2048", "ENCRYPT_DECRYPT", ""): "KMS.2106",
        ("RSA_2048", "ENCRYPT_DECRYPT", SYMMETRIC): "KMS.2106",
        ("RSA_2048", "SIGN_VERIFY", OAEP): "KMS.0335",
        ("RSA_2048", "SIGN_VERIFY", ""): "KMS.0335",
        ("EC_P256", "SIGN_VERIFY", ""): "KMS.1114",
        ("EC_P256", "KEY_AGREEMENT", OAEP): "KMS.1114",
        ("HMAC_256", "GENERATE_VERIFY_MAC", ""): "KMS.0341",
    }
    if keys.can("ED25519"):
        codes["ED25519", "SIGN_VERIFY", ""] = "KMS.1114"
    if keys.can("ML_DSA_44"):
        codes["ML_DSA_44", "SIGN_VERIFY", ""] = "KMS.0335"
    for (spec, usage, algorithm), code in codes.items():
        key_id = keys(spec, usage)
        with refusal(code):
            client.encrypt(key_id, b"x", algorithm=algorithm)
        with refusal(code):
            client.decrypt(bytes(256), key_id=key_id, algorithm=algorithm)


def test_data_keys_need_symmetric_keys(client: Client, keys: Keys) -> None:
    _, wrapped = client.create_data_key(keys("AES_256"))
    for (spec, usage), key_id in keys.of_every_kind().items():
        if spec == "AES_256":
            continue
        code = "KMS.0341" if spec.startswith("HMAC") else "KMS.0325"
        with refusal(code):
            client.create_data_key(key_id)
        with refusal(code):
            client.encrypt_data_key(key_id, b"x" * 32)
        with refusal(code):
            client.decrypt_data_key(key_id, wrapped)
        assert usage


def test_a_header_that_names_a_pair(client: Client, keys: Keys) -> None:
    """Forged so that all of it fits but for the key, which does not do AES."""
    blob = client.encrypt(keys("AES_256"), b"x")
    numbers = {"RSA_2048": 2, "EC_P256": 5, "HMAC_256": 9}
    for (spec, _), key_id in keys.of_every_kind().items():
        for number in {numbers.get(spec, 1), 1}:
            forged = blob[:4] + struct.pack(">36sB", key_id.encode(), number) + blob[41:]
            with refusal("KMS.2201"):
                client.decrypt(forged if spec != "AES_256" else forged[:52] + bytes(12) + forged[64:])


# Re-encrypt


def _moved(client: Client, blob: bytes, to: str, **more: Any) -> crypto_pb2.ReEncryptResponse:
    response: crypto_pb2.ReEncryptResponse = client.crypto.ReEncrypt(
        crypto_pb2.ReEncryptRequest(cipher_text=blob, destination_key_id=to, **more)
    )
    return response


@pytest.mark.parametrize("source", [SYMMETRIC, OAEP])
@pytest.mark.parametrize("destination", [SYMMETRIC, OAEP])
def test_between_any_two(client: Client, keys: Keys, source: str, destination: str) -> None:
    named = {SYMMETRIC: keys("AES_256"), OAEP: _rsa(keys)}
    others = {
        SYMMETRIC: client.create_key(fresh()),
        OAEP: client.create_key(fresh(), spec="RSA_3072", usage="ENCRYPT_DECRYPT"),
    }
    from_id, to_id = named[source], others[destination]
    aads = {SYMMETRIC: b"aad", OAEP: b""}
    algorithms = {
        "source_encryption_algorithm": f"ENCRYPTION_ALGORITHM_{source}",
        "destination_encryption_algorithm": f"ENCRYPTION_ALGORITHM_{destination}",
    }
    blob = client.encrypt(from_id, b"moving", aads[source], algorithm=source)
    moved = _moved(
        client,
        blob,
        to_id,
        source_key_id=from_id,
        source_additional_authenticated_data=aads[source],
        destination_additional_authenticated_data=aads[destination],
        **algorithms,
    )
    assert (moved.source_key_id, moved.key_id) == (from_id, to_id)
    for name, value in algorithms.items():
        assert crypto_pb2.EncryptionAlgorithm.Name(getattr(moved, name)) == value
    opened = client.decrypt(moved.cipher_text, aads[destination], to_id, algorithm=destination)
    assert opened == b"moving"


def test_the_source_is_found(client: Client, keys: Keys) -> None:
    one, other = client.create_key(fresh()), client.create_key(fresh())
    blob = client.encrypt(one, b"x", b"old")
    moved = _moved(client, blob, other, source_additional_authenticated_data=b"old")
    assert (moved.source_key_id, moved.key_id) == (one, other)
    assert client.decrypt(moved.cipher_text) == b"x"
    same = _moved(
        client,
        moved.cipher_text,
        other,
        destination_additional_authenticated_data=b"new",
        source_key_id=other,
    )
    assert client.decrypt(same.cipher_text, b"new") == b"x"
    for wrong in ({}, {"source_additional_authenticated_data": b"new"}):
        with refusal("KMS.2201"):
            _moved(client, blob, other, **wrong)
    with refusal("KMS.2201"):
        _moved(client, blob, other, source_key_id=other, source_additional_authenticated_data=b"old")


def test_data_keys_stay_data_keys(client: Client, rest: Operation, keys: Keys) -> None:
    one, other = keys("AES_256"), client.create_key(fresh())
    plain, wrapped = client.create_data_key(one, 512, b"aad")
    for length in (64, len(wrapped), None):
        moved = _moved(
            client,
            wrapped,
            other,
            source_additional_authenticated_data=b"aad",
            datakey_cipher_length=length,
        )
        assert client.decrypt_data_key(other, moved.cipher_text) == plain
        with refusal("KMS.2201"):
            client.decrypt(moved.cipher_text)
    with refusal("KMS.2204"):
        _moved(client, wrapped, other, source_additional_authenticated_data=b"aad", datakey_cipher_length=63)
    for length in (0, -1, 4097):
        with refusal("KMS.2202"):
            _moved(client, wrapped, other, datakey_cipher_length=length)
    with refusal("KMS.0308") as seen:
        _moved(
            client,
            wrapped,
            _rsa(keys),
            source_additional_authenticated_data=b"aad",
            destination_encryption_algorithm=f"ENCRYPTION_ALGORITHM_{OAEP}",
        )
    assert "destination_key_id" in seen.last.message
    # As DEW's clients have them: hex, and the answer is what decrypt-datakey takes.
    body = {"destination_key_id": other, "source_additional_authenticated_data": "aad"}
    for text in (wrapped.hex(), wrapped.hex().upper()):
        answer = rest("re-encrypt", {**body, "cipher_text": text, "datakey_cipher_length": "64"})
        assert answer.status == 200
        opening = {"key_id": other, "datakey_cipher_length": "64", "cipher_text": answer.json["cipher_text"]}
        assert rest("decrypt-datakey", opening).json["data_key"] == plain.hex()
    answer = rest("re-encrypt", {**body, "cipher_text": b64(wrapped)})
    assert client.decrypt_data_key(other, base64.b64decode(answer.json["cipher_text"])) == plain


def test_re_encrypt_by_the_sdk(stand: Stand, client: Client, rest: Operation, keys: Keys) -> None:
    one, other = keys("AES_256"), client.create_key(fresh())
    blob = client.encrypt(one, b"x", b"old")
    body = {
        "source_key_id": one,
        "destination_key_id": other,
        "cipher_text": b64(blob),
        "source_additional_authenticated_data": "old",
        "destination_additional_authenticated_data": "new",
    }
    answer = rest("re-encrypt", body)
    assert set(answer.json) == {
        "key_id",
        "source_key_id",
        "source_encryption_algorithm",
        "destination_encryption_algorithm",
        "cipher_text",
    }
    noted = record(stand, answer.headers["X-Request-Id"])
    assert (noted["event"], noted["resource"], noted["key_version"]) == ("reEncrypt", other, 1)
    told = stand.sdk().re_encrypt(kms.ReEncryptRequest(body=kms.ReEncryptRequestBody(**body)))
    assert (told.key_id, told.source_key_id) == (other, one)
    assert (told.source_encryption_algorithm, told.destination_encryption_algorithm) == (SYMMETRIC, SYMMETRIC)
    assert client.decrypt(base64.b64decode(told.cipher_text), b"new") == b"x"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"destination_key_id": None}, "KMS.0204"),
        ({"destination_key_id": "no reference"}, "KMS.0205"),
        ({"destination_key_id": "alias/nobody"}, "KMS.0207"),
        ({"source_key_id": "no reference"}, "KMS.0205"),
        ({"source_key_id": "alias/nobody"}, "KMS.0207"),
        ({"cipher_text": None}, "KMS.0204"),
        ({"cipher_text": "*"}, "KMS.2201"),
        ({"cipher_text": "48534d01" * 40}, "KMS.2201"),
        ({"cipher_text": "48534d01xxxx" * 40}, "KMS.2201"),
        ({"cipher_text": 1}, "KMS.2201"),
        ({"source_encryption_algorithm": "RSAES_OAEP_SHA_1"}, "KMS.2105"),
        ({"destination_encryption_algorithm": "SM2_ENCRYPT"}, "KMS.2105"),
        ({"destination_encryption_algorithm": OAEP}, "KMS.2105"),
        ({"source_encryption_algorithm": OAEP}, "KMS.0204"),
        ({"datakey_cipher_length": "x"}, "KMS.2202"),
        ({"destination_additional_authenticated_data": "x" * 129}, "KMS.0208"),
        ({"source_additional_authenticated_data": "x" * 129}, "KMS.0208"),
    ],
)
def test_bad_re_encryptions(
    client: Client, rest: Operation, keys: Keys, changes: dict[str, object], code: str
) -> None:
    blob = client.encrypt(keys("AES_256"), b"x")
    body = {"cipher_text": b64(blob), "destination_key_id": keys("AES_256"), **changes}
    refused(rest("re-encrypt", body), code)


def test_re_encrypt_between_tenants(
    stand: Stand, client: Client, strange: Client, reader: Any, keys: Keys
) -> None:
    theirs, ours = strange.create_key(fresh()), keys("AES_256")
    blob = client.encrypt(ours, b"x")
    with refusal("KMS.2201"):  # the source is somebody else's
        _moved(strange, blob, theirs)
    with refusal("KMS.0207"):
        _moved(strange, blob, theirs, source_key_id=ours)
    with refusal("KMS.0207"):
        _moved(client, blob, theirs)
    with stand.client(reader) as looking, refusal("KMS.0330"):
        _moved(looking, blob, ours)
    off = client.create_key(fresh())
    client.disable(off)
    with refusal("KMS.0209"):
        _moved(client, blob, off)
    with refusal("KMS.2108"):
        _moved(
            client,
            client.encrypt(ours, b"x" * 191),
            _rsa(keys),
            destination_encryption_algorithm=f"ENCRYPTION_ALGORITHM_{OAEP}",
        )
