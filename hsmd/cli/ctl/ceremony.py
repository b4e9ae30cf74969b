"""hsmctl ceremony: init, prepare, backup, restore, close, next-root, record, verify; on the HSM's host."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.admin import pin_of
from hsmd.cli.ctl.context import Context, Group, example, pass_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hsmd.config import Settings
    from hsmd.daemon.ceremony.answers import Answers, UKeyAnswer
    from hsmd.daemon.ceremony.founding import FirstUser, Plan
    from hsmd.daemon.ceremony.papers import Quorum, Record, Seat
    from hsmd.daemon.ceremony.party import Party, Place
    from hsmd.daemon.ceremony.passage import Split

_FILE = click.Path(path_type=Path)
_THERE = click.Path(path_type=Path, exists=True, dir_okay=False)
_ROLES = ("administrator", "operator", "auditor")
_STOP = "stop"
_EXAMPLE = "--config /etc/hsmd/hsmd.toml --dir /var/lib/hsmd/ceremony"


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every step is told."""
    for option in (
        click.option("--answers", type=_THERE, help="Answers, so that nothing is asked (docs/ceremony.md)."),
        click.option("--dir", "folder", required=True, type=_FILE, help="The ceremony's folder: its papers."),
        click.option("--config", required=True, type=_THERE, help="The daemon's configuration."),
    ):
        command = option(command)
    return command


@click.group("ceremony", cls=Group)
def ceremony() -> None:
    """The HSM's founding, its keys' way to another one, and what is checked after.

    On the HSM's host, as the daemon's user, by people with their UKeys. Whatever is cut short is done by
    the same command once more.
    """
    from hsmd.daemon.supervisor import harden

    harden()  # PINs and shares come together in this process
    logging.getLogger("hsmd").addHandler(logging.NullHandler())  # people are told in words of their own


@ceremony.command("init", epilog=example(f"hsmctl ceremony init {_EXAMPLE}"))
@_options
@pass_context
def init(context: Context, config: Path, folder: Path, answers: Path | None) -> None:
    """Make the token, its PINs and keys, and take in the first UKeys; ends with a record to sign."""
    from hsmd.daemon.ceremony import founding

    given = _answers(answers)
    settings = _settings(config)
    plan = _asked_plan(settings, given, folder) if _asks(given, answers) else _given_plan(given)
    places = dict(zip((each.name for each in plan.seats), map(_place, given.ukeys), strict=False))

    def place_of(seat: Seat) -> Place:
        return places[seat.name] if seat.name in places else _asked_seat(seat)

    record = founding.found(settings, plan, folder, _party(given, answers), place_of)
    _tell_record(context, record, folder)
    if plan.identity is not None:
        output.say(f"The first user's password and access key are in {folder / founding.CREDENTIALS_FILE}.")


@ceremony.command("prepare", epilog=example(f"hsmctl ceremony prepare {_EXAMPLE} --record record.json"))
@_options
@click.option("--record", "record_path", required=True, type=_THERE, help="Of the HSM whose keys will come.")
@pass_context
def prepare(context: Context, config: Path, folder: Path, answers: Path | None, record_path: Path) -> None:
    """Make a new token that can take keys in, and its transport key: DIR/transport.json."""
    from hsmd.daemon.ceremony import papers, passage

    given, record = _answers(answers), papers.read_record(record_path)
    made = passage.prepare(_settings(config), record, folder, _party(given, answers), given.token)
    found = {"file": str(folder / "transport.json"), "fingerprint": made.fingerprint}
    if context.json:
        output.print_json(found)
        return
    output.say(f"Bring {found['file']} to the other HSM, and read this aloud there:")
    click.echo(papers.grouped(made.fingerprint))


@ceremony.command(
    "backup",
    epilog=example(
        f"hsmctl ceremony backup {_EXAMPLE} --out backup.json",
        f"hsmctl ceremony backup {_EXAMPLE} --transport transport.json --out to-b.json",
    ),
)
@_options
@click.option("--out", required=True, type=_FILE, help="A new file.")
@click.option("--transport", type=_THERE, help="Another HSM's transport key; without: for UKeys to open.")
@click.option("--fingerprint", help="Of that key, as it was read aloud: its first 16 digits or more.")
@pass_context
def backup(
    context: Context,
    config: Path,
    folder: Path,
    answers: Path | None,
    out: Path,
    transport: Path | None,
    fingerprint: str | None,
) -> None:
    """Wrap the keys inside the HSM: for another HSM, or for UKeys that open them together."""
    from hsmd.daemon.ceremony import papers, passage

    given, settings = _answers(answers), _settings(config)
    party, record = _party(given, answers), folder / "record.json"
    if transport is None:
        split = _split(given, party)
        package = passage.backup_to_ukeys(settings, record, split, out, party)
    else:
        key = papers.read(transport, papers.Transport, papers.TRANSPORT)
        read = fingerprint or _asked(answers, "The transport key's fingerprint, as it is read aloud")
        package = passage.backup_to_token(settings, record, key, read, out, party)
    _tell(context, {"file": str(out), "id": package.id, "keys": [each.label for each in package.keys]})


