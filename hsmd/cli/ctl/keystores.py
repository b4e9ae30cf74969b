"""hsmctl keystore: create, list, show, enable, disable, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsmd.client import Client
    from hsmd.pb.v1.keystores_pb2 import Keystore, KeystoreStatus

_PAGE = 1000


@click.group("keystore", cls=Group)
def keystores() -> None:
    """Dedicated keystores, whose keys never leave a token of their own.

    KEYSTORE is a keystore's id. Keys are made in it by `key create --keystore`.
    """


@keystores.command("create", epilog=example("hsmctl keystore create vault --cluster hsm-2"))
@click.argument("alias")
@click.option(
    "--cluster", required=True, metavar="ID", help="The cluster_id that the daemon knows its HSM by."
)
@pass_context
def create(context: Context, alias: str, cluster: str) -> None:
    """Make a keystore on a configured HSM that has none yet, and print its id.

    ALIAS is its name, unique in the domain.
    """
    with context.client() as client:
        from hsmd.pb.v1 import keystores_pb2 as pb

        request = pb.CreateKeyStoreRequest(keystore_alias=alias, cluster_id=cluster)
        keystore_id = client.keystores.CreateKeyStore(request).keystore.keystore_id
    if context.json:
        output.print_json({"keystore_id": keystore_id})
    else:
        click.echo(keystore_id)


@keystores.command("list", epilog=example("hsmctl keystore list"))
@pass_context
def list_(context: Context) -> None:
    """The domain's keystores, oldest first."""
    with context.client() as client:
        found = [output.document(each) for each in _all(client)]
    if context.json:
        output.print_json({"keystores": found})
        return
    shown = ("keystore_id", "keystore_alias", "cluster_id", "create_time")
    output.print_table(
        ("Keystore id", "Alias", "Cluster", "Created"), [[each[name] for name in shown] for each in found]
    )


@keystores.command("show", epilog=example("hsmctl keystore show KEYSTORE"))
@click.argument("keystore")
@pass_context
def show(context: Context, keystore: str) -> None:
    """Everything about one keystore."""
    with context.client() as client:
        from hsmd.pb.v1 import keystores_pb2 as pb

        answer = client.keystores.ShowKeyStore(pb.ShowKeyStoreRequest(keystore_id=keystore))
        found = output.document(answer.keystore)
    if context.json:
        output.print_json(found)
    else:
        output.print_fields(found.items())


@keystores.command("enable", epilog=example("hsmctl keystore enable KEYSTORE"))
@click.argument("keystore")
@pass_context
def enable(context: Context, keystore: str) -> None:
    """Let the keys of a disabled keystore be used again."""
    with context.client() as client:
        from hsmd.pb.v1 import keystores_pb2 as pb

        answer = client.keystores.EnableKeyStore(pb.EnableKeyStoreRequest(keystore_id=keystore))
        _tell(context, answer.keystore)


@keystores.command("disable", epilog=example("hsmctl keystore disable KEYSTORE"))
@click.argument("keystore")
@pass_context
def disable(context: Context, keystore: str) -> None:
    """Refuse every use of a keystore's keys, and new ones, until it is enabled again."""
    with context.client() as client:
        from hsmd.pb.v1 import keystores_pb2 as pb

        answer = client.keystores.DisableKeyStore(pb.DisableKeyStoreRequest(keystore_id=keystore))
        _tell(context, answer.keystore)


@keystores.command("delete", epilog=example("hsmctl keystore delete KEYSTORE"))
@click.argument("keystore")
@pass_context
def delete(context: Context, keystore: str) -> None:
    """Delete an empty keystore: its keys are to be deleted before, and their days to come."""
    with context.client() as client:
        from hsmd.pb.v1 import keystores_pb2 as pb

        client.keystores.DeleteKeyStore(pb.DeleteKeyStoreRequest(keystore_id=keystore))
    if context.json:
        output.print_json({"keystore_id": keystore})
    else:
        output.say(f"The keystore {output.clean(keystore)} is deleted.")


def _all(client: Client) -> Iterator[Keystore]:
    from hsmd.pb.v1 import keystores_pb2 as pb

    seen = 0
    while True:
        page = client.keystores.ListKeyStores(pb.ListKeyStoresRequest(limit=_PAGE, offset=seen))
        yield from page.keystores
        seen += len(page.keystores)
        if not page.keystores or seen >= page.total:
            return


def _tell(context: Context, status: KeystoreStatus) -> None:
    found = output.document(status)
    if context.json:
        output.print_json(found)
    else:
        output.say("{keystore_id} is {keystore_state}.".format(**found))
