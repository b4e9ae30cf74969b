"""Initialisation: the token's root, sealing and credential keys, the store, the first identity."""

import secrets
import string
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from hsmd import store as stores
from hsmd.algorithms import ACCESS_KEY
from hsmd.audit.records import of_call
from hsmd.caller import Caller
from hsmd.config import ConfigError, Settings
from hsmd.daemon import notary
from hsmd.daemon.wiring import Pin, now_millis, open_audit, open_store, open_token
from hsmd.domain import administrators, builtin, passwords
from hsmd.domain.core import AUDIT_KEY_LABEL, CREDENTIAL_KEY_LABEL, SEALING_KEY_LABEL
from hsmd.errors import Error
from hsmd.hsm import Token
from hsmd.keyring import with_token_key
from hsmd.store import Store, Tx, roots
from hsmd.store import identity as rows
from hsmd.store.access_keys import AccessKey, insert_access_key
from hsmd.store.certificates import CertificateBinding, insert_binding
from hsmd.store.identity import Domain, Project, RoleAssignment, User

_FOREIGN = "the store was sealed by another token: a wrong token, or a wrong store"
_AUDIT_SECONDS = 5.0
_AUDIT_PAUSE = 0.1
_SECRET_CHARACTERS = string.ascii_letters + string.digits
_SECRET_LENGTH = ACCESS_KEY.bits // 8


@dataclass(frozen=True, slots=True)
class Initialised:
    """The first identity. The secret key is shown here once and can't be had again."""

    domain_id: str
    project_id: str
    user_id: str
    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        return f"Initialised(user_id={self.user_id!r}, access_key={self.access_key!r})"


def initialise(
    settings: Settings,
    *,
    pin: str,
    domain: str,
    project: str,
    user: str,
    password: str,
    roles: Sequence[str],
    certificate_names: Sequence[str],
) -> Initialised:
    """Make what is missing of the token's keys and the store, then the first domain, project and user.

    Repeatable after a crash: keys that stand are kept, the identity is made in one transaction. Raises
    ConfigError when the domain exists, when a role is unknown, or when the store belongs to another token.
    """
    if unknown := sorted(set(roles) - set(builtin.BY_NAME)):
        raise ConfigError(f"{unknown[0]}: no such role; known: {', '.join(builtin.BY_NAME)}")
    stores.upgrade(settings.store.url)
    token = open_token(settings.hsm, Pin(pin, "given"))
    token.connect()
    try:
        store = open_store(settings, token)
        try:
            root = _make_keys(token, store)
            notary.ensure_key(settings.audit, token)
            with store.write() as tx:
                if rows.is_foreign(tx):
                    raise ConfigError(_FOREIGN)
                name_root(tx, token, root)
                if rows.get_domain_by_name(tx, domain) is not None:
                    raise ConfigError(f"the domain {domain} exists already")
                made = first_identity(
                    tx, token, root, domain, project, user, password, roles, certificate_names
                )
                _record(settings, "init", "initialise", made.user_id)
                return made
        finally:
            store.close()
    finally:
        token.close()


def appoint(settings: Settings, *, pin: str, domain: str, user: str, operator: bool) -> str:
    """The user administers its domain from the next call on, and the daemon too if `operator`; its id.

    For stores from before there were administrators, and for who has locked out the last one. Leaves an audit
    record. Raises ConfigError when there is no such user, or when the store belongs to another token.
    """
    token = open_token(settings.hsm, Pin(pin, "given"))
    token.connect()
    try:
        store = open_store(settings, token)
        try:
            with store.write() as tx:
                if rows.is_foreign(tx):
                    raise ConfigError(_FOREIGN)
                home = rows.get_domain_by_name(tx, domain)
                found = rows.get_user_by_name(tx, home.id, user) if home else None
                if home is None or found is None:
                    raise ConfigError(f"there is no user {user} in a domain {domain}")
                administrators.appoint(tx, home.id, found.id, now_millis(), operates=operator)
                _record(settings, "appoint", "appointAdministrator", found.id)
                return found.id
        finally:
            store.close()
    finally:
        token.close()


