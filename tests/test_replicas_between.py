"""What comes in between while a key is replicated or rotated in all its regions: nothing goes apart.

The rules run in this process, over a real token and a real store. The other region is a line that does, when
it is asked, what others do just then.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from hsmd.algorithms import AES_256, KEY_SPECS
from hsmd.domain import deletion, keys, peers, regions, rotation
from hsmd.domain.core import ROOT_KEY_LABEL
from hsmd.domain.lines import SHARE, Handover, Material, Offer, Versions
from hsmd.domain.regions import Wanted
from hsmd.errors import QUOTA_EXCEEDED, REGION_UNAVAILABLE, REPLICAS_PRESENT, Error
from hsmd.store import keys as key_rows
from hsmd.store import replicas as rows
from hsmd.store.keys import KeyVersion
from hsmd.store.replicas import HEIR, PENDING, REPLICATED, Replica
from tests.test_time_passes import House, house, refused

__all__ = ["house"]  # the fixture

_MINUTE = 60 * 1000


def _nothing(_told: object) -> None:
    pass


@dataclass
class Region:
    """A line to a region: what it was told, and what happens meanwhile."""

    name: str
    meanwhile: Callable[[object], None] = _nothing
    offers: list[Offer] = field(default_factory=list)
    sent: list[tuple[int, bytes, int]] = field(default_factory=list)  # version, wrapped, current
    has: set[str] = field(default_factory=set)  # ids of keys
    moved: list[Handover] | None = None  # what made it the primary, where that may be

    shared_domains = frozenset[tuple[str, str]]()

    def holds(self, _seconds: float) -> int:
        return 0

    def offer(self, offer: Offer, _request_id: str) -> str:
        self.meanwhile(offer)
        self.offers.append(offer)
        self.has.add(offer.key_id)
        return "d" * 32

    def send(self, key_id: str, versions: Versions, current: int, _request_id: str) -> bool:
        self.meanwhile(versions)
        self.sent += [(each.version, each.wrapped, current) for each in versions.materials]
        return key_id in self.has

    def hand_over(self, handover: Handover, _request_id: str) -> None:
        assert self.moved is not None
        self.moved.append(handover)

    def follow(self, key_id: str, region: str, _request_id: str) -> bool:
        raise AssertionError((key_id, region))

    def find(self, key_id: str, _request_id: str) -> bool:
        return key_id in self.has


def region(house: House, name: str) -> Region:
    made = Region(name)
    house.core.peers = {**house.core.peers, name: made}
    return made


def replicate(house: House, key: str, name: str = "west") -> tuple[str, str]:
    return regions.replicate(house.call(), key, Wanted(name, "2" * 32, "replica", "", "0", ()))


def state(house: House, key: str) -> dict[str, str]:
    with house.core.store.read() as tx:
        return {each.region: each.state for each in rows.replicas_of(tx, key)}


def used(house: House, key: str) -> int:
    ((number,),) = house.sql("SELECT used FROM key_usage WHERE key_id = ? AND version = 1", key)
    return int(number)


def wrapped(house: House, key: str, version: int) -> bytes:
    with house.core.store.read() as tx:
        found = key_rows.get_version(tx, key, version)
    assert found
    assert found.wrapped
    return found.wrapped


def newborn(house: House) -> bytes:
    token = house.core.token
    return token.generate(AES_256, token.find(ROOT_KEY_LABEL))


# Replicating


def test_who_looks_around_meanwhile_forgets_nothing(house: House) -> None:
    key, west = keys.create_key(house.call(), alias="key").id, region(house, "west")

    def look(_told: object) -> None:
        refused(REPLICAS_PRESENT, lambda: deletion.schedule(house.call(), key, 7))

    west.meanwhile = look
    replicate(house, key)
    assert state(house, key) == {"west": REPLICATED}


def test_what_never_came_there_is_forgotten_when_nothing_can_be_on_its_way(house: House) -> None:
    key, west = keys.create_key(house.call(), alias="key").id, region(house, "west")

    def hang(_told: object) -> None:
        raise Error(REGION_UNAVAILABLE, region="west", reason="it does not answer")

    west.meanwhile = hang
    refused(REGION_UNAVAILABLE, lambda: replicate(house, key))
    house.now += 2 * _MINUTE
    refused(REGION_UNAVAILABLE, lambda: replicate(house, key))  # and so it may be on its way again
    assert used(house, key) == SHARE
    house.now += 2 * _MINUTE
    refused(REPLICAS_PRESENT, lambda: deletion.schedule(house.call(), key, 7))
    assert state(house, key) == {"west": PENDING}
    house.now += 1 * _MINUTE
    deletion.schedule(house.call(), key, 7)
    assert state(house, key) == {}


def test_a_refused_replica_takes_nothing_with_it(house: House) -> None:
    key, west = keys.create_key(house.call(), alias="key").id, region(house, "west")

    def refuse(_told: object) -> None:
        raise Error(QUOTA_EXCEEDED, quota=0)

    west.meanwhile = refuse
    for _ in range(20):  # more often than a version has shares
        refused(QUOTA_EXCEEDED, lambda: replicate(house, key))
        assert (state(house, key), used(house, key)) == ({}, 0)
    assert house.decrypt(house.encrypt(key)) == b"data"
    west.meanwhile = _nothing
    replicate(house, key)
    assert used(house, key) == SHARE + (1 << 16)  # and the block that was encrypted from


def test_a_refusal_does_not_take_back_what_another_call_has_begun(house: House) -> None:
    key, west = keys.create_key(house.call(), alias="key").id, region(house, "west")

    def refuse(_told: object) -> None:
        west.meanwhile = _nothing
        replicate(house, key)
        raise Error(QUOTA_EXCEEDED, quota=0)

    west.meanwhile = refuse
    refused(QUOTA_EXCEEDED, lambda: replicate(house, key))
    assert (state(house, key), used(house, key)) == ({"west": REPLICATED}, SHARE)


def test_a_refusal_after_the_offer_takes_nothing_back(house: House) -> None:
    key, west = keys.create_key(house.call(), alias="key").id, region(house, "west")
    with house.core.store.write() as tx:
        made = key_rows.get_key(tx, key)
        assert made
        for number in range(2, 302):
            version = KeyVersion(key, number, "AES_256", newborn(house), ROOT_KEY_LABEL, 1, None)
            rows.put_version(tx, version, 0)
        key_rows.update_key(tx, replace(made, current_version=301))

    def refuse(told: object) -> None:
        if isinstance(told, Versions):
            raise Error(QUOTA_EXCEEDED, quota=0)

    west.meanwhile = refuse
    refused(QUOTA_EXCEEDED, lambda: replicate(house, key))
    assert state(house, key) == {"west": PENDING}


# Moving


def test_who_stood_still_hands_nothing_over(house: House) -> None:
    """The move may be complete, and undone by another, by the time that it goes on."""
    key, west = keys.create_key(house.call(), alias="key").id, region(house, "west")
    replicate(house, key)
    west.moved, clock = [], house.core.clock
    house.core.clock = lambda: clock() + 3000 * next(stood)
    stood = itertools.count()
    refused(REGION_UNAVAILABLE, lambda: regions.update_primary(house.call(), key, "west"))
    assert (state(house, key), west.moved) == ({"west": HEIR}, [])
    house.core.clock = clock
    assert regions.update_primary(house.call(), key, "west").primary_region == "west"
    assert [each.key_id for each in west.moved] == [key]


# Rotating


def test_what_waits_is_replaced_meanwhile(house: House) -> None:
    """As when the primary moves away, rotates there, and comes back before that has ended."""
    key, west = keys.create_key(house.call(), alias="key").id, region(house, "west")
    replicate(house, key)
    other = newborn(house)

    def change(_told: object) -> None:
        west.meanwhile = _nothing
        with house.core.store.write() as tx:
            rows.put_version(tx, KeyVersion(key, 2, "AES_256", other, ROOT_KEY_LABEL, 1, None), 0)

    west.meanwhile = change
    assert rotation.rotate(house.call(), key).current_version == 2
    assert wrapped(house, key, 2) == other
    assert west.sent[-1] == (2, other, 2)
    assert (2, other, 0) in west.sent  # before anything was encrypted with it


def test_a_replica_comes_in_between(house: House) -> None:
    key, west = keys.create_key(house.call(), alias="key").id, region(house, "west")
    north = region(house, "north")
    north.has.add(key)
    replicate(house, key)

    def add(_told: object) -> None:
        west.meanwhile = _nothing
        with house.core.store.write() as tx:
            rows.put_replica(tx, Replica(key, "north", REPLICATED, 1, SHARE, 1, house.now))

    def look(_told: object) -> None:
        seen.append(keys.describe_key(house.call(), key).current_version)

    seen: list[int] = []
    west.meanwhile, north.meanwhile = add, look
    rotation.rotate(house.call(), key)
    assert [(number, current) for number, _, current in north.sent] == [(2, 0), (2, 2)]
    assert seen == [1, 2]  # it had the version before that was current


def test_many_that_can_not_be_finished_do_not_stand_before_others(house: House) -> None:
    made = {keys.create_key(house.call(), alias=f"key-{n}").id for n in range(3)}
    with house.core.store.write() as tx:
        for key in made:
            rows.put_replica(tx, Replica(key, "west", REPLICATED, 0, 0, 0, house.now))
        assert set(rows.unfinished(tx)) == made
        assert {each for _ in range(200) for each in rows.unfinished(tx, limit=1)} == made


# What a replica already uses


@pytest.mark.parametrize("spec", ["AES_256", "HMAC_384", "EC_P256"])
def test_material_is_compared(house: House, spec: str) -> None:
    token, row = house.core.token, KEY_SPECS[spec]
    token.make_root_key("hsmd-root-2")
    first, second = token.find(ROOT_KEY_LABEL), token.find("hsmd-root-2")

    def born() -> tuple[bytes, bytes]:
        if row.asymmetric:
            pair = token.generate_pair(row, first)
            return pair.wrapped, pair.public_key
        return token.generate(row, first), b""

    def same(other: bytes, public: bytes, label: str = ROOT_KEY_LABEL) -> bool:
        present = KeyVersion("k", 1, spec, one, ROOT_KEY_LABEL, 1, None, public_one or None)
        return peers._is_same(house.call(), row, present, one, Material(1, other, label, 1, public, 1))

    (one, public_one), (two, public_two) = born(), born()
    assert same(one, public_one)
    assert not same(two, public_two)
    assert not same(two, public_one)
    if not row.asymmetric:  # wrapped anew by another root key: the same, and another
        value = bytes(range(row.bits // 8))
        one, again = (token.wrap_value(row, value, root) for root in (first, second))
        assert one != again
        assert same(again, b"", "hsmd-root-2")
        assert not same(token.generate(row, second), b"", "hsmd-root-2")
    else:
        assert not same(two, public_two, "hsmd-root-2")
