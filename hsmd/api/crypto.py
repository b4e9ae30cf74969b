"""Servicer of crypto.proto."""

import base64

from hsmd.api.convert import Spelling
from hsmd.domain import crypto
from hsmd.domain.core import Call
from hsmd.domain.envelope import MAGIC, context_bytes
from hsmd.domain.keys import check_sequence
from hsmd.pb.v1 import crypto_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Crypto"]
_ALGORITHMS = Spelling(pb.EncryptionAlgorithm)
_DEFAULT = pb.ENCRYPTION_ALGORITHM_SYMMETRIC_DEFAULT


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
    opened = crypto.decrypt_data(call, request.key_id, request.cipher_text, algorithm, context)
    return pb.DecryptDataResponse(key_id=opened.key_id, plain_text=opened.data)


def re_encrypt(call: Call, request: pb.ReEncryptRequest) -> pb.ReEncryptResponse:
    """DEW: re-encrypt."""
    source = crypto.Side(
        request.source_key_id,
        _ALGORITHMS.name(request.source_encryption_algorithm),
        context_bytes(request.source_additional_authenticated_data, {}),
    )
    destination = crypto.Side(
        request.destination_key_id,
        _ALGORITHMS.name(request.destination_encryption_algorithm),
        context_bytes(request.destination_additional_authenticated_data, {}),
    )
    length = request.datakey_cipher_length if request.HasField("datakey_cipher_length") else None
    blob = _from_hex(request.cipher_text)
    moved = crypto.re_encrypt(call, source, destination, blob or request.cipher_text, length)
    return pb.ReEncryptResponse(
        key_id=moved.destination_id,
        source_key_id=moved.source_id,
        source_encryption_algorithm=request.source_encryption_algorithm or _DEFAULT,
        destination_encryption_algorithm=request.destination_encryption_algorithm or _DEFAULT,
        cipher_text=base64.b64decode(moved.cipher_text.hex()) if blob else moved.cipher_text,
    )


def gen_random(call: Call, request: pb.GenRandomRequest) -> pb.GenRandomResponse:
    """DEW: gen-random."""
    check_sequence(request.sequence)
    return pb.GenRandomResponse(random_data=crypto.random_data(call, request.random_data_length))


def _from_hex(cipher_text: bytes) -> bytes:
    """The ciphertext that was hex in JSON, as DEW writes those of data keys; else nothing.

    Hex digits are base64 digits too, and there are always a multiple of four: so it was read as base64. No
    ciphertext begins as the magic's hex does when it is read so.
    """
    text = base64.b64encode(cipher_text).decode()
    if not text.lower().startswith(MAGIC.hex()):
        return b""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
