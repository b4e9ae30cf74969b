"""Agencies: a domain lets the users of another domain act in it, with the roles that it gives the agency."""

import re
import uuid
from dataclasses import dataclass, replace

from hsmd.domain import access, entitlements, operators
from hsmd.domain.core import DAY_MILLIS, Call, Core
from hsmd.domain.identity import Identity, act
from hsmd.errors import (
    AGENCY_REFUSED,
    IAM_EXISTS,
    IAM_INPUT_INVALID,
    IAM_NOT_FOUND,
    IAM_QUOTA_EXCEEDED,
    IDENTITY_REFUSED,
    Error,
)
from hsmd.store import Tx, policies
from hsmd.store import agencies as rows
from hsmd.store import identity as people
from hsmd.store.agencies import Agency
from hsmd.store.identity import Domain, User

AGENCIES_PER_DOMAIN = 50
ASSUME = "iam:agencies:assume"

FOREVER, ONE_DAY = "FOREVER", "ONEDAY"

_NAME = re.compile(r"[^\x00-\x1f\x7f/%@&<>\\]{1,64}")
_DAYS = re.compile(r"[1-9][0-9]{0,3}")
_HOURS_A_DAY = 24
_SESSION_NAME = re.compile(r"[A-Za-z0-9_.@=+-]{1,64}")


@dataclass(frozen=True, slots=True)
class Trust:
    """The domain that may act as an agency: by name, which counts first, or by id."""

    domain_id: str = ""
    domain_name: str = ""


def create(
    call: Call, *, domain_id: str, name: str, trust: Trust, description: str = "", duration: str = ""
) -> Agency:
    """Make an agency in the caller's domain. `duration`: FOREVER, ONEDAY, or a number of days.

    Raises Error(IAM_INPUT_INVALID, IAM_NOT_FOUND, IAM_EXISTS, IAM_QUOTA_EXCEEDED). IAM: CreateAgency.
    """
    if not _NAME.fullmatch(name):
        raise Error(IAM_INPUT_INVALID, name="name", reason="1 to 64 characters without /%@&<>\\ are due")
    now = call.core.clock()
    lasting, expires = _lasting(duration, now)
    with call.change() as tx:
        if domain_id != call.caller.domain_id:
            raise Error(IAM_NOT_FOUND, kind="domain", id=domain_id)
        trusted = _trusted(tx, trust)
        if rows.get_agency_by_name(tx, domain_id, name) is not None:
            raise Error(IAM_EXISTS, kind="agency")
        if len(rows.agencies_of(tx, domain_id)) >= AGENCIES_PER_DOMAIN:
            raise Error(IAM_QUOTA_EXCEEDED, quota=AGENCIES_PER_DOMAIN, kind="agencies")
        agency = Agency(
            id=uuid.uuid4().hex,
            domain_id=domain_id,
            name=name,
            trust_domain_id=trusted.id,
            trust_domain_name=trusted.name,
            description=description,
            duration=lasting,
            created=now,
            expires=expires,
        )
        rows.insert_agency(tx, agency)
        call.resource = f"agency/{agency.id}"
    return agency


def find(call: Call, *, domain_id: str, trust_domain_id: str = "", name: str = "") -> list[Agency]:
    """The agencies of the caller's domain, oldest first. Raises Error(IAM_NOT_FOUND). IAM: ListAgencies."""
    if domain_id != call.caller.domain_id:
        raise Error(IAM_NOT_FOUND, kind="domain", id=domain_id)
    with call.read() as tx:
        found = rows.agencies_of(tx, domain_id)
    return [
        each for each in found if trust_domain_id in ("", each.trust_domain_id) and name in ("", each.name)
    ]


def show(call: Call, agency_id: str) -> Agency:
    """An agency of the caller's domain. Raises Error(IAM_NOT_FOUND). IAM: ShowAgency."""
    call.resource = f"agency/{agency_id}"
    with call.read() as tx:
        return own(call, tx, agency_id)


def update(
    call: Call,
    agency_id: str,
    *,
    trust: Trust,
    description: str | None = None,
    duration: str = "",
) -> Agency:
    """Change who is trusted, the description, or how long from now on; what is not given stays.

    Raises as `create` does. IAM: UpdateAgency.
    """
    call.resource = f"agency/{agency_id}"
    with call.change() as tx:
        agency = own(call, tx, agency_id)
        operators.check(call, tx, policies.AGENCY, agency_id)
        if trust.domain_id or trust.domain_name:
            trusted = _trusted(tx, trust)
            agency = replace(agency, trust_domain_id=trusted.id, trust_domain_name=trusted.name)
        if description is not None:
            agency = replace(agency, description=description)
        if duration:
            lasting, expires = _lasting(duration, call.core.clock())
            agency = replace(agency, duration=lasting, expires=expires)
        rows.update_agency(tx, agency)
    return agency


