"""What the metrics say of a standing daemon and gateway, and that they say no more than they may."""

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hsmd.caller import IdentityKind
from hsmd.client import ApiError
from hsmd.descriptors import all_services, http_rules
from hsmd.errors import FAULTS
from tests.faults import absent_token
from tests.scrapes import Listeners, Scrape
from tests.seals import sealed
from tests.softhsm import needs_folder
from tests.stand import Stand, eventually, standing

ROOT = Path(__file__).parents[1]
ENCRYPT = "hsmd.v1.Crypto/EncryptData"
Watched = tuple[Stand, Listeners]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A stand with two workers that is watched; tests may kill its workers and take its token away."""
    listeners = Listeners()
    settings = {**listeners.settings, "HSMD__GRPC__WORKERS": "2", "HSMD__LIMITS__REQUESTS_PER_PROJECT": "0"}
    with standing(tmp_path_factory.mktemp("watched"), settings) as stand:
        yield stand, listeners


def encrypt(stand: Stand, key: str, times: int, connections: int = 8) -> None:
    """So often on each of so many connections, which are spread over the workers."""
    for _ in range(connections):
        with stand.client() as client:
            for _ in range(times):
                client.encrypt(key, b"data")


def pids(stand: Stand, kind: str) -> list[int]:
    """The daemon's processes of one kind."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in stand.workers()}
    return [pid for pid, name in names.items() if name.startswith(f"hsmd-{kind}")]


def calls(page: Scrape, **labels: str) -> float:
    return page.sum("hsmd_calls_total", method=ENCRYPT, **labels)


def test_counts_are_right_over_both_workers_and_stay_when_one_is_killed(watched: Watched) -> None:
    stand, listeners = watched
    with stand.client() as client:
        key = client.create_key("counted")
    before = listeners.daemon()
    encrypt(stand, key, 4, connections=20)  # so many that each worker is sure to have some
    served = {each["process"] for each in stand.audit() if each["event"] == "encryptData"}
    assert served == {"worker-0", "worker-1"}
    timed = "hsmd_call_seconds_count"

    def counted() -> Scrape | None:
        """A page with all of them, in both counters: a call is in one before it is in the other."""
        page = listeners.daemon()
        return page if min(calls(page), page.sum(timed, method=ENCRYPT)) - calls(before) >= 80 else None

    after = eventually(counted)
    assert calls(after, code="OK", status="OK", caller="certificate") - calls(before) == 80
    assert after.sum(timed, method=ENCRYPT) == calls(after)
    work = {"operation": "encrypt", "mechanism": "AES_GCM"}
    count = "hsmd_hsm_operation_seconds_count"
    assert after.sum(count, **work) - before.sum(count, **work) == 80
    uses = "hsmd_keyring_uses_total"
    assert after.sum(uses) - before.sum(uses) == 80
    assert 1 <= after.sum(uses, result="miss") - before.sum(uses, result="miss") <= 16
    appended = "hsmd_audit_append_seconds_count"
    assert after.sum(appended) - before.sum(appended) >= 80

    for pid in pids(stand, "worker"):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: listeners.daemon().sum("hsmd_process_starts_total") >= 7)  # of five processes
    killed = listeners.daemon()
    assert calls(killed) == calls(after)
    eventually(lambda: listeners.daemon().sum("hsmd_token_state", state="connected") == 3)
    encrypt(stand, key, 2)
    eventually(lambda: calls(listeners.daemon()) == calls(after) + 16)


def test_the_metrics_process_itself_is_replaced(watched: Watched) -> None:
    stand, listeners = watched
    before = listeners.daemon()
    assert before.sum("hsmd_process_up", process="metrics") == 1
    (pid,) = pids(stand, "metrics")
    os.kill(pid, signal.SIGKILL)

    def again() -> bool:
        try:
            page = listeners.daemon()
        except OSError:
            return False
        return page.sum("hsmd_process_starts_total", process="metrics") == 2 and calls(page) >= calls(before)

    eventually(again)


def refused(channel: Any, path: str, raw: bytes) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as told:
        channel.unary_unary(path)(raw, timeout=20, wait_for_ready=True)
    code: grpc.StatusCode = told.value.code()
    return code


