"""Envelope encryption of files of any size: a fresh Tink keyset a file, encrypted by a CMK.

The format is described for readers in docs/file-format.md. Tink's streams call back from C++, which has
consequences handled in `_Pipe`.
"""

import errno
import io
import math
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Self, cast

from hsmd.client.client import Client
from hsmd.client.errors import NO_TINK, ApiError, ClientError
from hsmd.client.tink import PREFIX, HsmdKmsClient, key_of
from hsmd.errors import CIPHERTEXT_INVALID

try:
    import tink
    from tink import proto_keyset_format, streaming_aead
except ImportError as error:
    raise ImportError(NO_TINK) from error

_MAGIC = b"HSMDFILE"
_VERSION = 1
_FIXED = struct.Struct(">8sHHI")
_LARGEST_URI = 512
_LARGEST_KEYSET = 8192
_TEMPLATE = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
_KEY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Tink's AES256_GCM_HKDF_1MB: the first segment begins with the stream's header, each ends with a tag.
_SEGMENT = 1 << 20
_STREAM_HEADER = 40
_TAG = 16

streaming_aead.register()  # in Tink's own registry, where repeating it changes nothing

Progress = Callable[[int], None]


class FileFormatError(ClientError):
    """The input is no encrypted file, or not as it was written, or not what was expected."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the stream, format 1.

        8 bytes "HSMDFILE" | 2 version | 2 length of URI | 4 length of keyset | URI | encrypted keyset

    Numbers are big-endian and unsigned. The whole header is the stream's associated data.

    Rule of evolution: the first ten bytes stay in every version. Whatever else changes (the layout, the kind
    of key in the keyset, what is bound to what) gets a new version number; readers refuse versions that they
    don't know, writers write the newest, and a version once released is read for ever.
    """

    key_uri: str
    keyset: bytes

    def pack(self) -> bytes:
        """The header's bytes."""
        uri = self.key_uri.encode("ascii")
        return _FIXED.pack(_MAGIC, _VERSION, len(uri), len(self.keyset)) + uri + self.keyset

    @classmethod
    def read(cls, source: BinaryIO) -> Self:
        """Take the header off the front of a file. Raises FileFormatError."""
        fixed = _read_fully(source, _FIXED.size)
        if fixed[: len(_MAGIC)] != _MAGIC[: len(fixed)] or not fixed:
            raise FileFormatError("this is not a file encrypted by hsmctl")
        if len(fixed) < _FIXED.size:
            raise FileFormatError("the file is cut short in its header")
        _, version, uri_size, keyset_size = _FIXED.unpack(fixed)
        if version != _VERSION:
            raise FileFormatError(f"the file has format {version}; this hsmctl reads format {_VERSION}")
        if uri_size > _LARGEST_URI or keyset_size > _LARGEST_KEYSET:
            raise FileFormatError("the file's header is damaged")
        rest = _read_fully(source, uri_size + keyset_size)
        if len(rest) < uri_size + keyset_size:
            raise FileFormatError("the file is cut short in its header")
        uri = rest[:uri_size].decode("ascii", "replace")
        if not key_of(uri):
            raise FileFormatError("the file's header is damaged")
        return cls(uri, rest[uri_size:])


def encrypt(
    client: Client, key_id: str, source: BinaryIO, destination: BinaryIO, progress: Progress = lambda _: None
) -> str:
    """Encrypt all of `source` into `destination` and return the CMK's id, which the file then names.

    `progress` is told the number of bytes each time some were read. The files are not closed. Raises
    ApiError, and OSError from the files; `destination` holds nothing of use then.
    """
    resolved = _resolve(client, key_id)
    uri = PREFIX + resolved
    handle = tink.new_keyset_handle(_TEMPLATE)
    remote = HsmdKmsClient(client).get_aead(uri)
    with _api_errors():
        keyset = proto_keyset_format.serialize_encrypted(handle, remote, _keyset_context(uri))
    header = Header(uri, keyset).pack()
    destination.write(header)
    pipe = _Pipe(destination)
    with pipe.failing():
        stream = _primitive(handle).new_encrypting_stream(cast("BinaryIO", pipe), header)
        while chunk := _read(source, _SEGMENT):
            stream.write(chunk)
            progress(len(chunk))
        stream.close()
    return resolved


