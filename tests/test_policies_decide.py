"""What policies tell apart: keys by id, kind and tags; callers, sources, times; requests; beside grants."""

import base64
from collections.abc import Callable, Iterator

import pytest

from hsmd.client import Client
from hsmd.pb.v1 import (
    aliases_pb2,
    assignments_pb2,
    grants_pb2,
    groups_pb2,
    policies_pb2,
)
from tests.calls import fresh, refusal, refused, urn
from tests.people import login, person
from tests.policies import (
    LOOK,
    PERMISSION,
    Worker,
    changed,
    made,
    new_group,
    on,
    role_of_user,
)
from tests.stand import Stand, Tenant, standing


def test_only_some_keys(stand: Stand, client: Client, worker: Callable[..., Worker]) -> None:
    names = [fresh(), fresh()]
    mine, theirs = (client.create_key(each) for each in names)
    ann = worker({"Effect": "Allow", "Action": ["kms:*:*"], **on(mine)})
    sealed, foreign = (base64.b64encode(client.encrypt(each, b"x")).decode() for each in (mine, theirs))
    for reference in (mine, f"alias/{names[0]}", urn(stand, names[0])):
        assert ann("describe-key", {"key_id": reference}).status == 200
    for reference in (theirs, f"alias/{names[1]}", urn(stand, names[1])):
        answer = ann("describe-key", {"key_id": reference})
        assert "kms:cmk:get" in refused(answer, PERMISSION).message
        refused(ann("encrypt-data", {"key_id": reference, "plain_text": "x"}), PERMISSION)
        refused(ann("disable-key", {"key_id": reference}), PERMISSION)
    assert client.describe_key(theirs).key_state == 2
    assert ann("decrypt-data", {"cipher_text": sealed}).json["plain_text"] == "x"
    refused(ann("decrypt-data", {"cipher_text": foreign}), PERMISSION)
    # Whether a key is there is not told by what is said of it.
    nowhere = "00000000-0000-4000-8000-000000000000"
    absent = refused(ann("describe-key", {"key_id": nowhere}), PERMISSION)
    present = refused(ann("describe-key", {"key_id": theirs}), PERMISSION)
    assert absent.message == present.message
    refused(ann("describe-key", {"key_id": "alias/" + fresh()}), PERMISSION)
    refused(ann("describe-key", {"key_id": "x"}), "KMS.0205")
    # What has no key yet, or is about none, is not one of these.
    refused(ann("create-key", {"key_alias": fresh()}), PERMISSION)
    refused(ann("gen-random", {"random_data_length": "64"}), PERMISSION)


def test_lists_show_what_one_may_see(stand: Stand, client: Client, worker: Callable[..., Worker]) -> None:
    keys = [client.create_key(fresh()) for _ in range(4)]
    mine = keys[:3]
    allowed = ["kms:cmk:list", "kms:cmk:getInstance", "kms:alias:*", "kms:cmkTag:*"]
    ann = worker({"Effect": "Allow", "Action": allowed, **on(*mine)})
    for key in keys:
        stand.rest(
            "POST",
            f"/v1.0/{stand.dev.project_id}/kms/{key}/tags",
            {"tag": {"key": "run", "value": keys[0]}},
            token=stand.token(),
        )
    first = ann("list-keys", {"limit": "2"}).json
    assert (first["keys"], first["total"], first["truncated"]) == (mine[:2], 3, "true")
    second = ann("list-keys", {"limit": "2", "marker": first["next_marker"]}).json
    assert (second["keys"], second["truncated"]) == (mine[2:], "false")
    wanted = {"action": "filter", "tags": [{"key": "run", "values": [keys[0]]}]}
    found = ann("resource_instances/action", wanted).json
    assert [each["resource_id"] for each in found["resources"]] == mine
    assert found["total_count"] == 3
    counted = ann("resource_instances/action", {**wanted, "action": "count"}).json
    assert counted["total_count"] == 3
    path = f"/v1.0/{stand.dev.project_id}/kms/"
    stand.rest(
        "POST",
        f"{path}{keys[3]}/tags",
        {"tag": {"key": "hidden", "value": "x"}},
        token=stand.token(),
    )
    seen = stand.rest("GET", path + "tags", token=ann.token).json
    assert seen == {"tags": [{"key": "run", "values": [keys[0]]}]}
    number = stand.rest("GET", path + "user-instances", token=ann.token).json
    assert number == {"instance_num": 3}
    hidden, shown = fresh(), fresh()
    for key, alias in ((keys[3], hidden), (mine[0], shown)):
        client.aliases.CreateAlias(aliases_pb2.CreateAliasRequest(key_id=key, alias=f"alias/{alias}"))
    path = f"/v1.0/{stand.dev.project_id}/kms/aliases"
    names: set[str] = set()
    marker = ""
    while True:
        page = stand.rest("GET", f"{path}?limit=1{marker}", token=ann.token).json[0]
        names |= {each["alias"] for each in page["aliases"]}
        if not page["page_info"]["next_marker"]:
            break
        marker = "&marker=" + page["page_info"]["next_marker"]
    assert f"alias/{shown}" in names
    assert f"alias/{hidden}" not in names
    # An alias is taken from the one key and given to the other: both must be one's own.
    body = {"alias": f"alias/{hidden}", "target_key_id": mine[0]}
    refused(ann("alias/associate", body), PERMISSION)
    assert ann("alias/associate", {"alias": f"alias/{shown}", "target_key_id": mine[1]}).status == 200


