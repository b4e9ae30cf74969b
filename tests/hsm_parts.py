"""What the tests of the HSM room share: a token connected for one test, and waiting for a state."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hsmd.hsm import Token, parse_address
from hsmd.hsm.connection import Connection
from tests.softhsm import DevToken

PROMPTLY = 15.0  # the five seconds that are promised, and ten for a busy machine


def opened(made: DevToken, **options: Any) -> Token:
    """Return a Token (or a `kind` of it), not connected."""
    kind: type[Token] = options.pop("kind", Token)
    return kind(
        parse_address(options.pop("uri", made.uri)),
        options.pop("pin", made.pin),
        lock_file=options.pop("lock_file", made.lock),
        softhsm_conf=made.conf,
        **options,
    )


@contextmanager
def connected(made: DevToken, **options: Any) -> Iterator[Token]:
    """Connect, watch, and leave the module in the end, since it serves one Token a process."""
    token = opened(made, **options)
    try:
        token.connect()
        token.watch()
        yield token
    finally:
        token.close()


def live(token: Token) -> Connection:
    """Look behind the door."""
    connection = token._link.live
    assert connection
    return connection
