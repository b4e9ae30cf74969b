"""The one way of every call: deadline, identity, permission, checks, the servicer, the audit record.

The order is fixed here and nowhere else. A servicer raises; only this module touches the gRPC context.
"""

import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from hsmd import metrics, tracing
from hsmd.api.evidence import Meet, Metadata, Peer, Trace, no_trace
from hsmd.api.methods import Method
from hsmd.audit.records import Refusal, of_call, of_refusal
from hsmd.caller import Caller, logged_as
from hsmd.domain import access, identity, limits, sources
from hsmd.domain.core import Call, Core
from hsmd.domain.identity import Identity
from hsmd.errors import (
    ACTION_REFUSED,
    DEADLINE,
    FORMAT_INVALID,
    IDENTITY_REFUSED,
    INTERNAL,
    SEALED,
    Error,
    Fault,
)
from hsmd.troubles import Troubles

Serve = Callable[[Call, Any], Message]
Handle = Callable[[bytes, grpc.ServicerContext], bytes]

REQUEST_ID_KEY = "hsmd-request-id"
_REQUEST_ID = re.compile(r"[0-9a-f]{32}")
_AUDIT_SECONDS = 5.0
_ENDING_SECONDS = 1.0  # for the records of all calls that are ended at once: others wait for them
_RESOURCE_LENGTH = 300
_SERVER_FAULT = 500

log = logging.getLogger(__name__)


class AuditLog(Protocol):
    """Where records go; returns when the record is safe, raises Error(UNAVAILABLE) when it can't be."""

    def append(self, record: Mapping[str, object], timeout: float) -> None:
        """Write the record within `timeout` seconds."""


