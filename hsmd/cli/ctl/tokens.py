"""hsmctl token: create, show, revoke, revoke-all."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import click

from hsmd.cli.ctl import agencies, output, passwords
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.cli.ctl.users import tell, user_id

if TYPE_CHECKING:
    from hsmd.pb.v1.identity_pb2 import CreateTokenResponse

_TOKEN_FILE = click.argument("token_file", metavar="FILE", type=click.File("r"), default="-")


@click.group("token", cls=Group)
def tokens() -> None:
    """Tokens for REST calls (X-Auth-Token), for a day. FILE holds one; - is standard input."""


@tokens.command(
    "create",
    epilog=example(
        "hsmctl token create ann --of DOMAIN", "hsmctl token create --agency NAME --domain DOMAIN"
    ),
)
@click.argument("user", required=False)
@click.option("--of", metavar="DOMAIN", help="The user's domain, by name; without it USER is an id.")
@passwords.FROM_FILE
@agencies.AS_AGENCY
@agencies.OF_DOMAIN
@click.option("--for-project", metavar="NAME", default="", help="Good in this project; else in the domain.")
@pass_context
def create(
    context: Context,
    user: str | None,
    of: str | None,
    password_file: IO[str] | None,
    agency: str | None,
    domain: str | None,
    for_project: str,
) -> None:
    """Print a token: of USER against its password, or as an agency that you may act as."""
    agencies.check_pair(agency, domain)
    if bool(user) == bool(agency):
        raise click.UsageError("Give either USER or --agency.")
    password = "" if agency else passwords.ask(password_file, confirm=False)
    with context.client() as client:
        from hsmd.pb.v1 import identity_pb2 as pb

        request = pb.CreateTokenRequest()
        proof = request.auth.identity
        if agency and domain:
            proof.methods.append("assume_role")
            proof.assume_role.agency_name, proof.assume_role.domain_name = agency, domain
        else:
            proof.methods.append("password")
            proof.password.user.password = password
            if of:
                proof.password.user.name, proof.password.user.domain.name = user or "", of
            else:
                proof.password.user.id = user or ""
        if for_project:
            request.auth.scope.project.name = for_project
        made = client.identity.CreateToken(request)
    _print(context, made)


@tokens.command("show", epilog=example("hsmctl token show token.txt"))
@_TOKEN_FILE
@pass_context
def show(context: Context, token_file: IO[str]) -> None:
    """Whose a token is, for what and until when."""
    text = token_file.readline().strip()
    with context.client() as client:
        from hsmd.pb.v1 import identity_pb2 as pb

        token = client.identity.ShowToken(pb.ShowTokenRequest(subject_token=text)).token
    document = output.document(token)
    if context.json:
        output.print_json(document)
        return
    output.print_fields(
        [
            ("user", token.user.name),
            ("user_id", token.user.id),
            ("domain", token.user.domain.name),
            ("project", token.project.name),
            ("assumed_by", token.assumed_by.user.name),
            ("roles", ", ".join(each.name for each in token.roles)),
            ("issued_at", document["issued_at"]),
            ("expires_at", document["expires_at"]),
        ]
    )


@tokens.command("revoke", epilog=example("hsmctl token revoke token.txt"))
@_TOKEN_FILE
@pass_context
def revoke(context: Context, token_file: IO[str]) -> None:
    """End a token, and what was made from it."""
    text = token_file.readline().strip()
    with context.client() as client:
        from hsmd.pb.v1 import identity_pb2 as pb

        client.identity.RevokeToken(pb.RevokeTokenRequest(subject_token=text))
    tell(context, {"revoked": True}, "The token is revoked.")


@tokens.command("revoke-all", epilog=example("hsmctl token revoke-all ann"))
@click.argument("user")
@pass_context
def revoke_all(context: Context, user: str) -> None:
    """End every token and temporary access key that a user has now."""
    with context.client() as client:
        from hsmd.pb.v1 import identity_pb2 as pb

        found = user_id(client, user)
        client.identity.RevokeUserTokens(pb.RevokeUserTokensRequest(user_id=found))
    tell(context, {"user_id": found}, f"The tokens of {output.clean(user)} are revoked.")


def _print(context: Context, made: CreateTokenResponse) -> None:
    if context.json:
        output.print_json(output.document(made))
    else:
        click.echo(made.subject_token)
