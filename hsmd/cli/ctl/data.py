"""hsmctl encrypt, decrypt, random: small data, to and from arguments, files and pipes."""

from __future__ import annotations

import base64
import binascii
import re
import sys
from pathlib import Path
from typing import Any

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Leaf, example, pass_context
from hsmd.cli.ctl.newfile import new_file

_LARGEST_INPUT = 1 << 20  # as much as one call carries; the service names its own, smaller limits
_LARGEST_RANDOM = 1 << 20
_BASE64 = re.compile(rb"[A-Za-z0-9+/\s]+={0,2}\s*")


def _in_and_out(command: Any) -> Any:
    for option in (
        click.option("--force", is_flag=True, help="Replace FILE of --out if it exists."),
        click.option(
            "--out", "target", metavar="FILE", default="-", help="Output, instead of standard output."
        ),
        click.option("--in", "source", metavar="FILE", default="-", help="Input, instead of standard input."),
        click.option(
            "--aad", default="", metavar="TEXT", help="Additional authenticated data, up to 128 bytes."
        ),
    ):
        command = option(command)
    return command


@click.command(
    cls=Leaf,
    epilog=example(
        "hsmctl encrypt --key alias/books 'a secret'", "hsmctl encrypt --key alias/books <pin >pin.enc"
    ),
)
@click.argument("text", required=False)
@click.option("--key", required=True, help="Key id, alias/NAME or alias URN.")
@_in_and_out
@click.option("--base64", "as_base64", is_flag=True, help="Write base64 wherever it goes.")
@pass_context
def encrypt(
    context: Context,
    text: str | None,
    key: str,
    aad: str,
    source: str,
    target: str,
    *,
    force: bool,
    as_base64: bool,
) -> None:
    """Encrypt 1 to 4096 bytes.

    They are TEXT, a file or standard input. The ciphertext is binary in files and pipes, base64 on a
    terminal.
    """
    data = given(text, source)
    with context.client() as client:
        blob = client.encrypt(key, data, aad.encode())
    if context.json:
        output.print_json({"cipher_text": base64.b64encode(blob).decode()})
        return
    if as_base64 or (target == "-" and sys.stdout.isatty()):
        blob = base64.b64encode(blob) + b"\n"
    deliver(blob, target, force=force)


@click.command(cls=Leaf, epilog=example("hsmctl decrypt <pin.enc"))
@click.argument("ciphertext", required=False)
@click.option("--key", default="", help="Refuse what was encrypted under another key.")
@_in_and_out
@pass_context
def decrypt(
    context: Context, ciphertext: str | None, key: str, aad: str, source: str, target: str, *, force: bool
) -> None:
    """Decrypt what encrypt made.

    CIPHERTEXT is base64; a file or standard input may be binary or base64.
    """
    blob = binary(given(ciphertext, source))
    with context.client() as client:
        data = client.decrypt(blob, aad.encode(), key)
    if context.json:
        output.print_json({"plain_text_base64": base64.b64encode(data).decode()})
    elif target == "-" and sys.stdout.isatty():
        click.echo(_readable(data))
    else:
        deliver(data, target, force=force)


@click.command(cls=Leaf, epilog=example("hsmctl random 32 >seed", "hsmctl random 16 --hex"))
@click.argument("size", metavar="N", type=click.IntRange(1, _LARGEST_RANDOM))
@click.option("--hex", "as_hex", is_flag=True, help="Write hexadecimal wherever it goes.")
@pass_context
def random(context: Context, size: int, *, as_hex: bool) -> None:
    """N random bytes from the HSM.

    Binary in files and pipes, hexadecimal on a terminal.
    """
    with context.client() as client:
        data = client.random(size)
    if context.json:
        output.print_json({"random_data": data.hex()})
    elif as_hex or sys.stdout.isatty():
        click.echo(data.hex())
    else:
        deliver(data, "-", force=False)


def given(argument: str | None, source: str) -> bytes:
    """What was given as an argument, in a file, or by standard input ("-")."""
    if argument is not None:
        if source != "-":
            raise click.UsageError("Give the data as an argument or by --in, not both.")
        return argument.encode()
    if source == "-":
        data = sys.stdin.buffer.read(_LARGEST_INPUT + 1)
    else:
        with Path(source).open("rb") as file:
            data = file.read(_LARGEST_INPUT + 1)
    if len(data) > _LARGEST_INPUT:
        raise click.UsageError("Too much data: `hsmctl file` is for files of any size.")
    return data


def binary(data: bytes) -> bytes:
    """What is binary or base64: ciphertexts and signatures are never base64 by chance."""
    if not _BASE64.fullmatch(data):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as error:
        raise click.UsageError("This is not valid base64.") from error


def _readable(data: bytes) -> str:
    """What a terminal can show: the text itself, or base64."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if text and all(each.isprintable() or each in "\n\t" for each in text):
        return text
    output.say("Not text; shown in base64.")
    return base64.b64encode(data).decode()


def deliver(data: bytes, target: str, *, force: bool) -> None:
    """Write to a new file, or to standard output ("-")."""
    if target == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with new_file(Path(target), force=force) as file:
        file.write(data)
