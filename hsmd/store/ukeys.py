"""The registry of UKeys: read as a whole, since its rows vouch for each other.

A sealed row can't be forged, but could be taken away, or an older one put back: a UKey that was revoked
would count again. So a digest of all rows, with a number that only grows, is sealed as well, and whoever
takes single rows back finds the registry broken. (A whole older store put back is for the audit log to tell.)
"""

import hashlib
import json
from dataclasses import astuple, dataclass

from hsmd.store import service_settings
from hsmd.store.core import Tx
from hsmd.store.schema import UKEYS
from hsmd.store.seals import SealBroken, Sealed, canonical

SUBJECT = "ukeys"  # in the change feed


@dataclass(frozen=True, slots=True)
class UKey:
    """An enrolled UKey. Times are in milliseconds since 1970 UTC; `revoked` None: it counts.

    `fingerprint` is the SHA-256 of the public key (DER SubjectPublicKeyInfo) in hex. `opens` is the kind of
    boxes (hsmd/ukey.py) that its token can open, "" for none.
    """

    id: str
    name: str
    role: str
    serial: str
    fingerprint: str
    public_key: bytes
    certificate: bytes
    opens: str
    created: int
    created_by: str
    revoked: int | None = None
    revoked_by: str | None = None


_UKEYS = Sealed(UKEYS, UKey)

_all = _UKEYS.where().order_by(UKEYS.c.created, UKEYS.c.id)


def registry(tx: Tx) -> tuple[UKey, ...]:
    """All UKeys, revoked ones too, oldest first. Raises SealBroken also for rows that are gone or older."""
    found = tuple(_UKEYS.many(tx, _all))
    kept = service_settings.setting(tx, service_settings.UKEYS)
    if (json.loads(kept)["digest"] if kept else "") != (_digest(found) if found else ""):
        raise SealBroken(UKEYS.name, "registry")
    return found


def insert_ukey(tx: Tx, ukey: UKey) -> None:
    """Enrol a UKey. Raises SealBroken."""
    registry(tx)
    _UKEYS.insert(tx, ukey)
    _close(tx, ukey)


def update_ukey(tx: Tx, ukey: UKey) -> None:
    """Replace the UKey's row. Raises SealBroken."""
    registry(tx)
    _UKEYS.update(tx, ukey)
    _close(tx, ukey)


def serial_number(tx: Tx) -> int:
    """How often the registry was changed. Raises SealBroken."""
    kept = service_settings.setting(tx, service_settings.UKEYS)
    return int(json.loads(kept)["number"]) if kept else 0


def _close(tx: Tx, ukey: UKey) -> None:
    document = {"number": serial_number(tx) + 1, "digest": _digest(tuple(_UKEYS.many(tx, _all)))}
    service_settings.put_setting(tx, service_settings.UKEYS, json.dumps(document))
    tx.changed(SUBJECT, ukey.id)


def _digest(rows: tuple[UKey, ...]) -> str:
    names = UKey.__slots__
    parts = [canonical(UKEYS.name, dict(zip(names, astuple(row), strict=True))) for row in rows]
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).hexdigest()
