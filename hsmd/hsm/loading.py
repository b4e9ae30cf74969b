"""Keys on their way into the token and out of it again, wrapped: what every kind of key shares."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pkcs11 import Mechanism, PKCS11Error
from pkcs11.types import Session

from hsmd.errors import UNAVAILABLE, Error
from hsmd.hsm import operations, templates
from hsmd.hsm.connection import Connection
from hsmd.hsm.desk import Desk
from hsmd.hsm.faults import ObjectGone
from hsmd.hsm.handles import Handle
from hsmd.hsm.module import Module


def key_wrap(connection: Connection) -> Mechanism:
    """How this token does RFC 5649. Raises Error(UNAVAILABLE) if it doesn't."""
    mechanism = connection.found.key_wrap
    if mechanism is None:
        raise Error(UNAVAILABLE, reason="the HSM can't wrap keys by RFC 5649")
    return mechanism


@contextmanager
def passing(desk: Desk, *keys: int) -> Iterator[None]:
    """Objects that go at the end, whatever happens."""
    try:
        yield
    finally:
        for key in keys:
            desk.connection.module.destroy(desk.session, key)


def wrapped_up(desk: Desk, root: int, key: int) -> bytes:
    """The key under the root key; its object is destroyed, whatever happens. Raises PKCS11Error, Error."""
    with passing(desk, key):
        return operations.wrap(desk.session, key_wrap(desk.connection), root, key)


def load(desk: Desk, make: Callable[[Module, Session], int]) -> Handle:
    """An object that outlives this thread, since the anchor session makes and owns it.

    Raises what `make` does, and Error(UNAVAILABLE) when others hold the anchor for too long.
    """
    connection = desk.connection
    if not connection.anchor_lock.acquire(timeout=desk.limit):
        raise Error(UNAVAILABLE, reason="the HSM does not answer")
    try:
        key = make(connection.module, connection.anchor)
    finally:
        connection.anchor_lock.release()
    return connection.handles.admit(key)


def confined(connection: Connection, session: Session, key: int) -> int:
    """An unwrapped key that can't be taken out again, told so a second time where that is needed.

    Raises PKCS11Error, and then the key is gone.
    """
    if connection.found.confined_afterwards:
        try:
            connection.module.change(session, key, templates.CONFINED)
        except PKCS11Error:
            connection.module.destroy(session, key)
            raise
    return key


def second(desk: Desk, key: Handle) -> int:
    """The token's handle of a key besides the one this call was begun with. Raises ObjectGone."""
    found = desk.connection.handles.objects.get(key.value)
    if found is None or key.generation != desk.connection.generation:
        raise ObjectGone("destroyed, or of an earlier connection")
    return found
