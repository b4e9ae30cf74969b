"""Who is not who they claim to be: no certificate, a foreign or unbound one, evidence that is not theirs."""

import hashlib
import hmac
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from hsmd.client import ApiError
from hsmd.client.errors import from_rpc
from hsmd.daemon.certificates import Authority, Pair
from hsmd.pb.v1 import crypto_pb2, identity_pb2, keys_pb2, service_pb2
from hsmd.pb.v1.crypto_pb2_grpc import CryptoStub
from hsmd.pb.v1.identity_pb2_grpc import IdentityStub
from hsmd.pb.v1.keys_pb2_grpc import KeysStub
from hsmd.pb.v1.service_pb2_grpc import ServiceStub
from tests.calls import fresh, record, refusal
from tests.stand import Stand, Tenant

Metadata = Sequence[tuple[str, str | bytes]]


@contextmanager
def channel(stand: Stand, pair: Pair | None, ca: Path | None = None) -> Iterator[grpc.Channel]:
    """A connection with that certificate, or with none."""
    files = (pair.key.read_bytes(), pair.certificate.read_bytes()) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials((ca or stand.dev.ca).read_bytes(), *files)
    with grpc.secure_channel(stand.dev.grpc, credentials, [("grpc.use_local_subchannel_pool", 1)]) as one:
        yield one


