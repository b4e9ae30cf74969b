"""Guards every place where a password is shown: wrong ones lock the account, as its domain has settled.

Counted in the store, for all workers and over a restart. Whoever is claimed is counted, known or not: what
an unknown user would be told is what a known one is told.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from hsmd.domain import domain_settings, passwords
from hsmd.domain.attempts import throttled
from hsmd.domain.core import DAY_MILLIS, Call
from hsmd.domain.domain_settings import LoginPolicy
from hsmd.errors import ACCOUNT_LOCKED, PASSWORD_EXPIRED, TOKEN_REQUEST_REFUSED, USER_IDLE, Error
from hsmd.store import Tx, logins
from hsmd.store.identity import User
from hsmd.store.logins import Logins

_MINUTE_MILLIS = 60_000
_LONGEST_MILLIS = 60 * _MINUTE_MILLIS  # that a failure can count for, by any policy
_NOTED_MILLIS = 60 * _MINUTE_MILLIS  # a login is noted once in this time

log = logging.getLogger(__name__)


def subject(user: User | None, *claim: str) -> str:
    """What failures are counted for: a known user however named, else what was claimed."""
    parts = ("user", user.id) if user else claim
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@contextmanager
def guarded(call: Call, user: User | None, domain_id: str, claim: tuple[str, ...]) -> Iterator[None]:
    """Refuse the block while the account is locked; count it when it raises Error(TOKEN_REQUEST_REFUSED).

    `domain_id` is the claimed domain's, "" for an unknown one. `claim` spells who is claimed. Sources are
    slowed down besides. Raises Error(ACCOUNT_LOCKED, RATE_EXCEEDED).
    """
    policy = domain_settings.login_policy(call.core, domain_id)
    name = subject(user, *(("domain id", domain_id, *claim) if domain_id else claim))
    with call.read() as tx:
        known = logins.get_logins(tx, name)
    left = 0 if known is None else known.until - call.core.clock()
    if left > 0:
        seconds = left // 1000 + 1
        raise Error(ACCOUNT_LOCKED, retry_after=seconds, seconds=seconds)
    try:
        with throttled(call, "password", *claim, counted=TOKEN_REQUEST_REFUSED):
            yield
    except Error as error:
        if error.fault is TOKEN_REQUEST_REFUSED:
            _note(call, name, policy)
        raise
    _note_success(call, name, known)


def check_right(user: User | None, password: str) -> User:
    """The user, whose password it is. Raises Error(TOKEN_REQUEST_REFUSED, RATE_EXCEEDED), in one time."""
    right = passwords.is_right(user.password_hash or "" if user and user.enabled else "", password)
    if user is None or not right:
        raise Error(TOKEN_REQUEST_REFUSED)
    return user


def check_valid(call: Call, user: User) -> None:
    """Raises Error for one whose password was right: PASSWORD_EXPIRED, or USER_IDLE after too long away."""
    check_not_idle(call, user)
    end = expiry(call, user)
    if end is not None and end <= call.core.clock():
        raise Error(PASSWORD_EXPIRED, reason="it has expired; choose another one, by this one")


def check_not_idle(call: Call, user: User) -> None:
    """Raises Error(USER_IDLE) for one who showed no password for longer than its domain allows."""
    now = call.core.clock()
    days = domain_settings.login_policy(call.core, user.domain_id).account_validity_period
    if not days:
        return
    with call.read() as tx:
        known = logins.get_logins(tx, subject(user))
    seen = max((known.succeeded if known else 0) or 0, user.updated or 0, user.created or 0)
    if seen and now - seen > days * DAY_MILLIS:
        raise Error(USER_IDLE, user=user.name, days=days)


def expiry(call: Call, user: User) -> int | None:
    """When the user's password expires, in ms since 1970; None where it does not."""
    days = domain_settings.password_policy(call.core, user.domain_id).password_validity_period
    if not days or user.password_changed is None or not user.password_hash:
        return None
    return user.password_changed + days * DAY_MILLIS


def last_login(tx: Tx, user: User) -> int | None:
    """When the user last showed its password, to the hour; None: never."""
    known = logins.get_logins(tx, subject(user))
    return known.succeeded if known else None


def unlock(tx: Tx, user: User) -> None:
    """Let the user try again."""
    known = logins.get_logins(tx, subject(user))
    if known is not None:
        logins.put_logins(tx, replace(known, failures=0, until=0))


def forget(tx: Tx, user: User) -> None:
    """Drop what is known of the user's logins."""
    logins.delete_logins(tx, subject(user))


def _note(call: Call, name: str, policy: LoginPolicy) -> None:
    now = call.core.clock()
    try:
        with call.core.store.write() as tx:
            known = logins.get_logins(tx, name) or Logins(name)
            if now - known.since > policy.period_with_login_failures * _MINUTE_MILLIS:
                known = replace(known, since=now, failures=0)
            known = replace(known, failures=known.failures + 1, last=now)
            if known.failures >= policy.login_failed_times:
                until = now + policy.lockout_duration * _MINUTE_MILLIS
                known = replace(known, failures=0, since=until, until=until)
            logins.forget_failures(tx, now - _LONGEST_MILLIS)
            logins.put_logins(tx, known)
    except Error as error:  # the process's own count still slows it down
        log.warning("a failed login can't be counted: %s", error)


def _note_success(call: Call, name: str, known: Logins | None) -> None:
    now = call.core.clock()
    if known and not known.failures and now - (known.succeeded or 0) < _NOTED_MILLIS:
        return
    try:
        with call.core.store.write() as tx:
            logins.put_logins(tx, replace(known or Logins(name), failures=0, until=0, succeeded=now))
    except Error as error:  # what it is for, can wait
        log.warning("a login can't be noted: %s", error)
