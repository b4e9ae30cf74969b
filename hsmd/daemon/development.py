"""A development HSM in one folder: made when missing, completed when a run was cut short, else left alone.

    DIR/so-pin, pin         random PINs of the token
    DIR/token/              the SoftHSM2 token, by DIR/softhsm2.conf
    DIR/tls/                a certificate authority, and what it issued (certificates.py)
    DIR/hsmd.toml           settings of daemon and gateway
    DIR/store/              metadata store and the credentials of its one user
    DIR/env                 the way in, to be sourced by a shell

Each step leaves its result whole or not at all (a rename), and each is skipped when its result stands.
"""

import fcntl
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hsmd import config
from hsmd.daemon import softhsm
from hsmd.daemon.certificates import Authority, Pair, write_private

DOMAIN = "development"
REGION = "local-1"  # the project's name, too: the cloud SDK looks the project up by it
USER = "admin"
GATEWAY = "hsmd-gateway"
TOKEN_LABEL = "hsmd"  # noqa: S105 -- a token's label, no secret
_HOSTS = ("localhost", "127.0.0.1", "::1")
_SECONDS_TO_INITIALISE = 60
_CREDENTIALS = ("domain_id", "project_id", "user_id", "password", "access_key", "secret_key")


@dataclass(frozen=True, slots=True)
class Development:
    """Where everything lies, and the values of DIR/env."""

    data: Path
    config: Path
    env: Path
    grpc: str  # host:port
    rest: str  # https URL
    ca: Path
    certificate: Path
    key: Path
    access_key: str
    secret_key: str = field(repr=False)
    user: str
    user_id: str
    password: str = field(repr=False)
    project_id: str
    domain_id: str
    region: str = REGION

    def environment(self) -> dict[str, str]:
        """Return the variables of DIR/env, read by hsmctl, the Python client and the cloud SDK."""
        return {
            "HSMD_GRPC": self.grpc,
            "HSMD_REST": self.rest,
            "HSMD_CA": str(self.ca),
            "HSMD_CERT": str(self.certificate),
            "HSMD_KEY": str(self.key),
            "HUAWEICLOUD_SDK_AK": self.access_key,
            "HUAWEICLOUD_SDK_SK": self.secret_key,
            "HSMD_PROJECT_ID": self.project_id,
            "HSMD_DOMAIN_ID": self.domain_id,
            "HSMD_REGION": self.region,
            "HSMD_USER": self.user,
            "HSMD_PASSWORD": self.password,
        }


