"""A small gRPC service with real mutual TLS, for tests of the client's own logic without an HSM.

It keeps keys in memory, encrypts by `cryptography`, records every call and fails on demand.
"""

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf import any_pb2, timestamp_pb2
from google.rpc import error_details_pb2, status_pb2

from hsmd.client import Client
from hsmd.daemon.certificates import Authority
from hsmd.pb.v1 import crypto_pb2, datakeys_pb2, deletion_pb2, keys_pb2, service_pb2

_STATE = "KEY_STATE_{}"
_MODULES = (crypto_pb2, datakeys_pb2, deletion_pb2, keys_pb2, service_pb2)
_Handler = Callable[[Any], Any]


class RefusalError(Exception):
    """What the service answers instead: raised by a method, or put into `StandIn.failures`."""

    def __init__(self, code: str, status: grpc.StatusCode, message: str) -> None:
        self.code, self.status, self.message = code, status, message
        super().__init__(message)


NOT_FOUND = RefusalError("KMS.0207", grpc.StatusCode.NOT_FOUND, "The key does not exist.")
BAD_CIPHERTEXT = RefusalError("KMS.2201", grpc.StatusCode.INVALID_ARGUMENT, "The cipher_text is not valid.")
AWAY = RefusalError("KMS.0104", grpc.StatusCode.UNAVAILABLE, "The service is not available now: token away.")


@dataclass
class Seen:
    """One call as it arrived."""

    method: str
    request: Any
    metadata: dict[str, str | bytes]
    remaining: float


