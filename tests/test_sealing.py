"""The seal of a daemon: sealed start, unsealing by two of three, sealing again, and what is refused."""

import json
import operator
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from hsmd import sealfile
from hsmd.client import ApiError, Client
from hsmd.pb.v1 import sealing_pb2 as pb
from hsmd.pb.v1 import ukeys_pb2
from tests.receivers import Syslog, authority, context
from tests.seals import Door, SealedStand, health, operators, packed, sealed
from tests.stand import eventually, free_port


@pytest.fixture(scope="module")
def shut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SealedStand]:
    """A daemon that stays sealed, whatever these tests try."""
    with sealed(tmp_path_factory.mktemp("shut"), {"HSMD__GRPC__WORKERS": "1"}) as one:
        yield one
        assert one.health() == "NOT_SERVING"


_STATUSES = {"KMS.0306": "PERMISSION_DENIED", "KMS.0308": "FAILED_PRECONDITION", "KMS.0104": "UNAVAILABLE"}


@contextmanager
def refusal(code: str, *words: str) -> Iterator[None]:
    """The block's call is refused with this code and, where that is given, words of its text."""
    with pytest.raises(ApiError) as caught:
        yield
    error = caught.value
    assert error.code == code, error
    assert error.status.name == _STATUSES.get(code, error.status.name)
    assert all(each in error.message for each in words), error
    for private in ("hsm:", "-pin"):
        assert private not in error.message


def _serves(stand: SealedStand) -> None:
    """Workers and the administrators' door do."""
    eventually(lambda: stand.health() == "SERVING")
    eventually(lambda: health(f"127.0.0.1:{stand.admin_port}", stand) == "SERVING")


def _records(stand: SealedStand, event: str) -> list[dict[str, Any]]:
    return [each for each in stand.audit() if each["event"] == event]


def test_sealed_start_unseal_by_two_of_three_restart(tmp_path: Path) -> None:
    with sealed(tmp_path, gateway=True) as stand:
        ada, bruno, chen = stand.operators
        assert stand.health() == "NOT_SERVING"
        with stand.client() as client, pytest.raises(ApiError) as caught:
            client.create_key("books")
        assert (caught.value.code, caught.value.status.name) == ("KMS.0104", "UNAVAILABLE")
        assert "sealed" in caught.value.message
        (refused,) = _records(stand, "createKey")
        assert (refused["result"], refused["identity"]) == ("KMS.0104", "anonymous")
        answer = stand.rest("GET", "/")
        assert (answer.status, answer.json["error"]["error_code"]) == (503, "KMS.0104")
        assert "sealed" in answer.json["error"]["error_msg"]
        assert stand.rest("POST", "/v9/none", {}).status == 404
        eventually(lambda: _records(stand, "refuseRequest"))  # the gateway can tell of it
        assert {each["identity"] for each in _records(stand, "loadConfiguration")} == {"system", "gateway"}
        with stand.door() as door:
            status = door.status()
            assert (status.sealed, status.threshold, status.pin_source) == (True, 2, "none")
            assert (status.seal, list(status.holders)) == (stand.seal().id, ["Ada", "Bruno", "Chen"])
            assert not status.HasField("attempt")
            assert not door.give(ada).unsealed
            assert list(door.status().attempt.given) == ["Ada"]
            assert not door.give(ada).unsealed  # twice is one
            assert stand.health() == "NOT_SERVING"
        with stand.door() as door:
            answer_of_two = door.give(chen)
            assert answer_of_two.unsealed
            assert list(answer_of_two.given) == ["Ada", "Chen"]
        _serves(stand)
        with stand.client() as client:
            key_id = client.create_key("books")
            blob = client.encrypt(key_id, b"data")
            assert client.status().pin_source == "seal"
        with stand.door() as door:
            status = door.status()
            assert (status.sealed, status.threshold, status.pin_source) == (False, 2, "seal")
            with refusal("KMS.0308", "not sealed"):
                door.begin(ada)
        given = _records(stand, "giveShare")
        assert [(each["user"], each["result"]) for each in given] == [("Ada", "OK")] * 2 + [("Chen", "OK")]
        assert {(each["identity"], each["user_id"]) for each in given[:2]} == {("ukey", ada.id)}
        (unsealing,) = _records(stand, "unseal")
        assert unsealing["user"] == "Chen"

        stand.restart_daemon()
        with stand.client() as client, refusal("KMS.0104"):
            client.decrypt(blob)
        stand.unseal([bruno, ada])
        _serves(stand)
        with stand.client() as client:
            assert client.decrypt(blob) == b"data"


