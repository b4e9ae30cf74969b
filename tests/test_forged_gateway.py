"""A gateway that was broken into has its own certificate and says what it likes: it gets nothing by that."""

import base64
import hashlib
import hmac
import secrets
import struct
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from hsmd.api.methods import methods_of
from hsmd.client import ApiError
from hsmd.client.errors import from_rpc
from hsmd.descriptors import services
from hsmd.pb.options.v1 import options_pb2
from hsmd.pb.v1 import keys_pb2
from tests.calls import fresh, record
from tests.stand import Stand, Tenant

Metadata = Sequence[tuple[str, str | bytes]]

_UNKNOWN = ("APIGW.0301", "KMS.0302")
_LIST = "/hsmd.v1.Keys/ListKeys"


@pytest.fixture(scope="module")
def gateway(stand: Stand) -> Iterator[grpc.Channel]:
    folder = stand.dev.ca.parent
    credentials = grpc.ssl_channel_credentials(
        stand.dev.ca.read_bytes(),
        (folder / "gateway-client.key").read_bytes(),
        (folder / "gateway-client.pem").read_bytes(),
    )
    with grpc.secure_channel(stand.dev.grpc, credentials) as one:
        yield one


def call(gateway: grpc.Channel, method: str, metadata: Metadata, request: bytes = b"") -> bytes:
    try:
        answer: bytes = gateway.unary_unary(method, None, None)(request, metadata=tuple(metadata), timeout=60)
    except grpc.RpcError as error:
        raise from_rpc(error, "") from error
    return answer


def refused(gateway: grpc.Channel, method: str, metadata: Metadata, request: bytes = b"") -> ApiError:
    """The refusal; nobody was made out."""
    with pytest.raises(ApiError) as caught:
        call(gateway, method, metadata, request)
    return caught.value


def closed_methods() -> list[str]:
    """Every method that asks who calls, but those that gateways call for themselves."""
    open_ones = {options_pb2.OPEN, options_pb2.Access.Value("WELCOME")}
    return [
        f"/{service.full_name}/{descriptor.name}"
        for service in services()
        for descriptor, method in methods_of(service)
        if method.access not in open_ones and not method.for_gateways
    ]


def claims_without_evidence(stand: Stand) -> list[Metadata]:
    user, project, domain = stand.dev.user_id, stand.dev.project_id, stand.dev.domain_id
    canonical = f"POST\n/v1.0/{project}/kms/list-keys/\n\nhost:x\n\nhost\n{'0' * 64}".encode()
    return [
        [],
        [("hsmd-source", "127.0.0.1")],
        [("hsmd-source", "local")],
        [("hsmd-project-id", project)],
        [("hsmd-user-id", user), ("hsmd-domain-id", domain), ("hsmd-project-id", project)],
        [("hsmd-caller", user), ("hsmd-identity", "certificate"), ("hsmd-roles", "KMS Administrator")],
        [("hsmd-kind", "system"), ("hsmd-principal", user), ("hsmd-assumed-by", user)],
        [("x509_common_name", "admin"), ("peer_uri", "admin"), ("peer-dns", "admin")],
        [("x-forwarded-client-cert", 'Subject="CN=admin"'), ("x-ssl-client-s-dn", "CN=admin")],
        [("x-auth-token", "any"), ("authorization", "Bearer any"), ("x-project-id", project)],
        [("hsmd-auth-token", "")],
        [("hsmd-auth-token", user)],
        [("hsmd-bearer", "a.b.c")],
        [("hsmd-access-key", stand.dev.access_key)],
        [("hsmd-access-key", stand.dev.access_key), ("hsmd-signature", "0" * 64)],
        [("hsmd-access-key", stand.dev.access_key), ("hsmd-canonical-request-bin", canonical)],
    ]


def test_no_method_answers_a_gateway_that_shows_nothing(stand: Stand, gateway: grpc.Channel) -> None:
    methods = closed_methods()
    assert len(methods) > 50
    claims = claims_without_evidence(stand)[:6]
    for number, method in enumerate(methods):
        error = refused(gateway, method, [*claims[number % len(claims)]])
        assert (error.code, error.status) == ("APIGW.0301", grpc.StatusCode.UNAUTHENTICATED), method


def test_no_claim_is_evidence(stand: Stand, gateway: grpc.Channel) -> None:
    request = keys_pb2.ListKeysRequest(project_id=stand.dev.project_id).SerializeToString()
    for number, claims in enumerate(claims_without_evidence(stand)):
        source = ("hsmd-source", f"203.0.113.{number}")
        own = claims if any(name == "hsmd-source" for name, _ in claims) else [*claims, source]
        error = refused(gateway, _LIST, own, request)
        assert error.code in _UNKNOWN, claims
        assert record(stand, error.request_id)["user_id"] == ""


