"""The founding: from a blank token and people with UKeys to an HSM with keys, a store and a record.

The steps, each of which stands when it is done: the UKeys are introduced (written down in the journal), the
PINs are sealed, the token is made, the keys are made, the store takes in the UKeys and the first user, the
record is written.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from hsmd import store as stores
from hsmd.caller import Caller
from hsmd.config import ConfigError, Settings
from hsmd.daemon import setup
from hsmd.daemon.ceremony import bench, papers
from hsmd.daemon.ceremony.bench import Sealing, TokenAnswers
from hsmd.daemon.ceremony.papers import CeremonyRefused, Event, Journal, Quorum, Record, Seat, data
from hsmd.daemon.ceremony.party import Party, Place, introduce, opened
from hsmd.daemon.certificates import write_private
from hsmd.domain import ukeys
from hsmd.domain.core import AUDIT_KEY_LABEL, CREDENTIAL_KEY_LABEL, SEALING_KEY_LABEL, Call, Core
from hsmd.errors import Error
from hsmd.hsm import Token
from hsmd.store import Tx, roots, service_settings
from hsmd.store import identity as rows
from hsmd.ukey import Candidate, UKeyError

JOURNAL_FILE, CREDENTIALS_FILE = "ceremony.json", "first-user.json"


@dataclass(frozen=True, slots=True)
class FirstUser:
    """The first domain, project and user, as `hsmd init` makes them. `certificates` like "CN:admin"."""

    domain: str
    user: str
    project: str = ""
    roles: tuple[str, ...] = ("KMS Administrator",)
    certificates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be founded. The seats have names and roles, in the order in which UKeys are introduced."""

    quorum: Quorum
    seats: tuple[Seat, ...]
    token: TokenAnswers = field(default_factory=TokenAnswers)
    identity: FirstUser | None = None


def found(
    settings: Settings, plan: Plan, folder: Path, party: Party, place_of: Callable[[Seat], Place]
) -> Record:
    """Carry it out, or what is left of it; the record. `place_of` tells where a seat's UKey is.

    Raises CeremonyRefused, ConfigError, TokenRefused, UKeyError, Error.
    """
    _check(plan)
    papers.private_folder(folder)
    journal = _journal(plan, folder)
    for seat in journal.seats:
        if not seat.id:
            journal = _introduced(journal, seat, folder, party, place_of)
    sealing = _sealing(journal)
    began = (folder / bench.MARK_FILE).exists()
    with bench.recorded(settings, "ceremonyInit", f"ceremony/{journal.id}"):
        pins = bench.make_token(settings, folder, party, sealing, plan.token)
        stores.upgrade(settings.store.url)
        with bench.opened(settings, pins.pin) as core:
            party.tell("Making the keys.")
            _make_keys(core, resumed=began)
            party.tell("Writing the store.")
            _fill(settings, core, journal, plan.identity, folder)
            record = _record(settings, core, journal, folder)
    papers.write_record(folder, record)
    return record


def begun(folder: Path) -> tuple[Quorum, tuple[Seat, ...]] | None:
    """The quorum and the seats of a founding that was begun in this folder. Raises ConfigError."""
    if not (folder / JOURNAL_FILE).exists():
        return None
    journal = papers.read(folder / JOURNAL_FILE, Journal, papers.JOURNAL)
    return journal.quorum, tuple(Seat(each.name, each.role) for each in journal.seats)


def _check(plan: Plan) -> None:
    """Raises CeremonyRefused for what can't come to a good end."""
    names = [each.name for each in plan.seats]
    if len(set(names)) != len(names):
        raise CeremonyRefused("two UKeys have the same name")
    for role, needed in (
        (ukeys.ADMINISTRATOR, plan.quorum.administrators),
        (ukeys.OPERATOR, plan.quorum.operators),
    ):
        there = sum(each.role == role for each in plan.seats)
        if not ukeys.LEAST <= needed <= min(there, ukeys.MOST):
            raise CeremonyRefused(
                f"of {there} {role}s {needed} are to be needed: {ukeys.LEAST} to {there} is due"
            )
    if wrong := [each.role for each in plan.seats if each.role not in ukeys.ROLES]:
        raise CeremonyRefused(f"{wrong[0]}: a UKey's role is one of {', '.join(ukeys.ROLES)}")


def _journal(plan: Plan, folder: Path) -> Journal:
    path = folder / JOURNAL_FILE
    if not path.exists():
        if (folder / "record.json").exists():
            raise CeremonyRefused(f"{folder} holds the record of another ceremony")
        journal = Journal(
            format=papers.JOURNAL,
            id=secrets.token_hex(16),
            instance=secrets.token_hex(16),
            time=papers.now_text(),
            quorum=plan.quorum,
            seats=tuple(Seat(each.name, each.role) for each in plan.seats),
        )
        papers.write(path, journal)
        return journal
    journal = papers.read(path, Journal, papers.JOURNAL)
    if journal.quorum != plan.quorum or [(each.name, each.role) for each in journal.seats] != [
        (each.name, each.role) for each in plan.seats
    ]:
        raise CeremonyRefused(f"{path}: this ceremony was begun with other UKeys or another quorum")
    return journal


