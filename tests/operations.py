"""Every operation of the official SDK's client, and a right call of each: what is held of all, is held by it.

Who adds an operation to hsmd adds its row to RIGHT; tests/test_every_operation.py fails until then. The SDK
calls it, and bad input of every kind is made of it (tests/test_bad_input_everywhere.py).
"""

import hashlib
import http.client
import inspect
import json
import re
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import huaweicloudsdkkms.v2 as kms

from hsmd.client import ApiError, Client
from hsmd.descriptors import services
from hsmd.gateway.routes import Match
from hsmd.gateway.transcoder import Route, build, query_pairs
from tests import keyspaces, vaults, wrapping
from tests.calls import fresh
from tests.specs import Keys
from tests.stand import CLUSTERS, NOWHERE, Answer, Stand, b64

SOMEBODY = "0123456789abcdef" * 2
_TREE, _ROUTES = build(services())


@dataclass(frozen=True)
class World:
    """What right calls are made of. With `own` every key is a new one, so that its state may be changed.

    `there` is another region that answers. The peer of the stand that tests share does not: calls for it are
    right and fail.
    """

    stand: Stand
    client: Client
    keys: Keys
    folder: Path
    own: bool = False
    there: Stand | None = None

    def key(self, spec: str = "AES_256", usage: str = "") -> str:
        if self.own:
            return self.client.create_key(fresh("own"), spec=spec, usage=usage)
        return self.keys(spec, usage)

    def another(self) -> str:
        """A key that nobody else has."""
        return self.client.create_key(fresh("another"))

    def external(self, spec: str = "AES_256") -> str:
        return self.client.create_key(fresh("external"), spec=spec, origin="external")

    def alone(self) -> "World":
        return replace(self, own=True)

    def rest(self, operation: str, fields: Mapping[str, object]) -> Any:
        """What an operation answers that has to come before the one in question."""
        answer = self.wire.call(OPERATIONS[operation], dict(fields))
        assert answer.status in (200, 201, 204), answer.raw
        return answer.json if answer.raw else None

    @cached_property
    def wire(self) -> "Wire":
        return Wire(self.stand)


# Operations as the SDK has them


@dataclass(frozen=True)
class Operation:
    """One operation: `template` is its path; `variables`, `query` and `body` are names of its fields in JSON.

    `body` is None where there is none.
    """

    name: str
    verb: str
    template: str
    variables: tuple[str, ...]
    query: tuple[str, ...]
    body: type | None
    request: type

    @property
    def route(self) -> Route | None:
        """Where hsmd serves it; None: nowhere."""
        found = _TREE.find(self.verb, self.template.replace("{", "x").replace("}", "x"))
        return found.target if isinstance(found, Match) else None

    @property
    def body_fields(self) -> tuple[str, ...]:
        return tuple(self.body.attribute_map.values()) if self.body else ()  # type: ignore[attr-defined]  # each model has it

    def path(self, project: str, fields: Mapping[str, object]) -> str:
        """Path and query of a call with these fields."""
        path = self.template.replace("{project_id}", project)
        for name in self.variables:
            path = path.replace("{" + name + "}", quote(str(fields[name]), safe=""))
        query = {name: fields[name] for name in self.query if name in fields}
        return f"{path}?{urlencode(query)}" if query else path

    def payload(self, fields: Mapping[str, object]) -> dict[str, object] | None:
        """The body of a call with these fields; what is no part of the path or the query is part of it."""
        if self.body is None:
            return None
        elsewhere = {*self.variables, *self.query} - set(self.body_fields)
        return {name: value for name, value in fields.items() if name not in elsewhere}

    def message(self, project: str, fields: Mapping[str, object]) -> tuple[str, bytes]:
        """The gRPC method, and its request as the gateway makes it. Raises Error as the gateway does."""
        path, _, query = self.path(project, fields).partition("?")
        found = _TREE.find(self.verb, path)
        assert isinstance(found, Match)
        body = json.dumps(self.payload(fields)).encode() if self.body else b""
        request = found.target.request(found.variables, query_pairs(query.encode()), {}, body)
        return found.target.call.removeprefix("/hsmd.v1."), request

    def sdk_request(self, fields: Mapping[str, object]) -> Any:
        """The same as the SDK's own request object."""
        tree: dict[str, object] = {
            name: fields[name] for name in (*self.variables, *self.query) if name in fields
        }
        if self.body is not None:
            tree["body"] = self.payload(fields)
        return _model(self.request.__name__, tree)