@dataclass
class StandIn:
    """The service's state: what it holds, what it saw, what it is to refuse next."""

    keys: dict[str, keys_pb2.Key] = field(default_factory=dict)
    secrets: dict[str, AESGCM] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    failures: list[RefusalError] = field(default_factory=list)
    page: int = 1000
    target: str = ""
    files: dict[str, Path] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self, **options: Any) -> Client:
        return Client(self.target, **{**self.files, **options})

    def environment(self) -> dict[str, str]:
        names = {"ca": "HSMD_CA", "certificate": "HSMD_CERT", "key": "HSMD_KEY"}
        return {"HSMD_GRPC": self.target} | {names[each]: str(path) for each, path in self.files.items()}

    def calls(self, method: str) -> list[Seen]:
        return [each for each in self.seen if each.method == method]

    def add(self, alias: str, **values: Any) -> str:
        return str(self.CreateKey(keys_pb2.CreateKeyRequest(key_alias=alias, **values)).key_info.key_id)

    def serve(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        metadata = {str(key): value for key, value in context.invocation_metadata()}
        with self._lock:
            self.seen.append(Seen(method, request, metadata, context.time_remaining()))
            failure = self.failures.pop(0) if self.failures else None
        context.set_trailing_metadata((("hsmd-request-id", metadata["hsmd-request-id"]),))
        try:
            if failure:
                raise failure
            return getattr(self, method)(request)
        except RefusalError as refusal:
            _abort(context, refusal, str(metadata["hsmd-request-id"]))

    # The methods, by their names in proto/

    def CreateKey(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        key_id = str(uuid.uuid4())
        self.keys[key_id] = keys_pb2.Key(
            key_id=key_id,
            key_alias=request.key_alias,
            key_description=request.key_description,
            key_spec=keys_pb2.KEY_SPEC_AES_256,
            key_usage=keys_pb2.KEY_USAGE_ENCRYPT_DECRYPT,
            key_state=keys_pb2.KEY_STATE_ENABLED,
            origin=keys_pb2.ORIGIN_KMS,
            creation_date=timestamp_pb2.Timestamp(seconds=1_700_000_000),
        )
        self.secrets[key_id] = AESGCM(AESGCM.generate_key(256))
        return keys_pb2.CreateKeyResponse(key_info={"key_id": key_id})

    def DescribeKey(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        return keys_pb2.DescribeKeyResponse(key_info=self._key(request.key_id))

    def ListKeys(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        wanted = [each for each in self.keys.values() if request.key_state in (0, each.key_state)]
        after = request.marker + min(self.page, request.limit)
        page = wanted[request.marker : after]
        more = after < len(wanted)
        return keys_pb2.ListKeysResponse(
            keys=[each.key_id for each in page],
            key_details=page,
            truncated=more,
            next_marker=str(after) if more else "",
            total=len(wanted),
        )

    def EnableKey(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        return keys_pb2.EnableKeyResponse(key_info=self._become(request.key_id, "ENABLED"))

    def DisableKey(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        return keys_pb2.DisableKeyResponse(key_info=self._become(request.key_id, "DISABLED"))

    def UpdateKeyAlias(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        key = self._key(request.key_id)
        key.key_alias = request.key_alias
        return keys_pb2.UpdateKeyAliasResponse(key_info={"key_id": key.key_id, "key_alias": key.key_alias})

    def UpdateKeyDescription(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        key = self._key(request.key_id)
        key.key_description = request.key_description
        return keys_pb2.UpdateKeyDescriptionResponse(
            key_info={"key_id": key.key_id, "key_description": key.key_description}
        )

    def ScheduleKeyDeletion(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        status = self._become(request.key_id, "PENDING_DELETION")
        return deletion_pb2.ScheduleKeyDeletionResponse(**status)

    def CancelKeyDeletion(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        return deletion_pb2.CancelKeyDeletionResponse(**self._become(request.key_id, "DISABLED"))

    def EncryptData(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        key = self._key(request.key_id)
        blob = self._seal(key.key_id, request.plain_text, request.additional_authenticated_data)
        return crypto_pb2.EncryptDataResponse(key_id=key.key_id, cipher_text=blob)

    def DecryptData(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        key_id = self._key(request.key_id).key_id if request.key_id else ""
        named, data = self._open(request.cipher_text, request.additional_authenticated_data)
        if key_id not in ("", named):
            raise BAD_CIPHERTEXT
        return crypto_pb2.DecryptDataResponse(key_id=named, plain_text=data)

    def GenRandom(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        return crypto_pb2.GenRandomResponse(random_data=os.urandom(request.random_data_length // 8))

    def CreateDataKey(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        key = self._key(request.key_id)
        dek = os.urandom(request.datakey_length // 8)
        blob = self._seal(key.key_id, dek, request.additional_authenticated_data)
        return datakeys_pb2.CreateDataKeyResponse(key_id=key.key_id, plain_text=dek, cipher_text=blob)

    def EncryptDataKey(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        key = self._key(request.key_id)
        dek = request.plain_text[: request.datakey_plain_length]
        blob = self._seal(key.key_id, dek, request.additional_authenticated_data)
        return datakeys_pb2.EncryptDataKeyResponse(key_id=key.key_id, cipher_text=blob)

    def DecryptDataKey(self, request: Any) -> Any:  # noqa: N802  # named as in proto/
        _, dek = self._open(request.cipher_text, request.additional_authenticated_data)
        return datakeys_pb2.DecryptDataKeyResponse(data_key=dek, datakey_length=len(dek))

    def GetStatus(self, _request: Any) -> Any:  # noqa: N802  # named as in proto/
        return service_pb2.GetStatusResponse(
            version="0.1.0",
            region="local-1",
            token={"label": "hsmd", "state": "connected"},
            capabilities=[{"name": "aes-gcm", "available": True}],
        )

    def _key(self, reference: str) -> keys_pb2.Key:
        for key in self.keys.values():
            if reference in (key.key_id, f"alias/{key.key_alias}"):
                return key
        raise NOT_FOUND

    def _become(self, reference: str, state: str) -> dict[str, Any]:
        key = self._key(reference)
        key.key_state = getattr(keys_pb2, _STATE.format(state))
        return {"key_id": key.key_id, "key_state": key.key_state}

    def _seal(self, key_id: str, data: bytes, context: bytes) -> bytes:
        nonce = os.urandom(12)
        return b"\0\0\0\1" + key_id.encode() + nonce + self.secrets[key_id].encrypt(nonce, data, context)

    def _open(self, blob: bytes, context: bytes) -> tuple[str, bytes]:
        named = blob[4:40].decode("ascii", "replace")
        try:
            return named, self.secrets[named].decrypt(blob[40:52], blob[52:], context)
        except (KeyError, InvalidTag, ValueError) as error:
            raise BAD_CIPHERTEXT from error


def _abort(context: grpc.ServicerContext, refusal: RefusalError, request_id: str) -> NoReturn:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=refusal.code, domain="hsmd"))
    status = status_pb2.Status(code=refusal.status.value[0], message=refusal.message, details=[detail])
    context.set_trailing_metadata(
        (("hsmd-request-id", request_id), ("grpc-status-details-bin", status.SerializeToString()))
    )
    context.abort(refusal.status, refusal.message)


def _handlers(stand_in: StandIn) -> list["grpc.GenericRpcHandler[Any, Any]"]:
    services = [each for module in _MODULES for each in module.DESCRIPTOR.services_by_name.values()]
    return [
        grpc.method_handlers_generic_handler(
            service.full_name, {method.name: _handler(stand_in, method) for method in service.methods}
        )
        for service in services
    ]


def _handler(stand_in: StandIn, method: Any) -> "grpc.RpcMethodHandler[Any, Any]":
    kind = method.input_type._concrete_class
    return grpc.unary_unary_rpc_method_handler(
        lambda request, context: stand_in.serve(method.name, request, context),
        request_deserializer=kind.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )


@contextmanager
def running(folder: Path) -> Iterator[StandIn]:
    """The service on a port of its own, with certificates in `folder`, and on folder/socket."""
    authority = Authority(folder, "tests")
    server_pair = authority.server("server", ["localhost", "127.0.0.1"])
    client_pair = authority.client("client", "client")
    stand_in = StandIn()
    ca = authority.pair.certificate
    credentials = grpc.ssl_server_credentials(
        [(server_pair.key.read_bytes(), server_pair.certificate.read_bytes())],
        root_certificates=ca.read_bytes(),
        require_client_auth=True,
    )
    server = grpc.server(
        futures.ThreadPoolExecutor(8), _handlers(stand_in), options=[("grpc.so_reuseport", 0)]
    )
    stand_in.target = f"localhost:{server.add_secure_port('127.0.0.1:0', credentials)}"
    server.add_insecure_port(f"unix:{folder / 'socket'}")
    stand_in.files = {"ca": ca, "certificate": client_pair.certificate, "key": client_pair.key}
    server.start()
    try:
        yield stand_in
    finally:
        server.stop(None).wait()
