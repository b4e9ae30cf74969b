"""Answers kept for retries: found again under their own sequence only, until they are forgotten."""

import pytest

from hsmd.store import Store
from hsmd.store.sequences import forget_older, recall, remember

DIGEST = bytes(range(32))


def test_an_answer_is_recalled_under_its_own_name_only(store: Store) -> None:
    with store.write() as tx:
        remember(tx, "p", "CreateKey", "s", DIGEST, "key-1", 5)
        assert recall(tx, "p", "CreateKey", "s") == (DIGEST, "key-1", 5)
    with store.read() as tx:
        assert recall(tx, "p", "CreateKey", "s") == (DIGEST, "key-1", 5)
        assert recall(tx, "q", "CreateKey", "s") is None
        assert recall(tx, "p", "CreateDatakey", "s") is None
        assert recall(tx, "p", "CreateKey", "S") is None


def test_a_later_answer_takes_the_place(store: Store) -> None:
    with store.write() as tx:
        remember(tx, "p", "m", "s", DIGEST, "key-1", 5)
        remember(tx, "p", "m", "s", b"other", "key-2", 9)
        remember(tx, "p", "m", "t", DIGEST, "key-3", 9)
        assert recall(tx, "p", "m", "s") == (b"other", "key-2", 9)
        assert recall(tx, "p", "m", "t") == (DIGEST, "key-3", 9)


def test_what_is_older_is_forgotten(store: Store) -> None:
    with store.write() as tx:
        for created in (4, 5, 6):
            remember(tx, "p", "m", str(created), DIGEST, "key", created)
        forget_older(tx, 5)
        assert [recall(tx, "p", "m", str(created)) is None for created in (4, 5, 6)] == [True, False, False]


def test_an_undone_call_is_not_remembered(store: Store) -> None:
    def undone() -> None:
        with store.write() as tx:
            remember(tx, "p", "m", "s", DIGEST, "key-1", 5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        undone()
    with store.read() as tx:
        assert recall(tx, "p", "m", "s") is None
    assert store.last_change() == 0
