"""A whole ceremony with seven UKeys, by hsmctl, on real tokens: founding, backup, restore, closing."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hsmd import config
from hsmd.config import ConfigError
from hsmd.daemon.ceremony import papers, passage
from hsmd.daemon.ceremony.bench import TokenAnswers
from hsmd.daemon.ceremony.papers import CeremonyRefused
from hsmd.daemon.ceremony.party import Party
from tests.ceremonies import LABELS, ROOT, Host, Person, first_user, people, person, pick
from tests.softhsm import OPENCRYPTOKI

Crew = dict[str, Person]
KINDS = ["softhsm", *(["opencryptoki"] if OPENCRYPTOKI else [])]


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Crew:
    return people(tmp_path_factory.mktemp("people"))


ALL = "anna ben carla otto olga oskar ada"


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory, crew: Crew) -> Host:
    """A host with an HSM, for tests that leave it as it is."""
    host = Host(tmp_path_factory.mktemp("founded") / "a")
    host.do("init", who=pick(crew, ALL), more=[first_user()])
    return host


@pytest.fixture
def host(tmp_path: Path, founded: Host) -> Host:
    """A copy of it, for tests that don't. Its token is the same, at another place."""
    return copied(founded, tmp_path / "a")


def copied(host: Host, folder: Path) -> Host:
    made = Host(folder, token=host.token)
    for each in ("tokens", "ceremony", "audit", "hsmd.db", "seal.json"):
        source = host.folder / each
        shutil.rmtree(folder / each, ignore_errors=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / each)
    return made


def test_a_founding_leaves_a_token_a_store_seals_and_a_record(founded: Host, crew: Crew) -> None:
    record = founded.record()
    assert [each["label"] for each in record["keys"]] == LABELS
    assert not any(each["closed"] for each in record["keys"])
    assert len({each["check_value"] for each in record["keys"]}) == 4
    assert [(each["name"], each["role"]) for each in record["ukeys"]] == [
        (each.name, each.role) for each in pick(crew, ALL)
    ]
    assert record["quorum"] == {"administrators": 2, "operators": 2}
    assert record["software"]["version"]
    assert len(record["software"]["sha256"]) == 64
    text = (founded.papers / "record.txt").read_text()
    for each in record["ukeys"]:
        assert each["fingerprint"] in text.replace(" ", "").replace("\n", "")
        assert f"{each['name']}, {each['role']}" in text
    for each in record["keys"]:
        assert each["check_value"] in text.replace(" ", "")
    assert text.count("NOT CLOSED") == 4
    so_seal, seal = (json.loads(path.read_text()) for path in (founded.papers / "so-pin.seal", founded.seal))
    assert [each["name"] for each in so_seal["shares"]] == ["anna", "ben", "carla"]
    assert [each["name"] for each in seal["shares"]] == ["otto", "olga", "oskar"]
    assert (so_seal["threshold"], seal["threshold"]) == (2, 2)
    assert founded.audited()[:2] == [("ceremonyInit", "BEGUN"), ("ceremonyInit", "OK")]


def test_nothing_of_a_founding_is_secret_but_the_first_users_credentials(founded: Host) -> None:
    for path in founded.folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.parent == founded.papers or path in (founded.seal, founded.papers):
            assert mode & 0o077 == 0, path
    from hsmd import sealfile

    assert sealfile.read(founded.seal).names == ("hsm",)
    assert not (founded.folder / "pin").exists()
    shown = json.loads((founded.papers / "first-user.json").read_text())
    for path in founded.folder.rglob("*"):
        if path.is_file() and path.name != "first-user.json":
            data = path.read_bytes()
            assert shown["secret_key"].encode() not in data, path
            assert shown["password"].encode() not in data, path


def test_a_record_is_found_true(founded: Host, crew: Crew) -> None:
    assert deviations(founded, pick(crew, "ada anna olga ben oskar")) == []
    assert founded.do("init", who=pick(crew, ALL), more=[first_user()])  # once more is well
    assert deviations(founded, pick(crew, "otto olga")) == []


