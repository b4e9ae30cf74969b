"""How hsmctl is told a password: typed unseen, or from a file; never as an option, which others can see."""

from __future__ import annotations

from typing import IO

import click

from hsmd.client.errors import SetupError

FROM_FILE = click.option(
    "--password-file", type=click.File("r"), help="Its first line is the password; - is standard input."
)


def ask(file: IO[str] | None, prompt: str = "Password", *, confirm: bool = True) -> str:
    """The password. Raises SetupError for an empty one."""
    if file is None:
        typed = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
        return str(typed)
    line = file.readline().rstrip("\r\n")
    if not line:
        raise SetupError(f"{file.name}: its first line is empty")
    return line
