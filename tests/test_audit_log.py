"""The audit log: whole lines of all that was answered, whatever the disk does; callers never hang."""

import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsmd.audit import Log
from hsmd.errors import UNAVAILABLE, Error

PATIENCE = 30.0  # for what must succeed, however slow the machine

Make = Callable[..., Log]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit" / "worker.jsonl"


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    made: list[Log] = []

    def log(where: Path = path, *, durable: bool = True) -> Log:
        made.append(Log(where, durable=durable))
        return made[-1]

    yield log
    for each in made:
        each.close()


def records(path: Path) -> list[dict[str, object]]:
    data = path.read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def refused(log: Log, record: Mapping[str, object], timeout: float = PATIENCE) -> Error:
    with pytest.raises(Error) as caught:
        log.append(record, timeout)
    assert caught.value.fault is UNAVAILABLE
    return caught.value


def child(body: str, *arguments: object) -> subprocess.Popen[str]:
    head = "import sys\nfrom pathlib import Path\nfrom hsmd.audit import Log\nfrom hsmd.errors import Error\n"
    command = [sys.executable, "-c", head + body, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("durable", [True, False])
def test_a_record_is_one_compact_line_in_its_own_order(make: Make, path: Path, durable: bool) -> None:
    log = make(durable=durable)
    log.append({"z": 1, "a": "Zoë\nline\u2028", "n": None}, PATIENCE)
    log.append(MappingProxyType({"ok": True}), PATIENCE)
    assert path.read_text(encoding="utf-8") == '{"z":1,"a":"Zoë\\nline\u2028","n":null}\n{"ok":true}\n'


# Surrogates too: what a client sent need not be Unicode
anything = st.text(st.characters(exclude_categories=()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.dictionaries(anything, st.one_of(anything, st.integers(), st.none(), st.booleans())))
def test_any_text_comes_back(make: Make, path: Path, record: dict[str, object]) -> None:
    before = len(records(path)) if path.exists() else 0
    log = make(durable=False)
    log.append(record, PATIENCE)
    log.close()
    assert len(records(path)) == before + 1
    # JSON spells a pair of lone surrogates like one character beyond U+FFFF, so compare as JSON does
    assert records(path)[-1] == json.loads(json.dumps(record))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", object()])
def test_what_json_can_not_hold_is_the_callers_mistake(make: Make, path: Path, value: object) -> None:
    log = make()
    with pytest.raises((TypeError, ValueError)):
        log.append({"value": value}, PATIENCE)
    log.append({"value": 1}, PATIENCE)
    assert records(path) == [{"value": 1}]


def test_only_the_owner_reads_it(make: Make, path: Path) -> None:
    make().append({}, PATIENCE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_all_lines_of_many_threads_are_there_and_whole(make: Make, path: Path) -> None:
    log = make()
    threads, lines = 16, 50

    def work(number: int) -> None:
        for line in range(lines):
            log.append({"thread": number, "line": line, "filler": "x" * (37 * line % 901)}, PATIENCE)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = [(record["thread"], record["line"]) for record in records(path)]
    assert sorted(found) == [(thread, line) for thread in range(threads) for line in range(lines)]
    for thread in range(threads):  # what a thread was answered first stands first
        assert [line for number, line in found if number == thread] == list(range(lines))


FULL = """
import resource
def room(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
path, durable = Path(sys.argv[1]), sys.argv[2] == "True"
log = Log(path, durable=durable)
room(1000)
answered = []
for number in range(100):
    try:
        log.append({"number": number, "filler": "x" * 100}, 30)
        answered.append(number)
    except Error as error:
        assert error.fault.code == "KMS.0104", error
assert 0 < len(answered) < 100
assert path.read_bytes().endswith(b"\\n")
room(resource.RLIM_INFINITY)
log.append({"number": "after"}, 30)
print(*answered)
"""


@pytest.mark.parametrize("durable", [True, False])
def test_a_full_disk_refuses_and_recovers_without_a_half_line(path: Path, durable: bool) -> None:
    # a limit of the file's size cuts a write short just as a full disk does
    process = child(FULL, path, durable)
    answered, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    expected = [int(number) for number in answered.split()]
    assert [record["number"] for record in records(path)] == [*expected, "after"]


def test_a_device_that_is_always_full_refuses(make: Make) -> None:
    error = refused(make(Path("/dev/full")), {"number": 1})
    assert isinstance(error.__cause__, OSError)
    assert "/dev/full" not in str(error)  # where we keep our log is no caller's business


def test_a_directory_that_can_not_be_used_refuses_until_it_can(make: Make, path: Path) -> None:
    path.parent.write_text("a file is in the way")  # holds for root too, unlike modes
    log = make()
    refused(log, {"number": 1})
    path.parent.unlink()
    log.append({"number": 2}, PATIENCE)
    assert records(path) == [{"number": 2}]


READ_ONLY = """
import os
if os.geteuid() == 0:  # root writes everywhere: be nobody
    os.setuid(65534)
path = Path(sys.argv[1])
path.parent.mkdir(mode=0o500)
log = Log(path, durable=True)
try:
    log.append({"number": 1}, 30)
except Error as error:
    print(error.fault.code, type(error.__cause__).__name__)
path.parent.chmod(0o700)
log.append({"number": 2}, 30)
print(path.read_text(), end="")
"""


def test_a_read_only_directory_refuses_until_it_is_not() -> None:
    with tempfile.TemporaryDirectory() as top:  # not below tmp_path, which is closed to others
        Path(top).chmod(0o777)
        said, _ = child(READ_ONLY, Path(top) / "audit" / "worker.jsonl").communicate(timeout=60)
    assert said.splitlines() == ["KMS.0104 PermissionError", '{"number":2}']


def test_a_stalled_disk_refuses_in_time_and_goes_on_by_itself(make: Make, path: Path) -> None:
    # A pipe that nobody empties holds up a write as a stalled disk does: in the system call.
    path.parent.mkdir()
    os.mkfifo(path)
    log = make()
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        filler = {"filler": "x" * 200_000}  # more than a pipe holds
        began = time.monotonic()
        threads = [threading.Thread(target=refused, args=(log, filler, 0.3)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert time.monotonic() - began >= 0.3
        refused(log, {"number": 1}, 0.1)

        os.set_blocking(reading, True)
        received = bytearray()

        def drain() -> None:
            while b'"last"' not in received:
                received.extend(os.read(reading, 65536))

        drainer = threading.Thread(target=drain, daemon=True)
        drainer.start()
        log.append({"number": "last"}, PATIENCE)
        drainer.join(PATIENCE)
        lines = [json.loads(line) for line in received.splitlines()]
        assert lines[-1] == {"number": "last"}
        assert {"number": 1} not in lines  # its caller had gone before its turn came
    finally:
        log.close()
        os.close(reading)


def test_too_many_waiting_records_are_refused_at_once(make: Make, path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    log = make()
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        refused(log, {"filler": "x" * 200_000}, 0.2)
        while "too many" not in refused(log, {}, 0.0).message:
            pass
        refused(log, {}, 1e6)  # would hang if it waited
    finally:
        os.set_blocking(reading, True)
        while os.read(reading, 1 << 20)[-3:] != b'"}\n':
            pass
        log.close()
        os.close(reading)


def test_a_half_line_of_a_crash_is_cut_off(make: Make, path: Path) -> None:
    path.parent.mkdir()
    for rest in (b'{"half', b"x" * 200_000):
        path.write_bytes(b'{"number":1}\n' + rest)
        log = make()
        log.append({"number": 2}, PATIENCE)
        log.close()
        assert records(path) == [{"number": 1}, {"number": 2}]
    path.write_bytes(b"no newline at all")
    make().append({"number": 3}, PATIENCE)
    assert records(path) == [{"number": 3}]


def test_a_file_that_was_moved_or_removed_is_followed_by_a_new_one(make: Make, path: Path) -> None:
    log = make()
    log.append({"number": 1}, PATIENCE)
    moved = path.with_suffix(".1")
    path.rename(moved)
    log.append({"number": 2}, PATIENCE)
    path.unlink()
    log.append({"number": 3}, PATIENCE)
    assert records(moved) == [{"number": 1}]
    assert records(path) == [{"number": 3}]


def test_two_writers_of_one_file_are_not_let_in(make: Make, path: Path) -> None:
    first, second = make(), make()
    first.append({"number": 1}, PATIENCE)
    refused(second, {"number": 2})
    first.close()
    second.append({"number": 3}, PATIENCE)
    assert records(path) == [{"number": 1}, {"number": 3}]


def test_a_link_is_not_followed(make: Make, path: Path) -> None:
    path.parent.mkdir()
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_bytes(b"mine")
    path.symlink_to(elsewhere)
    refused(make(), {"number": 1})
    assert elsewhere.read_bytes() == b"mine"


def test_a_closed_log_refuses(make: Make, path: Path) -> None:
    log = make()
    log.append({"number": 1}, PATIENCE)
    log.close()
    log.close()
    refused(log, {"number": 2})
    assert records(path) == [{"number": 1}]


KILLED = """
import itertools, threading
log = Log(Path(sys.argv[1]), durable=True)
told = threading.Lock()
def work(thread):
    for line in itertools.count():
        log.append({"thread": thread, "line": line, "filler": "x" * 500}, 30)
        with told:
            print(thread, line, flush=True)
for thread in range(4):
    threading.Thread(target=work, args=(thread,)).start()
"""


def test_kill_9_loses_nothing_that_was_answered(make: Make, path: Path) -> None:
    process = child(KILLED, path)
    assert process.stdout is not None
    answered = [process.stdout.readline() for _ in range(100)]
    process.kill()
    answered += [line for line in process.stdout if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    make().append({"thread": "next", "line": 0}, PATIENCE)  # the dead process's lock is gone
    found = {f"{record['thread']} {record['line']}\n" for record in records(path)}
    assert set(answered) <= found
