"""hsmctl status, top, log-level: how the node that answers is, on one screen."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Leaf, example, pass_context

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from hsmd.client import Client
    from hsmd.pb.v1 import node_pb2, service_pb2

_SCREEN_SECONDS = 1.0
_WIDTH = 80  # where nobody looks
_UNITS = {"s": 1, "m": 60, "h": 3600}
_COUNTED = ("Answered", "Refused", "Failed")


@click.command(cls=Leaf, epilog=example("hsmctl status --json"))
@pass_context
def status(context: Context) -> None:
    """State of the service.

    Operators see all processes of the node that answers; others its token, what that can do, and the store.
    """
    with context.client() as client:
        found, node = client.status(), _node(client)
    if context.json:
        output.print_json({**output.document(found), "node": node and output.document(node)})
        return
    _console().print(_screen(found, node, None))


@click.command(cls=Leaf, epilog=example("hsmctl top", "hsmctl top --once"))
@click.option("--once", is_flag=True, help="One picture, over one second.")
@pass_context
def top(context: Context, *, once: bool) -> None:
    """What the service is doing, each second anew; for operators. q ends it.

    It goes on while the daemon is away, sealed or started again. Each look is a call, and stands in the audit
    log.
    """
    with context.client() as client:
        if context.json or once or not sys.stdout.isatty():
            before = client.node.ShowNode(_request())
            time.sleep(_SCREEN_SECONDS)
            node = client.node.ShowNode(_request())
            if context.json:
                output.print_json(output.document(node))
            else:
                _console().print(_screen(client.status(), node, before))
            return
        _live(client)


@click.command("log-level", cls=Leaf, epilog=example("hsmctl log-level debug --logger hsmd.hsm --for 10m"))
@click.argument("level", type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False))
@click.option("--logger", default="", help="Of this part only, like hsmd.hsm; of all when not given.")
@click.option("--for", "span", default="10m", show_default=True, help="So long: 30s, 10m, 2h; a day at most.")
@pass_context
def log_level(context: Context, level: str, logger: str, span: str) -> None:
    """Let the daemon log more or less for a while; for operators.

    It counts for all processes of the node that answers, within a second, until the time is over or the
    daemon ends. The last word counts: with --for 1s the configuration's level is back at once.
    """
    with context.client() as client:
        from hsmd.pb.v1 import node_pb2 as pb

        request = pb.SetLogLevelRequest(level=level.upper(), logger=logger, seconds=_seconds(span))
        answer = client.node.SetLogLevel(request)
    if context.json:
        output.print_json(output.document(answer))
    else:
        output.say(f"{answer.log_level} until {answer.until.ToJsonString()}.")


def _seconds(span: str) -> int:
    number, unit = span[:-1], span[-1:]
    if not (number.isascii() and number.isdigit() and unit in _UNITS and len(number) < 6):
        raise click.UsageError(f"--for takes a number and s, m or h, like 10m, not {span!r}.")
    return int(number) * _UNITS[unit]


def _request() -> node_pb2.ShowNodeRequest:
    from hsmd.pb.v1 import node_pb2

    return node_pb2.ShowNodeRequest()


def _node(client: Client) -> node_pb2.ShowNodeResponse | None:
    """What operators see; None for others, and from a service that has no such method."""
    from hsmd.client import ApiError

    try:
        node: node_pb2.ShowNodeResponse = client.node.ShowNode(_request())
    except ApiError as error:
        if error.unanswered:
            raise
        return None
    return node


# Pictures


def _console() -> Any:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


def _screen(
    found: service_pb2.GetStatusResponse,
    node: node_pb2.ShowNodeResponse | None,
    before: node_pb2.ShowNodeResponse | None,
) -> RenderableType:
    """Everything on one screen; with an earlier answer, what has happened since."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in (*_service(found, node), *(_lag(node) if node else ())):
        facts.add_row(name, Text(output.clean(value)))
    return Group(facts, "", _processes(node, before)) if node else facts


