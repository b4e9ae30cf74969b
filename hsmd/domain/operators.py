"""Keeps the daemon's own role with who has it: who administers a domain becomes no operator by way of one.

Whoever may set a user's password, make its access keys, or put somebody into a group, could act as that user
or with that group's roles. Where those are the daemon's own, only its operators may: it is about all domains.
Nor can the domain's administrators keep operators from their work: end their tokens, settle from where and
how they may come, or give them a policy that denies.
"""

from collections.abc import Iterable

from hsmd.domain import builtin
from hsmd.domain.core import Call, refusal
from hsmd.store import Tx, groups, policies
from hsmd.store import identity as people
from hsmd.store.policies import GROUP, USER


def check_caller(call: Call) -> None:
    """Raises Error(IAM_ACTION_REFUSED) for who is no operator, or has narrowed its own rights."""
    if call.caller.session_policy or not any(each.operates for each in call.permissions.held):
        raise refusal(call.action or "hsmd:*:*")


def check(call: Call, tx: Tx, kind: str, subject_id: str) -> None:
    """Raises Error(IAM_ACTION_REFUSED) when the user, group or agency operates, and the caller does not."""
    if _operates(tx, kind, subject_id):
        check_caller(call)


def check_domain(call: Call, tx: Tx, domain_id: str) -> None:
    """The same for the rules of a domain, when anybody of it operates."""
    if any(each.scope_id == domain_id for each in policies.given_role(tx, builtin.OPERATOR.id)):
        check_caller(call)


def check_policy(call: Call, tx: Tx, subjects: Iterable[tuple[str, str]]) -> None:
    """The same for what a policy says to these (kinds and ids), which may be to deny."""
    if not _reached(tx).isdisjoint(subjects):
        check_caller(call)


def _reached(tx: Tx) -> set[tuple[str, str]]:
    """Who operates, and every group that such a user is in."""
    given = {(each.subject_kind, each.subject_id) for each in policies.given_role(tx, builtin.OPERATOR.id)}
    users = {each for kind, each in given if kind == USER}
    users |= {user.id for kind, each in given if kind == GROUP for user in groups.members_of(tx, each)}
    together = {(GROUP, group) for user in users for group in groups.groups_of(tx, user)}
    return given | together | {(USER, each) for each in users}


def _operates(tx: Tx, kind: str, subject_id: str) -> bool:
    held = policies.held_by(tx, kind, [subject_id])
    if kind == USER:
        held += policies.held_by(tx, GROUP, groups.groups_of(tx, subject_id))
        if any(each.role == builtin.OPERATOR.display_name for each in people.roles_of(tx, subject_id)):
            return True
    return any(each.role_id == builtin.OPERATOR.id for each in held)
