"""Whatever is sent: a clear refusal with the right code, nothing changed, nothing secret told, one record."""

import hashlib
import re
import socket
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsmd.client import ApiError, Client
from hsmd.client.errors import from_rpc
from hsmd.descriptors import services
from hsmd.pb.v1 import crypto_pb2, keys_pb2
from tests.calls import STATUSES, Operation, fresh, record, records, refusal, refused, snapshot
from tests.stand import Answer, Stand, b64, eventually

CANARY = "canary-4f1d"
TEXT = f"{CANARY} of the caller's"

# Every operation with a body that is right but for the key's name, which is put in.
BODIES: dict[str, dict[str, object]] = {
    "create-key": {"key_alias": "x"},
    "describe-key": {"key_id": ""},
    "list-keys": {},
    "enable-key": {"key_id": ""},
    "disable-key": {"key_id": ""},
    "schedule-key-deletion": {"key_id": "", "pending_days": "7"},
    "cancel-key-deletion": {"key_id": ""},
    "update-key-alias": {"key_id": "", "key_alias": "x"},
    "update-key-description": {"key_id": "", "key_description": "x"},
    "encrypt-data": {"key_id": "", "plain_text": TEXT},
    "decrypt-data": {"cipher_text": ""},
    "create-datakey": {"key_id": ""},
    "create-datakey-without-plaintext": {"key_id": ""},
    "encrypt-datakey": {"key_id": "", "plain_text": "", "datakey_plain_length": "32"},
    "decrypt-datakey": {"key_id": "", "cipher_text": "", "datakey_cipher_length": "32"},
    "gen-random": {"random_data_length": "8"},
}
FIELDS: dict[str, tuple[str, ...]] = {
    "create-key": (
        *("key_alias", "key_spec", "key_usage", "key_description", "origin", "enterprise_project_id"),
        *("sequence", "keystore_id"),
    ),
    "list-keys": ("limit", "marker", "key_state", "key_spec", "enterprise_project_id", "sequence"),
    "schedule-key-deletion": ("key_id", "pending_days", "sequence"),
    "update-key-alias": ("key_id", "key_alias", "sequence"),
    "update-key-description": ("key_id", "key_description", "sequence"),
    "encrypt-data": (
        *("key_id", "plain_text", "encryption_algorithm", "additional_authenticated_data"),
        *("encryption_context", "sequence"),
    ),
    "decrypt-data": (
        *("key_id", "cipher_text", "encryption_algorithm", "additional_authenticated_data"),
        *("encryption_context", "sequence"),
    ),
    "create-datakey": (
        *("key_id", "key_spec", "datakey_length", "additional_authenticated_data", "encryption_context"),
        *("sequence", "pin", "pin_type"),
    ),
    "encrypt-datakey": ("key_id", "plain_text", "datakey_plain_length", "pin", "pin_type", "sequence"),
    "decrypt-datakey": ("key_id", "cipher_text", "datakey_cipher_length", "sequence"),
    "gen-random": ("random_data_length", "sequence"),
    "describe-key": ("key_id", "sequence"),
}
# Right for no field of any operation.
NEVER_RIGHT: tuple[object, ...] = (
    [],
    [CANARY],
    {CANARY: [CANARY]},
    {"a": {"b": CANARY}},
    10**30,
    -(10**30),
    1.5,
    True,
    False,
    "\ud800",
    "\udfff" + CANARY,
    "\0",
    "\x1f" * 5000,
    CANARY * 2000,
)
MALFORMED = (
    b"{",
    b"}",
    b"[]",
    b"[{}]",
    b'"text"',
    b"7",
    b"true",
    b"{'key_id': 1}",
    b'{"key_id": }',
    b'{"key_id": "x",}',
    b'{"key_id": "x"} {}',
    b'{"key_id": "x"}\0',
    b'{"key_id": "a", "key_id": "b"}',
    b'{"key_id": NaN}',
    b'{"key_id": -Infinity}',
    b'{"key_id": "\xff"}',
    b'{"key_id": "\xed\xa0\x80"}',
    b'{"key_id": "tab\there"}',
    b"\xef\xbb\xbf{}",
    '{"key_id": "x"}'.encode("utf-16"),
    b'{"a":' * 200 + b"1" + b"}" * 200,
    b'{"a":' * 50_000,
    b"[" * 100_000,
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": [' + b"1," * 200_000 + b"1]}",
)


