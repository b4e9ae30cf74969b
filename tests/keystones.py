"""Keystones for tests: a real one from a virtual environment, and a small one that can fail as a test wants.

HSMD_TEST_KEYSTONE names a virtual environment with the package `keystone` (`pip install keystone`); it has
requirements of its own, so it is none of ours.
"""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from ssl import create_default_context
from typing import Any

from hsmd.daemon.certificates import Authority
from tests.providers import Reply
from tests.stand import eventually, free_port

VENV = os.environ.get("HSMD_TEST_KEYSTONE", "")
PASSWORD = "ask-me-anything"

_CONF = """
[database]
connection = sqlite:///{folder}/keystone.db
[token]
provider = fernet
[fernet_tokens]
key_repository = {folder}/keys
[fernet_receipts]
key_repository = {folder}/keys
[credential]
key_repository = {folder}/credential-keys
"""
_SERVE = """
import sys
port, certificate, key = sys.argv[1:]
del sys.argv[1:]
from werkzeug.serving import run_simple
from keystone.server.wsgi import initialize_public_application
application = initialize_public_application()
run_simple("127.0.0.1", int(port), application, threaded=True, ssl_context=(certificate, key))
"""


@dataclass
class RealKeystone:
    """A Keystone of its own, its administrator's way in, and its CA."""

    url: str
    ca: Path
    token: str = ""

    def ask(self, verb: str, path: str, tree: object = None, token: str = "") -> tuple[Any, str]:
        """One request of the administrator's; the answer's JSON and its X-Subject-Token."""
        data = None if tree is None else json.dumps(tree).encode()
        headers = {"Content-Type": "application/json", "X-Auth-Token": self.token, "X-Subject-Token": token}
        request = urllib.request.Request(  # noqa: S310 -- https
            self.url + path, data, {name: value for name, value in headers.items() if value}, method=verb
        )
        with urllib.request.urlopen(  # noqa: S310 -- https
            request, timeout=30, context=create_default_context(cafile=str(self.ca))
        ) as response:
            raw = response.read()
            return json.loads(raw) if raw else None, response.headers.get("X-Subject-Token", "")

    def sign_in(self, user: str, password: str, project: str) -> str:
        """A project token."""
        default = {"id": "default"}
        return self.ask(
            "POST",
            "/auth/tokens",
            {
                "auth": {
                    "identity": {
                        "methods": ["password"],
                        "password": {"user": {"name": user, "domain": default, "password": password}},
                    },
                    "scope": {"project": {"name": project, "domain": default}},
                }
            },
        )[1]

    def make_user(self, name: str, password: str, project: str, role: str) -> str:
        """A user with a role in a project, both made when they are not there; its id."""
        projects = self.ask("GET", f"/projects?name={project}")[0]["projects"]
        made = projects or [self.ask("POST", "/projects", {"project": {"name": project}})[0]["project"]]
        roles = self.ask("GET", f"/roles?name={role}")[0]["roles"]
        given = roles or [self.ask("POST", "/roles", {"role": {"name": role}})[0]["role"]]
        user = self.ask("POST", "/users", {"user": {"name": name, "password": password}})[0]["user"]["id"]
        self.ask("PUT", f"/projects/{made[0]['id']}/users/{user}/roles/{given[0]['id']}")
        return str(user)


@contextmanager
def real_keystone(folder: Path) -> Iterator[RealKeystone]:
    """Set one up and run it; a user "hsmd" of the project "service" may ask about tokens."""
    folder.mkdir(parents=True)
    authority = Authority(folder, "keystone's CA")
    pair = authority.server("keystone", ["127.0.0.1"])
    (folder / "keystone.conf").write_text(_CONF.format(folder=folder))
    for name in ("keys", "credential-keys"):
        (folder / name).mkdir(mode=0o700)
    one = RealKeystone(f"https://127.0.0.1:{(port := free_port())}/v3", authority.pair.certificate)
    environment = {**os.environ, "OS_KEYSTONE_CONFIG_DIR": str(folder), "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTHONPATH", None)
    me = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    owner = ["--keystone-user", me, "--keystone-group", me]
    for words in (
        ["db_sync"],
        ["fernet_setup", *owner],
        ["credential_setup", *owner],
        ["bootstrap", "--bootstrap-password", PASSWORD, "--bootstrap-public-url", one.url],
    ):
        argv = [f"{VENV}/bin/keystone-manage", "--config-file", str(folder / "keystone.conf"), *words]
        subprocess.run(argv, check=True, env=environment, capture_output=True)
    with (folder / "log").open("w") as log:
        argv = [f"{VENV}/bin/python", "-c", _SERVE, str(port), str(pair.certificate), str(pair.key)]
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
        try:

            def signed_in() -> str:
                try:
                    return one.sign_in("admin", PASSWORD, "admin")
                except (OSError, urllib.error.URLError):
                    return ""

            one.token = eventually(signed_in, 60)
            one.make_user("hsmd", PASSWORD, "service", "admin")
            yield one
        finally:
            process.terminate()
            process.wait(20)


@dataclass
class SmallKeystone:
    """What of Keystone's API v3 is asked for, as its reference has it. Its answers can be changed."""

    issued: dict[str, dict[str, Any]] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)
    broken: Reply | None = None
    late: float = 0.0

    def issue(self, *, seconds: float = 3600, **changed: Any) -> str:
        """A project token, like {"user": ..., "project": ..., "roles": [...]}."""
        text = f"gAAAA{uuid.uuid4().hex}"
        default = {"id": "default", "name": "Default"}
        ends = datetime.now(UTC) + timedelta(seconds=seconds)
        token = {
            "methods": ["password"],
            "user": {"id": "u" * 32, "name": "alice", "domain": default, "password_expires_at": None},
            "project": {"id": "p" * 32, "name": "books", "domain": default},
            "is_domain": False,
            "roles": [{"id": "r" * 32, "name": "kms-admin"}, {"id": "m" * 32, "name": "member"}],
            "expires_at": ends.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "issued_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "audit_ids": [uuid.uuid4().hex],
        } | changed
        self.issued[text] = {name: value for name, value in token.items() if value is not None}
        return text

    def answer(self, verb: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        """What it answers over HTTP."""
        time.sleep(self.late)
        if self.broken is not None:
            return self.broken
        if path.partition("?")[0] != "/v3/auth/tokens":
            return 404, {}, {"error": {"code": 404, "title": "Not Found", "message": path}}
        if verb == "POST":
            return self._sign_in(json.loads(body))
        if headers.get("x-auth-token") not in self.own:
            return (
                401,
                {},
                {"error": {"code": 401, "title": "Unauthorized", "message": "Authentication is required."}},
            )
        subject = headers.get("x-subject-token", "")
        if subject not in self.issued:
            return 404, {}, {"error": {"code": 404, "title": "Not Found", "message": "Could not find token."}}
        return 200, {"X-Subject-Token": subject}, {"token": self.issued[subject]}

    def _sign_in(self, tree: Any) -> Reply:
        user = tree["auth"]["identity"]["password"]["user"]
        if (user["name"], user["password"]) != ("hsmd", PASSWORD) or tree["auth"]["scope"]["project"][
            "name"
        ] != "service":
            return 401, {}, {"error": {"code": 401, "title": "Unauthorized", "message": "No."}}
        text = self.issue(user={"id": "h", "name": "hsmd", "domain": {"id": "default", "name": "Default"}})
        self.own.add(text)
        return 201, {"X-Subject-Token": text}, {"token": self.issued[text]}
