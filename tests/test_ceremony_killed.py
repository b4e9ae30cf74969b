"""kill -9 at each step of a ceremony: the same command once more completes it, and nothing is half."""

import json
import shutil
from pathlib import Path

import pytest

from tests.ceremonies import LABELS, Host, Person, first_user, people, pick
from tests.test_ceremony import ALL, copied, deviations

pytestmark = pytest.mark.soak  # it takes minutes

FOUNDING = "hsmd.daemon.ceremony"
INIT = {
    "three UKeys were there": f"{FOUNDING}.papers:write:after:4",
    "the SO PIN is sealed": "hsmd.sealfile:write:after:1",
    "both PINs are sealed": "hsmd.sealfile:write:after:2",
    "the token has its SO PIN": "hsmd.hsm.module:Module.init_token:after",
    "the token has its PINs": "hsmd.hsm.blank:_set_pins:after",
    "the root key is made": "hsmd.hsm.token:Token.make_root_key:after",
    "all secret keys are made": "hsmd.hsm.passage:PassageWork.make_signing_key:before",
    "three UKeys are in the store": "hsmd.store.ukeys:insert_ukey:after:3",
    "the first user's file is written": f"{FOUNDING}.founding:_make_user:after",
    "the store is written": f"{FOUNDING}.founding:_fill:after",
    "the record is not written": f"{FOUNDING}.papers:write_record:before",
    "the record's text is not written": f"{FOUNDING}.papers:printed:before",
}
RESTORE = {
    "the PINs are sealed": "hsmd.sealfile:write:after:2",
    "the token has its SO PIN": "hsmd.hsm.module:Module.init_token:after",
    "the token has its PINs": "hsmd.hsm.blank:_set_pins:after",
    "two keys are there": "hsmd.hsm.passage:_take_in:after:2",
    "half of the pair is there": "hsmd.hsm.passage:_complete:before:1",
    "the record is not written": f"{FOUNDING}.papers:write_record:before",
}
DECIDING = "otto olga anna carla"


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Person]:
    return people(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory, crew: dict[str, Person]) -> tuple[Host, Path]:
    """A host, and a backup of its keys."""
    folder = tmp_path_factory.mktemp("founded")
    host = Host(folder / "a")
    host.do("init", who=pick(crew, ALL), more=[first_user()])
    host.do("backup", "--out", str(folder / "backup.json"), who=pick(crew, DECIDING))
    return host, folder / "backup.json"


def tokens(host: Host) -> int:
    return len([each for each in (host.folder / "tokens").iterdir() if each.is_dir()])


@pytest.mark.parametrize("place", INIT.values(), ids=[each.replace(" ", "-") for each in INIT])
def test_a_founding_that_was_killed_is_completed(crew: dict[str, Person], tmp_path: Path, place: str) -> None:
    host, who = Host(tmp_path / "a"), pick(crew, ALL)
    assert host.run("init", who=who, more=[first_user()], die=place).returncode == -9
    host.do("init", who=who, more=[first_user()])
    assert tokens(host) == 1
    assert [each["label"] for each in host.record()["keys"]] == LABELS
    assert deviations(host, pick(crew, "otto oskar")) == []
    shown = json.loads((host.papers / "first-user.json").read_text())
    assert len(shown["secret_key"]) == 40
    assert host.rows("SELECT count(*) FROM ukeys") == [(7,)]
    assert host.rows("SELECT id FROM users") == [(shown["user_id"],)]
    assert host.rows("SELECT id FROM access_keys") == [(shown["access_key"],)]


@pytest.mark.parametrize("place", RESTORE.values(), ids=[each.replace(" ", "-") for each in RESTORE])
def test_a_restore_that_was_killed_is_completed(
    founded: tuple[Host, Path], crew: dict[str, Person], tmp_path: Path, place: str
) -> None:
    host, backup = founded
    other = Host(tmp_path / "b")
    words = ("restore", "--record", str(host.record_file), str(backup))
    who = pick(crew, "ben carla otto olga")
    assert other.run(*words, who=who, die=place).returncode == -9
    other.do(*words, who=who)
    assert tokens(other) == 1
    shutil.copy(host.folder / "hsmd.db", other.folder / "hsmd.db")
    assert deviations(other, pick(crew, "otto oskar")) == []


@pytest.mark.parametrize(
    "place", ["hsmd.hsm.passage:PassageWork.pack_under:after", f"{FOUNDING}.papers:write:before"]
)
def test_a_backup_that_was_killed_leaves_nothing(
    founded: tuple[Host, Path], crew: dict[str, Person], tmp_path: Path, place: str
) -> None:
    host, out = copied(founded[0], tmp_path / "a"), tmp_path / "backup.json"
    who = pick(crew, DECIDING)
    assert host.run("backup", "--out", str(out), who=who, die=place).returncode == -9
    assert not out.exists()
    assert deviations(host, pick(crew, "otto oskar")) == []
    host.do("backup", "--out", str(out), who=who)


def test_closing_that_was_killed_is_completed(
    founded: tuple[Host, Path], crew: dict[str, Person], tmp_path: Path
) -> None:
    host, who = copied(founded[0], tmp_path / "a"), pick(crew, DECIDING)
    place = "hsmd.hsm.passage:PassageWork.close_key:after:2"
    assert host.run("close", who=who, die=place).returncode == -9
    assert len(deviations(host, pick(crew, "otto oskar"))) == 2  # what is closed, and not in the record
    host.do("close", who=who)
    assert deviations(host, pick(crew, "otto oskar")) == []
    assert all(each["closed"] for each in host.record()["keys"])


def test_a_root_key_that_was_made_and_not_recorded_is_the_next_one(
    founded: tuple[Host, Path], crew: dict[str, Person], tmp_path: Path
) -> None:
    host, who = copied(founded[0], tmp_path / "a"), pick(crew, DECIDING)
    assert host.run("next-root", who=who, die="hsmd.hsm.token:Token.make_root_key:after").returncode == -9
    host.do("next-root", who=who)
    assert deviations(host, pick(crew, "otto oskar")) == []
    assert [each["label"] for each in host.record()["keys"]] == sorted([*LABELS, "hsmd-root-2"])
    host.do("next-root", who=who)  # that is meant
    assert "hsmd-root-3" in {each["label"] for each in host.record()["keys"]}


def test_a_token_that_was_being_made_waits_for_those_who_hold_its_pins(
    crew: dict[str, Person], tmp_path: Path
) -> None:
    """Who is too few can't go on, nor begin anew."""
    host = Host(tmp_path / "a")
    place = "hsmd.hsm.module:Module.init_token:after"
    assert host.run("init", who=pick(crew, ALL), die=place).returncode == -9
    assert tokens(host) == 1
    others = Host(tmp_path / "other")
    shutil.rmtree(others.folder / "tokens")
    (host.folder / "tokens").rename(others.folder / "tokens")
    others.token = host.token
    others.config.write_text(others.config.read_text().replace("hsm-other", "hsm-a"))
    done = others.run("init", who=pick(crew, ALL))
    assert done.returncode == 1
    assert "SO PIN that is not known" in done.stderr
    (others.folder / "tokens").rename(host.folder / "tokens")
    host.do("init", who=pick(crew, ALL))
    assert tokens(host) == 1