@pytest.mark.soak
def test_sockets_refuse_while_sealed(tmp_path: Path) -> None:
    stand = SealedStand(tmp_path, {"HSMD__GRPC__WORKERS": "1"})
    with tempfile.TemporaryDirectory() as folder:  # a socket's path has 108 bytes at most
        path = Path(folder) / "hsmd.sock"
        ids = f'user_id = "{stand.dev.user_id}", project_id = "{stand.dev.project_id}"'
        stand.settings["HSMD__GRPC__UNIX"] = f'[{{path = "{path}", {ids}}}]'
        try:
            stand.start(gateway=False)
            with Client(f"unix:{path}") as client, refusal("KMS.0104", "sealed"):
                client.random(16)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            stand.unseal()
            _serves(stand)
            with Client(f"unix:{path}") as client:
                assert len(client.random(16)) == 16
        finally:
            stand.stop()


def test_seal_and_unseal_again(tmp_path: Path) -> None:
    """And the audit log is forwarded, sealed or not: nothing of it is lost on the way."""
    tls = tmp_path / "tls"
    tls.mkdir()
    receiver = Syslog(context(authority(tls).server("server", ["127.0.0.1"])), port=free_port())
    target = f'name = "siem", url = "syslog+tls://127.0.0.1:{receiver.port}", ca = "{tls / "ca.pem"}"'
    settings = {"HSMD__AUDIT__FORWARD": f"[{{ {target} }}]"}

    def forwarded(event: str) -> int:
        """How many refusals of that event the receiver has."""
        records = [json.loads(line) for line in chains()[1]]
        return sum(each["event"] == event and each["result"] == "KMS.0104" for each in records)

    def chains() -> tuple[list[bytes], list[bytes]]:
        """What stands in the log, and what the receiver has of it, chain by chain."""
        files = sorted((stand.dev.data / "audit").glob("*.jsonl"))
        written = [line for file in files for line in file.read_bytes().splitlines()]
        return written, [line for file in files for line in receiver.lines(file.stem)]

    with receiver.listening(), sealed(tmp_path / "stand", settings) as stand:
        with stand.client() as client, refusal("KMS.0104"):
            client.create_key("books")
        eventually(lambda: forwarded("createKey"))
        stand.unseal()
        _serves(stand)
        with stand.client() as client:
            blob = client.encrypt(client.create_key("books"), b"data")
        before = set(stand.workers())
        with stand.door() as door:
            door.shut(stand.operators[2])
        eventually(lambda: stand.health() == "NOT_SERVING")
        eventually(lambda: not before & set(stand.workers()))
        eventually(lambda: stand.health() == "NOT_SERVING")
        with stand.client() as client, refusal("KMS.0104"):
            client.decrypt(blob)
        eventually(lambda: forwarded("decryptData"))  # it was tried again and again
        (record,) = _records(stand, "seal")
        assert (record["user"], record["identity"], record["result"]) == ("Chen", "ukey", "OK")
        assert "sealed by an operator" in stand.log()
        stand.unseal(stand.operators[1:])
        _serves(stand)
        with stand.client() as client:
            assert client.decrypt(blob) == b"data"
        eventually(lambda: operator.eq(*chains()))


@pytest.mark.soak
def test_who_may_not_seal(tmp_path: Path) -> None:
    with sealed(tmp_path) as stand, stand.door() as door:
        with refusal("KMS.0104", "sealed"):  # nor log in, while it is sealed
            door.session(stand.operators[0])
        with refusal("KMS.0104", "sealed"):
            door.sealing.Seal(pb.SealRequest())
        with refusal("KMS.0104", "sealed"):
            door.ukeys.ListUkeys(ukeys_pb2.ListUkeysRequest())
        stand.unseal()
        _serves(stand)
        with refusal("APIGW.0301"):
            door.sealing.Seal(pb.SealRequest())
        with refusal("APIGW.0301"):
            door.shut(operators("Mallory")[0])
        assert stand.health() == "SERVING"
        assert [each["result"] for each in _records(stand, "seal")] == ["KMS.0104", "APIGW.0301"]


# What is refused while it is sealed

