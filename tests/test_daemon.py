"""The daemon's processes: start, drain, replacement of what dies, and what they may show."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hsmd import config
from hsmd.client import ApiError, Client
from hsmd.pb.v1 import crypto_pb2, service_pb2
from hsmd.pb.v1.crypto_pb2_grpc import CryptoStub
from hsmd.pb.v1.service_pb2_grpc import ServiceStub
from tests.faults import frozen_token, gone, processes, supervisor
from tests.softhsm import MODULE
from tests.stand import Stand, children_of, eventually, standing

_GRACE = 60.0
# Time is to be what the tests make of it: nothing ends by itself while a fault is on.
_PATIENT = {
    "HSMD__HSM__DEADLINE_SECONDS": "100",
    "HSMD__GRPC__DEADLINE_SECONDS": "100",
    "HSMD__GRPC__GRACE_SECONDS": str(_GRACE),
    "HSMD__GRPC__WORKERS": "2",
}


@pytest.fixture
def stand_of_two(tmp_path: Path) -> Iterator[Stand]:
    with standing(tmp_path, {"HSMD__GRPC__WORKERS": "2"}, gateway=False) as one:
        yield one


def channel(stand: Stand) -> grpc.Channel:
    """A plain gRPC client's connection, without ours around it."""
    read = Path.read_bytes
    credentials = grpc.ssl_channel_credentials(
        read(stand.dev.ca), read(stand.dev.key), read(stand.dev.certificate)
    )
    return grpc.secure_channel(stand.dev.grpc, credentials, [("grpc.use_local_subchannel_pool", 1)])


def answers(stand: Stand) -> bool:
    with stand.client() as client:
        return len(client.random(16)) == 16


def refused(stand: Stand) -> bool:
    with stand.client(deadline=5) as client:
        try:
            client.random(16)
        except ApiError as error:
            return error.unanswered
    return False


def test_sigterm_lets_calls_in_flight_finish_and_takes_no_others(tmp_path: Path) -> None:
    with standing(tmp_path, _PATIENT, gateway=False) as stand, channel(stand) as one, channel(stand) as two:
        with stand.client() as client:
            blobs = [client.encrypt(client.create_key(f"key-{n}"), b"data %d" % n) for n in range(3)]
        requests = [crypto_pb2.DecryptDataRequest(cipher_text=blob) for blob in blobs]
        stand.restart_daemon()  # so that no worker has a key loaded
        assert stand.daemon is not None
        for each in (one, two):
            grpc.channel_ready_future(each).result(30)
        with frozen_token(stand):
            flying = [
                CryptoStub(each).DecryptData.future(request, timeout=90)
                for each in (one, two)
                for request in requests
            ]
            # What is answered behind them on the same connection shows that they have been taken.
            for each in (one, two):
                ServiceStub(each).ListVersions(service_pb2.ListVersionsRequest(), timeout=60)
            stand.daemon.process.terminate()
            eventually(lambda: refused(stand))
            assert not any(call.done() for call in flying)
            assert stand.daemon.process.poll() is None
        started = time.monotonic()
        assert [call.result().plain_text for call in flying] == [b"data 0", b"data 1", b"data 2"] * 2
        assert stand.daemon.process.wait(_GRACE) == 0
        assert time.monotonic() - started < _GRACE
        assert "Traceback" not in stand.log()


def test_sigterm_ends_it_even_when_the_token_hangs(tmp_path: Path) -> None:
    with standing(tmp_path, _PATIENT, gateway=False) as stand, channel(stand) as one:
        with stand.client() as client:
            blob = client.encrypt(client.create_key("key"), b"data")
        stand.settings |= {"HSMD__GRPC__GRACE_SECONDS": "1", "HSMD__HSM__DEADLINE_SECONDS": "1"}
        for _ in range(3):
            stand.restart_daemon()
            assert stand.daemon is not None
            children, before = processes(stand), len(stand.log())
            with frozen_token(stand):
                request = crypto_pb2.DecryptDataRequest(cipher_text=blob)
                call = CryptoStub(one).DecryptData.future(request, wait_for_ready=True)
                eventually(lambda: "unresponsive" in stand.log()[before:])  # noqa: B023 -- called at once
                stand.daemon.process.terminate()
                assert stand.daemon.process.wait(60) == 0
                assert all(gone(pid) for pid in children)
            assert call.exception(60) is not None
            if "did not end within the grace time" not in stand.log()[before:]:
                break  # they left by themselves, for which a busy machine has 2 seconds
        else:
            pytest.fail("they had to be ended each time")


