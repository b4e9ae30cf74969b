"""docs/permissions.md: its tables are those of the product, and what it says by hand is so."""

import json
import re
import runpy
import uuid
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from hsmd.api.methods import methods_of
from hsmd.descriptors import all_services
from hsmd.domain import documents
from hsmd.pb.options.v1 import options_pb2

METHOD: Any = options_pb2.method  # the stubs of protobuf and of generated code disagree on extensions
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
