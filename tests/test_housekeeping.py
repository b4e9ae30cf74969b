"""What has had its time in the store: the warden prunes the change feed, and nobody misses a change."""

import pytest

from hsmd.daemon import jobs
from hsmd.domain import crypto, housekeeping, keys
from hsmd.domain.core import Call
from hsmd.errors import KEY_DISABLED
from tests.test_time_passes import House, house, refused

__all__ = ["house"]  # the fixture


def _prune(house: House) -> int:
    return jobs.Jobs(house.core, house.audit, "test").carry_out(jobs.PRUNING, {})


def _length(house: House) -> int:
    ((number,),) = house.sql("SELECT count(*) FROM changes")
    return int(number)


def test_who_has_not_seen_what_was_pruned_forgets_all(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "KEPT_CHANGES", 20)
    key, other = (keys.create_key(house.call(), alias=alias).id for alias in ("key", "other"))
    blob = house.encrypt(key)
    idle = house.second_core()

    def encrypt() -> str:
        idle.refresh()
        return crypto.encrypt_data(Call(idle, house.call().caller, lambda: None), key, b"data", "", b"")[0]

    assert encrypt() == key  # it has the key's rows and its handle
    assert len(idle.keyring) == 1
    keys.disable_key(house.call(), key)
    for number in range(60):
        keys.update_description(house.call(), other, f"{number}")
    assert _prune(house) == 1
    assert _length(house) == 20
    refused(KEY_DISABLED, encrypt)
    assert len(idle.keyring) == 0
    keys.enable_key(house.call(), key)
    assert encrypt() == key
    assert house.decrypt(blob) == b"data"
    idle.store.close()


def test_who_has_seen_it_keeps_what_it_knows(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "KEPT_CHANGES", 20)
    key, other = (keys.create_key(house.call(), alias=alias).id for alias in ("key", "other"))
    house.encrypt(key)
    for number in range(60):
        keys.update_description(house.call(), other, f"{number}")
    known = len(house.core.keyring)
    assert _prune(house) == 1
    house.encrypt(key)
    assert len(house.core.keyring) == known == 1
    keys.disable_key(house.call(), key)
    refused(KEY_DISABLED, lambda: house.encrypt(key))


def test_it_is_done_now_and_then_only_and_in_parts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "KEPT_CHANGES", 20)
    monkeypatch.setattr(housekeeping, "_AT_ONCE", 7)
    key = keys.create_key(house.call(), alias="key").id
    for number in range(21):
        keys.update_description(house.call(), key, f"{number}")
    assert (_length(house), _prune(house)) == (22, 0)
    for number in range(8):
        keys.update_description(house.call(), key, f"{number}")
    lengths = []
    while _prune(house):
        lengths.append(_length(house))
    assert lengths == [23, 20]


def test_the_warden_s_rounds_have_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "KEPT_CHANGES", 20)
    key = keys.create_key(house.call(), alias="key").id
    for number in range(40):
        keys.update_description(house.call(), key, f"{number}")
    jobs.Jobs(house.core, house.audit, "one").do_round()
    assert _length(house) == 20
    assert ("old changes", "one") in house.sql("SELECT name, holder FROM leases")
    for number in range(40):
        keys.update_description(house.call(), key, f"{number}")
    jobs.Jobs(house.core, house.audit, "another").do_round()  # it is the first one's for a minute
    assert _length(house) == 60
