"""The daemon's doors beside the shared port: Unix sockets, health, reflection; and the threads behind."""

import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hsmd.api.pool import Pool
from hsmd.client import ApiError, Client
from hsmd.pb.v1 import crypto_pb2
from hsmd.pb.v1.crypto_pb2_grpc import CryptoStub
from tests.faults import frozen_token, gone, processes
from tests.load import is_serving
from tests.stand import Stand, eventually, standing


def channel(stand: Stand) -> grpc.Channel:
    """A plain gRPC client's connection, without ours around it."""
    files = (stand.dev.ca, stand.dev.key, stand.dev.certificate)
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    return grpc.secure_channel(stand.dev.grpc, credentials, [("grpc.use_local_subchannel_pool", 1)])


# Unix sockets


@pytest.fixture
def socketed(tmp_path: Path) -> Iterator[tuple[Stand, Path]]:
    """A daemon with a socket for each worker and one for the first, and their folder."""
    stand = Stand(tmp_path)
    with tempfile.TemporaryDirectory() as folder:  # a socket's path may not be long
        ids = f'user_id = "{stand.dev.user_id}", project_id = "{stand.dev.project_id}"'
        stand.settings |= {
            "HSMD__GRPC__WORKERS": "2",
            "HSMD__GRPC__UNIX": f'[{{path = "{folder}/w-{{worker}}.sock", {ids}, mode = "0660"}},'
            f' {{path = "{folder}/one.sock", {ids}}}]',
        }
        try:
            stand.start(gateway=False)
            yield stand, Path(folder)
        finally:
            stand.stop()


def test_local_processes_come_by_unix_sockets(socketed: tuple[Stand, Path]) -> None:
    stand, folder = socketed
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"w-0.sock": 0o660, "w-1.sock": 0o660, "one.sock": 0o600}
    assert all(stat.S_ISSOCK(path.stat().st_mode) for path in folder.iterdir())
    with Client(f"unix:{folder}/w-0.sock") as first, Client(f"unix:{folder}/w-1.sock") as second:
        key = first.create_key("key")
        blob = first.encrypt(key, b"data", b"aad")
        assert second.decrypt(blob, b"aad") == b"data"  # in force on the other worker
        assert (first.status().worker, second.status().worker) == ("worker-0", "worker-1")
        second.disable(key)
        with pytest.raises(ApiError) as refused:
            first.decrypt(blob, b"aad")
        assert refused.value.code == "KMS.0209"
    with Client(f"unix:{folder}/one.sock") as client, stand.client() as over_tls:
        assert client.status().worker == "worker-0"
        assert client.describe_key(key) == over_tls.describe_key(key)  # the same user in the same project
    (made,) = [each for each in stand.audit() if each["event"] == "createKey"]
    assert (made["identity"], made["source"]) == ("socket", "local")
    assert made["user_id"] == stand.dev.user_id


def test_a_replaced_worker_takes_its_socket_again(socketed: tuple[Stand, Path]) -> None:
    stand, folder = socketed
    for pid in processes(stand):
        os.kill(pid, 9)
        eventually(lambda: gone(pid))  # noqa: B023 -- called at once
    processes(stand)

    def answers(name: str) -> bool:
        with Client(f"unix:{folder}/{name}", deadline=5) as client:
            try:
                return len(client.random(8)) == 8
            except ApiError as error:
                if not error.unanswered:
                    raise
                return False

    for name in ("w-0.sock", "w-1.sock", "one.sock"):
        eventually(lambda: answers(name))  # noqa: B023 -- called at once
    assert stat.S_IMODE((folder / "one.sock").stat().st_mode) == 0o600


def test_a_socket_is_no_gateway(socketed: tuple[Stand, Path]) -> None:
    stand, folder = socketed
    with grpc.insecure_channel(f"unix:{folder}/one.sock") as one:
        metadata = (("hsmd-source", "192.0.2.1"), ("hsmd-auth-token", "no token"))
        CryptoStub(one).GenRandom(crypto_pb2.GenRandomRequest(random_data_length=64), metadata=metadata)
    (record,) = [each for each in stand.audit() if each["event"] == "genRandom"]
    assert (record["identity"], record["source"]) == ("socket", "local")


# Health and reflection


def test_health_and_reflection(stand: Stand) -> None:
    with channel(stand) as one:
        eventually(lambda: is_serving(one))
        check = health_pb2_grpc.HealthStub(one).Check
        serving = health_pb2.HealthCheckResponse.SERVING
        for name in ("hsmd.v1.Keys", "hsmd.v1.Crypto"):
            request = health_pb2.HealthCheckRequest(service=name)
            eventually(lambda: check(request, timeout=20).status == serving)  # noqa: B023 -- called at once
        with pytest.raises(grpc.RpcError) as unknown:
            check(health_pb2.HealthCheckRequest(service="hsmd.v1.Nothing"), timeout=20)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND

        ask = reflection_pb2_grpc.ServerReflectionStub(one).ServerReflectionInfo
        (listed,) = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=20)
        names = {each.name for each in listed.list_services_response.service}
        assert names >= {f"hsmd.v1.{name}" for name in ("Keys", "Deletion", "Crypto", "DataKeys", "Service")}
        assert "grpc.health.v1.Health" in names
        symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol="hsmd.v1.Crypto")
        (file,) = ask(iter([symbol]), timeout=20)
        assert file.file_descriptor_response.file_descriptor_proto


