"""Who calls: certificates and tokens become callers; passwords become tokens.

Tokens are signed by the credential key, hold who, where and until when, and need no row. A wrong user or
password gets one answer in one time. Signed requests have a module of their own.
"""

import base64
import binascii
import hmac
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hsmd.caller import Caller, IdentityKind
from hsmd.domain import entitlements, passwords
from hsmd.domain.attempts import named_when_refused, throttled
from hsmd.domain.core import CREDENTIAL_KEY_LABEL, Call, Core
from hsmd.domain.entitlements import Held
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
from hsmd.store.identity import CertificateBinding, Domain, Project, User
from hsmd.store.policies import AGENCY, USER

_HOUR_MILLIS = 60 * 60_000
_HEX_ID = re.compile(r"[0-9a-f]{32}")

# magic and version, user id, project id (zero: none), issued and expiry in ms, token id
_TOKEN = struct.Struct(">4s16s16sQQ16s")
_TOKEN_MAGIC = b"HTK\x01"
_NO_PROJECT = bytes(16)
_MAC_BYTES = 32

_BOUND = ("token", "socket", "keystone")  # good where they were made for, and nowhere else

_UNKNOWN_USER = "unknown user"  # instead of what was claimed: people type passwords into name fields


@dataclass(frozen=True, slots=True)
class Identity:
    """A user whose evidence holds. `bound_project`: the only project (tokens) or the one meant by silence.

    Who acts as an agency has its id and name and the domain that trusts; `session_policy` is the JSON policy
    that narrows temporary credentials.
    """

    kind: IdentityKind
    user: User
    bound_project: str = ""
    agency_id: str = ""
    agency_name: str = ""
    agency_domain: str = ""
    session_policy: str = ""


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
            return Identity("certificate", enabled_user(core, binding.user_id), binding.project_id)
    raise Error(IDENTITY_REFUSED, reason="this certificate is bound to no user")


def by_socket(core: Core, user_id: str, project_id: str) -> Identity:
    """The user that the configuration binds a local listener to."""
    return Identity("socket", enabled_user(core, user_id), project_id)


def by_token(call: Call, text: str) -> Identity:
    """The user that a token of ours names, good in the token's project only.

    Raises Error(TOKEN_INVALID, TOKEN_EXPIRED, IDENTITY_REFUSED), and Error(RATE_EXCEEDED) after too many
    that were not valid: that token from that source, or any from that source.
    """
    with (
        named_when_refused(call, _UNKNOWN_USER),
        throttled(call, "token", text, counted=TOKEN_INVALID),
    ):
        user_id, project_id, expires = _opened(call.core, text)
    with named_when_refused(call, f"user/{user_id}"):
        if expires <= call.core.clock():
            raise Error(TOKEN_EXPIRED)
        return Identity("token", enabled_user(call.core, user_id), project_id)


def _opened(core: Core, text: str) -> tuple[str, str, int]:
    """User id, project id ("": none) and expiry of a token that we have signed."""
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
    return user.hex(), "" if project == _NO_PROJECT else project.hex(), expires


def enabled_user(core: Core, user_id: str) -> User:
    """The user. Raises Error(IDENTITY_REFUSED) for one that is unknown or disabled."""
    user = core.cache.get(user_id, "user", lambda: _user(core, user_id))
    if user is None or not user.enabled:
        raise Error(IDENTITY_REFUSED, reason="the user is unknown or disabled")
    return user


def act(
    core: Core, identity: Identity, project_id: str, source: str, request_id: str, *, in_domain: bool = False
) -> Caller:
    """The identity as a caller in a project: the one asked for, or the one it is bound to.

    Without either, and for methods of the domain (`in_domain`), it acts in its domain. There a token or
    socket of one project has no role.

    Raises Error(PROJECT_DIFFERS, TOKEN_WITHOUT_PROJECT) for a token's other project and
    Error(PROJECT_REFUSED) for a project in which the user has no role.
    """
    bound = identity.kind in _BOUND
    if in_domain:
        return _caller(identity, "", _in_domain(core, identity, bound=bound), source, request_id)
    if bound and project_id and project_id != identity.bound_project:
        raise Error(PROJECT_DIFFERS if identity.bound_project else TOKEN_WITHOUT_PROJECT)
    project_id = project_id or identity.bound_project
    if not project_id:
        return _caller(identity, "", _in_domain(core, identity, bound=bound), source, request_id)
    roles = entitlements.in_project(core, *_subject(identity), project_id)
    if not roles:
        # Said of a project that does not exist, too.
        raise Error(PROJECT_REFUSED, project=project_id if _HEX_ID.fullmatch(project_id) else "of that name")
    return _caller(identity, project_id, roles, source, request_id)


def _subject(identity: Identity) -> tuple[str, str]:
    """Whose roles count: kind and id."""
    return (AGENCY, identity.agency_id) if identity.agency_id else (USER, identity.user.id)


def _in_domain(core: Core, identity: Identity, *, bound: bool) -> tuple[Held, ...]:
    if bound and identity.bound_project:
        return ()
    domain_id = identity.agency_domain or identity.user.domain_id
    return entitlements.in_domain(core, *_subject(identity), domain_id)


