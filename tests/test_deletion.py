"""The end of a key: scheduled, taken back, and final when its day comes."""

import sqlite3
import time

import pytest

from hsmd.client import Client
from hsmd.pb.v1 import deletion_pb2, keys_pb2
from tests.backstage import backstage
from tests.calls import Operation, all_listed, fresh, refusal, refused, sequence, snapshot
from tests.stand import Stand, eventually

DAY = 24 * 60 * 60 * 1000


def _schedule(client: Client, key_id: str, days: int) -> deletion_pb2.ScheduleKeyDeletionResponse:
    response: deletion_pb2.ScheduleKeyDeletionResponse = client.deletion.ScheduleKeyDeletion(
        deletion_pb2.ScheduleKeyDeletionRequest(key_id=key_id, pending_days=days)
    )
    return response


@pytest.mark.parametrize("days", [7, 8, 1095, 1096])
def test_scheduled_for_a_day(client: Client, days: int) -> None:
    key_id = client.create_key(fresh())
    before = time.time_ns() // 1_000_000
    response = _schedule(client, key_id, days)
    after = time.time_ns() // 1_000_000
    assert (response.key_id, response.key_state) == (key_id, keys_pb2.KEY_STATE_PENDING_DELETION)
    key = client.describe_key(key_id)
    assert key.key_state == keys_pb2.KEY_STATE_PENDING_DELETION
    due = key.scheduled_deletion_date.ToMilliseconds()
    assert before + days * DAY <= due <= after + days * DAY


def test_scheduled_and_taken_back_over_rest(client: Client, rest: Operation) -> None:
    key_id = client.create_key(fresh())
    answer = rest("schedule-key-deletion", {"key_id": key_id, "pending_days": "7", "sequence": sequence()})
    assert (answer.status, answer.json) == (200, {"key_id": key_id, "key_state": "4"})
    due = rest("describe-key", {"key_id": key_id}).json["key_info"]["scheduled_deletion_date"]
    assert abs(int(due) - (time.time_ns() // 1_000_000 + 7 * DAY)) < DAY
    refused(rest("schedule-key-deletion", {"key_id": key_id, "pending_days": "30"}), "KMS.1402")
    assert rest("describe-key", {"key_id": key_id}).json["key_info"]["scheduled_deletion_date"] == due
    answer = rest("cancel-key-deletion", {"key_id": key_id, "sequence": sequence()})
    assert (answer.status, answer.json) == (200, {"key_id": key_id, "key_state": "3"})
    key = rest("describe-key", {"key_id": key_id}).json["key_info"]
    assert (key["key_state"], key["scheduled_deletion_date"]) == ("3", "")
    refused(rest("cancel-key-deletion", {"key_id": key_id}), "KMS.1501")


@pytest.mark.parametrize("days", [6, 1097, 0, -7, 2**31 - 1, -(2**31)])
def test_days_that_may_not_be(client: Client, days: int) -> None:
    key_id = client.create_key(fresh())
    before = snapshot(client)
    with refusal("KMS.1401"):
        _schedule(client, key_id, days)
    assert snapshot(client) == before


@pytest.mark.parametrize(
    "days", ["6", "1097", "", "7.5", 7.5, "1e1", "١٢", " 7", "0x7", True, [7], "9" * 400]
)
def test_days_that_may_not_be_over_rest(client: Client, rest: Operation, days: object) -> None:
    key_id = client.create_key(fresh())
    refused(rest("schedule-key-deletion", {"key_id": key_id, "pending_days": days}), "KMS.1401")
    assert client.describe_key(key_id).key_state == keys_pb2.KEY_STATE_ENABLED


def test_days_may_be_a_number_but_not_missing(client: Client, rest: Operation) -> None:
    key_id = client.create_key(fresh())
    refused(rest("schedule-key-deletion", {"key_id": key_id}), "KMS.0204")
    with refusal("KMS.0204"):
        client.deletion.ScheduleKeyDeletion(deletion_pb2.ScheduleKeyDeletionRequest(key_id=key_id))
    assert rest("schedule-key-deletion", {"key_id": key_id, "pending_days": 7}).status == 200


def test_a_key_that_waits_is_of_no_use(client: Client) -> None:
    alias = fresh()
    key_id = client.create_key(alias)
    blob, (_, wrapped) = client.encrypt(key_id, b"x"), client.create_data_key(key_id)
    client.disable(key_id)
    client.schedule_deletion(key_id, 7)  # from DISABLED as well
    for call in (
        lambda: client.encrypt(key_id, b"x"),
        lambda: client.decrypt(blob),
        lambda: client.create_data_key(key_id),
        lambda: client.encrypt_data_key(key_id, b"x" * 32),
        lambda: client.decrypt_data_key(key_id, wrapped),
        lambda: client.rename(key_id, fresh()),
        lambda: client.set_description(key_id, "x"),
    ):
        before = snapshot(client)
        with refusal("KMS.0210"):
            call()
        assert snapshot(client) == before
    with refusal("KMS.1201"):
        client.enable(key_id)
    with refusal("KMS.1301"):
        client.disable(key_id)
    with refusal("KMS.1104"):
        client.create_key(alias)  # its alias is kept until it is gone
    assert client.describe_key(f"alias/{alias}").key_id == key_id
    client.cancel_deletion(key_id)
    client.enable(key_id)
    assert client.decrypt(blob) == b"x"


def test_a_key_whose_day_has_come_is_gone_for_good(stand: Stand, client: Client, rest: Operation) -> None:
    alias, number = fresh(), sequence()
    key_id = client.create_key(alias, sequence=number)
    blob, (_, wrapped) = client.encrypt(key_id, b"x"), client.create_data_key(key_id)
    client.schedule_deletion(key_id, 7)
    backstage(stand, "due", key_id)
    # Gone from this moment, whether or not the job has come.
    for call in (
        lambda: client.describe_key(key_id),
        lambda: client.describe_key(f"alias/{alias}"),
        lambda: client.cancel_deletion(key_id),
        lambda: client.encrypt(key_id, b"x"),
        lambda: client.decrypt_data_key(key_id, wrapped),
        lambda: client.create_key(alias, sequence=number),
    ):
        with refusal("KMS.0207"):
            call()
    with refusal("KMS.2201"):
        client.decrypt(blob)
    refused(rest("describe-key", {"key_id": key_id}), "KMS.0207")
    eventually(lambda: key_id not in {key.key_id for key in client.list_keys()})
    material = sqlite3.connect(f"file:{stand.dev.data}/store/hsmd.db?mode=ro", uri=True)
    try:
        assert material.execute(
            "SELECT wrapped FROM key_versions WHERE key_id = ?", (key_id,)
        ).fetchall() == [(None,)]
    finally:
        material.close()
    (record,) = [
        each for each in stand.audit() if each["event"] == "deleteKey" and each["resource"] == key_id
    ]
    assert (record["result"], record["identity"], record["project_id"]) == (
        "OK",
        "system",
        stand.dev.project_id,
    )
    assert client.create_key(alias) != key_id  # the alias is free
    with refusal("KMS.2201"):
        client.decrypt(blob)
    waiting = all_listed(client, key_state=keys_pb2.KEY_STATE_PENDING_DELETION)
    assert key_id not in {each.key_id for each in waiting}
