"""Servicer of macs.proto."""

from hsmd.api.convert import Spelling
from hsmd.domain import macs
from hsmd.domain.core import Call
from hsmd.pb.v1 import macs_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Macs"]
_ALGORITHMS = Spelling(pb.MacAlgorithm)


def generate_mac(call: Call, request: pb.GenerateMacRequest) -> pb.GenerateMacResponse:
    """DEW: generate-mac."""
    algorithm = _ALGORITHMS.name(request.mac_algorithm)
    key_id, mac = macs.generate(call, request.key_id, algorithm, request.message)
    return pb.GenerateMacResponse(key_id=key_id, mac_algorithm=request.mac_algorithm, mac=mac)


def verify_mac(call: Call, request: pb.VerifyMacRequest) -> pb.VerifyMacResponse:
    """DEW: verify-mac."""
    algorithm = _ALGORITHMS.name(request.mac_algorithm)
    key_id, valid = macs.verify(call, request.key_id, algorithm, request.message, request.mac)
    return pb.VerifyMacResponse(key_id=key_id, mac_algorithm=request.mac_algorithm, mac_valid=valid)
