"""The keyring: bounded, forgetful, and never keeping what was forgotten while it was read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hsmd.algorithms import AES_256
from hsmd.hsm import Handle, Token
from hsmd.keyring import Keyring
from hsmd.store.keys import KeyVersion
from tests.hsm_parts import connected
from tests.softhsm import make_token, no_forgeries


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    with connected(make_token(tmp_path_factory.mktemp("token"))) as token:
        token.make_root_key("root")
        yield token


def version(token: Token, owner: str, number: int = 1) -> KeyVersion:
    wrapped = token.generate(AES_256, token.find("root"))
    return KeyVersion(owner, number, AES_256.name, wrapped, "root", 0, None)


def use(ring: Keyring, key: KeyVersion, moment: int | None = None) -> Handle:
    at = ring.moment if moment is None else moment
    return ring.use(key.key_id, key.version, key, lambda handle: handle, at)


def test_a_key_is_loaded_once(token: Token) -> None:
    ring, key = Keyring(token, 10), version(token, "a")
    assert use(ring, key) == use(ring, key)
    assert len(ring) == 1


def test_the_oldest_use_goes_first(token: Token) -> None:
    ring = Keyring(token, 2)
    first, second, third = (version(token, name) for name in "abc")
    kept = use(ring, first)
    gone = use(ring, second)
    assert use(ring, first) == kept
    use(ring, third)
    assert len(ring) == 2
    assert use(ring, first) == kept
    assert use(ring, second) != gone


def test_a_forgotten_key_is_unloaded_with_all_its_versions(token: Token) -> None:
    ring = Keyring(token, 10)
    use(ring, version(token, "a", 1))
    use(ring, version(token, "a", 2))
    other = version(token, "b")
    kept = use(ring, other)
    ring.forget("a")
    assert len(ring) == 1
    assert use(ring, other) == kept


def test_a_key_forgotten_after_its_row_was_read_is_used_but_not_kept(token: Token) -> None:
    ring, key = Keyring(token, 10), version(token, "a")
    moment = ring.moment  # the row is read
    ring.forget("a")  # meanwhile it was destroyed
    use(ring, key, moment)
    assert len(ring) == 0


def test_a_version_without_material_is_no_caller_s_fault(token: Token) -> None:
    ring = Keyring(token, 10)
    destroyed = KeyVersion("a", 1, AES_256.name, None, "root", 0, 1)
    with pytest.raises(LookupError, match="no material"):
        use(ring, destroyed)


@no_forgeries
def test_a_version_of_another_root_is_no_caller_s_fault(token: Token) -> None:
    ring = Keyring(token, 10)
    key = version(token, "a")
    assert key.wrapped is not None
    torn = KeyVersion("a", 1, AES_256.name, bytes(len(key.wrapped)), "root", 0, None)
    with pytest.raises(LookupError, match="not wrapped by root"):
        use(ring, torn)


def test_handles_are_found_anew_when_the_token_lost_them(token: Token, tmp_path: Path) -> None:
    ring, key = Keyring(token, 10), version(token, "a")
    handle = use(ring, key)
    token.destroy(handle)  # as if it were gone
    assert ring.use("a", 1, key, lambda each: token.encrypt(each, bytes(12), b"x", b""), ring.moment)
    assert len(ring) == 1
