"""Rotation from end to end: new versions, old ciphertexts, by itself and on demand, and what it survives."""

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing

import huaweicloudsdkkms.v2 as kms
import pytest

from hsmd.cli.hsmctl import run
from hsmd.client import ApiError, Client
from hsmd.pb.v1 import rotation_pb2 as pb
from tests.backstage import backstage
from tests.calls import Operation, fresh, record, records, refusal, refused, sequence
from tests.stand import Stand, Tenant, b64, eventually, standing

DAY = 24 * 60 * 60 * 1000
PATHS = ("enable-key-rotation", "disable-key-rotation", "get-key-rotation-status", "rotate-on-demand")


def enable(client: Client, key: str) -> None:
    client.rotation.EnableKeyRotation(pb.EnableKeyRotationRequest(key_id=key))


def disable(client: Client, key: str) -> None:
    client.rotation.DisableKeyRotation(pb.DisableKeyRotationRequest(key_id=key))


def interval(client: Client, key: str, days: int) -> None:
    request = pb.UpdateKeyRotationIntervalRequest(key_id=key, rotation_interval=days)
    client.rotation.UpdateKeyRotationInterval(request)


def rotate(client: Client, key: str) -> str:
    response: pb.RotateOnDemandResponse = client.rotation.RotateOnDemand(pb.RotateOnDemandRequest(key_id=key))
    return response.key_id


def status(client: Client, key: str) -> pb.GetKeyRotationStatusResponse:
    request = pb.GetKeyRotationStatusRequest(key_id=key)
    response: pb.GetKeyRotationStatusResponse = client.rotation.GetKeyRotationStatus(request)
    return response


CALLS: dict[str, Callable[[Client, str], object]] = {
    "enable-key-rotation": enable,
    "disable-key-rotation": disable,
    "update-key-rotation-interval": lambda client, key: interval(client, key, 90),
    "get-key-rotation-status": status,
    "rotate-on-demand": rotate,
}


def version_of(blob: bytes) -> int:
    return int.from_bytes(blob[44:48], "big")


def database(stand: Stand) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{stand.dev.data}/store/hsmd.db?mode=ro", uri=True)


def due(stand: Stand, key: str) -> int | None:
    with closing(database(stand)) as store:
        (found,) = store.execute("SELECT rotation_due FROM keys WHERE id = ?", (key,)).fetchone()
    return found  # type: ignore[no-any-return]  # SQLite's values come untyped


def alter(stand: Stand, key: str, **fields: object) -> None:
    backstage(stand, "alter", key, json.dumps(fields))


# Settings


def test_the_settings_of_a_key(stand: Stand, client: Client) -> None:
    key, before = client.create_key(fresh()), time.time_ns() // 1_000_000
    found = status(client, key)
    assert (found.key_rotation_enabled, found.rotation_interval, found.number_of_rotations) == (False, 365, 0)
    assert not found.HasField("last_rotation_time")
    assert not client.describe_key(key).key_rotation_enabled
    enable(client, key)
    found = status(client, key)
    assert (found.key_rotation_enabled, found.rotation_interval, found.number_of_rotations) == (True, 365, 0)
    assert client.describe_key(key).key_rotation_enabled
    assert [each.key_rotation_enabled for each in client.list_keys() if each.key_id == key] == [True]
    first = due(stand, key)
    assert first is not None
    assert before + 365 * DAY <= first <= time.time_ns() // 1_000_000 + 365 * DAY
    with refusal("KMS.2901"):
        enable(client, key)
    for days in (30, 365, 31, 31):
        interval(client, key, days)
        assert status(client, key).rotation_interval == days
    changed = due(stand, key)
    assert changed is not None
    assert before + 31 * DAY <= changed <= time.time_ns() // 1_000_000 + 31 * DAY
    disable(client, key)
    found = status(client, key)
    assert (found.key_rotation_enabled, found.rotation_interval) == (False, 365)
    assert due(stand, key) is None
    assert not client.describe_key(key).key_rotation_enabled
    settings: list[Callable[[], object]] = [lambda: disable(client, key), lambda: interval(client, key, 90)]
    for call in settings:
        with refusal("KMS.0313"):
            call()
    enable(client, key)
    assert status(client, key).rotation_interval == 365  # what was set before is forgotten


@pytest.mark.parametrize("days", [0, -30, 29, 366, 2**31 - 1, -(2**31)])
def test_intervals_that_may_not_be(stand: Stand, client: Client, days: int) -> None:
    key = client.create_key(fresh())
    enable(client, key)
    before = due(stand, key)
    with refusal("KMS.3001"):
        interval(client, key, days)
    assert (status(client, key).rotation_interval, due(stand, key)) == (365, before)


