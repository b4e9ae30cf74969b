"""The ciphertext's layout, byte by byte, and that nothing but it is opened."""

import hashlib
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsmd.client import Client
from tests.calls import fresh, refusal

QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HEADER = struct.Struct(">4s36sBB2sII12s16s32s12s")
DATA, DATA_KEY = 1, 2
LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 100, 255, 256, 257, 1023, 1024, 1025, 4079, 4080, 4081, 4095, 4096]


@dataclass
class Blob:
    """A ciphertext taken apart as the format's page has it."""

    magic: bytes
    key_id: bytes
    algorithm: int
    kind: int
    reserved: bytes
    version: int
    length: int
    iv: bytes
    tag: bytes
    digest: bytes
    zero: bytes
    body: bytes

    @classmethod
    def of(cls, raw: bytes) -> "Blob":
        fields: list[Any] = [*HEADER.unpack(raw[:124]), raw[124:]]
        return cls(*fields)

    def packed(self) -> bytes:
        fields = (
            self.magic,
            self.key_id,
            self.algorithm,
            self.kind,
            self.reserved,
            self.version,
            self.length,
        )
        return HEADER.pack(*fields, self.iv, self.tag, self.digest, self.zero) + self.body

    def sealed_again(self) -> bytes:
        """Packed with the digest that its body has now."""
        self.digest = hashlib.sha256(self.body).digest()
        return self.packed()


@pytest.fixture(scope="module")
def key_id(client: Client) -> str:
    return client.create_key(fresh("envelope"))


@pytest.fixture(scope="module")
def raw(client: Client, key_id: str) -> bytes:
    return client.encrypt(key_id, b"seventeen bytes!!", b"aad")


# Layout


