"""The building burns: a thousand keys come back on another HSM that holds the root key."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hsmd.client import ApiError, Client
from tests import testimony
from tests.ceremonies import Host, Person, first_user, people, pick
from tests.softhsm import needs_folder
from tests.stand import Stand, eventually
from tests.test_ceremony import ALL, KINDS
from tests.test_ceremony_serving import at_last, decided, hsmctl, serving
from tests.test_ceremony_serving import client as admin_client
from tests.testimony import Testimony

pytestmark = pytest.mark.soak  # it takes minutes

KEYS = 1000
_SLOW = ("RSA", "ML_DSA")  # whose making takes long: few of these
_ROOT = Path(__file__).parent.parent


def many(client: Client, count: int) -> list[Testimony]:
    """So many keys, of all kinds that the token can do, and what each of them does."""
    kinds = testimony.kinds(client)
    slow = [kind for kind in kinds if kind[0].startswith(_SLOW)]
    fast = [kind for kind in kinds if kind not in slow]
    told = [patiently(client, kind) for kind in slow * 2]
    wanted = (fast * (count // len(fast) + 1))[: count - len(told)]
    with ThreadPoolExecutor(4) as pool:
        return told + list(pool.map(lambda kind: patiently(client, kind), wanted))


def patiently(client: Client, kind: tuple[str, str]) -> Testimony:
    """A key of that kind, however long the machine takes to find its primes."""
    for _ in range(5):
        with suppress(ApiError):
            return testimony.make(client, *kind)
    return testimony.make(client, *kind)


def check_all(client: Client, told: Sequence[Testimony]) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: testimony.check(client, each), told))


def ctl(stand: Stand, *words: str) -> Any:
    """hsmctl on the HSM's host; what it printed."""
    command = [sys.executable, "-m", "tests.dying", "-", "--json", *words]
    done = subprocess.run(
        command, env={**os.environ, **stand.settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Stand]:
    settings = {
        "HSMD__BACKUP__DIRECTORY": str(tmp_path / "backups"),
        "HSMD__LIMITS__KEYS_PER_PROJECT": "100000",
    }
    stand = Stand(tmp_path / "here", settings)
    try:
        stand.start(gateway=False)
        yield stand
    finally:
        stand.stop()


def without_a_store(folder: Path, settings: dict[str, str]) -> Stand:
    """A stand on the token in that folder, before its store is brought back."""
    made = Stand(folder, settings)
    shutil.rmtree(made.dev.data / "store")
    (made.dev.data / "store").mkdir()
    return made


@needs_folder
@pytest.mark.timeout(900)
def test_a_thousand_keys_come_back(site: Stand, tmp_path: Path) -> None:
    with site.client(deadline=60) as client:
        told = many(client, KEYS)
    assert len({each.key for each in told}) == KEYS
    made = ctl(site, "backup", "create", "--config", str(site.dev.config))
    site.stop()

    there = tmp_path / "there"
    there.mkdir(mode=0o700)
    shutil.copytree(site.dev.data / "token", there / "token")  # as the maker's means copy an HSM
    for name in ("pin", "so-pin"):
        shutil.copy2(site.dev.data / name, there / name)
    shutil.rmtree(site.dev.data / "token")
    shutil.rmtree(site.dev.data / "store")
    other = without_a_store(there, site.settings)
    restored = ctl(other, "backup", "restore", made["file"], "--config", str(other.dev.config))
    assert restored["keys"] >= KEYS
    assert restored["unwrapped"] >= KEYS
    assert restored["trouble"] == []
    try:
        other.start(gateway=False)
        with other.client(deadline=60) as client:
            check_all(client, told)
    finally:
        other.stop()


@needs_folder
def test_the_rehearsal(site: Stand, tmp_path: Path) -> None:
    with site.client(deadline=60) as client:
        told = many(client, 20)
    made = ctl(site, "backup", "create", "--config", str(site.dev.config))
    before = {path: path.stat().st_ino for path in (site.dev.data / "store").iterdir()}

    def rehearse(*words: str) -> "subprocess.CompletedProcess[str]":
        script = _ROOT / "scripts" / "restore-rehearsal"
        environment = {**os.environ, **site.settings, "HSMCTL": str(Path(sys.executable).with_name("hsmctl"))}
        command = [str(script), "--config", str(site.dev.config), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = rehearse("--backup", made["file"], "--keep", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["keys"] >= len(told)
    assert "the backup comes back whole" in done.stderr
    assert (tmp_path / "kept" / "store" / "hsmd.db").exists()
    assert (tmp_path / "kept" / "files" / "hsmd.toml").exists()
    assert {path: path.stat().st_ino for path in (site.dev.data / "store").iterdir()} == before
    with site.client(deadline=60) as client:
        check_all(client, told[:5])

    changed = bytearray(Path(made["file"]).read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "changed").write_bytes(changed)
    done = rehearse("--backup", str(tmp_path / "changed"))
    assert done.returncode == 4
    assert "it was changed" in done.stderr
    for words in ((), ("--nothing", "x")):
        assert rehearse(*words).returncode == 1


# With the ceremony: the keys come to the other HSM by its backup, and people decide about each step


def backup_ctl(host: Host, who: Sequence[Person], *words: str, code: int = 0) -> str:
    """`hsmctl backup` on the HSM's host, its PIN opened by these people's UKeys; what it printed."""
    answers = host.answers(who)
    command = [sys.executable, "-m", "tests.dying", "-", "--json", "backup", *words]
    done = subprocess.run(
        [*command, "--config", str(host.config), "--answers", str(answers)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(host.folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def unsealed(host: Host, crew: dict[str, Person]) -> None:
    for name in ("otto", "olga"):
        hsmctl(host, crew[name], "unseal")
    eventually(lambda: not json.loads(hsmctl(host, crew["otto"], "seal-status", "--json"))["sealed"], 90)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_the_hsm_and_the_store_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("HSMD__LIMITS__KEYS_PER_PROJECT", "100000")
    monkeypatch.setenv("HSMD__BACKUP__DIRECTORY", str(tmp_path / "backups"))
    crew, host, package = people(tmp_path / "people"), Host(tmp_path / "a"), tmp_path / "backup.json"
    host.do("init", who=pick(crew, ALL), more=[first_user()])
    host.do("backup", "--out", str(package), who=pick(crew, "otto olga anna carla"))
    host.do("close", who=pick(crew, "otto olga anna carla"))
    record = tmp_path / "record.json"
    shutil.copy(host.record_file, record)
    with serving(host):
        unsealed(host, crew)
        with at_last(lambda: admin_client(host)) as client:
            at_last(client.status)
            told = many(client, KEYS if kind == "opencryptoki" else 60)
        done = hsmctl(host, crew["carla"], "--json", "execute", "--yes", decided(host, crew, "create-backup"))
        file = json.loads(done)["result"]["file"]
    for each in (host.folder / "tokens", host.folder / "hsmd.db"):  # the building burns
        shutil.rmtree(each) if each.is_dir() else each.unlink()

    other = Host(tmp_path / "b", kind)
    other.do("restore", "--record", str(record), str(package), who=pick(crew, "ben carla otto olga"))
    (other.folder / "hsmd.db").unlink(missing_ok=True)  # the ceremony's own, if it has made one
    assert "2 administrators have to approve" in backup_ctl(
        other, pick(crew, "otto oskar"), "restore", file, code=4
    )
    statement = tmp_path / "restore.json"
    statement.write_text(hsmctl(other, crew["ben"], "backup", "statement", file))
    words = ["restore", file, "--statement", str(statement)]
    for name in ("anna", "ben"):
        approval = tmp_path / f"{name}.json"
        approval.write_text(hsmctl(other, crew[name], "backup", "approve", "--yes", str(statement)))
        words += ["--approval", str(approval)]
    backup_ctl(other, pick(crew, "otto"), *words, code=1)  # one operator opens no PIN
    assert not (other.folder / "hsmd.db").exists()
    restored = json.loads(backup_ctl(other, pick(crew, "otto oskar"), *words))
    assert restored["keys"] >= len(told)
    assert restored["approved_by"] == ["anna", "ben"]
    with serving(other):
        unsealed(other, crew)
        with at_last(lambda: admin_client(other)) as client:
            at_last(client.status)
            check_all(client, told)
