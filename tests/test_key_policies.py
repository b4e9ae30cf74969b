"""Key policies from end to end: their terms, who may see and change them, and what is refused."""

import json
import threading
import uuid
from pathlib import Path
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest

from hsmd.cli.hsmctl import run
from hsmd.client import ApiError, Client
from hsmd.pb.v1 import key_policies_pb2 as pb
from tests.calls import Operation, fresh, record, refusal, refused
from tests.keyspaces import create_point, create_policy, keyspace, terms, update_policy
from tests.stand import Stand, standing

START, END = "2030-01-01T00:00:00Z", "2031-02-03T04:05:06Z"


@pytest.fixture(scope="module")
def space() -> str:
    return keyspace()


@pytest.fixture(scope="module")
def point(client: Client, space: str) -> str:
    return create_point(client, space)


def show(client: Client, policy: str) -> pb.KeyPolicy:
    response: pb.KeyPolicy = client.key_policies.ShowKeyPolicy(pb.ShowKeyPolicyRequest(policy_id=policy))
    return response


def listed(client: Client, space: str, **page: Any) -> pb.ListKeyPoliciesResponse:
    request = pb.ListKeyPoliciesRequest(keyspace_id=space, **page)
    response: pb.ListKeyPoliciesResponse = client.key_policies.ListKeyPolicies(request)
    return response


def delete(client: Client, policy: str) -> None:
    client.key_policies.DeleteKeyPolicy(pb.DeleteKeyPolicyRequest(policy_id=policy))


def path(stand: Stand, rest: str = "") -> str:
    return f"/v1.0/{stand.dev.project_id}/kms/key-policies{rest}"


# Kept as they are


def test_made_and_shown(stand: Stand, client: Client, space: str, point: str) -> None:
    name = fresh()
    text = terms(point, validityPeriod={"start_time": START, "end_time": END})
    policy = create_policy(client, space, text, policy_name=name, description="for tills")
    found = show(client, policy)
    assert (found.policy_id, found.policy_name, found.keyspace_id) == (policy, name, space)
    assert (found.description, found.created_by) == ("for tills", stand.dev.user_id)
    assert (found.policy.version, list(found.policy.allowed_access_point)) == ("1.0", [point])
    period = found.policy.validity_period
    assert (period.start_time, period.end_time) == (START, END)
    assert found.create_time == found.last_modify_time
    assert not found.HasField("last_access_time")
    assert str(uuid.UUID(policy)) == policy


@pytest.mark.parametrize(
    "more",
    [
        {"validityPeriod": {}},
        {"validity_period": {"start_time": START}},
        {"validity_period": {"end_time": END, "start_time": None}},
        {"validityPeriod": None, "allowed_data_security_zone": []},
        {"version": "12.3.4", "allowedDataSecurityZone": None},
    ],
)
def test_terms_that_are_right(client: Client, space: str, point: str, more: dict[str, Any]) -> None:
    found = show(client, create_policy(client, space, terms(point, **more))).policy
    period = more.get("validity_period") or {}
    assert found.validity_period.HasField("start_time") is bool(period.get("start_time"))
    assert found.validity_period.HasField("end_time") is bool(period.get("end_time"))
    assert found.version == more.get("version", "1.0")


def test_both_spellings_are_read(client: Client, space: str, point: str) -> None:
    other = create_point(client, space, type=1, identity="x")
    text = json.dumps(
        {"version": "1", "allowed_access_point": [point, other.upper()], "validity_period": {"end_time": END}}
    )
    found = show(client, create_policy(client, space, text)).policy
    assert list(found.allowed_access_point) == [point, other]
    assert found.validity_period.end_time == END


def test_changed(client: Client, space: str, point: str) -> None:
    other = create_point(client, space)
    policy = create_policy(client, space, terms(point), description="first")
    before = show(client, policy)
    request = pb.UpdateKeyPolicyRequest(policy_id=policy.upper(), policy=terms(other, version="2"))
    answer = client.key_policies.UpdateKeyPolicy(request)
    after = show(client, policy)
    assert (answer.policy_id, answer.policy, answer.description) == (policy, after.policy, "first")
    assert answer.last_modify_time == after.last_modify_time
    assert (after.policy.version, list(after.policy.allowed_access_point)) == ("2", [other])
    assert (after.policy_name, after.create_time) == (before.policy_name, before.create_time)
    assert after.last_modify_time.ToNanoseconds() >= before.last_modify_time.ToNanoseconds()
    client.key_policies.UpdateKeyPolicy(
        pb.UpdateKeyPolicyRequest(policy_id=policy, policy=terms(other), description="")
    )
    assert show(client, policy).description == ""


