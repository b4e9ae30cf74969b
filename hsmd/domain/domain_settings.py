"""What a domain settles for its users: rules for passwords and logins, and from where APIs may be called.

Each is a JSON document in the store, with IAM's names; what a document lacks is at its default. Where
anybody of the domain operates, only operators settle anything: they could be locked out.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar

from hsmd.domain import operators
from hsmd.domain.core import Call, Core
from hsmd.domain.password_rules import PASSWORD_BOUNDS, PasswordPolicy
from hsmd.errors import IAM_INPUT_INVALID, IAM_NOT_FOUND, Error
from hsmd.store import Tx
from hsmd.store import settings as rows

_LONGEST_DESCRIPTION = 255


@dataclass(frozen=True, slots=True)
class LoginPolicy:
    """IAM's login policy, by its names there. What only a console uses is kept, and given back.

    `account_validity_period` in days, 0: without end; the others in minutes.
    """

    account_validity_period: int = 0
    custom_info_for_login: str = ""
    lockout_duration: int = 15
    login_failed_times: int = 5
    period_with_login_failures: int = 15
    session_timeout: int = 60
    show_recent_login_info: bool = False


LOGIN_BOUNDS: dict[str, tuple[int, int]] = {
    "account_validity_period": (0, 240),
    "lockout_duration": (15, 30),
    "login_failed_times": (3, 10),
    "period_with_login_failures": (15, 60),
    "session_timeout": (15, 1440),
}

Policy = TypeVar("Policy", PasswordPolicy, LoginPolicy)


@dataclass(frozen=True, slots=True)
class Allowed:
    """Addresses from which APIs may be called: a network (10.0.0.0/8) or a range (10.0.0.1-10.0.0.9)."""

    addresses: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class ApiAcl:
    """A domain's rule on addresses; both empty: there is none."""

    netmasks: tuple[Allowed, ...] = ()
    ranges: tuple[Allowed, ...] = ()


EVERYWHERE = ApiAcl(ranges=(Allowed("0.0.0.0-255.255.255.255"), Allowed(f"::-{':'.join(['ffff'] * 8)}")))


def password_policy(core: Core, domain_id: str) -> PasswordPolicy:
    """The domain's rules for passwords, from the cache."""
    return _cached(core, domain_id, rows.PASSWORD_POLICY, PasswordPolicy())


def login_policy(core: Core, domain_id: str) -> LoginPolicy:
    """The domain's rules for logins, from the cache; the defaults where there is no such domain."""
    return _cached(core, domain_id, rows.LOGIN_POLICY, LoginPolicy())


def show_password_policy(call: Call, domain_id: str) -> PasswordPolicy:
    """IAM: GET .../password-policy, .../config/security_compliance."""
    _own(call, domain_id)
    return password_policy(call.core, domain_id)


def update_password_policy(call: Call, domain_id: str, changes: Mapping[str, object]) -> PasswordPolicy:
    """What is given changes; it counts for passwords chosen from now on. IAM: PUT .../password-policy."""
    return _update(call, domain_id, rows.PASSWORD_POLICY, PasswordPolicy(), changes, PASSWORD_BOUNDS)


def show_login_policy(call: Call, domain_id: str) -> LoginPolicy:
    """IAM: GET /v3.0/OS-SECURITYPOLICY/domains/{domain_id}/login-policy."""
    _own(call, domain_id)
    return login_policy(call.core, domain_id)


def update_login_policy(call: Call, domain_id: str, changes: Mapping[str, object]) -> LoginPolicy:
    """What is given changes. IAM: PUT /v3.0/OS-SECURITYPOLICY/domains/{domain_id}/login-policy."""
    return _update(call, domain_id, rows.LOGIN_POLICY, LoginPolicy(), changes, LOGIN_BOUNDS)


