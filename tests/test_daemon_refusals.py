"""What a daemon can't start with: each ends it with 78 (EX_CONFIG) and says why, without a traceback."""

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hsmd.daemon.certificates import Authority
from hsmd.daemon.development import Development, prepare
from tests import forked
from tests.softhsm import DevToken, make_token, pinless_token
from tests.stand import free_port, standing

_EX_CONFIG = 78


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Development:
    """A development HSM that no daemon serves."""
    return prepare(tmp_path_factory.mktemp("dev"), grpc_port=free_port(), rest_port=free_port())


def refusal(
    dev: Development,
    settings: Mapping[str, object] | None = None,
    **how: Any,
) -> str:
    """The one line that `hsmd serve` says why it can't start in; checks how it ends."""
    said = serve(dev, settings, **how)
    assert "Traceback" not in said
    assert dev.password not in said
    assert (dev.data / "pin").read_text() not in said
    why = [line for line in said.splitlines() if " CRITICAL " in line or line.startswith("hsmd: ")]
    assert len(why) == 1, said
    return why[0]


def serve(
    dev: Development,
    settings: Mapping[str, object] | None = None,
    *,
    config: Path | None = None,
    code: int = _EX_CONFIG,
) -> str:
    """What `hsmd serve` says until it ends, which it has to do with this code."""
    environment = {**os.environ, **{name: str(value) for name, value in (settings or {}).items()}}
    done = forked.run(forked.hsmd, "serve", "--config", str(config or dev.config), environment=environment)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    return said


def store_of(dev: Development) -> Path:
    return dev.data / "store" / "hsmd.db"


