"""What conditions of policies may be on, read from a request as its proto declares it."""

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from hsmd.descriptors import field_options, spellings
from hsmd.domain.conditions import Told, fact_name, is_key

Tell = Callable[[Any], Told]


def facts_of(descriptor: Descriptor) -> Tell:
    """What the message type's fields say, by condition key. Raises ValueError for a key that can't be one."""
    told = [_told(field) for field in descriptor.fields if field_options(field).condition]

    def tell(message: Any) -> Told:
        facts: dict[str, tuple[str, ...]] = {}
        for name, read in told:
            facts[name] = facts.get(name, ()) + read(message)
        return facts

    return tell


def _told(field: FieldDescriptor) -> tuple[str, Callable[[Any], tuple[str, ...]]]:
    options = field_options(field)
    if not is_key(options.condition):
        raise ValueError(f"{field.full_name}: {options.condition!r} is no condition key")
    spell = _spell(field)
    usual = (options.usual,) if options.usual else ()

    def read(message: Any) -> tuple[str, ...]:
        found = getattr(message, field.name)
        values = found if field.is_repeated else (found,)
        return tuple(text for each in values if each and (text := spell(each))) or usual

    return fact_name(options.condition), read


def _spell(field: FieldDescriptor) -> Callable[[Any], str]:
    if field.enum_type is None:
        return str
    names = spellings(field.enum_type)
    return lambda number: names.get(number, str(number))
