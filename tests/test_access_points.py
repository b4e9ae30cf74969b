"""Access points from end to end: made, listed, switched, deleted, and the private key of a Custom one."""

import base64
import json
import sqlite3
import subprocess
import threading
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from hsmd.cli.hsmctl import run
from hsmd.client import ApiError, Client
from hsmd.pb.v1 import access_points_pb2 as pb
from tests.calls import Operation, fresh, record, refusal, refused
from tests.keyspaces import create_point, custom_point, keyspace, private_key
from tests.stand import Stand, standing

ECS, CCE, CUSTOM = 1, 2, 3


def listed(client: Client, space: str, **page: Any) -> pb.ListAccessPointsResponse:
    request = pb.ListAccessPointsRequest(keyspace_id=space, **page)
    response: pb.ListAccessPointsResponse = client.access_points.ListAccessPoints(request)
    return response


def one(client: Client, space: str) -> pb.AccessPoint:
    (found,) = listed(client, space).access_points
    return found


def enable(client: Client, point: str) -> None:
    client.access_points.EnableAccessPoint(pb.EnableAccessPointRequest(access_point_id=point))


def disable(client: Client, point: str) -> None:
    client.access_points.DisableAccessPoint(pb.DisableAccessPointRequest(access_point_id=point))


def delete(client: Client, point: str) -> None:
    client.access_points.DeleteAccessPoint(pb.DeleteAccessPointRequest(access_point_id=point))


def path(stand: Stand, rest: str = "") -> str:
    return f"/v1.0/{stand.dev.project_id}/kms/access-points{rest}"


# Made and listed


def test_a_custom_point(stand: Stand, client: Client) -> None:
    space = keyspace()
    name = f"a:/_-{fresh()}"
    point = create_point(client, space, access_point_name=name, description="d" * 255)
    found = one(client, space)
    assert (found.access_point_id, found.access_point_name, found.keyspace_id) == (point, name, space)
    assert (found.type, found.state) == (CUSTOM, pb.ACCESS_POINT_STATE_ENABLED)
    assert found.created_by == stand.dev.user_id
    assert found.create_time == found.last_modify_time
    assert str(uuid.UUID(point)) == point


def test_machines_and_clusters_are_named(client: Client) -> None:
    space = keyspace()
    create_point(client, space, type=ECS, identity="an-ecs-id")
    create_point(client, space, type=CCE, identity="a public key", cluster_id="a-cluster")
    assert {each.type for each in listed(client, space).access_points} == {ECS, CCE}


def test_keyspace_ids_are_the_same_in_any_case(client: Client) -> None:
    space = keyspace()
    name = fresh()
    point = create_point(client, space.upper(), access_point_name=name)
    assert one(client, space).keyspace_id == space
    with refusal("KMS.1104"):
        create_point(client, space, access_point_name=name)
    disable(client, point.upper())
    assert one(client, space.upper()).state == pb.ACCESS_POINT_STATE_DISABLED


def test_names_are_unique_in_a_keyspace(client: Client) -> None:
    space, name = keyspace(), fresh()
    point = create_point(client, space, access_point_name=name)
    with refusal("KMS.1104") as seen:
        create_point(client, space, access_point_name=name)
    assert name in seen.last.message
    other = create_point(client, keyspace(), access_point_name=name)
    delete(client, point)
    assert create_point(client, space, access_point_name=name) not in (point, other)


def test_two_at_once_with_one_name(client: Client) -> None:
    space, name, codes = keyspace(), fresh(), []

    def create() -> None:
        try:
            create_point(client, space, access_point_name=name)
            codes.append("OK")
        except ApiError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == ["KMS.1104"] * 5 + ["OK"]
    assert len(listed(client, space).access_points) == 1


def test_pages(client: Client) -> None:
    space = keyspace()
    made = sorted(create_point(client, space, type=ECS, identity="x") for _ in range(5))
    seen, marker = [], ""
    for due in (2, 2, 1):
        page = listed(client, space, limit=2, marker=marker)
        assert page.page_info.current_count == len(page.access_points) == due
        seen += [each.access_point_id for each in page.access_points]
        marker = page.page_info.next_marker
    assert marker == ""
    assert seen == made
    delete(client, made[1])  # a page goes on behind an id, whether it is still there or not
    rest = listed(client, space, limit=100, marker=made[1])
    assert [each.access_point_id for each in rest.access_points] == made[2:]
    assert listed(client, keyspace()).page_info == pb.PageInfo(next_marker="", current_count=0)
    for limit in (0, 101, -1):
        with refusal("KMS.1601"):
            listed(client, space, limit=limit)
    with refusal("KMS.1602"):
        listed(client, space, marker="x")


