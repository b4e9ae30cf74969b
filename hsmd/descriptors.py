"""What our descriptors declare, read in one place: services, methods, HTTP rules, field and enum options."""

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import Any

from google.api import annotations_pb2
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    EnumValueDescriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)

from hsmd.pb import v1
from hsmd.pb.options.v1 import options_pb2

TIMESTAMP = "google.protobuf.Timestamp"


class DescriptionError(Exception):
    """The proto files describe something that can't be served over REST; the gateway does not start."""


@cache
def all_services() -> tuple[ServiceDescriptor, ...]:
    """Every service of hsmd.v1, ordered by name."""
    found: list[ServiceDescriptor] = []
    for module in pkgutil.iter_modules(v1.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"{v1.__name__}.{module.name}").DESCRIPTOR
            found.extend(file.services_by_name.values())
    return tuple(sorted(found, key=lambda service: service.full_name))


def services() -> tuple[ServiceDescriptor, ...]:
    """Those of the door for everybody, ordered by name."""
    return tuple(each for each in all_services() if not is_for_administrators(each))


def is_for_administrators(service: ServiceDescriptor) -> bool:
    """Whether the service is at the administrators' door, where UKeys say who calls."""
    return any(method_options(method).access == options_pb2.ADMIN for method in service.methods)


def service_options(service: ServiceDescriptor) -> options_pb2.Service:
    """The service's own options; all at their defaults when it declares none."""
    found: options_pb2.Service = _extensions(service)[options_pb2.service]
    return found


def method_options(method: MethodDescriptor) -> options_pb2.Method:
    """The method's own options."""
    found: options_pb2.Method = _extensions(method)[options_pb2.method]
    return found


def field_options(field: FieldDescriptor) -> options_pb2.Field:
    """The field's own options."""
    found: options_pb2.Field = _extensions(field)[options_pb2.field]
    return found


def form_of(options: options_pb2.Field | options_pb2.Also) -> int:
    """The declared form, a number of enum Form."""
    form: int = getattr(options, "as")  # a keyword can not be written as an attribute
    return form


def json_name(field: FieldDescriptor) -> str:
    """What the field is called in JSON: DEW's name, which is the field's own unless declared."""
    return field_options(field).name or field.name


def redacted(field: FieldDescriptor) -> bool:
    """Whether values of the field must not be shown anywhere."""
    return bool(field.GetOptions().debug_redact)


def enum_name(value: EnumValueDescriptor) -> str:
    """The DEW spelling of an enum value, the proto's own when none is declared ("" may be declared)."""
    extensions = _extensions(value)
    return str(extensions[options_pb2.value].name) if options_pb2.value in extensions else value.name


def spellings(enum: EnumDescriptor) -> dict[int, str]:
    """The declared DEW spelling of each number; "" where none is declared."""
    return {each.number: _extensions(each)[options_pb2.value].name for each in enum.values}


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a map<K, V>."""
    return field.type == FieldDescriptor.TYPE_MESSAGE and bool(message_type(field).GetOptions().map_entry)


def message_type(field: FieldDescriptor) -> Descriptor:
    """The type of a field that holds messages."""
    if field.message_type is None:
        raise TypeError(f"{field.full_name} holds no messages")
    return field.message_type


def enum_type(field: FieldDescriptor) -> EnumDescriptor:
    """The type of a field that holds enum values."""
    if field.enum_type is None:
        raise TypeError(f"{field.full_name} holds no enum values")
    return field.enum_type


def holds_message(field: FieldDescriptor) -> bool:
    """Whether the field holds messages with members, which a Timestamp is not in JSON."""
    return field.type == FieldDescriptor.TYPE_MESSAGE and message_type(field).full_name != TIMESTAMP


def _extensions(descriptor: Any) -> Any:
    return descriptor.GetOptions().Extensions  # the stubs know extensions of generated options only


def http_rules(method: MethodDescriptor) -> Iterator[tuple[str, str, Any]]:
    """(verb, path template, rule) for each binding of the method; none for a method without a route."""
    extensions = _extensions(method)
    if annotations_pb2.http not in extensions:
        return
    first = extensions[annotations_pb2.http]
    for rule in (first, *first.additional_bindings):
        kind = rule.WhichOneof("pattern")
        if kind is None:
            raise DescriptionError(f"{method.full_name}: a google.api.http rule without a path")
        if kind == "custom":
            yield rule.custom.kind.upper(), rule.custom.path, rule
        else:
            yield kind.upper(), getattr(rule, kind), rule
