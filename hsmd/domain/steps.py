"""What a subject tells of an operation that a quorum decides: how its object stands, and how it is done."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hsmd.domain.core import Call
from hsmd.operations import Facts, Parameters
from hsmd.store import Tx


@dataclass(frozen=True, slots=True)
class Decided:
    """What is to be done: by whose decision (`by`, the UKeys' names) and with which parameters."""

    proposal_id: str
    parameters: Parameters
    by: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done, and to what: `resource` of the record, in its domain and project. `result` is JSON."""

    resource: str = ""
    domain_id: str = ""
    project_id: str = ""
    result: Mapping[str, object] = field(default_factory=dict)


def _nothing(_call: Call, _parameters: Parameters) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Steps:
    """One operation, in the terms of its subject.

    - `state(call, tx, parameters)` gives what the object is like: people see and sign it, and whatever
      changes it makes the proposal void. Raises Error for an object that it can't be done to. It is called
      when the proposal is made, approved and carried out; it changes nothing.
    - `run(call, tx, decided)` does it within the transaction that ends the proposal. Raises Error.
    - `finish(call, decided)` is for what is more than one transaction, and comes after `run`: the proposal
      is begun then, and done when it returns. It may be cut short anywhere and is then called again (`run`
      is not): by one call at a time of each node. Its own changes (`call.change()`) are recorded as the
      operation's event.
    - `admit(call, parameters)` looks at what counts only when the proposal is made. Raises Error.
    """

    state: Callable[[Call, Tx, Parameters], Facts]
    run: Callable[[Call, Tx, Decided], Outcome]
    finish: Callable[[Call, Decided], Outcome] | None = None
    admit: Callable[[Call, Parameters], None] = _nothing


def no_run(_call: Call, _tx: Tx, _decided: Decided) -> Outcome:
    """For an operation that is done in `finish` alone."""
    return Outcome()
