"""Signed requests end to end, by the cloud SDK's own signer and by one written from the description alone."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.signer import Signer

from hsmd.client import Client
from hsmd.pb.v1 import access_keys_pb2 as pb
from tests.backstage import backstage
from tests.calls import fresh, refused
from tests.credentials import Pairs, domain_token, signed_headers
from tests.people import Person, person
from tests.stand import Answer, Stand, elsewhere, standing

Sign = Callable[..., dict[str, str]]

UNICODE = "Ärger 中文/😀"
DATE = "%Y%m%dT%H%M%SZ"


def by_sdk(verb: str, path: str, body: bytes, **how: Any) -> dict[str, str]:
    """The same as `signed_headers`, by the SDK."""
    headers = {"Content-Type": "application/json", **dict(how.get("extra", ()))}
    if how.get("date"):
        headers["X-Sdk-Date"] = how["date"].strftime(DATE)
    query = [tuple(pair) for pair in how.get("query", ())]
    encoded = quote(path, safe="/~")
    request = SdkRequest(verb, "https", how["host"], encoded, encoded, query, headers, body)
    credentials = BasicCredentials(how["access_key"], how["secret"])
    return dict(Signer(credentials).sign(request).header_params)


SIGNERS: dict[str, Sign] = {"sdk": by_sdk, "own": signed_headers}


class Signed:
    """A request as it is signed; `send` sends it as it is, or otherwise."""

    def __init__(
        self,
        stand: Stand,
        sign: Sign,
        verb: str,
        path: str,
        body: bytes = b"",
        query: Pairs = (),
        **how: Any,
    ) -> None:
        own = stand.dev
        self.stand, self.verb, self.path, self.body, self.query = stand, verb, path, body, query
        self.headers = sign(
            verb,
            path,
            body,
            query=query,
            host=urlsplit(own.rest).netloc,
            **{"access_key": own.access_key, "secret": own.secret_key, **how},
        )

    def send(self, *, source: str = "", **other: Any) -> Answer:
        verb, path, body, query = (
            other.get(name, getattr(self, name)) for name in ("verb", "path", "body", "query")
        )
        target = quote(path, safe="/~")
        if query:
            target += "?" + "&".join(f"{quote(a, safe='~')}={quote(b, safe='~')}" for a, b in query)
        headers = {**self.headers, **other.get("headers", {})}
        return self.stand.rest(verb, target, body or None, headers=headers, source=source or elsewhere())


@pytest.fixture(params=SIGNERS)
def sign(request: pytest.FixtureRequest) -> Sign:
    return SIGNERS[request.param]


@pytest.fixture(scope="module")
def ann(client: Client) -> Person:
    return person(client)


def kms(stand: Stand, operation: str) -> str:
    return f"/v1.0/{stand.dev.project_id}/kms/{operation}"


# What is right


def test_every_verb(stand: Stand, sign: Sign, ann: Person, client: Client) -> None:
    group = {"group": {"name": fresh("group")[:30]}}
    made = Signed(stand, sign, "POST", "/v3/groups", json.dumps(group).encode()).send()
    assert made.status == 201, made.raw
    own = f"/v3/groups/{made.json['group']['id']}"
    changed = json.dumps({"group": {"description": UNICODE}}).encode()
    answer = Signed(stand, sign, "PATCH", own, changed).send()
    assert (answer.status, answer.json["group"]["description"]) == (200, UNICODE)
    user = json.dumps({"user": {"description": UNICODE}}).encode()
    answer = Signed(stand, sign, "PUT", f"/v3.0/OS-USER/users/{ann.id}", user).send()
    assert (answer.status, answer.json["user"]["description"]) == (200, UNICODE)
    assert Signed(stand, sign, "GET", own).send().status == 200
    subject = [("X-Subject-Token", domain_token(stand))]
    assert Signed(stand, sign, "HEAD", "/v3/auth/tokens", extra=subject).send().status == 200
    gone = Signed(stand, sign, "DELETE", own).send()
    assert (gone.status, gone.raw) == (204, b"")


def test_paths_with_spaces_and_unicode(stand: Stand, sign: Sign, client: Client) -> None:
    key_id = client.create_key(fresh())
    label = "a b-ä中"
    body = json.dumps({"tag": {"key": label, "value": "1"}}).encode()
    assert Signed(stand, sign, "POST", kms(stand, f"{key_id}/tags"), body).send().status == 204
    path = kms(stand, f"{key_id}/tags/{label}")
    assert Signed(stand, sign, "DELETE", path).send().status == 204
    assert Signed(stand, sign, "DELETE", path).send().json["error"]["error_code"] == "KMS.0416"
    for odd in ("~x", "x y", "x+y", "x=y&z", "50%", "x;y", "*'()!", "ä"):
        answer = Signed(stand, sign, "GET", f"/v3.0/OS-CREDENTIAL/credentials/{odd}").send()
        assert (answer.status, answer.json["error"]["code"]) == (404, 404), odd


def test_queries(stand: Stand, sign: Sign, ann: Person) -> None:
    def ask(*query: tuple[str, str]) -> Answer:
        return Signed(stand, sign, "GET", "/v3/users", query=query).send()

    found = ask(("name", ann.name))
    assert [each["id"] for each in found.json["users"]] == [ann.id]
    assert ask(("name", UNICODE)).json["users"] == []
    assert ask(("zz", "1"), ("name", ann.name), ("a", ""), ("A", "~ +&=/")).json == found.json
    # repeated keys: signed rightly, and then no list is due there
    twice = ask(("name", "b"), ("name", "a"), ("name", "10"), ("name", "9"))
    assert (twice.status, twice.json["error"]["code"]) == (400, 400)
    assert ask(("x", "b"), ("x", "a"), ("x", "a"), ("name", ann.name)).json == found.json


def test_a_body_of_12_mb(stand: Stand, sign: Sign) -> None:
    small = b'{"random_data_length": "512", "padding": ""}'
    body = small.replace(b'""', b'"' + b"x" * (12 * 1024 * 1024 - len(small)) + b'"')
    assert len(body) == 12 * 1024 * 1024
    request = Signed(stand, sign, "POST", kms(stand, "gen-random"), body)
    assert request.send().status == 200
    refused(request.send(body=body[:-3] + b'y"}'), "APIGW.0301")
    longer = body[:-2] + b'x"}'
    refused(Signed(stand, sign, "POST", kms(stand, "gen-random"), longer).send(), "APIGW.0201")


def test_an_empty_body(stand: Stand, sign: Sign) -> None:
    request = Signed(stand, sign, "POST", kms(stand, "list-keys"))
    assert request.send().status == 200
    refused(request.send(body=b"{}"), "APIGW.0301")
    refused(Signed(stand, sign, "POST", kms(stand, "list-keys"), b"{}").send(body=b""), "APIGW.0301")


def test_both_signers_say_the_same(stand: Stand) -> None:
    how: dict[str, Any] = {
        "access_key": stand.dev.access_key,
        "secret": stand.dev.secret_key,
        "host": "localhost:8443",
        "date": datetime.now(UTC),
        "extra": [("Content-Type", "application/json"), ("X-Project-Id", "  p  ")],
    }
    for verb in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
        for path, query, body in (
            ("/", (), b""),
            (f"/v1/{UNICODE}/a b", [("b", "2"), ("b", "10"), ("a", UNICODE), ("A", "")], b"\x00\xff"),
            ("/v1.0/~x/", [("e", "é"), ("e", "z")], b"x" * 100_000),
        ):
            ours = signed_headers(verb, path, body, query=query, **how)
            theirs = by_sdk(verb, path, body, query=query, **how)
            assert ours["Authorization"] == theirs["Authorization"]


# What is wrong


def test_whatever_is_changed_is_seen(stand: Stand, sign: Sign) -> None:
    body = b'{"random_data_length": "512"}'
    extra = [("Content-Type", "application/json"), ("X-Other", "one")]
    query = [("a", "1"), ("b", "2"), ("b", "3")]
    request = Signed(stand, sign, "POST", kms(stand, "gen-random"), body, query, extra=extra)
    assert request.send().status == 200
    assert request.send(query=list(reversed(query))).status == 200  # their order was not signed
    tomorrow = (datetime.now(UTC) + timedelta(minutes=1)).strftime(DATE)
    authorization = request.headers["Authorization"]
    changes: list[dict[str, Any]] = [
        {"body": body.replace(b"512", b"256")},
        {"body": body + b" "},
        {"path": kms(stand, "list-keys")},
        {"path": kms(stand, "gen-random") + "/"},
        {"query": query[:-1]},
        {"query": [*query, ("c", "")]},
        {"query": [("a", "1"), ("b", "2"), ("b", "4")]},
        {"query": ()},
        {"headers": {"X-Other": "two"}},
        {"headers": {"Content-Type": "application/json;charset=utf8"}},
        {"headers": {"X-Sdk-Date": tomorrow}},
        {"headers": {"Host": "elsewhere.example"}},
        {"headers": {"Authorization": authorization[:-1] + ("0" if authorization[-1] != "0" else "1")}},
        {"headers": {"Authorization": authorization.replace("x-other;", "")}},
        {"headers": {"Authorization": authorization.replace("Access=", "Access=X")}},
    ]
    for change in changes:
        answer = request.send(**change)
        assert answer.status in (401, 404), change
    one = Signed(stand, sign, "GET", f"/v3.0/OS-CREDENTIAL/credentials/{'A' * 20}")
    assert one.send().status == 404
    refused(one.send(verb="DELETE"), "APIGW.0301")


@pytest.mark.parametrize(
    ("off", "right"),
    [(timedelta(minutes=-14), True), (timedelta(minutes=14), True), (timedelta(minutes=-16), False)],
)
def test_a_replay_is_good_for_15_minutes(stand: Stand, sign: Sign, off: timedelta, right: bool) -> None:
    request = Signed(
        stand,
        sign,
        "POST",
        kms(stand, "gen-random"),
        b'{"random_data_length": "512"}',
        date=datetime.now(UTC) + off,
    )
    for _ in range(2):
        answer = request.send()
        if right:
            assert answer.status == 200
        else:
            assert "15 minutes" in refused(answer, "APIGW.0301").message


# Guessing


@pytest.fixture(scope="module")
def guessed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with standing(tmp_path_factory.mktemp("guessed")) as one:
        yield one


def _told(answer: Answer) -> tuple[int, str]:
    """Status and text, without numbers of seconds."""
    tree = answer.json
    text = tree["error"]["message"] if "error" in tree else tree["error_msg"]
    return answer.status, re.sub(r"\d+", "N", text)


def _guess(attempts: int, attempt: Callable[[int], Answer]) -> list[Answer]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(attempt, range(attempts)))


def _check(stand: Stand, known: list[Answer], unknown: list[Answer], plain: int) -> None:
    """No difference in what is told, most were slowed down, and every one is in the audit log."""
    pauses = {  # when each comes is a matter of time, not of the name
        (429, "Too many requests: too many failed attempts; the next one in N s."),
        (429, "Too many requests: too many passwords are being checked at once."),
    }
    told, of_nobody = ({_told(each) for each in answers} for answers in (known, unknown))
    assert told - pauses == of_nobody - pauses
    assert (told & of_nobody) - pauses
    for answers in (known, unknown):
        assert all(each.status in (401, 429) for each in answers)
        assert sum(each.status == 401 and "ock" not in _told(each)[1] for each in answers) <= plain
    recorded = {each["request_id"] for each in stand.audit() if each["result"] != "OK"}
    assert {each.headers["X-Request-Id"] for each in (*known, *unknown)} <= recorded


def _signatures(stand: Stand, attempts: int) -> None:
    with stand.client() as client:
        who = person(client)
        wanted = pb.CreatePermanentAccessKeyRequest.Credential(user_id=who.id)
        request = pb.CreatePermanentAccessKeyRequest(credential=wanted)
        made = client.access_keys.CreatePermanentAccessKey(request).credential
    how: dict[str, Any] = {"secret": "A" * 40}

    def ask(access_key: str, source: str) -> Answer:
        request = Signed(stand, signed_headers, "GET", "/v3/regions", access_key=access_key, **how)
        return request.send(source=source)

    sources = elsewhere(), elsewhere()
    known = _guess(attempts, lambda _: ask(made.access, sources[0]))
    unknown = _guess(attempts, lambda _: ask("A" * 20, sources[1]))
    _check(stand, known, unknown, plain=attempts // 2)
    right = Signed(stand, signed_headers, "GET", "/v3/regions", access_key=made.access, secret=made.secret)
    assert right.send().status == 200  # from elsewhere its owner is not shut out


def _passwords(stand: Stand, attempts: int) -> None:
    with stand.client() as client:
        who = person(client)

    def ask(name: str, source: str) -> Answer:
        user = {"name": name, "password": "Wrong-Horse-9", "domain": {"name": "development"}}
        auth = {"identity": {"methods": ["password"], "password": {"user": user}}}
        return stand.rest("POST", "/v3/auth/tokens", {"auth": auth}, source=source)

    sources = elsewhere(), elsewhere()
    known = _guess(attempts, lambda _: ask(who.name, sources[0]))
    unknown = _guess(attempts, lambda _: ask("nobody-" + who.name, sources[1]))
    _check(stand, known, unknown, plain=attempts // 2)


def test_wrong_signatures_are_told_nothing_slowed_down_and_recorded(guessed: Stand) -> None:
    _signatures(guessed, 250)


def test_wrong_passwords_are_told_nothing_slowed_down_and_recorded(guessed: Stand) -> None:
    _passwords(guessed, 60)


@pytest.mark.soak
def test_ten_thousand_wrong_signatures(guessed: Stand) -> None:
    _signatures(guessed, 5000)


@pytest.mark.soak
def test_ten_thousand_wrong_passwords(guessed: Stand) -> None:
    _passwords(guessed, 5000)


def test_a_user_of_the_console_only_signs_nothing(stand: Stand, client: Client) -> None:
    who = person(client, access_mode="console")
    backstage(stand, "role", who.id, stand.dev.project_id, "KMS Administrator")
    wanted = pb.CreatePermanentAccessKeyRequest.Credential(user_id=who.id)
    made = client.access_keys.CreatePermanentAccessKey(
        pb.CreatePermanentAccessKeyRequest(credential=wanted)
    ).credential
    request = Signed(stand, by_sdk, "GET", "/v3/regions", access_key=made.access, secret=made.secret)
    refused(request.send(), "APIGW.0301")
