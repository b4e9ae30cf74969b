"""Permanent access keys: whose they are, their secrets wrapped by the root key, and when they were last used.

Changes come in the feed as subject "access_keys" with the key's id. When a key was used is no part of its
sealed row and changes nothing that processes have cached.
"""

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, insert, select, update

from hsmd.algorithms import ACCESS_KEY
from hsmd.store import identity, roots
from hsmd.store.core import Tx
from hsmd.store.schema import ACCESS_KEY_USES, ACCESS_KEYS
from hsmd.store.seals import Sealed

SUBJECT = "access_keys"  # in the change feed


@dataclass(frozen=True, slots=True)
class AccessKey:
    """An AK; its SK is `wrapped` by the root key of that label. `created` in ms since 1970 UTC."""

    id: str
    user_id: str
    wrapped: bytes
    root_label: str
    enabled: bool
    created: int
    description: str | None = None

    @property
    def algorithm(self) -> str:
        """What the secret is, for the keyring."""
        return ACCESS_KEY.name


_ACCESS_KEYS = Sealed(ACCESS_KEYS, AccessKey)

_by_id = _ACCESS_KEYS.where(ACCESS_KEYS.c.id == bindparam("wanted"))
_of_user = _ACCESS_KEYS.where(ACCESS_KEYS.c.user_id == bindparam("user")).order_by(
    ACCESS_KEYS.c.created, ACCESS_KEYS.c.id
)
_delete = delete(ACCESS_KEYS).where(ACCESS_KEYS.c.id == bindparam("wanted"))
_used = select(ACCESS_KEY_USES.c.used).where(ACCESS_KEY_USES.c.id == bindparam("wanted"))
_use_again = update(ACCESS_KEY_USES).where(ACCESS_KEY_USES.c.id == bindparam("wanted"))
_first_use = insert(ACCESS_KEY_USES)
_forget_use = delete(ACCESS_KEY_USES).where(ACCESS_KEY_USES.c.id == bindparam("wanted"))


def insert_access_key(tx: Tx, access_key: AccessKey) -> None:
    """Add an access key. Raises the store's fault when the id is taken."""
    roots.check_usable(tx, access_key.root_label)
    _ACCESS_KEYS.insert(tx, access_key)
    tx.changed(SUBJECT, access_key.id, identity.domain_of_user(tx, access_key.user_id))


def update_access_key(tx: Tx, access_key: AccessKey) -> None:
    """Replace the row of this id. Raises SealBroken when it is gone."""
    _ACCESS_KEYS.update(tx, access_key)
    tx.changed(SUBJECT, access_key.id, identity.domain_of_user(tx, access_key.user_id))


def delete_access_key(tx: Tx, access_key_id: str) -> None:
    """Remove the access key, also from the store's log. Raises SealBroken."""
    row = get_access_key(tx, access_key_id)
    for query in (_forget_use, _delete):
        tx.connection.execute(query, {"wanted": access_key_id})
    tx.scrub = True
    tx.changed(SUBJECT, access_key_id, identity.domain_of_user(tx, row.user_id) if row else "")


def get_access_key(tx: Tx, access_key_id: str) -> AccessKey | None:
    """The access key of that id. Raises SealBroken."""
    return _ACCESS_KEYS.one(tx, _by_id, wanted=access_key_id)


def access_keys_of(tx: Tx, user_id: str) -> list[AccessKey]:
    """The user's access keys in the order of their making. Raises SealBroken."""
    return _ACCESS_KEYS.many(tx, _of_user, user=user_id)


def last_use(tx: Tx, access_key_id: str) -> int | None:
    """When the key was last used, about; None when it never was."""
    return tx.connection.execute(_used, {"wanted": access_key_id}).scalar_one_or_none()


def put_use(tx: Tx, access_key_id: str, used: int) -> None:
    """Note when the key was used."""
    if tx.connection.execute(_use_again, {"wanted": access_key_id, "used": used}).rowcount == 0:
        tx.connection.execute(_first_use, {"id": access_key_id, "used": used})
