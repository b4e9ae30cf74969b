"""Temporary access keys: of users, for a time, narrowed by a policy; nothing of them is kept."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import huaweicloudsdkiam.v3 as iam
import huaweicloudsdkkms.v2 as kms
import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.client import Client
from hsmd.pb.v1 import identity_pb2
from hsmd.pb.v1 import temporary_keys_pb2 as pb
from tests.backstage import backstage
from tests.calls import fresh, record, refusal, refused
from tests.credentials import ask, domain_token, iam_by, signed, temporary_kms
from tests.people import Person, iam_client, login, person
from tests.stand import Answer, Stand, Tenant, elsewhere
from tests.test_sdk import checked

PATH = "/v3.0/OS-CREDENTIAL/securitytokens"
ISO = "%Y-%m-%dT%H:%M:%S.%fZ"
MINUTES = 60


def made(stand: Stand, token: str, seconds: int | None = None, policy: object = None) -> dict[str, str]:
    """A temporary key against a token."""
    proof: dict[str, Any] = {"id": token}
    if seconds is not None:
        proof["duration_seconds"] = seconds
    answer = ask(stand, "token", proof, path=PATH, policy=policy)
    assert answer.status == 201, answer.raw
    found: dict[str, str] = answer.json["credential"]
    return found


def by(stand: Stand, key: dict[str, str], verb: str = "GET", path: str = "/v3/regions", **how: Any) -> Answer:
    """A request signed by it."""
    return signed(
        stand,
        verb,
        path,
        access_key=key["access"],
        secret=key["secret"],
        extra=how.pop("extra", [("X-Security-Token", key["securitytoken"])]),
        **how,
    )


@pytest.fixture(scope="module")
def key(stand: Stand) -> dict[str, str]:
    return made(stand, domain_token(stand))


# By the cloud's SDK


def test_the_sdk_makes_and_uses_one(stand: Stand, client: Client) -> None:
    key_id = client.create_key(fresh())
    before = datetime.now(UTC)
    proof = iam.IdentityToken(id=domain_token(stand), duration_seconds=1200)
    identity = iam.TokenAuthIdentity(methods=["token"], token=proof)
    body = iam.CreateTemporaryAccessKeyByTokenRequestBody(auth=iam.TokenAuth(identity=identity))
    request = iam.CreateTemporaryAccessKeyByTokenRequest(body=body)
    credential = checked(iam_client(stand).create_temporary_access_key_by_token(request).credential)
    lasting = datetime.strptime(credential.expires_at, ISO).replace(tzinfo=UTC) - before
    assert timedelta(minutes=19) < lasting < timedelta(minutes=22)
    assert credential.access.startswith("HST")
    assert len(credential.access) == 20
    assert len(credential.secret) == 40

    theirs = temporary_kms(stand, credential)
    asked = kms.ListKeyDetailRequest(body=kms.OperateKeyRequestBody(key_id=key_id))
    assert theirs.list_key_detail(asked).key_info.key_id == key_id
    body = kms.EncryptDataRequestBody(key_id=key_id, plain_text="some text")
    cipher = theirs.encrypt_data(kms.EncryptDataRequest(body=body)).cipher_text
    body = kms.DecryptDataRequestBody(cipher_text=cipher)
    assert theirs.decrypt_data(kms.DecryptDataRequest(body=body)).plain_text == "some text"
    (one,) = [each for each in stand.audit() if each["event"] == "encryptData" and each["resource"] == key_id]
    assert (one["identity"], one["user_id"]) == ("temporary-key", stand.dev.user_id)
    users = iam_by(stand, credential.access, credential.secret, stand.dev.domain_id, credential.securitytoken)
    assert users.keystone_list_users(iam.KeystoneListUsersRequest()).users


def by_certificate(client: Client) -> Any:
    """A temporary key of whom the client's certificate acts as."""
    request = pb.CreateTemporaryAccessKeyRequest()
    request.auth.identity.methods.append("token")
    return client.temporary_keys.CreateTemporaryAccessKey(request).credential


def test_over_grpc_by_certificate(client: Client, stand: Stand) -> None:
    credential = by_certificate(client)
    key = {
        "access": credential.access,
        "secret": credential.secret,
        "securitytoken": credential.securitytoken,
    }
    assert by(stand, key).status == 200


def test_the_token_may_come_in_the_header(stand: Stand) -> None:
    answer = ask(stand, "token", {}, token=domain_token(stand), path=PATH)
    assert by(stand, answer.json["credential"]).status == 200
    one = record(stand, answer.headers["X-Request-Id"])
    assert (one["event"], one["result"]) == ("createSecurityToken", "OK")
    assert one["resource"] == f"access-key/{answer.json['credential']['access']}"
    refused(ask(stand, "token", {}, path=PATH), "APIGW.0301")


# Where and how long