def prepare(data: Path, *, grpc_port: int, rest_port: int) -> Development:
    """Make what is missing of a development HSM under data, which is created.

    Runs at once on one folder wait for each other. Raises ConfigError when something is missing that can't be
    made again (a token's PIN, the token of a store) and says what to do.
    """
    data = data.absolute()
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(data / "lock"):
        _make_token(data)
        authority = Authority(_folder(data / "tls"), "hsmd development CA")
        server = authority.server("server", _HOSTS)
        gateway = authority.server("gateway", _HOSTS)
        gateway_client = authority.client("gateway-client", GATEWAY)
        user = authority.client(USER, USER)
        path = data / "hsmd.toml"
        text = _settings(data, authority.pair, server, gateway, gateway_client, grpc_port, rest_port)
        _settle(path, text)
        made = _initialise(data, path)
        development = Development(
            data=data,
            config=path,
            env=data / "env",
            grpc=f"127.0.0.1:{grpc_port}",
            rest=f"https://127.0.0.1:{rest_port}",
            ca=authority.pair.certificate,
            certificate=user.certificate,
            key=user.key,
            user=USER,
            **made,
        )
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in development.environment().items()]
        write_private(development.env, "".join(lines).encode())
    return development


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _folder(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _make_token(data: Path) -> None:
    token, pins = data / "token", [data / "so-pin", data / "pin"]
    write_private(data / "softhsm2.conf", softhsm.configuration(token).encode())
    if token.exists():
        if missing := [str(pin) for pin in pins if not pin.exists()]:
            raise config.ConfigError(
                f"{missing[0]} is missing, {token} can't be used without it: {_aside(data)}"
            )
        return
    if (data / "store").exists():
        raise config.ConfigError(f"{token} is missing, the keys of {data / 'store'} need it: {_aside(data)}")
    for pin in pins:
        if not pin.exists():
            write_private(pin, secrets.token_urlsafe(24).encode())
    softhsm.make_token(token, TOKEN_LABEL, *(pin.read_text() for pin in pins))


def _aside(data: Path) -> str:
    return f"restore it, or move {data} away and begin anew"


def _settings(
    data: Path,
    ca: Pair,
    server: Pair,
    gateway: Pair,
    gateway_client: Pair,
    grpc_port: int,
    rest_port: int,
) -> str:
    tables: dict[str, dict[str, object]] = {
        "hsm": {
            "token": f"pkcs11:token={TOKEN_LABEL}?module-path={softhsm.module()}",
            "pin_file": data / "pin",
            "softhsm_conf": data / "softhsm2.conf",
            "lock_file": data / "token.lock",
        },
        "store": {"url": f"sqlite:///{data / 'store' / 'hsmd.db'}"},
        "grpc": {
            "port": grpc_port,
            "certificate": server.certificate,
            "key": server.key,
            "client_ca": ca.certificate,
            "gateways": [f"CN:{GATEWAY}"],
        },
        "gateway": {
            "port": rest_port,
            "certificate": gateway.certificate,
            "key": gateway.key,
            "daemon": f"127.0.0.1:{grpc_port}",
            "daemon_ca": ca.certificate,
            "daemon_certificate": gateway_client.certificate,
            "daemon_key": gateway_client.key,
        },
        "audit": {"directory": data / "audit"},
    }
    lines = [
        "# Written by scripts/quickstart, and again only when ports or paths change.",
        f'region = "{REGION}"',
    ]
    for table, options in tables.items():
        lines += ["", f"[{table}]", *(f"{name} = {_toml(value)}" for name, value in options.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """Write a TOML value: JSON's strings, numbers and lists of them are TOML, too."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def _settle(path: Path, text: str) -> None:
    """Write the settings, unless those that stand have the same ports and paths: then edits stay."""
    staged = path.with_name("hsmd.toml.new")
    write_private(staged, text.encode())
    if path.exists() and _places(config.load(path, {})) == _places(config.load(staged, {})):
        staged.unlink()
    else:
        staged.replace(path)


def _places(settings: config.Settings) -> tuple[object, ...]:
    return settings.grpc.port, settings.gateway.port, settings.hsm.pin_file, settings.store.url


def _initialise(data: Path, path: Path) -> dict[str, str]:
    """Make the one domain, project and user of the store, once; return their ids and credentials.

    The store is made aside and moved into place together with its credentials, since the secret access key
    can't be had again from a store that a cut run left behind.
    """
    store, staged = data / "store", data / "store.new"
    if not store.exists():
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(mode=0o700)
        write_private(staged / "credentials.json", _init(path, f"sqlite:///{staged / 'hsmd.db'}"))
        staged.rename(store)
    credentials = json.loads((store / "credentials.json").read_bytes())
    return {name: credentials[name] for name in _CREDENTIALS}


def _init(path: Path, store_url: str) -> bytes:
    """Run `hsmd init` and return what it prints; a PKCS#11 module keeps the environment that it saw first."""
    hsmd = str(Path(sys.executable).with_name("hsmd"))
    names = ["--domain", DOMAIN, "--user", USER, "--certificate", f"CN:{USER}"]
    try:
        done = subprocess.run(  # noqa: S603 -- fixed argv
            [hsmd, "init", "--config", str(path), *names],
            env={**os.environ, "HSMD__STORE__URL": store_url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS_TO_INITIALISE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise config.ConfigError(f"the token gave no answer in {_SECONDS_TO_INITIALISE} s") from None
    if done.returncode != 0:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["it died silently"])[-1]
        raise config.ConfigError(f"the development HSM could not be initialised: {reason}")
    return done.stdout
