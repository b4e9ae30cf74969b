"""One refusal of the PIN is enough for all processes of a daemon: each further try may lock the token."""

import mmap


class Refusal:
    """Whether the token refused the PIN; shared by the process that made this and all it forks later.

    A page of anonymous memory and no file: nothing about the PIN is kept anywhere, and whoever starts the
    daemon again, with the PIN put right, starts afresh.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 1)

    def note(self) -> None:
        """From now on nobody tries again."""
        self._page[0] = 1

    def __bool__(self) -> bool:
        return self._page[0] != 0
