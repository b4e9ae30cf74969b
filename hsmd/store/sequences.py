"""Answers of creating calls, kept under the caller's `sequence`, so that a retry gets the first answer."""

from sqlalchemy import bindparam, delete, insert, select

from hsmd.store.core import Tx
from hsmd.store.schema import SEQUENCES

_same = (
    SEQUENCES.c.project_id == bindparam("project"),
    SEQUENCES.c.method == bindparam("called"),
    SEQUENCES.c.sequence == bindparam("number"),
)
_recall = select(SEQUENCES.c.digest, SEQUENCES.c.result_id, SEQUENCES.c.created).where(*_same)
_forget = delete(SEQUENCES).where(*_same)
_forget_older = delete(SEQUENCES).where(SEQUENCES.c.created < bindparam("limit"))


def remember(
    tx: Tx, project_id: str, method: str, sequence: str, digest: bytes, result_id: str, created: int
) -> None:
    """Keep the answer's id and the request's digest, in place of what was kept under this sequence.

    Recall in the same transaction first; `created` is in milliseconds since 1970 UTC.
    """
    tx.connection.execute(_forget, {"project": project_id, "called": method, "number": sequence})
    row = {"project_id": project_id, "method": method, "sequence": sequence}
    tx.connection.execute(
        insert(SEQUENCES), row | {"digest": digest, "result_id": result_id, "created": created}
    )


def recall(tx: Tx, project_id: str, method: str, sequence: str) -> tuple[bytes, str, int] | None:
    """Digest of the request, id of the result, and when; None when nothing is kept."""
    values = {"project": project_id, "called": method, "number": sequence}
    row = tx.connection.execute(_recall, values).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


def forget_older(tx: Tx, created: int) -> None:
    """Drop what was kept before that time (ms)."""
    tx.connection.execute(_forget_older, {"limit": created})
