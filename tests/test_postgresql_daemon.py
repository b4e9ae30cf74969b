"""A whole daemon whose store is a PostgreSQL: it serves, agrees with itself, outlives a lost server."""

import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import huaweicloudsdkkms.v2 as kms
import psycopg
import pytest

from hsmd.client import ApiError, Client
from hsmd.pb.v1 import aliases_pb2, rotation_pb2
from tests.calls import fresh
from tests.stand import Stand, Tenant, eventually
from tests.stores import behind_its_back, new_url

_URL = "HSMD__STORE__URL"
_AWAY = ("KMS.0102", "KMS.0104")


@dataclass(frozen=True)
class House:
    """A stand whose store is this database, and its first user."""

    stand: Stand
    url: str
    user: Tenant

    def client(self) -> Client:
        return self.stand.client(self.user)

    def tell_server(self, statement: str) -> None:
        """Run SQL with the name of our database in it, from another one."""
        name = self.url.partition("?")[0].rpartition("/")[2]
        behind_its_back(self.url.replace(f"/{name}?", "/postgres?"), statement.format(name))

    def cut(self) -> None:
        """End all connections of the daemon's."""
        self.tell_server("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("postgresql")
    with new_url(request, "postgresql", folder) as url:
        stand = Stand(folder, {_URL: url, "HSMD__GRPC__WORKERS": "2"})
        shutil.rmtree(folder / "store")
        user = stand.add_tenant("founder")
        try:
            stand.start()
            yield House(stand, url, user)
        finally:
            stand.stop()


@pytest.fixture
def client(house: House) -> Iterator[Client]:
    with house.client() as one:
        yield one


def rotate(client: Client, key: str) -> None:
    client.rotation.RotateOnDemand(rotation_pb2.RotateOnDemandRequest(key_id=key))


def test_nothing_is_kept_elsewhere(house: House, client: Client) -> None:
    key = client.create_key(fresh())
    with psycopg.connect(house.url) as database:
        assert database.execute("SELECT count(*) FROM keys WHERE id = %s", [key]).fetchall() == [(1,)]
    assert not list(house.stand.dev.data.rglob("*.db"))


def test_keys_and_ciphertexts_outlive_a_restart(house: House) -> None:
    with house.client() as client:
        key = client.create_key(fresh())
        blobs = {client.encrypt(key, b"first")}
        rotate(client, key)
        blobs.add(client.encrypt(key, b"second"))
    house.stand.restart_daemon()
    with house.client() as client:
        assert {client.decrypt(each) for each in blobs} == {b"first", b"second"}
    sdk = house.stand.sdk(house.user)
    body = kms.EncryptDataRequestBody(key_id=key, plain_text="over REST")
    sealed = sdk.encrypt_data(kms.EncryptDataRequest(body=body)).cipher_text
    asked = kms.DecryptDataRequest(body=kms.DecryptDataRequestBody(cipher_text=sealed))
    assert sdk.decrypt_data(asked).plain_text == "over REST"


def test_many_at_once_by_two_workers(house: House) -> None:
    """Of those who want one name one has it; all else that was acknowledged is there."""
    name = f"alias/{fresh()}"

    def one(number: int) -> tuple[str, str]:
        with house.client() as client:
            key = client.create_key(fresh())
            wanted = aliases_pb2.CreateAliasRequest(alias=name, key_id=key)
            try:
                client.aliases.CreateAlias(wanted)
            except ApiError as error:
                return key, error.code
            return key, "OK"

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(one, range(16)))
    assert Counter(code for _, code in done) == {"OK": 1, "KMS.1104": 15}
    with house.client() as client:
        listed = {each.key_id for each in client.list_keys()}
    assert {key for key, _ in done} <= listed


def test_lost_connections_are_made_again(house: House, client: Client) -> None:
    client.create_key(fresh())
    house.cut()
    eventually(lambda: _made(client))


def test_a_server_that_is_away(house: House, client: Client) -> None:
    """Changes are refused in time and recorded, keys in use go on; once it is back all goes on by itself."""
    key = client.create_key(fresh())
    blob = client.encrypt(key, b"kept")
    house.tell_server("ALTER DATABASE {} ALLOW_CONNECTIONS false")
    try:
        house.cut()
        with pytest.raises(ApiError) as refused:
            client.create_key(fresh())
        assert refused.value.code in _AWAY
        (written,) = [each for each in house.stand.audit() if each["request_id"] == refused.value.request_id]
        assert written["result"] == refused.value.code
    finally:
        house.tell_server("ALTER DATABASE {} ALLOW_CONNECTIONS true")
    eventually(lambda: _made(client))
    assert client.decrypt(blob) == b"kept"


def _made(client: Client) -> bool:
    try:
        return bool(client.create_key(fresh()))
    except ApiError as error:
        if error.code not in _AWAY:
            raise
        return False
