"""Permanent access keys: two a user; the secret is shown once and then held wrapped by the root key.

Users see to their own; who administers the domain's credentials, to all of its users'. Who acts as an agency,
by a temporary access key or by what another identity provider says has none of its own.
"""

import logging
import re
import secrets
import string
from dataclasses import dataclass, replace

from hsmd.algorithms import ACCESS_KEY
from hsmd.domain import operators
from hsmd.domain.core import Call, Core
from hsmd.errors import ACCESS_KEYS_EXCEEDED, IAM_NOT_FOUND, Error
from hsmd.keyring import with_token_key
from hsmd.store import Tx, policies
from hsmd.store import access_keys as rows
from hsmd.store import identity as people
from hsmd.store.access_keys import AccessKey

KEYS_PER_USER = 2

_LONGEST_ID = 64
_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{_LONGEST_ID}}}")
_ID_LENGTH = 20
_ID_CHARACTERS = string.ascii_uppercase + string.digits
_SECRET_CHARACTERS = string.ascii_letters + string.digits
_SECRET_LENGTH = ACCESS_KEY.bits // 8
_USE_MILLIS = 15 * 60_000  # how precise the time of the last use is: a row is written once in so long

_PASSING = ("temporary-key", "oidc", "keystone")  # identities that a lasting key must not come from

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A secret just made, and how it is kept."""

    text: str
    wrapped: bytes
    root_label: str

    def __repr__(self) -> str:
        return "NewSecret()"


def is_id(text: str) -> bool:
    """Whether it may be the id of an access key."""
    # First what ours are, as a pattern takes longer.
    is_plain = text.isalnum() and text.isascii() and len(text) <= _LONGEST_ID
    return is_plain or _ID.fullmatch(text) is not None


def new_id(prefix: str = "") -> str:
    """The id of an access key to be: 20 capital letters and digits."""
    return prefix + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH - len(prefix)))


def new_secret(core: Core) -> NewSecret:
    """A secret of 40 letters and digits. Raises Error(UNAVAILABLE) when the token is away."""
    text = "".join(secrets.choice(_SECRET_CHARACTERS) for _ in range(_SECRET_LENGTH))
    label = core.root_label()
    wrapped = with_token_key(
        core.token, label, lambda root: core.token.wrap_value(ACCESS_KEY, text.encode(), root)
    )
    return NewSecret(text, wrapped, label)


def create(call: Call, user_id: str, description: str) -> tuple[AccessKey, str]:
    """An access key of the user, and its secret, which can't be had again.

    Raises Error(IAM_NOT_FOUND) and Error(ACCESS_KEYS_EXCEEDED). IAM: CreatePermanentAccessKey.
    """
    call.resource = f"user/{user_id}"
    secret = new_secret(call.core)
    with call.change() as tx:
        _check_user(call, tx, user_id)
        _check_changeable(call, tx, user_id)
        if len(rows.access_keys_of(tx, user_id)) >= KEYS_PER_USER:
            raise Error(ACCESS_KEYS_EXCEEDED, quota=KEYS_PER_USER)
        made = AccessKey(
            id=new_id(),
            user_id=user_id,
            wrapped=secret.wrapped,
            root_label=secret.root_label,
            enabled=True,
            created=call.core.clock(),
            description=description,
        )
        rows.insert_access_key(tx, made)
        call.resource = f"access-key/{made.id}"
    return made, secret.text


def find(call: Call, user_id: str) -> list[AccessKey]:
    """The user's access keys, oldest first; the caller's own without a user.

    Raises Error(IAM_NOT_FOUND). IAM: ListPermanentAccessKeys.
    """
    user_id = user_id or call.caller.user_id
    with call.read() as tx:
        _check_user(call, tx, user_id)
        return rows.access_keys_of(tx, user_id)


def show(call: Call, access_key: str) -> tuple[AccessKey, int | None]:
    """An access key, and when it was last used (about; None: never). IAM: ShowPermanentAccessKey.

    Raises Error(IAM_NOT_FOUND).
    """
    with call.read() as tx:
        return _known(call, tx, access_key), rows.last_use(tx, access_key)


def update(
    call: Call, access_key: str, *, enabled: bool | None = None, description: str | None = None
) -> AccessKey:
    """Switch it on or off, describe it anew; what is None stays. In force for the next call.

    Raises Error(IAM_NOT_FOUND). IAM: UpdatePermanentAccessKey.
    """
    with call.change() as tx:
        row = _known(call, tx, access_key)
        _check_changeable(call, tx, row.user_id)
        if enabled is not None:
            row = replace(row, enabled=enabled)
        if description is not None:
            row = replace(row, description=description)
        rows.update_access_key(tx, row)
    return row


def delete(call: Call, access_key: str) -> None:
    """Remove it and its secret, from the next call on. IAM: DeletePermanentAccessKey.

    Raises Error(IAM_NOT_FOUND).
    """
    with call.change() as tx:
        row = _known(call, tx, access_key)
        _check_changeable(call, tx, row.user_id)
        rows.delete_access_key(tx, access_key)


def note_use(call: Call, access_key: str) -> None:
    """Remember, in steps of a quarter of an hour, that the key is used. A store that can't hinders nobody."""
    core = call.core
    now = core.clock()
    if now - core.access_key_uses.get(access_key, 0) < _USE_MILLIS:
        return
    core.access_key_uses[access_key] = now  # at most as many as there are keys
    try:
        with core.store.write() as tx:
            if rows.get_access_key(tx, access_key) is not None:
                rows.put_use(tx, access_key, now)
    except Error as error:
        _log.warning("the use of an access key was not noted: %s", error)


def _known(call: Call, tx: Tx, access_key: str) -> AccessKey:
    call.resource = f"access-key/{access_key if is_id(access_key) else '?'}"
    row = rows.get_access_key(tx, access_key)
    if row is not None:
        try:
            _check_user(call, tx, row.user_id)
        except Error as error:
            if error.fault is not IAM_NOT_FOUND:
                raise
            row = None
    if row is None:
        raise Error(IAM_NOT_FOUND, kind="access key", id=access_key)
    return row


def _check_changeable(call: Call, tx: Tx, user_id: str) -> None:
    """An operator's access keys are its own, and for operators."""
    if not call.granted:
        operators.check(call, tx, policies.USER, user_id)


def _check_user(call: Call, tx: Tx, user_id: str) -> None:
    """Whose credentials these are: the caller's own, or its domain's user's. Raises Error(IAM_NOT_FOUND)."""
    caller = call.caller
    if user_id == caller.user_id and not caller.is_agency and caller.kind not in _PASSING:
        call.granted = True
    user = people.get_user(tx, user_id)
    if user is None or user.domain_id != caller.domain_id:
        raise Error(IAM_NOT_FOUND, kind="user", id=user_id)
