"""Servicer of upkeep.proto."""

from google.protobuf.timestamp_pb2 import Timestamp

from hsmd.api.convert import timestamp
from hsmd.domain import roots
from hsmd.domain.core import Call
from hsmd.domain.roots import Progress
from hsmd.pb.v1 import upkeep_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Upkeep"]


def list_root_keys(call: Call, request: pb.ListRootKeysRequest) -> pb.ListRootKeysResponse:
    """All of them."""
    return pb.ListRootKeysResponse(root_keys=[_root_key(each) for each in roots.progress(call)])


def _root_key(found: Progress) -> pb.RootKeyStatus:
    root, rows = found.root, found.rows
    return pb.RootKeyStatus(
        label=root.label,
        state=root.state,
        check_value=root.check_value,
        since=_time(root.since),
        replaced=_time(root.replaced),
        moved=_time(root.moved),
        destroyed=_time(root.destroyed),
        key_versions=rows.get("key versions", 0),
        access_keys=rows.get("access keys", 0),
        access_points=rows.get("access points", 0),
        may_wrap_pins=root.pins,
        needed=found.needed,
    )


def _time(millis: int) -> Timestamp | None:
    return timestamp(millis) if millis else None
