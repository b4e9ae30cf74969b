"""Nothing secret is where it may not be: canaries through every method, then a look at all that stays."""

import base64
import contextlib
import hashlib
import os
import re
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import huaweicloudsdkkms.v2 as kms
import pytest
from google.protobuf.message_factory import GetMessageClass
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.exceptions.exceptions import SdkException

from hsmd.client import ApiError, Client
from hsmd.descriptors import TIMESTAMP, is_map, json_name, method_options, services
from hsmd.gateway.transcoder import Route, build
from hsmd.pb.v1 import datakeys_pb2, pins_pb2
from tests import keyspaces
from tests.calls import fresh
from tests.stand import Answer, Stand, Tenant, b64, children_of, standing
from tests.test_token_away import channel

# Files that hold credentials by design: a development HSM's own, and the token's PINs.
_BY_DESIGN = re.compile(r"(/credentials\.json|/env|/pin|/so-pin|/tls/[^/]+\.key)$")
# What a record names: ids, of access keys too, and the names in certificates.
_NAMED = re.compile(r".*(\.id|_id|\.access_key|CertificateMappingRequest(\.Mapping)?\.name) in audit/.*")


class Canaries:
    """Secrets by name, and every answer that was a refusal."""

    def __init__(self) -> None:
        self.secrets: dict[str, bytes] = {}
        self.refusals: list[bytes] = []

    def text(self, name: str) -> str:
        """A new secret text."""
        value = f"canary-{secrets.token_hex(12)}"
        self.secrets[name] = value.encode()
        return value

    def keep(self, name: str, value: bytes | str) -> None:
        """A secret that was made elsewhere."""
        self.secrets[name] = value.encode() if isinstance(value, str) else value

    def answered(self, answer: Answer) -> Answer:
        """Refusals are looked at afterwards; what succeeds may well hold the caller's own data."""
        if answer.status >= 400:
            self.refusals.append(answer.raw)
        return answer

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """A call that is refused; its text is looked at afterwards."""
        with pytest.raises((ApiError, SdkException)) as caught:
            yield
        self.refusals += [str(caught.value).encode(), repr(caught.value).encode()]

    def spellings(self) -> Iterator[tuple[str, bytes]]:
        """Each secret raw, in hex and in base64 at each of its three offsets."""
        for name, secret in self.secrets.items():
            assert len(secret) >= 16, name
            yield name, secret
            yield f"{name} in hex", secret.hex().encode()
            yield f"{name} in upper hex", secret.hex().upper().encode()
            for offset in range(3):
                cut = base64.b64encode(bytes(offset) + secret)[4:-4]
                yield f"{name} in base64 at {offset}", cut
                yield f"{name} in URL base64 at {offset}", cut.replace(b"+", b"-").replace(b"/", b"_")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stand, Canaries]]:
    """A stand of its own, with every log level on, after everything has passed through it.

    The daemon logs lines for people, the gateway JSON.
    """
    canaries = Canaries()
    folder = tmp_path_factory.mktemp("secrets")
    with standing(folder, {"HSMD__LOG__LEVEL": "DEBUG"}, gateway=False) as stand:
        stand.settings["HSMD__LOG__JSON"] = "true"
        stand.start_gateway()
        tenant = stand.add_tenant("tenant")
        _credentials(stand, tenant, canaries)
        with stand.client() as client:
            _grpc(client, canaries)
            _keyspaces(client, canaries)
        _rest(stand, canaries)
        _sdk(stand, canaries)
        yield stand, canaries


# Every method, with a canary wherever there is room for one


def _planted(message: Any, canaries: Canaries, spared: str, depth: int = 3) -> None:
    """Put a canary into every field of the message that takes one, but `spared`."""
    for field in message.DESCRIPTOR.fields:
        if field.name == spared or is_map(field):
            continue
        name = f"{message.DESCRIPTOR.full_name}.{field.name}"
        if field.message_type is not None:
            if depth and field.message_type.full_name != TIMESTAMP:
                inner = getattr(message, field.name)
                _planted(inner.add() if field.is_repeated else inner, canaries, "", depth - 1)
        elif field.type in (field.TYPE_STRING, field.TYPE_BYTES):
            text = canaries.text(name)
            value: str | bytes = text.encode() if field.type == field.TYPE_BYTES else text
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)


