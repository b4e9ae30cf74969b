"""Servicer of signing.proto."""

from hsmd.api.convert import Spelling
from hsmd.domain import signing
from hsmd.domain.core import Call
from hsmd.domain.keys import check_sequence
from hsmd.pb.v1 import signing_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Signing"]
_ALGORITHMS, _TYPES = Spelling(pb.SigningAlgorithm), Spelling(pb.MessageType)


def sign(call: Call, request: pb.SignRequest) -> pb.SignResponse:
    """DEW: sign."""
    check_sequence(request.sequence)
    algorithm, kind = _ALGORITHMS.name(request.signing_algorithm), _TYPES.name(request.message_type)
    key_id, signature = signing.sign(call, request.key_id, algorithm, request.message, kind)
    return pb.SignResponse(key_id=key_id, signature=signature)


def verify(call: Call, request: pb.VerifyRequest) -> pb.VerifyResponse:
    """DEW: verify."""
    check_sequence(request.sequence)
    algorithm, kind = _ALGORITHMS.name(request.signing_algorithm), _TYPES.name(request.message_type)
    key_id, valid = signing.verify(call, request.key_id, algorithm, request.message, kind, request.signature)
    return pb.VerifyResponse(key_id=key_id, signature_valid=valid)


def get_public_key(call: Call, request: pb.GetPublicKeyRequest) -> pb.GetPublicKeyResponse:
    """DEW: get-publickey."""
    check_sequence(request.sequence)
    key_id, public_key = signing.public_key(call, request.key_id)
    return pb.GetPublicKeyResponse(key_id=key_id, public_key=public_key)
