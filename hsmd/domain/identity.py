"""Who calls: certificates, request signatures and tokens become callers; passwords become tokens.

Secret access keys are HMAC keys wrapped by the root key: a signature is checked inside the HSM. Tokens are
signed by the credential key, hold who, where and until when, and need no row. A wrong user, password,
access key or signature gets one answer in one time.
"""

import base64
import binascii
import hashlib
import hmac
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import argon2

from hsmd.caller import Caller, IdentityKind
from hsmd.domain.core import CREDENTIAL_KEY_LABEL, Call, Core
from hsmd.errors import (
    IDENTITY_REFUSED,
    PROJECT_DIFFERS,
    PROJECT_REFUSED,
    TOKEN_EXPIRED,
    TOKEN_INVALID,
    TOKEN_REQUEST_INVALID,
    TOKEN_REQUEST_REFUSED,
    TOKEN_WITHOUT_PROJECT,
    Error,
)
from hsmd.keyring import with_token_key
from hsmd.store import identity as rows
from hsmd.store.identity import AccessKey, CertificateBinding, Domain, Project, RoleAssignment, User

SIGNING_ALGORITHM = "SDK-HMAC-SHA256"
_DATE = "%Y%m%dT%H%M%SZ"
_MINUTE_MILLIS = 60_000
_HOUR_MILLIS = 60 * _MINUTE_MILLIS
_HEX_ID = re.compile(r"[0-9a-f]{32}")

# magic and version, user id, project id (zero: none), issued and expiry in ms, token id
_TOKEN = struct.Struct(">4s16s16sQQ16s")
_TOKEN_MAGIC = b"HTK\x01"
_NO_PROJECT = bytes(16)
_MAC_BYTES = 32

# Verified against when the user is unknown, so that this takes as long as for a known one.
_HASHER = argon2.PasswordHasher()
_NOBODY = _HASHER.hash(base64.b64encode(hashlib.sha256(b"nobody").digest()))


@dataclass(frozen=True, slots=True)
class Identity:
    """A user whose evidence holds. `bound_project`: the only project (tokens) or the one meant by silence."""

    kind: IdentityKind
    user: User
    bound_project: str = ""


@dataclass(frozen=True, slots=True)
class Signature:
    """The evidence of a signed REST request, as the gateway forwards it."""

    access_key: str
    date: str
    canonical_request: bytes
    signature: str


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a token shall be good: by id, or by name within the user's domain; both empty: no project."""

    project_id: str = ""
    project_name: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """A token just issued. Times in ms since 1970."""

    text: str
    issued: int
    expires: int
    user: User
    domain: Domain
    project: Project | None
    roles: tuple[str, ...]


def by_certificate(core: Core, names: Iterable[str]) -> Identity:
    """The user that a verified client certificate is bound to, by any of its names ("CN:...", "URI:...")."""
    for name in names:
        binding = core.cache.get("certificate " + name, "", lambda name=name: _binding(core, name))  # type: ignore[misc]  # mypy can't type a lambda's default
        if binding is not None:
            return Identity("certificate", _enabled_user(core, binding.user_id), binding.project_id)
    raise Error(IDENTITY_REFUSED, reason="this certificate is bound to no user")


def by_socket(core: Core, user_id: str, project_id: str) -> Identity:
    """The user that the configuration binds a local listener to."""
    return Identity("socket", _enabled_user(core, user_id), project_id)


