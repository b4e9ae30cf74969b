"""The conditions of policies: operators on facts of a call, compiled once, told with reasons when they fail.

An operator has a type (String, Number, Date, Bool, IpAddress), and may begin with `ForAnyValue:` or
`ForAllValues:` and end with `IfExists`. Several values of a key are alternatives; several keys, and several
operators, must all hold. A `Not` operator holds exactly when the other doesn't, so also where the call has no
such fact; a fact that can't be read as the operator's type is like one that is not there.
"""

import ipaddress
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Protocol

from hsmd.domain import wildcards


class Facts(Protocol):
    """What is known of a call: values by condition key, spelled as `fact_name` spells it; a dict is one."""

    def get(self, name: str, default: tuple[str, ...], /) -> tuple[str, ...] | None:
        """The values of that name, the default where there is nothing of it."""


Told = Mapping[str, tuple[str, ...]]
"""Facts that are all known beforehand."""

_Test = Callable[[str], bool]  # does this value of the fact fit?
_Maker = Callable[[str], _Test]  # from a value in the policy; raises ValueError

ANY, ALL, PLAIN = "ForAnyValue:", "ForAllValues:", ""
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}:[A-Za-z][A-Za-z0-9_.-]{0,63}(/[^/\x00-\x1f]{1,128})?")
_NUMBER_LENGTH = 40
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def fact_name(key: str) -> str:
    """How facts are called: services and names in small letters, what follows a slash (a tag) as it is."""
    name, slash, rest = key.partition("/")
    return name.lower() + slash + rest


def is_key(key: str) -> bool:
    """Whether it can be a condition key, like g:UserName or g:ResourceTag/team."""
    return _KEY.fullmatch(key) is not None


@dataclass(frozen=True, slots=True)
class Condition:
    """One operator on one key; `fact` is what the key asks for, `fits` tells whether a value of it is right.

    `quantifier` is one of `ANY`, `ALL`, `PLAIN`; `negated` turns what fits around.
    """

    operator: str
    key: str
    fact: str
    values: tuple[str, ...]
    fits: _Test
    quantifier: str
    negated: bool
    if_exists: bool

    def holds(self, facts: Facts) -> bool:
        """Whether the call is as the condition says."""
        found = facts.get(self.fact, ()) or ()
        if not found and self.if_exists:
            return True
        if self.quantifier == ALL:
            return all(self.fits(each) != self.negated for each in found)
        if self.quantifier == ANY:
            return any(self.fits(each) != self.negated for each in found)
        return any(map(self.fits, found)) != self.negated

    def __str__(self) -> str:
        return f"{self.operator} {self.key} {', '.join(self.values)}"


@dataclass(frozen=True, slots=True)
class _Absent:
    """Whether a fact is missing or empty: the one question whose answer needs no value of it."""

    operator: str
    key: str
    fact: str
    values: tuple[str, ...]
    absent: bool

    def holds(self, facts: Facts) -> bool:
        """Whether the call is as the condition says."""
        return (not any(facts.get(self.fact, ()) or ())) == self.absent

    def __str__(self) -> str:
        return f"{self.operator} {self.key} {', '.join(self.values)}"


AnyCondition = Condition | _Absent


def compiled(operator_name: str, key: str, values: tuple[str, ...]) -> AnyCondition:
    """The condition. Raises ValueError, saying why, for an operator, key or value that can't be read."""
    if not is_key(key):
        raise ValueError(f"{key!r} is no condition key like g:UserName")
    if operator_name in _NULLS:
        if values not in (("true",), ("false",)):
            raise ValueError('["true"] or ["false"] is due')
        return _Absent(
            operator_name, key, fact_name(key), values, (values == ("true",)) == _NULLS[operator_name]
        )
    quantifier, base, if_exists = _parts(operator_name)
    if base not in _OPERATORS:
        raise ValueError(f"{operator_name!r} is no operator of conditions")
    make, negated = _OPERATORS[base]
    fits = _alternatives(tuple(make(value) for value in values))
    return Condition(operator_name, key, fact_name(key), values, fits, quantifier, negated, if_exists)


def _alternatives(tests: tuple[_Test, ...]) -> _Test:
    """Whether one of them holds."""

    def fits(fact: str) -> bool:
        for test in tests:  # noqa: SIM110 -- a generator takes longer than many a test
            if test(fact):
                return True
        return False

    return tests[0] if len(tests) == 1 else fits


