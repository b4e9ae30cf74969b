"""Customer master keys from end to end: made, described, listed, switched, renamed, kept apart."""

import re
import threading
import time
import uuid

import pytest

from hsmd.client import Client
from hsmd.pb.v1 import keys_pb2
from hsmd.pb.v1.keys_pb2 import KeyState
from tests.calls import (
    KEY_CALLS,
    Operation,
    all_listed,
    fresh,
    listed,
    refusal,
    refused,
    sequence,
    snapshot,
    urn,
)
from tests.stand import Stand

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def _rest_details(stand: Stand, key_id: str, alias: str, created: str) -> dict[str, str]:
    """A new key as DEW describes it, all values strings."""
    return {
        "key_id": key_id,
        "domain_id": stand.dev.domain_id,
        "key_alias": alias,
        "realm": stand.dev.region,
        "key_spec": "AES_256",
        "key_usage": "ENCRYPT_DECRYPT",
        "key_description": "",
        "creation_date": created,
        "scheduled_deletion_date": "",
        "key_state": "2",
        "default_key_flag": "0",
        "key_type": "1",
        "expiration_time": "",
        "origin": "kms",
        "key_rotation_enabled": "false",
        "sys_enterprise_project_id": "0",
        "keystore_id": "0",
    }


# Create and describe


def test_a_new_key_over_grpc(stand: Stand, client: Client) -> None:
    alias, before = fresh(), time.time_ns() // 1_000_000
    request = keys_pb2.CreateKeyRequest(
        key_alias=alias, key_description="für alle", enterprise_project_id="0"
    )
    info = client.keys.CreateKey(request).key_info
    assert UUID.fullmatch(info.key_id)
    assert (info.domain_id, info.region_id, info.keystore_id) == (stand.dev.domain_id, stand.dev.region, "0")
    key = client.describe_key(info.key_id)
    made = key.creation_date.ToMilliseconds()
    assert before <= made <= time.time_ns() // 1_000_000
    expected = keys_pb2.Key(
        key_id=info.key_id,
        domain_id=stand.dev.domain_id,
        key_alias=alias,
        realm=stand.dev.region,
        key_spec=keys_pb2.KEY_SPEC_AES_256,
        key_usage=keys_pb2.KEY_USAGE_ENCRYPT_DECRYPT,
        key_description="für alle",
        creation_date=key.creation_date,
        key_state=keys_pb2.KEY_STATE_ENABLED,
        default_key_flag=False,
        key_type="1",
        origin=keys_pb2.ORIGIN_KMS,
        sys_enterprise_project_id="0",
        keystore_id="0",
    )
    assert key == expected
    assert not key.HasField("scheduled_deletion_date")


def test_a_new_key_over_rest(stand: Stand, rest: Operation) -> None:
    alias = fresh()
    made = rest("create-key", {"key_alias": alias})
    assert made.status == 200
    key_id = made.json["key_info"]["key_id"]
    assert UUID.fullmatch(key_id)
    assert made.json == {
        "key_info": {
            "key_id": key_id,
            "domain_id": stand.dev.domain_id,
            "keystore_id": "0",
            "region_id": stand.dev.region,
        }
    }
    described = rest("describe-key", {"key_id": key_id})
    assert described.status == 200
    created = described.json["key_info"]["creation_date"]
    assert re.fullmatch("[0-9]{13}", created)
    assert described.json == {"key_info": _rest_details(stand, key_id, alias, created)}


def test_every_parameter_of_create_key_is_taken(rest: Operation) -> None:
    project = str(uuid.uuid4())
    body = {
        "key_alias": fresh("A:b/c_d-9"),
        "key_spec": "AES_256",
        "key_usage": "ENCRYPT_DECRYPT",
        "key_description": "d" * 255,
        "origin": "kms",
        "enterprise_project_id": project,
        "sequence": sequence(),
        "keystore_id": "0",
    }
    made = rest("create-key", body)
    assert made.status == 200
    key = rest("describe-key", {"key_id": made.json["key_info"]["key_id"]}).json["key_info"]
    for name in ("key_alias", "key_spec", "key_usage", "key_description", "origin", "keystore_id"):
        assert key[name] == body[name]
    assert key["sys_enterprise_project_id"] == project


