"""hsmctl policy: policies at the command line, and what somebody would be answered, with reasons."""

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from hsmd.cli.hsmctl import run
from hsmd.client import Client
from hsmd.pb.v1 import (
    policies_pb2,
)
from tests.calls import fresh, refusal, refused
from tests.people import login, name, person
from tests.policies import (
    LOOK,
    Worker,
    document,
    on,
)
from tests.stand import Stand, Tenant


@pytest.fixture
def hsmctl(
    stand: Stand, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    for key in [key for key in os.environ if key.startswith("HSMD_")]:
        monkeypatch.delenv(key)
    for key, value in stand.dev.environment().items():
        monkeypatch.setenv(key, value)

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    return call


def test_hsmctl_makes_gives_and_explains(
    stand: Stand, client: Client, hsmctl: Callable[..., tuple[int, str, str]], tmp_path: Any
) -> None:
    key, other = client.create_key(fresh()), client.create_key(fresh())
    ann = person(client)
    file = tmp_path / "policy.json"
    here = {"IpAddress": {"g:SourceIp": ["10.0.0.0/8"]}}
    file.write_text(
        document(
            {"Effect": "Allow", "Action": ["kms:cmk:*"], "Condition": here},
            {"Effect": "Deny", "Action": ["kms:cmk:disable"], **on(key)},
        )
    )
    display = name("policy")
    code, out, _ = hsmctl("policy", "create", display, str(file))
    assert code == 0
    role_id = out.strip()
    code, out, _ = hsmctl("--json", "policy", "list")
    assert role_id in {each["id"] for each in json.loads(out)["policies"]}
    code, out, _ = hsmctl("--json", "policy", "list", "--built-in")
    assert "KMS Administrator" in {each["display_name"] for each in json.loads(out)["policies"]}
    code, out, _ = hsmctl("group", "create", name("group"))
    group = out.strip()
    assert hsmctl("group", "add", group, ann.name)[0] == 0
    assert hsmctl("policy", "attach", display, "--group", group, "--all-projects")[0] == 0

    def test(*words: str) -> tuple[int, dict[str, Any]]:
        code, out, err = hsmctl("--json", "policy", "test", "--as", ann.name, *words)
        assert out, err
        return code, json.loads(out)

    inside = ("--context", "g:SourceIp=10.1.1.1")
    code, verdict = test("--action", "kms:cmk:get", "--resource", key, *inside)
    assert (code, verdict["allowed"]) == (0, True)
    assert f"statement 0 of {display}, through group " in verdict["why"]
    code, verdict = test("--action", "kms:cmk:disable", "--resource", key, *inside)
    assert (code, verdict["allowed"]) == (1, False)
    assert verdict["why"].startswith("denied by statement 1")
    code, verdict = test("--action", "kms:cmk:disable", "--resource", other, *inside)
    assert verdict["allowed"] is True
    assert [(each["statement"], each["applies"], each["failed"]) for each in verdict["reasons"]] == [
        (1, False, "Resource"),
        (0, True, ""),
    ]
    code, verdict = test("--action", "kms:cmk:get", "--resource", key, "--context", "g:SourceIp=11.1.1.1")
    assert (code, verdict["why"]) == (1, "no policy allows it")
    assert verdict["reasons"][0]["failed"] == "IpAddress g:SourceIp 10.0.0.0/8"
    code, verdict = test("--action", "kms:dek:create")
    assert (code, verdict["why"], verdict["reasons"]) == (1, "no policy says anything of it", [])
    code, out, _ = hsmctl("policy", "test", "--as", ann.name, "--action", "kms:cmk:get", *inside)
    assert code == 0
    assert out.startswith("Allowed: allowed by statement 0")
    file.write_text(document(LOOK))
    assert hsmctl("policy", "update", display, "--file", str(file))[0] == 0
    assert test("--action", "kms:cmk:get")[1]["allowed"] is True
    assert hsmctl("policy", "detach", display, "--group", group, "--all-projects")[0] == 0
    assert test("--action", "kms:cmk:get")[1]["allowed"] is False
    for target in ("--user", ann.name), ("--user", ann.id):
        assert hsmctl("policy", "attach", display, *target, "--on-project", stand.dev.project_id)[0] == 0
    assert test("--action", "kms:cmk:get")[1]["allowed"] is True
    code, out, _ = hsmctl("policy", "show", display)
    assert json.loads(out)["id"] == role_id
    assert hsmctl("policy", "delete", display)[0] == 0
    assert test("--action", "kms:cmk:get")[1]["allowed"] is False
    code, _, err = hsmctl("policy", "show", display)
    assert code != 0
    assert f"no policy named {display}" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("attach", "x"), "Give one of --group, --user and --agency"),
        (("attach", "x", "--user", "u", "--on-project", "p", "--all-projects"), "at most one"),
        (("update", "x"), "--file, --name or --description"),
        (("test", "--action", "kms:cmk:get"), "--as"),
        (("test", "--as", "0" * 32, "--action", "kms:cmk:get", "--context", "x"), "KEY=VALUE"),
    ],
)
def test_hsmctl_says_what_is_missing(
    hsmctl: Callable[..., tuple[int, str, str]], words: tuple[str, ...], told: str
) -> None:
    code, _, err = hsmctl("policy", *words)
    assert code == 2
    assert told in err


def question(**fields: Any) -> policies_pb2.TestPermissionRequest:
    return policies_pb2.TestPermissionRequest(**fields)


def test_questions_that_have_no_answer(
    stand: Stand, client: Client, stranger: Tenant, worker: Callable[..., Worker]
) -> None:
    ann = person(client)
    good = {"user_id": ann.id, "action": "kms:cmk:get", "project": stand.dev.project_id}
    for wrong, code in (
        ({"user_id": stranger.user_id}, "IAM.0004"),
        ({"user_id": ""}, "IAM.0073"),
        ({"agency_id": "0" * 32}, "IAM.0073"),
        ({"user_id": "", "agency_id": "0" * 32}, "IAM.0004"),
        ({"project": stranger.project_id}, "IAM.0004"),
        ({"action": "kms"}, "IAM.0073"),
        ({"resource": "x"}, "IAM.0073"),
        ({"context": [policies_pb2.Fact(key="x", values=["y"])]}, "IAM.0073"),
        ({"context": [policies_pb2.Fact(key="g:A", values=["a", "y" * 256])]}, "IAM.0073"),
    ):
        with refusal(code):
            client.policies.TestPermission(question(**{**good, **wrong}))
    assert client.policies.TestPermission(question(**good)).allowed is False
    nobody = worker(LOOK)
    client_of = nobody.stand.rest("GET", "/v3/roles", token=login(stand, nobody.who))
    refused(client_of, "IAM.0003")


def test_it_tells_what_would_happen(stand: Stand, client: Client, worker: Callable[..., Worker]) -> None:
    key = client.create_key(fresh())
    statements: list[dict[str, Any]] = [
        {"Effect": "Allow", "Action": ["kms:cmk:*"], **on(key)},
        {"Effect": "Deny", "Action": ["kms:cmk:disable"]},
    ]
    ann = worker(*statements)
    for operation, action in (
        ("describe-key", "kms:cmk:get"),
        ("disable-key", "kms:cmk:disable"),
        ("list-grants", "kms:grant:list"),
    ):
        request = policies_pb2.TestPermissionRequest(
            user_id=ann.who.id, action=action, project=stand.dev.project_id, resource=key
        )
        foretold = client.policies.TestPermission(request).allowed
        assert (ann(operation, {"key_id": key}).status == 200) is foretold
