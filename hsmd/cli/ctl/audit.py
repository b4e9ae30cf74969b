"""`hsmctl audit`: the log of all calls, on the daemon's host: proved, read, searched and given away."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.cli.ctl.newfile import new_file
from hsmd.cli.ctl.outcome import Exit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hsmd.audit.checkpoints import Checkpoint
    from hsmd.audit.search import Form, Found, Wanted
    from hsmd.audit.verify import Report

_Command = TypeVar("_Command", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_POLL_SECONDS = 0.5
_MOST_SHOWN = 1000


def _moment(_context: click.Context, _option: click.Parameter, value: str | None) -> datetime | None:
    """A time of ISO 8601; UTC unless it has a zone."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no time like 2026-11-22T08:00:00Z.") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _place(command: _Command) -> _Command:
    """Where the log is: by the daemon's configuration, or the directory itself."""
    command = click.option(
        "--directory",
        type=click.Path(path_type=Path, file_okay=False, exists=True),
        help="The log's directory, or a copy of it; without it the configuration's.",
    )(command)
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        default=Path("/etc/hsmd/hsmd.toml"),
        show_default=True,
        help="The daemon's configuration, [audit].",
    )(command)


def _filters(command: _Command) -> _Command:
    """What records are wanted."""
    for option in (
        click.option("--until", callback=_moment, help="Before this time."),
        click.option("--since", callback=_moment, help="From this time on, like 2026-11-22T08:00:00Z."),
        click.option("--source", default="", help="The address that it came from."),
        click.option("--request-id", default="", help="The call's id, which its caller was told."),
        click.option("--result", default="", help="OK, or a code like KMS.0205."),
        click.option("--event", default="", help="What was done, like encryptData."),
        click.option("--principal", default="", help="Id or name of who did it."),
        click.option("--key", default="", help="Id of the key, or of what else it was done to."),
    ):
        command = option(command)
    return command


def _directory(config: Path, directory: Path | None) -> Path:
    if directory is not None:
        return directory
    from hsmd.config import load

    return load(config).audit.directory


def _wanted(filters: dict[str, Any]) -> Wanted:
    from hsmd.audit.search import Wanted

    return Wanted(**filters)


@click.group("audit", cls=Group)
def audit() -> None:
    """The audit log, on the daemon's host or in a copy of its directory (docs/audit.md)."""


@audit.command("verify", epilog=example("hsmctl audit verify --key audit-key.pem --checkpoint kept.json"))
@_place
@click.option(
    "--key", "keys", required=True, multiple=True, type=_FILE, help="Public audit key (hsmd audit-key)."
)
@click.option("--checkpoint", "kept", multiple=True, type=_FILE, help="A checkpoint that was kept elsewhere.")
@click.option("--partial", is_flag=True, help="Earlier files may be missing, if a checkpoint counted them.")
@pass_context
def verify(
    context: Context,
    config: Path,
    directory: Path | None,
    keys: Sequence[Path],
    kept: Sequence[Path],
    *,
    partial: bool,
) -> int:
    """Whether every record is there and as it was written.

    Names the first bad record of each process, and ends with 1 when there is one. What stands behind the last
    signed checkpoint can't be proved; it is counted.
    """
    from hsmd.audit import verify as verifier

    try:
        known = verifier.Keys.of([path.read_bytes() for path in keys])
    except ValueError as error:
        raise click.UsageError(f"--key: no public EC key in PEM: {error}") from error
    outside = [each for path in kept for each in _checkpoints(path)]
    report = verifier.verify(_directory(config, directory), known, outside, partial=partial)
    if context.json:
        output.print_json(_document(report))
    else:
        _print(report)
    return Exit.REFUSED if report.faults else Exit.OK


def _checkpoints(path: Path) -> list[Checkpoint]:
    from hsmd.audit.checkpoints import parse

    try:
        return [parse(line) for line in path.read_bytes().splitlines() if line]
    except ValueError as error:
        raise click.UsageError(f"--checkpoint: {path} holds no checkpoint") from error


def _document(report: Report) -> dict[str, Any]:
    last = report.last
    return {
        "whole": not report.faults,
        "records": report.records,
        "checkpoints": report.checkpoints,
        "last_checkpoint": {"seq": last.seq, "time": last.time, "records": last.records, "key": last.key}
        if last
        else None,
        "unsigned": report.unsigned,
        "torn": report.torn,
        "faults": [
            {
                "process": each.chain,
                "seq": each.seq,
                "file": each.file,
                "line": each.line,
                "reason": each.reason,
            }
            for each in report.faults
        ],
        "notices": report.notices,
        "strangers": report.strangers,
    }


def _print(report: Report) -> None:
    for fault in report.faults:
        click.echo(output.clean(f"BAD  {fault}"))
    for each in report.notices:
        text = (
            f"told {each.get('process')}: record {each.get('seq')}: {each.get('event')} {each.get('detail')}"
        )
        click.echo(output.clean(text))
    for name in report.strangers:
        click.echo(output.clean(f"     {name} is no part of the log"))
    for name, size in report.torn.items():
        click.echo(f"     {name}: a last line of {size} bytes has no end: being written, or torn by a crash")
    for name, count in report.unsigned.items():
        click.echo(f"     {name}: {count} records behind the last checkpoint, chained but not signed for yet")
    last = report.last
    signed = f"the last one {last.seq} of {last.time}, by key {last.key[:16]}" if last else "none"
    verdict = "The log is NOT whole" if report.faults else "The log is whole"
    click.echo(f"{verdict}: {report.records} records, {report.checkpoints} checkpoints, {signed}.")