def test_one_of_a_project_token_is_good_in_that_project(stand: Stand, client: Client) -> None:
    ann = person(client)
    for project in (stand.dev.project_id,):
        backstage(stand, "role", ann.id, project, "KMS Administrator")
    token = login(stand, ann, {"project": {"id": stand.dev.project_id}})
    key = made(stand, token)
    own = f"/v1.0/{stand.dev.project_id}/kms/list-keys"
    assert by(stand, key, "POST", own, body=b"{}").status == 200
    other = f"/v1.0/{'0' * 32}/kms/list-keys"
    assert by(stand, key, "POST", other, body=b"{}").json["error"]["error_code"] == "KMS.0321"
    refused(by(stand, key, path="/v3.0/OS-USER/users/x"), "IAM.0003")


@pytest.mark.parametrize("seconds", [0, -1, 899, 86401, 2**31 - 1, 2**40, "soon", 900.5])
def test_durations_that_are_none(stand: Stand, seconds: object) -> None:
    proof = {"id": domain_token(stand), "duration_seconds": seconds}
    answer = ask(stand, "token", proof, path=PATH)
    assert answer.status == 400
    assert set(answer.json["error"]) == {"code", "message", "title"}


def test_one_ends_with_its_token(stand: Stand) -> None:
    token = domain_token(stand)
    shown = stand.rest("GET", "/v3/auth/tokens", token=token, headers={"X-Subject-Token": token})
    key = made(stand, token, 86400)
    assert key["expires_at"] == shown.json["token"]["expires_at"]
    short = made(stand, token, 900)
    assert short["expires_at"] < key["expires_at"]


def test_one_that_has_expired(strict: Stand) -> None:
    request = pb.CreateTemporaryAccessKeyRequest()
    identity = request.auth.identity
    identity.methods.append("token")
    with strict.client() as client:
        made = client.temporary_keys.CreateTemporaryAccessKey(request).credential
    late = backstage(strict, "security-token", strict.dev.user_id)
    key = {"access": made.access, "secret": made.secret, "securitytoken": made.securitytoken}
    assert by(strict, key).status == 200
    access, secret, text = late.split()
    answer = by(strict, {"access": access, "secret": secret, "securitytoken": text})
    assert "expired" in refused(answer, "APIGW.0301").message


# Narrowed by a policy


def test_a_policy_narrows_and_never_widens(stand: Stand, client: Client) -> None:
    key_id = client.create_key(fresh())
    statement = {"Effect": "Allow", "Action": ["kms:cmk:get", "kms:cmk:list", "iam:users:*", "csms:*:*"]}
    policy = {"Version": "1.1", "Statement": [statement]}
    narrow = made(stand, stand.token(), policy=policy)
    kms_path = f"/v1.0/{stand.dev.project_id}/kms/"
    body = b'{"key_id": "%s"}' % key_id.encode()
    assert by(stand, narrow, "POST", kms_path + "list-keys", body=b"{}").status == 200
    assert by(stand, narrow, "POST", kms_path + "describe-key", body=body).status == 200
    refused(by(stand, narrow, "POST", kms_path + "disable-key", body=body), "KMS.0330")
    refused(by(stand, narrow, "POST", kms_path + "create-key", body=b'{"key_alias": "a"}'), "KMS.0330")
    ann = person(client)
    widened = made(stand, login(stand, ann), policy=policy)
    refused(by(stand, widened, path="/v3/users"), "IAM.0003")


@pytest.mark.parametrize(
    "policy",
    [
        "text",
        [],
        {},
        {"Version": "1.0", "Statement": []},
        {"Version": "1.1", "Statement": []},
        {"Version": "1.1", "Statement": [{"Effect": "Perhaps", "Action": ["kms:*:*"]}]},
        {"Version": "1.1", "Statement": [{"Effect": "Allow", "Action": ["x" * 3000]}]},
    ],
)
def test_policies_that_are_none(stand: Stand, policy: object) -> None:
    answer = ask(stand, "token", {"id": domain_token(stand)}, path=PATH, policy=policy)
    assert answer.status == 400
    assert set(answer.json["error"]) == {"code", "message", "title"}


# What may not be


def test_none_is_made_by_another_and_none_makes_what_lasts(
    stand: Stand, key: dict[str, str], client: Client
) -> None:
    body = b'{"auth": {"identity": {"methods": ["token"], "token": {}}}}'
    refused(by(stand, key, "POST", PATH, body=body), "APIGW.0301")
    ann = person(client)
    own = made(stand, login(stand, ann))
    body = b'{"credential": {"user_id": "%s"}}' % ann.id.encode()
    refused(by(stand, own, "POST", "/v3.0/OS-CREDENTIAL/credentials", body=body), "IAM.0003")
    proof = {"access": {"key": key["access"]}, "secret": {"key": key["secret"]}}
    refused(ask(stand, "hw_ak_sk", proof), "IAM.0001")


