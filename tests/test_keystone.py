"""Tokens of a Keystone: asked about by its protocol, good for a short while, not when it can't be asked."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hsmd import config
from hsmd.config import ClaimTest, ConfigError, IdentityRule, Settings
from hsmd.domain import external
from hsmd.errors import TOKEN_EXPIRED, TOKEN_INVALID, UNAVAILABLE, Error
from hsmd.idp import Keystone
from tests.backstage import backstage
from tests.calls import record, refused
from tests.keystones import PASSWORD, VENV, SmallKeystone, real_keystone
from tests.providers import Provider, Reply, providing, toml
from tests.stand import Answer, Stand, elsewhere, eventually
from tests.test_temporary_keys import by

_CACHE_SECONDS = 1
_DEFAULT_DOMAIN = [
    {"claim": "user_domain_id", "value": "default"},
    {"claim": "project_domain_name", "value": "Default"},
]


@dataclass
class Cloud:
    """A stand, the Keystone that it asks, and where that stands."""

    stand: Stand
    keystone: SmallKeystone
    provider: Provider

    def call(self, token: str, project: str = "") -> Answer:
        path = f"/v1.0/{project or self.stand.dev.project_id}/kms/list-keys"
        return self.stand.rest("POST", path, {}, token=token, source=elsewhere())


def settings(url: str, ca: Path, folder: Path, rules: list[dict[str, Any]]) -> dict[str, str]:
    """The stand's, to ask that Keystone."""
    password = folder / "keystone-password"
    password.write_text(PASSWORD + "\n")
    return {
        "HSMD__KEYSTONE__URL": url,
        "HSMD__KEYSTONE__CA": str(ca),
        "HSMD__KEYSTONE__PASSWORD_FILE": str(password),
        "HSMD__KEYSTONE__CACHE_SECONDS": str(_CACHE_SECONDS),
        "HSMD__KEYSTONE__TIMEOUT_SECONDS": "15",  # its answers come from this process, which is busy
        "HSMD__KEYSTONE__RULES": toml(rules),
        "HSMD__GRPC__WORKERS": "1",
    }


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("keystone")
    keystone = SmallKeystone()
    with providing(folder / "provider", keystone.answer) as provider:
        stand = Stand(folder / "stand")
        dev = stand.dev
        group = backstage(stand, "group", dev.domain_id, dev.project_id, "KMS CMKReadOnlyAccess")
        rules: list[dict[str, Any]] = [
            {"claim": "role", "value": "kms-admin", "user_claim": "user_name", "domain_id": dev.domain_id}
            | {"project_claim": "project_name", "also": _DEFAULT_DOMAIN},
            {"claim": "role", "value": "kms-reader", "groups": [group], "domain_id": dev.domain_id}
            | {"project_id": dev.project_id, "also": _DEFAULT_DOMAIN[1:]},
        ]
        shown = settings(f"{provider.url}/v3", provider.ca, folder, rules)
        stand.settings.update(shown)
        try:
            stand.start()
            yield Cloud(stand, keystone, provider)
        finally:
            stand.stop()


@pytest.fixture
def token(cloud: Cloud) -> str:
    """Of the development user's namesake in a project that is named like the development project."""
    return good(cloud)


def good(cloud: Cloud, **changed: Any) -> str:
    default = {"id": "default", "name": "Default"}
    about = {
        "user": {"id": "u" * 32, "name": cloud.stand.dev.user, "domain": default},
        "project": {"id": "p" * 32, "name": cloud.stand.dev.region, "domain": default},
    }
    return cloud.keystone.issue(**(about | changed))


def test_a_token_is_good_here(cloud: Cloud, token: str) -> None:
    answer = cloud.call(token)
    assert answer.status == 200, answer.raw
    seen = record(cloud.stand, answer.headers["X-Request-Id"])
    assert (seen["identity"], seen["user_id"]) == ("keystone", cloud.stand.dev.user_id)


def test_our_own_tokens_are_good_beside(cloud: Cloud) -> None:
    asked = len(cloud.provider.seen)
    assert cloud.call(cloud.stand.token()).status == 200
    refused(cloud.call("SFRL" + "A" * 100), "KMS.0302")
    assert len(cloud.provider.seen) == asked  # nobody else is shown them


def test_what_is_asked(cloud: Cloud, token: str) -> None:
    cloud.call(token)
    verb, path, headers = cloud.provider.seen[-1]
    assert (verb, path) == ("GET", "/v3/auth/tokens?nocatalog")
    assert headers["x-subject-token"] == token
    assert headers["x-auth-token"] in cloud.keystone.own


