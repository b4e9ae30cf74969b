"""Envelope encryption of files: borders of segments, damage everywhere, failures of either side."""

import dataclasses
import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tink
from tink import proto_keyset_format, streaming_aead

from hsmd.client import ApiError, Client, files
from hsmd.client.files import FileFormatError, Header
from hsmd.client.tink import HsmdKmsClient
from tests.stand_in import RefusalError, StandIn, running

_SEGMENT = 1 << 20
# First segment: Tink's stream header (40 bytes) and a tag of 16; the others: a tag.
_FIRST = _SEGMENT - 40 - 16
_NEXT = _SEGMENT - 16


@dataclasses.dataclass
class Place:
    """A service with one key."""

    service: StandIn
    client: Client
    key_id: str

    def encrypted(self, data: bytes, key_id: str = "alias/files") -> bytes:
        out = io.BytesIO()
        files.encrypt(self.client, key_id, io.BytesIO(data), out)
        return out.getvalue()

    def decrypted(self, data: bytes, **options: Any) -> bytes:
        out = io.BytesIO()
        files.decrypt(self.client, io.BytesIO(data), out, **options)
        return out.getvalue()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with running(tmp_path) as service, service.client() as client:
        yield Place(service, client, service.add("files"))


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        15,
        _FIRST - 1,
        _FIRST,
        _FIRST + 1,
        _SEGMENT,
        _FIRST + _NEXT,
        _FIRST + _NEXT + 1,
        5 * _SEGMENT + 3,
    ],
)
def test_any_size_comes_back(place: Place, size: int) -> None:
    data = os.urandom(size)
    sealed = place.encrypted(data)
    assert place.decrypted(sealed) == data
    assert size < 16 or data[:16] not in sealed


def test_the_file_is_as_documented(place: Place) -> None:
    """Read it by hand, as docs/file-format.md says, with Tink alone."""
    sealed = place.encrypted(b"contents")
    magic, version, uri_size, keyset_size = struct.unpack(">8sHHI", sealed[:16])
    assert (magic, version) == (b"HSMDFILE", 1)
    uri = sealed[16 : 16 + uri_size]
    assert uri.decode() == f"hsmd://{place.key_id}"
    end = 16 + uri_size + keyset_size
    remote = HsmdKmsClient(place.client).get_aead(uri.decode())
    context = b"HSMDFILE" + struct.pack(">HHI", 1, uri_size, 0) + uri
    handle = proto_keyset_format.parse_encrypted(sealed[16 + uri_size : end], remote, context)
    streaming_aead.register()
    primitive = handle.primitive(streaming_aead.StreamingAead)  # type: ignore[type-abstract]  # Tink's way
    stream = primitive.new_decrypting_stream(io.BytesIO(sealed[end:]), sealed[:end])
    assert stream.read() == b"contents"
    assert end < 600


def test_each_file_has_a_key_of_its_own(place: Place) -> None:
    first, second = (Header.read(io.BytesIO(place.encrypted(b"same"))) for _ in range(2))
    assert first.keyset != second.keyset


def test_a_renamed_key_still_opens_its_files(place: Place) -> None:
    sealed = place.encrypted(b"text")
    place.client.rename(place.key_id, "elsewhere")
    place.service.add("files")
    assert place.decrypted(sealed) == b"text"


def test_a_file_names_its_key_and_decrypt_may_insist(place: Place) -> None:
    other = place.service.add("other")
    sealed = place.encrypted(b"text")
    assert place.decrypted(sealed, key_id="alias/files") == b"text"
    assert place.decrypted(sealed, key_id=place.key_id) == b"text"
    for wrong in ("alias/other", other):
        with pytest.raises(FileFormatError, match=f"under the key {place.key_id}, not under {wrong}"):
            place.decrypted(sealed, key_id=wrong)


def test_no_changed_byte_of_a_small_file_passes(place: Place) -> None:
    sealed = place.encrypted(b"a small secret")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises((FileFormatError, ApiError)) as caught:
            place.decrypted(bytes(changed))
        if isinstance(caught.value, ApiError):  # the header names another key now
            assert caught.value.code == "KMS.0207"


