"""Keys on their way: out of this HSM, into another one, and closed for good.

What leaves is wrapped inside the HSM, by a carrier key for another token's transport key, or by one that is
split among UKeys. Who takes keys in shows the record that people have signed, which says whose UKeys count
and what the check values are.
"""

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hsmd import sealfile
from hsmd.config import Settings
from hsmd.daemon.ceremony import bench, papers
from hsmd.daemon.ceremony.bench import BACKUP_PURPOSE, TRANSPORT_LABEL, Pins, Sealing, TokenAnswers
from hsmd.daemon.ceremony.papers import (
    Approval,
    CeremonyRefused,
    Event,
    Member,
    Package,
    Quorum,
    Record,
    Transport,
    Wrapped,
    data,
    text,
)
from hsmd.daemon.ceremony.party import HOLDER, Party, members_of, package_approvals
from hsmd.daemon.wiring import now_millis
from hsmd.domain import ukeys
from hsmd.domain.core import Core
from hsmd.errors import Error
from hsmd.hsm import CARRIER_BYTES, BadData, Carrier
from hsmd.sealfile import Holder
from hsmd.store import SealBroken, StoreError, roots
from hsmd.ukey import Purpose

_CARRIER = "carrier"  # in the seal of a package
_FEW_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Split:
    """Whose UKeys hold a backup: so many of these together. Nobody named: the administrators."""

    needed: int = 0
    holders: tuple[Member, ...] = ()


def prepare(
    settings: Settings, record: Record, folder: Path, party: Party, answers: TokenAnswers
) -> Transport:
    """Make a new token, with PINs for the record's people, and the key by which it takes keys in.

    Repeatable. Raises CeremonyRefused, ConfigError, TokenRefused, Error.
    """
    _check_paper(record)
    papers.private_folder(folder)
    with bench.recorded(settings, "ceremonyPrepare", f"ceremony/{record.id}"):
        pins = _token(settings, record, folder, party, answers)
        with bench.opened(settings, pins.pin) as core:
            public = _transport_key(core)
            transport = Transport(
                format=papers.TRANSPORT,
                record=record.id,
                token=bench.machine(core.token),
                fingerprint=hashlib.sha256(public).hexdigest(),
                public_key=text(public),
            )
    papers.write(folder / "transport.json", transport)
    return transport


def backup_to_token(
    settings: Settings, record_path: Path, transport: Transport, fingerprint: str, out: Path, party: Party
) -> Package:
    """Wrap the keys that aren't closed for another token's transport key; `fingerprint` is as people read it.

    Its first 16 digits are due at least. Raises CeremonyRefused: then there is no package.
    """
    public = data(transport.public_key)
    actual = hashlib.sha256(public).hexdigest()
    read = "".join(fingerprint.split()).lower()
    if len(read) < _FEW_DIGITS or not actual.startswith(read) or transport.fingerprint != actual:
        raise CeremonyRefused(
            "the transport key has another fingerprint than was read: it may be a stranger's"
        )
    with _leaving(settings, record_path, out, party) as (core, record, labels):
        carrier, passed = core.token.pack(labels, public)
        package = _package(core, record)
        package = replace(
            package,
            transport=actual,
            digest=carrier.digest,
            carrier=text(carrier.wrapped),
            keys=tuple(map(Wrapped.of, passed)),
        )
        where = (
            f"the HSM {transport.token.label} (serial {transport.token.serial or 'none'}), key {actual[:16]}"
        )
        return _approved(settings, core, record, package, f"to {where}", record_path, out, party)


def backup_to_ukeys(settings: Settings, record_path: Path, split: Split, out: Path, party: Party) -> Package:
    """Wrap the keys that aren't closed by a carrier key that UKeys hold in shares. Raises CeremonyRefused."""
    with _leaving(settings, record_path, out, party) as (core, record, labels):
        mixed = zip(core.token.random(CARRIER_BYTES), secrets.token_bytes(CARRIER_BYTES), strict=True)
        carrier = bytes(one ^ other for one, other in mixed)
        members = split.holders or tuple(_administrators(core))
        holders = [Holder(each.id, each.name, each.der, each.opens) for each in members if each.opens]
        needed = split.needed or record.quorum.administrators
        try:
            seal = sealfile.make(
                {_CARRIER: carrier.hex()}, holders, needed, now=now_millis(), purpose=BACKUP_PURPOSE
            )
        except ValueError as error:
            raise CeremonyRefused(f"the backup can't be split so: {error}") from error
        passed = core.token.pack_under(labels, carrier)
        package = _package(core, record)
        package = replace(package, seal=sealfile.encode(seal), keys=tuple(map(Wrapped.of, passed)))
        names = ", ".join(each.name for each in holders)
        words = f"so that {needed} of these can open them together: {names}"
        return _approved(settings, core, record, package, words, record_path, out, party)


