"""The metadata store: the only room that speaks SQL.

core.py      Store and Tx: transactions, versions, the change feed
engine.py    SQLite and PostgreSQL set up
schema.py    the tables; migrations/ builds them, migrate.py runs that
seals.py     sealed rows
faults.py    foreign errors become ours
keys.py, aliases.py, tags.py, identity.py, sequences.py, leases.py    one subject each: records, functions
"""

from hsmd.store.core import Seal, Store, Tx
from hsmd.store.engine import StoreError
from hsmd.store.feed import Change, Forgotten
from hsmd.store.seals import SealBroken

__all__ = ["Change", "Forgotten", "Seal", "SealBroken", "Store", "StoreError", "Tx", "upgrade"]


def upgrade(url: str) -> str:
    """Bring the store to this program's schema, made where there is none; the revision it has then.

    Safe when several processes do it at once: one works, the others wait. Raises StoreError, Error.
    """
    from hsmd.store import migrate  # here: Alembic costs time and memory that no worker needs

    return migrate.upgrade(url)
