"""Servicer of limits.proto."""

from hsmd.domain import limits
from hsmd.domain.core import Call
from hsmd.domain.limits import KINDS, Limit
from hsmd.pb.v1 import limits_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Limits"]


def list_limits(call: Call, request: pb.ListLimitsRequest) -> pb.ListLimitsResponse:
    """All limits of a project."""
    return pb.ListLimitsResponse(
        limits=[_limit(each) for each in limits.list_limits(call, request.of_project)]
    )


def set_limit(call: Call, request: pb.SetLimitRequest) -> pb.SetLimitResponse:
    """Give a project its own."""
    limit = limits.set_limit(call, request.of_project, request.name, request.value)
    return pb.SetLimitResponse(limit=_limit(limit))


def reset_limit(call: Call, request: pb.ResetLimitRequest) -> pb.ResetLimitResponse:
    """The configuration's value counts again."""
    return pb.ResetLimitResponse(limit=_limit(limits.reset_limit(call, request.of_project, request.name)))


def _limit(limit: Limit) -> pb.Limit:
    unit = KINDS[limit.name].unit
    return pb.Limit(name=limit.name, value=limit.value, default=limit.default, own=limit.own, unit=unit)
