"""generate-mac and verify-mac from end to end; the keys are known to nobody, so codes are held together."""

import base64
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest

from hsmd.client import Client
from hsmd.pb.v1 import macs_pb2 as pb
from tests.calls import Operation, fresh, record, refusal, refused
from tests.specs import Keys
from tests.stand import Stand, b64

BITS = (256, 384, 512)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [1, 32, 200, 4096])
def test_made_and_checked(client: Client, keys: Keys, bits: int, size: int) -> None:
    key_id, algorithm, message = keys(f"HMAC_{bits}"), f"HMAC_SHA_{bits}", b"m" * size
    mac = client.mac(key_id, algorithm, message)
    assert len(mac) == bits // 8
    assert client.mac(key_id, algorithm, message) == mac
    assert client.verify_mac(key_id, algorithm, message, mac)
    for other in (message + b"m" if size < 4096 else message[:-1], b"n" * size):
        assert not client.verify_mac(key_id, algorithm, other, mac)
        assert client.mac(key_id, algorithm, other) != mac


@pytest.mark.parametrize("bits", BITS)
def test_over_rest_and_by_the_sdk(stand: Stand, rest: Operation, keys: Keys, bits: int) -> None:
    key_id, algorithm = keys(f"HMAC_{bits}"), f"HMAC_SHA_{bits}"
    body = {"key_id": key_id, "mac_algorithm": algorithm, "message": b64(b"x")}
    made = rest("generate-mac", body)
    assert made.status == 200
    assert set(made.json) == {"key_id", "mac_algorithm", "mac"}
    assert (made.json["key_id"], made.json["mac_algorithm"]) == (key_id, algorithm)
    assert len(base64.b64decode(made.json["mac"], validate=True)) == bits // 8
    checked = rest("verify-mac", {**body, "mac": made.json["mac"]})
    assert checked.json == {"key_id": key_id, "mac_algorithm": algorithm, "mac_valid": True}
    wrong = rest("verify-mac", {**body, "message": b64(b"y"), "mac": made.json["mac"]})
    assert (wrong.status, wrong.json["mac_valid"]) == (200, False)
    sdk = stand.sdk()
    seen = sdk.generate_mac(kms.GenerateMacRequest(body=kms.GenerateMacRequestBody(**body)))
    assert (seen.key_id, seen.mac_algorithm, seen.mac) == (key_id, algorithm, made.json["mac"])
    for mac, valid in ((seen.mac, True), (b64(bytes(bits // 8)), False)):
        told = sdk.verify_mac(kms.VerifyMacRequest(body=kms.VerifyMacRequestBody(**body, mac=mac)))
        assert (told.key_id, told.mac_algorithm, told.mac_valid) == (key_id, algorithm, valid)


def test_wrong_codes_are_answers(client: Client, keys: Keys) -> None:
    key_id = keys("HMAC_256")
    mac = client.mac(key_id, "HMAC_SHA_256", b"x")
    other = client.mac(client.create_key(fresh(), spec="HMAC_256"), "HMAC_SHA_256", b"x")
    assert other != mac
    for wrong in (other, mac[:-1], mac + b"\0", mac[::-1], bytes(32), b"x", bytes(1024), mac[:16]):
        assert not client.verify_mac(key_id, "HMAC_SHA_256", b"x", wrong)


def test_each_key_has_one_algorithm(client: Client, keys: Keys) -> None:
    for bits in BITS:
        for other in BITS:
            if bits != other:
                with refusal("KMS.0308") as seen:
                    client.mac(keys(f"HMAC_{bits}"), f"HMAC_SHA_{other}", b"x")
                assert f"HMAC_SHA_{bits}" in seen.last.message


def test_keys_of_another_kind(client: Client, keys: Keys) -> None:
    for (spec, usage), key_id in keys.of_every_kind().items():
        if spec.startswith("HMAC"):
            continue
        code = "KMS.0331" if spec == "AES_256" else "KMS.0325"
        with refusal(code):
            client.mac(key_id, "HMAC_SHA_256", b"x")
        with refusal(code):
            client.verify_mac(key_id, "HMAC_SHA_256", b"x", bytes(32))
        assert usage


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key_id": None}, "KMS.0204"),
        ({"key_id": "no reference"}, "KMS.0205"),
        ({"key_id": "00000000-0000-0000-0000-000000000000"}, "KMS.0207"),
        ({"message": None}, "KMS.0204"),
        ({"message": ""}, "KMS.0204"),
        ({"message": "*"}, "KMS.0308"),
        ({"message": 5}, "KMS.0308"),
        ({"message": b64(bytes(4097))}, "KMS.0308"),
        ({"mac_algorithm": None}, "KMS.0204"),
        ({"mac_algorithm": "HMAC_SM3"}, "KMS.0308"),
        ({"mac_algorithm": "hmac_sha_256"}, "KMS.0308"),
        ({"mac_algorithm": 1}, "KMS.0308"),
    ],
)
def test_bad_input(rest: Operation, keys: Keys, changes: dict[str, object], code: str) -> None:
    body = {"key_id": keys("HMAC_256"), "mac_algorithm": "HMAC_SHA_256", "message": b64(b"x")}
    refused(rest("generate-mac", {**body, **changes}), code)
    refused(rest("verify-mac", {**body, "mac": b64(bytes(32)), **changes}), code)


@pytest.mark.parametrize(
    ("mac", "code"),
    [(None, "0204"), ("", "0204"), ("*", "0308"), (True, "0308"), (b64(bytes(1025)), "0308")],
)
def test_bad_codes(rest: Operation, keys: Keys, mac: object, code: str) -> None:
    body = {"key_id": keys("HMAC_256"), "mac_algorithm": "HMAC_SHA_256", "message": b64(b"x"), "mac": mac}
    refused(rest("verify-mac", body), f"KMS.{code}")


def test_bad_input_over_grpc(client: Client, keys: Keys) -> None:
    with refusal("KMS.0308"):
        client.macs.GenerateMac(
            pb.GenerateMacRequest(key_id=keys("HMAC_256"), message=b"x", mac_algorithm=9)  # type: ignore[arg-type]  # none of the enum's
        )
    with refusal("KMS.0204"):
        client.macs.VerifyMac(pb.VerifyMacRequest(key_id=keys("HMAC_256"), message=b"x", mac=b"x"))


def test_tenants_and_roles(stand: Stand, strange: Client, reader: Any, keys: Keys) -> None:
    with refusal("KMS.0207"):
        strange.mac(keys("HMAC_256"), "HMAC_SHA_256", b"x")
    with stand.client(reader) as looking:
        with refusal("KMS.0330"):
            looking.mac(keys("HMAC_256"), "HMAC_SHA_256", b"x")
        with refusal("KMS.0330"):
            looking.verify_mac(keys("HMAC_256"), "HMAC_SHA_256", b"x", bytes(32))


def test_records(stand: Stand, rest: Operation, keys: Keys) -> None:
    body = {"key_id": keys("HMAC_512"), "mac_algorithm": "HMAC_SHA_512", "message": b64(b"a long secret")}
    made = rest("generate-mac", body)
    checked = rest("verify-mac", {**body, "mac": made.json["mac"]})
    for answer, event in ((made, "generateMac"), (checked, "verifyMac")):
        one = record(stand, answer.headers["X-Request-Id"])
        assert (one["event"], one["resource"], one["key_version"]) == (event, keys("HMAC_512"), 1)
        assert made.json["mac"] not in str(one)