def by_signature(core: Core, evidence: Signature) -> Identity:
    """The owner of the access key whose signature this is; the HMAC is computed in the HSM."""
    try:
        signed = datetime.strptime(evidence.date, _DATE).replace(tzinfo=UTC)
    except ValueError as error:
        raise Error(IDENTITY_REFUSED, reason="X-Sdk-Date is not like 20240102T030405Z") from error
    if abs(signed.timestamp() * 1000 - core.clock()) > core.limits.clock_minutes * _MINUTE_MILLIS:
        raise Error(
            IDENTITY_REFUSED, reason=f"the clock is off by more than {core.limits.clock_minutes} minutes"
        )
    hashed = hashlib.sha256(evidence.canonical_request).hexdigest()
    text = f"{SIGNING_ALGORITHM}\n{evidence.date}\n{hashed}".encode()
    moment = core.keyring.moment
    row = core.cache.get(evidence.access_key, "access key", lambda: _access_key(core, evidence.access_key))
    if row is None:
        computed = _credential_mac(core, text)
    else:
        computed = core.keyring.use(
            row.id, 0, AccessKeyMaterial(row), lambda key: core.token.hmac(key, text), moment
        )
    right = hmac.compare_digest(computed.hex().encode(), evidence.signature.encode())
    if row is None or not row.enabled or not right:
        raise Error(IDENTITY_REFUSED, reason="verify aksk signature fail")
    return Identity("access-key", _enabled_user(core, row.user_id))


def by_token(core: Core, text: str) -> Identity:
    """The user that a token of ours names, good in the token's project only."""
    try:
        raw = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        magic, user, project, _issued, expires, _token_id = _TOKEN.unpack(raw[: _TOKEN.size])
    except (UnicodeEncodeError, binascii.Error, struct.error) as error:
        raise Error(TOKEN_INVALID) from error
    signed, mac = raw[: _TOKEN.size], raw[_TOKEN.size :]
    computed = _credential_mac(core, signed)
    canonical = base64.urlsafe_b64encode(raw).decode() == text  # one token has one spelling
    if magic != _TOKEN_MAGIC or not canonical or not hmac.compare_digest(computed, mac):
        raise Error(TOKEN_INVALID)
    if expires <= core.clock():
        raise Error(TOKEN_EXPIRED)
    return Identity("token", _enabled_user(core, user.hex()), "" if project == _NO_PROJECT else project.hex())


def act(core: Core, identity: Identity, project_id: str, source: str, request_id: str) -> Caller:
    """The identity as a caller in a project: the one asked for, or the one it is bound to.

    Raises Error(PROJECT_DIFFERS, TOKEN_WITHOUT_PROJECT) for a token's other project and
    Error(PROJECT_REFUSED) for a project in which the user has no role.
    """
    if identity.kind in ("token", "socket") and project_id and project_id != identity.bound_project:
        raise Error(PROJECT_DIFFERS if identity.bound_project else TOKEN_WITHOUT_PROJECT)
    project_id = project_id or identity.bound_project
    user = identity.user
    roles = _roles_in(core, user, project_id) if project_id else frozenset()
    if project_id and not roles:
        # Said of a project that does not exist, too.
        raise Error(PROJECT_REFUSED, project=project_id if _HEX_ID.fullmatch(project_id) else "of that name")
    return Caller(
        kind=identity.kind,
        user_id=user.id,
        user_name=user.name,
        domain_id=user.domain_id,
        project_id=project_id,
        roles=roles,
        source=source,
        request_id=request_id,
    )


def issue_token(
    call: Call, *, user_id: str, user_name: str, domain: Domain, password: str, scope: Scope
) -> Token:
    """A token against a password. `domain` needs an id or a name where the user is given by name.

    Raises Error(TOKEN_REQUEST_REFUSED), always the same, for a wrong user or password, and for a scope in
    which the user has no role. IAM: POST /v3/auth/tokens.
    """
    if not (user_id or (user_name and (domain.id or domain.name))):
        raise Error(TOKEN_REQUEST_INVALID, reason="the user is named by id, or by name and domain")
    core = call.core
    user = _named_user(call, user_id, user_name, domain)
    if not _password_right(user, password) or user is None:
        raise Error(TOKEN_REQUEST_REFUSED)
    project = _scoped_project(call, user, scope)
    if (scope.project_id or scope.project_name) and project is None:
        raise Error(TOKEN_REQUEST_REFUSED)
    with call.read() as tx:
        home = rows.get_domain(tx, user.domain_id)
    if home is None:
        raise Error(TOKEN_REQUEST_REFUSED)
    issued = core.clock()
    expires = issued + core.limits.token_hours * _HOUR_MILLIS
    place = bytes.fromhex(project.id) if project else _NO_PROJECT
    signed = _TOKEN.pack(_TOKEN_MAGIC, bytes.fromhex(user.id), place, issued, expires, core.token.random(16))
    mac = _credential_mac(core, signed)
    roles = tuple(sorted(_roles_in(core, user, project.id))) if project else ()
    text = base64.urlsafe_b64encode(signed + mac).decode()
    return Token(text, issued, expires, user, home, project, roles)


