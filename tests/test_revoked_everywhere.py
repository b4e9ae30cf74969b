"""What is revoked is so for the next call, whichever worker answers: the audit records tell which did."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from hsmd.client import Client
from hsmd.pb.v1 import access_keys_pb2, users_pb2
from tests.calls import fresh, record, refusal
from tests.credentials import show, signed
from tests.people import Person, login, person
from tests.policies import LOOK, made, role_of_user
from tests.stand import Answer, Stand, Tenant, elsewhere
from tests.test_access_keys import create, update
from tests.test_certificate_mappings import Certificates, mapped
from tests.test_grants import give, revoke

_MOST_CALLS = 60


def workers(stand: Stand) -> set[str]:
    return {f"worker-{number}" for number in range(len(stand.workers()) - 1)}  # the last one is the warden


def answers(stand: Stand, call: Callable[[], Answer]) -> set[str]:
    """The results of so many calls that every worker has answered one: OK or codes."""
    results: set[str] = set()
    missing = workers(stand)
    for _ in range(_MOST_CALLS):
        answer = call()
        there = record(stand, answer.headers["X-Request-Id"])
        results.add(there["result"])
        missing.discard(there["process"])
        if not missing:
            return results
    raise AssertionError(f"{missing} never answered")


class Looking:
    """A user who may look at keys, and its calls by a token."""

    def __init__(self, stand: Stand, client: Client) -> None:
        self.stand = stand
        self.user: Person = person(client)
        project, role = stand.dev.project_id, made(client, LOOK).id
        self.role = role_of_user(user_id=self.user.id, role_id=role, project=project)
        client.assignments.GrantRoleToUser(self.role)
        self.token = login(stand, self.user, {"project": {"id": project}})

    def __call__(self) -> Answer:
        return self.stand.kms("list-keys", {}, token=self.token, source=elsewhere())


@pytest.fixture
def ann(stand: Stand, client: Client) -> Looking:
    return Looking(stand, client)


def test_an_access_key(stand: Stand, client: Client, ann: Looking) -> None:
    key = create(client, ann.user.id)

    def call() -> Answer:
        return signed(stand, "GET", "/v3/regions", access_key=key.access, secret=key.secret)

    assert answers(stand, call) == {"OK"}
    update(client, key.access, status=access_keys_pb2.ACCESS_KEY_STATUS_INACTIVE)
    assert answers(stand, call) == {"APIGW.0301"}


def test_a_token(stand: Stand, ann: Looking) -> None:
    assert answers(stand, ann) == {"OK"}
    assert show(stand, ann.token, verb="DELETE").status == 204
    assert answers(stand, ann) == {"KMS.0302"}


def test_a_role(stand: Stand, client: Client, ann: Looking) -> None:
    assert answers(stand, ann) == {"OK"}
    client.assignments.RevokeRoleFromUser(ann.role)
    assert answers(stand, ann) == {"KMS.0307"}


def test_a_user(stand: Stand, client: Client, ann: Looking) -> None:
    assert answers(stand, ann) == {"OK"}
    off = users_pb2.UpdateUserRequest.User(enabled=False)
    client.users.UpdateUser(users_pb2.UpdateUserRequest(user_id=ann.user.id, user=off))
    assert answers(stand, ann) == {"APIGW.0301"}


def test_a_grant(stand: Stand, client: Client, stranger: Tenant) -> None:
    key, token = client.create_key(fresh()), stand.token(stranger)
    grant = give(client, key, stranger.user_id, "encrypt-data")
    body = {"key_id": key, "plain_text": "x"}

    def call() -> Answer:
        return stand.kms("encrypt-data", body, token=token, project=stranger.project_id, source=elsewhere())

    assert answers(stand, call) == {"OK"}
    revoke(client, key, grant)
    assert answers(stand, call) == {"KMS.0207"}


def test_a_certificate(stand: Stand, client: Client, ann: Looking, tmp_path: Path) -> None:
    certificates, name = Certificates(stand, tmp_path), fresh("web")
    with ExitStack() as stack:
        with mapped(client, f"CN:{name}", ann.user.id, stand.dev.project_id):
            own = certificates.client(name)
            clients = [stack.enter_context(own)]
            while len(clients) < _MOST_CALLS and _came_to(stand, ann.user.id) != workers(stand):
                list(clients[-1].list_keys())
                clients.append(stack.enter_context(again(stand, tmp_path)))
            for each in clients:
                list(each.list_keys())
        by = set()
        for each in clients:
            with refusal("APIGW.0301") as seen:
                list(each.list_keys())
            by.add(record(stand, seen.last.request_id)["process"])
        assert by == workers(stand)


def again(stand: Stand, folder: Path) -> Client:
    """One more connection by the only certificate there."""
    (certificate,) = folder.glob("*.pem")
    own = certificate.with_suffix(".key")
    return Client(stand.dev.grpc, ca=stand.dev.ca, certificate=certificate, key=own)


def _came_to(stand: Stand, user_id: str) -> set[str]:
    """The workers that the user's certificate came to; a login by password may have come to another."""
    own = [each for each in stand.audit() if each["user_id"] == user_id and each["identity"] == "certificate"]
    return {str(each["process"]) for each in own}
