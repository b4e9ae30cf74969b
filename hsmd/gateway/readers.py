"""JSON values to messages: one closure a field, compiled once a message type, lenient as real clients need.

A number may stand where a numeric string is due and the reverse, null is absent, unknown members are
ignored. What is wrong comes out as `UnreadableError`, which becomes the field's own fault.
"""

import binascii
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
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
    redacted,
)
from hsmd.errors import BY_CODE, PARAMETER_INVALID, PARAMETER_MISSING, Error, Fault
from hsmd.pb.options.v1 import options_pb2 as forms

Read = Callable[[Any], Any]
"""From a JSON value (never null) to what the message's constructor takes; raises UnreadableError."""

_LAST_MILLI = 253_402_300_799_999  # the end of 9999, where Timestamp ends
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIGITS = re.compile(r"-?[0-9]{1,20}")
_SHOWN = 40  # characters of a refused value that are shown
_NOTHING = object()

INTEGERS: dict[int, tuple[int, int]] = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


class UnreadableError(Exception):
    """A value that can't be read: what would be right, where, and the fault it is.

    `value` is shown in the text, shortened, unless a field on its path is redacted.
    """

    def __init__(self, due: str, value: object = _NOTHING, fault: Fault | None = None) -> None:
        super().__init__(due)
        self.due = due
        self.value = value
        self.fault = fault
        self.path = ""

    def inside(self, name: str, fault: Fault | None, *, hidden: bool) -> None:
        """Note the field that holds the value; the innermost field's fault counts."""
        if not self.path or self.path.startswith("["):
            self.path = name + self.path
        else:
            self.path = f"{name}.{self.path}"
        self.fault = self.fault or fault
        if hidden:
            self.value = _NOTHING

    def error(self) -> Error:
        """The fault for the caller."""
        return Error(self.fault or PARAMETER_INVALID, name=self.path, reason=self.reason())

    def reason(self) -> str:
        """What would be right and, where that may be shown, what was there."""
        if self.value is _NOTHING or isinstance(self.value, dict | list):
            return self.due
        shown = json.dumps(self.value)
        return f"{self.due}, not {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}"


def _text(value: Any) -> str:
    if type(value) is not str:
        raise UnreadableError("a string is due", value)
    if not value.isascii():
        _utf8(value)
    return value


def _word(value: Any) -> str:
    return str(value) if type(value) is int else _text(value)


def _json(value: Any) -> str:
    """The value as a text of its own, as short as can be."""
    return _text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _utf8(value: Any) -> bytes:
    if type(value) is not str:
        raise UnreadableError("a string is due", value)
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        raise UnreadableError("valid Unicode is due") from None


def _hex(value: Any) -> bytes:
    if type(value) is not str:
        raise UnreadableError("a string of hex digits is due", value)
    try:
        return binascii.unhexlify(value)
    except ValueError:
        raise UnreadableError("an even number of hex digits is due", value) from None


def _base64(value: Any) -> bytes:
    if type(value) is not str:
        raise UnreadableError("a base64 string is due", value)
    try:
        return binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        raise UnreadableError("base64 (RFC 4648, with padding) is due", value) from None


def _whole(low: int, high: int) -> Read:
    due = f"a whole number from {low} to {high} is due"

    def read(value: Any) -> int:
        number = value
        if (type(value) is str and _DIGITS.fullmatch(value)) or (type(value) is float and value.is_integer()):
            number = int(value)
        if type(number) is not int or not low <= number <= high:
            raise UnreadableError(due, value)
        return number

    return read


def _boolean(value: Any) -> bool:
    if type(value) is bool:
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise UnreadableError("true or false is due", value)


def _flag(value: Any) -> bool:
    if type(value) is not bool and type(value) in (str, int) and str(value) in ("0", "1"):
        return str(value) == "1"
    try:
        return _boolean(value)
    except UnreadableError:
        raise UnreadableError('"1" or "0" is due', value) from None


_milli = _whole(0, _LAST_MILLI)


