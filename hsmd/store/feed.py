"""What the change feed hands out; `Store.changes` reads it, `Tx.changed` writes it.

A row's subject is a stem like "keys", or "STEM@DOMAIN" for what concerns one domain only.

Old rows go, the oldest first and the newest never. So a reader who finds the row that it saw last, or the one
behind it, has missed none; any other may have, and must take everything for changed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, delete, func, select

from hsmd.store.schema import CHANGES

if TYPE_CHECKING:
    from hsmd.store.core import Tx

_ends = select(func.min(CHANGES.c.seq), func.max(CHANGES.c.seq))
_prune = delete(CHANGES).where(CHANGES.c.seq <= bindparam("newest"))


class Forgotten(Exception):  # noqa: N818 # named for what happened
    """Changes that the reader has not seen are not in the feed any more."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something changed: `seq` counts up, `subject` is a stem like "keys", `id` the thing's own.

    `domain` is the id of the only domain whose callers it concerns, "" where that is not told.
    """

    seq: int
    subject: str
    id: str
    domain: str = ""


def surplus(tx: "Tx", keep: int) -> int:
    """How many numbers of the feed lie before the newest `keep`."""
    oldest, newest = tx.connection.execute(_ends).one()
    return 0 if newest is None else max(0, newest - oldest + 1 - keep)


def prune(tx: "Tx", keep: int, most: int) -> None:
    """Forget at most `most` of the oldest changes, none of the newest `keep`, of which 1 is the least."""
    many = min(surplus(tx, max(keep, 1)), most)
    oldest, _ = tx.connection.execute(_ends).one()
    if many:
        tx.connection.execute(_prune, {"newest": oldest + many - 1})


def written(subject: str, domain: str) -> str:
    """The subject as the feed has it."""
    return f"{subject}@{domain}" if domain else subject


def read(seq: int, subject: str, id: str) -> Change:  # noqa: A002 # the column's name
    """The change of a row."""
    stem, _, domain = subject.partition("@")
    return Change(seq, stem, id, domain)