_BAD: dict[str, Callable[[pb.GiveShareRequest, SealedStand], None]] = {
    "a signature of another UKey": lambda request, stand: _set(
        request, signature=stand.operators[1].sign(b"anything")
    ),
    "no signature of this box": lambda request, _: _set(request, box=request.box + b" "),
    "an empty box": lambda request, _: _set(request, box=b"{}"),
    "another's name": lambda request, stand: _set(request, fingerprint=stand.operators[1].fingerprint),
}


def _set(request: pb.GiveShareRequest, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(request, name, value)


@pytest.mark.parametrize("how", _BAD)
def test_a_share_that_is_not_the_ukeys_own(shut: SealedStand, how: str) -> None:
    with shut.door() as door:
        request = door.prepared(shut.operators[0])
        _BAD[how](request, shut)
        with refusal("KMS.0306", "not the share"):
            door.sealing.GiveShare(request)
        assert "Ada" not in door.status().attempt.given


def test_wrong_shares_that_are_signed_rightly(shut: SealedStand) -> None:
    ada, bruno, _ = shut.operators
    seal = shut.seal()
    other = sealfile.make({"hsm": "x"}, [each.holder for each in shut.operators], 2, now=0)
    with shut.door() as door:
        for wrong in (b"", bytes(32), ada.open(seal)[::-1], bruno.open(seal), ada.open(other), bytes(1000)):
            with refusal("KMS.0306", "not the share"):
                door.give(ada, wrong)
        assert list(door.status().attempt.given) == []


@pytest.mark.soak
def test_a_share_given_before_is_not_taken_again(tmp_path: Path) -> None:
    """What somebody has listened to is worth nothing in another attempt."""
    with sealed(tmp_path, {"HSMD__SEAL__ATTEMPT_MINUTES": "0.05"}) as stand, stand.door() as door:
        ada, bruno, chen = stand.operators
        old = door.prepared(ada)
        first = door.status().attempt.id
        door.sealing.GiveShare(old)
        door.sealing.GiveShare(old)
        eventually(lambda: not door.status().HasField("attempt"), 30)  # it has expired
        with refusal("KMS.0306", "expired"):
            door.sealing.GiveShare(old)
        second = door.begin(bruno).attempt.id
        assert second != first
        old.attempt = second
        with refusal("KMS.0306", "not the share"):
            door.sealing.GiveShare(old)
        assert not door.give(bruno).unsealed  # Ada's share of the first attempt is gone
        assert list(door.status().attempt.given) == ["Bruno"]
        assert stand.health() == "NOT_SERVING"
        door.give(chen)
        _serves(stand)


def test_strangers_and_nonsense(shut: SealedStand) -> None:
    (mallory,) = operators("Mallory")
    ada = shut.operators[0]
    with shut.door() as door:
        for fingerprint in (mallory.fingerprint, "0" * 64, "x", ada.fingerprint.upper(), ada.id):
            with refusal("KMS.0306", "no share"):
                door.sealing.BeginUnseal(pb.BeginUnsealRequest(fingerprint=fingerprint))
        asked = door.begin(ada)
        with refusal("KMS.0306", "no share"):
            door.sealing.GiveShare(packed(mallory, asked, bytes(32)))
        with refusal("KMS.0204", "fingerprint"):
            door.sealing.BeginUnseal(pb.BeginUnsealRequest())
        with pytest.raises(ApiError, match=f"{'KMS.0308'}.*fingerprint"):
            door.sealing.BeginUnseal(pb.BeginUnsealRequest(fingerprint="0" * 65))
        right = door.prepared(ada)
        for name, missing in (("attempt", ""), ("fingerprint", ""), ("box", b""), ("signature", b"")):
            request = pb.GiveShareRequest()
            request.CopyFrom(right)
            _set(request, **{name: missing})
            with refusal("KMS.0204", name):
                door.sealing.GiveShare(request)
        for name, long in (("attempt", "0" * 33), ("box", bytes(4097)), ("signature", bytes(1025))):
            request = pb.GiveShareRequest()
            request.CopyFrom(right)
            _set(request, **{name: long})
            with pytest.raises(ApiError, match=name):
                door.sealing.GiveShare(request)
        _set(right, attempt="0" * 32)
        with refusal("KMS.0306", "no such attempt"):
            door.sealing.GiveShare(right)


def test_no_certificate_no_word(shut: SealedStand) -> None:
    credentials = grpc.ssl_channel_credentials(shut.dev.ca.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{shut.admin_port}", credentials) as channel:
        call = channel.unary_unary(
            "/hsmd.v1.Sealing/GetSealStatus",
            request_serializer=pb.GetSealStatusRequest.SerializeToString,
            response_deserializer=pb.GetSealStatusResponse.FromString,
        )
        with pytest.raises(grpc.RpcError) as caught:
            call(pb.GetSealStatusRequest(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_public_port_has_no_seal(shut: SealedStand) -> None:
    with shut.client() as client, pytest.raises(ApiError) as caught:
        Door(client._channel).status()
    assert caught.value.status is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.soak
def test_guesses_are_slowed_down(tmp_path: Path) -> None:
    with sealed(tmp_path, {"HSMD__GRPC__WORKERS": "1"}) as stand, stand.door() as door:
        ada = stand.operators[0]
        codes = []
        for _ in range(14):
            with pytest.raises(ApiError) as caught:
                door.give(ada, bytes(32))
            codes.append(caught.value.code)
        assert codes[:10] == ["KMS.0306"] * 10
        assert "APIGW.0308" in codes[10:]


# What happens at once, and what goes wrong


@pytest.mark.soak
def test_three_at_once(tmp_path: Path) -> None:
    with sealed(tmp_path) as stand:
        barrier = threading.Barrier(3)

        def give(number: int) -> str:
            with stand.door() as door:
                request = door.prepared(stand.operators[number])
                barrier.wait(30)
                try:
                    return str(door.sealing.GiveShare(request).unsealed)
                except ApiError as error:
                    return error.code

        with ThreadPoolExecutor(3) as pool:
            told = sorted(pool.map(give, range(3)))
        assert told.count("True") == 1
        assert set(told) <= {"True", "False", "KMS.0306", "KMS.0308", ""}
        _serves(stand)
        assert len(_records(stand, "unseal")) == 1


@pytest.mark.soak
def test_a_refused_pin_is_tried_once(tmp_path: Path) -> None:
    stand = SealedStand(tmp_path)
    stand.seal_with({sealfile.HSM: "not-the-pin"})
    try:
        stand.start(gateway=False)
        with stand.door() as door:
            door.give(stand.operators[0])
            with refusal("KMS.0308", "refuses the PIN"):
                door.give(stand.operators[1])
            status = door.status()
            assert status.sealed
            assert not status.HasField("attempt")
            assert "refuses the PIN" in status.last_failure
            with refusal("KMS.0308", "refuses the PIN"):  # the token isn't asked again: it might lock itself
                door.begin(stand.operators[0])
            assert stand.health() == "NOT_SERVING"
            assert stand.log().count("away: the token refuses the PIN") == 1
            stand.seal_with({sealfile.HSM: stand.pin})  # another seal is another matter
            stand.unseal()
        _serves(stand)
        said = stand.log() + json.dumps(stand.audit())
        assert "not-the-pin" not in said
        assert stand.pin not in said
        results = [each["result"] for each in _records(stand, "giveShare")]
        assert results == ["OK", "KMS.0308", "OK", "OK"]
    finally:
        stand.stop()


@pytest.mark.soak
def test_a_wrong_token_is_not_served(tmp_path: Path) -> None:
    """A right PIN of a token that lacks our keys: sealed it stays, and the log says why."""
    stand = SealedStand(tmp_path)
    stand.add_clusters("vault-1")
    (keystore,) = [each for each in stand.settings["HSMD__KEYSTORES"].split('"') if "token=vault-1" in each]
    stand.seal_with({sealfile.HSM: (stand.dev.data / "pin-vault-1").read_text()})
    stand.settings |= {"HSMD__HSM__TOKEN": keystore, "HSMD__KEYSTORES": "[]"}
    try:
        stand.start(gateway=False)
        with stand.door() as door:
            door.give(stand.operators[0])
            with refusal("KMS.0308", "its log says why"):
                door.give(stand.operators[1])
            assert door.status().sealed
        assert stand.health() == "NOT_SERVING"
        assert "the token lacks hsmd-credential" in stand.log()
    finally:
        stand.stop()


@pytest.mark.soak
def test_a_seal_file_that_is_none(tmp_path: Path) -> None:
    stand = SealedStand(tmp_path)
    stand.seal_file.write_text("{}")
    try:
        with pytest.raises(Exception, match="exit code 78") as caught:
            stand.start(gateway=False)
        assert "no seal file" in str(caught.value)
    finally:
        stand.stop()


@pytest.mark.soak
def test_a_seal_file_that_goes_away_while_sealed(tmp_path: Path) -> None:
    with sealed(tmp_path) as stand, stand.door() as door:
        seal = stand.seal()
        door.give(stand.operators[0])
        stand.seal_file.unlink()
        with refusal("KMS.0308", "can't be read"):
            door.begin(stand.operators[1])
        assert str(stand.seal_file) in stand.log()
        sealfile.write(stand.seal_file, seal)
        door.give(stand.operators[1])
        _serves(stand)


@pytest.mark.soak
def test_a_pin_beside_the_seal_is_refused(tmp_path: Path) -> None:
    stand = SealedStand(tmp_path)
    stand.settings["HSMD__HSM__PIN_FILE"] = str(tmp_path / "pin")
    with pytest.raises(Exception, match="one of the two is due"):
        stand.start(gateway=False)
    stand.stop()
    stand.settings |= {"HSMD__HSM__PIN_FILE": "", "HSMD__ADMIN__ENABLED": "false"}
    with pytest.raises(Exception, match="administrators' door"):
        stand.start(gateway=False)
    stand.stop()


# The seal follows the registry


@pytest.mark.soak
def test_a_pin_change_that_was_cut_short(tmp_path: Path) -> None:
    """The file knows the old PIN and the new one, and which of them counts is the token's to say."""
    stand = SealedStand(tmp_path)
    next_pin = sealfile.HSM + sealfile.NEXT
    try:
        stand.seal_with({sealfile.HSM: "the-old-pin", next_pin: stand.pin})
        stand.start(gateway=False)
        stand.unseal()
        _serves(stand)
        eventually(lambda: stand.seal().names == (sealfile.HSM,))
        seal = stand.seal()
        given = {each.id: each.open(seal) for each in stand.operators[1:]}
        assert sealfile.unseal(seal, given) == {sealfile.HSM: stand.pin}
        stand.stop()
        stand.seal_with({sealfile.HSM: stand.pin, next_pin: "the-new-pin"})
        stand.start(gateway=False)
        stand.unseal()
        _serves(stand)
        eventually(lambda: stand.seal().names == (sealfile.HSM,))
    finally:
        stand.stop()


@pytest.mark.soak
def test_the_seal_follows_the_registry(tmp_path: Path) -> None:
    with sealed(tmp_path) as stand:
        ada, bruno, chen = stand.operators
        stand.unseal()
        _serves(stand)
        before = stand.seal()
        stand.behind("revoked", ada.id)
        eventually(lambda: stand.seal().id != before.id)
        seal = stand.seal()
        assert [each.holder for each in seal.shares] == [bruno.holder, chen.holder]
        assert sealfile.unseal(seal, {each.id: each.open(seal) for each in (bruno, chen)}) == {
            sealfile.HSM: stand.pin
        }
        stand.seal_file.unlink()  # it comes back, from what the daemon knows
        eventually(stand.seal_file.exists)
        stand.seal_file.write_text(sealfile.encode(before))  # and an old one put there doesn't stay
        eventually(lambda: stand.seal().share_of(ada.id) is None)
        stand.restart_daemon()
        with stand.door() as door:
            with refusal("KMS.0306", "no share"):
                door.begin(ada)
            assert list(door.status().holders) == ["Bruno", "Chen"]
        stand.unseal([chen, bruno])
        _serves(stand)


@pytest.mark.soak
def test_pins_of_keystores_are_sealed_too(tmp_path: Path) -> None:
    stand = SealedStand(tmp_path)
    stand.add_clusters("vault-1")
    pin_file = stand.dev.data / "pin-vault-1"
    pin = pin_file.read_text()
    try:
        stand.start(gateway=False)
        stand.unseal()  # with that PIN from its file: and then it is in the seal
        _serves(stand)
        eventually(lambda: "keystore:vault-1" in stand.seal().names)
        pin_file.unlink()
        stand.restart_daemon()
        stand.unseal()
        _serves(stand)
        with stand.client() as client:
            eventually(lambda: [each.token.state for each in client.status().keystores] == ["connected"])
        assert pin not in stand.log()
    finally:
        stand.stop()
