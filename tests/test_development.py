"""The development HSM: made once, completed after a cut, refused when something irreplaceable is gone."""

import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hsmd import config
from hsmd.daemon import development, softhsm
from hsmd.daemon.certificates import Authority
from hsmd.daemon.development import Development, prepare

VARIABLES = [
    "HSMD_GRPC",
    "HSMD_REST",
    "HSMD_CA",
    "HSMD_CERT",
    "HSMD_KEY",
    "HUAWEICLOUD_SDK_AK",
    "HUAWEICLOUD_SDK_SK",
    "HSMD_PROJECT_ID",
    "HSMD_DOMAIN_ID",
    "HSMD_REGION",
    "HSMD_USER",
    "HSMD_PASSWORD",
]


def made(data: Path) -> Development:
    return prepare(data, grpc_port=7001, rest_port=8001)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Development:
    return made(tmp_path_factory.mktemp("with a space") / "data")


@pytest.fixture
def copied(first: Development, tmp_path: Path) -> Path:
    """A copy of the first one's folder, to damage."""
    return shutil.copytree(first.data, tmp_path / "data")


def test_a_shell_reads_the_way_in(first: Development) -> None:
    script = f"source {str(first.env)!r} && env -0"
    out = subprocess.run(
        ["bash", "-c", script], env={"PATH": os.environ["PATH"]}, capture_output=True, check=True
    )
    read = dict(line.split("=", 1) for line in out.stdout.decode().split("\0") if "=" in line)
    assert {name: read[name] for name in VARIABLES} == first.environment()
    assert (read["HSMD_GRPC"], read["HSMD_REST"]) == ("127.0.0.1:7001", "https://127.0.0.1:8001")
    assert read["HSMD_REGION"] == "local-1"
    assert all(Path(read[name]).is_file() for name in ("HSMD_CA", "HSMD_CERT", "HSMD_KEY"))


def test_settings_hold_its_paths_and_ports(first: Development) -> None:
    settings = config.load(first.config, {})
    assert (settings.region, settings.grpc.port, settings.gateway.port) == ("local-1", 7001, 8001)
    assert settings.gateway.daemon == "127.0.0.1:7001"
    assert settings.hsm.pin_file == first.data / "pin"
    assert settings.store.url == f"sqlite:///{first.data}/store/hsmd.db"
    paths = [settings.grpc.certificate, settings.grpc.key, settings.gateway.certificate, settings.gateway.key]
    paths += [settings.gateway.daemon_certificate, settings.gateway.daemon_key, settings.grpc.client_ca]
    assert all(path.is_file() for path in paths)


def test_secrets_are_their_owners_only(first: Development) -> None:
    open_to_others = {
        str(path.relative_to(first.data))
        for path in first.data.rglob("*")
        if path.is_file() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    }
    assert stat.S_IMODE(first.data.stat().st_mode) == 0o700
    secrets = {"pin", "so-pin", "env", "hsmd.toml", "store/credentials.json", "store/hsmd.db", "tls/ca.key"}
    assert secrets <= contents(first.data).keys()
    assert not secrets & open_to_others


def test_secrets_are_not_shown(first: Development) -> None:
    shown = repr(first)
    assert first.secret_key not in shown
    assert first.password not in shown
    assert len(first.secret_key) == 40
    assert first.access_key in shown


def test_the_store_holds_no_secret_in_the_clear(first: Development) -> None:
    pins = [(first.data / name).read_text() for name in ("pin", "so-pin")]
    for path in (first.data / "store").glob("hsmd.db*"):
        stored = path.read_bytes()
        assert not [
            secret for secret in (first.secret_key, first.password, *pins) if secret.encode() in stored
        ]


def test_a_second_run_changes_nothing(first: Development) -> None:
    before = contents(first.data)
    assert made(first.data) == first
    assert contents(first.data) == before


def test_each_is_its_own(first: Development, tmp_path: Path) -> None:
    other = made(tmp_path / "other")
    differing = ("access_key", "secret_key", "password", "project_id", "domain_id", "user_id")
    assert not [name for name in differing if getattr(other, name) == getattr(first, name)]
    assert (other.data / "pin").read_bytes() != (first.data / "pin").read_bytes()


