"""Clients that open calls and say nothing, or open streams and stay: nobody else waits for them."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hsmd.api import service
from hsmd.api.health import Health
from hsmd.api.methods import methods_of
from hsmd.api.patience import Patience
from hsmd.api.pipeline import Pipeline
from hsmd.api.pool import Pool
from hsmd.domain.board import Board
from hsmd.domain.readiness import PARTS, TOKEN
from hsmd.pb.v1 import service_pb2
from tests.faults import processes
from tests.load import is_serving
from tests.stand import Stand, eventually, standing
from tests.test_daemon_doors import channel

_SETTINGS = {
    "HSMD__GRPC__WORKERS": "1",
    "HSMD__GRPC__THREADS": "2",
    "HSMD__GRPC__WAITING_CALLS": "60",
}
_CANCELLED = grpc.StatusCode.CANCELLED
_SILENT_METHODS = (
    "/hsmd.v1.Crypto/EncryptData",
    "/hsmd.v1.Service/ListVersions",
    "/grpc.health.v1.Health/Check",
)


@contextmanager
def silence() -> Iterator[Iterator[Any]]:
    """Messages that never come, until the block ends."""
    over = threading.Event()

    def never() -> Iterator[Any]:
        over.wait()
        yield from ()

    try:
        yield never()
    finally:
        over.set()


def many(one: Any, stack: ExitStack, count: int) -> list[Any]:
    """Calls with headers and no message."""
    calls = []
    for number in range(count):
        call = one.stream_unary(_SILENT_METHODS[number % len(_SILENT_METHODS)])
        calls.append(call.future(stack.enter_context(silence()), timeout=300))
    return calls


def threads(stand: Stand) -> int:
    """How many threads of the worker serve calls."""
    (worker,) = [pid for pid, kind in processes(stand, workers=1).items() if kind == "worker"]
    return len(list(Path(f"/proc/{worker}/task").iterdir()))


def codes(calls: list[Any]) -> list[grpc.StatusCode]:
    return [call.exception(60).code() for call in calls]


@pytest.mark.timeout(300)
def test_silent_calls_starve_nobody_and_end(tmp_path: Path) -> None:
    with (
        standing(tmp_path, _SETTINGS, gateway=False) as stand,
        stand.client() as client,
        channel(stand) as silent,
        channel(stand) as other,
        ExitStack() as stack,
    ):
        key = client.create_key("key")
        assert is_serving(other)
        before = threads(stand)
        calls = many(silent, stack, 24)
        eventually(lambda: threads(stand) >= before + 20)  # spares for those that wait
        for number in range(20):
            blob = client.encrypt(key, b"data %d" % number)
            assert client.decrypt(blob) == b"data %d" % number
            assert is_serving(other)
        assert codes(calls) == [_CANCELLED] * len(calls)
        # gRPC itself may have one more, and others for a while.
        eventually(lambda: threads(stand) <= before + 2, 90)
        assert client.decrypt(blob) == b"data 19"
        assert "calls without a message are ended, from ipv4:127.0.0.1:" in stand.log()


@pytest.mark.timeout(300)
def test_more_silent_calls_than_the_server_takes(tmp_path: Path) -> None:
    settings = {**_SETTINGS, "HSMD__GRPC__WAITING_CALLS": "30"}
    with (
        standing(tmp_path, settings, gateway=False) as stand,
        channel(stand) as silent,
        channel(stand) as other,
        ExitStack() as stack,
    ):
        calls = many(silent, stack, 60)
        seen = codes(calls)
        assert set(seen) == {_CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert seen.count(_CANCELLED) >= 32
        assert is_serving(other)


@pytest.mark.timeout(300)
def test_open_streams_hold_nobody_up(tmp_path: Path) -> None:
    with (
        standing(tmp_path, _SETTINGS, gateway=False) as stand,
        stand.client() as client,
        channel(stand) as one,
        channel(stand) as other,
        ExitStack() as stack,
    ):
        key = client.create_key("key")
        before = threads(stand)
        reflect = reflection_pb2_grpc.ServerReflectionStub(one).ServerReflectionInfo
        watch = health_pb2_grpc.HealthStub(one).Watch
        reflections = [reflect(stack.enter_context(silence()), timeout=300) for _ in range(12)]
        watchers = [watch(health_pb2.HealthCheckRequest(), timeout=300) for _ in range(24)]
        watched = [_first(each) for each in watchers]
        for _ in range(10):
            assert client.decrypt(client.encrypt(key, b"data")) == b"data"
            assert is_serving(other)
        eventually(lambda: sum(each.done() for each in reflections) == 8)  # four may stay
        assert {each.code() for each in reflections if each.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert sum(each is not None for each in watched) == 16
        refused = [each.code() for each in watchers if each.done()]
        assert refused == [grpc.StatusCode.UNIMPLEMENTED] * 8  # they go on without watching
        for each in (*reflections, *watchers):
            each.cancel()
        eventually(lambda: threads(stand) <= before + 2, 90)
        (listed,) = reflect(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=20)
        assert listed.list_services_response.service
        assert next(watch(health_pb2.HealthCheckRequest(), timeout=20)).status == 1


def _first(call: Any) -> Any:
    """The stream's first message; None where there is no room for it."""
    try:
        return next(call)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        return None


