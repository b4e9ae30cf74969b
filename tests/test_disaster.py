"""The building burns: a thousand keys come back on another HSM that holds the root key."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hsmd.client import Client
from tests import testimony
from tests.softhsm import needs_folder
from tests.stand import Stand
from tests.testimony import Testimony

KEYS = 1000
_SLOW = ("RSA", "ML_DSA")  # whose making takes long: few of these
_ROOT = Path(__file__).parent.parent


def many(stand: Stand, count: int) -> list[Testimony]:
    """So many keys, of all kinds that the token can do, and what each of them does."""
    with stand.client() as client:
        kinds = testimony.kinds(client)
    slow = [kind for kind in kinds if kind[0].startswith(_SLOW)]
    fast = [kind for kind in kinds if kind not in slow]
    wanted = slow * 3 + fast * (count // len(fast) + 1)

    def make(kind: tuple[str, str]) -> Testimony:
        return testimony.make(client, *kind)

    with stand.client(deadline=60) as client, ThreadPoolExecutor(4) as pool:
        return list(pool.map(make, wanted[:count]))


def check_all(stand: Stand, told: Sequence[Testimony]) -> None:
    def check(client: Client, each: Testimony) -> None:
        testimony.check(client, each)

    with stand.client(deadline=60) as client, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: check(client, each), told))


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
    told = many(site, KEYS)
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
    assert restored["keys"] == KEYS
    assert restored["unwrapped"] >= KEYS
    assert restored["trouble"] == []
    try:
        other.start(gateway=False)
        check_all(other, told)
    finally:
        other.stop()


@needs_folder
def test_the_rehearsal(site: Stand, tmp_path: Path) -> None:
    told = many(site, 20)
    made = ctl(site, "backup", "create", "--config", str(site.dev.config))
    before = {path: path.stat().st_mtime_ns for path in (site.dev.data / "store").iterdir()}

    def rehearse(*words: str) -> "subprocess.CompletedProcess[str]":
        script = _ROOT / "scripts" / "restore-rehearsal"
        environment = {**os.environ, **site.settings, "HSMCTL": str(Path(sys.executable).with_name("hsmctl"))}
        command = [str(script), "--config", str(site.dev.config), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = rehearse("--backup", made["file"], "--keep", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["keys"] == len(told)
    assert "the backup comes back whole" in done.stderr
    assert (tmp_path / "kept" / "store" / "hsmd.db").exists()
    assert (tmp_path / "kept" / "files" / "hsmd.toml").exists()
    assert {path: path.stat().st_mtime_ns for path in (site.dev.data / "store").iterdir()} == before

    changed = bytearray(Path(made["file"]).read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "changed").write_bytes(changed)
    done = rehearse("--backup", str(tmp_path / "changed"))
    assert done.returncode == 4
    assert "it was changed" in done.stderr
    for words in ((), ("--nothing", "x")):
        assert rehearse(*words).returncode == 1
