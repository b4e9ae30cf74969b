"""encrypt-data, decrypt-data and gen-random from end to end."""

import base64

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsmd.client import Client
from hsmd.pb.v1 import crypto_pb2
from tests.calls import Operation, fresh, record, refusal, refused, sequence
from tests.stand import Stand, b64


@pytest.fixture(scope="module")
def key_id(client: Client) -> str:
    return client.create_key(fresh("crypto"))


# Encrypt and decrypt


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=4096), aad=st.binary(max_size=128))
def test_what_went_in_comes_out(client: Client, key_id: str, data: bytes, aad: bytes) -> None:
    blob = client.encrypt(key_id, data, aad)
    assert client.decrypt(blob, aad) == data
    with refusal("KMS.2201"):
        client.decrypt(blob, aad + b"\0" if len(aad) < 128 else aad[:-1])


def test_answers_over_grpc(client: Client, key_id: str) -> None:
    encrypted = client.crypto.EncryptData(
        crypto_pb2.EncryptDataRequest(
            key_id=key_id,
            plain_text=b"\xff\x00",
            encryption_algorithm=crypto_pb2.ENCRYPTION_ALGORITHM_SYMMETRIC_DEFAULT,
            sequence=sequence(),
        )
    )
    assert encrypted.key_id == key_id
    decrypted = client.crypto.DecryptData(
        crypto_pb2.DecryptDataRequest(
            cipher_text=encrypted.cipher_text,
            encryption_algorithm=crypto_pb2.ENCRYPTION_ALGORITHM_SYMMETRIC_DEFAULT,
            sequence=sequence(),
        )
    )
    assert (decrypted.key_id, decrypted.plain_text) == (key_id, b"\xff\x00")


