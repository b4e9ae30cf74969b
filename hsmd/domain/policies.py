"""The domain's own policies, and the built-in roles beside them; what a policy would answer, and why.

A policy of another domain looks like one that is not there.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hsmd.domain import access, builtin, documents, entitlements, operators
from hsmd.domain.conditions import Told, fact_name, is_key
from hsmd.domain.core import Call, in_domain
from hsmd.domain.documents import DocumentError
from hsmd.domain.facts import moment, of_key, of_tags, principal_type
from hsmd.domain.permissions import Answer, Permissions, Reason
from hsmd.errors import IAM_EXISTS, IAM_INPUT_INVALID, IAM_NOT_FOUND, IAM_QUOTA_EXCEEDED, Error
from hsmd.store import Tx, agencies, keys, tags
from hsmd.store import identity as people
from hsmd.store import policies as rows
from hsmd.store.identity import Project
from hsmd.store.policies import Policy

POLICIES_PER_DOMAIN = 200
_FACT_LENGTH = 255  # as the value of a tag
TYPES = (builtin.ON_DOMAINS, builtin.ON_PROJECTS)

_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
_ACTION = re.compile(r"[a-z]{1,32}(:[A-Za-z0-9_-]{1,64}){2}")
_URN = re.compile(r"(?i:kms):([^:]{1,64}):([0-9a-f]{32}):(?i:keyid):([0-9a-f-]{36})")

Role = builtin.Role | Policy


@dataclass(frozen=True, slots=True)
class Draft:
    """What is given of a policy; None leaves it as it is."""

    display_name: str | None = None
    type: str | None = None
    description: str | None = None
    description_cn: str | None = None
    document: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Whether that user or agency (one id is "") may do this, in a project or the domain (""), to a resource.

    `facts` are what is known of the call, by condition key.
    """

    user_id: str
    agency_id: str
    project: str
    action: str
    resource: str
    facts: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, in a word and in a sentence, and what each statement on the action did to it."""

    answer: Answer
    why: str
    reasons: list[Reason]


def create(call: Call, draft: Draft) -> Policy:
    """A new policy of the caller's domain.

    Raises Error(IAM_INPUT_INVALID) naming the place, Error(IAM_EXISTS, IAM_QUOTA_EXCEEDED). IAM:
    CreateCloudServiceCustomPolicy, CreateAgencyCustomPolicy.
    """
    now = call.core.clock()
    blank = Policy(uuid.uuid4().hex, call.caller.domain_id, "", "", "", "", "", "", now, now)
    policy = _drafted(blank, draft)
    call.resource = f"policy/{policy.id}"
    with call.change() as tx:
        if rows.count_policies(tx, policy.domain_id) >= POLICIES_PER_DOMAIN:
            raise Error(IAM_QUOTA_EXCEEDED, quota=POLICIES_PER_DOMAIN, kind="policies")
        _check_free(tx, policy)
        policy = replace(policy, name=f"custom_{policy.domain_id}_{policy.id[:8]}")
        rows.insert_policy(tx, policy)
    return policy


def update(call: Call, policy_id: str, draft: Draft) -> Policy:
    """Change what is given. Raises as `create` does, Error(IAM_NOT_FOUND). IAM: Update...CustomPolicy."""
    with call.change() as tx:
        policy = _drafted(existing(call, tx, policy_id), draft)
        _check_free(tx, policy)
        given = rows.given_role(tx, policy.id)
        operators.check_policy(call, tx, [(each.subject_kind, each.subject_id) for each in given])
        policy = replace(policy, updated=call.core.clock())
        rows.update_policy(tx, policy)
    return policy


def delete(call: Call, policy_id: str) -> None:
    """Remove a policy; whoever has it loses it. IAM: DeleteCustomPolicy."""
    with call.change() as tx:
        rows.delete_policy(tx, existing(call, tx, policy_id).id)


def find(call: Call) -> list[Policy]:
    """The domain's policies, oldest first. IAM: ListCustomPolicies."""
    with call.read() as tx:
        return rows.policies_of(tx, call.caller.domain_id)


def show(call: Call, policy_id: str) -> tuple[Policy, int]:
    """A policy of the domain, and how often it is given. IAM: ShowCustomPolicy."""
    with call.read() as tx:
        policy = existing(call, tx, policy_id)
        return policy, rows.count_given(tx, policy.id)


def existing(call: Call, tx: Tx, policy_id: str) -> Policy:
    """The policy of the caller's domain. Raises Error(IAM_NOT_FOUND)."""
    call.resource = f"policy/{policy_id}"
    policy = rows.get_policy(tx, policy_id)
    if policy is None or policy.domain_id != call.caller.domain_id:
        raise Error(IAM_NOT_FOUND, kind="policy", id=policy_id)
    return policy


def role(call: Call, tx: Tx, role_id: str) -> Role:
    """A built-in role or a policy of the domain. Raises Error(IAM_NOT_FOUND)."""
    found = builtin.BY_ID.get(role_id)
    if found is not None:
        return found
    policy = rows.get_policy(tx, role_id)
    if policy is None or policy.domain_id != call.caller.domain_id:
        raise Error(IAM_NOT_FOUND, kind="role", id=role_id)
    return policy


def show_role(call: Call, role_id: str) -> Role:
    """The same for a caller. IAM: KeystoneShowPermission."""
    with call.read() as tx:
        return role(call, tx, role_id)


def find_roles(call: Call, domain_id: str) -> list[Role]:
    """The built-in roles, or with its id the policies of the domain. IAM: KeystoneListPermissions."""
    if not domain_id:
        return list(builtin.ROLES)
    return [*find(call)] if domain_id == call.caller.domain_id else []