def deviations(host: Host, who: list[Person]) -> list[str]:
    """What verify finds, but for the program's own change while it is worked on."""
    done = host.run("verify", "--json", who=who)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)["deviations"]
    assert done.returncode == (1 if found else 0)
    return [each for each in found if not each.startswith("software:")]


STEPS = {
    "backup": ("--out", "{folder}/backup.json"),
    "close": ("--without-backup",),
    "record": (),
    "next-root": (),
}


@pytest.mark.parametrize(
    ("step", "who"),
    [
        ("verify", "otto"),
        ("backup", "anna ben carla ada"),
        ("close", "olga olga"),
        ("record", ""),
        ("next-root", "ben"),
    ],
)
def test_who_is_not_enough_opens_nothing(
    founded: Host, crew: Crew, tmp_path: Path, step: str, who: str
) -> None:
    before = snapshot(founded)
    words = [each.format(folder=tmp_path) for each in STEPS.get(step, ())]
    done = founded.run(step, *words, who=pick(crew, who))
    assert done.returncode == 1, done.stderr
    assert "2 operators are due" in done.stderr
    assert snapshot(founded) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("step", "who"),
    [
        ("backup", "otto olga anna anna"),
        ("close", "otto olga anna"),
        ("record", "otto olga"),
        ("next-root", "otto olga ada oskar ben"),
    ],
)
def test_one_administrator_decides_nothing(
    founded: Host, crew: Crew, tmp_path: Path, step: str, who: str
) -> None:
    before = snapshot(founded)
    words = [each.format(folder=tmp_path) for each in STEPS[step]]
    done = founded.run(step, *words, who=pick(crew, who))
    assert done.returncode == 1, done.stderr
    assert "2 administrators are due" in done.stderr
    assert founded.audited()[-1][1] == "REFUSED"
    assert snapshot(founded) == before
    assert not list(tmp_path.iterdir())


def snapshot(host: Host) -> dict[str, bytes]:
    """All that could have changed, but for the audit log and what SoftHSM2 writes down of each login."""
    objects = [each for each in (host.folder / "tokens").rglob("*.object") if each.name != "token.object"]
    return {str(path): path.read_bytes() for path in (host.seal, *host.papers.iterdir(), *objects)}


def test_a_strangers_ukey_is_none_of_theirs(founded: Host, crew: Crew, tmp_path: Path) -> None:
    stranger = person(tmp_path, "otto", "operator")  # of the same name
    done = founded.run("verify", who=[crew["olga"], stranger])
    assert done.returncode == 1
    assert "none of theirs" in done.stderr
    assert "2 operators are due" in done.stderr


def test_a_wrong_pin_of_a_ukey_counts_as_nobody(founded: Host, crew: Crew, tmp_path: Path) -> None:
    forgetful = tmp_path / "otto"
    shutil.copytree(crew["otto"].folder, forgetful)
    (forgetful / "pin").write_text("wrong-pin")
    otto = Person("otto", "operator", crew["otto"].uri, forgetful)
    conf = otto.conf.read_text().replace(str(crew["otto"].folder), str(forgetful))
    otto.conf.write_text(conf)
    assert founded.run("verify", who=[otto, crew["olga"]]).returncode == 1
    assert deviations(founded, [otto, crew["olga"], crew["oskar"]]) == []


# Keys on their way


