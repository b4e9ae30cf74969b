"""What a domain has settled for itself, by name: JSON documents that the rules read and write."""

from dataclasses import dataclass

from sqlalchemy import bindparam

from hsmd.store.core import Tx
from hsmd.store.schema import SETTINGS
from hsmd.store.seals import Sealed

SUBJECT = "settings"  # in the change feed

# The names there are.
PASSWORD_POLICY, LOGIN_POLICY, API_ACL = "password-policy", "login-policy", "api-acl"


@dataclass(frozen=True, slots=True)
class Setting:
    """One document of a domain."""

    domain_id: str
    name: str
    document: str


_SETTINGS = Sealed(SETTINGS, Setting)

_one = _SETTINGS.where(SETTINGS.c.domain_id == bindparam("domain"), SETTINGS.c.name == bindparam("wanted"))


def setting(tx: Tx, domain_id: str, name: str) -> str | None:
    """The document, None where the domain has settled nothing. Raises SealBroken."""
    found = _SETTINGS.one(tx, _one, domain=domain_id, wanted=name)
    return None if found is None else found.document


def put_setting(tx: Tx, domain_id: str, name: str, document: str) -> None:
    """Keep the document instead of the one before. Raises SealBroken."""
    row = Setting(domain_id, name, document)
    if setting(tx, domain_id, name) is None:
        _SETTINGS.insert(tx, row)
    else:
        _SETTINGS.update(tx, row)
    tx.changed(SUBJECT, domain_id, domain_id)
