"""Tokens: by several methods and for several places, shown, and revoked for the next call on every worker."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import huaweicloudsdkiam.v3 as iam
import pytest

from hsmd.client import Client
from hsmd.pb.v1 import identity_pb2 as pb
from hsmd.pb.v1 import users_pb2
from tests.backstage import backstage
from tests.calls import fresh, record, refusal, refused
from tests.credentials import ask, domain_token, good, issued, show, signed, void
from tests.people import Person, iam_client, login, person
from tests.stand import Answer, Stand, Tenant, elsewhere, standing
from tests.test_sdk import checked

ISO = "%Y-%m-%dT%H:%M:%S.%fZ"
IAM_0001 = "The username or password is wrong."


@pytest.fixture(scope="module")
def ann(client: Client) -> Person:
    return person(client)


def _project(stand: Stand) -> dict[str, Any]:
    return {"project": {"id": stand.dev.project_id}}


def _own(stand: Stand, tenant: Tenant | None = None) -> dict[str, Any]:
    who = tenant or stand.dev
    return {"access": {"key": who.access_key}, "secret": {"key": who.secret_key}}


def _expiry(answer: Answer) -> datetime:
    return datetime.strptime(answer.json["token"]["expires_at"], ISO)


# By access key


def test_by_an_access_key(stand: Stand) -> None:
    answer = ask(stand, "hw_ak_sk", _own(stand), _project(stand))
    token = issued(answer)
    assert answer.json["token"]["methods"] == ["hw_ak_sk"]
    assert answer.json["token"]["user"]["id"] == stand.dev.user_id
    assert stand.kms("list-keys", {}, token=token).status == 200
    one = record(stand, answer.headers["X-Request-Id"])
    assert (one["event"], one["result"], one["identity"]) == ("createToken", "OK", "access-key")
    assert one["user_id"] == stand.dev.user_id


def test_wrong_secrets_and_unknown_keys_get_one_answer(stand: Stand, stranger: Tenant) -> None:
    key, secret = stand.dev.access_key, stand.dev.secret_key
    for proof in (
        {"access": {"key": key}, "secret": {"key": secret[:-1]}},
        {"access": {"key": key}, "secret": {"key": secret + "A"}},
        {"access": {"key": key}, "secret": {"key": stranger.secret_key}},
        {"access": {"key": "A" * 20}, "secret": {"key": secret}},
        {"access": {"key": "?" * 64}, "secret": {"key": secret}},
    ):
        answer = ask(stand, "hw_ak_sk", proof, _project(stand))
        assert refused(answer, "IAM.0001").message == IAM_0001
        assert secret.encode() not in answer.raw
    for scope in ({"project": {"id": stranger.project_id}}, {"domain": {"id": stranger.domain_id}}):
        assert refused(ask(stand, "hw_ak_sk", _own(stand), scope), "IAM.0001").message == IAM_0001


# By token


def test_by_a_token_for_another_place(stand: Stand, ann: Person) -> None:
    backstage(stand, "role", ann.id, stand.dev.project_id, "KMS Administrator")
    first = login(stand, ann)
    refused(stand.kms("list-keys", {}, token=first), "KMS.0305")
    answer = ask(stand, "token", {"id": first}, _project(stand))
    second = issued(answer)
    assert answer.json["token"]["methods"] == ["token"]
    assert stand.kms("list-keys", {}, token=second).status == 200
    assert _expiry(answer) == _expiry(show(stand, first))
    third = ask(stand, "token", {"id": second}, {"domain": {"id": ann.domain_id}})
    assert third.json["token"]["domain"] == {"id": ann.domain_id, "name": "development"}
    refused(stand.kms("list-keys", {}, token=issued(third)), "KMS.0305")
    refused(ask(stand, "token", {"id": first}, {"project": {"id": "0" * 32}}), "IAM.0001")
    none = ask(stand, "token", {"id": "x" * 300}, _project(stand))
    assert (none.status, none.json["error"]["message"]) == (403, "X-Auth-Token is not valid.")


def test_chains_of_tokens_end(stand: Stand, ann: Person) -> None:
    text = login(stand, ann)
    for _ in range(8):
        text = issued(ask(stand, "token", {"id": text}))
    refused(ask(stand, "token", {"id": text}), "IAM.0011")


# Showing


def test_a_token_is_shown_to_its_user_and_to_who_may(
    stand: Stand, ann: Person, client: Client, stranger: Tenant
) -> None:
    token, admin = login(stand, ann), stand.token()
    by_domain = domain_token(stand)
    for asker in (token, by_domain):
        answer = show(stand, token, asker)
        assert answer.status == 200, answer.raw
        assert answer.headers["X-Subject-Token"] == token
        assert answer.json["token"]["user"]["id"] == ann.id
        assert show(stand, token, asker, "HEAD").status == 200
    one = record(stand, show(stand, token, by_domain).headers["X-Request-Id"])
    assert (one["event"], one["resource"]) == ("showToken", f"user/{ann.id}")
    # who may not is told no more than that
    refused(show(stand, admin, token), "IAM.0003")
    theirs = stand.token(stranger)
    refused(show(stand, token, domain_token(stand, stranger)), "IAM.0004")
    refused(show(stand, theirs, by_domain), "IAM.0004")
    refused(show(stand, "x" * 400, by_domain), "IAM.0004")
    assert show(stand, "x" * 400, by_domain, "HEAD").status == 404
    missing = stand.rest("GET", "/v3/auth/tokens", token=by_domain)
    assert missing.status == 400
    shown = client.identity.ShowToken(pb.ShowTokenRequest(subject_token=token))
    assert shown.token.user.id == ann.id


def test_an_expired_token_is_none_to_others(strict: Stand) -> None:
    token = strict.token()
    with strict.client() as client, refusal("IAM.0004"):
        client.identity.ShowToken(pb.ShowTokenRequest(subject_token=token))


# Revoking


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("many"), {"HSMD__GRPC__WORKERS": "3"}) as one:
        yield one


def test_a_revoked_token_is_out_with_the_next_call_on_every_worker(many: Stand) -> None:
    kept = many.token()
    for _ in range(3):
        token = many.token()
        child = issued(ask(many, "token", {"id": token}))
        grandchild = issued(ask(many, "token", {"id": child}))
        temporary = ask(many, "token", {"id": child}, path="/v3.0/OS-CREDENTIAL/securitytokens")
        key = temporary.json["credential"]
        assert all(good(many, each) for each in (token, child, grandchild))
        assert _by(many, key).status == 200
        revoked = show(many, child, child, "DELETE")
        assert (revoked.status, revoked.raw) == (204, b"")
        for _ in range(6):
            assert void(many, child)
        assert void(many, grandchild)
        assert "revoked" in refused(_by(many, key), "APIGW.0301").message
        assert good(many, token)
        refused(show(many, child, token), "IAM.0004")
        assert show(many, child, token, "DELETE").status == 204  # once more is no harm
        one = record(many, revoked.headers["X-Request-Id"])
        assert (one["event"], one["result"]) == ("revokeToken", "OK")
        assert one["resource"] == f"user/{many.dev.user_id}"
    assert good(many, kept)
    many.restart_daemon()
    assert void(many, child)
    assert good(many, kept)


def _by(stand: Stand, key: dict[str, str]) -> Answer:
    return signed(
        stand,
        "GET",
        "/v3/regions",
        access_key=key["access"],
        secret=key["secret"],
        extra=[("X-Security-Token", key["securitytoken"])],
    )


def test_all_of_a_users_tokens(many: Stand) -> None:
    with many.client() as client:
        bob, eve = person(client), person(client)
        tokens = [login(many, bob) for _ in range(2)]
        others = login(many, eve)
        with refusal("IAM.0004"):
            client.identity.RevokeUserTokens(pb.RevokeUserTokensRequest(user_id="0" * 32))
        refused(many.rest("DELETE", f"/v3/users/{bob.id}/tokens", token=others), "IAM.0003")
        assert all(good(many, each) for each in tokens)
        client.identity.RevokeUserTokens(pb.RevokeUserTokensRequest(user_id=bob.id))
        for each in tokens:
            assert void(many, each)
        assert good(many, others)
        again = login(many, bob)
        assert good(many, again)
        assert many.rest("DELETE", f"/v3/users/{bob.id}/tokens", token=again).status == 204
        assert void(many, again)


def test_what_ends_a_users_tokens(many: Stand) -> None:
    with many.client() as client:
        bob = person(client)
        token = login(many, bob)

        def change(**fields: Any) -> None:
            wanted = users_pb2.UpdateUserRequest.User(**fields)
            client.users.UpdateUser(users_pb2.UpdateUserRequest(user_id=bob.id, user=wanted))

        change(description="other")
        assert good(many, token)
        change(password="Another-Horse-8")
        assert void(many, token)
        token = login(many, Person(bob.id, bob.name, bob.domain_id, "Another-Horse-8"))
        change(enabled=False)
        refused(many.rest("GET", "/v3/regions", token=token, source=elsewhere()), "APIGW.0301")
        change(enabled=True)
        assert void(many, token)
        token = login(many, Person(bob.id, bob.name, bob.domain_id, "Another-Horse-8"))
        client.users.DeleteUser(users_pb2.DeleteUserRequest(user_id=bob.id))
        refused(many.rest("GET", "/v3/regions", token=token, source=elsewhere()), "APIGW.0301")


# Bad requests


@pytest.mark.parametrize(
    ("method", "proof"),
    [
        ("hw_ak_sk", {}),
        ("hw_ak_sk", None),
        ("hw_ak_sk", {"access": {"key": "A"}}),
        ("hw_ak_sk", {"access": {"key": "A"}, "secret": {}}),
        ("hw_ak_sk", {"access": {"key": "A"}, "secret": {"key": "s" * 65}}),
        ("hw_ak_sk", {"access": "A", "secret": "s"}),
        ("token", {}),
        ("token", {"id": ""}),
        ("token", {"id": 5}),
        ("token", {"id": "t" * 4097}),
        ("assume_role", {}),
        ("assume_role", {"domain_name": "d"}),
        ("assume_role", {"agency_name": "a" * 65, "domain_name": "d"}),
        ("totp", {"user": {"id": "a"}}),
    ],
)
def test_requests_that_are_none(stand: Stand, method: str, proof: object) -> None:
    refused(ask(stand, method, proof), "IAM.0011")


def test_tokens_are_not_shown_in_records(stand: Stand) -> None:
    token = stand.token()
    assert good(stand, token)
    show(stand, token, token)
    assert not any(token in str(each) for each in stand.audit())
    assert token not in stand.log() + stand.log("gateway")


# The cloud's SDK


def test_the_sdk_creates_and_validates(stand: Stand, ann: Person) -> None:
    sdk = iam_client(stand)
    user = iam.PwdPasswordUser(
        name=ann.name, password=ann.password, domain=iam.PwdPasswordUserDomain(name="development")
    )
    identity = iam.PwdIdentity(methods=["password"], password=iam.PwdPassword(user=user))
    scope = iam.AuthScope(domain=iam.AuthScopeDomain(name="development"))
    body = iam.KeystoneCreateUserTokenByPasswordRequestBody(auth=iam.PwdAuth(identity=identity, scope=scope))
    made = sdk.keystone_create_user_token_by_password(iam.KeystoneCreateUserTokenByPasswordRequest(body=body))
    absent = frozenset({"TokenResult.catalog", "TokenResult.project"})
    checked(made.token, absent=absent)
    assert made.token.user.id == ann.id
    shown = sdk.keystone_validate_token(
        iam.KeystoneValidateTokenRequest(x_subject_token=made.x_subject_token)
    )
    checked(shown, absent=absent)
    assert shown.token.to_dict() == made.token.to_dict()
    assert shown.x_subject_token == made.x_subject_token


def test_names_are_in_the_domain_only(stand: Stand, stranger: Tenant) -> None:
    proof = {"user": {"id": stranger.user_id, "password": stranger.password}}
    own = ask(stand, "password", proof, {"project": {"name": stand.dev.region}})
    assert own.json["token"]["project"]["id"] == stranger.project_id
    refused(ask(stand, "password", proof, {"domain": {"name": "development"}}), "IAM.0001")
    refused(ask(stand, "password", proof, {"project": {"name": fresh()}}), "IAM.0001")
