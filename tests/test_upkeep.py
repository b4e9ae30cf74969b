"""The root key is replaced, and backups are made and restored, by a quorum, while clients go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hsmd.client import ApiError
from hsmd.pb.v1 import identity_pb2  # noqa: F401  # loaded before threads ask for it
from tests import testimony
from tests.credentials import domain_token, signed
from tests.faults import rows
from tests.stand import Stand, eventually
from tests.test_temporary_keys import by, made
from tests.testimony import Testimony
from tests.ukeys import Crew, Holder

pytestmark = pytest.mark.soak  # it takes minutes

SETTINGS = {"HSMD__GRPC__WORKERS": "2", "HSMD__LIMITS__KEYS_PER_PROJECT": "100000"}
FIRST, SECOND = "hsmd-root-1", "hsmd-root-2"


class House:
    """A stand, three administrators' UKeys of whom two decide, and what its keys can do."""

    def __init__(self, folder: Path) -> None:
        self.stand = Stand(folder / "stand", {**SETTINGS, "HSMD__BACKUP__DIRECTORY": str(folder / "backups")})
        self.crew = Crew(self.stand, folder)
        self.people = [self.crew.token(name, "administrator") for name in ("alice", "bob", "carol")]
        operators = [self.crew.soft(name, "operator") for name in ("dora", "emil")]
        self.crew.enrol(2, 2, *self.people, *operators)

    def decide(self, *words: str, finish: bool = True) -> Any:
        """Proposed by the first, approved by two, carried out by the third; the first alone can't."""
        alice, bob, carol = self.people
        proposal = json.loads(self.crew.hsmctl(alice, "--json", "propose", *words))["id"]
        self.crew.hsmctl(alice, "approve", proposal, "--yes")
        alone = self.crew.run(alice, "execute", proposal, "--yes")
        assert (alone.returncode, "1 of the 2" in alone.stderr) == (1, True), alone.stderr
        self.crew.hsmctl(bob, "approve", proposal, "--yes")
        return self.execute(carol, proposal) if finish else proposal

    def execute(self, who: Holder, proposal: str) -> Any:
        return json.loads(self.crew.hsmctl(who, "--json", "execute", proposal, "--yes"))

    def labels(self) -> dict[str, int]:
        """How many rows each root key wraps."""
        query = "SELECT root_label, count(*) FROM {} WHERE wrapped IS NOT NULL GROUP BY root_label"
        found: dict[str, int] = {}
        for table in ("key_versions", "access_keys", "access_points"):
            for label, count in rows(self.stand, query.format(table)):
                found[label] = found.get(label, 0) + count
        return found


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    one = House(tmp_path)
    try:
        one.stand.start()
        yield one
    finally:
        one.stand.stop()


class Users:
    """Threads that use keys of every kind, and make keys, as long as the block lasts; no call may fail."""

    def __init__(self, stand: Stand, told: list[Testimony], *, patient: bool = False) -> None:
        self.wrong: list[str] = []
        self.turns = 0
        self.made: list[Testimony] = []
        self._stand, self._told, self._patient = stand, told, patient
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._use, daemon=True) for _ in range(3)]
        self._threads.append(threading.Thread(target=self._make, daemon=True))

    def __enter__(self) -> "Users":
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join(60)

    def _use(self) -> None:
        while not self._stop.is_set():
            with self._stand.client() as client:
                for each in self._told:
                    if self._stop.is_set():
                        return
                    self._try(lambda: testimony.check(client, each))  # noqa: B023  # called at once
                    self.turns += 1

    def _make(self) -> None:
        while not self._stop.is_set():
            with self._stand.client() as client:
                self._try(lambda: self.made.append(testimony.make(client, "AES_256", "ENCRYPT_DECRYPT")))
            self._stop.wait(0.05)

    def _try(self, work: Any) -> None:
        try:
            work()
        except ApiError as error:
            if not (self._patient and error.unanswered):
                self.wrong.append(str(error))
            self._stop.wait(0.2)
        except Exception as error:  # told to the test
            self.wrong.append(repr(error))