def test_who_sees_no_key_still_lists_none(worker: Callable[..., Worker]) -> None:
    ann = worker({"Effect": "Allow", "Action": ["kms:cmk:list"], **on("none")})
    assert ann("list-keys", {}).json["keys"] == []
    bob = worker({"Effect": "Deny", "Action": ["kms:cmk:list"], **on("none")})
    refused(bob("list-keys", {}), PERMISSION)


def test_kinds_of_keys(client: Client, worker: Callable[..., Worker]) -> None:
    only = {"StringEquals": {"kms:KeySpec": ["AES_256"], "kms:KeyUsage": ["ENCRYPT_DECRYPT"]}}
    ann = worker({"Effect": "Allow", "Action": ["kms:*:*"], "Condition": only})
    aes, mac = client.create_key(fresh()), client.create_key(fresh(), spec="HMAC_256")
    assert ann("describe-key", {"key_id": aes}).status == 200
    refused(ann("describe-key", {"key_id": mac}), PERMISSION)
    assert ann("create-key", {"key_alias": fresh()}).status == 200
    assert ann("create-key", {"key_alias": fresh(), "key_spec": "AES_256"}).status == 200
    refused(ann("create-key", {"key_alias": fresh(), "key_spec": "RSA_2048"}), PERMISSION)
    external = {"StringEquals": {"kms:KeyOrigin": ["external"]}}
    bob = worker(
        {"Effect": "Allow", "Action": ["kms:cmk:create"]},
        {"Effect": "Deny", "Action": ["kms:cmk:create"], "Condition": external},
    )
    assert bob("create-key", {"key_alias": fresh()}).status == 200
    refused(bob("create-key", {"key_alias": fresh(), "origin": "external"}), PERMISSION)


def test_tags_of_keys_from_the_next_call_on(
    stand: Stand, client: Client, worker: Callable[..., Worker]
) -> None:
    key = client.create_key(fresh())
    red = {"StringEquals": {"g:ResourceTag/team": ["red"]}}
    ann = worker({"Effect": "Allow", "Action": ["kms:cmk:*"], "Condition": red})
    path, admin = f"/v1.0/{stand.dev.project_id}/kms/{key}/tags", stand.token()
    for value, allowed in (("blue", False), ("red", True), ("Red", False), ("red", True)):
        stand.rest("POST", path, {"tag": {"key": "team", "value": value}}, token=admin)
        assert (ann("describe-key", {"key_id": key}).status == 200) is allowed
        assert (ann("encrypt-data", {"key_id": key, "plain_text": "x"}).status == 200) is allowed
        assert (key in ann("list-keys", {"limit": "1000"}).json["keys"]) is allowed
    stand.rest("DELETE", f"{path}/team", token=admin)
    refused(ann("describe-key", {"key_id": key}), PERMISSION)


