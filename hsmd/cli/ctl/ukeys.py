"""hsmctl ukey: make the key of a UKey, ask for its enrolment, list and show UKeys."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.admin import admin_client, administration, candidate, own_ukey, pin
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.cli.ctl.newfile import new_file

if TYPE_CHECKING:
    from hsmd.hsm.ukey_token import UKeyToken

_ADDRESS = "--ukey 'pkcs11:token=alice?module-path=/usr/lib/softhsm/libsofthsm2.so'"
_SHOWN = ("id", "name", "role", "key", "serial", "created", "created_by", "revoked")


@click.group("ukey", cls=Group)
def ukey() -> None:
    """UKeys: the tokens of administrators, operators and auditors.

    A UKey is any PKCS#11 token, named by --ukey; its PIN is asked, or comes from --ukey-pin-file. Its key
    signs and opens inside it. PKCS#11 modules of tokens may be told where to look by variables of their own.
    """


@ukey.command("init", epilog=example(f"hsmctl {_ADDRESS} ukey init"))
@click.option(
    "--kind",
    type=click.Choice(["rsa-2048", "rsa-3072", "rsa-4096", "ec-p256", "ec-p384"]),
    default="rsa-2048",
    show_default=True,
    help="What key: few TPMs agree on keys of curves, which an operator's UKey has to.",
)
@click.option("--label", default="hsmd", show_default=True, help="Of the key in the token.")
@pass_context
def init(context: Context, kind: str, label: str) -> None:
    """Make a key in the UKey.

    A key that is there already can be used without this: the UKey's address names it by object= or id=.
    """
    from hsmd.hsm import ukey_token

    if not context.ukey:
        raise click.UsageError("Missing, as an option or in the environment: --ukey (HSMD_UKEY).")
    secret = cache(lambda: pin(context))  # asked once, and not at all by a token with a keypad
    ukey_token.generate(context.ukey, secret, kind, label, ukey_token.lock_path())
    context.ukey = _with_object(context.ukey, label)
    with ukey_token.open_ukey(context.ukey, secret, ukey_token.lock_path()) as token:
        _print_own(context, token)


@ukey.command(
    "request", epilog=example(f"hsmctl {_ADDRESS} ukey request alice --role operator --out alice.json")
)
@click.argument("name")
@click.option(
    "--role", required=True, type=click.Choice(["administrator", "operator", "auditor"]), help="What it may."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new file.")
@click.option("--force", is_flag=True, help="Replace the file.")
@pass_context
def request(context: Context, name: str, role: str, out: Path, *, force: bool) -> None:
    """Write a file by which the UKey can be enrolled as NAME.

    It holds no secret: the public key, and the UKey's signature that it is to be enrolled so. It is good for
    a day, for `hsmctl propose enrol-ukey`.
    """
    with own_ukey(context) as token, admin_client(context, None) as client:
        made = candidate(token, client, name, role)
    with new_file(out, force=force) as file:
        file.write(json.dumps(made.to_values(), indent=2).encode() + b"\n")
    output.say(f"{out}: {name}, {role}, key {token.fingerprint}")


@ukey.command("list", epilog=example(f"hsmctl {_ADDRESS} ukey list"))
@pass_context
def list_(context: Context) -> None:
    """All UKeys there ever were, and how many are needed together."""
    with administration(context) as (_, client):
        from hsmd.pb.v1 import ukeys_pb2 as pb

        found = output.document(client.ukeys.ListUkeys(pb.ListUkeysRequest()))
    if context.json:
        output.print_json(found)
        return
    output.print_table(
        [name.replace("_", " ").capitalize() for name in _SHOWN],
        [[each[name] for name in _SHOWN] for each in found["ukeys"]],
    )
    quorum: dict[str, Any] = found["quorum"]
    click.echo()
    output.print_fields([(f"{role} needed", number or "not settled") for role, number in quorum.items()])


@ukey.command("show", epilog=example(f"hsmctl {_ADDRESS} ukey show"))
@click.argument("ukey_id", required=False, metavar="[ID]")
@pass_context
def show(context: Context, ukey_id: str | None) -> None:
    """The UKey of this ID as it is enrolled; without it the own one as it is here."""
    if ukey_id is None:
        with own_ukey(context) as token:
            _print_own(context, token)
        return
    with administration(context) as (_, client):
        from hsmd.pb.v1 import ukeys_pb2 as pb

        found = output.document(client.ukeys.ShowUkey(pb.ShowUkeyRequest(ukey_id=ukey_id)).ukey)
    if context.json:
        output.print_json(found)
    else:
        output.print_fields((name.replace("_", " "), value) for name, value in found.items())


def _print_own(context: Context, token: UKeyToken) -> None:
    from hsmd import ukey as keys

    own = {
        "token": token.token_label,
        "serial": token.serial,
        "object": token.label,
        "key": keys.describe(token.public_key),
        "fingerprint": token.fingerprint,
        "opens": token.opens(),
        "certificate": bool(token.certificate),
    }
    if context.json:
        output.print_json(own)
    else:
        output.print_fields(own.items())


def _with_object(uri: str, label: str) -> str:
    from urllib.parse import quote

    from hsmd.hsm.address import parse_ukey_address

    if parse_ukey_address(uri).label is not None:
        return uri
    path, _, query = uri.partition("?")
    return f"{path.rstrip(';')};object={quote(label, safe='')}?{query}"
