"""Servicer of keystores.proto."""

from hsmd.api.convert import Spelling, timestamp
from hsmd.domain import keystores
from hsmd.domain.core import Call
from hsmd.pb.v1 import keystores_pb2 as pb
from hsmd.store.keystores import Keystore

SERVICE = pb.DESCRIPTOR.services_by_name["Keystores"]
_TYPES = Spelling(pb.KeystoreType)


def create_key_store(call: Call, request: pb.CreateKeyStoreRequest) -> pb.CreateKeyStoreResponse:
    """DEW: create-keystore."""
    made = keystores.create(
        call,
        alias=request.keystore_alias,
        cluster_id=request.cluster_id,
        hsm_cluster_id=request.hsm_cluster_id,
        certificate=request.hsm_ca_cert,
        kind=_TYPES.name(request.keystore_type),
    )
    info = pb.CreateKeyStoreResponse.KeystoreInfo(keystore_id=made.id, domain_id=made.domain_id)
    return pb.CreateKeyStoreResponse(keystore=info)


def list_key_stores(call: Call, request: pb.ListKeyStoresRequest) -> pb.ListKeyStoresResponse:
    """DEW: list-keystores."""
    limit = request.limit if request.HasField("limit") else None
    offset = request.offset if request.HasField("offset") else None
    page = keystores.list_of_domain(call, limit=limit, offset=offset)
    return pb.ListKeyStoresResponse(total=page.total, keystores=[_keystore(each) for each in page.keystores])


def show_key_store(call: Call, request: pb.ShowKeyStoreRequest) -> pb.ShowKeyStoreResponse:
    """DEW: show-keystore."""
    return pb.ShowKeyStoreResponse(keystore=_keystore(keystores.show(call, request.keystore_id)))


def enable_key_store(call: Call, request: pb.EnableKeyStoreRequest) -> pb.EnableKeyStoreResponse:
    """DEW: enable-keystore."""
    return pb.EnableKeyStoreResponse(keystore=_status(keystores.enable(call, request.keystore_id)))


def disable_key_store(call: Call, request: pb.DisableKeyStoreRequest) -> pb.DisableKeyStoreResponse:
    """DEW: disable-keystore."""
    return pb.DisableKeyStoreResponse(keystore=_status(keystores.disable(call, request.keystore_id)))


def delete_key_store(call: Call, request: pb.DeleteKeyStoreRequest) -> pb.DeleteKeyStoreResponse:
    """DEW: delete-keystore."""
    keystores.delete(call, request.keystore_id)
    return pb.DeleteKeyStoreResponse()


def _keystore(keystore: Keystore) -> pb.Keystore:
    return pb.Keystore(
        keystore_id=keystore.id,
        domain_id=keystore.domain_id,
        keystore_alias=keystore.alias,
        keystore_type=_TYPES.number(keystores.KIND),  # type: ignore[arg-type]  # a number of this enum
        hsm_cluster_id=keystore.cluster_id,
        cluster_id=keystore.cluster_id,
        create_time=timestamp(keystore.created),
    )


def _status(keystore: Keystore) -> pb.KeystoreStatus:
    state = pb.KEYSTORE_STATE_ENABLED if keystore.enabled else pb.KEYSTORE_STATE_DISABLED
    return pb.KeystoreStatus(keystore_id=keystore.id, keystore_state=state)
