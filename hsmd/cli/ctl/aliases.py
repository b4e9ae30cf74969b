"""hsmctl alias: create, delete, associate, list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsmd.client import Client
    from hsmd.pb.v1.aliases_pb2 import Alias

_PAGE = 1000


@click.group("alias", cls=Group)
def aliases() -> None:
    """Further names of keys, which can move from key to key.

    ALIAS is alias/NAME; KEY is a key id, alias/NAME or an alias URN. A key's own name, given when it was
    created, is changed by `hsmctl key rename`.
    """


@aliases.command("create", epilog=example("hsmctl alias create alias/current-books alias/books-2024"))
@click.argument("alias")
@click.argument("key")
@pass_context
def create(context: Context, alias: str, key: str) -> None:
    """Give KEY one more name, ALIAS."""
    with context.client() as client:
        from hsmd.pb.v1 import aliases_pb2 as pb

        _tell(context, client.aliases.CreateAlias(pb.CreateAliasRequest(key_id=key, alias=alias)))


@aliases.command("delete", epilog=example("hsmctl alias delete alias/books-2024 alias/current-books"))
@click.argument("key")
@click.argument("names", metavar="ALIAS...", nargs=-1, required=True)
@pass_context
def delete(context: Context, key: str, names: tuple[str, ...]) -> None:
    """Take names away from KEY, all of them or none."""
    with context.client() as client:
        from hsmd.pb.v1 import aliases_pb2 as pb

        client.aliases.DeleteAlias(pb.DeleteAliasRequest(key_id=key, aliases=names))
    if context.json:
        output.print_json({"deleted": list(names)})
    else:
        output.say(f"{', '.join(names)} deleted.")


@aliases.command("associate", epilog=example("hsmctl alias associate alias/current-books alias/books-2025"))
@click.argument("alias")
@click.argument("key")
@pass_context
def associate(context: Context, alias: str, key: str) -> None:
    """Move ALIAS to KEY, which must be of the same spec and usage.

    In force for the next call. What was encrypted before names its own key and is decrypted as ever.
    """
    with context.client() as client:
        from hsmd.pb.v1 import aliases_pb2 as pb

        _tell(
            context, client.aliases.AssociateAlias(pb.AssociateAliasRequest(alias=alias, target_key_id=key))
        )


@aliases.command("list", epilog=example("hsmctl alias list", "hsmctl alias list alias/books-2024"))
@click.argument("key", default="")
@pass_context
def list_(context: Context, key: str) -> None:
    """The aliases of KEY, or of the project, by name."""
    with context.client() as client:
        found = [output.document(each) for each in _all(client, key)]
    if context.json:
        output.print_json({"aliases": found})
        return
    shown = ("alias", "key_id", "create_time", "update_time")
    output.print_table(
        ("Alias", "Key id", "Created", "Moved"), [[each[name] for name in shown] for each in found]
    )


def _all(client: Client, key: str) -> Iterator[Alias]:
    from hsmd.pb.v1 import aliases_pb2 as pb

    marker = ""
    while True:
        request = pb.ListAliasesRequest(key_id=key, limit=_PAGE, marker=marker)
        response: pb.ListAliasesResponse = client.aliases.ListAliases(request)
        for page in response.body:
            yield from page.aliases
            marker = page.page_info.next_marker
        if not marker:
            return


def _tell(context: Context, alias: Alias) -> None:
    if context.json:
        output.print_json(output.document(alias))
    else:
        output.say(f"{alias.alias} names {alias.key_id}.")
