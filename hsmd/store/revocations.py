"""Tokens revoked before their time. A change empties what is cached; what has expired is removed."""

from dataclasses import dataclass

from sqlalchemy import bindparam, delete

from hsmd.store.core import Tx
from hsmd.store.schema import REVOCATIONS
from hsmd.store.seals import Sealed

SUBJECT = "revocations"  # in the change feed


@dataclass(frozen=True, slots=True)
class Revocation:
    """A token that is good for nothing any more; it would have expired at `expires`, ms since 1970 UTC."""

    token_id: str
    expires: int


_REVOCATIONS = Sealed(REVOCATIONS, Revocation)

_by_id = _REVOCATIONS.where(REVOCATIONS.c.token_id == bindparam("wanted"))
_delete_expired = delete(REVOCATIONS).where(REVOCATIONS.c.expires <= bindparam("now"))


def put_revocation(tx: Tx, revocation: Revocation, now: int, domain_id: str) -> None:
    """Revoke the token, whether it was before or not; and forget those that have expired by `now`.

    `domain_id` is the domain of the user that it is of.
    """
    tx.connection.execute(_delete_expired, {"now": now})
    if get_revocation(tx, revocation.token_id) is None:
        _REVOCATIONS.insert(tx, revocation)
    tx.changed(SUBJECT, revocation.token_id, domain_id)


def get_revocation(tx: Tx, token_id: str) -> Revocation | None:
    """The revocation of the token of that id, None for one that was not revoked. Raises SealBroken."""
    return _REVOCATIONS.one(tx, _by_id, wanted=token_id)
