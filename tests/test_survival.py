"""What was acknowledged stands: through kill -9 of one process or all, and on every worker at once."""

import os
import random
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsmd.client import ApiError, Client
from tests.faults import processes, rows
from tests.stand import Stand, eventually, standing

_TWO_WORKERS = {"HSMD__GRPC__WORKERS": "2", "HSMD__LIMITS__KEYS_PER_PROJECT": "100000"}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Stand]:
    with standing(tmp_path, _TWO_WORKERS, gateway=False) as one:
        yield one


def answered(call: Callable[[], bytes]) -> bytes:
    """The call's answer, once there is one: workers may just be starting."""

    def attempt() -> bytes | None:
        try:
            return call()
        except ApiError as error:
            if not error.unanswered:
                raise
            return None

    found: bytes = eventually(attempt)
    return found


def test_data_outlives_restarts_and_kills(two: Stand) -> None:
    with two.client() as client:
        key = client.create_key("key")
        blob = client.encrypt(key, b"data", b"aad")
        plain, wrapped = client.create_data_key(key)

    def check() -> None:
        with two.client() as client:
            assert answered(lambda: client.decrypt(blob, b"aad")) == b"data"
            assert answered(lambda: client.decrypt_data_key(key, wrapped)) == plain
            assert client.describe_key("alias/key").key_id == key
            assert client.decrypt(client.encrypt(key, b"more")) == b"more"

    two.restart_daemon()
    check()
    for pid in processes(two):
        os.kill(pid, signal.SIGKILL)
        check()
    processes(two)
    two.kill_everything()
    two.start(gateway=False)
    check()
    assert rows(two, "PRAGMA integrity_check") == [("ok",)]


class Maker:
    """Makes keys and uses them, and remembers what was acknowledged."""

    def __init__(self, stand: Stand, number: int, stop: threading.Event) -> None:
        self.keys: list[str] = []
        self.blobs: list[bytes] = []
        self.wrong: list[str] = []
        self._stand = stand
        self._number = number
        self._stop = stop

    def work(self) -> None:
        turn = 0
        while not self._stop.is_set():
            with self._stand.client(deadline=20) as client:
                try:
                    while not self._stop.is_set():
                        turn += 1
                        self._turn(client, f"key-{self._number}-{turn}")
                except ApiError as error:
                    if not error.unanswered:
                        self.wrong.append(str(error))
                    self._stop.wait(0.1)

    def _turn(self, client: Client, alias: str) -> None:
        key = client.create_key(alias)
        self.keys.append(key)
        self.blobs.append(client.encrypt(key, key.encode()))


def test_every_acknowledged_key_outlives_kills_under_load(two: Stand) -> None:
    rounds, seed = 6, secrets.randbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)  # noqa: S311 -- no secret
    stop = threading.Event()
    makers = [Maker(two, number, stop) for number in range(6)]
    threads = [threading.Thread(target=maker.work, daemon=True) for maker in makers]
    for thread in threads:
        thread.start()
    for turn in range(rounds):
        enough = sum(len(maker.blobs) for maker in makers) + dice.randrange(20, 60)
        eventually(lambda: sum(len(maker.blobs) for maker in makers) >= enough, 60)  # noqa: B023 -- called at once
        if turn % 3 == 2:
            two.kill_everything()
            two.start(gateway=False)
        else:
            os.kill(dice.choice(list(processes(two))), signal.SIGKILL)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert [wrong for maker in makers for wrong in maker.wrong] == []
    processes(two)

    acknowledged = [key for maker in makers for key in maker.keys]
    with two.client() as client:
        for maker in makers:
            for blob in maker.blobs:
                assert answered(lambda: client.decrypt(blob)).decode() in maker.keys  # noqa: B023 -- called at once
        listed = {key.key_id for key in client.list_keys()}
        assert listed >= set(acknowledged)
        for key in listed - set(acknowledged):  # made, but its maker was not told: whole all the same
            assert client.decrypt(client.encrypt(key, b"data")) == b"data"
    print(f"{len(acknowledged)} keys acknowledged, {len(listed) - len(acknowledged)} more")

    assert rows(two, "PRAGMA integrity_check") == [("ok",)]
    assert rows(two, "PRAGMA foreign_key_check") == []
    whole = "SELECT count(*) FROM keys JOIN key_versions v ON v.key_id = keys.id AND v.version = 1"
    whole += " JOIN key_usage u ON u.key_id = keys.id AND u.version = 1 WHERE v.wrapped IS NOT NULL"
    ((count,),) = rows(two, whole)
    assert count == len(listed) == len(set(acknowledged) | listed)

    records = two.audit()  # every line of it can be read
    created = {each["resource"] for each in records if (each["event"], each["result"]) == ("createKey", "OK")}
    assert created >= listed
    used = [each for each in records if (each["event"], each["result"]) == ("encryptData", "OK")]
    assert len(used) >= sum(len(maker.blobs) for maker in makers)


@dataclass(frozen=True, eq=False)
class Moment:
    """What a key's users are to see from then on; nothing is sure while a change is under way."""

    allowed: bool
    sure: bool


@dataclass
class Switch:
    """The moment that counts now."""

    now: Moment


class User:
    """Uses one key on a connection of its own, over and over."""

    def __init__(self, stand: Stand, key: str, switch: Switch, stop: threading.Event) -> None:
        self.judged = 0
        self.wrong: list[str] = []
        self._client = stand.client()
        self._key = key
        self._switch = switch
        self._stop = stop

    def work(self) -> None:
        with self._client as client:
            while not self._stop.is_set():
                moment = self._switch.now
                try:
                    client.encrypt(self._key, b"data")
                    code = "OK"
                except ApiError as error:
                    code = error.code
                if moment is self._switch.now and moment.sure:  # the call lies within it
                    self._judge(code, moment)

    def _judge(self, code: str, moment: Moment) -> None:
        if (code == "OK") == moment.allowed and code in ("OK", "KMS.0209", "KMS.0210"):
            self.judged += 1
        else:
            self.wrong.append(f"{code} where it is {'allowed' if moment.allowed else 'not allowed'}")


def test_a_change_is_in_force_on_all_workers_when_it_is_answered(two: Stand) -> None:
    with two.client() as client:
        key = client.create_key("key")
        switch, stop = Switch(Moment(allowed=True, sure=True)), threading.Event()
        users = [User(two, key, switch, stop) for _ in range(8)]
        threads = [threading.Thread(target=user.work, daemon=True) for user in users]
        for thread in threads:
            thread.start()
        changes: list[tuple[Callable[[], object], bool]] = [
            (lambda: client.disable(key), False),
            (lambda: client.enable(key), True),
            (lambda: client.schedule_deletion(key, 7), False),
            (lambda: client.cancel_deletion(key), False),
            (lambda: client.enable(key), True),
        ]
        for change, allowed in changes * 3:
            _all_go_on(users)
            switch.now = Moment(allowed=allowed, sure=False)
            change()
            switch.now = Moment(allowed=allowed, sure=True)
        _all_go_on(users)
        stop.set()
        for thread in threads:
            thread.join(60)
    assert [wrong for user in users for wrong in user.wrong] == []


def _all_go_on(users: list[User]) -> None:
    before = [user.judged for user in users]
    eventually(
        lambda: (
            any(user.wrong for user in users)
            or all(user.judged > then for user, then in zip(users, before, strict=True))
        )
    )
