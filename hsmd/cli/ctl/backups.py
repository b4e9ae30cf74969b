"""hsmctl backup: create, show, verify, statement, approve, restore. On the HSM's host, but for approve."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsmd.config import Settings
    from hsmd.daemon.restoring import Looked
    from hsmd.daemon.wiring import Pin

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_config = click.option("--config", required=True, type=_FILE, help="The daemon's configuration.")
_answers = click.option(
    "--answers", type=_FILE, help="Of a ceremony: where operators' UKeys are, for a sealed PIN."
)
_pin_file = click.option(
    "--pin-file", type=_FILE, help="Holds the HSM's PIN; else the configuration says which."
)


@click.group("backup", cls=Group)
def backups() -> None:
    """Backups of store, configuration and wrapped keys.

    A backup is worth nothing without an HSM that holds the root key that it names (`backup show`): the one it
    was made with, or one that `hsmctl ceremony restore` has prepared.
    """


@backups.command("create", epilog=example("hsmctl backup create --config /etc/hsmd/hsmd.toml"))
@_config
@_pin_file
@_answers
@pass_context
def create(context: Context, config: Path, pin_file: Path | None, answers: Path | None) -> None:
    """Make a backup in [backup] directory, while the daemon serves, and print its name.

    Where administrators decide together this is refused: `hsmctl propose create-backup` is due.
    """
    from hsmd.daemon import restoring

    settings = _settings(config)
    made = restoring.create(settings, _pin(settings, pin_file, answers))
    found = {"file": str(made.path), "digest": made.digest, "size": made.size}
    if context.json:
        output.print_json(found)
    else:
        click.echo(made.path)


@backups.command("show", epilog=example("hsmctl backup show FILE"))
@click.argument("file", type=_FILE)
@pass_context
def show(context: Context, file: Path) -> None:
    """What a backup says of itself. Only `verify`, with the HSM, tells whether that is true."""
    from hsmd.daemon import restoring

    opening = restoring.read(file)
    found = _header(opening.header, opening.digest)
    if context.json:
        output.print_json(found)
    else:
        output.print_fields(
            (name.replace("_", " "), output.clean(str(value))) for name, value in found.items()
        )


@backups.command("verify", epilog=example("hsmctl backup verify FILE --config /etc/hsmd/hsmd.toml"))
@click.argument("file", type=_FILE)
@_config
@_pin_file
@_answers
@pass_context
def verify(context: Context, file: Path, config: Path, pin_file: Path | None, answers: Path | None) -> int:
    """Decrypt all of a backup, check every row's seal, unwrap every key in the HSM. Nothing is changed."""
    from hsmd.cli.ctl.outcome import Exit
    from hsmd.daemon import restoring

    settings = _settings(config)
    looked = restoring.verify(settings, _pin(settings, pin_file, answers), file, _told(context))
    _show(context, looked, "The backup is whole.")
    return Exit.REFUSED if looked.trouble else Exit.OK


@backups.command("statement", epilog=example("hsmctl backup statement FILE > restore.json"))
@click.argument("file", type=_FILE)
@click.option(
    "--hours", type=click.FloatRange(0.01, 24 * 30), default=24.0, show_default=True, help="To approve."
)
def statement(file: Path, hours: float) -> None:
    """What administrators sign before this backup is restored on this host."""
    from hsmd.daemon import restoring

    made = restoring.statement(file, hours)
    output.say(made.words)
    click.echo(made.text, nl=False)


@backups.command(
    "approve", epilog=example("hsmctl --ukey 'pkcs11:...' backup approve restore.json > alice.json")
)
@click.argument("statement_file", metavar="STATEMENT", type=_FILE)
@click.option("--yes", is_flag=True, help="Don't ask.")
@pass_context
def approve(context: Context, statement_file: Path, *, yes: bool) -> None:
    """Approve a restore with your UKey; shows in words what is signed. Wherever the UKey is."""
    from hsmd import ukey
    from hsmd.cli.ctl import admin
    from hsmd.domain import restores

    wanted = restores.read_statement(statement_file.read_bytes())
    output.say(wanted.words)
    if not yes:
        click.confirm("Sign this?", abort=True, err=True)
    with admin.own_ukey(context) as token:
        signature = token.sign(wanted.signed)
        click.echo(restores.approval(ukey.fingerprint(token.public_key), signature), nl=False)