@pytest.fixture(scope="module")
def key_id(client: Client) -> str:
    return client.create_key(fresh("bad"))


@pytest.fixture
def unchanged(client: Client, key_id: str) -> Iterator[None]:
    """Keys are after the test what they were before it."""
    before = snapshot(client)
    yield
    assert snapshot(client) == before


def _body(operation: str, key_id: str) -> dict[str, object]:
    body = dict(BODIES[operation])
    if "key_id" in body:
        body["key_id"] = key_id
    if "key_alias" in body:
        body["key_alias"] = fresh()
    return body


# Over REST


@pytest.mark.parametrize("operation", BODIES)
@pytest.mark.usefixtures("unchanged")
def test_malformed_json(stand: Stand, operation: str) -> None:
    token = stand.token()
    bodies = MALFORMED if operation == "create-key" else MALFORMED[:8]
    for body in bodies:
        refused(stand.kms(operation, body, token=token), "KMS.0202")


@pytest.mark.parametrize("operation", FIELDS)
@pytest.mark.usefixtures("unchanged")
def test_wrong_values_in_every_field(stand: Stand, rest: Operation, key_id: str, operation: str) -> None:
    answers: list[Answer] = []
    for field in FIELDS[operation]:
        for value in NEVER_RIGHT:
            if value == "\0" and (field == "additional_authenticated_data" or operation == "encrypt-data"):
                continue  # a byte as any other there
            answer = rest(operation, {**_body(operation, key_id), field: value})
            assert answer.status == 400, (field, value, answer.raw)
            refused(answer, answer.json["error"]["error_code"])
            assert CANARY.encode() not in answer.raw or field not in _SECRET, (field, value)
            answers.append(answer)
    _each_has_one_record(stand, answers)


_SECRET = frozenset(["plain_text", "additional_authenticated_data", "encryption_context", "pin"])


def _each_has_one_record(stand: Stand, answers: list[Answer]) -> None:
    """What came to the daemon is in the audit log, once; each refusal of the gateway is in its own log.

    What the gateway refused it tells the daemon later, and again if it had no answer: those are not calls.
    """
    counted = Counter(each["request_id"] for each in stand.audit() if each["event"] != "refuseRequest")
    request_ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert all(counted[each] <= 1 for each in request_ids)
    eventually(lambda: set(request_ids) <= set(re.findall(r"\[([0-9a-f]{32})\]", stand.log("gateway"))))


@pytest.mark.parametrize("operation", BODIES)
@pytest.mark.usefixtures("unchanged")
def test_required_fields_are_required(client: Client, rest: Operation, key_id: str, operation: str) -> None:
    whole = _right(client, operation, key_id)
    for field in BODIES[operation]:
        without = {name: value for name, value in whole.items() if name != field}
        assert field in refused(rest(operation, without), "KMS.0204").message
        refused(rest(operation, {**without, field: None}), "KMS.0204")
        if field != "key_description":
            code = rest(operation, {**without, field: ""}).json["error"]["error_code"]
            assert STATUSES[code][0] == 400


KEYLESS = ("create-key", "list-keys", "gen-random", "decrypt-data")


@pytest.mark.parametrize("operation", [name for name in BODIES if name not in KEYLESS])
@pytest.mark.usefixtures("unchanged")
def test_keys_that_are_not_there(rest: Operation, strange: Client, operation: str) -> None:
    foreign = strange.create_key(fresh())
    dek = bytes(32)
    extra = {
        "encrypt-datakey": {"plain_text": (dek + hashlib.sha256(dek).digest()).hex()},
        "decrypt-datakey": {"cipher_text": strange.create_data_key(foreign)[1].hex()},
    }.get(operation, {})
    for name in (str(uuid.uuid4()), foreign, "alias/" + fresh()):
        refused(rest(operation, {**_body(operation, name), **extra}), "KMS.0207")
    for name in ("x", "../" + foreign, foreign + "/", foreign[:-1] + "A"):
        refused(rest(operation, {**_body(operation, name), **extra}), "KMS.0205")


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AA=",
        "AAAA=",
        "====",
        "A A=",
        "AA\n==",
        "AA==x",
        "ä",
        "-_-_",
        "%41",
        "A" * 5,
        "AAAA" * 2000 + "!",
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_base64_that_is_none(rest: Operation, text: str) -> None:
    refused(rest("decrypt-data", {"cipher_text": text}), "KMS.2201")