@pytest.mark.parametrize(
    "text",
    ["x", "abcd", "ünïcödé 🗝", "\0", '"\\\n\t', " ", "x" * 4096, "ü" * 2048],
    ids=lambda text: repr(text[:9]),
)
@pytest.mark.parametrize("aad", ["", "bound to this", "ü" * 64], ids=len)
def test_answers_over_rest(rest: Operation, key_id: str, text: str, aad: str) -> None:
    bound = {"additional_authenticated_data": aad} if aad else {}
    encrypted = rest("encrypt-data", {"key_id": key_id, "plain_text": text, **bound})
    assert encrypted.status == 200
    assert set(encrypted.json) == {"key_id", "cipher_text"}
    assert encrypted.json["key_id"] == key_id
    blob = encrypted.json["cipher_text"]
    assert len(base64.b64decode(blob, validate=True)) == 124 + 16 * -(-len(text.encode()) // 16)
    decrypted = rest("decrypt-data", {"cipher_text": blob, **bound})
    assert decrypted.status == 200
    assert decrypted.json == {"key_id": key_id, "plain_text": text, "plain_text_base64": b64(text.encode())}
    refused(
        rest("decrypt-data", {"cipher_text": blob, "additional_authenticated_data": aad[:-1] + "x"}),
        "KMS.2201",
    )


def test_four_bytes_give_188_characters(rest: Operation, key_id: str) -> None:
    blob = rest("encrypt-data", {"key_id": key_id, "plain_text": "abcd"}).json["cipher_text"]
    assert len(blob) == 188


def test_bytes_that_are_no_text_come_in_base64(client: Client, rest: Operation, key_id: str) -> None:
    data = bytes(range(256))
    answer = rest("decrypt-data", {"cipher_text": b64(client.encrypt(key_id, data))})
    assert answer.status == 200
    assert base64.b64decode(answer.json["plain_text_base64"]) == data
    assert type(answer.json["plain_text"]) is str


def test_grpc_and_rest_open_each_others(client: Client, rest: Operation, key_id: str) -> None:
    blob = rest("encrypt-data", {"key_id": key_id, "plain_text": "ü", "additional_authenticated_data": "ö"})
    assert client.decrypt(base64.b64decode(blob.json["cipher_text"]), "ö".encode()) == "ü".encode()
    other = b64(client.encrypt(key_id, b"x", b"y"))
    answer = rest("decrypt-data", {"cipher_text": other, "additional_authenticated_data": "y"})
    assert answer.json["plain_text"] == "x"


def test_decrypt_by_a_named_key(stand: Stand, client: Client) -> None:
    alias = fresh()
    key_id = client.create_key(alias)
    other = client.create_key(fresh())
    blob = client.encrypt(f"alias/{alias}", b"x")
    urn = f"kms:{stand.dev.region}:{stand.dev.domain_id}:alias:{alias}"
    for reference in (key_id, f"alias/{alias}", urn, ""):
        assert client.decrypt(blob, key_id=reference) == b"x"
    with refusal("KMS.2201"):
        client.decrypt(blob, key_id=other)
    with refusal("KMS.0205"):
        client.decrypt(blob, key_id="no reference")
    with refusal("KMS.0207"):
        client.decrypt(blob, key_id="alias/" + fresh())
    client.rename(key_id, fresh())
    assert client.decrypt(blob) == b"x"  # the ciphertext names the id, not the alias


@pytest.mark.parametrize("size", [0, 4097, 100_000])
def test_plaintexts_that_may_not_be(client: Client, key_id: str, size: int) -> None:
    with refusal("KMS.2101" if size else "KMS.0204") as seen:
        client.encrypt(key_id, b"x" * size)
    assert "xxx" not in seen.last.message


@pytest.mark.parametrize("size", [4097, 8192])
def test_plaintexts_are_counted_in_bytes(rest: Operation, key_id: str, size: int) -> None:
    refused(rest("encrypt-data", {"key_id": key_id, "plain_text": "x" * size}), "KMS.2101")
    refused(rest("encrypt-data", {"key_id": key_id, "plain_text": "ü" * (size // 2 + 1)}), "KMS.2101")


def test_additional_data_has_its_bounds(client: Client, rest: Operation, key_id: str) -> None:
    assert client.decrypt(client.encrypt(key_id, b"x", b"a" * 128), b"a" * 128) == b"x"
    with refusal("KMS.0208"):
        client.encrypt(key_id, b"x", b"a" * 129)
    with refusal("KMS.0208"):
        client.decrypt(client.encrypt(key_id, b"x"), b"a" * 129)
    body = {"key_id": key_id, "plain_text": "x", "additional_authenticated_data": "ü" * 65}
    refused(rest("encrypt-data", body), "KMS.0208")


def test_the_older_encryption_context(rest: Operation, key_id: str) -> None:
    context = {"b": "2", "a": "ü"}
    body = {"key_id": key_id, "plain_text": "x", "encryption_context": context}
    blob = rest("encrypt-data", body).json["cipher_text"]
    turned = {"cipher_text": blob, "encryption_context": {"a": "ü", "b": "2"}}
    assert rest("decrypt-data", turned).json["plain_text"] == "x"
    for other in ({}, {"a": "ü"}, {"a": "2", "b": "ü"}, {"a": "ü", "b": "2", "c": ""}):
        refused(rest("decrypt-data", {"cipher_text": blob, "encryption_context": other}), "KMS.2201")
    for bad in ("text", ["list"], {"a": 1}, {"a": None}, {"a": {"b": "c"}}, {"a": "x" * 8192}):
        refused(rest("encrypt-data", {**body, "encryption_context": bad}), "KMS.0208")
    refused(rest("encrypt-data", {**body, "additional_authenticated_data": "x"}), "KMS.0208")


@pytest.mark.parametrize("algorithm", ["RSAES_OAEP_SHA_256", "SM2_ENCRYPT", "symmetric_default", 1, None])
def test_algorithms_of_other_keys(client: Client, rest: Operation, key_id: str, algorithm: object) -> None:
    body = {"key_id": key_id, "plain_text": "x", "encryption_algorithm": algorithm}
    blob = b64(client.encrypt(key_id, b"x"))
    if algorithm is None:  # null is absent
        assert rest("encrypt-data", body).status == 200
        return
    refused(rest("encrypt-data", body), "KMS.2105")
    opening = {"key_id": key_id, "cipher_text": blob, "encryption_algorithm": algorithm}
    refused(rest("decrypt-data", opening), "KMS.2105")
    with refusal("KMS.2105"):
        client.crypto.EncryptData(
            crypto_pb2.EncryptDataRequest(key_id=key_id, plain_text=b"x", encryption_algorithm=77)  # type: ignore[arg-type]  # none of the enum's
        )


def test_records_name_key_and_version(stand: Stand, rest: Operation, key_id: str) -> None:
    encrypted = rest("encrypt-data", {"key_id": key_id, "plain_text": "x"})
    one = record(stand, encrypted.headers["X-Request-Id"])
    assert (one["event"], one["resource"], one["key_version"]) == ("encryptData", key_id, 1)
    assert (one["result"], one["identity"], one["user_id"]) == ("OK", "token", stand.dev.user_id)
    decrypted = rest("decrypt-data", {"cipher_text": encrypted.json["cipher_text"]})
    one = record(stand, decrypted.headers["X-Request-Id"])
    assert (one["event"], one["resource"], one["key_version"]) == ("decryptData", key_id, 1)


# Random


@pytest.mark.parametrize("bits", [8, 16, 512, 8184, 8192])
def test_random_has_the_length_asked_for(client: Client, rest: Operation, bits: int) -> None:
    response = client.crypto.GenRandom(
        crypto_pb2.GenRandomRequest(random_data_length=bits, sequence=sequence())
    )
    assert len(response.random_data) == bits // 8
    answer = rest("gen-random", {"random_data_length": str(bits), "sequence": sequence()})
    assert answer.status == 200
    assert set(answer.json) == {"random_data"}
    assert len(bytes.fromhex(answer.json["random_data"])) == bits // 8
    assert answer.json["random_data"] == answer.json["random_data"].lower()
    assert rest("gen-random", {"random_data_length": bits}).status == 200  # a number does as well


def test_random_does_not_repeat(client: Client) -> None:
    drawn = {client.random(32) for _ in range(50)}
    assert len(drawn) == 50
    bits = sum(byte.bit_count() for each in drawn for byte in each)
    assert abs(bits - 50 * 128) < 600  # more than nine sigma


@pytest.mark.parametrize(
    ("bits", "code"),
    [
        *((bits, "KMS.1801") for bits in (0, 7, 8193, 8200, -8, 2**31 - 1)),
        *((bits, "KMS.1802") for bits in (9, 257, 8191)),
    ],
)
def test_random_lengths_that_may_not_be(client: Client, rest: Operation, bits: int, code: str) -> None:
    with refusal(code):
        client.crypto.GenRandom(crypto_pb2.GenRandomRequest(random_data_length=bits))
    refused(rest("gen-random", {"random_data_length": str(bits)}), code)
    refused(rest("gen-random", {"random_data_length": bits}), code)


@pytest.mark.parametrize(
    "bits", ["", "x", "8.0", 8.5, True, [], {}, "1e3", "8 ", "+8", 2**31, 2**70, "-" * 50]
)
def test_random_lengths_that_are_no_numbers(rest: Operation, bits: object) -> None:
    refused(rest("gen-random", {"random_data_length": bits}), "KMS.1801")


def test_random_needs_a_length(client: Client, rest: Operation) -> None:
    refused(rest("gen-random", {}), "KMS.0204")
    with refusal("KMS.0204"):
        client.crypto.GenRandom(crypto_pb2.GenRandomRequest())