@pytest.mark.timeout(900)
def test_clients_notice_nothing_of_a_rotation(house: House) -> None:
    stand = house.stand
    with stand.client() as client:
        told = [testimony.make(client, *kind) for kind in testimony.kinds(client)]
        told += [testimony.make(client, "HMAC_512", "GENERATE_VERIFY_MAC") for _ in range(40)]
    temporary = made(stand, domain_token(stand))
    with Users(stand, told) as users:
        eventually(lambda: users.turns > 20)
        done = house.decide("rotate-root-key", SECOND)
        assert done["state"] == "executed"
        with stand.client() as client:
            assert client.status().root_key.startswith(f"{SECOND} ")
        eventually(lambda: set(house.labels()) == {SECOND}, 120)
        turns = users.turns
        eventually(lambda: users.turns > turns + len(told), 60)
    assert users.wrong == []
    assert users.made
    assert by(stand, temporary).status == 200
    access, secret = stand.dev.access_key, stand.dev.secret_key
    assert signed(stand, "GET", "/v3/regions", access_key=access, secret=secret).status == 200

    stand.restart_daemon()  # everything is loaded anew
    with stand.client() as client:
        for each in (*told, *users.made):
            testimony.check(client, each)
    records = stand.audit()
    rotated = [each for each in records if each["event"] == "rotateRootKey"]
    assert [(each["result"], each["resource"]) for each in rotated] == [("OK", f"root-key/{SECOND}")]
    moves = [each["resource"] for each in records if each["event"] == "moveKey"]
    assert {f"key/{each.key}/1" for each in told} <= set(moves)
    assert len(moves) == len(set(moves))

    (old, new) = json.loads(house.crew.hsmctl(house.people[0], "--json", "root-key", "list"))["root_keys"]
    assert (old["label"], old["state"], old["key_versions"]) == (FIRST, "old", 0)
    assert (new["label"], new["state"], new["needed"]) == (SECOND, "current", ["it wraps what is new"])
    assert new["key_versions"] >= len(told)
    assert "import tokens" in house.crew.hsmctl(house.people[0], "root-key", "list")
    proposal = house.decide("destroy-root-key", FIRST, "lose_pins=true", finish=False)
    refused = house.crew.run(house.people[0], "execute", proposal, "--yes")
    assert refused.returncode == 1
    assert "import tokens and temporary access keys may need it" in refused.stderr


@pytest.mark.timeout(900)
def test_killed_on_the_way_it_goes_on(house: House) -> None:
    """The warden, then everything, at moments that nobody chose: each key stays right."""
    stand = house.stand
    with stand.client() as client:
        told = [
            testimony.make(client, *kind) for kind in testimony.kinds(client) if not kind[0].startswith("RSA")
        ]
        told += [testimony.make(client, "AES_256", "ENCRYPT_DECRYPT") for _ in range(60)]
    house.decide("rotate-root-key", SECOND)
    with Users(stand, told, patient=True) as users:
        for turn in range(3):
            eventually(lambda: house.labels().get(SECOND, 0) > 25 * turn or FIRST not in house.labels(), 60)  # noqa: B023 -- called in this turn
            if turn == 1:
                stand.kill_everything()
                stand.start()
                continue
            for pid in stand.workers():  # and the warden
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        eventually(lambda: FIRST not in house.labels(), 120)
    assert users.wrong == []
    with stand.client() as client:
        for each in (*told, *users.made):
            testimony.check(client, each)
    assert rows(stand, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.timeout(900)
def test_a_quorum_backs_up_and_restores(house: House, tmp_path: Path) -> None:
    stand, crew = house.stand, house.crew
    with stand.client() as client:
        told = [testimony.make(client, *kind) for kind in testimony.kinds(client)]
    with Users(stand, told) as users:
        done = house.decide("create-backup", "reason=yearly")
    assert users.wrong == []
    result = done["result"]
    file = Path(result["file"])
    assert file.parent == tmp_path / "backups"
    (record,) = [each for each in stand.audit() if each["event"] == "createBackup"]
    assert (record["result"], record["resource"]) == ("OK", f"backup/{result['digest']}")

    alone = backup(house, "create", "--config", str(stand.dev.config))
    assert alone.returncode == 4
    assert "hsmctl propose create-backup" in alone.stderr
    stand.stop()

    # another machine: the store is gone, the HSM's token is a copy
    there = tmp_path / "there"
    there.mkdir()
    shutil.move(stand.dev.data / "store", tmp_path / "lost")
    (stand.dev.data / "store").mkdir()
    config = ("--config", str(stand.dev.config))
    assert "2 administrators have to approve" in backup(house, "restore", str(file), *config).stderr
    statement = there / "restore.json"
    said = backup(house, "statement", str(file))
    statement.write_text(said.stdout)
    approvals = []
    for person in house.people[:2]:
        approval = there / f"{person.name}.json"
        approved = crew.run(person, "backup", "approve", str(statement), "--yes")
        assert "Restore the backup of" in approved.stderr
        assert result["digest"] in approved.stderr
        approval.write_text(approved.stdout)
        approvals += ["--approval", str(approval)]
    words = ("restore", str(file), *config, "--statement", str(statement))
    few = backup(house, *words, *approvals[:2])
    assert few.returncode == 4
    assert "there are 1 who do" in few.stderr
    assert list((stand.dev.data / "store").iterdir()) == []
    restored = backup(house, "--json", *words, *approvals)
    assert restored.returncode == 0, restored.stderr
    stand.start()
    with stand.client() as client:
        for each in told:
            testimony.check(client, each)
        assert {each.key for each in told} <= {key.key_id for key in client.list_keys()}
    (record,) = [each for each in stand.audit() if each["event"] == "restoreBackup"]
    assert record["user"] == "alice, bob"


def backup(house: House, *words: str) -> "subprocess.CompletedProcess[str]":
    """hsmctl backup on the HSM's host."""
    first = ["--json"] if words[0] == "--json" else []
    command = [sys.executable, "-m", "tests.dying", "-", *first, "backup", *words[len(first) :]]
    environment = {**os.environ, **house.stand.settings}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