@pytest.mark.parametrize("text", ["0", "0x00", "zz", "00 00", "0\n0", "é0", "00" * 5000, "0" * 281])
@pytest.mark.usefixtures("unchanged")
def test_hex_that_is_none(rest: Operation, key_id: str, text: str) -> None:
    body = {"key_id": key_id, "cipher_text": text, "datakey_cipher_length": "32"}
    refused(rest("decrypt-datakey", body), "KMS.2201")


def test_every_byte_of_a_ciphertext_counts(client: Client, rest: Operation, key_id: str) -> None:
    raw = client.encrypt(key_id, TEXT.encode())
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 0x80
        seen = refused(rest("decrypt-data", {"cipher_text": b64(bytes(changed))}), "KMS.2201")
        assert seen.message == "The cipher_text is not valid."


@pytest.mark.usefixtures("unchanged")
def test_bodies_beyond_bounds(stand: Stand, key_id: str) -> None:
    token = stand.token()
    large = b'{"key_id": "' + b"x" * (12 * 1024 * 1024) + b'"}'
    answer = stand.kms("describe-key", large, token=token)
    refused(answer, "APIGW.0201")
    left = records(stand, answer.headers["X-Request-Id"])  # by the gateway, which tells it soon
    assert {each["event"] for each in left} <= {"refuseRequest"}
    refused(
        stand.kms("encrypt-data", {"key_id": key_id, "plain_text": "x" * 2_000_000}, token=token),
        "APIGW.0201",
    )
    refused(
        stand.kms("encrypt-data", {"key_id": key_id, "plain_text": "x" * 900_000}, token=token), "KMS.2101"
    )


