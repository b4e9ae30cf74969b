"""Children of the quickstart: waited for, watched, ended, and never left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hsmd.cli.children import Child, ChildFailed, Children

READY = """
import os, signal, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
"""
SLEEP = "time.sleep(600)\n"


def argv(script: str) -> list[str]:
    return [sys.executable, "-c", READY + script]


def gone(process: int) -> bool:
    """Whether the process ended; as a zombie it has."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_until_gone(process: int) -> None:
    end = time.monotonic() + 60
    while not gone(process):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ready_is_waited_for(tmp_path: Path) -> None:
    script = "time.sleep(0.3)\nprint('warm', flush=True)\nnotify.send(b'STATUS=up\\nREADY=1\\n')\n" + SLEEP
    with Children(30) as children:
        children.start("It", argv(script), tmp_path / "log", os.environ).wait_until_ready(60)
        assert (tmp_path / "log").read_text() == "warm\n"
        children.check()


def test_other_notices_do_not_count(tmp_path: Path) -> None:
    script = "notify.send(b'STATUS=READY=1')\nnotify.send(b'NOTREADY=1')\n" + SLEEP
    with (
        Children(30) as children,
        pytest.raises(ChildFailed, match=r"^It was not ready after 1 s\. The end of "),
    ):
        children.start("It", argv(script), tmp_path / "log", os.environ).wait_until_ready(1)


def test_a_child_that_dies_first_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("of the run before\n")
    with Children(30) as children:
        child = children.start("It", argv("sys.exit('no token')"), tmp_path / "log", os.environ)
        with pytest.raises(ChildFailed, match=r"^It ended \(exit code 1\)\.(.|\n)*    no token$") as caught:
            child.wait_until_ready(60)
    assert "of the run before" not in str(caught.value)


def test_a_silent_death_says_so(tmp_path: Path) -> None:
    with Children(30) as children:
        child = children.start(
            "It", argv("os.kill(os.getpid(), signal.SIGKILL)"), tmp_path / "log", os.environ
        )
        with pytest.raises(ChildFailed, match=r"^It ended \(by SIGKILL\)\.(.|\n)*\(empty\)$"):
            child.wait_until_ready(60)


def test_a_later_death_is_noticed(tmp_path: Path) -> None:
    with Children(30) as children:
        child = children.start("It", argv("notify.send(b'READY=1')\n" + SLEEP), tmp_path / "log", os.environ)
        child.wait_until_ready(60)
        child.process.kill()
        child.process.wait()
        with pytest.raises(ChildFailed, match="by SIGKILL"):
            children.check()


def test_children_get_time_to_end(tmp_path: Path) -> None:
    script = """
def finish(*_):
    time.sleep(0.3)
    print("drained", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, finish)
notify.send(b"READY=1")
"""
    with Children(60) as children:
        child = children.start("It", argv(script + SLEEP), tmp_path / "log", os.environ)
        child.wait_until_ready(60)
    assert child.process.returncode == 0
    assert (tmp_path / "log").read_text() == "drained\n"


def test_a_child_that_will_not_end_is_killed_with_its_own_children(tmp_path: Path) -> None:
    script = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    print(child, flush=True)
    notify.send(b"READY=1")
"""
    with Children(0.2) as children:
        child = children.start("It", argv(script + SLEEP), tmp_path / "log", os.environ)
        child.wait_until_ready(60)
    assert child.process.returncode == -signal.SIGKILL
    wait_until_gone(int((tmp_path / "log").read_text()))


def test_all_are_ended_when_one_fails(tmp_path: Path) -> None:
    started: list[Child] = []

    def start_two() -> None:
        with Children(30) as children:
            for script in ("notify.send(b'READY=1')\n" + SLEEP, "sys.exit(3)"):
                started.append(children.start("It", argv(script), tmp_path / "log", os.environ))
                started[-1].wait_until_ready(60)

    with pytest.raises(ChildFailed, match="exit code 3"):
        start_two()
    assert [child.process.returncode for child in started] == [-signal.SIGTERM, 3]


def test_a_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    command = argv("notify.send(b'READY=1')\n" + SLEEP)
    parent = f"""
import os, pathlib, time
from hsmd.cli.children import Child
child = Child("It", {command!r}, pathlib.Path({str(tmp_path / "log")!r}), os.environ)
child.wait_until_ready(60)
print(child.process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert not gone(child)
        process.kill()
    wait_until_gone(child)


def test_ctrl_c_at_the_terminal_does_not_reach_a_child(tmp_path: Path) -> None:
    child = Child("It", argv("notify.send(b'READY=1')\n" + SLEEP), tmp_path / "log", os.environ)
    try:
        child.wait_until_ready(60)
        assert os.getsid(child.process.pid) == child.process.pid
        assert os.getpgid(child.process.pid) != os.getpgid(0)
    finally:
        child.stop(30)
