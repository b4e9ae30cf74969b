"""A whole hsmd for tests: development HSM, daemon and gateway as processes, and ways to call them."""

import atexit
import base64
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from functools import cache
from heapq import merge
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huaweicloudsdkkms.v2 as kms
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.http.http_config import HttpConfig
from huaweicloudsdkcore.region.region import Region

from hsmd.cli.children import Child
from hsmd.client import Client
from hsmd.daemon.certificates import Authority
from hsmd.daemon.development import TOKEN_LABEL, Development, prepare
from tests.forked import hsmd, output_of
from tests.softhsm import OPENCRYPTOKI, another_token, make_token

_HSMD = Path(sys.executable).with_name("hsmd")
CLUSTERS = ("vault-1", "vault-2", "vault-3")  # of the stand that all tests share
NOWHERE = "nowhere-1"  # its peer region
_BRISK = {
    "HSMD__JOBS__ROUND_SECONDS": "0.5",  # tests wait for jobs
    "HSMD__JOBS__LEASE_SECONDS": "10",
    "HSMD__GRPC__WORKERS": "1",  # tests that are about several say so
    "HSMD__GATEWAY__WORKERS": "1",
}
# The primes of a long RSA key take as long as they take on a busy machine.
PATIENT = {
    "HSMD__HSM__DEADLINE_SECONDS": "50",
    "HSMD__GRPC__DEADLINE_SECONDS": "50",
    "HSMD__GATEWAY__DEADLINE_SECONDS": "55",
}
_LOWEST_PORT = 10_000
_PORTS: list[socket.socket] = []  # what keeps other test processes from ours
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


def free_port() -> int:
    """A TCP port of the loopback that nobody has now, nor before the one who is to have it begins to listen.

    It is none that the system gives to whoever asks for any, as the tests' clients and servers do all the
    time; and what has the UDP port of the same number, until this process ends, is another test process.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(_LOWEST_PORT, end)  # noqa: S311 -- no secret
        if kept(port):
            return port


def kept(port: int) -> bool:
    """Keep the port for this process as `free_port` does, if nobody has it."""
    mark = socket.socket(type=socket.SOCK_DGRAM)
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            mark.bind(("127.0.0.1", port))
    except OSError:
        mark.close()
        return False
    _PORTS.append(mark)
    return True


def elsewhere() -> str:
    """An address of the loopback that hardly anybody else calls from: failures are counted by address."""
    return ".".join(["127", *(str(each) for each in random.choices(range(1, 255), k=3))])  # noqa: S311 -- no secret


def other_token(folder: Path) -> dict[str, str]:
    """Settings for a token other than the development HSM's SoftHSM2, if tests are to run on one."""
    if not OPENCRYPTOKI:
        return {}
    made = make_token(folder, TOKEN_LABEL)
    folder.mkdir(parents=True, exist_ok=True)
    pin = folder / "other-pin"
    pin.write_text(made.pin)
    pin.chmod(0o600)
    return {"HSMD__HSM__TOKEN": made.uri, "HSMD__HSM__PIN_FILE": str(pin)}


