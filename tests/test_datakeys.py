"""Data keys from end to end: made, wrapped, opened, never kept."""

import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsmd.client import Client
from hsmd.pb.v1 import datakeys_pb2 as pb
from tests.calls import Operation, fresh, refusal, refused, sequence
from tests.stand import Stand

SPECS = {"AES_256": 32, "AES_128": 16, "HMAC_256": 32, "HMAC_384": 48, "HMAC_512": 64}


@pytest.fixture(scope="module")
def key_id(client: Client) -> str:
    return client.create_key(fresh("datakeys"))


def _wrapped_length(size: int) -> int:
    return 124 + 16 * -(-size // 16)


# Create


@pytest.mark.parametrize("bits", [8, 128, 256, 520, 8192])
def test_created_and_opened(client: Client, rest: Operation, key_id: str, bits: int) -> None:
    plain, wrapped = client.create_data_key(key_id, bits, b"aad")
    assert (len(plain), len(wrapped)) == (bits // 8, _wrapped_length(bits // 8))
    assert client.decrypt_data_key(key_id, wrapped, b"aad") == plain
    made = rest("create-datakey", {"key_id": key_id, "datakey_length": str(bits), "sequence": sequence()})
    assert made.status == 200
    assert set(made.json) == {"key_id", "plain_text", "cipher_text"}
    assert made.json["key_id"] == key_id
    dek, blob = bytes.fromhex(made.json["plain_text"]), bytes.fromhex(made.json["cipher_text"])
    assert (len(dek), len(blob)) == (bits // 8, _wrapped_length(bits // 8))
    assert client.decrypt_data_key(key_id, blob) == dek


def test_opened_over_rest(client: Client, rest: Operation, key_id: str) -> None:
    plain, wrapped = client.create_data_key(key_id, 512)
    body = {"key_id": key_id, "cipher_text": wrapped.hex(), "datakey_cipher_length": "64"}
    opened = rest("decrypt-datakey", body)
    assert opened.status == 200
    assert opened.json == {
        "data_key": plain.hex(),
        "datakey_length": "64",
        "datakey_dgst": hashlib.sha256(plain).hexdigest(),
    }
    upper = {**body, "cipher_text": wrapped.hex().upper(), "datakey_cipher_length": 64}
    assert rest("decrypt-datakey", upper).json == opened.json


def test_without_plaintext(client: Client, rest: Operation, key_id: str) -> None:
    made = rest("create-datakey-without-plaintext", {"key_id": key_id, "key_spec": "AES_128"})
    assert made.status == 200
    assert set(made.json) == {"key_id", "cipher_text"}
    assert len(client.decrypt_data_key(key_id, bytes.fromhex(made.json["cipher_text"]))) == 16
    response = client.data_keys.CreateDataKeyWithoutPlaintext(pb.CreateDataKeyRequest(key_id=key_id))
    assert response.key_id == key_id
    assert len(client.decrypt_data_key(key_id, response.cipher_text)) == 32


@pytest.mark.parametrize("spec", SPECS)
def test_every_spec_has_its_length(client: Client, rest: Operation, key_id: str, spec: str) -> None:
    made = rest("create-datakey", {"key_id": key_id, "key_spec": spec})
    assert len(bytes.fromhex(made.json["plain_text"])) == SPECS[spec]
    request = pb.CreateDataKeyRequest(key_id=key_id, key_spec=f"DATA_KEY_SPEC_{spec}")
    response = client.data_keys.CreateDataKey(request)
    assert len(response.plain_text) == SPECS[spec]


def test_the_length_wins_over_the_spec_and_256_is_the_default(rest: Operation, key_id: str) -> None:
    made = rest("create-datakey", {"key_id": key_id, "key_spec": "AES_128", "datakey_length": "512"})
    assert len(made.json["plain_text"]) == 128
    assert len(rest("create-datakey", {"key_id": key_id}).json["plain_text"]) == 64


def test_no_two_are_alike(client: Client, key_id: str) -> None:
    made = [client.create_data_key(key_id) for _ in range(20)]
    assert len({plain for plain, _ in made}) == 20
    assert len({wrapped for _, wrapped in made}) == 20


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"datakey_length": "0"}, "KMS.1901"),
        ({"datakey_length": "7"}, "KMS.1901"),
        ({"datakey_length": "8193"}, "KMS.1901"),
        ({"datakey_length": "8200"}, "KMS.1901"),
        ({"datakey_length": "-256"}, "KMS.1901"),
        ({"datakey_length": "x"}, "KMS.1901"),
        ({"datakey_length": 256.5}, "KMS.1901"),
        ({"datakey_length": True}, "KMS.1901"),
        ({"datakey_length": 10**30}, "KMS.1901"),
        ({"datakey_length": "255"}, "KMS.1903"),
        ({"datakey_length": 8191}, "KMS.1903"),
        ({"key_spec": "AES_512"}, "KMS.1902"),
        ({"key_spec": "aes_256"}, "KMS.1902"),
        ({"key_spec": 1}, "KMS.1902"),
        ({"pin": "123456"}, "KMS.0308"),
        ({"pin_type": "CipherText"}, "KMS.0308"),
        ({"sequence": "short"}, "KMS.0206"),
        ({"additional_authenticated_data": "x" * 129}, "KMS.0208"),
    ],
)
@pytest.mark.parametrize("operation", ["create-datakey", "create-datakey-without-plaintext"])
def test_refused_parameters(
    rest: Operation, key_id: str, operation: str, body: dict[str, object], code: str
) -> None:
    seen = refused(rest(operation, {"key_id": key_id, **body}), code)
    assert "123456" not in seen.message


