"""Servicer of keys.proto."""

from hsmd.api.convert import Spelling, timestamp
from hsmd.domain import keys, limits
from hsmd.domain.core import Call
from hsmd.pb.v1 import keys_pb2 as pb
from hsmd.store.keys import Key

SERVICE = pb.DESCRIPTOR.services_by_name["Keys"]
_SPECS, _USAGES, _ORIGINS = Spelling(pb.KeySpec), Spelling(pb.KeyUsage), Spelling(pb.Origin)
_KEY_TYPE = "1"


def create_key(call: Call, request: pb.CreateKeyRequest) -> pb.CreateKeyResponse:
    """DEW: create-key."""
    key = keys.create_key(
        call,
        alias=request.key_alias,
        spec=_SPECS.name(request.key_spec),
        usage=_USAGES.name(request.key_usage),
        description=request.key_description,
        origin=_ORIGINS.name(request.origin),
        enterprise_project_id=request.enterprise_project_id,
        keystore_id=request.keystore_id,
        sequence=request.sequence,
    )
    info = pb.CreateKeyResponse.KeyInfo(
        key_id=key.id, domain_id=key.domain_id, keystore_id=_keystore(key), region_id=call.core.region
    )
    return pb.CreateKeyResponse(key_info=info)


def describe_key(call: Call, request: pb.DescribeKeyRequest) -> pb.DescribeKeyResponse:
    """DEW: describe-key."""
    keys.check_sequence(request.sequence)
    return pb.DescribeKeyResponse(key_info=key_details(call, keys.describe_key(call, request.key_id)))


def list_keys(call: Call, request: pb.ListKeysRequest) -> pb.ListKeysResponse:
    """DEW: list-keys."""
    keys.check_sequence(request.sequence)
    page = keys.list_keys(
        call,
        limit=request.limit if request.HasField("limit") else None,
        marker=request.marker if request.HasField("marker") else None,
        state=request.key_state,
        spec=request.key_spec,
        enterprise_project_id=request.enterprise_project_id,
    )
    return pb.ListKeysResponse(
        keys=[key.id for key in page.keys],
        key_details=[key_details(call, key) for key in page.keys],
        next_marker="" if page.next_marker is None else str(page.next_marker),
        truncated=page.next_marker is not None,
        total=page.total,
    )


def enable_key(call: Call, request: pb.EnableKeyRequest) -> pb.EnableKeyResponse:
    """DEW: enable-key."""
    keys.check_sequence(request.sequence)
    return pb.EnableKeyResponse(key_info=_status(keys.enable_key(call, request.key_id)))


def disable_key(call: Call, request: pb.DisableKeyRequest) -> pb.DisableKeyResponse:
    """DEW: disable-key."""
    keys.check_sequence(request.sequence)
    return pb.DisableKeyResponse(key_info=_status(keys.disable_key(call, request.key_id)))


def update_key_alias(call: Call, request: pb.UpdateKeyAliasRequest) -> pb.UpdateKeyAliasResponse:
    """DEW: update-key-alias."""
    keys.check_sequence(request.sequence)
    key = keys.update_alias(call, request.key_id, request.key_alias)
    return pb.UpdateKeyAliasResponse(
        key_info=pb.UpdateKeyAliasResponse.KeyInfo(key_id=key.id, key_alias=key.alias)
    )


def update_key_description(
    call: Call, request: pb.UpdateKeyDescriptionRequest
) -> pb.UpdateKeyDescriptionResponse:
    """DEW: update-key-description."""
    keys.check_sequence(request.sequence)
    key = keys.update_description(call, request.key_id, request.key_description)
    return pb.UpdateKeyDescriptionResponse(
        key_info=pb.UpdateKeyDescriptionResponse.KeyInfo(key_id=key.id, key_description=key.description)
    )


def count_keys(call: Call, request: pb.CountKeysRequest) -> pb.CountKeysResponse:
    """DEW: user-instances."""
    return pb.CountKeysResponse(instance_num=keys.count_keys(call))


def show_quotas(call: Call, request: pb.ShowQuotasRequest) -> pb.ShowQuotasResponse:
    """DEW: user-quotas."""
    used, quota = keys.count_keys(call), limits.of(call.core, call.caller.project_id, limits.KEYS)
    resource = pb.ShowQuotasResponse.Resource(type="CMK", used=used, quota=quota)
    return pb.ShowQuotasResponse(quotas=pb.ShowQuotasResponse.Quotas(resources=[resource]))


def _keystore(key: Key) -> str:
    return key.keystore_id or keys.DEFAULT_KEYSTORE


def _status(key: Key) -> pb.KeyStatus:
    return pb.KeyStatus(key_id=key.id, key_state=key.state)  # type: ignore[arg-type]  # DEW's number is the enum's


def key_details(call: Call, key: Key) -> pb.Key:
    """A key as DEW describes it."""
    return pb.Key(
        key_id=key.id,
        domain_id=key.domain_id,
        key_alias=key.alias,
        realm=call.core.region,
        key_spec=_SPECS.number(key.spec),  # type: ignore[arg-type]  # a number of this enum
        key_usage=_USAGES.number(key.usage),  # type: ignore[arg-type]  # a number of this enum
        key_description=key.description,
        creation_date=timestamp(key.created),
        scheduled_deletion_date=timestamp(key.deletion_date),
        key_state=key.state,  # type: ignore[arg-type]  # DEW's number is the enum's
        default_key_flag=key.is_default,
        key_type=_KEY_TYPE,
        expiration_time=timestamp(key.expires),
        origin=_ORIGINS.number(key.origin),  # type: ignore[arg-type]  # a number of this enum
        sys_enterprise_project_id=key.enterprise_project_id,
        keystore_id=_keystore(key),
        key_rotation_enabled=key.rotation_days is not None,
    )
