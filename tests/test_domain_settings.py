"""What a domain settles: rules for passwords and logins are kept, bounded, and count; so are addresses."""

import json
import time
from collections.abc import Iterator
from typing import Any

import huaweicloudsdkiam.v3 as iam
import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.client import Client
from hsmd.pb.v1 import domain_settings_pb2 as pb
from hsmd.pb.v1 import users_pb2
from tests.backstage import backstage
from tests.calls import record, refusal, refused
from tests.people import PASSWORD, Person, ask_token, iam_client, login, name, person
from tests.stand import Answer, Stand, Tenant, elsewhere, eventually, standing
from tests.test_sdk import checked
from tests.test_users import change, domain_token

NO_VPCS = frozenset({"AclPolicyResult.allow_vpc_endpoints"})
PASSWORD_DEFAULTS: dict[str, Any] = {
    "maximum_consecutive_identical_chars": 0,
    "maximum_password_length": 128,
    "minimum_password_age": 0,
    "minimum_password_length": 8,
    "number_of_recent_passwords_disallowed": 1,
    "password_not_username_or_invert": True,
    "password_validity_period": 0,
    "password_char_combination": 2,
}
LOGIN_DEFAULTS: dict[str, Any] = {
    "account_validity_period": 0,
    "custom_info_for_login": "",
    "lockout_duration": 15,
    "login_failed_times": 5,
    "period_with_login_failures": 15,
    "session_timeout": 60,
    "show_recent_login_info": False,
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Rules change for a whole domain: a stand of their own."""
    with standing(tmp_path_factory.mktemp("settings"), {"HSMD__GRPC__WORKERS": "2"}) as one:
        yield one


@pytest.fixture(scope="module")
def admin(own: Stand) -> iam.IamClient:
    return iam_client(own)


@pytest.fixture(scope="module")
def people(own: Stand) -> Iterator[Client]:
    with own.client() as one:
        yield one


@pytest.fixture(autouse=True)
def _defaults(own: Stand, people: Client) -> Iterator[None]:
    yield
    settings, domain = people.domain_settings, own.dev.domain_id
    words = {key: value for key, value in PASSWORD_DEFAULTS.items() if key != "maximum_password_length"}
    settings.UpdateDomainPasswordPolicy(
        pb.UpdateDomainPasswordPolicyRequest(
            domain_id=domain, password_policy=pb.UpdateDomainPasswordPolicyRequest.Policy(**words)
        )
    )
    settings.UpdateDomainLoginPolicy(
        pb.UpdateDomainLoginPolicyRequest(
            domain_id=domain, login_policy=pb.UpdateDomainLoginPolicyRequest.Policy(**LOGIN_DEFAULTS)
        )
    )
    settings.UpdateDomainApiAclPolicy(
        pb.UpdateDomainApiAclPolicyRequest(domain_id=domain, api_acl_policy=pb.ApiAclPolicy())
    )


def set_passwords(own: Stand, people: Client, **rules: Any) -> None:
    policy = pb.UpdateDomainPasswordPolicyRequest.Policy(**rules)
    request = pb.UpdateDomainPasswordPolicyRequest(domain_id=own.dev.domain_id, password_policy=policy)
    people.domain_settings.UpdateDomainPasswordPolicy(request)


def set_logins(own: Stand, people: Client, **rules: Any) -> None:
    policy = pb.UpdateDomainLoginPolicyRequest.Policy(**rules)
    request = pb.UpdateDomainLoginPolicyRequest(domain_id=own.dev.domain_id, login_policy=policy)
    people.domain_settings.UpdateDomainLoginPolicy(request)


# The official SDK


def test_the_sdk_and_the_password_policy(own: Stand, admin: iam.IamClient) -> None:
    show = iam.ShowDomainPasswordPolicyRequest(domain_id=own.dev.domain_id)
    before = checked(admin.show_domain_password_policy(show)).password_policy
    assert {key: getattr(before, key) for key in PASSWORD_DEFAULTS} == PASSWORD_DEFAULTS
    assert "8 to 128 characters" in before.password_requirements
    option = iam.PasswordPolicyOption(minimum_password_length=12, password_char_combination=3)
    update = iam.UpdateDomainPasswordPolicyRequest(
        domain_id=own.dev.domain_id, body=iam.UpdateDomainPasswordPolicyRequestBody(password_policy=option)
    )
    changed = checked(admin.update_domain_password_policy(update)).password_policy
    assert (changed.minimum_password_length, changed.password_char_combination) == (12, 3)
    assert changed.number_of_recent_passwords_disallowed == 1
    assert admin.show_domain_password_policy(show).password_policy == changed


def test_the_sdk_and_the_login_policy(own: Stand, admin: iam.IamClient) -> None:
    show = iam.ShowDomainLoginPolicyRequest(domain_id=own.dev.domain_id)
    before = checked(admin.show_domain_login_policy(show)).login_policy
    assert {key: getattr(before, key) for key in LOGIN_DEFAULTS} == LOGIN_DEFAULTS
    option = iam.LoginPolicyOption(login_failed_times=3, custom_info_for_login="Welcome")
    update = iam.UpdateDomainLoginPolicyRequest(
        domain_id=own.dev.domain_id, body=iam.UpdateDomainLoginPolicyRequestBody(login_policy=option)
    )
    changed = checked(admin.update_domain_login_policy(update)).login_policy
    assert (changed.login_failed_times, changed.custom_info_for_login) == (3, "Welcome")
    assert changed.lockout_duration == 15


def test_the_sdk_and_the_rule_on_addresses(own: Stand, admin: iam.IamClient) -> None:
    show = iam.ShowDomainApiAclPolicyRequest(domain_id=own.dev.domain_id)
    before = checked(admin.show_domain_api_acl_policy(show), absent=NO_VPCS).api_acl_policy
    assert [each.ip_range for each in before.allow_ip_ranges] == [
        "0.0.0.0-255.255.255.255",
        "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ]
    option = iam.AclPolicyOption(
        allow_address_netmasks=[iam.AllowAddressNetmasksOption("127.0.0.0/8", "here")],
        allow_ip_ranges=[iam.AllowIpRangesOption(description="there", ip_range="10.0.0.1-10.0.0.9")],
    )
    update = iam.UpdateDomainApiAclPolicyRequest(
        domain_id=own.dev.domain_id, body=iam.UpdateDomainApiAclPolicyRequestBody(api_acl_policy=option)
    )
    for answer in (admin.update_domain_api_acl_policy(update), admin.show_domain_api_acl_policy(show)):
        acl = checked(answer, absent=NO_VPCS).api_acl_policy
        (mask,), (some,) = acl.allow_address_netmasks, acl.allow_ip_ranges
        assert (mask.address_netmask, mask.description) == ("127.0.0.0/8", "here")
        assert (some.ip_range, some.description) == ("10.0.0.1-10.0.0.9", "there")


def test_the_sdk_and_the_strength_of_passwords(own: Stand, people: Client, admin: iam.IamClient) -> None:
    set_passwords(own, people, minimum_password_length=10)
    request = iam.KeystoneShowSecurityComplianceRequest(domain_id=own.dev.domain_id)
    both = checked(admin.keystone_show_security_compliance(request)).config.security_compliance
    assert "{10,128}" in both.password_regex
    assert both.password_regex_description.startswith("10 to 128 characters")
    for option in ("password_regex", "password_regex_description"):
        one = iam.KeystoneShowSecurityComplianceByOptionRequest(domain_id=own.dev.domain_id, option=option)
        config = admin.keystone_show_security_compliance_by_option(one).config
        assert getattr(config, option) == getattr(both, option)
    token = login(own, person(people, password="Long-Enough-1"))
    path = f"/v3/domains/{own.dev.domain_id}/config/security_compliance"
    assert own.rest("GET", path, token=token).status == 200
    refused(own.rest("GET", path + "/colour", token=token), "IAM.0004")


# Bad input, and others' domains


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        ("password", {"minimum_password_length": 5}),
        ("password", {"minimum_password_length": 33}),
        ("password", {"password_char_combination": 1}),
        ("password", {"password_char_combination": 5}),
        ("password", {"number_of_recent_passwords_disallowed": 11}),
        ("password", {"minimum_password_age": -1}),
        ("password", {"minimum_password_age": 1441}),
        ("password", {"password_validity_period": 181}),
        ("password", {"maximum_consecutive_identical_chars": 33}),
        ("login", {"account_validity_period": 241}),
        ("login", {"lockout_duration": 14}),
        ("login", {"lockout_duration": 31}),
        ("login", {"login_failed_times": 2}),
        ("login", {"login_failed_times": 11}),
        ("login", {"period_with_login_failures": 61}),
        ("login", {"session_timeout": 1441}),
    ],
)
def test_rules_out_of_their_range(own: Stand, people: Client, policy: str, changes: dict[str, int]) -> None:
    with refusal("IAM.0073") as seen:
        (set_passwords if policy == "password" else set_logins)(own, people, **changes)
    assert next(iter(changes)) in seen.last.message


@pytest.mark.parametrize(
    "acl",
    [
        {"allow_address_netmasks": [{"address_netmask": "10.0.0.0/33"}]},
        {"allow_address_netmasks": [{"address_netmask": "ten"}]},
        {"allow_address_netmasks": [{"address_netmask": "fe80::1%eth0/64"}]},
        {"allow_ip_ranges": [{"ip_range": "10.0.0.1"}]},
        {"allow_ip_ranges": [{"ip_range": "10.0.0.9-10.0.0.1"}]},
        {"allow_ip_ranges": [{"ip_range": "10.0.0.9-::1"}]},
        {"allow_ip_ranges": [{"ip_range": "10.0.0.1-10.0.0.9", "description": "x" * 256}]},
        {"allow_vpc_endpoints": [{"vpc_endpoint_id": "8di3jdu3"}]},
    ],
)
def test_rules_on_addresses_that_are_none(own: Stand, people: Client, acl: dict[str, Any]) -> None:
    request = pb.UpdateDomainApiAclPolicyRequest(
        domain_id=own.dev.domain_id, api_acl_policy=pb.ApiAclPolicy(**acl)
    )
    with refusal("IAM.0073"):
        people.domain_settings.UpdateDomainApiAclPolicy(request)
    show = pb.ShowDomainApiAclPolicyRequest(domain_id=own.dev.domain_id)
    shown = people.domain_settings.ShowDomainApiAclPolicy(show).api_acl_policy
    assert len(shown.allow_ip_ranges) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        {},
        {"api_acl_policy": None},
        {"api_acl_policy": {"allow_ip_ranges": [{"description": "no range"}]}},
        {"api_acl_policy": {"allow_ip_ranges": "10.0.0.1-10.0.0.9"}},
        {"api_acl_policy": {"allow_ip_ranges": [{"ip_range": "10.0.0.1-10.0.0.9"}] * 201}},
    ],
)
def test_bad_bodies(own: Stand, body: object) -> None:
    path = f"/v3.0/OS-SECURITYPOLICY/domains/{own.dev.domain_id}/api-acl-policy"
    refused(own.rest("PUT", path, body, token=domain_token(own)), "IAM.0011")


def test_other_domains_and_other_people(stand: Stand, client: Client, stranger: Tenant) -> None:
    admin = iam_client(stand)
    for domain_id in (stranger.domain_id, "0" * 32):
        with pytest.raises(ClientRequestException) as caught:
            admin.show_domain_password_policy(iam.ShowDomainPasswordPolicyRequest(domain_id=domain_id))
        assert caught.value.status_code == 404
        with refusal("IAM.0004"):
            client.domain_settings.UpdateDomainLoginPolicy(
                pb.UpdateDomainLoginPolicyRequest(
                    domain_id=domain_id,
                    login_policy=pb.UpdateDomainLoginPolicyRequest.Policy(login_failed_times=3),
                )
            )
    token = login(stand, person(client))
    for policy in ("password-policy", "login-policy", "api-acl-policy"):
        path = f"/v3.0/OS-SECURITYPOLICY/domains/{stand.dev.domain_id}/{policy}"
        refused(stand.rest("GET", path, token=token), "IAM.0003")
    foreign = f"/v3/domains/{stranger.domain_id}/config/security_compliance"
    refused(stand.rest("GET", foreign, token=token), "IAM.0004")


# Passwords, as they are chosen


def choose(stand: Stand, who: Person, original: str, password: str) -> Answer:
    body = {"user": {"original_password": original, "password": password}}
    return stand.rest("POST", f"/v3/users/{who.id}/password", body, source=elsewhere())


def test_passwords_that_were_in_use(own: Stand, people: Client) -> None:
    set_passwords(own, people, number_of_recent_passwords_disallowed=2)
    ann = person(people)
    assert choose(own, ann, PASSWORD, "Second-Horse-2").status == 204
    refused(choose(own, ann, "Second-Horse-2", PASSWORD), "IAM.0102")
    assert choose(own, ann, "Second-Horse-2", "Third-Horse-3").status == 204
    assert choose(own, ann, "Third-Horse-3", PASSWORD).status == 204
    with refusal("IAM.0102"):
        change(people, ann.id, password=PASSWORD)


def test_a_password_has_to_be_kept_for_a_while(own: Stand, people: Client) -> None:
    set_passwords(own, people, minimum_password_age=1440)
    ann = person(people)
    message = refused(choose(own, ann, PASSWORD, "Second-Horse-2"), "IAM.0102").message
    assert "minutes" in message
    change(people, ann.id, password="Second-Horse-2")  # who administers may
    set_passwords(own, people, minimum_password_age=0)
    assert choose(own, ann, "Second-Horse-2", PASSWORD).status == 204


def test_a_longer_password_is_due_from_now_on(own: Stand, people: Client) -> None:
    ann = person(people, password="Short-01")
    set_passwords(own, people, minimum_password_length=20)
    with refusal("IAM.0102"):
        person(people, password="Short-01")
    assert ask_token(own, ann.id, "Short-01").status == 201, "those that stand are good"


# Logins


def test_wrong_passwords_lock_the_account_on_every_worker(own: Stand, people: Client) -> None:
    set_logins(own, people, login_failed_times=3)
    ann = person(people)
    for _ in range(3):  # each from an address of its own: no source is slowed down
        refused(ask_token(own, ann.id, "wrong"), "IAM.0001")
    for _ in range(8):
        locked = ask_token(own, ann.id, PASSWORD)
        refused(locked, "IAM.0061")
    one = record(own, locked.headers["X-Request-Id"])
    assert (one["result"], one["resource"]) == ("IAM.0061", f"user/{ann.id}")
    refused(choose(own, ann, PASSWORD, "Second-Horse-2"), "IAM.0061")
    own.restart_daemon()
    refused(ask_token(own, ann.id, PASSWORD), "IAM.0061")
    with own.client() as again:
        request = users_pb2.UpdateUserRequest(
            user_id=ann.id, user=users_pb2.UpdateUserRequest.User(enabled=True)
        )
        again.users.UpdateUser(request)
    assert ask_token(own, ann.id, PASSWORD).status == 201, "who administers unlocks it"


def by_name(stand: Stand, user: str, password: str) -> Answer:
    given = {"name": user, "password": password, "domain": {"name": "development"}}
    return stand.rest("POST", "/v3/auth/tokens", _proof(given), source=elsewhere())


def _proof(user: dict[str, Any]) -> dict[str, Any]:
    return {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}


def test_who_is_not_there_is_locked_just_so(own: Stand, people: Client) -> None:
    set_logins(own, people, login_failed_times=3)
    ann, nobody = person(people), name()
    statuses = []
    for user in (ann.name, nobody):
        answers = [by_name(own, user, "wrong") for _ in range(5)]
        statuses.append([each.status for each in answers])
        assert [each.json["error"]["message"][:14] for each in answers[3:]] == ["Account locked"] * 2
        given = {"name": user, "password": "wrong", "domain": {"id": own.dev.domain_id}}
        by_id = own.rest("POST", "/v3/auth/tokens", _proof(given), source=elsewhere())
        assert by_id.json["error"]["message"][:14] == "Account locked"  # however the domain is named
    assert statuses[0] == statuses[1] == [401] * 5
    other = by_name(own, nobody + "x", "wrong")
    refused(other, "IAM.0001")


def test_a_right_password_ends_the_count(own: Stand, people: Client) -> None:
    set_logins(own, people, login_failed_times=3)
    ann = person(people)

    def tried(password: str) -> Answer:
        """Each worker slows guesses down by what it has seen itself: it may have to be waited for."""
        last: Answer = eventually(lambda: (one := ask_token(own, ann.id, password)).status != 429 and one)
        return last

    for _ in range(3):
        for _ in range(2):
            refused(tried("wrong"), "IAM.0001")
        assert tried(PASSWORD).status == 201


def test_expiry_is_shown_and_counts(own: Stand, people: Client) -> None:
    ann = person(people)
    set_passwords(own, people, password_validity_period=30)
    shown = people.users.ShowUser(users_pb2.ShowUserRequest(user_id=ann.id)).user
    days = (shown.password_expires_at.ToDatetime() - shown.modify_pwd_time.ToDatetime()).days
    assert days == 30
    later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 31 * 86400))
    for operator, fits in {"lt": True, "gt": False, "neq": True, "eq": False}.items():
        request = users_pb2.ListUsersRequest(name=ann.name, password_expires_at=f"{operator}:{later}")
        assert bool(people.users.ListUsers(request).users) is fits
    assert ask_token(own, ann.id, PASSWORD).status == 201


def test_an_expired_password_is_good_for_another_one_only(own: Stand, people: Client) -> None:
    ann = person(people)
    set_passwords(own, people, password_validity_period=30)
    backstage(own, "user", ann.id, json.dumps({"password_changed": _days_ago(31)}))
    expired = ask_token(own, ann.id, PASSWORD)
    refused(expired, "IAM.0105")
    assert record(own, expired.headers["X-Request-Id"])["resource"] == f"user/{ann.id}"
    refused(ask_token(own, ann.id, "wrong"), "IAM.0001")
    assert choose(own, ann, PASSWORD, "Second-Horse-2").status == 204
    assert ask_token(own, ann.id, "Second-Horse-2").status == 201


def test_who_was_away_too_long(own: Stand, people: Client) -> None:
    ann = person(people)
    set_logins(own, people, account_validity_period=60)
    assert ask_token(own, ann.id, PASSWORD).status == 201
    backstage(own, "user", ann.id, json.dumps({"created": _days_ago(300), "updated": None}))
    backstage(own, "away", ann.id, "59")
    assert ask_token(own, ann.id, PASSWORD).status == 201
    backstage(own, "away", ann.id, "61")
    idle = ask_token(own, ann.id, PASSWORD)
    refused(idle, "IAM.0082")
    refused(choose(own, ann, PASSWORD, "Second-Horse-2"), "IAM.0082")
    refused(ask_token(own, ann.id, "wrong"), "IAM.0001")
    change(people, ann.id, enabled=True)  # who administers lets it come again
    assert ask_token(own, ann.id, PASSWORD).status == 201


def _days_ago(days: int) -> int:
    return int((time.time() - days * 86400) * 1000)
