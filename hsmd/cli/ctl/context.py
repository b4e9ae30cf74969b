"""The global options of hsmctl, and the connection made by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pathlib import Path

    from hsmd.client import Client


@dataclass
class Context:
    """What every command is handed: the global options."""

    server: str = ""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    project: str = ""
    server_name: str = ""
    timeout: float = 20.0
    json: bool = False
    debug: bool = False
    admin_server: str = ""
    ukey: str = ""
    ukey_pin_file: Path | None = None

    def client(self) -> Client:
        """A connection by these options. Raises click.UsageError for a missing one, SetupError."""
        files = {
            "--ca (HSMD_CA)": self.ca,
            "--cert (HSMD_CERT)": self.certificate,
            "--key (HSMD_KEY)": self.key,
        }
        missing = [] if self.server else ["--server (HSMD_GRPC)"]
        if not self.server.startswith("unix:"):
            missing += [option for option, value in files.items() if value is None]
        if missing:
            raise click.UsageError(f"Missing, as an option or in the environment: {', '.join(missing)}.")
        from hsmd.client import Client

        return Client(
            self.server,
            ca=self.ca,
            certificate=self.certificate,
            key=self.key,
            project_id=self.project,
            server_name=self.server_name,
            deadline=self.timeout,
        )


pass_context = click.make_pass_decorator(Context)


class Leaf(click.Command):
    """A command that takes --json behind its name too, where people write it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(
            click.Option(
                ["--json", "as_json"],
                is_flag=True,
                expose_value=False,
                help="One JSON document on standard output.",
                callback=_remember_json,
            )
        )


class Group(click.Group):
    """Commands that are such leaves."""

    command_class = Leaf
    group_class = type


def _remember_json(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Context).json = True


def example(*lines: str) -> str:
    """An epilog that shows commands as they are typed."""
    return "\n".join(("\b", "Example:", *(f"  {line}" for line in lines)))
