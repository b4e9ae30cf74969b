"""Servicer of access_keys.proto."""

from google.protobuf.empty_pb2 import Empty

from hsmd.api.convert import timestamp
from hsmd.domain import access_keys
from hsmd.domain.core import Call
from hsmd.pb.v1 import access_keys_pb2 as pb
from hsmd.store.access_keys import AccessKey

SERVICE = pb.DESCRIPTOR.services_by_name["AccessKeys"]


def create_permanent_access_key(
    call: Call, request: pb.CreatePermanentAccessKeyRequest
) -> pb.CreatePermanentAccessKeyResponse:
    """IAM: CreatePermanentAccessKey."""
    made, secret = access_keys.create(call, request.credential.user_id, request.credential.description)
    credential = pb.CreatePermanentAccessKeyResponse.Credential(
        create_time=timestamp(made.created),
        access=made.id,
        secret=secret,
        status=_status(made),
        user_id=made.user_id,
        description=made.description or "",
    )
    return pb.CreatePermanentAccessKeyResponse(credential=credential)


def list_permanent_access_keys(
    call: Call, request: pb.ListPermanentAccessKeysRequest
) -> pb.ListPermanentAccessKeysResponse:
    """IAM: ListPermanentAccessKeys."""
    found = access_keys.find(call, request.user_id)
    return pb.ListPermanentAccessKeysResponse(credentials=[_described(each) for each in found])


def show_permanent_access_key(
    call: Call, request: pb.ShowPermanentAccessKeyRequest
) -> pb.ShowPermanentAccessKeyResponse:
    """IAM: ShowPermanentAccessKey."""
    found, used = access_keys.show(call, request.access_key)
    credential = pb.ShowPermanentAccessKeyResponse.Credential(
        user_id=found.user_id,
        access=found.id,
        status=_status(found),
        create_time=timestamp(found.created),
        last_use_time=None if used is None else timestamp(used),
        description=found.description or "",
    )
    return pb.ShowPermanentAccessKeyResponse(credential=credential)


def update_permanent_access_key(
    call: Call, request: pb.UpdatePermanentAccessKeyRequest
) -> pb.UpdatePermanentAccessKeyResponse:
    """IAM: UpdatePermanentAccessKey."""
    wanted = request.credential
    changed = access_keys.update(
        call,
        request.access_key,
        enabled=None if not wanted.status else wanted.status == pb.ACCESS_KEY_STATUS_ACTIVE,
        description=wanted.description if wanted.HasField("description") else None,
    )
    return pb.UpdatePermanentAccessKeyResponse(credential=_described(changed))


def delete_permanent_access_key(call: Call, request: pb.DeletePermanentAccessKeyRequest) -> Empty:
    """IAM: DeletePermanentAccessKey."""
    access_keys.delete(call, request.access_key)
    return Empty()


def _described(access_key: AccessKey) -> pb.AccessKey:
    return pb.AccessKey(
        user_id=access_key.user_id,
        access=access_key.id,
        status=_status(access_key),
        create_time=timestamp(access_key.created),
        description=access_key.description or "",
    )


def _status(access_key: AccessKey) -> pb.AccessKeyStatus:
    return pb.ACCESS_KEY_STATUS_ACTIVE if access_key.enabled else pb.ACCESS_KEY_STATUS_INACTIVE
