"""How much a project or address may ask for: requests a second, calls at once, quotas.

The configuration says what counts for everybody, and operators give single projects other values.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from hsmd import metrics
from hsmd.config import Limits
from hsmd.domain.cache import of_none
from hsmd.domain.core import Call, Core
from hsmd.domain.sources import LOCAL
from hsmd.domain.steps import Decided, Outcome, Steps
from hsmd.domain.throttle import network
from hsmd.errors import LIMIT_NEEDS_QUORUM, PARAMETER_INVALID, RATE_EXCEEDED, Error
from hsmd.operations import Facts, Parameters
from hsmd.store import Tx, identity
from hsmd.store import limits as rows
from hsmd.store.limits import ProjectLimit

_CROWDED_SECONDS = 1.0  # after which to try again where too many calls run


@dataclass(frozen=True, slots=True)
class Kind:
    """A limit that projects have: what it counts, the configuration's value, and the most it may be."""

    unit: str
    configured: Callable[[Limits], int]
    most: int
    alone: Callable[[Limits], int]  # the most that an operator sets without a quorum; 0: any number
    unbounded: bool = True  # whether 0 is any number


KEYS, REQUESTS, CALLS = "keys", "requests", "calls"
KINDS = MappingProxyType(
    {
        KEYS: Kind(
            "keys, default keys not counted",
            lambda limits: limits.keys_per_project,
            1_000_000_000,
            lambda limits: limits.keys_without_quorum,
            unbounded=False,
        ),
        REQUESTS: Kind(
            "requests a second, 0: any number",
            lambda limits: limits.requests_per_project,
            1_000_000,
            lambda limits: limits.requests_without_quorum,
        ),
        CALLS: Kind(
            "calls at once a worker, 0: any number",
            lambda limits: limits.calls_per_project,
            1024,
            lambda limits: limits.calls_without_quorum,
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Limit:
    """What counts for a project: `own` when an operator has set it."""

    name: str
    value: int
    default: int
    own: bool


def of(core: Core, project_id: str, name: str) -> int:
    """The value of one limit that counts for the project now."""
    return core.people.get(project_id, "limits", lambda: _load(core, project_id), of_none)[name]


def admit_source(call: Call) -> None:
    """Count a call for its address, whatever it is and whether or not its evidence holds.

    Raises Error(RATE_EXCEEDED).
    """
    rate, source = call.core.limits.requests_per_source, call.caller.source
    if rate and source != LOCAL:
        _take(call.core, f"source {network(source)}", rate, "this address")


def admit_project(call: Call) -> None:
    """Count a call for its project, or outside projects for its domain; a peer's for its region.

    Raises Error(RATE_EXCEEDED).
    """
    caller = call.caller
    place = caller.project_id or caller.domain_id or f"peer {caller.user_name}"
    rate = of(call.core, place, REQUESTS)
    if rate:
        _take(call.core, f"project {place}", rate, "this project")


class turn:  # noqa: N801 -- it is used as a function is; as a generator it would take longer
    """One of the project's places among the calls at once. Raises Error(RATE_EXCEEDED)."""

    __slots__ = ("_most", "_place", "_running")

    def __init__(self, call: Call) -> None:
        self._running = call.core.running
        self._place = call.caller.project_id or call.caller.domain_id
        self._most = of(call.core, self._place, CALLS) if self._place else 0

    def __enter__(self) -> None:
        if not self._most:
            return
        with self._running.lock:
            count = self._running.calls.get(self._place, 0)
            if count >= self._most:
                metrics.CALLS_LIMITED.inc("at once")
                reason = f"this project may have {self._most} calls at once"
                raise Error(RATE_EXCEEDED, reason=reason, retry_after=_CROWDED_SECONDS)
            self._running.calls[self._place] = count + 1

    def __exit__(self, *_: object) -> None:
        if not self._most:
            return
        with self._running.lock:
            if self._running.calls[self._place] > 1:
                self._running.calls[self._place] -= 1
            else:
                del self._running.calls[self._place]


def list_limits(call: Call, project_id: str) -> list[Limit]:
    """All limits of a project, by name."""
    with call.read() as tx:
        _check_project(tx, project_id)
        own = _own(tx, project_id)
    return [_limit(call, name, own) for name in sorted(KINDS)]


def set_limit(call: Call, project_id: str, name: str, value: int) -> Limit:
    """Give a project its own value. In force for the next call, on every worker.

    Raises Error(LIMIT_NEEDS_QUORUM) above what the configuration leaves to operators.
    """
    kind = _checked(name, value)
    bound = kind.alone(call.core.limits)
    if bound and (value > bound or (value == 0 and kind.unbounded)):
        raise Error(LIMIT_NEEDS_QUORUM, name=name, bound=bound)
    with call.change() as tx:
        _check_project(tx, project_id)
        rows.put_limit(tx, ProjectLimit(project_id, name, value))
    return _limit(call, name, {name: value})


def reset_limit(call: Call, project_id: str, name: str) -> Limit:
    """Let the configuration's value count again; no fault when it does already."""
    _kind(name)
    with call.change() as tx:
        _check_project(tx, project_id)
        rows.delete_limit(tx, project_id, name)
    return _limit(call, name, {})


# By a quorum of UKeys, above what operators may set alone


def _raise_admitted(_call: Call, parameters: Parameters) -> None:
    _checked(str(parameters["name"]), int(parameters["value"]))


def _raise_state(call: Call, tx: Tx, parameters: Parameters) -> Facts:
    project_id, name = str(parameters["project_id"]), str(parameters["name"])
    project = identity.get_project(tx, project_id)
    if project is None:
        raise Error(PARAMETER_INVALID, name="project_id", reason="there is no such project")
    now = _limit(call, name, _own(tx, project_id))
    return {"project": project.name, "domain_id": project.domain_id, f"{name} now": now.value}


def _raise(_call: Call, tx: Tx, decided: Decided) -> Outcome:
    project_id, name = str(decided.parameters["project_id"]), str(decided.parameters["name"])
    rows.put_limit(tx, ProjectLimit(project_id, name, int(decided.parameters["value"])))
    project = identity.get_project(tx, project_id)
    return Outcome(project_id, project.domain_id if project else "", project_id)


RAISING = Steps(_raise_state, _raise, admit=_raise_admitted)


def _checked(name: str, value: int) -> Kind:
    kind = _kind(name)
    if not 0 <= value <= kind.most:
        raise Error(PARAMETER_INVALID, name="value", reason=f"0 to {kind.most} is due")
    return kind


def _take(core: Core, name: str, rate: int, who: str) -> None:
    wait = core.rates.take(name, rate, core.limits.burst_seconds, time.monotonic_ns())
    if wait:
        metrics.CALLS_LIMITED.inc(name.partition(" ")[0])
        raise Error(RATE_EXCEEDED, reason=f"{who} may make {rate} a second", retry_after=wait)


def _limit(call: Call, name: str, own: dict[str, int]) -> Limit:
    default = KINDS[name].configured(call.core.limits)
    return Limit(name, own.get(name, default), default, own=name in own)


def _kind(name: str) -> Kind:
    kind = KINDS.get(name)
    if kind is None:
        raise Error(PARAMETER_INVALID, name="name", reason=f"one of {', '.join(sorted(KINDS))} is due")
    return kind


def _check_project(tx: Tx, project_id: str) -> None:
    if identity.get_project(tx, project_id) is None:
        raise Error(PARAMETER_INVALID, name="of_project", reason="there is no such project")


def _load(core: Core, project_id: str) -> dict[str, int]:
    with core.store.read() as tx:
        own = _own(tx, project_id)
    return {name: own.get(name, kind.configured(core.limits)) for name, kind in KINDS.items()}


def _own(tx: Tx, project_id: str) -> dict[str, int]:
    return {each.name: each.value for each in rows.limits_of(tx, project_id)}
