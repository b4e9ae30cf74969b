"""What tests of operations share: fresh names, refusals over gRPC and REST, and a call's audit record."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from hsmd.client import ApiError, Client
from hsmd.pb.v1 import keys_pb2
from tests.stand import Answer, Stand

# DEW's codes as the API answers them, by HTTP and gRPC status. Written out here, not taken from the product.
_TABLE = """
    400 INVALID_ARGUMENT KMS.0202 KMS.0204 KMS.0205 KMS.0206 KMS.0208 KMS.0214 KMS.0308 KMS.0340 KMS.1101
    400 INVALID_ARGUMENT KMS.1103 KMS.1110 KMS.1401 KMS.1601 KMS.1602 KMS.1801 KMS.1802 KMS.1901 KMS.1902
    400 INVALID_ARGUMENT KMS.1903 KMS.2101 KMS.2102 KMS.2103 KMS.2104 KMS.2105 KMS.2201 KMS.2202 KMS.2204
    400 INVALID_ARGUMENT KMS.2401 KMS.2402 KMS.2501 KMS.3001 KMS.1603
    400 INVALID_ARGUMENT IAM.0011 IAM.0073 IAM.0102
    404 NOT_FOUND IAM.0004
    403 PERMISSION_DENIED IAM.0002
    400 RESOURCE_EXHAUSTED IAM.0201
    409 ALREADY_EXISTS IAM.0005
    409 FAILED_PRECONDITION IAM.0101
    403 RESOURCE_EXHAUSTED IAM.0103
    403 FAILED_PRECONDITION IAM.0104
    401 UNAUTHENTICATED IAM.0061 IAM.0105
    400 INVALID_ARGUMENT KMS.0212 KMS.0401 KMS.0402 KMS.0403 KMS.0404 KMS.0405 KMS.0406 KMS.0407 KMS.0410
    400 INVALID_ARGUMENT KMS.0411 KMS.0412 KMS.0413 KMS.0414 KMS.0415 KMS.0417 KMS.0418
    400 RESOURCE_EXHAUSTED KMS.0409
    404 NOT_FOUND KMS.0416
    400 FAILED_PRECONDITION KMS.0209 KMS.0210 KMS.0211 KMS.1201 KMS.1301 KMS.1402 KMS.1501
    400 FAILED_PRECONDITION KMS.0339
    400 FAILED_PRECONDITION KMS.0309 KMS.0310 KMS.2601 KMS.2606 KMS.2701 KMS.2702
    400 INVALID_ARGUMENT KMS.0311 KMS.2602 KMS.2603 KMS.2604 KMS.2605 KMS.2608 KMS.2609 KMS.2610
    400 FAILED_PRECONDITION KMS.0312 KMS.0313 KMS.0324 KMS.0338 KMS.0341 KMS.2901
    400 INVALID_ARGUMENT KMS.0329 KMS.2106 KMS.2108
    400 FAILED_PRECONDITION KMS.0325 KMS.0331 KMS.0332 KMS.0334 KMS.0335 KMS.1114 KMS.1115
    400 ALREADY_EXISTS KMS.1104
    400 NOT_FOUND KMS.2502
    400 RESOURCE_EXHAUSTED KMS.1105 KMS.2404
    429 RESOURCE_EXHAUSTED APIGW.0308
    403 PERMISSION_DENIED KMS.0306 IAM.0003 IAM.0082
    401 UNAUTHENTICATED IAM.0001 APIGW.0301
    403 UNAUTHENTICATED KMS.0302 KMS.0303
    403 PERMISSION_DENIED KMS.0305 KMS.0307 KMS.0321 KMS.0330
    404 NOT_FOUND KMS.0207
    503 UNAVAILABLE KMS.0104
    404 UNIMPLEMENTED APIGW.0101
    405 UNIMPLEMENTED KMS.0215
    413 INVALID_ARGUMENT APIGW.0201
    429 RESOURCE_EXHAUSTED APIGW.0308