def proofs(host: Host) -> dict[str, str]:
    return {each["label"]: each["check_value"] for each in host.record()["keys"]}


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_a_backup_for_ukeys_is_restored_on_another_hsm(
    host: Host, crew: Crew, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "backup.json"
    host.do("backup", "--out", str(out), who=pick(crew, "otto olga anna carla"))
    assert "backup" in host.record()["history"][-1]["what"]
    assert host.record()["history"][-1]["approved"] == ["anna", "carla"]
    other = Host(tmp_path / "b", kind)
    for who in ("anna", "otto olga oskar ada", "carla carla"):
        done = other.run("restore", "--record", str(host.record_file), str(out), who=pick(crew, who))
        assert done.returncode == 1
        assert not other.seal.exists()
        assert not list((other.folder / "tokens").iterdir())
    other.do("restore", "--record", str(host.record_file), str(out), who=pick(crew, "ben carla otto olga"))
    assert proofs(other) == proofs(host)
    assert other.record()["token"]["label"] == "hsm-b"
    assert other.record()["history"][-1]["approved"] == ["ben", "carla"]
    # once more is well
    words = ("restore", "--record", str(other.record_file), str(out))
    assert other.run(*words, who=pick(crew, "anna ben otto oskar")).returncode == 0
    shutil.copy(host.folder / "hsmd.db", other.folder / "hsmd.db")  # the store comes by its own backup
    assert deviations(other, pick(crew, "otto oskar")) == []


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_keys_go_from_hsm_to_hsm_by_a_transport_key(
    host: Host, crew: Crew, tmp_path: Path, kind: str
) -> None:
    other, out = Host(tmp_path / "b", kind), tmp_path / "to-b.json"
    read = other.do("prepare", "--record", str(host.record_file), who=[]).strip()
    assert len(read.replace(" ", "").replace("\n", "")) == 64
    assert other.do("prepare", "--record", str(host.record_file), who=pick(crew, "otto olga")).strip() == read
    transport = other.papers / "transport.json"
    give = ("backup", "--out", str(out), "--transport", str(transport), "--fingerprint")
    who = pick(crew, "otto olga anna carla")
    for wrong in ("0" * 64, read[:10], "zz"):
        assert host.run(*give, wrong, who=who).returncode == 1
        assert not out.exists()
    host.do(*give, read, who=who)
    package = json.loads(out.read_text())
    assert package["transport"] == read.replace(" ", "")
    assert package["seal"] == ""
    other.do("restore", "--record", str(host.record_file), str(out), who=pick(crew, "ben carla otto oskar"))
    assert proofs(other) == proofs(host)
    # the transport key is gone: the same package is worth nothing any more
    third = Host(tmp_path / "c")
    third.do("prepare", "--record", str(host.record_file), who=[])
    done = third.run(
        "restore", "--record", str(host.record_file), str(out), who=pick(crew, "anna ben otto olga")
    )
    assert done.returncode == 1
    assert "another HSM" in done.stderr


@pytest.mark.soak
def test_a_backup_may_be_held_by_others(host: Host, crew: Crew, tmp_path: Path) -> None:
    keepers = [person(tmp_path, f"keeper{number}", "") for number in range(3)]
    holders = "\n".join(each.answer().replace("[[ukeys]]", "[[backup.holders]]") for each in keepers)
    out = tmp_path / "backup.json"
    who = pick(crew, "otto olga anna carla")
    for needed in (1, 4):
        done = host.run(
            "backup", "--out", str(out), who=who, more=[f"[backup]\nneeded = {needed}\n{holders}"]
        )
        assert done.returncode == 1
        assert not out.exists()
    host.do("backup", "--out", str(out), who=who, more=[f"[backup]\nneeded = 3\n{holders}"])
    other = Host(tmp_path / "b")
    words = ("restore", "--record", str(host.record_file), str(out))
    done = other.run(*words, who=[*pick(crew, "anna ben carla"), *keepers[:2]])
    assert done.returncode == 1
    assert "3 holders are due" in done.stderr
    assert not list((other.folder / "tokens").iterdir())
    other.do(*words, who=[*pick(crew, "anna ben"), *keepers])
    assert proofs(other) == proofs(host)


@pytest.mark.soak
def test_what_was_tampered_with_is_refused_without_a_trace(host: Host, crew: Crew, tmp_path: Path) -> None:
    out = tmp_path / "backup.json"
    host.do("backup", "--out", str(out), who=pick(crew, "otto olga anna carla"))
    package, record = json.loads(out.read_text()), host.record()
    other = Host(tmp_path / "b")
    cases = list(tampered(package, record))
    for index, (bad_package, bad_record) in enumerate(cases):
        files = [tmp_path / f"{name}-{index}.json" for name in ("package", "record")]
        for path, tree in zip(files, (bad_package, bad_record), strict=True):
            path.write_text(json.dumps(tree))
        with pytest.raises((CeremonyRefused, ConfigError)):
            restored(other, *files)
        assert untouched(other), index
    for index in (0, len(cases) - 1):
        words = ("restore", "--record", str(tmp_path / f"record-{index}.json"))
        done = other.run(*words, str(tmp_path / f"package-{index}.json"), who=pick(crew, ALL))
        assert done.returncode == 1
        assert done.stderr.startswith("hsmctl: ")
        assert untouched(other), index


def restored(host: Host, package: Path, record: Path) -> None:
    """As hsmctl does it; nobody is asked for anything before what is on the table was looked at."""

    def nobody(what: str) -> NoReturn:
        raise AssertionError(what)

    found = papers.read(package, papers.Package, papers.PACKAGE)
    passage.restore(
        config.load(host.config),
        papers.read_record(record),
        [found],
        host.papers,
        Party(nobody, nobody),
        TokenAnswers(),
    )


def untouched(host: Host) -> bool:
    return (
        not list((host.folder / "tokens").iterdir()) and not host.seal.exists() and not host.papers.exists()
    )


def tampered(package: dict[str, Any], record: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """What somebody might try, one change each."""

    def changed(tree: dict[str, Any], **values: Any) -> dict[str, Any]:
        return {**json.loads(json.dumps(tree)), **values}

    keys = package["keys"]
    yield changed(package, approvals=package["approvals"][:1]), record
    yield changed(package, approvals=package["approvals"][:1] * 2), record
    yield changed(package, approvals=[]), record
    yield changed(package, keys=keys[:-1]), record
    yield changed(package, keys=[{**keys[0], "label": "hsmd-root-9"}, *keys[1:]]), record
    yield changed(package, keys=[{**keys[0], "wrapped": keys[1]["wrapped"]}, *keys[1:]]), record
    yield changed(package, instance="0" * 32), record
    yield changed(package, seal="{}"), record
    yield changed(package, seal=5), record
    yield changed(package, format="hsmd-package-2"), record
    yield changed(package, more=1), record
    yield [], record
    yield package, changed(record, quorum={"administrators": 1, "operators": 1})
    yield package, changed(record, ukeys=record["ukeys"][1:])
    yield package, changed(record, signature=record["signature"][::-1])
    yield package, changed(record, signature="")
    yield package, changed(record, id="0" * 32)
    swapped = [{**record["ukeys"][0], "public_key": record["ukeys"][3]["public_key"]}, *record["ukeys"][1:]]
    yield package, changed(record, ukeys=swapped)


@pytest.mark.soak
def test_an_hsm_of_another_record_is_not_touched(host: Host, crew: Crew, tmp_path: Path) -> None:
    """Neither closed nor backed up, and a token in use is not made anew."""
    stranger = Host(tmp_path / "s")
    stranger.do("init", who=pick(crew, ALL))
    foreign = tmp_path / "foreign"
    foreign.mkdir(mode=0o700)
    for each in ("record.json", "record.txt", "so-pin.seal"):
        shutil.copy(stranger.papers / each, foreign / each)
    host.papers.rename(tmp_path / "own")
    foreign.rename(host.papers)
    done = host.run("close", "--without-backup", who=pick(crew, "otto olga anna ben"))
    assert done.returncode == 1
    assert "another key" in done.stderr
    shutil.rmtree(host.papers)
    done = host.run("init", who=pick(crew, ALL))
    assert done.returncode == 1
    assert "has a user PIN" in done.stderr


# Closing


@pytest.mark.soak
def test_closed_keys_stay_where_they_are(host: Host, crew: Crew, tmp_path: Path) -> None:
    deciding = pick(crew, "otto olga anna carla")
    done = host.run("close", who=deciding)
    assert done.returncode == 1
    assert "no backup" in done.stderr
    host.do("backup", "--out", str(tmp_path / "backup.json"), who=deciding)
    host.do("close", who=deciding)
    assert all(each["closed"] for each in host.record()["keys"])
    assert "NOT CLOSED" not in (host.papers / "record.txt").read_text()
    host.do("close", who=deciding)  # once more is well
    done = host.run("backup", "--out", str(tmp_path / "second.json"), who=deciding)
    assert done.returncode == 1
    assert "all keys are closed" in done.stderr
    assert not (tmp_path / "second.json").exists()
    assert deviations(host, pick(crew, "otto olga")) == []
    # the next root key is made to be backed up, and closed in turn
    host.do("next-root", who=deciding)
    assert {each["label"]: each["closed"] for each in host.record()["keys"]}["hsmd-root-2"] is False
    host.do("backup", "--out", str(tmp_path / "third.json"), who=deciding)
    assert [each["label"] for each in json.loads((tmp_path / "third.json").read_text())["keys"]] == [
        "hsmd-root-2"
    ]
    host.do("close", who=deciding)
    other = Host(tmp_path / "b")
    backups = [str(tmp_path / name) for name in ("backup.json", "third.json")]
    other.do("restore", "--record", str(host.record_file), *backups, who=deciding)
    assert proofs(other) == proofs(host)
    other.do("close", who=deciding)
    shutil.copy(host.folder / "hsmd.db", other.folder / "hsmd.db")
    assert deviations(other, pick(crew, "otto olga")) == []


# The answers


@pytest.mark.parametrize(
    ("quorum", "names", "said"),
    [
        ((1, 2), ALL, "administrators"),
        ((2, 1), ALL, "operators"),
        ((4, 2), ALL, "administrators"),
        ((2, 2), "anna otto olga", "administrators"),
        ((2, 2), "anna ben otto olga otto", "same name"),
    ],
)
def test_a_founding_that_cant_come_to_a_good_end_is_not_begun(
    crew: Crew, tmp_path: Path, quorum: tuple[int, int], names: str, said: str
) -> None:
    host = Host(tmp_path / "a")
    done = host.run("init", who=pick(crew, names), quorum=quorum)
    assert done.returncode == 1
    assert said in done.stderr
    assert not host.papers.exists()
    assert not list((host.folder / "tokens").iterdir())


def test_a_ukey_has_one_seat(crew: Crew, tmp_path: Path) -> None:
    host, anna = Host(tmp_path / "a"), crew["anna"]
    twin = Person("twin", "administrator", anna.uri, anna.folder)
    done = host.run("init", who=[*pick(crew, ALL), twin])
    assert done.returncode == 1
    assert "another seat" in done.stderr
    assert not list((host.folder / "tokens").iterdir())
    # who was begun with stays: others can't slip in
    done = host.run("init", who=pick(crew, "anna ben otto olga"))
    assert done.returncode == 1
    assert "begun with other UKeys" in done.stderr


def test_the_memory_of_a_ceremony_is_dumped_nowhere() -> None:
    program = """
import ctypes, resource, sys
from hsmd.cli import hsmctl

sys.argv = ["hsmctl", "ceremony", "verify"]
try:
    hsmctl.main()
finally:
    print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr  # its options are missing
    assert done.stdout.split() == ["(0,", "0)", "0"]


@pytest.mark.parametrize(("content", "mode", "said"), [("", 0o600, "is empty"), ("1234", 0o644, "chmod 600")])
def test_a_pin_file_that_keeps_no_pin_is_told_before_anything_is_made(
    crew: Crew, tmp_path: Path, content: str, mode: int, said: str
) -> None:
    host = Host(tmp_path / "a", sealed=False)
    pin = host.folder / "pin"
    pin.write_text(content)
    pin.chmod(mode)
    done = host.run("init", who=pick(crew, "anna ben otto olga"))
    assert done.returncode != 0
    assert said in done.stderr
    assert not list((host.folder / "tokens").iterdir())


def test_another_hsms_seal_is_not_written_over(founded: Host, crew: Crew, tmp_path: Path) -> None:
    """As by a configuration that was copied for the new HSM, [seal] file and all."""
    before = founded.seal.read_bytes()
    other = Host(tmp_path / "b")
    other.config.write_text(other.config.read_text().replace(str(other.seal), str(founded.seal)))
    for words, who in ((("prepare", "--record", str(founded.record_file)), ""), (("init",), ALL)):
        done = other.run(*words, who=pick(crew, who))
        assert done.returncode == 1
        assert f"{founded.seal} is there already" in done.stderr
        assert founded.seal.read_bytes() == before
        assert not list((other.folder / "tokens").iterdir())
        shutil.rmtree(other.papers)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("[quorum]\nadministrators = 2\n", "operators"),
        ("[quorum]\nadministrators = 'x'\noperators = 2\n", "administrators"),
        ("more = 1\n", "no such option"),
        ("[[ukeys]]\nname = 'a'\n", "uri"),
        ("no toml", "not valid TOML"),
        ("", "lack"),
    ],
)
def test_answers_that_are_wrong_are_told(tmp_path: Path, answers: str, said: str) -> None:
    host = Host(tmp_path / "a")
    path = tmp_path / "answers.toml"
    path.write_text(answers)
    words = ["--config", host.config, "--dir", host.papers, "--answers", path]
    done = subprocess.run(
        [sys.executable, "-m", "tests.dying", "-", "ceremony", "init", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (2, 4), done.stderr
    assert said in done.stderr
    assert not host.papers.exists()


@pytest.mark.soak
def test_a_token_that_its_makers_tool_has_made_is_taken_as_it_is(crew: Crew, tmp_path: Path) -> None:
    host = Host(tmp_path / "a")
    util = ["softhsm2-util", "--init-token", "--free", "--label", "hsm-a"]
    subprocess.run(
        [*util, "--pin", "maker-pin", "--so-pin", "maker-so-pin"],
        env={**os.environ, "SOFTHSM2_CONF": str(host.conf)},
        check=True,
        capture_output=True,
    )
    for name, value in {"pin": "maker-pin", "so": "maker-so-pin", "wrong": "other-pin"}.items():
        (tmp_path / name).write_text(f"{value}\n")
        (tmp_path / name).chmod(0o600)
    who = pick(crew, ALL)
    done = host.run("init", who=who)
    assert done.returncode == 1
    assert "has a user PIN" in done.stderr
    done = host.run("init", who=who, more=[f'[token]\npin_file = "{tmp_path / "wrong"}"'])
    assert done.returncode == 1
    assert "does not take the PIN" in done.stderr
    assert not host.seal.exists()
    given = f'[token]\npin_file = "{tmp_path / "pin"}"\nso_pin_file = "{tmp_path / "so"}"'
    host.do("init", who=who, more=[given])
    assert (host.papers / "so-pin.seal").exists()
    assert deviations(host, pick(crew, "otto olga")) == []


@pytest.mark.soak
def test_without_a_seal_the_pin_is_in_a_file_of_the_host(crew: Crew, tmp_path: Path) -> None:
    host = Host(tmp_path / "a", sealed=False)
    host.do("init", who=pick(crew, ALL))
    assert stat.S_IMODE((host.folder / "pin").stat().st_mode) == 0o600
    assert len((host.folder / "pin").read_text()) == 32
    assert host.record()["pin"] == "in a file of the host"
    assert not (host.papers / "first-user.json").exists()
    assert deviations(host, []) == []  # no operator is needed to open what is not sealed
    out = tmp_path / "backup.json"
    done = host.run("backup", "--out", str(out), who=pick(crew, "anna otto olga oskar ada"))
    assert done.returncode == 1
    assert "2 administrators are due" in done.stderr
    assert not out.exists()
    host.do("backup", "--out", str(out), who=pick(crew, "anna ben"))


def test_papers_are_kept_where_nobody_else_looks(crew: Crew, tmp_path: Path) -> None:
    host = Host(tmp_path / "a")
    host.papers.mkdir(mode=0o755)
    done = host.run("init", who=pick(crew, ALL))
    assert done.returncode == 4
    assert "chmod 700" in done.stderr
    assert not list(host.papers.iterdir())