@pytest.mark.parametrize("days", ["", "29", 366, 30.5, "1e2", True, [90], {}, "٩٠", " 90", "9" * 400])
def test_intervals_that_may_not_be_over_rest(client: Client, rest: Operation, days: object) -> None:
    key = client.create_key(fresh())
    enable(client, key)
    body = {"key_id": key, "rotation_interval": days}
    refused(rest("update-key-rotation-interval", body), "KMS.3001")
    assert status(client, key).rotation_interval == 365


def test_over_rest(client: Client, rest: Operation) -> None:
    key = client.create_key(fresh())
    for operation, more in (
        ("enable-key-rotation", {"sequence": sequence()}),
        ("update-key-rotation-interval", {"rotation_interval": 40, "sequence": sequence()}),
        ("update-key-rotation-interval", {"rotation_interval": "41"}),
    ):
        answer = rest(operation, {"key_id": key, **more})
        assert (answer.status, answer.json) == (200, {})
    answer = rest("rotate-on-demand", {"key_id": key})
    assert (answer.status, answer.json) == (200, {"key_id": key})
    found = rest("get-key-rotation-status", {"key_id": key, "sequence": sequence()}).json
    materials = found.pop("key_materials")
    last = found.pop("last_rotation_time")
    assert found == {"key_rotation_enabled": True, "rotation_interval": 41, "number_of_rotations": 1}
    assert abs(int(last) - time.time_ns() // 1_000_000) < DAY
    assert [each["create_time"] for each in materials][1:] == [last]
    for each in materials:
        uuid.UUID(each["material_id"])
        assert (each["charge_id"], each["expiration_time"], each["state"]) == ("", "", 2)
    assert rest("describe-key", {"key_id": key}).json["key_info"]["key_rotation_enabled"] == "true"
    assert rest("disable-key-rotation", {"key_id": key}).json == {}
    assert rest("describe-key", {"key_id": key}).json["key_info"]["key_rotation_enabled"] == "false"
    found = rest("get-key-rotation-status", {"key_id": client.create_key(fresh())}).json
    assert (found["last_rotation_time"], found["number_of_rotations"]) == ("", 0)


def test_with_the_official_sdk(stand: Stand, client: Client) -> None:
    key, sdk = client.create_key(fresh()), stand.sdk()
    body = kms.OperateKeyRequestBody(key_id=key)
    sdk.enable_key_rotation(kms.EnableKeyRotationRequest(body=body))
    sdk.update_key_rotation_interval(
        kms.UpdateKeyRotationIntervalRequest(
            body=kms.UpdateKeyRotationIntervalRequestBody(key_id=key, rotation_interval=77)
        )
    )
    made = sdk.rotate_on_demand(kms.RotateOnDemandRequest(body=kms.RotateOnDemandRequestBody(key_id=key)))
    assert made.key_id == key
    found = sdk.show_key_rotation_status(kms.ShowKeyRotationStatusRequest(body=body))
    assert (found.key_rotation_enabled, found.rotation_interval, found.number_of_rotations) == (True, 77, 1)
    assert found.last_rotation_time == found.key_materials[1].create_time
    assert [each.state for each in found.key_materials] == [2, 2]
    assert len({each.material_id for each in found.key_materials}) == 2
    sdk.disable_key_rotation(kms.DisableKeyRotationRequest(body=body))
    found = sdk.show_key_rotation_status(kms.ShowKeyRotationStatusRequest(body=body))
    assert (found.key_rotation_enabled, found.number_of_rotations) == (False, 1)


# What is refused


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"origin": "external"}, "KMS.0312"),
        ({"origin": "external", "spec": "RSA_2048"}, "KMS.0312"),
        ({"spec": "RSA_2048"}, "KMS.0324"),
        ({"spec": "EC_P256"}, "KMS.0324"),
        ({"spec": "ML_DSA_65"}, "KMS.0324"),
        ({"keystore_id": "1" * 32}, "KMS.0338"),
        ({"spec": "HMAC_384"}, "KMS.0341"),
    ],
)
def test_keys_that_never_rotate(stand: Stand, client: Client, fields: dict[str, str], code: str) -> None:
    key = client.create_key(fresh())
    alter(stand, key, **fields)
    for name, call in CALLS.items():
        if name == "get-key-rotation-status":
            assert status(client, key).number_of_rotations == 0
            continue
        with refusal(code):
            call(client, key)
    assert not client.describe_key(key).key_rotation_enabled


