"""Users: made, shown, changed and removed; their passwords; what ends when one is disabled or removed."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import huaweicloudsdkiam.v3 as iam
import huaweicloudsdkkms.v2 as kms
import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.client import ApiError, Client
from hsmd.domain import builtin
from hsmd.pb.v1 import groups_pb2, identity_pb2, users_pb2
from tests.backstage import backstage
from tests.calls import record, refusal, refused
from tests.people import PASSWORD, Person, ask_token, iam_client, login, name, person
from tests.stand import Answer, Stand, Tenant, elsewhere, standing
from tests.test_sdk import checked

NEXT = "Another-Horse-8"
ISO = "%Y-%m-%dT%H:%M:%S.%fZ"

# What IAM may leave out, and we do: it belongs to its console, or does not expire.
LEFT_OUT = frozenset(
    {
        *("Links.previous", "Links.next"),
        *(f"CreateUserResult.{each}" for each in ("status", "xdomain_id", "xdomain_type")),
        *(f"CreateUserResult.{each}" for each in ("password_expires_at", "default_project_id")),
        *("KeystoneCreateUserResult.password_expires_at", "KeystoneShowUserResult.password_expires_at"),
        *("KeystoneShowUserResult.last_project_id", "KeystoneListUsersResult.last_project_id"),
        *("KeystoneListUsersResult.password_expires_at", "KeystoneListUsersResult.pwd_strength"),
        *(f"ShowUserResult.{each}" for each in ("last_login_time", "last_pwd_auth_time", "pwd_strength")),
        *("ShowUserResult.pwd_create_time", "ShowUserResult.update_time"),
        *(f"UpdateUserResult.{each}" for each in ("password_expires_at", "xdomain_id", "xdomain_type")),
        *(f"KeystoneUpdateUserByAdminResult.{each}" for each in ("last_project_id", "password_expires_at")),
    }
)


@pytest.fixture(scope="module")
def admin(stand: Stand) -> iam.IamClient:
    return iam_client(stand)


@pytest.fixture
def ann(client: Client) -> Person:
    return person(client)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Room for three users a domain, on two workers."""
    settings = {"HSMD__LIMITS__USERS_PER_DOMAIN": "3", "HSMD__GRPC__WORKERS": "2"}
    with standing(tmp_path_factory.mktemp("small"), settings) as one:
        yield one


def show(stand: Stand, user_id: str, token: str) -> Answer:
    return stand.rest("GET", f"/v3/users/{user_id}", token=token, source=elsewhere())


def change(client: Client, user_id: str, **changes: Any) -> users_pb2.User:
    request = users_pb2.UpdateUserRequest(user_id=user_id, user=users_pb2.UpdateUserRequest.User(**changes))
    user: users_pb2.User = client.users.UpdateUser(request).user
    return user


# The official SDK


def test_the_sdk_makes_shows_and_removes_a_user(stand: Stand, admin: iam.IamClient) -> None:
    wanted = iam.CreateUserOption(
        name=name(),
        domain_id=stand.dev.domain_id,
        password=PASSWORD,
        email="ann@example.com",
        areacode="0086",
        phone="12345678901",
        pwd_status=False,
        access_mode="programmatic",
        xuser_type="TenantIdp",
        xuser_id="x-1",
        description="Accounts",
    )
    before = datetime.now(UTC)
    request = iam.CreateUserRequest(body=iam.CreateUserRequestBody(user=wanted))
    made = checked(admin.create_user(request), absent=LEFT_OUT).user
    for field in (
        "name",
        "email",
        "areacode",
        "phone",
        "access_mode",
        "xuser_type",
        "xuser_id",
        "description",
    ):
        assert getattr(made, field) == getattr(wanted, field), field
    assert (made.domain_id, made.enabled, made.pwd_status) == (stand.dev.domain_id, True, False)
    assert made.is_domain_owner is False
    created = datetime.strptime(made.create_time, ISO).replace(tzinfo=UTC)
    assert abs((created - before).total_seconds()) < 60

    shown = checked(admin.show_user(iam.ShowUserRequest(user_id=made.id)), absent=LEFT_OUT).user
    assert (shown.id, shown.name, shown.email) == (made.id, made.name, "ann@example.com")
    keystone = admin.keystone_show_user(iam.KeystoneShowUserRequest(user_id=made.id))
    assert checked(keystone, absent=LEFT_OUT).user.name == made.name
    listed = checked(admin.keystone_list_users(iam.KeystoneListUsersRequest(name=made.name)), absent=LEFT_OUT)
    assert [each.id for each in listed.users] == [made.id]

    assert admin.keystone_delete_user(iam.KeystoneDeleteUserRequest(user_id=made.id)).status_code == 204
    assert not admin.keystone_list_users(iam.KeystoneListUsersRequest(name=made.name)).users