def _introduced(
    journal: Journal, seat: Seat, folder: Path, party: Party, place_of: Callable[[Seat], Place]
) -> Journal:
    """The journal with one UKey more."""
    place = place_of(seat)
    try:
        with opened(place) as token:
            taken = introduce(token, seat, journal.instance)
    except UKeyError as error:
        raise CeremonyRefused(f"{seat.name}: {error}") from error
    except Error as error:
        raise CeremonyRefused(f"{seat.name}: {error.message}") from error
    if any(each.fingerprint == taken.fingerprint for each in journal.seats):
        raise CeremonyRefused(f"{seat.name}: this UKey has another seat already")
    if seat.role == ukeys.ADMINISTRATOR and not taken.opens:
        raise CeremonyRefused(
            f"{seat.name}: this UKey opens no boxes, and administrators hold the SO PIN in them"
        )
    seats = tuple(taken if each == seat else each for each in journal.seats)
    journal = replace(journal, seats=seats)
    papers.write(folder / JOURNAL_FILE, journal)
    party.tell(f"{seat.name} ({seat.role}): {papers.grouped(taken.fingerprint)}")
    return journal


def _sealing(journal: Journal) -> Sealing:
    members = tuple(each.member() for each in journal.seats)
    return Sealing(members, journal.quorum.administrators, journal.quorum.operators)


def _make_keys(core: Core, *, resumed: bool) -> None:
    """Make the keys that are missing, so that they can leave the token until they are closed."""
    token, there = core.token, {each.label for each in core.token.held()}
    store_root = roots.FIRST
    if not any(map(roots.number, there)):
        token.make_root_key(store_root, extractable=True)
    for label in (SEALING_KEY_LABEL, CREDENTIAL_KEY_LABEL):
        if label not in there:
            token.make_hmac_key(label, extractable=True)
    if resumed and AUDIT_KEY_LABEL in there and not _whole(token):
        token.destroy_labelled([AUDIT_KEY_LABEL])  # half of a pair: nothing was signed by it
        there.discard(AUDIT_KEY_LABEL)
    if AUDIT_KEY_LABEL not in there:
        token.make_signing_key(AUDIT_KEY_LABEL, extractable=True)


def _whole(token: Token) -> bool:
    try:
        token.proof(AUDIT_KEY_LABEL)
    except Error:
        return False
    return True


def _fill(settings: Settings, core: Core, journal: Journal, identity: FirstUser | None, folder: Path) -> None:
    """The store takes in all of it, at once."""
    call = Call(core, Caller("system", user_name="ceremony", source="local"), lambda: None)
    with core.store.write() as tx:
        if rows.is_foreign(tx):
            raise ConfigError("the store was sealed by another token: a wrong token, or a wrong store")
        setup.name_root(tx, core.token, _root(tx, core.token))
        _enrol_all(call, tx, journal)
        if identity is not None and rows.get_domain_by_name(tx, identity.domain) is None:
            _make_user(settings, core, tx, identity, folder)


def _root(tx: Tx, token: Token) -> str:
    labels = {each.label for each in token.held()}
    current = next(each.label for each in roots.root_keys(tx) if each.state == roots.CURRENT)
    return current if current in labels else max(labels, key=roots.number)


def _enrol_all(call: Call, tx: Tx, journal: Journal) -> None:
    known = ukeys.registry_in(tx)
    if known.by_id:
        if {each.id for each in known.living()} != {each.id for each in journal.seats}:
            raise CeremonyRefused("the store knows other UKeys: this HSM was founded before")
        return
    for seat in journal.seats:
        candidate = Candidate(
            name=seat.name,
            role=seat.role,
            serial=seat.serial,
            public_key=data(seat.public_key),
            certificate=data(seat.certificate),
            opens=seat.opens,
        )
        ukeys.enrol(call, tx, candidate, f"ceremony {journal.id}", seat.id)
    ukeys.set_quorum(tx, ukeys.Quorum(journal.quorum.administrators, journal.quorum.operators))
    if service_settings.setting(tx, service_settings.INSTANCE) is None:
        service_settings.put_setting(tx, service_settings.INSTANCE, json.dumps(journal.instance))


def _make_user(settings: Settings, core: Core, tx: Tx, identity: FirstUser, folder: Path) -> None:
    """The first user. What it logs in with is in a file before the store has it: it can't be had again."""
    password = secrets.token_urlsafe(18)
    made = setup.first_identity(
        tx,
        core.token,
        _root(tx, core.token),
        identity.domain,
        identity.project or settings.region,
        identity.user,
        password,
        identity.roles,
        identity.certificates,
    )
    shown = {
        "domain_id": made.domain_id,
        "project_id": made.project_id,
        "user_id": made.user_id,
        "access_key": made.access_key,
        "secret_key": made.secret_key,
        "password": password,
    }
    write_private(folder / CREDENTIALS_FILE, (json.dumps(shown, indent=2) + "\n").encode())


def _record(settings: Settings, core: Core, journal: Journal, folder: Path) -> Record:
    split = (folder / bench.SO_PIN_FILE).exists()
    quorum = journal.quorum
    record = Record(
        format=papers.RECORD,
        id=journal.id,
        instance=ukeys.instance(core),
        time=papers.now_text(),
        software=papers.software(),
        token=bench.machine(core.token),
        keys=bench.keys_of(core.token),
        quorum=quorum,
        ukeys=tuple(each.member() for each in journal.seats),
        pin=f"split, {quorum.operators} operators open it" if settings.seal.file else "in a file of the host",
        so_pin=f"split, {quorum.administrators} administrators open it" if split else "not known here",
        history=(Event(papers.now_text(), f"founded; begun {journal.time}"),),
    )
    return bench.signed(core.token, record)