@pytest.mark.parametrize(("bits", "code"), [(0, "1901"), (-8, "1901"), (8200, "1901"), (12, "1903")])
def test_refused_lengths_over_grpc(client: Client, key_id: str, bits: int, code: str) -> None:
    with refusal(f"KMS.{code}"):
        client.create_data_key(key_id, bits)


def test_refused_specs_over_grpc(client: Client, key_id: str) -> None:
    with refusal("KMS.1902"):
        client.data_keys.CreateDataKey(pb.CreateDataKeyRequest(key_id=key_id, key_spec=99))  # type: ignore[arg-type]  # none of the enum's
    with refusal("KMS.0204"):
        client.data_keys.CreateDataKey(pb.CreateDataKeyRequest())


# Wrap and open


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dek=st.binary(min_size=1, max_size=1024), aad=st.binary(max_size=128))
def test_any_data_key_is_wrapped(client: Client, key_id: str, dek: bytes, aad: bytes) -> None:
    wrapped = client.encrypt_data_key(key_id, dek, aad)
    assert len(wrapped) == _wrapped_length(len(dek))
    assert client.decrypt_data_key(key_id, wrapped, aad) == dek


def test_wrapped_over_rest(client: Client, rest: Operation, key_id: str) -> None:
    dek = bytes(range(64))
    plain = (dek + hashlib.sha256(dek).digest()).hex()
    body = {"key_id": key_id, "plain_text": plain, "datakey_plain_length": "64"}
    wrapped = rest("encrypt-datakey", body)
    assert wrapped.status == 200
    assert set(wrapped.json) == {"key_id", "cipher_text", "datakey_length"}
    assert (wrapped.json["key_id"], wrapped.json["datakey_length"]) == (key_id, "64")
    assert client.decrypt_data_key(key_id, bytes.fromhex(wrapped.json["cipher_text"])) == dek


def test_an_answer_over_grpc(client: Client, key_id: str) -> None:
    dek = b"d" * 24
    plain = dek + hashlib.sha256(dek).digest()
    request = pb.EncryptDataKeyRequest(key_id=key_id, plain_text=plain, datakey_plain_length=24)
    wrapped = client.data_keys.EncryptDataKey(request)
    assert (wrapped.key_id, wrapped.datakey_length) == (key_id, 24)
    opened = client.data_keys.DecryptDataKey(
        pb.DecryptDataKeyRequest(key_id=key_id, cipher_text=wrapped.cipher_text, datakey_cipher_length=24)
    )
    assert (opened.data_key, opened.datakey_length) == (dek, 24)
    assert opened.datakey_dgst == hashlib.sha256(dek).digest()


