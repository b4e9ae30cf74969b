"""Fixtures that several test files share."""

import os

# Read when gRPC is imported. With it, what is forked while a thread is inside gRPC crashes now and then.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from hsmd.client import Client
from tests.calls import Operation
from tests.policies import worker
from tests.specs import Keys
from tests.stand import CLUSTERS, NOWHERE, PATIENT, Stand, Tenant, standing
from tests.stores import empty_url, postgresql_server, sqlite_store, sqlite_url, store, store_url

# A machine that stands still for a while says nothing about what is examined.
settings.register_profile(
    "unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")

__all__ = [  # fixtures
    "empty_url",
    "postgresql_server",
    "sqlite_store",
    "sqlite_url",
    "store",
    "store_url",
    "worker",
]


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """One daemon and gateway for every test that leaves them as they are (keys it may make)."""
    patient = {
        **PATIENT,
        "HSMD__LIMITS__KEYS_PER_PROJECT": "100000",
        "HSMD__GRPC__WORKERS": "2",  # what one of them changed counts for the other
        "HSMD__GATEWAY__WORKERS": "2",
    }
    one = Stand(tmp_path_factory.mktemp("stand"), patient)
    one.add_clusters(*CLUSTERS)
    one.add_peer(NOWHERE)
    try:
        one.start()
        one.clusters_come()
        yield one
    finally:
        one.stop()


@pytest.fixture(scope="session")
def stranger(stand: Stand) -> Tenant:
    """An administrator of another domain on the same daemon."""
    return stand.add_tenant("stranger")


@pytest.fixture(scope="session")
def reader(stand: Stand) -> Tenant:
    """A user who may only look, in a domain of its own."""
    return stand.add_tenant("reader", ("KMS CMKReadOnlyAccess",))


@pytest.fixture(scope="session")
def client(stand: Stand) -> Iterator[Client]:
    """The development user over gRPC."""
    with stand.client() as one:
        yield one


@pytest.fixture(scope="session")
def keys(client: Client) -> Keys:
    """Keys of every spec, made as they are needed and shared."""
    found = client.status().capabilities
    return Keys(client, frozenset(each.name for each in found if each.available))


@pytest.fixture(scope="session")
def strange(stand: Stand, stranger: Tenant) -> Iterator[Client]:
    """The stranger over gRPC."""
    with stand.client(stranger) as one:
        yield one


@pytest.fixture(scope="session")
def rest(stand: Stand) -> Operation:
    """KMS operations of the development user over REST, with a token."""
    token = stand.token()
    return lambda operation, body: stand.kms(operation, body, token=token)


@pytest.fixture(scope="session")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A stand with three keys a project and tokens that expire as they are issued."""
    limits = {
        "HSMD__LIMITS__KEYS_PER_PROJECT": "3",
        "HSMD__LIMITS__TOKEN_HOURS": "0",
        "HSMD__JOBS__ROUND_SECONDS": "60",  # its jobs would keep the disk busy to the end
    }
    with standing(tmp_path_factory.mktemp("strict"), limits) as one:
        yield one
