"""Users of a domain: made, looked at, changed and removed by who administers it; and their own passwords.

A user of another domain looks like one that is not there. A new password, and being disabled, end the tokens
issued before; being removed ends everything. All of it counts from the next call on, on every worker.
"""

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from hsmd.domain import bearers, domain_settings, logins, operators, password_rules, passwords, sources
from hsmd.domain.attempts import named_when_refused
from hsmd.domain.core import Call
from hsmd.errors import (
    IAM_EXISTS,
    IAM_INPUT_INVALID,
    IAM_NOT_FOUND,
    IAM_PROTECTED,
    IAM_QUOTA_EXCEEDED,
    PASSWORD_REFUSED,
    TOKEN_REQUEST_REFUSED,
    Error,
)
from hsmd.store import Tx, policies
from hsmd.store import identity as rows
from hsmd.store.identity import Domain, User

ACCESS_MODES = ("default", "programmatic", "console")

_UNKNOWN_USER = "unknown user"
_MINUTE_MILLIS = 60_000
_NAME = re.compile(r"[A-Za-z_.-][A-Za-z0-9 _.-]{0,63}")
_EMAIL = re.compile(r"[^@\s\x00-\x1f\x7f]{1,64}@[A-Za-z0-9.-]{1,190}")
_PHONE = re.compile(r"[0-9]{1,32}")
_AREACODE = re.compile(r"[0-9]{1,8}")
_MOBILE = re.compile(r"([0-9]{1,8})-([0-9]{1,32})")
_EXPIRES = re.compile(r"(lt|lte|gt|gte|eq|neq):(\S{1,40})")

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "lt": int.__lt__,
    "lte": int.__le__,
    "gt": int.__gt__,
    "gte": int.__ge__,
    "eq": int.__eq__,
    "neq": int.__ne__,
}


@dataclass(frozen=True, slots=True)
class Described:
    """A user and what else is told of it. Times in ms since 1970; None: never."""

    user: User
    is_owner: bool
    expires: int | None
    last_login: int | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """What a user is given, and what changes of it: None leaves it as it is."""

    name: str | None = None
    password: str | None = None
    enabled: bool | None = None
    password_reset: bool | None = None
    description: str | None = None
    email: str | None = None
    areacode: str | None = None
    phone: str | None = None
    access_mode: str | None = None
    xuser_id: str | None = None
    xuser_type: str | None = None

    def __repr__(self) -> str:
        return f"Profile(name={self.name!r}, enabled={self.enabled})"


# What is kept as it was given.
_PLAIN = ("description", "email", "areacode", "phone", "access_mode", "xuser_id", "xuser_type")


def create(call: Call, domain_id: str, profile: Profile) -> Described:
    """A user of the caller's domain. Without a password it can't log in by one.

    Raises Error(IAM_INPUT_INVALID, PASSWORD_REFUSED, IAM_EXISTS, IAM_QUOTA_EXCEEDED). IAM: POST /v3/users.
    """
    own = call.caller.domain_id
    check_domain(call, domain_id)
    _check(profile)
    user = new_user(call, own, profile)
    call.resource = f"user/{user.id}"
    with call.change() as tx:
        quota = call.core.limits.users_per_domain
        if rows.count_users(tx, own) >= quota:
            raise Error(IAM_QUOTA_EXCEEDED, quota=quota, kind="users")
        if rows.get_user_by_name(tx, own, user.name) is not None:
            raise Error(IAM_EXISTS, kind="user")
        rows.insert_user(tx, user)
        return _described(call, tx, user)


