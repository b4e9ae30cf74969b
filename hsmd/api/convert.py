"""Between the API's messages and the domain's values: the few shapes that several servicers share."""

from typing import Any

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.timestamp_pb2 import Timestamp

from hsmd.pb.options.v1 import options_pb2


class Spelling:
    """An enum's DEW spellings, both ways; a number that has none is spelled as that number."""

    def __init__(self, enum: EnumTypeWrapper) -> None:
        value: Any = options_pb2.value  # the stubs of protobuf and of generated code disagree on extensions
        self._names: dict[int, str] = {
            each.number: each.GetOptions().Extensions[value].name for each in enum.DESCRIPTOR.values
        }
        self._numbers = {name: number for number, name in self._names.items()}

    def name(self, number: int) -> str:
        """The DEW spelling; "" for unspecified."""
        return self._names.get(number, str(number))

    def number(self, name: str) -> int:
        """The enum's number. Raises KeyError for a name that the API lacks."""
        return self._numbers[name]


def timestamp(millis: int | None) -> Timestamp | None:
    """Milliseconds since 1970 as a message; None stays None (an unset field)."""
    if millis is None:
        return None
    return Timestamp(seconds=millis // 1000, nanos=millis % 1000 * 1_000_000)
