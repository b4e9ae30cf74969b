"""Servicer of capsules.proto."""

from hsmd.domain import capsules
from hsmd.domain.capsules import Attestation
from hsmd.domain.core import Call
from hsmd.pb.v1 import capsules_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Capsules"]


def create_data_key_capsule(
    call: Call, request: pb.CreateDataKeyCapsuleRequest
) -> pb.CreateDataKeyCapsuleResponse:
    """DEW: datakey-capsule/create."""
    made = capsules.create(
        call,
        request.key_id,
        request.datakey_length,
        policy_id=request.policy_id,
        terms=request.key_policy,
        public_key=request.public_key,
    )
    return pb.CreateDataKeyCapsuleResponse(
        key_id=made.key_id, datakey=made.plain, datakey_cipher=made.cipher, datakey_capsule=made.capsule
    )


def decrypt_data_key_capsule(
    call: Call, request: pb.DecryptDataKeyCapsuleRequest
) -> pb.DecryptDataKeyCapsuleResponse:
    """DEW: datakey-capsule/decrypt."""
    shown = request.attestation_document
    opened = capsules.decrypt(
        call,
        request.key_id,
        request.datakey_capsule,
        Attestation(shown.custom_signature, shown.custom_public_key, shown.expire_time),
        public_key=request.public_key,
    )
    return pb.DecryptDataKeyCapsuleResponse(
        key_id=opened.key_id,
        instance_id=opened.point_id,
        datakey=opened.plain,
        datakey_cipher=opened.cipher,
    )