# Switched and deleted


def test_disabled_and_enabled(stand: Stand, client: Client) -> None:
    space = keyspace()
    point = create_point(client, space)
    with refusal("KMS.1201"):
        enable(client, point)
    disable(client, point)
    found = one(client, space)
    assert found.state == pb.ACCESS_POINT_STATE_DISABLED
    assert found.last_modify_time.ToMilliseconds() >= found.create_time.ToMilliseconds()
    with refusal("KMS.1301"):
        disable(client, point)
    enable(client, point)
    assert one(client, space).state == pb.ACCESS_POINT_STATE_ENABLED


def test_deleted(client: Client) -> None:
    space = keyspace()
    point = create_point(client, space)
    delete(client, point)
    assert not listed(client, space).access_points
    for call in (delete, enable, disable, private_key):
        with refusal("KMS.0207"):
            call(client, point)


# The private key


def test_the_private_key(stand: Stand, client: Client) -> None:
    point, other = create_point(client), create_point(client)
    der = private_key(client, point)
    key = load_der_private_key(der, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert private_key(client, point) == der
    assert private_key(client, other) != der
    with closing(sqlite3.connect(f"file:{stand.dev.data}/store/hsmd.db?mode=ro", uri=True)) as store:
        row = store.execute("SELECT wrapped, public_key FROM access_points WHERE id = ?", (point,)).fetchone()
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert row[1] == public
    assert key.private_numbers().private_value.to_bytes(32, "big") not in row[0]
    disable(client, point)
    assert private_key(client, point) == der


def test_openssl_reads_the_private_key(client: Client) -> None:
    der = private_key(client, create_point(client))
    checked = subprocess.run(
        ["openssl", "pkey", "-inform", "DER", "-check", "-noout"], input=der, capture_output=True, check=True
    )
    assert b"valid" in checked.stdout + checked.stderr


def test_others_have_none(client: Client) -> None:
    with refusal("KMS.0308"):
        private_key(client, create_point(client, type=ECS, identity="x"))


def test_a_private_key_of_another_point_is_noticed(tmp_path: Path) -> None:
    """Rows are sealed: a changed one is refused, and the key stays where it is."""
    with standing(tmp_path, gateway=False) as stand, stand.client() as client:
        point, other = create_point(client), create_point(client)
        with closing(sqlite3.connect(stand.dev.data / "store" / "hsmd.db", timeout=30)) as store, store:
            store.execute(
                "UPDATE access_points SET wrapped = (SELECT wrapped FROM access_points WHERE id = ?)"
                " WHERE id = ?",
                (other, point),
            )
        with pytest.raises(ApiError) as caught:
            private_key(client, point)
        assert caught.value.code == "KMS.0101"
        assert private_key(client, other)


def test_after_a_restart(tmp_path: Path) -> None:
    with standing(tmp_path, gateway=False) as stand:
        space = keyspace()
        with stand.client() as client:
            point = custom_point(client, space)
            disable(client, point.id)
            before = one(client, space)
        stand.restart_daemon()
        with stand.client() as client:
            assert one(client, space) == before
            again = load_der_private_key(private_key(client, point.id), None)
            assert isinstance(again, ec.EllipticCurvePrivateKey)
            assert again.private_numbers() == point.key.private_numbers()


# Bad input


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"keyspace_id": ""}, "KMS.0204"),
        ({"keyspace_id": "x"}, "KMS.0308"),
        ({"keyspace_id": str(uuid.uuid4())[:-1]}, "KMS.0308"),
        ({"keyspace_id": "../" + str(uuid.uuid4())[3:]}, "KMS.0308"),
        ({"keyspace_id": str(uuid.uuid4()) + "0"}, "KMS.0308"),
        ({"keyspace_id": 7}, "KMS.0308"),
        ({"access_point_name": ""}, "KMS.0204"),
        ({"access_point_name": None}, "KMS.0204"),
        ({"access_point_name": "a b"}, "KMS.0308"),
        ({"access_point_name": "ä"}, "KMS.0308"),
        ({"access_point_name": "a\n"}, "KMS.0308"),
        ({"access_point_name": "x" * 256}, "KMS.0308"),
        ({"access_point_name": ["x"]}, "KMS.0308"),
        ({"type": None}, "KMS.0204"),
        ({"type": 0}, "KMS.0308"),
        ({"type": 4}, "KMS.0308"),
        ({"type": "Custom"}, "KMS.0308"),
        ({"type": True}, "KMS.0308"),
        ({"description": "x" * 256}, "KMS.0308"),
        ({"description": "\0"}, "KMS.0308"),
        ({"identity": "x"}, "KMS.0308"),
        ({"cluster_id": "x"}, "KMS.0308"),
        ({"type": 1}, "KMS.0204"),
        ({"type": 1, "identity": "x", "cluster_id": "x"}, "KMS.0308"),
        ({"type": 1, "identity": "x" * 4097}, "KMS.0308"),
        ({"type": 2, "identity": "x"}, "KMS.0204"),
        ({"type": 2, "cluster_id": "x"}, "KMS.0204"),
        ({"type": 2, "identity": "x", "cluster_id": "x" * 65}, "KMS.0308"),
    ],
)
def test_refused_parameters(
    stand: Stand, client: Client, rest: Operation, changes: dict[str, object], code: str
) -> None:
    space = keyspace()
    answer = rest("access-points", {"keyspace_id": space, "access_point_name": "name", "type": 3, **changes})
    refused(answer, code)
    assert not listed(client, space).access_points


