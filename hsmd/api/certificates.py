"""Servicer of certificates.proto."""

from google.protobuf.empty_pb2 import Empty

from hsmd.domain import certificates
from hsmd.domain.certificates import Mapping
from hsmd.domain.core import Call
from hsmd.pb.v1 import certificates_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Certificates"]


def create_certificate_mapping(
    call: Call, request: pb.CreateCertificateMappingRequest
) -> pb.CreateCertificateMappingResponse:
    """A name or pattern for a user."""
    wanted = request.mapping
    made = certificates.create(call, wanted.name, user_id=wanted.user_id, project_id=wanted.project_id)
    return pb.CreateCertificateMappingResponse(mapping=_described(made))


def list_certificate_mappings(
    call: Call, request: pb.ListCertificateMappingsRequest
) -> pb.ListCertificateMappingsResponse:
    """All names and patterns."""
    return pb.ListCertificateMappingsResponse(mappings=[_described(each) for each in certificates.find(call)])


def delete_certificate_mapping(call: Call, request: pb.DeleteCertificateMappingRequest) -> Empty:
    """The name or pattern."""
    certificates.delete(call, request.name)
    return Empty()


def _described(mapping: Mapping) -> pb.CertificateMapping:
    return pb.CertificateMapping(name=mapping.name, user_id=mapping.user_id, project_id=mapping.project_id)