def test_an_answer_counts_for_a_short_while(cloud: Cloud, token: str) -> None:
    assert cloud.call(token).status == 200
    asked = len(cloud.provider.seen)
    del cloud.keystone.issued[token]  # revoked there
    eventually(lambda: cloud.call(token).status == 403, 20 * _CACHE_SECONDS)
    refused(cloud.call(token), "KMS.0302")
    assert len(cloud.provider.seen) > asked


@pytest.mark.parametrize("text", ["x", "gAAAAA", "e" * 4096, "../../x", "%0d%0a", "a:b"])
def test_tokens_that_keystone_does_not_know(cloud: Cloud, text: str) -> None:
    refused(cloud.call(text), "KMS.0302")


def test_a_token_that_has_expired(cloud: Cloud) -> None:
    refused(cloud.call(good(cloud, expires_at="2020-01-01T00:00:00.000000Z")), "KMS.0303")


def test_who_fits_no_rule_is_nobody(cloud: Cloud) -> None:
    default = {"id": "default", "name": "Default"}
    unfit: list[dict[str, Any]] = [
        {"roles": []},
        {"roles": [{"id": "x", "name": "KMS-ADMIN"}]},
        {"project": None},
        {"project": {"id": "p", "name": "elsewhere", "domain": default}},
        {"user": {"id": "u", "name": "nobody", "domain": default}},
    ]
    for changed in unfit:
        refused(cloud.call(good(cloud, **changed)), "APIGW.0301")


def test_namesakes_of_another_domain_are_nobody(cloud: Cloud) -> None:
    other = {"id": "4711", "name": "default"}
    dev = cloud.stand.dev
    for changed in (
        {"user": {"id": "v" * 32, "name": dev.user, "domain": other}},
        {"project": {"id": "q" * 32, "name": dev.region, "domain": other}},
        {
            "project": {"id": "q" * 32, "name": dev.region, "domain": other},
            "roles": [{"id": "x", "name": "kms-reader"}],  # given there, by whoever administers that domain
        },
    ):
        refused(cloud.call(good(cloud, **changed)), "APIGW.0301")


def test_a_token_is_good_in_its_project_only(cloud: Cloud, token: str) -> None:
    refused(cloud.call(token, project="f" * 32), "KMS.0321")


