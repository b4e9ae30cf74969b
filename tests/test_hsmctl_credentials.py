"""hsmctl access-key, token, agency and certificate, against a daemon: what is said, done and refused."""

import json
from pathlib import Path

import pytest

from hsmd.client import Client
from tests.backstage import backstage
from tests.calls import fresh
from tests.credentials import good, signed, void
from tests.people import PASSWORD, name, person
from tests.stand import Stand, Tenant
from tests.test_hsmctl_people import Shell


@pytest.fixture(scope="module")
def shell(stand: Stand) -> Shell:
    return Shell(stand)


def test_access_keys(stand: Stand, shell: Shell, client: Client) -> None:
    who = person(client)
    shown = shell.done("access-key", "create", who.name, "--description", "build server")
    access, secret = (line.split()[1] for line in shown.splitlines())
    assert signed(stand, "GET", "/v3/regions", access_key=access, secret=secret).status == 200
    (listed,) = shell.json("access-key", "list", who.name)["credentials"]
    assert (listed["access"], listed["status"], listed["description"]) == (access, "active", "build server")
    assert access in shell.done("access-key", "list", who.id)
    assert shell.json("access-key", "show", access)["last_use_time"] is not None
    assert access in shell.done("access-key", "show", access)
    assert shell.json("access-key", "disable", access)["status"] == "inactive"
    assert signed(stand, "GET", "/v3/regions", access_key=access, secret=secret).status == 401
    assert "active" in shell.done("access-key", "enable", access)
    assert shell.json("access-key", "describe", access, "other")["description"] == "other"
    second = shell.json("access-key", "create", who.id)
    assert len(second["secret"]) == 40
    assert "akSkNumExceed" in shell.refused("access-key", "create", who.id)
    shell.done("access-key", "delete", access)
    assert shell.json("access-key", "list", who.id)["credentials"][0]["access"] == second["access"]
    assert "Could not find" in shell.refused("access-key", "show", access)
    assert "no user named" in shell.refused("access-key", "create", "nobody-" + who.name)
    assert isinstance(shell.json("access-key", "list")["credentials"], list)  # one's own


def test_temporary_access_keys(stand: Stand, shell: Shell, tmp_path: Path) -> None:
    made = shell.json("access-key", "temporary", "--minutes", "20")

    def ask(verb: str, path: str, body: bytes = b"") -> int:
        return signed(
            stand,
            verb,
            path,
            body,
            access_key=made["access"],
            secret=made["secret"],
            extra=[("X-Security-Token", made["securitytoken"])],
        ).status

    assert ask("GET", "/v3/regions") == 200
    assert made["access"] not in shell.done("access-key", "temporary")
    policy = tmp_path / "policy.json"
    statement = {"Effect": "Allow", "Action": ["kms:cmk:list"]}
    policy.write_text(json.dumps({"Version": "1.1", "Statement": [statement]}))
    made = shell.json("access-key", "temporary", "--policy", str(policy))
    kms = f"/v1.0/{stand.dev.project_id}/kms/"
    assert ask("POST", kms + "list-keys", b"{}") == 200
    assert ask("POST", kms + "gen-random", b'{"random_data_length": "512"}') == 403
    policy.write_text("{}")
    assert "policy" in shell.refused("access-key", "temporary", "--policy", str(policy))
    assert shell("access-key", "temporary", "--minutes", "5").returncode == 2
    assert shell("access-key", "temporary", "--agency", "a").returncode == 2


def test_tokens(stand: Stand, shell: Shell, client: Client) -> None:
    who = person(client)
    by_id = ("token", "create", who.id, "--password-file", "-")
    first = shell.done(*by_id, given=PASSWORD)
    by_name = ("token", "create", who.name, "--of", "development", "--password-file", "-")
    second = shell.done(*by_name, given=PASSWORD)
    assert good(stand, first)
    assert good(stand, second)
    shown = shell.json("token", "show", given=first + "\n")
    assert shown["user"]["id"] == who.id
    assert who.name in shell.done("token", "show", given=first)
    shell.done("token", "revoke", given=first)
    assert void(stand, first)
    assert "Could not find" in shell.refused("token", "show", given=first)
    assert good(stand, second)
    shell.done("token", "revoke-all", who.name)
    assert void(stand, second)
    assert "wrong" in shell.refused(*by_id, given="Wrong-Horse-9")
    assert shell("token", "create").returncode == 2
    assert shell("token", "create", who.id, "--agency", "a", "--domain", "b").returncode == 2
    backstage(stand, "role", who.id, stand.dev.project_id, "KMS Administrator")
    scoped = shell.done(*by_id, "--for-project", stand.dev.region, given=PASSWORD)
    assert stand.kms("list-keys", {}, token=scoped).status == 200
    assert PASSWORD not in stand.log()


def test_agencies(stand: Stand, shell: Shell, stranger: Tenant) -> None:
    wanted = name("agency")
    agency = shell.done("agency", "create", wanted, "--trust", "domain-stranger", "--duration", "30")
    shown = shell.json("agency", "show", wanted)
    assert (shown["id"], shown["trust_domain_id"], shown["duration"]) == (agency, stranger.domain_id, "720")
    assert wanted in shell.done("agency", "list")
    assert wanted in shell.done("agency", "show", agency)
    assert [each["name"] for each in shell.json("agency", "list")["agencies"]].count(wanted) == 1
    changed = shell.json("agency", "update", wanted, "--duration", "FOREVER", "--trust", "development")
    assert (changed["expire_time"], changed["trust_domain_name"]) == (None, "development")
    as_agency = ("token", "create", "--agency", wanted, "--domain", "development")
    token = shell.done(*as_agency)
    assert shell.json("token", "show", given=token)["assumed_by"]["user"]["id"] == stand.dev.user_id
    made = shell.json(
        *("access-key", "temporary", "--agency", wanted, "--domain", "development", "--session", "s")
    )
    assert made["access"].startswith("HST")
    shell.done("agency", "delete", wanted)
    assert void(stand, token)
    assert "not authorized" in shell.refused(*as_agency)
    assert "no agency named" in shell.refused("agency", "show", wanted)
    assert shell("agency", "update", wanted).returncode == 2


def test_certificates(stand: Stand, shell: Shell, client: Client) -> None:
    who, pattern = person(client), f"URI:spiffe://{fresh()}/*"
    made = shell.json("certificate", "map", pattern, who.id, stand.dev.project_id)
    assert made == {"name": pattern, "user_id": who.id, "project_id": stand.dev.project_id}
    assert pattern in shell.done("certificate", "list")
    assert made in shell.json("certificate", "list")["mappings"]
    assert "already" in shell.refused("certificate", "map", pattern, who.id, stand.dev.project_id)
    shell.done("certificate", "unmap", pattern)
    assert pattern not in shell.done("certificate", "list")
    assert "Could not find" in shell.refused("certificate", "unmap", pattern)
    assert "Invalid input" in shell.refused("certificate", "map", "web", who.id, stand.dev.project_id)
