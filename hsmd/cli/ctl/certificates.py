"""hsmctl certificate: map, list, unmap."""

from __future__ import annotations

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.cli.ctl.users import tell


@click.group("certificate", cls=Group)
def certificates() -> None:
    """As whom client certificates act, in all domains: for operators.

    NAME is like CN:web-1, URI:spiffe://example.org/web, DNS:web.example.org, EMAIL:ann@example.org or
    SUBJECT:CN=web,OU=payments,O=Example. With * in it, for one or more letters, digits, - and _ of one part,
    it is a pattern.
    """


@certificates.command("map", epilog=example("hsmctl certificate map 'DNS:*.example.org' USER-ID PROJECT-ID"))
@click.argument("name")
@click.argument("user_id", metavar="USER-ID")
@click.argument("project_id", metavar="PROJECT-ID")
@pass_context
def map_(context: Context, name: str, user_id: str, project_id: str) -> None:
    """Let certificates of this name act as a user in a project."""
    with context.client() as client:
        from hsmd.pb.v1 import certificates_pb2 as pb

        wanted = pb.CreateCertificateMappingRequest.Mapping(name=name, user_id=user_id, project_id=project_id)
        request = pb.CreateCertificateMappingRequest(mapping=wanted)
        made = output.document(client.certificates.CreateCertificateMapping(request).mapping)
    tell(context, made, f"Certificates {output.clean(name)} act as the user {output.clean(user_id)}.")


@certificates.command("list", epilog=example("hsmctl certificate list"))
@pass_context
def list_(context: Context) -> None:
    """All names and patterns."""
    with context.client() as client:
        from hsmd.pb.v1 import certificates_pb2 as pb

        answer = client.certificates.ListCertificateMappings(pb.ListCertificateMappingsRequest())
        found = [output.document(each) for each in answer.mappings]
    if context.json:
        output.print_json({"mappings": found})
        return
    output.print_table(
        ("Name", "User id", "Project id"),
        [[each["name"], each["user_id"], each["project_id"]] for each in found],
    )


@certificates.command("unmap", epilog=example("hsmctl certificate unmap CN:web-1"))
@click.argument("name")
@pass_context
def unmap(context: Context, name: str) -> None:
    """From the next call on, these certificates are nobody."""
    with context.client() as client:
        from hsmd.pb.v1 import certificates_pb2 as pb

        client.certificates.DeleteCertificateMapping(pb.DeleteCertificateMappingRequest(name=name))
    tell(context, {"name": name}, f"Certificates {output.clean(name)} are nobody.")