def delete(call: Call, agency_id: str) -> None:
    """End the agency, its roles, and what was made as it, from the next call on. IAM: DeleteAgency.

    Raises Error(IAM_NOT_FOUND).
    """
    call.resource = f"agency/{agency_id}"
    with call.change() as tx:
        agency = own(call, tx, agency_id)
        operators.check(call, tx, policies.AGENCY, agency_id)
        policies.forget_subject(tx, policies.AGENCY, agency_id, agency.domain_id)
        rows.delete_agency(tx, agency_id)


def own(call: Call, tx: Tx, agency_id: str) -> Agency:
    """The agency, of the caller's domain. Raises Error(IAM_NOT_FOUND)."""
    agency = rows.get_agency(tx, agency_id)
    if agency is None or agency.domain_id != call.caller.domain_id:
        raise Error(IAM_NOT_FOUND, kind="agency", id=agency_id)
    return agency


def assume(call: Call, name: str, domain: Domain, session_name: str = "") -> Identity:
    """Who calls, as that agency of a domain, which is given by id or name.

    Raises Error(AGENCY_REFUSED), the same whether there is no such agency, it is over or it trusts another
    domain, Error(IAM_ACTION_REFUSED) for who may not act as agencies, and what identification raises.
    """
    if session_name and not _SESSION_NAME.fullmatch(session_name):
        raise Error(
            IAM_INPUT_INVALID, name="session_user", reason="1 to 64 letters, digits and _.@=+- are due"
        )
    who = call.identify()
    act(call, who, "", in_domain=True)
    if who.agency_id:
        raise Error(IDENTITY_REFUSED, reason="who acts as an agency can't take on another")
    agency = _trusting(call, name, domain, who)
    access.permit(call, ASSUME, resource=_resource(agency.id) if agency else "")
    if agency is None:
        raise Error(AGENCY_REFUSED)
    call.resource = f"agency/{agency.id}"
    ends = [each for each in (who.ends, agency.expires) if each]
    return replace(
        who,
        bound_project="",
        agency_id=agency.id,
        agency_name=f"{agency.name}/{session_name}" if session_name else agency.name,
        agency_domain=agency.domain_id,
        session_policy="",
        ends=min(ends, default=0),
    )


def assumed(core: Core, agency_id: str, user: User) -> Agency | None:
    """The agency as which the user has acted; None when it may no longer: untrusted, or without the role.

    What the user's policies ask of a call, its address or time, was asked of the one that took the agency on.
    """
    with core.store.read() as tx:
        agency = rows.get_agency(tx, agency_id)
        home = people.get_domain(tx, agency.domain_id) if agency else None
    if agency is None or agency.trust_domain_id != user.domain_id or home is None or not home.is_enabled:
        return None
    rules = entitlements.rules_in_domain(core, user.id, user.domain_id, ASSUME)
    return agency if rules.may_allow(_resource(agency_id)) else None


def _resource(agency_id: str) -> str:
    """The agency as policies name it."""
    return f"/iam/agencies/{agency_id}"


def _trusting(call: Call, name: str, domain: Domain, who: Identity) -> Agency | None:
    """The agency, if there is one of that name that trusts the user's domain, now."""
    with call.read() as tx:
        home = people.get_domain(tx, domain.id) if domain.id else people.get_domain_by_name(tx, domain.name)
        agency = rows.get_agency_by_name(tx, home.id, name) if home and home.is_enabled else None
    if (
        agency is None
        or agency.trust_domain_id != who.user.domain_id
        or (agency.expires is not None and agency.expires <= call.core.clock())
    ):
        return None
    return agency


def _trusted(tx: Tx, trust: Trust) -> Domain:
    found = (
        people.get_domain_by_name(tx, trust.domain_name)
        if trust.domain_name
        else people.get_domain(tx, trust.domain_id)
    )
    if found is None:
        raise Error(IAM_NOT_FOUND, kind="trusted domain", id=trust.domain_name or trust.domain_id)
    return found


def _lasting(duration: str, now: int) -> tuple[str, int | None]:
    """The duration as it is shown, in hours, and when it ends."""
    if duration in ("", FOREVER):
        return FOREVER, None
    if duration != ONE_DAY and not _DAYS.fullmatch(duration):
        raise Error(IAM_INPUT_INVALID, name="duration", reason="FOREVER, ONEDAY or a number of days is due")
    days = 1 if duration == ONE_DAY else int(duration)
    return str(days * _HOURS_A_DAY), now + days * DAY_MILLIS