def new_user(call: Call, domain_id: str, profile: Profile) -> User:
    """The row of a user to come, its password held against the domain's rules."""
    name, password, now = profile.name or "", profile.password or "", call.core.clock()
    if not _NAME.fullmatch(name):
        raise Error(
            IAM_INPUT_INVALID,
            name="name",
            reason="1 to 64 letters, digits, spaces and -_. are due, with no digit or space first",
        )
    if password:
        rules = domain_settings.password_policy(call.core, domain_id)
        password_rules.check(rules, password, user=name, email=profile.email or "", phone=profile.phone or "")
    return User(
        uuid.uuid4().hex,
        domain_id,
        name,
        passwords.hash_password(password) if password else "",
        enabled=profile.enabled is not False,
        created=now,
        password_changed=now if password else None,
        password_reset=bool(password) and profile.password_reset is not False,
        **{field: getattr(profile, field) for field in _PLAIN},
    )


def show(call: Call, user_id: str) -> Described:
    """One user; everybody may see oneself. IAM: GET /v3/users/{user_id}."""
    allow_oneself(call, user_id)
    with call.read() as tx:
        user = existing(call, tx, user_id)
        return replace(_described(call, tx, user), last_login=logins.last_login(tx, user))


def find(
    call: Call, *, domain_id: str = "", name: str = "", enabled: bool | None = None, expires: str = ""
) -> list[Described]:
    """The domain's users that fit, by name. `expires`: like "lt:2016-12-08T22:02:00Z". IAM: GET /v3/users."""
    expires_as = _expiry_filter(expires)
    if domain_id not in ("", call.caller.domain_id):
        return []
    with call.read() as tx:
        described = _describe_all(call, tx, rows.users_of(tx, call.caller.domain_id))
    return [
        each
        for each in described
        if name in ("", each.user.name) and enabled in (None, each.user.enabled) and expires_as(each.expires)
    ]


def update(call: Call, user_id: str, domain_id: str, changes: Profile) -> Described:
    """Change what is given. A new password and disabling end the user's tokens; both unlock it or need to.

    Raises as `create` does; Error(IAM_PROTECTED) for disabling oneself or the domain's owner.
    IAM: PUT /v3.0/OS-USER/users/{user_id}.
    """
    call.resource = f"user/{user_id}"
    check_domain(call, domain_id)
    _check(changes)
    with call.read() as tx:
        before = _changeable(call, tx, user_id)
    hashed = _chosen(call, before, changes) if changes.password is not None else None
    with call.change() as tx:
        user = _changeable(call, tx, user_id)
        if changes.enabled is False:
            _check_dispensable(call, tx, user, "disabled")
        user = _with_profile(call, tx, user, changes)
        if hashed is not None:
            user = _with_password(call, user, hashed, reset=changes.password_reset is not False)
        if changes.enabled is False:
            user = replace(user, tokens_not_before=bearers.ending(call.core))
        if changes.enabled or hashed is not None:
            logins.unlock(tx, user)
        rows.update_user(tx, user)
        return _described(call, tx, user)


def delete(call: Call, user_id: str) -> None:
    """Remove a user with all that is the user's. Raises Error(IAM_PROTECTED) for oneself and the owner.

    IAM: DELETE /v3/users/{user_id}.
    """
    call.resource = f"user/{user_id}"
    with call.change() as tx:
        user = _changeable(call, tx, user_id)
        _check_dispensable(call, tx, user, "deleted")
        policies.forget_subject(tx, policies.USER, user.id, user.domain_id)
        logins.forget(tx, user)
        rows.delete_user(tx, user.id)


def change_password(call: Call, user_id: str, original: str, password: str) -> None:
    """A user's own choice of another password, by the one before, also when that has expired.

    Raises Error(TOKEN_REQUEST_REFUSED) for a wrong user or password, guarded as a login is, Error(USER_IDLE),
    and Error(PASSWORD_REFUSED) for one that the rules refuse. IAM: POST /v3/users/{user_id}/password.
    """
    with call.read() as tx:
        known = rows.get_user(tx, user_id)
    call.resource = f"user/{known.id}" if known else _UNKNOWN_USER
    home = known.domain_id if known else ""
    with logins.guarded(call, known, home, ("user id", user_id)):
        user = logins.check_right(known, original)
        logins.check_not_idle(call, user)
        with call.read() as tx:
            domain = rows.get_domain(tx, user.domain_id)
        if domain is None or not domain.is_enabled:
            raise Error(TOKEN_REQUEST_REFUSED)
    sources.check(call, user.domain_id)
    call.caller = call.caller._replace(
        kind="password", user_id=user.id, user_name=user.name, domain_id=user.domain_id
    )
    hashed = _chosen(call, user, Profile(password=password), by_user=True)
    with named_when_refused(call, call.resource), call.change() as tx:
        now = rows.get_user(tx, user.id)
        if now is None or not now.enabled or now.password_hash != user.password_hash:
            raise Error(TOKEN_REQUEST_REFUSED)  # somebody was faster
        rows.update_user(tx, _with_password(call, now, hashed, reset=False))


