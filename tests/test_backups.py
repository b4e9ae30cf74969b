"""Backups: made while others write, whole or refused, brought back where there is nothing."""

import hmac
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsmd import backupfile, config, configtext, ukey
from hsmd.backupfile import Administrator, BackupError, Header, Part, Reader, Writer
from hsmd.domain import backups, crypto, keys, restores, roots
from hsmd.domain.backups import Place
from hsmd.errors import BACKUP_REFUSED, UNAVAILABLE, Error
from hsmd.store import StoreError, copies
from tests.house import House, furnished
from tests.stand import Stand

pytestmark = pytest.mark.soak  # it takes minutes

_ROOT = Path(__file__).parent.parent

# The form, with keys in memory in place of the HSM's


def mac(data: bytes) -> bytes:
    return hmac.digest(b"sealing", data, "sha256")


def header(**other: Any) -> Header:
    made = Header(
        created=1_700_000_000_000,
        version="0.1.0",
        instance="1" * 32,
        region="local-1",
        schema="0005",
        root_label="hsmd-root-1",
        check_value="abcdef",
        data_key=b"wrapped",
        needed=0,
        administrators=(),
    )
    return replace(made, **other)


def written(parts: list[bytes], **other: Any) -> bytes:
    cipher = AESGCM(b"k" * 32)
    file = io.BytesIO()
    front, digest = backupfile.begin(header(**other), mac)
    file.write(front)
    writer = Writer(file, digest, cipher.encrypt)
    import hashlib

    writer.begin_parts([Part("store", "", len(each), hashlib.sha256(each).hexdigest()) for each in parts])
    for each in parts:
        writer.write(each)
    writer.end()
    return file.getvalue()


def read(data: bytes) -> list[bytes]:
    file = io.BytesIO(data)
    opening = backupfile.read_opening(file)
    if not opening.is_whole(mac):
        raise BackupError("the header")
    reader = Reader(file, opening, AESGCM(b"k" * 32).decrypt, InvalidTag)
    found = []
    for part in reader.parts():
        whole = io.BytesIO()
        reader.copy(part, whole.write)
        found.append(whole.getvalue())
    reader.end()
    return found


@pytest.mark.parametrize("size", [0, 1, 100, 65536 - 200, 65536, 65537, 200_000])
def test_what_is_written_is_read(size: int) -> None:
    parts = [os.urandom(size), b"", os.urandom(77)]
    assert read(written(parts)) == parts


def test_any_flipped_bit_any_cut_and_any_addition_is_found() -> None:
    data = written([os.urandom(300), b"more"])
    for place in range(len(data)):
        with pytest.raises(BackupError):
            read(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
    for place in range(len(data)):
        with pytest.raises(BackupError):
            read(data[:place])
    for more in (b"\0", b"\0" * 4, data[-100:], data):
        with pytest.raises(BackupError):
            read(data + more)


def test_chunks_are_of_one_backup_and_in_their_order() -> None:
    parts = [bytes(3 * 65536)]
    one, other = written(parts), written(parts, region="other")
    start = len(backupfile.begin(header(), mac)[0])
    chunk = 4 + 65536 + 16
    assert len(one) > start + 3 * chunk
    swapped = one[:start] + one[start + chunk :][:chunk] + one[start:][:chunk] + one[start + 2 * chunk :]
    missing = one[:start] + one[start + chunk :]
    foreign = one[: start + chunk] + other[start + 1 + chunk :]
    for each in (swapped, missing, foreign):
        with pytest.raises(BackupError):
            read(each)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"created":1}',
        json.dumps({"administrators": [[]]}).encode(),
        b"[" * 5000,
    ],
)
def test_headers_that_are_none(content: bytes) -> None:
    data = backupfile.MAGIC + len(content).to_bytes(4, "big") + content + bytes(32)
    with pytest.raises(BackupError):
        backupfile.read_opening(io.BytesIO(data))
    with pytest.raises(BackupError, match="too long"):
        backupfile.read_opening(io.BytesIO(backupfile.MAGIC + b"\xff" * 4 + content))
    with pytest.raises(BackupError, match="no backup of hsmd"):
        backupfile.read_opening(io.BytesIO(b"SQLite format 3\0" + content))


# The configuration in it


