"""Default keys of services: made at their first use, and recorded as made."""

from hsmd.client import Client
from tests.stand import Stand, Tenant


def test_the_making_of_a_default_key_is_recorded(stand: Stand, stranger: Tenant) -> None:
    with stand.client(stranger) as client:
        blob = client.encrypt("alias/dlf/default", b"data")
        key_id = blob[4:40].decode()
        assert client.decrypt(blob) == b"data"
        client.encrypt("alias/dlf/default", b"more")
    records = [each for each in stand.audit() if each["resource"] == key_id]
    made = [each for each in records if each["event"] == "createKey"]
    used = [each for each in records if each["event"] == "encryptData"]
    assert len(made) == 1
    assert (made[0]["identity"], made[0]["user"], made[0]["result"]) == ("system", "", "OK")
    assert made[0]["project_id"] == stranger.project_id
    assert made[0]["request_id"] == used[0]["request_id"]
    assert len(used) == 2


def test_keys_are_listed_by_enterprise_project(client: Client, stand: Stand) -> None:
    project = "11111111-2222-3333-4444-555555555555"
    body = {"key_alias": "of-an-enterprise-project", "enterprise_project_id": project}
    created = stand.kms("create-key", body).json["key_info"]["key_id"]
    listed = stand.kms("list-keys", {"enterprise_project_id": project}).json
    assert (listed["keys"], listed["total"]) == ([created], 1)
    other = stand.kms("list-keys", {"enterprise_project_id": project[::-1]}).json
    assert (other["keys"], other["total"], other["truncated"]) == ([], 0, "false")
    assert stand.kms("list-keys", {"enterprise_project_id": "all"}).json["total"] >= 1
    assert client.describe_key(created).sys_enterprise_project_id == project
