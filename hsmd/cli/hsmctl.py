"""hsmctl: keys, data and files at the command line. The commands are in `ctl/`."""

import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click

from hsmd.cli.ctl import (
    access_keys,
    access_points,
    agencies,
    aliases,
    audit,
    backups,
    capsules,
    ceremony,
    certificates,
    data,
    domains,
    files,
    grants,
    groups,
    host,
    imports,
    key_policies,
    keys,
    keystores,
    limits,
    macs,
    node,
    outcome,
    output,
    policies,
    projects,
    proposals,
    regions,
    root_keys,
    rotation,
    sealing,
    signing,
    tags,
    tokens,
    ukeys,
    users,
)
from hsmd.cli.ctl.context import Context, Group, pass_context

_FILE = click.Path(path_type=Path)


@click.group(cls=Group, epilog=outcome.HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--server", envvar="HSMD_GRPC", help="HOST:PORT or unix:PATH of the daemon (HSMD_GRPC).")
@click.option("--ca", type=_FILE, envvar="HSMD_CA", help="CA of the server's certificate (HSMD_CA).")
@click.option("--cert", type=_FILE, envvar="HSMD_CERT", help="Own certificate (HSMD_CERT).")
@click.option("--key", type=_FILE, envvar="HSMD_KEY", help="Own private key (HSMD_KEY).")
@click.option("--project", envvar="HSMD_PROJECT_ID", help="Act in this project (HSMD_PROJECT_ID).")
@click.option(
    "--server-name", envvar="HSMD_SERVER_NAME", help="Name in the server's certificate (HSMD_SERVER_NAME)."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    envvar="HSMD_TIMEOUT",
    default=20.0,
    show_default=True,
    help="Seconds for each call (HSMD_TIMEOUT).",
)
@click.option("--admin", envvar="HSMD_ADMIN", help="HOST:PORT of the administrators' door (HSMD_ADMIN).")
@click.option("--ukey", envvar="HSMD_UKEY", help="Own UKey, a pkcs11: address (HSMD_UKEY).")
@click.option(
    "--ukey-pin-file", type=_FILE, envvar="HSMD_UKEY_PIN_FILE", help="Its PIN's file (HSMD_UKEY_PIN_FILE)."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
@click.version_option(package_name="hsmd")
@pass_context
def cli(
    context: Context,
    server: str | None,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    project: str | None,
    server_name: str | None,
    timeout: float,
    admin: str | None,
    ukey: str | None,
    ukey_pin_file: Path | None,
    *,
    as_json: bool,
    debug: bool,
) -> None:
    """Keys that live in an HSM, and what they protect.

    Results go to standard output, messages and errors to standard error.
    """
    context.server, context.ca, context.certificate, context.key = server or "", ca, cert, key
    context.project, context.server_name, context.timeout = project or "", server_name or "", timeout
    context.json, context.debug = as_json, debug
    context.admin_server, context.ukey, context.ukey_pin_file = admin or "", ukey or "", ukey_pin_file


for _command in (
    keys.keys,
    aliases.aliases,
    tags.tags,
    grants.grants,
    regions.regions,
    access_points.access_points,
    key_policies.key_policies,
    capsules.capsules,
    keystores.keystores,
    files.files,
    domains.domains,
    projects.projects,
    users.users,
    groups.groups,
    access_keys.access_keys,
    tokens.tokens,
    agencies.agencies,
    certificates.certificates,
    limits.limits,
    policies.policies,
    audit.audit,
    ukeys.ukey,
    *proposals.COMMANDS,
    sealing.seal,
    sealing.unseal,
    sealing.seal_status,
    backups.backups,
    root_keys.root_keys,
    ceremony.ceremony,
    host.db,
    node.status,
    node.top,
    node.log_level,
    host.completion,
):
    cli.add_command(_command)
for _command in (rotation.rotate, rotation.rotation, regions.replicate):
    keys.keys.add_command(_command)
for _command in (data.encrypt, data.decrypt, data.random, *signing.COMMANDS, macs.mac, imports.import_):
    cli.add_command(_command)


def run(arguments: Sequence[str], signals: Sequence[int] = ()) -> int:
    """Carry out one command line and return its exit code; never raises for what can go wrong.

    `signals` are those that arrived: Tink's C++ may have made something else of the KeyboardInterrupt.
    """
    context = Context()
    try:
        done = cli.main(list(arguments), "hsmctl", standalone_mode=False, obj=context)
    except click.Abort:
        output.say("hsmctl: Interrupted.")
        return outcome.Exit.INTERRUPTED
    except click.UsageError as error:
        error.show()
        return outcome.Exit.USAGE
    except Exception as error:  # the last one to catch it: people get a line, not a trace
        if context.debug:
            traceback.print_exc()
        code, text = (outcome.Exit.INTERRUPTED, "Interrupted.") if signals else outcome.of(error)
        output.say(f"hsmctl: {text}")
        return code
    return done if isinstance(done, int) else outcome.Exit.OK


# The exception may be swallowed by compiled code that goes on reading: then it is raised once more.
_ASK_AGAIN_SECONDS = 2.0


def main() -> None:
    """The entry point."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own lines would stand between ours
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # PINs and plaintexts are in our memory
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # like other commands when their reader goes
    signals: list[int] = []

    def leave(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGALRM:
            signals.append(number)
        signal.setitimer(signal.ITIMER_REAL, _ASK_AGAIN_SECONDS)
        raise KeyboardInterrupt  # an exception, so that files are cleaned up

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, leave)
    code = run(sys.argv[1:], signals)
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.exit(128 + signals[0] if signals else code)