def test_aliases_and_descriptions_as_long_as_they_may_be(client: Client) -> None:
    alias = fresh().ljust(255, "x")
    key_id = client.create_key(alias, description="ü" * 255)
    assert client.describe_key(f"alias/{alias}").key_id == key_id
    with refusal("KMS.1101"):
        client.rename(key_id, alias + "x")
    with refusal("KMS.1103"):
        client.set_description(key_id, "ü" * 256)


@pytest.mark.parametrize(
    "alias", ["", "ä", "with space", "a" * 256, "tab\t", "a.b", "nul\0", "csms/default", "x/default"]
)
def test_aliases_that_may_not_be(client: Client, alias: str) -> None:
    before = snapshot(client)
    with refusal("KMS.1101" if alias else "KMS.0204"):
        client.create_key(alias)
    assert snapshot(client) == before


def test_an_alias_is_one_keys_only(client: Client) -> None:
    alias, other = fresh(), fresh()
    first, second = client.create_key(alias), client.create_key(other)
    with refusal("KMS.1104"):
        client.create_key(alias)
    with refusal("KMS.1104"):
        client.rename(second, alias)
    assert client.describe_key(f"alias/{alias}").key_id == first
    assert client.describe_key(second).key_alias == other
    client.rename(second, other)  # its own is no conflict


@pytest.mark.parametrize("operation", [name for name in KEY_CALLS if not name.startswith("decrypt")])
def test_keys_are_named_by_id_alias_andurn(stand: Stand, client: Client, operation: str) -> None:
    """The call means the same key whichever way it is named: its audit record names the key's id."""
    for name in (
        lambda key_id, _: key_id,
        lambda _, alias: f"alias/{alias}",
        lambda _, alias: urn(stand, alias),
    ):
        alias = fresh("named:by/it")
        key_id = client.create_key(alias)
        if operation == "enable-key":
            client.disable(key_id)
        if operation == "cancel-key-deletion":
            client.schedule_deletion(key_id, 7)
        KEY_CALLS[operation](client, name(key_id, alias))
        events = [each for each in stand.audit() if each["resource"] == key_id]
        assert events[-1]["result"] == "OK"
        assert len({each["event"] for each in events}) >= 2


def test_urns_of_other_places_name_nothing(stand: Stand, client: Client) -> None:
    alias = fresh()
    client.create_key(alias)
    for other in (
        f"kms:elsewhere:{stand.dev.domain_id}:alias:{alias}",
        f"kms:{stand.dev.region}:{'0' * 32}:alias:{alias}",
        urn(stand, alias + "x"),
    ):
        with refusal("KMS.0207"):
            client.describe_key(other)


@pytest.mark.parametrize(
    "reference",
    [
        "x",
        "alias/",
        "alias",
        "ALIAS/x",
        "alias/a b",
        "alias/" + "a" * 256,
        "00000000-0000-0000-0000-00000000000",
        "00000000-0000-0000-0000-0000000000000",
        "00000000-0000-0000-0000-00000000000G",
        "00000000-0000-0000-0000-000000000000\n",
        "0000000000000000-0000-0000-000000000000",
        "kms:local-1:0:alias:x",
        "kms:local-1:" + "0" * 32 + ":key:x",
        "k" * 5000,
        "' OR 1=1 --",
        "\x7f",
    ],
)
def test_references_that_are_none(client: Client, rest: Operation, reference: str) -> None:
    for call in KEY_CALLS.values():
        with refusal("KMS.0205"):
            call(client, reference)
    refused(rest("describe-key", {"key_id": reference}), "KMS.0205")


def test_upper_case_ids_are_not_ids(client: Client) -> None:
    key_id = client.create_key(fresh())
    with refusal("KMS.0205"):
        client.describe_key(key_id.upper())


# Sequences


def test_the_same_sequence_gives_the_same_key(client: Client, rest: Operation) -> None:
    alias, number = fresh(), sequence()
    first = client.create_key(alias, sequence=number)
    before = snapshot(client)
    assert client.create_key(alias, sequence=number) == first
    answer = rest("create-key", {"key_alias": alias, "sequence": number})
    assert (answer.status, answer.json["key_info"]["key_id"]) == (200, first)
    assert snapshot(client) == before


