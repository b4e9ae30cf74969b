"""hsmctl mac: message authentication codes by HMAC keys."""

from __future__ import annotations

import sys

import click

from hsmd.algorithms import KEY_SPECS
from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Leaf, example, pass_context
from hsmd.cli.ctl.data import binary, deliver, given
from hsmd.cli.ctl.outcome import Exit


@click.command(
    cls=Leaf,
    epilog=example(
        "hsmctl mac --key alias/seals --in ticket --out ticket.mac",
        "hsmctl mac --key alias/seals --in ticket --verify ticket.mac",
    ),
)
@click.argument("text", required=False)
@click.option("--key", required=True, help="Key id, alias/NAME or alias URN.")
@click.option("--in", "source", metavar="FILE", default="-", help="Input, instead of standard input.")
@click.option("--verify", "expected", metavar="FILE", help="Compare with this code, binary or base64.")
@click.option("--out", "target", metavar="FILE", default="-", help="Output, instead of standard output.")
@click.option("--force", is_flag=True, help="Replace FILE of --out if it exists.")
@pass_context
def mac(
    context: Context,
    text: str | None,
    key: str,
    source: str,
    expected: str | None,
    target: str,
    *,
    force: bool,
) -> int:
    """Authenticate 1 to 4096 bytes by an HMAC key.

    The code is binary in files and pipes, base64 on a terminal. With --verify the exit code is 0 when the
    code is right, 1 when it is not.
    """
    if expected == "-" and text is None and source == "-":
        raise click.UsageError("Standard input can't be both: give --in or --verify a file.")
    data = given(text, source)
    with context.client() as client:
        spec = str(output.document(client.describe_key(key))["key_spec"])
        row = KEY_SPECS.get(spec)
        if row is None or row.kind != "generic-secret":
            raise click.UsageError(f"The key is {spec}: it makes no MACs.")
        algorithm = f"HMAC_SHA_{row.bits}"
        if expected is not None:
            valid = client.verify_mac(key, algorithm, data, binary(given(None, expected)))
            return _tell(context, algorithm, valid=valid)
        made = client.mac(key, algorithm, data)
    if context.json:
        output.print_json({"mac_algorithm": algorithm, "mac": output.base64_text(made)})
    elif target == "-" and sys.stdout.isatty():
        click.echo(output.base64_text(made))
    else:
        deliver(made, target, force=force)
    return Exit.OK


def _tell(context: Context, algorithm: str, *, valid: bool) -> int:
    if context.json:
        output.print_json({"mac_algorithm": algorithm, "mac_valid": valid})
    else:
        output.say("The code is right." if valid else "The code is NOT right.")
    return Exit.OK if valid else Exit.REFUSED
