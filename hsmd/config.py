"""Settings, read once from TOML and environment: typed, frozen, strict.

Each class below is a table of `conf/hsmd.toml`, which shows every option with its default. A variable
`HSMD__TABLE__OPTION` in the environment wins over the file. Unknown tables, options and variables are
refused with their path. Secrets never stand here, only the files that hold them.
"""

import dataclasses
import hashlib
import ipaddress
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Table = TypeVar("Table")

_ENVIRONMENT_PREFIX = "HSMD__"
_REGION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ID = re.compile(r"[0-9a-f]{32}")
_RECEIVER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CLUSTER_ID = re.compile(r"[A-Za-z0-9_-]{1,36}")
_WAITING_ADMINISTRATORS = 64
_CERTIFICATE = re.compile(r"(CN|URI|DNS|EMAIL|SUBJECT):\S(.*\S)?")
_MOST_PEERS = 8  # each takes its share of what a key may encrypt


def _within(default: Any, least: float, most: float) -> Any:
    """A field with its default, and the least and the most that it may be."""
    return field(default=default, metadata={"least": least, "most": most})


class ConfigError(Exception):
    """The configuration can't be used; the text says which file, option and why."""


@dataclass(frozen=True, slots=True)
class Hsm:
    """The token behind the daemon."""

    token: str = "pkcs11:token=hsmd?module-path=/usr/lib/softhsm/libsofthsm2.so"  # noqa: S105 -- an address
    pin_file: Path | None = None  # None: the systemd credential "hsm-pin"
    softhsm_conf: Path | None = None  # SOFTHSM2_CONF for this process and its children only
    lock_file: Path = Path("/run/hsmd/token.lock")  # held while a process initialises and logs in
    deadline_seconds: float = _within(10.0, 0.1, 600)  # longest wait for one answer of the token
    oaep_fallback: bool = True  # whether OAEP is opened in the daemon where the token can't (decisions/0012)
    loaded_keys: int = _within(10_000, 1, 10_000_000)  # key versions held loaded, a worker


@dataclass(frozen=True, slots=True)
class Keystore:
    """One more token, which a dedicated keystore can be made on. Its patience is that of [hsm]."""

    cluster_id: str  # what callers name it by
    token: str
    pin_file: Path | None = None  # None: the systemd credential "hsm-pin-CLUSTER_ID"
    domains: tuple[str, ...] = ()  # ids of those that may make a keystore on it; nobody unless named


@dataclass(frozen=True, slots=True)
class Store:
    """The metadata store."""

    url: str = "sqlite:////var/lib/hsmd/hsmd.db"


@dataclass(frozen=True, slots=True)
class UnixListener:
    """A local listener; whoever may open the socket acts as one user in one project.

    `{worker}` in the path stands for the worker's number; without it only worker 0 listens.
    """

    path: str
    user_id: str
    project_id: str
    mode: str = "0600"


@dataclass(frozen=True, slots=True)
class Grpc:
    """The daemon's door."""

    address: str = "127.0.0.1"
    port: int = _within(7443, 1, 65535)
    certificate: Path = Path("/etc/hsmd/server.pem")
    key: Path = Path("/etc/hsmd/server.key")
    client_ca: Path = Path("/etc/hsmd/ca.pem")
    client_crl: Path | None = None  # revoked certificates, PEM or DER, by the CAs above; None: none are
    client_crl_grace_hours: int = _within(24, 0, 8760)  # a list counts on when it is out of date
    gateways: tuple[str, ...] = ("CN:hsmd-gateway",)  # certificates that may forward callers' evidence
    workers: int = _within(0, 0, 1024)  # 0: one a core
    threads: int = _within(8, 1, 1024)  # calls at once, a worker
    waiting_calls: int = _within(256, 0, 100_000)  # more than this wait, a worker: RESOURCE_EXHAUSTED
    deadline_seconds: float = _within(30.0, 0.1, 3600)  # longest a call may take, whatever it asks for
    grace_seconds: float = _within(10.0, 0, 3600)  # for calls in flight when the daemon stops
    connection_age_seconds: int = _within(600, 1, 86_400)  # clients are told to reconnect
    unix: tuple[UnixListener, ...] = ()


@dataclass(frozen=True, slots=True)
class Admin:
    """The administrators' door: for UKeys only, served by the warden. None: as in [grpc]."""

    enabled: bool = False
    address: str = "127.0.0.1"
    port: int = _within(7444, 1, 65535)
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    client_crl: Path | None = None  # revoked certificates of that CA
    threads: int = _within(4, 1, 64)  # calls at once
    session_seconds: int = _within(600, 1, 600)  # life of a UKey's session