def audit_key(settings: Settings, *, pin: str) -> str:
    """The public audit key as PEM. Raises TokenRefused, Error(UNAVAILABLE)."""
    token = open_token(settings.hsm, Pin(pin, "given"))
    token.connect()
    try:
        public = load_der_public_key(token.public_key_of(AUDIT_KEY_LABEL))
    finally:
        token.close()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _record(settings: Settings, command: str, event: str, user_id: str) -> None:
    """The audit record of a command of `hsmd`. Raises Error(UNAVAILABLE)."""
    record = of_call(
        Caller("system", source="local"),
        event=event,
        method=f"hsmd {command}",
        result="OK",
        resource=f"user/{user_id}",
        key_version=0,
        process=command,
        seconds=0.0,
    )
    until = time.monotonic() + _AUDIT_SECONDS
    audit = open_audit(settings, command)
    try:
        while True:
            try:
                return audit.append(record, timeout=_AUDIT_SECONDS)
            except Error:
                if time.monotonic() > until:
                    raise
            time.sleep(_AUDIT_PAUSE)  # another such command may be writing its own
    finally:
        audit.close()


def _make_keys(token: Token, store: Store) -> str:
    """Make what is missing; the label of the root key that wraps what is new."""
    present = set(token.labels())
    # A new store takes the newest that another region's token shared with this one.
    root = max(present, key=roots.number, default=roots.FIRST)
    root = root if roots.number(root) else roots.FIRST
    if SEALING_KEY_LABEL in present and store.last_change() > 0:
        with store.read() as tx:
            if rows.is_foreign(tx):
                raise ConfigError(_FOREIGN)
            root = next(each.label for each in roots.root_keys(tx) if each.state == roots.CURRENT)
    missing = {root, SEALING_KEY_LABEL, CREDENTIAL_KEY_LABEL} - present
    if missing and store.last_change() > 0:
        # Making new ones would not bring the old ones back: the store's keys need those.
        raise ConfigError(
            f"the store is in use, but the token lacks {', '.join(sorted(missing))}: wrong token?"
        )
    if root in missing:
        token.make_root_key(root)
    for label in sorted(missing - {root}):
        token.make_hmac_key(label)
    return root


def name_root(tx: Tx, token: Token, label: str) -> None:
    """Write down the root key of a new store. An older one that names none has made PINs with it."""
    if not rows.has_domains(tx):
        check_value = with_token_key(token, label, token.check_value)
        roots.put_root_keys(tx, [roots.RootKey(label, roots.CURRENT, check_value, now_millis())])


def first_identity(
    tx: Tx,
    token: Token,
    root: str,
    domain: str,
    project: str,
    user: str,
    password: str,
    roles: Sequence[str],
    certificate_names: Sequence[str],
) -> Initialised:
    """The first domain, project and user, in a transaction of the caller's."""
    # Who made the first domain runs the daemon; who made another is a tenant and only administers that.
    first = not rows.has_domains(tx)
    domain_id, project_id, user_id = uuid.uuid4().hex, uuid.uuid4().hex, uuid.uuid4().hex
    access_key = "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(20))
    secret_key = "".join(secrets.choice(_SECRET_CHARACTERS) for _ in range(_SECRET_LENGTH))
    wrapped = token.wrap_value(ACCESS_KEY, secret_key.encode(), token.find(root))
    now = now_millis()
    rows.insert_domain(tx, Domain(domain_id, domain, enabled=True, owner_id=user_id, created=now))
    rows.insert_project(tx, Project(project_id, domain_id, project))
    hashed = passwords.hash_password(password)
    rows.insert_user(
        tx, User(user_id, domain_id, user, hashed, enabled=True, created=now, password_changed=now)
    )
    for role in roles:
        rows.insert_role(tx, RoleAssignment(user_id, project_id, role))
    administrators.appoint(tx, domain_id, user_id, now, operates=first)
    for name in certificate_names:
        insert_binding(tx, CertificateBinding(name, user_id, project_id))
    insert_access_key(tx, AccessKey(access_key, user_id, wrapped, root, enabled=True, created=now_millis()))
    return Initialised(domain_id, project_id, user_id, access_key, secret_key)
