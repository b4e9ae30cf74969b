"""JSON text from outside, within bounds: UTF-8, no duplicate members, no NaN, bounded depth and count."""

import json
from typing import Any, NoReturn

DEPTH = 32  # objects and lists within each other
VALUES = 100_000  # members and items in one body: no DEW body comes near it


class NotJsonError(Exception):
    """The text is not JSON that is accepted here; the message says why and quotes nothing of it."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise NotJsonError("an object names a member twice")
    return tree


def _constant(name: str) -> NoReturn:
    raise NotJsonError(f"{name} is not a JSON number")


_decode = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant).decode


def parse(body: bytes) -> Any:
    """The value of a JSON text; None for an empty one. Raises NotJsonError."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJsonError("it is not UTF-8") from error
    openings = text.count("{") + text.count("[")
    if openings + text.count(",") > VALUES:
        raise NotJsonError(f"it may hold more than {VALUES} values")
    if not text or text.isspace():
        return None
    try:
        tree = _decode(text)
    except json.JSONDecodeError as error:
        raise NotJsonError(f"{error.msg} (line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise NotJsonError(f"it is nested deeper than {DEPTH} levels") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise NotJsonError("a number is too long") from error
    if openings > DEPTH:  # only then can it be too deep
        _check_depth(tree)
    return tree


def _check_depth(tree: Any) -> None:
    level = [tree]
    for _ in range(DEPTH):
        inner: list[Any] = []
        for value in level:
            if type(value) is dict:
                inner.extend(value.values())
            elif type(value) is list:
                inner.extend(value)
        if not inner:
            return
        level = inner
    if any(type(value) in (dict, list) for value in level):
        raise NotJsonError(f"it is nested deeper than {DEPTH} levels")
