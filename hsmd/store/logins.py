"""Failed passwords in a row by who was claimed, and when somebody last came: counted for all processes."""

from dataclasses import dataclass

from sqlalchemy import and_, bindparam, delete, insert, select, update

from hsmd.store.core import Tx
from hsmd.store.schema import LOGINS


@dataclass(frozen=True, slots=True)
class Logins:
    """What is known of one claim, a hash. Times in ms since 1970 UTC; `until`: refused until then."""

    claim: str
    since: int = 0
    last: int = 0
    failures: int = 0
    until: int = 0
    succeeded: int | None = None


_COLUMNS = ("claim", "since", "last", "failures", "until", "succeeded")
_one = select(*(LOGINS.c[name] for name in _COLUMNS)).where(LOGINS.c.claim == bindparam("wanted"))
_insert = insert(LOGINS)
_update = update(LOGINS).where(LOGINS.c.claim == bindparam("wanted"))
_delete = delete(LOGINS).where(LOGINS.c.claim == bindparam("wanted"))
_forget = delete(LOGINS).where(
    and_(
        LOGINS.c.succeeded.is_(None),
        LOGINS.c.last < bindparam("before"),
        LOGINS.c.until < bindparam("before"),
    )
)


def get_logins(tx: Tx, claim: str) -> Logins | None:
    """What is known of the claim."""
    row = tx.connection.execute(_one, {"wanted": claim}).one_or_none()
    return None if row is None else Logins(*row)


def put_logins(tx: Tx, logins: Logins) -> None:
    """Keep this instead of what was known of the claim."""
    values = {name: getattr(logins, name) for name in _COLUMNS}
    if get_logins(tx, logins.claim) is None:
        tx.connection.execute(_insert, values)
    else:
        del values["claim"]
        tx.connection.execute(_update, {**values, "wanted": logins.claim})


def delete_logins(tx: Tx, claim: str) -> None:
    """Drop what is known of the claim."""
    tx.connection.execute(_delete, {"wanted": claim})


def forget_failures(tx: Tx, before: int) -> None:
    """Drop claims that never succeeded and of which nothing counts any more, as of that time."""
    tx.connection.execute(_forget, {"before": before})