def _caller(
    identity: Identity, project_id: str, held: tuple[Held, ...], source: str, request_id: str
) -> Caller:
    user, agency = identity.user, identity.agency_id
    return Caller(
        kind=identity.kind,
        user_id=agency or user.id,
        user_name=identity.agency_name if agency else user.name,
        domain_id=identity.agency_domain if agency else user.domain_id,
        project_id=project_id,
        roles=frozenset(each.name for each in held),
        source=source,
        request_id=request_id,
        assumed_by=user.id if agency else "",
        session_policy=identity.session_policy,
    )


def issue_token(
    call: Call, *, user_id: str, user_name: str, domain: Domain, password: str, scope: Scope
) -> Token:
    """A token against a password. `domain` needs an id or a name where the user is given by name.

    Raises Error(TOKEN_REQUEST_REFUSED), always the same, for a wrong user or password, and for a scope in
    which the user has no role; Error(RATE_EXCEEDED) after too many of those from that source or on that
    user, and while too many passwords are being checked. The user is counted as claimed, by id or by name
    and domain: what an unknown user would be told is what a known one is told. IAM: POST /v3/auth/tokens.
    """
    if not (user_id or (user_name and (domain.id or domain.name))):
        raise Error(TOKEN_REQUEST_INVALID, reason="the user is named by id, or by name and domain")
    core = call.core
    known = _named_user(call, user_id, user_name, domain)
    call.resource = f"user/{known.id}" if known else _UNKNOWN_USER
    with throttled(call, "password", *_claim(user_id, user_name, domain), counted=TOKEN_REQUEST_REFUSED):
        user, home, project = _proven(call, known, password, scope)
    issued = core.clock()
    expires = issued + core.limits.token_hours * _HOUR_MILLIS
    place = bytes.fromhex(project.id) if project else _NO_PROJECT
    signed = _TOKEN.pack(_TOKEN_MAGIC, bytes.fromhex(user.id), place, issued, expires, core.token.random(16))
    mac = _credential_mac(core, signed)
    roles = tuple(sorted(_roles_in(core, user, project.id if project else "")))
    text = base64.urlsafe_b64encode(signed + mac).decode()
    call.caller = replace(
        call.caller,
        kind="password",
        user_id=user.id,
        user_name=user.name,
        domain_id=user.domain_id,
        project_id=project.id if project else "",
        roles=frozenset(roles),
    )
    return Token(text, issued, expires, user, home, project, roles)


def projects(call: Call) -> list[Project]:
    """The projects in which the caller has a role. IAM: GET /v3/projects."""
    caller = call.caller
    with call.read() as tx:
        kind = AGENCY if caller.is_agency else USER
        return entitlements.projects_of(tx, kind, caller.user_id, caller.domain_id)


def own_domain(call: Call) -> Domain | None:
    """The caller's domain. IAM: GET /v3/auth/domains."""
    with call.read() as tx:
        return rows.get_domain(tx, call.caller.domain_id)


def _binding(core: Core, name: str) -> CertificateBinding | None:
    with core.store.read() as tx:
        return rows.get_binding(tx, name)


def _user(core: Core, user_id: str) -> User | None:
    with core.store.read() as tx:
        return rows.get_user(tx, user_id)


def _roles_in(core: Core, user: User, project_id: str) -> frozenset[str]:
    """The names of what the user holds in the project, or in its domain when that is ""."""
    if project_id:
        held = entitlements.in_project(core, USER, user.id, project_id)
    else:
        held = entitlements.in_domain(core, USER, user.id, user.domain_id)
    return frozenset(each.name for each in held)


def _claim(user_id: str, user_name: str, domain: Domain) -> tuple[str, ...]:
    """Who is claimed to be asking, of what `_named_user` looks at only: anything else could be varied."""
    if user_id:
        return ("user id", user_id)
    return (user_name, "domain id", domain.id) if domain.id else (user_name, "domain", domain.name)


def _named_user(call: Call, user_id: str, user_name: str, domain: Domain) -> User | None:
    with call.read() as tx:
        if user_id:
            return rows.get_user(tx, user_id)
        home = rows.get_domain(tx, domain.id) if domain.id else rows.get_domain_by_name(tx, domain.name)
        return rows.get_user_by_name(tx, home.id, user_name) if home else None


def _proven(
    call: Call, user: User | None, password: str, scope: Scope
) -> tuple[User, Domain, Project | None]:
    """The user with domain and project; a wrong scope is refused, and counted, like a wrong password."""
    right = passwords.is_right(user.password_hash or "" if user and user.enabled else "", password)
    if user is None or not right:
        raise Error(TOKEN_REQUEST_REFUSED)
    project = _scoped_project(call, user, scope)
    with call.read() as tx:
        home = rows.get_domain(tx, user.domain_id)
    if home is None or (project is None and (scope.project_id or scope.project_name)):
        raise Error(TOKEN_REQUEST_REFUSED)
    return user, home, project


def _scoped_project(call: Call, user: User, scope: Scope) -> Project | None:
    with call.read() as tx:
        found = rows.find_projects(tx, user.domain_id)
    for each in found:
        if each.id == scope.project_id or (not scope.project_id and each.name == scope.project_name):
            return each if _roles_in(call.core, user, each.id) else None
    return None


def _credential_mac(core: Core, data: bytes) -> bytes:
    return with_token_key(core.token, CREDENTIAL_KEY_LABEL, lambda key: core.token.hmac(key, data))
