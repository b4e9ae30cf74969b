"""Servicer of datakeys.proto."""

from hsmd.api.convert import Spelling
from hsmd.domain import datakeys
from hsmd.domain.core import Call
from hsmd.domain.datakeys import DataKeyPair
from hsmd.domain.envelope import context_bytes
from hsmd.domain.keys import check_sequence
from hsmd.domain.pins import NO_PIN, Pin
from hsmd.pb.v1 import datakeys_pb2 as pb

_PairRequest = pb.CreateRsaDataKeyPairRequest | pb.CreateEcDataKeyPairRequest

SERVICE = pb.DESCRIPTOR.services_by_name["DataKeys"]
_SPECS = Spelling(pb.DataKeySpec)
_RSA, _EC = Spelling(pb.RsaDataKeyPairSpec), Spelling(pb.EcDataKeyPairSpec)


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
    context = context_bytes(request.additional_authenticated_data, request.encryption_context)
    length = request.datakey_plain_length
    pin = Pin(request.pin, request.pin_type)
    key_id, blob = datakeys.encrypt(call, request.key_id, request.plain_text, length, context, pin)
    return pb.EncryptDataKeyResponse(key_id=key_id, cipher_text=blob, datakey_length=length)


def decrypt_data_key(call: Call, request: pb.DecryptDataKeyRequest) -> pb.DecryptDataKeyResponse:
    """DEW: decrypt-datakey."""
    check_sequence(request.sequence)
    context = context_bytes(request.additional_authenticated_data, request.encryption_context)
    length = request.datakey_cipher_length
    pin = Pin(request.pin, request.pin_type)
    dek, digest = datakeys.decrypt(call, request.key_id, request.cipher_text, length, context, pin)
    return pb.DecryptDataKeyResponse(data_key=dek, datakey_length=len(dek), datakey_dgst=digest)


def create_rsa_data_key_pair(
    call: Call, request: pb.CreateRsaDataKeyPairRequest
) -> pb.CreateRsaDataKeyPairResponse:
    """DEW: create-rsa-datakey-pair."""
    pair = _create_pair(call, request, _RSA.name(request.key_spec))
    return pb.CreateRsaDataKeyPairResponse(
        key_id=pair.key_id,
        key_spec=request.key_spec,
        public_key=pair.public,
        private_key_cipher_text=pair.wrapped,
        private_key_plain_text=_told(request, pair),
    )


def create_ec_data_key_pair(
    call: Call, request: pb.CreateEcDataKeyPairRequest
) -> pb.CreateEcDataKeyPairResponse:
    """DEW: create-ec-datakey-pair."""
    pair = _create_pair(call, request, _EC.name(request.key_spec), Pin(request.pin, request.pin_type))
    return pb.CreateEcDataKeyPairResponse(
        key_id=pair.key_id,
        key_spec=request.key_spec,
        public_key=pair.public,
        private_key_cipher_text=pair.wrapped,
        private_key_plain_text=_told(request, pair),
    )


def _create_pair(call: Call, request: _PairRequest, spec: str, pin: Pin = NO_PIN) -> DataKeyPair:
    check_sequence(request.sequence)
    context = context_bytes(request.additional_authenticated_data, {})
    return datakeys.create_pair(call, request.key_id, spec, context, pin)


def _told(request: _PairRequest, pair: DataKeyPair) -> bytes | None:
    """The private key, unless the caller asked to be spared it."""
    return None if request.HasField("with_plain_text") and not request.with_plain_text else pair.private


def _create(call: Call, request: pb.CreateDataKeyRequest) -> tuple[str, bytes, bytes]:
    check_sequence(request.sequence)
    context = context_bytes(request.additional_authenticated_data, request.encryption_context)
    bits = request.datakey_length if request.HasField("datakey_length") else None
    pin = Pin(request.pin, request.pin_type)
    return datakeys.create(call, request.key_id, _SPECS.name(request.key_spec), bits, context, pin)