def test_the_sdk_changes_a_user(stand: Stand, admin: iam.IamClient, ann: Person) -> None:
    option = iam.UpdateUserOption(description="one", email="a@b.example", enabled=True)
    body = iam.UpdateUserRequestBody(user=option)
    changed = checked(admin.update_user(iam.UpdateUserRequest(user_id=ann.id, body=body)), absent=LEFT_OUT)
    assert (changed.user.description, changed.user.email) == ("one", "a@b.example")
    keystone = iam.KeystoneUpdateUserOption(name=name(), domain_id=stand.dev.domain_id)
    request = iam.KeystoneUpdateUserByAdminRequest(
        user_id=ann.id, body=iam.KeystoneUpdateUserByAdminRequestBody(user=keystone)
    )
    renamed = checked(admin.keystone_update_user_by_admin(request), absent=LEFT_OUT).user
    assert (renamed.name, renamed.description) == (keystone.name, "one")
    assert ask_token(stand, ann.id, PASSWORD).status == 201


def test_the_sdk_makes_a_user_as_keystone_does(admin: iam.IamClient) -> None:
    option = iam.KeystoneCreateUserOption(name=name(), password=PASSWORD, enabled=False)
    request = iam.KeystoneCreateUserRequest(body=iam.KeystoneCreateUserRequestBody(user=option))
    made = checked(admin.keystone_create_user(request), absent=LEFT_OUT).user
    assert (made.name, made.enabled, made.pwd_status) == (option.name, False, True)


def test_the_sdk_changes_its_own_password(stand: Stand, ann: Person) -> None:
    token = login(stand, ann)
    credentials = iam_client(stand)  # any: the password is the evidence
    option = iam.KeystoneUpdatePasswordOption(password=NEXT, original_password=PASSWORD)
    request = iam.KeystoneUpdateUserPasswordRequest(
        user_id=ann.id, body=iam.KeystoneUpdateUserPasswordRequestBody(user=option)
    )
    assert credentials.keystone_update_user_password(request).status_code == 204
    assert ask_token(stand, ann.id, NEXT).status == 201
    refused(ask_token(stand, ann.id, PASSWORD), "IAM.0001")
    assert stand.rest("GET", "/v3/auth/domains", token=token).status == 403


# Lists


def test_lists_are_by_name_and_of_one_domain(
    stand: Stand, client: Client, stranger: Tenant, ann: Person
) -> None:
    listed = client.users.ListUsers(users_pb2.ListUsersRequest()).users
    names = [each.name for each in listed]
    assert names == sorted(names)
    assert {stand.dev.user, ann.name} <= set(names)
    assert {each.domain_id for each in listed} == {stand.dev.domain_id}
    theirs = users_pb2.ListUsersRequest(domain_id=stranger.domain_id)
    assert not client.users.ListUsers(theirs).users
    disabled = person(client, enabled=False)
    of_those = client.users.ListUsers(users_pb2.ListUsersRequest(enabled=False)).users
    assert disabled.id in {each.id for each in of_those}
    assert ann.id not in {each.id for each in of_those}


@pytest.mark.parametrize("expires", ["", "lt", "lt:", "lt:yesterday", "about:2030-01-01T00:00:00Z", "lt:x y"])
def test_a_filter_by_expiry_that_is_none(client: Client, expires: str) -> None:
    request = users_pb2.ListUsersRequest(password_expires_at=expires)
    if not expires:
        assert client.users.ListUsers(request).users
        return
    with refusal("IAM.0073"):
        client.users.ListUsers(request)


def test_a_password_that_does_not_expire_fits_neq_only(client: Client, ann: Person) -> None:
    for operator, fits in {"lt": False, "gte": False, "eq": False, "neq": True}.items():
        request = users_pb2.ListUsersRequest(
            name=ann.name, password_expires_at=f"{operator}:2030-01-01T00:00:00Z"
        )
        assert bool(client.users.ListUsers(request).users) is fits


