"""The gateway as a process: real HTTPS before it, a real gRPC server with mutual TLS behind it."""

import hashlib
import hmac
import http.client
import json
import os
import signal
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from hsmd.daemon.certificates import Authority
from hsmd.pb.v1 import crypto_pb2, identity_pb2, service_pb2
from tests.gateway_kit import PROJECT, SECRET, TOKEN, Daemon, NotStartedError, Rest, in_background, sdk_signed

ENCRYPT = f"/v1.0/{PROJECT}/kms/encrypt-data"
KEY = "0d0466b0-e727-4d9c-b35d-f84bb474a37f"
PLAIN = {"key_id": KEY, "plain_text": "hello"}


def encrypted(method: str, request: bytes) -> bytes:
    return crypto_pb2.EncryptDataResponse(key_id=KEY, cipher_text=b"\x00sealed").SerializeToString()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "test CA")


@pytest.fixture(scope="module")
def daemon(authority: Authority) -> Iterator[Daemon]:
    one = Daemon(authority, encrypted)
    one.start()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory, authority: Authority, daemon: Daemon) -> Iterator[Rest]:
    one = Rest(tmp_path_factory.mktemp("gateway"), authority, daemon.port).start()
    yield one
    assert one.stop()[0] == 0


class TestCalls:
    def test_a_call_reaches_the_daemon_with_its_evidence(self, rest: Rest, daemon: Daemon) -> None:
        answer = rest.kms("encrypt-data", PLAIN, **{"X-Forwarded-For": "9.9.9.9"})
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json == {"key_id": KEY, "cipher_text": "AHNlYWxlZA=="}
        method, request, metadata = daemon.seen[-1]
        assert method == "/hsmd.v1.Crypto/EncryptData"
        message = crypto_pb2.EncryptDataRequest.FromString(request)
        assert (message.project_id, message.key_id, message.plain_text) == (PROJECT, KEY, b"hello")
        assert metadata["hsmd-auth-token"] == "any-token"
        assert metadata["hsmd-source"] == "127.0.0.1"
        assert metadata["hsmd-request-id"] == answer.headers["x-request-id"]
        assert "hsmd-access-key" not in metadata

    def test_a_signed_call_brings_what_proves_it(self, rest: Rest, daemon: Daemon) -> None:
        body = json.dumps(PLAIN).encode()
        signed = sdk_signed("POST", ENCRYPT, body=body)
        answer = rest.send("POST", signed.uri, body, signed.header_params)
        assert answer.status == 200
        metadata = daemon.seen[-1][2]
        canonical = metadata["hsmd-canonical-request-bin"]
        assert isinstance(canonical, bytes)
        digest = hashlib.sha256(canonical).hexdigest()
        text = f"SDK-HMAC-SHA256\n{metadata['hsmd-sdk-date']!s}\n{digest}"
        assert hmac.new(SECRET.encode(), text.encode(), "sha256").hexdigest() == metadata["hsmd-signature"]
        assert metadata["hsmd-access-key"] == "AKIDAKIDAKIDAKIDAKID"

    def test_open_routes_carry_no_evidence(self, rest: Rest, daemon: Daemon) -> None:
        versions = service_pb2.ListVersionsResponse(versions=[service_pb2.Version(id="v1.0")])
        with daemon.giving(versions.SerializeToString()):
            answer = rest.send("GET", "/")
        assert answer.json["versions"][0]["id"] == "v1.0"
        assert "hsmd-auth-token" not in daemon.seen[-1][2]

    def test_a_token_travels_in_its_header_with_its_own_status(self, rest: Rest, daemon: Daemon) -> None:
        made = identity_pb2.CreateTokenResponse(subject_token="tok", token={"methods": ["password"]})
        body = {"auth": {"identity": {"methods": ["password"], "password": {"user": {"password": "x"}}}}}
        with daemon.giving(made.SerializeToString()):
            answer = rest.send("POST", "/v3/auth/tokens", body, {})
        assert answer.status == 201
        assert answer.headers["X-Subject-Token"] == "tok"
        assert answer.json == {"token": {"methods": ["password"], "roles": []}}

    def test_many_calls_over_one_connection_and_all_channels(self, rest: Rest, daemon: Daemon) -> None:
        daemon.peers.clear()
        connection = rest.connect()
        give_up = time.monotonic() + 60
        for number in count():  # a channel that was closed or was slow takes part later
            if number >= 40 and (len(daemon.peers) >= 4 or time.monotonic() > give_up):
                break
            connection.request("POST", ENCRYPT, json.dumps({**PLAIN, "plain_text": f"n{number}"}), TOKEN)
            assert connection.getresponse().read()
            assert crypto_pb2.EncryptDataRequest.FromString(daemon.seen[-1][1]).plain_text == b"n%d" % number
        connection.close()
        assert len(daemon.peers) == 4

    def test_a_get_reads_its_query(self, rest: Rest, daemon: Daemon) -> None:
        with daemon.giving(b""):
            assert rest.send("GET", "/v3/projects?name=a%20b&enabled=true&unknown=1").status == 200
        message = identity_pb2.ListProjectsRequest.FromString(daemon.seen[-1][1])
        assert (message.name, message.enabled, message.domain_id) == ("a b", True, "")