@dataclass(frozen=True, slots=True)
class SealFile:
    """Where the PINs lie that operators' UKeys open together; None: they come by file or credential."""

    file: Path | None = None  # in a folder that the daemon may write to
    attempt_minutes: float = _within(60.0, 0.01, 24 * 60)  # for operators to give their shares


@dataclass(frozen=True, slots=True)
class Gateway:
    """The REST face."""

    address: str = "127.0.0.1"
    port: int = _within(8443, 1, 65535)
    certificate: Path = Path("/etc/hsmd/gateway.pem")
    key: Path = Path("/etc/hsmd/gateway.key")
    daemon: str = "127.0.0.1:7443"
    daemon_ca: Path = Path("/etc/hsmd/ca.pem")
    daemon_certificate: Path = Path("/etc/hsmd/gateway-client.pem")  # what the daemon knows it by
    daemon_key: Path = Path("/etc/hsmd/gateway-client.key")
    daemon_name: str = ""  # expected in the daemon's certificate; "": the host above
    channels: int = _within(8, 1, 1024)  # connections to the daemon, a process
    workers: int = _within(1, 0, 1024)  # 0: one a core
    body_bytes: int = _within(12 * 1024 * 1024, 1024, 1 << 30)
    deadline_seconds: float = _within(20.0, 0.1, 3600)
    grace_seconds: float = _within(10.0, 0, 3600)
    trusted_proxies: tuple[str, ...] = ()  # networks whose word on the caller's address counts
    proxy_header: str = "X-Forwarded-For"  # the one header by which they give it; or "Forwarded"


@dataclass(frozen=True, slots=True)
class Metrics:
    """For Prometheus: the daemon's listener, and the gateway's. Beyond the loopback by mutual TLS only."""

    enabled: bool = False
    address: str = "127.0.0.1"
    port: int = _within(7445, 1, 65535)  # of `hsmd serve`
    gateway_port: int = _within(8445, 1, 65535)  # of `hsmd gateway`
    certificate: Path | None = None  # None, on the loopback: plain HTTP
    key: Path | None = None
    client_ca: Path | None = None  # None, on the loopback: anybody there may read

    @property
    def is_local(self) -> bool:
        """Whether only this machine can get there."""
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class Forward:
    """A receiver of all audit records: syslog over TLS (RFC 5425), or a webhook over HTTPS."""

    name: str  # of its cursor's file
    url: str  # syslog+tls://HOST:PORT or https://...
    ca: Path | None = None  # of its certificate; None: the system's
    certificate: Path | None = None  # what it knows us by
    key: Path | None = None
    token_file: Path | None = None  # bearer token of a webhook; None: systemd credential audit-forward-NAME
    batch_records: int = _within(500, 1, 10_000)  # sent together, and again if it is not known they came
    timeout_seconds: float = _within(10.0, 0.1, 300)  # for each answer


@dataclass(frozen=True, slots=True)
class Audit:
    """The record of every call."""

    directory: Path = Path("/var/lib/hsmd/audit")
    durable: bool = True  # on disk (fdatasync) before the answer leaves
    on_failure: str = "refuse"  # what becomes of calls that can't be recorded: "refuse", "continue"
    segment_megabytes: float = _within(64.0, 0.001, 10_000)  # a fuller file is rotated
    segment_hours: float = _within(24.0, 0.001, 8760)  # an older one, too
    compress: bool = True  # what is rotated, once a checkpoint counts it
    checkpoint_seconds: float = _within(10.0, 0.1, 3600)  # a signature so long after a record, at the latest
    checkpoint_records: int = _within(1000, 1, 1_000_000)  # or after so many
    forward: tuple[Forward, ...] = ()


@dataclass(frozen=True, slots=True)
class Jobs:
    """What is done without being asked for: due deletions, rotations and the like."""

    round_seconds: float = _within(5.0, 0.1, 3600)
    lease_seconds: float = _within(60.0, 10, 3600)


