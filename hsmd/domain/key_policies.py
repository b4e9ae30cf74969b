"""Key policies: who may open the capsules that are bound to them, and from when to when.

Their terms come as JSON text. Whatever in it is not understood is refused: a condition that is kept but not
looked at would protect nothing.
"""

import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from hsmd.domain import keyspaces
from hsmd.domain.core import Call
from hsmd.domain.keyspaces import Page
from hsmd.errors import (
    KEYSPACE_NAME_IN_USE,
    KEYSPACE_QUOTA_EXCEEDED,
    KEYSPACE_THING_NOT_FOUND,
    PARAMETER_INVALID,
    Error,
)
from hsmd.store import Tx, access_points
from hsmd.store import key_policies as rows
from hsmd.store.key_policies import KeyPolicy

POLICIES_PER_PROJECT = 100

_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){0,3}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLIS = 1000
_MOST_POINTS = 100
# DEW writes these in two ways, so both are read.
_SPELLINGS = {
    "version": "version",
    "validityPeriod": "validity",
    "validity_period": "validity",
    "allowedAccessPoint": "points",
    "allowed_access_point": "points",
    "allowedDataSecurityZone": "zones",
    "allowed_data_security_zone": "zones",
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What a policy says: the times in milliseconds since 1970 UTC, None for no bound, the end excluded."""

    version: str
    points: tuple[str, ...]
    starts: int | None = None
    ends: int | None = None


def create(call: Call, keyspace_id: str, name: str, terms: str, description: str) -> KeyPolicy:
    """A new policy, its terms as JSON text. DEW: create key policy."""
    keyspace = keyspaces.checked_id("keyspace_id", keyspace_id)
    keyspaces.check_name("policy_name", name)
    keyspaces.check_description(description)
    parsed = parse("policy", terms)
    now = call.core.clock()
    policy = KeyPolicy(
        id=keyspaces.new_id(call),
        project_id=call.caller.project_id,
        domain_id=call.caller.domain_id,
        keyspace_id=keyspace,
        name=name,
        terms=text(parsed),
        description=description,
        created_by=call.caller.user_id,
        created=now,
        updated=now,
    )
    with call.read() as tx:  # up to 100 rows with their seals: nobody is kept from writing meanwhile
        check_points(call, tx, "policy", parsed, keyspace)
    with call.change() as tx:
        if rows.count(tx, policy.project_id) >= POLICIES_PER_PROJECT:
            raise Error(KEYSPACE_QUOTA_EXCEEDED, quota=POLICIES_PER_PROJECT, what="key policies")
        if rows.by_name(tx, policy.project_id, keyspace, name) is not None:
            raise Error(KEYSPACE_NAME_IN_USE, name=name, what="a key policy")
        rows.insert(tx, policy)
        call.resource = policy.id
    return policy


def page(call: Call, keyspace_id: str, *, limit: int | None, marker: str) -> Page[KeyPolicy]:
    """The keyspace's policies behind `marker`, by id. DEW: list key policies."""
    keyspace = keyspaces.checked_id("keyspace_id", keyspace_id)
    size, after = keyspaces.page_bounds(limit, marker)
    with call.read() as tx:
        found = rows.page(tx, call.caller.project_id, keyspace, after=after, limit=size + 1)
    return keyspaces.cut(found, size)


def show(call: Call, policy_id: str) -> KeyPolicy:
    """DEW: show key policy."""
    with call.read() as tx:
        policy = own(call, tx, policy_id)
    call.resource = policy.id
    return policy


def update(call: Call, policy_id: str, terms: str, description: str | None) -> KeyPolicy:
    """Other terms, and another description unless it is None. DEW: update key policy."""
    parsed = parse("policy", terms)
    keyspaces.check_description(description or "")
    with call.read() as tx:
        policy = own(call, tx, policy_id)
        call.resource = policy.id
        check_points(call, tx, "policy", parsed, policy.keyspace_id)
    with call.change() as tx:
        policy = own(call, tx, policy_id)
        policy = replace(
            policy,
            terms=text(parsed),
            description=policy.description if description is None else description,
            updated=call.core.clock(),
        )
        rows.update(tx, policy)
        return policy


def delete(call: Call, policy_id: str) -> None:
    """DEW: delete key policy."""
    with call.change() as tx:
        policy = own(call, tx, policy_id)
        call.resource = policy.id
        rows.remove(tx, policy)


def own(call: Call, tx: Tx, policy_id: str) -> KeyPolicy:
    """The project's policy. Raises Error(KEYSPACE_THING_NOT_FOUND)."""
    wanted = keyspaces.checked_id("policy_id", policy_id)
    policy = rows.get(tx, call.caller.project_id, wanted)
    if policy is None:
        raise Error(KEYSPACE_THING_NOT_FOUND, what="key policy", id=wanted)
    return policy


def check_points(call: Call, tx: Tx, parameter: str, terms: Terms, keyspace_id: str | None) -> None:
    """Raises Error(PARAMETER_INVALID) unless all are the project's, and in this keyspace if one is given.

    For who writes the policy, no more: who opens a capsule is looked at then.
    """
    known = access_points.some(tx, call.caller.project_id, terms.points)
    for each in terms.points:
        point = known.get(each)
        if point is None or keyspace_id not in (None, point.keyspace_id):
            place = "this keyspace" if keyspace_id else "this project"
            raise _unfit(parameter, f"{place} has no access point {each}")


def parse(parameter: str, policy: str) -> Terms:
    """The terms that stand in a JSON text. Raises Error(PARAMETER_INVALID) with the parameter's name."""
    tree = _members(parameter, _json(parameter, policy), "the policy")
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in _SPELLINGS or _SPELLINGS[name] in found:
            raise _unfit(parameter, f"version, {_list(_SPELLINGS)} are due, each once")
        found[_SPELLINGS[name]] = value
    version = found.get("version")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise _unfit(parameter, 'a version like "1.0" is due')
    if found.get("zones") not in (None, []):
        raise _unfit(parameter, "data security zones can't be checked here")
    starts, ends = _validity(parameter, found.get("validity"))
    return Terms(version, _points(parameter, found.get("points")), starts, ends)


def terms_of(policy: KeyPolicy) -> Terms:
    """The terms of a policy from the store."""
    return parse("policy", policy.terms)


def text(terms: Terms) -> str:
    """The same terms always as the same JSON text, which `parse` reads."""
    bounds = {"start_time": terms.starts, "end_time": terms.ends}
    tree = {
        "version": terms.version,
        "validity_period": {name: time(at) for name, at in bounds.items() if at is not None},
        "allowed_access_point": list(terms.points),
    }
    return json.dumps(tree, separators=(",", ":"))


def time(millis: int) -> str:
    """Like 2030-01-31T12:00:00Z."""
    return datetime.fromtimestamp(millis // _MILLIS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def millis(parameter: str, moment: object) -> int:
    """The other way round. Raises Error(PARAMETER_INVALID) with the parameter's name."""
    if isinstance(moment, str) and _TIME.fullmatch(moment):
        try:
            since = datetime.fromisoformat(moment) - _EPOCH
        except ValueError:  # no such day
            since = None
        if since is not None and since.days >= 0:
            return (since.days * 86_400 + since.seconds) * _MILLIS
    raise _unfit(parameter, "times like 2030-01-31T12:00:00Z are due")


def _json(parameter: str, policy: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) != len(pairs):
            raise _unfit(parameter, "a name stands there twice")
        return tree

    try:
        return json.loads(policy, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise _unfit(parameter, "the text of a JSON object is due") from None


def _members(parameter: str, tree: Any, what: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise _unfit(parameter, f"{what} must be a JSON object")
    return tree


def _validity(parameter: str, period: Any) -> tuple[int | None, int | None]:
    if period is None:
        return None, None
    bounds = _members(parameter, period, "its validity period")
    if not bounds.keys() <= {"start_time", "end_time"}:
        raise _unfit(parameter, "its validity period has start_time and end_time")
    starts, ends = (
        None if bounds.get(name) is None else millis(parameter, bounds[name])
        for name in ("start_time", "end_time")
    )
    if starts is not None and ends is not None and starts >= ends:
        raise _unfit(parameter, "its validity period ends before it starts")
    return starts, ends


def _points(parameter: str, points: Any) -> tuple[str, ...]:
    if not isinstance(points, list) or not 1 <= len(points) <= _MOST_POINTS:
        raise _unfit(parameter, f"1 to {_MOST_POINTS} allowed access points are due")
    if not all(isinstance(each, str) for each in points):
        raise _unfit(parameter, "access points are named by their ids")
    found = [keyspaces.checked_id(parameter, each) for each in points]
    if len(set(found)) != len(found):
        raise _unfit(parameter, "an access point stands there twice")
    return tuple(found)


def _list(spellings: dict[str, str]) -> str:
    return ", ".join(name for name in spellings if "_" in name)


def _unfit(parameter: str, reason: str) -> Error:
    return Error(PARAMETER_INVALID, name=parameter, reason=reason)
