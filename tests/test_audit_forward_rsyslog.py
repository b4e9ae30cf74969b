"""The log is forwarded to a real rsyslog over mutual TLS: complete and in order, over restarts of it."""

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsmd.daemon import forwarding
from tests.receivers import Message, authority, parsed
from tests.stand import eventually, free_port
from tests.test_audit_forward import Place, ca, hasty, place, verified

__all__ = ["ca", "hasty", "place"]  # fixtures

_PROGRAM = shutil.which("rsyslogd", path=f"{os.environ['PATH']}:/usr/sbin")
_TLS = list(Path("/usr/lib").glob("*/rsyslog/lmnsd_ossl.so"))
pytestmark = pytest.mark.skipif(
    _PROGRAM is None or not _TLS, reason="rsyslog is not installed (Debian: rsyslog, rsyslog-openssl)"
)

_CONFIGURATION = """
global(
  workDirectory="{folder}"
  defaultNetstreamDriverCAFile="{ca}"
  defaultNetstreamDriverCertFile="{certificate}"
  defaultNetstreamDriverKeyFile="{key}"
)
main_queue(queue.type="Direct")  # what is read is written before more is read
module(
  load="imtcp"
  StreamDriver.Name="ossl" StreamDriver.Mode="1" StreamDriver.AuthMode="x509/name" PermittedPeer=["hsmd"]
)
template(name="whole" type="string" string="%rawmsg%\\n")
ruleset(name="audit") {{ action(type="omfile" file="{file}" template="whole") }}
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="audit")
"""


@dataclass
class Rsyslog:
    """A receiver as operators would set it up, that asks for our client certificate."""

    folder: Path
    port: int

    @contextmanager
    def running(self) -> Iterator[None]:
        """A process of its own, until it is told to end."""
        argv = [str(_PROGRAM), "-n", "-f", str(self.folder / "rsyslog.conf"), "-i", str(self.folder / "pid")]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            eventually(self._listens)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0

    def _listens(self) -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def messages(self) -> list[Message]:
        """What it has written, in that order."""
        file = self.folder / "received"
        *whole, _ = file.read_bytes().split(b"\n") if file.exists() else [b""]  # one may be half written
        return [parsed(line) for line in whole]

    def lines(self, chain: str) -> list[bytes]:
        """Each line once, in the order in which they came first."""
        return list(dict.fromkeys(each.text for each in self.messages() if each.process == chain))


@pytest.fixture
def rsyslog(place: Place) -> Rsyslog:
    folder = place.folder / "rsyslog"
    folder.mkdir()
    pair, port = authority(place.ca.parent).server("server", ["127.0.0.1"]), free_port()
    values = {"certificate": pair.certificate, "key": pair.key, "ca": place.ca, "file": folder / "received"}
    (folder / "rsyslog.conf").write_text(_CONFIGURATION.format(folder=folder, port=port, **values))
    return Rsyslog(folder, port)


def test_all_of_it_in_order_over_restarts(
    place: Place, rsyslog: Rsyslog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "_FIRST_PAUSE", 0.1)
    monkeypatch.setattr(forwarding, "_LOOK_SECONDS", 0.1)
    pair = authority(place.ca.parent).client("client", "hsmd")
    forwarder = place.forwarder(
        f"syslog+tls://127.0.0.1:{rsyslog.port}",
        certificate=pair.certificate,
        key=pair.key,
        batch_records=16,
    )
    stopping = threading.Event()
    thread = threading.Thread(target=forwarder.run, args=(stopping,))
    thread.start()
    try:
        for turn in range(3):
            with rsyslog.running():  # and it ends in the midst of them
                place.notary.fill("worker-0", 100)
                place.notary.fill("warden", 10)
                eventually(lambda: len(rsyslog.lines("worker-0")) > turn * 100 + 20)  # noqa: B023 -- called now
        place.notary.checkpoint()
        with rsyslog.running():
            eventually(lambda: place.standing().behind == 0)
    finally:
        stopping.set()
        thread.join()
    assert verified(place, rsyslog.lines) == (330, 1)
    assert place.standing().error == ""
    received = rsyslog.messages()
    assert {(each.app, each.priority) for each in received} == {("hsmd", 110)}


def test_a_receiver_that_does_not_know_us_has_nothing(place: Place, rsyslog: Rsyslog, tmp_path: Path) -> None:
    place.notary.fill("worker-0", 3)
    pair = authority(tmp_path).client("client", "hsmd")  # of somebody else's
    url = f"syslog+tls://127.0.0.1:{rsyslog.port}"
    shown: tuple[dict[str, Path], ...] = ({}, {"certificate": pair.certificate, "key": pair.key})
    with rsyslog.running():
        for more in shown:
            forwarder = place.forwarder(url, **more)
            for _ in range(3):
                forwarder.attend()
                forwarder.part()
    assert rsyslog.messages() == []
    assert place.standing().behind == 3
    assert place.standing().error