@dataclass(frozen=True, slots=True)
class Backup:
    """Copies of the store, the configuration and the wrapped keys, for another HSM that has the root key."""

    directory: Path = Path("/var/lib/hsmd/backups")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the service."""

    keys_per_project: int = _within(100, 0, 1_000_000_000)
    keystores_per_domain: int = _within(10, 0, 1000)
    users_per_domain: int = _within(1000, 0, 5000)  # a list of them is one answer
    groups_per_domain: int = _within(200, 0, 5000)
    projects_per_domain: int = _within(200, 0, 5000)
    requests_per_project: int = _within(0, 0, 1_000_000)  # a second, over all workers; 0: any number
    requests_per_source: int = _within(0, 0, 1_000_000)  # the same for one address, an IPv6 /64
    burst_seconds: float = _within(1.0, 0, 3600)  # so much of a rate may come at once
    calls_per_project: int = _within(0, 0, 1024)  # at once, a worker; 0: any number
    token_hours: int = _within(24, 0, 24 * 365)
    clock_minutes: int = _within(15, 1, 24 * 60)  # how far a signature's clock may be off
    message_bytes: int = _within(1024 * 1024, 64 * 1024, 1 << 30)  # one gRPC message
    proposal_hours: float = _within(24.0, 0.001, 24 * 30)  # for administrators to approve and carry it out
    # The most that operators may give a single project; only a quorum of UKeys gives more. 0: any number.
    keys_without_quorum: int = _within(0, 0, 1_000_000_000)
    requests_without_quorum: int = _within(0, 0, 1_000_000)
    calls_without_quorum: int = _within(0, 0, 1024)


@dataclass(frozen=True, slots=True)
class SharedDomain:
    """A domain of a peer's whose keys may be replicated into a domain of ours; by their ids."""

    theirs: str
    ours: str


@dataclass(frozen=True, slots=True)
class Peer:
    """Another region: an hsmd whose token has the same root key."""

    region: str
    address: str  # host:port of its gRPC door
    ca: Path  # issued its server certificate
    certificate: Path  # what it knows us by
    key: Path
    names: tuple[str, ...]  # certificates by which it calls us; they can do nothing else here
    domains: tuple[SharedDomain, ...] = ()  # none: it can send us no keys
    server_name: str = ""  # expected in its certificate; "": the host of address
    deadline_seconds: float = _within(5.0, 0.1, 60)  # for one answer


@dataclass(frozen=True, slots=True)
class ClaimTest:
    """What a claim must have as its value, or hold as a list; "*" is any text."""

    claim: str
    value: str


@dataclass(frozen=True, slots=True)
class IdentityRule:
    """Who somebody of an external identity provider is here: a user, or a member of groups.

    The first rule counts whose claim fits, and `also` each further one.
    """

    claim: str
    value: str
    user_id: str = ""  # the user, or
    user_claim: str = ""  # the claim that holds the name of a user of the domain, or
    groups: tuple[str, ...] = ()  # ids of groups of the domain: somebody without a user here
    domain_id: str = ""  # for the two above
    project_id: str = ""  # the only project; for Keystone one of the two is due
    project_claim: str = ""  # the claim that holds the name of the only project, one of the user's domain
    also: tuple[ClaimTest, ...] = ()  # what must fit besides


@dataclass(frozen=True, slots=True)
class Oidc:
    """An OpenID Connect issuer whose JWTs are taken as `Authorization: Bearer`."""

    issuer: str  # as `iss` has it
    audience: tuple[str, ...]  # one of which `aud` must name
    jwks: str  # its keys: an https URL, or a file's path
    rules: tuple[IdentityRule, ...]
    jwks_ca: Path | None = None  # CA of that URL; None: the system's
    algorithms: tuple[str, ...] = ("RS256", "PS256", "ES256", "EdDSA")
    refresh_seconds: float = _within(300.0, 1, 86_400)  # between looks at the keys
    keep_seconds: float = _within(86_400.0, 1, 7 * 86_400)  # so old keys may be while newer can't be had
    leeway_seconds: float = _within(60.0, 0, 600)  # how far clocks may be off