class TestRefusals:
    @pytest.mark.parametrize(
        ("verb", "path", "status", "code"),
        [
            ("POST", f"/v1.0/{PROJECT}/kms/no-such", 404, "APIGW.0101"),
            ("GET", "/v1.0//kms/user-quotas", 404, "APIGW.0101"),
            ("GET", f"/v1.0/{PROJECT}/kms/%ff", 404, "APIGW.0101"),
            ("GET", ENCRYPT, 405, "KMS.0215"),
            ("DELETE", "/v3/auth/domains", 405, "KMS.0215"),
        ],
    )
    def test_no_route(self, rest: Rest, verb: str, path: str, status: int, code: str) -> None:
        answer = rest.send(verb, path)
        assert (answer.status, answer.json["error_code"]) == (status, code)
        assert answer.json["request_id"] == answer.headers["x-request-id"]
        if status == 405:
            assert answer.headers["allow"] == ("POST" if path == ENCRYPT else "GET")

    @pytest.mark.parametrize(
        ("body", "code", "says"),
        [
            (b"{", "KMS.0202", "line 1"),
            (b'{"key_id": NaN}', "KMS.0202", "NaN"),
            (b'{"key_id": 1, "key_id": 2}', "KMS.0202", "twice"),
            (b"[]", "KMS.0202", "object"),
            (b'"\xff"', "KMS.0202", "UTF-8"),
            (b"[" * 5000 + b"]" * 5000, "KMS.0202", "nested"),
            (b'{"x":' + b"[" * 40 + b"]" * 40 + b"}", "KMS.0202", "nested"),
            (b'{"x":' + b"9" * 5000 + b"}", "KMS.0202", "number"),
            (b'{"x":[' + b"1," * 200_000 + b"1]}", "KMS.0202", "values"),
            (b"", "KMS.0204", "key_id"),
            (b"{}", "KMS.0204", "key_id"),
            (b'{"key_id": null}', "KMS.0204", "key_id"),
            (b'{"key_id": 5, "plain_text": "x"}', "KMS.0205", "UUID"),
            (b'{"key_id": "k", "plain_text": ["x"]}', "KMS.2101", "a string is due"),
            (b'{"key_id": "k", "plain_text": "\\ud800"}', "KMS.2101", "Unicode"),
            (b'{"key_id": "k", "plain_text": "x", "encryption_algorithm": "ROT13"}', "KMS.2105", "algorithm"),
        ],
    )
    def test_bad_bodies(self, rest: Rest, daemon: Daemon, body: bytes, code: str, says: str) -> None:
        before = len(daemon.seen)
        answer = rest.send("POST", ENCRYPT, body)
        assert (answer.status, answer.json["error"]["error_code"]) == (400, code)
        assert says in answer.json["error"]["error_msg"]
        assert len(daemon.seen) == before

    def test_iam_has_its_own_bodies(self, rest: Rest) -> None:
        for body in (b"{", b"{}", b'{"auth": {"identity": {"methods": ["password"], "password": 5}}}'):
            answer = rest.send("POST", "/v3/auth/tokens", body, {})
            assert answer.status == 400
            assert answer.json["error"]["code"] == 400
            assert answer.json["error"]["title"] == "Bad Request"

    def test_no_value_of_a_redacted_field_comes_back(self, rest: Rest) -> None:
        canary = "canary-7f3a"
        for body in ({"key_id": KEY, "plain_text": {"x": canary}}, {"key_id": KEY, "plain_text": canary * 2}):
            answer = rest.kms("encrypt-datakey", {**body, "pin": [canary]})
            assert answer.status == 400
            assert canary.encode() not in answer.raw
        wrong = {"identity": {"methods": ["password"], "password": {"user": {"password": [canary]}}}}
        assert canary.encode() not in rest.send("POST", "/v3/auth/tokens", {"auth": wrong}, {}).raw

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Basic eDp5"},
            {"Authorization": "SDK-HMAC-SHA256 Access=a"},
            {"X-Auth-Token": "two words"},
            {"X-Auth-Token": "x" * 5000},
            {"X-Auth-Token": "\u00e4"},
        ],
    )
    def test_no_usable_evidence(self, rest: Rest, daemon: Daemon, headers: dict[str, str]) -> None:
        before = len(daemon.seen)
        answer = rest.send("POST", ENCRYPT, PLAIN, headers)
        assert (answer.status, answer.json["error_code"]) == (401, "APIGW.0301")
        assert answer.json["request_id"] == answer.headers["x-request-id"]
        assert len(daemon.seen) == before

    def test_faults_of_the_daemon_keep_code_and_text(self, rest: Rest, daemon: Daemon) -> None:
        with daemon.refusing("KMS.0207", "The key does not exist."):
            answer = rest.kms("describe-key", {"key_id": KEY})
        assert answer.status == 404
        assert answer.json == {"error": {"error_code": "KMS.0207", "error_msg": "The key does not exist."}}
        with daemon.refusing("APIGW.0301", "Incorrect."):
            answer = rest.kms("describe-key", {"key_id": KEY})
        assert (answer.status, answer.json["error_code"]) == (401, "APIGW.0301")
        with daemon.refusing("IAM.0001", "The username or password is wrong."):
            answer = rest.send("GET", "/v3/regions")
        assert answer.json["error"] == {
            "code": 401,
            "title": "Unauthorized",
            "message": "The username or password is wrong.",
        }

    def test_what_the_daemon_does_not_explain_is_internal(self, rest: Rest, daemon: Daemon) -> None:
        def answer(method: str, request: bytes) -> bytes:
            raise ValueError("secret detail")

        with daemon.answering(answer):
            found = rest.kms("describe-key", {"key_id": KEY})
        assert (found.status, found.json["error"]["error_code"]) == (500, "KMS.0101")
        assert b"secret detail" not in found.raw
        with daemon.giving(b"\xff\xff no protobuf"):
            assert rest.kms("describe-key", {"key_id": KEY}).status == 500


