"""hsmctl domain, project, user and group, against a whole daemon: what is said, done and refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.people import PASSWORD, ask_token, name
from tests.stand import Stand

_HSMCTL = str(Path(sys.executable).with_name("hsmctl"))


class Shell:
    """Command lines as the development user."""

    def __init__(self, stand: Stand) -> None:
        own = {key: value for key, value in os.environ.items() if not key.startswith("HSMD_")}
        self._environment = {**own, **stand.dev.environment()}

    def __call__(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        argv = [_HSMCTL, *words]
        return subprocess.run(  # its own command
            argv, env=self._environment, input=given, capture_output=True, text=True, timeout=120, check=False
        )

    def done(self, *words: str, given: str = "") -> str:
        result = self(*words, given=given)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def json(self, *words: str, given: str = "") -> Any:
        return json.loads(self.done(*words, "--json", given=given))

    def refused(self, *words: str, given: str = "") -> str:
        result = self(*words, given=given)
        assert result.returncode not in (0, 2), result.stdout
        assert result.stdout == ""
        return result.stderr


@pytest.fixture(scope="module")
def shell(stand: Stand) -> Shell:
    return Shell(stand)


def test_users(stand: Stand, shell: Shell) -> None:
    user = name()
    user_id = shell.done(
        "user", "create", user, "--description", "Accounts", "--password-file", "-", given=PASSWORD
    )
    assert ask_token(stand, user_id, PASSWORD).status == 201
    assert user in shell.done("user", "list")
    (listed,) = [each for each in shell.json("user", "list")["users"] if each["id"] == user_id]
    assert (listed["name"], listed["description"], listed["enabled"]) == (user, "Accounts", True)
    shown = shell.json("user", "show", user)
    assert shown["id"] == shell.json("user", "show", user_id)["id"] == user_id
    assert shown["last_login_time"]
    assert user_id in shell.done("user", "show", user)
    assert shell.json("user", "update", user, "--disable")["enabled"] is False
    assert ask_token(stand, user_id, PASSWORD).status == 401
    changed = shell.json(
        "user", "update", user, "--enable", "--password-file", "-", given="Another-Horse-8\n"
    )
    assert changed["enabled"] is True
    assert ask_token(stand, user_id, "Another-Horse-8").status == 201
    assert "deleted" in shell(*("user", "delete", user)).stderr
    assert "there is no user named" in shell.refused("user", "show", user)
    assert "IAM.0004" in shell.refused("user", "show", user_id)


def test_passwords_are_never_options(shell: Shell) -> None:
    assert shell("user", "create", name(), "--password", PASSWORD).returncode == 2
    assert "empty" in shell.refused("user", "create", name(), "--password-file", "-", given="\n")
    assert "IAM.0102" in shell.refused("user", "create", name(), "--password-file", "-", given="weak\n")
    assert shell("user", "update", name()).returncode == 2
    user = name()
    shell.done("user", "create", user, "--no-password")
    assert shell.json("user", "show", user)["modify_pwd_time"] is None


def test_groups(shell: Shell) -> None:
    group, user = name("group"), name()
    user_id = shell.done("user", "create", user, "--no-password")
    group_id = shell.done("group", "create", group, "--description", "Accounts")
    assert shell.json("group", "add", group, user) == {"group_id": group_id, "user_id": user_id}
    assert [each["id"] for each in shell.json("group", "users", group)["users"]] == [user_id]
    assert [each["id"] for each in shell.json("group", "list", "--user", user)["groups"]] == [group_id]
    assert group in shell.done("group", "list")
    renamed = name("group")
    assert shell.json("group", "update", group, "--name", renamed)["name"] == renamed
    shell.done("group", "remove", renamed, user)
    assert shell.json("group", "users", renamed)["users"] == []
    assert "IAM.0004" in shell.refused("group", "remove", renamed, user)
    assert shell.json("group", "delete", renamed) == {"group_id": group_id}
    assert "there is no group named" in shell.refused("group", "users", renamed)


def test_projects(shell: Shell) -> None:
    project, below = name("project"), name("project")
    project_id = shell.done("project", "create", project, "--description", "Payroll")
    below_id = shell.done("project", "create", below, "--parent", project)
    found = {each["id"]: each for each in shell.json("project", "list")["projects"]}
    assert found[below_id]["parent_id"] == project_id
    assert found[project_id]["description"] == "Payroll"
    assert shell.json("project", "suspend", below) == {"project_id": below_id, "status": "suspended"}
    found = {each["id"]: each for each in shell.json("project", "list")["projects"]}
    assert found[below_id]["enabled"] is False
    assert shell.json("project", "resume", below)["status"] == "normal"
    assert shell.json("project", "update", below, "--description", "other")["description"] == "other"
    assert "IAM.0101" in shell.refused("project", "delete", project)
    for each in (below, project):
        shell.done("project", "delete", each)
    assert "there is no project named" in shell.refused("project", "delete", project)


def test_domains(stand: Stand, shell: Shell) -> None:
    domain = name("domain")
    made = shell.json("domain", "create", domain, "--user", "sally", "--password-file", "-", given=PASSWORD)
    assert ask_token(stand, made["user_id"], PASSWORD).status == 201
    (listed,) = [each for each in shell.json("domain", "list")["domains"] if each["name"] == domain]
    assert (listed["id"], listed["owner_id"]) == (made["domain_id"], made["user_id"])
    assert domain in shell.done("domain", "list")
    assert shell.json("domain", "update", made["domain_id"], "--disable")["enabled"] is False
    assert ask_token(stand, made["user_id"], PASSWORD).status == 401
    assert "IAM.0104" in shell.refused("domain", "update", stand.dev.domain_id, "--disable")
    assert shell("domain", "update", made["domain_id"]).returncode == 2
    twice = shell.refused(
        "domain", "create", domain, "--user", "sally", "--password-file", "-", given=PASSWORD
    )
    assert "IAM.0005" in twice


def test_the_rules_of_a_domain(stand: Stand, shell: Shell) -> None:
    assert shell.json("domain", "password-policy")["minimum_password_length"] == 8
    try:
        changed = shell.json("domain", "password-policy", "minimum_password_length=9")
        assert changed["minimum_password_length"] == 9
        assert "minimum_password_length" in shell.done("domain", "password-policy")
    finally:
        shell.done("domain", "password-policy", "minimum_password_length=8")
    assert "IAM.0073" in shell.refused("domain", "password-policy", "minimum_password_length=1")
    for wrong in ("minimum_password_length", "colour=red", "minimum_password_length=red"):
        assert shell("domain", "password-policy", wrong).returncode == 2
    assert shell.json("domain", "login-policy")["login_failed_times"] == 5
    assert (
        shell.json("domain", "login-policy", "show_recent_login_info=true")["show_recent_login_info"] is True
    )
    shell.done("domain", "login-policy", "show_recent_login_info=false")
    try:
        acl = shell.json("domain", "api-acl", "--allow", "127.0.0.0/8", "--allow", "127.0.0.1-127.0.0.9")
        assert [each["address_netmask"] for each in acl["allow_address_netmasks"]] == ["127.0.0.0/8"]
        assert shell.done("domain", "api-acl").splitlines() == ["127.0.0.0/8", "127.0.0.1-127.0.0.9"]
    finally:
        shell.done("domain", "api-acl", "--anywhere")
    assert shell("domain", "api-acl", "--anywhere", "--allow", "::/0").returncode == 2
    assert shell.done("domain", "api-acl").splitlines()[0] == "0.0.0.0-255.255.255.255"
    assert stand.rest("GET", "/v3/regions", token=stand.token()).status == 200
