"""hsmctl capsule: create, decrypt; what an access point signs is signed here, by its private key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.cli.ctl.newfile import new_file

if TYPE_CHECKING:
    from hsmd.pb.v1.capsules_pb2 import AttestationDocument

_ATTESTED_MINUTES = 5
_LARGEST_FILE = 64 * 1024

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group("capsule", cls=Group)
def capsules() -> None:
    """Data keys that only the access points of a policy get to see.

    KEY is a key id, alias/NAME or an alias URN.
    """


@capsules.command(
    "create", epilog=example("hsmctl capsule create alias/books shelf.capsule --policy ID >shelf.key")
)
@click.argument("key")
@click.argument("capsule", type=click.Path(path_type=Path))
@click.option("--policy", metavar="ID", required=True, help="The key policy that it is bound to.")
@click.option("--bits", type=click.Choice(["128", "256"]), default="256", show_default=True)
@click.option("--force", is_flag=True, help="Replace CAPSULE if it exists.")
@pass_context
def create(context: Context, key: str, capsule: Path, policy: str, bits: str, *, force: bool) -> None:
    """Make a data key, print it in hexadecimal, and write its capsule to the file CAPSULE."""
    with context.client() as client:
        from hsmd.pb.v1 import capsules_pb2 as pb

        request = pb.CreateDataKeyCapsuleRequest(key_id=key, datakey_length=int(bits), policy_id=policy)
        made = client.capsules.CreateDataKeyCapsule(request)
    with new_file(capsule, force=force) as target:
        target.write(made.datakey_capsule)
    if context.json:
        output.print_json(output.document(made))
    else:
        click.echo(made.datakey.hex())


@capsules.command(
    "decrypt", epilog=example("hsmctl capsule decrypt alias/books shelf.capsule --point till.pem")
)
@click.argument("key")
@click.argument("capsule", type=_FILE)
@click.option(
    "--point", type=_FILE, required=True, help="Private key of an access point, as access-point private-key"
)
@pass_context
def decrypt(context: Context, key: str, capsule: Path, point: Path) -> None:
    """Open a capsule as an access point, and print the data key in hexadecimal."""
    with capsule.open("rb") as source:
        data = source.read(_LARGEST_FILE)
    document = _attestation(point, data)
    with context.client() as client:
        from hsmd.pb.v1 import capsules_pb2 as pb

        request = pb.DecryptDataKeyCapsuleRequest(
            key_id=key, datakey_capsule=data, attestation_document=document
        )
        opened = client.capsules.DecryptDataKeyCapsule(request)
    if context.json:
        output.print_json(output.document(opened))
    else:
        click.echo(opened.datakey.hex())


def _attestation(file: Path, capsule: bytes) -> AttestationDocument:
    """Signed for this capsule, for some minutes. Raises click.FileError."""
    from datetime import UTC, datetime, timedelta

    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_private_key,
    )

    from hsmd.attestations import statement
    from hsmd.pb.v1 import capsules_pb2 as pb

    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise click.FileError(str(file), "no private key as PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise click.FileError(str(file), "no key of an access point")
    end = datetime.now(UTC) + timedelta(minutes=_ATTESTED_MINUTES)
    expires = end.strftime("%Y-%m-%dT%H:%M:%SZ")
    return pb.AttestationDocument(
        custom_signature=key.sign(statement(expires, capsule, ""), ec.ECDSA(hashes.SHA256())),
        custom_public_key=key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        expire_time=expires,
    )
