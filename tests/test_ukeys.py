"""UKeys at the administrators' door: who is let in, what the registry tells, what a deceiver gets."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hsmd import ukey
from hsmd.client import ApiError, ClientError, SetupError
from hsmd.client.admin import AdminClient, login_statement
from hsmd.client.calls import Calls, open_channel
from hsmd.daemon.certificates import Authority, Pair
from hsmd.pb.v1 import service_pb2, ukeys_pb2_grpc
from hsmd.pb.v1 import ukeys_pb2 as pb
from hsmd.pb.v1.sealing_pb2 import SealRequest
from hsmd.pb.v1.sealing_pb2_grpc import SealingStub
from hsmd.pb.v1.service_pb2_grpc import ServiceStub
from hsmd.pb.v1.ukeys_pb2_grpc import UkeysStub
from tests.faults import processes
from tests.stand import Stand, eventually, free_port
from tests.stores import behind_its_back
from tests.ukeys import Crew, Holder, SoftUkey

CA = "hsmd development CA"
UKEYS = "hsmd.v1.Ukeys"


@dataclass
class Place:
    """A stand with UKeys: an administrator and an operator with tokens, the others' keys in memory."""

    stand: Stand
    crew: Crew
    alice: Holder
    bob: Holder
    carol: Holder
    dave: Holder
    eve: Holder
    mallory: Pair  # a certificate that is revoked

    def last(self, event: str) -> dict[str, Any]:
        """The newest audit record of the event."""
        return [each for each in self.stand.audit() if each["event"] == event][-1]


def revoked_list(folder: Path, *revoked: Path) -> Path:
    """The CA's list of revoked certificates."""
    key: Any = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    issuer = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()).subject
    now = datetime.now(UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer)
    builder = builder.last_update(now - timedelta(hours=1)).next_update(now + timedelta(days=1))
    for each in revoked:
        serial = x509.load_pem_x509_certificate(each.read_bytes()).serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(entry.build())
    path = folder / "admin.crl"
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("ukeys")
    stand = Stand(folder)
    certificates = stand.dev.ca.parent
    mallory = Authority(certificates, CA).client("mallory", "mallory")
    crew = Crew(stand, folder, CLIENT_CRL=str(revoked_list(certificates, mallory.certificate)))
    holders = (
        crew.token("alice", "administrator", "ec-p384"),
        crew.soft("bob", "administrator"),
        crew.soft("carol", "operator"),
        crew.token("dave", "operator", "rsa-2048"),
        crew.soft("eve", "auditor"),
    )
    crew.enrol(2, 2, *holders)
    try:
        stand.start(gateway=False)
        yield Place(stand, crew, *holders, mallory)
    finally:
        stand.stop()


def refused(call: Callable[[], object], code: str = "APIGW.0301") -> ApiError:
    with pytest.raises(ApiError) as caught:
        call()
    assert caught.value.code == code, caught.value
    return caught.value


def listed(client: AdminClient, session: str | None = None) -> pb.ListUkeysResponse:
    """ListUkeys, by a session of one's own choice if need be."""
    if session is None:
        answer: pb.ListUkeysResponse = client.ukeys.ListUkeys(pb.ListUkeysRequest())
        return answer
    calls = Calls(client._channel, deadline=20, project_id="")
    call = calls.made(
        f"/{UKEYS}/ListUkeys",
        more=lambda: (("hsmd-admin-session", session),),
        request_serializer=pb.ListUkeysRequest.SerializeToString,
        response_deserializer=pb.ListUkeysResponse.FromString,
    )
    found: pb.ListUkeysResponse = call(pb.ListUkeysRequest())
    return found


def plain(place: Place, pair: Pair, target: str = "") -> UkeysStub:
    """The door's stub without anything of ours around it but the errors."""
    channel = open_channel(
        target or place.crew.address,
        ca=place.stand.dev.ca,
        certificate=pair.certificate,
        key=pair.key,
        server_name="",
    )
    return UkeysStub(Calls(channel, deadline=20, project_id=""))


# Who is let in


def test_a_ukey_logs_in_and_sees_the_registry(place: Place) -> None:
    with place.crew.client(place.bob) as client:
        found = listed(client)
        assert client.ukey is not None
        assert (client.ukey.id, client.ukey.role) == (place.bob.id, "administrator")
        one = client.ukeys.ShowUkey(pb.ShowUkeyRequest(ukey_id=place.dave.id)).ukey
    assert [each.name for each in found.ukeys] == ["alice", "bob", "carol", "dave", "eve"]
    assert found.quorum == pb.Quorum(administrators=2, operators=2)
    assert len(found.instance) == 32
    assert one == found.ukeys[3]
    assert (one.role, one.key, one.opens, one.created_by) == (
        "operator",
        "RSA-2048",
        "rsa-oaep-sha1",
        "ceremony",
    )
    assert one.serial == place.dave.serial != ""
    assert one.public_key == place.dave.public_key
    assert not one.HasField("revoked")