def show_api_acl(call: Call, domain_id: str) -> ApiAcl:
    """All addresses, where there is no rule. IAM: GET .../api-acl-policy."""
    _own(call, domain_id)
    with call.read() as tx:
        document = rows.setting(tx, domain_id, rows.API_ACL)
    tree = json.loads(document) if document else {}
    acl = ApiAcl(
        tuple(_allowed(each, "address_netmask") for each in tree.get("allow_address_netmasks", ())),
        tuple(_allowed(each, "ip_range") for each in tree.get("allow_ip_ranges", ())),
    )
    return acl if acl.netmasks or acl.ranges else EVERYWHERE


def update_api_acl(call: Call, domain_id: str, acl: ApiAcl) -> ApiAcl:
    """Replace the rule; one without any entry ends it. IAM: PUT .../api-acl-policy."""
    _own(call, domain_id)
    for name, entries, check in (
        ("address_netmask", acl.netmasks, _check_netmask),
        ("ip_range", acl.ranges, _check_range),
    ):
        _check_entries(name, entries, check)
    document = {
        "allow_address_netmasks": [
            {"address_netmask": each.addresses, "description": each.description} for each in acl.netmasks
        ],
        "allow_ip_ranges": [
            {"ip_range": each.addresses, "description": each.description} for each in acl.ranges
        ],
    }
    with call.change() as tx:
        operators.check_domain(call, tx, domain_id)
        rows.put_setting(tx, domain_id, rows.API_ACL, json.dumps(document))
    return acl if acl.netmasks or acl.ranges else EVERYWHERE


def _own(call: Call, domain_id: str) -> None:
    """Another domain looks like one that is not there."""
    call.resource = f"domain/{domain_id}"
    if domain_id != call.caller.domain_id:
        raise Error(IAM_NOT_FOUND, kind="domain", id=domain_id)


def _cached(core: Core, domain_id: str, name: str, default: Policy) -> Policy:
    def load() -> Policy:
        with core.store.read() as tx:
            return _stored(tx, domain_id, name, default)

    return core.people.get(domain_id, name, load, lambda _: (domain_id,))


def _stored(tx: Tx, domain_id: str, name: str, default: Policy) -> Policy:
    document = rows.setting(tx, domain_id, name)
    return replace(default, **json.loads(document)) if document else default


def _update(
    call: Call,
    domain_id: str,
    name: str,
    default: Policy,
    changes: Mapping[str, Any],
    bounds: Mapping[str, tuple[int, int]],
) -> Policy:
    _own(call, domain_id)
    for field, (least, most) in bounds.items():
        if field in changes and not least <= changes[field] <= most:
            raise Error(IAM_INPUT_INVALID, name=field, reason=f"{least} to {most} is due")
    known = {each.name for each in fields(default)}
    with call.change() as tx:
        operators.check_domain(call, tx, domain_id)
        policy = replace(
            _stored(tx, domain_id, name, default), **{k: changes[k] for k in known & set(changes)}
        )
        rows.put_setting(tx, domain_id, name, json.dumps(asdict(policy)))
    return policy


def _allowed(entry: Mapping[str, str], name: str) -> Allowed:
    return Allowed(entry[name], entry.get("description", ""))


def _check_entries(name: str, entries: Iterable[Allowed], check: Callable[[str], None]) -> None:
    for each in entries:
        try:
            check(each.addresses)
        except ValueError as error:
            raise Error(IAM_INPUT_INVALID, name=name, reason=str(error).rstrip(".")) from error
        if len(each.description) > _LONGEST_DESCRIPTION or "\0" in each.description:
            raise Error(
                IAM_INPUT_INVALID, name="description", reason=f"at most {_LONGEST_DESCRIPTION} are due"
            )


def _check_netmask(text: str) -> None:
    if "%" in text or len(text) > _LONGEST_DESCRIPTION:
        raise ValueError("a network like 192.168.0.0/24 is due")
    ip_network(text, strict=False)


def _check_range(text: str) -> None:
    due = "a range like 10.0.0.1-10.0.0.9 is due"
    first, hyphen, last = text.partition("-")
    if not hyphen or "%" in text or len(text) > _LONGEST_DESCRIPTION:
        raise ValueError(due)
    begin, end = ip_address(first), ip_address(last)
    if begin.version != end.version or int(begin) > int(end):
        raise ValueError(due)
