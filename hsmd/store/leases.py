"""Leases, so that of many nodes one does a job."""

from sqlalchemy import bindparam, insert, or_, select, update

from hsmd.store.core import Tx
from hsmd.store.schema import LEASES

_find = select(LEASES.c.name).where(LEASES.c.name == bindparam("lease"))
_renew = update(LEASES).where(
    LEASES.c.name == bindparam("lease"),
    or_(LEASES.c.holder == bindparam("taker"), LEASES.c.until <= bindparam("now")),
)


def take(tx: Tx, name: str, holder: str, now: int, until: int) -> bool:
    """Whether the holder has the job until then: it was free, over or the holder's own. Times in ms."""
    if tx.connection.execute(_find, {"lease": name}).one_or_none() is None:
        tx.connection.execute(insert(LEASES), {"name": name, "holder": holder, "until": until})
        return True
    values = {"lease": name, "taker": holder, "now": now, "holder": holder, "until": until}
    return tx.connection.execute(_renew, values).rowcount == 1
