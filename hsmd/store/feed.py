"""What the change feed hands out; `Store.changes` reads it, `Tx.changed` writes it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """Something changed: `seq` counts up, `subject` is a stem like "keys", `id` the thing's own."""

    seq: int
    subject: str
    id: str
