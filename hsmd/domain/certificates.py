"""As whom a client certificate acts: exact names and patterns, for all domains, kept by the operators.

An exact name ("CN:web-1", "URI:spiffe://example.org/web") counts before a pattern. A pattern is a name of the
kinds CN, URI, DNS, EMAIL or SUBJECT (the whole subject by RFC 4514, like "CN=web,OU=payments,O=Example") with
`*` in it: at most one in each part (parts end at / in a URI, . in a DNS name, @ in an address, a comma in a
subject), standing for one or more of letters, digits, - and _. A certificate that fits patterns of different
users or projects is nobody; so is one with exact names of different ones, and one that fits none.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hsmd.domain.core import Call, Core
from hsmd.domain.identity import Identity, enabled_user
from hsmd.errors import (
    IAM_EXISTS,
    IAM_INPUT_INVALID,
    IAM_NOT_FOUND,
    IDENTITY_REFUSED,
    Error,
)
from hsmd.store import Tx
from hsmd.store import certificates as rows
from hsmd.store import identity as people
from hsmd.store.certificates import CertificateBinding, CertificatePattern

_SEPARATORS = {"CN": "\0", "URI": "/", "DNS": ".", "EMAIL": "@", "SUBJECT": ","}
_FILLING = re.compile(r"[A-Za-z0-9_-]+")
_NAME_LENGTH = 512
_LEAST_FIXED = 3  # characters besides the stars: a pattern for everybody is a mistake
_MOST_NAMES = 100  # of one certificate are looked at
_ANCESTOR = "certificate/"


@dataclass(frozen=True, slots=True)
class _Mapped:
    """As whom and where a certificate acts, and by which of its names."""

    by: str
    user_id: str
    project_id: str


@dataclass(frozen=True, slots=True)
class Mapping:
    """A name or pattern, and as whom and where its certificates act."""

    name: str
    user_id: str
    project_id: str

    @property
    def is_pattern(self) -> bool:
        """Whether many names fit it."""
        return "*" in self.name


def by_certificate(core: Core, names: Iterable[str], mark: str) -> Identity:
    """The user that a verified client certificate acts as, by any of its names ("CN:...", "URI:...").

    `mark` is how lists of revoked certificates know it, without a "/". Raises Error(IDENTITY_REFUSED) for one
    that is nobody.
    """
    given = tuple(names)[:_MOST_NAMES]
    return core.people.get(f"certificate {given!r}", mark, lambda: _identify(core, given, mark))


def _identify(core: Core, names: tuple[str, ...], mark: str) -> Identity:
    mapped = _mapped(core, names)
    user = enabled_user(core, mapped.user_id)
    chain = (f"{_ANCESTOR}{mark}/{mapped.by}",)
    return Identity("certificate", user, mapped.project_id, chain=chain)


def is_ancestor(text: str) -> bool:
    """Whether it is how a certificate stands among the ancestors of what is made by it."""
    return text.startswith(_ANCESTOR)


def mark_of(ancestor: str) -> str:
    """How lists of revoked certificates know the certificate."""
    return ancestor.split("/", 2)[1]


def stands(tx: Tx, ancestor: str, user_id: str) -> bool:
    """Whether the certificate still acts as the user, by the name that it did."""
    try:
        return _found(tx, (ancestor.split("/", 2)[2],)).user_id == user_id
    except Error as error:
        if error.fault is IDENTITY_REFUSED:
            return False
        raise


def create(call: Call, name: str, *, user_id: str, project_id: str) -> Mapping:
    """Let certificates of that name or pattern act as a user in a project of the user's domain.

    Raises Error(IAM_INPUT_INVALID, IAM_NOT_FOUND, IAM_EXISTS).
    """
    call.resource = f"certificate/{name}"
    mapping = Mapping(name, user_id, project_id)
    _check(mapping)
    with call.change() as tx:
        user, project = people.get_user(tx, user_id), people.get_project(tx, project_id)
        if user is None:
            raise Error(IAM_NOT_FOUND, kind="user", id=user_id)
        if project is None or project.domain_id != user.domain_id:
            raise Error(IAM_NOT_FOUND, kind="project", id=project_id)
        if _get(tx, name) is not None:
            raise Error(IAM_EXISTS, kind="certificate mapping")
        if mapping.is_pattern:
            rows.insert_pattern(tx, CertificatePattern(name, user_id, project_id))
        else:
            rows.insert_binding(tx, CertificateBinding(name, user_id, project_id))
    return mapping


def find(call: Call) -> list[Mapping]:
    """All of them, names before patterns."""
    with call.read() as tx:
        return [
            *(Mapping(each.name, each.user_id, each.project_id) for each in rows.bindings(tx)),
            *(Mapping(each.pattern, each.user_id, each.project_id) for each in rows.patterns(tx)),
        ]


def delete(call: Call, name: str) -> None:
    """Certificates of that name or pattern are nobody from the next call on. Raises Error(IAM_NOT_FOUND)."""
    call.resource = f"certificate/{name}"
    with call.change() as tx:
        if _get(tx, name) is None:
            raise Error(IAM_NOT_FOUND, kind="certificate mapping", id=name)
        (rows.delete_pattern if "*" in name else rows.delete_binding)(tx, name)


def fits(pattern: str, name: str) -> bool:
    """Whether a certificate's name ("URI:spiffe://example.org/web") fits the pattern."""
    kind, _, wanted = pattern.partition(":")
    own, _, given = name.partition(":")
    if kind != own or kind not in _SEPARATORS or len(name) > _NAME_LENGTH:
        return False
    if kind in ("DNS", "EMAIL"):
        wanted, given = wanted.lower(), given.lower()
    parts, others = wanted.split(_SEPARATORS[kind]), given.split(_SEPARATORS[kind])
    return len(parts) == len(others) and all(map(_fits, parts, others))


