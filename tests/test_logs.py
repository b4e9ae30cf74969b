"""What operators read: whose call a line belongs to, lines that can't be forged, faults that don't flood."""

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from io import StringIO

import pytest

from hsmd.caller import logged_as
from hsmd.config import Log
from hsmd.daemon import logs
from hsmd.printable import clean
from hsmd.troubles import QUIET_SECONDS, Troubles
from tests.calls import record, refused
from tests.stand import Stand, children_of, eventually

FORGED = "name\n2026-11-29 12:00:00,000 ERROR   worker-0 hsmd: forged\r\x1b[31m\u2028\x85"
log = logging.getLogger("hsmd.test_logs")


@pytest.fixture(params=[False, True], ids=["console", "json"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[StringIO]:
    """Where the log goes, in both forms."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure(Log(level="DEBUG", json=request.param), "worker-7")
    yield stream
    logging.basicConfig(handlers=before, level=level, force=True)


def test_no_text_makes_a_line_of_its_own(written: StringIO) -> None:
    log.warning("user %s", FORGED)
    log.error("it failed", exc_info=ValueError(FORGED))
    lines = written.getvalue().splitlines()  # by what any reader may take for the end of a line
    if lines[0].startswith("{"):
        assert len(lines) == 2
        assert json.loads(lines[0])["message"] == f"user {FORGED}"
        assert json.loads(lines[1])["exception"].count("ValueError") >= 1
    else:
        beginnings = [line for line in lines if not line.startswith("    ")]
        assert [line.split()[2] for line in beginnings] == ["WARNING", "ERROR"]
        assert "\\x1b[31m\\u2028\\x85" in beginnings[0]
    assert "\x1b" not in written.getvalue()


def test_what_utf_8_can_not_hold_is_spelled_out() -> None:
    # Not logged here: a report of pytest-xdist can't hold it.
    assert clean("user \ud800") == "user \\ud800"


def test_lines_of_a_call_name_it(written: StringIO) -> None:
    with logged_as("0123456789abcdef0123456789abcdef"):
        log.info("within")
    log.info("without")
    within, without = written.getvalue().splitlines()
    if within.startswith("{"):
        fields = json.loads(within)
        assert list(fields) == ["time", "level", "logger", "process", "request_id", "message"]
        assert fields["request_id"] == "0123456789abcdef0123456789abcdef"
        assert "request_id" not in json.loads(without)
    else:
        assert "worker-7 hsmd.test_logs: [0123456789abcdef0123456789abcdef] within" in within
        assert without.endswith("hsmd.test_logs: without")


def test_the_gateway_s_level_is_read_again_while_it_runs(stand: Stand) -> None:
    """By all its processes, and by those that are started later; what can't be read changes nothing."""
    assert stand.gateway is not None
    supervisor, whole = stand.gateway.process.pid, stand.dev.config.read_text()
    before = len(stand.log("gateway").splitlines())

    def told(text: str) -> list[str]:
        lines = stand.log("gateway").splitlines()[before:]
        return sorted(line.split()[3] for line in lines if line.endswith(text))

    def reload(level: str) -> None:
        stand.dev.config.write_text(f'{whole}\n[log]\nlevel = "{level}"\n')
        os.kill(supervisor, signal.SIGHUP)

    louder, everybody = "the log's level is DEBUG from now on", ["gateway", "gateway-0", "gateway-1"]
    try:
        reload("debug")
        eventually(lambda: told(louder) == everybody)
        reload("loud")
        eventually(lambda: "the log's level stays as it is: log.level: 'loud'" in stand.log("gateway"))
        workers = children_of(supervisor)
        for pid in workers:  # as when all processes of a unit get it
            os.kill(pid, signal.SIGHUP)
        os.kill(workers[0], signal.SIGKILL)
        eventually(lambda: len(told(louder)) == len(everybody) + 1)
        assert workers[1] in children_of(supervisor)
    finally:
        stand.dev.config.write_text(whole)
        os.kill(supervisor, signal.SIGHUP)
    eventually(lambda: told("the log's level is INFO from now on") == everybody)
    assert stand.rest("GET", "/v9").status == 404


def test_one_id_in_answer_log_and_audit(stand: Stand) -> None:
    answer = stand.rest("GET", "/v9")
    refused(answer, "APIGW.0101")
    request_id = answer.headers["X-Request-Id"]
    assert record(stand, request_id)["result"] == "APIGW.0101"
    eventually(lambda: f"hsmd.gateway.app: [{request_id}] GET /{{version_id}} 404" in stand.log("gateway"))


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


def test_a_fault_of_many_calls_is_two_lines() -> None:
    own = logging.Logger("own", logging.DEBUG)
    kept = Kept()
    own.addHandler(kept)
    now = 0.0
    troubles = Troubles(own, lambda: now)
    for _ in range(1000):
        troubles.meet("the HSM is away", "Crypto/EncryptData")
    now += QUIET_SECONDS
    troubles.meet("the HSM is away", "Keys/CreateKey")
    troubles.tend()  # it isn't over
    now += QUIET_SECONDS + 1
    troubles.tend()
    troubles.tend()
    loud = [line for line in kept.lines if line[0] != "DEBUG"]
    assert loud == [
        ("ERROR", "Crypto/EncryptData: the HSM is away"),
        ("INFO", "over, after 1001 calls: the HSM is away"),
    ]
    assert len(kept.lines) == 1002
    troubles.meet("the HSM is away", "Keys/CreateKey")
    assert kept.lines[-1][0] == "ERROR"  # it begins anew


def test_faults_of_all_kinds_take_little_room() -> None:
    own = logging.Logger("own", logging.DEBUG)
    kept = Kept()
    own.addHandler(kept)
    troubles = Troubles(own)
    for number in range(1000):
        troubles.meet(f"fault {number}", "Keys/CreateKey")
    assert len(troubles._met) <= 65
    assert sum(level == "ERROR" for level, _ in kept.lines) <= 65
