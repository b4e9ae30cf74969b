"""Messages to JSON values: exactly the DEW types, compiled once a message type into closures.

Zero values are written, unset messages left out; an unset date is "" (MILLIS_STRING) or null (MILLIS).
"""

import binascii
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from hsmd.descriptors import (
    DescriptionError,
    enum_name,
    enum_type,
    field_options,
    form_of,
    holds_message,
    is_map,
    json_name,
    message_type,
)
from hsmd.gateway.readers import INTEGERS
from hsmd.pb.options.v1 import options_pb2 as forms

Write = Callable[[Any], Any]
"""From a field's value to what json.dumps takes."""

_LEFT_OUT = object()


def _same(value: Any) -> Any:
    return value


def _hex(value: bytes) -> str:
    return value.hex()


def _base64(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _boolean_text(value: bool) -> str:
    return "true" if value else "false"


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _millis(value: Timestamp) -> int:
    return value.seconds * 1000 + value.nanos // 1_000_000


def _millis_text(value: Timestamp) -> str:
    return str(_millis(value))


def _iso(value: Timestamp) -> str:
    day = datetime.fromtimestamp(value.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{day}.{value.nanos // 1000:06d}Z"


def _enum(enum: EnumDescriptor) -> Write:
    names = {value.number: enum_name(value) for value in enum.values}
    return lambda number: names.get(number, "")  # a value that only a newer daemon knows


_SCALARS: dict[tuple[int, int], Write] = {
    (FieldDescriptor.TYPE_STRING, forms.PLAIN): _same,
    (FieldDescriptor.TYPE_STRING, forms.WORD): _same,
    (FieldDescriptor.TYPE_STRING, forms.JSON): json.loads,
    (FieldDescriptor.TYPE_BOOL, forms.PLAIN): _same,
    (FieldDescriptor.TYPE_BOOL, forms.BOOL_STRING): _boolean_text,
    (FieldDescriptor.TYPE_BOOL, forms.FLAG_STRING): _flag,
    (FieldDescriptor.TYPE_BYTES, forms.HEX): _hex,
    (FieldDescriptor.TYPE_BYTES, forms.BASE64): _base64,
    (FieldDescriptor.TYPE_BYTES, forms.TEXT): _text,
    (FieldDescriptor.TYPE_MESSAGE, forms.MILLIS): _millis,
    (FieldDescriptor.TYPE_MESSAGE, forms.MILLIS_STRING): _millis_text,
    (FieldDescriptor.TYPE_MESSAGE, forms.ISO_TIME): _iso,
    (FieldDescriptor.TYPE_ENUM, forms.ENUM_NUMBER): str,
    (FieldDescriptor.TYPE_ENUM, forms.ENUM_INTEGER): int,
}
_ABSENT: dict[int, Any] = {forms.MILLIS_STRING: "", forms.MILLIS: None}


class Writers:
    """Compiles message types, each once; types may hold themselves."""

    def __init__(self) -> None:
        self._messages: dict[str, Write] = {}

    def message(self, descriptor: Descriptor) -> Callable[[Message], dict[str, Any]]:
        """The writer of a message type; fields that travel in headers are left out."""
        known = self._messages.get(descriptor.full_name)
        if known is not None:
            return known
        steps: list[tuple[str, str, Write, bool, Any]] = []
        whole = _message(steps)
        self._messages[descriptor.full_name] = whole  # before its fields: recursion ends here
        for field in descriptor.fields:
            options = field_options(field)
            if not options.header:
                steps.append(self._step(field, json_name(field), form_of(options)))
            if options.HasField("also"):
                steps.append(self._step(field, options.also.name, form_of(options.also)))
        return whole

    def _step(self, field: FieldDescriptor, name: str, form: int) -> tuple[str, str, Write, bool, Any]:
        return name, field.name, self.field(field, form), field.has_presence, _ABSENT.get(form, _LEFT_OUT)

    def field(self, field: FieldDescriptor, form: int) -> Write:
        """The writer of one field in a form."""
        if is_map(field):
            write = self._value(message_type(field).fields_by_name["value"], forms.PLAIN)
            return lambda value: {str(name): write(each) for name, each in value.items()}
        write = self._value(field, form)
        if field.is_repeated:
            return list if write is _same else lambda value: [write(each) for each in value]
        return write

    def _value(self, field: FieldDescriptor, form: int) -> Write:
        if holds_message(field):
            return self.message(message_type(field))
        if field.type in INTEGERS and form in (forms.PLAIN, forms.INT_STRING):
            return str if form == forms.INT_STRING else _same
        if field.type == FieldDescriptor.TYPE_ENUM and form == forms.PLAIN:
            return _enum(enum_type(field))
        write = _SCALARS.get((field.type, form))
        if write is None:
            raise DescriptionError(f"{field.full_name}: {forms.Form.Name(form)} does not fit its type")
        return write


def _message(steps: list[tuple[str, str, Write, bool, Any]]) -> Callable[[Message], dict[str, Any]]:
    def write(message: Message) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for name, attribute, convert, may_lack, absent in steps:
            if not may_lack or message.HasField(attribute):
                tree[name] = convert(getattr(message, attribute))
            elif absent is not _LEFT_OUT:
                tree[name] = absent
        return tree

    return write