"""
STATUSES: dict[str, tuple[int, str]] = {
    code: (int(http), status)
    for http, status, *codes in (line.split() for line in _TABLE.split("\n") if line.strip())
    for code in codes
}


def fresh(prefix: str = "key") -> str:
    """An alias that no other test has."""
    return f"{prefix}-{uuid.uuid4().hex}"


def sequence() -> str:
    """36 characters."""
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Refused:
    """A refusal, however it came."""

    code: str
    message: str
    request_id: str


class Refusals:
    """Filled when the block of `refusal` ends."""

    last: Refused


@contextmanager
def refusal(code: str) -> Iterator[Refusals]:
    """The block's gRPC call is refused with this code, its status, a text and a request id."""
    seen = Refusals()
    with pytest.raises(ApiError) as caught:
        yield seen
    error = caught.value
    assert error.code == code, error
    assert error.status is grpc.StatusCode[STATUSES[code][1]], error
    assert error.message
    assert len(error.request_id) == 32
    seen.last = Refused(error.code, error.message, error.request_id)


def refused(answer: Answer, code: str) -> Refused:
    """The REST answer is this refusal, in the error body that its kind has."""
    assert answer.status == STATUSES[code][0], answer.raw
    request_id = answer.headers["X-Request-Id"]
    assert len(request_id) == 32
    assert answer.headers["Content-Type"] == "application/json"
    tree = answer.json
    if code.startswith("IAM."):
        assert set(tree) == {"error"}
        assert set(tree["error"]) == {"code", "message", "title"}
        assert tree["error"]["code"] == answer.status
        message = tree["error"]["message"]
    elif code in ("APIGW.0101", "APIGW.0201", "APIGW.0301", "APIGW.0308", "KMS.0215"):
        assert set(tree) == {"error_code", "error_msg", "request_id"}
        assert (tree["error_code"], tree["request_id"]) == (code, request_id)
        message = tree["error_msg"]
    else:
        assert set(tree) == {"error"}, tree
        assert set(tree["error"]) == {"error_code", "error_msg"}
        assert tree["error"]["error_code"] == code, tree
        message = tree["error"]["error_msg"]
    assert isinstance(message, str)
    assert message
    return Refused(code, message, request_id)


def records(stand: Stand, request_id: str) -> list[dict[str, Any]]:
    """The audit records of one call."""
    found = []
    for file in sorted((stand.dev.data / "audit").glob("*.jsonl")):
        with suppress(FileNotFoundError), file.open() as lines:  # packed since it was listed
            found += [json.loads(line) for line in lines if request_id in line]
    return found


def record(stand: Stand, request_id: str) -> dict[str, Any]:
    """The one audit record of a call."""
    (one,) = records(stand, request_id)
    assert one["request_id"] == request_id
    return one


def snapshot(client: Client) -> list[bytes]:
    """Every key of the project, complete: equal before and after means that nothing changed."""
    return [key.SerializeToString(deterministic=True) for key in client.list_keys()]


def listed(client: Client, **wanted: Any) -> keys_pb2.ListKeysResponse:
    """One page of list-keys."""
    response: keys_pb2.ListKeysResponse = client.keys.ListKeys(keys_pb2.ListKeysRequest(**wanted))
    return response


def all_listed(client: Client, **wanted: Any) -> list[keys_pb2.Key]:
    """What list-keys finds, on all pages: a stand that many tests share has more keys than one page holds."""
    found: list[keys_pb2.Key] = []
    while True:
        page = listed(client, limit=1000, marker=len(found), **wanted)
        found += page.key_details
        if not page.truncated:
            assert page.total == len(found)
            return found


Operation = Callable[[str, object], Answer]
"""A KMS operation over REST: name and body."""


# The calls that name a key, each with what else it needs.
KEY_CALLS: dict[str, Callable[[Client, str], object]] = {
    "describe-key": lambda client, key: client.describe_key(key),
    "disable-key": lambda client, key: client.disable(key),
    "enable-key": lambda client, key: client.enable(key),
    "update-key-alias": lambda client, key: client.rename(key, fresh()),
    "update-key-description": lambda client, key: client.set_description(key, "other"),
    "schedule-key-deletion": lambda client, key: client.schedule_deletion(key, 7),
    "cancel-key-deletion": lambda client, key: client.cancel_deletion(key),
    "encrypt-data": lambda client, key: client.encrypt(key, b"x"),
    "create-datakey": lambda client, key: client.create_data_key(key),
    "encrypt-datakey": lambda client, key: client.encrypt_data_key(key, b"x" * 32),
    "decrypt-datakey": lambda client, key: client.decrypt_data_key(key, b"x" * 140),
    "decrypt-data": lambda client, key: client.decrypt(b"x" * 140, key_id=key),
}


def urn(stand: Stand, alias: str) -> str:
    """The alias as a URN of the development domain."""
    return f"kms:{stand.dev.region}:{stand.dev.domain_id}:alias:{alias}"
