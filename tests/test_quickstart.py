"""The quickstart as a newcomer sees it: it works, again on the same keys, and leaves nothing running."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hsmd.cli import ways_in
from hsmd.client import Client
from hsmd.daemon.development import prepare
from tests.stand import children_of, eventually, free_port

KEY = re.compile(r"(Created|Found) +key (\S+) +(\S{36})\n")


def command(data: Path, grpc_port: int, rest_port: int, *more: str) -> list[str]:
    ports = ["--grpc-port", str(grpc_port), "--rest-port", str(rest_port)]
    return [sys.executable, "-m", "hsmd.cli.quickstart", "--data", str(data), *ports, *more]


def once(data: Path, *more: str) -> subprocess.CompletedProcess[str]:
    argv = command(data, free_port(), free_port(), "--once", *more)
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=200)


@contextmanager
def serving(data: Path) -> Iterator[subprocess.Popen[str]]:
    argv = command(data, free_port(), free_port())
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("Serving.") for line in process.stdout)
            yield process
        finally:
            process.terminate()


def family(process: subprocess.Popen[str]) -> list[int]:
    children = children_of(process.pid)
    return [*children, *(grandchild for child in children for grandchild in children_of(child))]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").exists()]


def test_once_shows_everything_and_ends(tmp_path: Path) -> None:
    done = once(tmp_path / "data")
    assert (done.returncode, done.stderr) == (0, "")
    found = KEY.search(done.stdout)
    assert found is not None
    assert (found[1], found[2]) == ("Created", "demo")
    env = str(tmp_path / "data" / "env")
    for shown in (
        "REST    encrypted with a signed request",
        f"source {env}\n",
        "hsmctl key list",
        "grpcurl -cacert",
    ):
        assert shown in done.stdout
    snippet = done.stdout[done.stdout.index("import os\n") :]
    compile(snippet, "snippet", "exec")
    assert "Serving." not in done.stdout


@pytest.mark.soak
def test_a_second_run_finds_the_same_keys_and_credentials(tmp_path: Path) -> None:
    first = once(tmp_path / "data")
    env = (tmp_path / "data" / "env").read_text()
    second = once(tmp_path / "data")
    one, two = KEY.search(first.stdout), KEY.search(second.stdout)
    assert one is not None
    assert two is not None
    assert (two[1], two[3]) == ("Found", one[3])
    assert "what the last run encrypted still decrypts" in second.stdout
    kept = [line for line in env.splitlines() if not re.search("HSMD_(GRPC|REST)=", line)]
    assert kept == [
        line
        for line in (tmp_path / "data" / "env").read_text().splitlines()
        if not re.search("HSMD_(GRPC|REST)=", line)
    ]
    assert len(kept) == 10


def test_the_printed_sdk_snippet_works(tmp_path: Path) -> None:
    with serving(tmp_path / "data"):
        script = f'source {tmp_path / "data" / "env"}; exec {sys.executable} -c "$SNIPPET"'
        done = subprocess.run(
            ["bash", "-c", script], env={"SNIPPET": ways_in._SDK}, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) == 188


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path / "data") as process:
        members = family(process)
        assert len(members) >= 4  # daemon, its workers and warden, gateway
        process.send_signal(number)
        out, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert "Stopped." in out
    assert alive(members) == []


@pytest.mark.soak
def test_nothing_stays_when_it_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as process:
        members = family(process)
        process.kill()
        process.wait()
    eventually(lambda: not alive(members), 60)


def test_a_child_that_dies_ends_it_with_its_log(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as process:
        members = family(process)
        gateway = next(pid for pid in children_of(process.pid) if "gateway" in cmdline(pid))
        os.kill(gateway, signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith("error: The gateway ended (by SIGKILL). The end of ")
    eventually(lambda: not alive(members), 60)  # its own processes see their parent's end and drain


def cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.parametrize("which", [0, 1])
def test_a_taken_port_is_named_with_the_way_out(tmp_path: Path, which: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [free_port(), free_port()]
        ports[which] = taken.getsockname()[1]
        argv = command(tmp_path / "data", ports[0], ports[1], "--once")
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=200)
    option = ("--grpc-port", "--rest-port")[which]
    reason = f"port {ports[which]} can't be used (Address already in use); choose one by {option}"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {reason}\n"
    assert not (tmp_path / "data").exists()


def test_one_port_for_both_is_refused(tmp_path: Path) -> None:
    argv = command(tmp_path / "data", 7443, 7443)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 1
    assert "two ports are needed" in done.stderr


@pytest.mark.soak
def test_two_on_one_folder_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "data"):
        done = once(tmp_path / "data")
    assert done.returncode == 1
    assert done.stderr.startswith("error: another quickstart is running on ")


def test_a_broken_token_is_told_in_one_line(tmp_path: Path) -> None:
    prepare(tmp_path / "data", grpc_port=free_port(), rest_port=free_port())
    (tmp_path / "data" / "pin").write_text("not the PIN")
    done = once(tmp_path / "data")
    assert done.returncode == 1
    assert done.stderr.startswith("error: The daemon ended (exit code 78). The end of ")
    assert "PIN" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.soak
def test_a_demo_key_that_was_disabled_does_not_stop_it(tmp_path: Path) -> None:
    with serving(tmp_path / "data"):
        client = client_by(tmp_path / "data" / "env")
        client.disable("alias/demo")
        client.close()
    done = once(tmp_path / "data")
    found = KEY.search(done.stdout)
    assert done.returncode == 0, done.stderr
    assert found is not None
    assert (found[1], found[2]) == ("Created", "demo-2")
    assert "what the last run encrypted stays closed: " in done.stdout


def client_by(env: Path) -> Client:
    lines = (line.removeprefix("export ").partition("=") for line in env.read_text().splitlines())
    return Client.from_environment({name: value.strip("'") for name, _, value in lines})