@pytest.mark.parametrize("name", ["bob", "carol", "eve"])
def test_every_role_may_look(place: Place, name: str) -> None:
    with place.crew.client(getattr(place, name)) as client:
        assert len(listed(client).ukeys) == 5


def test_tokens_log_in_through_hsmctl(place: Place) -> None:
    for holder in (place.alice, place.dave):
        found = json.loads(place.crew.hsmctl(holder, "--json", "ukey", "list"))
        assert [each["name"] for each in found["ukeys"]] == ["alice", "bob", "carol", "dave", "eve"]
    record = place.last("listUkeys")
    assert (record["identity"], record["user"], record["user_id"]) == ("ukey", "dave", place.dave.id)


def test_what_a_ukey_does_is_recorded_as_its_own(place: Place) -> None:
    with place.crew.client(place.eve) as client:
        listed(client)
        begun, let_in, seen = (place.last(each) for each in ("beginUkeyLogin", "loginUkey", "listUkeys"))
        client.ukeys.Logout(pb.LogoutRequest())
        assert begun["identity"] == "anonymous"
        assert begun["resource"] == place.eve.fingerprint
        assert (let_in["identity"], let_in["user"], let_in["resource"]) == ("ukey", "eve", place.eve.id)
        assert (seen["user"], seen["user_id"], seen["process"]) == ("eve", place.eve.id, "warden")
        assert place.last("logoutUkey")["user_id"] == place.eve.id
        refused(lambda: listed(client))  # its session is over


def test_without_a_session_nothing_is_told(place: Place) -> None:
    stub = plain(place, place.bob.pair)
    refused(lambda: stub.ListUkeys(pb.ListUkeysRequest()))
    refused(lambda: stub.ShowUkey(pb.ShowUkeyRequest(ukey_id=place.bob.id)))
    refused(lambda: stub.Logout(pb.LogoutRequest()))
    with place.crew.client(place.bob) as client:
        for session in ("", "0" * 64, "x", "é"[:0] or "zz", "A" * 5000):
            refused(lambda: listed(client, session))  # noqa: B023  # called at once
    assert place.last("listUkeys")["result"] == "APIGW.0301"


def test_a_session_is_its_connection_s(place: Place) -> None:
    with place.crew.client(place.bob) as one, place.crew.client(place.bob) as other:
        session = one.log_in(one.begin_login(UKEYS)).session
        assert len(listed(one, session).ukeys) == 5
        refused(lambda: listed(other, session))  # the same certificate, another connection
        with place.crew.client(place.bob, pair=place.eve.pair) as third:
            refused(lambda: listed(third, session))
        assert len(listed(one, session).ukeys) == 5
    record = place.last("listUkeys")
    assert place.stand.log().count("it is another connection's") >= 2
    assert record["result"] == "OK"


def test_a_challenge_is_its_connection_s(place: Place) -> None:
    with place.crew.client(place.bob) as one, place.crew.client(place.bob) as other:
        asked = one.begin_login(UKEYS)
        refused(lambda: other.log_in(asked))
        refused(lambda: one.log_in(asked))  # used up


def test_a_login_can_not_be_repeated(place: Place) -> None:
    with place.crew.client(place.bob) as client:
        asked = client.begin_login(UKEYS)
        client.log_in(asked)
        error = refused(lambda: client.log_in(asked))
    assert "not accepted" in str(error)
    assert place.last("loginUkey")["result"] == "APIGW.0301"


