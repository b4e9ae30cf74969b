"""What is settled for the whole service, by name: JSON documents that the rules read and write."""

from dataclasses import dataclass

from sqlalchemy import bindparam

from hsmd.store.core import Tx
from hsmd.store.schema import SERVICE_SETTINGS
from hsmd.store.seals import Sealed

SUBJECT = "service-settings"  # in the change feed

# The names there are.
INSTANCE, QUORUM, UKEYS, PROPOSALS = "instance", "quorum", "ukeys", "proposals"


@dataclass(frozen=True, slots=True)
class ServiceSetting:
    """One document."""

    name: str
    document: str


_SETTINGS = Sealed(SERVICE_SETTINGS, ServiceSetting)

_one = _SETTINGS.where(SERVICE_SETTINGS.c.name == bindparam("wanted"))


def setting(tx: Tx, name: str) -> str | None:
    """The document, None where nothing is settled. Raises SealBroken."""
    found = _SETTINGS.one(tx, _one, wanted=name)
    return None if found is None else found.document


def put_setting(tx: Tx, name: str, document: str) -> None:
    """Keep the document instead of the one before. Raises SealBroken."""
    row = ServiceSetting(name, document)
    if setting(tx, name) is None:
        _SETTINGS.insert(tx, row)
    else:
        _SETTINGS.update(tx, row)
    tx.changed(SUBJECT, name)