def test_no_shortened_small_file_passes(place: Place) -> None:
    sealed = place.encrypted(b"a small secret")
    for size in range(len(sealed)):
        with pytest.raises(FileFormatError):
            place.decrypted(sealed[:size])


@pytest.mark.parametrize("lost", [1, 16, _SEGMENT - 16, _SEGMENT, _SEGMENT + 1, 2 * _SEGMENT])
def test_a_large_file_cut_short(place: Place, lost: int) -> None:
    sealed = place.encrypted(bytes(_FIRST + 3 * _NEXT))
    with pytest.raises(FileFormatError, match=r"only its first \d+ bytes can be verified"):
        place.decrypted(sealed[:-lost])


@pytest.mark.parametrize("size", [0, 5, _FIRST - 1, _FIRST, _FIRST + _NEXT, _FIRST + _NEXT + 1])
@pytest.mark.parametrize("added", [1, 16, 17, 200_000, _SEGMENT, 2 * _SEGMENT])
def test_nothing_can_be_added(place: Place, size: int, added: int) -> None:
    with pytest.raises(FileFormatError):
        place.decrypted(place.encrypted(bytes(size)) + bytes(added))


def test_segments_can_not_be_added_moved_or_taken_from_another_file(place: Place) -> None:
    sealed, other = (place.encrypted(os.urandom(_FIRST + 2 * _NEXT)) for _ in range(2))
    start = len(sealed) - 3 * _SEGMENT
    parts = [sealed[start + n * _SEGMENT : start + (n + 1) * _SEGMENT] for n in range(3)]
    for changed in (
        sealed + b"\0",
        sealed + parts[2],
        sealed[:start] + parts[0] + parts[2] + parts[1],
        sealed[:start] + parts[1] + parts[2],
        other[: len(other) - _SEGMENT] + parts[2],
        other[: len(other) - 3 * _SEGMENT] + b"".join(parts),
    ):
        with pytest.raises(FileFormatError):
            place.decrypted(changed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a file encrypted by hsmctl"),
        (b"plain text of somebody", "not a file encrypted by hsmctl"),
        (b"HSMD", "cut short in its header"),
        (b"HSMDFILE\0\1\0\5", "cut short in its header"),
        (struct.pack(">8sHHI", b"HSMDFILE", 2, 5, 5), "format 2; this hsmctl reads format 1"),
        (struct.pack(">8sHHI", b"HSMDFILE", 1, 513, 5) + bytes(1000), "header is damaged"),
        (struct.pack(">8sHHI", b"HSMDFILE", 1, 5, 2**32 - 1) + bytes(1000), "header is damaged"),
        (struct.pack(">8sHHI", b"HSMDFILE", 1, 5, 5) + b"\x1b[2J\xff12345", "header is damaged"),
        (struct.pack(">8sHHI", b"HSMDFILE", 1, 0, 0), "header is damaged"),
    ],
)
def test_what_is_no_such_file(place: Place, content: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        place.decrypted(content)
    assert place.service.calls("DecryptData") == []


def test_a_keyset_of_another_kind_is_refused(place: Place) -> None:
    uri = f"hsmd://{place.key_id}"
    streaming_aead.register()
    weak = tink.new_keyset_handle(streaming_aead.streaming_aead_key_templates.AES128_CTR_HMAC_SHA256_4KB)
    remote = HsmdKmsClient(place.client).get_aead(uri)
    context = b"HSMDFILE" + struct.pack(">HHI", 1, len(uri), 0) + uri.encode()
    header = Header(uri, proto_keyset_format.serialize_encrypted(weak, remote, context))
    with pytest.raises(FileFormatError, match="not of format 1"):
        place.decrypted(header.pack())


def test_refusals_of_the_service_come_through(place: Place) -> None:
    with pytest.raises(ApiError, match=r"KMS\.0207"):
        place.encrypted(b"text", "alias/absent")
    sealed = place.encrypted(b"text")
    disabled = RefusalError("KMS.0209", grpc.StatusCode.FAILED_PRECONDITION, "The key is disabled.")
    place.service.failures = [disabled]
    with pytest.raises(ApiError, match=r"KMS\.0209"):
        place.decrypted(sealed)
    place.service.failures = [disabled]
    with pytest.raises(ApiError, match=r"KMS\.0209"):
        place.encrypted(b"text", place.key_id)


class _Failing(io.RawIOBase):
    """Reads zeros, or takes anything, until `limit` bytes went by; then raises."""

    def __init__(self, limit: int, error: BaseException) -> None:
        self.passed = bytearray()
        self._limit = limit
        self._error = error

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self.write(bytes(size))
        return bytes(size)

    def write(self, data: Any) -> int:
        if len(self.passed) + len(data) > self._limit:
            raise self._error
        self.passed += data
        return len(data)


_ERRORS = [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)]