def test_default_keys_are_not_the_tenants_to_rotate(client: Client) -> None:
    client.encrypt("alias/ims/default", b"x")
    for name, call in CALLS.items():
        if name != "get-key-rotation-status":
            with refusal("KMS.0211"):
                call(client, "alias/ims/default")
    assert status(client, "alias/ims/default").number_of_rotations == 0


def test_only_enabled_keys_rotate(client: Client) -> None:
    key, rotating = client.create_key(fresh()), client.create_key(fresh())
    enable(client, rotating)
    client.disable(key)
    client.disable(rotating)
    for call in (lambda: enable(client, key), lambda: rotate(client, key)):
        with refusal("KMS.0209"):
            call()
    interval(client, rotating, 60)  # its settings may change
    client.schedule_deletion(key, 7)
    client.schedule_deletion(rotating, 7)
    for change in (
        lambda: enable(client, key),
        lambda: rotate(client, key),
        lambda: disable(client, rotating),
    ):
        with refusal("KMS.0210"):
            change()
    with refusal("KMS.0210"):
        interval(client, rotating, 90)
    assert status(client, rotating).rotation_interval == 60
    client.cancel_deletion(rotating)
    disable(client, rotating)
    assert not status(client, rotating).key_rotation_enabled


@pytest.mark.parametrize("name", CALLS)
def test_keys_of_others_and_bad_names(
    stand: Stand, client: Client, strange: Client, reader: Tenant, name: str
) -> None:
    key, call = client.create_key(fresh()), CALLS[name]
    with refusal("KMS.0207") as foreign:
        call(strange, key)
    with refusal("KMS.0207") as absent:
        call(strange, str(uuid.uuid4()))
    assert foreign.last.message == absent.last.message
    assert record(stand, foreign.last.request_id)["result"] == "KMS.0207"
    for bad in ("x", key.upper(), key + " ", "alias/", "a" * 5000):
        with refusal("KMS.0205"):
            call(client, bad)
    with refusal("KMS.0204"):
        call(client, "")
    with refusal("KMS.0207"):
        call(client, "alias/" + fresh())
    code = "KMS.0207" if name == "get-key-rotation-status" else "KMS.0330"
    with stand.client(reader) as looking, refusal(code):
        call(looking, key)


@pytest.mark.parametrize("operation", PATHS)
def test_bad_bodies_over_rest(client: Client, rest: Operation, operation: str) -> None:
    refused(rest(operation, {}), "KMS.0204")
    refused(rest(operation, {"key_id": ""}), "KMS.0204")
    refused(rest(operation, {"key_id": None}), "KMS.0204")
    refused(rest(operation, {"key_id": 7}), "KMS.0205")
    refused(rest(operation, {"key_id": [client.create_key(fresh())]}), "KMS.0205")
    refused(rest(operation, b"{"), "KMS.0202")
    if operation != "rotate-on-demand":
        refused(rest(operation, {"key_id": client.create_key(fresh()), "sequence": "short"}), "KMS.0206")


# New versions


def test_a_new_version_encrypts_and_the_old_ones_decrypt(
    stand: Stand, client: Client, strange: Client
) -> None:
    alias = fresh()
    key = client.create_key(alias)
    blobs, wrapped = [client.encrypt(key, b"0", b"aad")], [client.create_data_key(key)]
    for number in range(1, 4):
        assert rotate(client, f"alias/{alias}") == key
        blobs.append(client.encrypt(key, b"%d" % number, b"aad"))
        wrapped.append(client.create_data_key(key))
    assert [version_of(blob) for blob in blobs] == [1, 2, 3, 4]
    assert [version_of(blob) for _, blob in wrapped] == [1, 2, 3, 4]
    for number, blob in enumerate(blobs):
        assert client.decrypt(blob, b"aad") == b"%d" % number
        for other in {1, 2, 3, 4} - {version_of(blob)}:  # another version, or none, opens nothing
            with refusal("KMS.2201"):
                client.decrypt(blob[:44] + other.to_bytes(4, "big") + blob[48:], b"aad")
    with refusal("KMS.2201"):
        client.decrypt(blobs[0][:44] + (5).to_bytes(4, "big") + blobs[0][48:], b"aad")
    for dek, blob in wrapped:
        assert client.decrypt_data_key(key, blob) == dek
    found = status(client, key)
    assert found.number_of_rotations == 3
    assert found.last_rotation_time == found.key_materials[-1].create_time
    created = [each.create_time.ToMilliseconds() for each in found.key_materials]
    assert created == sorted(created)
    assert status(client, key).key_materials == found.key_materials  # also their ids
    with closing(database(stand)) as store:
        material = store.execute(
            "SELECT wrapped FROM key_versions WHERE key_id = ? ORDER BY version", (key,)
        ).fetchall()
    assert len({row[0] for row in material}) == 4


