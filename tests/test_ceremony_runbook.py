"""The commands of docs/operations.md for HSMs, carried out as they stand there, in their order."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ceremonies import LABELS, ROOT, Host, Person, first_user, people, pick
from tests.test_ceremony import ALL, KINDS, deviations

pytestmark = pytest.mark.soak  # it takes minutes

_EVERYBODY = "anna ben carla otto olga oskar ada"


def commands(section: str) -> list[list[str]]:
    """What that section has people type, but for other programs' commands."""
    text = (ROOT / "docs/operations.md").read_text()
    found = re.search(rf"^### {re.escape(section)}$(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL)
    assert found, section
    lines = re.findall(r"^    (hsmctl ceremony .*)$", found[1], re.MULTILINE)
    assert lines
    return [shlex.split(line)[2:] for line in lines]


class Table:
    """The hosts of the runbook, and the stick."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.stick = folder / "stick"
        self.stick.mkdir(parents=True)
        self.crew = people(folder / "people")
        self.old, self.new = Host(folder / "old"), Host(folder / "new", kind)
        self.fingerprint = ""

    def carry_out(self, section: str) -> list[str]:
        """The steps that were done."""
        done = []
        for step, *words in commands(section):
            host = self.new if "/etc/hsmd/new.toml" in words else self.old
            self._put_down(host)
            text = self._step(host, step, words)
            if step == "prepare":
                self.fingerprint = text.strip()
                shutil.copy(host.papers / "transport.json", self.stick)
            if host is self.old:
                shutil.copy(host.record_file, self.stick)
            done.append(step)
        return done

    def _step(self, host: Host, step: str, words: list[str]) -> str:
        given = [
            each.replace("/media/stick", str(self.stick)) for each in without(words, "--config", "--dir")
        ]
        if "--transport" in given:
            given += ["--fingerprint", self.fingerprint]
        who: list[Person] = pick(self.crew, _EVERYBODY)
        if step == "verify":
            assert deviations(host, who) == []
            return ""
        return host.do(step, *given, who=who, more=[first_user()])

    def _put_down(self, host: Host) -> None:
        """Both hosts have the same store, as one that was moved."""
        if host is self.new and host.record_file.exists():
            shutil.copy(self.old.folder / "hsmd.db", host.folder / "hsmd.db")


def without(words: list[str], *options: str) -> list[str]:
    """The words but for these options and their values."""
    found, rest = [], iter(words)
    for each in rest:
        if each in options:
            next(rest)
        else:
            found.append(each)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_hsm_is_founded_replaced_and_lost_by_the_book(tmp_path: Path, kind: str) -> None:
    table = Table(tmp_path, kind)
    table.old.do("init", who=pick(table.crew, ALL), more=[first_user()])
    shutil.copy(table.old.record_file, table.stick)
    assert table.carry_out("Replacing the HSM, or moving from SoftHSM2 to another") == [
        *("prepare", "backup", "restore", "close", "verify")
    ]
    assert [each["closed"] for each in table.new.record()["keys"]] == [True] * len(LABELS)
    values = [[each["check_value"] for each in host.record()["keys"]] for host in (table.old, table.new)]
    assert values[0] == values[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_root_key_is_added_and_the_hsm_lost_by_the_book(tmp_path: Path, kind: str) -> None:
    table = Table(tmp_path, kind)
    assert table.carry_out("Founding") == ["init", "backup", "close", "verify"]
    assert table.carry_out("When the HSM is lost, or its keys are closed") == ["restore"]
    values = [[each["check_value"] for each in host.record()["keys"]] for host in (table.old, table.new)]
    assert values[0] == values[1]
    assert table.carry_out("Replacing the root key") == ["next-root", "backup", "close", "record"]
    labels = {each["label"]: each["closed"] for each in table.old.record()["keys"]}
    assert labels == dict.fromkeys([*LABELS[:2], "hsmd-root-1", "hsmd-root-2", "hsmd-sealing"], True)
    package = json.loads((table.stick / "backup-2.json").read_text())
    assert [each["label"] for each in package["keys"]] == ["hsmd-root-2"]


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="scripts/ work in a .venv of their own")
def test_the_script_is_the_same_command() -> None:
    done = subprocess.run(
        [str(ROOT / "scripts/hsm-init"), "--help"], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "hsmctl ceremony init" in done.stdout