def test_a_token_is_whole_or_none(stand: Stand, gateway: grpc.Channel) -> None:
    token = stand.token()
    raw = base64.urlsafe_b64decode(token)
    request = keys_pb2.ListKeysRequest(project_id=stand.dev.project_id).SerializeToString()
    forged = [raw[:-1], raw + b"\0", raw[: len(raw) - 32] + bytes(32), raw[: len(raw) - 32]]
    forged += [bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]) for at in range(0, len(raw), 7)]
    made_up = struct.pack(
        ">4s16s16sQQ16s",
        b"HTK\x01",
        bytes.fromhex(stand.dev.user_id),
        bytes.fromhex(stand.dev.project_id),
        0,
        2**62,
        bytes(16),
    )
    forged += [made_up + hmac.digest(key, made_up, "sha256") for key in (b"", bytes(32), b"hsmd-credential")]
    for number, each in enumerate(forged):
        text = base64.urlsafe_b64encode(each).decode()
        source = ("hsmd-source", f"198.51.100.{number}")  # each from elsewhere: failures are slowed down
        error = refused(gateway, _LIST, [("hsmd-auth-token", text), source], request)
        assert error.code == "KMS.0302", number
        assert record(stand, error.request_id)["user_id"] == ""
    call(gateway, _LIST, [("hsmd-auth-token", token)], request)


def test_a_token_is_good_in_its_project_only(stand: Stand, gateway: grpc.Channel, stranger: Tenant) -> None:
    own = [("hsmd-auth-token", stand.token())]
    request = keys_pb2.ListKeysRequest(project_id=stranger.project_id).SerializeToString()
    assert refused(gateway, _LIST, own, request).code == "KMS.0321"
    elsewhere = [*own, ("hsmd-project-id", stranger.project_id)]
    assert refused(gateway, _LIST, elsewhere).code == "KMS.0321"


def signed(
    stand: Stand, verb: str, path: str, *, off: float = 0, who: Tenant | None = None
) -> dict[str, Any]:
    """A caller's signature of a request, as a gateway has it."""
    access_key = who.access_key if who else stand.dev.access_key
    secret = who.secret_key if who else stand.dev.secret_key
    date = (datetime.now(UTC) + timedelta(minutes=off)).strftime("%Y%m%dT%H%M%SZ")
    hashed = hashlib.sha256(b"{}").hexdigest()
    canonical = f"{verb}\n{path}\n\nhost:x\nx-sdk-date:{date}\n\nhost;x-sdk-date\n{hashed}".encode()
    text = f"SDK-HMAC-SHA256\n{date}\n{hashlib.sha256(canonical).hexdigest()}".encode()
    return {
        "hsmd-access-key": access_key,
        "hsmd-sdk-date": date,
        "hsmd-canonical-request-bin": canonical,
        "hsmd-signature": hmac.digest(secret.encode(), text, "sha256").hex(),
    }


def test_a_signature_opens_no_other_method(stand: Stand, gateway: grpc.Channel) -> None:
    """A request that a gateway has seen, sent as every other method there is."""
    project = stand.dev.project_id
    seen = signed(stand, "POST", f"/v1.0/{project}/kms/list-keys/")
    listing = keys_pb2.ListKeysRequest(
        project_id=project
    ).SerializeToString()  # field 1 is the project of most
    call(gateway, _LIST, list(seen.items()), listing)
    for number, method in enumerate(each for each in closed_methods() if each != _LIST):
        source = ("hsmd-source", f"198.18.{number // 250}.{number % 250}")
        assert refused(gateway, method, [*seen.items(), source]).code == "APIGW.0301", method
        error = refused(gateway, method, [*seen.items(), source], listing)
        assert error.code in ("APIGW.0301", "KMS.0214"), method  # some can't even read it


