"""What comes with time, on a clock that the test sets: deletions fall due, key versions are used up.

The rules run in this process, over a real token and a real store.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from hsmd import store as stores
from hsmd.audit import Log
from hsmd.caller import Caller
from hsmd.config import Hsm, Limits, Settings
from hsmd.config import Store as StoreSettings
from hsmd.daemon import jobs, wiring
from hsmd.domain import access, crypto, deletion, keys, rotation, usage
from hsmd.domain.core import TOKEN_KEYS, Call, Core
from hsmd.errors import (
    CIPHERTEXT_INVALID,
    KEY_NOT_FOUND,
    KEY_PENDING_DELETION,
    KEY_USED_UP,
    REGION_UNAVAILABLE,
    UNAVAILABLE,
    Error,
    Fault,
)
from hsmd.keyring import Keyring
from hsmd.store import SealBroken, replicas
from hsmd.store.replicas import REPLICATED, Replica
from tests.hsm_parts import connected
from tests.softhsm import make_token

_DAY = 24 * 60 * 60 * 1000
_CALLER = Caller("certificate", user_id="1" * 32, project_id="2" * 32, domain_id="3" * 32)


@dataclass
class House:
    """A core and the ways to use it: `now` is its clock, in ms since 1970."""

    core: Core
    audit: Log
    folder: Path
    now: int = 1_700_000_000_000

    def call(self) -> Call:
        """A request that begins now."""
        self.core.refresh()
        return Call(self.core, _CALLER, lambda: None)

    def encrypt(self, key: str, data: bytes = b"data") -> bytes:
        return crypto.encrypt_data(self.call(), key, data, "", b"")[1]

    def decrypt(self, blob: bytes) -> bytes:
        return crypto.decrypt_data(self.call(), "", blob, "", b"").data

    def carry_out(self) -> int:
        self.core.refresh()
        return jobs.Jobs(self.core, self.audit, "test").carry_out(jobs.DELETIONS, {})

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.folder / "hsmd.db", timeout=30)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def second_core(self) -> Core:
        """Another process's parts, over the same token and store."""
        return self._core(self.core.token)

    def _core(self, token: Any) -> Core:
        settings = Settings(hsm=Hsm(), store=StoreSettings(f"sqlite:///{self.folder / 'hsmd.db'}"))
        store = wiring.open_store(settings, token)
        return Core(store, token, Keyring(token, 100), lambda: self.now, Limits(), "local-1")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with connected(make_token(tmp_path)) as token:
        root, *others = TOKEN_KEYS
        token.make_root_key(root)
        for label in others:
            token.make_hmac_key(label)
        stores.upgrade(f"sqlite:///{tmp_path / 'hsmd.db'}")
        audit = Log(tmp_path / "audit" / "warden.jsonl", durable=False)
        made = House(None, audit, tmp_path)  # type: ignore[arg-type]  # the core needs its clock
        made.core = made._core(token)
        yield made
        audit.close()
        made.core.store.close()


def refused(fault: Fault, call: Callable[[], object]) -> None:
    with pytest.raises(Error) as refusal:
        call()
    assert refusal.value.fault is fault


# Deletion


def test_deletion_can_be_taken_back_until_its_last_millisecond(house: House) -> None:
    key = keys.create_key(house.call(), alias="key").id
    blob = house.encrypt(key)
    due = deletion.schedule(house.call(), key, 7).deletion_date
    assert due == house.now + 7 * _DAY
    house.now = due - 1
    assert house.carry_out() == 0
    refused(KEY_PENDING_DELETION, lambda: house.decrypt(blob))
    assert deletion.cancel(house.call(), key).state == access.DISABLED
    keys.enable_key(house.call(), key)
    house.now = due + _DAY
    assert house.carry_out() == 0
    assert house.decrypt(blob) == b"data"


def test_a_key_whose_rows_are_damaged_does_not_stand_before_the_others(house: House) -> None:
    made = sorted(keys.create_key(house.call(), alias=f"key-{n}").id for n in range(3))
    with house.core.store.write() as tx:
        for key in made:
            replicas.put_replica(tx, Replica(key, "west", REPLICATED, 0, 0, 0, house.now))
    house.sql("DELETE FROM key_versions WHERE key_id = ?", made[0])
    house.core.refresh()
    trouble: dict[str, str] = {}
    assert jobs.Jobs(house.core, house.audit, "test").carry_out(jobs.REPLICAS, trouble) == 0
    assert sorted(trouble) == made
    assert trouble[made[0]] == f"not in step: key {made[0]} lacks its version 1"
    assert "west" in trouble[made[1]]


