"""Who may restore a backup: as many administrators as the quorum was, each by its UKey's signature.

It happens where no daemon runs yet, so what is signed travels in files: the statement names the backup, the
host that it is restored on, and until when; each administrator signs it wherever the UKey is.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from hsmd import ukey
from hsmd.backupfile import BackupError, Header, Opening
from hsmd.ukey import Purpose, UKeyError

_MOST_BYTES = 16 * 1024  # of a statement, an approval


@dataclass(frozen=True, slots=True)
class Statement:
    """What is signed. `backup` is the backup's digest; `created` and `expires` are in ms since 1970 UTC."""

    backup: str
    created: int
    instance: str
    root: str
    host: str
    expires: int

    @property
    def words(self) -> str:
        """The same for people."""
        return (
            f"Restore the backup of {_day(self.created)} of the installation {self.instance} on the host "
            f"{self.host}. Its root key is {self.root}, its digest {self.backup}. "
            f"This approval is good until {_day(self.expires)}."
        )

    @property
    def signed(self) -> bytes:
        """What a UKey signs."""
        return ukey.statement(Purpose.RESTORE, asdict(self))

    @property
    def text(self) -> str:
        """How it travels."""
        return json.dumps(asdict(self), indent=2) + "\n"


def statement(opening: Opening, host: str, expires: int) -> Statement:
    """What is to be signed for this backup, there, until then (ms)."""
    header = opening.header
    root = f"{header.root_label} {header.check_value}"
    return Statement(opening.digest, header.created, header.instance, root, host, expires)


def read_statement(text: bytes) -> Statement:
    """A statement from its file. Raises BackupError."""
    tree = _tree(text)
    try:
        found = Statement(**tree)  # type: ignore[arg-type]  # the next line finds out
        found.signed, found.words  # noqa: B018  # that they can be made
    except (TypeError, ValueError, OverflowError) as error:
        raise BackupError("the statement can't be read") from error
    return found


def approval(signer: str, signature: bytes) -> str:
    """How an approval travels. `signer` is the fingerprint of the UKey's public key."""
    tree = {"fingerprint": signer, "signature": base64.b64encode(signature).decode()}
    return json.dumps(tree, indent=2) + "\n"


def check_approvals(
    opening: Opening, wanted: Statement | None, approvals: Iterable[bytes], host: str, now: int
) -> list[str]:
    """The names of those who approve. Raises BackupError for too few, and for any that doesn't count.

    A backup of an installation without a quorum needs nobody.
    """
    header = opening.header
    if not header.needed:
        return []
    if wanted is None:
        raise BackupError(
            f"{header.needed} administrators have to approve: a statement and approvals are due"
        )
    if wanted != statement(opening, host, wanted.expires):
        raise BackupError("the statement is for another backup or another host")
    if now >= wanted.expires:
        raise BackupError("the statement's time is over")
    names = {_approved(header, wanted, each) for each in approvals}
    if len(names) < header.needed:
        raise BackupError(f"{header.needed} administrators have to approve, there are {len(names)} who do")
    return sorted(names)


def _approved(header: Header, wanted: Statement, text: bytes) -> str:
    tree = _tree(text)
    try:
        signature = base64.b64decode(str(tree["signature"]), validate=True)
        (known,) = [each for each in header.administrators if each.fingerprint == tree["fingerprint"]]
        right = ukey.verify(known.public_key, wanted.signed, signature)
    except (KeyError, ValueError, UKeyError, binascii.Error) as error:
        raise BackupError("an approval is none of an administrator of this backup") from error
    if not right:
        raise BackupError(f"the approval of {known.name} is not of this statement")
    return known.name


def _tree(text: bytes) -> Mapping[str, object]:
    if len(text) > _MOST_BYTES:
        raise BackupError("a statement or approval is too long")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BackupError("a statement or approval is no JSON") from error
    if not isinstance(found, dict):
        raise BackupError("a statement or approval is no JSON object")
    return found


def _day(millis: int) -> str:
    return f"{datetime.fromtimestamp(millis / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
