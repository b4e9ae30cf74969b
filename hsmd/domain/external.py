"""Who somebody of an external identity provider is here, by the rules of the configuration.

A rule names a user of ours, or groups: then it is somebody without a user here, whose id comes from the
provider's, and who may what members of the groups may.

Names at a Keystone say little by themselves: each of its domains has an administrator, who may call a user or
a project as it likes, and give roles in it. So rules for a Keystone that look at these also pin the domain.
"""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from hsmd.caller import IdentityKind
from hsmd.config import ClaimTest, ConfigError, IdentityRule, Settings
from hsmd.domain import bearers
from hsmd.domain.attempts import named_when_refused, throttled
from hsmd.domain.core import Call, Core
from hsmd.domain.identity import Identity, enabled_user
from hsmd.errors import IDENTITY_REFUSED, TOKEN_INVALID, Error
from hsmd.store import groups
from hsmd.store import identity as rows
from hsmd.store.identity import User

Claims = Mapping[str, object]

_IDS = uuid.UUID("0d9f7f0c-3a55-4d7b-8a4f-8a1f3c0a7d52")  # a namespace of our own
_HEX_ID = re.compile(r"[0-9a-f]{32}")
_ANY = "*"
_LONGEST_NAME = 64
# Claims of a Keystone that its domains give out, each as it likes; and those that say which domain it was.
_PINNED_BY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "user_name": ("user_domain_id", "user_domain_name"),
        "project_name": ("project_domain_id", "project_domain_name"),
        "role": ("project_id", "project_domain_id", "project_domain_name"),
    }
)
_BEARER, _SUBJECT = "bearer token", "unknown user"


def check(settings: Settings) -> None:
    """Raises ConfigError for rules that name nobody, or more than one."""
    for place, found in (
        ("keystone.rules", settings.keystone.rules),
        *((f"oidc.rules of {each.issuer}", each.rules) for each in settings.oidc),
    ):
        for rule in found:
            _check(place, rule)
    for rule in settings.keystone.rules:
        if not rule.project_id and not rule.project_claim:
            raise ConfigError("keystone.rules: project_id or project_claim is due")
        _check_pinned(rule)


def by_bearer(call: Call, token: str) -> Identity:
    """Who a JWT of a configured issuer is for. Raises Error(IDENTITY_REFUSED, RATE_EXCEEDED)."""
    core = call.core
    with (
        named_when_refused(call, _BEARER),
        throttled(call, "bearer", bearers.digest(token), counted=IDENTITY_REFUSED),
    ):
        issuer = core.providers.issuer(token)
        if issuer is None:
            raise Error(IDENTITY_REFUSED, reason="no bearer tokens of this issuer are taken")
        claims = issuer.claims(token, core.clock() / 1000)
    subject = f"{issuer.settings.issuer} {claims['sub']}"
    return _somebody(call, "oidc", issuer.settings.rules, claims, subject, str(claims["sub"]))


def by_keystone(call: Call, token: str) -> Identity:
    """Who a token of the configured Keystone is for.

    Raises Error(TOKEN_INVALID, TOKEN_EXPIRED, IDENTITY_REFUSED, RATE_EXCEEDED, UNAVAILABLE).
    """
    core, keystone = call.core, call.core.providers.keystone
    with (
        named_when_refused(call, _SUBJECT),
        throttled(call, "token", bearers.digest(token), counted=TOKEN_INVALID),
    ):
        if keystone is None:
            raise Error(TOKEN_INVALID)
        claims = keystone.claims(token, core.clock() / 1000)
    subject = f"{keystone.settings.url} {claims['user_id']}"
    return _somebody(call, "keystone", keystone.settings.rules, claims, subject, str(claims["user_name"]))


def _somebody(
    call: Call, kind: IdentityKind, rules: Sequence[IdentityRule], claims: Claims, subject: str, name: str
) -> Identity:
    with named_when_refused(call, f"{kind} {subject}"[:200]):
        rule = next((each for each in rules if all(_fits(test, claims) for test in _tests(each))), None)
        if rule is None:
            raise Error(IDENTITY_REFUSED, reason="no rule says who this is here")
        if rule.groups:
            return _member(call.core, kind, rule, claims, subject, name)
        user = _user(call.core, rule, claims)
        project = _project(call.core, rule, claims, user.domain_id)
        return Identity(kind, user, project, ends=_end(claims))


def _tests(rule: IdentityRule) -> Iterator[ClaimTest]:
    yield ClaimTest(rule.claim, rule.value)
    yield from rule.also


