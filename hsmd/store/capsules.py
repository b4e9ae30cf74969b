"""Attestations that have opened a capsule, until they expire: none opens another, on any node."""

from sqlalchemy import bindparam, delete, insert, select

from hsmd.store.core import Tx
from hsmd.store.schema import ATTESTATIONS

_known = select(ATTESTATIONS.c.id).where(ATTESTATIONS.c.id == bindparam("attestation"))
_forget = delete(ATTESTATIONS).where(ATTESTATIONS.c.expires < bindparam("now"))


def use_attestation(tx: Tx, attestation_id: str, expires: int) -> bool:
    """Note that it was used; False when it had been. `expires` in milliseconds since 1970 UTC."""
    if tx.connection.execute(_known, {"attestation": attestation_id}).first() is not None:
        return False
    tx.connection.execute(insert(ATTESTATIONS), {"id": attestation_id, "expires": expires})
    return True


def forget_attestations(tx: Tx, before: int) -> None:
    """Drop those that expired before that time (ms)."""
    tx.connection.execute(_forget, {"now": before})
