"""The audit log can't be written, the store is locked or changed: refusals, recovery without restart."""

import os
import resource
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from hsmd.audit.verify import Keys, verify
from hsmd.client import ApiError, Client
from hsmd.pb.v1 import crypto_pb2, keys_pb2
from hsmd.pb.v1.crypto_pb2_grpc import CryptoStub
from tests.faults import change_rows, locked_store, processes, rows
from tests.stand import Stand, eventually, standing

_HSMD = Path(sys.executable).with_name("hsmd")
_TWO_WORKERS = {"HSMD__GRPC__WORKERS": "2"}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Stand]:
    with standing(tmp_path, _TWO_WORKERS, gateway=False) as one:
        yield one


# The audit log


@contextmanager
def without_files(stand: Stand) -> Iterator[None]:
    """Something else stands where the workers' audit files were."""
    paths = [stand.dev.data / "audit" / f"worker-{number}.jsonl" for number in range(2)]
    with ExitStack() as stack:
        for path in paths:
            aside = path.with_suffix(".aside")
            path.rename(aside)
            path.mkdir()
            stack.callback(aside.rename, path)
            stack.callback(path.rmdir)
        yield


@contextmanager
def without_room(stand: Stand) -> Iterator[None]:
    """No file of a worker's may become longer than the shorter of the audit files is."""
    paths = [stand.dev.data / "audit" / f"worker-{number}.jsonl" for number in range(2)]
    room = min(path.stat().st_size for path in paths)
    workers = [pid for pid, name in processes(stand).items() if name == "worker"]
    limits = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in workers]
    for pid, (_, hard) in zip(workers, limits, strict=True):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        for pid, limit in zip(workers, limits, strict=True):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)


class Caller:
    """Encrypts over and over on a connection of its own, with request ids of its own."""

    def __init__(self, stand: Stand, key: str, stop: threading.Event) -> None:
        files = (stand.dev.ca, stand.dev.key, stand.dev.certificate)
        credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.secure_channel(stand.dev.grpc, credentials, options)
        self._stop = stop
        self._request = crypto_pb2.EncryptDataRequest(key_id=key, plain_text=b"data")
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self.wrong: list[str] = []

    def work(self) -> None:
        encrypt = CryptoStub(self._channel).EncryptData
        while not self._stop.is_set():
            request_id = uuid.uuid4().hex
            try:
                encrypt(self._request, timeout=30, metadata=(("hsmd-request-id", request_id),))
                self.acknowledged.append(request_id)
            except grpc.RpcError as error:
                kept = self.refused if error.code() is grpc.StatusCode.UNAVAILABLE else self.wrong
                kept.append(f"{error.code()}: {error.details()}")
                self._stop.wait(0.02)
        self._channel.close()


@pytest.mark.parametrize("fault", [without_files, without_room])
def test_no_answer_without_its_audit_record(
    two: Stand, fault: Callable[[Stand], AbstractContextManager[None]]
) -> None:
    stop = threading.Event()
    with two.client() as client:
        key = client.create_key("key")
        before = processes(two)
        callers = [Caller(two, key, stop) for _ in range(8)]
        threads = [threading.Thread(target=caller.work, daemon=True) for caller in callers]
        for thread in threads:
            thread.start()
        _each(callers, "acknowledged")
        assert all((two.dev.data / "audit" / f"worker-{number}.jsonl").exists() for number in range(2))
        with fault(two):
            _each(callers, "refused")
            for number in range(4):
                with pytest.raises(ApiError), two.client(deadline=15) as other:
                    other.keys.CreateKey(keys_pb2.CreateKeyRequest(key_alias=f"unrecorded-{number}"))
            with pytest.raises(ApiError), two.client(deadline=15) as other:
                other.disable(key)
        _each(callers, "acknowledged")
        stop.set()
        for thread in threads:
            thread.join(60)
        assert [wrong for caller in callers for wrong in caller.wrong] == []
        assert [each.key_alias for each in client.list_keys()] == ["key"]
        client.create_key("unrecorded-0")
        assert client.decrypt(client.encrypt(key, b"data")) == b"data"  # it was not disabled
    assert processes(two) == before
    recorded = {each["request_id"] for each in two.audit()}
    assert recorded >= {request_id for caller in callers for request_id in caller.acknowledged}
    assert rows(two, "SELECT count(*) FROM keys") == [(2,)]
    assert "the audit record can't be written" in "".join(callers[0].refused)
    assert "is written again" in two.log()
    _is_whole(two)


