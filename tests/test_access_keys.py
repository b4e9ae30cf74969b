"""Permanent access keys: two a user, secrets shown once, switched off and removed for the next call."""

import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import huaweicloudsdkiam.v3 as iam
import huaweicloudsdkkms.v2 as kms
import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.client import ApiError, Client
from hsmd.pb.v1 import access_keys_pb2 as pb
from hsmd.pb.v1 import users_pb2
from tests.backstage import backstage
from tests.calls import record, refusal, refused
from tests.credentials import ask, good, iam_by, issued, kms_client, signed, void
from tests.people import Person, iam_client, login, person
from tests.stand import Stand, Tenant, elsewhere, standing
from tests.test_sdk import checked

PATH = "/v3.0/OS-CREDENTIAL/credentials"
ISO = "%Y-%m-%dT%H:%M:%S.%fZ"


@pytest.fixture
def ann(client: Client) -> Person:
    return person(client)


@pytest.fixture(scope="module")
def admin(stand: Stand) -> iam.IamClient:
    return iam_client(stand)


def create(client: Client, user_id: str, description: str = "") -> Any:
    wanted = pb.CreatePermanentAccessKeyRequest.Credential(user_id=user_id, description=description)
    request = pb.CreatePermanentAccessKeyRequest(credential=wanted)
    return client.access_keys.CreatePermanentAccessKey(request).credential


def update(client: Client, access_key: str, **fields: Any) -> Any:
    wanted = pb.UpdatePermanentAccessKeyRequest.Credential(**fields)
    request = pb.UpdatePermanentAccessKeyRequest(access_key=access_key, credential=wanted)
    return client.access_keys.UpdatePermanentAccessKey(request).credential


def listed(client: Client, user_id: str = "") -> list[str]:
    request = pb.ListPermanentAccessKeysRequest(user_id=user_id)
    return [each.access for each in client.access_keys.ListPermanentAccessKeys(request).credentials]


def delete(client: Client, access_key: str) -> None:
    client.access_keys.DeletePermanentAccessKey(pb.DeletePermanentAccessKeyRequest(access_key=access_key))


# By the cloud's SDK


def test_the_sdk_sees_to_access_keys(stand: Stand, admin: iam.IamClient, ann: Person) -> None:
    before = datetime.now(UTC)
    option = iam.CreateCredentialOption(user_id=ann.id, description="build server")
    body = iam.CreatePermanentAccessKeyRequestBody(credential=option)
    made = checked(
        admin.create_permanent_access_key(iam.CreatePermanentAccessKeyRequest(body=body)).credential
    )
    assert re.fullmatch("[A-Z0-9]{20}", made.access)
    assert re.fullmatch("[A-Za-z0-9]{40}", made.secret)
    assert (made.status, made.user_id, made.description) == ("active", ann.id, "build server")
    created = datetime.strptime(made.create_time, ISO).replace(tzinfo=UTC)
    assert abs((created - before).total_seconds()) < 60

    shown = admin.show_permanent_access_key(iam.ShowPermanentAccessKeyRequest(made.access)).credential
    checked(shown, absent=frozenset({"ShowCredential.last_use_time"}))
    assert shown.last_use_time is None
    backstage(stand, "role", ann.id, stand.dev.project_id, "KMS Administrator")
    theirs = kms_client(stand, made.access, made.secret, stand.dev.project_id)
    theirs.list_keys(kms.ListKeysRequest(body=kms.ListKeysRequestBody()))
    shown = checked(
        admin.show_permanent_access_key(iam.ShowPermanentAccessKeyRequest(made.access)).credential
    )
    used = datetime.strptime(shown.last_use_time, ISO).replace(tzinfo=UTC)
    assert created <= used

    (found,) = admin.list_permanent_access_keys(iam.ListPermanentAccessKeysRequest(ann.id)).credentials
    checked(found)
    assert found.access == made.access

    option = iam.UpdateCredentialOption(status="inactive", description="")
    body = iam.UpdatePermanentAccessKeyRequestBody(credential=option)
    changed = admin.update_permanent_access_key(
        iam.UpdatePermanentAccessKeyRequest(access_key=made.access, body=body)
    ).credential
    checked(changed)
    assert (changed.status, changed.description) == ("inactive", "")
    with pytest.raises(ClientRequestException) as caught:
        theirs.list_keys(kms.ListKeysRequest(body=kms.ListKeysRequestBody()))
    assert (caught.value.status_code, caught.value.error_code) == (401, "APIGW.0301")

    admin.delete_permanent_access_key(iam.DeletePermanentAccessKeyRequest(made.access))
    with pytest.raises(ClientRequestException) as caught:
        admin.show_permanent_access_key(iam.ShowPermanentAccessKeyRequest(made.access))
    assert caught.value.status_code == 404


