"""The log is forwarded to real receivers over TLS: all of it, in order, whatever they do, at least once."""

import gzip
import io
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hsmd.audit import cursors
from hsmd.audit.file import Rotation
from hsmd.audit.verify import Keys, verify
from hsmd.config import Audit, ConfigError, Forward, load
from hsmd.daemon import forwarding
from hsmd.daemon.forwarding import Forwarder, threads
from hsmd.daemon.receivers import frame, message, open_receiver
from tests.audits import Notary, like
from tests.receivers import Syslog, Webhook, authority, context, frames, parsed
from tests.stand import free_port

NAME = "siem"


@dataclass
class Place:
    """A log, and certificates for receivers."""

    folder: Path
    notary: Notary
    ca: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def syslog(self) -> Syslog:
        return Syslog(context(authority(self.ca.parent).server("server", ["127.0.0.1"])))

    def webhook(self) -> Webhook:
        return Webhook(context(authority(self.ca.parent).server("server", ["127.0.0.1"])))

    def forwarder(self, url: str, **more: Any) -> Forwarder:
        given = {"timeout_seconds": 60.0, "ca": self.ca, **more}
        target = Forward(NAME, url, **given)
        own = Audit(directory=self.notary.directory, forward=(target,))
        return Forwarder(own, target, open_receiver("audit.forward[0]", target))

    def cursor(self) -> cursors.Cursor:
        return cursors.read(cursors.path_of(self.notary.directory, NAME))

    def standing(self) -> cursors.Standing:
        return cursors.standing(self.notary.directory, NAME)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority(folder)
    return folder / "ca.pem"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is confirmed after a moment, rather than after ten seconds."""
    monkeypatch.setattr(forwarding, "_CONFIRM_SECONDS", 0.2)


@pytest.fixture
def place(tmp_path: Path, ca: Path) -> Place:
    directory = tmp_path / "audit"
    directory.mkdir()
    return Place(tmp_path, Notary(directory, Rotation(size=5_000)), ca)


def forward(forwarder: Forwarder, done: Callable[[], bool], seconds: float = 300.0) -> None:
    """Rounds without pauses until it is done, then the orderly end."""
    end = time.monotonic() + seconds
    while not done():
        if not forwarder.attend():
            time.sleep(0.02)
        assert time.monotonic() < end, "did not happen in time"
    forwarder.part()


def verified(place: Place, lines: Callable[[str], list[bytes]]) -> tuple[int, int]:
    """How many records and checkpoints a receiver has, by chain: a log that is whole."""
    copy = place.folder / "copy"
    copy.mkdir()
    for name, suffix in (("worker-0", "jsonl"), ("warden", "jsonl"), ("checkpoints", "chain")):
        (copy / f"{name}.{suffix}").write_bytes(b"".join(each + b"\n" for each in lines(name)))
    report = verify(copy, Keys.of([place.notary.public]))
    assert report.faults == []
    return report.records, report.checkpoints


def pack(directory: Path) -> None:
    for path in sorted(directory.glob("worker-0.0*.jsonl"))[:-2]:
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


# Syslog


@pytest.mark.parametrize(
    ("more", "priority"),
    [({}, 110), ({"result": "KMS.0205"}, 108), ({"event": 'a b"]\\' + "x" * 80, "user": "Zoë\n"}, 110)],
)
def test_a_message(more: dict[str, Any], priority: int) -> None:
    record = {**like(7), "request_id": 'q"]\\', **more}
    line = json.dumps({"seq": 7, **record}, ensure_ascii=False).encode()
    found = parsed(message("worker-0", 7, line))
    assert (found.priority, found.time, found.app) == (priority, record["time"], "hsmd")
    assert (found.process, found.text) == ("worker-0", line)
    assert len(found.event) <= 32
    assert found.data.startswith('[hsmd@32473 chain="worker-0" seq="7" requestId="q\\"\\]\\\\"')
    data = frame(message("worker-0", 7, line)) * 2
    assert list(frames(io.BytesIO(data).read)) == [message("worker-0", 7, line)] * 2


def test_a_changed_line_goes_as_it_stands() -> None:
    assert parsed(message("worker-0", 7, b'{"seq":7,"prev":"x"')).text == b'{"seq":7,"prev":"x"'


def test_all_of_it_over_syslog_and_it_can_be_verified_there(place: Place) -> None:
    """Records of two chains in several files, packed and not, and the checkpoints behind them."""
    for _ in range(3):
        place.notary.fill("worker-0", 20)
        place.notary.fill("warden", 5)
        place.notary.checkpoint(Rotation(size=500))
    place.notary.close()
    pack(place.notary.directory)
    with place.syslog().listening() as server:
        forwarder = place.forwarder(f"syslog+tls://127.0.0.1:{server.port}", batch_records=17)
        forward(forwarder, lambda: place.standing().behind == 0)
        place.notary.fill("worker-0", 9)
        forward(forwarder, lambda: place.standing().behind == 0)
    assert len(server.messages) == 60 + 15 + 3 + 9  # once each, as nothing went wrong
    assert verified(place, server.lines) == (84, 3)


def closes(_: Syslog, connection: Any) -> None:
    connection.unwrap()


def vanishes(_: Syslog, connection: Any) -> None:
    connection.close()


def reads_some(server: Syslog, connection: Any) -> None:
    server.read(connection, most=3)


def ends_early(server: Syslog, connection: Any) -> None:
    """Its own end in order, after some, though more is coming."""
    server.read(connection, most=3)
    connection.unwrap()


@pytest.mark.parametrize("serve", [closes, vanishes, reads_some, ends_early])
def test_who_does_not_take_it_all_gets_it_again(
    place: Place, caplog: pytest.LogCaptureFixture, serve: Callable[[Syslog, Any], None]
) -> None:
    """The cursor passes nothing that was not read; it is told when that begins, and when it is over."""
    place.notary.fill("worker-0", 40)
    with place.syslog().listening() as server:
        server.serve = serve
        forwarder = place.forwarder(f"syslog+tls://127.0.0.1:{server.port}", batch_records=20)
        troubled = False
        for _ in range(6):
            forwarder.attend()
            troubled |= place.standing().error != ""
            taken = place.cursor().taken.get((".jsonl", "worker-0"), 0)
            assert taken <= len(server.lines("worker-0"))
        assert troubled
        server.serve = lambda self, connection: self.read(connection)
        forward(forwarder, lambda: place.standing().behind == 0)
    seqs = [json.loads(each)["seq"] for each in server.lines("worker-0")]
    assert seqs == list(range(1, 41))
    assert place.standing() == cursors.Standing(NAME, 0, 0, "", "")
    assert [each.levelno for each in caplog.records if NAME in each.message][:2] == [
        logging.ERROR,
        logging.WARNING,
    ]


def hangs(server: Syslog, connection: Any) -> None:
    """It can take three at a time, and no more."""
    server.read(connection, most=3)
    if connection.recv(1):
        threading.Event().wait(20)


def test_a_receiver_that_is_down_then_slow(place: Place) -> None:
    """Who needs more time than there is for a batch gets smaller ones."""
    place.notary.fill("worker-0", 12)
    server = place.syslog()
    server.port = free_port()
    forwarder = place.forwarder(
        f"syslog+tls://127.0.0.1:{server.port}", batch_records=24, timeout_seconds=2.0
    )
    assert not forwarder.attend()
    assert "refused" in place.standing().error
    assert place.standing().behind == 12
    server.serve = hangs
    with server.listening():
        forward(forwarder, lambda: len(server.lines("worker-0")) == 12)
    assert [json.loads(each)["seq"] for each in server.lines("worker-0")] == list(range(1, 13))


@pytest.mark.parametrize("wrong", ["name", "authority", "client"])
def test_nothing_goes_to_whom_one_does_not_know(place: Place, tmp_path: Path, wrong: str) -> None:
    place.notary.fill("worker-0", 3)
    (tmp_path / "other").mkdir()
    server, other = place.syslog(), authority(tmp_path / "other")
    if wrong == "name":
        server.tls = context(authority(place.ca.parent).server("elsewhere", ["elsewhere.example"]))
    elif wrong == "authority":
        server.tls = context(other.server("server", ["127.0.0.1"]))
    else:  # it wants a certificate, and we show one that it does not know
        server.tls = context(authority(place.ca.parent).server("server", ["127.0.0.1"]), place.ca)
    with server.listening():
        pair = other.client("client", "hsmd")
        more = {"certificate": pair.certificate, "key": pair.key} if wrong == "client" else {}
        forwarder = place.forwarder(f"syslog+tls://127.0.0.1:{server.port}", **more)
        for _ in range(3):
            forwarder.attend()
            forwarder.part()
    assert server.messages == []
    assert place.standing().behind == 3
    assert place.standing().error


def test_a_certificate_is_shown(place: Place) -> None:
    place.notary.fill("worker-0", 3)
    server = place.syslog()
    server.tls = context(authority(place.ca.parent).server("server", ["127.0.0.1"]), place.ca)
    pair = authority(place.ca.parent).client("client", "hsmd")
    with server.listening():
        forwarder = place.forwarder(
            f"syslog+tls://127.0.0.1:{server.port}", certificate=pair.certificate, key=pair.key
        )
        forward(forwarder, lambda: place.standing().behind == 0)
    assert len(server.messages) == 3


# Webhooks


def seqs(hook: Webhook) -> list[list[int]]:
    return [[json.loads(line)["seq"] for line in body.splitlines()] for _, _, body in hook.requests]


def test_a_webhook(place: Place) -> None:
    place.notary.fill("worker-0", 5)
    token = place.folder / "token"
    token.write_text("canary-token\n")
    with place.webhook().listening() as hook:
        url = f"https://127.0.0.1:{hook.port}/hsmd?x=1"
        forwarder = place.forwarder(url, batch_records=3, token_file=token)
        forward(forwarder, lambda: place.standing().behind == 0)
    assert seqs(hook) == [[1, 2, 3], [4, 5]]
    path, headers, body = hook.requests[0]
    assert (path, headers["content-type"]) == ("/hsmd?x=1", "application/x-ndjson")
    assert headers["authorization"] == "Bearer canary-token"
    assert headers["idempotency-key"].endswith("/worker-0/1-3")
    assert body == b"".join((place.notary.directory / "worker-0.jsonl").read_bytes().splitlines(True)[:3])
    assert "canary" not in cursors.path_of(place.notary.directory, NAME).read_text()


@pytest.mark.parametrize(
    ("status", "headers", "pause"),
    [
        (500, {}, 1.0),
        (503, {"Retry-After": "7"}, 7.0),
        (429, {"Retry-After": "9999999999"}, 3600.0),
        (429, {"Retry-After": "soon"}, 1.0),
        (400, {}, 300.0),
        (302, {"Location": "https://127.0.0.1:1/"}, 300.0),
    ],
)
def test_a_webhook_that_refuses(place: Place, status: int, headers: dict[str, str], pause: float) -> None:
    """The same batch comes again, later; a redirect is none that is followed."""
    place.notary.fill("worker-0", 2)
    with place.webhook().listening() as hook:
        hook.answers = [(status, headers), (200, {})]
        forwarder = place.forwarder(f"https://127.0.0.1:{hook.port}/", batch_records=4)
        assert not forwarder.attend()
        assert forwarder.pause == pause
        assert place.standing().error == f"HTTP status {status}"
        forward(forwarder, lambda: place.standing().behind == 0)
    assert seqs(hook) == [[1, 2], [1, 2]]
    assert len({each["idempotency-key"] for _, each, _ in hook.requests}) == 1


# The cursor


def test_another_process_goes_on_at_the_cursor(place: Place) -> None:
    """One that was killed has confirmed nothing of its last batch: that comes twice."""
    place.notary.fill("worker-0", 10)
    with place.webhook().listening() as hook:
        url = f"https://127.0.0.1:{hook.port}/"
        forward(place.forwarder(url), lambda: place.standing().behind == 0)
        place.notary.fill("worker-0", 2)
        path = cursors.path_of(place.notary.directory, NAME)
        before = path.read_bytes()
        forward(place.forwarder(url), lambda: place.standing().behind == 0)
        path.write_bytes(before)
        path.with_suffix(".part").write_bytes(b'{"rec')
        forward(place.forwarder(url), lambda: place.standing().behind == 0)
    assert seqs(hook) == [list(range(1, 11)), [11, 12], [11, 12]]


def test_a_cursor_that_can_not_be_written_holds_up_nothing(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.notary.fill("worker-0", 4)
    cursors.path_of(place.notary.directory, NAME).with_suffix(".part").mkdir(parents=True)
    with place.webhook().listening() as hook:
        forwarder = place.forwarder(f"https://127.0.0.1:{hook.port}/", batch_records=2)
        forward(forwarder, lambda: len(hook.requests) == 2)
    assert seqs(hook) == [[1, 2], [3, 4]]
    assert len([each for each in caplog.records if "forwarded twice" in each.message]) == 1


def test_what_is_no_cursor_stops_it(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Rather than all of it again, or nothing."""
    path = cursors.path_of(place.notary.directory, NAME)
    path.parent.mkdir()
    path.write_bytes(b"[]")
    place.notary.fill("worker-0", 4)
    with place.webhook().listening() as hook:
        forwarder = place.forwarder(f"https://127.0.0.1:{hook.port}/")
        for _ in range(3):
            assert not forwarder.attend()
    assert hook.requests == []
    assert path.read_bytes() == b"[]"
    assert len([each for each in caplog.records if "is no cursor" in each.message]) == 1


