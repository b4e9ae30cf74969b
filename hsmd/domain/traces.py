"""What happened in a project, for those who may see it: the audit log of this node, read from its end.

An event's id and its marker are made of the record: nothing of them is kept. The id (a UUID of version 8)
begins with the time, so that its record is found again without looking through all. A marker is where the
reading stands in every chain, sealed: how much others do on the same daemon is nobody's business.
"""

import base64
import binascii
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsmd.audit import backwards
from hsmd.audit.search import Found, Wanted
from hsmd.domain.core import CREDENTIAL_KEY_LABEL, Call
from hsmd.errors import BY_CODE, PARAMETER_INVALID, RATE_EXCEEDED, UNAVAILABLE, Error
from hsmd.keyring import with_token_key

MOST, USUAL = 200, 10
NORMAL, WARNING, INCIDENT = RATINGS = ("normal", "warning", "incident")
SYSTEM, DATA = "system", "data"

_READ_BYTES = 64 * 1024 * 1024  # by one call
_BUSY_SECONDS = 1.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLI = timedelta(milliseconds=1)
_LAST_MILLI = 253_370_764_800_000  # the end of 9998: some time may be added to it
_SPAN = timedelta(hours=1)
_NONCE_BYTES = 12
_SERVER_FAULT = 500
_PURPOSE = b"hsmd trace marker\0"


@dataclass(frozen=True, slots=True)
class Kind:
    """What an event is about, as CTS names it: the service, like "KMS", and the resource, like "CMK"."""

    service: str
    resource: str


KEY = Kind("KMS", "CMK")  # of jobs, too, which are no methods


@dataclass(frozen=True, slots=True)
class Question:
    """Which events are wanted; "" and None for any. Times are in ms since 1970 UTC, exclusive."""

    since: int | None = None
    until: int | None = None
    service_type: str = ""
    user: str = ""
    resource_id: str = ""
    resource_name: str = ""
    resource_type: str = ""
    trace_id: str = ""
    trace_name: str = ""
    rating: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """One event. `time` in ms since 1970 UTC; `status` is that of HTTP, `code` an error's or ""."""

    id: str
    name: str
    time: int
    kind: Kind
    resource: str
    identity: str
    user_id: str
    user_name: str
    domain_id: str
    source: str
    request_id: str
    status: int
    code: str

    @property
    def rating(self) -> str:
        """Whether it went well, was refused, or failed here."""
        if not self.code:
            return NORMAL
        return INCIDENT if self.status >= _SERVER_FAULT else WARNING


@dataclass(frozen=True, slots=True)
class Page:
    """Events, newest first, and what goes on behind them: "" when there is no more."""

    traces: list[Trace]
    marker: str


def find(call: Call, question: Question, limit: int, marker: str, kinds: Mapping[str, Kind]) -> Page:
    """Events of the caller's project, of the last hour unless it is asked for others. CTS: list traces.

    Who acts in its domain gets what was done there, outside of projects. `kinds` are by method.

    Raises Error(PARAMETER_INVALID), Error(RATE_EXCEEDED) while others are reading, Error(UNAVAILABLE).
    """
    if not 1 <= limit <= MOST:
        raise _invalid("limit", f"1 to {MOST} is due")
    if question.rating not in ("", *RATINGS):
        raise _invalid("trace_rating", f"one of {', '.join(RATINGS)} is due")
    since, before = _unsealed(call, marker) if marker else (None, None)
    wanted = _wanted(call, question, since)
    directory, readers = call.core.audit_directory, call.core.log_readers
    if directory is None:
        raise Error(UNAVAILABLE, reason="the audit log is not read here")
    if not readers.acquire(blocking=False):
        raise Error(RATE_EXCEEDED, reason="others are reading the audit log", retry_after=_BUSY_SECONDS)
    try:
        fits = _filter(question, kinds)
        found = backwards.newest(directory, wanted, limit, fits, bound=_READ_BYTES, before=before)
    except OSError as error:
        raise Error(UNAVAILABLE, reason="the audit log can't be read") from error
    finally:
        readers.release()
    further = _sealed(call, wanted.since, found.before) if found.before else ""
    return Page([_trace(each, kinds) for each in found.found], further)


