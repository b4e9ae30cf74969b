"""The ASGI application: routes a request, gathers the evidence, calls the daemon, writes the answer."""

import asyncio
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from hsmd import __version__, errors, metrics, tracing
from hsmd.caller import logged_as
from hsmd.config import Settings, digest
from hsmd.descriptors import services
from hsmd.errors import Error
from hsmd.gateway import failures
from hsmd.gateway.channels import Channels
from hsmd.gateway.failures import Failure
from hsmd.gateway.forwarded import Proxies
from hsmd.gateway.openapi import document
from hsmd.gateway.page import pages
from hsmd.gateway.probes import CHECK, Probes
from hsmd.gateway.reports import Reports
from hsmd.gateway.routes import Match
from hsmd.gateway.signatures import Evidence, Metadata, evidence
from hsmd.gateway.transcoder import JSON_HEADERS, Answer, Pairs, Route, build, query_pairs
from hsmd.troubles import Troubles

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = logging.getLogger(__name__)

_SHOWN_PATH = 200
_BUFFERED_BYTES = 256 * 1024 * 1024  # of bodies that are still arriving, all together


class _GoneError(Exception):
    """The client left before its request was complete."""


class App:
    """The gateway as an ASGI 3 application for HTTP; `open` comes before the first request, `close` last.

    Raises DescriptionError for services that can't be served, ConfigError for proxies that can't be.
    """

    def __init__(self, settings: Settings, served: Iterable[ServiceDescriptor] | None = None) -> None:
        self._settings = settings.gateway
        self._message_bytes = settings.limits.message_bytes
        self._tree, routes = build(services() if served is None else served)
        self._pages = pages(document(routes))
        self._channels: Channels | None = None
        self._reports: Reports | None = None
        self._buffered = 0
        self._proxies = Proxies(settings.gateway)
        self._configuration = f"hsmd {__version__}, sha256 {digest(settings)}"
        self._probes = Probes(self._health)
        self._troubles = Troubles(_log)
        self._tending: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        request_id = os.urandom(16).hex()
        with logged_as(request_id):
            await self._serve(scope, receive, send, request_id)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started = time.perf_counter()
        verb, raw_path = scope["method"], scope["raw_path"]
        template = "-"
        answer = self._pages.get(raw_path) if verb == "GET" else None
        probe = await self._probes.answer(raw_path) if verb in ("GET", "HEAD") else None
        answer = answer or probe
        if answer is None:
            found = self._tree.find(verb, raw_path.decode("ascii"))
            if isinstance(found, Match):
                template = found.target.template
                with tracing.entry(f"{verb} {template}", self._parent(scope)) as span:
                    answer = await self._guarded(found, scope, receive, request_id)
                    span.note(request_id=request_id)
                    if answer is not None and answer.code:
                        span.note(error=answer.code)
            else:
                answer = _unrouted(verb, raw_path, found, request_id)
        if answer is None:
            return
        route = metrics.OTHER if template == "-" else f"{verb} {template}"
        metrics.REQUESTS.inc(route, str(answer.status), answer.code or "OK")
        metrics.REQUEST_SECONDS.observe(time.perf_counter() - started, route)
        await send(_start(answer, request_id))
        await send({"type": "http.response.body", "body": answer.body})
        if answer.own and self._reports is not None:
            self._reports.refused(request_id, self._source(scope), f"{verb} {template}", answer.code)
        level = logging.DEBUG if probe is not None else logging.INFO  # probes come for ever
        if _log.isEnabledFor(level):
            _log.log(
                level,
                "%s %s %d %s from %s, %.1f ms",
                verb,
                template,
                answer.status,
                answer.code or "OK",
                self._source(scope),
                (time.perf_counter() - started) * 1000,
            )

    async def open(self) -> None:
        """Start to connect to the daemon. Raises ConfigError when a certificate can't be read."""
        self._channels = Channels(self._settings, self._message_bytes)
        self._reports = Reports(self._channels, self._configuration)
        self._tending = asyncio.create_task(self._tend())

    def measure(self) -> None:
        """Say in the metrics how the gateway is."""
        metrics.GATEWAY_LINES.set(self._channels.ready if self._channels is not None else 0)
        metrics.measure_process()

    async def close(self) -> None:
        """Close the connections to the daemon."""
        if self._tending is not None:
            self._tending.cancel()
        if self._reports is not None:
            await self._reports.close()
        if self._channels is not None:
            await self._channels.close()

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._troubles.tend()

    async def _health(self, seconds: float) -> bytes:
        if self._channels is None:
            raise Error(errors.UNAVAILABLE, reason="the gateway is starting")
        return await self._channels.call(CHECK, b"", [], seconds=seconds, repeatable=True)

    async def _guarded(
        self, found: Match[Route], scope: Scope, receive: Receive, request_id: str
    ) -> Answer | None:
        """The answer, whatever goes wrong; None when nobody waits for it."""
        try:
            return await self._answer(found, scope, receive, request_id)
        except _GoneError:
            return None
        except Error as error:
            failure = failures.from_error(error)
        except grpc.aio.AioRpcError as error:
            failure = failures.from_call(error, found.target.call, self._troubles)
        except asyncio.CancelledError:  # the grace time of a stop is over
            failure = failures.from_error(Error(errors.UNAVAILABLE, reason="the gateway is stopping"))
        except Exception:
            _log.exception("%s: unexpected", found.target.call)
            failure = failures.unknown()
        return _refusal(failure, found.target.errors, request_id)

    async def _answer(self, found: Match[Route], scope: Scope, receive: Receive, request_id: str) -> Answer:
        route = found.target
        headers = dict(scope["headers"])
        who: Evidence | None = None
        if not route.open:
            with suppress(Error) if route.welcome else nullcontext():  # a bad one is as good as none there
                who = evidence(headers, _repeated(scope["headers"], headers))
        query = query_pairs(scope["query_string"])
        body = await self._body(headers.get(b"content-length"), receive)
        metadata: Metadata = [("hsmd-request-id", request_id), ("hsmd-source", self._source(scope))]
        if who is not None:
            metadata += who.metadata(scope["method"], scope["raw_path"], query, body)
        message = route.request(found.variables, query, headers, body)
        if len(message) > self._message_bytes:
            raise Error(errors.BODY_TOO_LARGE, limit=self._message_bytes)
        if self._channels is None:
            raise Error(errors.UNAVAILABLE, reason="the gateway is starting")
        with tracing.span(route.call[1:], "client"):
            if above := tracing.parent():
                metadata.append(("traceparent", above))
            data = await self._channels.call(
                route.call,
                message,
                metadata,
                seconds=self._settings.deadline_seconds,
                repeatable=route.repeatable,
            )
        return route.response(data)

    def _parent(self, scope: Scope) -> str:
        """The trace that a proxy of ours began; anybody else's word could have all of its calls traced."""
        client = scope.get("client")
        if not tracing.on() or not client or not self._proxies.trust(str(client[0])):
            return ""
        return next(
            (value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), ""
        )

    def _source(self, scope: Scope) -> str:
        client = scope.get("client")
        return self._proxies.source(str(client[0]) if client else "", scope["headers"])

    async def _body(self, declared: bytes | None, receive: Receive) -> bytes:
        limit = self._settings.body_bytes
        if declared is not None and declared.isdigit() and int(declared[:20]) > limit:
            raise Error(errors.BODY_TOO_LARGE, limit=limit)
        message = await receive()
        chunk: bytes = message.get("body", b"")
        if message["type"] == "http.request" and not message.get("more_body") and len(chunk) <= limit:
            return chunk  # the usual case: all of it at once
        chunks = [chunk]
        held = len(chunk)
        self._buffered += held
        try:
            while message.get("more_body") or message["type"] != "http.request":
                if message["type"] == "http.disconnect":
                    raise _GoneError
                if held > limit:
                    break
                if self._buffered > _BUFFERED_BYTES:
                    raise Error(errors.RATE_EXCEEDED, reason="too many large bodies at once")
                message = await receive()
                chunk = message.get("body", b"")
                chunks.append(chunk)
                held += len(chunk)
                self._buffered += len(chunk)
        finally:
            self._buffered -= held
        if held > limit:
            raise Error(errors.BODY_TOO_LARGE, limit=limit)
        return b"".join(chunks)