@pytest.mark.parametrize("error", _ERRORS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("limit", [0, 3 * _SEGMENT])
def test_a_destination_that_fails(place: Place, error: BaseException, limit: int) -> None:
    data = bytes(8 * _SEGMENT)
    sealed = place.encrypted(data)
    with pytest.raises(type(error)) as caught:
        files.encrypt(place.client, place.key_id, io.BytesIO(data), _file(_Failing(limit, error)))
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        files.decrypt(place.client, io.BytesIO(sealed), _file(_Failing(limit, error)))
    assert caught.value is error


@pytest.mark.parametrize("error", _ERRORS, ids=lambda each: type(each).__name__)
def test_a_source_that_fails_leaves_no_valid_ciphertext(place: Place, error: BaseException) -> None:
    out = io.BytesIO()
    with pytest.raises(type(error)) as caught:
        files.encrypt(place.client, place.key_id, _file(_Failing(5 * _SEGMENT, error)), out)
    assert caught.value is error
    del caught
    assert len(out.getvalue()) > _SEGMENT
    with pytest.raises(FileFormatError):
        place.decrypted(out.getvalue())


class _Sealed(_Failing):
    """Reads an encrypted file, and fails in the middle of it."""

    def __init__(self, content: bytes, error: BaseException) -> None:
        super().__init__(len(content) // 2, error)
        self._content = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        super().read(size)
        return self._content.read(size)


@pytest.mark.parametrize("error", _ERRORS, ids=lambda each: type(each).__name__)
def test_an_encrypted_source_that_fails(place: Place, error: BaseException) -> None:
    sealed = place.encrypted(bytes(8 * _SEGMENT))
    with pytest.raises(type(error)) as caught:
        files.decrypt(place.client, _file(_Sealed(sealed, error)), io.BytesIO())
    assert caught.value is error


def test_a_source_that_gives_a_byte_at_a_time(place: Place) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 1))

    sealed = place.encrypted(b"drop by drop")
    out = io.BytesIO()
    files.decrypt(place.client, Slow(sealed), out)
    assert out.getvalue() == b"drop by drop"


def test_an_input_that_would_block_is_not_taken_for_the_end(place: Place) -> None:
    class Empty(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def read(self, _size: int = -1) -> None:
            return None

    with pytest.raises(BlockingIOError):
        files.encrypt(place.client, place.key_id, _file(Empty()), io.BytesIO())
    with pytest.raises(BlockingIOError):
        files.decrypt(place.client, _file(Empty()), io.BytesIO())


def test_progress_counts_every_byte(place: Place) -> None:
    size = 3 * _SEGMENT + 5
    told: list[int] = []
    out = io.BytesIO()
    files.encrypt(place.client, place.key_id, io.BytesIO(bytes(size)), out, told.append)
    assert (sum(told), len(told)) == (size, 4)
    told.clear()
    files.decrypt(place.client, io.BytesIO(out.getvalue()), io.BytesIO(), progress=told.append)
    assert sum(told) == size


def _file(raw: io.RawIOBase) -> Any:
    return raw
