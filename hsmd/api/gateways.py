"""Servicer of gateways.proto."""

from hsmd.domain import gateways
from hsmd.domain.core import Call
from hsmd.pb.v1 import gateways_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Gateways"]


def report_start(call: Call, request: pb.ReportStartRequest) -> pb.ReportStartResponse:
    """The record of the call is all that there is to it."""
    return pb.ReportStartResponse()


def report_refusals(call: Call, request: pb.ReportRefusalsRequest) -> pb.ReportRefusalsResponse:
    """Of requests that never became calls."""
    refusals = [
        gateways.Refusal(each.request_id, each.source, each.request, each.code, each.count, each.first)
        for each in request.refusals
    ]
    gateways.report(call, refusals)
    return pb.ReportRefusalsResponse()
