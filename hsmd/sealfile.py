"""The seal file: PINs that no UKey opens alone, M of N holders' together.

It is JSON. The PINs are under AES-256-GCM by a random key, and all the rest of the file is bound in; the key
is split by Shamir's scheme, and each share is in a box that only its holder's UKey opens (hsmd/ukey.py).
Nothing here knows what the PINs are for: names and texts.

How it may change: `format` says which form it is. A reader refuses one that it doesn't know, and any member
that it doesn't know; a new member therefore means a new format, and readers keep reading the old ones.
"""

import base64
import binascii
import errno
import hashlib
import hmac
import json
import os
import re
import stat
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsmd import shares, ukey
from hsmd.config import ConfigError
from hsmd.disk import sync_directory

FORMAT = "hsmd-seal-1"
HSM = "hsm"  # the PIN of [hsm]; those of keystores are under KEYSTORE and their cluster id
KEYSTORE = "keystore:"
UNSEAL = "unseal"  # the purpose of the daemon's own file
NEXT = ":next"  # behind a name: the PIN that a change under way is about to set

_ID = re.compile(r"[0-9a-f]{32}")
_PURPOSE = re.compile(r"[a-z][a-z0-9-]{0,31}")
_MOST_BYTES = 1 << 20  # of the file
_MOST_TEXT = 256  # characters of a name
_MOST_BINARY = 16 * 1024  # bytes of a public key, a box, the sealed PINs
_MOST_PINS = 64
_PIN_BYTES = 1024
_IV_BYTES = 12
_BLOCK = 512  # what is sealed is padded, so that its length tells nothing
_DOMAIN = b"hsmd-seal-share-1\0"
_ATTEMPT = "hsmd-unseal-1"


class SealRefused(Exception):  # noqa: N818  # what happened, not an error of ours
    """The shares don't open this file; the text says no more than that."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who is to hold a share: a UKey, its public key as DER and the kind of box that its token can open."""

    ukey_id: str
    name: str
    public_key: bytes
    box_kind: str


@dataclass(frozen=True, slots=True)
class Share:
    """One holder's share. `digest` tells a right share from a wrong one, and nothing of what it is."""

    index: int
    holder: Holder
    box: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """A seal file. `names` are those of the PINs, `created` is in ms since 1970."""

    id: str
    purpose: str
    created: int
    threshold: int
    names: tuple[str, ...]
    shares: tuple[Share, ...]
    iv: bytes
    sealed: bytes

    def share_of(self, ukey_id: str) -> Share | None:
        """The share that this UKey holds; None for a stranger."""
        return next((each for each in self.shares if each.holder.ukey_id == ukey_id), None)

    def context(self, ukey_id: str) -> dict[str, object]:
        """What this UKey's box is bound to: opened for any other purpose it stays shut."""
        return share_context(self.id, self.purpose, ukey_id)