def update_information(call: Call, user_id: str, email: str | None, mobile: str | None) -> None:
    """The caller's own address and telephone, the latter like 0086-12345678901.

    IAM: PUT /v3.0/OS-USER/users/{user_id}/info.
    """
    call.resource = f"user/{user_id}"
    if user_id != call.caller.user_id:
        raise Error(IAM_NOT_FOUND, kind="user", id=user_id)
    areacode = phone = None
    if mobile is not None:
        match = _MOBILE.fullmatch(mobile) if mobile else None
        if mobile and not match:
            raise Error(IAM_INPUT_INVALID, name="mobile", reason="a number like 0086-12345678901 is due")
        areacode, phone = (match[1], match[2]) if match else ("", "")
    changes = Profile(email=email, areacode=areacode, phone=phone)
    _check(changes)
    with call.change() as tx:
        rows.update_user(tx, _with_profile(call, tx, existing(call, tx, user_id), changes))


def existing(call: Call, tx: Tx, user_id: str) -> User:
    """The user of the caller's domain. Raises Error(IAM_NOT_FOUND), also for another domain's."""
    user = rows.get_user(tx, user_id)
    if user is None or user.domain_id != call.caller.domain_id:
        raise Error(IAM_NOT_FOUND, kind="user", id=user_id)
    return user


def _changeable(call: Call, tx: Tx, user_id: str) -> User:
    """The same, if the caller may change it: an operator is for operators alone."""
    user = existing(call, tx, user_id)
    operators.check(call, tx, policies.USER, user.id)
    return user


def describe(call: Call, tx: Tx, users: Sequence[User]) -> list[Described]:
    """The users with what else is told of them."""
    return _describe_all(call, tx, users)


def allow_oneself(call: Call, user_id: str) -> None:
    """Let the call through when it is about the caller, who is no agency; `resource` names the user."""
    call.resource = f"user/{user_id}"
    if user_id == call.caller.user_id and not call.caller.is_agency:
        call.granted = True
    call.check_allowed()


def check_domain(call: Call, domain_id: str) -> None:
    """Raises Error(IAM_NOT_FOUND) for a domain that is named and is not the caller's."""
    if domain_id not in ("", call.caller.domain_id):
        raise Error(IAM_NOT_FOUND, kind="domain", id=domain_id)


def _check(profile: Profile) -> None:
    for name, value, pattern, due in (
        ("email", profile.email, _EMAIL, "an address like ann@example.com is due"),
        ("areacode", profile.areacode, _AREACODE, "digits are due"),
        ("phone", profile.phone, _PHONE, "1 to 32 digits are due"),
    ):
        if value and not pattern.fullmatch(value):
            raise Error(IAM_INPUT_INVALID, name=name, reason=due)
    for first, second in (("areacode", "phone"), ("xuser_id", "xuser_type")):
        if bool(getattr(profile, first)) != bool(getattr(profile, second)):
            raise Error(IAM_INPUT_INVALID, name=first, reason=f"it goes together with {second}")
    if profile.access_mode and profile.access_mode not in ACCESS_MODES:
        raise Error(IAM_INPUT_INVALID, name="access_mode", reason=f"of {', '.join(ACCESS_MODES)} one is due")


