"""What `hsmctl ceremony verify` finds: each thing that is not as the record says, and only that."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.ceremonies import ROOT, Host, Person, first_user, people, pick
from tests.test_ceremony import ALL, copied, deviations

pytestmark = pytest.mark.soak  # it takes minutes

Crew = dict[str, Person]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Crew:
    return people(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory, crew: Crew) -> Host:
    host = Host(tmp_path_factory.mktemp("founded") / "a")
    host.do("init", who=pick(crew, ALL), more=[first_user()])
    return host


def in_token(host: Host, crew: Crew, program: str) -> None:
    """Do something in the HSM, as somebody with the PIN could."""
    head = (
        "import sys; from pathlib import Path; from hsmd import config;"
        "from hsmd.daemon.ceremony import answers, bench; from hsmd.cli.ctl import ceremony as ctl\n"
        "settings = config.load(Path(sys.argv[1])); given = answers.read(Path(sys.argv[2]))\n"
        "pin = bench.open_pin(settings, ctl._party(given, Path(sys.argv[2])))\n"
        "with bench.opened(settings, pin) as core:\n    token = core.token\n"
    )
    body = "".join(f"    {line}\n" for line in program.splitlines())
    answers = host.answers(pick(crew, "otto olga"))
    argv = [sys.executable, "-c", head + body, str(host.config), str(answers)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def changed_record(host: Host, change: Change) -> None:
    record = host.record()
    change(record)
    host.record_file.write_text(json.dumps(record))


IN_TOKEN = {
    "token.close_key('hsmd-root-1')": "key hsmd-root-1: not closed in the record, closed now",
    "token.make_hmac_key('other')": "key other: not in the record",
    "token.make_root_key('hsmd-root-2', extractable=True)": "key hsmd-root-2: not in the record",
    "token.destroy_labelled(['hsmd-credential'])": "key hsmd-credential: not in the HSM",
    "token.destroy_labelled(['hsmd-root-1']); token.make_root_key('hsmd-root-1', extractable=True)": (
        "key hsmd-root-1: check value"
    ),
    "token.destroy_labelled(['hsmd-audit-1']); token.make_signing_key('hsmd-audit-1', extractable=True)": (
        "key hsmd-audit-1: check value"
    ),
    "from hsmd.hsm import templates; from hsmd.hsm.module import Template; from pkcs11 import Attribute\n"
    "with token._writing() as (desk, session):\n"
    "    key = desk.connection.module.find(session, templates.labelled('hsmd-root-1'), 1)[0]\n"
    "    desk.connection.module.change(session, key, Template({Attribute.DECRYPT: True}))": (
        "key hsmd-root-1: it may"
    ),
    "from hsmd.hsm import templates; from pkcs11 import Mechanism\n"
    "public, private = templates.transport_pair('hsmd-sealing', 2048)\n"
    "with token._writing() as (desk, session):\n"
    "    make = desk.connection.module.generate_pair\n"
    "    make(session, Mechanism.RSA_PKCS_KEY_PAIR_GEN, public, private)": "key hsmd-sealing: it may",
    "from hsmd.domain import ukeys\n"
    "with core.store.write() as tx: ukeys.set_quorum(tx, ukeys.Quorum(3, 2))": (
        "quorum of administrators: 2 in the record, 3 now"
    ),
    "from hsmd.domain import ukeys; from hsmd.domain.core import Call; from hsmd.caller import Caller\n"
    "call = Call(core, Caller('system'), lambda: None)\n"
    "one = next(each for each in ukeys.registry(core).living() if each.name == 'ada')\n"
    "with core.store.write() as tx: ukeys.revoke(call, tx, one.id, 'test')": "UKey ada (auditor): revoked",
}


@pytest.mark.parametrize("program", IN_TOKEN, ids=range(len(IN_TOKEN)))
def test_what_was_changed_in_the_hsm_or_the_store_is_found(
    founded: Host, crew: Crew, tmp_path: Path, program: str
) -> None:
    host = copied(founded, tmp_path / "a")
    in_token(host, crew, program)
    found = deviations(host, pick(crew, "otto oskar"))
    assert any(each.startswith(IN_TOKEN[program]) for each in found), found
    assert len(found) <= 3, found


def test_a_new_record_follows_what_was_decided_since(founded: Host, crew: Crew, tmp_path: Path) -> None:
    host = copied(founded, tmp_path / "a")
    in_token(
        host,
        crew,
        "from hsmd.domain import ukeys\n"
        "with core.store.write() as tx: ukeys.set_quorum(tx, ukeys.Quorum(3, 2))",
    )
    out = tmp_path / "backup.json"
    done = host.run("backup", "--out", str(out), who=pick(crew, ALL))
    assert done.returncode == 1
    assert "ceremony record" in done.stderr
    assert not out.exists()
    done = host.run("record", who=pick(crew, "otto olga anna ben"))
    assert done.returncode == 1
    assert "3 administrators are due" in done.stderr
    host.do("record", who=pick(crew, "otto olga anna ben carla"))
    assert host.record()["quorum"] == {"administrators": 3, "operators": 2}
    assert json.loads((host.papers / "so-pin.seal").read_text())["threshold"] == 3
    assert deviations(host, pick(crew, "otto oskar")) == []
    host.do("backup", "--out", str(out), who=pick(crew, ALL))


def test_a_swapped_row_of_the_registry_is_found(founded: Host, crew: Crew, tmp_path: Path) -> None:
    host = copied(founded, tmp_path / "a")
    with closing(sqlite3.connect(host.folder / "hsmd.db")) as store, store:
        store.execute("UPDATE ukeys SET role = 'administrator' WHERE name = 'ada'")
    (found,) = deviations(host, pick(crew, "otto oskar"))
    assert found.startswith("store:")
    assert "seal" in found


def test_another_store_is_found(founded: Host, crew: Crew, tmp_path: Path) -> None:
    host = copied(founded, tmp_path / "a")
    (host.folder / "hsmd.db").unlink()
    (found,) = deviations(host, pick(crew, "otto oskar"))
    assert found.startswith("store: it can't be read")


def test_changed_seals_are_found(founded: Host, crew: Crew, tmp_path: Path) -> None:
    host = copied(founded, tmp_path / "a")
    so_pin = host.papers / "so-pin.seal"
    shutil.copy(host.seal, so_pin)
    found = deviations(host, pick(crew, "otto oskar"))
    assert len(found) == 1
    assert "others than the record's administrators" in found[0]
    so_pin.unlink()
    (gone,) = deviations(host, pick(crew, "otto oskar"))
    assert "can't be read" in gone


def test_a_changed_record_is_found(founded: Host, crew: Crew, tmp_path: Path) -> None:
    changes: dict[str, Change] = {
        "software:": lambda tree: tree["software"].update(sha256="0" * 64),
        "token serial:": lambda tree: tree["token"].update(serial="0000"),
        "UKey anna:": lambda tree: tree["ukeys"][0].update(serial="0000"),
        "the record was changed": lambda tree: tree["keys"].pop(),
        "store: of the installation": lambda tree: tree.update(instance="0" * 32),
    }
    for said, change in changes.items():
        host = copied(founded, tmp_path / said.split(":")[0].replace(" ", "-").replace("'", ""))
        changed_record(host, change)
        done = host.run("verify", who=pick(crew, "otto oskar"))
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert "the record was changed: its signature does not hold" in lines
        assert any(line.startswith(said) for line in lines), lines
