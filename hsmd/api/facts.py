"""What conditions of policies may be on, read from a request as its proto declares it."""

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from hsmd.descriptors import field_options, spellings
from hsmd.domain.conditions import fact_name, is_key
from hsmd.domain.facts import NAMES

Tell = Callable[[Any, str], tuple[str, ...]]
_Read = Callable[[Any], tuple[str, ...]]


def facts_of(descriptor: Descriptor) -> Tell:
    """What tells what a message of that type says of a condition's key.

    It looks at no more of texts and lists than may be there, as policies are asked before that is checked.
    Raises ValueError for a key that can't be one, or that is on something else already, or without a bound.
    """
    told: dict[str, list[_Read]] = {}
    for field in descriptor.fields:
        if field_options(field).condition:
            name, read = _told(field)
            told.setdefault(name, []).append(read)

    def tell(message: Any, name: str) -> tuple[str, ...]:
        return tuple(value for read in told.get(name, ()) for value in read(message))

    return tell


def _told(field: FieldDescriptor) -> tuple[str, _Read]:
    options = field_options(field)
    if not is_key(options.condition) or fact_name(options.condition) in NAMES:
        raise ValueError(f"{field.full_name}: {options.condition!r} is no condition key")
    is_text = field.type == FieldDescriptor.TYPE_STRING
    may_be_long = is_text or field.is_repeated
    is_bounded = options.max and not (is_text and field.is_repeated)  # a list's bound is of how many
    if may_be_long and not is_bounded:
        raise ValueError(f"{field.full_name}: conditions may be on what has a bound")
    spell = _spell(field)
    usual = (options.usual,) if options.usual else ()

    def read(message: Any) -> tuple[str, ...]:
        found = getattr(message, field.name)
        if may_be_long:
            found = found[: options.max]
        values = found if field.is_repeated else (found,)
        return tuple(text for each in values if each and (text := spell(each))) or usual

    return fact_name(options.condition), read


def _spell(field: FieldDescriptor) -> Callable[[Any], str]:
    if field.enum_type is None:
        return str
    names = spellings(field.enum_type)
    return lambda number: names.get(number, str(number))
