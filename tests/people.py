"""What tests of users, groups and projects share: the cloud's IAM client, and people with passwords."""

import uuid
from dataclasses import dataclass, field
from typing import Any

import huaweicloudsdkiam.v3 as iam
from huaweicloudsdkcore.auth.credentials import GlobalCredentials
from huaweicloudsdkcore.http.http_config import HttpConfig

from hsmd.client import Client
from hsmd.pb.v1 import users_pb2
from tests.stand import Answer, Stand, Tenant, elsewhere

PASSWORD = "Correct-Horse-7"


@dataclass(frozen=True)
class Person:
    """A user just made."""

    id: str
    name: str
    domain_id: str
    password: str = field(default=PASSWORD, repr=False)


def name(prefix: str = "user") -> str:
    """A name that nobody else has."""
    return f"{prefix}-{uuid.uuid4().hex[:20]}"


def iam_client(stand: Stand, who: Tenant | None = None) -> iam.IamClient:
    """The official SDK, as the development user or a tenant, by an access key on its domain."""
    own = who or stand.dev
    credentials = GlobalCredentials(own.access_key, own.secret_key, own.domain_id)
    config = HttpConfig.get_default_config()
    config.ssl_ca_cert = str(stand.dev.ca)
    builder = iam.IamClient.new_builder().with_http_config(config)
    client: iam.IamClient = (
        builder.with_credentials(credentials.with_iam_endpoint(stand.dev.rest))
        .with_endpoint(stand.dev.rest)
        .build()
    )
    return client


def person(client: Client, **changes: Any) -> Person:
    """A new user of the client's domain, over gRPC."""
    given = {"name": name(), "password": PASSWORD, **changes}
    request = users_pb2.CreateUserRequest(user=users_pb2.CreateUserRequest.User(**given))
    user = client.users.CreateUser(request).user
    return Person(user.id, user.name, user.domain_id, given["password"])


def ask_token(
    stand: Stand, user_id: str, password: str, scope: dict[str, Any] | None = None, *, source: str = ""
) -> Answer:
    """A token against the password, by default from an address that no other test calls from."""
    user = {"id": user_id, "password": password}
    auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": {"user": user}}}
    if scope is not None:
        auth["scope"] = scope
    return stand.rest("POST", "/v3/auth/tokens", {"auth": auth}, source=source or elsewhere())


def login(stand: Stand, who: Person, scope: dict[str, Any] | None = None) -> str:
    """A token of the person."""
    answer = ask_token(stand, who.id, who.password, scope)
    assert answer.status == 201, answer.raw
    return str(answer.headers["X-Subject-Token"])