@pytest.mark.parametrize("changed", ["key_alias", "key_description", "enterprise_project_id"])
def test_a_sequence_is_for_one_request(client: Client, rest: Operation, changed: str) -> None:
    body = {
        "key_alias": fresh(),
        "key_description": "a",
        "enterprise_project_id": "0",
        "sequence": sequence(),
    }
    assert rest("create-key", body).status == 200
    before = snapshot(client)
    refused(rest("create-key", {**body, changed: fresh()[:36]}), "KMS.0206")
    assert snapshot(client) == before


def test_retries_at_once_make_one_key(client: Client) -> None:
    alias, number, made = fresh(), sequence(), []

    def create() -> None:
        made.append(client.create_key(alias, sequence=number))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(made) == 8
    assert len(set(made)) == 1


def test_a_strangers_sequence_is_another(client: Client, strange: Client) -> None:
    alias, number = fresh(), sequence()
    assert client.create_key(alias, sequence=number) != strange.create_key(alias, sequence=number)


# Lists


def test_pages(strict: Stand) -> None:
    """The strict stand has three keys, so that pages are known to the last entry."""
    with strict.client() as client:
        made = _three_keys(client)
        first = listed(client, limit=2)
        assert (list(first.keys), first.next_marker, first.truncated, first.total) == (made[:2], "2", True, 3)
        assert [key.key_id for key in first.key_details] == made[:2]
        second = listed(client, limit=2, marker=2)
        assert (list(second.keys), second.next_marker, second.truncated, second.total) == (
            made[2:],
            "",
            False,
            3,
        )
        whole = listed(client, limit=3)
        assert (list(whole.keys), whole.next_marker, whole.truncated) == (made, "", False)
        beyond = listed(client, marker=3)
        assert (list(beyond.keys), beyond.next_marker, beyond.truncated, beyond.total) == ([], "", False, 3)
        assert listed(client, marker=2**31 - 1).total == 3
        for limit in (0, -1, 1001, 2**31 - 1, -(2**31)):
            with refusal("KMS.1601"):
                listed(client, limit=limit)
        for marker in (-1, -(2**31)):
            with refusal("KMS.1602"):
                listed(client, marker=marker)


def test_pages_over_rest(stand: Stand, rest: Operation, client: Client) -> None:
    client.create_key(fresh())
    client.create_key(fresh())
    answer = rest("list-keys", {"limit": "1", "marker": "0"})
    assert answer.status == 200
    page = answer.json
    assert set(page) == {"keys", "key_details", "next_marker", "truncated", "total"}
    (key,) = page["key_details"]
    assert page["keys"] == [key["key_id"]]
    assert set(key) == set(_rest_details(stand, "", "", ""))
    assert all(type(value) is str for value in key.values())
    assert (page["next_marker"], page["truncated"]) == ("1", "true")
    assert type(page["total"]) is int
    last = rest("list-keys", {"limit": 1000, "marker": page["total"] - 1}).json  # numbers do as well
    assert (last["truncated"], last["next_marker"]) == ("false", "")
    refused(rest("list-keys", {"limit": "0"}), "KMS.1601")
    refused(rest("list-keys", {"limit": "1001"}), "KMS.1601")
    refused(rest("list-keys", {"marker": "-1"}), "KMS.1602")


def test_ten_keys_a_page_unless_asked(client: Client) -> None:
    for _ in range(11):
        client.create_key(fresh())
    assert len(listed(client).keys) == 10


