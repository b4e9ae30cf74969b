"""Servicer of grants.proto."""

from hsmd.api.convert import Spelling, timestamp
from hsmd.domain import grants
from hsmd.domain.core import Call
from hsmd.domain.keys import check_sequence
from hsmd.pb.v1 import grants_pb2 as pb
from hsmd.store.grants import Grant

SERVICE = pb.DESCRIPTOR.services_by_name["Grants"]
_OPERATIONS, _TYPES = Spelling(pb.GrantOperation), Spelling(pb.PrincipalType)


def create_grant(call: Call, request: pb.CreateGrantRequest) -> pb.CreateGrantResponse:
    """DEW: create-grant."""
    grant = grants.create(
        call,
        request.key_id,
        grantee=request.grantee_principal,
        grantee_type=_TYPES.name(request.grantee_principal_type),
        operations=[_OPERATIONS.name(each) for each in request.operations],
        name=request.name,
        retiring=request.retiring_principal,
        sequence=request.sequence,
    )
    return pb.CreateGrantResponse(grant_id=grant.id)


def revoke_grant(call: Call, request: pb.RevokeGrantRequest) -> pb.RevokeGrantResponse:
    """DEW: revoke-grant."""
    check_sequence(request.sequence)
    grants.revoke(call, request.key_id, request.grant_id)
    return pb.RevokeGrantResponse()


def retire_grant(call: Call, request: pb.RetireGrantRequest) -> pb.RetireGrantResponse:
    """DEW: retire-grant."""
    check_sequence(request.sequence)
    grants.retire(call, request.key_id, request.grant_id)
    return pb.RetireGrantResponse()


def list_grants(call: Call, request: pb.ListGrantsRequest) -> pb.ListGrantsResponse:
    """DEW: list-grants."""
    check_sequence(request.sequence)
    limit = request.limit if request.HasField("limit") else None
    marker = request.marker if request.HasField("marker") else None
    page = grants.list_of_key(call, request.key_id, limit=limit, marker=marker)
    return pb.ListGrantsResponse(
        grants=[_grant(each) for each in page.grants],
        next_marker="" if page.next_marker is None else str(page.next_marker),
        truncated=page.next_marker is not None,
        total=page.total,
    )


def list_retirable_grants(
    call: Call, request: pb.ListRetirableGrantsRequest
) -> pb.ListRetirableGrantsResponse:
    """DEW: list-retirable-grants."""
    check_sequence(request.sequence)
    limit = request.limit if request.HasField("limit") else None
    marker = request.marker if request.HasField("marker") else None
    page = grants.list_retirable(call, limit=limit, marker=marker)
    return pb.ListRetirableGrantsResponse(
        grants=[_grant(each) for each in page.grants],
        next_marker="" if page.next_marker is None else str(page.next_marker),
        truncated=page.next_marker is not None,
        total=page.total,
    )


def _grant(grant: Grant) -> pb.Grant:
    return pb.Grant(
        key_id=grant.key_id,
        grant_id=grant.id,
        grantee_principal=grant.grantee,
        grantee_principal_type=_TYPES.number(grant.grantee_type),  # type: ignore[arg-type]  # a number of this enum
        operations=[_OPERATIONS.number(each) for each in grant.operations.split()],  # type: ignore[misc]  # numbers of this enum
        issuing_principal=grant.issuing,
        creation_date=timestamp(grant.created),
        name=grant.name,
        retiring_principal=grant.retiring,
    )
