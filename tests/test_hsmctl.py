"""hsmctl: output for people and programs, exit codes, files; against a real gRPC server in memory."""

import base64
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hsmd.cli.ctl import newfile
from hsmd.cli.hsmctl import run
from tests.stand_in import AWAY, StandIn, running

_HSMCTL = str(Path(sys.executable).parent / "hsmctl")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass
class Result:
    code: int
    out: bytes
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs command lines in this process, or as a process of their own."""

    def __init__(
        self, service: StandIn, capture: pytest.CaptureFixture[bytes], patch: pytest.MonkeyPatch
    ) -> None:
        self.service = service
        self._capture, self._patch = capture, patch
        for name in [name for name in os.environ if name.startswith("HSMD_")]:
            patch.delenv(name)
        for name, value in service.environment().items():
            patch.setenv(name, value)

    def __call__(self, *arguments: str, given: bytes = b"") -> Result:
        self._patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        code = run(arguments)
        out, err = self._capture.readouterr()
        return Result(code, out, err.decode())

    def done(self, *arguments: str, given: bytes = b"") -> Result:
        result = self(*arguments, given=given)
        assert result.code == 0, result.err
        return result

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([_HSMCTL, *arguments], **options)


@pytest.fixture
def shell(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shell]:
    work, pki = tmp_path / "work", tmp_path / "pki"
    work.mkdir()
    pki.mkdir()
    monkeypatch.chdir(work)
    with running(pki) as service:
        yield Shell(service, capsysbinary, monkeypatch)


def listed() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


_MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

# Keys


def test_a_key_for_people(shell: Shell) -> None:
    key_id = shell.done("key", "create", "books", "--description", "all of them").out.decode().strip()
    assert _UUID.fullmatch(key_id)
    (head, row) = shell.done("key", "list").out.decode().splitlines()
    assert head.split()[:3] == ["Key", "id", "Alias"]
    assert row.split()[:4] == [key_id, "books", "ENABLED", "AES_256"]
    assert "all of them" in row
    assert f"{key_id} is DISABLED." in shell.done("key", "disable", "alias/books").err
    assert "DISABLED" in shell.done("key", "show", key_id).out.decode()
    assert "is ENABLED." in shell.done("key", "enable", key_id).err
    assert "alias/papers" in shell.done("key", "rename", key_id, "papers").err
    shell.done("key", "describe", "alias/papers", "")
    assert "is PENDING_DELETION." in shell.done("key", "delete", key_id, "--days", "7", "--yes").err
    assert "is DISABLED." in shell.done("key", "cancel-delete", key_id).err


def test_a_key_for_programs(shell: Shell) -> None:
    key_id = shell.done("--json", "key", "create", "books").document["key_id"]
    status = {"key_id": key_id, "key_state": "DISABLED"}
    assert shell.done("key", "disable", key_id, "--json").document == status
    shown = shell.done("key", "show", key_id, "--json").document
    assert shown == {
        "key_id": key_id,
        "domain_id": "",
        "key_alias": "books",
        "realm": "",
        "key_spec": "AES_256",
        "key_usage": "ENCRYPT_DECRYPT",
        "key_description": "",
        "creation_date": "2023-11-14T22:13:20Z",
        "scheduled_deletion_date": None,
        "key_state": "DISABLED",
        "default_key_flag": False,
        "key_type": "",
        "expiration_time": None,
        "origin": "kms",
        "key_rotation_enabled": False,
        "sys_enterprise_project_id": "",
        "keystore_id": "",
    }
    assert shell.done("key", "list", "--json").document == {"key_details": [shown]}
    assert shell.done("--json", "key", "list", "--state", "enabled").document == {"key_details": []}
    assert shell.done("--json", "key", "enable", key_id).document == status | {"key_state": "ENABLED"}
    renamed = shell.done("--json", "key", "rename", key_id, "papers").document
    assert renamed == {"key_id": key_id, "key_alias": "papers"}
    described = shell.done("--json", "key", "describe", key_id, "of paper").document
    assert described == {"key_id": key_id, "key_description": "of paper"}
    deleted = shell.done("--json", "key", "delete", key_id, "--days", "1096", "--yes").document
    assert deleted == status | {"key_state": "PENDING_DELETION"}
    assert shell.done("--json", "key", "cancel-delete", key_id).document == status


def test_nothing_is_deleted_unless_confirmed(shell: Shell) -> None:
    key_id = shell.service.add("books")
    for arguments in ((), ("--days", "6", "--yes"), ("--days", "1097", "--yes"), ("--days", "7")):
        assert shell("key", "delete", key_id, *arguments, given=b"y\n").code == 2
    assert shell.service.calls("ScheduleKeyDeletion") == []


@pytest.mark.parametrize(("answer", "code", "calls"), [(b"n\n", 130, 0), (b"\x04", 130, 0), (b"y\n", 0, 1)])
def test_a_terminal_is_asked(shell: Shell, answer: bytes, code: int, calls: int) -> None:
    key_id = shell.service.add("books")
    mine, terminal = pty.openpty()
    process = shell.start(
        "key", "delete", key_id, "--days", "9", stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.close(terminal)
    os.write(mine, answer)
    out, err = process.communicate(timeout=60)
    os.close(mine)
    assert f"Destroy {key_id} in 9 days?" in err.decode()
    assert (process.returncode, out) == (code, b"")
    assert len(shell.service.calls("ScheduleKeyDeletion")) == calls


def test_control_characters_do_not_reach_the_terminal(shell: Shell) -> None:
    key_id = shell.service.add("books", key_description="\x1b[2Jgone\r\n[red]")
    for arguments in (("key", "list"), ("key", "show", key_id)):
        text = shell.done(*arguments).out.decode()
        assert "\x1b" not in text
        assert "\\x1b[2Jgone\\r\\n[red]" in text


# Data


def test_small_data_through_pipes_files_and_arguments(shell: Shell) -> None:
    shell.service.add("books")
    secret = b"\xff\x00secret"
    blob = shell.done("encrypt", "--key", "alias/books", given=secret).out
    assert shell.done("decrypt", given=blob).out == secret
    text = shell.done("encrypt", "--key", "alias/books", "--base64", "a word", "--aad", "bound").out
    assert base64.b64decode(text)
    assert shell.done("decrypt", text.decode().strip(), "--aad", "bound").out == b"a word"
    assert shell.done("decrypt", "--aad", "bound", given=text).out == b"a word"
    Path("plain").write_bytes(secret)
    shell.done("encrypt", "--key", "alias/books", "--in", "plain", "--out", "sealed")
    shell.done("decrypt", "--in", "sealed", "--out", "again", "--key", "alias/books")
    assert Path("again").read_bytes() == secret
    assert Path("again").stat().st_mode & 0o777 == 0o600
    assert shell("decrypt", "--in", "sealed", "--out", "again").code == 4
    shell.done("decrypt", "--in", "sealed", "--out", "again", "--force")
    assert listed() == ["again", "plain", "sealed"]


def test_small_data_for_programs(shell: Shell) -> None:
    shell.service.add("books")
    sealed = shell.done("--json", "encrypt", "--key", "alias/books", given=b"\xff").document
    assert set(sealed) == {"cipher_text"}
    opened = shell.done("--json", "decrypt", sealed["cipher_text"]).document
    assert opened == {"plain_text_base64": "/w=="}
    assert len(shell.done("--json", "random", "5").document["random_data"]) == 10


def test_wrong_small_data(shell: Shell) -> None:
    shell.service.add("books")
    Path("file").write_bytes(b"text")
    assert shell("encrypt", "--key", "alias/books", "text", "--in", "file").code == 2
    assert shell("encrypt", "text").code == 2
    assert shell("encrypt", "--key", "alias/books", given=bytes((1 << 20) + 1)).code == 2
    assert shell("decrypt", "abcde").code == 2
    assert shell("decrypt", "--in", "absent").code == 4
    for wrong in (b"", b"YWJj", bytes(200)):
        result = shell("decrypt", given=wrong)
        assert (result.code, result.out) == (1, b"")
        assert "KMS.2201: The cipher_text is not valid." in result.err
    assert shell.service.calls("EncryptData") == []


def test_random(shell: Shell) -> None:
    assert len(shell.done("random", "2000").out) == 2000
    assert re.fullmatch(rb"[0-9a-f]{10}\n", shell.done("random", "5", "--hex").out)
    for wrong in ("0", "-1", "x", str((1 << 20) + 1)):
        assert shell("random", wrong).code == 2


def on_terminal(*arguments: str) -> str:
    """What a command prints on a terminal."""
    mine, terminal = pty.openpty()
    process = subprocess.Popen([_HSMCTL, *arguments], stdout=terminal, stdin=subprocess.DEVNULL)
    os.close(terminal)
    seen = b""
    try:
        while part := os.read(mine, 65536):
            seen += part
    except OSError:  # Linux's end of a pseudo-terminal
        pass
    os.close(mine)
    assert process.wait(60) == 0
    return seen.decode().replace("\r\n", "\n")


def test_on_a_terminal_everything_is_text(shell: Shell) -> None:
    shell.service.add("books")
    sealed = on_terminal("encrypt", "--key", "alias/books", "a word").strip()
    assert base64.b64decode(sealed, validate=True)
    assert on_terminal("decrypt", sealed) == "a word\n"
    binary = shell.done("encrypt", "--key", "alias/books", "--base64", given=b"\x1b[2J").out.decode().strip()
    assert on_terminal("decrypt", binary).endswith(base64.b64encode(b"\x1b[2J").decode() + "\n")
    assert re.fullmatch(r"[0-9a-f]{8}\n", on_terminal("random", "4"))
    assert "books" in on_terminal("key", "list")


# The service


def test_status(shell: Shell) -> None:
    text = shell.done("status").out.decode()
    assert re.search(r"token +.* connected since", text)
    assert re.search(r"can +aes-gcm", text)
    found = shell.done("status", "--json").document
    assert found["token"]["state"] == "connected"
    assert found["capabilities"] == [{"name": "aes-gcm", "available": True, "detail": ""}]
    assert found["started"] is None
    assert found["node"] is None  # this service knows no such method


def test_exit_codes(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell("key", "show", "alias/absent").code == 1
    shell.service.failures = [AWAY] * 5
    away = shell("status")
    assert (away.code, away.out) == (3, b"")
    assert away.err.startswith("hsmctl: KMS.0104: ")
    assert len(away.err.splitlines()) == 1
    assert shell("--server", "localhost:1", "--timeout", "1", "status").code == 3
    assert shell("--ca", "absent.pem", "status").code == 4
    Path("junk.pem").write_text("junk")
    assert shell("--cert", "junk.pem", "status").code == 4
    for wrong in (("--timeout", "0", "status"), ("sing",), ("key", "create"), ("status", "--loud"), ()):
        assert shell(*wrong).code == 2, wrong
    monkeypatch.delenv("HSMD_CERT")
    missing = shell("status")
    assert missing.code == 2
    assert "--cert (HSMD_CERT)" in missing.err
    for helping in (("--help",), ("key", "--help"), ("file", "encrypt", "-h"), ("--version",)):
        assert shell(*helping).code == 0


def test_errors_are_one_line_and_debug_shows_more(shell: Shell) -> None:
    short = shell("key", "show", "alias/absent")
    (line,) = short.err.splitlines()
    request_id = str(shell.service.seen[-1].metadata["hsmd-request-id"])
    assert line == f"hsmctl: KMS.0207: The key does not exist. (request {request_id})"
    assert "Traceback" in shell("--debug", "key", "show", "alias/absent").err


def test_an_error_that_nobody_foresaw_is_no_traceback(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell.service, "GetStatus", None)
    monkeypatch.setattr("hsmd.client.Client.status", lambda _self: 1 / 0)
    result = shell("status")
    assert (result.code, result.err) == (1, "hsmctl: unexpected ZeroDivisionError; --debug shows where\n")


def test_options_reach_the_service(shell: Shell) -> None:
    shell.done("--project", "0" * 32, "--timeout", "10", "status")
    call = shell.service.seen[-1]
    assert call.metadata["hsmd-project-id"] == "0" * 32
    assert call.remaining <= 10.1  # the default is longer


def test_db_upgrade(shell: Shell) -> None:
    Path("hsmd.toml").write_text('[store]\nurl = "sqlite:///store.db"\n')
    first = shell.done("db", "upgrade", "--config", "hsmd.toml", "--json").document
    assert first["revision"]
    assert Path("store.db").exists()
    assert first["revision"] in shell.done("db", "upgrade", "--config", "hsmd.toml").err
    assert shell("db", "upgrade", "--config", "absent.toml").code == 4
    Path("odd.toml").write_text('[store]\nurll = "x"\n')
    odd = shell("db", "upgrade", "--config", "odd.toml")
    assert odd.code == 4
    assert "store.urll" in odd.err


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_completion(shell: Shell, kind: str) -> None:
    script = shell.done("completion", kind).out
    assert b"_HSMCTL_COMPLETE=" in script
    if kind == "bash":
        subprocess.run(["bash", "-n"], input=script, check=True)
    words = {"COMP_WORDS": "hsmctl key cre", "COMP_CWORD": "cre" if kind == "fish" else "2"}
    environment = os.environ | words | {"_HSMCTL_COMPLETE": kind + "_complete"}
    offered = subprocess.run([_HSMCTL], env=environment, capture_output=True, text=True, check=True)
    assert "create" in offered.stdout
    assert shell("completion", "tcsh").code == 2


def test_a_reader_that_goes_is_no_error(shell: Shell) -> None:
    for number in range(2000):
        shell.service.add(f"key-{number}", key_description="x" * 100)
    process = shell.start("key", "list", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == -signal.SIGPIPE


# Files


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_a_file_and_back(shell: Shell, size: int) -> None:
    key_id = shell.service.add("books")
    content = os.urandom(size)
    Path("shelf.tar").write_bytes(content)
    said = shell.done("file", "encrypt", "--key", "alias/books", "shelf.tar")
    assert said.err == f"shelf.tar.hsmd encrypted under the key {key_id}.\n"
    assert said.out == b""
    Path("shelf.tar").unlink()
    shell.done("file", "decrypt", "shelf.tar.hsmd")
    assert Path("shelf.tar").read_bytes() == content
    assert listed() == ["shelf.tar", "shelf.tar.hsmd"]
    assert all(Path(name).stat().st_mode & 0o777 == 0o600 for name in ("shelf.tar.hsmd",))


def test_files_for_programs(shell: Shell) -> None:
    key_id = shell.service.add("books")
    Path("a").write_bytes(b"text")
    done = shell.done("file", "encrypt", "--key", "alias/books", "a", "--json").document
    assert done == {"file": "a.hsmd", "key_id": key_id}
    done = shell.done("--json", "file", "decrypt", "a.hsmd", "--out", "b").document
    assert done == {"file": "b", "key_id": key_id}
    assert shell("--json", "file", "decrypt", "a.hsmd", "--out", "-").code == 2


def test_nothing_is_overwritten_without_force(shell: Shell) -> None:
    shell.service.add("books")
    Path("a").write_bytes(b"first")
    shell.done("file", "encrypt", "--key", "alias/books", "a")
    before = Path("a.hsmd").read_bytes()
    refused = shell("file", "encrypt", "--key", "alias/books", "a")
    assert refused.code == 4
    assert "a.hsmd: exists already; --force replaces it" in refused.err
    assert Path("a.hsmd").read_bytes() == before
    assert shell("file", "decrypt", "a.hsmd").code == 4
    Path("a").write_bytes(b"second")
    shell.done("file", "encrypt", "--key", "alias/books", "a", "--force")
    shell.done("file", "decrypt", "a.hsmd", "--out", "b")
    assert Path("b").read_bytes() == b"second"
    assert listed() == ["a", "a.hsmd", "b"]


def test_a_bad_file_gives_a_reason_and_no_output(shell: Shell) -> None:
    shell.service.add("books")
    Path("a").write_bytes(os.urandom(3_000_000))
    shell.done("file", "encrypt", "--key", "alias/books", "a")
    sealed = Path("a.hsmd").read_bytes()
    Path("old").write_bytes(b"as it was")
    for content in (
        sealed[:-1],
        sealed[:2_000_000],
        sealed + b"x",
        sealed[:-5] + b"x" + sealed[-4:],
        b"plain",
    ):
        Path("bad.hsmd").write_bytes(content)
        result = shell("file", "decrypt", "bad.hsmd")
        assert result.code == 4
        assert len(result.err.splitlines()) == 1
        assert shell("file", "decrypt", "bad.hsmd", "--out", "old", "--force").code == 4
    assert Path("old").read_bytes() == b"as it was"
    assert shell("file", "decrypt", "absent.hsmd").code == 4
    assert shell("file", "encrypt", "--key", "alias/absent", "bad.hsmd").code == 1
    assert shell("file", "decrypt", "a.hsmd", "--key", "alias/absent", "--out", "c").code == 1
    shell.service.add("other")
    wrong = shell("file", "decrypt", "a.hsmd", "--key", "alias/other", "--out", "c")
    assert (wrong.code, "not under alias/other" in wrong.err) == (4, True)
    assert listed() == ["a", "a.hsmd", "bad.hsmd", "old"]


def test_file_usage(shell: Shell) -> None:
    Path("a").write_bytes(b"text")
    for wrong in (("encrypt", "a"), ("decrypt", "a"), ("decrypt", ".hsmd"), ("encrypt", "--key", "k")):
        assert shell("file", *wrong).code == 2, wrong
    odd = shell("file", "encrypt", "--key", "k", "a", "--out", "/dev/null", "--force")
    assert (odd.code, "not a regular file" in odd.err) == (4, True)
    assert shell("file", "encrypt", "--key", "k", "a", "--out", "absent/a.hsmd").code == 4
    assert shell("file", "encrypt", "--key", "k", ".").code == 4


def test_files_through_pipes(shell: Shell) -> None:
    shell.service.add("books")
    content = os.urandom(3_000_000)
    sealed = shell.done("file", "encrypt", "--key", "alias/books", "-", given=content).out
    assert shell.done("file", "decrypt", "-", given=sealed).out == content
    partly = shell("file", "decrypt", "-", given=sealed[:-1])
    assert partly.code == 4
    assert content.startswith(partly.out)
    assert len(partly.out) >= 2_000_000
    Path("a.hsmd").write_bytes(sealed)
    assert shell.done("file", "decrypt", "a.hsmd", "--out", "-").out == content


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
@pytest.mark.parametrize("way", ["encrypt", "decrypt"])
def test_an_interrupted_run_leaves_nothing(shell: Shell, way: str, number: int, code: int) -> None:
    shell.service.add("books")
    content = os.urandom(6_000_000)
    sealed = shell.done("file", "encrypt", "--key", "alias/books", "-", given=content).out
    key = ("--key", "alias/books") if way == "encrypt" else ()
    process = shell.start(
        "file", way, *key, "-", "--out", "out", stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write((content if way == "encrypt" else sealed)[:5_000_000])
    process.stdin.flush()  # it has read all but what a pipe holds
    process.send_signal(number)
    assert process.wait(60) == code
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    with pytest.raises(BrokenPipeError):
        process.stdin.write(bytes(1 << 20))
    assert listed() == []


def test_a_full_disk(shell: Shell) -> None:
    shell.service.add("books")
    Path("a").write_bytes(bytes(8_000_000))
    # By a program: where this process were forked for it, gRPC's threads would come along, and abort.
    limited = ["prlimit", "--fsize=4000000", _HSMCTL, "file", "encrypt", "--key", "alias/books", "a"]
    done = subprocess.run(limited, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (4, b"hsmctl: File too large\n")
    assert listed() == ["a"]


def test_a_bar_is_drawn_on_a_terminal_only(shell: Shell) -> None:
    shell.service.add("books")
    Path("a").write_bytes(bytes(3_000_000))
    mine, terminal = pty.openpty()
    process = shell.start("file", "encrypt", "--key", "alias/books", "a", stderr=terminal)
    os.close(terminal)
    seen = b""
    try:
        while part := os.read(mine, 65536):
            seen += part
    except OSError:  # Linux's end of a pseudo-terminal
        pass
    os.close(mine)
    assert process.wait(60) == 0
    assert b"Encrypting a" in seen
    assert b"3.0/3.0 MB" in seen


@pytest.mark.parametrize("size", [256 << 20, pytest.param(1 << 30, marks=pytest.mark.soak)])
def test_memory_stays_flat(shell: Shell, size: int) -> None:
    shell.service.add("books")
    with Path("big").open("wb") as file:
        file.truncate(size)  # zeros that cost no disk
    for arguments in (("encrypt", "--key", "alias/books", "big"), ("decrypt", "big.hsmd", "--out", "back")):
        # A process between, for a child begins with its parent's peak.
        command = [sys.executable, "-c", _MEASURE, _HSMCTL, "file", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 200 * 1024  # KiB
    with Path("back").open("rb") as file:
        assert os.fstat(file.fileno()).st_size == size
        zeros = bytes(1 << 20)
        assert all(part == zeros for part in iter(lambda: file.read(1 << 20), b""))


# Where the file system knows less


@pytest.fixture(params=["unnamed", "named"])
def staging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.chdir(tmp_path)
    if request.param == "named":
        monkeypatch.setattr(os, "O_TMPFILE", 0)  # then the kernel answers like one without: EISDIR
    return str(request.param)


def test_new_file(staging: str) -> None:
    path = Path("new")
    with newfile.new_file(path, force=False) as file:
        file.write(b"text")
        assert len(listed()) == (0 if staging == "unnamed" else 1)
    assert path.read_bytes() == b"text"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ZeroDivisionError), newfile.new_file(path, force=True) as file:
        file.write(bytes(1 // (len(listed()) - len(listed()))))
    assert path.read_bytes() == b"text"
    with newfile.new_file(path, force=True) as file:
        file.write(b"other")
    assert path.read_bytes() == b"other"
    assert listed() == ["new"]


@pytest.mark.usefixtures("staging")
def test_a_name_taken_meanwhile_is_kept() -> None:
    path = Path("new")
    with pytest.raises(FileExistsError, match="--force"), newfile.new_file(path, force=False):
        path.write_bytes(b"faster")
    assert path.read_bytes() == b"faster"
    assert listed() == ["new"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "O_TMPFILE", 0)
    monkeypatch.setattr(newfile, "os", SimpleNamespace(**{**vars(os), "link": no_links}))
    with newfile.new_file(Path("new"), force=False) as file:
        file.write(b"text")
    assert Path("new").read_bytes() == b"text"
    with pytest.raises(FileExistsError), newfile.new_file(Path("more"), force=False):
        Path("more").touch()
    assert listed() == ["more", "new"]


def test_a_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("real").write_bytes(b"old")
    Path("link").symlink_to("real")
    with newfile.new_file(Path("link"), force=True) as file:
        file.write(b"text")
    assert Path("link").is_symlink()
    assert Path("real").read_bytes() == b"text"