def test_what_is_made_by_a_token_ends_with_it_and_is_good_where_it_is(cloud: Cloud) -> None:
    stand, soon = cloud.stand, datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1000)
    token = good(cloud, expires_at=soon.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    path = "/v3.0/OS-CREDENTIAL/securitytokens"
    body = {"auth": {"identity": {"methods": ["token"], "token": {"duration_seconds": 86400}}}}
    answer = stand.rest("POST", path, body, token=token, source=elsewhere())
    assert answer.status == 201, answer.raw
    key = answer.json["credential"]
    assert datetime.fromisoformat(key["expires_at"]) == soon
    mine, other = (f"/v1.0/{each}/kms/list-keys" for each in (stand.dev.project_id, "f" * 32))
    assert by(stand, key, "POST", mine, body=b"{}").status == 200
    refused(by(stand, key, "POST", other, body=b"{}"), "KMS.0321")


def test_groups_of_a_rule_give_their_rights(cloud: Cloud) -> None:
    token = good(cloud, roles=[{"id": "x", "name": "kms-reader"}])
    assert cloud.call(token).status == 200
    path = f"/v1.0/{cloud.stand.dev.project_id}/kms/create-key"
    answer = cloud.stand.rest("POST", path, {"key_alias": "x"}, token=token, source=elsewhere())
    refused(answer, "KMS.0330")


def test_our_own_token_is_renewed_when_it_is_refused(cloud: Cloud) -> None:
    cloud.call(good(cloud))
    cloud.keystone.own.clear()
    assert cloud.call(good(cloud)).status == 200
    assert len(cloud.keystone.own) == 1


@pytest.mark.parametrize(
    "broken",
    [
        (500, {}, {}),
        (403, {}, {}),
        (302, {"Location": "https://127.0.0.1:1/"}, {}),
        (200, {}, b"{"),
        (200, {}, b"\xff"),
        (200, {}, []),
        (200, {}, {"token": {}}),
        (200, {}, {"token": {"expires_at": "soon"}}),
        (200, {}, {"token": {"expires_at": "2099-01-01T00:00:00Z", "user": {"id": "x"}}}),
        (200, {}, b" " * (2 << 20)),
    ],
)
def test_an_answer_that_is_none_lets_nobody_in(cloud: Cloud, broken: Reply) -> None:
    cloud.keystone.broken = broken
    try:
        answer = cloud.call(good(cloud))
        assert answer.status == 503, answer.raw
        assert int(answer.headers["Retry-After"]) >= 1
    finally:
        cloud.keystone.broken = None
    eventually(lambda: cloud.call(good(cloud)).status == 200)


def test_while_keystone_is_away_nobody_waits_for_it(cloud: Cloud) -> None:
    known = good(cloud)
    assert cloud.call(known).status == 200
    cloud.provider.stop()
    try:
        statuses = [cloud.call(good(cloud)).status for _ in range(10)]
        assert set(statuses) == {503}
        assert cloud.call(cloud.stand.token()).status == 200
    finally:
        cloud.provider.start()
    eventually(lambda: cloud.call(good(cloud)).status == 200)


def test_passwords_and_tokens_stand_in_no_log(cloud: Cloud, token: str) -> None:
    cloud.call(token)
    text = cloud.stand.log() + cloud.stand.log("gateway") + json.dumps(cloud.stand.audit())
    assert PASSWORD not in text
    assert token not in text
    assert not any(own in text for own in cloud.keystone.own)


# Without a daemon


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[tuple[Keystone, SmallKeystone, config.Keystone]]:
    keystone = SmallKeystone()
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    with providing(tmp_path / "provider", keystone.answer) as provider:
        options = config.Keystone(
            url=f"{provider.url}/v3/", ca=provider.ca, password_file=password, timeout_seconds=20.0
        )
        yield Keystone(options), keystone, options


def test_claims(asked: tuple[Keystone, SmallKeystone, config.Keystone]) -> None:
    one, keystone, _ = asked
    claims = dict(one.claims(keystone.issue(), time.time()))
    assert time.time() < claims.pop("exp") < time.time() + 100_000
    assert claims == {
        "role": ["kms-admin", "member"],
        "user_id": "u" * 32,
        "user_name": "alice",
        "user_domain_id": "default",
        "user_domain_name": "Default",
        "project_id": "p" * 32,
        "project_name": "books",
        "project_domain_id": "default",
        "project_domain_name": "Default",
    }
    with pytest.raises(Error) as caught:
        one.claims(keystone.issue(seconds=10), time.time() + 11)
    assert caught.value.fault is TOKEN_EXPIRED
    with pytest.raises(Error) as caught:
        one.claims("nobody's", time.time())
    assert caught.value.fault is TOKEN_INVALID


def test_a_late_answer_is_none(asked: tuple[Keystone, SmallKeystone, config.Keystone]) -> None:
    _, keystone, options = asked
    one = Keystone(replace(options, timeout_seconds=1.0))
    keystone.late = 3.0
    started = time.monotonic()
    with pytest.raises(Error) as caught:
        one.claims(keystone.issue(), time.time())
    assert caught.value.fault is UNAVAILABLE
    assert time.monotonic() - started < 3.0 + 20  # bounded, on a busy machine too
    with pytest.raises(Error) as caught:  # at once
        one.claims(keystone.issue(), time.time())
    assert caught.value.fault is UNAVAILABLE


def test_a_wrong_password_of_ours(asked: tuple[Keystone, SmallKeystone, config.Keystone]) -> None:
    _, keystone, options = asked
    assert options.password_file is not None
    options.password_file.write_text("wrong")
    with pytest.raises(Error) as caught:
        Keystone(options).claims(keystone.issue(), time.time())
    assert caught.value.fault is UNAVAILABLE


def test_a_server_of_another_authority(
    asked: tuple[Keystone, SmallKeystone, config.Keystone], tmp_path: Path
) -> None:
    _, keystone, options = asked
    with providing(tmp_path / "other", keystone.answer) as other, pytest.raises(Error) as caught:
        Keystone(replace(options, ca=other.ca)).claims(keystone.issue(), time.time())
    assert caught.value.fault is UNAVAILABLE


@pytest.mark.parametrize(
    "changed",
    [
        {"url": "http://127.0.0.1:5000/v3"},
        {"url": "keystone.example"},
        {"password_file": None},
        {"password_file": Path("/nowhere")},
        {"ca": Path("/nowhere")},
    ],
)
def test_settings_that_are_refused(
    asked: tuple[Keystone, SmallKeystone, config.Keystone], changed: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="keystone"):
        Keystone(replace(asked[2], **changed))


_ID = "0" * 32


def _check(rule: IdentityRule) -> None:
    external.check(replace(Settings(), keystone=config.Keystone(rules=(rule,))))


@pytest.mark.parametrize(
    "rule",
    [
        IdentityRule("user_id", "x", project_id=_ID),
        IdentityRule("user_id", "x", user_id=_ID),  # for a Keystone without a project
        IdentityRule("", "x", user_id=_ID, project_id=_ID),
        IdentityRule("user_id", "", user_id=_ID, project_id=_ID),
        IdentityRule("user_id", "x", user_id=_ID, project_id=_ID, also=(ClaimTest("", "x"),)),
        IdentityRule("user_id", "x", user_id=_ID, project_id=_ID, also=(ClaimTest("x", ""),)),
        IdentityRule("user_id", "x", user_id="admin", project_id=_ID),
        IdentityRule("user_id", "x", user_id=_ID, user_claim="y", domain_id=_ID, project_id=_ID),
        IdentityRule("user_id", "x", user_id=_ID, domain_id=_ID, project_id=_ID),
        IdentityRule("user_id", "x", user_claim="y", project_id=_ID),
        IdentityRule("user_id", "x", groups=("admins",), domain_id=_ID, project_id=_ID),
        IdentityRule("user_id", "x", user_id=_ID, project_id=_ID, project_claim="y"),
    ],
)
def test_rules_that_are_refused(rule: IdentityRule) -> None:
    with pytest.raises(ConfigError, match=r"keystone\.rules"):
        _check(rule)


_PINNED = {
    "user_name": ("user_domain_id", "user_domain_name"),
    "project_name": ("project_domain_id", "project_domain_name"),
    "role": ("project_id", "project_domain_id", "project_domain_name"),
}


@pytest.mark.parametrize("name", _PINNED)
def test_a_name_without_its_domain_is_refused(name: str) -> None:
    rules = [IdentityRule(name, "x", user_id=_ID, project_id=_ID)]
    rules += [replace(rules[0], claim="user_id", also=(ClaimTest(name, "*"),))]
    if name == "user_name":
        rules += [IdentityRule("user_id", "*", user_claim=name, domain_id=_ID, project_id=_ID)]
    if name == "project_name":
        rules += [IdentityRule("user_id", "x", user_id=_ID, project_claim=name)]
    others = sorted({pin for pins in _PINNED.values() for pin in pins} - set(_PINNED[name]))
    for rule in rules:
        unpinned = [
            *(ClaimTest(each, "x") for each in others),
            *(ClaimTest(each, "*") for each in _PINNED[name]),
        ]
        with pytest.raises(ConfigError, match=name):
            _check(replace(rule, also=(*rule.also, *unpinned)))
        for each in _PINNED[name]:
            _check(replace(rule, also=(*rule.also, ClaimTest(each, "x"))))


# The real one


@pytest.mark.skipif(not VENV, reason="HSMD_TEST_KEYSTONE names no virtual environment with keystone")
def test_a_real_keystone(tmp_path: Path) -> None:
    with real_keystone(tmp_path / "keystone") as keystone:
        stand = Stand(tmp_path / "stand")
        dev = stand.dev
        rule: dict[str, Any] = {"claim": "role", "value": "kms-admin", "user_claim": "user_name"}
        rule |= {"domain_id": dev.domain_id, "project_claim": "project_name", "also": _DEFAULT_DOMAIN}
        stand.settings.update(settings(keystone.url, keystone.ca, tmp_path, [rule]))
        keystone.make_user("stranger", "a-password", dev.region, "kms-admin")
        admin = keystone.ask("GET", "/users?name=admin")[0]["users"][0]["id"]
        project = keystone.ask("GET", f"/projects?name={dev.region}")[0]["projects"][0]["id"]
        role = keystone.ask("GET", "/roles?name=kms-admin")[0]["roles"][0]["id"]
        keystone.ask("PUT", f"/projects/{project}/users/{admin}/roles/{role}")
        token = keystone.sign_in("admin", PASSWORD, dev.region)
        try:
            stand.start()
            assert stand.kms("list-keys", {}, token=token).status == 200
            refused(
                stand.kms("list-keys", {}, token=keystone.sign_in("stranger", "a-password", dev.region)),
                "APIGW.0301",
            )
            refused(
                stand.kms("list-keys", {}, token=keystone.sign_in("admin", PASSWORD, "admin")), "APIGW.0301"
            )
            refused(stand.kms("list-keys", {}, token=token[:-2] + "xx"), "KMS.0302")
            keystone.ask("DELETE", "/auth/tokens", token=token)
            eventually(lambda: stand.kms("list-keys", {}, token=token).status == 403)
        finally:
            stand.stop()