@dataclass(frozen=True, slots=True)
class Keystone:
    """An OpenStack Keystone whose tokens are taken as `X-Auth-Token`; off without a URL."""

    url: str = ""  # like https://keystone.example:5000/v3
    ca: Path | None = None  # of its certificate; None: the system's
    user: str = "hsmd"  # who asks there whether a token is good
    user_domain: str = "Default"
    password_file: Path | None = None
    project: str = "service"  # where that user has its role
    project_domain: str = "Default"
    cache_seconds: float = _within(30.0, 0, 300)  # for which an answer counts; 0: ask at every call
    timeout_seconds: float = _within(3.0, 0.1, 30)
    rules: tuple[IdentityRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Log:
    """What operators read."""

    level: str = "INFO"
    json: bool = False


@dataclass(frozen=True, slots=True)
class Tracing:
    """Where the spans of calls go, by OTLP over gRPC; nowhere without an endpoint."""

    endpoint: str = ""  # https://HOST:PORT, or http:// to a collector on this machine
    ca: Path | None = None  # of the collector's certificate; None: the system's
    certificate: Path | None = None  # what it knows us by
    key: Path | None = None
    sample_ratio: float = _within(1.0, 0, 1)  # of the calls
    service_name: str = "hsmd"  # the gateway's is followed by "-gateway"


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it."""

    region: str = "local-1"
    peers: tuple[Peer, ...] = ()
    hsm: Hsm = field(default_factory=Hsm)
    keystores: tuple[Keystore, ...] = ()
    store: Store = field(default_factory=Store)
    grpc: Grpc = field(default_factory=Grpc)
    admin: Admin = field(default_factory=Admin)
    seal: SealFile = field(default_factory=SealFile)
    gateway: Gateway = field(default_factory=Gateway)
    metrics: Metrics = field(default_factory=Metrics)
    audit: Audit = field(default_factory=Audit)
    jobs: Jobs = field(default_factory=Jobs)
    backup: Backup = field(default_factory=Backup)
    limits: Limits = field(default_factory=Limits)
    keystone: Keystone = field(default_factory=Keystone)
    oidc: tuple[Oidc, ...] = ()
    log: Log = field(default_factory=Log)
    tracing: Tracing = field(default_factory=Tracing)


def load(path: Path | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the file (None: defaults alone) and the environment. Raises ConfigError."""
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: can't be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for name, text in environment.items():
        if name.startswith(_ENVIRONMENT_PREFIX):
            _overlay(tree, name, text)
    built: Settings = _build(Settings, tree, "")
    if not _REGION.fullmatch(built.region):  # it stands in alias URNs, between colons
        raise ConfigError(f"region: letters, digits, - and _ are due, not {built.region!r}")
    _check_names("grpc.gateways", built.grpc.gateways)
    if built.audit.on_failure not in ("refuse", "continue"):
        raise ConfigError(f'audit.on_failure: "refuse" or "continue" is due, not {built.audit.on_failure!r}')
    _check_metrics(built.metrics)
    _check_forwards(built.audit.forward)
    _check_peers(built)
    _check_keystores(built.keystores)
    if built.seal.file is not None and not built.admin.enabled:
        raise ConfigError("seal.file: operators unseal at the administrators' door, [admin] is not enabled")
    if built.seal.file is not None and built.hsm.pin_file is not None:
        raise ConfigError(
            "seal.file: with a PIN in hsm.pin_file there is nothing to seal; one of the two is due"
        )
    return built


def table(kind: type[Table], tree: Mapping[str, Any], path: str) -> Table:
    """The frozen class from a table, as strictly as the settings are read. `path` begins names in errors.

    Raises ConfigError.
    """
    built: Table = _build(kind, tree, path)
    return built


def digest(settings: Settings) -> str:
    """SHA-256 in hex of all that counts: nothing of it is secret."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()


def admin_door(settings: Settings) -> Grpc:
    """[admin] as a door like that of [grpc], whose files count where it has none of its own."""
    own, door = settings.admin, settings.grpc
    given = {name: getattr(own, name) for name in ("certificate", "key", "client_ca", "client_crl")}
    if own.client_ca is not None:  # the list of another CA says nothing of this one's certificates
        given["client_crl"] = own.client_crl
        door = dataclasses.replace(door, client_crl=None)
    return dataclasses.replace(
        door,
        address=own.address,
        port=own.port,
        threads=own.threads,
        waiting_calls=_WAITING_ADMINISTRATORS,
        connection_age_seconds=2 * own.session_seconds,  # a session ends with its connection
        unix=(),
        **{name: path for name, path in given.items() if path is not None},
    )


def _check_metrics(own: Metrics) -> None:
    if (own.certificate is None) != (own.key is None):
        raise ConfigError("metrics.certificate, metrics.key: both are due, or none")
    if own.client_ca is not None and own.certificate is None:
        raise ConfigError("metrics.client_ca: without metrics.certificate nobody is asked for one")
    if own.enabled and not own.is_local and own.client_ca is None:
        raise ConfigError(
            f"metrics.address: beyond the loopback ({own.address}) metrics.certificate, metrics.key and"
            " metrics.client_ca are due"
        )


def _check_keystores(keystores: tuple[Keystore, ...]) -> None:
    seen: set[str] = set()
    for index, each in enumerate(keystores):
        path = f"keystores[{index}]"
        if not _CLUSTER_ID.fullmatch(each.cluster_id) or each.cluster_id in seen:
            raise ConfigError(
                f"{path}.cluster_id: 1 to 36 of letters, digits, - and _ are due, and no other keystore's,"
                f" not {each.cluster_id!r}"
            )
        if wrong := [domain for domain in each.domains if not _ID.fullmatch(domain)]:
            raise ConfigError(f"{path}.domains: 32 hex digits each are due, not {wrong[0]!r}")
        seen.add(each.cluster_id)


def _check_forwards(receivers: tuple[Forward, ...]) -> None:
    names = [each.name for each in receivers]
    for index, each in enumerate(receivers):
        path = f"audit.forward[{index}]"
        if not _RECEIVER.fullmatch(each.name) or names.count(each.name) > 1:
            raise ConfigError(
                f"{path}.name: 1 to 64 of letters, digits, - and _ are due, and no other's, not {each.name!r}"
            )
        if not each.url.startswith(("syslog+tls://", "https://")):
            raise ConfigError(f"{path}.url: syslog+tls://HOST:PORT or https://... is due: TLS in any case")
        if (each.certificate is None) != (each.key is None):
            raise ConfigError(f"{path}: certificate and key are due together")


def _check_names(path: str, names: tuple[str, ...]) -> None:
    """Of certificates, as they are compared: one that is spelled otherwise would fit none, in silence."""
    for each in names:
        if not _CERTIFICATE.fullmatch(each) or not each.isprintable():
            raise ConfigError(
                f"{path}: CN:, URI:, DNS:, EMAIL: or SUBJECT: and a certificate's name are due, not {each!r}"
            )


def _check_peers(settings: Settings) -> None:
    """A region is one peer, and a certificate's name says one thing only."""
    if len(settings.peers) > _MOST_PEERS:
        raise ConfigError(f"peers: at most {_MOST_PEERS} are due")
    regions, names = {settings.region}, set(settings.grpc.gateways)
    for index, peer in enumerate(settings.peers):
        path = f"peers[{index}]"
        if not _REGION.fullmatch(peer.region) or peer.region in regions:
            raise ConfigError(f"{path}.region: a name that no other region has is due, not {peer.region!r}")
        _check_names(f"{path}.names", peer.names)
        if taken := names.intersection(peer.names):
            raise ConfigError(f"{path}.names: {taken.pop()} is a gateway's or another peer's")
        for each in peer.domains:
            if not _ID.fullmatch(each.theirs) or not _ID.fullmatch(each.ours):
                raise ConfigError(f"{path}.domains: 32 hex digits are due for theirs and ours")
        regions.add(peer.region)
        names.update(peer.names)


def _overlay(tree: dict[str, Any], name: str, text: str) -> None:
    *tables, option = name.removeprefix(_ENVIRONMENT_PREFIX).lower().split("__")
    for depth, table in enumerate(tables):
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{'.'.join(tables[: depth + 1])}: not a table, as {name} would have it")
    try:
        tree[option] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        tree[option] = text


def _build(kind: type, tree: Mapping[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(tree) - set(hints))
    if unknown:
        raise ConfigError(f"{path}{unknown[0]}: no such option; known here: {', '.join(sorted(hints))}")
    values = {name: _convert(hints[name], value, path + name) for name, value in tree.items()}
    missing = [
        each.name
        for each in dataclasses.fields(kind)
        if each.name not in values
        and each.default is dataclasses.MISSING
        and each.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{path}{missing[0]}: this option is missing")
    for each in dataclasses.fields(kind):
        least, most = each.metadata.get("least"), each.metadata.get("most")
        if each.name in values and least is not None and not least <= values[each.name] <= most:
            raise ConfigError(f"{path}{each.name}: {least:g} to {most:g} is due, not {values[each.name]!r}")
    return kind(**values)


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: a table is due, not {value!r}")
        return _build(typing.cast("type", hint), value, f"{path}.")
    if typing.get_origin(hint) is types.UnionType:  # Path | None
        return None if value == "" else _convert(typing.get_args(hint)[0], value, path)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{path}: a list is due, not {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, each, f"{path}[{index}]") for index, each in enumerate(value))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path}: {hint.__name__} is due, not {value!r}")
    if hint in (int, float) and not value >= 0:  # nor nan
        raise ConfigError(f"{path}: a number from 0 is due, not {value!r}")
    return value
