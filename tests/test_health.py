"""Health, deep: a token, audit log or daemon that can't be used shows within 5 s, and so does its return."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hsmd.api.health import Health
from hsmd.daemon import worker
from hsmd.domain import readiness
from hsmd.domain.readiness import AUDIT, FRESH_SECONDS, PARTS, TOKEN
from hsmd.gateway import probes
from hsmd.hsm import link, token
from tests.faults import absent_token, frozen_token
from tests.load import Load, encrypts, is_serving
from tests.softhsm import needs_folder
from tests.stand import Stand, eventually, standing
from tests.terminals import terminal
from tests.test_disk_faults import without_files
from tests.test_token_away import channel

HSMCTL = str(Path(sys.executable).with_name("hsmctl"))
WORKERS = 2
CALLS = 60  # refused while the token is away
ALERTS = 12  # lines of one process about one fault, at most


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A stand whose token is taken away."""
    settings = {"HSMD__GRPC__WORKERS": str(WORKERS)}
    with standing(tmp_path_factory.mktemp("health"), settings) as one:
        yield one


@pytest.fixture(scope="module")
def connection(watched: Stand) -> Iterator[grpc.Channel]:
    with channel(watched) as one:
        yield one


def is_ready(stand: Stand) -> bool:
    """What `/readyz` says, held to its form."""
    answer = stand.rest("GET", "/readyz")
    said = {200: {"status": "ready"}, 503: {"status": "not ready"}}
    assert answer.json == said[answer.status]
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.status == 200


def serves(connection: grpc.Channel, name: str) -> bool:
    request = health_pb2.HealthCheckRequest(service=name)
    answer = health_pb2_grpc.HealthStub(connection).Check(request, timeout=20)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def alerts(stand: Stand, name: str = "serve") -> list[str]:
    """Lines that somebody is woken up for."""
    return [line for line in stand.log(name).splitlines() if " WARNING " in line or " ERROR " in line]


def refusals(stand: Stand) -> int:
    """Calls that were refused since the HSM was away, by the audit log."""
    return sum(each["result"] == "KMS.0104" for each in stand.audit())


def test_probes_answer_anybody(watched: Stand) -> None:
    before = {each["event"] for each in watched.audit()}
    alive = watched.rest("GET", "/healthz")
    assert (alive.status, alive.json) == (200, {"status": "alive"})
    assert len(alive.headers["X-Request-Id"]) == 32
    eventually(lambda: is_ready(watched))
    for path in ("/healthz", "/readyz"):
        head = watched.rest("HEAD", path)
        assert (head.status, head.raw) == (200, b"")
        assert watched.rest("POST", path).status == 405
        assert watched.rest("GET", path + "/").status == 404
    new = {each["event"] for each in watched.audit()} - before
    assert new <= {"refuseRequest", "reportRefusals", "loadConfiguration"}  # nothing here is a call
    paths = watched.rest("GET", "/openapi.json").json["paths"]
    assert {"200"} == paths["/healthz"]["get"]["responses"].keys()
    assert {"200", "503"} == paths["/readyz"]["get"]["responses"].keys()


@needs_folder
def test_a_token_that_is_taken_away_under_load(watched: Stand, connection: grpc.Channel) -> None:
    with watched.client() as client:
        keys = [client.create_key(f"key-{number}") for number in range(4)]
    before, before_gateway = len(alerts(watched)), len(alerts(watched, "gateway"))
    with Load(watched, encrypts(keys)) as load:
        with absent_token(watched):
            started = time.monotonic()
            eventually(lambda: not is_serving(connection))
            eventually(lambda: not is_ready(watched))
            print(f"not ready {time.monotonic() - started:.1f} s after the token was taken away")
            assert watched.rest("GET", "/healthz").status == 200
            eventually(lambda: not serves(connection, "hsmd.v1.Crypto"))
            assert not serves(connection, "hsmd.v1.Users")  # what is in the store is sealed by the token
            assert serves(connection, "hsmd.v1.Service")
            eventually(lambda: refusals(watched) > CALLS, 120)
        started = time.monotonic()
        eventually(lambda: is_serving(connection))
        eventually(lambda: is_ready(watched))
        print(f"ready {time.monotonic() - started:.1f} s after its return")
        load.goes_on()
    assert load.wrong == []
    told = alerts(watched)[before:]
    print(f"{len(told)} lines, {refusals(watched)} refused calls")
    for process in ("worker-0", "worker-1", "warden"):
        own = [line for line in told if f" {process} " in line]
        assert sum("not ready: the HSM token is away" in line for line in own) == 1
        assert len(own) <= ALERTS
    ours = alerts(watched, "gateway")[before_gateway:]
    reasons = [line.partition("not ready: ")[2] for line in ours]
    late = [each for each in reasons if each.startswith("the daemon does not answer: ")]  # in two seconds
    assert set(reasons) - set(late) == {"the daemon is not serving"}
    assert len(reasons) - len(late) <= 1 + len(late)
    eventually(lambda: "over, after" in watched.log())