@ceremony.command(
    "restore", epilog=example(f"hsmctl ceremony restore {_EXAMPLE} --record record.json backup.json")
)
@_options
@click.option("--record", "record_path", required=True, type=_THERE, help="That people have signed.")
@click.argument("packages", nargs=-1, required=True, type=_THERE)
@pass_context
def restore(
    context: Context,
    config: Path,
    folder: Path,
    answers: Path | None,
    record_path: Path,
    packages: tuple[Path, ...],
) -> None:
    """Take the keys of PACKAGES into this HSM, each proven by its check value."""
    from hsmd.daemon.ceremony import papers, passage

    given = _answers(answers)
    _unlike(folder / "record.json", record_path)
    read = [papers.read(each, papers.Package, papers.PACKAGE) for each in packages]
    record = papers.read_record(record_path)
    _compared(answers, record)
    made = passage.restore(_settings(config), record, read, folder, _party(given, answers), given.token)
    _tell_record(context, made, folder)


@ceremony.command("close", epilog=example(f"hsmctl ceremony close {_EXAMPLE}"))
@_options
@click.option("--without-backup", is_flag=True, help="Though the keys were never backed up.")
@pass_context
def close(
    context: Context, config: Path, folder: Path, answers: Path | None, *, without_backup: bool
) -> None:
    """Make the keys non-extractable, for good: none of them can leave this HSM any more."""
    from hsmd.daemon.ceremony import passage

    party = party_of(answers)
    record = passage.close(_settings(config), folder / "record.json", party, without_backup=without_backup)
    _tell_record(context, record, folder)


@ceremony.command("next-root", epilog=example(f"hsmctl ceremony next-root {_EXAMPLE}"))
@_options
@pass_context
def next_root(context: Context, config: Path, folder: Path, answers: Path | None) -> None:
    """Make the next root key, to be backed up and closed before it is put in place by `propose`."""
    from hsmd.daemon.ceremony import passage

    party = party_of(answers)
    _tell_record(context, passage.next_root(_settings(config), folder / "record.json", party), folder)


@ceremony.command("record", epilog=example(f"hsmctl ceremony record {_EXAMPLE}"))
@_options
@pass_context
def record(context: Context, config: Path, folder: Path, answers: Path | None) -> None:
    """Write the record anew, when UKeys, the quorum or the root key have changed since."""
    from hsmd.daemon.ceremony import passage

    party = party_of(answers)
    _tell_record(context, passage.renew(_settings(config), folder / "record.json", party), folder)


@ceremony.command("verify", epilog=example(f"hsmctl ceremony verify {_EXAMPLE}"))
@_options
@pass_context
def verify(context: Context, config: Path, folder: Path, answers: Path | None) -> int:
    """Hold the HSM, the store and the seals against the record; the daemon may be running.

    Ends with 1 when anything differs.
    """
    from hsmd.cli.ctl.outcome import Exit
    from hsmd.daemon.ceremony import checking, papers

    party = party_of(answers)
    found_record = papers.read_record(folder / "record.json")
    found = checking.verify(_settings(config), found_record, folder, party)
    if context.json:
        output.print_json({"record": found_record.digest, "deviations": found})
    else:
        for each in found:
            click.echo(output.clean(each))
        output.say("All is as the record says." if not found else f"{len(found)} things are not as recorded.")
    return Exit.REFUSED if found else Exit.OK


# What is asked, unless it is answered


def _settings(path: Path) -> Settings:
    from hsmd import config

    return config.load(path)


def _answers(path: Path | None) -> Answers:
    from hsmd.daemon.ceremony import answers

    return answers.Answers() if path is None else answers.read(path)


def party_of(answers: Path | None) -> Party:
    """The people who are there; also for other commands that need their UKeys on this host."""
    return _party(_answers(answers), answers)


def _party(given: Answers, path: Path | None) -> Party:
    from hsmd.daemon.ceremony.party import Party

    def places(what: str) -> Iterable[Place]:
        output.say(what + ".")
        return _asked_places() if _asks(given, path) else map(_place, given.ukeys + given.backup.holders)

    return Party(places, output.say)


def _asks(given: Answers, path: Path | None) -> bool:
    """Whether people are asked: the answers name no UKeys, and somebody sits here."""
    return path is None or (not given.ukeys and sys.stdin.isatty())


def _place(answer: UKeyAnswer) -> Place:
    from hsmd.daemon.ceremony.party import Place

    who = f" of {answer.name}" if answer.name else ""
    return Place(answer.uri, partial(pin_of, answer.pin_file, who), answer.softhsm_conf, answer.role)


def _asked_places() -> Iterator[Place]:
    from hsmd.daemon.ceremony.party import Place

    while True:
        uri = click.prompt(f"Address of the next UKey (pkcs11:...; {_STOP} to end)", err=True)
        if uri.strip() == _STOP:
            return
        yield Place(uri.strip(), partial(pin_of, None))


