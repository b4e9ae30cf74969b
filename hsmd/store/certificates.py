"""As whom client certificates act: by an exact name, or by a pattern. Their changes empty what is cached."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, bindparam, delete

from hsmd.store.core import Tx
from hsmd.store.schema import BINDINGS, CERTIFICATE_PATTERNS
from hsmd.store.seals import Sealed

SUBJECT = "certificates"  # in the change feed


@dataclass(frozen=True, slots=True)
class CertificateBinding:
    """The user and project of a client certificate named like "CN:client", "URI:..." or "DNS:..."."""

    name: str
    user_id: str
    project_id: str


@dataclass(frozen=True, slots=True)
class CertificatePattern:
    """The user and project of certificates with a name that fits, like "URI:spiffe://example.org/*"."""

    pattern: str
    user_id: str
    project_id: str


_BINDINGS = Sealed(BINDINGS, CertificateBinding)
_PATTERNS = Sealed(CERTIFICATE_PATTERNS, CertificatePattern)

_binding = _BINDINGS.where(BINDINGS.c.name == bindparam("wanted"))
_bindings = _BINDINGS.where().order_by(BINDINGS.c.name)
_pattern = _PATTERNS.where(CERTIFICATE_PATTERNS.c.pattern == bindparam("wanted"))
_patterns = _PATTERNS.where().order_by(CERTIFICATE_PATTERNS.c.pattern)


def insert_binding(tx: Tx, binding: CertificateBinding) -> None:
    """Let certificates of that name act as the user. Raises the store's fault when the name is taken."""
    _insert(tx, _BINDINGS, binding, binding.name)


def insert_pattern(tx: Tx, pattern: CertificatePattern) -> None:
    """Let certificates with names that fit act as the user. Raises the store's fault when it is there."""
    _insert(tx, _PATTERNS, pattern, pattern.pattern)


def get_binding(tx: Tx, name: str) -> CertificateBinding | None:
    """The binding of that certificate name. Raises SealBroken."""
    return _BINDINGS.one(tx, _binding, wanted=name)


def get_pattern(tx: Tx, pattern: str) -> CertificatePattern | None:
    """The pattern as it was given. Raises SealBroken."""
    return _PATTERNS.one(tx, _pattern, wanted=pattern)


def bindings(tx: Tx) -> list[CertificateBinding]:
    """All bindings, by name. Raises SealBroken."""
    return _BINDINGS.many(tx, _bindings)


def patterns(tx: Tx) -> list[CertificatePattern]:
    """All patterns, in their order. Raises SealBroken."""
    return _PATTERNS.many(tx, _patterns)


def delete_binding(tx: Tx, name: str) -> None:
    """Remove the binding of that name."""
    _delete(tx, BINDINGS, "name", name)


def delete_pattern(tx: Tx, pattern: str) -> None:
    """Remove the pattern."""
    _delete(tx, CERTIFICATE_PATTERNS, "pattern", pattern)


def _insert(tx: Tx, table: Sealed[Any], record: Any, changed: str) -> None:
    table.insert(tx, record)
    tx.changed(SUBJECT, changed)


def _delete(tx: Tx, table: Table, column: str, value: str) -> None:
    tx.connection.execute(delete(table).where(table.c[column] == bindparam("wanted")), {"wanted": value})
    tx.changed(SUBJECT, value)
