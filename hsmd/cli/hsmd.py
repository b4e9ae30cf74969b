"""The command `hsmd`: serve, gateway, init. For operators' machines; people use `hsmctl`."""

import dataclasses
import json
import logging
import secrets
import sys
from pathlib import Path

import click

from hsmd import __version__, config
from hsmd.errors import Error

EX_CONFIG = 78

_config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=Path("/etc/hsmd/hsmd.toml"),
    show_default=True,
    help="The configuration; conf/hsmd.toml shows every option.",
)


@click.group()
@click.version_option(__version__, prog_name="hsmd")
def hsmd() -> None:
    """A key service daemon in front of a dedicated HSM."""


@hsmd.command()
@_config_option
def serve(path: Path) -> None:
    """Run the daemon in the foreground: workers, warden, and the supervisor that keeps them."""
    from hsmd.daemon import serving  # each command loads what it needs

    sys.exit(serving.serve(config.load(path)))


@hsmd.command()
@_config_option
def gateway(path: Path) -> None:
    """Run the REST gateway in the foreground."""
    from hsmd.daemon import serving  # each command loads what it needs

    sys.exit(serving.serve_gateway(lambda: config.load(path)))


@hsmd.command()
@_config_option
@click.option("--domain", required=True, help="Name of the first domain (account).")
@click.option("--project", help="Name of its first project; the region's name when not given.")
@click.option("--user", required=True, help="Name of its first user.")
@click.option("--role", "roles", multiple=True, default=("KMS Administrator",), show_default=True)
@click.option("--certificate", "names", multiple=True, help='Name in the user\'s certificate: "CN:admin".')
def init(
    path: Path, domain: str, project: str | None, user: str, roles: tuple[str, ...], names: tuple[str, ...]
) -> None:
    """Make the token's keys and the store, and the first domain, project and user.

    Prints the user's password and access key as JSON, once.
    """
    from hsmd.daemon import setup, wiring  # each command loads what it needs

    settings = config.load(path)
    password = secrets.token_urlsafe(18)
    made = setup.initialise(
        settings,
        pin=wiring.read_pin(settings.hsm).value,
        domain=domain,
        project=project or settings.region,
        user=user,
        password=password,
        roles=roles,
        certificate_names=names,
    )
    click.echo(json.dumps({**dataclasses.asdict(made), "password": password}, indent=2))


@hsmd.command()
@_config_option
@click.option("--domain", required=True, help="Name of the user's domain.")
@click.option("--user", required=True, help="Name of the user.")
@click.option("--operator", is_flag=True, help="Let its administrators operate the daemon too: all domains.")
def appoint(path: Path, domain: str, user: str, *, operator: bool) -> None:
    """Let a user administer its domain: after an upgrade, or when nobody is left who may.

    The user is put into the domain's group "admin". It counts for the next call; the daemon may be running.
    """
    from hsmd.daemon import setup, wiring  # each command loads what it needs

    settings = config.load(path)
    pin = wiring.read_pin(settings.hsm).value
    user_id = setup.appoint(settings, pin=pin, domain=domain, user=user, operator=operator)
    click.echo(f"{user} ({user_id}) administers {domain}{' and the daemon' if operator else ''}.")


@hsmd.command("audit-key")
@_config_option
def audit_key(path: Path) -> None:
    """Print the public audit key (PEM), which `hsmctl audit verify` needs.

    Keep it where this host can't change it. It is read from the HSM; the daemon may be running.
    """
    from hsmd.daemon import setup, wiring  # each command loads what it needs

    settings = config.load(path)
    click.echo(setup.audit_key(settings, pin=wiring.read_pin(settings.hsm).value), nl=False)


def main() -> None:
    """Run; a fault ends with one line on standard error: 78 for configuration and HSM, 1 for the rest."""
    from hsmd.hsm import TokenRefused  # `hsmd --version` needs no PKCS#11
    from hsmd.store import StoreError  # nor SQL

    try:
        hsmd(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except (config.ConfigError, TokenRefused, StoreError) as error:
        click.echo(f"hsmd: {error}", err=True)
        sys.exit(EX_CONFIG)
    except Error as error:
        logging.getLogger(__name__).debug("ended by", exc_info=error)
        click.echo(f"hsmd: {error}", err=True)
        sys.exit(1)
