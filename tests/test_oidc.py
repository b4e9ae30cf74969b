"""JWTs of an OpenID Connect issuer: signed here by `cryptography`, its keys served over real HTTPS."""

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from hsmd.config import ConfigError, IdentityRule, Oidc, Settings
from hsmd.errors import Error
from hsmd.idp import open_providers
from hsmd.idp.jwks import read
from hsmd.idp.known import Known
from hsmd.idp.oidc import Issuer
from tests.backstage import backstage
from tests.calls import record, refused
from tests.providers import Provider, Reply, providing, toml
from tests.stand import Answer, Stand, elsewhere, eventually
from tests.test_agencies import create as agency_of
from tests.test_temporary_keys import by

_AUDIENCE = "hsmd"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int = 0) -> str:
    """Of so many bytes at least: a coordinate has all of its curve's, also where they begin with zeros."""
    return b64(value.to_bytes(max(size, (value.bit_length() + 7) // 8), "big"))


def rsa_key(key_id: str, bits: int = 2048) -> "SigningKey":
    private = rsa.generate_private_key(65537, bits)
    numbers = private.public_key().public_numbers()
    jwk = {"kty": "RSA", "kid": key_id, "use": "sig", "n": number(numbers.n), "e": number(numbers.e)}
    return SigningKey(key_id, private, jwk)


@dataclass
class SigningKey:
    """An issuer's key and its public half as a JWK."""

    key_id: str
    private: Any
    jwk: dict[str, Any]

    def sign(self, algorithm: str, data: bytes) -> bytes:
        if algorithm == "RS256":
            return bytes(self.private.sign(data, padding.PKCS1v15(), hashes.SHA256()))
        if algorithm == "PS256":
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)
            return bytes(self.private.sign(data, pss, hashes.SHA256()))
        if algorithm == "ES256":
            r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return bytes(self.private.sign(data))

    @property
    def pem(self) -> bytes:
        public = self.private.public_key()
        return bytes(
            public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )


@dataclass
class Company:
    """A stand, an issuer, and who is who."""

    stand: Stand
    provider: Provider
    keys: dict[str, SigningKey]
    groups: dict[str, str] = field(default_factory=dict)

    @property
    def issuer(self) -> str:
        return f"{self.provider.url}/realm"

    def claims(self, **changed: Any) -> dict[str, Any]:
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "aud": _AUDIENCE,
            "sub": "f3b1",
            "exp": now + 300,
            "iat": now,
            "preferred_username": self.stand.dev.user,
            "groups": ["everybody"],
        }
        return {name: value for name, value in (claims | changed).items() if value is not None}

    def token(
        self, algorithm: str = "RS256", *, key: str = "", header: dict[str, Any] | None = None, **changed: Any
    ) -> str:
        by = self.keys[
            key or {"E": "ec", "R": "rsa", "P": "rsa"}[algorithm[0]] if algorithm != "EdDSA" else "ed"
        ]
        head = {"alg": algorithm, "typ": "JWT", "kid": by.key_id} | (header or {})
        return signed(head, self.claims(**changed), lambda data: by.sign(algorithm, data))

    def call(self, token: str, project: str = "", **more: Any) -> Answer:
        path = f"/v1.0/{project or self.stand.dev.project_id}/kms/list-keys"
        headers = {"Authorization": f"Bearer {token}"}
        return self.stand.rest("POST", path, {}, headers=headers, source=elsewhere(), **more)


def signed(header: dict[str, Any], claims: Any, sign: Any) -> str:
    text = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{text}.{b64(sign(text.encode()))}"


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    folder = tmp_path_factory.mktemp("oidc")
    curve, edwards = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
    point = curve.public_key().public_numbers()
    raw = edwards.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    keys = {
        "rsa": rsa_key("rsa-1"),
        "ec": SigningKey(
            "ec-1",
            curve,
            {"kty": "EC", "crv": "P-256", "kid": "ec-1", "x": number(point.x, 32), "y": number(point.y, 32)},
        ),
        "ed": SigningKey("ed-1", edwards, {"kty": "OKP", "crv": "Ed25519", "kid": "ed-1", "x": b64(raw)}),
        "foreign": rsa_key("rsa-1"),
        "later": rsa_key("rsa-2"),
    }
    served = ["rsa", "ec", "ed"]

    def answer(verb: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        oct_key = {"kty": "oct", "kid": "oct-1", "k": b64(b"x" * 32), "alg": "HS256"}
        return 200, {}, {"keys": [oct_key, *(keys[name].jwk for name in served)]}

    with providing(folder / "provider", answer) as provider:
        stand = Stand(folder / "stand")
        dev = stand.dev
        group = backstage(stand, "group", dev.domain_id, dev.project_id, "KMS CMKReadOnlyAccess")
        one = Company(stand, provider, keys, {"readers": group})
        keys["served"] = SigningKey("", served, {})  # what a test changes
        rules: list[dict[str, Any]] = [
            {"claim": "groups", "value": "admins", "user_id": dev.user_id},
            {
                "claim": "groups",
                "value": "several",
                "also": [{"claim": "acr", "value": "gold"}, {"claim": "client", "value": "*"}],
                "user_id": dev.user_id,
            },
            {"claim": "groups", "value": "readers", "groups": [group], "domain_id": dev.domain_id},
            {
                "claim": "groups",
                "value": "bound",
                "user_id": dev.user_id,
                "project_id": dev.project_id,
            },
            {
                "claim": "groups",
                "value": "everybody",
                "user_claim": "preferred_username",
                "domain_id": dev.domain_id,
            },
        ]
        issuer = {
            "issuer": one.issuer,
            "audience": [_AUDIENCE, "other"],
            "jwks": f"{provider.url}/keys",
            "jwks_ca": str(provider.ca),
            "refresh_seconds": 1,
            "rules": rules,
        }
        stand.settings["HSMD__OIDC"] = toml([issuer])
        try:
            stand.start()
            eventually(lambda: one.call(one.token()).status == 200)
            yield one
        finally:
            stand.stop()


# What holds


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
def test_a_token_of_each_algorithm(company: Company, algorithm: str) -> None:
    answer = company.call(company.token(algorithm))
    assert answer.status == 200, answer.raw
    seen = record(company.stand, answer.headers["X-Request-Id"])
    assert (seen["identity"], seen["user_id"]) == ("oidc", company.stand.dev.user_id)


def test_the_scheme_in_any_case(company: Company) -> None:
    path = f"/v1.0/{company.stand.dev.project_id}/kms/list-keys"
    headers = {"Authorization": f"bEARER  {company.token()}"}
    assert company.stand.rest("POST", path, {}, headers=headers, source=elsewhere()).status == 200


def test_one_audience_of_several(company: Company) -> None:
    assert company.call(company.token(aud=["elsewhere", "other"])).status == 200


def test_a_token_without_key_id_where_one_key_fits(company: Company) -> None:
    assert company.call(company.token("ES256", header={"kid": ""})).status == 200


def test_clocks_may_be_off_a_little(company: Company) -> None:
    now = int(time.time())
    assert company.call(company.token(exp=now - 5)).status == 200
    assert company.call(company.token(nbf=now + 30)).status == 200


# What does not


def test_claims_that_do_not_hold(company: Company) -> None:
    now = int(time.time())
    wrong: list[dict[str, Any]] = [
        {"exp": now - 120},
        {"exp": None},
        {"exp": "soon"},
        {"exp": 1e999},
        {"nbf": now + 600},
        {"iat": now + 600},
        {"iss": "https://elsewhere.example"},
        {"iss": None},
        {"iss": company.issuer + "/"},
        {"aud": "elsewhere"},
        {"aud": None},
        {"aud": []},
        {"sub": None},
        {"sub": 5},
    ]
    for changed in wrong:
        refused(company.call(company.token(**changed)), "APIGW.0301")


def test_signatures_that_do_not_hold(company: Company) -> None:
    token = company.token()
    head, body, signature = token.split(".")
    other = b64(json.dumps(company.claims(groups=["admins"])).encode())
    raw = base64.urlsafe_b64decode(signature + "==")
    for forged in (
        f"{head}.{other}.{signature}",
        f"{head}.{body}.{b64(raw[:-1] + bytes([raw[-1] ^ 1]))}",
        f"{head}.{body}.{b64(b'x')}",
        company.token(key="foreign"),  # another key by the same id
        company.token(header={"kid": "nobody"}),
        company.token(key="later"),
        company.token(header={"kid": "ec-1"}),
    ):
        refused(company.call(forged), "APIGW.0301")


def test_algorithms_that_are_none(company: Company) -> None:
    claims, public = company.claims(), company.keys["rsa"].pem

    def by(secret: bytes) -> Any:
        return lambda data: hmac.digest(secret, data, hashlib.sha256)

    def nothing(_data: bytes) -> bytes:
        return bytes(256)

    jwk = json.dumps(company.keys["rsa"].jwk).encode()
    for forged in (
        signed({"alg": "none"}, claims, nothing),
        signed({"alg": "None", "kid": "rsa-1"}, claims, nothing),
        signed({"alg": "HS256", "kid": "rsa-1"}, claims, by(public)),
        signed({"alg": "HS256", "kid": "rsa-1"}, claims, by(jwk)),
        signed({"alg": "HS256", "kid": "oct-1"}, claims, by(b"x" * 32)),
        signed({"alg": "RS512", "kid": "rsa-1"}, claims, nothing),  # not configured
        signed({"alg": ["RS256"], "kid": "rsa-1"}, claims, nothing),
        signed({"alg": {}, "kid": {}}, claims, nothing),
        signed({"kid": "rsa-1"}, claims, nothing),
    ):
        refused(company.call(forged), "APIGW.0301")


def test_headers_are_no_place_for_keys(company: Company) -> None:
    foreign = company.keys["foreign"]
    for header in (
        {"jwk": foreign.jwk},
        {"jku": "https://elsewhere.example/keys"},
        {"x5u": "https://x.example"},
    ):
        refused(company.call(company.token(key="foreign", header=header)), "APIGW.0301")


def test_extensions_that_nobody_knows(company: Company) -> None:
    refused(company.call(company.token(header={"crit": ["exp"], "exp": 1})), "APIGW.0301")
    refused(company.call(company.token(header={"b64": False, "crit": ["b64"]})), "APIGW.0301")


@pytest.mark.parametrize(
    "text", ["x", "a.b.c", "..", "a.b", "a.b.c.d", "é.é.é", "x" * 8193, "a" * 4000 + ".b." + "c" * 4200, ""]
)
def test_texts_that_are_no_jwt(company: Company, text: str) -> None:
    refused(company.call(text.encode().decode("latin-1")), "APIGW.0301")


def test_a_long_token_that_is_one(company: Company) -> None:
    assert company.call(company.token(more="x" * 5000)).status == 200
    refused(company.call(company.token(more="x" * 9000)), "APIGW.0301")


def test_deep_and_odd_claims(company: Company) -> None:
    key = company.keys["rsa"]
    head = b64(json.dumps({"alg": "RS256", "kid": "rsa-1"}).encode())
    for body in (b"[" * 3000 + b"]" * 3000, b"[]", b"null", b"\xff", b"{", b'{"iss":'):
        text = f"{head}.{b64(body)}"
        refused(company.call(f"{text}.{b64(key.sign('RS256', text.encode()))}"), "APIGW.0301")


# Who it is here


def test_groups_of_a_rule_give_their_rights(company: Company) -> None:
    token = company.token(groups=["readers"], sub="a-reader")
    answer = company.call(token)
    assert answer.status == 200, answer.raw
    seen = record(company.stand, answer.headers["X-Request-Id"])
    assert seen["identity"] == "oidc"
    assert seen["user_id"] not in ("", company.stand.dev.user_id)
    path = f"/v1.0/{company.stand.dev.project_id}/kms/create-key"
    headers = {"Authorization": f"Bearer {token}"}
    answer = company.stand.rest("POST", path, {"key_alias": "x"}, headers=headers, source=elsewhere())
    refused(answer, "KMS.0330")
    again = company.call(company.token(groups=["readers"], sub="a-reader"))
    assert record(company.stand, again.headers["X-Request-Id"])["user_id"] == seen["user_id"]
    other = company.call(company.token(groups=["readers"], sub="another"))
    assert record(company.stand, other.headers["X-Request-Id"])["user_id"] != seen["user_id"]


def _temporary_key(company: Company, token: str) -> dict[str, str]:
    path = "/v3.0/OS-CREDENTIAL/securitytokens"
    body = {"auth": {"identity": {"methods": ["token"], "token": {"duration_seconds": 86400}}}}
    headers = {"Authorization": f"Bearer {token}"}
    answer = company.stand.rest("POST", path, body, headers=headers, source=elsewhere())
    assert answer.status == 201, answer.raw
    found: dict[str, str] = answer.json["credential"]
    return found


def test_what_is_made_by_a_token_ends_with_it(company: Company) -> None:
    soon = int(time.time()) + 1000
    key = _temporary_key(company, company.token(exp=soon))
    assert key["expires_at"] == datetime.fromtimestamp(soon, UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")
    assert by(company.stand, key).status == 200
    # one that is good for its leeway only makes nothing that is
    late = _temporary_key(company, company.token(exp=int(time.time()) - 5))
    assert "expired" in refused(by(company.stand, late), "APIGW.0301").message


def test_a_token_as_an_agency_ends_with_the_one_that_took_it_on(company: Company) -> None:
    stand, soon = company.stand, int(time.time()) + 1000
    trusting = stand.add_tenant("trusting")
    with stand.client(trusting) as theirs:
        agency = agency_of(theirs, trusting.domain_id)
    role = {"agency_name": agency.name, "domain_id": trusting.domain_id}
    body = {"auth": {"identity": {"methods": ["assume_role"], "assume_role": role}}}
    headers = {"Authorization": f"Bearer {company.token(exp=soon)}"}
    answer = stand.rest("POST", "/v3/auth/tokens", body, headers=headers, source=elsewhere())
    assert answer.status == 201, answer.raw
    ends = datetime.fromisoformat(answer.json["token"]["expires_at"])
    assert ends.timestamp() == soon
    again = {"auth": {"identity": {"methods": ["token"], "token": {"id": answer.headers["X-Subject-Token"]}}}}
    answer = stand.rest("POST", "/v3/auth/tokens", again, source=elsewhere())
    assert datetime.fromisoformat(answer.json["token"]["expires_at"]) == ends


def test_somebody_without_a_user_gets_no_credentials_of_ours(company: Company) -> None:
    headers = {"Authorization": f"Bearer {company.token(groups=['readers'])}"}
    path = "/v3.0/OS-CREDENTIAL/securitytokens"
    body = {"auth": {"identity": {"methods": ["token"], "token": {}}}}
    answer = company.stand.rest("POST", path, body, headers=headers, source=elsewhere())
    refused(answer, "APIGW.0301")
    headers = {"Authorization": f"Bearer {company.token()}"}
    answer = company.stand.rest("POST", path, body, headers=headers, source=elsewhere())
    assert answer.status == 201


def test_the_projects_of_somebody_without_a_user(company: Company) -> None:
    headers = {"Authorization": f"Bearer {company.token(groups=['readers'])}"}
    answer = company.stand.rest("GET", "/v3/auth/projects", headers=headers, source=elsewhere())
    assert [each["id"] for each in answer.json["projects"]] == [company.stand.dev.project_id]


def test_who_fits_no_rule_is_nobody(company: Company) -> None:
    unfit: list[dict[str, Any]] = [
        {"groups": []},
        {"groups": None},
        {"groups": "every body"},
        {"groups": [["everybody"]]},
        {"groups": {"everybody": 1}},
        {"preferred_username": None},
        {"preferred_username": "nobody"},
        {"preferred_username": ["admin"]},
        {"preferred_username": ""},
    ]
    for changed in unfit:
        refused(company.call(company.token(**changed)), "APIGW.0301")


def test_a_rule_may_test_several_claims(company: Company) -> None:
    all_of_them: dict[str, Any] = {"groups": ["several"], "acr": "gold", "client": "books"}
    assert company.call(company.token(**all_of_them)).status == 200
    for changed in ({"acr": "silver"}, {"acr": None}, {"client": ""}, {"client": None}, {"groups": ["gold"]}):
        refused(company.call(company.token(**(all_of_them | changed))), "APIGW.0301")


def test_a_claim_may_be_a_text(company: Company) -> None:
    assert company.call(company.token(groups="everybody")).status == 200


def test_who_is_bound_to_a_project_is_good_there_only(company: Company) -> None:
    token = company.token(groups=["bound"])
    assert company.call(token).status == 200
    refused(company.call(token, project=uuid.uuid4().hex), "KMS.0321")


def test_a_user_who_is_disabled_is_out_at_the_next_call(company: Company) -> None:
    token = company.token()
    assert company.call(token).status == 200
    backstage(company.stand, "user", company.stand.dev.user_id, '{"enabled": false}')
    try:
        refused(company.call(token), "APIGW.0301")
    finally:
        backstage(company.stand, "user", company.stand.dev.user_id, '{"enabled": true}')
    assert company.call(token).status == 200


def test_evidence_twice_is_none(company: Company) -> None:
    path = f"/v1.0/{company.stand.dev.project_id}/kms/list-keys"
    headers = {"Authorization": "Bearer nonsense"}
    token = company.stand.token()
    assert (
        company.stand.rest("POST", path, {}, token=token, headers=headers, source=elsewhere()).status == 200
    )


# Keys come and go


def test_a_new_key_counts_and_an_old_one_goes(company: Company) -> None:
    served = company.keys["served"].private
    refused(company.call(company.token(key="later")), "APIGW.0301")
    served.append("later")
    eventually(lambda: company.call(company.token(key="later")).status == 200)
    served.remove("later")
    eventually(lambda: company.call(company.token(key="later")).status == 401)
    assert company.call(company.token()).status == 200


def test_an_outage_of_the_issuer(company: Company) -> None:
    company.provider.stop()
    try:
        eventually(lambda: "can't be had" in company.stand.log())
        assert company.call(company.token()).status == 200
        started = time.monotonic()
        refused(company.call(company.token(header={"kid": "nobody"})), "APIGW.0301")
        assert time.monotonic() - started < 15  # it did not wait for the issuer
    finally:
        company.provider.start()
    eventually(lambda: "can be had again" in company.stand.log())


def test_nothing_of_a_token_stands_in_logs_or_records(company: Company) -> None:
    token = company.token(sub="f3b1-in-logs")
    company.call(token)
    company.call(token[:-4] + "AAAA")
    text = company.stand.log() + company.stand.log("gateway") + json.dumps(company.stand.audit())
    assert token.split(".")[2][:24] not in text
    assert token.split(".")[1][:60] not in text


# Off, and settings


def test_of_several_issuers_the_token_s_own_verifies(tmp_path: Path) -> None:
    keys = {name: rsa_key("same") for name in ("one", "two")}
    found = []
    for name, key in keys.items():
        (tmp_path / name).write_text(json.dumps({"keys": [key.jwk]}))
        found.append(_issuer(issuer=name, jwks=str(tmp_path / name)))
    providers = open_providers(replace(Settings(), oidc=tuple(found)))
    providers.start()

    def token(issuer: str, key: SigningKey) -> str:
        now = int(time.time())
        claims = {"iss": issuer, "aud": "a", "sub": "s", "exp": now + 60}
        return signed({"alg": "RS256", "kid": "same"}, claims, lambda data: key.sign("RS256", data))

    for name, key in keys.items():
        text = token(name, key)
        issuer = providers.issuer(text)
        assert issuer is not None
        assert issuer.claims(text, time.time())["iss"] == name
    text = token("one", keys["two"])
    issuer = providers.issuer(text)
    assert issuer is not None
    with pytest.raises(Error):
        issuer.claims(text, time.time())
    assert providers.issuer(token("three", keys["one"])) is None
    with pytest.raises(Error):
        providers.issuer("a.b.c")


def test_off_by_default(stand: Stand) -> None:
    key = rsa_key("x")
    token = signed(
        {"alg": "RS256", "kid": "x"}, {"iss": "x", "sub": "x"}, lambda data: key.sign("RS256", data)
    )
    path = f"/v1.0/{stand.dev.project_id}/kms/list-keys"
    answer = stand.rest("POST", path, {}, headers={"Authorization": f"Bearer {token}"}, source=elsewhere())
    refused(answer, "APIGW.0301")


def _issuer(**changed: Any) -> Oidc:
    rule = IdentityRule("sub", "*", user_id="0" * 32)
    return Oidc(**{"issuer": "i", "audience": ("a",), "jwks": "/nowhere", "rules": (rule,)} | changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"algorithms": ("none",)},
        {"algorithms": ("RS256", "HS256")},
        {"audience": ()},
        {"audience": ("",)},
        {"issuer": ""},
        {"jwks": "http://elsewhere.example/keys"},
        {"jwks": "https://"},
        {"jwks": "https://a:b@elsewhere.example/"},
        {"jwks": "https://elsewhere.example:x/"},
        {"jwks": "https://elsewhere.example/", "jwks_ca": Path("/nowhere")},
    ],
)
def test_settings_that_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="oidc"):
        Issuer(_issuer(**changed))


