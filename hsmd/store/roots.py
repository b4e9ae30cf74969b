"""The root keys that this service has had, and which of them wraps what is new.

What stands of them is one sealed document, so that they are changed together. A store that has none is from
before root keys were replaced: its one root key is the first.
"""

import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass

from hsmd.errors import UNAVAILABLE, Error
from hsmd.store import service_settings
from hsmd.store.core import Tx

FIRST = "hsmd-root-1"
LABEL = re.compile(r"hsmd-root-([1-9][0-9]{0,8})")

# What a root key can be.
CURRENT = "current"  # it wraps what is new
OLD = "old"  # it unwraps what it has wrapped
ENDING = "ending"  # nothing needs it, it is being destroyed
DESTROYED = "destroyed"

_NAME = "root-keys"  # of the document


@dataclass(frozen=True, slots=True)
class RootKey:
    """A root key. Times are in milliseconds since 1970 UTC, 0 for what has not come.

    `check_value` is its key check value (hexadecimal; "" of a first one that nobody has looked at).
    `replaced`: when another one took its place; `moved`: since when no row needs it; `ending`: since when it
    is. `pins`: there may be PINs that it has wrapped, which are kept nowhere.
    """

    label: str
    state: str
    check_value: str
    since: int
    replaced: int = 0
    moved: int = 0
    ending: int = 0
    destroyed: int = 0
    pins: bool = False


_UNNAMED = (RootKey(FIRST, CURRENT, "", 0, pins=True),)


def root_keys(tx: Tx) -> tuple[RootKey, ...]:
    """All of them, the first one first; one is CURRENT. Raises SealBroken."""
    document = service_settings.setting(tx, _NAME)
    return tuple(RootKey(**each) for each in json.loads(document)) if document else _UNNAMED


def put_root_keys(tx: Tx, found: Collection[RootKey]) -> None:
    """What they are from now on. Raises SealBroken."""
    service_settings.put_setting(tx, _NAME, json.dumps([asdict(each) for each in found]))


def number(label: str) -> int:
    """The number in a root key's label; 0 for another label."""
    found = LABEL.fullmatch(label)
    return int(found[1]) if found else 0


def check_usable(tx: Tx, label: str | None) -> None:
    """Raises Error(UNAVAILABLE) when what that root key has wrapped must not be stored any more.

    Whoever stores what is wrapped asks in the same transaction: a root key is destroyed only after a
    transaction that says so has found nothing that needs it.
    """
    if not label:
        return
    if any(each.label == label and each.state in (ENDING, DESTROYED) for each in root_keys(tx)):
        raise Error(UNAVAILABLE, reason="the root key has been replaced meanwhile; try again")
