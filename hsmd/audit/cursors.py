"""How far the log was forwarded to each receiver: a small file each, replaced as a whole and on disk at once.

    forwarding/NAME.json    {"records":{"worker-0":4711,...},"checkpoints":{"checkpoints":12},"lost":0,
                             "since":"...","error":"..."}

By chain the number of the last record that the receiver has taken. `since` and `error` tell of the trouble
there is now, both "" when there is none; `lost` counts records that were gone before they were forwarded.
Rule of evolution: members may be added; one that a reader misses counts as none.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsmd.audit import onwards, segments
from hsmd.audit.segments import CHECKPOINTS, RECORDS
from hsmd.disk import sync_directory

FOLDER = "forwarding"
SUFFIXES = {RECORDS: "records", CHECKPOINTS: "checkpoints"}  # in this order they are sent


@dataclass(frozen=True, slots=True)
class Cursor:
    """What the file says. `taken` by suffix and name of the chain."""

    taken: Mapping[tuple[str, str], int] = field(default_factory=dict)
    lost: int = 0
    since: str = ""
    error: str = ""


def path_of(directory: Path, name: str) -> Path:
    """Where the cursor of the receiver of that name is."""
    return directory / FOLDER / f"{name}.json"


def read(path: Path) -> Cursor:
    """The cursor; a new one where there is no file. Raises OSError, and ValueError for what is none."""
    try:
        tree: dict[str, Any] = json.loads(path.read_bytes())
        taken = {
            (suffix, str(name)): int(seq)
            for suffix, member in SUFFIXES.items()
            for name, seq in tree.get(member, {}).items()
        }
        return Cursor(taken, int(tree.get("lost", 0)), str(tree.get("since", "")), str(tree.get("error", "")))
    except FileNotFoundError:
        return Cursor()
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no cursor") from error


def write(path: Path, cursor: Cursor) -> None:
    """Replace the file; what it said before stays until all of it is on disk. Raises OSError."""
    tree: dict[str, Any] = {
        member: {name: seq for (kind, name), seq in sorted(cursor.taken.items()) if kind == suffix}
        for suffix, member in SUFFIXES.items()
    }
    tree |= {"lost": cursor.lost, "since": cursor.since, "error": cursor.error}
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
        file.write(json.dumps(tree).encode())
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_directory(path.parent)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a receiver is served: records that it has not taken yet, and the trouble since when, if any."""

    name: str
    behind: int
    lost: int
    since: str
    error: str


def standing(directory: Path, name: str) -> Standing:
    """By the log's files alone, so for any process. Raises OSError, ValueError."""
    cursor = read(path_of(directory, name))
    behind = sum(
        onwards.behind(directory, each, suffix, cursor.taken.get((suffix, each), 0))
        for suffix in SUFFIXES
        for each in (segments.chains(directory, suffix) if directory.exists() else ())
    )
    return Standing(name, behind, cursor.lost, cursor.since, cursor.error)