def _millis(value: Any) -> Timestamp | None:
    if value == "":
        return None
    number = _milli(value)
    return Timestamp(seconds=number // 1000, nanos=number % 1000 * 1_000_000)


def _iso(value: Any) -> Timestamp:
    due = "a time such as 2019-02-13T06:52:13.855000Z is due"
    if type(value) is not str:
        raise UnreadableError(due, value)
    try:
        time = datetime.fromisoformat(value)
        since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH
    except (ValueError, OverflowError):
        raise UnreadableError(due, value) from None
    return Timestamp(seconds=since.days * 86400 + since.seconds, nanos=since.microseconds * 1000)


def _enum(enum: EnumDescriptor) -> Read:
    numbers: dict[str, int] = {enum_name(value): value.number for value in enum.values}
    return _named(numbers, "one of " + ", ".join(name for name in numbers if name) + " is due")


def _enum_number(enum: EnumDescriptor) -> Read:
    numbers = {str(value.number): value.number for value in enum.values if value.number}
    named = _named({"": 0, **numbers}, "one of " + ", ".join(numbers) + " is due")
    return lambda value: named(str(value) if type(value) is int else value)


def _named(numbers: Mapping[str, int], due: str) -> Read:
    def read(value: Any) -> int:
        number = numbers.get(value) if type(value) is str else None
        if number is None:
            raise UnreadableError(due, value)
        return number

    return read


def _bounded(read: Read, most: int, unit: str) -> Read:
    def check(value: Any) -> Any:
        found = read(value)
        if len(found) > most:
            raise UnreadableError(f"at most {most} {unit} are due")
        return found

    return check


def _list(read: Read) -> Read:
    def read_list(value: Any) -> list[Any]:
        if type(value) is not list:
            raise UnreadableError("a list is due")
        found = []
        try:
            for each in value:
                found.append(read(each))
        except UnreadableError as error:
            error.inside(f"[{len(found)}]", None, hidden=False)
            raise
        return found

    return read_list


def _map(key: Read, read: Read) -> Read:
    def read_map(value: Any) -> dict[Any, Any]:
        if type(value) is not dict:
            raise UnreadableError("an object is due")
        return {key(name): read(each) for name, each in value.items()}

    return read_map


class Readers:
    """Compiles message types, each once; types may hold themselves."""

    def __init__(self) -> None:
        self._messages: dict[str, Read] = {}

    def message(self, descriptor: Descriptor) -> Callable[[Any], Message]:
        """The reader of a message type; the message is built from an object's members."""
        known = self._messages.get(descriptor.full_name)
        if known is not None:
            return known
        table: dict[str, tuple[str, Read]] = {}
        fields = {json_name(field): field for field in descriptor.fields}
        whole = _message(descriptor, table, fields)
        self._messages[descriptor.full_name] = whole  # before its fields: recursion ends here
        table.update({name: (field.name, self.field(field)) for name, field in fields.items()})
        return whole

    def field(self, field: FieldDescriptor) -> Read:
        """The reader of one field as it stands in JSON."""
        options = field_options(field)
        if is_map(field):
            entry = message_type(field).fields_by_name
            read = _map(self._value(entry["key"]), self._value(entry["value"]))
            unit = "entries"
        elif field.is_repeated:
            read = _list(self._value(field))
            unit = "items"
        else:
            read = self._value(field)
            unit = "bytes" if field.type == FieldDescriptor.TYPE_BYTES else "characters"
        return _bounded(read, options.max, unit) if options.max else read

    def _value(self, field: FieldDescriptor) -> Read:
        form = form_of(field_options(field))
        if holds_message(field):
            return self.message(message_type(field))
        read = _scalar(field, form)
        if read is None:
            raise DescriptionError(f"{field.full_name}: {forms.Form.Name(form)} does not fit its type")
        return read


def _scalar(field: FieldDescriptor, form: int) -> Read | None:
    kind = field.type
    if kind in INTEGERS:
        return _whole(*INTEGERS[kind]) if form in (forms.PLAIN, forms.INT_STRING) else None
    if kind == FieldDescriptor.TYPE_ENUM:
        enums: dict[int, Callable[[EnumDescriptor], Read]] = {
            forms.PLAIN: _enum,
            forms.ENUM_NUMBER: _enum_number,
            forms.ENUM_INTEGER: _enum_number,
        }
        return enums[form](enum_type(field)) if form in enums else None
    readers: dict[tuple[int, int], Read] = {
        (FieldDescriptor.TYPE_STRING, forms.PLAIN): _text,
        (FieldDescriptor.TYPE_STRING, forms.WORD): _word,
        (FieldDescriptor.TYPE_STRING, forms.JSON): _json,
        (FieldDescriptor.TYPE_BOOL, forms.PLAIN): _boolean,
        (FieldDescriptor.TYPE_BOOL, forms.BOOL_STRING): _boolean,
        (FieldDescriptor.TYPE_BOOL, forms.FLAG_STRING): _flag,
        (FieldDescriptor.TYPE_BYTES, forms.HEX): _hex,
        (FieldDescriptor.TYPE_BYTES, forms.BASE64): _base64,
        (FieldDescriptor.TYPE_BYTES, forms.TEXT): _utf8,
        (FieldDescriptor.TYPE_MESSAGE, forms.MILLIS): _millis,
        (FieldDescriptor.TYPE_MESSAGE, forms.MILLIS_STRING): _millis,
        (FieldDescriptor.TYPE_MESSAGE, forms.ISO_TIME): _iso,
    }
    return readers.get((kind, form))


def fault_of(field: FieldDescriptor) -> Fault | None:
    """The fault that the field declares, checked to be one that takes a name and a reason."""
    code = field_options(field).fault
    if not code:
        return None
    if code not in BY_CODE:
        raise DescriptionError(f"{field.full_name}: no fault has the code {code}")
    try:
        Error(BY_CODE[code], name="", reason="")
    except KeyError as error:
        raise DescriptionError(f"{field.full_name}: the text of {code} wants {error}") from error
    return BY_CODE[code]


def _message(
    descriptor: Descriptor, table: Mapping[str, tuple[str, Read]], fields: Mapping[str, FieldDescriptor]
) -> Read:
    build = GetMessageClass(descriptor)
    context = {name: (fault_of(field), redacted(field)) for name, field in fields.items()}
    required = [(name, field.name) for name, field in fields.items() if field_options(field).required]
    present = {field.name for field in descriptor.fields if field.has_presence}

    def read(tree: Any) -> Message:
        if type(tree) is not dict:
            raise UnreadableError("an object is due")
        values: dict[str, Any] = {}
        name = ""
        try:
            for name, value in tree.items():
                entry = table.get(name)
                if entry is not None and value is not None:
                    values[entry[0]] = entry[1](value)
        except UnreadableError as error:
            fault, hidden = context[name]
            error.inside(name, fault, hidden=hidden)
            raise
        for name, attribute in required:
            value = values.get(attribute)
            if value is None or (not value and attribute not in present):
                missing = UnreadableError("it is missing", fault=PARAMETER_MISSING)
                missing.inside(name, None, hidden=True)
                raise missing
        return build(**values)

    return read