def restore(
    settings: Settings,
    record: Record,
    packages: Sequence[Package],
    folder: Path,
    party: Party,
    answers: TokenAnswers,
) -> Record:
    """Take keys in that another HSM let go; the record of this HSM.

    Nothing happens before all who are needed were there. Repeatable: what stands is proven and kept. Raises
    CeremonyRefused, ConfigError, TokenRefused, Error.
    """
    _check_paper(record)
    for package in packages:
        _check_package(record, package)
    papers.private_folder(folder)
    its = bench.officer(settings).look()
    labels = [each.label for package in packages for each in package.keys]
    words = f"the keys {', '.join(labels)} are taken into the HSM {its.label or settings.hsm.token}"
    values: dict[str, object] = {
        "step": "restore",
        "record": record.digest,
        "packages": [each.id for each in packages],
        "to": its.serial.strip(),
        "nonce": secrets.token_hex(16),
    }
    with bench.recorded(settings, "ceremonyRestore", f"ceremony/{record.id}"):
        needed = record.quorum.administrators
        approvals = party.approve(
            record.members(ukeys.ADMINISTRATOR), needed, Purpose.CEREMONY, values, words
        )
        carriers = {each.id: _carrier(each, party) for each in packages if each.seal}
        pins = _token(settings, record, folder, party, answers)
        with bench.opened(settings, pins.pin) as core:
            for package in packages:
                _take_in(core, package, carriers.get(package.id, b""), party)
            core.token.destroy_labelled([TRANSPORT_LABEL])
            event = f"restored from the HSM {record.token.label} (serial {record.token.serial or 'none'})"
            return _written(settings, core, record, folder, event, _names(record.ukeys, approvals), new=True)


def close(settings: Settings, record_path: Path, party: Party, *, without_backup: bool = False) -> Record:
    """Close all keys: none of them can leave this HSM from now on. Once more is well.

    Raises CeremonyRefused, also while the record knows of no backup, unless that is said to be meant.
    """
    record = _own_record(record_path)
    if not without_backup and not any(each.what.startswith("backup") for each in record.history):
        raise CeremonyRefused("the record knows of no backup, and closed keys can't be backed up any more")
    with _at_work(settings, record, "ceremonyClose", party) as core:
        labels = [each.label for each in bench.keys_of(core.token)]
        words = f"the keys {', '.join(labels)} are closed, for good: they can't be backed up any more"
        values: dict[str, object] = {"step": "close", "record": record.id, "keys": labels}
        names = _agreed(core, record, party, values, words)
        for label in labels:
            core.token.close_key(label)
        return _written(settings, core, record, record_path.parent, "closed", names)


def next_root(settings: Settings, record_path: Path, party: Party) -> Record:
    """Make the root key that is to come, which can be backed up and closed before it takes over.

    Raises CeremonyRefused.
    """
    record = _own_record(record_path)
    with _at_work(settings, record, "ceremonyNextRoot", party) as core:
        label, there = _next_root(core, record)
        words = f"the root key {label} is made; it takes over when that is decided"
        values: dict[str, object] = {"step": "next-root", "record": record.id, "label": label}
        names = _agreed(core, record, party, values, words)
        if not there:
            core.token.make_root_key(label, extractable=True)
        return _written(settings, core, record, record_path.parent, f"made {label}", names)


def renew(settings: Settings, record_path: Path, party: Party) -> Record:
    """Write the record anew, from what stands: after UKeys, the quorum or the root key became others.

    Raises CeremonyRefused.
    """
    record = _own_record(record_path)
    with _at_work(settings, record, "ceremonyRecord", party) as core:
        with core.store.read() as tx:
            quorum = ukeys.quorum(tx)
        made = replace(
            record,
            instance=ukeys.instance(core),
            ukeys=tuple(members_of(core)),
            quorum=Quorum(quorum.administrators, quorum.operators),
        )
        values: dict[str, object] = {
            "step": "record",
            "record": record.digest,
            "keys": {each.label: each.check_value for each in bench.keys_of(core.token)},
            "ukeys": {each.id: each.fingerprint for each in made.ukeys},
            "quorum": [quorum.administrators, quorum.operators],
        }
        all_names = ", ".join(f"{each.name} ({each.role})" for each in made.ukeys)
        names = _agreed(core, record, party, values, f"a new record, with the UKeys of {all_names}")
        _split_anew(made, record_path.parent, party)
        return _written(settings, core, made, record_path.parent, "written anew", names)


# Behind them


@contextmanager
def _at_work(settings: Settings, record: Record, event: str, party: Party) -> Iterator[Core]:
    """A step at the record's HSM, which operators open for it. Raises CeremonyRefused for another HSM."""
    with bench.recorded(settings, event, f"ceremony/{record.id}"):
        pin = bench.open_pin(settings, party)
        with bench.opened(settings, pin) as core:
            _check_same(core, record)
            yield core