@dataclass(frozen=True)
class Rejection(grpc.Status):
    """A fault as gRPC ends a call with it: google.rpc.Status travels in the trailing metadata."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def rejection(error: Error, request_id: str) -> Rejection:
    """The status of an error: ErrorInfo{reason: its code, domain: "hsmd"}, RetryInfo where that is known."""
    code = grpc.StatusCode[error.fault.grpc]
    message = error.message
    status = status_pb2.Status(code=code.value[0], message=message, details=[_reason(error.fault.code)])
    if error.retry_after:
        seconds, millis = divmod(math.ceil(error.retry_after * 1000), 1000)
        delay = duration_pb2.Duration(seconds=seconds, nanos=millis * 1_000_000)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    trailing = (("grpc-status-details-bin", status.SerializeToString()), (REQUEST_ID_KEY, request_id))
    return Rejection(code, message, trailing)


@cache  # a few
def _reason(code: str) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=code, domain="hsmd"))
    return packed


class Pipeline:
    """Takes the calls of one listener through the rules of `core`."""

    def __init__(
        self,
        core: Core,
        audit: AuditLog,
        meet: Meet,
        *,
        process: str,
        deadline: float,
        trace: Trace = no_trace,
    ) -> None:
        """`trace` knows the trace that a call goes on with."""
        self._core = core
        self._audit = audit
        self._meet = meet
        self._process = process
        self._deadline = deadline
        self._trace = trace
        # Record → its call's end (monotonic), call, context. Whoever takes the record out of here writes it:
        # the call's own thread, or end_running().
        self._running: dict[_Record, tuple[float, Call, Any]] = {}
        self._troubles = Troubles(log)

    def tend(self) -> None:
        """What is to be done a few times a second: end calls that are over, tell which troubles are."""
        self.end_running(before=time.monotonic())
        self._troubles.tend()

    @property
    def running(self) -> int:
        """How many calls are being served now."""
        return len(self._running)

    def end_running(self, before: float = math.inf) -> None:
        """Record and cancel calls that should have ended before that time (`time.monotonic()`).

        A thread that the HSM's module holds fast can't do so itself, and perhaps never comes back.
        """
        until = time.monotonic() + _ENDING_SECONDS
        for record, (end, call, context) in list(self._running.items()):
            if end < before and self._running.pop(record, None) is not None:
                with logged_as(call.caller.request_id):
                    record.write_ended(call, timeout=max(until - time.monotonic(), 0.0))
                context.cancel()

    def handler(self, method: Method, serve: Serve) -> Handle:
        """What takes a raw message of one method to its raw answer."""

        def handle(raw: bytes, context: grpc.ServicerContext) -> bytes:
            metadata = dict(context.invocation_metadata())
            request_id = _request_id(metadata)
            with logged_as(request_id):
                return handle_named(raw, context, metadata, request_id)

        def handle_named(
            raw: bytes, context: grpc.ServicerContext, metadata: Metadata, request_id: str
        ) -> bytes:
            started = time.monotonic()
            caller = Caller("anonymous", request_id=request_id)
            record = _Record(self._audit, method, self._process, started, self._running, self._troubles)
            call = Call(
                self._core,
                caller,
                lambda: record.write(call, "OK"),
                grant=method.grant,
                begin=lambda event: record.begin(call, event),
                also=lambda event, resource: record.also(call, event, resource),
                report=lambda refusal: record.report(call, refusal),
            )
            seconds = self._seconds(context)
            self._running[record] = (started + seconds, call, context)
            self._core.board.begin()
            with tracing.entry(method.name, self._trace(context, metadata)) as span:
                answer, error = self._carried_out(
                    method, serve, call, record, seconds, (raw, context, metadata)
                )
                span.note(request_id=caller.request_id, key_version=call.key_version)
                if error is not None:
                    span.note(error=error.fault.code)
            self._core.board.end(time.monotonic() - started, error.fault.http if error else 0)
            record.count(call, error.fault if error else None)
            if error is not None:
                context.abort_with_status(rejection(error, caller.request_id))
            context.set_trailing_metadata(((REQUEST_ID_KEY, caller.request_id),))
            return answer

        return handle

    def _carried_out(
        self,
        method: Method,
        serve: Serve,
        call: Call,
        record: "_Record",
        seconds: float,
        sent: tuple[bytes, Any, Metadata],
    ) -> tuple[bytes, Error | None]:
        """The answer, or what the caller is told instead; either is on record."""
        answer, error = b"", None
        try:
            with self._core.token.within(seconds):
                answer = self._answer(method, serve, call, *sent)
        except Exception as caught:  # whatever it is: one fault, one record
            error = _as_error(caught, method, self._troubles)
        if error is not None or not record.written:
            error = record.write_after(call, error) or error
        return answer, error

    def _seconds(self, context: grpc.ServicerContext) -> float:
        remaining = context.time_remaining()
        return self._deadline if remaining is None else min(remaining, self._deadline)

    def _answer(
        self, method: Method, serve: Serve, call: Call, raw: bytes, context: Any, metadata: Metadata
    ) -> bytes:
        self._core.refresh()
        _check_single(context.invocation_metadata(), metadata)
        peer = self._meet(context, metadata)
        call.caller = Caller("anonymous", source=peer.source, request_id=call.caller.request_id)
        call.channel = peer.channel
        limits.admit_source(call)
        peer.check()
        if self._core.sealed and not method.while_sealed:
            raise Error(SEALED)
        request = _decoded(method, raw)
        if method.resource:
            call.resource = str(getattr(request, method.resource))[:_RESOURCE_LENGTH]
        call.identify = lambda: _shown(method, call, peer, request)
        if not method.open:
            with tracing.span("authenticate"):
                self._identify(method, call, peer, request, metadata)
        if method.action:
            call.asked = lambda name: method.facts(request, name)
            with tracing.span("authorize"):
                access.permit(call, method.action, deferred=method.deferred, keyed=method.keyed)
        with limits.turn(call):
            try:
                method.check(request)
                answer = serve(call, request)
            except Error:
                if call.refused or call.depends:
                    access.check_refused(call, str(getattr(request, method.resource, "")))
                raise
        call.check_allowed()
        return answer.SerializeToString()

    def _identify(self, method: Method, call: Call, peer: Peer, request: Message, metadata: Metadata) -> None:
        """Who calls, from where it may and as often as it may, and where it acts."""
        who = call.identify()
        project = getattr(request, "project_id", "") or str(metadata.get("hsmd-project-id", ""))
        in_domain = method.in_domain or (method.in_either and project == identity.domain_of(who))
        identity.act(call, who, project, in_domain=in_domain)
        if method.for_peers is not (who.kind == "peer"):
            raise Error(ACTION_REFUSED, action=method.action or "of a peer region")
        if method.for_gateways is not (who.kind == "gateway"):
            raise Error(ACTION_REFUSED, action=method.action or "of a gateway")
        if method.for_ukeys is not (who.kind == "ukey"):
            raise Error(ACTION_REFUSED, action=method.action or "of a UKey")
        if method.ukey_roles and method.ukey_roles.isdisjoint(call.caller.roles):
            raise Error(ACTION_REFUSED, action=f"of a UKey that is {' or '.join(sorted(method.ukey_roles))}")
        if not method.for_gateways:  # they are served while sealed, too: nothing of the store counts for them
            limits.admit_project(call)


def _shown(method: Method, call: Call, peer: Peer, request: Message) -> Identity:
    """Who calls, from where it may."""
    who = peer.identify(call, method, request)
    if method.open and who.kind == "peer":
        raise Error(IDENTITY_REFUSED, reason="a peer region is nobody who could ask for this")
    for domain in (who.user.domain_id, who.agency_domain):
        if domain:
            sources.check(call, domain)
    return who


class _Record:
    """The audit record of one call: written before its change is committed, or before its answer leaves."""

    __slots__ = ("_audit", "_method", "_process", "_running", "_started", "_taken", "_troubles", "written")

    def __init__(
        self,
        audit: AuditLog,
        method: Method,
        process: str,
        started: float,
        running: "dict[_Record, Any]",
        troubles: Troubles,
    ) -> None:
        self._audit = audit
        self._method = method
        self._process = process
        self._started = started
        self._running = running
        self._troubles = troubles
        self._taken = False
        self.written = False

    def write(self, call: Call, code: str) -> None:
        """One line. Raises Error(UNAVAILABLE) when it can't be written: the call is then refused.

        Raises Error(DEADLINE) for a call that has been ended and recorded while its thread was held.
        """
        self._take()
        self._append(call.caller, self._method.event, code, call.resource, call.key_version)
        self.written = True

    def begin(self, call: Call, event: str) -> None:
        """The record of a first change of several: in the caller's name, as the call may never end."""
        self._take()
        self._append(call.caller, event, "OK", call.resource, call.key_version)

    def also(self, call: Call, event: str, resource: str) -> None:
        """The record of something else that the call brings about, in the name of the service itself."""
        self._take()
        service = call.caller._replace(kind="system", user_id="", user_name="")
        self._append(service, event, "OK", resource, 1)

    def report(self, call: Call, refusal: Refusal) -> None:
        """The record of requests that never became calls, as the gateway which calls tells of them."""
        self._take()
        self._audit.append(of_refusal(refusal, call.caller.user_name, self._process), timeout=_AUDIT_SECONDS)

    def _take(self) -> None:
        if not self._taken:
            if self._running.pop(self, None) is None:
                raise Error(DEADLINE, reason="the call was ended at its deadline")
            self._taken = True

    def _append(
        self,
        caller: Caller,
        event: str,
        code: str,
        resource: str,
        key_version: int,
        timeout: float = _AUDIT_SECONDS,
    ) -> None:
        record = of_call(
            caller,
            event=event,
            method=self._method.name,
            result=code,
            resource=resource,
            key_version=key_version,
            process=self._process,
            seconds=time.monotonic() - self._started,
        )
        with tracing.span("append to audit log"):
            self._audit.append(record, timeout=timeout)

    def write_after(self, call: Call, error: Error | None) -> Error | None:
        """The line of a call that changed nothing or failed to; what prevented it, if anything did."""
        try:
            self.write(call, error.fault.code if error else "OK")
        except Exception as prevented:  # whatever it is: the caller is told no more than a fault
            return _as_error(prevented, self._method, self._troubles)
        return None

    def count(self, call: Call, fault: Fault | None) -> None:
        """Count the call, unless it was ended, and counted, while its thread was held."""
        if self._taken:
            self._count(call, fault)

    def _count(self, call: Call, fault: Fault | None) -> None:
        code, status = (fault.code, fault.grpc) if fault else ("OK", "OK")
        metrics.CALLS.inc(self._method.name, code, status, call.caller.kind)
        metrics.CALL_SECONDS.observe(time.monotonic() - self._started, self._method.name)

    def write_ended(self, call: Call, timeout: float) -> None:
        """The line of a call that somebody else than its thread ends; it ends without one if need be."""
        try:
            self._append(
                call.caller, self._method.event, DEADLINE.code, call.resource, call.key_version, timeout
            )
        except Exception as prevented:  # it is ended all the same; the log says how
            _as_error(prevented, self._method, self._troubles)
        self._count(call, DEADLINE)
        self._troubles.meet("no answer in time, ended", self._method.name)