def is_served(verb: str, path: str) -> bool:
    """Whether there is anything at this verb and path."""
    return isinstance(_TREE.find(verb, path), Match)


def _model(kind: str, value: Any) -> Any:
    """The SDK's object of a JSON value."""
    if inner := re.fullmatch(r"list\[(\w+)\]", kind):
        return [_model(inner[1], each) for each in value]
    model = getattr(kms, kind, None)
    if model is None:
        return value
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    made = {names[name]: _model(model.openapi_types[names[name]], each) for name, each in value.items()}
    return model(**made)


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


@cache
def _all() -> dict[str, Operation]:
    found = {}
    for name, method in inspect.getmembers(kms.KmsClient, inspect.isfunction):
        if name.startswith("_") or f"{name}_invoker" not in kms.KmsClient.__dict__:
            continue
        assert list(inspect.signature(method).parameters) == ["self", "request"]
        request = getattr(kms, f"{_camel(name)}Request")
        http_info = getattr(kms.KmsClient, f"_{name}_http_info")(request())
        kind = request.openapi_types.get("body")
        query = {each for each, _ in http_info["query_params"]}
        names = set(request.attribute_map.values()) - {"body"}
        found[name] = Operation(
            name=name,
            verb=http_info["method"],
            template=http_info["resource_path"],
            variables=tuple(sorted(each for each in names if "{" + each + "}" in http_info["resource_path"])),
            query=tuple(sorted(names & query)),
            body=getattr(kms, kind) if kind else None,
            request=request,
        )
    return found


OPERATIONS: dict[str, Operation] = _all()


# Over REST


_IDLE_SECONDS = 2.0  # less than the gateway waits for the next request before it hangs up


class Wire:
    """One connection to the gateway, kept open, for tests of thousands of calls."""

    def __init__(
        self, stand: Stand, token: str | None = None, project: str = "", *, source: str = "127.0.0.1"
    ) -> None:
        self._token = stand.token() if token is None else token
        self._project = project or stand.dev.project_id
        self._used = time.monotonic()
        context = ssl.create_default_context(cafile=str(stand.dev.ca))
        self._connection = http.client.HTTPSConnection(
            stand.dev.rest.removeprefix("https://"), timeout=60, context=context, source_address=(source, 0)
        )

    def call(self, operation: Operation, fields: Mapping[str, object]) -> Answer:
        """A call of the operation with these fields."""
        payload = operation.payload(fields)
        body = None if payload is None else json.dumps(payload).encode()
        return self.send(operation.verb, operation.path(self._project, fields), body)

    def send(self, verb: str, path: str, body: bytes | None) -> Answer:
        if time.monotonic() - self._used > _IDLE_SECONDS:
            self._connection.close()  # the next request opens it again
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["X-Auth-Token"] = self._token
        try:
            self._connection.request(verb, path, body, headers)
            response = self._connection.getresponse()
            answer = Answer(response.status, response.headers, response.read())
            self._used = time.monotonic()
        except (http.client.HTTPException, ConnectionError):
            self._connection.close()
            raise
        return answer


# A right call of each

Fields = dict[str, object]
Right = Callable[[World], Fields]
DEK = bytes(range(32))


def _grant(world: World, **fields: object) -> Fields:
    own = {
        "key_id": world.key(),
        "grantee_principal": SOMEBODY,
        "grantee_principal_type": "user",
        "operations": ["encrypt-data", "describe-key"],
        "name": "right",
        "retiring_principal": world.stand.dev.user_id,
    }
    return {**own, **fields}


def _given(world: World) -> Fields:
    """A grant that there is."""
    key = world.key()
    made = world.rest("create_grant", _grant(world, key_id=key))
    return {"key_id": key, "grant_id": made["grant_id"]}


