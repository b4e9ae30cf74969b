"""Servicer of traces.proto."""

from functools import cache

from google.protobuf.timestamp_pb2 import Timestamp

from hsmd.api.convert import timestamp
from hsmd.api.methods import methods_of
from hsmd.descriptors import services
from hsmd.domain import traces
from hsmd.domain.core import Call
from hsmd.domain.traces import DATA, KEY, SYSTEM, USUAL, Kind, Question, Trace
from hsmd.errors import PARAMETER_INVALID, Error
from hsmd.pb.v1 import traces_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Traces"]

_OF_KEYS = ("cmk", "dek", "grant", "cmkTag", "alias")  # parts of actions that DEW's events call CMK
_RANDOM = "genRandom"


def list_traces(call: Call, request: pb.ListTracesRequest) -> pb.ListTracesResponse:
    """CTS: GET /v3/{project_id}/traces."""
    if request.trace_type not in ("", SYSTEM, DATA):
        raise Error(PARAMETER_INVALID, name="trace_type", reason=f"{SYSTEM} or {DATA} is due")
    if request.trace_type == DATA or request.tracker_name not in ("", SYSTEM):
        return pb.ListTracesResponse(meta_data=pb.ListTracesResponse.MetaData())
    question = Question(
        since=_millis(request.since) if request.HasField("since") else None,
        until=_millis(request.until) if request.HasField("until") else None,
        service_type=request.service_type,
        user=request.user,
        resource_id=request.resource_id,
        resource_name=request.resource_name,
        resource_type=request.resource_type,
        trace_id=request.trace_id,
        trace_name=request.trace_name,
        rating=request.trace_rating,
    )
    limit = request.limit if request.HasField("limit") else USUAL
    page = traces.find(call, question, limit, request.next, _kinds())
    found = [_trace(each) for each in page.traces]
    return pb.ListTracesResponse(
        traces=found, meta_data=pb.ListTracesResponse.MetaData(count=len(found), marker=page.marker)
    )


@cache
def _kinds() -> dict[str, Kind]:
    """What the events of each method are about, by its action; IAM's services have methods without one."""
    found = {}
    for service in services():
        methods = [method for _, method in methods_of(service)]
        usual = next((_kind(each.action) for each in methods if each.action), KEY)
        for method in methods:
            kind = _kind(method.action) if method.action else usual
            found[method.name] = Kind("KMS", "RNG") if method.event == _RANDOM else kind
    return found


def _kind(action: str) -> Kind:
    service, subject, _ = action.split(":")
    return KEY if service == "kms" and subject in _OF_KEYS else Kind(service.upper(), subject)


def _trace(trace: Trace) -> pb.Trace:
    return pb.Trace(
        trace_id=trace.id,
        trace_name=trace.name,
        trace_rating=trace.rating,
        trace_type="SystemAction" if trace.identity == "system" else "ApiCall",
        code=str(trace.status),
        message=trace.code,
        time=timestamp(trace.time),
        record_time=timestamp(trace.time),
        user=pb.Trace.User(
            id=trace.user_id,
            name=trace.user_name,
            user_name=trace.user_name,
            domain=pb.Trace.User.Domain(id=trace.domain_id),
            account_id=trace.domain_id,
            type=trace.identity,
        ),
        service_type=trace.kind.service,
        resource_type=trace.kind.resource,
        resource_id=trace.resource,
        resource_name=trace.resource,
        source_ip=trace.source,
        request_id=trace.request_id,
    )


def _millis(time: Timestamp) -> int:
    return time.seconds * 1000 + time.nanos // 1_000_000
