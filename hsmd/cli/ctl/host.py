"""hsmctl status, db, completion: about the service, the store and the shell."""

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, Leaf, example, pass_context


@click.command(cls=Leaf, epilog=example("hsmctl status --json"))
@pass_context
def status(context: Context) -> None:
    """State of the service.

    Shown is the worker that answers: its token, what that can do, the store.
    """
    with context.client() as client:
        found = output.document(client.status())
    if context.json:
        output.print_json(found)
        return
    token = found.pop("token") or {}
    capabilities, keystores = found.pop("capabilities"), found.pop("keystores")
    rows = [*found.items(), *((f"token {name}", value) for name, value in token.items())]
    output.print_fields((name.replace("_", " "), value) for name, value in rows if value not in (None, ""))
    click.echo()
    output.print_table(
        ("Capability", "Available", "Detail"),
        [(each["name"], each["available"], each["detail"]) for each in capabilities],
    )
    if keystores:
        click.echo()
        output.print_table(
            ("Keystore cluster", "Token", "Serial", "State", "Since", "Detail"),
            [
                (
                    each["cluster_id"],
                    *(each["token"][name] for name in ("label", "serial", "state", "since", "detail")),
                )
                for each in keystores
            ],
        )


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
