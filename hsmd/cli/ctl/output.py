"""What hsmctl prints: one JSON document for programs, tables for people, messages on standard error."""

from __future__ import annotations

import base64
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from hsmd.printable import clean as clean  # also for the modules beside this one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from google.protobuf.message import Message

_COLOURS = {"ENABLED": "green", "DISABLED": "yellow", "PENDING_DELETION": "red", "connected": "green"}
_WIDE = 1000  # columns where nobody looks: nothing is folded for grep and awk


def document(message: Message) -> dict[str, Any]:
    """A message for programs: every field by its name in proto/, in forms that don't change.

    Enums in the DEW spelling (states by their names in proto/), times in RFC 3339, bytes in hexadecimal
    where DEW has it so, in base64 otherwise, an absent message or time as null.
    """
    return dict(_entry(message, field) for field in message.DESCRIPTOR.fields)


def print_json(value: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """A message for people, on standard error."""
    click.echo(clean(text), err=True)


def base64_text(data: bytes) -> str:
    """Base64 on one line."""
    return base64.b64encode(data).decode()


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line."""
    _print_table((), [(name, _text(value)) for name, value in fields])


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table with a head."""
    _print_table(columns, [[_text(value) for value in row] for row in rows])


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
    table = Table(box=None, pad_edge=False, show_header=bool(columns))
    for name in columns or ("", ""):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(value), style=_COLOURS.get(value, "")) for value in row))
    console.print(table)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _entry(message: Any, field: Any) -> tuple[str, Any]:
    from hsmd.descriptors import field_options

    options = field_options(field)
    if field.is_repeated:
        return field.name, [_value(each, field, options) for each in getattr(message, field.name)]
    if field.message_type is not None and not message.HasField(field.name):
        return field.name, None
    # bytes that DEW writes as text need not be text: DEW's second field has them in base64
    name = options.also.name or field.name
    return name, _value(getattr(message, field.name), field, options)


def _value(value: Any, field: Any, options: Any) -> Any:
    if field.enum_type is not None:
        return _enum(field, value)
    if field.message_type is not None:
        is_time = field.message_type.full_name == "google.protobuf.Timestamp"
        return value.ToJsonString() if is_time else document(value)
    if isinstance(value, bytes):
        return _bytes_form(options)(value)
    return value


def _bytes_form(options: Any) -> Callable[[bytes], str]:
    from hsmd.pb.options.v1 import options_pb2

    if getattr(options, "as") == options_pb2.HEX:
        return bytes.hex
    return lambda value: base64.b64encode(value).decode()


def _enum(field: Any, number: int) -> str:
    from hsmd.pb.options.v1 import options_pb2

    row = field.enum_type.values_by_number.get(number)
    if row is None:  # a newer service knows more
        return str(number)
    options = row.GetOptions()
    if options.HasExtension(options_pb2.value):
        return str(options.Extensions[options_pb2.value].name)
    prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(row.name.removeprefix(prefix))
