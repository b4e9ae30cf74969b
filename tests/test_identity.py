"""Who calls: tokens against passwords, what the SDKs look up by themselves, and that forgeries are nobody."""

import base64
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from hsmd.client import Client
from hsmd.pb.v1 import identity_pb2 as pb
from hsmd.pb.v1 import users_pb2
from tests.calls import fresh, record, refusal, refused
from tests.stand import Answer, Stand, Tenant, elsewhere, eventually, standing

ISO = "%Y-%m-%dT%H:%M:%S.%fZ"


def _ask(
    stand: Stand, user: dict[str, Any], scope: dict[str, Any] | None = None, *, source: str = ""
) -> Answer:
    """By default from an address that no other test calls from."""
    auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": {"user": user}}}
    if scope is not None:
        auth["scope"] = scope
    return stand.rest("POST", "/v3/auth/tokens", {"auth": auth}, source=source or elsewhere())


def _by_name(stand: Stand, **changes: Any) -> dict[str, Any]:
    return {
        "name": stand.dev.user,
        "password": stand.dev.password,
        "domain": {"name": "development"},
        **changes,
    }


# Token issue


def test_a_project_token(stand: Stand) -> None:
    before = datetime.now(UTC)
    answer = _ask(stand, _by_name(stand), {"project": {"name": stand.dev.region}}, source="127.1.2.3")
    assert answer.status == 201
    assert len(answer.headers["X-Subject-Token"]) > 100
    body = answer.json
    token = body["token"]
    domain = {"id": stand.dev.domain_id, "name": "development"}
    (role,) = token["roles"]
    assert re.fullmatch("[0-9a-f]{32}", role.pop("id"))
    issued = datetime.strptime(token.pop("issued_at"), ISO).replace(tzinfo=UTC)
    expires = datetime.strptime(token.pop("expires_at"), ISO).replace(tzinfo=UTC)
    assert (expires - issued).total_seconds() == 24 * 3600
    assert abs((issued - before).total_seconds()) < 60
    assert body == {
        "token": {
            "methods": ["password"],
            "user": {
                "id": stand.dev.user_id,
                "name": stand.dev.user,
                "domain": domain,
                "password_expires_at": "",
            },
            "project": {"id": stand.dev.project_id, "name": stand.dev.region, "domain": domain},
            "roles": [{"name": "KMS Administrator"}],
        }
    }
    one = record(stand, answer.headers["X-Request-Id"])
    assert (one["event"], one["result"], one["source"]) == ("createToken", "OK", "127.1.2.3")
    assert (one["identity"], one["user"], one["user_id"]) == ("password", stand.dev.user, stand.dev.user_id)
    assert (one["domain_id"], one["project_id"]) == (stand.dev.domain_id, stand.dev.project_id)
    used = stand.kms("list-keys", {}, token=answer.headers["X-Subject-Token"])
    assert used.status == 200


@pytest.mark.parametrize("scoped_by", ["id", "name"])
def test_users_and_projects_by_name_or_id(stand: Stand, scoped_by: str) -> None:
    project = {"id": stand.dev.project_id, "name": stand.dev.region}[scoped_by]
    secret = {"password": stand.dev.password}
    users = (
        {"id": stand.dev.user_id, **secret},
        {"name": stand.dev.user, "domain": {"name": "development"}, **secret},
        {"name": stand.dev.user, "domain": {"id": stand.dev.domain_id}, **secret},
    )
    for user in users:
        answer = _ask(stand, user, {"project": {scoped_by: project}})
        assert answer.json["token"]["project"]["id"] == stand.dev.project_id


