"""What a record says: who, from where, what, on which key, with which result, how long it took."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from hsmd.caller import Caller


def of_call(
    caller: Caller,
    *,
    event: str,
    method: str,
    result: str,
    resource: str,
    key_version: int,
    process: str,
    seconds: float,
) -> dict[str, object]:
    """The record of one call or job. `result` is OK or a fault's code; nothing of the content stands here.

    Of who acts as an agency, `assumed_by` is the user; others have no such member.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": caller.request_id,
        "event": event,
        "method": method,
        "result": result,
        "identity": caller.kind,
        "user_id": caller.user_id,
        "user": caller.user_name,
        **({"assumed_by": caller.assumed_by} if caller.is_agency else {}),
        "domain_id": caller.domain_id,
        "project_id": caller.project_id,
        "source": caller.source,
        "resource": resource,
        "key_version": key_version,
        "process": process,
        "duration_ms": round(seconds * 1000, 3),
    }


@dataclass(frozen=True, slots=True)
class Refusal:
    """Requests that a gateway refused alike; `source` is "" for several, `first` in milliseconds since 1970.

    `request_id` and `request` (verb and path template) are those of the first.
    """

    request_id: str
    source: str
    request: str
    code: str
    count: int
    first: int


def of_refusal(refusal: Refusal, gateway: str, process: str) -> dict[str, object]:
    """The record of what that gateway says that it refused."""
    since = datetime.fromtimestamp(refusal.first / 1000, UTC).isoformat(timespec="milliseconds")
    return {
        **of_call(
            Caller("anonymous", source=refusal.source, request_id=refusal.request_id),
            event="refuseRequest",
            method=f"gateway/{refusal.request}",
            result=refusal.code,
            resource="",
            key_version=0,
            process=process,
            seconds=0.0,
        ),
        "detail": {"gateway": gateway, "count": refusal.count, "since": since},
    }


def of_log(event: str, process: str, detail: Mapping[str, object]) -> dict[str, object]:
    """The record of something that befell the log itself, or of what a process is made of."""
    return {
        **of_call(
            Caller("system", source="local"),
            event=event,
            method="hsmd/audit",
            result="OK",
            resource=f"audit/{process}",
            key_version=0,
            process=process,
            seconds=0.0,
        ),
        "detail": dict(detail),
    }
