"""hsmctl sign, verify, public-key: files and pipes of any size, hashed here, signed in the HSM."""

from __future__ import annotations

import hashlib
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from hsmd.algorithms import KEY_SPECS, SIGNATURE_ALGORITHMS, SignatureAlgorithm
from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Leaf, example, pass_context
from hsmd.cli.ctl.data import binary, deliver, given
from hsmd.cli.ctl.outcome import Exit

if TYPE_CHECKING:
    from hsmd.client import Client

_LONGEST_MESSAGE = 4096  # of algorithms that hash by themselves: the message goes as it is


class _Message(NamedTuple):
    data: bytes
    is_digest: bool


def _signed(command: Any) -> Any:
    for option in (
        click.option("--digest", is_flag=True, help="The input is the digest of what is signed."),
        click.option(
            "--algorithm",
            type=click.Choice(list(SIGNATURE_ALGORITHMS)),
            help="By default RSASSA_PSS_SHA_256, and what fits an EC key's curve.",
        ),
        click.option("--in", "source", metavar="FILE", default="-", help="Input, instead of standard input."),
        click.option("--key", required=True, help="Key id, alias/NAME or alias URN."),
    ):
        command = option(command)
    return command


@click.command(cls=Leaf, epilog=example("hsmctl sign --key alias/seals --in letter --out letter.sig"))
@_signed
@click.option("--out", "target", metavar="FILE", default="-", help="Output, instead of standard output.")
@click.option("--force", is_flag=True, help="Replace FILE of --out if it exists.")
@pass_context
def sign(
    context: Context, key: str, algorithm: str | None, source: str, target: str, *, digest: bool, force: bool
) -> None:
    """Sign a file or standard input.

    The signature is binary in files and pipes, base64 on a terminal: PKCS#1 or PSS for RSA, DER for ECDSA.
    """
    with context.client() as client:
        chosen = _algorithm(client, key, algorithm)
        message = _message(chosen, source, digest=digest)
        signature = client.sign(key, chosen.name, message.data, digest=message.is_digest)
    if context.json:
        output.print_json({"signing_algorithm": chosen.name, "signature": output.base64_text(signature)})
    elif target == "-" and sys.stdout.isatty():
        click.echo(output.base64_text(signature))
    else:
        deliver(signature, target, force=force)


@click.command(cls=Leaf, epilog=example("hsmctl verify --key alias/seals --in letter --signature letter.sig"))
@_signed
@click.option("--signature", metavar="FILE", required=True, help="The signature, binary or base64.")
@pass_context
def verify(
    context: Context, key: str, algorithm: str | None, source: str, signature: str, *, digest: bool
) -> int:
    """Verify a signature of a file or of standard input.

    The exit code is 0 when it is valid, 1 when it is not.
    """
    if source == signature == "-":
        raise click.UsageError("Standard input can't be both: give --in or --signature a file.")
    with context.client() as client:
        chosen = _algorithm(client, key, algorithm)
        made = binary(given(None, signature))
        message = _message(chosen, source, digest=digest)
        valid = client.verify(key, chosen.name, message.data, made, digest=message.is_digest)
    if context.json:
        output.print_json({"signing_algorithm": chosen.name, "signature_valid": valid})
    else:
        output.say("The signature is valid." if valid else "The signature is NOT valid.")
    return Exit.OK if valid else Exit.REFUSED


@click.command("public-key", cls=Leaf, epilog=example("hsmctl public-key alias/seals >seals.pem"))
@click.argument("key")
@pass_context
def public_key(context: Context, key: str) -> None:
    """Print a key pair's public key as PEM.

    KEY is a key id, alias/NAME or an alias URN.
    """
    with context.client() as client:
        pem = client.public_key(key)
    if context.json:
        output.print_json({"public_key": pem})
    else:
        click.echo(pem, nl=False)


COMMANDS = (sign, verify, public_key)


def _algorithm(client: Client, key: str, name: str | None) -> SignatureAlgorithm:
    if name:
        return SIGNATURE_ALGORITHMS[name]
    spec = str(output.document(client.describe_key(key))["key_spec"])
    row = KEY_SPECS.get(spec)
    fitting = [each for each in SIGNATURE_ALGORITHMS.values() if row and each.kind == row.kind]
    if row is None or not fitting:
        raise click.UsageError(f"The key is {spec}: it does not sign.")
    of_its_size = [each for each in fitting if row.kind == "ec" and each.hash == f"sha{row.bits}"]
    return (of_its_size or fitting)[0]


def _message(algorithm: SignatureAlgorithm, source: str, *, digest: bool) -> _Message:
    with nullcontext(sys.stdin.buffer) if source == "-" else Path(source).open("rb") as opened:
        file: Any = opened  # file_digest's own protocol has what every binary file has
        if algorithm.hash and not digest:
            return _Message(hashlib.file_digest(file, algorithm.hash).digest(), is_digest=True)
        data = file.read(_LONGEST_MESSAGE + 1)
    if len(data) > _LONGEST_MESSAGE:
        raise click.UsageError(f"{algorithm.name} signs up to {_LONGEST_MESSAGE} bytes.")
    return _Message(data, is_digest=digest)