def test_rotations_are_recorded_with_their_version(stand: Stand, client: Client) -> None:
    key = client.create_key(fresh())
    rotate(client, key)
    enable(client, key)
    found = [each for each in stand.audit() if each["resource"] == key]
    assert [(each["event"], each["result"], each["key_version"]) for each in found[1:]] == [
        ("rotateOnDemand", "OK", 2),
        ("enableKeyRotation", "OK", 0),
    ]


def test_two_rotations_at_once_are_two(stand: Stand, client: Client) -> None:
    key = client.create_key(fresh())
    blobs: list[tuple[bytes, bytes]] = []
    problems: list[Exception] = []

    def work(name: int) -> None:
        try:
            with stand.client() as own:
                for number in range(5):
                    rotate(own, key)
                    text = b"%d/%d" % (name, number)
                    blobs.append((text, own.encrypt(key, text)))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert status(client, key).number_of_rotations == 30
    assert [(text, client.decrypt(blob)) for text, blob in blobs] == [(text, text) for text, _ in blobs]
    assert version_of(client.encrypt(key, b"x")) == 31


# By itself


def test_a_key_rotates_when_its_day_has_come(stand: Stand, client: Client) -> None:
    key, waiting = client.create_key(fresh()), client.create_key(fresh())
    blob = client.encrypt(key, b"old")
    for each in (key, waiting):
        enable(client, each)
        interval(client, each, 30)
    client.disable(waiting)
    before = time.time_ns() // 1_000_000
    alter(stand, waiting, rotation_due=before - 400 * DAY)
    alter(stand, key, rotation_due=before - 400 * DAY)
    eventually(lambda: status(client, key).number_of_rotations)
    next_due = due(stand, key)
    assert next_due is not None
    assert before + 30 * DAY <= next_due <= time.time_ns() // 1_000_000 + 30 * DAY
    assert (client.decrypt(blob), version_of(client.encrypt(key, b"new"))) == (b"old", 2)
    (entry,) = [each for each in stand.audit() if each["event"] == "rotateKey" and each["resource"] == key]
    assert (entry["identity"], entry["result"], entry["key_version"]) == ("system", "OK", 2)
    assert entry["project_id"] == stand.dev.project_id
    assert status(client, waiting).number_of_rotations == 0  # disabled: it waits ...
    client.enable(waiting)
    eventually(lambda: status(client, waiting).number_of_rotations)  # ... and catches up, once
    following = due(stand, waiting)
    assert following is not None
    assert following > before
    assert status(client, waiting).number_of_rotations == 1


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A stand that is restarted, killed, and lives in other days."""
    with standing(tmp_path_factory.mktemp("rotation")) as one:
        yield one


def test_the_job_by_its_clock(own: Stand) -> None:
    with own.client() as client:
        monthly, yearly, off, broken, off_now = (client.create_key(fresh()) for _ in range(5))
        for key in (monthly, yearly, broken, off_now):
            enable(client, key)
        for key in (monthly, broken, off_now):
            interval(client, key, 30)
        client.disable(off_now)
        alter(own, broken, rotation_due=1, state=3)  # first in the row of those that are due
        with closing(sqlite3.connect(own.dev.data / "store" / "hsmd.db", timeout=30)) as store, store:
            store.execute("UPDATE keys SET description = 'forged', state = 2 WHERE id = ?", (broken,))
        backstage(own, "rotations", "29")
        turned = {key: status(client, key).number_of_rotations for key in (monthly, yearly, off, off_now)}
        assert set(turned.values()) == {0}
        backstage(own, "rotations", "31")
        backstage(own, "rotations", "31")  # what is done is not due any more
        turned = {key: status(client, key).number_of_rotations for key in (monthly, yearly, off, off_now)}
        assert turned == {monthly: 1, yearly: 0, off: 0, off_now: 0}
        backstage(own, "rotations", "1000")  # years late: once
        turned = {key: status(client, key).number_of_rotations for key in (monthly, yearly, off, off_now)}
        assert turned == {monthly: 2, yearly: 1, off: 0, off_now: 0}
        with closing(sqlite3.connect(own.dev.data / "store" / "hsmd.db", timeout=30)) as store, store:
            versions = store.execute("SELECT count(*) FROM key_versions WHERE key_id = ?", (broken,))
            assert versions.fetchone() == (1,)
            store.execute("UPDATE keys SET rotation_due = NULL WHERE id = ?", (broken,))  # let the log be


def test_fifty_rotations_and_a_restart(own: Stand) -> None:
    with own.client() as client:
        key = client.create_key(fresh())
        blobs = [client.encrypt(key, b"generation 0")]
        for number in range(1, 51):
            rotate(client, key)
            blobs.append(client.encrypt(key, b"generation %d" % number))
        assert [version_of(blob) for blob in blobs] == list(range(1, 52))
    own.stop()
    own.start()
    token = own.token()
    with own.client() as client:
        assert [client.decrypt(blob) for blob in blobs] == [b"generation %d" % number for number in range(51)]
        over_rest = [own.kms("decrypt-data", {"cipher_text": b64(blob)}, token=token) for blob in blobs]
        assert [each.json["plain_text"] for each in over_rest] == [f"generation {each}" for each in range(51)]
        assert status(client, key).number_of_rotations == 50
        assert len(status(client, key).key_materials) == 51
        for _ in range(50):
            rotate(client, key)
        with refusal("APIGW.0308"):  # a hundred a day
            rotate(client, key)
        assert status(client, key).number_of_rotations == 100
        rotate(client, client.create_key(fresh()))
        assert client.decrypt(blobs[0]) == b"generation 0"


def test_killed_while_keys_rotate(own: Stand) -> None:
    with own.client() as client:
        keys = [client.create_key(fresh()) for _ in range(3)]
    blobs: list[tuple[bytes, bytes]] = []
    answered = dict.fromkeys(keys, 0)
    going = threading.Event()

    def work(key: str) -> None:
        with own.client() as one:
            for number in range(90):
                text = b"%d" % number
                try:
                    blobs.append((text, one.encrypt(key, text)))
                    rotate(one, key)
                except ApiError:
                    return
                answered[key] += 1
                if answered[key] == 5:
                    going.set()

    threads = [threading.Thread(target=work, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    assert going.wait(60)
    own.kill_everything()
    for thread in threads:
        thread.join()
    own.start()
    with own.client() as client:
        assert [client.decrypt(blob) for _, blob in blobs] == [text for text, _ in blobs]
        for key in keys:
            turned = status(client, key).number_of_rotations
            assert answered[key] <= turned <= answered[key] + 1  # what was answered stands
            rotate(client, key)
            assert version_of(client.encrypt(key, b"x")) == turned + 2
            with closing(database(own)) as store:
                rows = store.execute(
                    "SELECT version, wrapped IS NOT NULL, used IS NOT NULL FROM key_versions"
                    " LEFT JOIN key_usage USING (key_id, version) WHERE key_id = ? ORDER BY version",
                    (key,),
                ).fetchall()
            assert rows == [(number, 1, 1) for number in range(1, turned + 3)]


# At the command line


def test_hsmctl(
    stand: Stand, client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in stand.dev.environment().items():
        monkeypatch.setenv(name, value)
    key = client.create_key(fresh())
    assert run(["key", "rotate", key]) == 0
    assert f"{key} is rotated." in capsys.readouterr().err
    assert run(["key", "rotation", key, "--every", "45", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["key_rotation_enabled"], shown["rotation_interval"]) == (True, 45)
    assert len(shown["key_materials"]) == 2
    assert run(["key", "rotation", key, "--every", "46"]) == 0
    assert "46" in capsys.readouterr().out
    assert run(["key", "rotation", key, "--off"]) == 0
    assert run(["key", "rotation", key, "--off"]) == 0  # it is off already
    assert not status(client, key).key_rotation_enabled
    assert run(["key", "rotation", key, "--off", "--every", "46"]) == 2
    client.disable(key)
    assert run(["key", "rotate", key]) == 1
    assert "KMS.0209" in capsys.readouterr().err


def test_every_call_leaves_one_record(stand: Stand, client: Client) -> None:
    with refusal("KMS.0313") as refused_call:
        disable(client, client.create_key(fresh()))
    (entry,) = records(stand, refused_call.last.request_id)
    assert (entry["event"], entry["result"]) == ("disableKeyRotation", "KMS.0313")
