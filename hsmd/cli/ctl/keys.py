"""hsmctl key: create, look at, enable, disable, delete, rename."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from hsmd.algorithms import AGREEMENT, ENCRYPT_DECRYPT, KEY_SPECS, MAC, SIGN_VERIFY
from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context

if TYPE_CHECKING:
    from google.protobuf.message import Message

_USAGES = (ENCRYPT_DECRYPT, SIGN_VERIFY, MAC, AGREEMENT)
_STATES = ("ENABLED", "DISABLED", "PENDING_DELETION", "PENDING_IMPORT", "FROZEN")


@click.group("key", cls=Group)
def keys() -> None:
    """Customer master keys.

    KEY is a key id, alias/NAME or an alias URN.
    """


@keys.command(
    "create",
    epilog=example(
        "hsmctl key create books --description 'the library'", "hsmctl key create seals --spec EC_P256"
    ),
)
@click.argument("alias")
@click.option("--description", default="", help="Up to 255 characters.")
@click.option("--spec", type=click.Choice(list(KEY_SPECS)), default="AES_256", show_default=True)
@click.option(
    "--usage", type=click.Choice(_USAGES), help="What the key is for, where its spec leaves a choice."
)
@click.option("--external", is_flag=True, help="Generate nothing: the key awaits `hsmctl import`.")
@click.option(
    "--keystore", default="", metavar="ID", help="Make it in this dedicated keystore, to stay there."
)
@pass_context
def create(
    context: Context,
    alias: str,
    description: str,
    spec: str,
    usage: str | None,
    *,
    external: bool,
    keystore: str,
) -> None:
    """Generate a key inside the HSM and print its id.

    ALIAS is its name, unique in the project; other commands take it as alias/NAME.
    """
    with context.client() as client:
        origin = "external" if external else ""
        key_id = client.create_key(
            alias,
            description=description,
            spec=spec,
            usage=usage or "",
            origin=origin,
            keystore_id=keystore,
        )
    if context.json:
        output.print_json({"key_id": key_id})
    else:
        click.echo(key_id)


@keys.command("list", epilog=example("hsmctl key list --state enabled"))
@click.option("--state", type=click.Choice(_STATES, case_sensitive=False), help="Only keys in this state.")
@pass_context
def list_(context: Context, state: str | None) -> None:
    """The project's keys, oldest first."""
    with context.client() as client:
        from hsmd.pb.v1 import keys_pb2

        number = getattr(keys_pb2, f"KEY_STATE_{state}") if state else None
        found = [output.document(key) for key in client.list_keys(state=number)]
    if context.json:
        output.print_json({"key_details": found})
        return
    shown = ("key_id", "key_alias", "key_state", "key_spec", "creation_date", "key_description")
    output.print_table(
        ("Key id", "Alias", "State", "Spec", "Created", "Description"),
        [[key[name] for name in shown] for key in found],
    )


@keys.command("show", epilog=example("hsmctl key show alias/books"))
@click.argument("key")
@pass_context
def show(context: Context, key: str) -> None:
    """Everything about one key but its material."""
    with context.client() as client:
        found = output.document(client.describe_key(key))
    if context.json:
        output.print_json(found)
    else:
        output.print_fields((name, value) for name, value in found.items() if value not in (None, ""))


@keys.command("enable", epilog=example("hsmctl key enable alias/books"))
@click.argument("key")
@pass_context
def enable(context: Context, key: str) -> None:
    """Let a disabled key be used again."""
    with context.client() as client:
        _tell(context, client.enable(key), "{key_id} is {key_state}.")


@keys.command("disable", epilog=example("hsmctl key disable alias/books"))
@click.argument("key")
@pass_context
def disable(context: Context, key: str) -> None:
    """Refuse every use of a key until it is enabled again."""
    with context.client() as client:
        _tell(context, client.disable(key), "{key_id} is {key_state}.")


@keys.command("delete", epilog=example("hsmctl key delete alias/books --days 30"))
@click.argument("key")
@click.option("--days", type=click.IntRange(7, 1096), required=True, help="Days until the key is destroyed.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@pass_context
def delete(context: Context, key: str, days: int, *, yes: bool) -> None:
    """Schedule a key's destruction; until then `key cancel-delete` takes it back.

    What is encrypted under the key can't be decrypted meanwhile, nor ever after it is destroyed.
    """
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("Nobody can be asked here: confirm by --yes.")
        click.confirm(f"Destroy {output.clean(key)} in {days} days?", abort=True, err=True)
    with context.client() as client:
        _tell(context, client.schedule_deletion(key, days), "{key_id} is {key_state}.")


@keys.command("cancel-delete", epilog=example("hsmctl key cancel-delete alias/books"))
@click.argument("key")
@pass_context
def cancel_delete(context: Context, key: str) -> None:
    """Take a scheduled deletion back; the key is disabled afterwards."""
    with context.client() as client:
        _tell(context, client.cancel_deletion(key), "{key_id} is {key_state}.")


@keys.command("rename", epilog=example("hsmctl key rename alias/books papers"))
@click.argument("key")
@click.argument("alias")
@pass_context
def rename(context: Context, key: str, alias: str) -> None:
    """Give a key another alias (the bare NAME)."""
    with context.client() as client:
        _tell(context, client.rename(key, alias), "{key_id} is alias/{key_alias}.")


@keys.command("describe", epilog=example("hsmctl key describe alias/books 'the library of the house'"))
@click.argument("key")
@click.argument("description")
@pass_context
def describe(context: Context, key: str, description: str) -> None:
    """Set a key's DESCRIPTION, up to 255 characters."""
    with context.client() as client:
        _tell(context, client.set_description(key, description), "{key_id} is described.")


def _tell(context: Context, answer: Message, sentence: str) -> None:
    found = output.document(answer)
    if context.json:
        output.print_json(found)
    else:
        output.say(sentence.format(**found))