def test_labels_are_bounded_whatever_callers_send(watched: Watched) -> None:
    stand, listeners = watched
    files = [path.read_bytes() for path in (stand.dev.ca, stand.dev.key, stand.dev.certificate)]
    with grpc.secure_channel(stand.dev.grpc, grpc.ssl_channel_credentials(*files)) as channel:
        for n in range(20):
            for path in (f"/hsmd.v1.Crypto/Evil{n}", f"/evil{n}.Service/X\\" + '"'):
                assert refused(channel, path, b"") is grpc.StatusCode.UNIMPLEMENTED
        for raw in (b"\xff" * 20, b"\x0a\x04evil", b""):
            refused(channel, f"/{ENCRYPT}", raw)
    token = stand.token()
    for n in range(10):
        assert stand.rest("GET", f"/evil/deep-{n}?evil={n}", token=token).status == 404
        assert stand.rest("POST", "/v1.0/evil/kms/list-keys", {}, token=f"evil-{n}").status in (401, 403)

    unknown = {"method": "other", "status": "UNIMPLEMENTED"}
    eventually(lambda: listeners.gateway().sum("hsmd_gateway_requests_total", route="other") == 10)
    # A page is good for half a second.
    eventually(lambda: listeners.daemon().sum("hsmd_calls_total", **unknown) == 40)
    page, rest = listeners.daemon(), listeners.gateway()
    names = {f"{service.full_name}/{method.name}" for service in all_services() for method in service.methods}
    assert page.label("hsmd_calls_total", "method") <= names | {"other"}
    codes = {each.code for each in FAULTS} | {"OK", "UNIMPLEMENTED"}
    assert page.label("hsmd_calls_total", "code") <= codes
    assert page.label("hsmd_calls_total", "caller") <= set(IdentityKind.__args__)  # type: ignore[attr-defined]  # of a Literal
    routes = {
        f"{verb} {template}"
        for service in all_services()
        for method in service.methods
        for verb, template, _ in http_rules(method)
    }
    assert rest.label("hsmd_gateway_requests_total", "route") <= routes | {"other"}
    assert rest.sum("hsmd_gateway_requests_total", route="other", status="404") == 10
    assert rest.label("hsmd_gateway_requests_total", "code") <= codes
    assert "evil" not in (page.text + rest.text).lower()


def test_nothing_of_a_caller_is_in_them(watched: Watched) -> None:
    stand, listeners = watched
    canary, dev = "canary-plaintext-0123456789", stand.dev
    with stand.client() as client:
        key = client.create_key("canary-alias")
        client.decrypt(client.encrypt(key, canary.encode()))
        with pytest.raises(ApiError):
            client.encrypt("alias/canary-none", canary.encode())
    token = stand.token()
    assert stand.kms("describe-key", {"key_id": key}, token=token).status == 200
    text = listeners.daemon().text + listeners.gateway().text
    secrets = (
        dev.password,
        dev.secret_key,
        dev.access_key,
        token,
        (dev.data / "pin").read_text(),
    )
    assert [each for each in (canary, "canary", *secrets, str(dev.data)) if each in text] == []
    values = re.findall(r'="((?:[^"\\]|\\.)*)"', text)
    assert [each for each in values if re.search(r"[0-9a-f]{8}|\d+\.\d+\.\d+\.\d+", each)] == []
    assert len(text.splitlines()) < 4000


