"""A keystore's token that goes away, hangs or refuses its PIN: its own keys wait, all others go on."""

import fcntl
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from hsmd.client import ApiError, Client
from tests import vaults
from tests.backstage import backstage
from tests.calls import fresh, records, refusal
from tests.faults import change_rows, processes, rows, store_file, writable
from tests.load import Load, encrypts, is_serving
from tests.softhsm import OPENCRYPTOKI
from tests.stand import Stand, eventually
from tests.test_token_away import channel

pytestmark = pytest.mark.skipif(OPENCRYPTOKI, reason="its tokens are no folders that could be moved away")

_SETTINGS = {
    "HSMD__GRPC__WORKERS": "2",
    "HSMD__HSM__LOADED_KEYS": "1",  # so that keys are unwrapped all the time
}
_IMPATIENT = {"HSMD__HSM__DEADLINE_SECONDS": "3"}  # for tokens that hang


class House:
    """A stand with a cluster, and the folder of its token."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.stand = Stand(folder, {**_SETTINGS, **settings})
        self.folder = self.stand.add_clusters("vault")["vault"]
        self.aside = folder / "aside"

    @contextmanager
    def absent(self) -> Iterator[None]:
        self.folder.rename(self.aside)
        try:
            yield
        finally:
            self.aside.rename(self.folder)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """SoftHSM2 waits, inside the module, for a lock on the keystore's objects."""
        paths = list(self.folder.rglob("*.object"))
        assert len(paths) > 1
        with ExitStack() as stack:
            for path in paths:
                fcntl.lockf(stack.enter_context(path.open("r+b")), fcntl.LOCK_EX)
            yield


