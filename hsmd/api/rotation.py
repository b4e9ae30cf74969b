"""Servicer of rotation.proto."""

from hsmd.api.convert import timestamp
from hsmd.domain import rotation
from hsmd.domain.core import Call
from hsmd.domain.keys import check_sequence
from hsmd.pb.v1 import rotation_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Rotation"]
_IN_USE = 2


def enable_key_rotation(call: Call, request: pb.EnableKeyRotationRequest) -> pb.EnableKeyRotationResponse:
    """DEW: enable-key-rotation."""
    check_sequence(request.sequence)
    rotation.enable(call, request.key_id)
    return pb.EnableKeyRotationResponse()


def disable_key_rotation(call: Call, request: pb.DisableKeyRotationRequest) -> pb.DisableKeyRotationResponse:
    """DEW: disable-key-rotation."""
    check_sequence(request.sequence)
    rotation.disable(call, request.key_id)
    return pb.DisableKeyRotationResponse()


def update_key_rotation_interval(
    call: Call, request: pb.UpdateKeyRotationIntervalRequest
) -> pb.UpdateKeyRotationIntervalResponse:
    """DEW: update-key-rotation-interval."""
    check_sequence(request.sequence)
    rotation.set_interval(call, request.key_id, request.rotation_interval)
    return pb.UpdateKeyRotationIntervalResponse()


def get_key_rotation_status(
    call: Call, request: pb.GetKeyRotationStatusRequest
) -> pb.GetKeyRotationStatusResponse:
    """DEW: get-key-rotation-status."""
    check_sequence(request.sequence)
    found = rotation.status(call, request.key_id)
    return pb.GetKeyRotationStatusResponse(
        key_rotation_enabled=found.enabled,
        rotation_interval=found.days,
        last_rotation_time=timestamp(found.last),
        number_of_rotations=found.rotations,
        key_materials=[_material(each) for each in found.materials],
    )


def rotate_on_demand(call: Call, request: pb.RotateOnDemandRequest) -> pb.RotateOnDemandResponse:
    """DEW: rotate-on-demand."""
    return pb.RotateOnDemandResponse(key_id=rotation.rotate(call, request.key_id).id)


def _material(material: rotation.Material) -> pb.GetKeyRotationStatusResponse.Material:
    return pb.GetKeyRotationStatusResponse.Material(
        material_id=material.id,
        create_time=timestamp(material.created),
        expiration_time=timestamp(material.expires),
        state=_IN_USE,
    )
