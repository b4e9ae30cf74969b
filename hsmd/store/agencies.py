"""Agencies: leave for the users of another domain to act in this one. Their changes empty what is cached."""

from dataclasses import dataclass

from sqlalchemy import bindparam, delete

from hsmd.store.core import Tx
from hsmd.store.schema import AGENCIES
from hsmd.store.seals import Sealed

SUBJECT = "agencies"  # in the change feed


@dataclass(frozen=True, slots=True)
class Agency:
    """An agency of a domain, trusting another. Times in ms since 1970 UTC.

    `duration` is "FOREVER" or a number of hours from `created`; `expires` is None or when they end.
    """

    id: str
    domain_id: str
    name: str
    trust_domain_id: str
    trust_domain_name: str
    description: str
    duration: str
    created: int
    expires: int | None = None


_AGENCIES = Sealed(AGENCIES, Agency)

_by_id = _AGENCIES.where(AGENCIES.c.id == bindparam("wanted"))
_by_name = _AGENCIES.where(
    AGENCIES.c.domain_id == bindparam("domain"), AGENCIES.c.name == bindparam("wanted")
)
_of_domain = _AGENCIES.where(AGENCIES.c.domain_id == bindparam("domain")).order_by(
    AGENCIES.c.created, AGENCIES.c.id
)
_delete = delete(AGENCIES).where(AGENCIES.c.id == bindparam("wanted"))


def insert_agency(tx: Tx, agency: Agency) -> None:
    """Add an agency. Raises the store's fault when the name is taken in its domain."""
    _AGENCIES.insert(tx, agency)
    tx.changed(SUBJECT, agency.id, agency.domain_id)


def update_agency(tx: Tx, agency: Agency) -> None:
    """Replace the row of this id. Raises SealBroken when it is gone."""
    _AGENCIES.update(tx, agency)
    tx.changed(SUBJECT, agency.id, agency.domain_id)


def delete_agency(tx: Tx, agency_id: str) -> None:
    """Remove the agency. Raises SealBroken."""
    agency = get_agency(tx, agency_id)
    tx.connection.execute(_delete, {"wanted": agency_id})
    tx.changed(SUBJECT, agency_id, agency.domain_id if agency else "")


def get_agency(tx: Tx, agency_id: str) -> Agency | None:
    """The agency of that id. Raises SealBroken."""
    return _AGENCIES.one(tx, _by_id, wanted=agency_id)


def get_agency_by_name(tx: Tx, domain_id: str, name: str) -> Agency | None:
    """The domain's agency of that name. Raises SealBroken."""
    return _AGENCIES.one(tx, _by_name, domain=domain_id, wanted=name)


def agencies_of(tx: Tx, domain_id: str) -> list[Agency]:
    """The domain's agencies in the order of their making. Raises SealBroken."""
    return _AGENCIES.many(tx, _of_domain, domain=domain_id)