def lasting(projects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that no other test left here: their names are of `tests.people.name`."""
    return [each for each in projects if not re.search("-[0-9a-f]{20}$", each["name"])]


def test_a_token_without_project_lists_but_does_not_act(stand: Stand) -> None:
    for scope in (None, {"domain": {"name": "development"}}):
        answer = _ask(stand, _by_name(stand), scope)
        assert answer.status == 201
        assert "project" not in answer.json["token"]
        token = answer.headers["X-Subject-Token"]
        refused(stand.kms("list-keys", {}, token=token), "KMS.0305")
        projects = stand.rest("GET", "/v3/projects", token=token)
        assert [each["id"] for each in lasting(projects.json["projects"])] == [stand.dev.project_id]


def test_a_token_over_grpc(client: Client, stand: Stand) -> None:
    user = pb.CreateTokenRequest.User(id=stand.dev.user_id, password=stand.dev.password)
    auth = pb.CreateTokenRequest.Auth(
        identity=pb.CreateTokenRequest.IdentityMethods(
            methods=["password"], password=pb.CreateTokenRequest.Password(user=user)
        ),
        scope=pb.CreateTokenRequest.Scope(
            project=pb.CreateTokenRequest.ProjectScope(id=stand.dev.project_id)
        ),
    )
    response = client.identity.CreateToken(pb.CreateTokenRequest(auth=auth))
    assert response.token.user.id == stand.dev.user_id
    assert stand.kms("list-keys", {}, token=response.subject_token).status == 200


def test_whatever_is_wrong_the_answer_is_the_same(stand: Stand, stranger: Tenant) -> None:
    project = {"project": {"id": stand.dev.project_id}}
    # Not five wrong ones in a row for one spelling of the user: it would have to pause.
    by_id = {"id": stand.dev.user_id, "password": stand.dev.password}
    answers = [
        _ask(stand, _by_name(stand, password="wrong"), project),
        _ask(stand, _by_name(stand, password=stand.dev.password + " "), project),
        _ask(stand, _by_name(stand, name="nobody"), project),
        _ask(stand, _by_name(stand, domain={"name": "nowhere"}), project),
        _ask(stand, _by_name(stand, domain={"name": "domain-stranger"}), project),
        _ask(stand, {"id": "0" * 32, "password": stand.dev.password}, project),
        _ask(stand, {"id": "no id", "password": stand.dev.password}, project),
        _ask(stand, {"id": stand.dev.user_id, "password": stranger.password}, project),
        _ask(stand, by_id, {"project": {"id": stranger.project_id}}),
        _ask(stand, by_id, {"project": {"id": "0" * 32}}),
        _ask(stand, by_id, {"project": {"name": "nowhere"}}),
    ]
    assert len({refused(each, "IAM.0001").message for each in answers}) == 1
    assert len({each.raw for each in answers}) == 1
    assert all("X-Subject-Token" not in each.headers for each in answers)
    for each in answers:
        assert record(stand, each.headers["X-Request-Id"])["result"] == "IAM.0001"
    named = [record(stand, each.headers["X-Request-Id"])["resource"] for each in answers]
    known = f"user/{stand.dev.user_id}"
    assert named == [known] * 2 + ["unknown user"] * 5 + [known] * 4


def _auth(user: object, methods: object = ("password",)) -> dict[str, Any]:
    return {"auth": {"identity": {"methods": methods, "password": {"user": user}}}}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"auth"',
        {"auth": None},
        {"auth": 7},
        {"auth": {}},
        {"auth": {"identity": {}}},
        {"auth": {"identity": {"methods": []}}},
        {"auth": {"identity": {"methods": "password"}}},
        {"auth": {"identity": {"methods": ["password"]}}},
        {"auth": {"identity": {"methods": ["password"], "password": {}}}},
        {"auth": {"identity": {"methods": ["password"], "password": "Pa55-word"}}},
        _auth("Pa55-word"),
        _auth({"name": "admin"}),
        _auth({"password": "Pa55-word"}),
        _auth({"id": "a", "password": 55}),
        _auth({"id": "a", "password": ["Pa55-word"]}),
        _auth({"id": "a", "password": "Pa55-word" * 20}),
        _auth({"id": "a" * 65, "password": "Pa55-word"}),
        _auth({"id": "a\ud800", "password": "Pa55-word"}),
        _auth({"id": "a", "password": "Pa55-word\ud800"}),
        _auth({"id": "a", "password": "Pa55-word"}, ["token"]),
        _auth({"id": "a", "password": "Pa55-word"}, ["password", "totp"]),
        _auth({"id": "a", "password": "Pa55-word"}, ["password"] * 5),
    ],
)
def test_token_requests_that_are_none(stand: Stand, body: object) -> None:
    seen = refused(stand.rest("POST", "/v3/auth/tokens", body), "IAM.0011")
    assert "Pa55" not in seen.message
    assert "55" not in seen.message


@pytest.mark.parametrize("field", ["id", "name"])
def test_control_characters_name_nobody(stand: Stand, field: str) -> None:
    user = _by_name(stand)
    user[field] = "a\x1fb\x7f"
    refused(_ask(stand, user), "IAM.0001")
    user[field] = "a\0b"
    for asked in (user, _by_name(stand, domain={field: "a\0b"})):
        answer = _ask(stand, asked)
        assert (answer.status, answer.json["error"]["code"]) == (400, 400)


# Tokens that are none


def test_a_token_is_good_in_its_project_only(stand: Stand, stranger: Tenant) -> None:
    for project in (stranger.project_id, "0" * 32, "no-project"):
        refused(stand.kms("list-keys", {}, project=project), "KMS.0321")
    refused(stand.kms("list-keys", {}, token=stand.token(stranger)), "KMS.0321")


def test_a_token_forged_at_any_byte(stand: Stand) -> None:
    text = stand.token()
    raw = base64.urlsafe_b64decode(text)
    for position in range(len(raw)):
        forged = bytearray(raw)
        forged[position] ^= 1 << position % 8
        token = base64.urlsafe_b64encode(bytes(forged)).decode()
        seen = refused(stand.kms("list-keys", {}, token=token, source=elsewhere()), "KMS.0302")
        one = record(stand, seen.request_id)
        assert (one["user_id"], one["resource"]) == ("", "unknown user")
    for length in (1, 2, 3, 4, len(text) // 2, len(text) - 4, len(text) - 1):
        refused(stand.kms("list-keys", {}, token=text[:length], source=elsewhere()), "KMS.0302")
    assert stand.kms("list-keys", {}, token=text).status == 200


def test_one_token_has_one_spelling(stand: Stand) -> None:
    text = stand.token()
    for position in [*range(0, len(text), 17), *range(len(text) - 6, len(text))]:
        other = "B" if text[position] != "B" else "C"
        spelled = text[:position] + other + text[position + 1 :]
        refused(stand.kms("list-keys", {}, token=spelled, source=elsewhere()), "KMS.0302")
    for spelled in (text + "=", text + "AAAA", "AAAA" + text, text.rstrip("="), text + text):
        if spelled != text:
            refused(stand.kms("list-keys", {}, token=spelled, source=elsewhere()), "KMS.0302")


@pytest.mark.parametrize("token", ["x", "a" * 4096, "MIIabc==", "null", "{}"])
def test_tokens_of_others(stand: Stand, token: str) -> None:
    refused(stand.kms("list-keys", {}, token=token), "KMS.0302")


@pytest.mark.parametrize("token", [" ", "a b", "a" * 4097, "\u00e4"])
def test_tokens_that_can_be_none(stand: Stand, token: str) -> None:
    refused(stand.kms("list-keys", {}, token=token), "APIGW.0301")


def test_nobody_is_refused_everywhere(stand: Stand) -> None:
    project = stand.dev.project_id
    for verb, path in (
        ("POST", f"/v1.0/{project}/kms/create-key"),
        ("POST", f"/v1.0/{project}/kms/list-keys"),
        ("POST", f"/v1.0/{project}/kms/gen-random"),
        ("GET", f"/v1.0/{project}/kms/user-instances"),
        ("GET", f"/v1.0/{project}/kms/user-quotas"),
        ("GET", "/v3/projects"),
        ("GET", "/v3/auth/projects"),
        ("GET", "/v3/auth/domains"),
        ("GET", "/v3/regions"),
    ):
        refused(stand.rest(verb, path, {} if verb == "POST" else None), "APIGW.0301")
        refused(stand.rest(verb, path, None, headers={"Authorization": "Basic YTpi"}), "APIGW.0301")


def test_an_expired_token(strict: Stand) -> None:
    token = strict.token()
    expired = refused(strict.kms("list-keys", {}, token=token), "KMS.0303")
    assert record(strict, expired.request_id)["resource"] == f"user/{strict.dev.user_id}"
    seen = strict.rest("GET", "/v3/projects", token=token)
    assert seen.status == 403
    raw = base64.urlsafe_b64decode(token)
    (expiry,) = re.findall(rb'"expires":[0-9]+', raw)
    longer = raw.replace(expiry, b'"expires":9999999999999')  # put off by its holder
    assert longer != raw
    refused(strict.kms("list-keys", {}, token=base64.urlsafe_b64encode(longer).decode()), "KMS.0302")


# What SDKs look up


def test_listings(stand: Stand) -> None:
    token, links = stand.token(), {"self": ""}
    project = {
        "id": stand.dev.project_id,
        "name": stand.dev.region,
        "domain_id": stand.dev.domain_id,
        "parent_id": stand.dev.domain_id,
        "description": "",
        "enabled": True,
        "is_domain": False,
        "links": links,
    }
    domain = {
        "id": stand.dev.domain_id,
        "name": "development",
        "description": "",
        "enabled": True,
        "links": links,
    }
    region = {
        "id": stand.dev.region,
        "type": "private",
        "description": "",
        "locales": {"en-us": stand.dev.region},
        "links": links,
    }
    for path, expected in {
        "/v3/projects": {"projects": [project], "links": links},
        f"/v3/projects?name={stand.dev.region}": {"projects": [project], "links": links},
        f"/v3/projects?domain_id={stand.dev.domain_id}&enabled=true": {"projects": [project], "links": links},
        "/v3/projects?name=elsewhere": {"projects": [], "links": links},
        "/v3/projects?enabled=false": {"projects": [], "links": links},
        "/v3/auth/projects": {"projects": [project], "links": links},
        "/v3/auth/domains": {"domains": [domain], "links": links},
        "/v3/regions": {"regions": [region], "links": links},
    }.items():
        answer = stand.rest("GET", path, token=token)
        seen = {**answer.json}
        if "projects" in seen:
            seen["projects"] = lasting(seen["projects"])
        assert (answer.status, seen) == (200, expected), path


def test_listings_over_grpc(stand: Stand, client: Client, strange: Client, stranger: Tenant) -> None:
    (project,) = client.identity.ListProjects(pb.ListProjectsRequest(name=stand.dev.region)).projects
    assert (project.id, project.domain_id) == (stand.dev.project_id, stand.dev.domain_id)
    (domain,) = client.identity.ListDomains(pb.ListDomainsRequest()).domains
    assert domain.id == stand.dev.domain_id
    (region,) = client.identity.ListRegions(pb.ListRegionsRequest()).regions
    assert region.id == stand.dev.region
    (theirs,) = strange.identity.ListProjects(pb.ListProjectsRequest()).projects
    assert theirs.id == stranger.project_id


# Certificates


def test_a_certificate_acts_as_its_user(
    stand: Stand, client: Client, strange: Client, stranger: Tenant
) -> None:
    key_id = client.create_key(fresh())
    assert client.describe_key(key_id).domain_id == stand.dev.domain_id
    theirs = strange.create_key(fresh())
    assert strange.describe_key(theirs).domain_id == stranger.domain_id
    made = [each for each in stand.audit() if each["event"] == "createKey" and each["resource"] == theirs]
    (one,) = made
    assert (one["identity"], one["user"], one["user_id"]) == ("certificate", "stranger", stranger.user_id)
    assert (one["source"], one["result"]) == ("127.0.0.1", "OK")
    assert re.fullmatch("[0-9a-f]{32}", one["request_id"])


def test_an_open_method_still_needs_a_body_that_is_right(client: Client) -> None:
    with refusal("IAM.0011"):
        client.identity.CreateToken(pb.CreateTokenRequest(auth={"identity": {"methods": ["totp"]}}))
    with refusal("KMS.0204"):
        client.identity.CreateToken(pb.CreateTokenRequest())


# Guessing


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A stand with one worker: each counts for itself."""
    with standing(tmp_path_factory.mktemp("alone"), {"HSMD__GRPC__WORKERS": "1"}) as one:
        yield one


def _until_slowed(attempt: Callable[[], Answer]) -> list[Answer]:
    """Attempts up to the first that has to pause; the pauses double, so that it comes on any machine."""
    answers = []
    for _ in range(60):
        answers.append(attempt())
        if answers[-1].status == 429:
            return answers
    raise AssertionError("nothing slowed it down")


def _until_locked(attempt: Callable[[], Answer]) -> list[str]:
    """What each attempt is told, without the number of seconds; the last two are refused unseen."""
    answers = [attempt() for _ in range(7)]
    wrong = [refused(each, "IAM.0001").message for each in answers[:5]]
    locked = [re.sub(r"\d+", "N", refused(each, "IAM.0061").message) for each in answers[5:]]
    return wrong + locked


def test_guesses_at_a_user_lock_the_account_from_anywhere(alone: Stand) -> None:
    victim = alone.add_tenant("victim")
    guess = {"password": "wrong", "domain": {"name": "domain-victim"}}
    known = _until_locked(lambda: _ask(alone, {"name": "victim", **guess}))
    unknown = _until_locked(lambda: _ask(alone, {"name": "nobody", **guess}))
    assert known == unknown
    for user, resource in (("victim", f"user/{victim.user_id}"), ("nobody", "unknown user")):
        one = record(alone, refused(_ask(alone, {"name": user, **guess}), "IAM.0061").request_id)
        assert (one["event"], one["result"], one["resource"]) == ("createToken", "IAM.0061", resource)
        assert (one["identity"], one["user_id"]) == ("anonymous", "")
    assert _ask(alone, _by_name(alone)).status == 201  # others go on
    right = {"name": "victim", "domain": guess["domain"], "password": victim.password}
    refused(_ask(alone, right), "IAM.0061")  # told nothing, not even that it was right
    with alone.client(victim) as unlocking:
        request = users_pb2.UpdateUserRequest(user_id=victim.user_id, user={"enabled": True})
        unlocking.users.UpdateUser(request)
    # The process slows it down besides, for some seconds.
    assert eventually(lambda: _ask(alone, right).status == 201, 60)
    for _ in range(4):  # and it begins anew
        refused(_ask(alone, {"name": "victim", **guess}), "IAM.0001")
    assert _ask(alone, right).status == 201


def test_a_source_that_tries_one_user_after_the_other_is_slowed_down(alone: Stand) -> None:
    source = elsewhere()
    tried = _until_slowed(lambda: _ask(alone, _by_name(alone, name=fresh("user")), source=source))
    assert len(tried) > 5

    def kept_out() -> bool:  # but for a moment each second
        _until_slowed(lambda: _ask(alone, _by_name(alone, name=fresh("user")), source=source))
        return _ask(alone, _by_name(alone), source=source).status == 429

    eventually(kept_out)
    assert _ask(alone, _by_name(alone)).status == 201
    token = alone.token()  # from an address that did nothing
    assert alone.kms("list-keys", {}, token=token, source=source).status == 200  # tokens count for themselves


def test_a_client_with_a_wrong_token_stops_itself_only(alone: Stand) -> None:
    source, token = elsewhere(), alone.token()
    wrong = token[:-8] + "AAAAAAAA"
    tried = _until_slowed(lambda: alone.kms("list-keys", {}, token=wrong, source=source))
    assert {each.status for each in tried[:-1]} == {403}
    assert len(tried) > 25
    assert alone.kms("list-keys", {}, token=token, source=source).status == 200
    others = _until_slowed(
        lambda: alone.kms("list-keys", {}, token=wrong[:-8] + uuid.uuid4().hex[:8], source=source)
    )
    assert len(others) > 10  # the source has used up half of its allowance
    another = alone.token()

    def kept_out() -> bool:  # but for a moment each second
        _until_slowed(lambda: alone.kms("list-keys", {}, token=fresh(), source=source))
        return alone.kms("list-keys", {}, token=another, source=source).status == 429

    eventually(kept_out)
    # who came by this address before is not kept out by what others do there
    assert alone.kms("list-keys", {}, token=token, source=source).status == 200
    assert alone.kms("list-keys", {}, token=token, source=elsewhere()).status == 200


def test_refused_signatures_name_their_access_key(alone: Stand) -> None:
    date = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    signature = f"SDK-HMAC-SHA256 Access=AKNOBODY_-1, SignedHeaders=host;x-sdk-date, Signature={'0' * 64}"
    headers = {"X-Sdk-Date": date, "Authorization": signature}
    path, source = f"/v1.0/{alone.dev.project_id}/kms/list-keys", elsewhere()
    tried = _until_slowed(lambda: alone.rest("POST", path, {}, headers=headers, source=source))
    assert len(tried) > 25
    for each in (tried[0], tried[1], tried[-1]):  # not known yet, known as absent, and slowed down
        one = record(alone, each.headers["X-Request-Id"])
        assert (one["identity"], one["resource"]) == ("anonymous", "access-key/AKNOBODY_-1")
    assert {refused(each, "APIGW.0301").message for each in tried[:-1]} == {
        "Incorrect IAM authentication information: verify aksk signature fail."
    }
