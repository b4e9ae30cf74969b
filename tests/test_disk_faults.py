"""The audit log can't be written, the store is locked or changed: refusals, recovery without restart."""

import os
import resource
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import cycle
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
    """Something else stands where the workers' audit files were.

    There is no moment at which nothing stands there: whoever writes just then would begin a new file.
    """
    paths = [stand.dev.data / "audit" / f"worker-{number}.jsonl" for number in range(2)]
    folder = stand.dev.data / "in the way"
    folder.mkdir()
    with ExitStack() as stack:
        stack.callback(folder.rmdir)
        for path in paths:
            aside, link = path.with_suffix(".aside"), path.with_suffix(".link")
            aside.hardlink_to(path)
            link.symlink_to(folder)
            link.replace(path)
            stack.callback(aside.replace, path)
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
    """Encrypts over and over on a connection of its own, with request ids of its own.

    Every other time it asks for random bytes: a record that is shorter than any other here, so that there is
    no room for those either when there is none for this.
    """

    def __init__(self, stand: Stand, key: str, stop: threading.Event) -> None:
        files = (stand.dev.ca, stand.dev.key, stand.dev.certificate)
        credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.secure_channel(stand.dev.grpc, credentials, options)
        self._stop = stop
        self._encrypt = crypto_pb2.EncryptDataRequest(key_id=key, plain_text=b"data")
        self._random = crypto_pb2.GenRandomRequest(random_data_length=512)
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self.wrong: list[str] = []

    def work(self) -> None:
        crypto = CryptoStub(self._channel)
        calls = cycle([(crypto.EncryptData, self._encrypt), (crypto.GenRandom, self._random)])
        while not self._stop.is_set():
            request_id = uuid.uuid4().hex
            call, request = next(calls)
            try:
                call(request, timeout=30, metadata=(("hsmd-request-id", request_id),))
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
    _refuses_and_recovers(two, fault)


@pytest.fixture
def on_a_disk(tmp_path: Path) -> Iterator[Stand]:
    """A stand whose audit log has a disk of its own; its tests are left out where none can be had."""
    stand = Stand(tmp_path, _TWO_WORKERS)
    with disk(tmp_path / "disk.img", stand.dev.data / "audit"):
        try:
            stand.start(gateway=False)
            yield stand
        finally:
            stand.stop()


@contextmanager
def disk(image: Path, folder: Path) -> Iterator[None]:
    """An ext4 file system in a file, with what was in the folder."""
    with image.open("wb") as file:
        file.truncate(16 << 20)
    aside = folder.with_name("audit-before")
    try:
        _run("mkfs.ext4", "-q", "-m", "0", str(image))
        folder.rename(aside)
        folder.mkdir()
        _run("mount", "-o", "loop", str(image), str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk of its own can be had here (root and loop devices are needed): {error}")
    try:
        folder.chmod(0o700)
        for path in aside.iterdir():
            shutil.copy2(path, folder)
        yield
    finally:
        _run("umount", "--lazy", str(folder))


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@contextmanager
def full_disk(stand: Stand) -> Iterator[None]:
    """Something else took all of the room that was left."""
    ballast = stand.dev.data / "audit" / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
    assert shutil.disk_usage(ballast).free == 0
    yield
    ballast.unlink()


@contextmanager
def read_only_disk(stand: Stand) -> Iterator[None]:
    """What is mounted there now can only be read."""
    folder = str(stand.dev.data / "audit")
    _run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder)
    try:
        yield
    finally:
        _run("umount", "--lazy", folder)


@contextmanager
def stalled_disk(stand: Stand) -> Iterator[None]:
    """Whoever writes waits, inside the system call."""
    folder = str(stand.dev.data / "audit")
    _run("fsfreeze", "--freeze", folder)
    try:
        yield
    finally:
        _run("fsfreeze", "--unfreeze", folder)


@pytest.mark.parametrize("fault", [full_disk, read_only_disk, stalled_disk])
def test_no_answer_without_its_audit_record_on_a_real_disk(
    on_a_disk: Stand, fault: Callable[[Stand], AbstractContextManager[None]]
) -> None:
    _refuses_and_recovers(on_a_disk, fault)


def _refuses_and_recovers(two: Stand, fault: Callable[[Stand], AbstractContextManager[None]]) -> None:
    """Under load; changes are undone, and the daemon refuses before callers lose patience."""
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
            with ThreadPoolExecutor(5) as pool:  # one after the other would take long where the disk stalls
                creating = [pool.submit(_create, two, f"unrecorded-{number}") for number in range(4)]
                disabling = pool.submit(_disable, two, key)
            assert {each.result() for each in (*creating, disabling)} == {"KMS.0104"}
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
    refusals = "".join(refused for caller in callers for refused in caller.refused)
    assert "the audit record can't be written" in refusals or "was not written in time" in refusals
    assert "is written again" in two.log() or "was slow" in two.log()
    _is_whole(two)


def _create(stand: Stand, alias: str) -> str:
    """The code with which it is refused by the daemon itself; "" for what the caller did not wait for."""
    with pytest.raises(ApiError) as refused, stand.client(deadline=30) as other:
        other.keys.CreateKey(keys_pb2.CreateKeyRequest(key_alias=alias))
    return refused.value.code


def _disable(stand: Stand, key: str) -> str:
    with pytest.raises(ApiError) as refused, stand.client(deadline=30) as other:
        other.disable(key)
    return refused.value.code


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
