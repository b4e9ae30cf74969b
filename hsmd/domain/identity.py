"""Who calls: a user, or an agency that a user acts as; and as whom and where that is.

How somebody shows who it is stands beside: `certificates`, `signatures`, `tokens`, `temporary_keys`.
"""

import re
from dataclasses import dataclass

from hsmd.caller import Caller, IdentityKind
from hsmd.domain import entitlements
from hsmd.domain.core import Call, Core
from hsmd.domain.permissions import NOTHING
from hsmd.errors import (
    IDENTITY_REFUSED,
    PROJECT_DIFFERS,
    PROJECT_REFUSED,
    TOKEN_WITHOUT_PROJECT,
    Error,
)
from hsmd.store import identity as rows
from hsmd.store.identity import Domain, User
from hsmd.store.policies import AGENCY, GROUP, USER

_HEX_ID = re.compile(r"[0-9a-f]{32}")

_BOUND = ("token", "socket", "keystone")  # good where they were made for, and nowhere else
_MAYBE_BOUND = ("temporary-key", "oidc")  # the same, if they were made for one project


@dataclass(frozen=True, slots=True)
class Identity:
    """A user whose evidence holds. `bound_project`: the only project (tokens) or the one meant by silence.

    Who acts as an agency has its id and name and the domain that trusts; `session_policy` is the JSON policy
    that narrows temporary credentials. `ends` is when what it stands on ends (a token of ours or of others, a
    temporary key; ms since 1970 UTC, 0: it was none), `chain` are its id and those of what it was made from.

    With `groups` (ids) it is somebody without a user here, who may what members of those groups may.
    `ukey_role` is the role of a UKey, which is no user either.
    """

    kind: IdentityKind
    user: User
    bound_project: str = ""
    agency_id: str = ""
    agency_name: str = ""
    agency_domain: str = ""
    session_policy: str = ""
    ends: int = 0
    chain: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    ukey_role: str = ""


def by_region(region: str) -> Identity:
    """A peer region: nobody of our users, and without a role anywhere."""
    nobody = User(id="", domain_id="", name=region, password_hash="", enabled=True)
    return Identity("peer", nobody)


def by_gateway(name: str) -> Identity:
    """A gateway itself, by its certificate's name: nobody of our users, and without a role anywhere."""
    nobody = User(id="", domain_id="", name=name, password_hash="", enabled=True)
    return Identity("gateway", nobody)


def by_ukey(ukey_id: str, name: str, role: str) -> Identity:
    """An enrolled UKey: nobody of our users, and without a role in any domain or project."""
    nobody = User(id=ukey_id, domain_id="", name=name, password_hash="", enabled=True)
    return Identity("ukey", nobody, ukey_role=role)


def by_socket(core: Core, user_id: str, project_id: str) -> Identity:
    """The user that the configuration binds a local listener to."""
    return Identity("socket", enabled_user(core, user_id), project_id)


def enabled_user(core: Core, user_id: str) -> User:
    """The user. Raises Error(IDENTITY_REFUSED) for one that is unknown or disabled."""
    user = core.people.get(user_id, "user", lambda: _user(core, user_id), lambda row: (row.domain_id,))
    if user is None or not user.enabled:
        raise Error(IDENTITY_REFUSED, reason="the user is unknown or disabled")
    return user


def act(call: Call, identity: Identity, project_id: str, *, in_domain: bool = False) -> None:
    """Make the identity the call's caller in a project: the one asked for, or the one it is bound to.

    Without either, and for methods of the domain (`in_domain`), it acts in its domain. There a token or
    socket of one project has no role, nor has a gateway or UKey anywhere.

    Raises Error(PROJECT_DIFFERS, TOKEN_WITHOUT_PROJECT) for a token's other project and
    Error(PROJECT_REFUSED) for a project in which the user has no role.
    """
    if identity.kind in ("ukey", "gateway"):
        roles = frozenset([identity.ukey_role] if identity.ukey_role else ())
        call.caller, call.permissions = _caller(call, identity, "", roles), NOTHING
        return
    bound = is_bound(identity)
    if not in_domain and bound and project_id and project_id != identity.bound_project:
        raise Error(PROJECT_DIFFERS if identity.bound_project else TOKEN_WITHOUT_PROJECT)
    place = "" if in_domain else project_id or identity.bound_project
    if place:
        held = entitlements.in_project(call.core, *subject(identity), place)
        if not held.names:  # said of a project that does not exist, too
            raise Error(PROJECT_REFUSED, project=place if _HEX_ID.fullmatch(place) else "of that name")
    elif bound and identity.bound_project:  # what its user holds in the domain is not the token's
        held = NOTHING
    else:
        held = entitlements.in_domain(call.core, *subject(identity), domain_of(identity))
    call.caller, call.permissions = _caller(call, identity, place, held.names), held


def is_bound(identity: Identity) -> bool:
    """Whether it is good in its `bound_project` only, or outside of projects when that is ""."""
    return identity.kind in _BOUND or (identity.kind in _MAYBE_BOUND and identity.bound_project != "")


def subject(identity: Identity) -> tuple[str, str]:
    """Whose roles count: kind and id; several groups' ids stand one after the other."""
    if identity.agency_id:
        return AGENCY, identity.agency_id
    return (GROUP, " ".join(identity.groups)) if identity.groups else (USER, identity.user.id)


def domain_of(identity: Identity) -> str:
    """The domain in which it acts; "" for who has none."""
    return identity.agency_domain or identity.user.domain_id


def _caller(call: Call, identity: Identity, project_id: str, roles: frozenset[str]) -> Caller:
    user, agency, before = identity.user, identity.agency_id, call.caller
    return Caller(  # the first ones by position: names take as long again
        identity.kind,
        agency or user.id,
        identity.agency_name if agency else user.name,
        domain_of(identity),
        project_id,
        roles,
        before.source,
        before.request_id,
        assumed_by=user.id if agency else "",
        session_policy=identity.session_policy,
        groups=identity.groups,
    )


def own_domain(call: Call) -> Domain | None:
    """The caller's domain. IAM: GET /v3/auth/domains."""
    with call.read() as tx:
        return rows.get_domain(tx, call.caller.domain_id)


def _user(core: Core, user_id: str) -> User | None:
    """The user, None in a domain that is disabled."""
    with core.store.read() as tx:
        user = rows.get_user(tx, user_id)
        home = rows.get_domain(tx, user.domain_id) if user else None
    return user if home and home.is_enabled else None