def test_keys_from_a_file(tmp_path: Path) -> None:
    key, path = rsa_key("rsa-1"), tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [key.jwk]}))
    issuer = Issuer(_issuer(jwks=str(path)))
    issuer.start()
    now = int(time.time())
    claims = {"iss": "i", "aud": "a", "sub": "s", "exp": now + 60}
    token = signed({"alg": "RS256", "kid": "rsa-1"}, claims, lambda data: key.sign("RS256", data))
    assert issuer.claims(token, now)["sub"] == "s"


def test_keys_that_are_left_out() -> None:
    small, good = rsa_key("small", 1024), rsa_key("good")
    entries: list[Any] = [
        small.jwk,
        good.jwk,
        good.jwk | {"kid": "enc", "use": "enc"},
        good.jwk | {"kid": "other", "alg": "RS512"},
        {"kty": "oct", "kid": "oct", "k": "eA"},
        {"kty": "RSA", "kid": "half", "n": "AQAB"},
        {"kty": "EC", "kid": "off", "crv": "P-256", "x": "AQ", "y": "AQ"},
        {"kty": ["RSA"], "kid": "odd"},
        "text",
    ]
    found = read(json.dumps({"keys": entries}).encode(), ("RS256", "PS256", "ES256"))
    assert set(found) == {("good", "RS256"), ("good", "PS256")}


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"keys": {}}', b"\xff", b'{"keys": [' + b"{}," * 200 + b"{}]}"]
)
def test_what_is_no_key_set(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # of json's and ours
        read(text, ("RS256",))


def test_what_is_known_is_forgotten_in_time_and_order() -> None:
    known: Known[int] = Known(capacity=2)
    known.put("a", 1, 10.0)
    assert known.get("a", 9.9) == 1
    assert known.get("a", 10.0) is None
    known.put("b", 2, 99.0)
    known.put("c", 3, 99.0)
    assert len(known) == 2
    assert known.get("a", 0) is None
    assert known.get("c", 0) == 3