def _request_id(metadata: Metadata) -> str:
    sent = metadata.get(REQUEST_ID_KEY)
    return sent if isinstance(sent, str) and _REQUEST_ID.fullmatch(sent) else os.urandom(16).hex()


def _check_single(pairs: Sequence[tuple[str, str | bytes]], metadata: Metadata) -> None:
    """Of two texts of one name somebody else could have looked at the other one."""
    if len(pairs) != len(metadata):
        names = [name for name, _ in pairs if name.startswith("hsmd-")]
        if len(names) != len(set(names)):
            raise Error(IDENTITY_REFUSED, reason="metadata of hsmd are given twice")


def _decoded(method: Method, raw: bytes) -> Any:
    try:
        return method.request.FromString(raw)
    except DecodeError as error:
        raise Error(FORMAT_INVALID, reason="the message can't be decoded") from error


def _as_error(caught: Exception, method: Method, troubles: Troubles) -> Error:
    """What the caller is told: a fault as it is, else the bland one, and the log knows the rest."""
    if isinstance(caught, Error):
        if caught.fault.http >= _SERVER_FAULT and caught.fault is not SEALED:
            troubles.meet(str(caught), method.name, caught.__cause__)
        return caught
    log.error("%s: unexpected", method.name, exc_info=caught)
    return Error(INTERNAL)
