"""Policies as JSON, Version 1.1: read, bounded and checked, so that what is kept is what will be decided by.

Anything that is not understood is refused with the place where it stands: a statement that was half
understood could allow what it was meant to keep back.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hsmd.domain import conditions, wildcards
from hsmd.domain.conditions import AnyCondition
from hsmd.domain.wildcards import Matcher

MOST_CHARACTERS = 6144
MOST_STATEMENTS = 32
MOST_VALUES = 100  # actions or resources of a statement, values of a condition
MOST_CONDITIONS = 20  # of a statement: pairs of operator and key

_VALUE_LENGTH = 512
_VERSION = "1.1"
_ACTION = re.compile(r"[a-z*][a-z0-9_*-]{0,31}(:[A-Za-z0-9_*-]{1,64}){2}")
_RESOURCE_PART = re.compile(r"[A-Za-z0-9_*./-]{1,128}")
_PARTS = 5  # of a resource: service, region, domain, kind, id
_ASSUME = "iam:agencies:assume"
_AGENCY = re.compile(r"/iam/agencies/(\*|[0-9a-f]{32})")
_KINDS = frozenset(("keyid", "*"))
_WITH_RESOURCES = frozenset(("kms",))  # the services whose actions are on something that has a name
_OF_RESOURCE = frozenset(("kms:keyspec", "kms:keyusage", "kms:keyorigin", "g:enterpriseprojectid"))

TAG = "g:resourcetag/"  # how facts begin that are tags of a key


def parts_of(resource: str) -> tuple[str, ...]:
    """The parts of a resource's name, () for ""."""
    return tuple(resource.split(":", _PARTS - 1)) if resource else ()


class DocumentError(Exception):
    """The document is not valid: where, and what would be right."""

    def __init__(self, place: str, reason: str) -> None:
        self.place = place
        self.reason = reason
        super().__init__(f"{place}: {reason}" if place else reason)


@dataclass(frozen=True, slots=True)
class Statement:
    """What is allowed or denied, compiled. `resources` is empty when it is about everything.

    `index` counts from 0 in its document. `late` tells that it can be decided only when the key is known.
    """

    index: int
    allows: bool
    actions: tuple[Matcher, ...]
    resources: tuple[tuple[Matcher, ...], ...]
    conditions: tuple[AnyCondition, ...]
    late: bool

    def is_about(self, action: str) -> bool:
        """Whether the action, in small letters, is one of its."""
        return any(matches(action) for matches in self.actions)

    def covers(self, parts: tuple[str, ...]) -> bool:
        """Whether the resource of these parts is one of its; no parts (nothing with a name): by "*" only."""
        return not self.resources or any(
            len(parts) == len(each) and all(matches(part) for matches, part in zip(each, parts, strict=True))
            for each in self.resources
        )


@lru_cache(maxsize=1024)  # many users have the same policies; few, since tenants say how long they are
def compiled(document: str) -> tuple[Statement, ...]:
    """The document's statements. Raises DocumentError."""
    if len(document) > MOST_CHARACTERS:
        raise DocumentError("", f"the policy has more than {MOST_CHARACTERS} characters")
    tree = _parsed(document)
    _object(tree, "", {"Version", "Statement"}, set())
    if tree["Version"] != _VERSION:
        raise DocumentError("Version", f'"{_VERSION}" is due')
    statements = tree["Statement"]
    if not isinstance(statements, list) or not 1 <= len(statements) <= MOST_STATEMENTS:
        raise DocumentError("Statement", f"a list of 1 to {MOST_STATEMENTS} statements is due")
    return tuple(_statement(each, index) for index, each in enumerate(statements))


def written(document: str) -> str:
    """The document as it is kept and shown: short, and with lists where one text may stand for a list.

    Raises DocumentError for what is not valid.
    """
    tree = _parsed(document)
    if isinstance(tree, dict) and isinstance(tree.get("Statement"), list):
        for each in filter(lambda one: isinstance(one, dict), tree["Statement"]):
            for name in ("Action", "Resource"):
                if isinstance(each.get(name), str):
                    each[name] = [each[name]]
            for keys in _inner(each.get("Condition")):
                keys.update({key: [value] for key, value in keys.items() if isinstance(value, str)})
    found = json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
    compiled(found)
    return found


def _inner(tree: object) -> list[dict[str, object]]:
    return [each for each in tree.values() if isinstance(each, dict)] if isinstance(tree, dict) else []


