"""A founding at which people are asked, on a terminal."""

import os
import pty
import select
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.ceremonies import LABELS, PEOPLE, Host, Person, people, pick
from tests.test_ceremony import ALL, deviations

pytestmark = pytest.mark.soak  # it takes minutes

_SECONDS = 120.0


def talk(host: Host, answers: list[tuple[str, str]]) -> tuple[int, str]:
    """Run `ceremony init` on a terminal and answer what it asks, in this order; its exit code and words."""
    words = ["ceremony", "init", "--config", str(host.config), "--dir", str(host.papers)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["XDG_RUNTIME_DIR"] = str(host.folder)
        os.execv(sys.executable, [sys.executable, "-m", "tests.dying", "-", *words])  # noqa: S606  # ours
    said, waiting, until = "", list(answers), time.monotonic() + _SECONDS
    seen = 0
    while time.monotonic() < until:
        if terminal not in select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # it has ended
            break
        said += chunk.decode(errors="replace")
        if waiting and (place := said.find(waiting[0][0], seen)) >= 0:
            seen = place + len(waiting[0][0])
            os.write(terminal, waiting.pop(0)[1].encode() + b"\n")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    assert not waiting, said
    return code, said


def introductions(who: list[Person]) -> list[tuple[str, str]]:
    return [
        line
        for each in who
        for line in (
            (f"Address of the UKey of {each.name}", each.uri),
            (f"PIN of the UKey of {each.name}", "135790"),
        )
    ]


def questions() -> list[tuple[str, str]]:
    named = [
        line for name, (role, _) in PEOPLE.items() for line in (("Name of the next one", name), ("as", role))
    ]
    numbers = [("How many administrators", "2"), ("How many operators", "2")]
    return [*named, ("Name of the next one", ""), *numbers]


USER = [("first domain", "example"), ("first user", ""), ("certificate", ""), ("Go on", "y")]


def test_people_are_asked_step_by_step_and_may_be_cut_short(tmp_path: Path) -> None:
    crew, host = people(tmp_path / "people"), Host(tmp_path / "a")
    who = pick(crew, ALL)
    for each in who:  # the HSM and the UKeys are tokens of one machine: SoftHSM2 shows all of them
        for token in (each.folder / "tokens").iterdir():
            shutil.copytree(token, host.folder / "tokens" / token.name)
    os.environ["SOFTHSM2_CONF"] = str(host.conf)
    try:
        wrong = [
            *introductions(who[:2]),
            ("UKey of carla", "pkcs11:token=nobody?module-path=/usr/lib/none.so"),
        ]
        code, said = talk(host, [*questions(), *USER, *wrong])
        assert code == 1, said
        assert "carla" in said
        code, said = talk(host, [*USER, *introductions(who[2:])])
        assert code == 0, said
        assert "goes on with the same people" in said
        assert "RECORD OF THE CEREMONY" in said
        assert "135790" not in said
    finally:
        del os.environ["SOFTHSM2_CONF"]
    assert [each["label"] for each in host.record()["keys"]] == LABELS
    assert deviations(host, pick(crew, "otto oskar")) == []
