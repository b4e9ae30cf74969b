"""Guessing a PIN or access key, or what an access point signs: slowed down like all that can be tried again.

The rules run in this process, over a real token and a real store; the throttle has the machine's own clock.
"""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from hsmd.domain import access_points, capsules, datakeys, keys, signatures, throttle
from hsmd.domain.access_points import CUSTOM, Draft
from hsmd.domain.capsules import Attestation
from hsmd.domain.core import Call
from hsmd.domain.pins import PLAIN, Pin
from hsmd.domain.signatures import Signature
from hsmd.errors import CAPSULE_REFUSED, CIPHERTEXT_INVALID, IDENTITY_REFUSED, RATE_EXCEEDED, Fault
from tests.test_time_passes import House, house, refused

__all__ = ["house"]  # the fixture

_RIGHT, _WRONG = Pin("the right pin", PLAIN), Pin("a wrong pin", PLAIN)
_KEYSPACE = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first pause that outlasts the test, whatever the machine is busy with."""
    monkeypatch.setattr(throttle, "FIRST_PAUSE_SECONDS", 200.0)


def by(house: House, number: int) -> Call:
    """A request by one of many users."""
    call = house.call()
    call.caller = call.caller._replace(user_id=f"{number:032x}")
    return call


def opened(call: Call, key: str, blob: bytes, pin: Pin) -> bytes:
    return datakeys.decrypt(call, key, blob, 32, b"", pin)[0]


def refuses(fault: Fault, open_it: Callable[..., object], *words: object) -> None:
    refused(fault, lambda: open_it(*words))


def test_pins_of_one_data_key(house: House) -> None:
    key = keys.create_key(house.call(), alias="key").id
    blob = datakeys.create(house.call(), key, "", None, b"", _RIGHT)[2]
    _, other_dek, other = datakeys.create(house.call(), key, "", None, b"", _RIGHT)
    _, plain_dek, plain = datakeys.create(house.call(), key, "", None, b"")
    for number in range(5):  # by whomever
        refuses(CIPHERTEXT_INVALID, opened, by(house, number), key, blob, _WRONG)
    for pin in (_WRONG, _RIGHT):
        refuses(RATE_EXCEEDED, opened, by(house, 5), key, blob, pin)
    assert opened(by(house, 5), key, other, _RIGHT) == other_dek
    assert opened(by(house, 0), key, plain, Pin()) == plain_dek


def test_a_right_pin_begins_anew(house: House) -> None:
    key = keys.create_key(house.call(), alias="key").id
    _, dek, blob = datakeys.create(house.call(), key, "", None, b"", _RIGHT)
    for number in range(3):
        for _ in range(4):
            refuses(CIPHERTEXT_INVALID, opened, by(house, number), key, blob, _WRONG)
        assert opened(by(house, number), key, blob, _RIGHT) == dek


def test_one_pin_tried_at_many_data_keys(house: House) -> None:
    key = keys.create_key(house.call(), alias="key").id
    made = [datakeys.create(house.call(), key, "", None, b"", _RIGHT)[1:] for _ in range(26)]
    for _, blob in made[:25]:
        refuses(CIPHERTEXT_INVALID, opened, by(house, 1), key, blob, _WRONG)
    dek, blob = made[25]
    refuses(RATE_EXCEEDED, opened, by(house, 1), key, blob, _RIGHT)
    assert opened(by(house, 2), key, blob, _RIGHT) == dek


def test_attestations_of_an_access_point(house: House) -> None:
    key = keys.create_key(house.call(), alias="key").id
    points = [access_points.create(house.call(), Draft(_KEYSPACE, name, CUSTOM)) for name in ("one", "two")]
    terms = f'{{"version":"1.0","allowedAccessPoint":["{points[0].id}","{points[1].id}"]}}'
    capsule = capsules.create(house.call(), key, 256, terms=terms).capsule
    one, other = (
        Attestation(b"\x30\x06\x02\x01\x01\x02\x01\x01", each.public_key or b"", "2023-11-14T22:14:00Z")
        for each in points
    )
    for _ in range(25):
        refuses(CAPSULE_REFUSED, capsules.decrypt, by(house, 1), key, capsule, one)
    refuses(RATE_EXCEEDED, capsules.decrypt, by(house, 1), key, capsule, one)
    refuses(CAPSULE_REFUSED, capsules.decrypt, by(house, 1), key, capsule, other)
    refuses(CAPSULE_REFUSED, capsules.decrypt, by(house, 2), key, capsule, one)


def test_access_keys_that_can_be_none_are_one(house: House) -> None:
    """Of others that are claimed nothing is remembered: they may be long, and a password typed there."""
    date = datetime.fromtimestamp(house.now / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    before = len(house.core.throttle)
    for number in range(25):
        evidence = Signature(f"my password {number}" * 100, date, b"", "0" * 64)
        refuses(IDENTITY_REFUSED, signatures.by_signature, house.call(), evidence)
    assert len(house.core.throttle) <= before + 2  # the address, and what all of these are
    refuses(RATE_EXCEEDED, signatures.by_signature, house.call(), evidence)
    refuses(IDENTITY_REFUSED, signatures.by_signature, house.call(), evidence._replace(access_key="A" * 20))