def _asked_seat(seat: Seat) -> Place:
    from hsmd.daemon.ceremony.party import Place

    output.say(f"The UKey of {seat.name} ({seat.role}) is due: plug it in.")
    uri = click.prompt(f"Address of the UKey of {seat.name} (pkcs11:...)", err=True)
    return Place(uri.strip(), partial(pin_of, None, f" of {seat.name}"))


def _given_plan(given: Answers) -> Plan:
    from hsmd.daemon.ceremony.founding import Plan
    from hsmd.daemon.ceremony.papers import Seat

    if given.quorum is None or not given.ukeys:
        raise click.UsageError("The answers lack [quorum] or [[ukeys]].")
    seats = tuple(Seat(each.name, each.role) for each in given.ukeys)
    return Plan(given.quorum, seats, given.token, given.first_user)


def _asked_plan(settings: Settings, given: Answers, folder: Path) -> Plan:
    """What people say; of a founding that was cut short they have said it before."""
    from hsmd.daemon.ceremony.founding import Plan, begun

    before = begun(folder)
    if before is not None:
        quorum, seats = before
        output.say("This founding was begun before, and goes on with the same people.")
    else:
        quorum, seats = _asked_people()
    user = given.first_user or _asked_user(settings)
    for each in seats:
        output.say(f"  {each.name}: {each.role}")
    click.confirm(f"{settings.hsm.token} becomes their HSM. Go on", abort=True, err=True)
    return Plan(quorum, seats, given.token, user)


def _asked_people() -> tuple[Quorum, tuple[Seat, ...]]:
    from hsmd.daemon.ceremony.papers import Quorum

    output.say("The people first: who has a UKey, as what. Nothing is made before all of them were here.")
    seats = tuple(_asked_seats())
    administrators, operators = (
        click.prompt(f"How many {role}s are needed together", type=click.IntRange(2, 16), err=True)
        for role in ("administrator", "operator")
    )
    return Quorum(administrators, operators), seats


def _asked_seats() -> Iterator[Seat]:
    from hsmd.daemon.ceremony.papers import Seat

    while True:
        name = click.prompt(
            "Name of the next one, empty when all are named", default="", show_default=False, err=True
        )
        if not name:
            return
        yield Seat(name, click.prompt("  as", type=click.Choice(_ROLES), err=True))


def _asked_user(settings: Settings) -> FirstUser | None:
    from hsmd.daemon.ceremony.founding import FirstUser

    domain = click.prompt(
        "Name of the first domain, empty for none", default="", show_default=False, err=True
    )
    if not domain:
        return None
    user = click.prompt("Name of its first user", default="admin", err=True)
    certificate = click.prompt("Name in that user's certificate", default=f"CN:{user}", err=True)
    return FirstUser(domain, user, settings.region, certificates=(certificate,))


def _split(given: Answers, party: Party) -> Split:
    """Whose UKeys open the backup: those that the answers name are looked at."""
    from hsmd.daemon.ceremony.papers import Member, text
    from hsmd.daemon.ceremony.party import HOLDER, opened
    from hsmd.daemon.ceremony.passage import Split

    found = []
    for index, each in enumerate(given.backup.holders):
        with opened(_place(each)) as token:
            name = each.name or f"holder {index + 1}"
            found.append(
                Member(
                    id=token.fingerprint[:32],
                    name=name,
                    role=HOLDER,
                    serial=token.serial,
                    fingerprint=token.fingerprint,
                    public_key=text(token.public_key),
                    opens=token.opens(),
                )
            )
            party.tell(f"{name} will hold a share.")
    return Split(given.backup.needed, tuple(found))


def _compared(answers: Path | None, record: Record) -> None:
    """People compare the record with the paper that was signed; a script has done so before."""
    from hsmd.daemon.ceremony.papers import grouped

    if answers is None:
        output.say("The record's SHA-256, to be compared with the one on paper:")
        output.say(grouped(record.digest))
        click.confirm("Is it the same", abort=True, err=True)


def _asked(answers: Path | None, what: str) -> str:
    if answers is not None:
        raise click.UsageError("Missing: --fingerprint.")
    return str(click.prompt(what, err=True))


def _unlike(own: Path, given: Path) -> None:
    if own.exists() and given.resolve() != own.resolve():
        raise click.UsageError(f"{own} is a record already: another --dir is due for another HSM.")


def _tell_record(context: Context, made: Record, folder: Path) -> None:
    if context.json:
        output.print_json({"record": made.id, "sha256": made.digest, "text": str(folder / "record.txt")})
    else:
        output.say(f"Print {folder / 'record.txt'}, compare it and sign it.")
        click.echo((folder / "record.txt").read_text(encoding="utf-8"), nl=False)


def _tell(context: Context, found: dict[str, Any]) -> None:
    if context.json:
        output.print_json(found)
    else:
        output.print_fields(
            (name, ", ".join(value) if isinstance(value, list) else value) for name, value in found.items()
        )