def _is_whole(stand: Stand) -> None:
    """Nothing of the log's chains was hurt, and all of it is signed for in the end."""
    argv = [str(_HSMD), "audit-key", "--config", str(stand.dev.config)]
    key = subprocess.run(argv, capture_output=True, check=True, env={**os.environ, **stand.settings}).stdout
    stand.stop()
    report = verify(stand.dev.data / "audit", Keys.of([key]))
    assert (report.faults, report.unsigned, report.torn) == ([], {}, {})
    assert report.records >= len(stand.audit())


def _each(callers: list[Caller], what: str) -> None:
    """Return when every caller has seen some more of it."""
    before = [len(getattr(caller, what)) for caller in callers]
    eventually(
        lambda: (
            any(caller.wrong for caller in callers)
            or all(
                len(getattr(caller, what)) > then + 1 for caller, then in zip(callers, before, strict=True)
            )
        )
    )


# The store


def test_a_store_that_another_process_locks(two: Stand) -> None:
    with two.client(deadline=40) as client:
        key = client.create_key("key")
        blob = client.encrypt(key, b"data")
        with locked_store(two):
            for call in (lambda: client.create_key("another"), lambda: client.disable(key)):
                with pytest.raises(ApiError) as refused:
                    call()
                assert (refused.value.code, refused.value.status.name) == ("KMS.0104", "UNAVAILABLE")
            assert client.decrypt(blob) == b"data"  # what only reads goes on
        assert [each.key_alias for each in client.list_keys()] == ["key"]
        assert client.decrypt(client.encrypt(client.create_key("another"), b"data")) == b"data"
        client.disable(key)


def test_a_changed_row_is_refused_and_named(two: Stand) -> None:
    with two.client() as client:
        broken, bad_version, sound = (client.create_key(alias) for alias in ("broken", "version", "sound"))
        blobs = {key: client.encrypt(key, b"data") for key in (broken, bad_version, sound)}
    change_rows(two, "UPDATE keys SET description = 'another' WHERE id = ?", broken)
    change_rows(
        two,
        "UPDATE key_versions SET wrapped = (SELECT wrapped FROM key_versions WHERE key_id = ?)"
        " WHERE key_id = ?",
        sound,
        bad_version,
    )
    two.restart_daemon()
    with two.client() as client:
        for key, table in ((broken, "keys"), (bad_version, "key_versions")):
            calls: tuple[Callable[[], bytes], ...] = (
                lambda: client.decrypt(blobs[key]),  # noqa: B023 -- called at once
                lambda: client.encrypt(key, b"data"),  # noqa: B023 -- called at once
            )
            for call in calls:
                with pytest.raises(ApiError) as refused:
                    call()
                assert (refused.value.code, refused.value.status.name) == ("KMS.0101", "INTERNAL")
                assert refused.value.message == "Internal error."
                log = two.log()
                assert refused.value.request_id in log
                assert f"'{table}'" in log
                assert key in log
        with pytest.raises(ApiError):
            client.disable(broken)
        assert client.decrypt(blobs[sound]) == b"data"
        assert client.describe_key(sound).key_alias == "sound"
        assert client.create_key("another")
    recorded = [each for each in two.audit() if each["result"] == "KMS.0101"]
    assert {each["resource"] for each in recorded} >= {broken}


def opened(client: Client, blob: bytes) -> bytes | None:
    """The plaintext; None while nobody answers."""
    try:
        return client.decrypt(blob)
    except ApiError as error:
        if not error.unanswered:
            raise
        return None


def test_a_store_that_is_gone_is_not_made_anew(two: Stand) -> None:
    store, aside = two.dev.data / "store", two.dev.data / "store-aside"
    with two.client() as client:
        key = client.create_key("key")
        blob = client.encrypt(key, b"data")
        store.rename(aside)
        store.mkdir()
        for pid in processes(two):
            os.kill(pid, 9)
        eventually(lambda: "there is no store at" in two.log())
        assert list(store.iterdir()) == []
        store.rmdir()
        aside.rename(store)
        eventually(lambda: opened(client, blob) == b"data")  # the supervisor has gone on trying
    assert two.daemon is not None
    assert two.daemon.process.poll() is None
