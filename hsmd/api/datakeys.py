"""Servicer of datakeys.proto."""

from hsmd.api.convert import Spelling
from hsmd.domain import datakeys
from hsmd.domain.core import Call
from hsmd.domain.envelope import context_bytes
from hsmd.domain.keys import check_sequence
from hsmd.pb.v1 import datakeys_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["DataKeys"]
_SPECS = Spelling(pb.DataKeySpec)


def create_data_key(call: Call, request: pb.CreateDataKeyRequest) -> pb.CreateDataKeyResponse:
    """DEW: create-datakey."""
    key_id, dek, blob = _create(call, request)
    return pb.CreateDataKeyResponse(key_id=key_id, plain_text=dek, cipher_text=blob)


def create_data_key_without_plaintext(
    call: Call, request: pb.CreateDataKeyRequest
) -> pb.CreateDataKeyWithoutPlaintextResponse:
    """DEW: create-datakey-without-plaintext."""
    key_id, _, blob = _create(call, request)
    return pb.CreateDataKeyWithoutPlaintextResponse(key_id=key_id, cipher_text=blob)


def encrypt_data_key(call: Call, request: pb.EncryptDataKeyRequest) -> pb.EncryptDataKeyResponse:
    """DEW: encrypt-datakey."""
    check_sequence(request.sequence)
    datakeys.refuse_pin(request.pin, request.pin_type)
    context = context_bytes(request.additional_authenticated_data, request.encryption_context)
    length = request.datakey_plain_length
    key_id, blob = datakeys.encrypt(call, request.key_id, request.plain_text, length, context)
    return pb.EncryptDataKeyResponse(key_id=key_id, cipher_text=blob, datakey_length=length)


def decrypt_data_key(call: Call, request: pb.DecryptDataKeyRequest) -> pb.DecryptDataKeyResponse:
    """DEW: decrypt-datakey."""
    check_sequence(request.sequence)
    context = context_bytes(request.additional_authenticated_data, request.encryption_context)
    length = request.datakey_cipher_length
    dek, digest = datakeys.decrypt(call, request.key_id, request.cipher_text, length, context)
    return pb.DecryptDataKeyResponse(data_key=dek, datakey_length=len(dek), datakey_dgst=digest)


def _create(call: Call, request: pb.CreateDataKeyRequest) -> tuple[str, bytes, bytes]:
    check_sequence(request.sequence)
    datakeys.refuse_pin(request.pin, request.pin_type)
    context = context_bytes(request.additional_authenticated_data, request.encryption_context)
    bits = request.datakey_length if request.HasField("datakey_length") else None
    return datakeys.create(call, request.key_id, _SPECS.name(request.key_spec), bits, context)