def test_users_see_to_their_own(stand: Stand, client: Client, ann: Person, stranger: Tenant) -> None:
    first = create(client, ann.id)
    own = iam_by(stand, first.access, first.secret, ann.domain_id)
    other = person(client)
    body = iam.CreatePermanentAccessKeyRequestBody(credential=iam.CreateCredentialOption(ann.id))
    second = own.create_permanent_access_key(iam.CreatePermanentAccessKeyRequest(body)).credential
    found = own.list_permanent_access_keys(iam.ListPermanentAccessKeysRequest()).credentials
    assert [each.access for each in found] == [first.access, second.access]
    assert listed(client, ann.id) == [first.access, second.access]
    theirs = create(client, other.id)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: own.list_permanent_access_keys(iam.ListPermanentAccessKeysRequest(other.id)),
        lambda: own.show_permanent_access_key(iam.ShowPermanentAccessKeyRequest(theirs.access)),
        lambda: own.delete_permanent_access_key(iam.DeletePermanentAccessKeyRequest(theirs.access)),
        lambda: own.show_permanent_access_key(iam.ShowPermanentAccessKeyRequest("A" * 20)),
    )
    for refused_call in calls:
        with pytest.raises(ClientRequestException) as caught:
            refused_call()
        assert caught.value.status_code == 403
    own.delete_permanent_access_key(iam.DeletePermanentAccessKeyRequest(second.access))
    assert listed(client, ann.id) == [first.access]
    assert listed(client, other.id) == [theirs.access]


# What may not be


def test_two_a_user_also_at_once(client: Client, ann: Person) -> None:
    outcomes: list[str] = []

    def make() -> None:
        try:
            outcomes.append(create(client, ann.id).access)
        except ApiError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("IAM.0201") == 4
    assert sorted(listed(client, ann.id)) == sorted(each for each in outcomes if each != "IAM.0201")
    delete(client, listed(client, ann.id)[0])
    create(client, ann.id)
    with refusal("IAM.0201") as seen:
        create(client, ann.id)
    assert "akSkNumExceed" in seen.last.message


def test_another_domains_are_not_there(
    stand: Stand, client: Client, strange: Client, ann: Person, stranger: Tenant
) -> None:
    mine = create(client, ann.id).access
    for call in (
        lambda: create(strange, ann.id),
        lambda: listed(strange, ann.id),
        lambda: update(strange, mine, description="theirs"),
        lambda: delete(strange, mine),
        lambda: delete(client, stranger.access_key),
        lambda: create(client, "0" * 32),
        lambda: delete(client, "A" * 20),
    ):
        with refusal("IAM.0004"):
            call()
    assert listed(client, ann.id) == [mine]


@pytest.mark.parametrize(
    "credential",
    [
        None,
        {},
        {"user_id": ""},
        {"user_id": 5},
        {"user_id": "u" * 65},
        {"user_id": "u", "description": "d" * 256},
        {"user_id": "u", "description": ["d"]},
    ],
)
def test_requests_that_are_none(stand: Stand, client: Client, credential: object) -> None:
    token = login(stand, person(client))
    answer = stand.rest("POST", PATH, {"credential": credential}, token=token)
    assert answer.status in (400, 403)
    assert set(answer.json["error"]) == {"code", "message", "title"}


