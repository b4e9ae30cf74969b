"""Servicer of peers.proto; and the same messages written and read at the other end, for daemon/lines.py."""

from collections.abc import Iterable

from hsmd.domain import peers
from hsmd.domain.core import Call
from hsmd.domain.lines import Handover, Material, Offer, RootKey, Versions
from hsmd.pb.v1 import peers_pb2 as pb
from hsmd.pb.v1.tags_pb2 import Tag

SERVICE = pb.DESCRIPTOR.services_by_name["Peers"]


def accept_replica(call: Call, request: pb.AcceptReplicaRequest) -> pb.AcceptReplicaResponse:
    """A new replica."""
    offer = Offer(
        key_id=request.key_id,
        spec=request.key_spec,
        usage=request.key_usage,
        domain_id=request.domain_id,
        project_id=request.replica_project_id,
        alias=request.key_alias,
        description=request.key_description,
        enterprise_project_id=request.enterprise_project_id,
        tags=[(each.key, each.value) for each in request.tags],
        current_version=request.current_version,
        versions=_versions(request.roots, request.versions),
    )
    return pb.AcceptReplicaResponse(domain_id=peers.accept(call, offer))


def accept_versions(call: Call, request: pb.AcceptVersionsRequest) -> pb.AcceptVersionsResponse:
    """Versions that the replica lacks."""
    versions = _versions(request.roots, request.versions)
    return pb.AcceptVersionsResponse(
        gone=not peers.take(call, request.key_id, versions, request.current_version)
    )


def accept_primary(call: Call, request: pb.AcceptPrimaryRequest) -> pb.AcceptPrimaryResponse:
    """The replica becomes the primary."""
    handover = Handover(
        key_id=request.key_id,
        current_version=request.current_version,
        rotation_days=request.rotation_days if request.HasField("rotation_days") else None,
        rotation_due=request.rotation_due if request.HasField("rotation_due") else None,
        replicas=[(each.region, each.told) for each in request.replicas],
    )
    peers.become_primary(call, handover)
    return pb.AcceptPrimaryResponse()


def follow_primary(call: Call, request: pb.FollowPrimaryRequest) -> pb.FollowPrimaryResponse:
    """The replica's primary is elsewhere."""
    return pb.FollowPrimaryResponse(gone=not peers.follow(call, request.key_id, request.primary_region))


def find_replica(call: Call, request: pb.FindReplicaRequest) -> pb.FindReplicaResponse:
    """Whether the replica is there."""
    return pb.FindReplicaResponse(gone=not peers.find(call, request.key_id))


def written_offer(offer: Offer) -> pb.AcceptReplicaRequest:
    """The offer as it is sent."""
    return pb.AcceptReplicaRequest(
        key_id=offer.key_id,
        key_spec=offer.spec,
        key_usage=offer.usage,
        domain_id=offer.domain_id,
        replica_project_id=offer.project_id,
        key_alias=offer.alias,
        key_description=offer.description,
        enterprise_project_id=offer.enterprise_project_id,
        tags=[Tag(key=key, value=value) for key, value in offer.tags],
        current_version=offer.current_version,
        roots=_roots(offer.versions),
        versions=_materials(offer.versions),
    )


def written_versions(key_id: str, versions: Versions, current: int) -> pb.AcceptVersionsRequest:
    """Versions as they are sent."""
    return pb.AcceptVersionsRequest(
        key_id=key_id, roots=_roots(versions), versions=_materials(versions), current_version=current
    )


def written_handover(handover: Handover) -> pb.AcceptPrimaryRequest:
    """The handover as it is sent."""
    return pb.AcceptPrimaryRequest(
        key_id=handover.key_id,
        current_version=handover.current_version,
        rotation_days=handover.rotation_days,
        rotation_due=handover.rotation_due,
        replicas=[
            pb.AcceptPrimaryRequest.Replica(region=region, told=told) for region, told in handover.replicas
        ],
    )


def _versions(roots: Iterable[pb.RootKey], materials: Iterable[pb.Material]) -> Versions:
    return Versions(
        roots=[RootKey(each.label, each.check_value) for each in roots],
        materials=[
            Material(
                version=each.version,
                wrapped=each.wrapped,
                root_label=each.root_label,
                created=each.created,
                public_key=each.public_key,
                messages=each.messages,
            )
            for each in materials
        ],
    )


def _roots(versions: Versions) -> list[pb.RootKey]:
    return [pb.RootKey(label=each.label, check_value=each.check_value) for each in versions.roots]


def _materials(versions: Versions) -> list[pb.Material]:
    return [
        pb.Material(
            version=each.version,
            wrapped=each.wrapped,
            root_label=each.root_label,
            created=each.created,
            public_key=each.public_key,
            messages=each.messages,
        )
        for each in versions.materials
    ]
