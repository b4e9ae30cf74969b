"""Fields that DEW knows and hsmd can't honour: sent, they are refused by name, never passed over."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hsmd.client import Client
from hsmd.descriptors import field_options
from hsmd.pb.v1 import crypto_pb2, keys_pb2, recipient_pb2
from tests.calls import fresh, record, refusal, refused, snapshot
from tests.operations import OPERATIONS, RIGHT, SERVED, Wire, World
from tests.specs import Keys
from tests.stand import Stand

# Where DEW, or the SDK's models of its answers, know of enclaves: answers for the enclave alone.
_FOR_ENCLAVES = {
    "create_datakey",
    "create_datakey_without_plaintext",  # shares the request of create-datakey
    "create_ec_datakey_pair",
    "create_random",
    "create_rsa_datakey_pair",
    "decrypt_data",
    "decrypt_datakey",
    "derive_shared_secret",
}
_VALUES: dict[str, tuple[object, ...]] = {
    "recipient": (
        {},
        {"attestation_document": "eA=="},
        {"attestation_document": "eA==", "key_encryption_algorithm": "RSAES_OAEP_SHA_256"},
        {"unknown": 1},
        "x",
        7,
    ),
    "key_spec": ("RSA", "AES_256", "x" * 5000, 7, []),
    "vm_id": ("x", "0" * 36, "x" * 5000, 7, {}),
}


def _refused_fields() -> Iterator[tuple[str, str]]:
    for name in SERVED:
        route = OPERATIONS[name].route
        assert route is not None
        for field in route.method.input_type.fields:
            if field_options(field).refused:
                yield name, field.name


REFUSED = sorted(_refused_fields())


def test_which_fields_they_are() -> None:
    assert {name for name, field in REFUSED if field == "recipient"} == _FOR_ENCLAVES
    others = {(name, field) for name, field in REFUSED if field != "recipient"}
    assert others == {("create_key", "vm_id"), ("encrypt_datakey", "key_spec")}
    for name, operation in OPERATIONS.items():
        for field in ("recipient", "vm_id"):
            if field in operation.body_fields:
                assert (name, field) in REFUSED


@pytest.mark.parametrize(("name", "field"), REFUSED)
def test_refused(stand: Stand, client: Client, keys: Keys, tmp_path: Path, name: str, field: str) -> None:
    world = World(stand, client, keys, tmp_path)
    wire, right = Wire(stand), RIGHT[name](world)
    before = snapshot(client)
    for value in _VALUES[field]:
        seen = refused(wire.call(OPERATIONS[name], {**right, field: value}), "KMS.0308")
        assert field in seen.message
    assert snapshot(client) == before
    answer = wire.call(OPERATIONS[name], {**right, field: None})
    assert answer.status == 200, answer.raw


def test_refused_over_grpc(stand: Stand, client: Client, keys: Keys) -> None:
    recipient = recipient_pb2.Recipient()
    with refusal("KMS.0308") as seen:
        client.crypto.GenRandom(crypto_pb2.GenRandomRequest(random_data_length=64, recipient=recipient))
    assert "recipient" in seen.last.message
    assert record(stand, seen.last.request_id)["result"] == "KMS.0308"
    with refusal("KMS.0308") as seen:
        client.keys.CreateKey(keys_pb2.CreateKeyRequest(key_alias=fresh(), vm_id="x"))
    assert "vm_id" in seen.last.message
    assert client.keys.CreateKey(keys_pb2.CreateKeyRequest(key_alias=fresh(), vm_id="")).key_info.key_id
    key = keys("AES_256")
    blob = client.encrypt(key, b"x")
    with refusal("KMS.0308"):
        client.crypto.DecryptData(crypto_pb2.DecryptDataRequest(cipher_text=blob, recipient=recipient))