def _fits(test: ClaimTest, claims: Claims) -> bool:
    found = claims.get(test.claim)
    values = found if isinstance(found, list) else [found]
    texts = [each for each in values if isinstance(each, str) and each]
    return bool(texts) if test.value == _ANY else test.value in texts


def _user(core: Core, rule: IdentityRule, claims: Claims) -> User:
    user_id: str | None = rule.user_id
    if rule.user_claim:
        name = _text(claims, rule.user_claim)
        user_id = core.people.get(
            rule.domain_id,
            f"user named {name}",
            lambda: _user_named(core, rule.domain_id, name),
            lambda _: (rule.domain_id,),
        )
    return enabled_user(core, user_id or "")


def _member(
    core: Core, kind: IdentityKind, rule: IdentityRule, claims: Claims, subject: str, name: str
) -> Identity:
    """Somebody without a user here."""
    there = core.people.get(
        rule.domain_id, repr(rule.groups), lambda: _groups(core, rule), lambda _: (rule.domain_id,)
    )
    if not there:
        raise Error(IDENTITY_REFUSED, reason="the groups of the rule are unknown, or the domain is disabled")
    user = User(uuid.uuid5(_IDS, subject).hex, rule.domain_id, name[:_LONGEST_NAME], "", enabled=True)
    project = _project(core, rule, claims, rule.domain_id)
    return Identity(kind, user, project, ends=_end(claims), groups=there)


def _project(core: Core, rule: IdentityRule, claims: Claims, domain_id: str) -> str:
    """The only project of this principal, "" where the rule does not bind it to one."""
    if not rule.project_claim:
        return rule.project_id
    name = _text(claims, rule.project_claim)
    found = core.people.get(
        domain_id,
        f"project named {name}",
        lambda: _project_named(core, domain_id, name),
        lambda _: (domain_id,),
    )
    if found is None:
        raise Error(IDENTITY_REFUSED, reason="there is no project of the name that the token gives")
    return found


def _end(claims: Claims) -> int:
    """When the token ends, in ms since 1970: what is made from it lasts no longer."""
    end: Any = claims["exp"]  # a number, as who verified the token has seen to
    return int(end) * 1000


def _text(claims: Claims, name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise Error(IDENTITY_REFUSED, reason=f"the token has no claim {name}")
    return value


def _user_named(core: Core, domain_id: str, name: str) -> str | None:
    with core.store.read() as tx:
        user = rows.get_user_by_name(tx, domain_id, name)
    return user.id if user else None


def _project_named(core: Core, domain_id: str, name: str) -> str | None:
    with core.store.read() as tx:
        return next((each.id for each in rows.find_projects(tx, domain_id) if each.name == name), None)


def _groups(core: Core, rule: IdentityRule) -> tuple[str, ...] | None:
    with core.store.read() as tx:
        home = rows.get_domain(tx, rule.domain_id)
        found = [groups.get_group(tx, each) for each in rule.groups]
    if home is None or not home.is_enabled:
        return None
    return tuple(each.id for each in found if each is not None and each.domain_id == rule.domain_id) or None


def _check(place: str, rule: IdentityRule) -> None:
    if not all(each.claim and each.value for each in _tests(rule)):
        raise ConfigError(f"{place}: a claim and its value are due")
    if sum(map(bool, (rule.user_id, rule.user_claim, rule.groups))) != 1:
        raise ConfigError(f"{place}: one of user_id, user_claim and groups is due")
    if bool(rule.domain_id) == bool(rule.user_id):
        raise ConfigError(f"{place}: domain_id is due with user_claim and groups, and only there")
    if rule.project_id and rule.project_claim:
        raise ConfigError(f"{place}: one of project_id and project_claim is due, or none")
    ids = (rule.user_id, rule.domain_id, rule.project_id, *rule.groups)
    for each in filter(None, ids):
        if not _HEX_ID.fullmatch(each):
            raise ConfigError(f"{place}: 32 hex digits are due, not {each!r}")


def _check_pinned(rule: IdentityRule) -> None:
    fixed = {each.claim for each in _tests(rule) if each.value != _ANY}
    looked_at = {each.claim for each in _tests(rule)} | {rule.user_claim, rule.project_claim}
    for name, pins in _PINNED_BY.items():
        if name in looked_at and fixed.isdisjoint(pins):
            due = " or ".join(pins)
            raise ConfigError(
                f"keystone.rules: who looks at {name} has to test {due} also, for one value: other domains of"
                " that Keystone give out the same names"
            )