def test_plain_http_on_the_tls_port(stand: Stand) -> None:
    host, _, port = stand.dev.rest.removeprefix("https://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as plain:
        plain.sendall(b"POST /v3/auth/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        heard = b""
        while more := plain.recv(65536):
            heard += more
    assert heard.startswith(b"HTTP/1.1 400 ")
    assert b"HTTPS" in heard
    assert b"X-Request-Id: " in heard


# Over gRPC


class Raw:
    """Bytes to any method, as a client that does not keep to the protocol would send them."""

    def __init__(self, stand: Stand) -> None:
        dev = stand.dev
        files = (dev.ca, dev.key, dev.certificate)
        credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
        self.channel = grpc.secure_channel(dev.grpc, credentials)

    def call(self, method: str, message: bytes, metadata: Any = ()) -> bytes:
        function = self.channel.unary_unary(f"/hsmd.v1.{method}", None, None)
        try:
            return bytes(function(message, timeout=30, metadata=metadata))
        except grpc.RpcError as error:
            raise from_rpc(error, "") from error


@pytest.fixture(scope="module")
def raw(stand: Stand) -> Iterator[Raw]:
    one = Raw(stand)
    yield one
    one.channel.close()


METHODS = sorted(f"{service.name}/{method.name}" for service in services() for method in service.methods)
NO_MESSAGES = (
    b"\xff",
    b"\x00",
    b"\x0a\xff\xff\xff\xff\x0f",  # a length beyond the end
    b"\x0a\x05abc",  # cut
    b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # a number that does not end
    b"\x0b" * 1000,  # groups in groups
    b"\x0f",  # a wire type that is none
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("unchanged")
def test_garbage_for_a_message(stand: Stand, raw: Raw, method: str) -> None:
    for message in NO_MESSAGES:
        with refusal("KMS.0214") as seen:
            raw.call(method, message)
        one = record(stand, seen.last.request_id)
        assert (one["method"], one["result"]) == (f"hsmd.v1.{method}", "KMS.0214")


@pytest.mark.usefixtures("unchanged")
def test_texts_that_are_not_utf8(raw: Raw) -> None:
    for text in (b"\xff", b"\xed\xa0\x80", b"\xc0\x80"):
        with refusal("KMS.0214"):
            raw.call("Keys/CreateKey", b"\x12" + bytes([len(text)]) + text)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(METHODS), message=st.binary(max_size=64))
def test_noise_for_a_message(raw: Raw, method: str, message: bytes) -> None:
    try:
        raw.call(method, message)
    except ApiError as error:
        assert error.code in STATUSES, error  # noqa: PT017 -- a call that is right is fine as well


@pytest.mark.usefixtures("unchanged")
def test_methods_and_messages_that_can_not_be(raw: Raw) -> None:
    for method, status in (("Keys/DestroyKey", "UNIMPLEMENTED"), ("Nothing/Nothing", "UNIMPLEMENTED")):
        with pytest.raises(ApiError) as caught:
            raw.call(method, b"")
        assert caught.value.status is grpc.StatusCode[status]
    with pytest.raises(ApiError) as caught:
        raw.call("Crypto/EncryptData", b"\x1a" + b"\x80\x80\x80\x01" + b"x" * (2 * 1024 * 1024))
    assert caught.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.usefixtures("unchanged")
def test_numbers_that_no_enum_has(client: Client, key_id: str) -> None:
    for number in (99, -1, 2**31 - 1, -(2**31)):
        for code, field in (("KMS.1110", "key_spec"), ("KMS.0308", "key_usage"), ("KMS.0308", "origin")):
            with refusal(code):
                request = keys_pb2.CreateKeyRequest(key_alias=fresh())
                setattr(request, field, number)
                client.keys.CreateKey(request)
        with refusal("KMS.2105"):
            client.crypto.EncryptData(
                crypto_pb2.EncryptDataRequest(key_id=key_id, plain_text=b"x", encryption_algorithm=number)  # type: ignore[arg-type]  # none of the enum's
            )
    for usage in (keys_pb2.KEY_USAGE_SIGN_VERIFY, keys_pb2.KEY_USAGE_GENERATE_VERIFY_MAC):
        with refusal("KMS.0308"):
            client.keys.CreateKey(keys_pb2.CreateKeyRequest(key_alias=fresh(), key_usage=usage))
    with refusal("KMS.0340"):
        client.keys.CreateKey(keys_pb2.CreateKeyRequest(key_alias=fresh(), keystore_id="1"))


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "number", ["x", "a" * 35, "a" * 37, "a" * 35 + "\n", "a" * 35 + "\0", " " * 35 + "\x7f"]
)
def test_sequences_that_may_not_be(client: Client, rest: Operation, key_id: str, number: str) -> None:
    with refusal("KMS.0206"):
        client.create_key(fresh(), sequence=number)
    for operation in BODIES:
        refused(rest(operation, {**_right(client, operation, key_id), "sequence": number}), "KMS.0206")


def _right(client: Client, operation: str, key_id: str) -> dict[str, object]:
    dek = bytes(32)
    more: dict[str, dict[str, object]] = {
        "decrypt-data": {"cipher_text": b64(client.encrypt(key_id, b"x"))},
        "encrypt-datakey": {"plain_text": (dek + hashlib.sha256(dek).digest()).hex()},
        "decrypt-datakey": {"cipher_text": client.create_data_key(key_id)[1].hex()},
    }
    return {**_body(operation, key_id), **more.get(operation, {})}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("where", ["key_description", "enterprise_project_id", "key_alias"])
def test_nul_is_nowhere(client: Client, where: str) -> None:
    values = {"key_alias": fresh(), where: "a\0b"}
    code = {"key_description": "KMS.1103", "enterprise_project_id": "KMS.0308", "key_alias": "KMS.1101"}[
        where
    ]
    with refusal(code):
        client.keys.CreateKey(keys_pb2.CreateKeyRequest(**values))
