"""What tests of credentials share: bodies of token requests, signed requests, the SDK by temporary keys."""

import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import huaweicloudsdkiam.v3 as iam
import huaweicloudsdkkms.v2 as kms
from huaweicloudsdkcore.auth.credentials import BasicCredentials, GlobalCredentials
from huaweicloudsdkcore.http.http_config import HttpConfig

from tests.stand import Answer, Stand, Tenant, elsewhere

Pairs = Sequence[tuple[str, str]]

# Requests


def ask(
    stand: Stand,
    method: str,
    proof: object,
    scope: object = None,
    *,
    token: str = "",
    path: str = "/v3/auth/tokens",
    policy: object = None,
) -> Answer:
    """A token (or a temporary key) by one method, from an address that no other test calls from."""
    identity: dict[str, Any] = {"methods": [method], method: proof}
    if policy is not None:
        identity["policy"] = policy
    auth: dict[str, Any] = {"identity": identity}
    if scope is not None:
        auth["scope"] = scope
    return stand.rest("POST", path, {"auth": auth}, token=token, source=elsewhere())


def issued(answer: Answer) -> str:
    """The token that was issued."""
    assert answer.status == 201, answer.raw
    return str(answer.headers["X-Subject-Token"])


def domain_token(stand: Stand, who: Tenant | None = None) -> str:
    """A token of the development user, or a tenant, that is good in its domain."""
    own = who or stand.dev
    return issued(ask(stand, "password", {"user": {"id": own.user_id, "password": own.password}}))


def good(stand: Stand, token: str) -> bool:
    """Whether the token is good for anything, now, on whichever worker."""
    return all(
        stand.rest("GET", "/v3/regions", token=token, source=elsewhere()).status == 200 for _ in range(3)
    )


def void(stand: Stand, token: str) -> bool:
    """Whether the token is good for nothing, now, on whichever worker."""
    answers = [stand.rest("GET", "/v3/regions", token=token, source=elsewhere()) for _ in range(3)]
    return all(
        (each.status, each.json["error"]["message"]) == (403, "X-Auth-Token is not valid.")
        for each in answers
    )


def show(stand: Stand, subject: str, token: str = "", verb: str = "GET") -> Answer:
    """What is said of the token `subject` to the holder of another."""
    return stand.rest(
        verb,
        "/v3/auth/tokens",
        token=token or subject,
        headers={"X-Subject-Token": subject},
        source=elsewhere(),
    )


# Signatures, written from the algorithm's description alone


def signed_headers(
    verb: str,
    path: str,
    body: bytes,
    *,
    access_key: str,
    secret: str,
    host: str,
    query: Pairs = (),
    extra: Pairs = (),
    date: datetime | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, str]:
    """The headers of a signed request: `path` and `query` unencoded, `extra` headers signed too."""
    moment = (date or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-sdk-date": moment, **{name.lower(): value for name, value in extra}}
    covered = sorted(headers) if names is None else list(names)
    uri = "/".join(quote(segment, safe="~") for segment in path.split("/"))
    canonical = [
        verb,
        uri if uri.endswith("/") else uri + "/",
        "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in sorted(query)),
        *(f"{name}:{headers[name].strip()}" for name in covered),
        "",
        ";".join(covered),
        hashlib.sha256(body).hexdigest(),
    ]
    digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    text = f"SDK-HMAC-SHA256\n{moment}\n{digest}"
    signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    authorization = (
        f"SDK-HMAC-SHA256 Access={access_key}, SignedHeaders={';'.join(covered)}, Signature={signature}"
    )
    return {**headers, "Authorization": authorization}


def signed(
    stand: Stand,
    verb: str,
    path: str,
    body: bytes = b"",
    *,
    access_key: str,
    secret: str,
    query: Pairs = (),
    source: str = "",
    **how: Any,
) -> Answer:
    """A signed request. `sent_path`, `sent_query`, `sent_body`, `sent` (headers): what goes out instead."""
    sent_path, sent_body = how.pop("sent_path", path), how.pop("sent_body", body)
    sent_query, sent = how.pop("sent_query", query), how.pop("sent", {})
    host = urlsplit(stand.dev.rest).netloc
    headers = signed_headers(
        verb, path, body, access_key=access_key, secret=secret, host=host, query=query, **how
    )
    target = quote(unquote(sent_path), safe="/~")
    if sent_query:
        target += "?" + "&".join(f"{quote(a, safe='~')}={quote(b, safe='~')}" for a, b in sent_query)
    return stand.rest(
        verb, target, sent_body or None, headers={**headers, **sent}, source=source or elsewhere()
    )


def ago(**parts: float) -> datetime:
    return datetime.now(UTC) - timedelta(**parts)


# The cloud's SDK


def temporary_kms(stand: Stand, credential: Any, project_id: str = "") -> kms.KmsClient:
    """KMS by a temporary access key, as the IAM SDK returned it."""
    credentials = BasicCredentials(credential.access, credential.secret, project_id or stand.dev.project_id)
    client: kms.KmsClient = (
        kms.KmsClient.new_builder()
        .with_http_config(_config(stand))
        .with_credentials(credentials.with_security_token(credential.securitytoken))
        .with_endpoint(stand.dev.rest)
        .build()
    )
    return client


def kms_client(stand: Stand, access_key: str, secret: str, project_id: str) -> kms.KmsClient:
    """KMS by a permanent access key."""
    client: kms.KmsClient = (
        kms.KmsClient.new_builder()
        .with_http_config(_config(stand))
        .with_credentials(BasicCredentials(access_key, secret, project_id))
        .with_endpoint(stand.dev.rest)
        .build()
    )
    return client


def iam_by(stand: Stand, access_key: str, secret: str, domain_id: str, token: str = "") -> iam.IamClient:
    """IAM by an access key, temporary with its security token."""
    credentials = GlobalCredentials(access_key, secret, domain_id)
    if token:
        credentials = credentials.with_security_token(token)
    client: iam.IamClient = (
        iam.IamClient.new_builder()
        .with_http_config(_config(stand))
        .with_credentials(credentials)
        .with_endpoint(stand.dev.rest)
        .build()
    )
    return client


def _config(stand: Stand) -> HttpConfig:
    config = HttpConfig.get_default_config()
    config.ssl_ca_cert = str(stand.dev.ca)
    return config
