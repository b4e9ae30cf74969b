"""The service about itself: API versions for strangers, status for operators, health and reflection."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hsmd import __version__
from hsmd.client import Client
from hsmd.pb.v1 import service_pb2 as pb
from tests.calls import Operation, record, refusal, refused
from tests.softhsm import OPENCRYPTOKI
from tests.stand import Stand, Tenant

V1 = {
    "id": "v1.0",
    "links": [{"href": "/v1.0", "rel": "self"}],
    "version": "",
    "status": "CURRENT",
    "updated": "2026-11-21T00:00:00Z",
    "min_version": "",
}
V2 = {**V1, "id": "v2", "links": [{"href": "/v2", "rel": "self"}]}


def test_versions_for_anybody(stand: Stand) -> None:
    answer = stand.rest("GET", "/")
    assert (answer.status, answer.json) == (200, {"versions": [V1, V2]})
    assert stand.rest("GET", "/v1.0").json == {"version": V1}
    assert stand.rest("GET", "/v2").json == {"version": V2}
    one = record(stand, answer.headers["X-Request-Id"])
    assert (one["event"], one["identity"], one["user_id"]) == ("listVersions", "anonymous", "")


@pytest.mark.parametrize("version", ["v3", "v1", "V2", "kms", "%7F", "v2%2Fx", "v" * 5])
def test_versions_that_are_none(stand: Stand, version: str) -> None:
    refused(stand.rest("GET", f"/{version}"), "APIGW.0101")


def test_versions_over_grpc(client: Client) -> None:
    response = client.service.ListVersions(pb.ListVersionsRequest())
    assert [each.id for each in response.versions] == ["v1.0", "v2"]
    assert client.service.ShowVersion(pb.ShowVersionRequest(version_id="v2")).version.links[0].href == "/v2"
    with refusal("APIGW.0101"):
        client.service.ShowVersion(pb.ShowVersionRequest(version_id="v3"))


def test_status(stand: Stand, client: Client) -> None:
    status = client.status()
    assert (status.version, status.region) == (__version__, stand.dev.region)
    assert (status.token.label, status.token.state) == ("hsmd", "connected")
    assert status.token.serial or OPENCRYPTOKI  # whose tokens have none
    assert status.workers >= 1
    assert status.worker.startswith("worker-")
    assert status.pin_source == "file"
    assert status.store.startswith("sqlite")
    assert status.root_key.startswith("hsmd-root-1 ")
    assert "unknown" not in status.root_key
    assert status.capabilities
    assert all(each.name for each in status.capabilities)
    assert status.started.ToMilliseconds() > 0
    assert (stand.dev.data / "pin").read_text() not in str(status)


def test_status_is_not_for_everybody(stand: Stand, reader: Tenant) -> None:
    with stand.client(reader) as client, refusal("KMS.0330"):
        client.status()


def test_status_has_no_rest_face(stand: Stand) -> None:
    refused(stand.rest("GET", f"/v1.0/{stand.dev.project_id}/kms/status", token=stand.token()), "APIGW.0101")


def test_paths_and_verbs_that_are_none(stand: Stand, rest: Operation) -> None:
    refused(rest("no-such-operation", {}), "APIGW.0101")
    path = f"/v1.0/{stand.dev.project_id}/kms/create-key"
    for verb in ("GET", "PUT", "DELETE", "PATCH"):
        answer = stand.rest(verb, path)
        refused(answer, "KMS.0215")
        assert answer.headers["Allow"] == "POST"
    for odd in (path + "/", path + "/x", "/" + path, path.replace("create-key", "Create-Key"), path + "%20"):
        refused(stand.rest("POST", odd, {}), "APIGW.0101")


def test_a_slow_network_is_no_outage(stand: Stand) -> None:
    """The TLS handshake takes its time there; the first call waits for it instead of being refused."""
    with delayed(stand.dev.grpc, seconds=0.25) as target:
        dev = stand.dev
        with Client(target, ca=dev.ca, certificate=dev.certificate, key=dev.key) as client:
            response = client.service.ListVersions(pb.ListVersionsRequest())
            assert [each.id for each in response.versions] == ["v1.0", "v2"]


@contextmanager
def delayed(target: str, seconds: float) -> Iterator[str]:
    """Another address for the same server: whatever passes, passes later."""
    host, _, port = target.rpartition(":")
    stopping = threading.Event()

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                stopping.wait(seconds)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        stopping.set()


def test_health_and_reflection(stand: Stand) -> None:
    dev = stand.dev
    files = (dev.ca, dev.key, dev.certificate)
    with grpc.secure_channel(
        dev.grpc, grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    ) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "hsmd.v1.Keys", "hsmd.v1.Crypto", "hsmd.v1.Identity"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = reflected.ServerReflectionInfo(iter([request]), timeout=20)
        names = {each.name for each in listed.list_services_response.service}
        assert {"hsmd.v1.Keys", "hsmd.v1.Deletion", "hsmd.v1.Crypto", "hsmd.v1.DataKeys"} <= names