def projects(call: Call) -> list[Project]:
    """The projects in which the caller has a role. IAM: GET /v3/projects."""
    with call.read() as tx:
        granted = {each.project_id for each in rows.roles_of(tx, call.caller.user_id)}
        return [each for each in rows.find_projects(tx, call.caller.domain_id) if each.id in granted]


def own_domain(call: Call) -> Domain | None:
    """The caller's domain. IAM: GET /v3/auth/domains."""
    with call.read() as tx:
        return rows.get_domain(tx, call.caller.domain_id)


def hash_password(password: str) -> str:
    """The argon2id hash to store."""
    return _HASHER.hash(password)


@dataclass(frozen=True, slots=True)
class AccessKeyMaterial:
    """An access key's row as the keyring takes it."""

    row: AccessKey

    @property
    def algorithm(self) -> str:
        """The algorithm row's name."""
        return "ACCESS_KEY"

    @property
    def wrapped(self) -> bytes:
        """The wrapped secret."""
        return self.row.wrapped

    @property
    def root_label(self) -> str:
        """The root key that wrapped it."""
        return self.row.root_label


def _binding(core: Core, name: str) -> CertificateBinding | None:
    with core.store.read() as tx:
        return rows.get_binding(tx, name)


def _access_key(core: Core, access_key: str) -> AccessKey | None:
    with core.store.read() as tx:
        return rows.get_access_key(tx, access_key)


def _user(core: Core, user_id: str) -> User | None:
    with core.store.read() as tx:
        return rows.get_user(tx, user_id)


def _enabled_user(core: Core, user_id: str) -> User:
    user = core.cache.get(user_id, "user", lambda: _user(core, user_id))
    if user is None or not user.enabled:
        raise Error(IDENTITY_REFUSED, reason="the user is unknown or disabled")
    return user


def _roles_in(core: Core, user: User, project_id: str) -> frozenset[str]:
    def load() -> list[RoleAssignment]:
        with core.store.read() as tx:
            return rows.roles_of(tx, user.id)

    assigned = core.cache.get(user.id, "roles", load) or []
    return frozenset(each.role for each in assigned if each.project_id == project_id)


def _named_user(call: Call, user_id: str, user_name: str, domain: Domain) -> User | None:
    with call.read() as tx:
        if user_id:
            return rows.get_user(tx, user_id)
        home = rows.get_domain(tx, domain.id) if domain.id else rows.get_domain_by_name(tx, domain.name)
        return rows.get_user_by_name(tx, home.id, user_name) if home else None


def _password_right(user: User | None, password: str) -> bool:
    stored = user.password_hash if user is not None and user.enabled and user.password_hash else _NOBODY
    try:
        return _HASHER.verify(stored, password) and stored is not _NOBODY
    except argon2.exceptions.VerificationError:
        return False


def _scoped_project(call: Call, user: User, scope: Scope) -> Project | None:
    with call.read() as tx:
        found = rows.find_projects(tx, user.domain_id)
    for each in found:
        if each.id == scope.project_id or (not scope.project_id and each.name == scope.project_name):
            return each if _roles_in(call.core, user, each.id) else None
    return None


def _credential_mac(core: Core, data: bytes) -> bytes:
    return with_token_key(core.token, CREDENTIAL_KEY_LABEL, lambda key: core.token.hmac(key, data))