def _answered(call: Any, request: bytes, metadata: tuple[tuple[str, str], ...]) -> str:
    try:
        call(request, timeout=60, metadata=metadata)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_no_canary_of_any_method_in_logs_and_audit(used: tuple[Stand, Canaries]) -> None:
    """The audit log names the thing that a call is about, by its id; nothing else stands anywhere."""
    stand, _ = used
    canaries = Canaries()
    answers: dict[str, str] = {}
    with channel(stand) as one:
        for method in (each for service in services() for each in service.methods):
            request = GetMessageClass(method.input_type)()
            _planted(request, canaries, method_options(method).resource)
            name = f"/{method.containing_service.full_name}/{method.name}"
            call = one.unary_unary(name, request_serializer=None, response_deserializer=None)
            evidence = (("hsmd-credential", canaries.text(f"metadata of {name}")),)
            answers[name] = _answered(call, request.SerializeToString(), ())
            assert _answered(call, request.SerializeToString(), evidence) != "INTERNAL"
    assert len(answers) > 150
    assert len(canaries.secrets) > 300
    assert not {"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"} & set(answers.values())
    assert len(set(answers.values())) > 3  # they get past the first look, each its own way
    token = stand.token()
    for route in build(services())[1]:
        path = re.sub(r"\{\w+\}", stand.dev.project_id, route.template)
        body = {json_name(field): canaries.text(f"{route.template} {field.name}") for field in _fields(route)}
        answer = stand.rest(route.verb, path, body, token=token)
        assert answer.status != 500, route.template
    logged = [
        (name, content) for name, content in _files(stand) if name.startswith("audit/") or ".log" in name
    ]
    assert {"serve.log", "gateway.log"} <= {name for name, _ in logged}
    assert [each for each in _found(canaries, iter(logged)) if not _NAMED.fullmatch(each)] == []


def _fields(route: Route) -> list[Any]:
    spared = method_options(route.method).resource
    return [field for field in route.method.input_type.fields if field.name != spared]


def _credentials(stand: Stand, tenant: Tenant, canaries: Canaries) -> None:
    canaries.keep("password", stand.dev.password)
    canaries.keep("secret key", stand.dev.secret_key)
    canaries.keep("tenant's password", tenant.password)
    canaries.keep("tenant's secret key", tenant.secret_key)
    canaries.keep("PIN", (stand.dev.data / "pin").read_text())
    canaries.keep("SO PIN", (stand.dev.data / "so-pin").read_text())
    canaries.keep("token", stand.token())
    canaries.keep("tenant's token", stand.token(tenant))


def _grpc(client: Client, canaries: Canaries) -> None:
    key_id, other = client.create_key(fresh()), client.create_key(fresh())
    data, aad = canaries.text("data").encode(), canaries.text("aad").encode()
    blob = client.encrypt(key_id, data, aad)
    assert client.decrypt(blob, aad) == data
    dek, wrapped = client.create_data_key(key_id, 256, aad)
    canaries.keep("DEK", dek)
    assert client.decrypt_data_key(key_id, wrapped, aad) == dek
    own = secrets.token_bytes(40)
    canaries.keep("own DEK", own)
    client.encrypt_data_key(key_id, own, aad)
    canaries.keep("random", client.random(64))
    wrong = canaries.text("wrong aad").encode()
    refused: tuple[Callable[[], object], ...] = (
        lambda: client.decrypt(blob, wrong),
        lambda: client.decrypt(blob, aad, other),
        lambda: client.decrypt_data_key(key_id, wrapped, wrong),
        lambda: client.encrypt("alias/" + fresh(), data, aad),
        lambda: client.encrypt(key_id, data * 200, aad),
        lambda: client.encrypt(key_id, data, aad * 10),
        lambda: client.encrypt_data_key(key_id, own * 30),
        lambda: client.decrypt(data + bytes(160), aad),
    )
    for call in refused:
        with canaries.failing():
            call()
    client.disable(key_id)
    with canaries.failing():
        client.encrypt(key_id, data, aad)
    with canaries.failing():
        client.decrypt(blob, aad)


def _keyspaces(client: Client, canaries: Canaries) -> None:
    of = keyspaces.scene(client)
    private = of.point.key.private_numbers().private_value.to_bytes(32, "big")
    canaries.keep("private key of an access point", private)
    canaries.keep("data key of a capsule", of.plain)
    document = of.point.document(of.capsule)
    assert keyspaces.decrypt(client, of.key, of.capsule, document).datakey == of.plain
    wrong = of.point.document(of.capsule, custom_signature=of.point.sign(of.plain))
    for shown in (document, wrong, of.point.document(of.capsule, ecs_signature=canaries.text("evidence"))):
        with canaries.failing():
            keyspaces.decrypt(client, of.key, of.capsule, shown)
    secret_terms = canaries.text("terms that are none")
    with canaries.failing():
        keyspaces.create_policy(client, of.point.keyspace, secret_terms)
    for kind in (pins_pb2.PIN_TYPE_PLAIN_TEXT, pins_pb2.PIN_TYPE_CIPHER_TEXT):
        pin = client.pins.CreatePin(pins_pb2.CreatePinRequest(pin_type=kind, keystore_id="1")).pin
        canaries.keep(f"PIN {kind}", pin)
        name = "PlainText" if kind == pins_pb2.PIN_TYPE_PLAIN_TEXT else "CipherText"
        request = datakeys_pb2.CreateDataKeyRequest(key_id=of.key, pin=pin, pin_type=name)
        made = client.data_keys.CreateDataKey(request)
        canaries.keep(f"data key of {name}", made.plain_text)
        with canaries.failing():
            client.data_keys.CreateDataKey(
                datakeys_pb2.CreateDataKeyRequest(key_id=of.key, pin=pin[1:], pin_type="CipherText")
            )


