"""A node for its operators: all its processes, seen from any; hsmctl status and top; how loud it logs."""

import os
import re
import signal
import time

import pytest

from hsmd.client import Client
from hsmd.domain.board import Board, Loudness, quantile
from hsmd.pb.v1 import node_pb2 as pb
from tests.calls import fresh, record, refusal
from tests.stand import Stand, Tenant, eventually
from tests.test_hsmctl_people import Shell

DAY = 24 * 60 * 60


def node_of(client: Client) -> pb.ShowNodeResponse:
    node: pb.ShowNodeResponse = client.node.ShowNode(pb.ShowNodeRequest())
    return node


def test_all_processes_from_any(stand: Stand, client: Client) -> None:
    key = client.create_key(fresh())
    before = node_of(client)
    for _ in range(20):
        client.encrypt(key, b"data")
    with refusal("KMS.0207"):
        client.encrypt("0" * 8 + "-0000-0000-0000-" + "0" * 12, b"data")
    node = node_of(client)
    workers = client.status().workers
    assert [each.name for each in node.processes] == [*(f"worker-{n}" for n in range(workers)), "warden"]
    assert {each.pid for each in node.processes} == set(stand.workers())
    assert (node.state, node.seal, node.protocol) == ("serving", "none", "hsmd.v1")
    assert all(each.ready and each.token == "connected" and not each.failing for each in node.processes)
    now, then = (sum(each.answered for each in one.processes) for one in (node, before))
    assert now - then >= 20
    assert sum(each.refused for each in node.processes) > sum(each.refused for each in before.processes)
    assert sum(map(sum, (each.latency for each in node.processes))) >= now
    assert sum(each.running for each in node.processes) >= 1  # the call that asks
    assert 0 <= node.unsigned_seconds < 3600
    assert {each.name for each in node.certificates} == {"grpc", "grpc client_ca"}
    assert all(each.days > 0 for each in node.certificates)


def test_a_node_is_for_operators(stand: Stand, reader: Tenant, stranger: Tenant) -> None:
    for who in (reader, stranger):
        with stand.client(who) as one:
            for call in (
                lambda: node_of(one),  # called now
                lambda: one.node.SetLogLevel(pb.SetLogLevelRequest(level="DEBUG", seconds=1)),
            ):
                with refusal("IAM.0003"):
                    call()


@pytest.fixture(scope="module")
def shell(stand: Stand) -> Shell:
    return Shell(stand)


def test_status_and_top_fit_a_screen(shell: Shell) -> None:
    status, top = shell.done("status"), shell.done("top", "--once")
    for text in (status, top):
        assert all(len(line) <= 80 for line in text.splitlines())
        assert re.search(r"^hsmd +[\d.]+, local-1: serving", text, re.MULTILINE)
        assert re.search(r"^token +hsmd .* connected since ", text, re.MULTILINE)
        assert re.search(r"^lag +\d+ audit records without a checkpoint", text, re.MULTILINE)
        assert re.search(r"^ *worker-0 +\d+ .* ready ", text, re.MULTILINE)
        assert re.search(r"^ *warden +\d+ .* ready ", text, re.MULTILINE)
    assert "Answered/s" in top
    found = shell.json("status")
    assert found["node"]["processes"][0]["name"] == "worker-0"
    assert found["token"]["state"] == "connected"


def test_the_log_is_louder_for_a_while(stand: Stand, client: Client, shell: Shell) -> None:
    before = len(stand.log().splitlines())

    def told(text: str) -> set[str]:
        return {line.split()[3] for line in stand.log().splitlines()[before:] if line.endswith(text)}

    processes = {each.name for each in node_of(client).processes}
    answer = shell.json("log-level", "debug", "--logger", "hsmd.hsm", "--for", "1h")
    assert answer["log_level"] == "hsmd.hsm DEBUG"
    assert node_of(client).log_level == "hsmd.hsm DEBUG"
    eventually(lambda: told("hsmd.hsm logs DEBUG from now on") == processes)
    shell.done("log-level", "error", "--for", "1h")
    eventually(lambda: told("hsmd logs ERROR from now on") == processes)
    shell.done("log-level", "error", "--for", "1s")  # whoever is too busy to see it sees that it is over
    eventually(lambda: told("the log is as it was configured") == processes)
    assert node_of(client).log_level == "INFO"
    events = [each for each in stand.audit() if each["event"] == "setLogLevel" and each["result"] == "OK"]
    assert {each["resource"] for each in events} == {"hsmd.hsm DEBUG", "hsmd ERROR"}
    assert record(stand, events[-1]["request_id"])["user_id"] == stand.dev.user_id


@pytest.mark.parametrize(
    ("level", "logger", "seconds"),
    [
        ("TRACE", "", 1),
        ("debug", "", 1),
        ("DEBUG", "sqlalchemy.engine", 1),
        ("DEBUG", "hsmdx", 1),
        ("DEBUG", "hsmd.\u00e4", 1),
        ("DEBUG", "", 0),
        ("DEBUG", "", -1),
        ("DEBUG", "", DAY + 1),
    ],
)
def test_levels_that_are_none(client: Client, level: str, logger: str, seconds: int) -> None:
    with refusal("KMS.0308"):
        client.node.SetLogLevel(pb.SetLogLevelRequest(level=level, logger=logger, seconds=seconds))


# The board


def test_a_seat_is_seen_by_another_process_and_outlives_it() -> None:
    board = Board(["a", "b"])
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        board.sit("b")
        board.begin()
        board.begin()
        board.end(0.003, 0)
        board.write(loaded_keys=7)
        os.write(write, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    a, b = board.look()
    assert (a.pid, a.ready) == (0, False)
    assert (b.pid, b.ready, b.running, b.answered, b.loaded_keys) == (pid, True, 1, 1, 7)
    assert 0.002 < quantile(b.latency, 0.5) < 0.005
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert board.look()[1].answered == 1
    board.sit("b")  # its successor begins with nothing
    assert (board.look()[1].answered, sum(board.look()[1].latency)) == (0, 0)


def test_how_a_call_ends() -> None:
    board = Board()
    for status in (0, 400, 404, 429, 500, 503):
        board.begin()
        board.end(0.0, status)
    (seat,) = board.look()
    assert (seat.running, seat.answered, seat.refused, seat.failed) == (0, 1, 3, 2)
    board.end(10**9, 0)  # however long
    assert sum(board.look()[0].latency) == 7


@pytest.mark.parametrize("seconds", [1e-6, 3e-6, 0.00077, 0.001, 0.0301, 1.0, 29.0, 900.0])
def test_quantiles_are_near(seconds: float) -> None:
    board = Board()
    board.end(seconds, 0)
    found = quantile(board.look()[0].latency, 0.99)
    assert seconds * 0.99 <= found <= seconds * 2.1
    assert quantile([0] * 64, 0.5) == 0


def test_a_note_counts_while_it_is_whole_and_in_time() -> None:
    board, now = Board(), time.time_ns() // 1_000_000
    assert board.posted() is None
    whole = Loudness(10, now + 60_000, "hsmd.hsm")
    board.post(whole)
    assert board.posted() == whole
    board._note[3] ^= 1  # another process is writing
    assert board.posted() is None
    board.post(Loudness(10, now - 1, "hsmd"))
    assert board.posted() is None