def _agreed(
    core: Core, record: Record, party: Party, values: Mapping[str, object], words: str
) -> tuple[str, ...]:
    """The names of the administrators who approve now: it is for this time only. Raises CeremonyRefused."""
    needed, members = _deciding(core, record)
    asked = {**values, "nonce": secrets.token_hex(16)}
    return _names(members, party.approve(members, needed, Purpose.CEREMONY, asked, words))


@contextmanager
def _leaving(
    settings: Settings, record_path: Path, out: Path, party: Party
) -> Iterator[tuple[Core, Record, list[str]]]:
    """Keys are about to leave: the HSM is open, and it is known which of them may."""
    record = _own_record(record_path)
    if out.exists():
        raise CeremonyRefused(f"{out} is there already")
    with _at_work(settings, record, "ceremonyBackup", party) as core:
        _check_people(core, record)
        keys = bench.keys_of(core.token)
        labels = [each.label for each in keys if not each.closed]
        if not labels:
            raise CeremonyRefused(
                "all keys are closed: they can't leave this HSM; an earlier backup has them"
            )
        if closed := [each.label for each in keys if each.closed]:
            party.tell(f"Closed, and not in this backup: {', '.join(closed)}.")
        yield core, record, labels


def _next_root(core: Core, record: Record) -> tuple[str, bool]:
    """The label of the root key to come, and whether it is there: made by a step that was cut short."""
    newest = max(bench.keys_of(core.token), key=lambda each: roots.number(each.label))
    known = {each.label for each in record.keys}
    if roots.number(newest.label) and newest.label not in known and not newest.closed:
        return newest.label, True
    return f"hsmd-root-{1 + roots.number(newest.label)}", False


def _package(core: Core, record: Record) -> Package:
    return Package(
        format=papers.PACKAGE,
        id=secrets.token_hex(16),
        instance=record.instance,
        time=papers.now_text(),
        token=bench.machine(core.token),
        record=record.id,
        transport="",
        digest="",
        carrier="",
        seal="",
        keys=(),
    )


def _approved(
    settings: Settings,
    core: Core,
    record: Record,
    package: Package,
    words: str,
    record_path: Path,
    out: Path,
    party: Party,
) -> Package:
    """The package, written when enough administrators have let it go; then the record says so."""
    labels = ", ".join(each.label for each in package.keys)
    needed, members = _deciding(core, record)
    words = f"the keys {labels} leave this HSM, {words}"
    approvals = party.approve(members, needed, Purpose.CEREMONY, package.statement(), words)
    package = replace(package, approvals=approvals)
    papers.write(out, package)
    event = f"backup {package.id}: {words}"
    _written(settings, core, record, record_path.parent, event, _names(members, approvals))
    return package


def _written(
    settings: Settings,
    core: Core,
    record: Record,
    folder: Path,
    what: str,
    approved: tuple[str, ...],
    *,
    new: bool = False,
) -> Record:
    """The record as it is now, with one event more. `new`: of another HSM than before."""
    history = (*record.history, Event(papers.now_text(), what, approved))
    made = replace(
        record,
        time=papers.now_text(),
        software=papers.software(),
        token=bench.machine(core.token),
        keys=bench.keys_of(core.token),
        history=history,
        signature="",
    )
    if new:
        made = replace(made, pin=_pin_words(settings, record), so_pin=_so_pin_words(folder, record))
    made = bench.signed(core.token, made)
    papers.write_record(folder, made)
    return made


def _pin_words(settings: Settings, record: Record) -> str:
    needed = record.quorum.operators
    return f"split, {needed} operators open it" if settings.seal.file else "in a file of the host"


def _so_pin_words(folder: Path, record: Record) -> str:
    split = (folder / bench.SO_PIN_FILE).exists()
    return f"split, {record.quorum.administrators} administrators open it" if split else "not known here"


def _token(settings: Settings, record: Record, folder: Path, party: Party, answers: TokenAnswers) -> Pins:
    """The token that is to take keys in: made now, or before, by `prepare` or by who was cut short."""
    sealing = Sealing(record.ukeys, record.quorum.administrators, record.quorum.operators)
    return bench.make_token(settings, folder, party, sealing, answers)


def _transport_key(core: Core) -> bytes:
    """The public half of the transport key, which is made when it is missing, or half of it."""
    token = core.token
    found = [each for each in token.held() if each.label == TRANSPORT_LABEL]
    if len(found) == 2:
        return token.public_key_of(TRANSPORT_LABEL)
    token.destroy_labelled([TRANSPORT_LABEL])
    return token.make_transport_key(TRANSPORT_LABEL)