def _fits(part: str, other: str) -> bool:
    before, star, after = part.partition("*")
    if not star:
        return part == other
    filling = other[len(before) : len(other) - len(after)]
    return other == before + filling + after and _FILLING.fullmatch(filling) is not None


def _mapped(core: Core, names: tuple[str, ...]) -> _Mapped:
    with core.store.read() as tx:
        return _found(tx, names)


def _found(tx: Tx, names: tuple[str, ...]) -> _Mapped:
    exact = [found for name in names if (found := rows.get_binding(tx, name))]
    if exact:
        return _only([_Mapped(each.name, each.user_id, each.project_id) for each in exact])
    fitting = [
        _Mapped(name, each.user_id, each.project_id)
        for each in rows.patterns(tx)
        for name in names
        if fits(each.pattern, name)
    ]
    return _only(fitting)


def _only(found: list[_Mapped]) -> _Mapped:
    """What all of them say. Raises Error(IDENTITY_REFUSED) when they differ, or there is none."""
    if not found:
        raise Error(IDENTITY_REFUSED, reason="this certificate is bound to no user")
    if len({(each.user_id, each.project_id) for each in found}) > 1:
        raise Error(IDENTITY_REFUSED, reason="this certificate is mapped to more than one user")
    return found[0]


def _get(tx: Tx, name: str) -> object:
    return rows.get_pattern(tx, name) if "*" in name else rows.get_binding(tx, name)


def _check(mapping: Mapping) -> None:
    kind, _, rest = mapping.name.partition(":")
    if kind not in _SEPARATORS or not rest or not rest.isprintable() or len(mapping.name) > _NAME_LENGTH:
        due = f"CN:, URI:, DNS:, EMAIL: or SUBJECT: and a name, at most {_NAME_LENGTH} characters, is due"
        raise Error(IAM_INPUT_INVALID, name="name", reason=due)
    if not mapping.is_pattern:
        return
    if any(part.count("*") > 1 for part in rest.split(_SEPARATORS[kind])):
        raise Error(IAM_INPUT_INVALID, name="name", reason="one * in each part is due")
    if len(_FILLING.findall(rest)) == 0 or len(re.sub(r"[^A-Za-z0-9]", "", rest)) < _LEAST_FIXED:
        raise Error(
            IAM_INPUT_INVALID, name="name", reason=f"{_LEAST_FIXED} letters or digits besides * are due"
        )