def test_pages_name_what_there_is(watched: Watched) -> None:
    """docs/metrics.md, the dashboard and the rules: the metrics that they name are those of a real scrape."""
    _, listeners = watched
    found = dict[str, str]()
    for text in (listeners.daemon().text, listeners.gateway().text):
        help_ = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
        kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        found |= {name: f"| `{name}` | {kinds[name]} | {help_[name]} |" for name in help_}
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `hsmd_.*$", page, re.MULTILINE)
    assert sorted(table) == sorted(found.values())

    rules = (ROOT / "conf" / "prometheus" / "hsmd.rules.yml").read_text(encoding="utf-8")
    panels = json.loads((ROOT / "conf" / "grafana" / "hsmd.json").read_text(encoding="utf-8"))["panels"]
    shown = " ".join(target["expr"] for panel in panels for target in panel.get("targets", ()))
    series = {each for name in found for each in (name, f"{name}_bucket", f"{name}_count", f"{name}_sum")}
    named = set(re.findall(r"\bhsmd_\w+", shown))
    assert named | set(re.findall(r"\bhsmd_\w+", rules)) <= series
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    assert set(re.findall(r"^\| `(Hsmd\w+)`", page, re.MULTILINE)) == alerts
    bases = {re.sub(r"_(bucket|count|sum)$", "", each) for each in named}
    unseen = {"hsmd_process_metrics_lost_total", "hsmd_process_build_info"}
    assert set(found) - bases - named == unseen  # all else is on the dashboard


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def rest_of(connection: socket.socket) -> bytes:
    """What comes until the listener closes."""
    answer = b""
    with connection, contextlib.suppress(ConnectionResetError):
        while more := connection.recv(65536):
            answer += more
    return answer


def test_the_listener_answers_one_question(watched: Watched) -> None:
    _, listeners = watched

    def said(request: bytes) -> bytes:
        one = connected(listeners.port)
        with contextlib.suppress(ConnectionError):
            one.sendall(request)
        return rest_of(one)

    assert said(b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert said(b"GET /metrics?x=1 HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert said(b"POST /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 405 ")
    for path in (b"/", b"/metrics/", b"//metrics", b"/debug", b"http://x/metrics"):
        assert said(b"GET " + path + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404 ")
    assert said(b"\r\n\r\n").startswith(b"HTTP/1.1 404 ")
    assert said(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 1_000_000) == b""


def test_slow_clients_hold_nobody_up(watched: Watched) -> None:
    _, listeners = watched
    slow = [connected(listeners.port) for _ in range(40)]
    for each in slow:
        each.sendall(b"GET /metrics")
    stop = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(0.3):
                slow[-1].sendall(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert listeners.daemon().text  # while they wait
        assert [rest_of(each) for each in slow] == [b""] * 40
    finally:
        stop.set()
        thread.join()


@needs_folder
def test_a_token_that_is_away(watched: Watched) -> None:
    stand, listeners = watched
    connections = listeners.daemon().sum("hsmd_token_connections_total", token="main")
    with absent_token(stand):
        eventually(lambda: listeners.daemon().sum("hsmd_token_state", token="main", state="away") == 3)
        page = listeners.daemon()
        assert page.sum("hsmd_token_state", state="connected") == 0
        with stand.client() as client, pytest.raises(ApiError):
            client.create_key("away")
    eventually(lambda: listeners.daemon().sum("hsmd_token_state", state="connected") == 3)
    page = listeners.daemon()
    assert page.sum("hsmd_token_connections_total", token="main") == connections + 3
    assert page.sum("hsmd_calls_total", method="hsmd.v1.Keys/CreateKey", status="UNAVAILABLE") == 1


def test_the_seal_shows_and_the_listener_stays_when_it_opens(tmp_path: Path) -> None:
    """With TLS, for those who have a certificate. And this daemon knows nothing of the one above."""
    listeners = Listeners()
    with sealed(tmp_path) as stand:
        stand.stop()
        own = stand.dev.ca.parent
        stand.settings |= {
            **listeners.settings,
            "HSMD__METRICS__CERTIFICATE": str(own / "server.pem"),
            "HSMD__METRICS__KEY": str(own / "server.key"),
            "HSMD__METRICS__CLIENT_CA": str(stand.dev.ca),
        }
        stand.start(gateway=False)
        context = ssl.create_default_context(cafile=str(stand.dev.ca))
        with pytest.raises(OSError):  # noqa: PT011 -- of TLS, or a reset
            listeners.daemon(context)
        context.load_cert_chain(stand.dev.certificate, stand.dev.key)
        page = listeners.daemon(context)
        assert page.sum("hsmd_sealed") == 1
        assert page.samples("hsmd_token_state") == {}
        assert page.samples("hsmd_calls_total") == {}
        with stand.client() as client, pytest.raises(ApiError):
            client.create_key("sealed")
        stand.unseal()
        eventually(lambda: listeners.daemon(context).sum("hsmd_sealed") == 0)
        page = eventually(
            lambda: (now := listeners.daemon(context)).sum("hsmd_token_state", state="connected") == 3 and now
        )
        assert page.sum("hsmd_calls_total", method="hsmd.v1.Keys/CreateKey", code="KMS.0104") >= 1
        assert page.sum("hsmd_process_starts_total", process="metrics") == 1
        assert page.sum("hsmd_process_starts_total", process="worker-1") == 2
        assert 0 < page.sum("hsmd_certificate_expiry_days", certificate="metrics") < 400