def test_a_key_is_gone_when_its_day_has_come_even_before_the_job_ran(house: House) -> None:
    key = keys.create_key(house.call(), alias="key").id
    blob = house.encrypt(key)
    house.now = deletion.schedule(house.call(), key, 7).deletion_date or 0
    refused(KEY_NOT_FOUND, lambda: deletion.cancel(house.call(), key))
    refused(KEY_NOT_FOUND, lambda: keys.describe_key(house.call(), key))
    refused(KEY_NOT_FOUND, lambda: keys.describe_key(house.call(), "alias/key"))
    refused(KEY_NOT_FOUND, lambda: keys.enable_key(house.call(), key))
    refused(KEY_NOT_FOUND, lambda: house.encrypt(key))
    refused(CIPHERTEXT_INVALID, lambda: house.decrypt(blob))


def test_destruction_takes_the_material_and_leaves_the_record(house: House) -> None:
    key, other = (keys.create_key(house.call(), alias=alias).id for alias in ("key", "other"))
    blob, kept = house.encrypt(key), house.encrypt(other)
    ((wrapped,),) = house.sql("SELECT wrapped FROM key_versions WHERE key_id = ?", key)
    house.now = deletion.schedule(house.call(), key, 7).deletion_date or 0
    assert house.carry_out() == 1
    assert house.carry_out() == 0

    assert house.sql("SELECT wrapped, destroyed FROM key_versions WHERE key_id = ?", key) == [
        (None, house.now)
    ]
    assert house.sql("SELECT state, alias FROM keys WHERE id = ?", key) == [(0, "key")]
    for file in house.folder.glob("hsmd.db*"):
        assert wrapped not in file.read_bytes(), file.name
    assert len(house.core.keyring) == 1
    refused(CIPHERTEXT_INVALID, lambda: house.decrypt(blob))
    refused(KEY_NOT_FOUND, lambda: keys.describe_key(house.call(), key))
    refused(KEY_NOT_FOUND, lambda: deletion.cancel(house.call(), key))
    assert house.decrypt(kept) == b"data"
    assert keys.create_key(house.call(), alias="key").id != key  # its name is free again
    (record,) = (house.folder / "audit" / "warden.jsonl").read_text().splitlines()
    assert '"event":"deleteKey"' in record
    assert '"result":"OK"' in record
    assert f'"resource":"{key}"' in record
    assert _CALLER.project_id in record
    assert _CALLER.domain_id in record


def test_a_changed_row_does_not_keep_the_others_from_their_end(house: House) -> None:
    broken, key = (keys.create_key(house.call(), alias=alias).id for alias in ("broken", "key"))
    for each in (broken, key):
        deletion.schedule(house.call(), each, 7)
    house.sql("UPDATE keys SET description = 'another' WHERE id = ?", broken)
    house.now += 8 * _DAY
    assert house.carry_out() == 1
    assert house.sql("SELECT state FROM keys WHERE id = ?", key) == [(0,)]
    assert house.sql("SELECT state FROM keys WHERE id = ?", broken) == [(access.PENDING_DELETION,)]


def test_a_deletion_that_can_not_be_recorded_does_not_happen(house: House) -> None:
    key = keys.create_key(house.call(), alias="key").id
    house.now = deletion.schedule(house.call(), key, 7).deletion_date or 0
    (house.folder / "audit" / "warden.jsonl").mkdir(parents=True)
    assert house.carry_out() == 0
    assert house.sql("SELECT wrapped IS NULL FROM key_versions WHERE key_id = ?", key) == [(0,)]
    (house.folder / "audit" / "warden.jsonl").rmdir()
    assert house.carry_out() == 1


