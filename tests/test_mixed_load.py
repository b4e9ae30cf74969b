"""64 threads, mixed operations over several connections, each result checked: no error, no wrong result."""

import hashlib
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest

from hsmd.client import ApiError, Client
from tests.calls import fresh
from tests.stand import Stand, standing

_THREADS, _CHANNELS, _KEYS = 64, 8, 12


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A daemon of our own: few keys fit in its workers at once, so that they come and go under load."""
    folder = tmp_path_factory.mktemp("mixed")
    settings = {
        "HSMD__LIMITS__KEYS_PER_PROJECT": "100000",
        "HSMD__HSM__LOADED_KEYS": str(_KEYS // 2),
        "HSMD__GRPC__WAITING_CALLS": "1000",
    }
    with standing(folder, settings, gateway=False) as one:
        yield one


class Worker:
    """One thread's share: `turns` operations drawn by its own dice."""

    def __init__(self, client: Client, keys: Sequence[str], turns: int, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._client = client
        self._keys = keys
        self._turns = turns
        self._dice = random.Random(seed)  # noqa: S311 -- no secret
        self._blobs: list[tuple[bytes, bytes, bytes, str]] = []
        self._wrapped: list[tuple[bytes, bytes, bytes, str]] = []
        self._seen: set[bytes] = set()
        self._own = ""
        self._operations: tuple[tuple[int, Callable[[], bool]], ...] = (
            (30, self.encrypt),
            (30, self.decrypt),
            (8, self.create_data_key),
            (8, self.decrypt_data_key),
            (4, self.encrypt_data_key),
            (8, self.random),
            (5, self.refused),
            (3, self.describe),
            (2, self.change),
            (1, self.create),
            (1, self.list),
        )

    def work(self) -> None:
        weights = [weight for weight, _ in self._operations]
        for _ in range(self._turns):
            (_, operation) = self._dice.choices(self._operations, weights)[0]
            try:
                if not operation():
                    self.wrong.append(f"{operation.__name__}: a wrong answer")
            except Exception as error:  # whatever it is, the test is to see it
                self.wrong.append(f"{operation.__name__}: {error!r}")
            self.done[operation.__name__] += 1

    def _bytes(self, least: int, most: int) -> bytes:
        return self._dice.randbytes(self._dice.randint(least, most))

    def encrypt(self) -> bool:
        key, data, aad = self._dice.choice(self._keys), self._bytes(1, 2048), self._bytes(0, 64)
        blob = self._client.encrypt(key, data, aad)
        self._blobs = [*self._blobs[-19:], (blob, aad, data, key)]
        fresh = blob[52:64] not in self._seen  # its IV
        self._seen.add(blob[52:64])
        return fresh and len(blob) == 124 + (len(data) + 15) // 16 * 16

    def decrypt(self) -> bool:
        if not self._blobs:
            return self.encrypt()
        blob, aad, data, key = self._dice.choice(self._blobs)
        return self._client.decrypt(blob, aad, key_id=key) == data

    def create_data_key(self) -> bool:
        key, aad = self._dice.choice(self._keys), self._bytes(0, 64)
        plain, wrapped = self._client.create_data_key(key, 512, aad)
        self._wrapped = [*self._wrapped[-19:], (wrapped, aad, plain, key)]
        return len(plain) == 64

    def decrypt_data_key(self) -> bool:
        if not self._wrapped:
            return self.create_data_key()
        wrapped, aad, plain, key = self._dice.choice(self._wrapped)
        return self._client.decrypt_data_key(key, wrapped, aad) == plain

    def encrypt_data_key(self) -> bool:
        key, aad, plain = self._dice.choice(self._keys), self._bytes(0, 64), self._bytes(1, 128)
        self._wrapped = [
            *self._wrapped[-19:],
            (self._client.encrypt_data_key(key, plain, aad), aad, plain, key),
        ]
        return True

    def random(self) -> bool:
        size = self._dice.randint(16, 512)
        drawn = self._client.random(size)
        digest = hashlib.sha256(drawn).digest()
        fresh = digest not in self._seen
        self._seen.add(digest)
        return fresh and len(drawn) == size

    def refused(self) -> bool:
        """A ciphertext that is not whole, or not of these data."""
        if not self._blobs:
            return self.encrypt()
        blob, aad, _, key = self._dice.choice(self._blobs)
        at = self._dice.randrange(len(blob))
        changed = blob[:at] + bytes([blob[at] ^ 1 << self._dice.randrange(8)]) + blob[at + 1 :]
        other = (changed, aad) if self._dice.random() < 0.5 else (blob, aad + b"x")
        try:
            self._client.decrypt(*other, key_id=key)
        except ApiError as error:
            return error.code == "KMS.2201"
        return False

    def describe(self) -> bool:
        key = self._dice.choice(self._keys)
        return self._client.describe_key(key).key_id == key

    def change(self) -> bool:
        """A key of its own is disabled, useless, enabled and useful again."""
        if not self._own:
            return self.create()
        self._client.disable(self._own)
        try:
            self._client.encrypt(self._own, b"data")
        except ApiError as error:
            refused = error.code == "KMS.0209"
        else:
            refused = False
        self._client.enable(self._own)
        return refused and self._client.decrypt(self._client.encrypt(self._own, b"data")) == b"data"

    def create(self) -> bool:
        alias = fresh("own")
        self._own = self._client.create_key(alias)
        return self._client.describe_key(f"alias/{alias}").key_id == self._own

    def list(self) -> bool:
        listed = [key.key_id for key in self._client.list_keys()]
        return len(listed) == len(set(listed)) and set(self._keys) <= set(listed)


def mixed(stand: Stand, operations: int) -> None:
    seed = secrets.randbits(32)
    clients = [stand.client(deadline=120) for _ in range(_CHANNELS)]
    keys = [clients[0].create_key(f"shared-{seed}-{number}") for number in range(_KEYS)]
    turns = -(-operations // _THREADS)
    workers = [Worker(clients[number % _CHANNELS], keys, turns, seed + number) for number in range(_THREADS)]
    threads = [threading.Thread(target=worker.work) for worker in workers]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - started
    for client in clients:
        client.close()
    done = sum((worker.done for worker in workers), Counter())
    print(f"seed {seed}: {done.total()} in {took:.0f} s, {done.total() / took:.0f}/s: {dict(done)}")
    assert done.total() >= operations
    wrong = [each for worker in workers for each in worker.wrong]
    assert wrong == []
    assert "Traceback" not in stand.log()


def test_four_thousand_mixed_operations(roomy: Stand) -> None:
    mixed(roomy, 4_000)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_mixed_operations(roomy: Stand) -> None:
    mixed(roomy, 100_000)
