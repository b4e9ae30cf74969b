"""Temporary access keys: for a quarter of an hour to a day, of a user or an agency, narrowed by a policy.

No row is kept: all stands in the security token, the secret wrapped by the root key, and who signs sends it
along. What is made from a token ends with it, and when it is revoked. None is made from a temporary key.
One of an external token ends with that, and is good where that is.
"""

from dataclasses import dataclass

from hsmd.domain import access_keys, agencies, bearers, documents, limits, tokens
from hsmd.domain.bearers import SECURITY_TOKEN, Bearer
from hsmd.domain.core import Call
from hsmd.domain.documents import DocumentError
from hsmd.domain.identity import Identity, act, is_bound
from hsmd.errors import IAM_INPUT_INVALID, IDENTITY_REFUSED, Error
from hsmd.store.identity import Domain

LEAST_SECONDS, MOST_SECONDS = 15 * 60, 24 * 60 * 60
POLICY_LENGTH = 2048

_PREFIX = "HST"  # of the ids of temporary access keys, as IAM has it
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class TemporaryKey:
    """A temporary access key; the secret and the security token are shown here once. `expires` in ms."""

    access_key: str
    secret: str
    security_token: str
    expires: int

    def __repr__(self) -> str:
        return f"TemporaryKey(access_key={self.access_key!r}, expires={self.expires})"


def create(call: Call, *, token: str, seconds: int | None, policy: str = "") -> TemporaryKey:
    """For the user of a token, or for who calls when `token` is "". `policy` is JSON, "" for none.

    Raises Error(IAM_INPUT_INVALID) for a duration or policy that is none, Error(IDENTITY_REFUSED) for who
    calls by a temporary access key, and what identification raises. IAM: CreateTemporaryAccessKeyByToken.
    """
    issued = call.core.clock()
    duration = _duration(seconds)
    who = tokens.by_token(call, token) if token else call.identify()
    _check(policy)  # not before: it costs more than the rest
    if who.kind == "temporary-key":
        raise Error(IDENTITY_REFUSED, reason="a temporary access key can't be made by another")
    return _issue(call, who, "", policy, issued, duration)


def create_as_agency(
    call: Call, *, agency_name: str, domain: Domain, session_name: str, seconds: int | None, policy: str = ""
) -> TemporaryKey:
    """For an agency of that domain, for who may take it on. `session_name` stands in audit records.

    Raises as `create` does, and what `agencies.assume` raises. IAM: CreateTemporaryAccessKeyByAgency.
    """
    issued = call.core.clock()
    duration = _duration(seconds)
    who = agencies.assume(call, agency_name, domain, session_name)
    _check(policy)
    return _issue(call, who, session_name, policy, issued, duration)


def _issue(
    call: Call, who: Identity, session_name: str, policy: str, issued: int, duration: int
) -> TemporaryKey:
    tokens.check_may_have(call, who)
    core = call.core
    act(call, who, "")
    limits.admit_project(call)
    issued = bearers.issuing(who.user, issued)
    secret = access_keys.new_secret(core)
    bearer = Bearer(
        id=core.token.random(_ID_BYTES).hex(),
        method="token" if not who.agency_id else "assume_role",
        user_id=who.user.id,
        issued=issued,
        expires=min(issued + duration, who.ends) if who.ends else issued + duration,
        project_id=who.bound_project if is_bound(who) else "",
        agency_id=who.agency_id,
        session_name=session_name,
        session_policy=policy,
        ancestors=who.chain,
        access_key=access_keys.new_id(_PREFIX),
        wrapped=secret.wrapped.hex(),
        root_label=secret.root_label,
    )
    call.resource = f"access-key/{bearer.access_key}"
    text = bearers.sign(core, SECURITY_TOKEN, bearer)
    return TemporaryKey(bearer.access_key, secret.text, text, bearer.expires)


def _duration(seconds: int | None) -> int:
    """In ms."""
    seconds = LEAST_SECONDS if seconds is None else seconds
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        reason = f"{LEAST_SECONDS} to {MOST_SECONDS} is due"
        raise Error(IAM_INPUT_INVALID, name="duration_seconds", reason=reason)
    return seconds * 1000


def _check(policy: str) -> None:
    if not policy:
        return
    if len(policy) > POLICY_LENGTH:
        raise Error(IAM_INPUT_INVALID, name="policy", reason=f"at most {POLICY_LENGTH} characters are due")
    try:
        documents.compiled(policy)
    except DocumentError as error:
        raise Error(IAM_INPUT_INVALID, name="policy", reason=error) from error
