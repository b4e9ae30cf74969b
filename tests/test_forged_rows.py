"""A row changed behind the daemon's back, in a list of keys: left out and told, and the others are there."""

from pathlib import Path

import pytest

from hsmd.client import ApiError, Client
from hsmd.domain import access_points, key_policies, keys
from hsmd.domain.access_points import ECS, Draft
from hsmd.errors import PARAMETER_INVALID
from hsmd.pb.v1 import keys_pb2
from tests.calls import fresh, listed, records
from tests.faults import change_rows
from tests.stand import standing
from tests.test_time_passes import House, house, refused

__all__ = ["house"]  # the fixture

_SPACE, _OTHER_SPACE = (f"00000000-0000-4000-8000-00000000000{n}" for n in "01")


def _pages(client: Client) -> list[list[str]]:
    """All pages of two."""
    found, marker = [], "0"
    while marker:
        page = listed(client, limit=2, marker=int(marker))
        assert page.total == 5
        found.append([each.key_id for each in page.key_details])
        marker = page.next_marker
    return found


@pytest.mark.parametrize("number", [0, 2, 4])
def test_list_keys_goes_on_without_it(tmp_path: Path, number: int) -> None:
    with standing(tmp_path, {"HSMD__GRPC__WORKERS": "1"}, gateway=False) as stand, stand.client() as client:
        made = [client.create_key(fresh()) for _ in range(5)]
        forged = made[number]
        change_rows(stand, "UPDATE keys SET description = 'forged' WHERE id = ?", forged)
        left = [key for key in made if key != forged]
        answer = listed(client, limit=100)
        assert [each.key_id for each in answer.key_details] == left
        assert (answer.total, answer.next_marker) == (5, "")
        pages = _pages(client)
        assert [key for page in pages for key in page] == left
        assert len(pages) == 3
        told = [each for each in records(stand, forged) if each["event"] == "refuseRow"]
        assert {(each["resource"], each["identity"]) for each in told} == {(f"keys/{forged}", "system")}
        assert len(told) == 2
        assert stand.log().count(f"the row '{forged}' of the table 'keys' fails its seal") >= 2
        with pytest.raises(ApiError) as caught:
            client.describe_key(forged)
        assert caught.value.code == "KMS.0101"
        request = keys_pb2.ListKeysRequest(limit=1, marker=number)
        assert list(client.keys.ListKeys(request).key_details) == []


def test_a_policy_s_access_points_are_looked_at_before_anybody_waits(house: House) -> None:
    """Each is a row with its seal, and a policy names up to 100: not while the store is held for a change."""
    points = [
        access_points.create(house.call(), Draft(_SPACE, f"{n}", ECS, identity="i")).id for n in range(60)
    ]
    store, seals = house.core.store, []
    seal = store.seal
    assert seal

    def counted(content: bytes) -> bytes:
        seals.append(store._writing.locked())
        return seal(content)

    store.seal = counted
    listed_points = ",".join(f'"{each}"' for each in points)
    terms = f'{{"version":"1.0","allowedAccessPoint":[{listed_points}]}}'
    policy = key_policies.create(house.call(), _SPACE, "policy", terms, "")
    assert seals.count(True) <= 2
    assert seals.count(False) >= 60
    seals.clear()
    key_policies.update(house.call(), policy.id, terms, None)
    assert seals.count(True) <= 3
    refused(PARAMETER_INVALID, lambda: key_policies.create(house.call(), _OTHER_SPACE, "policy", terms, ""))
    keys.create_key(house.call(), alias="key")
