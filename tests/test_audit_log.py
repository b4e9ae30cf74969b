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
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsmd.audit import Log, Rotation
from hsmd.errors import UNAVAILABLE, Error

PATIENCE = 30.0  # for what must succeed, however slow the machine

Make = Callable[..., Log]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit" / "worker.jsonl"


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    made: list[Log] = []

    def log(where: Path = path, *, durable: bool = True, **options: Any) -> Log:
        made.append(Log(where, durable=durable, **options))
        return made[-1]

    yield log
    for each in made:
        each.close()


def records(path: Path, *, first: bool = True) -> list[dict[str, Any]]:
    """What the lines say; each says its number and the hash of the one before."""
    data = path.read_bytes()
    assert data == b"" or data.endswith(b"\n")
    found: list[dict[str, Any]] = []
    before = "0" * 64 if first else ""
    for line in data.split(b"\n")[:-1]:
        record = json.loads(line)
        assert list(record)[:2] == ["seq", "prev"]
        number, said = record.pop("seq"), record.pop("prev")
        assert number == len(found) + 1 or not first
        assert said == before or not before
        before = sha256(line).hexdigest()
        found.append(record)
    return found


def told(path: Path) -> list[str]:
    """The log's own events."""
    return [str(each["event"]) for each in records(path, first=False) if "event" in each]


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
    first = f'{{"seq":1,"prev":"{"0" * 64}","z":1,"a":"Zoë\\nline\u2028","n":null}}'
    second = f'{{"seq":2,"prev":"{sha256(first.encode()).hexdigest()}","ok":true}}'
    assert path.read_text(encoding="utf-8") == f"{first}\n{second}\n"


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
    refusal, line = said.splitlines()
    assert refusal == "KMS.0104 PermissionError"
    assert json.loads(line)["number"] == 2


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
        assert lines[-1]["number"] == "last"
        assert 1 not in [each.get("number") for each in lines]  # its caller had gone before its turn came
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
    first = make()
    first.append({"number": 1}, PATIENCE)
    first.close()
    whole = path.read_bytes()
    for rest in (b'{"half', b"x" * 200_000):
        path.write_bytes(whole + rest)
        log = make()
        log.append({"number": 2}, PATIENCE)
        log.close()
        one, torn, two = records(path)
        assert (one, two) == ({"number": 1}, {"number": 2})
        assert torn["event"] == "auditLineTorn"
        assert torn["detail"] == {"bytes": len(rest), "sha256": sha256(rest).hexdigest()}
    path.write_bytes(b"no newline at all")
    make().append({"number": 3}, PATIENCE)
    assert told(path) == ["auditLineTorn"]
    assert records(path)[-1] == {"number": 3}


def test_a_log_from_before_there_were_chains_is_set_aside(make: Make, path: Path) -> None:
    path.parent.mkdir()
    old = b'{"time":"2026-01-01T00:00:00.000+00:00","event":"createKey"}\n' * 3
    path.write_bytes(old)
    make().append({"number": 1}, PATIENCE)
    aside = path.with_name("worker.aside-1.jsonl")
    assert aside.read_bytes() == old
    first, second = records(path)
    assert first["event"] == "auditFileSetAside"
    assert first["detail"] == {"file": aside.name, "sha256": sha256(old).hexdigest()}
    assert second == {"number": 1}


def test_a_chain_goes_on_where_it_ended(make: Make, path: Path) -> None:
    for number in range(1, 4):
        log = make()
        log.append({"number": number}, PATIENCE)
        log.close()
    assert records(path) == [{"number": 1}, {"number": 2}, {"number": 3}]