def test_names_are_unique_in_a_keyspace(client: Client, space: str, point: str) -> None:
    name = fresh()
    policy = create_policy(client, space, terms(point), policy_name=name)
    with refusal("KMS.1104"):
        create_policy(client, space.upper(), terms(point), policy_name=name)
    elsewhere = keyspace()
    create_policy(client, elsewhere, terms(create_point(client, elsewhere)), policy_name=name)
    delete(client, policy)
    with refusal("KMS.0207"):
        show(client, policy)
    create_policy(client, space, terms(point), policy_name=name)


def test_two_at_once_with_one_name(client: Client, space: str, point: str) -> None:
    name, codes = fresh(), []

    def create() -> None:
        try:
            create_policy(client, space, terms(point), policy_name=name)
            codes.append("OK")
        except ApiError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=create) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == ["KMS.1104"] * 4 + ["OK"]


def test_pages(client: Client) -> None:
    space = keyspace()
    text = terms(create_point(client, space))
    made = sorted(create_policy(client, space, text) for _ in range(3))
    first = listed(client, space, limit=2)
    assert [each.policy_id for each in first.keyspace_policies] == made[:2]
    assert first.page_info == listed(client, space, limit=2).page_info
    rest = listed(client, space, limit=2, marker=first.page_info.next_marker)
    assert [each.policy_id for each in rest.keyspace_policies] == made[2:]
    assert (rest.page_info.next_marker, rest.page_info.current_count) == ("", 1)
    for limit in (0, 101):
        with refusal("KMS.1601"):
            listed(client, space, limit=limit)
    with refusal("KMS.1602"):
        listed(client, space, marker="5")


def test_after_a_restart(tmp_path: Path) -> None:
    with standing(tmp_path, gateway=False) as stand:
        space = keyspace()
        with stand.client() as client:
            text = terms(create_point(client, space), validityPeriod={"end_time": END})
            before = show(client, create_policy(client, space, text, description="d"))
        stand.restart_daemon()
        with stand.client() as client:
            assert show(client, before.policy_id) == before


# Bad input


ANY = str(uuid.UUID(int=5))


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        "null",
        '"text"',
        "{}",
        "[" * 8000,
        '{"version": "1.0"}',
        terms(),
        terms(version=1),
        terms(ANY, version=1),
        terms(ANY, version="one"),
        terms(ANY, version="1.0.0.0.0"),
        terms(ANY, version="\u0661"),
        terms(ANY, validityPeriod="now"),
        terms(ANY, validityPeriod={"begin": START}),
        terms(ANY, validityPeriod={"start_time": "2030-01-01"}),
        terms(ANY, validityPeriod={"start_time": "2030-01-01T00:00:00+08:00"}),
        terms(ANY, validityPeriod={"start_time": "2030-02-30T00:00:00Z"}),
        terms(ANY, validityPeriod={"start_time": "1969-12-31T23:59:59Z"}),
        terms(ANY, validityPeriod={"start_time": "2030-01-01T00:00:00Z\n"}),
        terms(ANY, validityPeriod={"start_time": 1893456000}),
        terms(ANY, validityPeriod={"start_time": END, "end_time": START}),
        terms(ANY, validityPeriod={"start_time": END, "end_time": END}),
        terms(ANY, validityPeriod={}, validity_period={}),
        terms(ANY, allowed_access_point=[ANY]),
        terms(ANY, allowed_data_security_zone=["zone"]),
        terms(ANY, allowed_data_security_zone="zone"),
        terms(ANY, allowed_users=["x"]),
        terms(ANY).replace("{", '{"version": "1.0", '),
        terms(ANY, allowedAccessPoint=ANY),
        terms("x"),
        terms(ANY, allowedAccessPoint=[7]),
        terms(ANY, ANY.upper()),
        terms(*[str(uuid.UUID(int=number)) for number in range(101)]),
        terms(ANY, description="x" * 17_000),
        terms(ANY),  # right but for the access point, which is not there
    ],
)
def test_terms_that_are_wrong(client: Client, rest: Operation, space: str, point: str, text: str) -> None:
    policy = create_policy(client, space, terms(point))
    before = show(client, policy)
    refused(rest("key-policies", {"keyspace_id": space, "policy_name": fresh(), "policy": text}), "KMS.0308")
    with refusal("KMS.0308"):
        update_policy(client, policy, text)
    assert show(client, policy) == before


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"keyspace_id": None}, "KMS.0204"),
        ({"keyspace_id": "x"}, "KMS.0308"),
        ({"policy_name": ""}, "KMS.0204"),
        ({"policy_name": "a b"}, "KMS.0308"),
        ({"policy_name": "x" * 256}, "KMS.0308"),
        ({"policy": None}, "KMS.0204"),
        ({"policy": {"version": "1.0"}}, "KMS.0308"),
        ({"description": "x" * 256}, "KMS.0308"),
        ({"description": 7}, "KMS.0308"),
    ],
)
def test_refused_parameters(
    rest: Operation, space: str, point: str, changes: dict[str, object], code: str
) -> None:
    body = {"keyspace_id": space, "policy_name": fresh(), "policy": terms(point), **changes}
    refused(rest("key-policies", body), code)