def test_many_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        folders = [tmp_path / str(number % 3) for number in range(6)]
        results = list(pool.map(made, folders))
    assert results[:3] == results[3:]
    assert len({result.project_id for result in results}) == 3


def test_processes_wait_for_each_other(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from hsmd.daemon.development import prepare;"
        "print(prepare(Path(sys.argv[1]), grpc_port=7001, rest_port=8001).access_key)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "data")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    keys = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(keys)) == 1
    assert keys[0].strip()


def test_other_ports_keep_all_else(copied: Path) -> None:
    before = made(copied)
    after = prepare(copied, grpc_port=7002, rest_port=8002)
    assert (after.grpc, after.rest) == ("127.0.0.1:7002", "https://127.0.0.1:8002")
    assert config.load(after.config, {}).gateway.daemon == "127.0.0.1:7002"
    assert (after.access_key, after.secret_key) == (before.access_key, before.secret_key)


def test_edited_settings_stay_while_ports_and_paths_do(copied: Path) -> None:
    path = made(copied).config
    path.write_text(path.read_text() + "\n[limits]\nkeys_per_project = 7\n")
    made(copied)
    assert config.load(path, {}).limits.keys_per_project == 7


def test_a_moved_folder_is_made_to_fit(first: Development, copied: Path) -> None:
    moved = made(copied)
    settings = config.load(moved.config, {})
    assert settings.hsm.pin_file == copied / "pin"
    assert f"{copied}/token" in (copied / "softhsm2.conf").read_text()
    assert str(first.data) not in moved.env.read_text()
    assert moved.access_key == first.access_key


def test_what_can_be_made_again_is(copied: Path) -> None:
    for name in ("hsmd.toml", "env", "softhsm2.conf", "tls/server.pem", "tls/admin.key"):
        (copied / name).unlink()
    made(copied)
    assert all((copied / name).is_file() for name in ("hsmd.toml", "env", "softhsm2.conf", "tls/admin.key"))


@pytest.mark.parametrize("lost", ["pin", "so-pin", "token"])
def test_what_can_not_be_made_again_is_refused_and_nothing_changes(copied: Path, lost: str) -> None:
    path = copied / lost
    path.rename(copied.with_name("kept"))
    before = contents(copied / "store")
    with pytest.raises(config.ConfigError, match=f"{lost} is missing, .* or move .* away"):
        made(copied)
    assert not path.exists()
    assert contents(copied / "store") == before
    copied.with_name("kept").rename(path)
    made(copied)


def cut(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    def die(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, die)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (softhsm, "make_token"),
        (softhsm, "_answer_prompts"),
        (Authority, "server"),
        (Authority, "client"),
        (development, "_settle"),
        (development, "_init"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_cut_run_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    with monkeypatch.context() as patched:
        cut(patched, owner, name)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "data")
    result = made(tmp_path / "data")
    assert result == made(tmp_path / "data")
    assert not [path for path in (tmp_path / "data").iterdir() if ".new" in path.name]


def test_a_run_cut_after_initialisation_begins_the_store_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialised: list[bytes] = []
    real = development._init

    def die_after(path: Path, store_url: str) -> bytes:
        initialised.append(real(path, store_url))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(development, "_init", die_after)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "data")
    result = made(tmp_path / "data")
    assert result.access_key != json.loads(initialised[0])["access_key"]
    assert (
        json.loads((result.data / "store" / "credentials.json").read_text())["access_key"]
        == result.access_key
    )


def test_a_failing_token_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    with monkeypatch.context() as patched:
        cut(patched, development, "_init")
        with pytest.raises(KeyboardInterrupt):
            made(data)
    (data / "pin").write_text("not the PIN at all")
    with pytest.raises(
        config.ConfigError, match=r"^the development HSM could not be initialised: [^\n]*PIN[^\n]*$"
    ):
        made(data)
    assert not (data / "store").exists()


def test_a_missing_softhsm_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(config.ConfigError, match="softhsm2-util is missing: the Debian package is softhsm2"):
        made(tmp_path / "data")
