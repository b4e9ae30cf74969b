"""Servicer of regions.proto."""

from hsmd.domain import regions
from hsmd.domain.core import Call
from hsmd.domain.regions import Wanted
from hsmd.pb.v1 import regions_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Regions"]


def list_support_regions(call: Call, request: pb.ListSupportRegionsRequest) -> pb.ListSupportRegionsResponse:
    """DEW: list-support-regions."""
    limit = request.limit if request.HasField("limit") else None
    offset = request.offset if request.HasField("offset") else None
    return pb.ListSupportRegionsResponse(regions=regions.supported(call, limit=limit, offset=offset))


def replicate_key(call: Call, request: pb.ReplicateKeyRequest) -> pb.ReplicateKeyResponse:
    """DEW: replicate-key."""
    wanted = Wanted(
        region=request.replica_region,
        project_id=request.replica_project_id,
        alias=request.key_alias,
        description=request.key_description,
        enterprise_project_id=request.enterprise_project_id,
        tags=[(each.key, each.value) for each in request.tags],
    )
    key_id, domain_id = regions.replicate(call, request.key_id, wanted)
    return pb.ReplicateKeyResponse(key_id=key_id, domain_id=domain_id, region=wanted.region)


def update_primary_region(
    call: Call, request: pb.UpdatePrimaryRegionRequest
) -> pb.UpdatePrimaryRegionResponse:
    """DEW: update-primary-region."""
    key = regions.update_primary(call, request.key_id, request.primary_region)
    return pb.UpdatePrimaryRegionResponse(key_id=key.id, primary_region=key.primary_region or "")