@pytest.mark.parametrize("length", LENGTHS)
def test_layout(client: Client, key_id: str, length: int) -> None:
    raw = client.encrypt(key_id, b"p" * length, b"aad")
    assert len(raw) == 124 + 16 * -(-length // 16)
    assert HEADER.size == 124
    blob = Blob.of(raw)
    assert (blob.magic, blob.key_id) == (b"HSM\x01", key_id.encode())
    assert (blob.algorithm, blob.kind, blob.reserved) == (1, DATA, b"\0\0")
    assert (blob.version, blob.length) == (1, length)
    assert blob.digest == hashlib.sha256(raw[124:]).digest()
    assert blob.zero == bytes(12)
    assert len(set(blob.iv)) > 1
    assert len(set(blob.tag)) > 1
    assert b"pppp" not in blob.body


def test_layout_of_a_data_key(client: Client, key_id: str) -> None:
    plain, raw = client.create_data_key(key_id, 200)
    blob = Blob.of(raw)
    assert (blob.magic, blob.key_id, blob.algorithm, blob.kind) == (b"HSM\x01", key_id.encode(), 1, DATA_KEY)
    assert (blob.version, blob.length, len(blob.body)) == (1, 25, 32)
    assert blob.digest == hashlib.sha256(blob.body).digest()
    assert plain not in raw


def test_equal_plaintexts_do_not_show(client: Client, key_id: str) -> None:
    blobs = [Blob.of(client.encrypt(key_id, b"x" * 64)) for _ in range(100)]
    assert len({blob.iv for blob in blobs}) == 100
    assert len({blob.body for blob in blobs}) == 100
    assert len({blob.tag for blob in blobs}) == 100
    for blob in blobs:
        assert len({blob.body[start : start + 16] for start in range(0, 64, 16)}) == 4


def test_padding_is_cut_and_the_callers_zeros_stay(client: Client, key_id: str) -> None:
    full = client.encrypt(key_id, b"a" + bytes(15))
    assert client.decrypt(full) == b"a" + bytes(15)  # zeros of the caller's stay
    claimed = Blob.of(full)
    claimed.length = 1  # bound by GCM
    with refusal("KMS.2201"):
        client.decrypt(claimed.packed())


# Refusal


def test_every_bit_counts(client: Client, raw: bytes) -> None:
    texts = set()
    for position in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[position // 8] ^= 1 << position % 8
        with refusal("KMS.2201") as seen:
            client.decrypt(bytes(changed), b"aad")
        texts.add(seen.last.message)
    assert texts == {"The cipher_text is not valid."}  # always the same, whatever was wrong
    assert client.decrypt(raw, b"aad") == b"seventeen bytes!!"


def test_every_bit_of_a_data_key_counts(client: Client, key_id: str) -> None:
    plain, raw = client.create_data_key(key_id)
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1 << (position % 8)
        with refusal("KMS.2201"):
            client.decrypt_data_key(key_id, bytes(changed))
    assert client.decrypt_data_key(key_id, raw) == plain


def test_every_length_but_its_own_is_refused(client: Client, raw: bytes) -> None:
    for length in range(1, len(raw)):
        with refusal("KMS.2201"):
            client.decrypt(raw[:length], b"aad")
    with refusal("KMS.0204"):
        client.decrypt(b"", b"aad")
    for more in (1, 15, 16, 17, 32, 4096, 100_000):
        with refusal("KMS.2201"):
            client.decrypt(raw + bytes(more), b"aad")
        with refusal("KMS.2201"):
            client.decrypt(bytes(more) + raw, b"aad")


FORGERIES: dict[str, Callable[[Blob], None]] = {
    "other version": lambda blob: setattr(blob, "version", 2),
    "version 0": lambda blob: setattr(blob, "version", 0),
    "last version": lambda blob: setattr(blob, "version", 2**32 - 1),
    "length 0": lambda blob: setattr(blob, "length", 0),
    "shorter": lambda blob: setattr(blob, "length", blob.length - 1),
    "longer": lambda blob: setattr(blob, "length", blob.length + 1),
    "huge length": lambda blob: setattr(blob, "length", 2**32 - 1),
    "no algorithm": lambda blob: setattr(blob, "algorithm", 0),
    "access key": lambda blob: setattr(blob, "algorithm", 200),
    "other kind": lambda blob: setattr(blob, "kind", DATA_KEY),
    "no kind": lambda blob: setattr(blob, "kind", 0),
    "next format": lambda blob: setattr(blob, "magic", b"HSM\x02"),
    "reserved": lambda blob: setattr(blob, "reserved", b"\0\1"),
    "zeros": lambda blob: setattr(blob, "zero", bytes(11) + b"\1"),
    "zero IV": lambda blob: setattr(blob, "iv", bytes(12)),
    "zero tag": lambda blob: setattr(blob, "tag", bytes(16)),
    "blocks swapped": lambda blob: setattr(blob, "body", blob.body[16:] + blob.body[:16]),
    "block lost": lambda blob: setattr(blob, "body", blob.body[:16]),
    "block gained": lambda blob: setattr(blob, "body", blob.body + bytes(16)),
    "block doubled": lambda blob: setattr(blob, "body", blob.body * 2),
    "no body": lambda blob: setattr(blob, "body", b""),
    "key id upper case": lambda blob: setattr(blob, "key_id", blob.key_id.upper()),
    "no key": lambda blob: setattr(blob, "key_id", str(uuid.uuid4()).encode()),
    "no id": lambda blob: setattr(blob, "key_id", b"\xff" * 36),
    "alias for an id": lambda blob: setattr(blob, "key_id", b"alias/csms/default".ljust(36, b"_")),
    "SQL for an id": lambda blob: setattr(blob, "key_id", b"' OR 1=1 --".ljust(36)),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_with_a_right_digest(client: Client, raw: bytes, name: str) -> None:
    blob = Blob.of(raw)
    FORGERIES[name](blob)
    with refusal("KMS.2201") as seen:
        client.decrypt(blob.sealed_again(), b"aad")
    assert seen.last.message == "The cipher_text is not valid."


def test_parts_of_two_do_not_make_one(client: Client, key_id: str) -> None:
    first, second = (Blob.of(client.encrypt(key_id, b"x" * 16)) for _ in range(2))
    for name in ("iv", "tag", "body"):
        mixed = Blob.of(first.packed())
        setattr(mixed, name, getattr(second, name))
        with refusal("KMS.2201"):
            client.decrypt(mixed.sealed_again())


def test_another_keys_name_does_not_open_it(client: Client, raw: bytes) -> None:
    other = client.create_key(fresh())
    blob = Blob.of(raw)
    blob.key_id = other.encode()
    with refusal("KMS.2201"):
        client.decrypt(blob.packed(), b"aad")


@pytest.mark.parametrize("aad", [b"", b"aa", b"aad\0", b"AAD", b"aae", b"\0aad", bytes(12) + b"aad"])
def test_other_additional_data_does_not_open_it(client: Client, raw: bytes, aad: bytes) -> None:
    with refusal("KMS.2201"):
        client.decrypt(raw, aad)


def test_additional_data_does_not_flow_into_the_header(client: Client, key_id: str) -> None:
    """The header comes first and has one length: no two pairs of header and data bind the same bytes."""
    blob = client.encrypt(key_id, b"x", bytes(12))
    for aad in (b"", bytes(11), bytes(13), bytes(24)):
        with refusal("KMS.2201"):
            client.decrypt(blob, aad)
    assert client.decrypt(blob, bytes(12)) == b"x"


@QUIET
@given(noise=st.binary(min_size=1, max_size=400))
def test_noise_is_refused(client: Client, noise: bytes) -> None:
    with refusal("KMS.2201"):
        client.decrypt(noise)


@QUIET
@given(data=st.data())
def test_noise_in_a_true_header_is_refused(client: Client, raw: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(raw) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=len(raw) - start))
    changed = raw[:start] + noise + raw[start + len(noise) :]
    if changed == raw:
        assert client.decrypt(changed, b"aad") == b"seventeen bytes!!"
    else:
        with refusal("KMS.2201"):
            client.decrypt(Blob.of(changed).sealed_again() if start >= 124 else changed, b"aad")
