"""Who is inside the module and until when: what makes a hung module visible.

A thread inside a PKCS#11 module can't be freed from outside. What can be done is to know of it, to let
nobody follow it in, and to drop its answer when it comes after all. Each call costs one entry in a dict and
its removal; the interpreter makes single dict operations atomic, so there is no lock.
"""

from threading import get_ident


class Calls:
    """The calls inside the module, by thread."""

    def __init__(self) -> None:
        self.inside: dict[int, float] = {}  # thread → when it is due back, monotonic
        self._late: dict[int, float] = {}  # of these, the overdue ones

    def leave(self, thread: int) -> bool:
        """The thread is back; whether it is late."""
        due = self.inside.pop(thread, None)
        return bool(self._late) and due is not None and self._late.pop(thread, None) == due

    def sweep(self, now: float) -> int:
        """Mark what is overdue; how many threads are stuck."""
        for thread, due in list(self.inside.items()):
            if due < now:
                self._late[thread] = due
                if self.inside.get(thread) != due:  # came back meanwhile, perhaps without seeing the mark
                    self._late.pop(thread, None)
        return len(self._late)

    @property
    def stuck(self) -> int:
        """How many threads were overdue at the last sweep and have not come back."""
        return len(self._late)

    def lasting(self, before: float) -> int:
        """How many threads are inside that are due back before that time."""
        return sum(due < before for due in list(self.inside.values()))

    def others(self) -> bool:
        """Whether any other thread than the calling one is inside."""
        me = get_ident()
        return any(thread != me for thread in list(self.inside))