def make(
    pins: Mapping[str, str],
    holders: Sequence[Holder],
    threshold: int,
    *,
    now: int,
    purpose: str = UNSEAL,
) -> Seal:
    """Seal the PINs to the holders, `threshold` of whom open them again. `now` is in ms since 1970.

    Raises ValueError for fewer than two of at least as many holders, for a holder twice, for PINs, names or
    public keys that can't be used, and for what would make a file that no reader takes.
    """
    _check_made(pins, holders, purpose)
    key = os.urandom(shares.SECRET_BYTES)
    seal_id = uuid.uuid4().hex
    parts = shares.split(key, threshold, len(holders))
    held = tuple(
        Share(
            index,
            holder,
            ukey.make_box(
                holder.public_key,
                holder.box_kind,
                parts[index],
                share_context(seal_id, purpose, holder.ukey_id),
            ),
            _digest(seal_id, index, parts[index]),
        )
        for index, holder in enumerate(holders, 1)
    )
    bare = Seal(seal_id, purpose, now, threshold, tuple(sorted(pins)), held, os.urandom(_IV_BYTES), b"")
    text = json.dumps(dict(pins)).encode()
    padded = text.ljust(-(-len(text) // _BLOCK) * _BLOCK)
    made = replace(bare, sealed=AESGCM(key).encrypt(bare.iv, padded, _header(bare)))
    _decoded(json.loads(encode(made)))
    return made


def is_share(seal: Seal, ukey_id: str, share: bytes) -> bool:
    """Whether this is the share that the UKey holds."""
    held = seal.share_of(ukey_id)
    return held is not None and hmac.compare_digest(held.digest, _digest(seal.id, held.index, share))


def unseal(seal: Seal, given: Mapping[str, bytes]) -> dict[str, str]:
    """The PINs by name, from shares by UKey id; of more than are due the first count.

    Raises SealRefused, which says the same for too few shares, wrong ones and a file that was changed.
    """
    by_index = {
        held.index: given[held.holder.ukey_id] for held in seal.shares if held.holder.ukey_id in given
    }
    chosen = dict(list(by_index.items())[: seal.threshold])
    try:
        key = shares.combine(chosen, seal.threshold)
        opened: dict[str, str] = json.loads(AESGCM(key).decrypt(seal.iv, seal.sealed, _header(seal)))
    except (ValueError, InvalidTag) as error:
        raise SealRefused("these shares don't open the seal") from error
    return opened


def attempt_context(attempt: str, seal_id: str, ukey_id: str) -> dict[str, object]:
    """What a share's box for the key of an unsealing attempt is bound to."""
    return {"box": _ATTEMPT, "attempt": attempt, "seal": seal_id, "ukey": ukey_id}


def share_statement(attempt: str, attempt_key: bytes, seal_id: str, ukey_id: str, box: bytes) -> bytes:
    """What a UKey signs when it gives its share in this box, made for the attempt's key (DER)."""
    values = {
        "attempt": attempt,
        "attempt_key": ukey.fingerprint(attempt_key),
        "seal": seal_id,
        "ukey": ukey_id,
        "box": hashlib.sha256(box).hexdigest(),
    }
    return ukey.statement(ukey.Purpose.SHARE, values)


def encode(seal: Seal) -> str:
    """The file's text."""
    document = _described(seal) | {"iv": _text(seal.iv), "sealed": _text(seal.sealed)}
    return json.dumps(document, indent=1) + "\n"


def decode(text: str, where: str) -> Seal:
    """The seal that this text is. Raises ConfigError, which names `where` it stands."""
    try:
        return _decoded(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{where}: this is no seal file: {error}") from error


def read(path: Path) -> Seal:
    """The seal in that file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: the seal file can't be read: {error.strerror}") from error
    if len(raw) > _MOST_BYTES:
        raise ConfigError(f"{path}: this is no seal file: it is larger than {_MOST_BYTES} bytes")
    return decode(raw.decode("utf-8", "replace"), str(path))


def write(path: Path, seal: Seal) -> None:
    """Put the seal there instead of what is: whole or not at all, readable by its owner alone.

    A file that is there keeps its owner and group, where we may give them. Raises OSError.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            _keep_owner(path, file.fileno())
            file.write(encode(seal))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _keep_owner(path: Path, descriptor: int) -> None:
    if not path.exists():
        return
    before = path.stat()
    if not stat.S_ISREG(before.st_mode):
        raise OSError(errno.EEXIST, "something else than a file is there", str(path))
    if os.geteuid() == 0:  # a ceremony run by root: the daemon's user must go on reading it
        os.fchown(descriptor, before.st_uid, before.st_gid)


def share_context(seal_id: str, purpose: str, ukey_id: str) -> dict[str, object]:
    """What a UKey's box is bound to, in a file of that id and purpose."""
    return {"box": FORMAT, "purpose": purpose, "seal": seal_id, "ukey": ukey_id}


def _digest(seal_id: str, index: int, share: bytes) -> bytes:
    """A share has 256 random bits: nobody finds it from this."""
    return hashlib.sha256(_DOMAIN + f"{seal_id}\0{index}\0".encode() + share).digest()


def _header(seal: Seal) -> bytes:
    return json.dumps(_described(seal), sort_keys=True, separators=(",", ":")).encode()


def _described(seal: Seal) -> dict[str, Any]:
    """All of the file that isn't encrypted."""
    return {
        "format": FORMAT,
        "id": seal.id,
        "purpose": seal.purpose,
        "created": seal.created,
        "threshold": seal.threshold,
        "pins": list(seal.names),
        "shares": [
            {
                "index": each.index,
                "ukey_id": each.holder.ukey_id,
                "name": each.holder.name,
                "public_key": _text(each.holder.public_key),
                "box_kind": each.holder.box_kind,
                "box": _text(each.box),
                "digest": _text(each.digest),
            }
            for each in seal.shares
        ],
    }


def _check_made(pins: Mapping[str, str], holders: Sequence[Holder], purpose: str) -> None:
    if not 1 <= len(pins) <= _MOST_PINS or any(
        not pin or len(pin.encode()) > _PIN_BYTES or not name or len(name) > _MOST_TEXT
        for name, pin in pins.items()
    ):
        raise ValueError(f"1 to {_MOST_PINS} PINs of 1 to {_PIN_BYTES} bytes are due")
    if len({each.ukey_id for each in holders}) != len(holders) or len(
        {each.public_key for each in holders}
    ) != len(holders):
        raise ValueError("a holder is there twice: each is due to have one share")
    if not _PURPOSE.fullmatch(purpose):
        raise ValueError("the purpose is a word of small letters")


def _decoded(document: dict[str, Any]) -> Seal:
    if document.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    _only(document, "format id purpose created threshold pins shares iv sealed")
    made = Seal(
        id=_matching(_ID, document["id"]),
        purpose=_matching(_PURPOSE, document["purpose"]),
        created=_number(document["created"], 0, 1 << 53),
        threshold=_number(document["threshold"], shares.LEAST, shares.MOST),
        names=tuple(_short(each) for each in _list(document["pins"], _MOST_PINS)),
        shares=tuple(_share(each) for each in _list(document["shares"], shares.MOST)),
        iv=_binary(document["iv"]),
        sealed=_binary(document["sealed"]),
    )
    if len(made.iv) != _IV_BYTES:
        raise ValueError("its IV has another length")
    if made.threshold > len(made.shares):
        raise ValueError("it has fewer shares than are due")
    if len({each.index for each in made.shares}) != len(made.shares) or len(
        {each.holder.ukey_id for each in made.shares}
    ) != len(made.shares):
        raise ValueError("a share is there twice")
    return made


def _share(document: dict[str, Any]) -> Share:
    _only(document, "index ukey_id name public_key box_kind box digest")
    holder = Holder(
        _short(document["ukey_id"]),
        _short(document["name"]),
        _binary(document["public_key"]),
        _short(document["box_kind"]),
    )
    ukey.public_key(holder.public_key)
    index = _number(document["index"], 1, shares.MOST)
    return Share(index, holder, _binary(document["box"]), _binary(document["digest"]))


def _only(document: dict[str, Any], names: str) -> None:
    if unknown := set(document) - set(names.split()):
        raise ValueError(f"{sorted(unknown)[0]!r:.80} is not known")


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError("a name in it is malformed")
    return value


def _short(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= _MOST_TEXT:
        raise ValueError(f"a name in it is not 1 to {_MOST_TEXT} characters long")
    return value


def _number(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"a number in it is not {least} to {most}")
    return value


def _list(value: object, most: int) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise ValueError(f"a list in it has not 1 to {most} members")
    return value


def _binary(value: object) -> bytes:
    if not isinstance(value, str) or len(value) > 2 * _MOST_BINARY:
        raise ValueError("a binary value in it is malformed")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError("a binary value in it is not base64") from error


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
