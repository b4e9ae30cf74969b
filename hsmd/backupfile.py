"""The form of a backup: what stands in it, and that nothing of it was changed. No token, no store.

    8       magic and format version
    4       n, length of the next field, big-endian
    n       header: JSON
    32      HMAC of all before, by the sealing key, in the HSM
    then, until the end, chunks:
    4       m, length of the next field, big-endian
    m       at most 64 KiB, by AES-256-GCM in the HSM; the IV is the chunk's number, from 0

The data key is born in the HSM for this backup alone; the header holds it wrapped by the root key. Each chunk
is bound to the header's SHA-256, to its number, and to whether it is the last: nothing can be left out, moved
or added. What the chunks hold is 4 bytes of length and a list of parts (JSON: name, path, size, SHA-256),
then the parts, one behind the other.

Another form gets another magic. Whoever restores needs this one as long as there are backups of it.
"""

import base64
import binascii
import hashlib
import hmac
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

MAGIC = b"HSMDBK\x00\x01"
CHUNK_BYTES = 64 * 1024
MOST_PARTS = 200

_LENGTH = struct.Struct(">I")
_NUMBER = struct.Struct(">4xQ")  # an IV of 12 bytes
_MAC_BYTES = 32
_TAG_BYTES = 16
_MOST_HEADER = 1 << 20
_MOST_LIST = 1 << 20
_PURPOSE = b"hsmd backup header\0"
_CHUNK = b"hsmd backup chunk\0"

Mac = Callable[[bytes], bytes]
Cipher = Callable[[bytes, bytes, bytes], bytes]
"""AES-GCM of (IV, data, additional data)."""