@pytest.fixture
def house(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[House]:
    """Its settings are the fixture's parameter, if there is one."""
    one = House(tmp_path, **getattr(request, "param", {}))
    try:
        one.stand.start(gateway=False)
        yield one
    finally:
        one.stand.stop()


def away(client: Client, key: str) -> bool:
    """Whether the key is refused for its token's sake. Every other refusal is a fault."""
    try:
        client.encrypt(key, b"x")
    except ApiError as error:
        if error.code == "KMS.0104":
            return True
        raise
    return False


def works(client: Client, blob: bytes) -> bool:
    with suppress(ApiError):
        return client.decrypt(blob) == b"text"
    return False


@pytest.mark.soak
def test_a_token_that_is_taken_away_and_returned(house: House) -> None:
    stand = house.stand
    with stand.client() as client, channel(stand) as one:
        vault = vaults.make(client, "vault")
        kept = client.create_key(fresh(), keystore_id=vault)
        blob = client.encrypt(kept, b"text")
        keys = [client.create_key(fresh()) for _ in range(4)]
        before = processes(stand)
        with Load(stand, encrypts(keys)) as load:
            for _ in range(2):
                with house.absent():
                    eventually(lambda: all(away(client, kept) for _ in range(8)))  # both workers
                    with pytest.raises(ApiError) as refused:
                        client.create_key(fresh(), keystore_id=vault)
                    assert refused.value.code == "KMS.0104"
                    assert vault in refused.value.message
                    assert is_serving(one)
                    load.goes_on()
                    states = [each.token.state for each in client.status().keystores]
                    assert states == ["away"]
                    assert client.status().token.state == "connected"
                eventually(lambda: all(works(client, blob) for _ in range(8)))
                load.goes_on()
        assert (load.wrong, load.unanswered) == ([], {})
        assert processes(stand) == before
        assert len(vaults.objects(stand, "vault")) == 1  # nothing is left of what was not made
        assert rows(stand, "SELECT * FROM keystore_drafts") == []
        assert client.status().keystores[0].token.state == "connected"


def test_a_daemon_that_starts_without_it(tmp_path: Path) -> None:
    house = House(tmp_path)
    stand = house.stand
    try:
        with house.absent():
            started = time.monotonic()
            stand.start(gateway=False)
            print(f"started in {time.monotonic() - started:.1f} s")
            with stand.client() as client, channel(stand) as one:
                assert is_serving(one)
                vault = vaults.make(client, "vault")
                with pytest.raises(ApiError) as refused:
                    client.create_key(fresh(), keystore_id=vault)
                assert refused.value.code == "KMS.0104"
                key = client.create_key(fresh())
                assert client.decrypt(client.encrypt(key, b"x")) == b"x"
        before = processes(stand)
        with stand.client() as client:
            eventually(lambda: [each.token.state for each in client.status().keystores] == ["connected"])
            made = eventually(lambda: tried(client, vault))
            eventually(lambda: not away(client, made))
        assert processes(stand) == before
    finally:
        stand.stop()


def tried(client: Client, vault: str) -> str:
    with suppress(ApiError):
        return client.create_key(fresh(), keystore_id=vault)
    return ""


@pytest.mark.soak
def test_a_token_that_hangs_holds_up_nobody_else(tmp_path: Path) -> None:
    """Also when more calls hang in it than the worker has threads."""
    house = House(tmp_path, **_IMPATIENT, HSMD__GRPC__WORKERS="1", HSMD__GRPC__THREADS="4")
    stand = house.stand
    try:
        stand.start(gateway=False)
        with stand.client() as client, channel(stand) as one:
            vault = vaults.make(client, "vault")
            kept = client.create_key(fresh(), keystore_id=vault)
            blob = client.encrypt(kept, b"text")
            keys = [client.create_key(fresh()) for _ in range(4)]
            before = processes(stand, workers=1)
            codes: list[str] = []

            def hang() -> None:
                with stand.client(deadline=20) as other:
                    try:
                        other.encrypt(kept, b"x")
                    except ApiError as error:
                        codes.append(error.code)

            with Load(stand, encrypts(keys), threads=4, channels=2, deadline=15) as load:
                with house.frozen():
                    threads = [threading.Thread(target=hang) for _ in range(12)]
                    for thread in threads:
                        thread.start()
                    load.goes_on()
                    for thread in threads:
                        thread.join(60)
                    assert len(codes) == len(threads)
                    assert set(codes) <= {"KMS.0104", ""}  # those that hang are ended at their deadline
                    eventually(lambda: client.status().keystores[0].token.state == "unresponsive")
                    load.goes_on()
                    assert is_serving(one)
                    started = time.monotonic()
                    assert away(client, kept)
                    assert time.monotonic() - started < 5
                eventually(lambda: works(client, blob))
                load.goes_on()
            assert (load.wrong, load.unanswered) == ([], {})
            assert load.longest < 12
            assert processes(stand, workers=1) == before
    finally:
        stand.stop()


def test_a_wrong_pin_is_tried_once_and_concerns_nobody_else(tmp_path: Path) -> None:
    house = House(tmp_path)
    stand = house.stand
    pin = stand.dev.data / "pin-vault"
    right = pin.read_text()
    pin.write_text("not-the-pin")
    try:
        stand.start(gateway=False)
        before = processes(stand)
        with stand.client() as client, channel(stand) as one:
            vault = vaults.make(client, "vault")
            with pytest.raises(ApiError) as refused:
                client.create_key(fresh(), keystore_id=vault)
            assert refused.value.code == "KMS.0104"
            assert "PIN" not in refused.value.message
            key = client.create_key(fresh())
            for _ in range(20):
                assert client.decrypt(client.encrypt(key, b"x")) == b"x"
            assert is_serving(one)
            status = client.status()
            assert "PIN" in status.keystores[0].token.detail
        assert processes(stand) == before
        log = stand.log()
        assert (
            log.count("the token refuses the PIN: PinIncorrect") <= 2
        )  # the status and the log of one process
        assert "not-the-pin" not in log
        pin.write_text(right)
        stand.restart_daemon()
        with stand.client() as client:  # and it was not locked by many tries
            made = client.create_key(fresh(), keystore_id=vault)
            assert not away(client, made)
    finally:
        stand.stop()


def test_a_readable_pin_prevents_the_start(tmp_path: Path) -> None:
    house = House(tmp_path)
    (house.stand.dev.data / "pin-vault").chmod(0o644)
    with pytest.raises(Exception, match="ended"):
        house.stand.start(gateway=False)
    house.stand.stop()
    assert "readable by others" in house.stand.log()


# Deletion


def stopped_warden(stand: Stand) -> int:
    """The warden, stopped where it does not write to the store: whoever else would do so waits for it."""
    (warden,) = [pid for pid, name in processes(stand).items() if name == "warden"]

    def stopped() -> bool:
        os.kill(warden, signal.SIGSTOP)
        eventually(lambda: Path(f"/proc/{warden}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        if writable(stand):
            return True
        os.kill(warden, signal.SIGCONT)
        return False

    eventually(stopped)
    return warden


@contextmanager
def no_warden(stand: Stand) -> Iterator[None]:
    warden = stopped_warden(stand)
    try:
        yield
    finally:
        os.kill(warden, signal.SIGCONT)


@pytest.mark.soak
def test_others_are_deleted_while_it_is_away(house: House) -> None:
    stand = house.stand
    with stand.client() as client:
        vault = vaults.make(client, "vault")
        kept, plain = client.create_key(fresh(), keystore_id=vault), client.create_key(fresh())
        with house.absent():
            eventually(lambda: all(away(client, kept) for _ in range(8)))
            for key in (kept, plain):
                client.schedule_deletion(key, 7)
            backstage(stand, "due", kept, plain)
            eventually(lambda: state(stand, plain) == 0)
            eventually(lambda: f"key {kept} is due but not destroyed" in stand.log())
            assert state(stand, kept) == 4  # it is due still, and there is nothing that forgets it
            with pytest.raises(ApiError) as full:
                vaults.delete(client, vault)
            assert full.value.code == "KMS.0340"
        eventually(lambda: state(stand, kept) == 0)
        eventually(lambda: rows(stand, "SELECT * FROM keystore_drafts") == [])
        vaults.delete(client, vault)
    assert vaults.objects(stand, "vault") == []


@pytest.mark.parametrize("house", [_IMPATIENT], indirect=True, ids=["impatient"])
def test_others_are_deleted_while_it_hangs(house: House) -> None:
    stand = house.stand
    with stand.client() as client:
        vault = vaults.make(client, "vault")
        kept, plain = client.create_key(fresh(), keystore_id=vault), client.create_key(fresh())
        for key in (kept, plain):
            client.schedule_deletion(key, 7)
        warden = stopped_warden(stand)
        backstage(stand, "due", kept, plain)
        with house.frozen():
            os.kill(warden, signal.SIGCONT)
            eventually(lambda: state(stand, plain) == 0)
            eventually(lambda: "keystore cluster vault is unresponsive" in stand.log())
            assert state(stand, kept) == 4
        eventually(lambda: state(stand, kept) == 0)
        eventually(lambda: rows(stand, "SELECT * FROM keystore_drafts") == [])
    assert vaults.objects(stand, "vault") == []


def state(stand: Stand, key: str) -> int:
    ((found,),) = rows(stand, "SELECT state FROM keys WHERE id = ?", key)
    return int(found)


@pytest.mark.soak
def test_killed_in_the_midst_of_deletions(house: House) -> None:
    stand = house.stand
    with stand.client() as client:
        vault = vaults.make(client, "vault")
        keys = [client.create_key(fresh(), keystore_id=vault) for _ in range(30)]
        for key in keys[:-1]:
            client.schedule_deletion(key, 7)
        with no_warden(stand):
            backstage(stand, "due", *keys[:-1])
        # Objects go one by one; one of the next kills comes between an object and its row.
        left = len(keys)
        for _ in range(5):
            left = eventually(lambda most=left: fewer(house, most))
            if left == 1:
                break
            stand.kill_everything()
            with closing(sqlite3.connect(store_file(stand))) as store, store:
                store.execute("UPDATE leases SET until = 0")  # else it is a minute until they are over
            stand.start(gateway=False)
        eventually(lambda: {state(stand, key) for key in keys[:-1]} == {0})
        eventually(lambda: rows(stand, "SELECT * FROM keystore_drafts") == [])
    with stand.client() as client:
        assert not away(client, keys[-1])
        assert vaults.objects(stand, "vault") == [f"hsmd-key-{keys[-1]}-1"]


def fewer(house: House, most: int) -> int:
    left = len(list(house.folder.rglob("*.object"))) - 2  # the token's own, and the mark
    return left if left < most else 0


def test_a_row_outlives_its_object_only_until_the_next_round(house: House) -> None:
    """Whoever has destroyed the object: a row that is due comes to its end."""
    stand = house.stand
    with stand.client() as client:
        vault = vaults.make(client, "vault")
        key, other = (client.create_key(fresh(), keystore_id=vault) for _ in range(2))
        client.schedule_deletion(key, 7)
        with no_warden(stand):
            backstage(stand, "due", key)
            vaults.destroy(stand, "vault", key)
            assert vaults.objects(stand, "vault") == [f"hsmd-key-{other}-1"]
            assert state(stand, key) == 4
        eventually(lambda: state(stand, key) == 0)
        assert not away(client, other)


def test_a_deletion_that_cannot_be_recorded_destroys_nothing(house: House) -> None:
    stand = house.stand
    with stand.client() as client:
        vault = vaults.make(client, "vault")
        key = client.create_key(fresh(), keystore_id=vault)
        client.schedule_deletion(key, 7)
        with no_warden(stand):
            backstage(stand, "due", key)
            backstage(stand, "cut", "vault", "record")
            assert state(stand, key) == 4
            assert vaults.objects(stand, "vault") == [f"hsmd-key-{key}-1"]
            assert rows(stand, "SELECT * FROM keystore_drafts") == []
        eventually(lambda: vaults.objects(stand, "vault") == [])
        assert state(stand, key) == 0


def test_a_deletion_that_ends_before_its_object_is_completed(house: House) -> None:
    stand = house.stand
    with stand.client() as client:
        vault = vaults.make(client, "vault")
        key, other = (client.create_key(fresh(), keystore_id=vault) for _ in range(2))
        client.schedule_deletion(key, 7)
        with no_warden(stand):
            backstage(stand, "due", key)
            backstage(stand, "cut", "vault", "object")
            assert state(stand, key) == 0
            told = [each for each in records(stand, key) if each["event"] == "deleteKey"]
            assert [(each["result"], each["process"]) for each in told] == [
                ("OK", "warden"),
                ("KMS.0104", "warden"),
            ]
            assert f"hsmd-key-{key}-1" in vaults.objects(stand, "vault")
            with pytest.raises(ApiError) as full:
                vaults.delete(client, vault)
            assert full.value.code == "KMS.0340"
            assert "2 keys" in full.value.message
        eventually(lambda: rows(stand, "SELECT * FROM keystore_drafts") == [])
        assert vaults.objects(stand, "vault") == [f"hsmd-key-{other}-1"]
        assert not away(client, other)


@pytest.mark.soak
def test_what_was_begun_and_killed_is_cleared_away(house: House) -> None:
    stand = house.stand
    with stand.client(deadline=60) as client:
        vault = vaults.make(client, "vault")
        kept = client.create_key(fresh(), keystore_id=vault)

        def make() -> None:
            with stand.client(deadline=60) as other, suppress(ApiError):
                other.create_key(fresh(), spec="RSA_4096", keystore_id=vault)

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(rows(stand, "SELECT key_id FROM keystore_drafts")) >= 2)
        stand.kill_everything()
        for thread in threads:
            thread.join()
    drafts = [key for (key,) in rows(stand, "SELECT key_id FROM keystore_drafts")]
    assert drafts
    assert rows(stand, "SELECT id FROM keys WHERE id = ?", drafts[0]) == []
    vaults.plant(stand, "vault", drafts[0])  # as if the token had been faster than the kill
    assert f"hsmd-key-{drafts[0]}-1" in vaults.objects(stand, "vault")
    stand.start(gateway=False)
    with stand.client() as client:
        with pytest.raises(ApiError) as full:
            vaults.delete(client, vault)
        assert full.value.code == "KMS.0340"
        backstage(stand, "abandoned", "0", "vault")  # they might still be in the making
        assert len(rows(stand, "SELECT * FROM keystore_drafts")) == len(drafts)
        backstage(stand, "abandoned", "1", "vault")
        assert rows(stand, "SELECT * FROM keystore_drafts") == []
        living = {f"hsmd-key-{each.key_id}-1" for each in client.list_keys() if each.keystore_id == vault}
        assert set(vaults.objects(stand, "vault")) == living
        assert f"hsmd-key-{kept}-1" in living
        assert not away(client, kept)


@pytest.mark.soak
def test_a_forged_draft_destroys_no_key(house: House) -> None:
    stand = house.stand
    with stand.client() as client:
        vault = vaults.make(client, "vault")
        key = client.create_key(fresh(), keystore_id=vault)
        make = "INSERT INTO keystore_drafts (key_id, keystore_id, created, seal) VALUES (?, ?, 1, x'00')"
        change_rows(stand, make, key, vault)
        with pytest.raises(subprocess.CalledProcessError):  # it is never cleared away
            backstage(stand, "abandoned", "1", "vault")
        assert vaults.objects(stand, "vault") == [f"hsmd-key-{key}-1"]
        assert not away(client, key)


def test_what_is_refused_never_had_an_object(tmp_path: Path) -> None:
    """One that came and went would show: the token's folder has a file for each."""
    house = House(tmp_path, HSMD__LIMITS__KEYS_PER_PROJECT="2")
    stand, taken = house.stand, fresh()
    try:
        stand.start(gateway=False)
        with stand.client() as client:
            vault = vaults.make(client, "vault")
            kept = eventually(lambda: tried(client, vault))
            before = house.folder.stat().st_mtime_ns
            client.create_key(taken)
            with refusal("KMS.1105"):
                client.create_key(fresh(), keystore_id=vault)
            with refusal("KMS.1105"):  # the project is full whatever the name
                client.create_key(taken, keystore_id=vault)
            assert house.folder.stat().st_mtime_ns == before
            assert rows(stand, "SELECT * FROM keystore_drafts") == []
            client.schedule_deletion(kept, 7)
            backstage(stand, "due", kept)
            eventually(lambda: vaults.objects(stand, "vault") == [])
            eventually(lambda: rows(stand, "SELECT * FROM keystore_drafts") == [])
            before = house.folder.stat().st_mtime_ns
            with refusal("KMS.1104"):
                client.create_key(taken, keystore_id=vault)
            assert house.folder.stat().st_mtime_ns == before
            client.create_key(fresh(), keystore_id=vault)
            assert house.folder.stat().st_mtime_ns != before
    finally:
        stand.stop()