@audit.command("checkpoint", epilog=example("hsmctl audit checkpoint > /mnt/elsewhere/kept.json"))
@_place
def checkpoint(config: Path, directory: Path | None) -> int:
    """Print the last signed checkpoint.

    Kept where this host can't change it, it shows later whether the log was cut behind it.
    """
    from hsmd.audit.checkpoints import last

    found = last(_directory(config, directory))
    if found is None:
        output.say("hsmctl: There is no checkpoint yet.")
        return Exit.REFUSED
    click.echo(found.line)
    return Exit.OK


@audit.command("tail", epilog=example("hsmctl audit tail -n 20 --follow"))
@_place
@_filters
@click.option("-n", "count", type=click.IntRange(0, 100_000), default=10, show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@pass_context
def tail(
    context: Context, /, config: Path, directory: Path | None, count: int, *, follow: bool, **filters: Any
) -> None:
    """The latest records of all processes; with --follow --json one JSON document a line."""
    from hsmd.audit.follow import Follower
    from hsmd.audit.search import Search

    place = _directory(config, directory)
    search = Search(place, _wanted(filters))
    follower = Follower(place, {})
    if follow:
        follower.look()
    _show(context, search.last(count) if count else [], lines=follow)
    while follow:
        found: list[Found] = []

        def take(_name: str, line: bytes, found: list[Found] = found) -> None:
            one = search.take(line)
            if one is not None:
                found.append(one)

        follower.look(take)
        _show(context, sorted(found, key=lambda each: each.place), lines=True)
        time.sleep(_POLL_SECONDS)


@audit.command(
    "search", epilog=example("hsmctl audit search --key KEY_ID --since 2026-11-22 --event decryptData")
)
@_place
@_filters
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    default=_MOST_SHOWN,
    show_default=True,
    help="At most so many.",
)
@pass_context
def search_(context: Context, /, config: Path, directory: Path | None, limit: int, **filters: Any) -> None:
    """Records by key, principal, event, result, time and more, in the order of time."""
    from itertools import islice

    from hsmd.audit.search import Search

    search = Search(_directory(config, directory), _wanted(filters))
    found = list(islice(search, limit))
    _show(context, found)
    _tell_unreadable(search.unreadable)
    if len(found) == limit:
        output.say(f"These are the first {limit}; --limit shows more.")


@audit.command(
    "export", epilog=example("hsmctl audit export --format csv --since 2026-11-01 --out audit.csv")
)
@_place
@_filters
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, allow_dash=True),
    required=True,
    help="File; - for standard output.",
)
@click.option("--force", is_flag=True, help="Replace the file.")
@pass_context
def export_(
    context: Context,
    /,
    config: Path,
    directory: Path | None,
    form: str,
    out: Path,
    *,
    force: bool,
    **filters: Any,
) -> None:
    """Write records to a file: JSON lines as they stand, or CSV."""
    from hsmd.audit.search import export

    place, wanted, kind = _directory(config, directory), _wanted(filters), cast("Form", form)
    if str(out) == "-":
        count, unreadable = export(place, sys.stdout.buffer, kind, wanted)
        sys.stdout.buffer.flush()
    else:
        with new_file(out, force=force) as file:
            count, unreadable = export(place, file, kind, wanted)
    _tell_unreadable(unreadable)
    if context.json and str(out) != "-":
        output.print_json({"records": count, "unreadable": unreadable})
    else:
        output.say(f"{count} records.")


@audit.command("forwarders", epilog=example("hsmctl audit forwarders --config /etc/hsmd/hsmd.toml"))
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("/etc/hsmd/hsmd.toml"),
    show_default=True,
    help="The daemon's configuration, [[audit.forward]].",
)
@pass_context
def forwarders(context: Context, config: Path) -> int:
    """How far each receiver is behind, and what is wrong with it; ends with 1 when something is."""
    from dataclasses import asdict, astuple

    from hsmd.audit.cursors import standing
    from hsmd.config import load

    own = load(config).audit
    found = [standing(own.directory, each.name) for each in own.forward]
    if context.json:
        output.print_json([asdict(each) for each in found])
    else:
        output.print_table(("Receiver", "Behind", "Lost", "Fails since", "Error"), map(astuple, found))
    return Exit.REFUSED if any(each.error for each in found) else Exit.OK


def _tell_unreadable(count: int) -> None:
    if count:
        output.say(f"{count} lines can't be read: see hsmctl audit verify.")


def _show(context: Context, found: Iterable[Found], *, lines: bool = False) -> None:
    if context.json and not lines:
        output.print_json([each.record for each in found])
        return
    for each in found:
        click.echo(each.line if context.json else output.clean(_line(each.record)))


def _line(record: dict[str, Any]) -> str:
    who = record.get("user") or record.get("user_id") or record.get("identity") or "-"
    parts = (
        record.get("time"),
        f"{record.get('process')}#{record.get('seq')}",
        record.get("result"),
        record.get("event"),
        who,
        record.get("source") or "-",
        record.get("resource") or "-",
        f"{record.get('duration_ms')} ms",
        record.get("request_id"),
    )
    return "  ".join(str(each) for each in parts)
