"""hsmctl db, completion: about the store and the shell."""

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context


@click.group(cls=Group)
def db() -> None:
    """The metadata store, on the daemon's host."""


@db.command(epilog=example("hsmctl db upgrade --config /etc/hsmd/hsmd.toml"))
@click.option("--config", required=True, type=click.Path(path_type=Path), help="The daemon's configuration.")
@pass_context
def upgrade(context: Context, config: Path) -> None:
    """Bring the store to the schema of this version; safe to repeat."""
    from hsmd.config import load
    from hsmd.store import upgrade as upgrade_store

    revision = upgrade_store(load(config).store.url)
    if context.json:
        output.print_json({"revision": revision})
    else:
        output.say(f"The store has schema {revision}.")


@click.command(epilog=example('eval "$(hsmctl completion bash)"'))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Completion for a shell.

    Prints a script that completes commands and options; the shell reads it by eval.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"{shell} is not supported.")
    root = context.find_root()
    click.echo(kind(root.command, {}, "hsmctl", "_HSMCTL_COMPLETE").source())