@pytest.mark.parametrize("call", ["/enable", "/disable", "/get-privatekey", ""])
def test_points_that_are_not_there(stand: Stand, strange: Client, call: str) -> None:
    token, verb = stand.token(), "POST" if call else "DELETE"
    foreign = create_point(strange)
    for point in (str(uuid.uuid4()), foreign):
        seen = refused(stand.rest(verb, path(stand, f"/{point}{call}"), token=token), "KMS.0207")
        assert seen.message == f"There is no access point {point} here."
    for wrong in ("x", "%2e%2e", foreign + "0", foreign[:-1], "é"):
        answer = stand.rest(verb, path(stand, f"/{wrong.replace('é', '%C3%A9')}{call}"), token=token)
        refused(answer, "KMS.0308")
    assert private_key(strange, foreign)


def test_other_tenants_see_nothing(client: Client, strange: Client) -> None:
    space, name = keyspace(), fresh()
    create_point(client, space, access_point_name=name)
    assert not listed(strange, space).access_points
    create_point(strange, space, access_point_name=name)  # the same keyspace id is another keyspace
    assert len(listed(client, space).access_points) == 1


def test_roles(stand: Stand, client: Client) -> None:
    space = keyspace()
    keeper = stand.add_tenant(f"keeper-{fresh()}", ("KMS CMKFullAccess",))
    looker = stand.add_tenant(f"looker-{fresh()}", ("KMS CMKReadOnlyAccess",))
    point = create_point(client)
    for who in (keeper, looker):
        with stand.client(who) as caller:
            listed(caller, space)
            for call in (enable, disable, delete, private_key):
                with refusal("KMS.0330"):
                    call(caller, point)
            with refusal("KMS.0330"):
                create_point(caller, space)


# REST, the SDK, the audit log, the command line


def test_forms_over_rest(stand: Stand, rest: Operation) -> None:
    token, space = stand.token(), keyspace()
    made = rest("access-points", {"keyspace_id": space, "access_point_name": "till", "type": 3})
    assert made.status == 201
    assert set(made.json) == {"access_point_id"}
    point = made.json["access_point_id"]
    page = stand.rest("GET", path(stand, f"?keyspace_id={space}&limit=1"), token=token)
    assert page.status == 200
    assert page.json["page_info"] == {"next_marker": "", "current_count": 1}
    (found,) = page.json["access_points"]
    times = found.pop("create_time"), found.pop("lsat_modify_time")
    assert all(isinstance(each, str) and each.isdecimal() and len(each) == 13 for each in times)
    assert found == {
        "access_point_id": point,
        "keyspace_id": space,
        "access_point_name": "till",
        "state": 1,
        "type": 3,
        "created_by": stand.dev.user_id,
    }
    for call in ("disable", "enable"):
        answer = stand.rest("POST", path(stand, f"/{point}/{call}"), token=token)
        assert (answer.status, answer.raw) == (204, b"")
    key = stand.rest("POST", path(stand, f"/{point}/get-privatekey"), token=token)
    assert set(key.json) == {"access_point_id", "private_key"}
    assert load_der_private_key(base64.b64decode(key.json["private_key"], validate=True), None)
    gone = stand.rest("DELETE", path(stand, f"/{point}"), token=token)
    assert (gone.status, gone.raw) == (204, b"")
    for wrong in ("", "?keyspace_id=x", f"?keyspace_id={space}&limit=x", f"?keyspace_id={space}&limit=1.5"):
        assert stand.rest("GET", path(stand, wrong), token=token).status == 400