def _service(
    found: service_pb2.GetStatusResponse, node: node_pb2.ShowNodeResponse | None
) -> Iterator[tuple[str, str]]:
    state = (node.state if node else found.token.state) or "unknown"
    why = (
        sorted({f"{part} ({each.name})" for each in node.processes for part in each.failing}) if node else []
    )
    yield "hsmd", f"{found.version}, {found.region}: {state}{': ' if why else ''}{', '.join(why)}"
    yield from _token("token", found.token)
    for each in found.keystores:
        yield from _token(f"keystore {each.cluster_id}", each.token)
    yield (
        "root key",
        f"{found.root_key}; PIN from {found.pin_source}" + (f"; seal {node.seal}" if node else ""),
    )
    able = [each.name for each in found.capabilities if each.available]
    lacking = [each.name for each in found.capabilities if not each.available]
    yield "can", f"{', '.join(able)}{'; not ' if lacking else ''}{', '.join(lacking)}"
    versions = f"; {node.protocol}, Python {node.python}" if node else ""
    yield "store", f"{found.store}{versions}"
    if not node:
        yield "worker", f"{found.worker} of {found.workers}, {found.loaded_keys} keys loaded"


def _token(name: str, token: service_pb2.GetStatusResponse.Token) -> Iterator[tuple[str, str]]:
    detail = f": {token.detail}" if token.detail else ""
    since = token.since.ToDatetime().isoformat("T", "seconds") + "Z" if token.HasField("since") else "?"
    yield name, f"{token.label} {token.serial} {token.model} {token.state} since {since}{detail}"
    yield "", token.module


def _lag(node: node_pb2.ShowNodeResponse) -> Iterator[tuple[str, str]]:
    yield (
        "lag",
        f"{node.unsigned_records} audit records without a checkpoint, {node.unsigned_seconds:.0f} s;"
        f" {node.due} jobs due; log {node.log_level}",
    )
    yield "expiry", ", ".join(f"{each.name} {each.days} days" for each in node.certificates)


def _processes(node: node_pb2.ShowNodeResponse, before: node_pb2.ShowNodeResponse | None) -> RenderableType:
    from rich.table import Table

    earlier = {(each.name, each.pid): each for each in before.processes} if before else {}
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("Process", "PID", "Up", "State", "Now", *_COUNTED, "Keys", "p50 ms", "p99 ms"):
        table.add_column(f"{name}/s" if before and name in _COUNTED else name, justify="right", no_wrap=True)
    for each in node.processes:
        table.add_row(*_row(each, earlier.get((each.name, each.pid))))
    return table


def _row(
    process: node_pb2.ShowNodeResponse.Process, before: node_pb2.ShowNodeResponse.Process | None
) -> Sequence[str]:
    from hsmd.domain.board import quantile

    counts = [getattr(process, name.lower()) - getattr(before, name.lower(), 0) for name in _COUNTED]
    past = before.latency if before else [0] * len(process.latency)
    latency = [now - then for now, then in zip(process.latency, past, strict=False)]
    started = process.started.ToMilliseconds() / 1000
    return (
        process.name,
        str(process.pid),
        _span(time.time() - started) if process.pid else "",
        _state(process),
        str(process.running),
        *map(str, counts),
        str(process.loaded_keys),
        *(f"{quantile(latency, part) * 1000:.1f}" if sum(latency) else "" for part in (0.5, 0.99)),
    )


def _state(process: node_pb2.ShowNodeResponse.Process) -> str:
    if process.ready:
        return "ready"
    return "not ready" if process.failing else "gone"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{max(seconds, 0):.0f}s"


# Live


def _live(client: Client) -> None:
    from rich.live import Live
    from rich.text import Text

    from hsmd.client import ApiError

    before: node_pb2.ShowNodeResponse | None = None
    with _Keys() as keys, Live(console=_console(), screen=True, auto_refresh=False) as live:
        while True:
            picture: Any
            try:
                node = client.node.ShowNode(_request(), timeout=2)
                picture = _screen(client.status(), node, before)
                before = node
            except ApiError as error:
                if not error.unanswered:
                    raise
                picture, before = Text(f"away: {output.clean(error.message)}", style="bold red"), None
            live.update(picture, refresh=True)
            if keys.quit(_SCREEN_SECONDS):
                return


class _Keys:
    """The keyboard, a key at a time; none where standard input is no terminal."""

    def __enter__(self) -> _Keys:
        import termios
        import tty

        self._before: list[Any] | None = None
        if sys.stdin.isatty():
            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(self, *_: object) -> None:
        import termios

        if self._before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def quit(self, seconds: float) -> bool:
        """Wait for so long; whether q was pressed."""
        import select

        end = time.monotonic() + seconds
        while self._before is not None and (left := end - time.monotonic()) > 0:
            if select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in ("q", "Q", ""):
                return True
        if self._before is None:
            time.sleep(seconds)
        return False