def _rest(stand: Stand, canaries: Canaries) -> None:
    token, project = stand.token(), stand.dev.project_id
    canaries.keep("another token", token)
    key_id = stand.kms("create-key", {"key_alias": fresh()}, token=token).json["key_info"]["key_id"]
    text, aad = canaries.text("text"), canaries.text("AAD of REST")

    def call(operation: str, **body: object) -> Answer:
        return canaries.answered(stand.kms(operation, body, token=token))

    blob = call("encrypt-data", key_id=key_id, plain_text=text, additional_authenticated_data=aad).json[
        "cipher_text"
    ]
    assert (
        call("decrypt-data", cipher_text=blob, additional_authenticated_data=aad).json["plain_text"] == text
    )
    context = {canaries.text("context name"): canaries.text("context value")}
    call("encrypt-data", key_id=key_id, plain_text=text, encryption_context=context)
    made = call("create-datakey", key_id=key_id, datakey_length="512").json
    canaries.keep("REST's DEK", bytes.fromhex(made["plain_text"]))
    call("decrypt-datakey", key_id=key_id, cipher_text=made["cipher_text"], datakey_cipher_length="64")
    call("create-datakey-without-plaintext", key_id=key_id)
    own = secrets.token_bytes(32)
    canaries.keep("own DEK of REST", own)
    plain = (own + hashlib.sha256(own).digest()).hex()
    call("encrypt-datakey", key_id=key_id, plain_text=plain, datakey_plain_length="32")
    canaries.keep(
        "REST's random", bytes.fromhex(call("gen-random", random_data_length="512").json["random_data"])
    )
    pin = canaries.text("data key's PIN")
    before = len(canaries.refusals)
    for bad in (text, [text], {text: text}, {"a": [text]}):
        call("decrypt-data", cipher_text=blob, encryption_context=bad)
        call("encrypt-data", key_id=key_id, plain_text=[bad])
        call("encrypt-data", key_id=key_id, plain_text="x", additional_authenticated_data=[bad])
        call("encrypt-datakey", key_id=key_id, plain_text=bad, datakey_plain_length="32")
        call("create-datakey", key_id=key_id, pin=[bad])
    call("encrypt-datakey", key_id=key_id, plain_text=plain + "00", datakey_plain_length="32")
    call("encrypt-datakey", key_id=key_id, plain_text=plain[:-1] + "g", datakey_plain_length="32")
    call("encrypt-datakey", key_id=key_id, plain_text=plain, datakey_plain_length="31")
    call("create-datakey", key_id=key_id, pin=pin)
    call("create-datakey", key_id=key_id, pin=pin * 100)
    call("encrypt-data", key_id=key_id, plain_text=text + "\ud800")
    call("encrypt-data", key_id=key_id, plain_text=text, additional_authenticated_data=aad * 10)
    call("decrypt-data", cipher_text=blob, additional_authenticated_data=text)
    call("decrypt-data", cipher_text=b64(text.encode() * 8))
    assert len(canaries.refusals) - before == 29
    for raw in (
        f'{{"plain_text": "{text}" "x"}}',
        f'{{"plain_text": {text}}}',
        f'{{"{text}": "{aad}", "{text}": 1}}',
    ):
        canaries.answered(stand.kms("encrypt-data", raw.encode(), token=token))
    wrong = canaries.text("wrong password")
    for user in (
        {"name": "admin", "domain": {"name": "development"}, "password": wrong},
        {"name": "admin", "password": [wrong]},
        {"name": "admin", "password": wrong * 10},
        wrong,
        {"name": "admin", "password": stand.dev.password},
        {"password": stand.dev.password},
    ):
        identity = {"methods": ["password"], "password": {"user": user}}
        canaries.answered(stand.rest("POST", "/v3/auth/tokens", {"auth": {"identity": identity}}))
    canaries.answered(stand.rest("GET", "/v3/projects", token=token[:-4] + "AAAA"))
    canaries.answered(stand.rest("GET", f"/v1.0/{project}/kms/none", token=token))
    canaries.answered(stand.rest("GET", "/v3/projects", headers={"Authorization": "Bearer " + wrong}))