def test_a_token_that_hangs_and_nobody_uses(watched: Stand, connection: grpc.Channel) -> None:
    eventually(lambda: is_serving(connection))
    with frozen_token(watched):
        started = time.monotonic()
        eventually(lambda: not is_serving(connection))
        eventually(lambda: not is_ready(watched))
        print(f"not ready {time.monotonic() - started:.1f} s after the token hung")
    eventually(lambda: is_serving(connection))
    eventually(lambda: is_ready(watched))


def test_an_audit_log_that_can_not_be_written(watched: Stand, connection: grpc.Channel) -> None:
    """It shows without a call that fails, and its return without one that succeeds."""
    eventually(lambda: is_serving(connection))
    before = len(alerts(watched))

    def told() -> int:
        return sum("not ready: the audit log can't be used" in line for line in alerts(watched)[before:])

    with without_files(watched):
        eventually(lambda: not is_ready(watched))
        eventually(lambda: not serves(connection, "hsmd.v1.Service"))
        eventually(lambda: told() == WORKERS)
        time.sleep(3 * readiness.PAUSE_SECONDS)
    eventually(lambda: is_ready(watched))
    eventually(lambda: is_serving(connection))
    assert told() == WORKERS
    assert len(alerts(watched)[before:]) <= ALERTS
    # One of them may be ready before the other.
    eventually(lambda: resumed(watched) == ["worker-0", "worker-1"])


def resumed(stand: Stand) -> list[str]:
    """The processes whose audit log could be written again."""
    return sorted(each["process"] for each in stand.audit() if each["event"] == "auditLogResumed")


def test_a_daemon_that_is_gone(watched: Stand) -> None:
    """Seen by probes, and by an operator who watches."""
    assert watched.daemon is not None
    environment = {**os.environ, **watched.dev.environment()}
    with terminal([HSMCTL, "top"], environment) as top:
        top.shows(b"worker-1")
        watched.daemon.stop(20)
        top.shows(b"away")
        eventually(lambda: not is_ready(watched))
        assert watched.rest("GET", "/healthz").status == 200
        watched.restart_daemon()
        eventually(lambda: is_ready(watched))
        top.shows(b"worker-1")
        top.press(b"q")
        assert top.process.wait(60) == 0


def test_defaults_make_five_seconds_possible() -> None:
    notice = link._PING + token._PING_LIMIT + link._TICK + worker._WATCH_SECONDS
    assert notice + probes.CACHE_SECONDS / 2 <= 5  # the ping and the gateway's look are not in step
    assert link._LONGEST_PAUSE + worker._WATCH_SECONDS + probes.CACHE_SECONDS <= 5
    assert FRESH_SECONDS <= 5
    assert probes.ASK_SECONDS + probes.CACHE_SECONDS <= 5


def state(one: Health, name: str) -> int:
    answer: int = one._state(name)
    return answer


def test_each_service_by_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    serving, not_serving, unknown = 1, 2, 3
    one = Health({"a": PARTS, "b": PARTS - {TOKEN}})
    assert [state(one, name) for name in ("", "a", "b")] == [not_serving] * 3  # nothing was told yet
    one.tell(frozenset())
    assert [state(one, name) for name in ("", "a", "b", "c")] == [serving] * 3 + [unknown]
    one.tell({TOKEN})
    assert [state(one, name) for name in ("", "a", "b")] == [not_serving, not_serving, serving]
    one.tell({AUDIT})
    assert [state(one, name) for name in ("", "a", "b")] == [not_serving] * 3
    one.tell(frozenset())
    now = time.monotonic()
    monkeypatch.setattr("hsmd.api.health.time.monotonic", lambda: now + FRESH_SECONDS + 1)
    assert [state(one, name) for name in ("", "a", "b")] == [not_serving] * 3  # that was long ago
