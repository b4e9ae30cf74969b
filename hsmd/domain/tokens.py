"""Tokens: against a password, an access key or another token, and as an agency; shown, and revoked.

A wrong user or password gets one answer in one time. What is made from a token or a temporary access key
ends with it at the latest.
"""

from dataclasses import dataclass, replace

from hsmd.domain import agencies as agents
from hsmd.domain import bearers, entitlements, limits, logins, operators, signatures, sources
from hsmd.domain.attempts import named_when_refused, throttled
from hsmd.domain.bearers import MOST_ANCESTORS, SECURITY_TOKEN, TOKEN, Bearer
from hsmd.domain.core import Call
from hsmd.domain.entitlements import Held
from hsmd.domain.identity import Identity, act, enabled_user, subject
from hsmd.errors import (
    IAM_NOT_FOUND,
    IDENTITY_REFUSED,
    TOKEN_EXPIRED,
    TOKEN_INVALID,
    TOKEN_REQUEST_INVALID,
    TOKEN_REQUEST_REFUSED,
    Error,
)
from hsmd.store import agencies, policies, revocations
from hsmd.store import identity as rows
from hsmd.store.identity import Domain, Project, User
from hsmd.store.revocations import Revocation

PASSWORD, ACCESS_KEY, BY_TOKEN, ASSUME_ROLE = "password", "hw_ak_sk", "token", "assume_role"  # IAM's names
METHODS = (PASSWORD, ACCESS_KEY, BY_TOKEN, ASSUME_ROLE)

_HOUR_MILLIS = 60 * 60_000
_ID_BYTES = 16
_UNKNOWN_USER = "unknown user"  # instead of what was claimed: people type passwords into name fields


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a token shall be good: a project, by id or by its name in the domain; or that domain itself.

    All empty: the domain of who asks.
    """

    project_id: str = ""
    project_name: str = ""
    domain_id: str = ""
    domain_name: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says, with names. Times in ms since 1970 UTC.

    Who acts as an agency: `id`, `name` and `domain` are the agency's, `assumed_by` is the user, of the domain
    `home`. `password_expires` is the user's, None: it does not.
    """

    text: str
    method: str
    issued: int
    expires: int
    id: str
    name: str
    domain: Domain
    project: Project | None
    roles: tuple[Held, ...]
    home: Domain
    assumed_by: User | None = None
    password_expires: int | None = None

    def __repr__(self) -> str:
        return f"Token(id={self.id!r}, method={self.method!r}, expires={self.expires})"


def by_token(call: Call, text: str) -> Identity:
    """The user that a token of ours names, good in the token's project only.

    Raises Error(TOKEN_INVALID, TOKEN_EXPIRED, IDENTITY_REFUSED), and Error(RATE_EXCEEDED) after too many
    that were not valid: that token from that source, or any from that source.
    """
    digest = bearers.digest(text)
    with (
        named_when_refused(call, _UNKNOWN_USER),
        throttled(call, "token", digest, counted=TOKEN_INVALID),
    ):
        bearer = bearers.opened(call.core, TOKEN, text, digest)
    with named_when_refused(call, f"user/{bearer.user_id}"):
        return bearers.identity(call.core, TOKEN, bearer)