def test_from_where(client: Client, worker: Callable[..., Worker]) -> None:
    here = {"IpAddress": {"g:SourceIp": ["127.77.0.0/16"]}}
    ann = worker({"Effect": "Allow", "Action": ["kms:cmk:list"], "Condition": here})
    assert ann("list-keys", {}, source="127.77.1.2").status == 200
    refused(ann("list-keys", {}, source="127.78.1.2"), PERMISSION)


def test_what_requests_say(client: Client, worker: Callable[..., Worker]) -> None:
    key = client.create_key(fresh(), spec="RSA_2048", usage="SIGN_VERIFY")
    pss = {
        "StringLike": {"kms:SigningAlgorithm": ["RSASSA_PSS_*"]},
        "StringEquals": {"kms:MessageType": ["RAW"]},
    }
    ann = worker({"Effect": "Allow", "Action": ["kms:cmk:sign"], "Condition": pss})
    good = {
        "key_id": key,
        "message": "eA==",
        "signing_algorithm": "RSASSA_PSS_SHA_256",
        "message_type": "RAW",
    }
    assert ann("sign", good).status == 200
    refused(ann("sign", {**good, "signing_algorithm": "RSASSA_PKCS1_V1_5_SHA_256"}), PERMISSION)
    refused(ann("sign", {**good, "message_type": "DIGEST"}), PERMISSION)
    refused(ann("sign", {name: value for name, value in good.items() if name != "message_type"}), PERMISSION)
    few = {"ForAllValues:StringEquals": {"kms:GrantOperations": ["describe-key", "sign"]}}
    bob = worker({"Effect": "Allow", "Action": ["kms:grant:create"], "Condition": few})
    grant = {"key_id": key, "grantee_principal": "0" * 32}
    assert bob("create-grant", {**grant, "operations": ["describe-key", "sign"]}).status == 200
    refused(bob("create-grant", {**grant, "operations": ["sign", "verify"]}), PERMISSION)
    soon = {"NumberLessThan": {"kms:PendingDays": ["30"]}}
    cy = worker(
        {"Effect": "Allow", "Action": ["kms:cmk:update"]},
        {"Effect": "Deny", "Action": ["kms:cmk:update"], "Condition": soon},
    )
    refused(cy("schedule-key-deletion", {"key_id": key, "pending_days": "7"}), PERMISSION)
    assert cy("schedule-key-deletion", {"key_id": key, "pending_days": "30"}).status == 200


def test_who_and_when(stand: Stand, client: Client, worker: Callable[..., Worker]) -> None:
    for condition, allowed in (
        ({"StringEquals": {"g:ProjectName": [stand.dev.region], "g:DomainName": ["development"]}}, True),
        ({"StringEquals": {"g:ProjectName": ["elsewhere"]}}, False),
        ({"StringEquals": {"g:PrincipalType": ["User"], "hsmd:IdentityKind": ["token"]}}, True),
        ({"StringNotEquals": {"hsmd:IdentityKind": ["token"]}}, False),
        ({"DateLessThan": {"g:CurrentTime": ["2020-01-01T00:00:00Z"]}}, False),
        ({"DateGreaterThan": {"g:CurrentTime": ["2020-01-01T00:00:00Z"]}}, True),
        ({"Bool": {"g:MFAPresent": ["true"]}}, False),
    ):
        ann = worker({"Effect": "Allow", "Action": ["kms:cmk:list"], "Condition": condition})
        assert (ann("list-keys", {}).status == 200) is allowed, condition


# Grants beside policies