def test(call: Call, question: Question) -> Verdict:
    """What the answer would be, and why: by the same engine, and nothing is done.

    Raises Error(IAM_NOT_FOUND) for a user, agency or project of another domain, Error(IAM_INPUT_INVALID).
    """
    if not _ACTION.fullmatch(question.action):
        raise Error(IAM_INPUT_INVALID, name="action", reason="service:type:operation is due")
    with call.read() as tx:
        permissions, facts = _asked_of(call, tx, question)
        resource = ""
        if question.resource:
            urn, of_key = _resource(call, tx, question.resource)
            resource, facts = urn, {**facts, **of_key}
    facts = {**facts, **_given_facts(question.facts)}
    rules = permissions.looked_up(question.action)
    return _verdict(rules.with_key(facts, resource), list(rules.explain(facts, resource)))


def _drafted(policy: Policy, draft: Draft) -> Policy:
    given = {
        name: value
        for name in ("display_name", "type", "description", "description_cn", "document")
        if (value := getattr(draft, name)) is not None
    }
    policy = replace(policy, **given)
    if not _NAME.fullmatch(policy.display_name):
        reason = "1 to 128 printable characters are due"
        raise Error(IAM_INPUT_INVALID, name="role.display_name", reason=reason)
    if policy.type not in TYPES:
        raise Error(IAM_INPUT_INVALID, name="role.type", reason="AX or XA is due")
    try:
        return replace(policy, document=documents.written(policy.document))
    except DocumentError as error:
        place = "role.policy." + error.place if error.place else "role.policy"
        raise Error(IAM_INPUT_INVALID, name=place, reason=error.reason) from error


def _check_free(tx: Tx, policy: Policy) -> None:
    present = rows.get_policy_by_display_name(tx, policy.domain_id, policy.display_name)
    if policy.display_name in builtin.BY_NAME or (present is not None and present.id != policy.id):
        raise Error(IAM_EXISTS, kind="policy")


def _asked_of(call: Call, tx: Tx, question: Question) -> tuple[Permissions, Told]:
    """What counts for whom the question is about, and what is known of it."""
    own = call.caller.domain_id
    if bool(question.user_id) == bool(question.agency_id):
        raise Error(IAM_INPUT_INVALID, name="user_id", reason="a user or an agency is due")
    name = _name_of(tx, own, question)
    project = _project(tx, own, question.project)
    kind, who = (rows.USER, question.user_id) if question.user_id else (rows.AGENCY, question.agency_id)
    if project is None or in_domain(question.action):
        permissions = entitlements.in_domain(call.core, kind, who, own)
    else:
        permissions = entitlements.in_project(call.core, kind, who, project.id)
    known = {
        "g:userid": who,
        "g:username": name,
        "g:domainid": own,
        "g:domainname": entitlements.domain_name(call.core, own),
        "g:projectid": project.id if project else "",
        "g:projectname": project.name if project else "",
        "g:principaltype": principal_type(is_agency=kind == rows.AGENCY),
        "g:currenttime": moment(call.core.clock()),
        "g:mfapresent": "false",
    }
    return permissions, {key: (value,) for key, value in known.items() if value}


def _name_of(tx: Tx, domain_id: str, question: Question) -> str:
    if question.user_id:
        user = people.get_user(tx, question.user_id)
        if user is None or user.domain_id != domain_id:
            raise Error(IAM_NOT_FOUND, kind="user", id=question.user_id)
        return user.name
    agency = agencies.get_agency(tx, question.agency_id)
    if agency is None or agency.domain_id != domain_id:
        raise Error(IAM_NOT_FOUND, kind="agency", id=question.agency_id)
    return agency.name


def _project(tx: Tx, domain_id: str, reference: str) -> Project | None:
    """The domain's project of that id or name; None for ""."""
    if not reference:
        return None
    for each in people.find_projects(tx, domain_id):
        if reference in (each.id, each.name):
            return each
    raise Error(IAM_NOT_FOUND, kind="project", id=reference)


def _resource(call: Call, tx: Tx, text: str) -> tuple[str, Told]:
    """The URN, and what is known of a key of the domain that it names."""
    match = _URN.fullmatch(text)
    key_id = match[3] if match else text
    if not access.is_key_id(key_id):
        reason = "KMS:REGION:DOMAIN:KeyId:ID or a key id is due"
        raise Error(IAM_INPUT_INVALID, name="resource", reason=reason)
    region, domain_id = (match[1], match[2]) if match else (call.core.region, call.caller.domain_id)
    row = keys.get_key(tx, key_id)
    facts: Told = {}
    if row is not None and row.domain_id == call.caller.domain_id:
        facts = {**of_key(row), **of_tags(tags.tags_of(tx, row.id))}
    return access.urn(region, domain_id, key_id), facts


def _given_facts(given: Mapping[str, Sequence[str]]) -> Told:
    for key, values in given.items():
        if not is_key(key):
            raise Error(IAM_INPUT_INVALID, name="context", reason=f"{key!r} is no condition key")
        if any(len(value) > _FACT_LENGTH for value in values):
            reason = f"at most {_FACT_LENGTH} characters are due"
            raise Error(IAM_INPUT_INVALID, name="context", reason=reason)
    return {fact_name(key): tuple(values) for key, values in given.items()}


def _verdict(answer: Answer, reasons: list[Reason]) -> Verdict:
    if answer is Answer.SILENT:
        why = "no policy allows it" if reasons else "no policy says anything of it"
        return Verdict(answer, why, reasons)
    deciding = next(each for each in reasons if each.applies)  # a denial stands first
    word = "allowed" if deciding.statement.allows else "denied"
    where = f"statement {deciding.statement.index} of {deciding.held.name}, through {deciding.held.through}"
    return Verdict(answer, f"{word} by {where}", reasons)
