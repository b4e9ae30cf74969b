"""How records hang together: each line begins with its number and the SHA-256 of the line before it.

    {"seq":2,"prev":"<SHA-256 of line 1 without its newline, hexadecimal>", ...}

Numbers begin with 1 and have no gaps; `prev` of the first is zeros. So a chain's last number and digest, its
head, stand for all that is before them. Rule of evolution: members may be added behind these two; what these
mean never changes.
"""

import re
from dataclasses import dataclass
from hashlib import sha256

DIGEST_CHARACTERS = 64
LONGEST_LINE = 1024 * 1024  # what is longer is no record of ours

_BEGINNING = re.compile(rb'\{"seq":([1-9][0-9]{0,17}),"prev":"([0-9a-f]{64})"[,}]')


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain stands: the number of its last record, and the SHA-256 of that line (hexadecimal)."""

    seq: int
    digest: str


START = Head(0, "0" * DIGEST_CHARACTERS)


def linked(seq: int, before: bytes, body: bytes) -> bytes:
    """The line, without newline, of this number behind the one of that digest. `body` is a JSON object."""
    if body == b"{}":
        return b'{"seq":%d,"prev":"%b"}' % (seq, before)
    return b'{"seq":%d,"prev":"%b",%b' % (seq, before, body[1:])


def digest(line: bytes) -> bytes:
    """What the next line says of this one."""
    return sha256(line).hexdigest().encode()


def after(head: Head, line: bytes) -> Head:
    """The head once this line stands behind it."""
    return Head(head.seq + 1, sha256(line).hexdigest())


def beginning(line: bytes) -> Head | None:
    """What a line says it follows: its own number, and the digest of the line before; None if no record."""
    found = _BEGINNING.match(line)
    return Head(int(found[1]), found[2].decode()) if found else None


def head_of(line: bytes) -> Head | None:
    """The head of a chain that ends with this line; None if it is no record."""
    begins = beginning(line)
    return Head(begins.seq, sha256(line).hexdigest()) if begins else None