def _carrier(package: Package, party: Party) -> bytes:
    """The carrier key of a package that is split among UKeys. Raises CeremonyRefused."""
    seal = sealfile.decode(package.seal, f"the package {package.id[:32]}")
    opened = party.open_seal(seal, HOLDER, "to open the backup")
    try:
        return bytes.fromhex(opened[_CARRIER])
    except (KeyError, ValueError) as error:
        raise CeremonyRefused("the backup's seal holds no carrier key") from error


def _take_in(core: Core, package: Package, carrier: bytes, party: Party) -> None:
    passed = [each.passed() for each in package.keys]
    try:
        if package.seal:
            made = core.token.unpack_under(passed, carrier)
        else:
            public = core.token.public_key_of(TRANSPORT_LABEL)
            if hashlib.sha256(public).hexdigest() != package.transport:
                raise CeremonyRefused("these keys are for another HSM's transport key")
            made = core.token.unpack(passed, Carrier(data(package.carrier), package.digest), TRANSPORT_LABEL)
    except BadData as error:
        raise CeremonyRefused(f"the keys were changed, or are for another HSM: {error}") from error
    for each in passed:
        state = "taken in" if each.label in made else "was there"
        party.tell(f"{each.label}: check value {papers.grouped(each.check_value)}, {state}.")


def _check_paper(record: Record) -> None:
    bench.check_record(record)
    bench.check_ukeys(record)


def _check_package(record: Record, package: Package) -> None:
    """Raises CeremonyRefused unless it is of this installation, and enough administrators let it go."""
    if (package.record, package.instance) != (record.id, record.instance):
        raise CeremonyRefused("the package is of another ceremony than the record")
    package_approvals(package, record.ukeys, record.quorum.administrators)
    known = {each.label: each.check_value for each in record.keys}
    for each in package.keys:
        if not bench.is_ours(each.label) or known.get(each.label, each.check_value) != each.check_value:
            raise CeremonyRefused(f"the package has another key {each.label[:64]} than the record")


def _own_record(path: Path) -> Record:
    record = papers.read_record(path)
    _check_paper(record)
    return record


def _check_same(core: Core, record: Record) -> None:
    """Raises CeremonyRefused when this is not the record's HSM."""
    now = {each.label: each.check_value for each in bench.keys_of(core.token)}
    for each in record.keys:
        if now.get(each.label, each.check_value) != each.check_value:
            raise CeremonyRefused(f"the HSM has another key {each.label} than the record")
    if not set(now) & {each.label for each in record.keys}:
        raise CeremonyRefused("the HSM has none of the record's keys")


def _check_people(core: Core, record: Record) -> None:
    """Raises CeremonyRefused when the record names others than decide now: a restore goes by the record."""
    needed, members = _deciding(core, record)
    if needed != record.quorum.administrators or set(members) != set(record.members(ukeys.ADMINISTRATOR)):
        raise CeremonyRefused(
            "administrators or their number have changed since the record: `hsmctl ceremony record` first"
        )


def _split_anew(record: Record, folder: Path, party: Party) -> None:
    """The SO PIN goes to the administrators of now, opened by those who hold it. Raises CeremonyRefused."""
    path = folder / bench.SO_PIN_FILE
    if not path.exists():
        return
    seal = sealfile.read(path)
    now = {each.der for each in record.members(ukeys.ADMINISTRATOR) if each.opens}
    if {
        each.holder.public_key for each in seal.shares
    } == now and seal.threshold == record.quorum.administrators:
        return
    pins = party.open_seal(seal, ukeys.ADMINISTRATOR, "to split the SO PIN anew")
    sealing = Sealing(record.ukeys, record.quorum.administrators, record.quorum.operators)
    sealfile.write(path, sealing.seal(ukeys.ADMINISTRATOR, pins, bench.SO_PURPOSE))


def _deciding(core: Core, record: Record) -> tuple[int, list[Member]]:
    """How many administrators decide, and who they are: by the store, which changes; else by the record."""
    try:
        core.store.check()
        with core.store.read() as tx:
            quorum = ukeys.quorum(tx)
        members = members_of(core)
    except SealBroken as error:
        raise CeremonyRefused(str(error)) from error
    except (Error, StoreError):
        return record.quorum.administrators, record.members(ukeys.ADMINISTRATOR)
    found = [each for each in members if each.role == ukeys.ADMINISTRATOR]
    if not found:
        return record.quorum.administrators, record.members(ukeys.ADMINISTRATOR)
    return quorum.administrators, found


def _administrators(core: Core) -> list[Member]:
    return [each for each in members_of(core) if each.role == ukeys.ADMINISTRATOR]


def _names(members: Sequence[Member], approvals: Sequence[Approval]) -> tuple[str, ...]:
    by_id = {each.id: each.name for each in members}
    return tuple(by_id[each.ukey] for each in approvals)