def test_of_many_with_one_challenge_one_is_let_in(place: Place) -> None:
    assert place.bob.soft is not None
    with place.crew.client(place.bob) as client:
        asked = client.begin_login(UKEYS)
        signature = place.bob.soft.sign(login_statement(asked))
        stub = UkeysStub(Calls(client._channel, deadline=20, project_id=""))
        request = pb.LoginRequest(challenge=asked.challenge, signature=signature)
        barrier, results = threading.Barrier(4), []

        def come() -> None:
            barrier.wait()
            try:
                results.append(stub.Login(request).session)
            except ApiError as error:
                results.append(error.code)

        threads = [threading.Thread(target=come) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results.count("APIGW.0301") == 3


def test_a_signature_for_another_purpose_lets_nobody_in(place: Place) -> None:
    assert place.bob.soft is not None
    with place.crew.client(place.bob) as client:
        stub = UkeysStub(Calls(client._channel, deadline=20, project_id=""))
        for purpose in (ukey.Purpose.APPROVE, ukey.Purpose.ENROL, ukey.Purpose.SHARE):
            asked = client.begin_login(UKEYS)
            content = login_statement(asked).removeprefix(b"hsmd-ukey-1\0login\0")
            signature = place.bob.soft.sign(b"hsmd-ukey-1\0" + purpose.encode() + b"\0" + content)
            request = pb.LoginRequest(challenge=asked.challenge, signature=signature)
            refused(lambda: stub.Login(request))  # noqa: B023  # called at once


def test_a_session_for_one_service_is_none_for_another(place: Place) -> None:
    with place.crew.client(place.carol) as client:
        session = client.log_in(client.begin_login(UKEYS)).session
        calls = Calls(client._channel, deadline=20, project_id="")
        seal = calls.made(
            "/hsmd.v1.Sealing/Seal",
            more=lambda: (("hsmd-admin-session", session),),
            request_serializer=SealRequest.SerializeToString,
            response_deserializer=SealRequest.FromString,
        )
        refused(lambda: seal(SealRequest()))
    assert place.last("seal")["result"] == "APIGW.0301"


def test_a_role_does_what_is_its_own(place: Place) -> None:
    """An administrator and an auditor do not seal; nor does an operator learn it in another way."""
    for holder in (place.bob, place.eve):
        with place.crew.client(holder) as client:
            error = refused(lambda: client.stub(SealingStub).Seal(SealRequest()), "KMS.0330")
            assert "operator" in str(error)
            record = place.last("seal")
            assert (record["result"], record["user"]) == ("KMS.0330", holder.name)


def test_an_unknown_key_gets_what_a_wrong_signature_gets(place: Place) -> None:
    stranger = place.crew.soft("stranger", "administrator")
    forged = replace(place.bob, soft=SoftUkey())
    with place.crew.client(stranger) as client:
        first = client.begin_login(UKEYS)
        unknown = refused(lambda: client.log_in(first))
    with place.crew.client(place.bob) as client:
        asked = client.begin_login(UKEYS)
        client._signer = forged.soft
        wrong = refused(lambda: client.log_in(asked))
    assert (unknown.message, unknown.status) == (wrong.message, wrong.status)
    assert [each.name for each in first.DESCRIPTOR.fields] == [each.name for each in asked.DESCRIPTOR.fields]
    assert len(first.challenge) == len(asked.challenge)
    assert place.last("loginUkey")["resource"] == place.bob.id


# The door itself


def test_the_two_doors_have_nothing_in_common(place: Place) -> None:
    refused_here = plain(place, place.bob.pair, place.stand.dev.grpc)
    with pytest.raises(ApiError) as caught:
        refused_here.BeginLogin(pb.BeginLoginRequest(fingerprint="a" * 64, purpose=UKEYS))
    assert caught.value.status is grpc.StatusCode.UNIMPLEMENTED
    with place.crew.client(place.bob) as client:
        listed(client)
        with pytest.raises(ApiError) as caught:
            client.stub(ServiceStub).GetStatus(service_pb2.GetStatusRequest())
        assert caught.value.code in ("KMS.0308", "")  # no session is to be had for it, and it is not there


def test_health_is_told_and_nothing_else(place: Place) -> None:
    files = (place.stand.dev.ca, place.bob.pair.key, place.bob.pair.certificate)
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    with grpc.secure_channel(place.crew.address, credentials) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", UKEYS):
            answer = check(health_pb2.HealthCheckRequest(service=service), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=20
        )
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_revoked_certificate_may_not_even_knock(place: Place) -> None:
    stub = plain(place, place.mallory)
    refused(lambda: stub.BeginLogin(pb.BeginLoginRequest(fingerprint="a" * 64, purpose=UKEYS)))
    refused(lambda: stub.BeginEnrolment(pb.BeginEnrolmentRequest(public_key=place.bob.public_key)))


def test_a_certificate_of_another_ca_does_not_connect(place: Place, tmp_path: Path) -> None:
    foreign = Authority(tmp_path, "another CA").client("bob", "bob")
    channel = open_channel(
        place.crew.address,
        ca=place.stand.dev.ca,
        certificate=foreign.certificate,
        key=foreign.key,
        server_name="",
    )
    stub = UkeysStub(Calls(channel, deadline=5, project_id=""))
    with pytest.raises(ApiError) as caught:
        stub.BeginLogin(pb.BeginLoginRequest(fingerprint="a" * 64, purpose=UKEYS))
    assert caught.value.unanswered


BAD_LOGINS: dict[str, tuple[str, Any, str]] = {
    "nothing": ("BeginLogin", pb.BeginLoginRequest(), "KMS.0204"),
    "no purpose": ("BeginLogin", pb.BeginLoginRequest(fingerprint="a" * 64), "KMS.0204"),
    "a purpose of ours": ("BeginLogin", pb.BeginLoginRequest(fingerprint="a" * 64, purpose="x"), "KMS.0308"),
    "a short one": ("BeginLogin", pb.BeginLoginRequest(fingerprint="a", purpose=UKEYS), "KMS.0308"),
    "a long one": ("BeginLogin", pb.BeginLoginRequest(fingerprint="a" * 65, purpose=UKEYS), "KMS.0308"),
    "a NUL": ("BeginLogin", pb.BeginLoginRequest(fingerprint="a" * 63 + "\0", purpose=UKEYS), "KMS.0308"),
    "no login": ("Login", pb.LoginRequest(), "KMS.0204"),
    "no signature": ("Login", pb.LoginRequest(challenge="a"), "KMS.0204"),
    "a long signature": ("Login", pb.LoginRequest(challenge="a", signature=bytes(1025)), "KMS.0308"),
    "a long challenge": ("Login", pb.LoginRequest(challenge="a" * 65, signature=b"1"), "KMS.0308"),
    "no challenge of ours": ("Login", pb.LoginRequest(challenge="a" * 64, signature=b"1"), "APIGW.0301"),
    "no key": ("BeginEnrolment", pb.BeginEnrolmentRequest(), "KMS.0204"),
    "a key that is none": ("BeginEnrolment", pb.BeginEnrolmentRequest(public_key=b"1"), "KMS.0308"),
    "a long key": ("BeginEnrolment", pb.BeginEnrolmentRequest(public_key=bytes(2049)), "KMS.0308"),
    "boxes of no kind": (
        "BeginEnrolment",
        pb.BeginEnrolmentRequest(public_key=SoftUkey().public_key, opens="rsa"),
        "KMS.0308",
    ),
}


@pytest.mark.parametrize("case", BAD_LOGINS)
def test_bad_input_is_refused(place: Place, case: str) -> None:
    method, request, code = BAD_LOGINS[case]
    stub = plain(place, place.eve.pair)
    refused(lambda: getattr(stub, method)(request), code)


def test_bytes_that_are_no_message_are_refused(place: Place) -> None:
    with place.crew.client(place.eve) as client:
        call = Calls(client._channel, deadline=20, project_id="").made(
            f"/{UKEYS}/BeginLogin",
            more=tuple,
            request_serializer=lambda raw: raw,
            response_deserializer=lambda raw: raw,
        )
        refused(lambda: call(b"\xff\xff\xff"), "KMS.0214")
        refused(lambda: client.ukeys.ShowUkey(pb.ShowUkeyRequest()), "KMS.0204")
        refused(lambda: client.ukeys.ShowUkey(pb.ShowUkeyRequest(ukey_id="x" * 65)), "KMS.0308")
        error = refused(lambda: client.ukeys.ShowUkey(pb.ShowUkeyRequest(ukey_id="0" * 32)), "IAM.0004")
        assert "UKey" in str(error)


# A daemon that is none


class Relay(ukeys_pb2_grpc.UkeysServicer):
    """Somebody between: a server certificate and a client certificate of the CA, and the real door behind.

    `change` is what it makes of the challenge.
    """

    def __init__(self, behind: UkeysStub, change: Callable[[pb.BeginLoginResponse], None]) -> None:
        self.behind, self.change = behind, change
        self.refused: list[str] = []  # what became of the logins

    def BeginLogin(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC's name
        answer = self.behind.BeginLogin(request)
        self.change(answer)
        return answer

    def Login(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC's name
        try:
            return self.behind.Login(request)
        except ApiError as error:
            self.refused.append(error.code)
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "refused")


def _as_it_is(answer: pb.BeginLoginResponse) -> None:
    """The real daemon's challenge."""


@pytest.mark.parametrize("lie", ["none", "server", "client", "both", "key", "purpose"])
def test_nobody_between_gets_a_signature_that_is_worth_something(place: Place, lie: str) -> None:
    certificates = Authority(place.stand.dev.ca.parent, CA)
    theirs = certificates.server("relay", ["localhost", "127.0.0.1"])
    own = certificates.client("relay-client", "relay")
    digests = {
        "server": _digest(theirs.certificate),
        "client": _digest(place.bob.pair.certificate),
    }

    def change(answer: pb.BeginLoginResponse) -> None:
        if lie in ("server", "both"):
            answer.server_certificate = digests["server"]
        if lie in ("client", "both"):
            answer.client_certificate = digests["client"]
        if lie == "key":
            answer.key = place.eve.fingerprint
        if lie == "purpose":
            answer.purpose = "hsmd.v1.Sealing"

    relay = Relay(plain(place, own), change)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    ukeys_pb2_grpc.add_UkeysServicer_to_server(relay, server)
    port = free_port()
    pair = [(theirs.key.read_bytes(), theirs.certificate.read_bytes())]
    credentials = grpc.ssl_server_credentials(pair, place.stand.dev.ca.read_bytes(), require_client_auth=True)
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    try:
        with AdminClient(
            f"127.0.0.1:{port}",
            ca=place.stand.dev.ca,
            certificate=place.bob.pair.certificate,
            key=place.bob.pair.key,
            signer=place.bob.soft,
        ) as client:
            if lie == "both":  # all that the client can look at is right; the daemon knows better
                with pytest.raises(ApiError):
                    listed(client)
                assert relay.refused == ["APIGW.0301"]
                assert place.last("loginUkey")["result"] == "APIGW.0301"
            else:
                with pytest.raises(ClientError, match="nothing was signed"):
                    listed(client)
                assert relay.refused == []
    finally:
        server.stop(None)


def _digest(certificate: Path) -> str:
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    return found.fingerprint(hashes.SHA256()).hex()


def test_a_client_says_what_it_lacks(place: Place) -> None:
    for target in ("unix:/tmp/x", "nowhere"):
        with pytest.raises(SetupError):
            AdminClient(
                target,
                ca=place.stand.dev.ca,
                certificate=place.bob.pair.certificate,
                key=place.bob.pair.key,
            )
    with place.crew.client(replace(place.bob, soft=None)) as client, pytest.raises(SetupError, match="UKey"):
        client.begin_login(UKEYS)


# What changes meanwhile


def test_a_revoked_ukey_is_out_from_the_next_call_on(place: Place) -> None:
    gone = place.crew.soft("gone", "auditor")
    place.crew.enrol(0, 0, gone)
    with place.crew.client(gone) as client:
        session = client.log_in(client.begin_login(UKEYS)).session
        assert len(listed(client, session).ukeys) == 6
        asked = client.begin_login(UKEYS)
        place.crew.backstage("revoke", gone.id)
        refused(lambda: listed(client, session))
        assert place.last("listUkeys")["resource"] == gone.id
        error = refused(lambda: client.log_in(asked))
        assert "revoked" not in str(error)
        refused(lambda: client.log_in(client.begin_login(UKEYS)))
    with place.crew.client(place.eve) as client:
        shown = client.ukeys.ShowUkey(pb.ShowUkeyRequest(ukey_id=gone.id)).ukey
        assert shown.HasField("revoked")
        assert shown.revoked_by == "test"
    assert "the UKey gone is revoked" in place.stand.log()


def test_the_registry_outlives_a_killed_warden_and_a_restart_and_sessions_do_not(place: Place) -> None:
    with place.crew.client(place.bob) as client:
        before = listed(client)
        found = processes(place.stand, workers=1)
        (warden,) = [pid for pid, name in found.items() if name == "warden"]
        os.kill(warden, signal.SIGKILL)
        again = eventually(lambda: _tried(lambda: client.begin_login(UKEYS)))
        refused(lambda: listed(client))  # a session of the one before
        session = client.log_in(again).session
        assert listed(client, session) == before
    place.stand.restart_daemon()
    with place.crew.client(place.bob) as client:
        assert listed(client) == before


def _tried(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (ApiError, ClientError):
        return None


def test_a_registry_that_somebody_changed_lets_nobody_in(place: Place) -> None:
    """What was read before counts on, as it was verified; what is read now does not."""
    url = f"sqlite:///{place.stand.dev.data}/store/hsmd.db"
    behind_its_back(url, "UPDATE ukeys SET role = 'administrator' WHERE name = 'eve'")
    behind_its_back(url, "INSERT INTO changes (subject, id) VALUES ('ukeys', 'x')")  # nothing is cached
    try:
        with place.crew.client(place.bob) as client:
            asked = eventually(lambda: _tried(lambda: client.begin_login(UKEYS)))
            refused(lambda: client.log_in(asked), "KMS.0101")
            assert place.last("loginUkey")["result"] == "KMS.0101"
    finally:
        behind_its_back(url, "UPDATE ukeys SET role = 'auditor' WHERE name = 'eve'")
    with place.crew.client(place.bob) as client:
        assert [each.role for each in listed(client).ukeys][4] == "auditor"