@contextmanager
def translated() -> Iterator[None]:
    """gRPC's errors as the client's."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc(error, "") from error


@pytest.fixture
def gateway(stand: Stand) -> Iterator[KeysStub]:
    """Keys as a gateway calls them."""
    with channel(stand, _gateway(stand)) as one:
        yield KeysStub(one)


def _gateway(stand: Stand) -> Pair:
    folder = stand.dev.ca.parent
    return Pair(folder / "gateway-client.pem", folder / "gateway-client.key")


def _own(stand: Stand) -> Pair:
    return Pair(stand.dev.certificate, stand.dev.key)


def _list(keys: KeysStub, metadata: Metadata, project: str = "") -> keys_pb2.ListKeysResponse:
    with translated():
        response: keys_pb2.ListKeysResponse = keys.ListKeys(
            keys_pb2.ListKeysRequest(project_id=project), metadata=metadata, timeout=30
        )
        return response


# TLS


def test_no_certificate_no_connection(stand: Stand) -> None:
    with channel(stand, None) as one, pytest.raises(ApiError) as caught, translated():
        ServiceStub(one).ListVersions(service_pb2.ListVersionsRequest(), timeout=20)
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE
    assert caught.value.code == ""


def test_a_certificate_of_an_unknown_authority(stand: Stand, tmp_path: Path) -> None:
    pair = Authority(tmp_path, "hsmd development CA").client("admin", "admin")  # same names, another key
    with channel(stand, pair) as one, pytest.raises(ApiError) as caught, translated():
        ServiceStub(one).ListVersions(service_pb2.ListVersionsRequest(), timeout=20)
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE


def test_no_tls_no_connection(stand: Stand) -> None:
    with grpc.insecure_channel(stand.dev.grpc) as one, pytest.raises(ApiError) as caught, translated():
        ServiceStub(one).ListVersions(service_pb2.ListVersionsRequest(), timeout=20)
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_is_bound_to_nobody(stand: Stand) -> None:
    pair = Authority(stand.dev.ca.parent, "hsmd development CA").client(
        "unbound", f"nobody-{uuid.uuid4().hex}"
    )
    with channel(stand, pair) as one:
        with refusal("APIGW.0301") as seen, translated():
            KeysStub(one).ListKeys(keys_pb2.ListKeysRequest(), timeout=30)
        assert record(stand, seen.last.request_id)["user_id"] == ""
        with refusal("APIGW.0301"), translated():
            IdentityStub(one).ListRegions(identity_pb2.ListRegionsRequest(), timeout=30)
        with refusal("APIGW.0301"):  # a token is a gateway's to forward
            _list(KeysStub(one), [("hsmd-auth-token", stand.token())], stand.dev.project_id)
        with translated():  # what is open is open
            ServiceStub(one).ListVersions(service_pb2.ListVersionsRequest(), timeout=30)


@pytest.mark.parametrize(
    "name", ["hsmd-gateway ", "HSMD-GATEWAY", "hsmd-gateway2", "CN:hsmd-gateway", "hsmd"]
)
def test_names_like_the_gateways_are_not_the_gateways(stand: Stand, name: str) -> None:
    pair = Authority(stand.dev.ca.parent, "hsmd development CA").client(f"like-{uuid.uuid4().hex}", name)
    with channel(stand, pair) as one, refusal("APIGW.0301"):
        _list(KeysStub(one), [("hsmd-auth-token", stand.token())], stand.dev.project_id)


# Evidence from who is no gateway


def test_evidence_of_others_is_not_honoured(stand: Stand, stranger: Tenant) -> None:
    with stand.client(stranger) as theirs:
        key_id = theirs.create_key(fresh())
    metadata: Metadata = [
        ("hsmd-auth-token", stand.token(stranger)),
        ("hsmd-access-key", stranger.access_key),
        ("hsmd-source", "203.0.113.7"),
        ("hsmd-request-id", request_id := uuid.uuid4().hex),
    ]
    with channel(stand, _own(stand)) as one:
        with refusal("KMS.0207"), translated():
            KeysStub(one).DescribeKey(
                keys_pb2.DescribeKeyRequest(key_id=key_id), metadata=metadata, timeout=30
            )
        seen = record(stand, request_id)
        assert (seen["identity"], seen["user_id"]) == ("certificate", stand.dev.user_id)
        assert seen["source"] == "127.0.0.1"
        with refusal("KMS.0307"):
            _list(KeysStub(one), [*metadata[:2], ("hsmd-project-id", stranger.project_id)])


@pytest.mark.parametrize("request_id", ["x", "A" * 32, "0" * 31, "0" * 33, "g" * 32, '{"a":1}'.ljust(32)])
def test_request_ids_that_are_none_are_replaced(stand: Stand, request_id: str) -> None:
    with channel(stand, _own(stand)) as one:
        call = KeysStub(one).ListKeys.with_call
        _, done = call(keys_pb2.ListKeysRequest(), metadata=[("hsmd-request-id", request_id)], timeout=30)
        (answered,) = (value for key, value in done.trailing_metadata() if key == "hsmd-request-id")
    assert answered != request_id
    assert record(stand, str(answered))["event"] == "listKeys"


# Evidence from a gateway


def _signed(stand: Stand, verb: str, path: str, *, secret: str = "", off: float = 0) -> Metadata:
    date = (datetime.now(UTC) + timedelta(minutes=off)).strftime("%Y%m%dT%H%M%SZ")
    hashed = hashlib.sha256(b"{}").hexdigest()
    canonical = f"{verb}\n{path}\n\nhost:x\nx-sdk-date:{date}\n\nhost;x-sdk-date\n{hashed}".encode()
    text = f"SDK-HMAC-SHA256\n{date}\n{hashlib.sha256(canonical).hexdigest()}"
    key = (secret or stand.dev.secret_key).encode()
    return [
        ("hsmd-access-key", stand.dev.access_key),
        ("hsmd-sdk-date", date),
        ("hsmd-canonical-request-bin", canonical),
        ("hsmd-signature", hmac.new(key, text.encode(), "sha256").hexdigest()),
    ]


def _path(stand: Stand, operation: str, project: str = "") -> str:
    return f"/v1.0/{project or stand.dev.project_id}/kms/{operation}/"


def test_a_gateway_is_nobody_by_itself(stand: Stand, gateway: KeysStub) -> None:
    for metadata in ([], [("hsmd-auth-token", "")], [("hsmd-access-key", stand.dev.access_key)]):
        with refusal("APIGW.0301"):
            _list(gateway, metadata, stand.dev.project_id)


def test_a_gateway_acts_as_its_caller(stand: Stand, gateway: KeysStub) -> None:
    right = _signed(stand, "POST", _path(stand, "list-keys"))
    for metadata in (right, [("hsmd-auth-token", stand.token())]):
        request_id = uuid.uuid4().hex
        _list(
            gateway,
            [*metadata, ("hsmd-source", "203.0.113.7"), ("hsmd-request-id", request_id)],
            stand.dev.project_id,
        )
        seen = record(stand, request_id)
        assert (seen["user_id"], seen["source"]) == (stand.dev.user_id, "203.0.113.7")
        assert seen["identity"] in ("access-key", "token")


def test_forged_evidence_from_a_gateway(stand: Stand, stranger: Tenant, gateway: KeysStub) -> None:
    project = stand.dev.project_id
    right = dict(_signed(stand, "POST", _path(stand, "list-keys")))
    forged: list[dict[str, str | bytes]] = [
        right | {"hsmd-signature": "0" * 64},
        right | {"hsmd-signature": ""},
        right | {"hsmd-signature": str(right["hsmd-signature"]).upper()},
        right | {"hsmd-signature": str(right["hsmd-signature"]) + "00"},
        right | {"hsmd-access-key": stranger.access_key},
        right | {"hsmd-access-key": "nobody"},
        right | {"hsmd-sdk-date": "20200101T000000Z"},
        right | {"hsmd-sdk-date": "yesterday"},
        right | {"hsmd-canonical-request-bin": b""},
        right | {"hsmd-canonical-request-bin": b"\xff\xfe\x00"},
        right | {"hsmd-canonical-request-bin": bytes(right["hsmd-canonical-request-bin"]) + b" "},  # type: ignore[arg-type]  # bytes, by its name
        dict(_signed(stand, "POST", _path(stand, "list-keys"), secret="x" * 40)),
        dict(_signed(stand, "POST", _path(stand, "list-keys"), off=-16)),
        dict(_signed(stand, "POST", _path(stand, "list-keys"), off=16)),
    ]
    for each in forged:
        with refusal("APIGW.0301"):
            _list(gateway, list(each.items()), project)
    for token in ("x", "é".encode().hex(), stand.token()[:-8] + "AAAAAAAA"):
        with refusal("KMS.0302"):
            _list(gateway, [("hsmd-auth-token", token)], project)
    with refusal("KMS.0321"):
        _list(gateway, [("hsmd-auth-token", stand.token(stranger))], project)
    _list(gateway, list(right.items()), project)


@pytest.mark.parametrize(
    ("access_key", "named"),
    [("AKNOBODY_-1", "AKNOBODY_-1"), ("A" * 64, "A" * 64), ("A" * 65, "?"), ("a b", "?"), ("a/b", "?")],
)
def test_a_refused_signature_is_recorded_with_what_can_be_an_access_key(
    stand: Stand, gateway: KeysStub, access_key: str, named: str
) -> None:
    for path in (_path(stand, "list-keys"), "/elsewhere/"):
        evidence = dict(_signed(stand, "POST", path)) | {"hsmd-access-key": access_key}
        with refusal("APIGW.0301") as seen:
            _list(gateway, list(evidence.items()), stand.dev.project_id)
        one = record(stand, seen.last.request_id)
        assert (one["identity"], one["resource"]) == ("anonymous", f"access-key/{named}")


def test_a_signature_is_for_one_route(stand: Stand, stranger: Tenant) -> None:
    """A gateway that was broken into can't turn a signed request into another operation, project or verb."""
    project = stand.dev.project_id
    others = [
        _signed(stand, "POST", _path(stand, "describe-key")),
        _signed(stand, "POST", _path(stand, "list-keys", stranger.project_id)),
        _signed(stand, "GET", _path(stand, "list-keys")),
        _signed(stand, "POST", _path(stand, "list-keys") + "x/"),
        _signed(stand, "POST", "/" + _path(stand, "list-keys")),
        _signed(stand, "GET", "/v3/projects/"),
    ]
    with channel(stand, _gateway(stand)) as one:
        keys = KeysStub(one)
        for metadata in others:
            with refusal("APIGW.0301"):
                _list(keys, metadata, project)
        right = _signed(stand, "POST", _path(stand, "list-keys"))
        _list(keys, right, project)
        with refusal("APIGW.0301"), translated():
            request = keys_pb2.CreateKeyRequest(project_id=project, key_alias=fresh())
            keys.CreateKey(request, metadata=right, timeout=30)
        with refusal("APIGW.0301"), translated():
            CryptoStub(one).GenRandom(
                crypto_pb2.GenRandomRequest(project_id=project, random_data_length=8),
                metadata=right,
                timeout=30,
            )
        for elsewhere in (stranger.project_id, ""):
            with refusal("APIGW.0301"):
                _list(keys, right, elsewhere)
