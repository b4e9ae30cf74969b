"""Capsules on a clock that the test sets, and quotas: the rules run in this process, over a real token."""

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from hsmd.domain import access_points, capsules, key_policies, keys
from hsmd.domain.access_points import CUSTOM, Draft
from hsmd.domain.capsules import Attestation
from hsmd.errors import (
    CAPSULE_REFUSED,
    KEYSPACE_QUOTA_EXCEEDED,
    KEYSPACE_THING_NOT_FOUND,
    PARAMETER_INVALID,
    Error,
)
from tests.keyspaces import Point, keyspace, statement, terms
from tests.test_time_passes import House, house, refused

__all__ = ["house"]  # a fixture

SECOND, MINUTE, DAY = 1000, 60_000, 24 * 60 * 60_000


class Till:
    """An access point, a key, and capsules, in a house whose clock stands at a whole second."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.space = keyspace()
        self.key = keys.create_key(house.call(), alias="key").id
        made = access_points.create(house.call(), Draft(self.space, "till", CUSTOM))
        private = load_der_private_key(access_points.private_key(house.call(), made.id)[1], None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        self.point = Point(made.id, self.space, private)

    def policy(self, **period: int) -> str:
        bounds = {name: key_policies.time(at) for name, at in period.items()}
        text = terms(self.point.id, validityPeriod=bounds)
        name = f"policy-{len(bounds)}-{self.house.now}"
        return key_policies.create(self.house.call(), self.space, name, text, "").id

    def capsule(self, policy: str) -> capsules.DataKey:
        return capsules.create(self.house.call(), self.key, 256, policy_id=policy)

    def attested(self, capsule: bytes, ahead: int = MINUTE) -> Attestation:
        expires = key_policies.time(self.house.now + ahead)
        public = self.point.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return Attestation(self.point.sign(statement(expires, capsule)), public, expires)

    def decrypt(self, capsule: bytes, attestation: Attestation | None = None) -> bytes | None:
        shown = attestation or self.attested(capsule)
        return capsules.decrypt(self.house.call(), self.key, capsule, shown).plain


@pytest.fixture
def till(house: House) -> Till:
    return Till(house)


def why(call: Callable[[], object]) -> str:
    with pytest.raises(Error) as refusal:
        call()
    assert refusal.value.fault is CAPSULE_REFUSED
    return refusal.value.message


def test_a_policy_holds_from_its_first_to_before_its_last_millisecond(till: Till) -> None:
    house = till.house
    starts, ends = house.now + DAY, house.now + 2 * DAY
    policy = till.policy(start_time=starts, end_time=ends)
    made = till.capsule(policy)  # what begins later can be prepared
    assert "its policy begins at 2023-11-15T22:13:20Z" in why(lambda: till.decrypt(made.capsule))
    house.now = starts - 1
    assert "its policy begins at" in why(lambda: till.decrypt(made.capsule))
    house.now = starts
    assert till.decrypt(made.capsule) == made.plain
    house.now = ends - 1
    assert till.decrypt(made.capsule) == made.plain
    house.now = ends
    assert "its policy ended at 2023-11-16T22:13:20Z" in why(lambda: till.decrypt(made.capsule))
    refused(PARAMETER_INVALID, lambda: till.capsule(policy))
    text = terms(till.point.id, validityPeriod={"end_time": key_policies.time(ends + DAY)})
    key_policies.update(house.call(), policy, text, None)
    assert till.decrypt(made.capsule) == made.plain
    key_policies.delete(house.call(), policy)
    assert "its policy is gone" in why(lambda: till.decrypt(made.capsule))
    refused(KEYSPACE_THING_NOT_FOUND, lambda: till.capsule(policy))


def test_an_attestation_holds_until_before_its_end(till: Till) -> None:
    house = till.house
    made = till.capsule(till.policy())
    shown = till.attested(made.capsule, 15 * MINUTE)
    assert "15 minutes" in why(lambda: till.decrypt(made.capsule, till.attested(made.capsule, 901 * SECOND)))
    house.now += 15 * MINUTE
    assert "has expired" in why(lambda: till.decrypt(made.capsule, shown))
    house.now -= 1
    assert till.decrypt(made.capsule, shown) == made.plain


def test_used_attestations_are_kept_until_none_can_come_again(till: Till) -> None:
    house = till.house
    made = till.capsule(till.policy())
    start, shown = house.now, till.attested(made.capsule)

    def kept() -> int:
        ((count,),) = house.sql("SELECT count(*) FROM attestations")
        return int(count)

    till.decrypt(made.capsule, shown)
    assert "used before" in why(lambda: till.decrypt(made.capsule, shown))
    house.now = start + 60 * MINUTE
    till.decrypt(made.capsule)
    house.now = start  # set back
    assert "used before" in why(lambda: till.decrypt(made.capsule, shown))
    assert kept() == 2
    house.now = start + 3 * 60 * MINUTE
    till.decrypt(made.capsule)
    assert kept() == 1


def test_when_it_was_used_last(till: Till) -> None:
    house = till.house
    policy = till.policy()
    made = till.capsule(policy)
    assert key_policies.show(house.call(), policy).accessed is None
    house.now += 5
    till.decrypt(made.capsule)
    found = key_policies.show(house.call(), policy)
    assert (found.accessed, found.updated) == (house.now, house.now - 5)


def test_a_policy_changed_behind_our_back_is_noticed(till: Till) -> None:
    made = till.capsule(till.policy(end_time=till.house.now + DAY))
    till.house.sql("UPDATE key_policies SET terms = replace(terms, '2023', '2033')")
    with pytest.raises(Exception, match="fails its seal"):
        till.decrypt(made.capsule)


def test_quotas(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    house = till.house
    monkeypatch.setattr(access_points, "POINTS_PER_PROJECT", 3)
    monkeypatch.setattr(key_policies, "POLICIES_PER_PROJECT", 2)
    assert (KEYSPACE_QUOTA_EXCEEDED.code, KEYSPACE_QUOTA_EXCEEDED.grpc) == ("KMS.1105", "RESOURCE_EXHAUSTED")

    def point(name: str) -> str:
        return access_points.create(house.call(), Draft(keyspace(), name, CUSTOM)).id

    point("second")
    last = point("third")
    refused(KEYSPACE_QUOTA_EXCEEDED, lambda: point("fourth"))  # in whatever keyspace
    access_points.delete(house.call(), last)
    point("fourth")
    first = till.policy()
    house.now += SECOND
    till.policy()
    house.now += SECOND
    refused(KEYSPACE_QUOTA_EXCEEDED, till.policy)
    key_policies.delete(house.call(), first)
    till.policy()


def test_a_deleted_private_key_is_overwritten(till: Till) -> None:
    house = till.house
    ((wrapped,),) = house.sql("SELECT wrapped FROM access_points WHERE id = ?", till.point.id)
    access_points.delete(house.call(), till.point.id)
    for file in house.folder.glob("hsmd.db*"):
        assert wrapped not in file.read_bytes(), file.name