def answered(client: Client, blob: bytes) -> bytes | None:
    """The plaintext, or None while nobody answers."""
    try:
        return client.decrypt(blob, b"aad")
    except ApiError as error:
        if not error.unanswered:
            raise
        return None


def test_a_killed_worker_is_replaced(stand_of_two: Stand) -> None:
    stand = stand_of_two
    with stand.client() as client:
        key = client.create_key("key")
        blob = client.encrypt(key, b"data", b"aad")
        before = processes(stand)
        victims = [pid for pid, name in before.items() if name == "worker"]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
            eventually(lambda: victim not in stand.workers())  # noqa: B023 -- called before the next turn
            after = processes(stand)
            assert len(after) == 3
            assert victim not in after
            eventually(lambda: answered(client, blob) == b"data")  # both may be starting when cores are busy
        assert client.describe_key(key).key_alias == "key"
        warden = next(pid for pid, name in before.items() if name == "warden")
        os.kill(warden, signal.SIGKILL)
        eventually(lambda: warden not in stand.workers())
        assert warden not in processes(stand)
        assert client.decrypt(client.encrypt(key, b"more")) == b"more"
    assert stand.daemon is not None
    assert stand.daemon.process.poll() is None


def test_no_process_outlives_the_supervisor(stand_of_two: Stand) -> None:
    stand = stand_of_two
    children = processes(stand)
    os.kill(supervisor(stand), signal.SIGKILL)
    eventually(lambda: all(gone(pid) for pid in children))
    stand.stop()
    stand.start(gateway=False)
    assert answers(stand)


def core_limits(pid: int) -> list[str]:
    limits = Path(f"/proc/{pid}/limits").read_text()
    (cores,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    return cores.split()[4:6]


def test_a_certificate_that_is_being_replaced_does_not_end_the_service(stand_of_two: Stand) -> None:
    stand = stand_of_two
    certificate = config.load(stand.dev.config, {}).grpc.certificate
    whole = certificate.read_bytes()
    certificate.write_bytes(whole[:100])
    victim = next(pid for pid, name in processes(stand).items() if name == "worker")
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: stand.log().count("worker-0 ended") + stand.log().count("worker-1 ended") > 2)
    assert answers(stand)
    assert stand.daemon is not None
    assert stand.daemon.process.poll() is None
    certificate.write_bytes(whole)
    assert len(processes(stand)) == 3


def test_gateway_and_daemon_come_and_go_without_each_other(tmp_path: Path) -> None:
    with standing(tmp_path) as stand:
        token = stand.token()

        def random_over_rest() -> Any:
            return stand.kms("gen-random", {"random_data_length": "512"}, token=token)

        assert random_over_rest().status == 200
        assert stand.daemon is not None
        assert stand.gateway is not None
        stand.daemon.stop(20)
        refusal = random_over_rest()
        assert (refusal.status, refusal.json["error"]["error_code"]) == (503, "KMS.0104")
        stand.daemon = None
        gateway = stand.gateway
        for pid in (gateway.process.pid, *children_of(gateway.process.pid)):
            assert core_limits(pid) == ["0", "0"]
        stand.start(gateway=False)
        eventually(lambda: random_over_rest().status == 200)
        assert gateway.process.poll() is None

        os.kill(gateway.process.pid, signal.SIGKILL)
        gateway.stop(20)
        assert answers(stand)
        stand.gateway = stand._run("gateway")
        assert random_over_rest().status == 200


def test_what_the_processes_show_of_themselves(stand_of_two: Stand) -> None:
    stand = stand_of_two
    pin = (stand.dev.data / "pin").read_bytes()
    assert answers(stand)
    children = processes(stand)
    maps = Path(f"/proc/{supervisor(stand)}/maps").read_text()
    assert "_pkcs11" in maps  # python-pkcs11 itself may be there, as the module may not
    assert MODULE.name not in maps
    assert all(MODULE.name in Path(f"/proc/{pid}/maps").read_text() for pid in children)
    assert len(list(Path(f"/proc/{supervisor(stand)}/task").iterdir())) == 1  # gRPC's would be there, too
    for pid in (supervisor(stand), *children):
        assert core_limits(pid) == ["0", "0"]
        assert pin not in Path(f"/proc/{pid}/environ").read_bytes()
        assert pin not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert pin.decode() not in stand.log()
    memory = {pid: Path(f"/proc/{pid}/status").read_text() for pid in children}
    for pid, name in children.items():
        (resident,) = [line.split()[1] for line in memory[pid].splitlines() if line.startswith("VmRSS")]
        print(f"{name} {pid}: {int(resident) / 1024:.0f} MiB resident")  # the target is 90 MB