def content(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def private(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def foreign_token(folder: Path) -> dict[str, object]:
    """Another token with the configured label, and the settings that lead to it."""
    made = make_token(folder, "hsmd")
    pin = private(folder / "pin", made.pin)
    return settings_of(made, pin)


def settings_of(made: DevToken, pin: Path) -> dict[str, object]:
    """Settings that lead to another token."""
    return {
        "HSMD__HSM__TOKEN": made.uri,
        "HSMD__HSM__PIN_FILE": pin,
        "HSMD__HSM__SOFTHSM_CONF": made.conf,
    }


def logs_in(dev: Development) -> bool:
    """Whether the token still takes its PIN, and what it says of failed logins."""
    program = (
        "import os, pkcs11; lib = pkcs11.lib(os.environ['MODULE']);"
        "token = lib.get_token(token_label='hsmd'); flags = token.flags;"
        "session = token.open(user_pin=open(os.environ['PIN']).read()); session.close();"
        "F = pkcs11.TokenFlag; print(bool(flags & (F.USER_PIN_FINAL_TRY | F.USER_PIN_LOCKED)))"
    )
    environment = {
        **os.environ,
        "SOFTHSM2_CONF": str(dev.data / "softhsm2.conf"),
        "MODULE": "/usr/lib/softhsm/libsofthsm2.so",
        "PIN": str(dev.data / "pin"),
    }
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip() == "False"


# The port


def test_a_port_that_another_process_has(dev: Development) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refusal(dev, {"HSMD__GRPC__PORT": port})
        assert f"grpc: can't listen on 127.0.0.1:{port}: Address already in use" in said


def test_a_port_that_another_hsmd_has(dev: Development, tmp_path: Path) -> None:
    with standing(tmp_path, gateway=False) as stand:
        port = stand.dev.grpc.rpartition(":")[2]
        said = refusal(dev, {"HSMD__GRPC__PORT": port})
        assert f"grpc: can't listen on 127.0.0.1:{port}: Address already in use" in said
        with stand.client() as client:
            assert len(client.random(16)) == 16


def test_an_address_that_is_not_ours(dev: Development) -> None:
    assert "can't listen on 192.0.2.1:" in refusal(dev, {"HSMD__GRPC__ADDRESS": "192.0.2.1"})
    assert "can't listen on nowhere.invalid:" in refusal(dev, {"HSMD__GRPC__ADDRESS": "nowhere.invalid"})


# The PIN


def test_a_wrong_pin_is_tried_once(dev: Development, tmp_path: Path) -> None:
    pin = private(tmp_path / "pin", "not-the-pin")
    said = serve(dev, {"HSMD__HSM__PIN_FILE": pin})
    assert said.splitlines()[-1].endswith("the token refuses the PIN: PinIncorrect")
    assert said.count("CRITICAL") == 1
    assert "worker" not in said  # nobody came to try it again
    assert "not-the-pin" not in said


def test_wrong_pins_do_not_lock_the_token(dev: Development, tmp_path: Path) -> None:
    pin = private(tmp_path / "pin", "not-the-pin")
    for _ in range(4):
        refusal(dev, {"HSMD__HSM__PIN_FILE": pin})
    assert logs_in(dev)


def test_a_token_without_user_pin(dev: Development, tmp_path: Path) -> None:
    made = pinless_token(tmp_path, "hsmd")
    settings = settings_of(made, private(tmp_path / "pin", made.pin))
    assert "the token has no user PIN yet" in refusal(dev, settings)


@pytest.mark.parametrize("mode", [0o604, 0o640])
def test_a_pin_that_others_may_read(dev: Development, tmp_path: Path, mode: int) -> None:
    pin = private(tmp_path / "pin", (dev.data / "pin").read_text(), mode)
    said = refusal(dev, {"HSMD__HSM__PIN_FILE": pin})
    assert f"the PIN in {pin} is readable by others (mode {mode:04o}): chmod 600 is due" in said


def test_a_pin_that_is_not_there(dev: Development, tmp_path: Path) -> None:
    absent, empty = tmp_path / "absent", private(tmp_path / "empty", "\n")
    assert "can't be read: FileNotFoundError" in refusal(dev, {"HSMD__HSM__PIN_FILE": absent})
    assert "is empty" in refusal(dev, {"HSMD__HSM__PIN_FILE": empty})
    assert "can't be read: IsADirectoryError" in refusal(dev, {"HSMD__HSM__PIN_FILE": tmp_path})
    assert "hsm.pin_file: not set" in refusal(dev, {"HSMD__HSM__PIN_FILE": "", "CREDENTIALS_DIRECTORY": ""})
    assert "hsm-pin" in refusal(dev, {"HSMD__HSM__PIN_FILE": "", "CREDENTIALS_DIRECTORY": tmp_path})


# The token


def test_a_missing_module(dev: Development, tmp_path: Path) -> None:
    absent, other = tmp_path / "absent.so", private(tmp_path / "other.so", "no ELF")
    for module in (absent, other, Path("/usr/lib/x86_64-linux-gnu/libsqlite3.so.0")):
        said = refusal(dev, {"HSMD__HSM__TOKEN": f"pkcs11:token=hsmd?module-path={module}"})
        assert str(module) in said


def test_an_address_that_is_none(dev: Development) -> None:
    assert "hsm.token" in refusal(dev, {"HSMD__HSM__TOKEN": "the token"})


def test_a_lock_file_that_can_not_be_made(dev: Development, tmp_path: Path) -> None:
    assert "lock file" in refusal(dev, {"HSMD__HSM__LOCK_FILE": tmp_path / "absent" / "lock"})


def test_a_token_without_our_keys_leaves_the_store_alone(dev: Development, tmp_path: Path) -> None:
    settings = foreign_token(tmp_path)
    before = content(store_of(dev))
    said = refusal(dev, settings)
    assert "the token lacks hsmd-credential, hsmd-root-1, hsmd-sealing: a wrong token, or" in said
    assert content(store_of(dev)) == before


def test_a_token_with_the_keys_of_another_store(dev: Development, tmp_path: Path) -> None:
    other = prepare(tmp_path / "other", grpc_port=free_port(), rest_port=free_port())
    before = content(store_of(dev))
    said = refusal(
        dev,
        {
            "HSMD__HSM__PIN_FILE": other.data / "pin",
            "HSMD__HSM__SOFTHSM_CONF": other.data / "softhsm2.conf",
        },
    )
    assert "wrong token" in said
    assert content(store_of(dev)) == before


# The store


def test_a_store_of_a_newer_hsmd(dev: Development, tmp_path: Path) -> None:
    copy = tmp_path / "hsmd.db"
    with closing(sqlite3.connect(store_of(dev))) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        target.execute("UPDATE alembic_version SET version_num = '9999'")
        target.commit()
    before = content(copy)
    said = refusal(dev, {"HSMD__STORE__URL": f"sqlite:///{copy}"})
    assert "the store has schema 9999" in said
    assert "a newer hsmd is due" in said
    assert content(copy) == before


def test_a_store_that_is_none(dev: Development, tmp_path: Path) -> None:
    noise = private(tmp_path / "noise.db", "This is no database, whatever its name may say.\n" * 100)
    before = noise.read_bytes()
    said = refusal(dev, {"HSMD__STORE__URL": f"sqlite:///{noise}"}, code=1)
    assert "KMS.0102: Storage failed; nothing was changed. (file is not a database)" in said
    assert noise.read_bytes() == before
    assert "can't be opened" in refusal(dev, {"HSMD__STORE__URL": f"sqlite:///{tmp_path}/absent/hsmd.db"})
    assert "url" in refusal(dev, {"HSMD__STORE__URL": "mysql://localhost/hsmd"})


# The certificates


def test_certificates_that_can_not_be_used(dev: Development, tmp_path: Path) -> None:
    garbage = private(
        tmp_path / "garbage.pem", "-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n"
    )
    folder = tmp_path / "tls"
    folder.mkdir()
    stranger = Authority(folder, "another CA").server("server", ("localhost",))
    for option, value in (
        ("CERTIFICATE", tmp_path / "absent.pem"),
        ("CERTIFICATE", garbage),
        ("KEY", tmp_path / "absent.key"),
        ("KEY", stranger.key),
        ("CLIENT_CA", tmp_path / "absent-ca.pem"),
        ("CLIENT_CA", garbage),
    ):
        said = refusal(dev, {f"HSMD__GRPC__{option}": value})
        assert "grpc: the certificates can't be used" in said
        assert str(value) in said


# The configuration


def test_a_configuration_that_can_not_be_read(dev: Development, tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"region = \xff\xfe")
    for path, reason in (
        (tmp_path / "absent.toml", "can't be read"),
        (tmp_path, "can't be read"),
        (binary, "can't be read"),
        (private(tmp_path / "broken.toml", "[grpc\nport = 1"), "not valid TOML"),
        (private(tmp_path / "unknown.toml", "[grpc]\nprot = 1"), "grpc.prot: no such option"),
        (private(tmp_path / "table.toml", "[gprc]\nport = 1"), "gprc: no such option"),
        (private(tmp_path / "kind.toml", '[grpc]\nport = "1"'), "grpc.port: int is due"),
    ):
        said = refusal(dev, config=path)
        assert reason in said
        assert said.startswith("hsmd: ")


def test_settings_that_can_not_be(dev: Development, tmp_path: Path) -> None:
    assert "grpc.prot: no such option" in refusal(dev, {"HSMD__GRPC__PROT": 1})
    assert "log.level" in refusal(dev, {"HSMD__LOG__LEVEL": "LOUD"})
    ids = f'user_id = "{dev.user_id}", project_id = "{dev.project_id}"'
    for mode in ("0661", "1600"):
        listener = f'[{{path = "{tmp_path}/s", {ids}, mode = "{mode}"}}]'
        assert f"grpc.unix: mode {mode} is wider than 0660" in refusal(dev, {"HSMD__GRPC__UNIX": listener})
    listener = f'[{{path = "{tmp_path}/s", {ids}, mode = "rw"}}]'
    assert "is no octal number" in refusal(dev, {"HSMD__GRPC__UNIX": listener})
    for path in ("s-{wroker}", "s-{}", "s-{worker", "s-{worker.real}"):
        listener = f'[{{path = "{tmp_path}/{path}", {ids}}}]'
        assert "{worker} is all that may stand in braces" in refusal(dev, {"HSMD__GRPC__UNIX": listener})
    precious = private(tmp_path / "precious", "no socket")
    listener = f'[{{path = "{precious}", {ids}}}]'
    assert f"{precious} is there already and is no socket" in refusal(dev, {"HSMD__GRPC__UNIX": listener})
    assert precious.read_text() == "no socket"
    listener = f'[{{path = "{tmp_path}/absent/s", {ids}}}]'
    assert f"can't listen on {tmp_path}/absent/s" in refusal(dev, {"HSMD__GRPC__UNIX": listener})
