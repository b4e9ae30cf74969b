"""Every method of the official SDK's client, called for real, its answer held to the SDK's own types."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest

from hsmd.client import Client
from hsmd.descriptors import json_name
from tests.operations import OPERATIONS, RIGHT, SERVED, World
from tests.regions import make_world
from tests.specs import Keys
from tests.stand import Stand
from tests.test_sdk import checked

# Methods of the client that are no operation, each with the reason why it is not called here.
_NO_OPERATIONS = {
    "new_builder": "makes the client: every test here has one by it",
    "call_api": "the way of every method to the wire",
}
# What an answer may lack although the SDK knows it.
_ABSENT = frozenset(
    [
        "CreateDatakeyCapsuleResponse.datakey_cipher",  # for a request with a public key
        "CreateEcDatakeyPairResponse.ciphertext_recipient",  # for an enclave's request, which is refused
        "CreateEcDatakeyPairResponse.wrapped_private_key",  # for a request with a PIN
        "CreateRsaDatakeyPairResponse.ciphertext_recipient",
        "CreateRsaDatakeyPairResponse.wrapped_private_key",
        "DecryptDatakeyCapsuleResponse.datakey_cipher",
        "DeriveSharedSecretResponse.ciphertext_recipient",
    ]
)


@pytest.fixture(scope="module")
def sdk(stand: Stand) -> kms.KmsClient:
    return stand.sdk()


@pytest.fixture
def world(stand: Stand, client: Client, keys: Keys, tmp_path: Path) -> World:
    return World(stand, client, keys, tmp_path)


def test_every_method_of_the_client_is_called_or_listed() -> None:
    own = {name for name in vars(kms.KmsClient) if not name.startswith("_")}
    methods = {name for name in own if callable(getattr(kms.KmsClient, name))}
    called = {each for name in OPERATIONS for each in (name, f"{name}_invoker")}
    assert methods - called == set(_NO_OPERATIONS)
    assert len(OPERATIONS) >= 75
    assert all(not inspect.iscoroutinefunction(getattr(kms.KmsClient, name)) for name in methods)


def test_every_operation_is_served() -> None:
    assert set(OPERATIONS) == set(SERVED)
    assert set(RIGHT) == set(SERVED), "each operation has a right call in tests/operations.py"


_ELSEWHERE = ("replicate_key", "update_primary_region")


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stand, Stand]]:
    """Two regions, of which the first is called."""
    made = make_world(tmp_path_factory.mktemp("regions"), ("here-1", "there-1"))
    try:
        made["here-1"].start()
        made["there-1"].start(gateway=False)
        yield made["here-1"], made["there-1"]
    finally:
        made.stop()


def _called(sdk: kms.KmsClient, world: World, name: str) -> None:
    operation = OPERATIONS[name]
    answer = getattr(sdk, name)(operation.sdk_request(RIGHT[name](world)))
    assert answer.status_code in (200, 201, 204)
    checked(answer, absent=_ABSENT)
    invoker = getattr(sdk, f"{name}_invoker")(operation.sdk_request(RIGHT[name](world)))
    assert invoker.invoke().status_code == answer.status_code


@pytest.mark.parametrize("name", [name for name in SERVED if name not in _ELSEWHERE])
def test_called(sdk: kms.KmsClient, world: World, name: str) -> None:
    _called(sdk, world, name)


@pytest.mark.parametrize("name", _ELSEWHERE)
def test_called_for_another_region(
    regions: tuple[Stand, Stand], keys: Keys, tmp_path: Path, name: str
) -> None:
    here, there = regions
    with here.client() as client:
        _called(here.sdk(), World(here, client, keys, tmp_path, there=there), name)


@pytest.mark.parametrize("name", SERVED)
def test_every_field_of_the_sdk_is_known(name: str) -> None:
    """A field that is not known would be passed over; one that can't be honoured is refused instead."""
    operation = OPERATIONS[name]
    assert operation.route is not None
    message = operation.route.method.input_type
    known = {json_name(field): field for field in message.fields}
    assert {*operation.variables, *operation.query} <= known.keys()
    if operation.body:
        _check_known(operation.body, message)


def _check_known(model: Any, message: Any) -> None:
    known = {json_name(field): field for field in message.fields}
    for attribute, name in model.attribute_map.items():
        assert name in known, f"{model.__name__}.{name} would be passed over"
        kind = re.sub(r"list\[(\w+)\]", r"\1", model.openapi_types[attribute])
        if inner := getattr(kms, kind, None):
            _check_known(inner, known[name].message_type)