def _alias(world: World, key: str) -> str:
    alias = f"alias/{fresh()}"
    world.rest("create_alias", {"key_id": key, "alias": alias})
    return alias


def _aliased(world: World) -> Fields:
    key = world.key()
    return {"key_id": key, "aliases": [_alias(world, key)]}


def _rotated(world: World, **fields: object) -> Fields:
    key = world.another()
    world.rest("enable_key_rotation", {"key_id": key})
    world.rest("rotate_on_demand", {"key_id": key})
    return {"key_id": key, **fields}


def _tagged(world: World, **fields: object) -> Fields:
    key = world.another()
    world.rest("create_kms_tag", {"key_id": key, "tag": {"key": "colour", "value": "blue"}})
    return {"key_id": key, **fields}


def _data_key(world: World, **fields: object) -> Fields:
    key = world.key()
    made = world.rest("create_datakey", {"key_id": key, "datakey_length": "256"})
    return {"key_id": key, "cipher_text": made["cipher_text"], "datakey_cipher_length": "32", **fields}


def _shared(world: World) -> Fields:
    peer = wrapping.openssl("pkey", "-pubout", "-outform", "DER", given=wrapping.private_key("EC_P256"))
    key = world.key("EC_P256", "KEY_AGREEMENT")
    return {"key_id": key, "key_agreement_algorithm": "ECDH", "public_key": b64(peer)}


def _material(world: World) -> Fields:
    made = wrapping.request(world.folder, wrapping.parameters(world.client, world.external()), DEK)
    return {
        "key_id": made.key_id,
        "import_token": b64(made.import_token),
        "encrypted_key_material": b64(made.encrypted_key_material),
    }


def _imported(world: World) -> Fields:
    fields = _material(world)
    world.rest("import_key_material", fields)
    return {"key_id": fields["key_id"]}


def _disabled(world: World) -> Fields:
    key = world.another()
    world.client.disable(key)
    return {"key_id": key}


def _leaving(world: World) -> Fields:
    key = world.another()
    world.client.schedule_deletion(key, 7)
    return {"key_id": key}


def _re_encrypted(world: World) -> Fields:
    source = world.another()
    return {
        "source_key_id": source,
        "source_encryption_algorithm": "SYMMETRIC_DEFAULT",
        "destination_key_id": world.key(),
        "destination_encryption_algorithm": "SYMMETRIC_DEFAULT",
        "cipher_text": b64(world.client.encrypt(source, b"text")),
    }


def _encrypted(world: World) -> Fields:
    key = world.key()
    return {"key_id": key, "cipher_text": b64(world.client.encrypt(key, b"text"))}


def _to_sign(world: World) -> Fields:
    return {
        "key_id": world.key("EC_P256"),
        "message": b64(b"text"),
        "message_type": "RAW",
        "signing_algorithm": "ECDSA_SHA_256",
    }


def _signed(world: World) -> Fields:
    fields = _to_sign(world)
    return {**fields, "signature": world.rest("sign", fields)["signature"]}


def _to_authenticate(world: World) -> Fields:
    return {"key_id": world.key("HMAC_256"), "mac_algorithm": "HMAC_SHA_256", "message": b64(b"text")}


def _authenticated(world: World) -> Fields:
    fields = _to_authenticate(world)
    return {**fields, "mac": world.rest("generate_mac", fields)["mac"]}


def _point(world: World) -> Fields:
    return {"access_point_id": keyspaces.create_point(world.client)}


def _disabled_point(world: World) -> Fields:
    fields = _point(world)
    world.rest("disable_access_point", fields)
    return fields


def _new_policy(world: World) -> Fields:
    space = keyspaces.keyspace()
    point = keyspaces.create_point(world.client, space)
    period = {"start_time": "2020-01-01T00:00:00Z", "end_time": "2040-01-01T00:00:00Z"}
    text = keyspaces.terms(point, validityPeriod=period)
    return {"keyspace_id": space, "policy_name": fresh(), "policy": text}


def _policy(world: World) -> Fields:
    return {"policy_id": world.rest("create_key_policy", _new_policy(world))["policy_id"]}