def test_a_signature_fits_one_request(stand: Stand, gateway: grpc.Channel, stranger: Tenant) -> None:
    project = stand.dev.project_id
    path = f"/v1.0/{project}/kms/create-key/"
    seen = signed(stand, "POST", path)
    theirs = signed(stand, "POST", path, who=stranger)
    create = keys_pb2.CreateKeyRequest(project_id=project, key_alias=fresh()).SerializeToString()
    elsewhere = keys_pb2.CreateKeyRequest(project_id=stranger.project_id, key_alias=fresh())
    forged: list[tuple[dict[str, Any], bytes]] = [
        (seen | {"hsmd-access-key": stranger.access_key}, create),
        (seen | {"hsmd-signature": theirs["hsmd-signature"]}, create),
        (seen | {"hsmd-signature": secrets.token_hex(32)}, create),
        (seen | {"hsmd-signature": ""}, create),
        (seen | {"hsmd-sdk-date": "20200101T000000Z"}, create),
        (seen | {"hsmd-canonical-request-bin": seen["hsmd-canonical-request-bin"] + b"\n"}, create),
        (seen | {"hsmd-canonical-request-bin": b"GET" + seen["hsmd-canonical-request-bin"][4:]}, create),
        (seen | {"hsmd-security-token": "x"}, create),
        (seen, elsewhere.SerializeToString()),
        (signed(stand, "POST", path, off=-16), create),
        (signed(stand, "POST", path, off=16), create),
        (signed(stand, "GET", path), create),
        (signed(stand, "POST", path.replace("/kms/", "/KMS/")), create),
        (signed(stand, "POST", path + "?x="), create),
    ]
    for number, (metadata, request) in enumerate(forged):
        source = ("hsmd-source", f"192.0.2.{number}")
        error = refused(gateway, "/hsmd.v1.Keys/CreateKey", [*metadata.items(), source], request)
        assert error.code in (*_UNKNOWN, "APIGW.0301"), number
        assert error.status is grpc.StatusCode.UNAUTHENTICATED
    # The stranger's signature is good, but it is the stranger's.
    error = refused(gateway, "/hsmd.v1.Keys/CreateKey", list(theirs.items()), create)
    assert error.code == "KMS.0307"


def test_of_two_of_one_kind_neither_counts(stand: Stand, gateway: grpc.Channel, stranger: Tenant) -> None:
    own, theirs = stand.token(), stand.token(stranger)
    request = keys_pb2.ListKeysRequest(project_id=stand.dev.project_id).SerializeToString()
    path = f"/v1.0/{stand.dev.project_id}/kms/list-keys/"
    seen, foreign = signed(stand, "POST", path), signed(stand, "POST", path, who=stranger)
    for metadata in (
        [("hsmd-auth-token", own), ("hsmd-auth-token", theirs)],
        [("hsmd-auth-token", theirs), ("hsmd-auth-token", own)],
        [("hsmd-auth-token", own), ("hsmd-auth-token", own)],
        [("hsmd-auth-token", own), ("hsmd-source", "192.0.2.1"), ("hsmd-source", "127.0.0.1")],
        [("hsmd-auth-token", own), ("hsmd-project-id", "a"), ("hsmd-project-id", stand.dev.project_id)],
        [*seen.items(), ("hsmd-access-key", stranger.access_key)],
        [*foreign.items(), *seen.items()],
    ):
        assert refused(gateway, _LIST, metadata, request).code == "APIGW.0301"


def test_of_two_kinds_neither_counts(stand: Stand, gateway: grpc.Channel) -> None:
    request = keys_pb2.ListKeysRequest(project_id=stand.dev.project_id).SerializeToString()
    token = ("hsmd-auth-token", stand.token())
    seen = signed(stand, "POST", f"/v1.0/{stand.dev.project_id}/kms/list-keys/")
    for metadata in (
        [token, *seen.items()],
        [token, ("hsmd-bearer", "a.b.c")],
        [("hsmd-bearer", "a.b.c"), *seen.items()],
    ):
        assert refused(gateway, _LIST, metadata, request).code == "APIGW.0301"


def test_a_source_is_a_word_and_no_right(stand: Stand, gateway: grpc.Channel) -> None:
    request = keys_pb2.ListKeysRequest(project_id=stand.dev.project_id).SerializeToString()
    for said, kept in (
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("local", "unknown"),
        ("203.0.113.7:80", "unknown"),
        ("x" * 1000, "unknown"),
        ("", "unknown"),
    ):
        request_id = uuid.uuid4().hex
        metadata = [
            ("hsmd-auth-token", stand.token()),
            ("hsmd-source", said),
            ("hsmd-request-id", request_id),
        ]
        call(gateway, _LIST, metadata, request)
        assert record(stand, request_id)["source"] == kept


def test_to_a_caller_s_own_certificate_all_of_this_is_nothing(stand: Stand, stranger: Tenant) -> None:
    credentials = grpc.ssl_channel_credentials(
        stand.dev.ca.read_bytes(), stranger.key.read_bytes(), stranger.certificate.read_bytes()
    )
    project = stand.dev.project_id
    request = keys_pb2.ListKeysRequest(project_id=project).SerializeToString()
    seen = signed(stand, "POST", f"/v1.0/{project}/kms/list-keys/")
    with grpc.secure_channel(stand.dev.grpc, credentials) as theirs:
        for metadata in ([("hsmd-auth-token", stand.token())], list(seen.items())):
            assert refused(theirs, _LIST, metadata, request).code == "KMS.0307"
