"""docs/permissions.md: its tables are those of the product, and what it says by hand is so."""

import json
import re
import runpy
import uuid
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from hsmd.api.facts import facts_of
from hsmd.api.methods import methods_of
from hsmd.descriptors import all_services
from hsmd.domain import documents
from hsmd.pb.options.v1 import options_pb2

# The stubs of protobuf and of generated code disagree on extensions.
METHOD: Any = options_pb2.method
FIELD: Any = options_pb2.field
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "permissions.md"


def test_the_tables_are_those_of_the_product() -> None:
    text = PAGE.read_text()
    assert runpy.run_path(str(ROOT / "scripts" / "permissions.py"))["page"](text) == text


def test_every_method_stands_there() -> None:
    text = PAGE.read_text()
    for service in all_services():
        for descriptor, method in methods_of(service):
            (line,) = re.findall(
                rf"\| {descriptor.name} \|.*", text.split(f"**{service.name}**")[1].split("**")[0]
            )
            assert method.action in line


def test_its_policy_is_one() -> None:
    (policy,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert documents.compiled(json.dumps(json.loads(policy)))


def test_the_actions_of_dew_are_all_there() -> None:
    table = ROOT / ".." / "shared" / "dew" / "iam-actions.tsv"
    if not table.exists():
        pytest.skip("the tables of DEW are not at hand")
    wanted = {line.split("\t")[0] for line in table.read_text().splitlines()[1:]}
    declared = {method.action for service in all_services() for _, method in methods_of(service)}
    assert wanted <= declared


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (options_pb2.Method(event="e"), "needs an action"),
        (options_pb2.Method(event="e", access=options_pb2.PARTY), "needs an action"),
        (options_pb2.Method(event="e", action="kms:cmk"), "service:type:operation"),
        (options_pb2.Method(event="e", action="kms:cmk:get*"), "service:type:operation"),
        (options_pb2.Method(event="e", action="kms:cmk:get", access=options_pb2.OPEN), "must have none"),
        (options_pb2.Method(action="kms:cmk:get"), "event is missing"),
    ],
)
def test_a_method_without_its_action_stops_the_start(options: options_pb2.Method, told: str) -> None:
    package = f"hsmd_test_{uuid.uuid4().hex}"
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    file.message_type.add(name="Nothing")
    method = file.service.add(name="S").method.add(name="M")
    method.input_type = method.output_type = f".{package}.Nothing"
    method.options.Extensions[METHOD].CopyFrom(options)
    pool: Any = descriptor_pool.Default()  # the one that knows our options
    pool.AddSerializedFile(file.SerializeToString())
    with pytest.raises(ValueError, match=told):
        list(methods_of(pool.FindServiceByName(f"{package}.S")))


@pytest.mark.parametrize(
    ("kind", "label", "most", "value", "seen"),
    [
        (FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.LABEL_OPTIONAL, 4, "x" * 99, ("xxxx",)),
        (FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.LABEL_OPTIONAL, 0, "", None),
        (FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.LABEL_REPEATED, 4, [], None),
        (FieldDescriptorProto.TYPE_INT32, FieldDescriptorProto.LABEL_REPEATED, 2, [7] * 99, ("7", "7")),
        (FieldDescriptorProto.TYPE_INT32, FieldDescriptorProto.LABEL_REPEATED, 0, [], None),
        (FieldDescriptorProto.TYPE_INT32, FieldDescriptorProto.LABEL_OPTIONAL, 0, 7, ("7",)),
    ],
)
def test_policies_look_at_no_more_of_a_request_than_may_be_there(
    kind: FieldDescriptorProto.Type,
    label: FieldDescriptorProto.Label,
    most: int,
    value: object,
    seen: tuple[str, ...] | None,
) -> None:
    """They are asked before it is checked; and a pattern can take long with each of a million characters."""
    package = f"hsmd_test_{uuid.uuid4().hex}"
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    field = file.message_type.add(name="M").field.add(name="a", number=1, type=kind, label=label)
    field.options.Extensions[FIELD].CopyFrom(options_pb2.Field(condition="kms:A", max=most))
    pool: Any = descriptor_pool.Default()  # the one that knows our options
    pool.AddSerializedFile(file.SerializeToString())
    message = pool.FindMessageTypeByName(f"{package}.M")
    if seen is None:
        with pytest.raises(ValueError, match="a bound"):
            facts_of(message)
    else:
        assert facts_of(message)(message_factory.GetMessageClass(message)(a=value), "kms:a") == seen