# Bad input


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": ""}, "KMS.0204"),
        ({"name": "1st"}, "IAM.0073"),
        ({"name": " ann"}, "IAM.0073"),
        ({"name": "ann/of/accounts"}, "IAM.0073"),
        ({"name": "änn"}, "IAM.0073"),
        ({"name": "a" * 65}, "KMS.0308"),
        ({"domain_id": "0" * 32}, "IAM.0004"),
        ({"email": "nobody"}, "IAM.0073"),
        ({"email": "a@b@c"}, "IAM.0073"),
        ({"phone": "123"}, "IAM.0073"),
        ({"areacode": "0086"}, "IAM.0073"),
        ({"phone": "12a", "areacode": "0086"}, "IAM.0073"),
        ({"xuser_id": "1"}, "IAM.0073"),
        ({"access_mode": "sometimes"}, "IAM.0073"),
        ({"description": "x" * 256}, "KMS.0308"),
        ({"password": "x" * 129}, "KMS.0308"),
        ({"password": "short1"}, "IAM.0102"),
        ({"password": "alllowercase"}, "IAM.0102"),
        ({"password": "with a\ttab 1"}, "IAM.0102"),
        ({"password": "x-ann@example.com-1", "email": "ann@example.com"}, "IAM.0102"),
        ({"password": "pass-12345678901", "areacode": "86", "phone": "12345678901"}, "IAM.0102"),
        ({"name": "Ann-of-Accounts", "password": "Ann-of-Accounts"}, "IAM.0102"),
        ({"name": "Ann-of-Accounts", "password": "stnuoccA-fo-nnA"}, "IAM.0102"),
    ],
)
def test_bad_input(client: Client, changes: dict[str, Any], code: str) -> None:
    with refusal(code):
        person(client, **changes)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        {},
        {"user": None},
        {"user": []},
        {"user": {"name": 7}},
        {"user": {"password": PASSWORD}},
        {"user": {"name": "x" * 65}},
        {"user": {"name": "ann", "enabled": "perhaps"}},
    ],
)
def test_bad_bodies(stand: Stand, body: object) -> None:
    for verb, path in (("POST", "/v3/users"), ("POST", "/v3.0/OS-USER/users")):
        refused(stand.rest(verb, path, body, token=domain_token(stand)), "IAM.0011")


def domain_token(stand: Stand) -> str:
    answer = ask_token(stand, stand.dev.user_id, stand.dev.password, {"domain": {"id": stand.dev.domain_id}})
    assert answer.status == 201
    return str(answer.headers["X-Subject-Token"])


def test_a_name_is_taken_once(client: Client, ann: Person) -> None:
    with refusal("IAM.0005"):
        person(client, name=ann.name)
    other = person(client)
    with refusal("IAM.0005"):
        change(client, other.id, name=ann.name)
    assert change(client, ann.id, name=ann.name).name == ann.name


def test_two_who_take_one_name_at_once(client: Client) -> None:
    wanted, found = name(), []

    def take() -> None:
        try:
            found.append(person(client, name=wanted).id)
        except ApiError as error:
            found.append(error.code)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found.count("IAM.0005") == 1
    (listed,) = client.users.ListUsers(users_pb2.ListUsersRequest(name=wanted)).users
    assert listed.id in found


def test_the_quota(small: Stand) -> None:
    with small.client() as client:
        people = [person(client), person(client)]
        with refusal("IAM.0103") as seen:
            person(client)
        assert "3 users" in seen.last.message
        client.users.DeleteUser(users_pb2.DeleteUserRequest(user_id=people[0].id))
        people.append(person(client))
        for each in people[1:]:
            client.users.DeleteUser(users_pb2.DeleteUserRequest(user_id=each.id))


# Who may


def test_others_users_look_like_none(
    stand: Stand, client: Client, strange: Client, ann: Person, stranger: Tenant
) -> None:
    calls: list[Callable[[Client, str], object]] = [
        lambda who, user: who.users.ShowUser(users_pb2.ShowUserRequest(user_id=user)),
        lambda who, user: change(who, user, description="mine"),
        lambda who, user: who.users.DeleteUser(users_pb2.DeleteUserRequest(user_id=user)),
        lambda who, user: who.groups.ListGroupsForUser(groups_pb2.ListGroupsForUserRequest(user_id=user)),
    ]
    for call in calls:
        texts = []
        for user in (ann.id, "0" * 32):
            with refusal("IAM.0004") as seen:
                call(strange, user)
            texts.append(seen.last.message.replace(user, "ID"))
        assert texts[0] == texts[1]
    with refusal("IAM.0004"):
        calls[0](client, stranger.user_id)
    assert ask_token(stand, ann.id, ann.password).status == 201


