"""Who administers a domain: the group "admin" that it begins with, and whom an operator puts into it."""

import uuid

from hsmd.domain import builtin
from hsmd.store import Tx, groups, policies
from hsmd.store.groups import Group, Membership
from hsmd.store.policies import Assignment

GROUP = "admin"


def appoint(tx: Tx, domain_id: str, user_id: str, now: int, *, operates: bool = False) -> None:
    """The user is in the group from now on, and the group has what it needs, made or given again.

    `operates` gives the group the daemon's own role, which is about all domains. `now` in ms since 1970 UTC.
    """
    group = groups.get_group_by_name(tx, domain_id, GROUP)
    if group is None:
        group = Group(uuid.uuid4().hex, domain_id, GROUP, "Who administers the domain.", now)
        groups.insert_group(tx, group)
    groups.add_member(tx, Membership(group.id, user_id))
    for role in (builtin.SECURITY_ADMINISTRATOR, *([builtin.OPERATOR] if operates else [])):
        policies.assign(tx, Assignment(policies.GROUP, group.id, policies.DOMAIN, domain_id, role.id))