def test_the_configuration_comes_back_as_it_was(tmp_path: Path) -> None:
    whole = _ROOT / "conf" / "hsmd.toml"
    uncommented = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in whole.read_text().splitlines()
    )
    for text in ("", uncommented, 'region = "a"\n[log]\nlevel = "\\"\\\\ü\\u0001\\u007f"\n'):
        (tmp_path / "one.toml").write_text(text)
        one = config.load(tmp_path / "one.toml", {})
        (tmp_path / "other.toml").write_text(configtext.rendered(one))
        assert config.load(tmp_path / "other.toml", {}) == one
    peer = (
        '[[peers]]\nregion = "b"\naddress = "h:1"\nca = "/ca"\ncertificate = "/c"\nkey = "/k"\n'
        'names = ["CN:b"]\n'
        f'domains = [{{theirs = "{"1" * 32}", ours = "{"2" * 32}"}}]\n[hsm]\npin_file = "/pin"\n'
    )
    (tmp_path / "one.toml").write_text(peer)
    one = config.load(tmp_path / "one.toml", {})
    (tmp_path / "other.toml").write_text(configtext.rendered(one))
    assert config.load(tmp_path / "other.toml", {}) == one
    named = configtext.files(one)
    assert {Path("/ca"), Path("/c"), Path("/k")} < set(named)
    assert Path("/pin") not in named


# Who may restore