def _sdk(stand: Stand, canaries: Canaries) -> None:
    sdk = stand.sdk()
    text = canaries.text("text of the SDK")
    key_id = sdk.create_key(
        kms.CreateKeyRequest(body=kms.CreateKeyRequestBody(key_alias=fresh()))
    ).key_info.key_id
    encrypting = kms.EncryptDataRequestBody(key_id=key_id, plain_text=text)
    blob = sdk.encrypt_data(kms.EncryptDataRequest(body=encrypting)).cipher_text
    opened = sdk.decrypt_data(kms.DecryptDataRequest(body=kms.DecryptDataRequestBody(cipher_text=blob)))
    assert opened.plain_text == text
    with canaries.failing():
        body = kms.DecryptDataRequestBody(cipher_text=blob, additional_authenticated_data=text)
        sdk.decrypt_data(kms.DecryptDataRequest(body=body))
    wrong = BasicCredentials(stand.dev.access_key, canaries.text("wrong secret key"), stand.dev.project_id)
    client = kms.KmsClient.new_builder().with_http_config(sdk._config).with_credentials(wrong)
    with canaries.failing():
        client.with_endpoint(stand.dev.rest).build().list_keys(
            kms.ListKeysRequest(body=kms.ListKeysRequestBody())
        )


def _found(canaries: Canaries, places: Iterator[tuple[str, bytes]]) -> list[str]:
    spelled = list(canaries.spellings())
    return [
        f"{name} in {place}" for place, content in places for name, secret in spelled if secret in content
    ]


def _files(stand: Stand) -> Iterator[tuple[str, bytes]]:
    for path in sorted(stand.dev.data.rglob("*")):
        if path.is_file() and not _BY_DESIGN.search(str(path)):
            yield str(path.relative_to(stand.dev.data)), path.read_bytes()


def test_the_search_finds_what_is_there(used: tuple[Stand, Canaries]) -> None:
    """In each spelling, wherever it stands; a search that never finds would prove nothing."""
    _, canaries = used
    secret = canaries.secrets["data"]
    for content in (
        secret,
        secret.hex().encode(),
        *(base64.b64encode(bytes(n) + secret + b"xyz") for n in range(9)),
    ):
        assert _found(canaries, iter([("here", b"noise " + content + b" noise")]))
    assert len(canaries.secrets) > 20
    assert len(canaries.refusals) > 50


def test_no_secret_in_store_logs_and_audit(used: tuple[Stand, Canaries]) -> None:
    stand, canaries = used
    names = {name for name, _ in _files(stand)}
    assert {"store/hsmd.db", "store/hsmd.db-wal", "serve.log", "gateway.log", "hsmd.toml"} <= names
    assert any(name.startswith("audit/") for name in names)
    assert any(name.startswith("token/") for name in names)
    assert _found(canaries, _files(stand)) == []


def test_no_secret_in_any_refusal(used: tuple[Stand, Canaries]) -> None:
    _, canaries = used
    assert _found(canaries, ((repr(text[:80]), text) for text in canaries.refusals)) == []


def test_no_secret_in_command_lines_and_environments(used: tuple[Stand, Canaries]) -> None:
    stand, canaries = used
    assert stand.daemon is not None
    assert stand.gateway is not None
    pids = [stand.daemon.process.pid, stand.gateway.process.pid, *stand.workers()]
    pids += children_of(stand.gateway.process.pid)

    def places() -> Iterator[tuple[str, bytes]]:
        for pid in pids:
            for name in ("cmdline", "environ"):
                yield f"{name} of {pid}", Path(f"/proc/{pid}/{name}").read_bytes()

    ours = {name: value.encode() for name, value in os.environ.items()}
    assert not any(secret in ours.values() for secret in canaries.secrets.values())
    assert _found(canaries, places()) == []


def test_no_private_key_of_the_hsm_in_the_store(used: tuple[Stand, Canaries]) -> None:
    """Key versions in the store are wrapped: 40 bytes for 32 (RFC 5649), all different."""
    stand, _ = used
    store = sqlite3.connect(f"file:{stand.dev.data}/store/hsmd.db?mode=ro", uri=True)
    try:
        wrapped = [row[0] for row in store.execute("SELECT wrapped FROM key_versions")]
    finally:
        store.close()
    assert len(wrapped) >= 4
    assert len(set(wrapped)) == len(wrapped)
    assert all(len(each) == 40 for each in wrapped)