def test_a_failure_is_on_record_when_it_begins_not_each_round(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that fails for keys, and for all of them, in this and that way, for as long as `ill` says."""
    ill: dict[str, Exception] = {}

    def do(_: Call, key: str) -> bool:
        if key in ill:
            raise ill[key]
        return True

    job = jobs.Job("odd jobs", "rotateKey", "rotated", lambda _: ["a", "b", "c"], do)
    work, file = jobs.Jobs(house.core, house.audit, "test"), house.folder / "audit" / "warden.jsonl"

    def rounds(*done: int) -> list[tuple[str, ...]]:
        """What comes on record while the job is done to so many keys in each round."""
        before = file.read_text().splitlines() if file.is_file() else []
        assert tuple(work.carry_out(job, {}) for _ in done) == done
        lines = file.read_text().splitlines()[len(before) :] if file.is_file() else []
        assert all('"method":"warden/odd-jobs"' in line and '"event":"rotateKey"' in line for line in lines)
        told = [json.loads(line) for line in lines]
        return [(each["resource"], each["result"], each["detail"]["reason"]) for each in told]

    ill["a"] = ValueError("canary")
    ill["b"] = Error(REGION_UNAVAILABLE, region="west", reason="canary")
    file.mkdir(parents=True)  # the log can't be written
    assert rounds(1, 1) == []
    file.rmdir()
    both = [("a", "KMS.0101", "ValueError"), ("b", "KMS.0104", "REGION_UNAVAILABLE")]
    assert rounds(1, 1, 1) == both
    known, ill["a"] = ill["a"], Error(UNAVAILABLE, reason="canary")  # which ends the round
    assert rounds(0, 0) == [("a", "KMS.0104", "UNAVAILABLE")]
    ill["a"] = known
    assert rounds(1, 1) == []  # these have lasted
    ill.clear()
    assert rounds(3) == []
    ill["b"] = KeyError("canary")
    assert rounds(2, 2) == [("b", "KMS.0101", "KeyError")]
    assert "canary" not in file.read_text()
    assert [each.message for each in caplog.records if each.exc_info] == ["odd jobs: unexpected"] * 3


# Usage


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Ten messages a version, reserved by four."""
    monkeypatch.setattr(usage, "BLOCK", 4)
    monkeypatch.setattr(usage, "GCM_MESSAGES_PER_VERSION", 10)
    return 10


def test_a_version_is_used_up(house: House, few: int) -> None:
    key, other = (keys.create_key(house.call(), alias=alias).id for alias in ("key", "other"))
    blobs = [house.encrypt(key, b"%d" % number) for number in range(few)]
    for _ in range(2):
        refused(KEY_USED_UP, lambda: house.encrypt(key))
    assert (KEY_USED_UP.code, KEY_USED_UP.grpc) == ("KMS.0308", "FAILED_PRECONDITION")
    assert [house.decrypt(blob) for blob in blobs] == [b"%d" % number for number in range(few)]
    assert house.encrypt(other)
    assert house.sql("SELECT used FROM key_usage WHERE key_id = ?", key) == [(few,)]


def test_what_a_stopped_process_had_reserved_is_lost_not_used_twice(house: House, few: int) -> None:
    key = keys.create_key(house.call(), alias="key").id
    house.encrypt(key)  # reserves 4, uses 1
    house.core.store.close()
    house.core = house.second_core()
    assert house.core.token is not None
    for _ in range(few - 4):
        house.encrypt(key)
    refused(KEY_USED_UP, lambda: house.encrypt(key))


def test_many_threads_and_processes_do_not_exceed_the_limit(
    house: House, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "GCM_MESSAGES_PER_VERSION", 10 * few)
    key = keys.create_key(house.call(), alias="key").id
    cores = [house.core, house.second_core()]
    done: list[bytes] = []
    wrong: list[Exception] = []

    def use_up(core: Core) -> None:
        while True:
            core.refresh()
            try:
                call = Call(core, _CALLER, lambda: None)
                done.append(crypto.encrypt_data(call, key, b"data", "", b"")[1])
            except Error as error:
                if error.fault is not KEY_USED_UP:
                    wrong.append(error)
                return

    threads = [Thread(target=use_up, args=(cores[number % 2],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cores[1].store.close()
    assert wrong == []
    assert len(done) <= 10 * few
    # A thread that found its process's block empty may have fetched another that nobody used up: at most one
    # block a process is left when its threads give up.
    assert len(done) > 10 * few - 2 * 4
    assert house.sql("SELECT used FROM key_usage WHERE key_id = ?", key) == [(10 * few,)]


@pytest.mark.usefixtures("few")
def test_reservations_of_older_versions_are_not_kept(house: House) -> None:
    key = keys.create_key(house.call(), alias="key").id
    for version in range(1, 5):
        for _ in range(3):
            house.encrypt(key)
        assert house.sql("SELECT used FROM key_usage WHERE key_id = ? AND version = ?", key, version) == [
            (4,)
        ]
        rotation.rotate(house.call(), key)
    assert house.core.reserve.left == {key: (4, 1)}
    row = keys.describe_key(house.call(), key)
    usage.count(house.call(), row, 4)
    usage.count(house.call(), row, 2)  # who began before: it counts, and leaves nothing
    assert house.core.reserve.left == {key: (4, 0)}
    assert house.sql("SELECT used FROM key_usage WHERE key_id = ? AND version = 2", key) == [(8,)]


def test_a_usage_count_set_back_is_noticed(house: House, few: int) -> None:
    key = keys.create_key(house.call(), alias="key").id
    for _ in range(4):
        house.encrypt(key)
    house.sql("UPDATE key_usage SET used = 0 WHERE key_id = ?", key)
    with pytest.raises(SealBroken):
        house.encrypt(key)