def _parts(name: str) -> tuple[str, str, bool]:
    quantifier = next((each for each in (ANY, ALL) if name.startswith(each)), PLAIN)
    base = name.removeprefix(quantifier)
    if_exists = base.endswith("IfExists")
    return quantifier, base.removesuffix("IfExists").removesuffix("AnyOf"), if_exists


def _equal(value: str) -> _Test:
    return value.__eq__


def _equal_in_any_case(value: str) -> _Test:
    folded = value.casefold()
    return lambda fact: fact.casefold() == folded


def _like(value: str) -> _Test:
    """The cloud's StringLike: contained. A value with wildcards is a pattern of the whole instead."""
    return _match(value) if "*" in value or "?" in value else lambda fact: value in fact


def _match(value: str) -> _Test:
    return wildcards.compiled(value, single=True)


def _start(value: str) -> _Test:
    return lambda fact: fact.startswith(value)


def _end(value: str) -> _Test:
    return lambda fact: fact.endswith(value)


def _bool(value: str) -> _Test:
    if value.lower() not in ("true", "false"):
        raise ValueError(f"{value!r} is neither true nor false")
    return lambda fact: fact.lower() == value.lower()


def _number(value: str) -> Decimal:
    if len(value) > _NUMBER_LENGTH or not _NUMBER.fullmatch(value):
        raise ValueError(f"{value[:_NUMBER_LENGTH]!r} is no number")
    return Decimal(value)


@lru_cache(maxsize=256)  # the current time is the same for a second
def _date(value: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is no time like 2012-11-11T23:59:59Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _network(value: str) -> _Test:
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError as error:
        raise ValueError(f"{value!r} is no address range like 10.0.0.0/8") from error

    first, last = _place(network[0]), _place(network[-1])
    return lambda fact: first <= _address(fact) <= last


@lru_cache(maxsize=4096)  # one that calls calls again
def _address(text: str) -> int:
    """The place of the address, of an IPv4 one also where it came mapped into IPv6; -1 for what is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return -1
    return _place(getattr(address, "ipv4_mapped", None) or address)


def _place(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    """Where it stands among all addresses: those of IPv6 after those of IPv4."""
    return int(address) + ((1 << 32) if address.version == 6 else 0)


def _compared(read: Callable[[str], Any], compare: Callable[[Any, Any], bool]) -> _Maker:
    def make(value: str) -> _Test:
        wanted = read(value)

        def test(fact: str) -> bool:
            try:
                return compare(read(fact), wanted)
            except (ValueError, InvalidOperation, OverflowError):
                return False

        return test

    return make


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "Equals": operator.eq,
    "LessThan": operator.lt,
    "LessThanEquals": operator.le,
    "GreaterThan": operator.gt,
    "GreaterThanEquals": operator.ge,
}

_OPERATORS: dict[str, tuple[_Maker, bool]] = {
    "StringEquals": (_equal, False),
    "StringNotEquals": (_equal, True),
    "StringEqualsIgnoreCase": (_equal_in_any_case, False),
    "StringNotEqualsIgnoreCase": (_equal_in_any_case, True),
    "StringLike": (_like, False),
    "StringNotLike": (_like, True),
    "StringMatch": (_match, False),
    "StringNotMatch": (_match, True),
    "StringStartWith": (_start, False),
    "StringNotStartWith": (_start, True),
    "StringEndWith": (_end, False),
    "StringNotEndWith": (_end, True),
    "Bool": (_bool, False),
    "IpAddress": (_network, False),
    "NotIpAddress": (_network, True),
    **{
        kind + name: (_compared(read, compare), False)
        for kind, read in (("Number", _number), ("Numeric", _number), ("Date", _date))
        for name, compare in _COMPARISONS.items()
    },
    "NumberNotEquals": (_compared(_number, operator.eq), True),
    "NumericNotEquals": (_compared(_number, operator.eq), True),
    "DateNotEquals": (_compared(_date, operator.eq), True),
}

_NULLS = {"IsNullOrEmpty": True, "Null": True, "IsNotNullOrEmpty": False}

OPERATORS: tuple[str, ...] = (*sorted(_OPERATORS), *sorted(_NULLS))
"""What a condition may begin with, without quantifiers and suffixes."""
