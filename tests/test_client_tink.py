"""Tink over hsmd: the KMS client, envelope and keyset encryption, and how associated data travels."""

import io
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tink
from hypothesis import given
from hypothesis import strategies as st
from tink import aead, proto_keyset_format

from hsmd.client import ApiError, Client
from hsmd.client.tink import HsmdKmsClient, context_of, key_of
from tests.stand_in import StandIn, running


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    with running(tmp_path) as service:
        yield service


@pytest.fixture
def client(stand_in: StandIn) -> Iterator[Client]:
    aead.register()
    with stand_in.client() as made:
        yield made


@pytest.mark.parametrize("size", [0, 1, 96, 126, 127, 128, 129, 100_000])
def test_associated_data_of_any_length(client: Client, stand_in: StandIn, size: int) -> None:
    stand_in.add("tink")
    remote = HsmdKmsClient(client).get_aead("hsmd://alias/tink")
    bound = b"a" * size
    blob = remote.encrypt(b"text", bound)
    assert remote.decrypt(blob, bound) == b"text"
    assert len(stand_in.calls("EncryptData")[0].request.additional_authenticated_data) <= 128
    for other in (bound + b"\0", b"b" * (size + 1), bound[1:] if size else b"\0"):
        with pytest.raises(tink.TinkError, match=r"KMS\.2201"):
            remote.decrypt(blob, other)


@given(st.lists(st.binary(max_size=200), min_size=2, max_size=20, unique=True))
def test_different_associated_data_never_meet(several: list[bytes]) -> None:
    contexts = sorted(context_of(each) for each in several)
    assert all(first != second for first, second in pairwise(contexts))
    assert all(len(each) <= 128 for each in contexts)


def test_the_mapping_of_associated_data_is_for_ever() -> None:
    assert context_of(b"") == b""
    assert context_of(b"abc") == b"\x00abc"
    assert context_of(bytes(127)) == bytes(128)
    assert (
        context_of(bytes(128)).hex() == "01b97a04397a2f30a6c0ec819fa49b37f7c235e2cefed741f17540b18defa3fbbb"
    )


def test_envelope_encryption(client: Client, stand_in: StandIn) -> None:
    key_id = stand_in.add("envelope")
    remote = HsmdKmsClient(client).get_aead(f"hsmd://{key_id}")
    envelope = aead.KmsEnvelopeAead(aead.aead_key_templates.AES256_GCM, remote)
    data = bytes(100_000)
    sealed = envelope.encrypt(data, b"name of the file")
    assert envelope.decrypt(sealed, b"name of the file") == data
    wrapped = sealed[4 : 4 + int.from_bytes(sealed[:4])]
    assert client.decrypt(wrapped)  # opens by a plain decrypt-data too


def test_a_keyset_encrypted_by_a_cmk(client: Client, stand_in: StandIn) -> None:
    stand_in.add("keysets")
    remote = HsmdKmsClient(client).get_aead("hsmd://alias/keysets")
    handle = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
    written = io.BytesIO()
    handle.write(tink.BinaryKeysetWriter(written), remote)
    again = tink.read_keyset_handle(tink.BinaryKeysetReader(written.getvalue()), remote)
    kind: Any = aead.Aead  # an abstract class is Tink's way to name a primitive
    sealed = handle.primitive(kind).encrypt(b"text", b"")
    assert again.primitive(kind).decrypt(sealed, b"") == b"text"
    bound = proto_keyset_format.serialize_encrypted(handle, remote, b"purpose")
    proto_keyset_format.parse_encrypted(bound, remote, b"purpose")
    with pytest.raises(tink.TinkError):
        proto_keyset_format.parse_encrypted(bound, remote, b"another")


def test_another_keys_ciphertext_is_refused(client: Client, stand_in: StandIn) -> None:
    stand_in.add("one")
    stand_in.add("two")
    kms = HsmdKmsClient(client)
    blob = kms.get_aead("hsmd://alias/one").encrypt(b"text", b"")
    with pytest.raises(tink.TinkError, match=r"KMS\.2201"):
        kms.get_aead("hsmd://alias/two").decrypt(blob, b"")


@pytest.mark.parametrize("size", [0, 4097])
def test_sizes_that_a_cmk_does_not_encrypt(client: Client, stand_in: StandIn, size: int) -> None:
    stand_in.add("small")
    remote = HsmdKmsClient(client).get_aead("hsmd://alias/small")
    with pytest.raises(tink.TinkError, match="KmsEnvelopeAead"):
        remote.encrypt(bytes(size), b"")
    assert stand_in.calls("EncryptData") == []
    assert remote.decrypt(remote.encrypt(bytes(4096), b""), b"") == bytes(4096)


def test_refusals_are_tink_errors_caused_by_api_errors(client: Client) -> None:
    remote = HsmdKmsClient(client).get_aead("hsmd://alias/absent")
    for call in (remote.encrypt, remote.decrypt):
        with pytest.raises(tink.TinkError, match=r"KMS\.0207") as caught:
            call(b"text", b"")
        assert isinstance(caught.value.__cause__, ApiError)


@pytest.mark.parametrize(
    ("uri", "key_id"),
    [
        ("hsmd://alias/files", "alias/files"),
        ("hsmd://0d0466b0-e727-4d9c-b35d-f84bb474a37f", "0d0466b0-e727-4d9c-b35d-f84bb474a37f"),
        ("hsmd://kms:local-1:d0:alias:files", "kms:local-1:d0:alias:files"),
        ("hsmd://", ""),
        ("hsmd://alias/a\n", ""),
        ("hsmd://alias/ä", ""),
        ("aws-kms://arn:aws:kms:x", ""),
        ("alias/files", ""),
    ],
)
def test_key_uris(client: Client, uri: str, key_id: str) -> None:
    kms = HsmdKmsClient(client)
    assert key_of(uri) == key_id
    assert kms.does_support(uri) == bool(key_id)
    if not key_id:
        with pytest.raises(tink.TinkError, match="not supported"):
            kms.get_aead(uri)
    if not key_id and uri:
        with pytest.raises(tink.TinkError, match="no key URI"):
            HsmdKmsClient(client, uri)


def test_a_client_bound_to_one_key(client: Client, stand_in: StandIn) -> None:
    stand_in.add("mine")
    kms = HsmdKmsClient(client, "hsmd://alias/mine")
    assert kms.get_aead("hsmd://alias/mine").encrypt(b"text", b"")
    assert not kms.does_support("hsmd://alias/other")
    with pytest.raises(tink.TinkError, match="bound to hsmd://alias/mine"):
        kms.get_aead("hsmd://alias/other")


def test_without_tink_the_extra_is_named() -> None:
    program = "import sys; sys.modules['tink'] = None\nimport hsmd.client\nimport hsmd.client.tink"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'hsmd[tink]'" in done.stderr