@pytest.mark.parametrize("packed", [False, True])
def test_a_chain_goes_on_behind_what_was_rotated(make: Make, path: Path, packed: bool) -> None:
    """A crash came between the rotation and the next record."""
    log = make()
    for number in (1, 2):
        log.append({"number": number}, PATIENCE)
    log.close()
    rotated = path.with_name("worker.000000000001.jsonl")
    path.rename(rotated)
    if packed:
        subprocess.run(["gzip", str(rotated)], check=True)
    make().append({"number": 3}, PATIENCE)
    line = json.loads(path.read_text())
    assert (line["seq"], line["number"]) == (3, 3)


def test_full_files_are_rotated_and_the_chain_goes_through(make: Make, path: Path) -> None:
    log = make(rotation=Rotation(size=1000))
    for number in range(1, 51):
        log.append({"number": number}, PATIENCE)
    files = sorted(path.parent.glob("worker.*.jsonl"))
    assert len(files) == 4
    assert all(1000 <= file.stat().st_size < 1200 for file in files)
    whole = b"".join(file.read_bytes() for file in [*files, path])
    (path.parent / "whole").write_bytes(whole)
    assert records(path.parent / "whole") == [{"number": number} for number in range(1, 51)]
    for file in files:
        assert json.loads(file.read_bytes().splitlines()[0])["seq"] == int(file.name.split(".")[1])


def test_old_files_are_rotated_also_after_a_restart(make: Make, path: Path) -> None:
    then = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    log = make()
    log.append({"time": then}, PATIENCE)
    log.close()
    make(rotation=Rotation(seconds=3 * 3600)).append({"number": 2}, PATIENCE)
    assert len(records(path)) == 2
    for log in (make(path.with_name("other.jsonl")),):
        log.append({"time": then}, PATIENCE)
        log.close()
    again = make(path.with_name("other.jsonl"), rotation=Rotation(seconds=3600))
    again.append({"number": 2}, PATIENCE)
    assert [each.name for each in sorted(path.parent.glob("other*"))] == [
        "other.000000000001.jsonl",
        "other.jsonl",
    ]


def test_what_a_disk_could_hold_of_several_lines_stays_and_counts(path: Path) -> None:
    """Of lines written together some were whole before the disk was full: a reader may have seen them."""
    done = child(PARTLY, path)
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 0
    kept = int(said)
    assert 0 < kept < 20
    numbers = [each["number"] for each in records(path)]
    assert numbers == [*range(kept), "after"]


PARTLY = """
import resource
from hsmd.audit.file import ChainFile
def room(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
path = Path(sys.argv[1])
file = ChainFile(path, durable=True)
room(1000)
try:
    file.append(b'{"number":%d}' % number for number in range(20))
    sys.exit("it was written")
except OSError:
    print(path.read_bytes().count(b"\\n"))
room(resource.RLIM_INFINITY)
file.append([b'{"number":"after"}'])
"""


def test_lost_records_are_counted_where_calls_go_on(make: Make, path: Path) -> None:
    path.parent.write_text("a file is in the way")
    log = make(forgiving=True)
    for _ in range(3):
        log.append({"number": 1}, PATIENCE)
    path.parent.unlink()
    log.append({"number": 2}, PATIENCE)
    log.append({"number": 3}, PATIENCE)
    loss, *rest = records(path)
    assert (loss["event"], loss["detail"]) == ("auditRecordsLost", {"records": 3})
    assert rest == [{"number": 2}, {"number": 3}]


def test_a_file_that_was_moved_or_removed_is_followed_by_a_new_one(make: Make, path: Path) -> None:
    log = make()
    log.append({"number": 1}, PATIENCE)
    moved = path.with_suffix(".1")
    path.rename(moved)
    log.append({"number": 2}, PATIENCE)
    path.unlink()
    log.append({"number": 3}, PATIENCE)
    assert records(moved) == [{"number": 1}]
    assert records(path, first=False) == [{"number": 3}]
    assert json.loads(path.read_bytes())["seq"] == 3  # what is gone is seen to be gone


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
    found = {f"{each['thread']} {each['line']}\n" for each in records(path) if "thread" in each}
    assert set(answered) <= found
