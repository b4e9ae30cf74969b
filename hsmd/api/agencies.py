"""Servicer of agencies.proto."""

from google.protobuf.empty_pb2 import Empty

from hsmd.api.convert import timestamp
from hsmd.domain import agencies
from hsmd.domain.agencies import Trust
from hsmd.domain.core import Call
from hsmd.errors import IAM_INPUT_INVALID, Error
from hsmd.pb.v1 import agencies_pb2 as pb
from hsmd.store.agencies import Agency

SERVICE = pb.DESCRIPTOR.services_by_name["Agencies"]

_LARGEST_PAGE = 500


def create_agency(call: Call, request: pb.CreateAgencyRequest) -> pb.CreateAgencyResponse:
    """IAM: CreateAgency."""
    wanted = request.agency
    agency = agencies.create(
        call,
        domain_id=wanted.domain_id,
        name=wanted.name,
        trust=Trust(wanted.trust_domain_id, wanted.trust_domain_name),
        description=wanted.description,
        duration=wanted.duration,
    )
    return pb.CreateAgencyResponse(agency=_described(agency))


def list_agencies(call: Call, request: pb.ListAgenciesRequest) -> pb.ListAgenciesResponse:
    """IAM: ListAgencies."""
    size = request.per_page if request.HasField("per_page") else _LARGEST_PAGE
    page = request.page if request.HasField("page") else 1
    if not 1 <= size <= _LARGEST_PAGE or page < 1:
        raise Error(
            IAM_INPUT_INVALID, name="page", reason=f"from 1, of 1 to {_LARGEST_PAGE} agencies, is due"
        )
    found = agencies.find(
        call,
        domain_id=request.domain_id,
        trust_domain_id=request.trust_domain_id,
        name=request.name,
    )
    found = found[size * (page - 1) : size * page]
    return pb.ListAgenciesResponse(agencies=[_described(each) for each in found])


def show_agency(call: Call, request: pb.ShowAgencyRequest) -> pb.ShowAgencyResponse:
    """IAM: ShowAgency."""
    return pb.ShowAgencyResponse(agency=_described(agencies.show(call, request.agency_id)))


def update_agency(call: Call, request: pb.UpdateAgencyRequest) -> pb.UpdateAgencyResponse:
    """IAM: UpdateAgency."""
    wanted = request.agency
    agency = agencies.update(
        call,
        request.agency_id,
        trust=Trust(wanted.trust_domain_id, wanted.trust_domain_name),
        description=wanted.description if wanted.HasField("description") else None,
        duration=wanted.duration,
    )
    return pb.UpdateAgencyResponse(agency=_described(agency))


def delete_agency(call: Call, request: pb.DeleteAgencyRequest) -> Empty:
    """IAM: DeleteAgency."""
    agencies.delete(call, request.agency_id)
    return Empty()


def _described(agency: Agency) -> pb.Agency:
    return pb.Agency(
        id=agency.id,
        name=agency.name,
        domain_id=agency.domain_id,
        trust_domain_id=agency.trust_domain_id,
        trust_domain_name=agency.trust_domain_name,
        description=agency.description,
        duration=agency.duration,
        create_time=timestamp(agency.created),
        expire_time=None if agency.expires is None else timestamp(agency.expires),
        agency_urn=f"iam::{agency.domain_id}:agency:{agency.name}",
    )