def issue_by_password(
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
    issued = call.core.clock()  # before the user is looked at: a password changed since then ends this token
    home_id, known = _named_user(call, user_id, user_name, domain)
    call.resource = f"user/{known.id}" if known else _UNKNOWN_USER
    with logins.guarded(call, known, home_id, _claim(user_id, user_name, home_id, domain)):
        user = logins.check_right(known, password)
        if not _may_come(call, user):
            raise Error(TOKEN_REQUEST_REFUSED)
        logins.check_valid(call, user)
    return _issue(call, Identity("password", user), scope, PASSWORD, issued)


def issue_by_access_key(call: Call, *, access_key: str, secret: str, scope: Scope) -> Token:
    """A token against a permanent access key and its secret, compared inside the HSM.

    Refused and slowed down like a signature. IAM: POST /v3/auth/tokens.
    """
    issued = call.core.clock()
    claim = signatures.access_key_resource(access_key)
    with (
        named_when_refused(call, claim),
        throttled(call, "access key", claim, counted=TOKEN_REQUEST_REFUSED),
    ):
        who = signatures.by_secret(call, access_key, secret)
        return _issue(call, who, scope, ACCESS_KEY, issued)


def issue_by_token(call: Call, *, text: str, scope: Scope) -> Token:
    """A token of the same user or agency for another place, until the first one ends. It ends with the first.

    Raises as `by_token` does, and Error(TOKEN_REQUEST_REFUSED) for a place where there is no role.
    IAM: POST /v3/auth/tokens.
    """
    issued = call.core.clock()
    who = by_token(call, text)
    return _issue(call, who, scope, BY_TOKEN, issued)


def issue_as_agency(call: Call, *, agency_name: str, domain: Domain, scope: Scope) -> Token:
    """A token as an agency of another domain, for who may take it on. `domain`: the agency's, by id or name.

    Raises Error(AGENCY_REFUSED), the same whether there is no such agency or it trusts another domain, and
    Error(IAM_ACTION_REFUSED) for who may not act as agencies. IAM: POST /v3/auth/tokens.
    """
    issued = call.core.clock()
    who = agents.assume(call, agency_name, domain)
    return _issue(call, who, scope, ASSUME_ROLE, issued)


def show(call: Call, text: str) -> Token:
    """What the token says, for its own user and for who may look at tokens of the domain.

    Raises Error(IAM_NOT_FOUND), always the same, for one that is not valid. IAM: GET /v3/auth/tokens.
    """
    bearer = _subject(call, text)
    try:
        who = bearers.identity(call.core, TOKEN, bearer)
    except Error as error:
        if error.fault in (TOKEN_INVALID, TOKEN_EXPIRED, IDENTITY_REFUSED):
            raise _not_found() from error
        raise
    with call.read() as tx:
        project = rows.get_project(tx, bearer.project_id) if bearer.project_id else None
    return _described(call, who, project, bearer, text)


def revoke(call: Call, text: str) -> None:
    """The token is good for nothing from the next call on, nor is what was made from it.

    The same for a temporary access key, by its security token. For its own user and for who may revoke tokens
    of the domain. Raises Error(IAM_NOT_FOUND) for one that is not ours; one that was revoked or has expired
    stays so. IAM: DELETE /v3/auth/tokens.
    """
    bearer = _subject(call, text, SECURITY_TOKEN if bearers.is_security_token(text) else TOKEN)
    now = call.core.clock()
    with call.change() as tx:
        if bearer.expires > now:
            home_id = rows.domain_of_user(tx, bearer.user_id)
            revocations.put_revocation(tx, Revocation(bearer.id, bearer.expires), now, home_id)


def revoke_all(call: Call, user_id: str) -> None:
    """Every token and temporary access key of the user that was issued up to now is good for nothing.

    For the user, and for who may revoke tokens of the domain. Raises Error(IAM_NOT_FOUND).
    """
    call.resource = f"user/{user_id}"
    call.granted |= user_id == call.caller.user_id and not call.caller.is_agency
    with call.change() as tx:
        user = rows.get_user(tx, user_id)
        if user is None or user.domain_id != call.caller.domain_id:
            raise Error(IAM_NOT_FOUND, kind="user", id=user_id)
        if user.id != call.caller.user_id:
            operators.check(call, tx, policies.USER, user.id)
        rows.update_user(tx, replace(user, tokens_not_before=bearers.ending(call.core)))


def check_may_have(call: Call, who: Identity) -> None:
    """Raises Error for whom no token or temporary access key is made."""
    if who.groups:
        raise Error(IDENTITY_REFUSED, reason="who is no user here gets no tokens or access keys of ours")
    if len(who.chain) > MOST_ANCESTORS:
        raise Error(TOKEN_REQUEST_INVALID, reason="too many tokens have been made one from the other")
    for domain_id in {who.user.domain_id, who.agency_domain or who.user.domain_id}:
        sources.check(call, domain_id)


def _subject(call: Call, text: str, magic: bytes = TOKEN) -> Bearer:
    """The token that a call is about. A foreign one looks like one that is none."""
    try:
        bearer = bearers.opened(call.core, magic, text)
    except Error as error:
        if error.fault is TOKEN_INVALID:
            raise _not_found() from error
        raise
    with call.read() as tx:
        owner = rows.get_user(tx, bearer.user_id)
        agency = agencies.get_agency(tx, bearer.agency_id) if bearer.agency_id else None
    call.resource = f"user/{bearer.user_id}"
    call.granted |= call.caller.user_id == (bearer.agency_id or bearer.user_id)
    homes = {each.domain_id for each in (owner, agency) if each is not None}
    if not call.granted and call.caller.domain_id not in homes:
        raise _not_found()
    return bearer


def _not_found() -> Error:
    return Error(IAM_NOT_FOUND, kind="token", id="the one in X-Subject-Token")


def _claim(user_id: str, user_name: str, home_id: str, domain: Domain) -> tuple[str, ...]:
    """Who is claimed to be asking, of what `_named_user` looks at only: anything else could be varied.

    A domain that is there is one, by id or name: else who is known would be locked by either, and others not.
    """
    if user_id:
        return ("user id", user_id)
    if home_id or domain.id:
        return (user_name, "domain id", home_id or domain.id)
    return (user_name, "domain", domain.name)


def _named_user(call: Call, user_id: str, user_name: str, domain: Domain) -> tuple[str, User | None]:
    """The id of the domain that is meant, "" for none, and the user."""
    with call.read() as tx:
        if user_id:
            user = rows.get_user(tx, user_id)
            return user.domain_id if user else "", user
        home = rows.get_domain(tx, domain.id) if domain.id else rows.get_domain_by_name(tx, domain.name)
        return (home.id, rows.get_user_by_name(tx, home.id, user_name)) if home else ("", None)


def _may_come(call: Call, user: User) -> bool:
    try:
        enabled_user(call.core, user.id)
    except Error as error:
        if error.fault is not IDENTITY_REFUSED:
            raise
        return False
    return True


def _issue(call: Call, who: Identity, scope: Scope, method: str, issued: int) -> Token:
    """A token for who has shown to be that; a wrong scope is refused like a wrong password."""
    check_may_have(call, who)
    core = call.core
    project = _scoped(call, who, scope)
    issued = bearers.issuing(who.user, issued)
    expires = issued + core.limits.token_hours * _HOUR_MILLIS
    bearer = Bearer(
        id=core.token.random(_ID_BYTES).hex(),
        method=method,
        user_id=who.user.id,
        issued=issued,
        expires=min(expires, who.ends) if who.ends else expires,
        project_id=project.id if project else "",
        agency_id=who.agency_id,
        ancestors=who.chain,
    )
    place = replace(who, bound_project=bearer.project_id)
    act(call, place, bearer.project_id)
    limits.admit_project(call)
    return _described(call, who, project, bearer, bearers.sign(core, TOKEN, bearer))


def _scoped(call: Call, who: Identity, scope: Scope) -> Project | None:
    """The project that is meant, None for the domain. Raises Error(TOKEN_REQUEST_REFUSED)."""
    home_id = who.agency_domain or who.user.domain_id
    with call.read() as tx:
        home = rows.get_domain(tx, home_id)
        found = rows.find_projects(tx, home_id)
    if home is None or scope.domain_id not in ("", home.id) or scope.domain_name not in ("", home.name):
        raise Error(TOKEN_REQUEST_REFUSED)
    if not scope.project_id and not scope.project_name:
        return None
    for each in found:
        if each.id == scope.project_id or (not scope.project_id and each.name == scope.project_name):
            if entitlements.in_project(call.core, *subject(who), each.id).names:
                return each
            break
    raise Error(TOKEN_REQUEST_REFUSED)


def _described(call: Call, who: Identity, project: Project | None, bearer: Bearer, text: str) -> Token:
    core = call.core
    kind, subject_id = subject(who)
    home_id = who.agency_domain or who.user.domain_id
    if project is not None:
        roles = entitlements.in_project(core, kind, subject_id, project.id).held
    else:
        roles = entitlements.in_domain(core, kind, subject_id, home_id).held
    with call.read() as tx:
        domain = rows.get_domain(tx, home_id)
        home = rows.get_domain(tx, who.user.domain_id)
    if domain is None or home is None:
        raise _not_found()
    return Token(
        text=text,
        method=bearer.method,
        issued=bearer.issued,
        expires=bearer.expires,
        id=subject_id,
        name=f"{domain.name}/{who.agency_name}" if who.agency_id else who.user.name,
        domain=domain,
        project=project,
        roles=roles,
        home=home,
        assumed_by=who.user if who.agency_id else None,
        password_expires=logins.expiry(call, who.user),
    )
