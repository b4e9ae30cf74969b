"""`scripts/quickstart`: prepares a development HSM, starts daemon and gateway, shows that they work."""

import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console
from rich.markup import escape

from hsmd.cli.children import ChildFailed, Children
from hsmd.cli.demonstration import DemonstrationFailed, demonstrate
from hsmd.cli.ways_in import show
from hsmd.client import ClientError
from hsmd.config import ConfigError
from hsmd.daemon.development import Development, prepare

_READY_SECONDS = 60.0
_GRACE_SECONDS = 20.0  # more than the daemon's own
_PORT = click.IntRange(1, 65535)


class _Ended(BaseException):
    """Ctrl-C or SIGTERM; no Exception, so that nothing on the way takes it for a failure."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".hsmd-dev"),
    show_default=True,
    help="Folder of the development HSM.",
)
@click.option("--grpc-port", type=_PORT, default=7443, show_default=True, help="Port of the daemon.")
@click.option("--rest-port", type=_PORT, default=8443, show_default=True, help="Port of the gateway.")
@click.option("--once", is_flag=True, help="End after the demonstration.")
def main(data: Path, grpc_port: int, rest_port: int, once: bool) -> None:
    """Prepare a development HSM, start hsmd on it, show that it works, and serve until Ctrl-C."""
    console = Console(highlight=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    shown = False
    try:
        _check_ports(grpc_port, rest_port)
        with _alone(data):
            development = prepare(data, grpc_port=grpc_port, rest_port=rest_port)
            console.print(f"Development HSM in [bold]{development.data}[/]", soft_wrap=True)
            with Children(_GRACE_SECONDS) as children, _not_interrupted_while_ending():
                _start(children, development, console)
                for what, result in demonstrate(development):
                    console.print(f"  [green]✓[/] {what:<8}{escape(result)}", soft_wrap=True)
                shown = True
                show(development, console, serving=not once)
                while not once:
                    children.check()
                    time.sleep(0.2)
    except _Ended:
        console.print("\nStopped.")
        sys.exit(0 if shown else 128 + signal.SIGINT)
    except (ChildFailed, ClientError, ConfigError, DemonstrationFailed, OSError) as error:
        Console(stderr=True, highlight=False).print(
            f"[red bold]error:[/] {escape(str(error))}", soft_wrap=True
        )
        sys.exit(1)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Ended


@contextmanager
def _not_interrupted_while_ending() -> Iterator[None]:
    """Let a second Ctrl-C not keep us from ending the children."""
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _check_ports(*ports: int) -> None:
    """Raise ConfigError for a port that is taken; asked early, since workers share theirs by SO_REUSEPORT."""
    if len(set(ports)) < len(ports):
        raise ConfigError(f"--grpc-port and --rest-port are both {ports[0]}: two ports are needed")
    for option, port in zip(("--grpc-port", "--rest-port"), ports, strict=True):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} can't be used ({error.strerror}); choose one by {option}"
                ) from error


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    """Refuse a second quickstart on the same folder."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data / "running.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another quickstart is running on {data}") from None
        yield


def _start(children: Children, development: Development, console: Console) -> None:
    """Start daemon and gateway, one after the other, and wait until they serve."""
    logs = development.data / "log"
    logs.mkdir(mode=0o700, exist_ok=True)
    hsmd = str(Path(sys.executable).with_name("hsmd"))
    for command, what in (("serve", "daemon"), ("gateway", "gateway")):
        log = logs / f"{what}.log"
        argv = [hsmd, command, "--config", str(development.config)]
        with console.status(f"Starting the {what}"):
            children.start(f"The {what}", argv, log, os.environ).wait_until_ready(_READY_SECONDS)
        console.print(f"  [green]✓[/] {'Started':<8}{what}, log in {log}", soft_wrap=True)
    children.check()


if __name__ == "__main__":
    main()
