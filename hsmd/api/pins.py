"""Servicer of pins.proto."""

from hsmd.api.convert import Spelling
from hsmd.domain import pins
from hsmd.domain.core import Call
from hsmd.pb.v1 import pins_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Pins"]
_TYPES = Spelling(pb.PinType)


def create_pin(call: Call, request: pb.CreatePinRequest) -> pb.CreatePinResponse:
    """DEW: create-pin."""
    return pb.CreatePinResponse(pin=pins.create(call, _TYPES.name(request.pin_type), request.keystore_id))