def test_filters(client: Client, rest: Operation) -> None:
    enabled, disabled, pending = (client.create_key(fresh()) for _ in range(3))
    client.disable(disabled)
    client.schedule_deletion(pending, 7)

    def ids(**wanted: object) -> set[str]:
        return {each.key_id for each in all_listed(client, **wanted)}

    assert {enabled, disabled, pending} & ids(key_state=keys_pb2.KEY_STATE_ENABLED) == {enabled}
    assert {enabled, disabled, pending} & ids(key_state=keys_pb2.KEY_STATE_DISABLED) == {disabled}
    assert {enabled, disabled, pending} & ids(key_state=keys_pb2.KEY_STATE_PENDING_DELETION) == {pending}
    assert not {enabled, disabled, pending} & ids(key_state=keys_pb2.KEY_STATE_PENDING_IMPORT)
    assert {enabled, disabled, pending} <= ids(key_spec="AES_256")
    assert {enabled, disabled, pending} <= ids(key_spec="ALL")
    answer = rest("list-keys", {"key_state": "3", "key_spec": "AES_256", "limit": "1000"})
    assert {enabled, disabled, pending} & set(answer.json["keys"]) == {disabled}
    with refusal("KMS.1110"):
        listed(client, key_spec="DES")
    with refusal("KMS.0308"):
        listed(client, key_state=99)
    refused(rest("list-keys", {"key_state": "99"}), "KMS.0308")
    refused(rest("list-keys", {"key_spec": "aes_256"}), "KMS.1110")


# States


def test_enable_and_disable(client: Client, rest: Operation) -> None:
    key_id = client.create_key(fresh())
    off = rest("disable-key", {"key_id": key_id, "sequence": sequence()})
    assert (off.status, off.json) == (200, {"key_info": {"key_id": key_id, "key_state": "3"}})
    refused(rest("disable-key", {"key_id": key_id}), "KMS.1301")
    assert client.describe_key(key_id).key_state == keys_pb2.KEY_STATE_DISABLED
    on = rest("enable-key", {"key_id": key_id, "sequence": sequence()})
    assert (on.status, on.json) == (200, {"key_info": {"key_id": key_id, "key_state": "2"}})
    refused(rest("enable-key", {"key_id": key_id}), "KMS.1201")
    assert client.describe_key(key_id).key_state == keys_pb2.KEY_STATE_ENABLED
    status = client.keys.DisableKey(keys_pb2.DisableKeyRequest(key_id=key_id)).key_info
    assert (status.key_id, KeyState.Name(status.key_state)) == (key_id, "KEY_STATE_DISABLED")
    with refusal("KMS.1301"):
        client.disable(key_id)


def test_a_disabled_key_is_described_and_renamed_but_not_used(client: Client) -> None:
    key_id = client.create_key(fresh())
    blob, (_, wrapped) = client.encrypt(key_id, b"x"), client.create_data_key(key_id)
    client.disable(key_id)
    for call in (
        lambda: client.encrypt(key_id, b"x"),
        lambda: client.decrypt(blob),
        lambda: client.create_data_key(key_id),
        lambda: client.encrypt_data_key(key_id, b"x" * 32),
        lambda: client.decrypt_data_key(key_id, wrapped),
    ):
        with refusal("KMS.0209"):
            call()
    client.rename(key_id, fresh())
    client.set_description(key_id, "still here")
    client.enable(key_id)
    assert client.decrypt(blob) == b"x"


def test_rename_and_describe(client: Client, rest: Operation) -> None:
    old, new = fresh(), fresh()
    key_id = client.create_key(old)
    renamed = rest("update-key-alias", {"key_id": key_id, "key_alias": new})
    assert (renamed.status, renamed.json) == (200, {"key_info": {"key_id": key_id, "key_alias": new}})
    assert client.describe_key(f"alias/{new}").key_id == key_id
    with refusal("KMS.0207"):
        client.describe_key(f"alias/{old}")
    assert client.create_key(old) != key_id  # free again
    told = rest("update-key-description", {"key_id": key_id, "key_description": "the new one"})
    assert (told.status, told.json) == (
        200,
        {"key_info": {"key_id": key_id, "key_description": "the new one"}},
    )
    emptied = rest("update-key-description", {"key_id": key_id, "key_description": ""})
    assert (emptied.status, emptied.json["key_info"]["key_description"]) == (200, "")
    refused(rest("update-key-description", {"key_id": key_id}), "KMS.0204")
    assert client.describe_key(key_id).key_description == ""


# Counts and quota


