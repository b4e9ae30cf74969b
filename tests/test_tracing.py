"""One trace from the REST request to the PKCS#11 call, at a real collector; nothing where it is off."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from hsmd import tracing
from hsmd.client import ApiError
from hsmd.config import ConfigError, Tracing
from hsmd.daemon import traces
from hsmd.pb.v1 import crypto_pb2
from hsmd.pb.v1.crypto_pb2_grpc import CryptoStub
from tests.calls import fresh
from tests.collector import Collector, Span, collecting
from tests.stand import Stand, eventually, free_port, standing

_SERVER, _CLIENT = 2, 3


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stand, Collector]]:
    """A stand whose spans are collected; a proxy in front of it calls from 127.7.7.7."""
    port = free_port()
    settings = {
        "HSMD__TRACING__ENDPOINT": f"http://127.0.0.1:{port}",
        "HSMD__GRPC__WORKERS": "1",
        "HSMD__GATEWAY__TRUSTED_PROXIES": '["127.7.7.7/32"]',
    }
    with collecting(port) as collector, standing(tmp_path_factory.mktemp("traced"), settings) as stand:
        yield stand, collector


def chain(spans: list[Span], last: Span) -> list[str]:
    """The names from the root to this span."""
    names, by_id = [last.name], {each.id: each for each in spans}
    while last.parent in by_id:
        last = by_id[last.parent]
        names.insert(0, last.name)
    assert last.parent == ""
    return names


def collected(collector: Collector, request_id: str) -> list[Span]:
    """The trace of a request, when the gateway's span has come: it ends last."""

    def whole() -> list[Span]:
        spans = collector.of_request(request_id)
        done = {each.service for each in spans if each.kind == _SERVER}
        return spans if done == {"hsmd", "hsmd-gateway"} else []

    found: list[Span] = eventually(whole)
    return found


def test_one_trace_from_the_rest_request_to_the_hsm(traced: tuple[Stand, Collector]) -> None:
    stand, collector = traced
    with stand.client() as client:
        key = client.create_key(fresh())
    answer = stand.kms("encrypt-data", {"key_id": key, "plain_text": "a secret"})
    assert answer.status == 200
    spans = collected(collector, answer.headers["X-Request-Id"])
    assert len({each.trace for each in spans}) == 1
    gateway, call = "POST /v1.0/{project_id}/kms/encrypt-data", "hsmd.v1.Crypto/EncryptData"
    above = [gateway, call, call]
    chains = {tuple(chain(spans, each)) for each in spans}
    assert chains >= {
        (gateway,),
        (*above, "authenticate"),
        (*above, "authorize"),
        (*above, "append to audit log"),
        (*above, "C_Encrypt"),
        (*above, "load key", "C_UnwrapKey"),
    }
    by_name = {each.name: each for each in spans}
    assert by_name["C_Encrypt"].attributes == {"hsmd.mechanism": "AES_GCM"}
    assert by_name["C_UnwrapKey"].attributes["hsmd.mechanism"].startswith("AES_KEY_WRAP_")
    [served] = [each for each in spans if each.service == "hsmd" and each.kind == _SERVER]
    assert served.attributes["hsmd.key_version"] == 1
    assert served.instance == "worker-0"
    assert not any(each.failed for each in spans)


def test_a_refusal_is_marked_by_its_code(traced: tuple[Stand, Collector]) -> None:
    stand, collector = traced
    nobody = "11111111-2222-3333-4444-555555555555"
    answer = stand.kms("encrypt-data", {"key_id": nobody, "plain_text": "x"})
    spans = collected(collector, answer.headers["X-Request-Id"])
    servers = [each for each in spans if each.kind == _SERVER]
    assert {each.attributes["hsmd.error"] for each in servers} == {"KMS.0207"}
    assert all(each.failed for each in servers)
    assert all(nobody not in str(each.attributes) for each in spans)


def test_what_the_gateway_refuses_is_a_trace_of_its_own(traced: tuple[Stand, Collector]) -> None:
    stand, collector = traced
    answer = stand.kms("encrypt-data", b'{"plain_text": "x" "y"}')
    [span] = eventually(lambda: collector.of_request(answer.headers["X-Request-Id"]))
    assert (span.service, span.attributes["hsmd.error"]) == ("hsmd-gateway", "KMS.0202")


@pytest.mark.parametrize(("source", "heard"), [("127.7.7.7", True), ("127.0.0.1", False)])
def test_who_is_trusted_goes_on_with_its_own_trace(
    traced: tuple[Stand, Collector], source: str, heard: bool
) -> None:
    """And nobody else: a stranger would decide what is traced, or write into others' traces."""
    stand, collector = traced
    trace, above = "5" * 31 + source[-1], "6" * 16
    sent = {"traceparent": f"00-{trace}-{above}-01", "X-Forwarded-For": "192.0.2.1"}
    path = f"/v1.0/{stand.dev.project_id}/kms/list-keys"
    answer = stand.rest("POST", path, {}, token=stand.token(), headers=sent, source=source)
    spans = collected(collector, answer.headers["X-Request-Id"])
    assert {each.trace == trace for each in spans} == {heard}
    [gateway] = [each for each in spans if each.service == "hsmd-gateway" and each.kind == _SERVER]
    assert gateway.parent == (above if heard else "")


