"""Servicer of crypto.proto."""

from hsmd.api.convert import Spelling
from hsmd.domain import crypto
from hsmd.domain.core import Call
from hsmd.domain.envelope import context_bytes
from hsmd.domain.keys import check_sequence
from hsmd.pb.v1 import crypto_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Crypto"]
_ALGORITHMS = Spelling(pb.EncryptionAlgorithm)


def encrypt_data(call: Call, request: pb.EncryptDataRequest) -> pb.EncryptDataResponse:
    """DEW: encrypt-data."""
    check_sequence(request.sequence)
    context = context_bytes(request.additional_authenticated_data, request.encryption_context)
    algorithm = _ALGORITHMS.name(request.encryption_algorithm)
    key_id, blob = crypto.encrypt_data(call, request.key_id, request.plain_text, algorithm, context)
    return pb.EncryptDataResponse(key_id=key_id, cipher_text=blob)


def decrypt_data(call: Call, request: pb.DecryptDataRequest) -> pb.DecryptDataResponse:
    """DEW: decrypt-data."""
    check_sequence(request.sequence)
    context = context_bytes(request.additional_authenticated_data, request.encryption_context)
    algorithm = _ALGORITHMS.name(request.encryption_algorithm)
    key_id, data = crypto.decrypt_data(call, request.key_id, request.cipher_text, algorithm, context)
    return pb.DecryptDataResponse(key_id=key_id, plain_text=data)


def gen_random(call: Call, request: pb.GenRandomRequest) -> pb.GenRandomResponse:
    """DEW: gen-random."""
    check_sequence(request.sequence)
    return pb.GenRandomResponse(random_data=crypto.random_data(call, request.random_data_length))