DEK = b"d" * 32
GOOD = (DEK + hashlib.sha256(DEK).digest()).hex()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"plain_text": None}, "KMS.0204"),
        ({"plain_text": ""}, "KMS.0204"),
        ({"plain_text": GOOD[:-1]}, "KMS.2101"),
        ({"plain_text": "zz" * 64}, "KMS.2101"),
        ({"plain_text": 7}, "KMS.2101"),
        ({"plain_text": ["00"]}, "KMS.2101"),
        ({"datakey_plain_length": None}, "KMS.0204"),
        ({"datakey_plain_length": "0"}, "KMS.2102"),
        ({"datakey_plain_length": "-32"}, "KMS.2102"),
        ({"datakey_plain_length": "1025"}, "KMS.2102"),
        ({"datakey_plain_length": "x"}, "KMS.2102"),
        ({"datakey_plain_length": 31.5}, "KMS.2102"),
        ({"datakey_plain_length": 2**40}, "KMS.2102"),
        ({"plain_text": GOOD[:-2] + "00"}, "KMS.2103"),
        ({"plain_text": "00" + GOOD[2:]}, "KMS.2103"),
        ({"datakey_plain_length": "31"}, "KMS.2104"),
        ({"datakey_plain_length": "33"}, "KMS.2104"),
        ({"datakey_plain_length": "64"}, "KMS.2104"),
        ({"plain_text": GOOD + "00"}, "KMS.2104"),
        ({"plain_text": GOOD[:-2]}, "KMS.2104"),
        ({"plain_text": "00"}, "KMS.2104"),
        ({"plain_text": GOOD * 100}, "KMS.2104"),
        ({"pin": "123456"}, "KMS.0308"),
        ({"key_id": None}, "KMS.0204"),
        ({"key_id": 5}, "KMS.0205"),
    ],
)
def test_refused_wraps(rest: Operation, key_id: str, changes: dict[str, object], code: str) -> None:
    body = {"key_id": key_id, "plain_text": GOOD, "datakey_plain_length": "32", **changes}
    seen = refused(rest("encrypt-datakey", body), code)
    assert GOOD[:8] not in seen.message


def test_lengths_of_opening(client: Client, rest: Operation, key_id: str) -> None:
    """The length may be the data key's or the ciphertext's: DEW says the one, its examples the other."""
    plain, wrapped = client.create_data_key(key_id, 384)
    body = {"key_id": key_id, "cipher_text": wrapped.hex()}
    for length in (48, len(wrapped)):
        answer = rest("decrypt-datakey", {**body, "datakey_cipher_length": str(length)})
        assert answer.json["data_key"] == plain.hex()
    for length in (47, 49, 124, 171, 173, 4096):
        refused(rest("decrypt-datakey", {**body, "datakey_cipher_length": str(length)}), "KMS.2204")
    for bad in ("0", "-1", "4097", "x", 2**40, 1.5, True):
        refused(rest("decrypt-datakey", {**body, "datakey_cipher_length": bad}), "KMS.2202")
    refused(rest("decrypt-datakey", body), "KMS.0204")


def test_keys_are_named_in_every_way(stand: Stand, client: Client) -> None:
    alias = fresh()
    key_id = client.create_key(alias)
    plain, wrapped = client.create_data_key(f"alias/{alias}")
    for reference in (
        key_id,
        f"alias/{alias}",
        f"kms:{stand.dev.region}:{stand.dev.domain_id}:alias:{alias}",
    ):
        assert client.decrypt_data_key(reference, wrapped) == plain
    other = client.create_key(fresh())
    with refusal("KMS.2201"):
        client.decrypt_data_key(other, wrapped)
    with refusal("KMS.0205"):
        client.decrypt_data_key("no reference", wrapped)
    with refusal("KMS.0207"):
        client.decrypt_data_key("alias/" + fresh(), wrapped)


def test_data_and_data_keys_do_not_mix(client: Client, key_id: str) -> None:
    plain, wrapped = client.create_data_key(key_id)
    with refusal("KMS.2201"):
        client.decrypt(wrapped)
    blob = client.encrypt(key_id, plain)
    with refusal("KMS.2201"):
        client.decrypt_data_key(key_id, blob)