def _wanted(call: Call, question: Question, since: datetime | None) -> Wanted:
    """What the log is searched for. `since` is what the first page had."""
    caller = call.caller
    mine = Wanted(project_id=caller.project_id, domain_id="" if caller.project_id else caller.domain_id)
    if not any((mine.project_id, mine.domain_id)):
        raise Error(UNAVAILABLE, reason="who calls has neither project nor domain")
    if question.trace_id:
        moment = _moment(_time_of(question.trace_id))
        return replace(mine, since=moment, until=moment + _MILLI)
    until = None if question.until is None else _moment(question.until)
    if question.since is not None:
        since = _moment(question.since) + _MILLI
    if since is None:
        since = max((until or _moment(call.core.clock())) - _SPAN, _EPOCH)
    return replace(
        mine,
        key=question.resource_id or question.resource_name,
        principal=question.user,
        event=question.trace_name,
        since=since,
        until=until,
    )


def _filter(question: Question, kinds: Mapping[str, Kind]) -> Callable[[Found], bool]:
    """What the search knows nothing of."""
    if question.trace_id:
        return lambda found: _id(found) == question.trace_id
    asked = (question.service_type, question.resource_type, question.rating, question.user)

    def fits(found: Found) -> bool:
        trace = _trace(found, kinds)
        has = (trace.kind.service, trace.kind.resource, trace.rating, trace.user_name)
        return all(wish in ("", value) for wish, value in zip(asked, has, strict=True))

    return fits


def _trace(found: Found, kinds: Mapping[str, Kind]) -> Trace:
    told = {name: str(value) for name, value in found.record.items()}
    result = told.get("result", "")
    fault = BY_CODE.get(result)
    return Trace(
        id=_id(found),
        name=told.get("event", ""),
        time=_millis(found.record),
        kind=kinds.get(told.get("method", ""), KEY),
        resource=told.get("resource", ""),
        identity=told.get("identity", ""),
        user_id=told.get("user_id", ""),
        user_name=told.get("user", ""),
        domain_id=told.get("domain_id", ""),
        source=told.get("source", ""),
        request_id=told.get("request_id", ""),
        status=fault.http if fault else 200 if result == "OK" else _SERVER_FAULT,
        code="" if result == "OK" else result,
    )


def _millis(record: Mapping[str, Any]) -> int:
    try:
        return (datetime.fromisoformat(str(record.get("time"))) - _EPOCH) // _MILLI
    except (ValueError, TypeError):
        return 0


def _moment(millis: int) -> datetime:
    """The time. Raises Error(PARAMETER_INVALID)."""
    if not 0 <= millis <= _LAST_MILLI:
        raise _invalid("from", "a time in milliseconds since 1970 is due")
    return _EPOCH + millis * _MILLI


def _id(found: Found) -> str:
    """48 bits of time, and of the line's hash what else fits into a UUID of version 8 (RFC 9562)."""
    digest = int.from_bytes(hashlib.sha256(_PURPOSE + found.line).digest()[:10])
    number = _millis(found.record) << 80 | digest
    number = number & ~(0xF << 76) | 8 << 76
    return str(uuid.UUID(int=number & ~(3 << 62) | 2 << 62))


def _time_of(trace_id: str) -> int:
    try:
        return uuid.UUID(trace_id).int >> 80
    except ValueError as error:
        raise _invalid("trace_id", "a UUID is due") from error


# Markers


def _sealed(call: Call, since: datetime | None, before: Mapping[str, int]) -> str:
    nonce = os.urandom(_NONCE_BYTES)
    content = {"since": (since - _EPOCH) // _MILLI if since else 0, "before": before}
    sealed = _cipher(call).encrypt(nonce, json.dumps(content, separators=(",", ":")).encode(), None)
    return base64.urlsafe_b64encode(nonce + sealed).decode()


def _unsealed(call: Call, marker: str) -> tuple[datetime, dict[str, int]]:
    try:
        sealed = base64.urlsafe_b64decode(marker.encode("ascii"))
        content = json.loads(_cipher(call).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None))
    except (UnicodeEncodeError, binascii.Error, ValueError, InvalidTag) as error:
        raise _invalid("next", "the marker of an answer of this node for this project is due") from error
    return _moment(content["since"]), content["before"]


def _cipher(call: Call) -> AESGCM:
    """By a key of this project, or domain, on this node: chains of another node are other ones."""
    token, caller = call.core.token, call.caller
    place = f"{caller.domain_id}\0{caller.project_id}\0{socket.gethostname()}".encode()
    return AESGCM(with_token_key(token, CREDENTIAL_KEY_LABEL, lambda key: token.hmac(key, _PURPOSE + place)))


def _invalid(name: str, reason: str) -> Error:
    return Error(PARAMETER_INVALID, name=name, reason=reason)
