"""Client: one connection to the daemon, with a method for each everyday call."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from hsmd.client.calls import Calls, open_channel
from hsmd.client.errors import SetupError
from hsmd.pb.v1 import crypto_pb2, datakeys_pb2, deletion_pb2, keys_pb2, macs_pb2, service_pb2, signing_pb2
from hsmd.pb.v1.access_keys_pb2_grpc import AccessKeysStub
from hsmd.pb.v1.access_points_pb2_grpc import AccessPointsStub
from hsmd.pb.v1.agencies_pb2_grpc import AgenciesStub
from hsmd.pb.v1.agreement_pb2_grpc import AgreementStub
from hsmd.pb.v1.aliases_pb2_grpc import AliasesStub
from hsmd.pb.v1.assignments_pb2_grpc import AssignmentsStub
from hsmd.pb.v1.capsules_pb2_grpc import CapsulesStub
from hsmd.pb.v1.certificates_pb2_grpc import CertificatesStub
from hsmd.pb.v1.crypto_pb2_grpc import CryptoStub
from hsmd.pb.v1.datakeys_pb2_grpc import DataKeysStub
from hsmd.pb.v1.deletion_pb2 import CancelKeyDeletionResponse, ScheduleKeyDeletionResponse
from hsmd.pb.v1.deletion_pb2_grpc import DeletionStub
from hsmd.pb.v1.domain_settings_pb2_grpc import DomainSettingsStub
from hsmd.pb.v1.domains_pb2_grpc import DomainsStub
from hsmd.pb.v1.grants_pb2_grpc import GrantsStub
from hsmd.pb.v1.groups_pb2_grpc import GroupsStub
from hsmd.pb.v1.identity_pb2_grpc import IdentityStub
from hsmd.pb.v1.imports_pb2_grpc import ImportsStub
from hsmd.pb.v1.key_policies_pb2_grpc import KeyPoliciesStub
from hsmd.pb.v1.keys_pb2 import (
    Key,
    KeyState,
    KeyStatus,
    UpdateKeyAliasResponse,
    UpdateKeyDescriptionResponse,
)
from hsmd.pb.v1.keys_pb2_grpc import KeysStub
from hsmd.pb.v1.keystores_pb2_grpc import KeystoresStub
from hsmd.pb.v1.limits_pb2_grpc import LimitsStub
from hsmd.pb.v1.macs_pb2_grpc import MacsStub
from hsmd.pb.v1.node_pb2_grpc import NodeStub
from hsmd.pb.v1.pins_pb2_grpc import PinsStub
from hsmd.pb.v1.policies_pb2_grpc import PoliciesStub
from hsmd.pb.v1.projects_pb2_grpc import ProjectsStub
from hsmd.pb.v1.regions_pb2_grpc import RegionsStub
from hsmd.pb.v1.rotation_pb2_grpc import RotationStub
from hsmd.pb.v1.service_pb2_grpc import ServiceStub
from hsmd.pb.v1.signing_pb2 import MessageType
from hsmd.pb.v1.signing_pb2_grpc import SigningStub
from hsmd.pb.v1.tags_pb2_grpc import TagsStub
from hsmd.pb.v1.temporary_keys_pb2_grpc import TemporaryKeysStub
from hsmd.pb.v1.traces_pb2_grpc import TracesStub
from hsmd.pb.v1.users_pb2_grpc import UsersStub

_FILES = ("HSMD_CA", "HSMD_CERT", "HSMD_KEY")
_LARGEST_PAGE = 1000
_LARGEST_RANDOM_BYTES = 1024


class Client:
    """Calls to one daemon; safe to share between threads, not over a fork.

    `target` is host:port (mutual TLS, PEM files) or unix:PATH (no TLS, no files). `project_id` acts in
    another project than the certificate's own; `server_name` is expected in the server's certificate
    instead of the target's host; `deadline` is in seconds, for each call. Wherever a `key_id` is taken it
    may be a key id, alias/NAME or an alias URN.

    `keys`, `aliases`, `tags`, `rotation`, `grants`, `crypto`, `data_keys`, `signing`, `macs`, `agreement`,
    `deletion`, `imports`, `regions`, `access_points`, `key_policies`, `capsules`, `pins`, `keystores`,
    `identity`, `domains`, `projects`, `users`, `groups`, `access_keys`, `temporary_keys`, `agencies`,
    `certificates`, `policies`, `assignments`, `domain_settings`, `limits`, `node`, `traces` and `service` are
    the generated stubs, for what has no method here. Calls raise ApiError; making a Client raises SetupError.
    """

    def __init__(
        self,
        target: str,
        *,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        project_id: str = "",
        server_name: str = "",
        deadline: float = 20.0,
    ) -> None:
        self._target = target
        self._channel = open_channel(target, ca=ca, certificate=certificate, key=key, server_name=server_name)
        calls = Calls(self._channel, deadline=deadline, project_id=project_id)
        self.keys = KeysStub(calls)
        self.aliases = AliasesStub(calls)
        self.tags = TagsStub(calls)
        self.rotation = RotationStub(calls)
        self.grants = GrantsStub(calls)
        self.crypto = CryptoStub(calls)
        self.data_keys = DataKeysStub(calls)
        self.signing = SigningStub(calls)
        self.macs = MacsStub(calls)
        self.agreement = AgreementStub(calls)
        self.deletion = DeletionStub(calls)
        self.imports = ImportsStub(calls)
        self.regions = RegionsStub(calls)
        self.access_points = AccessPointsStub(calls)
        self.key_policies = KeyPoliciesStub(calls)
        self.capsules = CapsulesStub(calls)
        self.pins = PinsStub(calls)
        self.keystores = KeystoresStub(calls)
        self.identity = IdentityStub(calls)
        self.domains = DomainsStub(calls)
        self.projects = ProjectsStub(calls)
        self.users = UsersStub(calls)
        self.groups = GroupsStub(calls)
        self.access_keys = AccessKeysStub(calls)
        self.temporary_keys = TemporaryKeysStub(calls)
        self.agencies = AgenciesStub(calls)
        self.certificates = CertificatesStub(calls)
        self.policies = PoliciesStub(calls)
        self.assignments = AssignmentsStub(calls)
        self.domain_settings = DomainSettingsStub(calls)
        self.limits = LimitsStub(calls)
        self.node = NodeStub(calls)
        self.traces = TracesStub(calls)
        self.service = ServiceStub(calls)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """A client by HSMD_GRPC, HSMD_CA, HSMD_CERT, HSMD_KEY and, if set, HSMD_PROJECT_ID."""
        target = environment.get("HSMD_GRPC", "")
        needed = ("HSMD_GRPC",) if target.startswith("unix:") else ("HSMD_GRPC", *_FILES)
        missing = [name for name in needed if not environment.get(name)]
        if missing:
            raise SetupError(f"not set in the environment: {', '.join(missing)}")
        ca, certificate, key = (Path(environment[name]) if name in needed else None for name in _FILES)
        project_id = environment.get("HSMD_PROJECT_ID", "")
        return cls(target, ca=ca, certificate=certificate, key=key, project_id=project_id)

    def __repr__(self) -> str:
        return f"Client({self._target!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; calls in flight fail."""
        self._channel.close()

    # Keys

    def create_key(
        self,
        alias: str,
        *,
        description: str = "",
        spec: str = "",
        usage: str = "",
        origin: str = "",
        sequence: str = "",
        keystore_id: str = "",
    ) -> str:
        """Generate a key in the HSM, or with origin "external" one that awaits its material; return its id.

        `spec` and `usage` are DEW spellings, "" for AES_256 and the spec's default; ValueError for one that
        is not offered. With the same `sequence` (36 characters) a repeated call within 24 hours returns the
        first one's key. `keystore_id` is a dedicated keystore that the key is to stay in.
        """
        request = keys_pb2.CreateKeyRequest(
            key_alias=alias,
            key_description=description,
            key_spec=f"KEY_SPEC_{spec}" if spec else None,
            key_usage=f"KEY_USAGE_{usage}" if usage else None,
            origin=f"ORIGIN_{origin.upper()}" if origin else None,
            sequence=sequence,
            keystore_id=keystore_id,
        )
        return str(self.keys.CreateKey(request).key_info.key_id)

    def describe_key(self, key_id: str) -> Key:
        """Everything about one key but its material."""
        response: keys_pb2.DescribeKeyResponse = self.keys.DescribeKey(
            keys_pb2.DescribeKeyRequest(key_id=key_id)
        )
        return response.key_info

    def list_keys(self, *, state: KeyState | None = None, page: int = _LARGEST_PAGE) -> Iterator[Key]:
        """The project's keys, oldest first, fetched by pages of 1 to 1000 as they are needed."""
        marker = 0
        while True:
            request = keys_pb2.ListKeysRequest(limit=page, marker=marker, key_state=state)
            response: keys_pb2.ListKeysResponse = self.keys.ListKeys(request)
            yield from response.key_details
            if not response.truncated:
                return
            marker = int(response.next_marker)

    def enable(self, key_id: str) -> KeyStatus:
        """DISABLED to ENABLED."""
        response: keys_pb2.EnableKeyResponse = self.keys.EnableKey(keys_pb2.EnableKeyRequest(key_id=key_id))
        return response.key_info

    def disable(self, key_id: str) -> KeyStatus:
        """ENABLED to DISABLED."""
        request = keys_pb2.DisableKeyRequest(key_id=key_id)
        response: keys_pb2.DisableKeyResponse = self.keys.DisableKey(request)
        return response.key_info

    def rename(self, key_id: str, alias: str) -> UpdateKeyAliasResponse.KeyInfo:
        """Give the key another alias (the bare name, without "alias/")."""
        request = keys_pb2.UpdateKeyAliasRequest(key_id=key_id, key_alias=alias)
        response: UpdateKeyAliasResponse = self.keys.UpdateKeyAlias(request)
        return response.key_info

    def set_description(self, key_id: str, description: str) -> UpdateKeyDescriptionResponse.KeyInfo:
        """Replace the key's description, 0 to 255 characters."""
        request = keys_pb2.UpdateKeyDescriptionRequest(key_id=key_id, key_description=description)
        response: UpdateKeyDescriptionResponse = self.keys.UpdateKeyDescription(request)
        return response.key_info

    def schedule_deletion(self, key_id: str, days: int) -> ScheduleKeyDeletionResponse:
        """Destroy the key 7 to 1096 days from now, unless cancelled before."""
        request = deletion_pb2.ScheduleKeyDeletionRequest(key_id=key_id, pending_days=days)
        response: ScheduleKeyDeletionResponse = self.deletion.ScheduleKeyDeletion(request)
        return response

    def cancel_deletion(self, key_id: str) -> CancelKeyDeletionResponse:
        """Take a scheduled deletion back; the key is DISABLED afterwards."""
        request = deletion_pb2.CancelKeyDeletionRequest(key_id=key_id)
        response: CancelKeyDeletionResponse = self.deletion.CancelKeyDeletion(request)
        return response

    # Data

    def encrypt(self, key_id: str, data: bytes, aad: bytes = b"", *, algorithm: str = "") -> bytes:
        """Encrypt 1 to 4096 bytes, bound to 0 to 128 bytes of additional authenticated data.

        With an RSA key `algorithm` is RSAES_OAEP_SHA_256: up to 446 bytes, bound to nothing.
        """
        request = crypto_pb2.EncryptDataRequest(
            key_id=key_id,
            plain_text=data,
            additional_authenticated_data=aad,
            encryption_algorithm=f"ENCRYPTION_ALGORITHM_{algorithm}" if algorithm else None,
        )
        response: crypto_pb2.EncryptDataResponse = self.crypto.EncryptData(request)
        return response.cipher_text

    def decrypt(self, blob: bytes, aad: bytes = b"", key_id: str = "", *, algorithm: str = "") -> bytes:
        """Decrypt what encrypt made; refused when it was under another key than `key_id`, if one is named.

        An RSA key has to be named, as well as its `algorithm`.
        """
        request = crypto_pb2.DecryptDataRequest(
            key_id=key_id,
            cipher_text=blob,
            additional_authenticated_data=aad,
            encryption_algorithm=f"ENCRYPTION_ALGORITHM_{algorithm}" if algorithm else None,
        )
        response: crypto_pb2.DecryptDataResponse = self.crypto.DecryptData(request)
        return response.plain_text

    def create_data_key(self, key_id: str, bits: int = 256, aad: bytes = b"") -> tuple[bytes, bytes]:
        """(plaintext, wrapped) of a new data key of 8 to 8192 bits; the service keeps neither."""
        request = datakeys_pb2.CreateDataKeyRequest(
            key_id=key_id, datakey_length=bits, additional_authenticated_data=aad
        )
        response: datakeys_pb2.CreateDataKeyResponse = self.data_keys.CreateDataKey(request)
        return response.plain_text, response.cipher_text

    def encrypt_data_key(self, key_id: str, dek: bytes, aad: bytes = b"") -> bytes:
        """Wrap a data key of your own, 1 to 1024 bytes."""
        request = datakeys_pb2.EncryptDataKeyRequest(
            key_id=key_id,
            plain_text=dek + hashlib.sha256(dek).digest(),
            datakey_plain_length=len(dek),
            additional_authenticated_data=aad,
        )
        response: datakeys_pb2.EncryptDataKeyResponse = self.data_keys.EncryptDataKey(request)
        return response.cipher_text

    def decrypt_data_key(self, key_id: str, wrapped: bytes, aad: bytes = b"") -> bytes:
        """The data key that create_data_key or encrypt_data_key wrapped."""
        request = datakeys_pb2.DecryptDataKeyRequest(
            key_id=key_id,
            cipher_text=wrapped,
            datakey_cipher_length=len(wrapped),
            additional_authenticated_data=aad,
        )
        response: datakeys_pb2.DecryptDataKeyResponse = self.data_keys.DecryptDataKey(request)
        return response.data_key

    def random(self, size: int) -> bytes:
        """`size` random bytes from the HSM's generator, by a call for each 1024."""
        parts = []
        for start in range(0, size, _LARGEST_RANDOM_BYTES):
            bits = 8 * min(_LARGEST_RANDOM_BYTES, size - start)
            response: crypto_pb2.GenRandomResponse = self.crypto.GenRandom(
                crypto_pb2.GenRandomRequest(random_data_length=bits)
            )
            parts.append(response.random_data)
        return b"".join(parts)

    # Signatures and MACs

    def sign(self, key_id: str, algorithm: str, message: bytes, *, digest: bool = False) -> bytes:
        """Sign 1 to 4096 bytes, or with `digest` the message whose digest they are.

        `algorithm` is a DEW signing_algorithm; ValueError for one that is not offered.
        """
        request = signing_pb2.SignRequest(
            key_id=key_id,
            message=message,
            signing_algorithm=f"SIGNING_ALGORITHM_{algorithm}",
            message_type=_message_type(digest=digest),
        )
        response: signing_pb2.SignResponse = self.signing.Sign(request)
        return response.signature

    def verify(
        self, key_id: str, algorithm: str, message: bytes, signature: bytes, *, digest: bool = False
    ) -> bool:
        """Whether it is the key's signature of these 1 to 4096 bytes, or of the message with this digest."""
        request = signing_pb2.VerifyRequest(
            key_id=key_id,
            message=message,
            signature=signature,
            signing_algorithm=f"SIGNING_ALGORITHM_{algorithm}",
            message_type=_message_type(digest=digest),
        )
        response: signing_pb2.VerifyResponse = self.signing.Verify(request)
        return response.signature_valid

    def public_key(self, key_id: str) -> str:
        """The public key of a pair as PEM."""
        request = signing_pb2.GetPublicKeyRequest(key_id=key_id)
        response: signing_pb2.GetPublicKeyResponse = self.signing.GetPublicKey(request)
        return response.public_key

    def mac(self, key_id: str, algorithm: str, message: bytes) -> bytes:
        """The HMAC of 1 to 4096 bytes by an HMAC key; `algorithm` is a DEW mac_algorithm."""
        request = macs_pb2.GenerateMacRequest(
            key_id=key_id, message=message, mac_algorithm=f"MAC_ALGORITHM_{algorithm}"
        )
        response: macs_pb2.GenerateMacResponse = self.macs.GenerateMac(request)
        return response.mac

    def verify_mac(self, key_id: str, algorithm: str, message: bytes, mac: bytes) -> bool:
        """Whether it is the key's HMAC of these bytes."""
        request = macs_pb2.VerifyMacRequest(
            key_id=key_id, message=message, mac=mac, mac_algorithm=f"MAC_ALGORITHM_{algorithm}"
        )
        response: macs_pb2.VerifyMacResponse = self.macs.VerifyMac(request)
        return response.mac_valid

    # The service

    def status(self) -> service_pb2.GetStatusResponse:
        """State of the worker that answers: token, capabilities, store."""
        response: service_pb2.GetStatusResponse = self.service.GetStatus(service_pb2.GetStatusRequest())
        return response


def _message_type(*, digest: bool) -> MessageType:
    return signing_pb2.MESSAGE_TYPE_DIGEST if digest else signing_pb2.MESSAGE_TYPE_RAW