def test_a_client_of_grpc_begins_a_trace(traced: tuple[Stand, Collector]) -> None:
    stand, collector = traced
    with stand.client() as client:
        key = client.create_key(fresh())
    files = (stand.dev.ca, stand.dev.key, stand.dev.certificate)
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    request_id, trace = "a" * 31 + "1", "7" * 32
    sent = (("hsmd-request-id", request_id), ("traceparent", f"00-{trace}-{'8' * 16}-01"))
    with grpc.secure_channel(stand.dev.grpc, credentials) as channel:
        CryptoStub(channel).EncryptData(
            crypto_pb2.EncryptDataRequest(key_id=key, plain_text=b"x"), metadata=sent, timeout=30
        )
    spans = eventually(lambda: collector.of_request(request_id))
    assert trace not in {each.trace for each in spans}


def test_changes_have_their_record_within(traced: tuple[Stand, Collector]) -> None:
    """The audit record of a change is written before its commit."""
    stand, collector = traced
    answer = stand.kms("create-key", {"key_alias": fresh()})
    spans = collected(collector, answer.headers["X-Request-Id"])
    call = "hsmd.v1.Keys/CreateKey"
    above = ("POST /v1.0/{project_id}/kms/create-key", call, call)
    chains = {tuple(chain(spans, each)) for each in spans}
    assert {(*above, "store write", "append to audit log"), (*above, "C_GenerateKey")} <= chains
    assert (*above, "append to audit log") not in chains


def test_without_an_endpoint_nothing_of_it_is_loaded() -> None:
    code = (
        "import sys, hsmd.daemon.worker, hsmd.daemon.warden, hsmd.gateway.server, hsmd.daemon.serving\n"
        "from hsmd import tracing\n"
        "from hsmd.config import Tracing\n"
        "from hsmd.daemon import traces\n"
        "with traces.exported(Tracing(), '', 'worker-0'):\n"
        "    assert tracing.span('C_Sign', mechanism=1) is tracing.entry('call') is tracing.NOTHING\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_calls_go_on_without_the_collector(tmp_path: Path) -> None:
    """One that is away costs spans and one line in the log; when it is there, spans arrive, to the last."""
    port = free_port()
    settings = {"HSMD__TRACING__ENDPOINT": f"http://127.0.0.1:{port}", "HSMD__GRPC__WORKERS": "1"}
    with standing(tmp_path, settings, gateway=False) as stand, stand.client() as client:
        key = client.create_key(fresh())
        lost = "the collector http://127.0.0.1"
        eventually(lambda: lost in stand.log())
        for _ in range(600):  # more spans than may wait
            client.encrypt(key, b"data")
        assert stand.log().count("takes no spans") == 1
        with collecting(port) as collector:
            eventually(lambda: collector.spans, 60)
            eventually(lambda: "takes spans again" in stand.log())
            with pytest.raises(ApiError):
                client.encrypt("11111111-2222-3333-4444-555555555555", b"data")
            stand.stop()  # what waits then is sent
            assert any(each.attributes.get("hsmd.error") == "KMS.0207" for each in collector.spans)
    assert "spans were not delivered" in stand.log()


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoint": "collector"},
        {"endpoint": "https://collector"},
        {"endpoint": "https://collector:70000"},
        {"endpoint": "https://collector:4317/v1/traces"},
        {"endpoint": "http://collector.example:4317"},
        {"endpoint": "http://192.0.2.1:4317"},
        {"endpoint": "http://127.0.0.1:4317", "ca": Path("/ca.pem")},
        {"endpoint": "https://collector:4317", "key": Path("/key.pem")},
    ],
)
def test_an_endpoint_that_is_none_or_hears_others(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="tracing"):
        traces.check(Tracing(**wrong))  # type: ignore[arg-type]  # types are not what is wrong


def test_spans_go_to_a_collector_with_tls(traced: tuple[Stand, Collector]) -> None:
    """By mutual TLS; and nothing goes to one that the CA does not know."""
    stand, _ = traced
    tls = stand.dev.ca.parent
    server = ((tls / "server.key").read_bytes(), (tls / "server.pem").read_bytes())
    credentials = grpc.ssl_server_credentials([server], stand.dev.ca.read_bytes(), require_client_auth=True)
    port = free_port()
    with collecting(port, credentials) as collector:
        settings = Tracing(
            endpoint=f"https://127.0.0.1:{port}",
            ca=stand.dev.ca,
            certificate=stand.dev.certificate,
            key=stand.dev.key,
        )
        with traces.exported(settings, "", "here"), tracing.entry("a call"):
            pass
        assert [each.name for each in collector.spans] == ["a call"]