def decrypt(
    client: Client,
    source: BinaryIO,
    destination: BinaryIO,
    *,
    key_id: str = "",
    progress: Progress = lambda _: None,
) -> str:
    """Decrypt all of `source` into `destination` and return the CMK's id.

    Each segment is written once it is verified; only when this returns was all of the file there. With
    `key_id`, a file under another CMK is refused. Raises FileFormatError for an input that is not as it was
    written, ApiError, and OSError from the files. The files are not closed.
    """
    header = Header.read(source)
    named = key_of(header.key_uri)
    if key_id and _resolve(client, key_id) != named:
        raise FileFormatError(f"the file is encrypted under the key {named}, not under {key_id}")
    handle = _open_keyset(client, header)
    pipe = _Pipe(source)
    done = 0
    try:
        with pipe.failing():
            opened = _primitive(handle).new_decrypting_stream(cast("BinaryIO", pipe), header.pack())
            stream = cast("io.BufferedReader", opened)  # whose read1 gives segment after segment
            while chunk := stream.read1(_SEGMENT):
                destination.write(chunk)
                done += len(chunk)
                progress(len(chunk))
    except tink.TinkError as error:
        raise FileFormatError(
            f"the file is damaged, changed or cut short: only its first {done} bytes can be verified"
        ) from error
    # Tink looks at nothing behind a last segment that is full; it may have read some of it, though.
    if pipe.passed != _stream_size(done) or _read(source, 1):
        raise FileFormatError(f"something was added to the file, behind its {done} bytes")
    return named


def _resolve(client: Client, key_id: str) -> str:
    """The key's id: names can move to other keys, and files are kept for long."""
    return key_id if _KEY_ID.fullmatch(key_id) else client.describe_key(key_id).key_id


def _keyset_context(uri: str) -> bytes:
    """Binds an encrypted keyset to its purpose, format and key: it opens as nothing else."""
    return _FIXED.pack(_MAGIC, _VERSION, len(uri), 0) + uri.encode("ascii")


def _open_keyset(client: Client, header: Header) -> tink.KeysetHandle:
    remote = HsmdKmsClient(client).get_aead(header.key_uri)
    try:
        with _api_errors():
            handle = proto_keyset_format.parse_encrypted(
                header.keyset, remote, _keyset_context(header.key_uri)
            )
    except tink.TinkError as error:
        raise FileFormatError("the file's header is damaged or changed") from error
    except ApiError as error:
        if error.code != CIPHERTEXT_INVALID.code:
            raise
        raise FileFormatError(
            f"the file's header is damaged or changed: {header.key_uri} does not open it"
        ) from error
    kinds = [each.type_url for each in handle.keyset_info().key_info]
    if kinds != [_TEMPLATE.type_url]:
        raise FileFormatError("the file's keyset is not of format 1")
    return handle


def _stream_size(plaintext: int) -> int:
    """Bytes of the stream for so many bytes of plaintext."""
    segments = max(1, math.ceil((_STREAM_HEADER + plaintext) / (_SEGMENT - _TAG)))
    return _STREAM_HEADER + plaintext + segments * _TAG


def _primitive(handle: tink.KeysetHandle) -> streaming_aead.StreamingAead:
    return handle.primitive(streaming_aead.StreamingAead)  # type: ignore[type-abstract]  # Tink's way to name it


@contextmanager
def _api_errors() -> Iterator[None]:
    """Raise the ApiError behind a TinkError, which is what a caller can act on."""
    try:
        yield
    except tink.TinkError as error:
        if isinstance(error.__cause__, ApiError):
            raise error.__cause__ from error
        raise


def _read(source: BinaryIO, size: int) -> bytes:
    """Some bytes, none at the end only."""
    data: bytes | None = source.read(size)
    if data is None:  # taken for the end, it would make a shortened file look whole
        raise BlockingIOError(errno.EAGAIN, "the input is not in blocking mode")
    return data


def _read_fully(source: BinaryIO, size: int) -> bytes:
    """Up to `size` bytes, fewer only at the end: a pipe may give them in pieces."""
    parts = bytearray()
    while len(parts) < size and (part := _read(source, size - len(parts))):
        parts += part
    return bytes(parts)


class _Pipe(io.RawIOBase):
    """Stands between Tink and a file, for two reasons.

    Tink's C++ turns whatever the file raises, a full disk as well as Ctrl-C, into a TinkError: the first
    exception is kept here and raised in its place. And closing an encrypting stream, which the garbage
    collector does too, ends the ciphertext validly, however much of the plaintext went missing: after a
    failure nothing passes any more. The file itself is never closed from here.

    What a signal handler raises while Tink's own lines of Python run can't be kept: it comes out as damage or
    as a TinkError. Who cares for the difference must remember the signal, as hsmctl does.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.passed = 0  # bytes read
        self._file = file
        self._failure: BaseException | None = None

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Whatever goes wrong in here ends the pipe, and comes out as it was raised first."""
        try:
            yield
        except BaseException as error:
            if self._failure is not None:
                raise self._failure from None
            self._failure = error
            raise

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._pass(lambda wanted: _read(self._file, wanted), size)
        self.passed += len(data)
        return data

    def write(self, data: Any) -> int:
        written: int = self._pass(self._file.write, data)
        return written

    def _pass(self, operation: Callable[[Any], Any], argument: Any) -> Any:
        if self._failure is not None:
            raise self._failure
        try:
            return operation(argument)
        except BaseException as error:
            self._failure = error
            raise