class BackupError(Exception):
    """It is no backup, or not as it was made; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Administrator:
    """A UKey that may approve a restore. `public_key` is DER SubjectPublicKeyInfo."""

    id: str
    name: str
    fingerprint: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What can be read of a backup without the HSM. `created` is in ms since 1970 UTC.

    `root_label` and `check_value` tell the root key that wraps `data_key`; `needed` is how many of the
    administrators have to approve a restore.
    """

    created: int
    version: str
    instance: str
    region: str
    schema: str
    root_label: str
    check_value: str
    data_key: bytes
    needed: int
    administrators: tuple[Administrator, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One thing in a backup: `name` says what it is, `path` where it stood, "" for none."""

    name: str
    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a backup: its header, and the bytes that the HMAC is over."""

    header: Header
    raw: bytes
    mac: bytes

    @property
    def digest(self) -> str:
        """What names this backup: the SHA-256 of its header, in hex."""
        return hashlib.sha256(self.raw).hexdigest()

    def is_whole(self, mac: Mac) -> bool:
        """Whether the header is what was written."""
        return hmac.compare_digest(mac(_PURPOSE + self.raw), self.mac)


def begin(header: Header, mac: Mac) -> tuple[bytes, bytes]:
    """The first bytes of a backup, and the digest that its chunks are bound to."""
    content = json.dumps(_tree(header), separators=(",", ":"), sort_keys=True).encode()
    raw = MAGIC + _LENGTH.pack(len(content)) + content
    return raw + mac(_PURPOSE + raw), hashlib.sha256(raw).digest()


class Writer:
    """Encrypts what is written, chunk by chunk, into a file that has the header already."""

    def __init__(self, file: BinaryIO, digest: bytes, encrypt: Cipher) -> None:
        self._file = file
        self._digest = digest
        self._encrypt = encrypt
        self._waiting = bytearray()
        self._number = 0

    def begin_parts(self, parts: list[Part]) -> None:
        """The list of what comes: to be written first, then each part, in its order."""
        listed = json.dumps([asdict(each) for each in parts], separators=(",", ":")).encode()
        self.write(_LENGTH.pack(len(listed)) + listed)

    def write(self, data: bytes) -> None:
        """More of it."""
        self._waiting += data
        while len(self._waiting) > CHUNK_BYTES:  # one is kept back: it may be the last
            self._put(bytes(self._waiting[:CHUNK_BYTES]), last=False)
            del self._waiting[:CHUNK_BYTES]

    def end(self) -> None:
        """Nothing more comes."""
        self._put(bytes(self._waiting), last=True)

    def _put(self, data: bytes, *, last: bool) -> None:
        sealed = self._encrypt(
            _NUMBER.pack(self._number), data, _bound(self._digest, self._number, last=last)
        )
        self._file.write(_LENGTH.pack(len(sealed)) + sealed)
        self._number += 1


def read_opening(file: BinaryIO) -> Opening:
    """The header, not yet checked by the HSM. Raises BackupError, OSError."""
    front = _exactly(file, len(MAGIC) + _LENGTH.size)
    if not front.startswith(MAGIC):
        raise BackupError("it is no backup of hsmd, or one of another form")
    (size,) = _LENGTH.unpack(front[len(MAGIC) :])
    if size > _MOST_HEADER:
        raise BackupError("its header is too long")
    content = _exactly(file, size)
    mac = _exactly(file, _MAC_BYTES)
    return Opening(_header(content), front + content, mac)


class Reader:
    """Decrypts a backup whose header was read and checked. Raises BackupError for whatever was changed."""

    def __init__(self, file: BinaryIO, opening: Opening, decrypt: Cipher, forged: type[Exception]) -> None:
        """`decrypt` raises `forged` for what was not encrypted so."""
        self._chunks = _chunks(file, hashlib.sha256(opening.raw).digest(), decrypt, forged)
        self._ready = bytearray()

    def parts(self) -> list[Part]:
        """What comes, in its order."""
        (size,) = _LENGTH.unpack(self.take(_LENGTH.size))
        if size > _MOST_LIST:
            raise BackupError("its list of parts is too long")
        try:
            found = [Part(**each) for each in json.loads(self.take(size))]
        except (ValueError, TypeError) as error:
            raise BackupError("its list of parts can't be read") from error
        if len(found) > MOST_PARTS:
            raise BackupError("it has too many parts")
        return found

    def take(self, size: int) -> bytes:
        """The next bytes, exactly so many."""
        while len(self._ready) < size:
            self._ready += self._next()
        taken = bytes(self._ready[:size])
        del self._ready[:size]
        return taken

    def copy(self, part: Part, into: Callable[[bytes], object]) -> None:
        """Hand out a part piece by piece, and see that it is the one in the list."""
        hashed, left = hashlib.sha256(), part.size
        while left:
            piece = self.take(min(left, CHUNK_BYTES))
            hashed.update(piece)
            into(piece)
            left -= len(piece)
        if hashed.hexdigest() != part.sha256:
            raise BackupError(f"its part {part.name} is not what the list says")

    def end(self) -> None:
        """Nothing more stands there."""
        for piece in self._chunks:
            self._ready += piece
        if self._ready:
            raise BackupError("there is more in it than its list says")

    def _next(self) -> bytes:
        piece = next(self._chunks, None)
        if piece is None:
            raise BackupError("it ends too early")
        return piece


def _chunks(file: BinaryIO, digest: bytes, decrypt: Cipher, forged: type[Exception]) -> Iterator[bytes]:
    number = 0
    length = _exactly(file, _LENGTH.size)
    while True:
        (size,) = _LENGTH.unpack(length)
        if not _TAG_BYTES <= size <= CHUNK_BYTES + _TAG_BYTES:
            raise BackupError("it was changed: a chunk has no such length")
        sealed = _exactly(file, size)
        length = file.read(_LENGTH.size)
        if length and len(length) != _LENGTH.size:
            raise BackupError("it was changed: something stands behind its end")
        try:
            yield decrypt(_NUMBER.pack(number), sealed, _bound(digest, number, last=not length))
        except forged as error:
            raise BackupError(f"it was changed or cut: chunk {number} is not what was written") from error
        if not length:
            return
        number += 1


def _bound(digest: bytes, number: int, *, last: bool) -> bytes:
    return _CHUNK + digest + number.to_bytes(8, "big") + bytes([last])


def _exactly(file: BinaryIO, size: int) -> bytes:
    found = file.read(size)
    if len(found) != size:
        raise BackupError("it ends too early")
    return found


def _tree(header: Header) -> dict[str, Any]:
    tree = asdict(header)
    tree["data_key"] = base64.b64encode(header.data_key).decode()
    for each in tree["administrators"]:
        each["public_key"] = base64.b64encode(each["public_key"]).decode()
    return tree


def _header(content: bytes) -> Header:
    try:
        tree = json.loads(content)
        tree["data_key"] = base64.b64decode(tree["data_key"], validate=True)
        tree["administrators"] = tuple(
            Administrator(**{**each, "public_key": base64.b64decode(each["public_key"], validate=True)})
            for each in tree["administrators"]
        )
        header = Header(**tree)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
        raise BackupError("its header can't be read") from error
    texts = (
        header.version,
        header.instance,
        header.region,
        header.schema,
        header.root_label,
        header.check_value,
    )
    numbers = (header.created, header.needed)
    if not all(isinstance(each, str) for each in texts) or not all(type(each) is int for each in numbers):
        raise BackupError("its header can't be read")
    return header