def test_what_was_archived_before_it_was_forwarded_is_told_once(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Each gap, and not again with each try, however that ends."""
    place.notary.fill("worker-0", 60)
    files = sorted(place.notary.directory.glob("worker-0.0*"))
    assert len(files) > 4
    gaps = []
    for number in (0, 2, 3):
        records = [json.loads(line)["seq"] for line in files[number].read_bytes().splitlines()]
        gaps.append((records[0], records[-1]))
        files[number].unlink()
    with place.webhook().listening() as hook:
        hook.answers = [*[(500, {})] * 3, (204, {})]  # what comes again is counted once
        forwarder = place.forwarder(f"https://127.0.0.1:{hook.port}/")
        forward(forwarder, lambda: place.standing().behind == 0)
    first, second = gaps[0], (gaps[1][0], gaps[2][1])
    assert [each.message for each in caplog.records if "are gone" in each.message] == [
        f"records {start} to {end} of worker-0 are gone and were not forwarded to {NAME}"
        for start, end in (first, second)
    ]
    assert place.standing().lost == sum(end - start + 1 for start, end in (first, second))
    assert len(hook.requests) >= 4


def test_it_goes_on_while_the_log_is_written_and_rotated(place: Place) -> None:
    stop = threading.Event()

    def write() -> None:
        for _ in range(30):
            place.notary.fill("worker-0", 4)
            pack(place.notary.directory)
        stop.set()

    with place.webhook().listening() as hook:
        forwarder = place.forwarder(f"https://127.0.0.1:{hook.port}/", batch_records=7)
        writer = threading.Thread(target=write)
        writer.start()
        forward(forwarder, lambda: stop.is_set() and place.standing().behind == 0)
        writer.join()
    assert [each for batch in seqs(hook) for each in batch] == list(range(1, 121))
    assert place.standing().lost == 0


# The configuration


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('name = "a b"\nurl = "https://x/"', "name"),
        ('name = "a"\nurl = "http://x/"', "TLS in any case"),
        ('name = "a"\nurl = "syslog://x"', "TLS in any case"),
        ('name = "a"\nurl = "https://x/"\ncertificate = "x"', "due together"),
        ('name = "a"\nurl = "https://x/"\nbatch_records = 0', "batch_records"),
        ('name = "a"\nurl = "https://x/"\n[[audit.forward]]\nname = "a"\nurl = "https://y/"', "no other"),
        ('url = "https://x/"', "name"),
    ],
)
def test_wrong_settings(tmp_path: Path, table: str, told: str) -> None:
    path = tmp_path / "hsmd.toml"
    path.write_text(f"[[audit.forward]]\n{table}\n")
    with pytest.raises(ConfigError, match=told):
        load(path, {})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"url": "syslog+tls://127.0.0.1:6514/path"}, "url"),
        ({"url": "syslog+tls://"}, "url"),
        ({"url": "syslog+tls://127.0.0.1:99999"}, "url"),
        ({"token_file": Path("x")}, "token_file"),
        ({"ca": Path("/nonexistent")}, "CA"),
        ({"url": "https://user:secret@host/"}, "without a password"),
    ],
)
def test_receivers_that_can_not_be(place: Place, changes: dict[str, Any], told: str) -> None:
    target = replace(Forward("a", "syslog+tls://127.0.0.1", ca=place.ca), **changes)
    with pytest.raises(ConfigError, match=told):
        threads(Audit(forward=(target,)), threading.Event())