def test_who_has_no_role_sees_oneself_only(stand: Stand, ann: Person) -> None:
    token = login(stand, ann)
    own = show(stand, ann.id, token)
    assert own.status == 200
    assert own.json["user"]["id"] == ann.id
    assert stand.rest("GET", f"/v3/users/{ann.id}/groups", token=token).json["groups"] == []
    assert stand.rest("GET", f"/v3/users/{ann.id}/projects", token=token).json["projects"] == []
    for verb, path, body in (
        ("GET", f"/v3/users/{stand.dev.user_id}", None),
        ("GET", "/v3/users", None),
        ("GET", f"/v3/users/{stand.dev.user_id}/groups", None),
        ("POST", "/v3/users", {"user": {"name": name()}}),
        ("PATCH", f"/v3/users/{ann.id}", {"user": {"enabled": True}}),
        ("DELETE", f"/v3/users/{ann.id}", None),
    ):
        refused(stand.rest(verb, path, body, token=token), "IAM.0003")


def test_a_user_keeps_its_own_address(stand: Stand, client: Client, ann: Person) -> None:
    token = login(stand, ann)
    path = f"/v3.0/OS-USER/users/{ann.id}/info"
    body = {"user": {"email": "ann@example.com", "mobile": "0086-12345678901"}}
    assert stand.rest("PUT", path, body, token=token).status == 204
    shown = client.users.ShowUser(users_pb2.ShowUserRequest(user_id=ann.id)).user
    assert (shown.email, shown.areacode, shown.phone) == ("ann@example.com", "0086", "12345678901")
    assert stand.rest("PUT", path, {"user": {"mobile": ""}}, token=token).status == 204
    shown = client.users.ShowUser(users_pb2.ShowUserRequest(user_id=ann.id)).user
    assert (shown.email, shown.areacode, shown.phone) == ("ann@example.com", "", "")
    refused(stand.rest("PUT", path, {"user": {"mobile": "123"}}, token=token), "IAM.0073")
    other = f"/v3.0/OS-USER/users/{stand.dev.user_id}/info"
    refused(stand.rest("PUT", other, body, token=token), "IAM.0004")


def test_nobody_locks_the_domain_out(stand: Stand, client: Client) -> None:
    with refusal("IAM.0104"):
        change(client, stand.dev.user_id, enabled=False)
    with refusal("IAM.0104"):
        client.users.DeleteUser(users_pb2.DeleteUserRequest(user_id=stand.dev.user_id))
    assert change(client, stand.dev.user_id, description="first").enabled


def test_no_other_administrator_removes_who_the_domain_was_made_for(stand: Stand, client: Client) -> None:
    bob = person(client)
    wanted = groups_pb2.CreateGroupRequest.Group(name=name("group"))
    group = client.groups.CreateGroup(groups_pb2.CreateGroupRequest(group=wanted)).group
    client.groups.AddUserToGroup(groups_pb2.AddUserToGroupRequest(group_id=group.id, user_id=bob.id))
    role = builtin.SECURITY_ADMINISTRATOR.id
    path = f"/v3/domains/{stand.dev.domain_id}/groups/{group.id}/roles/{role}"
    assert stand.rest("PUT", path, token=domain_token(stand)).status == 204
    token, owner = login(stand, bob), f"/v3/users/{stand.dev.user_id}"
    shown = stand.rest("GET", owner, token=token)
    assert shown.json["user"]["is_domain_owner"] is True
    refused(stand.rest("DELETE", owner, token=token), "IAM.0104")
    refused(stand.rest("PATCH", owner, {"user": {"enabled": False}}, token=token), "IAM.0104")
    refused(stand.rest("DELETE", f"/v3/users/{bob.id}", token=token), "IAM.0104")
    client.groups.DeleteGroup(groups_pb2.DeleteGroupRequest(group_id=group.id))
    refused(stand.rest("GET", owner, token=token), "IAM.0003")


# Passwords


def test_a_changed_password_ends_tokens(stand: Stand, client: Client, ann: Person) -> None:
    token = login(stand, ann)
    assert show(stand, ann.id, token).status == 200
    changed = change(client, ann.id, password=NEXT)
    assert changed.pwd_status is True
    assert changed.modify_pwd_time.ToMilliseconds() > changed.create_time.ToMilliseconds()
    void = show(stand, ann.id, token)
    assert void.status == 403
    assert record(stand, void.headers["X-Request-Id"])["result"] == "KMS.0302"
    refused(ask_token(stand, ann.id, PASSWORD), "IAM.0001")
    later = login(stand, Person(ann.id, ann.name, ann.domain_id, NEXT))
    assert show(stand, ann.id, later).status == 200


