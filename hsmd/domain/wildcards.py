"""Patterns of policies: `*` stands for any characters, `?` for one. In linear time, whatever the pattern."""

from collections.abc import Callable

Matcher = Callable[[str], bool]


def everything(_text: str) -> bool:
    """What the pattern `*` matches."""
    return True


def compiled(pattern: str, *, single: bool = False) -> Matcher:
    """A function that tells whether all of a text fits the pattern; `?` is a wildcard only with `single`."""
    if not pattern.strip("*") and pattern:
        return everything
    wild = single and "?" in pattern
    if "*" not in pattern:
        return (lambda text: len(text) == len(pattern) and _at(text, pattern, 0)) if wild else pattern.__eq__
    first, *middle, last = pattern.split("*")
    parts = [part for part in middle if part]
    find = _find if wild else str.find

    def fits(text: str) -> bool:
        end = len(text) - len(last)
        if end < len(first) or not _at(text, first, 0, wild=wild) or not _at(text, last, end, wild=wild):
            return False
        # The first place where a part fits leaves most room for the others: there is nothing to go back to.
        place = len(first)
        for part in parts:
            place = find(text, part, place, end)
            if place < 0:
                return False
            place += len(part)
        return True

    return fits


def _at(text: str, part: str, place: int, *, wild: bool = True) -> bool:
    """Whether the part, which has no `*`, fits at this place of the text."""
    if not wild:
        return text.startswith(part, place)
    return all(a in ("?", b) for a, b in zip(part, text[place : place + len(part)], strict=True))


def _find(text: str, part: str, start: int, end: int) -> int:
    """Where the part with its `?` first fits between start and end; -1 for nowhere."""
    for place in range(start, end - len(part) + 1):
        if _at(text, part, place):
            return place
    return -1