def test_counts_and_quota(strict: Stand) -> None:
    with strict.client() as client:
        _three_keys(client)
        before = snapshot(client)
        with refusal("KMS.1105") as seen:
            client.create_key(fresh())
        assert "3" in seen.last.message
        assert snapshot(client) == before
        assert client.keys.CountKeys(keys_pb2.CountKeysRequest()).instance_num == 3
        (quota,) = client.keys.ShowQuotas(keys_pb2.ShowQuotasRequest()).quotas.resources
        assert (quota.type, quota.used, quota.quota) == ("CMK", 3, 3)
        # A default key is not counted, and neither counts against nor needs the quota.
        client.encrypt("alias/csms/default", b"x")
        assert client.keys.CountKeys(keys_pb2.CountKeysRequest()).instance_num == 3
        # A key that waits for its deletion is.
        key_id = listed(client).keys[0]
        client.schedule_deletion(key_id, 7)
        with refusal("KMS.1105"):
            client.create_key(fresh())
        client.cancel_deletion(key_id)
        client.enable(key_id)
        for key in client.list_keys():  # leave the stand as other tests expect it
            if key.default_key_flag:
                assert key.key_alias == "csms/default"


def test_counts_and_quota_over_rest(stand: Stand, client: Client) -> None:
    token, project = stand.token(), stand.dev.project_id
    custom = sum(not key.default_key_flag for key in client.list_keys())
    count = stand.rest("GET", f"/v1.0/{project}/kms/user-instances", token=token)
    assert (count.status, count.json) == (200, {"instance_num": custom})
    quota = stand.rest("GET", f"/v1.0/{project}/kms/user-quotas", token=token)
    assert quota.status == 200
    assert quota.json == {"quotas": {"resources": [{"type": "CMK", "used": custom, "quota": 100000}]}}


# Default keys


def test_a_default_key_is_made_when_it_is_first_used(stand: Stand) -> None:
    service = stand.add_tenant("service")
    with stand.client(service) as client:
        with refusal("KMS.0207"):
            client.describe_key("alias/csms/default")  # looking does not make one
        assert snapshot(client) == []
        blob = client.encrypt("alias/csms/default", b"secret of a service")
        assert client.decrypt(blob) == b"secret of a service"
        key = client.describe_key("alias/csms/default")
        assert (key.key_alias, key.default_key_flag) == ("csms/default", True)
        plain, wrapped = client.create_data_key(
            f"kms:{stand.dev.region}:{service.domain_id}:alias:evs/default"
        )
        assert client.decrypt_data_key("alias/evs/default", wrapped) == plain
        assert [each.key_alias for each in client.list_keys()] == ["csms/default", "evs/default"]
        assert client.keys.CountKeys(keys_pb2.CountKeysRequest()).instance_num == 0
        for call in (
            lambda: client.disable("alias/csms/default"),
            lambda: client.enable(key.key_id),
            lambda: client.rename(key.key_id, "mine"),
            lambda: client.set_description(key.key_id, "mine"),
            lambda: client.schedule_deletion(key.key_id, 7),
        ):
            before = snapshot(client)
            with refusal("KMS.0211"):
                call()
            assert snapshot(client) == before
        with refusal("KMS.0207"):
            client.encrypt("alias/unheard-of/default", b"x")
        with refusal("KMS.0207"):
            client.encrypt("alias/csms/other", b"x")


def test_a_default_key_over_rest(rest: Operation, client: Client) -> None:
    answer = rest("encrypt-data", {"key_id": "alias/obs/default", "plain_text": "x"})
    assert answer.status == 200
    key = rest("describe-key", {"key_id": answer.json["key_id"]}).json["key_info"]
    assert (key["key_alias"], key["default_key_flag"]) == ("obs/default", "1")
    refused(rest("disable-key", {"key_id": "alias/obs/default"}), "KMS.0211")


def test_a_default_key_used_first_by_many_is_one(stand: Stand) -> None:
    with stand.client(stand.add_tenant("crowd")) as client:
        blobs: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: blobs.append(client.encrypt("alias/kps/default", b"x")))
            for _ in range(8)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert [client.decrypt(blob) for blob in blobs] == [b"x"] * 8
        assert len({blob[4:40] for blob in blobs}) == 1
        assert len(snapshot(client)) == 1


def _three_keys(client: Client) -> list[str]:
    present = [key.key_id for key in client.list_keys() if not key.default_key_flag]
    made = [client.create_key(fresh()) for _ in range(3 - len(present))]
    return present + made