def test_access_points_must_be_of_the_keyspace(client: Client, strange: Client, space: str) -> None:
    for point in (create_point(client), create_point(strange, space)):
        with refusal("KMS.0308") as seen:
            create_policy(client, space, terms(point))
        assert f"no access point {point}" in seen.last.message


@pytest.mark.parametrize("verb", ["GET", "PUT", "DELETE"])
def test_policies_that_are_not_there(
    stand: Stand, strange: Client, space: str, point: str, verb: str
) -> None:
    token, body = stand.token(), {"policy": terms(point)} if verb == "PUT" else None
    foreign = create_policy(strange, space, terms(create_point(strange, space)))
    for policy in (str(uuid.uuid4()), foreign, point):
        seen = refused(stand.rest(verb, path(stand, f"/{policy}"), body, token=token), "KMS.0207")
        assert seen.message == f"There is no key policy {policy} here."
    refused(stand.rest(verb, path(stand, "/x"), body, token=token), "KMS.0308")
    assert show(strange, foreign)


def test_roles(stand: Stand, client: Client, space: str, point: str) -> None:
    policy = create_policy(client, space, terms(point))
    for role in ("KMS CMKFullAccess", "KMS CMKReadOnlyAccess"):
        with stand.client(stand.add_tenant(f"user-{fresh()}", (role,))) as caller:
            assert not listed(caller, space).keyspace_policies
            with refusal("KMS.0207"):
                show(caller, policy)
            for change in (
                lambda: update_policy(caller, policy, terms(point)),
                lambda: delete(caller, policy),
                lambda: create_policy(caller, space, terms(point)),
            ):
                with refusal("KMS.0330"):
                    change()


# REST, the SDK, the audit log, the command line


def test_forms_over_rest(stand: Stand, rest: Operation, point: str, space: str) -> None:
    token, name = stand.token(), fresh()
    text = terms(point, validityPeriod={"start_time": START})
    made = rest("key-policies", {"keyspace_id": space, "policy_name": name, "policy": text})
    assert (made.status, set(made.json)) == (201, {"policy_id"})
    policy = made.json["policy_id"]
    shown = stand.rest("GET", path(stand, f"/{policy}"), token=token).json
    times = shown.pop("create_time"), shown.pop("last_modify_time")
    assert all(isinstance(each, str) and each.isdecimal() for each in times)
    common = {
        "policy_id": policy,
        "policy_name": name,
        "keyspace_id": space,
        "description": "",
        "created_by": stand.dev.user_id,
        "last_access_time": "",
    }
    spelled = {
        "version": "1.0",
        "validity_period": {"start_time": START},
        "allowed_access_point": [point],
        "allowed_data_security_zone": [],
    }
    assert shown == {**common, "policy": spelled}
    page = stand.rest("GET", path(stand, f"?keyspace_id={space}&limit=100"), token=token).json
    assert set(page) == {"page_info", "keyspace_policies"}
    (found,) = [each for each in page["keyspace_policies"] if each["policy_id"] == policy]
    assert (found.pop("create_time"), found.pop("last_modify_time")) == times
    otherwise = {"validityPeriod": spelled.pop("validity_period")}
    otherwise["allowedAccessPoint"] = spelled.pop("allowed_access_point")
    assert found == {**common, "policy": {**spelled, **otherwise}}
    answer = stand.rest("PUT", path(stand, f"/{policy}"), {"policy": terms(point)}, token=token)
    assert set(answer.json) == {"policy_id", "policy", "description", "last_modify_time"}
    gone = stand.rest("DELETE", path(stand, f"/{policy}"), token=token)
    assert (gone.status, gone.raw) == (204, b"")