def _parsed(document: str) -> Any:
    try:
        return json.loads(document, object_pairs_hook=_without_repetition, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DocumentError("", f"the policy is not valid JSON: {reason}") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member stands there twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no value")


def _object(tree: object, place: str, due: set[str], optional: set[str]) -> None:
    if not isinstance(tree, dict):
        raise DocumentError(place, "an object is due")
    for name in sorted(due - tree.keys()):
        raise DocumentError(_at(place, name), "it is missing")
    for name in sorted(tree.keys() - due - optional):
        raise DocumentError(_at(place, name[:64]), f"of {', '.join(sorted(due | optional))} are due")


def _at(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _statement(tree: Any, index: int) -> Statement:
    place = f"Statement[{index}]"
    _object(tree, place, {"Effect", "Action"}, {"Resource", "Condition", "Sid"})
    if tree["Effect"] not in ("Allow", "Deny"):
        raise DocumentError(f"{place}.Effect", '"Allow" or "Deny" is due')
    if not isinstance(tree.get("Sid", ""), str) or len(tree.get("Sid", "")) > MOST_VALUES:
        raise DocumentError(f"{place}.Sid", f"a string of up to {MOST_VALUES} characters is due")
    actions = list(_texts(tree["Action"], f"{place}.Action"))
    resources = tuple(_resources(tree.get("Resource", ["*"]), actions, f"{place}.Resource"))
    asked = tuple(_conditions(tree.get("Condition", {}), f"{place}.Condition"))
    return Statement(
        index=index,
        allows=tree["Effect"] == "Allow",
        actions=tuple(_action(each, where) for each, where in actions),
        resources=resources,
        conditions=asked,
        late=bool(resources) or any(each.fact in _OF_RESOURCE or each.fact.startswith(TAG) for each in asked),
    )


def _texts(tree: object, place: str) -> Iterator[tuple[str, str]]:
    """The texts of a list (or of one text that stands for such a list), each with its place."""
    found = [tree] if isinstance(tree, str) else tree
    if not isinstance(found, list) or not 1 <= len(found) <= MOST_VALUES:
        raise DocumentError(place, f"a list of 1 to {MOST_VALUES} strings is due")
    for index, each in enumerate(found):
        if not isinstance(each, str) or not 1 <= len(each) <= _VALUE_LENGTH:
            raise DocumentError(f"{place}[{index}]", f"a string of 1 to {_VALUE_LENGTH} characters is due")
        yield each, f"{place}[{index}]"


def _action(text: str, place: str) -> Matcher:
    if not _ACTION.fullmatch(text):
        raise DocumentError(place, "service:type:operation is due, with * as a wildcard")
    return wildcards.compiled(text.lower())


def _resources(tree: object, actions: list[tuple[str, str]], place: str) -> Iterator[tuple[Matcher, ...]]:
    """The patterns, part by part; none when one of them is everything."""
    if isinstance(tree, dict):
        yield from _agencies(tree, actions, place)
        return
    texts = list(_texts(tree, place))
    if any(text == "*" for text, _ in texts):
        return
    for (
        text,
        where,
    ) in actions:  # for others a resource would be no bound: they are on nothing that has a name
        if text.partition(":")[0] not in _WITH_RESOURCES:
            raise DocumentError(where, f'beside {place} only actions of kms are due, or the resource "*"')
    for text, where in texts:
        parts = text.split(":", _PARTS - 1)
        if len(parts) != _PARTS or not all(_RESOURCE_PART.fullmatch(part) for part in parts):
            raise DocumentError(where, '"*" or KMS:REGION:DOMAIN:KeyId:ID is due, with * as a wildcard')
        service, region, domain, kind, name = parts
        if service.lower() not in _WITH_RESOURCES or kind.lower() not in _KINDS:
            raise DocumentError(where, "there are resources of KMS only, and of the kind KeyId")
        yield tuple(
            wildcards.compiled(each) for each in (service.lower(), region, domain, kind.lower(), name)
        )


def _agencies(
    tree: dict[str, object], actions: list[tuple[str, str]], place: str
) -> Iterator[tuple[Matcher, ...]]:
    """The form that IAM has for agencies: {"uri": ["/iam/agencies/ID"]} beside iam:agencies:assume."""
    _object(tree, place, {"uri"}, set())
    for text, where in actions:
        if text.lower() != _ASSUME:
            raise DocumentError(where, f"beside a uri {_ASSUME} is due")
    for text, where in _texts(tree["uri"], f"{place}.uri"):
        if not _AGENCY.fullmatch(text):
            raise DocumentError(where, "/iam/agencies/ID is due")
        yield (wildcards.compiled(text),)


def _conditions(tree: object, place: str) -> Iterator[AnyCondition]:
    if not isinstance(tree, dict):
        raise DocumentError(place, "an object is due")
    count = 0
    for operator, keys in tree.items():
        where = f"{place}.{operator[:64]}"
        if not isinstance(keys, dict) or not keys:
            raise DocumentError(where, "an object of condition keys is due")
        for key, values in keys.items():
            count += 1
            if count > MOST_CONDITIONS:
                raise DocumentError(place, f"more than {MOST_CONDITIONS} conditions stand there")
            texts = tuple(text for text, _ in _texts(values, f"{where}.{key[:64]}"))
            try:
                yield conditions.compiled(operator, key, texts)
            except ValueError as error:
                raise DocumentError(f"{where}.{key[:64]}", str(error)) from error