@cache
def _template() -> Path:
    """A development HSM to copy, since making one takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="hsmd-template-"))
    atexit.register(shutil.rmtree, folder)
    prepare(folder / "hsm", grpc_port=free_port(), rest_port=free_port())
    return folder / "hsm"


@dataclass(frozen=True)
class Answer:
    """What REST answered."""

    status: int
    headers: Message  # their names in any case
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


@dataclass(frozen=True)
class Tenant:
    """One more user: its ids, credentials and client certificate."""

    domain_id: str
    project_id: str
    user_id: str
    access_key: str
    secret_key: str = field(repr=False)
    user: str = ""
    password: str = field(default="", repr=False)
    certificate: Path = Path()
    key: Path = Path()


class Stand:
    """One daemon with its gateway. `settings` are extra variables like HSMD__LIMITS__KEYS_PER_PROJECT.

    All begin as copies of one development HSM, but for one of its `own`: for tests of several that must not
    share a token's keys, authority and credentials. A token that is in the folder already stays; `token` are
    the settings of one that is elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        *,
        own: bool = False,
        token: Mapping[str, str] | None = None,
    ) -> None:
        token = other_token(folder) if token is None else token
        if not own and not (folder / "token").exists():
            made_with_token = shutil.ignore_patterns("store", "audit") if token else None
            shutil.copytree(_template(), folder, ignore=made_with_token, dirs_exist_ok=True)
        with patch.dict(os.environ, token):
            self.dev: Development = prepare(folder, grpc_port=free_port(), rest_port=free_port())
        self.settings = {**token, **(settings or {})}
        self.daemon: Child | None = None
        self.gateway: Child | None = None

    def add_clusters(self, *names: str, domains: Sequence[str] | None = None) -> dict[str, Path]:
        """One more token each, for dedicated keystores of these domains; to be done before the start.

        Without domains the development domain may have a keystore there. The folders of the tokens, where
        they have one.
        """
        folders: dict[str, Path] = {}
        tables = []
        for name in names:
            present = self._token_folders()
            made = another_token(self.dev.data / "softhsm2.conf", name)
            folders.update((name, each) for each in self._token_folders() - present)
            pin = self.dev.data / f"pin-{name}"
            pin.write_text(made.pin)
            pin.chmod(0o600)
            allowed = [self.dev.domain_id] if domains is None else list(domains)
            parts = {"cluster_id": name, "token": made.uri, "pin_file": str(pin), "domains": allowed}
            tables.append(", ".join(f"{key} = {json.dumps(value)}" for key, value in parts.items()))
        before = self.settings.get("HSMD__KEYSTORES", "[]")[1:-1]
        both = [each for each in (before, *(f"{{ {table} }}" for table in tables)) if each]
        self.settings["HSMD__KEYSTORES"] = f"[{', '.join(both)}]"
        return folders

    def add_peer(self, region: str) -> None:
        """A peer region that never answers; to be done before the start."""
        table = {
            "region": region,
            "address": f"127.0.0.1:{free_port()}",
            "ca": str(self.dev.ca),
            "certificate": str(self.dev.certificate),
            "key": str(self.dev.key),
            "names": [f"CN:hsmd-{region}"],
        }
        parts = ", ".join(f"{name} = {json.dumps(value)}" for name, value in table.items())
        shared = f'{{theirs = "{self.dev.domain_id}", ours = "{self.dev.domain_id}"}}'
        self.settings["HSMD__PEERS"] = f"[{{{parts}, domains = [{shared}]}}]"

    def _token_folders(self) -> set[Path]:
        return {path for path in (self.dev.data / "token").glob("*") if path.is_dir()}

    @property
    def pin_file(self) -> Path:
        """Where the daemon has the token's PIN from."""
        return Path(self.settings.get("HSMD__HSM__PIN_FILE", self.dev.data / "pin"))

    # Processes

    def start(self, *, gateway: bool = True) -> None:
        self.daemon = self._run("serve")
        if gateway:
            self.start_gateway()

    def clusters_come(self) -> None:
        """Each process is connected to the keystores' tokens; for this a start waits only 5 seconds."""
        clusters = self.settings["HSMD__KEYSTORES"].count("cluster_id")
        processes = 1 + int({**_BRISK, **self.settings}["HSMD__GRPC__WORKERS"])
        pattern = r" (\S+) hsmd\.hsm\.link: The HSM token of keystore cluster (\S+) is connected"
        eventually(lambda: len(set(re.findall(pattern, self.log()))) == clusters * processes)

    def start_gateway(self) -> None:
        self.gateway = self._run("gateway")

    def stop(self) -> None:
        for child in (self.gateway, self.daemon):
            if child is not None:
                child.stop(_STOP_SECONDS)
        self.gateway = self.daemon = None

    def restart_daemon(self) -> None:
        assert self.daemon is not None
        self.daemon.stop(_STOP_SECONDS)
        self.daemon = self._run("serve")
        if self.gateway is not None and self.gateway.process.poll() is None:
            self._reconnected()

    def _reconnected(self) -> None:
        """Wait until the gateway is connected again, or a while: not every daemon is ready soon."""
        end = time.monotonic() + 10
        with suppress(OSError):
            while self.rest("GET", "/readyz").status != 200 and time.monotonic() < end:
                time.sleep(0.1)

    def kill_everything(self) -> None:
        """kill -9 of every process of daemon and gateway, as a power cut would."""
        for child in filter(None, (self.daemon, self.gateway)):
            for pid in [child.process.pid, *children_of(child.process.pid)]:
                os.kill(pid, signal.SIGKILL)
            child.stop(_STOP_SECONDS)
        self.daemon = self.gateway = None

    def workers(self) -> list[int]:
        """The processes below the supervisor: workers and warden."""
        assert self.daemon is not None
        return children_of(self.daemon.process.pid)

    def log(self, name: str = "serve") -> str:
        path = self.dev.data / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""  # one may be writing

    def _run(self, command: str) -> Child:
        environment = {**os.environ, **_BRISK, **self.settings}
        environment.pop("GRPC_ENABLE_FORK_SUPPORT", None)  # that is for tests, see conftest.py
        argv = [str(_HSMD), command, "--config", str(self.dev.config)]
        child = Child(command, argv, self.dev.data / f"{command}.log", environment)
        try:
            child.wait_until_ready(_START_SECONDS)
        except BaseException:
            child.stop(_STOP_SECONDS)
            raise
        return child

    # Callers

    def client(self, who: Tenant | None = None, **options: Any) -> Client:
        """As patient as the daemon is told to be, and then some."""
        certificate, key = (who.certificate, who.key) if who else (self.dev.certificate, self.dev.key)
        own = float(self.settings.get("HSMD__GRPC__DEADLINE_SECONDS", "0"))
        options = {"deadline": max(20.0, own + 10), **options}
        return Client(self.dev.grpc, ca=self.dev.ca, certificate=certificate, key=key, **options)

    def sdk(self, who: Tenant | None = None, *, secret: str | None = None) -> kms.KmsClient:
        """The official SDK with AK and SK only: it finds the project through the IAM endpoint."""
        access, own = (who.access_key, who.secret_key) if who else (self.dev.access_key, self.dev.secret_key)
        credentials = BasicCredentials(access, secret or own).with_iam_endpoint(self.dev.rest)
        config = HttpConfig.get_default_config()
        config.ssl_ca_cert = str(self.dev.ca)
        builder = kms.KmsClient.new_builder().with_http_config(config).with_credentials(credentials)
        client: kms.KmsClient = builder.with_region(Region(self.dev.region, self.dev.rest)).build()
        return client

    def rest(
        self,
        verb: str,
        path: str,
        body: object = None,
        *,
        token: str = "",
        headers: Mapping[str, str] | None = None,
        source: str = "127.0.0.1",
    ) -> Answer:
        """One HTTPS request from `source`; a bytes body goes out as it is, anything else as JSON."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.dev.rest + path, data=data, method=verb)  # noqa: S310 -- https
        request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("X-Auth-Token", token)
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        opener = urllib.request.build_opener(
            _From(source, ssl.create_default_context(cafile=str(self.dev.ca))),
            _NoErrors(),
        )
        with opener.open(request, timeout=60) as response:
            return Answer(response.status, response.headers, response.read())

    def kms(
        self, operation: str, body: object, *, token: str = "", project: str = "", source: str = "127.0.0.1"
    ) -> Answer:
        """One KMS operation by POST with a token (the development user's when none is given)."""
        path = f"/v1.0/{project or self.dev.project_id}/kms/{operation}"
        return self.rest("POST", path, body, token=token or self.token(), source=source)

    def token(self, who: Tenant | None = None) -> str:
        """A project token against the password."""
        name, password = (who.user, who.password) if who else (self.dev.user, self.dev.password)
        user_id, project = (who.user_id, who.project_id) if who else (self.dev.user_id, self.dev.project_id)
        assert name
        answer = self.rest(
            "POST",
            "/v3/auth/tokens",
            {
                "auth": {
                    "identity": {
                        "methods": ["password"],
                        "password": {"user": {"id": user_id, "password": password}},
                    },
                    "scope": {"project": {"id": project}},
                }
            },
        )
        assert answer.status == 201, answer.raw
        return str(answer.headers["X-Subject-Token"])

    # Other tenants and the store

    def add_tenant(self, user: str, roles: tuple[str, ...] = ("KMS Administrator",)) -> Tenant:
        """A user in a domain and a project of its own, made as an operator would: by `hsmd init`."""
        words = ["init", "--config", str(self.dev.config), "--domain", f"domain-{user}"]
        words += ["--user", user, "--certificate", f"CN:{user}", *(f"--role={role}" for role in roles)]
        made = json.loads(output_of(hsmd, *words, settings=self.settings))
        pair = Authority(self.dev.ca.parent, "hsmd development CA").client(user, user)
        return Tenant(**made, user=user, certificate=pair.certificate, key=pair.key)

    def audit(self) -> list[dict[str, Any]]:
        """Every audit record there is, in order: a client that reconnects may come to another worker."""
        files = sorted((self.dev.data / "audit").glob("*.jsonl"))
        return list(merge(*map(_whole, files), key=lambda each: each["time"]))


def _whole(file: Path) -> list[dict[str, Any]]:
    """An audit file's records, without one that is just being written; none if it was packed meanwhile."""
    try:
        *lines, _ = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


class _From(urllib.request.HTTPSHandler):
    """Calls from one address of this machine."""

    def __init__(self, source: str, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._how = {"context": context, "source_address": (source, 0)}

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(http.client.HTTPSConnection, req, **self._how)


class _NoErrors(urllib.request.HTTPErrorProcessor):
    """Lets answers of 400 and more through as answers."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


def children_of(pid: int) -> list[int]:
    """The direct children of a process."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in found]


def eventually(condition: Any, seconds: float = 60.0) -> Any:
    """The first true result of the condition, which is asked once more when the time is over."""
    end = time.monotonic() + seconds
    while True:
        over = time.monotonic() >= end
        result = condition()
        if result:
            return result
        assert not over, "did not happen in time"
        time.sleep(0.05)


@contextmanager
def standing(
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    gateway: bool = True,
    clusters: Sequence[str] = (),
) -> Iterator[Stand]:
    """A stand of one's own, for tests that break it."""
    stand = Stand(folder, settings)
    stand.add_clusters(*clusters)
    try:
        stand.start(gateway=gateway)
        yield stand
    finally:
        stand.stop()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