# Threads


def test_calls_without_a_deadline_end_by_the_servers_own(tmp_path: Path) -> None:
    settings = {
        "HSMD__GRPC__WORKERS": "1",
        "HSMD__GRPC__THREADS": "2",
        "HSMD__HSM__DEADLINE_SECONDS": "60",  # the token itself is not given up
    }
    with standing(tmp_path, settings, gateway=False) as stand, channel(stand) as one:
        with stand.client() as client:
            blob = client.encrypt(client.create_key("key"), b"data")
        stand.settings["HSMD__GRPC__DEADLINE_SECONDS"] = "3"  # too short for a new key on a busy machine
        stand.restart_daemon()
        before = processes(stand, workers=1)
        decrypt = CryptoStub(one).DecryptData
        request = crypto_pb2.DecryptDataRequest(cipher_text=blob)
        with frozen_token(stand):
            waiting = [decrypt.future(request, wait_for_ready=True) for _ in range(2)]
            codes = [call.exception(120).code() for call in waiting]
            assert codes == [grpc.StatusCode.CANCELLED] * 2
            ended = [each["result"] for each in stand.audit() if each["event"] == "decryptData"]
            assert ended == ["KMS.0104"] * 2  # recorded, though their threads are still held
        eventually(lambda: decrypted(one, request) == b"data")
        assert processes(stand, workers=1) == before
        results = [each["result"] for each in stand.audit() if each["event"] == "decryptData"]
        assert results.count("OK") == 1
        ends = "No answer in time: the call was ended"  # one that came too early may be among them
        eventually(lambda: 2 <= stand.log().count(ends) <= results.count("KMS.0104"))
        assert [each["result"] for each in stand.audit() if each["event"] == "decryptData"] == results


def test_threads_that_the_token_holds_are_replaced(tmp_path: Path) -> None:
    settings = {"HSMD__GRPC__WORKERS": "1", "HSMD__GRPC__THREADS": "2"}
    with standing(tmp_path, settings, gateway=False) as stand, channel(stand) as one:
        with stand.client() as client:
            blobs = [client.encrypt(client.create_key(f"key-{n}"), b"data") for n in range(4)]
        stand.settings["HSMD__HSM__DEADLINE_SECONDS"] = "1"  # too short for a new key on a busy machine
        stand.restart_daemon()
        decrypt = CryptoStub(one).DecryptData
        requests = [crypto_pb2.DecryptDataRequest(cipher_text=blob) for blob in blobs]
        with frozen_token(stand):
            held = [decrypt.future(request, timeout=200, wait_for_ready=True) for request in requests]
            eventually(lambda: "unresponsive" in stand.log())
            for _ in range(4):  # somebody is there to refuse at once, though both threads are held
                with pytest.raises(grpc.RpcError) as refused:
                    decrypt(requests[0], timeout=60)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert all(call.exception(60).code() is grpc.StatusCode.UNAVAILABLE for call in held)
        # with so short a deadline, it may take turns
        eventually(lambda: decrypted(one, requests[0]) == b"data")


def decrypted(one: grpc.Channel, request: crypto_pb2.DecryptDataRequest) -> bytes | None:
    """The plaintext; None while the token is not back, or late."""
    try:
        return bytes(CryptoStub(one).DecryptData(request, timeout=60).plain_text)
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            raise
        return None


def test_the_pool_runs_what_it_is_given_and_outlives_what_fails() -> None:
    pool = Pool(2, 8)
    assert [pool.submit(lambda n: n * n, n).result(20) for n in range(20)] == [n * n for n in range(20)]
    for wrong in (ValueError("no"), SystemExit(3)):

        def fail(error: BaseException = wrong) -> None:
            raise error

        assert [pool.submit(fail).exception(20) for _ in range(4)] == [wrong] * 4
    assert pool.submit(threading.get_ident).result(20)


def test_the_pool_has_spare_threads_while_some_are_held() -> None:
    pool, release = Pool(2, 8), threading.Event()
    held = [pool.submit(release.wait, 60) for _ in range(2)]
    waiting = pool.submit(threading.get_ident)
    assert not waiting.done()
    pool.have_spares(2)
    spares = {waiting.result(20), *(pool.submit(threading.get_ident).result(20) for _ in range(8))}
    assert len(spares) <= 2
    release.set()
    assert [each.result(20) for each in held] == [True, True]
    pool.have_spares(0)
    meeting = threading.Barrier(2)  # the two that are left are enough to meet
    assert {each.result(20) for each in [pool.submit(meeting.wait, 20) for _ in range(2)]} == {0, 1}


def test_a_cancelled_task_is_not_run() -> None:
    pool, release = Pool(1, 8), threading.Event()
    held = pool.submit(release.wait, 60)
    ran: list[int] = []
    waiting = pool.submit(ran.append, 1)
    assert waiting.cancel()
    release.set()
    assert held.result(20)
    pool.submit(ran.append, 2).result(20)
    assert ran == [2]
