"""What the policies of a caller say to an action: pure, compiled once, the plain case in a look-up.

An explicit deny wins; what nothing allows is refused. Where a statement depends on the key (its id, spec,
usage, tags), the answer may have to wait for the key: `LATER`, until `with_key`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from hsmd.domain import documents
from hsmd.domain.conditions import Facts
from hsmd.domain.documents import Statement, parts_of


class Answer(Enum):
    """What policies say. `SILENT`: nothing allows it, and nothing denies it either."""

    ALLOWED = "allowed"
    DENIED = "denied"
    SILENT = "silent"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class Held:
    """A role or policy that counts: its id, the name people know it by, its JSON, and how it came.

    `through` is "user", "agency", "group NAME" or "session". `operates` marks the daemon's own role, which
    alone allows actions of hsmd.
    """

    role_id: str
    name: str
    document: str
    through: str
    operates: bool = False


@dataclass(frozen=True, slots=True)
class Reason:
    """What a statement did to a decision: `failed` is the condition, or "Resource", that it did not meet."""

    held: Held
    statement: Statement
    applies: bool
    failed: str = ""


@dataclass(frozen=True, slots=True)
class _Rule:
    """A statement of the action, and whose."""

    held: Held
    statement: Statement

    def applies(self, facts: Facts, parts: tuple[str, ...]) -> bool:
        if self.statement.resources and not self.statement.covers(parts):
            return False
        for each in self.statement.conditions:  # noqa: SIM110 -- a generator takes longer than many a condition
            if not each.holds(facts):
                return False
        return True


class Rules:
    """What all policies of a caller say to one action."""

    __slots__ = ("_allows", "_denies", "_early", "_late_allows", "_late_denies", "_named", "plain")

    def __init__(self, rules: Iterable[_Rule]) -> None:
        found = list(rules)
        self._denies = [each for each in found if not each.statement.allows]
        self._allows = [each for each in found if each.statement.allows]
        self._late_denies = any(each.statement.late for each in self._denies)
        self._late_allows = any(each.statement.late for each in self._allows)
        self._early = any(not each.statement.late for each in found)
        self._named = any(each.statement.resources for each in found)
        self.plain = self._plain()

    def _plain(self) -> Answer | None:
        """The answer when no fact can change it, else None."""
        if any(_is_plain(each) for each in self._denies):
            return Answer.DENIED
        if not self._allows and not self._denies:
            return Answer.SILENT
        if not self._denies and any(_is_plain(each) for each in self._allows):
            return Answer.ALLOWED
        return None

    def at_once(self, facts: Callable[[], Facts]) -> Answer:
        """The answer before a key is known, `LATER` if that may matter."""
        if self.plain is not None:
            return self.plain
        if not self._early:
            return Answer.LATER if self._late_allows else Answer.SILENT
        known = facts()
        if _any_applies(self._denies, known, late=False):
            return Answer.DENIED
        allowed = _any_applies(self._allows, known, late=False)
        if not allowed and not self._late_allows:
            return Answer.SILENT
        return Answer.ALLOWED if allowed and not self._late_denies else Answer.LATER

    def with_key(self, facts: Facts, resource: str) -> Answer:
        """The answer for a key: its URN and what is known of it and the call; "" for no key at all."""
        if self.plain is not None:
            return self.plain
        parts = parts_of(resource) if self._named else ()
        for denial in self._denies:
            if denial.applies(facts, parts):
                return Answer.DENIED
        for allowance in self._allows:
            if allowance.applies(facts, parts):
                return Answer.ALLOWED
        return Answer.SILENT

    def may_allow(self, resource: str) -> bool:
        """Whether there are calls for which the resource is allowed, whatever conditions ask of them."""
        parts = parts_of(resource)
        if any(not each.statement.conditions and each.statement.covers(parts) for each in self._denies):
            return False
        return any(each.statement.covers(parts) for each in self._allows)

    def explain(self, facts: Facts, resource: str) -> Iterator[Reason]:
        """What each statement did, denies first."""
        for rule in (*self._denies, *self._allows):
            failed = "" if rule.statement.covers(parts_of(resource)) else "Resource"
            for condition in rule.statement.conditions:
                failed = failed or ("" if condition.holds(facts) else str(condition))
            yield Reason(rule.held, rule.statement, not failed, failed)


class Permissions:
    """All that counts for a caller in one project or domain."""

    __slots__ = ("_rules", "_statements", "held", "names")

    def __init__(self, held: Iterable[Held]) -> None:
        self.held = tuple(held)
        self.names = frozenset(each.name for each in self.held)
        self._statements = [
            _Rule(each, statement) for each in self.held for statement in documents.compiled(each.document)
        ]
        self._rules: dict[str, Rules] = {}

    def rules(self, action: str) -> Rules:
        """What they say to the action; kept, since actions are those of methods and so a few."""
        found = self._rules.get(action)
        if found is None:
            found = self._rules[action] = self.looked_up(action)
        return found

    def looked_up(self, action: str) -> Rules:
        """The same for an action that anybody thought of: not kept."""
        small = action.lower()
        operating = small.startswith(OPERATION)
        return Rules(
            rule
            for rule in self._statements
            if rule.statement.is_about(small)
            and (rule.held.operates or not operating or not rule.statement.allows)
        )


OPERATION = "hsmd:"  # actions on the daemon itself, which no domain can give itself

NOTHING = Permissions(())


def narrowed(first: Answer, second: Answer) -> Answer:
    """The answer when both must allow: policies, and the session policy that narrows them."""
    for worst in (Answer.DENIED, Answer.SILENT, Answer.LATER):
        if worst in (first, second):
            return worst
    return Answer.ALLOWED


def _is_plain(rule: _Rule) -> bool:
    return not rule.statement.late and not rule.statement.conditions


def _any_applies(rules: list[_Rule], facts: Facts, *, late: bool) -> bool:
    return any(each.applies(facts, ()) for each in rules if each.statement.late == late)
