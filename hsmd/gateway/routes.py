"""The tree of paths: literals win over variables, with backtracking; any target stands behind a route."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from hsmd.descriptors import DescriptionError

Target = TypeVar("Target")

_MOST_SEGMENTS = 32


@dataclass(slots=True)
class _Node(Generic[Target]):
    literals: dict[str, "_Node[Target]"] = field(default_factory=dict)
    variable: "_Node[Target] | None" = None
    leaves: dict[str, tuple[tuple[str, ...], Target]] = field(default_factory=dict)  # by verb


@dataclass(frozen=True, slots=True)
class Match(Generic[Target]):
    """A target and the variables of its path, by name, decoded."""

    target: Target
    variables: dict[str, str]


class Tree(Generic[Target]):
    """Routes by verb and path."""

    def __init__(self) -> None:
        self._root: _Node[Target] = _Node()

    def add(self, verb: str, template: str, target: Target) -> None:
        """Add a route. `{name}` stands for one segment. DescriptionError when it is there already."""
        if not template.startswith("/"):
            raise DescriptionError(f"{template}: a path begins with /")
        node = self._root
        names: list[str] = []
        for segment in _split(template):
            if "{" not in segment and "}" not in segment and "*" not in segment:
                node = node.literals.setdefault(segment, _Node())
                continue
            name = segment[1:-1]
            if segment != f"{{{name}}}" or not name.isidentifier() or name in names:
                raise DescriptionError(f"{template}: {segment} is not a variable of one segment")
            names.append(name)
            node.variable = node.variable or _Node()
            node = node.variable
        if verb in node.leaves:
            raise DescriptionError(
                f"{verb} {template} is declared twice: {target} and {node.leaves[verb][1]}"
            )
        node.leaves[verb] = (tuple(names), target)

    def find(self, verb: str, raw_path: str) -> Match[Target] | frozenset[str]:
        """The route of a path as it stood on the wire, or the verbs that the path has (none: no such path).

        A path that fits several templates belongs to the one with the earlier literals among those
        that have the verb.
        """
        verbs: set[str] = set()
        if not raw_path.startswith("/") or raw_path.count("/") > _MOST_SEGMENTS:
            return frozenset()
        segments = _split(raw_path)
        if "%" in raw_path:
            try:
                segments = [unquote_to_bytes(part).decode("utf-8") for part in segments]
            except UnicodeDecodeError:
                return frozenset()
        for leaves, values in _fitting(self._root, segments, 0, ()):
            leaf = leaves.get(verb)
            if leaf is not None:
                return Match(leaf[1], dict(zip(leaf[0], values, strict=True)))
            verbs.update(leaves)
        return frozenset(verbs)


def _split(path: str) -> list[str]:
    return path[1:].split("/") if path != "/" else []


def _fitting(
    node: _Node[Target], segments: list[str], index: int, values: tuple[str, ...]
) -> Iterator[tuple[dict[str, tuple[tuple[str, ...], Target]], tuple[str, ...]]]:
    if index == len(segments):
        if node.leaves:
            yield node.leaves, values
        return
    segment = segments[index]
    literal = node.literals.get(segment)
    if literal is not None:
        yield from _fitting(literal, segments, index + 1, values)
    if node.variable is not None and segment:
        yield from _fitting(node.variable, segments, index + 1, (*values, segment))
