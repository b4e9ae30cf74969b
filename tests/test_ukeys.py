"""UKeys at the administrators' door: who is let in, and what the registry tells."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from hsmd.pb.v1 import ukeys_pb2 as pb
from tests.stand import Stand
from tests.ukeys import Crew, Holder


@dataclass
class Place:
    """A stand with UKeys, in the order of their enrolment."""

    stand: Stand
    crew: Crew
    alice: Holder  # an administrator with a token
    bob: Holder  # an administrator
    carol: Holder  # an operator
    dave: Holder  # an operator with a token
    eve: Holder  # an auditor


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("ukeys")
    stand = Stand(folder)
    crew = Crew(stand, folder)
    holders = (
        crew.token("alice", "administrator", "ec-p384"),
        crew.soft("bob", "administrator"),
        crew.soft("carol", "operator"),
        crew.token("dave", "operator", "rsa-2048"),
        crew.soft("eve", "auditor"),
    )
    crew.enrol(2, 2, *holders)
    try:
        stand.start(gateway=False)
        yield Place(stand, crew, *holders)
    finally:
        stand.stop()


def test_a_ukey_logs_in_and_sees_the_registry(place: Place) -> None:
    with place.crew.client(place.bob) as client:
        found = client.ukeys.ListUkeys(pb.ListUkeysRequest())
        assert client.ukey is not None
        assert client.ukey.id == place.bob.id
    assert [each.name for each in found.ukeys] == ["alice", "bob", "carol", "dave", "eve"]
    assert found.quorum == pb.Quorum(administrators=2, operators=2)
