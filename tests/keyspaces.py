"""Access points, policies and capsules for tests, and attestations as a user makes them."""

import hashlib
import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from hsmd.client import Client
from hsmd.pb.v1 import access_points_pb2, capsules_pb2, key_policies_pb2
from tests.calls import fresh

CUSTOM = access_points_pb2.ACCESS_POINT_TYPE_CUSTOM


def keyspace() -> str:
    """A keyspace that no other test has."""
    return str(uuid.uuid4())


def moment(seconds: float) -> str:
    """So many seconds from now."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def terms(*points: str, **more: Any) -> str:
    """A policy's JSON text."""
    return json.dumps({"version": "1.0", "allowedAccessPoint": list(points), **more})


def statement(expires: str, capsule: bytes, public_key: str = "") -> bytes:
    """As docs/trusted-keyspaces.md says, not as the product has it."""
    lines = [
        b"hsmd capsule attestation 1",
        expires.encode(),
        hashlib.sha256(capsule).hexdigest().encode(),
        hashlib.sha256(public_key.encode()).hexdigest().encode(),
    ]
    return b"\n".join(lines) + b"\n"


@dataclass(frozen=True)
class Point:
    """A Custom access point and its private key."""

    id: str
    keyspace: str
    key: ec.EllipticCurvePrivateKey

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))

    def document(
        self, capsule: bytes, public_key: str = "", seconds: float = 300, **changes: Any
    ) -> capsules_pb2.AttestationDocument:
        """An attestation for the capsule."""
        expires = moment(seconds)
        values: dict[str, Any] = {
            "custom_signature": self.sign(statement(expires, capsule, public_key)),
            "custom_public_key": self.public,
            "expire_time": expires,
        }
        return capsules_pb2.AttestationDocument(**{**values, **changes})


def create_point(client: Client, space: str = "", **more: Any) -> str:
    """The id of a new access point."""
    request = access_points_pb2.CreateAccessPointRequest(
        **{"keyspace_id": space or keyspace(), "access_point_name": fresh(), "type": CUSTOM, **more}
    )
    return str(client.access_points.CreateAccessPoint(request).access_point_id)


def private_key(client: Client, point: str) -> bytes:
    """Its private key, DER."""
    request = access_points_pb2.GetAccessPointPrivateKeyRequest(access_point_id=point)
    return bytes(client.access_points.GetAccessPointPrivateKey(request).private_key)


def custom_point(client: Client, space: str = "") -> Point:
    """A new Custom access point."""
    space = space or keyspace()
    point = create_point(client, space)
    key = load_der_private_key(private_key(client, point), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Point(point, space, key)


def create_policy(client: Client, space: str, policy: str, **more: Any) -> str:
    """The id of a new policy."""
    request = key_policies_pb2.CreateKeyPolicyRequest(
        **{"keyspace_id": space, "policy_name": fresh(), "policy": policy, **more}
    )
    return str(client.key_policies.CreateKeyPolicy(request).policy_id)


def update_policy(client: Client, policy: str, text: str) -> None:
    """Other terms."""
    request = key_policies_pb2.UpdateKeyPolicyRequest(policy_id=policy, policy=text)
    client.key_policies.UpdateKeyPolicy(request)


def create_capsule(client: Client, key: str, **more: Any) -> capsules_pb2.CreateDataKeyCapsuleResponse:
    """A data key and its capsule."""
    request = capsules_pb2.CreateDataKeyCapsuleRequest(**{"key_id": key, "datakey_length": 256, **more})
    response: capsules_pb2.CreateDataKeyCapsuleResponse = client.capsules.CreateDataKeyCapsule(request)
    return response


def decrypt(
    client: Client, key: str, capsule: bytes, document: capsules_pb2.AttestationDocument, public_key: str = ""
) -> capsules_pb2.DecryptDataKeyCapsuleResponse:
    """What is in the capsule."""
    request = capsules_pb2.DecryptDataKeyCapsuleRequest(
        key_id=key, datakey_capsule=capsule, attestation_document=document, public_key=public_key
    )
    response: capsules_pb2.DecryptDataKeyCapsuleResponse = client.capsules.DecryptDataKeyCapsule(request)
    return response


@dataclass(frozen=True)
class Scene:
    """A key, an access point, a policy that allows it, and a capsule bound to the policy."""

    key: str
    point: Point
    policy: str
    plain: bytes
    capsule: bytes


def scene(client: Client) -> Scene:
    """A new one."""
    key, point = client.create_key(fresh()), custom_point(client)
    policy = create_policy(client, point.keyspace, terms(point.id))
    made = create_capsule(client, key, policy_id=policy)
    return Scene(key, point, policy, made.datakey, made.datakey_capsule)