def _changed_policy(world: World) -> Fields:
    fields = _new_policy(world)
    made = world.rest("create_key_policy", fields)
    return {"policy_id": made["policy_id"], "policy": fields["policy"]}


def _policies(world: World) -> Fields:
    fields = _new_policy(world)
    world.rest("create_key_policy", fields)
    return {"keyspace_id": fields["keyspace_id"]}


def _points(world: World) -> Fields:
    space = keyspaces.keyspace()
    keyspaces.create_point(world.client, space)
    return {"keyspace_id": space, "limit": "10"}


def _capsule(world: World) -> Fields:
    of = keyspaces.scene(world.client)
    document = of.point.document(of.capsule)
    return {
        "key_id": of.key,
        "datakey_capsule": b64(of.capsule),
        "attestation_document": {
            "custom_signature": b64(document.custom_signature),
            "custom_public_key": b64(document.custom_public_key),
            "expire_time": document.expire_time,
        },
    }


def _free(world: World, cluster: str) -> str:
    """A cluster of the stand's, without a keystore."""
    for each in vaults.listed(world.client):
        if vaults.show(world.client, each).cluster_id == cluster:
            vaults.delete(world.client, each)
    return cluster


def _vault(world: World, *, enabled: bool = True) -> Fields:
    """The keystore that all share, in that state."""
    clusters = {vaults.show(world.client, each).cluster_id: each for each in vaults.listed(world.client)}
    found = clusters.get(CLUSTERS[0]) or vaults.make(world.client, CLUSTERS[0])
    with suppress(ApiError):  # it is in that state already
        (vaults.enable if enabled else vaults.disable)(world.client, found)
    return {"keystore_id": found}


def _replicated(world: World) -> Fields:
    there = world.there.settings["HSMD__REGION"] if world.there else NOWHERE
    return {
        "key_id": world.another(),
        "replica_region": there,
        "replica_project_id": (world.there or world.stand).dev.project_id,
        "key_alias": fresh(),
        "key_description": "there",
        "enterprise_project_id": "0",
        "tags": [{"key": "colour", "value": "blue"}],
    }


def _moved(world: World) -> Fields:
    fields = _replicated(world)
    if world.there:
        world.rest("replicate_key", fields)
    return {"key_id": fields["key_id"], "primary_region": fields["replica_region"]}


