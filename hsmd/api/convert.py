"""Between the API's messages and the domain's values: the few shapes that several servicers share."""

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.timestamp_pb2 import Timestamp

from hsmd.descriptors import spellings


class Spelling:
    """An enum's DEW spellings, both ways; a number that has none is spelled as that number."""

    def __init__(self, enum: EnumTypeWrapper) -> None:
        self._names = spellings(enum.DESCRIPTOR)
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