def _repeated(pairs: Pairs, headers: dict[bytes, bytes]) -> frozenset[bytes]:
    if len(pairs) == len(headers):
        return frozenset()
    return frozenset(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)


def _unrouted(verb: str, raw_path: bytes, verbs: frozenset[str], request_id: str) -> Answer:
    if not verbs:
        path = raw_path[:_SHOWN_PATH].decode("ascii")
        error = Error(errors.NO_SUCH_API, verb=verb, path=path)
        return _refusal(failures.from_error(error), None, request_id)
    allowed = sorted(verbs)
    error = Error(errors.METHOD_NOT_SUPPORTED, verb=verb, allowed=" or ".join(allowed))
    answer = _refusal(failures.from_error(error), None, request_id)
    return replace(answer, headers=[*answer.headers, (b"allow", ", ".join(allowed).encode("ascii"))])


def _refusal(failure: Failure, shape: int | None, request_id: str) -> Answer:
    body = failures.body(failure, shape, request_id)
    headers = JSON_HEADERS
    if failure.retry_after:  # in whole seconds, and never too early
        headers = [*headers, (b"retry-after", b"%d" % math.ceil(failure.retry_after))]
    return Answer(failure.status, body, headers, failure.code, failure.own)


def _start(answer: Answer, request_id: str) -> dict[str, Any]:
    own = [(b"x-request-id", request_id.encode("ascii"))]
    if answer.status != 204:
        own.append((b"content-length", b"%d" % len(answer.body)))
    return {"type": "http.response.start", "status": answer.status, "headers": answer.headers + own}
