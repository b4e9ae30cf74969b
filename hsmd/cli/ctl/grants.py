"""hsmctl grant: create, list, revoke, retire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsmd.client import Client
    from hsmd.pb.v1.grants_pb2 import Grant

_PAGE = 1000
_OPERATIONS = (
    *("create-datakey", "create-datakey-without-plaintext", "encrypt-datakey", "decrypt-datakey"),
    *("describe-key", "create-grant", "retire-grant", "encrypt-data", "decrypt-data"),
    *("sign", "verify", "generate-mac", "verify-mac", "get-publickey"),
)


@click.group("grant", cls=Group)
def grants() -> None:
    """Leave for others to use one key.

    KEY is a key id, alias/NAME or an alias URN; who is not the key's owner names it by its id.
    """


@grants.command(
    "create", epilog=example("hsmctl grant create alias/books --user ID encrypt-data decrypt-data")
)
@click.argument("key")
@click.argument("operations", metavar="OPERATION...", nargs=-1, required=True, type=click.Choice(_OPERATIONS))
@click.option("--user", metavar="ID", help="Grant to this user.")
@click.option("--domain", metavar="ID", help="Grant to all users of this domain.")
@click.option("--name", default="", help="A name for the grant.")
@click.option("--retiring", metavar="ID", default="", help="A user who may retire the grant.")
@pass_context
def create(
    context: Context,
    key: str,
    operations: tuple[str, ...],
    user: str | None,
    domain: str | None,
    name: str,
    retiring: str,
) -> None:
    """Let a user or a domain do operations with a key, and print the grant's id.

    Their users name the key by its id, from a project of their own.
    """
    grantee = user or domain
    if grantee is None or (user and domain):
        raise click.UsageError("Give one of --user and --domain.")
    with context.client() as client:
        from hsmd.pb.v1 import grants_pb2 as pb

        request = pb.CreateGrantRequest(
            key_id=key,
            grantee_principal=grantee,
            grantee_principal_type=pb.PRINCIPAL_TYPE_USER if user else pb.PRINCIPAL_TYPE_DOMAIN,
            operations=[f"GRANT_OPERATION_{each.upper().replace('-', '_')}" for each in operations],
            name=name,
            retiring_principal=retiring,
        )
        grant_id = str(client.grants.CreateGrant(request).grant_id)
    if context.json:
        output.print_json({"grant_id": grant_id})
    else:
        click.echo(grant_id)


@grants.command("list", epilog=example("hsmctl grant list alias/books", "hsmctl grant list --retirable"))
@click.argument("key", required=False)
@click.option("--retirable", is_flag=True, help="Grants, of any key, that you may retire.")
@pass_context
def list_(context: Context, key: str | None, *, retirable: bool) -> None:
    """The grants of a key, or those that you may retire, oldest first."""
    if retirable == (key is not None):
        raise click.UsageError("Give either KEY or --retirable.")
    with context.client() as client:
        found = [output.document(each) for each in _all(client, key)]
    if context.json:
        output.print_json({"grants": found})
        return
    output.print_table(
        ("Grant id", "Key id", "Grantee", "Kind", "Operations", "Created", "Name"),
        [
            [
                *(each["grant_id"], each["key_id"]),
                *(each["grantee_principal"], each["grantee_principal_type"]),
                *(" ".join(each["operations"]), each["creation_date"], each["name"]),
            ]
            for each in found
        ],
    )


@grants.command("revoke", epilog=example("hsmctl grant revoke alias/books GRANT"))
@click.argument("key")
@click.argument("grant")
@pass_context
def revoke(context: Context, key: str, grant: str) -> None:
    """End a grant of a key of yours, or one that you made."""
    with context.client() as client:
        from hsmd.pb.v1 import grants_pb2 as pb

        client.grants.RevokeGrant(pb.RevokeGrantRequest(key_id=key, grant_id=grant))
    _tell(context, grant, "revoked")


@grants.command("retire", epilog=example("hsmctl grant retire KEY GRANT"))
@click.argument("key")
@click.argument("grant")
@pass_context
def retire(context: Context, key: str, grant: str) -> None:
    """End a grant that names you for that: see `grant list --retirable`."""
    with context.client() as client:
        from hsmd.pb.v1 import grants_pb2 as pb

        client.grants.RetireGrant(pb.RetireGrantRequest(key_id=key, grant_id=grant))
    _tell(context, grant, "retired")


def _all(client: Client, key: str | None) -> Iterator[Grant]:
    """Page by page: grants of the key, or those that the caller may retire."""
    from hsmd.pb.v1 import grants_pb2 as pb

    marker = 0
    while True:
        answer: pb.ListGrantsResponse | pb.ListRetirableGrantsResponse
        if key is None:
            retirable = pb.ListRetirableGrantsRequest(limit=_PAGE, marker=marker)
            answer = client.grants.ListRetirableGrants(retirable)
        else:
            answer = client.grants.ListGrants(pb.ListGrantsRequest(key_id=key, limit=_PAGE, marker=marker))
        yield from answer.grants
        if not answer.truncated:
            return
        marker = int(answer.next_marker)


def _tell(context: Context, grant: str, done: str) -> None:
    if context.json:
        output.print_json({"grant_id": grant})
    else:
        output.say(f"The grant {output.clean(grant)} is {done}.")
