"""Random calls of every method, over gRPC and REST, with a canary wherever one fits: none of them stays.

Logs at DEBUG, the audit log, traces and, where they are on, metrics. HSMD_SOAK_CALLS says how many calls.
"""

import base64
import hashlib
import json
import os
import random
import re
import secrets
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from hsmd.config import Settings
from hsmd.descriptors import TIMESTAMP, is_map, json_name, method_options, services
from hsmd.gateway.transcoder import Route, build
from hsmd.pb.v1 import crypto_pb2, datakeys_pb2
from tests.calls import fresh
from tests.collector import Collector, collecting
from tests.stand import Stand, children_of, eventually, free_port, standing
from tests.test_token_away import channel

CALLS = int(os.environ.get("HSMD_SOAK_CALLS", "100000"))
MARK = b"cAnAry9zQ7bK2xW"  # in every canary, so that one look finds any of them
_THREADS = 8
_RIGHT = 0.4  # of the calls are in order, and carry canaries as data
_RESOURCE = re.compile(rb'"resource":"[^"]*"')
_ROUTES = build(services())[1]
_METHODS = [method for service in services() for method in service.methods]

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]


def spellings(secret: bytes) -> set[bytes]:
    """Raw, in hex, and in base64 at each of its three offsets."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    for offset in range(3):
        cut = base64.b64encode(bytes(offset) + secret)[4:-4]
        found |= {cut, cut.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def canary() -> str:
    """A new one."""
    return f"{MARK.decode()}-{secrets.token_hex(6)}"


class Caller(threading.Thread):
    """One thread's share of the calls, drawn by its own dice."""

    def __init__(self, stand: Stand, keys: list[str], token: str, turns: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.answers: Counter[str] = Counter()
        self.canaries = 0
        self.crashed: list[BaseException] = []
        self._stand, self._keys, self._token = stand, keys, token
        self._turns = turns
        self._dice = random.Random(seed)  # noqa: S311 -- no secret

    def run(self) -> None:
        try:
            with channel(self._stand) as own:
                for _ in range(self._turns):
                    over_rest = self._dice.random() < 0.5
                    self.answers[self._over_rest() if over_rest else self._over_grpc(own)] += 1
        except BaseException as error:
            self.crashed.append(error)

    def _over_grpc(self, own: grpc.Channel) -> str:
        method = self._dice.choice(_METHODS)
        request = GetMessageClass(method.input_type)()
        spared = method_options(method).resource  # what a call is about stands in its audit record
        if self._dice.random() < _RIGHT:
            method, request, spared = self._in_order()
        else:
            self._fill(request, spared)
        if spared:
            setattr(request, spared, self._dice.choice(self._keys))
        name = f"/{method.containing_service.full_name}/{method.name}"
        evidence = (("hsmd-auth-token", self._canary()), ("traceparent", self._canary()))
        metadata = evidence if self._dice.random() < 0.1 else ()
        try:
            own.unary_unary(name, None, None)(request.SerializeToString(), timeout=60, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def _in_order(self) -> tuple[Any, Any, str]:
        """A call that succeeds, with canaries as its data."""
        plain, aad = self._canary().encode(), self._canary().encode()
        request = self._dice.choice(
            [
                crypto_pb2.EncryptDataRequest(plain_text=plain, additional_authenticated_data=aad),
                datakeys_pb2.EncryptDataKeyRequest(
                    plain_text=plain + hashlib.sha256(plain).digest(), datakey_plain_length=len(plain)
                ),
                crypto_pb2.GenRandomRequest(random_data_length=512),
            ]
        )
        [method] = [each for each in _METHODS if each.input_type == request.DESCRIPTOR]
        return method, request, method_options(method).resource

    def _fill(self, message: Any, spared: str, depth: int = 3) -> None:
        for field in message.DESCRIPTOR.fields:
            if field.name in (spared, "project_id") or is_map(field) or self._dice.random() < 0.2:
                continue
            if field.message_type is not None:
                if depth and field.message_type.full_name != TIMESTAMP:
                    inner = getattr(message, field.name)
                    self._fill(inner.add() if field.is_repeated else inner, "", depth - 1)
            elif field.type in (field.TYPE_STRING, field.TYPE_BYTES):
                text = self._canary()
                value: str | bytes = text.encode() if field.type == field.TYPE_BYTES else text
                if field.is_repeated:
                    getattr(message, field.name).append(value)
                else:
                    setattr(message, field.name, value)

    def _over_rest(self) -> str:
        route = self._dice.choice(_ROUTES)
        path = re.sub(r"\{\w+\}", self._stand.dev.project_id, route.template)
        if self._dice.random() < 0.05:
            path += "/" + self._canary()  # no route
        body: dict[str, Any] | bytes = self._body(route)
        if self._dice.random() < _RIGHT:
            path = f"/v1.0/{self._stand.dev.project_id}/kms/encrypt-data"
            body = {"key_id": self._dice.choice(self._keys), "plain_text": self._canary()}
        elif self._dice.random() < 0.1:
            body = json.dumps(body).encode()[:-2] + self._canary().encode()
        query = f"?limit={self._canary()}" if self._dice.random() < 0.1 else ""
        token = self._canary() if self._dice.random() < 0.1 else self._token
        headers = {"traceparent": self._canary(), "X-Request-Id": self._canary()}
        answer = self._stand.rest(route.verb, path + query, body, token=token, headers=headers)
        return str(answer.status)

    def _body(self, route: Route) -> dict[str, Any]:
        """Canaries as values of every kind, where a text is due and where none is."""
        spared = method_options(route.method).resource
        kinds = (lambda: self._canary(), lambda: [self._canary()], lambda: {self._canary(): self._canary()})
        body = {
            json_name(field): self._dice.choice(kinds)()
            for field in route.method.input_type.fields
            if field.name != spared and self._dice.random() < 0.8
        }
        if spared:
            body[spared] = self._dice.choice(self._keys)
        return body

    def _canary(self) -> str:
        self.canaries += 1
        return canary()


def places(stand: Stand, collector: Collector, metrics: str) -> Iterator[tuple[str, bytes]]:
    """Where none may be: everything that is for others' eyes."""
    for path in sorted(stand.dev.data.rglob("*")):
        if path.is_file() and (
            path.suffix == ".log" or "audit" in path.parts[len(stand.dev.data.parts) :][0:1]
        ):
            # The id that a call was about stands in its record, whatever was sent as one.
            yield str(path.relative_to(stand.dev.data)), _RESOURCE.sub(b"", path.read_bytes())
    for number, raw in enumerate(collector.raw):
        yield f"traces {number}", raw
    if metrics:
        with urllib.request.urlopen(metrics, timeout=60) as answer:  # noqa: S310 -- of our own
            yield "metrics", answer.read()
    pids = [*stand.workers()] + (children_of(stand.gateway.process.pid) if stand.gateway else [])
    for pid in pids:
        for name in ("cmdline", "environ"):
            yield f"{name} of {pid}", Path(f"/proc/{pid}/{name}").read_bytes()


def test_no_canary_of_many_calls_anywhere(tmp_path: Path) -> None:
    otlp, scraped = free_port(), free_port()
    settings = {
        "HSMD__LOG__LEVEL": "DEBUG",
        "HSMD__TRACING__ENDPOINT": f"http://127.0.0.1:{otlp}",
        "HSMD__LIMITS__KEYS_PER_PROJECT": "1000000",
        "HSMD__AUDIT__COMPRESS": "false",
    }
    with_metrics = hasattr(Settings(), "metrics")
    if with_metrics:
        settings |= {"HSMD__METRICS__ENABLED": "true", "HSMD__METRICS__PORT": str(scraped)}
    with collecting(otlp) as collector, standing(tmp_path, settings) as stand:
        with stand.client() as client:
            keys = [client.create_key(fresh()) for _ in range(8)]
        shares = [CALLS // _THREADS + (number < CALLS % _THREADS) for number in range(_THREADS)]
        callers = [Caller(stand, keys, stand.token(), share, seed) for seed, share in enumerate(shares)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert [caller.crashed for caller in callers if caller.crashed] == []
        eventually(lambda: len(collector.spans) > CALLS / 2, 60)
        answers = sum((caller.answers for caller in callers), Counter())
        planted = sum(caller.canaries for caller in callers)
        print(f"\n{CALLS} calls, {planted} canaries, {len(collector.spans)} spans: {dict(answers)}")
        wanted = spellings(MARK)
        metrics = f"http://127.0.0.1:{scraped}/metrics" if with_metrics else ""
        found, looked = Counter[str](), 0
        for name, content in places(stand, collector, metrics):
            looked += len(content)
            found[name] += sum(each in content for each in wanted)
        print(f"{looked / 1e6:.0f} MB looked through")
        assert {name for name, count in found.items() if count} == set()
    assert answers["OK"] > CALLS / 20
    assert answers["200"] > CALLS / 20
    assert answers["500"] == answers["INTERNAL"] == 0
    assert sum(answers.values()) == CALLS


@pytest.mark.parametrize("offset", range(3))
def test_the_look_finds_a_canary(offset: int) -> None:
    one = canary().encode()
    for content in (one, one.hex().encode(), base64.b64encode(bytes(offset) + one + b"behind")):
        assert any(each in b"before" + content for each in spellings(MARK))
