"""hsmd audit-key and hsmctl audit on the host of a daemon that runs, restarts, dies and is tampered with."""

import base64
import csv
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hsmd import config
from hsmd.audit import Log
from hsmd.audit.search import export
from hsmd.client import ApiError, Client
from hsmd.hsm import parse_address
from tests.audits import lines
from tests.calls import records
from tests.faults import processes
from tests.stand import Stand, eventually, free_port, standing

_BIN = Path(sys.executable).parent
_SETTINGS = {
    "HSMD__GRPC__WORKERS": "2",
    "HSMD__AUDIT__CHECKPOINT_SECONDS": "0.3",
    "HSMD__AUDIT__SEGMENT_MEGABYTES": "0.01",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("audit"), _SETTINGS, gateway=False) as stand:
        yield stand


@pytest.fixture(scope="module")
def key(own: Stand) -> Path:
    path = own.dev.data / "audit-key.pem"
    done = command(own, "hsmd", "audit-key", "--config", str(own.dev.config))
    path.write_bytes(done.stdout)
    return path


def command(stand: Stand, program: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [str(_BIN / program), *arguments], capture_output=True, env={**os.environ, **stand.settings}
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def audit(stand: Stand, *arguments: str, code: int = 0) -> bytes:
    return command(stand, "hsmctl", "audit", *arguments, "--config", str(stand.dev.config), code=code).stdout


def verified(stand: Stand, key: Path, *more: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(audit(stand, "verify", "--json", "--key", str(key), *more, code=code))
    assert found["whole"] is (code == 0)
    return found


def signed(stand: Stand, key: Path) -> dict[str, Any]:
    """The report once checkpoints count all that is there."""
    return eventually(lambda: (found := verified(stand, key))["unsigned"] == {} and found)  # type: ignore[no-any-return]  # true ones


def used(client: Client, times: int = 30) -> str:
    key_id = client.create_key(f"key-{time.monotonic_ns()}")
    for _ in range(times):
        client.decrypt(client.encrypt(key_id, b"data"))
    return str(key_id)


def test_a_log_of_a_running_daemon_is_whole_and_signed(own: Stand, key: Path) -> None:
    with own.client() as client:
        key_id = used(client, 60)
    report = signed(own, key)
    assert report["records"] >= 122
    assert report["checkpoints"] >= 1
    assert (report["faults"], report["notices"], report["torn"]) == ([], [], {})
    directory = own.dev.data / "audit"
    eventually(lambda: list(directory.glob("worker-*.0*.jsonl.gz")))  # rotated, and packed once signed for
    eventually(lambda: not list(directory.glob("worker-*.0*.jsonl")))
    assert signed(own, key)["records"] >= 122
    found = json.loads(audit(own, "search", "--json", "--key", key_id, "--event", "encryptData"))
    assert len(found) == 60
    text = audit(own, "verify", "--key", str(key)).decode()
    assert re.search(
        r"^The log is whole: \d+ records, \d+ checkpoints, the last one \d+ of ", text, re.MULTILINE
    )
    with own.client() as client:
        assert client.describe_key(key_id).key_id == key_id


def test_openssl_agrees_with_the_signature(own: Stand, key: Path, tmp_path: Path) -> None:
    with own.client() as client:
        used(client, 1)
    signed(own, key)
    line = audit(own, "checkpoint").rstrip(b"\n")
    before, _, rest = line.rpartition(b',"signature":"')
    (tmp_path / "text").write_bytes(b"hsmd-audit-checkpoint-1\n" + before)
    (tmp_path / "signature").write_bytes(base64.b64decode(rest.removesuffix(b'"}')))
    verify = ["openssl", "dgst", "-sha256", "-verify", str(key), "-signature", str(tmp_path / "signature")]
    subprocess.run([*verify, str(tmp_path / "text")], check=True)
    (tmp_path / "text").write_bytes(before)
    assert subprocess.run([*verify, str(tmp_path / "text")]).returncode != 0


def test_searching(own: Stand) -> None:
    with own.client() as client:
        key_id = used(client, 2)
        with pytest.raises(ApiError) as refused:
            client.decrypt(b"x" * 140, key_id=key_id)
    request_id = str(refused.value.request_id)
    (record,) = records(own, request_id)

    def found(*arguments: str) -> list[dict[str, Any]]:
        return list(json.loads(audit(own, "search", "--json", *arguments)))

    assert found("--request-id", request_id) == [record]
    for options in (
        ("--result", record["result"]),
        ("--principal", record["user_id"], "--event", "decryptData"),
        ("--principal", record["user"], "--key", key_id),
        ("--source", "127.0.0.1", "--since", record["time"]),
    ):
        assert record in found(*options, "--limit", "100000"), options
        assert all(each.get("user") == "admin" for each in found(*options))
    assert found("--key", key_id, "--until", record["time"]) == [
        each for each in found("--key", key_id) if each["time"] < record["time"]
    ]
    times = [each["time"] for each in found()]
    assert times == sorted(times)
    for options in (
        ("--key", "x"),
        ("--principal", "nobody"),
        ("--since", "2999-01-01"),
        ("--event", "crypt"),
    ):
        assert found(*options) == []
    for wrong in (("--since", "yesterday"), ("--limit", "0"), ("--nonsense", "1")):
        command(own, "hsmctl", "audit", "search", "--config", str(own.dev.config), *wrong, code=2)
    line = audit(own, "search", "--request-id", request_id).decode()
    assert record["result"] in line
    assert "decryptData" in line
    assert len(found("--limit", "3")) == 3


def test_tail_follows(own: Stand) -> None:
    last = json.loads(audit(own, "tail", "-n", "5", "--json"))
    assert last == json.loads(audit(own, "search", "--json", "--limit", "1000000"))[-5:]
    argv = [str(_BIN / "hsmctl"), "audit", "tail", "-n", "0", "--follow", "--json", "--event", "createKey"]
    follower = subprocess.Popen(
        [*argv, "--config", str(own.dev.config)],
        stdout=subprocess.PIPE,
        env={**os.environ, **own.settings, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert follower.stdout is not None
        os.set_blocking(follower.stdout.fileno(), False)
        seen = b""

        def told() -> bool:
            nonlocal seen
            with own.client() as client:
                client.create_key(f"followed-{time.monotonic_ns()}")
            assert follower.stdout is not None
            seen += follower.stdout.read() or b""
            return b"\n" in seen

        eventually(told)
        assert json.loads(seen.splitlines()[0])["event"] == "createKey"
    finally:
        follower.send_signal(signal.SIGTERM)
        follower.wait(30)
        follower.stdout.close()  # type: ignore[union-attr]  # it is a pipe


def test_exporting(own: Stand, tmp_path: Path) -> None:
    with own.client() as client:
        key_id = used(client, 2)
    out = tmp_path / "out.jsonl"
    audit(own, "export", "--key", key_id, "--out", str(out))
    exported = lines(out)
    assert len(exported) == 5
    eventually(lambda: not list((own.dev.data / "audit").glob("worker-*.0*.jsonl")))  # none is being packed
    files = (own.dev.data / "audit").glob("worker-*")
    there = [
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in files
    ]
    assert set(exported) <= set(b"".join(there).splitlines(keepends=True))
    audit(own, "export", "--key", key_id, "--out", str(out), code=4)  # there already
    audit(own, "export", "--key", key_id, "--format", "csv", "--out", str(out), "--force")
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [each["event"] for each in rows] == [json.loads(line)["event"] for line in exported]
    assert {each["resource"] for each in rows} == {key_id}
    assert audit(own, "export", "--key", key_id, "--format", "csv", "--out", "-") == out.read_bytes()
    everything = json.loads(audit(own, "export", "--json", "--out", str(tmp_path / "all")))
    assert everything == {"records": len(lines(tmp_path / "all")), "unreadable": 0}


def test_what_a_spreadsheet_would_carry_out(tmp_path: Path) -> None:
    log = Log(tmp_path / "audit" / "worker-0.jsonl", durable=False)
    for user in ("=HYPERLINK(1)", "+1", "-1", "@x", 'Z"o,e\n', "admin"):
        log.append({"time": "2026", "user": user}, 30)
    log.close()
    out = io.BytesIO()
    assert export(tmp_path / "audit", out, "csv") == (6, 0)
    users = [each["user"] for each in csv.DictReader(io.StringIO(out.getvalue().decode(), newline=""))]
    assert users == ["'=HYPERLINK(1)", "'+1", "'-1", "'@x", 'Z"o,e\n', "admin"]


def test_every_kind_of_call_has_a_record_in_the_chain(own: Stand, key: Path) -> None:
    """Refused ones and commands of the host too."""
    with own.client() as client, pytest.raises(ApiError) as refused:
        client.describe_key("0" * 36)
    assert records(own, str(refused.value.request_id))
    command(
        own, "hsmd", "appoint", "--config", str(own.dev.config), "--domain", "development", "--user", "admin"
    )
    names = {each["event"] for each in json.loads(audit(own, "search", "--json", "--principal", ""))}
    assert {"initialise", "appointAdministrator", "createKey"} <= names
    signed(own, key)
    chains = json.loads(audit(own, "checkpoint"))["chains"]
    assert {"init", "appoint"} <= set(chains)
    assert any(name.startswith("worker-") for name in chains)


def test_a_second_daemon_is_kept_out(own: Stand) -> None:
    more = {"HSMD__GRPC__PORT": str(free_port())}
    done = subprocess.run(
        [str(_BIN / "hsmd"), "serve", "--config", str(own.dev.config)],
        capture_output=True,
        text=True,
        env={**os.environ, **own.settings, **more},
        timeout=60,
    )
    assert done.returncode == 78
    assert "another daemon writes to" in done.stderr + done.stdout


def longest(directory: Path) -> Path | None:
    """Of the files that are being written; one that is full has another name, and there may be none."""
    files = directory.glob("worker-?.jsonl")
    return max(files, key=lambda each: each.stat().st_size, default=None)


def being_packed(directory: Path) -> list[Path]:
    """What the warden will take away soon."""
    return [path for kind in ("*.0*.jsonl", "*.0*.chain", "*.part") for path in directory.glob(kind)]


def test_tampering_with_a_copy(own: Stand, key: Path, tmp_path: Path) -> None:
    with own.client() as client:
        used(client, 5)
        while (file := longest(own.dev.data / "audit")) is None or len(lines(file)) < 4:
            used(client, 1)  # so that one can be taken out of the midst
    signed(own, key)
    eventually(lambda: not being_packed(own.dev.data / "audit"))  # nothing goes while it is copied
    copy = tmp_path / "audit"
    shutil.copytree(own.dev.data / "audit", copy)
    verify = ("audit", "verify", "--key", str(key), "--directory", str(copy))
    assert b"The log is whole" in command(own, "hsmctl", *verify).stdout
    path = longest(copy)
    assert path is not None
    texts = lines(path)
    first = json.loads(texts[0])["seq"]
    path.write_bytes(b"".join([*texts[:2], *texts[3:]]))
    said = command(own, "hsmctl", *verify, code=1).stdout.decode()
    assert f"BAD  {path.stem}: record {first + 2} ({path.name}, line 3): missing" in said
    assert "The log is NOT whole" in said
    other = tmp_path / "other.pem"
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(tmp_path / "k")],
        check=True,
    )
    subprocess.run(["openssl", "ec", "-in", str(tmp_path / "k"), "-pubout", "-out", str(other)], check=True)
    assert "another key" in verified(own, other, code=1)["faults"][0]["reason"]
    command(own, "hsmctl", "audit", "verify", "--key", str(tmp_path / "k"), "--directory", str(copy), code=2)


# A stand that is killed


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Stand]:
    with standing(tmp_path, _SETTINGS, gateway=False) as stand:
        yield stand


def exported_key(stand: Stand) -> Path:
    path = stand.dev.data / "audit-key.pem"
    path.write_bytes(command(stand, "hsmd", "audit-key", "--config", str(stand.dev.config)).stdout)
    return path


def test_kill_9_and_restarts(two: Stand) -> None:
    key = exported_key(two)
    with two.client() as client:
        used(client, 20)
    two.kill_everything()
    assert verified(two, key)["faults"] == []
    torn = two.dev.data / "audit" / "worker-0.jsonl"
    with torn.open("ab") as file:
        file.write(b'{"seq":77,"prev":"')  # as if it had died in the midst of a line
    two.start(gateway=False)
    for _ in range(4):  # of both workers
        with two.client() as client:
            used(client, 3)
    eventually(lambda: _used(two) and verified(two, key)["notices"])
    report = signed(two, key)
    assert [each["event"] for each in report["notices"]] == ["auditLineTorn"]
    for pid, name in processes(two).items():
        if name == "worker":
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(processes(two)) == 3)
    two.restart_daemon()
    with two.client() as client:
        used(client, 3)
    two.stop()
    report = verified(two, key)
    assert report["unsigned"] == {}  # a daemon that ends signs for all of it
    assert report["torn"] == {}


