"""Servicer of access_points.proto."""

from google.protobuf.empty_pb2 import Empty

from hsmd.api.convert import timestamp
from hsmd.domain import access_points
from hsmd.domain.access_points import Draft
from hsmd.domain.core import Call
from hsmd.pb.v1 import access_points_pb2 as pb
from hsmd.store.access_points import AccessPoint

SERVICE = pb.DESCRIPTOR.services_by_name["AccessPoints"]


def create_access_point(call: Call, request: pb.CreateAccessPointRequest) -> pb.CreateAccessPointResponse:
    """DEW: create access point."""
    draft = Draft(
        keyspace_id=request.keyspace_id,
        name=request.access_point_name,
        kind=request.type,
        identity=request.identity,
        cluster_id=request.cluster_id,
        description=request.description,
    )
    return pb.CreateAccessPointResponse(access_point_id=access_points.create(call, draft).id)


def list_access_points(call: Call, request: pb.ListAccessPointsRequest) -> pb.ListAccessPointsResponse:
    """DEW: list access points."""
    limit = request.limit if request.HasField("limit") else None
    page = access_points.page(call, request.keyspace_id, limit=limit, marker=request.marker)
    return pb.ListAccessPointsResponse(
        page_info=pb.PageInfo(next_marker=page.next_marker, current_count=len(page.things)),
        access_points=[_access_point(each) for each in page.things],
    )


def delete_access_point(call: Call, request: pb.DeleteAccessPointRequest) -> Empty:
    """DEW: delete access point."""
    access_points.delete(call, request.access_point_id)
    return Empty()


def enable_access_point(call: Call, request: pb.EnableAccessPointRequest) -> Empty:
    """DEW: enable access point."""
    access_points.enable(call, request.access_point_id)
    return Empty()


def disable_access_point(call: Call, request: pb.DisableAccessPointRequest) -> Empty:
    """DEW: disable access point."""
    access_points.disable(call, request.access_point_id)
    return Empty()


def get_access_point_private_key(
    call: Call, request: pb.GetAccessPointPrivateKeyRequest
) -> pb.GetAccessPointPrivateKeyResponse:
    """DEW: get-privatekey."""
    point_id, private_key = access_points.private_key(call, request.access_point_id)
    return pb.GetAccessPointPrivateKeyResponse(access_point_id=point_id, private_key=private_key)


def _access_point(point: AccessPoint) -> pb.AccessPoint:
    return pb.AccessPoint(
        access_point_id=point.id,
        keyspace_id=point.keyspace_id,
        access_point_name=point.name,
        state=pb.ACCESS_POINT_STATE_ENABLED if point.enabled else pb.ACCESS_POINT_STATE_DISABLED,
        type=point.kind,  # type: ignore[arg-type]  # a number of this enum
        created_by=point.created_by,
        create_time=timestamp(point.created),
        last_modify_time=timestamp(point.updated),
    )