def _with_profile(call: Call, tx: Tx, user: User, changes: Profile) -> User:
    given = {name: value for name in _PLAIN if (value := getattr(changes, name)) is not None}
    if changes.enabled is not None:
        given["enabled"] = changes.enabled
    if changes.password_reset is not None:
        given["password_reset"] = changes.password_reset
    if changes.name is not None and changes.name != user.name:
        if not _NAME.fullmatch(changes.name):
            raise Error(
                IAM_INPUT_INVALID, name="name", reason="1 to 64 letters, digits, spaces and -_. are due"
            )
        if rows.get_user_by_name(tx, user.domain_id, changes.name) is not None:
            raise Error(IAM_EXISTS, kind="user")
        given["name"] = changes.name
    return replace(user, updated=call.core.clock(), **given)


def _chosen(call: Call, user: User, changes: Profile, *, by_user: bool = False) -> str:
    """The hash of the new password, held against the domain's rules and those before it."""
    rules, password = domain_settings.password_policy(call.core, user.domain_id), changes.password or ""
    password_rules.check(
        rules,
        password,
        user=changes.name or user.name,
        email=changes.email or user.email or "",
        phone=changes.phone or user.phone or "",
    )
    wait = (user.password_changed or 0) + rules.minimum_password_age * _MINUTE_MILLIS - call.core.clock()
    if by_user and rules.minimum_password_age and wait > 0:
        minutes = wait // _MINUTE_MILLIS + 1
        raise Error(PASSWORD_REFUSED, reason=f"it may be changed again in {minutes} minutes")
    before = [user.password_hash, *(user.password_history or "").splitlines()]
    for stored in before[: max(rules.number_of_recent_passwords_disallowed, 1)]:
        if stored and passwords.is_right(stored, password, changing=True):
            raise Error(PASSWORD_REFUSED, reason="it was in use before")
    return passwords.hash_password(password)


def _with_password(call: Call, user: User, hashed: str, *, reset: bool) -> User:
    """The user with another password; tokens issued until now are void."""
    now = call.core.clock()
    _least, most = password_rules.PASSWORD_BOUNDS["number_of_recent_passwords_disallowed"]
    before = [user.password_hash, *(user.password_history or "").splitlines()]
    return replace(
        user,
        password_hash=hashed,
        password_history="\n".join([each for each in before if each][:most]),
        password_changed=now,
        password_reset=reset,
        tokens_not_before=bearers.ending(call.core),
        updated=now,
    )


def _check_dispensable(call: Call, tx: Tx, user: User, done: str) -> None:
    """Whoever administers a domain must not be able to lock everybody out of it by one call."""
    if user.id == call.caller.user_id:
        raise Error(IAM_PROTECTED, reason=f"one's own account can't be {done}")
    if _owner(tx, user.domain_id) == user.id:
        raise Error(IAM_PROTECTED, reason=f"the account administrator can't be {done}")


def _owner(tx: Tx, domain_id: str) -> str | None:
    domain: Domain | None = rows.get_domain(tx, domain_id)
    return domain.owner_id if domain else None


def _described(call: Call, tx: Tx, user: User) -> Described:
    return _describe_all(call, tx, [user])[0]


def _describe_all(call: Call, tx: Tx, users: Sequence[User]) -> list[Described]:
    owner = _owner(tx, call.caller.domain_id)
    return [Described(each, each.id == owner, logins.expiry(call, each)) for each in users]


def _expiry_filter(text: str) -> Callable[[int | None], bool]:
    """Whether an expiry fits; one that never comes fits no comparison but neq."""
    if not text:
        return lambda _expires: True
    match = _EXPIRES.fullmatch(text)
    try:
        time = datetime.fromisoformat(match[2]) if match else None
    except ValueError:
        time = None
    if match is None or time is None:
        raise Error(
            IAM_INPUT_INVALID, name="password_expires_at", reason="one like lt:2016-12-08T22:02:00Z is due"
        )
    millis = int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
    compare, never = _COMPARE[match[1]], match[1] == "neq"
    return lambda expires: never if expires is None else compare(expires, millis)