def _used(stand: Stand) -> str:
    with stand.client() as client:
        return used(client, 1)


def test_what_is_done_to_a_running_log_is_told_and_stays_found(two: Stand) -> None:
    key = exported_key(two)
    with two.client() as client:
        used(client, 10)
    signed(two, key)
    two.stop()
    path = longest(two.dev.data / "audit")
    assert path is not None
    texts = lines(path)
    bad = json.loads(texts[max(len(texts) - 3, 0)])["seq"]
    path.write_bytes(b"".join(lines(path)[:-3]))
    two.start(gateway=False)
    eventually(lambda: "the audit log was changed" in two.log())
    report = verified(two, key, code=1)
    assert [(each["process"], each["seq"]) for each in report["faults"]] == [(path.stem, bad)]
    for _ in range(3):
        with two.client() as client:
            used(client, 10)
    report = verified(two, key, code=1)
    assert [(each["process"], each["seq"]) for each in report["faults"]] == [(path.stem, bad)]


def test_the_audit_key_is_made_for_an_older_token_and_never_replaced(two: Stand) -> None:
    key = exported_key(two)
    with two.client() as client:
        used(client, 3)
    signed(two, key)
    two.stop()
    remove_audit_key(two)
    with pytest.raises(BaseException):  # noqa: B017, PT011  # whatever it is: it does not start
        two.start(gateway=False)
    assert "restore the key" in two.log()
    shutil.move(two.dev.data / "audit", two.dev.data / "audit-before")
    two.start(gateway=False)
    with two.client() as client:
        used(client, 3)
    other = exported_key(two)
    assert signed(two, other)["records"] >= 7


_REMOVE = """
import sys, pkcs11
token = pkcs11.lib(sys.argv[1]).get_token(token_label=sys.argv[2])
with token.open(rw=True, user_pin=sys.stdin.read()) as session:
    found = list(session.get_objects({pkcs11.Attribute.LABEL: "hsmd-audit-1"}))
    assert len(found) == 2
    for each in found:
        each.destroy()
"""  # in a process of its own, since a PKCS#11 module loads once


def remove_audit_key(stand: Stand) -> None:
    """As a token was before there was such a key."""
    hsm = config.load(stand.dev.config, stand.settings).hsm
    place = parse_address(hsm.token)
    subprocess.run(
        [sys.executable, "-c", _REMOVE, str(place.module_path), str(place.token)],
        input=stand.pin_file.read_text(),
        text=True,
        check=True,
        env={**os.environ, "SOFTHSM2_CONF": str(stand.dev.data / "softhsm2.conf")},
    )
