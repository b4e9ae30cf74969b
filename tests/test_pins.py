"""PINs from end to end: what create-pin gives, and data keys that open with their PIN only."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest
from cryptography.hazmat.primitives.serialization import load_der_private_key

from hsmd.client import Client
from hsmd.pb.v1 import datakeys_pb2, grants_pb2, pins_pb2
from tests.calls import Operation, fresh, record, refusal, refused
from tests.stand import Stand, Tenant, standing

PLAIN, CIPHER = "PlainText", "CipherText"


def create_pin(client: Client, kind: str = CIPHER) -> str:
    number = pins_pb2.PIN_TYPE_PLAIN_TEXT if kind == PLAIN else pins_pb2.PIN_TYPE_CIPHER_TEXT
    request = pins_pb2.CreatePinRequest(pin_type=number, keystore_id="" if kind == PLAIN else "1")
    return str(client.pins.CreatePin(request).pin)


def made(client: Client, key: str, pin: str = "", pin_type: str = "", **more: Any) -> tuple[bytes, bytes]:
    request = datakeys_pb2.CreateDataKeyRequest(key_id=key, pin=pin, pin_type=pin_type, **more)
    answer = client.data_keys.CreateDataKey(request)
    return answer.plain_text, answer.cipher_text


def opened(client: Client, key: str, blob: bytes, pin: str = "", pin_type: str = "", **more: Any) -> bytes:
    request = datakeys_pb2.DecryptDataKeyRequest(
        key_id=key,
        cipher_text=blob,
        datakey_cipher_length=len(blob),
        pin=pin,
        pin_type=pin_type,
        **more,
    )
    return bytes(client.data_keys.DecryptDataKey(request).data_key)


@pytest.fixture(scope="module")
def key(client: Client) -> str:
    return client.create_key(fresh())


def test_plain_pins(client: Client) -> None:
    found = {create_pin(client, PLAIN) for _ in range(20)}
    assert len(found) == 20
    assert all(re.fullmatch("[A-Za-z0-9]{20}", each) for each in found)
    assert len(set("".join(found))) > 40


def test_cipher_pins(client: Client) -> None:
    found = {create_pin(client) for _ in range(5)}
    assert len(found) == 5
    assert all(base64.b64decode(each, validate=True).startswith(b"HSP\x02") for each in found)


@pytest.mark.parametrize("kind", [PLAIN, CIPHER])
def test_a_data_key_opens_with_its_pin_only(client: Client, key: str, kind: str) -> None:
    pin, other = create_pin(client, kind), create_pin(client, kind)
    plain, blob = made(client, key, pin, kind, additional_authenticated_data=b"aad")
    aad: dict[str, Any] = {"additional_authenticated_data": b"aad"}
    assert opened(client, key, blob, pin, kind, **aad) == plain
    with refusal("KMS.2201"):
        opened(client, key, blob, other, kind, **aad)
    with refusal("KMS.2201"):
        opened(client, key, blob, pin, kind)
    with refusal("KMS.0204") as seen:
        opened(client, key, blob, **aad)
    assert "pin" in seen.last.message
    with refusal("KMS.0204"):
        client.decrypt_data_key(key, blob, b"aad")
    open_blob = made(client, key)[1]
    with refusal("KMS.2201"):  # a PIN for a data key that has none
        opened(client, key, open_blob, pin, kind)
    forged = bytearray(blob)
    forged[41] = 2  # so that it says it has none
    with refusal("KMS.2201"):
        opened(client, key, bytes(forged), **aad)


def test_the_kinds_are_not_mistaken_for_each_other(client: Client, key: str) -> None:
    pin = create_pin(client)
    plain, blob = made(client, key, pin)
    assert opened(client, key, blob, pin) == opened(client, key, blob, pin, CIPHER) == plain
    with refusal("KMS.2201"):
        opened(client, key, blob, pin[:128], PLAIN)


def test_own_plain_pins(client: Client, key: str) -> None:
    for pin in ("x" * 8, "pin of mine: \u00e4\u00f6\u00fc", "9" * 128):
        plain, blob = made(client, key, pin, PLAIN)
        assert opened(client, key, blob, pin, PLAIN) == plain
    for pin in ("x" * 7, "x" * 129, "tab\tinside", "line\ninside"):
        with refusal("KMS.0308") as seen:
            made(client, key, pin, PLAIN)
        assert pin not in seen.last.message


def test_every_operation_that_takes_one(client: Client, key: str) -> None:
    pin = create_pin(client)
    request = datakeys_pb2.CreateDataKeyRequest(key_id=key, pin=pin)
    blob = client.data_keys.CreateDataKeyWithoutPlaintext(request).cipher_text
    assert len(opened(client, key, blob, pin)) == 32
    dek = b"d" * 24
    wrapped = client.data_keys.EncryptDataKey(
        datakeys_pb2.EncryptDataKeyRequest(
            key_id=key,
            plain_text=dek + hashlib.sha256(dek).digest(),
            datakey_plain_length=len(dek),
            pin=pin,
        )
    ).cipher_text
    assert opened(client, key, wrapped, pin) == dek
    pair = client.data_keys.CreateEcDataKeyPair(
        datakeys_pb2.CreateEcDataKeyPairRequest(
            key_id=key, key_spec=datakeys_pb2.EC_DATA_KEY_PAIR_SPEC_ECC_NIST_P256, pin=pin
        )
    )
    private = opened(client, key, pair.private_key_cipher_text, pin)
    assert private == pair.private_key_plain_text
    assert load_der_private_key(private, None)
    for each in (blob, wrapped, pair.private_key_cipher_text):
        with refusal("KMS.0204"):
            opened(client, key, each)
        with refusal("KMS.2201"):
            opened(client, key, each, create_pin(client))


def test_a_cipher_pin_is_good_in_its_project_only(client: Client, strange: Client, key: str) -> None:
    foreign = create_pin(strange)
    own = create_pin(client)
    with refusal("KMS.0308"):
        made(client, key, foreign)
    blob = made(client, key, own)[1]
    for pin in (foreign, own[:-4] + "AAAA", own[4:], "AAAA", "!", "x" * 1024, "\u00e4\u00e4\u00e4\u00e4"):
        with refusal("KMS.0308") as seen:
            opened(client, key, blob, pin)
        assert pin not in seen.last.message
    raw = bytearray(base64.b64decode(own))
    for place in range(len(raw)):
        raw[place] ^= 1
        with refusal("KMS.0308"):
            made(client, key, base64.b64encode(bytes(raw)).decode())
        raw[place] ^= 1


def test_who_is_granted_a_key_uses_its_project_s_pins(
    client: Client, strange: Client, stranger: Tenant
) -> None:
    key = client.create_key(fresh())
    request = grants_pb2.CreateGrantRequest(
        key_id=key,
        grantee_principal=stranger.user_id,
        operations=[
            grants_pb2.GRANT_OPERATION_CREATE_DATAKEY,
            grants_pb2.GRANT_OPERATION_DECRYPT_DATAKEY,
        ],
    )
    client.grants.CreateGrant(request)
    pin = create_pin(client)
    plain, blob = made(strange, key, pin)
    assert opened(client, key, blob, pin) == opened(strange, key, blob, pin) == plain
    with refusal("KMS.0308"):
        made(strange, key, create_pin(strange))


def test_after_a_restart(tmp_path: Path) -> None:
    with standing(tmp_path, gateway=False) as stand:
        with stand.client() as client:
            key, pins = client.create_key(fresh()), (create_pin(client), create_pin(client, PLAIN))
            blobs = [made(client, key, pin, kind) for pin, kind in zip(pins, (CIPHER, PLAIN), strict=True)]
        stand.restart_daemon()
        with stand.client() as client:
            for pin, kind, (plain, blob) in zip(pins, (CIPHER, PLAIN), blobs, strict=True):
                assert opened(client, key, blob, pin, kind) == plain
        store = (stand.dev.data / "store" / "hsmd.db").read_bytes()
        assert not any(pin.encode() in store for pin in pins)


# REST, the SDK, bad input


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "KMS.0204"),
        ({"pin_type": ""}, "KMS.0204"),
        ({"pin_type": CIPHER}, "KMS.0204"),
        ({"pin_type": "ciphertext", "keystore_id": "1"}, "KMS.0308"),
        ({"pin_type": 1, "keystore_id": "1"}, "KMS.0308"),
        ({"keystore_id": "3"}, "KMS.0340"),
        ({"keystore_id": "x" * 36}, "KMS.0340"),
        ({"keystore_id": "x" * 37}, "KMS.0308"),
        ({"pin_type": PLAIN, "keystore_id": "x"}, "KMS.0340"),
    ],
)
def test_refused_pins(rest: Operation, body: dict[str, object], code: str) -> None:
    refused(rest("create-pin", body), code)


@pytest.mark.parametrize(
    "body",
    [
        {"pin_type": CIPHER},
        {"pin": "12345678", "pin_type": "Plaintext"},
        {"pin": "12345678"},
        {"pin": "x" * 1025},
        {"pin": ["x"]},
        {"pin": "123", "pin_type": PLAIN},
    ],
)
@pytest.mark.parametrize("operation", ["create-datakey", "create-datakey-without-plaintext"])
def test_refused_data_keys(rest: Operation, key: str, operation: str, body: dict[str, object]) -> None:
    refused(rest(operation, {"key_id": key, **body}), "KMS.0308")


def test_by_the_sdk_and_over_rest(stand: Stand, rest: Operation, key: str) -> None:
    sdk = stand.sdk()
    for kind, keystore in ((PLAIN, None), (CIPHER, "1"), (None, "0")):
        body = kms.CreatePinRequestBody(pin_type=kind, keystore_id=keystore)
        pin = sdk.create_pin(kms.CreatePinRequest(body=body)).pin
        wanted = kms.CreateDatakeyRequestBody(key_id=key, pin=pin, pin_type=kind)
        data_key = sdk.create_datakey(kms.CreateDatakeyRequest(body=wanted))
        answer = rest(
            "decrypt-datakey",
            {
                "key_id": key,
                "cipher_text": data_key.cipher_text,
                "datakey_cipher_length": "32",
                "pin": pin,
                "pin_type": kind,
            },
        )
        assert answer.json["data_key"] == data_key.plain_text


def test_the_record_says_no_pin(stand: Stand, rest: Operation) -> None:
    answer = rest("create-pin", {"pin_type": PLAIN})
    assert set(answer.json) == {"pin"}
    entry = record(stand, answer.headers["X-Request-Id"])
    assert (entry["event"], entry["result"]) == ("createPin", "OK")
    assert answer.json["pin"] not in str(entry)


def test_roles(stand: Stand) -> None:
    looker = stand.add_tenant(f"looker-{fresh()}", ("KMS CMKReadOnlyAccess",))
    with stand.client(looker) as caller, refusal("KMS.0330"):
        create_pin(caller)