RIGHT: dict[str, Right] = {
    "associate_alias": lambda world: {
        "alias": _alias(world, world.another()),
        "target_key_id": world.key(),
    },
    "batch_create_kms_tags": lambda world: {
        "key_id": world.another(),
        "tags": [{"key": "colour", "value": "blue"}, {"key": "shape", "value": ""}],
        "action": "create",
    },
    "cancel_grant": _given,
    "cancel_key_deletion": _leaving,
    "cancel_self_grant": _given,
    "create_access_point": lambda _world: {
        "keyspace_id": keyspaces.keyspace(),
        "access_point_name": fresh(),
        "type": 3,
    },
    "create_alias": lambda world: {"key_id": world.another(), "alias": f"alias/{fresh()}"},
    "create_datakey": lambda world: {"key_id": world.key(), "key_spec": "AES_256"},
    "create_datakey_capsule": lambda world: {
        "key_id": world.key(),
        "datakey_length": "256",
        "policy_id": _policy(world)["policy_id"],
    },
    "create_datakey_without_plaintext": lambda world: {"key_id": world.key(), "key_spec": "AES_256"},
    "create_ec_datakey_pair": lambda world: {
        "key_id": world.key(),
        "key_spec": "ECC_NIST_P256",
        "with_plain_text": True,
    },
    "create_grant": _grant,
    "create_key": lambda _world: {"key_alias": fresh(), "key_spec": "AES_256"},
    "create_key_policy": _new_policy,
    "create_key_store": lambda world: {
        "keystore_alias": fresh(),
        "hsm_cluster_id": _free(world, CLUSTERS[1]),
        "hsm_ca_cert": "MIIB",
        "cluster_id": CLUSTERS[1],
        "keystore_type": "DHSM",
    },
    "create_kms_tag": lambda world: {"key_id": world.another(), "tag": {"key": "colour", "value": "blue"}},
    "create_parameters_for_import": lambda world: {
        "key_id": world.external(),
        "wrapping_algorithm": "RSAES_OAEP_SHA_256",
    },
    "create_pin": lambda _world: {"pin_type": "CipherText", "keystore_id": "1"},
    "create_random": lambda _world: {"random_data_length": "64"},
    "create_rsa_datakey_pair": lambda world: {
        "key_id": world.key(),
        "key_spec": "RSA_2048",
        "with_plain_text": True,
    },
    "decrypt_data": _encrypted,
    "decrypt_datakey": _data_key,
    "decrypt_datakey_capsule": _capsule,
    "delete_access_point": _point,
    "delete_alias": _aliased,
    "delete_imported_key_material": _imported,
    "delete_key": lambda world: {"key_id": world.another(), "pending_days": "7"},
    "delete_key_policy": _policy,
    "delete_key_store": lambda world: {"keystore_id": vaults.make(world.client, _free(world, CLUSTERS[2]))},
    "delete_tag": lambda world: _tagged(world, key="colour"),
    "derive_shared_secret": _shared,
    "disable_access_point": _point,
    "disable_key": lambda world: {"key_id": world.another()},
    "disable_key_rotation": _rotated,
    "disable_key_store": _vault,
    "download_access_point_private_key": _point,
    "enable_access_point": _disabled_point,
    "enable_key": _disabled,
    "enable_key_rotation": lambda world: {"key_id": world.another()},
    "enable_key_store": lambda world: _vault(world, enabled=False),
    "encrypt_data": lambda world: {"key_id": world.key(), "plain_text": "text"},
    "encrypt_datakey": lambda world: {
        "key_id": world.key(),
        "plain_text": (DEK + hashlib.sha256(DEK).digest()).hex(),
        "datakey_plain_length": "32",
    },
    "generate_mac": _to_authenticate,
    "import_key_material": _material,
    "list_access_point": _points,
    "list_aliases": lambda world: {"key_id": _aliased(world)["key_id"]},
    "list_grants": lambda world: {"key_id": _given(world)["key_id"], "limit": "1000"},
    "list_key_detail": lambda world: {"key_id": world.key()},
    "list_key_policy": _policies,
    "list_keys": lambda _world: {"limit": "10"},
    "list_key_stores": lambda world: {"limit": "10", "offset": "0"} if _vault(world) else {},
    "list_kms_by_tags": lambda world: {
        "resource_instances": "resource_instances",
        "action": "filter",
        "limit": "10",
        "offset": "0",
        "tags": [{"key": "colour", "values": ["blue"]}] if _tagged(world) else [],
    },
    "list_kms_tags": lambda world: _tagged(world) and {},
    "list_retirable_grants": lambda world: {"limit": "1000"} if _given(world) else {},
    "list_support_regions": lambda _world: {"limit": 10, "offset": 0},
    "re_encrypt": _re_encrypted,
    "replicate_key": _replicated,
    "rotate_on_demand": lambda world: {"key_id": world.another()},
    "show_key_policy": _policy,
    "show_key_rotation_status": _rotated,
    "show_key_store": _vault,
    "show_kms_tags": _tagged,
    "show_public_key": lambda world: {"key_id": world.key("EC_P256")},
    "show_user_instances": lambda _world: {},
    "show_user_quotas": lambda _world: {},
    "show_version": lambda _world: {"version_id": "v1.0"},
    "show_versions": lambda _world: {},
    "sign": _to_sign,
    "update_key_alias": lambda world: {"key_id": world.another(), "key_alias": fresh()},
    "update_key_description": lambda world: {"key_id": world.key(), "key_description": "described"},
    "update_key_policy": _changed_policy,
    "update_key_rotation_interval": lambda world: _rotated(world, rotation_interval=90),
    "update_primary_region": _moved,
    "validate_signature": _signed,
    "verify_mac": _authenticated,
}
SERVED = sorted(name for name, operation in OPERATIONS.items() if operation.route)
