"""Tenants can't see each other, roles bound what a caller may do, and changes count everywhere at once."""

import uuid

from hsmd.client import Client
from hsmd.pb.v1 import keys_pb2
from tests.backstage import backstage
from tests.calls import KEY_CALLS, fresh, record, refusal, refused, snapshot, urn
from tests.stand import Stand, Tenant


def test_tenants_can_not_see_each_other(
    stand: Stand, client: Client, strange: Client, stranger: Tenant
) -> None:
    alias = fresh()
    key_id = client.create_key(alias)
    blob, (_, wrapped) = client.encrypt(key_id, b"ours"), client.create_data_key(key_id)
    before = snapshot(client)
    absent = str(uuid.uuid4())
    texts = set()
    for name, call in KEY_CALLS.items():
        for reference in (key_id, f"alias/{alias}", urn(stand, alias), absent):
            code = "KMS.2201" if name.startswith("decrypt") else "KMS.0207"
            if name == "decrypt-datakey":
                call = lambda client, key: client.decrypt_data_key(key, wrapped)  # noqa: E731 -- the table's shape
                code = "KMS.0207"
            if name == "decrypt-data":
                call = lambda client, key: client.decrypt(blob, key_id=key)  # noqa: E731 -- the table's shape
                code = "KMS.0207"
            with refusal(code) as seen:
                call(strange, reference)
            texts.add(seen.last.message)
    assert texts == {"The key does not exist."}
    with refusal("KMS.2201"):
        strange.decrypt(blob)
    token = stand.token(stranger)
    project = stranger.project_id
    refused(stand.kms("describe-key", {"key_id": key_id}, token=token, project=project), "KMS.0207")
    refused(stand.kms("describe-key", {"key_id": absent}, token=token, project=project), "KMS.0207")
    assert snapshot(client) == before
    assert key_id not in {key.key_id for key in strange.list_keys()}
    assert strange.create_key(alias) != key_id  # its alias is free there


def test_projects_of_others_are_refused(stand: Stand, stranger: Tenant) -> None:
    texts = set()
    for project in (stranger.project_id, "0" * 32):
        with stand.client(project_id=project) as client, refusal("KMS.0307") as seen:
            client.create_key(fresh())
        texts.add(seen.last.message.replace(project, "P"))
    assert len(texts) == 1  # one that is and one that is not look the same


def test_a_reader_may_look_and_nothing_else(stand: Stand, client: Client, reader: Tenant) -> None:
    backstage(stand, "role", reader.user_id, stand.dev.project_id, "KMS CMKReadOnlyAccess")
    key_id = client.create_key(fresh())
    before = snapshot(client)
    with stand.client(reader, project_id=stand.dev.project_id) as looking:
        assert looking.describe_key(key_id).key_id == key_id
        assert key_id in {key.key_id for key in looking.list_keys()}
        assert looking.keys.CountKeys(keys_pb2.CountKeysRequest()).instance_num > 0
        assert looking.keys.ShowQuotas(keys_pb2.ShowQuotasRequest()).quotas.resources
        calls = {name: call for name, call in KEY_CALLS.items() if name != "describe-key"}
        calls["create-key"] = lambda who, _: who.create_key(fresh())
        calls["gen-random"] = lambda who, _: who.random(8)
        calls["get-status"] = lambda who, _: who.status()
        for call in calls.values():
            with refusal("KMS.0330") as seen:
                call(looking, key_id)
            assert record(stand, seen.last.request_id)["user_id"] == reader.user_id
    assert snapshot(client) == before


def test_a_change_is_in_force_for_every_connection_at_once(stand: Stand, client: Client) -> None:
    """Whichever worker answers: what was answered before counts for all that begins after."""
    key_id = client.create_key(fresh())
    others = [stand.client() for _ in range(6)]
    for other in others:
        other.encrypt(key_id, b"x")  # the key is loaded wherever they ended up
    for _ in range(5):
        client.disable(key_id)
        for other in others:
            with refusal("KMS.0209"):
                other.encrypt(key_id, b"x")
        client.enable(key_id)
        for other in others:
            other.encrypt(key_id, b"x")
    for other in others:
        other.close()