# Parts


@contextmanager
def serving(handlers: dict[str, Any], patience: Patience) -> Iterator[Any]:
    """A gRPC server of a service named test.Parts."""
    server = grpc.server(patience.pool)  # type: ignore[arg-type]  # only submit() of it is used
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Parts", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as one:
        yield one
    server.stop(None).wait()


def test_the_first_message_is_the_call() -> None:
    patience = Patience(Pool(2, 4), 60)
    with serving({"Call": patience.once(lambda raw, _: raw + b"!")}, patience) as one:
        assert one.unary_unary("/test.Parts/Call")(b"", timeout=20) == b"!"
        call = one.stream_unary("/test.Parts/Call")
        assert call(iter([b"one", b"two"]), timeout=20) == b"one!"
        with pytest.raises(grpc.RpcError) as refused:
            call(iter([]), timeout=20)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_late_message_is_not_served(caplog: pytest.LogCaptureFixture) -> None:
    patience, served = Patience(Pool(1, 4), 0.0), []
    with (
        serving({"Call": patience.once(lambda raw, _: served.append(raw))}, patience) as one,
        silence() as never,
        caplog.at_level(logging.WARNING),
    ):
        call = one.stream_unary("/test.Parts/Call").future(never)
        eventually(lambda: tended(patience) and call.done())
        assert call.exception(20).code() is _CANCELLED
    assert not served
    assert "1 calls without a message are ended, from ipv4:127.0.0.1:" in caplog.text


def test_silent_calls_in_a_crowd_end_long_before_their_time() -> None:
    patience = Patience(Pool(1, 4), 3600)
    with (
        serving({"Call": patience.once(lambda raw, _: raw)}, patience) as one,
        ExitStack() as stack,
    ):
        nevers = [stack.enter_context(silence()) for _ in range(3)]  # more than half of the spare threads
        calls = [one.stream_unary("/test.Parts/Call").future(each) for each in nevers]
        eventually(lambda: tended(patience) and any(call.done() for call in calls))
        assert _CANCELLED in {call.exception(20).code() for call in calls if call.done()}


def test_streams_end_when_their_time_is_over() -> None:
    patience = Patience(Pool(1, 4), 60)
    handler = patience.stream(
        lambda messages, _: messages,
        bytes,
        bytes,
        most=1,
        seconds=0.5,
        full=grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
    with serving({"Echo": handler}, patience) as one, silence() as never:
        first = one.stream_stream("/test.Parts/Echo")(never)
        eventually(lambda: tended(patience) and first.done())
        assert first.code() is _CANCELLED
        echo = one.stream_stream("/test.Parts/Echo")
        assert eventually(lambda: _echoed(echo)) == [b"a", b"b"]  # its place is free again


def tended(patience: Patience) -> bool:
    patience.tend()
    return True


def _echoed(echo: Callable[..., Any]) -> list[bytes]:
    try:
        return list(echo(iter([b"a", b"b"]), timeout=20))
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017 -- anything else is wrong
        return []


def test_watchers_are_told_of_changes_only() -> None:
    patience, health = Patience(Pool(3, 4), 60), Health({"some.Service": PARTS})
    with serving(health.handlers(patience), patience) as one:
        ask = health_pb2.HealthCheckRequest
        watch = one.unary_stream(
            "/test.Parts/Watch", ask.SerializeToString, health_pb2.HealthCheckResponse.FromString
        )
        known, unknown = (
            watch(ask(service="some.Service"), timeout=60),
            watch(ask(service="none"), timeout=60),
        )
        assert next(known).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        for failing, status in ((set(), 1), ({TOKEN}, 2), (set(), 1)):
            health.tell(failing)
            health.tell(failing)  # says nothing new, so nothing is sent
            assert next(known).status == status
        known.cancel()
        unknown.cancel()


def test_the_pool_lives_on_when_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(1, 4)

    def none(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        pool.have_spares(2)
    assert pool.submit(threading.get_ident).result(20)
    pool.have_spares(2)
    meeting = threading.Barrier(3)
    assert {each.result(20) for each in [pool.submit(meeting.wait, 20) for _ in range(3)]} == {0, 1, 2}


def test_whatever_the_audit_raises_is_an_internal_error() -> None:
    class Broken:
        def append(self, record: Any, timeout: float) -> None:
            raise OSError("a path that nobody is to see")

    core: Any = SimpleNamespace(
        token=SimpleNamespace(within=lambda _: nullcontext()),
        refresh=lambda: None,
        keyring=SimpleNamespace(moment=0),
        board=Board(),
    )
    pipeline = Pipeline(core, Broken(), lambda *_: SimpleNamespace(source=""), process="test", deadline=20)
    (method,) = [each for _, each in methods_of(service.SERVICE) if each.name.endswith("/ListVersions")]
    patience = Patience(Pool(1, 4), 60)
    handle = pipeline.handler(method, lambda *_: service_pb2.ListVersionsResponse())
    with serving({"Call": patience.once(handle)}, patience) as one, pytest.raises(grpc.RpcError) as refused:
        one.unary_unary("/test.Parts/Call")(b"", timeout=20)
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert "nobody" not in str(refused.value)
