"""Leases: one holder at a time, however many ask at once."""

import threading
from contextlib import closing

from hsmd.store import Store
from hsmd.store.leases import take
from tests.stores import seal


def taken(store: Store, holder: str, now: int, until: int, name: str = "job") -> bool:
    with store.write() as tx:
        return take(tx, name, holder, now, until)


def test_a_lease_is_held_until_it_is_over(store: Store) -> None:
    assert taken(store, "a", 0, 10)
    assert not taken(store, "b", 9, 20)
    assert taken(store, "b", 10, 20)
    assert not taken(store, "a", 11, 30)


def test_its_holder_can_renew_it(store: Store) -> None:
    assert taken(store, "a", 0, 10)
    assert taken(store, "a", 5, 15)
    assert not taken(store, "b", 10, 20)
    assert taken(store, "b", 15, 20)


def test_leases_of_other_jobs_are_others(store: Store) -> None:
    assert taken(store, "a", 0, 10)
    assert taken(store, "b", 0, 10, name="other job")


def test_one_of_many_gets_it(store: Store, store_url: str) -> None:
    got: list[str] = []

    def ask(own: Store, holder: str) -> None:
        if taken(own, holder, 0, 10):
            got.append(holder)

    with closing(Store(store_url, seal)) as other:
        asking = [
            threading.Thread(target=ask, args=(own, f"{own}{n}")) for n in range(4) for own in (store, other)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(60)
    assert len(got) == 1