def test_an_own_password(stand: Stand, ann: Person) -> None:
    path = f"/v3/users/{ann.id}/password"

    def ask(original: str, chosen: str, at: str = path) -> Answer:
        body = {"user": {"original_password": original, "password": chosen}}
        return stand.rest("POST", at, body, source=elsewhere())

    wrong = ask("wrong", NEXT)
    unknown = ask(PASSWORD, NEXT, f"/v3/users/{'0' * 32}/password")
    assert refused(wrong, "IAM.0001").message == refused(unknown, "IAM.0001").message
    assert wrong.raw == unknown.raw
    one = record(stand, wrong.headers["X-Request-Id"])
    assert (one["event"], one["resource"], one["result"]) == (
        "updateUserPassword",
        f"user/{ann.id}",
        "IAM.0001",
    )
    refused(ask(PASSWORD, PASSWORD), "IAM.0102")
    refused(ask(PASSWORD, "weak"), "IAM.0102")
    done = ask(PASSWORD, NEXT)
    assert (done.status, done.raw) == (204, b"")
    two = record(stand, done.headers["X-Request-Id"])
    assert (two["user_id"], two["identity"], two["result"]) == (ann.id, "password", "OK")
    refused(ask(PASSWORD, "Third-Horse-9"), "IAM.0001")
    assert ask_token(stand, ann.id, NEXT).json["token"]["user"]["id"] == ann.id


def test_two_who_change_one_password_at_once(stand: Stand, ann: Person) -> None:
    chosen = [NEXT, "Third-Horse-9"]
    answers: dict[str, Answer] = {}

    def ask(password: str) -> None:
        body = {"user": {"original_password": PASSWORD, "password": password}}
        answers[password] = stand.rest("POST", f"/v3/users/{ann.id}/password", body, source=elsewhere())

    threads = [threading.Thread(target=ask, args=(each,)) for each in chosen]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    (won,) = [each for each in chosen if answers[each].status == 204]
    (lost,) = [each for each in chosen if each != won]
    assert answers[lost].status in (401, 429)
    assert ask_token(stand, ann.id, won).status == 201
    refused(ask_token(stand, ann.id, lost), "IAM.0001")


def test_without_a_password_there_is_no_login(stand: Stand, client: Client) -> None:
    bob = person(client, password="")
    for wrong in ("", PASSWORD, "$argon2id$"):
        answer = ask_token(stand, bob.id, wrong)
        refused(answer, "IAM.0001" if wrong else "IAM.0011")
    change(client, bob.id, password=PASSWORD)
    assert ask_token(stand, bob.id, PASSWORD).status == 201


def test_no_password_is_written_anywhere(stand: Stand, client: Client) -> None:
    secret = "Never-Written-" + name()
    bob = person(client, password=secret)
    login(stand, Person(bob.id, bob.name, bob.domain_id, secret))
    with refusal("IAM.0102"):
        change(client, bob.id, password=secret)
    texts = [stand.log(), stand.log("gateway"), json.dumps(stand.audit())]
    assert all(secret not in text for text in texts)
    assert secret not in str(client.users.ShowUser(users_pb2.ShowUserRequest(user_id=bob.id)))


# What ends


def everywhere(stand: Stand, call: Callable[[], Answer]) -> list[Answer]:
    """The call a dozen times over connections of its own, so that every worker gets some."""
    return [call() for _ in range(12)]


def test_disabling_counts_on_every_worker(stand: Stand, client: Client, ann: Person) -> None:
    token = login(stand, ann)
    assert {each.status for each in everywhere(stand, lambda: show(stand, ann.id, token))} == {200}
    assert change(client, ann.id, enabled=False).enabled is False
    for each in everywhere(stand, lambda: show(stand, ann.id, token)):
        assert each.status in (401, 403), each.raw
    refused(ask_token(stand, ann.id, ann.password), "IAM.0001")
    change(client, ann.id, enabled=True)
    assert show(stand, ann.id, token).status == 403, "a token from before stays void"
    assert show(stand, ann.id, login(stand, ann)).status == 200


