"""Servicer of agreement.proto."""

from hsmd.domain import agreement
from hsmd.domain.core import Call
from hsmd.pb.v1 import agreement_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Agreement"]


def derive_shared_secret(call: Call, request: pb.DeriveSharedSecretRequest) -> pb.DeriveSharedSecretResponse:
    """DEW: derive-shared-secret."""
    key_id, secret = agreement.derive(call, request.key_id, request.public_key)
    return pb.DeriveSharedSecretResponse(
        key_id=key_id, key_agreement_algorithm=request.key_agreement_algorithm, shared_secret=secret
    )