def test_every_part_must_be_there_and_belong_together(
    stand: Stand, key: dict[str, str], stranger: Tenant
) -> None:
    assert by(stand, key).status == 200
    other = made(stand, domain_token(stand))
    text = key["securitytoken"]
    wrong = (
        {**key, "securitytoken": other["securitytoken"]},
        {**key, "access": other["access"]},
        {**key, "secret": other["secret"]},
        {**key, "access": stand.dev.access_key},
        {**key, "access": stand.dev.access_key, "secret": stand.dev.secret_key},
        {**key, "securitytoken": "x" * 300},
        {**key, "securitytoken": text[:-4]},
        {**key, "securitytoken": domain_token(stand)},
    )
    messages = {refused(by(stand, each), "APIGW.0301").message for each in wrong}
    assert len(messages) == 1
    assert "verify aksk signature fail" in messages.pop()
    # no security token, one that is not signed, one given twice or empty
    refused(by(stand, key, extra=[]), "APIGW.0301")
    unsigned = by(stand, key, extra=[], sent={"X-Security-Token": text})
    assert "signed headers" in refused(unsigned, "APIGW.0301").message
    refused(by(stand, key, extra=[("X-Security-Token", "")]), "APIGW.0301")
    changed = by(stand, key, sent={"X-Security-Token": other["securitytoken"]})
    refused(changed, "APIGW.0301")
    # nor is it a token
    answer = stand.rest("GET", "/v3/regions", token=text, source=elsewhere())
    assert answer.status == 403


def test_a_security_token_forged_at_any_byte(stand: Stand, key: dict[str, str]) -> None:
    raw = base64.urlsafe_b64decode(key["securitytoken"])
    for position in range(0, len(raw), 7):
        forged = bytearray(raw)
        forged[position] ^= 1 << position % 8
        text = base64.urlsafe_b64encode(bytes(forged)).decode()
        refused(by(stand, {**key, "securitytoken": text}), "APIGW.0301")
    assert by(stand, key).status == 200


def test_a_restart_changes_nothing_and_revoking_all_ends_it(stand: Stand, client: Client) -> None:
    ann: Person = person(client)
    first = made(stand, login(stand, ann))
    assert by(stand, first).status == 200
    client.identity.RevokeUserTokens(identity_pb2.RevokeUserTokensRequest(user_id=ann.id))
    answer = by(stand, first)
    assert "revoked" in refused(answer, "APIGW.0301").message
    assert by(stand, made(stand, login(stand, ann))).status == 200


def test_one_of_them_is_revoked_by_its_security_token(stand: Stand, stranger: Tenant) -> None:
    actions = ["iam:*:*", *(f"x:{number}:{'z' * 64}" for number in range(25))]  # nearly as long as may be
    policy = {"Version": "1.1", "Statement": [{"Effect": "Allow", "Action": actions}]}
    token = domain_token(stand)
    one, other = (made(stand, token, policy=policy) for _ in range(2))
    path, text = "/v3/auth/tokens", one["securitytoken"]
    subject = {"X-Subject-Token": text}
    refused(stand.rest("DELETE", path, token=domain_token(stand, stranger), headers=subject), "IAM.0004")
    refused(stand.rest("GET", path, token=token, headers=subject), "IAM.0004")  # it is no token
    assert by(stand, one).status == 200
    assert stand.rest("DELETE", path, token=token, headers=subject).status == 204
    for _ in range(4):
        assert "revoked" in refused(by(stand, one), "APIGW.0301").message
    assert by(stand, other).status == 200
    forged = {"X-Subject-Token": text[:-8] + "AAAAAAA="}
    refused(stand.rest("DELETE", path, token=token, headers=forged), "IAM.0004")


def test_secrets_are_not_shown(stand: Stand, key: dict[str, str]) -> None:
    assert by(stand, key).status == 200
    everything = stand.log() + stand.log("gateway") + str(stand.audit())
    for secret in (key["secret"], key["securitytoken"]):
        assert secret not in everything
    raw = base64.urlsafe_b64decode(key["securitytoken"])
    assert key["secret"].encode() not in raw
    assert key["secret"].encode().hex().encode() not in raw


def test_requests_that_are_none(client: Client, stand: Stand) -> None:
    for methods in ([], ["password"], ["token", "assume_role"], ["hw_ak_sk"]):
        body = {"auth": {"identity": {"methods": methods, "token": {"id": "x"}}}}
        refused(stand.rest("POST", PATH, body, source=elsewhere()), "IAM.0011")
    with refusal("IAM.0011"):
        request = pb.CreateTemporaryAccessKeyRequest()
        request.auth.identity.methods.append("totp")
        client.temporary_keys.CreateTemporaryAccessKey(request)


def test_the_sdk_is_told_of_a_wrong_one(stand: Stand, key: dict[str, str]) -> None:
    wrong = iam.Credential(**{**key, "secret": "A" * 40})
    theirs = temporary_kms(stand, wrong)
    with pytest.raises(ClientRequestException) as caught:
        theirs.list_keys(kms.ListKeysRequest(body=kms.ListKeysRequestBody()))
    assert (caught.value.status_code, caught.value.error_code) == (401, "APIGW.0301")