class TestSizes:
    LIMIT = 12 * 1024 * 1024

    def test_a_declared_body_over_the_limit(self, rest: Rest, daemon: Daemon) -> None:
        before = len(daemon.seen)
        answer = rest.send("POST", ENCRYPT, b" " * (self.LIMIT + 1))
        assert (answer.status, answer.json["error_code"]) == (413, "APIGW.0201")
        assert len(daemon.seen) == before

    def test_a_declared_size_is_refused_before_the_body_comes(self, rest: Rest) -> None:
        with rest.socket() as raw:
            head = (
                f"POST {ENCRYPT} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: t\r\nContent-Length: {10**12}\r\n\r\n"
            )
            raw.sendall(head.encode())
            assert raw.recv(65536).startswith(b"HTTP/1.1 413")

    def test_a_chunked_body_over_the_limit(self, rest: Rest) -> None:
        connection = rest.connect()
        chunks = (b" " * 65536 for _ in range(self.LIMIT // 65536 + 2))
        connection.request("POST", ENCRYPT, chunks, TOKEN, encode_chunked=True)
        response = connection.getresponse()
        assert response.status == 413
        response.read()
        connection.request("POST", ENCRYPT, json.dumps(PLAIN), TOKEN)  # the connection goes on
        assert connection.getresponse().status == 200
        connection.close()

    def test_a_chunked_body_within_it(self, rest: Rest) -> None:
        connection = rest.connect()
        connection.request("POST", ENCRYPT, iter([b'{"key_id": "k", ', b'"plain_text": "x"}']), TOKEN)
        assert connection.getresponse().status == 200
        connection.close()

    def test_the_largest_signed_body_is_read_and_hashed(self, rest: Rest, daemon: Daemon) -> None:
        body = json.dumps(PLAIN).encode().ljust(self.LIMIT)
        signed = sdk_signed("POST", ENCRYPT, body=body)
        assert rest.send("POST", signed.uri, body, signed.header_params).status == 200
        canonical = daemon.seen[-1][2]["hsmd-canonical-request-bin"]
        assert isinstance(canonical, bytes)
        assert canonical.endswith(hashlib.sha256(body).hexdigest().encode())

    def test_a_message_that_grpc_would_not_carry(self, rest: Rest) -> None:
        answer = rest.kms("encrypt-data", {"key_id": KEY, "plain_text": "x" * 2_000_000})
        assert (answer.status, answer.json["error_code"]) == (413, "APIGW.0201")

    @pytest.mark.parametrize(
        "head",
        [
            b"GET /docs HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000,
            b"GET /docs HTTP/1.1\r\nHost: x\r\n" + b"X-Many: x\r\n" * 200 + b"\r\n",
            b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"NONSENSE\r\n\r\n",
        ],
    )
    def test_bad_heads(self, rest: Rest, head: bytes) -> None:
        with rest.socket() as raw:
            raw.sendall(head)
            response = http.client.HTTPResponse(raw)
            response.begin()
            assert response.status == 400
            assert json.loads(response.read())["request_id"] == response.headers["X-Request-Id"]


class TestConnections:
    def test_pipelined_requests_are_answered_in_order(self, rest: Rest, daemon: Daemon) -> None:
        requests = b""
        for number in range(5):
            body = json.dumps({**PLAIN, "plain_text": f"p{number}"}).encode()
            head = f"POST {ENCRYPT} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: t\r\nContent-Length: {len(body)}\r\n"
            requests += head.encode() + b"\r\n" + body
        before = len(daemon.seen)
        with rest.socket() as raw:
            raw.sendall(requests)
            for _ in range(5):
                response = http.client.HTTPResponse(raw)
                response.begin()
                assert response.status == 200
                assert len(response.read()) > 10
        texts = [
            crypto_pb2.EncryptDataRequest.FromString(each[1]).plain_text for each in daemon.seen[before:]
        ]
        assert texts == [b"p%d" % number for number in range(5)]

    def test_plain_http_is_told_so(self, rest: Rest) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", rest.port, timeout=30)
        connection.request("POST", ENCRYPT, b"x" * 100_000)
        response = connection.getresponse()
        assert response.status == 400
        tree = json.loads(response.read())
        assert "this port speaks HTTPS" in tree["error_msg"]
        assert tree["request_id"] == response.headers["X-Request-Id"]

    def test_silent_and_strange_clients_disturb_nobody(self, rest: Rest) -> None:
        strangers = [socket.create_connection(("127.0.0.1", rest.port)) for _ in range(600)]
        strangers[0].sendall(b"\x16\x03\x01")  # half a greeting
        strangers[1].sendall(b"\x00\x01")
        assert rest.kms("encrypt-data", PLAIN).status == 200
        strangers[2].settimeout(30)
        assert strangers[2].recv(1) == b""  # silent: the door closes
        for each in strangers:
            each.close()

    def test_a_slow_head_is_cut_off(self, rest: Rest) -> None:
        with rest.socket() as raw:
            raw.sendall(b"GET /docs HTTP/1.1\r\nHost:")
            raw.settimeout(40)
            assert raw.recv(1) == b""

    def test_old_tls_is_refused(self, rest: Rest) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.minimum_version = ssl.TLSVersion.TLSv1
        with socket.create_connection(("127.0.0.1", rest.port)) as plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain)


class TestPages:
    def test_the_description_is_valid_openapi(self, rest: Rest) -> None:
        answer = rest.send("GET", "/openapi.json", headers={})
        validate(answer.json)
        operation = answer.json["paths"]["/v1.0/{project_id}/kms/encrypt-data"]["post"]
        assert operation["security"] == [{"signature": []}, {"token": []}]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert body["required"] == ["key_id", "plain_text"]
        assert "project_id" not in body["properties"]
        assert answer.json["paths"]["/"]["get"]["security"] == []
        assert "KMS.0205" in operation["responses"]["400"]["description"]
        created = answer.json["paths"]["/v3/auth/tokens"]["post"]["responses"]["201"]
        assert "X-Subject-Token" in created["headers"]

    def test_the_page_needs_nothing_else(self, rest: Rest) -> None:
        answer = rest.send("GET", "/docs", headers={})
        text = answer.raw.decode()
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "<script" not in text
        assert " on" not in text.split("<body>")[0]
        assert "http://" not in text.replace("https://", "")
        assert "encrypt-data" in text
        assert answer.headers["x-request-id"]


class TestTheDaemonGoesAndComes:
    @pytest.fixture
    def own(self, tmp_path: Path, authority: Authority) -> Iterator[tuple[Daemon, Rest]]:
        daemon = Daemon(authority, encrypted)
        daemon.start()
        rest = Rest(tmp_path, authority, daemon.port).start()
        yield daemon, rest
        rest.stop()
        daemon.stop()

    def test_away_and_back(self, own: tuple[Daemon, Rest]) -> None:
        daemon, rest = own
        assert rest.kms("encrypt-data", PLAIN).status == 200
        daemon.stop()
        answer = rest.kms("encrypt-data", PLAIN)
        assert (answer.status, answer.json["error"]["error_code"]) == (503, "KMS.0104")
        daemon.start()
        give_up = time.monotonic() + 30
        while rest.kms("encrypt-data", PLAIN).status != 200:
            assert time.monotonic() < give_up

    def test_a_late_answer(self, tmp_path: Path, authority: Authority, daemon: Daemon) -> None:
        rest = Rest(tmp_path, authority, daemon.port, deadline_seconds=2.0).start()
        hold = threading.Event()

        def late(method: str, request: bytes) -> bytes:
            hold.wait(30)
            return b""

        with daemon.answering(late):
            answer = rest.kms("encrypt-data", PLAIN)
            hold.set()
        assert (answer.status, answer.json["error"]["error_code"]) == (503, "KMS.0104")
        rest.stop()

    def test_being_told_to_reconnect_costs_no_call(self, tmp_path: Path, authority: Authority) -> None:
        create = f"/v1.0/{PROJECT}/kms/create-key"
        daemon = Daemon(authority, lambda *_: b"", connection_age=300)
        daemon.start()
        rest = Rest(tmp_path, authority, daemon.port).start()
        found: list[int] = []

        def call() -> None:
            connection = rest.connect()
            while len(daemon.peers) < 24:  # four channels, each new several times
                connection.request("POST", create, b'{"key_alias": "a"}', TOKEN)
                response = connection.getresponse()
                response.read()
                found.append(response.status)

        for each in [in_background(call) for _ in range(4)]:
            each.result(60)
        assert set(found) == {200}
        rest.stop()
        daemon.stop()

    @pytest.mark.parametrize(("operation", "status"), [("encrypt-data", 200), ("create-key", 503)])
    def test_only_what_may_be_repeated_is_sent_again(
        self, tmp_path: Path, authority: Authority, operation: str, status: int
    ) -> None:
        """One of two workers dies within a call; the other one could do it."""
        arrived, over = threading.Event(), threading.Event()
        workers: list[Daemon] = []
        served: list[Daemon] = []

        def dies(one: Daemon) -> bytes:
            served.append(one)
            if len(served) == 1:
                arrived.set()
                over.wait(30)
            return b""

        workers.append(Daemon(authority, lambda *_: dies(workers[0])))
        workers[0].start()
        workers.append(workers[0].twin())
        workers[1].answer = lambda *_: dies(workers[1])
        rest = Rest(tmp_path, authority, workers[0].port, channels=16).start()
        answer = in_background(lambda: rest.kms(operation, {**PLAIN, "key_alias": "a"}))
        assert arrived.wait(30)
        in_background(served[0].stop)
        assert answer.result(30).status == status
        over.set()
        assert len(served) == (2 if status == 200 else 1)
        rest.stop()
        for each in workers:
            each.stop()


class TestStartAndStop:
    def test_a_stop_lets_requests_end(self, tmp_path: Path, authority: Authority, daemon: Daemon) -> None:
        rest = Rest(tmp_path, authority, daemon.port, grace_seconds=20.0).start()
        arrived, go = threading.Event(), threading.Event()

        def held(method: str, request: bytes) -> bytes:
            arrived.set()
            go.wait(30)
            return encrypted(method, request)

        with daemon.answering(held), rest.socket() as idle:
            answer = in_background(lambda: rest.kms("encrypt-data", PLAIN))
            assert arrived.wait(30)
            assert rest.process is not None
            os.kill(rest.process.pid, signal.SIGTERM)
            give_up = time.monotonic() + 30
            while _accepts(rest.port):
                assert time.monotonic() < give_up
            assert idle.recv(1) == b""
            go.set()
            assert answer.result(30).status == 200
        code, errors = rest.wait()
        assert code == 0
        assert "Traceback" not in errors

    def test_a_stop_ends_when_the_grace_time_is_over(
        self, tmp_path: Path, authority: Authority, daemon: Daemon
    ) -> None:
        rest = Rest(tmp_path, authority, daemon.port, grace_seconds=1.0).start()
        arrived, go = threading.Event(), threading.Event()

        def held(method: str, request: bytes) -> bytes:
            arrived.set()
            go.wait(30)
            return b""

        with daemon.answering(held):
            answer = in_background(lambda: rest.kms("encrypt-data", PLAIN))
            assert arrived.wait(30)
            code, errors = rest.stop()
            go.set()
        assert code == 0, errors
        assert answer.result(30).status == 503

    @pytest.mark.parametrize(
        ("option", "says"),
        [
            ("certificate", "can't be read"),
            ("key", "not a PEM"),
            ("daemon_ca", "can't be read"),
            ("port", "listens"),
        ],
    )
    def test_a_start_that_fails_says_why(
        self, tmp_path: Path, authority: Authority, daemon: Daemon, option: str, says: str
    ) -> None:
        rest = Rest(tmp_path, authority, daemon.port)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            wrong: dict[str, Any] = {"port": taken.getsockname()[1], "key": str(authority.pair.certificate)}
            rest.options[option] = wrong.get(option, str(tmp_path / "none.pem"))
            with pytest.raises(NotStartedError) as failed:
                rest.start()
        assert "ConfigError: gateway" in str(failed.value)
        assert says in str(failed.value)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True
