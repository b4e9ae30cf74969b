"""The UKey of who sits here, and the administrators' door opened by it: for every command that needs them."""

from __future__ import annotations

import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hsmd.cli.ctl.context import Context
    from hsmd.client.admin import AdminClient
    from hsmd.hsm.ukey_token import UKeyToken
    from hsmd.ukey import Candidate


@contextmanager
def own_ukey(context: Context) -> Iterator[UKeyToken]:
    """The UKey at --ukey, opened by its PIN. Raises click.UsageError, UKeyError."""
    _check_options({"--ukey (HSMD_UKEY)": context.ukey})
    from hsmd.hsm import ukey_token

    with ukey_token.open_ukey(context.ukey, lambda: pin(context), ukey_token.lock_path()) as opened:
        yield opened


@contextmanager
def admin_client(context: Context, signer: UKeyToken | None) -> Iterator[AdminClient]:
    """The administrators' door; without a signer for what is open to anybody with a certificate.

    Raises click.UsageError, SetupError.
    """
    server, ca, certificate, key = context.admin_server, context.ca, context.certificate, context.key
    if not server or ca is None or certificate is None or key is None:
        _check_options(
            {
                "--admin (HSMD_ADMIN)": server,
                "--ca (HSMD_CA)": ca,
                "--cert (HSMD_CERT)": certificate,
                "--key (HSMD_KEY)": key,
            }
        )
        raise click.UsageError("Missing options.")  # not reached: one of the four is
    from hsmd.client.admin import AdminClient

    with AdminClient(
        server,
        ca=ca,
        certificate=certificate,
        key=key,
        signer=signer,
        server_name=context.server_name,
        deadline=context.timeout,
    ) as client:
        yield client


@contextmanager
def administration(context: Context) -> Iterator[tuple[UKeyToken, AdminClient]]:
    """Both: the UKey, and the door where it says who calls."""
    with own_ukey(context) as token, admin_client(context, token) as client:
        yield token, client


def pin(context: Context) -> str:
    """The UKey's PIN: from --ukey-pin-file, or typed unseen. Raises UKeyError."""
    return pin_of(context.ukey_pin_file)


def pin_of(file: Path | None, who: str = "") -> str:
    """A UKey's PIN: from that file, or typed unseen; `who` like " of anna". Raises UKeyError."""
    from hsmd.ukey import UKeyError

    if file is None:
        return str(click.prompt(f"PIN of the UKey{who}", hide_input=True, err=True))
    try:
        mode, found = stat.S_IMODE(file.stat().st_mode), file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UKeyError(f"{file}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError:  # its text, and that of what it is raised from, would show the PIN
        raise UKeyError(f"{file}: it is no text") from None
    if mode & 0o077:
        raise UKeyError(f"{file}: others can read it: chmod 600 is due")
    if not found:
        raise UKeyError(f"{file}: it is empty")
    return found


def candidate(token: UKeyToken, client: AdminClient, name: str, role: str) -> Candidate:
    """The UKey as one that is to be enrolled, with the proof that it is here. Raises ApiError, UKeyError."""
    from dataclasses import replace

    from hsmd import ukey
    from hsmd.pb.v1 import ukeys_pb2 as pb

    opens = token.opens()
    begun = client.ukeys.BeginEnrolment(pb.BeginEnrolmentRequest(public_key=token.public_key, opens=opens))
    context = ukey.possession_context(begun.instance, begun.nonce)
    made = ukey.Candidate(
        name=name,
        role=role,
        serial=token.serial,
        public_key=token.public_key,
        certificate=token.certificate,
        opens=opens,
        nonce=begun.nonce,
        opened=ukey.open_box(token.public_key, begun.box, context, token) if opens else b"",
    )
    return replace(made, signature=token.sign(made.statement(begun.instance)))


def _check_options(options: dict[str, object]) -> None:
    missing = [name for name, value in options.items() if not value]
    if missing:
        raise click.UsageError(f"Missing, as an option or in the environment: {', '.join(missing)}.")
