"""Servicer of temporary_keys.proto."""

from hsmd.api.convert import timestamp
from hsmd.domain import temporary_keys, tokens
from hsmd.domain.core import Call
from hsmd.errors import TOKEN_REQUEST_INVALID, Error
from hsmd.pb.v1 import temporary_keys_pb2 as pb
from hsmd.store.identity import Domain

SERVICE = pb.DESCRIPTOR.services_by_name["TemporaryKeys"]


def create_temporary_access_key(
    call: Call, request: pb.CreateTemporaryAccessKeyRequest
) -> pb.CreateTemporaryAccessKeyResponse:
    """IAM: CreateTemporaryAccessKeyByToken and CreateTemporaryAccessKeyByAgency."""
    proof = request.auth.identity
    token, role = proof.token, proof.assume_role
    if list(proof.methods) == [tokens.BY_TOKEN]:
        made = temporary_keys.create(
            call,
            token=token.id,
            seconds=token.duration_seconds if token.HasField("duration_seconds") else None,
            policy=proof.policy,
        )
    elif list(proof.methods) == [tokens.ASSUME_ROLE]:
        made = temporary_keys.create_as_agency(
            call,
            agency_name=role.agency_name,
            domain=Domain(id=role.domain_id, name=role.domain_name),
            session_name=role.session_user.name,
            seconds=role.duration_seconds if role.HasField("duration_seconds") else None,
            policy=proof.policy,
        )
    else:
        due = f'["{tokens.BY_TOKEN}"] or ["{tokens.ASSUME_ROLE}"]'
        raise Error(TOKEN_REQUEST_INVALID, reason=f"methods {due} is due")
    credential = pb.CreateTemporaryAccessKeyResponse.Credential(
        expires_at=timestamp(made.expires),
        access=made.access_key,
        secret=made.secret,
        securitytoken=made.security_token,
    )
    return pb.CreateTemporaryAccessKeyResponse(credential=credential)