@pytest.mark.parametrize("status", ["on", "", 1, "ACTIVE"])
def test_a_status_that_is_none(stand: Stand, client: Client, ann: Person, status: object) -> None:
    made = create(client, ann.id)
    body = {"credential": {"status": status}}
    answer = stand.rest("PUT", f"{PATH}/{made.access}", body, token=login(stand, ann))
    if status == "":
        assert answer.json["credential"]["status"] == "active"
    else:
        refused(answer, "IAM.0011")


# In force at once, everywhere


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("many"), {"HSMD__GRPC__WORKERS": "3"}) as one:
        yield one


def test_a_key_is_out_with_the_next_call_on_every_worker(many: Stand) -> None:
    with many.client() as client:
        bob = person(client)
        made = create(client, bob.id)

        def answers() -> set[int]:
            return {
                signed(many, "GET", "/v3/regions", access_key=made.access, secret=made.secret).status
                for _ in range(8)
            }

        for _ in range(2):
            assert answers() == {200}
            update(client, made.access, status=pb.ACCESS_KEY_STATUS_INACTIVE)
            assert answers() == {401}
            update(client, made.access, status=pb.ACCESS_KEY_STATUS_ACTIVE)
        assert answers() == {200}
        client.users.UpdateUser(
            users_pb2.UpdateUserRequest(user_id=bob.id, user=users_pb2.UpdateUserRequest.User(enabled=False))
        )
        assert answers() == {401}
        client.users.UpdateUser(
            users_pb2.UpdateUserRequest(user_id=bob.id, user=users_pb2.UpdateUserRequest.User(enabled=True))
        )
        assert answers() == {200}
        many.restart_daemon()
        assert answers() == {200}
        delete(client, made.access)
        assert answers() == {401}


def test_records_name_the_key_and_no_secret(stand: Stand, client: Client, ann: Person) -> None:
    token = login(stand, ann)
    body = {"credential": {"user_id": ann.id}}
    answer = stand.rest("POST", PATH, body, token=token, source=elsewhere())
    made = answer.json["credential"]
    one = record(stand, answer.headers["X-Request-Id"])
    assert (one["event"], one["result"]) == ("createCredential", "OK")
    assert one["resource"] == f"access-key/{made['access']}"
    used = signed(stand, "GET", "/v3/regions", access_key=made["access"], secret=made["secret"])
    assert record(stand, used.headers["X-Request-Id"])["identity"] == "access-key"
    secret = made["secret"]
    assert not any(secret in str(each) for each in stand.audit())
    assert secret not in stand.log() + stand.log("gateway")
    stored = [each for each in stand.dev.data.rglob("*.db*") if each.is_file()]
    assert stored
    assert not any(secret.encode() in each.read_bytes() for each in stored)
    deleted = stand.rest("DELETE", f"{PATH}/{made['access']}", token=token)
    assert (deleted.status, deleted.raw) == (204, b"")


def test_what_was_made_by_a_key_ends_with_it(stand: Stand, client: Client, ann: Person) -> None:
    key = create(client, ann.id)
    proof = {"access": {"key": key.access}, "secret": {"key": key.secret}}
    token = issued(ask(stand, "hw_ak_sk", proof))
    again = issued(ask(stand, "token", {"id": token}))
    assert good(stand, token)
    assert good(stand, again)

    update(client, key.access, status=pb.ACCESS_KEY_STATUS_INACTIVE)
    assert void(stand, token)
    assert void(stand, again)
    update(client, key.access, status=pb.ACCESS_KEY_STATUS_ACTIVE)
    assert good(stand, again)
    delete(client, key.access)
    assert void(stand, token)
    assert void(stand, again)
    assert good(stand, login(stand, ann))
