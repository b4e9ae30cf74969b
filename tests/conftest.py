"""Fixtures that several test files share."""

from collections.abc import Iterator

import pytest

from tests.stand import Stand, Tenant, standing


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """One daemon and gateway for every test that leaves them as they are (keys it may make)."""
    settings = {"HSMD__LIMITS__KEYS_PER_PROJECT": "100000"}
    with standing(tmp_path_factory.mktemp("stand"), settings) as one:
        yield one


@pytest.fixture(scope="session")
def stranger(stand: Stand) -> Tenant:
    """An administrator of another domain on the same daemon."""
    return stand.add_tenant("stranger")


@pytest.fixture(scope="session")
def reader(stand: Stand) -> Tenant:
    """A user who may only look, in a domain of its own."""
    return stand.add_tenant("reader", ("KMS CMKReadOnlyAccess",))
