"""What the change feed hands out; `Store.changes` reads it, `Tx.changed` writes it.

A row's subject is a stem like "keys", or "STEM@DOMAIN" for what concerns one domain only.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """Something changed: `seq` counts up, `subject` is a stem like "keys", `id` the thing's own.

    `domain` is the id of the only domain whose callers it concerns, "" where that is not told.
    """

    seq: int
    subject: str
    id: str
    domain: str = ""


def written(subject: str, domain: str) -> str:
    """The subject as the feed has it."""
    return f"{subject}@{domain}" if domain else subject


def read(seq: int, subject: str, id: str) -> Change:  # noqa: A002 # the column's name
    """The change of a row."""
    stem, _, domain = subject.partition("@")
    return Change(seq, stem, id, domain)
