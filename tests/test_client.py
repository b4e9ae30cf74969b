"""The client's own logic: errors, deadlines, metadata, repeats, setting up; against a real gRPC server."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from hsmd.client import ApiError, Client, SetupError
from hsmd.client.calls import repeatable_methods, service_config
from hsmd.client.errors import from_rpc
from hsmd.daemon.certificates import Authority
from hsmd.pb.v1 import keys_pb2, service_pb2
from tests.stand_in import AWAY, RefusalError, StandIn, running


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    with running(tmp_path) as service:
        yield service


@pytest.fixture
def client(stand_in: StandIn) -> Iterator[Client]:
    with stand_in.client() as made:
        yield made


def test_a_key_from_creation_to_deletion(client: Client, stand_in: StandIn) -> None:
    key_id = client.create_key("books", description="all of them", spec="AES_256")
    key = client.describe_key("alias/books")
    assert (key.key_id, key.key_description) == (key_id, "all of them")
    client.disable(key_id)
    assert client.describe_key(key_id).key_state == keys_pb2.KEY_STATE_DISABLED
    client.enable(key_id)
    assert client.describe_key(key_id).key_state == keys_pb2.KEY_STATE_ENABLED
    client.rename(key_id, "papers")
    client.set_description(key_id, "")
    renamed = client.describe_key("alias/papers")
    assert (renamed.key_id, renamed.key_description) == (key_id, "")
    client.schedule_deletion(key_id, 7)
    assert stand_in.calls("ScheduleKeyDeletion")[0].request.pending_days == 7
    assert client.describe_key(key_id).key_state == keys_pb2.KEY_STATE_PENDING_DELETION
    client.cancel_deletion(key_id)
    assert client.describe_key(key_id).key_state == keys_pb2.KEY_STATE_DISABLED


def test_an_unknown_key_spec_is_refused_before_any_call(client: Client, stand_in: StandIn) -> None:
    with pytest.raises(ValueError, match="KEY_SPEC_DES"):
        client.create_key("books", spec="DES")
    assert stand_in.seen == []


def test_list_keys_goes_through_every_page_as_needed(client: Client, stand_in: StandIn) -> None:
    made = [client.create_key(f"key-{number}") for number in range(7)]
    stand_in.page = 3
    assert [key.key_id for key in client.list_keys()] == made
    assert [call.request.marker for call in stand_in.calls("ListKeys")] == [0, 3, 6]
    client.disable(made[4])
    state = keys_pb2.KEY_STATE_DISABLED
    assert [key.key_id for key in client.list_keys(state=state)] == [made[4]]
    before = len(stand_in.calls("ListKeys"))
    next(client.list_keys())
    assert len(stand_in.calls("ListKeys")) == before + 1


def test_data_and_data_keys(client: Client, stand_in: StandIn) -> None:
    key_id = client.create_key("data")
    blob = client.encrypt("alias/data", b"\xff\x00", b"bound")
    assert client.decrypt(blob, b"bound") == b"\xff\x00"
    assert client.decrypt(blob, b"bound", key_id) == b"\xff\x00"
    with pytest.raises(ApiError, match=r"KMS\.2201"):
        client.decrypt(blob, b"other")
    other = client.create_key("other")
    with pytest.raises(ApiError, match=r"KMS\.2201"):
        client.decrypt(blob, b"bound", other)
    plain, wrapped = client.create_data_key(key_id, 512, b"aad")
    assert len(plain) == 64
    assert client.decrypt_data_key(key_id, wrapped, b"aad") == plain
    mine = client.encrypt_data_key(key_id, b"d" * 24)
    assert client.decrypt_data_key(key_id, mine) == b"d" * 24
    sent = stand_in.calls("EncryptDataKey")[0].request
    assert sent.plain_text == b"d" * 24 + hashlib.sha256(b"d" * 24).digest()
    assert sent.datakey_plain_length == 24
    assert stand_in.calls("DecryptDataKey")[0].request.datakey_cipher_length == len(wrapped)


@pytest.mark.parametrize(("size", "calls"), [(0, 0), (1, 1), (1024, 1), (1025, 2), (3000, 3)])
def test_random_of_any_size(client: Client, stand_in: StandIn, size: int, calls: int) -> None:
    assert len(client.random(size)) == size
    assert len(stand_in.calls("GenRandom")) == calls


def test_metadata_and_deadline_go_with_every_call(stand_in: StandIn) -> None:
    with stand_in.client(project_id="0" * 32, deadline=70.0) as client:
        client.status()
        client.status()
        client.service.GetStatus(service_pb2.GetStatusRequest(), timeout=30.0)
    first, second, third = stand_in.seen
    assert first.metadata["hsmd-project-id"] == "0" * 32
    ids = {str(each.metadata["hsmd-request-id"]) for each in stand_in.seen}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    assert 30.1 < first.remaining <= 70.1  # gRPC rounds up
    assert 30.1 < second.remaining <= 70.1
    assert third.remaining <= 30.1


def test_no_project_is_named_unless_asked_for(client: Client, stand_in: StandIn) -> None:
    client.status()
    assert "hsmd-project-id" not in stand_in.seen[0].metadata


def test_a_refusal_carries_code_status_text_and_request_id(client: Client, stand_in: StandIn) -> None:
    with pytest.raises(ApiError) as caught:
        client.describe_key("alias/absent")
    error = caught.value
    assert (error.code, error.status) == ("KMS.0207", grpc.StatusCode.NOT_FOUND)
    assert error.message == "The key does not exist."
    assert error.request_id == stand_in.seen[0].metadata["hsmd-request-id"]
    assert str(error) == f"KMS.0207: The key does not exist. (request {error.request_id})"
    assert not error.unanswered


def test_repeatable_methods_are_repeated_while_unavailable(client: Client, stand_in: StandIn) -> None:
    stand_in.failures = [AWAY, AWAY]
    client.status()
    calls = stand_in.calls("GetStatus")
    assert len(calls) == 3
    assert len({each.metadata["hsmd-request-id"] for each in calls}) == 1  # one call for log and audit


def test_repeats_end_and_say_what_was_answered(client: Client, stand_in: StandIn) -> None:
    stand_in.failures = [AWAY] * 20
    with pytest.raises(ApiError) as caught:
        client.status()
    assert caught.value.code == "KMS.0104"
    assert caught.value.unanswered
    assert len(stand_in.seen) == 5


def test_what_is_not_repeatable_is_sent_once(client: Client, stand_in: StandIn) -> None:
    stand_in.failures = [AWAY]
    with pytest.raises(ApiError, match=r"KMS\.0104"):
        client.create_key("once")
    assert len(stand_in.seen) == 1


def test_refusals_are_not_repeated(client: Client, stand_in: StandIn) -> None:
    stand_in.failures = [RefusalError("KMS.0101", grpc.StatusCode.INTERNAL, "Internal error.")]
    with pytest.raises(ApiError, match=r"KMS\.0101"):
        client.status()
    assert len(stand_in.seen) == 1


def test_the_service_config_names_the_repeatable_methods_only() -> None:
    (rule,) = json.loads(service_config())["methodConfig"]
    named = {(each["service"], each["method"]) for each in rule["name"]}
    assert named == set(repeatable_methods())
    assert ("hsmd.v1.Keys", "DescribeKey") in named
    assert ("hsmd.v1.Crypto", "EncryptData") in named
    for method in ("CreateKey", "EnableKey", "DisableKey"):
        assert ("hsmd.v1.Keys", method) not in named
    assert ("hsmd.v1.Deletion", "ScheduleKeyDeletion") not in named


def test_nobody_there_is_an_api_error_without_a_code(stand_in: StandIn) -> None:
    with Client("localhost:1", **_files(stand_in), deadline=5.0) as client, pytest.raises(ApiError) as caught:
        client.status()
    assert caught.value.code == ""
    assert caught.value.unanswered
    assert re.fullmatch("[0-9a-f]{32}", caught.value.request_id)


def test_a_deadline_that_passes(stand_in: StandIn) -> None:
    released = threading.Event()

    def slow(_request: Any) -> Any:
        released.wait(30)
        raise AWAY

    stand_in.GetStatus = slow  # type: ignore[method-assign]  # one method of this server hangs
    try:
        with stand_in.client(deadline=0.2) as client, pytest.raises(ApiError) as caught:
            client.status()
    finally:
        released.set()
    assert caught.value.status is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.unanswered


def test_a_stranger_is_not_served(stand_in: StandIn, tmp_path: Path) -> None:
    pair = _strangers(tmp_path).client("client", "client")
    files = _files(stand_in) | {"certificate": pair.certificate, "key": pair.key}
    with Client(stand_in.target, **files, deadline=5.0) as client, pytest.raises(ApiError) as caught:
        client.status()
    assert caught.value.unanswered
    assert stand_in.seen == []


def test_a_server_of_another_authority_or_name_is_not_trusted(stand_in: StandIn, tmp_path: Path) -> None:
    other = _strangers(tmp_path).pair.certificate
    for options in ({"ca": other}, {"server_name": "hsm.example"}):
        with stand_in.client(**options, deadline=5.0) as client, pytest.raises(ApiError) as caught:
            client.status()
        assert caught.value.unanswered
    assert stand_in.seen == []


def test_server_name_is_what_the_certificate_must_hold(stand_in: StandIn) -> None:
    port = stand_in.target.partition(":")[2]
    with Client(f"127.0.0.1:{port}", **_files(stand_in), server_name="localhost") as client:
        assert client.status().version == "0.1.0"


def test_a_unix_socket_needs_no_files(stand_in: StandIn, tmp_path: Path) -> None:
    with Client.from_environment({"HSMD_GRPC": f"unix:{tmp_path / 'socket'}"}) as client:
        assert client.status().region == "local-1"


def test_from_environment(stand_in: StandIn) -> None:
    environment = stand_in.environment() | {"HSMD_PROJECT_ID": "1" * 32}
    with Client.from_environment(environment) as client:
        client.status()
        assert repr(client) == f"Client({stand_in.target!r})"
    assert stand_in.seen[0].metadata["hsmd-project-id"] == "1" * 32
    for name in ("HSMD_GRPC", "HSMD_CA", "HSMD_CERT", "HSMD_KEY"):
        with pytest.raises(SetupError, match=name):
            Client.from_environment({each: value for each, value in environment.items() if each != name})


def test_unusable_files_are_named(stand_in: StandIn, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    for name in ("ca", "certificate", "key"):
        for path in (absent, junk):
            with pytest.raises(SetupError, match=path.name):
                stand_in.client(**{name: path})
    other = _strangers(tmp_path).client("client", "client").key
    with pytest.raises(SetupError, match=r"client\.key: not usable"):
        stand_in.client(key=other)
    with pytest.raises(SetupError, match="only unix: goes without"):
        Client(stand_in.target)


def test_one_client_for_many_threads(client: Client) -> None:
    key_id = client.create_key("shared")

    def round_trip(number: int) -> bool:
        data = b"%d" % number
        return client.decrypt(client.encrypt(key_id, data)) == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(round_trip, range(200)))


class _Failed(grpc.RpcError):
    """A failed call with the trailing metadata given."""

    def __init__(self, key: str, value: bytes) -> None:
        self._trailing = (SimpleNamespace(key=key, value=value),)

    def trailing_metadata(self) -> Any:
        return self._trailing

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNKNOWN

    def details(self) -> str:
        return "odd"


@pytest.mark.parametrize("details", [b"", b"\xff\xff\xff", b"\x1a\x02\x08\x01"])
def test_details_that_can_not_be_read_are_no_reason_to_fail(details: bytes) -> None:
    error = from_rpc(_Failed("grpc-status-details-bin", details), "abc")
    assert (error.code, error.message, error.request_id) == ("", "odd", "abc")


def _files(stand_in: StandIn) -> dict[str, Any]:
    return dict(stand_in.files)


def _strangers(folder: Path) -> Authority:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return Authority(elsewhere, "strangers")