def test_a_policy_that_denies_beats_a_grant(
    stand: Stand, client: Client, strange: Client, stranger: Tenant
) -> None:
    key = client.create_key(fresh())

    def use() -> object:
        return strange.describe_key(key)

    with refusal("KMS.0207"):
        use()
    grant = grants_pb2.CreateGrantRequest(
        key_id=key,
        grantee_principal=stranger.user_id,
        operations=["GRANT_OPERATION_DESCRIBE_KEY", "GRANT_OPERATION_RETIRE_GRANT"],
    )
    grant_id = client.grants.CreateGrant(grant).grant_id
    use()
    for statement in (
        {"Effect": "Deny", "Action": ["kms:cmk:get", "kms:grant:retire"]},
        {"Effect": "Deny", "Action": ["kms:*:*"], **on(key)},
        {
            "Effect": "Deny",
            "Action": ["kms:*:*"],
            "Condition": {"StringEquals": {"kms:KeySpec": ["AES_256"]}},
        },
    ):
        policy = made(strange, statement)
        given = {"user_id": stranger.user_id, "role_id": policy.id, "project": stranger.project_id}
        strange.assignments.GrantRoleToUser(role_of_user(**given))
        with refusal(PERMISSION):
            use()
        with refusal(PERMISSION):
            strange.grants.RetireGrant(grants_pb2.RetireGrantRequest(key_id=key, grant_id=grant_id))
        strange.assignments.RevokeRoleFromUser(role_of_user(**given))
        use()


def test_a_grant_adds_to_policies(stand: Stand, client: Client, worker: Callable[..., Worker]) -> None:
    mine, other = client.create_key(fresh()), client.create_key(fresh())
    ann = worker({"Effect": "Allow", "Action": ["kms:cmk:get"], **on(mine)})
    refused(ann("describe-key", {"key_id": other}), PERMISSION)
    request = grants_pb2.CreateGrantRequest(
        key_id=other,
        grantee_principal=ann.who.id,
        operations=["GRANT_OPERATION_DESCRIBE_KEY", "GRANT_OPERATION_ENCRYPT_DATA"],
    )
    client.grants.CreateGrant(request)
    assert ann("describe-key", {"key_id": other}).status == 200
    assert ann("encrypt-data", {"key_id": other, "plain_text": "x"}).status == 200
    refused(ann("encrypt-data", {"key_id": mine, "plain_text": "x"}), PERMISSION)


# Through groups, on all projects, and in force for the next call


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Two workers: what one is told counts on the other."""
    with standing(tmp_path_factory.mktemp("two"), {"HSMD__GRPC__WORKERS": "2"}) as one:
        yield one


def test_changes_count_for_the_next_call_on_every_worker(two: Stand) -> None:
    with two.client() as client:
        ann = person(client)
        group = new_group(client)
        member = {"group_id": group, "user_id": ann.id}
        policy = made(client, LOOK)
        place = {"group_id": group, "role_id": policy.id, "domain_id": two.dev.domain_id}
        client.groups.AddUserToGroup(groups_pb2.AddUserToGroupRequest(**member))
        client.assignments.GrantRoleToGroupOnProjects(assignments_pb2.GroupRoleRequest(**place))
        token = login(two, ann, {"project": {"id": two.dev.project_id}})

        def answers(code: str) -> None:
            for _ in range(6):  # connections are spread over the workers
                answer = two.kms("list-keys", {}, token=token)
                assert (answer.status == 200) if not code else bool(refused(answer, code))

        answers("")
        changed(client, policy.id, {"Effect": "Allow", "Action": ["kms:cmk:get"]})
        answers(PERMISSION)
        changed(client, policy.id, LOOK)
        answers("")
        client.assignments.RevokeRoleFromGroupOnProjects(assignments_pb2.GroupRoleRequest(**place))
        answers("KMS.0307")
        client.assignments.GrantRoleToGroupOnProjects(assignments_pb2.GroupRoleRequest(**place))
        answers("")
        client.groups.RemoveUserFromGroup(groups_pb2.RemoveUserFromGroupRequest(**member))
        answers("KMS.0307")
        client.groups.AddUserToGroup(groups_pb2.AddUserToGroupRequest(**member))
        answers("")
        client.policies.DeletePolicy(policies_pb2.DeletePolicyRequest(role_id=policy.id))
        answers("KMS.0307")


def test_policies_are_kept(two: Stand) -> None:
    with two.client() as client:
        ann, policy = person(client), made(client, LOOK)
        given = {"user_id": ann.id, "role_id": policy.id, "all_projects": True}
        client.assignments.GrantRoleToUser(role_of_user(**given))
    token = login(two, ann, {"project": {"id": two.dev.project_id}})
    two.restart_daemon()
    assert two.kms("list-keys", {}, token=token).status == 200
    refused(two.kms("gen-random", {"random_data_length": "64"}, token=token), PERMISSION)