def test_removing_counts_on_every_worker(stand: Stand, client: Client, ann: Person) -> None:
    group = client.groups.CreateGroup(
        groups_pb2.CreateGroupRequest(group=groups_pb2.CreateGroupRequest.Group(name=name("group")))
    ).group
    client.groups.AddUserToGroup(groups_pb2.AddUserToGroupRequest(group_id=group.id, user_id=ann.id))
    token = login(stand, ann)
    client.users.DeleteUser(users_pb2.DeleteUserRequest(user_id=ann.id))
    for each in everywhere(stand, lambda: show(stand, ann.id, token)):
        assert each.status in (401, 403), each.raw
    refused(ask_token(stand, ann.id, ann.password), "IAM.0001")
    members = client.groups.ListUsersForGroup(groups_pb2.ListUsersForGroupRequest(group_id=group.id))
    assert not members.users
    with refusal("IAM.0004"):
        client.users.DeleteUser(users_pb2.DeleteUserRequest(user_id=ann.id))


@pytest.mark.parametrize("how", ["disabled", "deleted"])
def test_access_keys_end_with_their_user(
    stand: Stand, client: Client, admin: iam.IamClient, ann: Person, how: str
) -> None:
    option = iam.CreateCredentialOption(user_id=ann.id)
    body = iam.CreatePermanentAccessKeyRequestBody(credential=option)
    made = admin.create_permanent_access_key(iam.CreatePermanentAccessKeyRequest(body=body)).credential
    backstage(stand, "role", ann.id, stand.dev.project_id, "KMS Administrator")
    tenant = Tenant(ann.domain_id, stand.dev.project_id, ann.id, made.access, made.secret)
    sdk = stand.sdk(tenant)
    for _ in range(4):
        assert sdk.list_keys(kms.ListKeysRequest(body=kms.ListKeysRequestBody())).status_code == 200
    if how == "disabled":
        change(client, ann.id, enabled=False)
    else:
        client.users.DeleteUser(users_pb2.DeleteUserRequest(user_id=ann.id))
    for _ in range(8):  # on every worker
        with pytest.raises(ClientRequestException) as caught:
            sdk.list_keys(kms.ListKeysRequest(body=kms.ListKeysRequestBody()))
        assert caught.value.status_code == 401


def test_a_disabled_users_certificate_is_nobodys(stand: Stand) -> None:
    """`hsmd init` binds a certificate to the first user of a domain, which only its operator can lock out."""
    tenant = stand.add_tenant("leaver")
    with stand.client(tenant) as own:
        own.identity.ListDomains(identity_pb2.ListDomainsRequest())
        backstage(stand, "user", tenant.user_id, json.dumps({"enabled": False}))
        for _ in range(4):
            with refusal("APIGW.0301"):
                own.identity.ListDomains(identity_pb2.ListDomainsRequest())
        backstage(stand, "user", tenant.user_id, json.dumps({"enabled": True}))
        own.identity.ListDomains(identity_pb2.ListDomainsRequest())


# What stays


def test_a_restart_keeps_users(small: Stand) -> None:
    with small.client() as client:
        one = person(client)
        change(client, one.id, description="kept", password=NEXT)
    small.restart_daemon()
    with small.client() as client:
        shown = client.users.ShowUser(users_pb2.ShowUserRequest(user_id=one.id)).user
        assert (shown.description, shown.name) == ("kept", one.name)
        assert not shown.HasField("last_login_time")
        assert ask_token(small, one.id, NEXT).status == 201
        shown = client.users.ShowUser(users_pb2.ShowUserRequest(user_id=one.id)).user
        assert shown.HasField("last_login_time")
        client.users.DeleteUser(users_pb2.DeleteUserRequest(user_id=one.id))


def test_audit(stand: Stand) -> None:
    token = domain_token(stand)
    wanted = name()
    made = stand.rest("POST", "/v3/users", {"user": {"name": wanted, "password": PASSWORD}}, token=token)
    assert made.status == 201
    user_id = made.json["user"]["id"]
    gone = stand.rest("DELETE", f"/v3/users/{user_id}", token=token)
    assert gone.status == 204
    again = stand.rest("DELETE", f"/v3/users/{user_id}", token=token)
    refused(again, "IAM.0004")
    for answer, event, result in (
        (made, "createUser", "OK"),
        (gone, "deleteUser", "OK"),
        (again, "deleteUser", "IAM.0004"),
    ):
        one = record(stand, answer.headers["X-Request-Id"])
        assert (one["event"], one["result"], one["resource"]) == (event, result, f"user/{user_id}")
        assert (one["user_id"], one["domain_id"]) == (stand.dev.user_id, stand.dev.domain_id)