class Pen:
    """An administrator's UKey in memory."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.der = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.admin = Administrator(name[0] * 32, name, ukey.fingerprint(self.der), self.der)

    def approve(self, statement: restores.Statement) -> bytes:
        signature = self._key.sign(statement.signed, ec.ECDSA(hashes.SHA256()))
        return restores.approval(self.admin.fingerprint, signature).encode()


def test_a_quorum_restores_and_nobody_else() -> None:
    alice, bob, eve = Pen("alice"), Pen("bob"), Pen("eve")
    file = io.BytesIO(written([b"x"], needed=2, administrators=(alice.admin, bob.admin)))
    opening, now = backupfile.read_opening(file), 1_700_000_000_000
    wanted = restores.statement(opening, "host", now + 1000)
    assert restores.read_statement(wanted.text.encode()) == wanted
    for part in ("host", opening.digest, "hsmd-root-1 abcdef", "1" * 32, "2023-11-14"):
        assert part in wanted.words
    both = [alice.approve(wanted), bob.approve(wanted)]

    def check(statement: Any, approvals: list[bytes], host: str = "host", at: int = now) -> list[str]:
        return restores.check_approvals(opening, statement, approvals, host, at)

    assert check(wanted, both) == ["alice", "bob"]
    other = replace(wanted, expires=wanted.expires + 1)
    bad: list[tuple[Any, list[bytes], str, int]] = [
        (None, [], "host", now),
        (wanted, [], "host", now),
        (wanted, both[:1], "host", now),
        (wanted, [both[0], both[0], alice.approve(wanted)], "host", now),
        (wanted, [both[0], eve.approve(wanted)], "host", now),
        (wanted, [both[0], bob.approve(other)], "host", now),
        (other, both, "host", now),
        (wanted, both, "another", now),
        (wanted, both, "host", now + 1000),
        (replace(wanted, backup="0" * 64), both, "host", now),
        (replace(wanted, root="hsmd-root-2 abcdef"), both, "host", now),
        (wanted, [both[0], b"{}"], "host", now),
        (wanted, [both[0], b"[]"], "host", now),
        (wanted, [both[0], b"\xff"], "host", now),
        (wanted, [both[0], b"[" * 10_000], "host", now),
        (wanted, [both[0], b" " * 20_000], "host", now),
        (
            wanted,
            [both[0], json.dumps({"fingerprint": bob.admin.fingerprint, "signature": "AA"}).encode()],
            "host",
            now,
        ),
    ]
    for each in bad:
        with pytest.raises(BackupError):
            check(*each)
    for text in (
        b"",
        b"{}",
        b"[1]",
        wanted.text.encode().replace(b'"host"', b'"hots"'),
        b'{"backup": 1e999}',
    ):
        with pytest.raises(BackupError):
            restores.read_statement(text)


# With a real HSM


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with furnished(tmp_path) as made:
        yield made


def place(house: House) -> Place:
    url = f"sqlite:///{house.folder / 'hsmd.db'}"
    return Place(house.folder / "backups", url, lambda: [("configuration", "", b"region = 'x'\n")])


def opened(house: House, path: Path) -> dict[str, bytes]:
    """All parts of a backup, by name."""
    found = {}
    with path.open("rb") as file:
        opening = backupfile.read_opening(file)
        backups.check(house.token, opening)
        with backups.reading(house.token, file, opening) as reader:
            for part in reader.parts():
                whole = io.BytesIO()
                reader.copy(part, whole.write)
                found[part.name] = whole.getvalue()
            reader.end()
    return found


def seal(house: House) -> Any:
    return house.core.store.seal


def test_a_backup_is_one_state_while_others_write(house: House) -> None:
    """Each change makes a key and its version together: no backup has the one without the other."""
    stop, made = threading.Event(), list[str]()

    def work(number: int) -> None:
        while not stop.is_set():
            made.append(keys.create_key(house.call(), alias=f"key-{number}-{len(made)}").id)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for each in threads:
        each.start()
    try:
        paths, acknowledged = [], []
        for _ in range(6):
            acknowledged.append(set(made))
            paths.append(backups.create(house.core, place(house)).path)
    finally:
        stop.set()
        for each in threads:
            each.join()
    sizes = []
    for number, path in enumerate(paths):
        copied = house.folder / f"copy-{number}.db"
        copied.write_bytes(opened(house, path)["store"])
        whole = copies.check(copied, seal(house))
        assert whole.broken == []
        assert whole.rows["keys"] == whole.rows["key_versions"] == whole.rows["key_usage"]
        with closing(sqlite3.connect(copied)) as connection:
            there = {each for (each,) in connection.execute("SELECT id FROM keys")}
        assert acknowledged[number] <= there <= set(made)
        sizes.append(whole.rows["keys"])
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    assert len(made) > sizes[0]


def test_any_flipped_byte_of_a_real_one_is_found(house: House) -> None:
    keys.create_key(house.call(), alias="key")
    path = backups.create(house.core, place(house)).path
    assert path.stat().st_mode & 0o777 == 0o600
    whole = path.read_bytes()
    assert set(opened(house, path)) == {"store", "configuration"}
    steps = sorted({*range(0, 1400, 7), *range(1400, len(whole), 997), *range(len(whole) - 40, len(whole))})
    for at in steps:
        changed = bytearray(whole)
        changed[at] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(BackupError):
            opened(house, path)
    assert house.token.status().state == "connected"


def test_nothing_secret_stands_in_it(house: House) -> None:
    keys.create_key(house.call(), alias="a-name-that-is-found")
    path = backups.create(house.core, place(house)).path
    whole = path.read_bytes()
    assert b"a-name-that-is-found" not in whole
    assert b"SQLite" not in whole
    assert b"region = 'x'" not in whole
    assert list(path.parent.iterdir()) == [path]
    again = backups.create(house.core, place(house)).path
    assert again != path
    assert again.read_bytes()[2000:2100] not in whole  # another key each time


def test_a_row_that_is_broken_is_named(house: House) -> None:
    key = keys.create_key(house.call(), alias="key").id
    house.sql("UPDATE keys SET description = 'x' WHERE id = ?", key)
    copied = house.folder / "copy.db"
    copied.write_bytes(opened(house, backups.create(house.core, place(house)).path)["store"])
    assert copies.check(copied, seal(house)).broken == [f"keys {key}"]
    damaged = bytearray(copied.read_bytes())
    damaged[4096:4200] = b"\xff" * 104
    copied.write_bytes(damaged)
    with pytest.raises(StoreError, match="damaged"):
        copies.check(copied, seal(house))


def test_an_old_backup_after_the_root_key_was_replaced(house: House) -> None:
    key = keys.create_key(house.call(), alias="key").id
    blob = crypto.encrypt_data(house.call(), key, b"data", "", b"")[1]
    path = backups.create(house.core, place(house)).path
    roots.rotate(house.call(), "hsmd-root-2")
    assert set(opened(house, path)) == {"store", "configuration"}  # as long as the old one is there
    newer = backups.create(house.core, place(house)).path
    with newer.open("rb") as file:
        assert backupfile.read_opening(file).header.root_label == "hsmd-root-2"
    house.token.destroy_labelled(["hsmd-root-1"])
    with pytest.raises(BackupError, match="lacks the root key hsmd-root-1"):
        opened(house, path)
    assert blob


def test_a_full_disk_leaves_nothing(house: House) -> None:
    """On a file system of its own, of half a megabyte."""
    keys.create_key(house.call(), alias="key")
    small = house.folder / "backups"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        for _ in range(2):
            with pytest.raises(Error) as refusal:
                backups.create(house.core, place(house))
            assert refusal.value.fault is BACKUP_REFUSED
            assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert backups.create(house.core, place(house)).path.exists()


def test_folders_that_are_none(house: House) -> None:
    (house.folder / "file").write_text("")
    (house.folder / "link").symlink_to(house.folder / "nowhere" / "x")
    for folder in (house.folder / "file", house.folder / "file" / "below", house.folder / "link"):
        with pytest.raises(Error) as refusal:
            backups.create(house.core, replace(place(house), folder=folder))
        assert refusal.value.fault is BACKUP_REFUSED
    url = "postgresql://user@nowhere/db"
    with pytest.raises(Error) as refusal:
        backups.create(house.core, replace(place(house), url=url))
    assert "pg_dump" in str(refusal.value)


# By hsmctl, as an operator does it


class Site:
    """A place where hsmctl is run: the configuration of a stand, and a store of its own."""

    def __init__(self, stand: Stand, folder: Path) -> None:
        self.stand = stand
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.store = folder / "store" / "hsmd.db"
        self.store.parent.mkdir(exist_ok=True)
        self.environment = {
            **os.environ,
            **stand.settings,
            "HSMD__BACKUP__DIRECTORY": str(folder / "backups"),
        }

    def ctl(self, *words: str, at: str = "-", restoring: bool = False, **more: str) -> Any:
        environment = {**self.environment, **more}
        if restoring:
            environment["HSMD__STORE__URL"] = f"sqlite:///{self.store}"
            environment["HSMD__AUDIT__DIRECTORY"] = str(self.folder / "audit")
        command = [sys.executable, "-m", "tests.dying", at, "--json", "backup", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def create(self, **how: Any) -> Any:
        return self.ctl("create", "--config", str(self.stand.dev.config), **how)

    def verify(self, file: str, **how: Any) -> Any:
        return self.ctl("verify", file, "--config", str(self.stand.dev.config), **how)

    def restore(self, file: str, *more: str, **how: Any) -> Any:
        words = ("restore", file, "--config", str(self.stand.dev.config), *more)
        return self.ctl(*words, restoring=True, **how)

    def left(self) -> list[str]:
        """What lies where the store is to be."""
        return sorted(each.name for each in self.store.parent.iterdir())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    """A token and a store; no daemon runs."""
    return Stand(tmp_path_factory.mktemp("backups") / "stand")


@pytest.fixture
def site(shared: Stand, tmp_path: Path) -> Site:
    return Site(shared, tmp_path / "site")


def answer(done: Any) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_from_here_to_there(site: Site) -> None:
    made = answer(site.create())
    shown = answer(site.ctl("show", made["file"]))
    assert shown["digest"] == made["digest"]
    assert shown["root_key"].startswith("hsmd-root-1 ")
    assert shown["administrators_needed"] == 0
    looked = answer(site.verify(made["file"]))
    assert (looked["trouble"], looked["unwrapped"]) == ([], 1)  # the first user's access key
    assert looked["rows"] > 10

    files = site.folder / "files"
    restored = answer(site.restore(made["file"], "--files", str(files)))
    assert restored["rows"] == looked["rows"]
    assert site.left() == ["hsmd.db"]
    assert site.store.stat().st_mode & 0o777 == 0o600
    loaded = config.load(files / "hsmd.toml", {})
    assert loaded.hsm == config.load(site.stand.dev.config, {}).hsm
    inside = files / str(site.stand.dev.ca).lstrip("/")
    assert inside.read_bytes() == site.stand.dev.ca.read_bytes()
    assert not list(files.rglob("*pin*"))
    (record,) = [
        json.loads(line) for line in (site.folder / "audit" / "restore.jsonl").read_text().splitlines()
    ]
    assert (record["event"], record["resource"]) == ("restoreBackup", f"backup/{made['digest']}")
    audits = (site.stand.dev.data / "audit" / "backup.jsonl").read_text()
    assert made["digest"] in audits

    again = site.restore(made["file"])
    assert again.returncode == 4
    assert "a store is restored where there is none" in again.stderr
    site.store.unlink()
    assert "is there already" in site.restore(made["file"], "--files", str(files)).stderr
    assert site.left() == []


def test_over_a_store_in_use_nothing_is_restored(site: Site) -> None:
    file = answer(site.create())["file"]
    before = (site.stand.dev.data / "store" / "hsmd.db").read_bytes()
    for name in ("hsmd.db", "hsmd.db-wal", "hsmd.db-shm", "hsmd.db-journal"):
        stray = site.store.with_name(name)
        stray.write_bytes(b"something")
        done = site.restore(file)
        assert done.returncode == 4
        assert name in done.stderr
        assert stray.read_bytes() == b"something"
        stray.unlink()
    own = site.ctl("restore", file, "--config", str(site.stand.dev.config))
    assert own.returncode == 4
    assert (site.stand.dev.data / "store" / "hsmd.db").read_bytes() == before


def test_on_a_token_with_another_root_key_nothing_is_restored(site: Site, tmp_path: Path) -> None:
    file = answer(site.create())["file"]
    other = Stand(tmp_path / "other", own=True)
    elsewhere = Site(other, tmp_path / "elsewhere")
    for done in (elsewhere.restore(file), elsewhere.verify(file)):
        assert done.returncode == 4
        assert "the hsmd-root-1 of this HSM is another one than that of the backup" in done.stderr
        assert "Traceback" not in done.stderr
    assert elsewhere.left() == []


def test_a_changed_backup_is_not_restored(site: Site) -> None:
    file = Path(answer(site.create())["file"])
    whole = file.read_bytes()
    for at, bit in ((9, 1), (200, 1), (len(whole) // 2, 128), (len(whole) - 1, 1)):
        changed = bytearray(whole)
        changed[at] ^= bit
        file.write_bytes(changed)
        assert site.verify(str(file)).returncode == 4
        assert site.restore(str(file)).returncode == 4
        assert site.left() == []
    file.write_bytes(whole[:-1])
    assert site.restore(str(file)).returncode == 4
    assert site.left() == []


CREATING = [
    "hsmd.store.copies:copy:before",
    "hsmd.store.copies:copy:after",
    "hsmd.backupfile:begin:after",
    "hsmd.backupfile:Writer.begin_parts:after",
    "hsmd.backupfile:Writer._put:after:2",
    "hsmd.backupfile:Writer.end:after",
    "os:link:before",
    "os:link:after",
]


def test_killed_while_it_is_made(site: Site) -> None:
    folder = site.folder / "backups"
    for at in CREATING:
        done = site.create(at=at)
        assert done.returncode == -signal.SIGKILL, at
        whole = [each for each in folder.glob("*") if not each.name.startswith(".")]
        assert len(whole) == (1 if at == "os:link:after" else 0), at
        for each in whole:
            answer(site.verify(str(each)))
    answer(site.create())
    assert [each.name for each in folder.glob(".*")] == []


RESTORING = [
    "hsmd.domain.backups:check:after",
    "hsmd.backupfile:Reader.copy:before",
    "hsmd.backupfile:Reader.copy:after",
    "hsmd.store.copies:check:before",
    "hsmd.store.copies:wrapped:after",
    "hsmd.store.copies:take_place:before",
    "os:link:before",
    "os:link:after",
    "hsmd.store.copies:take_place:after",
    "hsmd.store:upgrade:before",
    "hsmd.store:upgrade:after",
]


def test_killed_while_it_is_restored(site: Site) -> None:
    file = answer(site.create())["file"]
    expected = answer(site.verify(file))["rows"]
    for at in RESTORING:
        done = site.restore(file, at=at)
        assert done.returncode == -signal.SIGKILL, at
        if site.store.exists():  # all is done
            assert at in RESTORING[7:]
            with closing(sqlite3.connect(site.store)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            shutil.rmtree(site.store.parent)
            site.store.parent.mkdir()
        else:  # nothing is
            assert answer(site.restore(file))["rows"] == expected
            assert site.left() == ["hsmd.db"]
            site.store.unlink()


def test_a_full_disk_where_the_store_is_to_be(site: Site) -> None:
    file = answer(site.create())["file"]
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(site.store.parent)], check=False
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        done = site.restore(file)
        assert done.returncode == 4
        assert "No space left" in done.stderr
        assert site.left() == []
    finally:
        subprocess.run(["umount", str(site.store.parent)], check=True)
    answer(site.restore(file))


def test_a_call_need_not_wait_for_the_end_of_a_backup(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    go, real, begun = threading.Event(), backups.create, []

    def slow(core: Any, where: Place) -> Any:
        begun.append(1)
        assert go.wait(60)
        return real(core, where)

    monkeypatch.setattr(backups, "create", slow)
    workshop = backups.Workshop(place(house))
    for _ in range(2):
        with pytest.raises(Error) as refusal:
            workshop.made(house.core, "one", 0.05)
        assert refusal.value.fault is UNAVAILABLE
    go.set()
    made = workshop.made(house.core, "one", 60)
    assert begun == [1]
    assert set(opened(house, made.path)) == {"store", "configuration"}
    again = workshop.made(house.core, "one", 60)  # another one, since that one was told
    assert again.path != made.path

    workshop = backups.Workshop(replace(place(house), url="postgresql://user@nowhere/db"))
    for _ in range(2):
        with pytest.raises(Error) as refusal:
            workshop.made(house.core, "two", 60)
        assert refusal.value.fault is BACKUP_REFUSED