def test_by_the_sdk(stand: Stand, point: str, space: str) -> None:
    sdk, name = stand.sdk(), fresh()
    text = terms(point, validityPeriod={"end_time": END})
    body = kms.CreateKeyPolicyRequestBody(space, name, text, "note")
    policy = sdk.create_key_policy(kms.CreateKeyPolicyRequest(body=body)).policy_id
    shown = sdk.show_key_policy(kms.ShowKeyPolicyRequest(policy_id=policy))
    assert shown.policy.validity_period.end_time == END
    assert shown.policy.allowed_access_point == [point]
    assert (shown.policy_name, shown.description) == (name, "note")
    page = sdk.list_key_policy(kms.ListKeyPolicyRequest(keyspace_id=space, limit="100"))
    (found,) = [each for each in page.keyspace_policies if each.policy_id == policy]
    assert found.policy.validity_period.end_time == END
    assert found.policy.allowed_access_point == [point]
    change = kms.UpdateKeyPolicyRequestBody(policy=terms(point, version="3"))
    changed = sdk.update_key_policy(kms.UpdateKeyPolicyRequest(policy_id=policy, body=change))
    assert (changed.policy.version, changed.description) == ("3", "note")
    sdk.delete_key_policy(kms.DeleteKeyPolicyRequest(policy_id=policy))


def test_the_records(stand: Stand, rest: Operation, point: str, space: str) -> None:
    token = stand.token()
    made = rest("key-policies", {"keyspace_id": space, "policy_name": fresh(), "policy": terms(point)})
    policy = made.json["policy_id"]
    answers = [
        made,
        stand.rest("GET", path(stand, f"/{policy}"), token=token),
        stand.rest("PUT", path(stand, f"/{policy}"), {"policy": terms(point)}, token=token),
        stand.rest("DELETE", path(stand, f"/{policy}"), token=token),
        stand.rest("DELETE", path(stand, f"/{policy}"), token=token),
    ]
    found = [record(stand, answer.headers["X-Request-Id"]) for answer in answers]
    assert [(each["event"], each["result"]) for each in found] == [
        ("createKeyPolicy", "OK"),
        ("showKeyPolicy", "OK"),
        ("updateKeyPolicy", "OK"),
        ("deleteKeyPolicy", "OK"),
        ("deleteKeyPolicy", "KMS.0207"),
    ]
    assert {each["resource"] for each in found} == {policy}


def test_hsmctl(
    stand: Stand, client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "HSMD_GRPC": stand.dev.grpc,
        "HSMD_CA": str(stand.dev.ca),
        "HSMD_CERT": str(stand.dev.certificate),
        "HSMD_KEY": str(stand.dev.key),
    }.items():
        monkeypatch.setenv(name, value)
    space = keyspace()
    point, other = create_point(client, space), create_point(client, space)

    def hsmctl(*words: str) -> str:
        assert run(["key-policy", *words]) == 0
        return capsys.readouterr().out

    policy = hsmctl("create", "tills", "--keyspace", space, "--allow", point, "--until", "2031-02-03").strip()
    shown = json.loads(hsmctl("show", policy, "--json"))
    assert shown["policy"]["validity_period"]["end_time"] == "2031-02-03T00:00:00Z"
    assert point in hsmctl("show", policy)
    hsmctl("update", policy, "--allow", other, "--from", "2030-01-01T12:00:00", "--description", "x")
    assert show(client, policy).policy.validity_period.start_time == "2030-01-01T12:00:00Z"
    (found,) = json.loads(hsmctl("list", space, "--json"))["key_policies"]
    assert (found["policy"]["allowed_access_point"], found["description"]) == ([other], "x")
    assert "2030-01-01T12:00:00Z" in hsmctl("list", space)
    hsmctl("delete", policy)
    assert policy not in hsmctl("list", space)