def test_by_the_sdk(stand: Stand) -> None:
    sdk, space = stand.sdk(), keyspace()
    body = kms.CreateAccessPointRequestBody(keyspace_id=space, access_point_name="till", type=3)
    point = sdk.create_access_point(kms.CreateAccessPointRequest(body=body)).access_point_id
    sdk.disable_access_point(kms.DisableAccessPointRequest(access_point_id=point))
    (found,) = sdk.list_access_point(kms.ListAccessPointRequest(keyspace_id=space, limit="10")).access_points
    assert (found.state, found.type, found.access_point_name) == (0, 3, "till")
    assert isinstance(found.lsat_modify_time, str)
    sdk.enable_access_point(kms.EnableAccessPointRequest(access_point_id=point))
    request = kms.DownloadAccessPointPrivateKeyRequest(access_point_id=point)
    key = sdk.download_access_point_private_key(request)
    assert key.access_point_id == point
    assert load_der_private_key(base64.b64decode(key.private_key), None)
    sdk.delete_access_point(kms.DeleteAccessPointRequest(access_point_id=point))
    page = sdk.list_access_point(kms.ListAccessPointRequest(keyspace_id=space))
    assert (page.page_info.current_count, page.page_info.next_marker, page.access_points) == (0, "", [])


def test_the_records(stand: Stand, rest: Operation) -> None:
    token = stand.token()
    body = {"keyspace_id": keyspace(), "access_point_name": "till", "type": 3}
    made = rest("access-points", body)
    point = made.json["access_point_id"]
    answers = [made]
    for call in ("disable", "enable", "get-privatekey", "enable"):
        answers.append(stand.rest("POST", path(stand, f"/{point}/{call}"), token=token))
    answers.append(stand.rest("DELETE", path(stand, f"/{point}"), token=token))
    found = [record(stand, answer.headers["X-Request-Id"]) for answer in answers]
    assert [(each["event"], each["result"]) for each in found] == [
        ("createAccessPoint", "OK"),
        ("disableAccessPoint", "OK"),
        ("enableAccessPoint", "OK"),
        ("getAccessPointPrivateKey", "OK"),
        ("enableAccessPoint", "KMS.1201"),
        ("deleteAccessPoint", "OK"),
    ]
    assert {each["resource"] for each in found} == {point}


def test_hsmctl(
    stand: Stand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {
        "HSMD_GRPC": stand.dev.grpc,
        "HSMD_CA": str(stand.dev.ca),
        "HSMD_CERT": str(stand.dev.certificate),
        "HSMD_KEY": str(stand.dev.key),
    }.items():
        monkeypatch.setenv(name, value)
    space, file = keyspace(), tmp_path / "till.pem"

    def hsmctl(*words: str) -> str:
        assert run(["access-point", *words]) == 0
        return capsys.readouterr().out

    point = hsmctl("create", "till", "--keyspace", space).strip()
    hsmctl("create", "pos", "--keyspace", space, "--type", "ECS", "--identity", "x")
    hsmctl("disable", point)
    found = json.loads(hsmctl("list", space, "--json"))["access_points"]
    assert {each["access_point_name"]: each["state"] for each in found} == {
        "till": "DISABLED",
        "pos": "ENABLED",
    }
    assert point in hsmctl("list", space)
    hsmctl("enable", point)
    hsmctl("private-key", point, str(file))
    assert file.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    assert file.stat().st_mode & 0o777 == 0o600
    assert run(["access-point", "private-key", point, str(file)]) != 0
    hsmctl("delete", point)
    assert point not in hsmctl("list", space)