@backups.command(
    "restore",
    epilog=example(
        "hsmctl backup restore FILE --config /etc/hsmd/hsmd.toml --statement restore.json \\",
        "  --approval alice.json --approval bob.json",
    ),
)
@click.argument("file", type=_FILE)
@_config
@_pin_file
@_answers
@click.option("--statement", "statement_file", type=_FILE, help="What was approved.")
@click.option(
    "--approval", "approvals", type=_FILE, multiple=True, help="An administrator's; as often as due."
)
@click.option(
    "--files", type=click.Path(path_type=Path), help="A new folder for the configuration and certificates."
)
@click.option("--tolerate", is_flag=True, help="Restore in spite of rows that were broken before.")
@pass_context
def restore(
    context: Context,
    file: Path,
    config: Path,
    pin_file: Path | None,
    answers: Path | None,
    statement_file: Path | None,
    approvals: tuple[Path, ...],
    files: Path | None,
    *,
    tolerate: bool,
) -> None:
    """Bring back the store, where there is none, on a host where no daemon runs.

    Everything is checked first, as `verify` does. Cut short, it has changed nothing, or all is done.
    """
    from hsmd.daemon import restoring
    from hsmd.domain import restores

    settings = _settings(config)
    wanted = restores.read_statement(statement_file.read_bytes()) if statement_file else None
    looked = restoring.restore(
        settings,
        _pin(settings, pin_file, answers),
        file,
        wanted=wanted,
        approvals=[each.read_bytes() for each in approvals],
        files=files,
        tolerant=tolerate,
        told=_told(context),
    )
    _show(context, looked, "The store is restored.")


def _settings(config: Path) -> Settings:
    from hsmd.config import load

    logging.getLogger("hsmd").setLevel(logging.ERROR)  # that the HSM is left in the end is no news here
    return load(config)


def _pin(settings: Settings, pin_file: Path | None, answers: Path | None) -> Pin:
    """The HSM's PIN: from the option; opened by operators' UKeys; as the daemon gets it; or typed unseen."""
    from dataclasses import replace

    from hsmd.config import ConfigError
    from hsmd.daemon import wiring
    from hsmd.daemon.supervisor import harden

    harden()
    if pin_file is not None:
        return wiring.read_pin(replace(settings.hsm, pin_file=pin_file))
    if settings.seal.file is not None:
        from hsmd.cli.ctl import ceremony
        from hsmd.daemon.ceremony import bench

        return wiring.Pin(bench.open_pin(settings, ceremony.party_of(answers)), "sealed")
    try:
        return wiring.read_pin(settings.hsm)
    except ConfigError:
        if settings.hsm.pin_file is not None:
            raise
    return wiring.Pin(str(click.prompt("PIN of the HSM", hide_input=True, err=True)), "typed")


def _told(context: Context) -> Callable[[str], object]:
    return (lambda _text: None) if context.json else (lambda text: output.say(f"{text} ..."))


def _show(context: Context, looked: Looked, done: str) -> None:
    found = {
        **_header(looked.header, looked.digest),
        "rows": sum(looked.rows.values()),
        "keys": looked.rows.get("keys", 0),
        "unwrapped": looked.keys,
        "files": looked.files,
        "approved_by": looked.approved,
        "trouble": looked.trouble,
    }
    if context.json:
        output.print_json(found)
        return
    output.print_fields(
        (name.replace("_", " "), ", ".join(value) if isinstance(value, list) else value)
        for name, value in found.items()
        if value not in ("", [])
    )
    output.say(f"{len(looked.trouble)} things are wrong." if looked.trouble else done)


def _header(header: Any, digest: str) -> dict[str, Any]:
    from datetime import UTC, datetime

    return {
        "digest": digest,
        "created": f"{datetime.fromtimestamp(header.created / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "version": header.version,
        "instance": header.instance,
        "region": header.region,
        "schema": header.schema,
        "root_key": f"{header.root_label} {header.check_value}",
        "administrators_needed": header.needed,
        "administrators": [each.name for each in header.administrators],
    }
