"""What a record says: who, from where, what, on which key, with which result, how long it took."""

from collections.abc import Mapping
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
