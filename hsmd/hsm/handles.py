"""What callers hold for an object in the token: numbers of ours, never used twice.

A token is free to give a destroyed object's handle to another object, and then a thread that still holds
it would use another key. SoftHSM2 besides answers with all kinds of faults (CKR_KEY_TYPE_INCONSISTENT,
CKR_MECHANISM_INVALID, ...) when an object goes while another thread uses it. So a number that is withdrawn
is refused from then on, and its object goes when no thread is using it any more.
"""

from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True, slots=True)
class Handle:
    """An object in the token, good for one connection. Nothing secret; worth nothing elsewhere."""

    generation: int
    value: int


class Handles:
    """The objects of one connection. Single dict and list operations need no lock."""

    def __init__(self, generation: int) -> None:
        self.objects: dict[int, int] = {}  # number → the token's handle
        self.withdrawn: list[tuple[Handle, int]] = []  # still in use somewhere, to be destroyed
        self._generation = generation
        self._numbers = count(1)

    def admit(self, token_handle: int) -> Handle:
        """Give the object a number."""
        handle = Handle(self._generation, next(self._numbers))
        self.objects[handle.value] = token_handle
        return handle

    def withdraw(self, handle: Handle) -> int | None:
        """Refuse the number from now on; the token's handle, None when it was withdrawn before."""
        return self.objects.pop(handle.value, None)
