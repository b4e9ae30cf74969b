"""hsmctl file: envelope encryption of files of any size."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.cli.ctl.newfile import new_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SUFFIX = ".hsmd"


@click.group("file", cls=Group)
def files() -> None:
    """Encrypt and decrypt files of any size.

    Each file gets a key of its own, which a CMK encrypts and which travels in the file. The content never
    leaves this machine; only the file's key goes to the service.
    """


@files.command("encrypt", epilog=example("hsmctl file encrypt --key alias/books shelf.tar"))
@click.argument("file")
@click.option("--key", required=True, help="The CMK: key id, alias/NAME or alias URN.")
@click.option("--out", metavar="FILE", help=f"Output; FILE{_SUFFIX} by default, - for standard output.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@pass_context
def encrypt(context: Context, file: str, key: str, out: str | None, *, force: bool) -> None:
    """Encrypt FILE (- for standard input); FILE itself stays."""
    target = out or ("-" if file == "-" else file + _SUFFIX)
    if target == "-" and sys.stdout.isatty():
        raise click.UsageError("The ciphertext is binary: not for a terminal. Use --out or a pipe.")
    from hsmd.client import files as envelope

    _refuse_json_on_standard_output(context, target)
    with (
        context.client() as client,
        _source(file) as source,
        _target(target, force=force) as destination,
        _progress(source, f"Encrypting {file}") as advance,
    ):
        key_id = envelope.encrypt(client, key, source, destination, advance)
    _tell(context, target, key_id, "encrypted")


@files.command(
    "decrypt",
    epilog=example("hsmctl file decrypt shelf.tar.hsmd", "hsmctl file decrypt --out - a.hsmd | tar x"),
)
@click.argument("file")
@click.option("--key", default="", help="Refuse a file under another CMK than this.")
@click.option(
    "--out", metavar="FILE", help=f"Output; FILE without {_SUFFIX} by default, - for standard output."
)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@pass_context
def decrypt(context: Context, file: str, key: str, out: str | None, *, force: bool) -> None:
    """Decrypt FILE (- for standard input).

    The output appears when the last byte is verified. On standard output data comes out as it is verified:
    that it was all, only exit code 0 tells.
    """
    target = out or _without_suffix(file)
    from hsmd.client import files as envelope

    _refuse_json_on_standard_output(context, target)
    with (
        context.client() as client,
        _source(file) as source,
        _target(target, force=force) as destination,
        _progress(source, f"Decrypting {file}") as advance,
    ):
        key_id = envelope.decrypt(client, source, destination, key_id=key, progress=advance)
    _tell(context, target, key_id, "decrypted")


def _without_suffix(file: str) -> str:
    if file == "-":
        return "-"
    if Path(file).name.endswith(_SUFFIX) and Path(file).name != _SUFFIX:
        return file.removesuffix(_SUFFIX)
    raise click.UsageError(f"{file} does not end in {_SUFFIX}: name the output by --out.")


def _refuse_json_on_standard_output(context: Context, target: str) -> None:
    if context.json and target == "-":
        raise click.UsageError("--json and the data can't both go to standard output.")


@contextmanager
def _source(file: str) -> Iterator[BinaryIO]:
    # Unbuffered: one system call a read, so that Ctrl-C isn't kept waiting by a pipe that gives little.
    if file == "-":
        yield getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        return
    with Path(file).open("rb", buffering=0) as opened:
        yield opened


@contextmanager
def _target(file: str, *, force: bool) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with new_file(Path(file), force=force) as opened:
        yield opened


@contextmanager
def _progress(source: BinaryIO, title: str) -> Iterator[Callable[[int], None]]:
    """A bar on standard error if that is a terminal; what it yields is told the bytes done."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    state = os.fstat(source.fileno())
    total = state.st_size if stat.S_ISREG(state.st_mode) else None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(escape(output.clean(title)), total=total)
        yield lambda done: bar.advance(task, done)
        bar.update(task, completed=total)


def _tell(context: Context, target: str, key_id: str, verb: str) -> None:
    if context.json:
        output.print_json({"file": target, "key_id": key_id})
    elif target != "-":
        output.say(f"{target} {verb} under the key {key_id}.")
