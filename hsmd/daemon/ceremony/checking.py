"""A running HSM against its record: whatever differs is named."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from hsmd import sealfile
from hsmd.config import ConfigError, Settings
from hsmd.daemon.ceremony import bench, papers
from hsmd.daemon.ceremony.papers import CeremonyRefused, Key, Member, Record
from hsmd.daemon.ceremony.party import Party, members_of
from hsmd.domain import ukeys
from hsmd.domain.core import Core
from hsmd.errors import Error
from hsmd.hsm import BadData, Held
from hsmd.sealfile import Seal
from hsmd.store import SealBroken, StoreError

_USES = {"aes": ("wrap", "unwrap"), "generic-secret": ("sign", "verify"), "ec": ("sign",)}


def verify(settings: Settings, record: Record, folder: Path, party: Party) -> list[str]:
    """What isn't as the record says, in words; nothing when all of it is. The daemon may be running.

    Raises CeremonyRefused when the PIN can't be opened, TokenRefused, Error when the HSM can't be asked.
    """
    found: list[str] = []
    try:
        bench.check_record(record)
        bench.check_ukeys(record)
    except CeremonyRefused as error:
        found.append(str(error))
    found += _of_software(record)
    with bench.recorded(settings, "ceremonyVerify", f"ceremony/{record.id}"):
        pin = bench.open_pin(settings, party)
        with bench.opened(settings, pin) as core:
            found += _of_token(core, record)
            found += _of_keys(core, record)
            found += _of_store(core, record)
        found += _of_seals(settings, record, folder)
    return found


def _of_software(record: Record) -> list[str]:
    now = papers.software()
    if now == record.software:
        return []
    return [
        f"software: {record.software.version} ({record.software.sha256[:16]}) in the record, "
        f"{now.version} ({now.sha256[:16]}) now"
    ]


def _of_token(core: Core, record: Record) -> list[str]:
    return papers.differences(record.token, bench.machine(core.token), "token ")


def _of_keys(core: Core, record: Record) -> Iterator[str]:
    """Missing keys, strange ones, others, and those that may do more than they should."""
    held = core.token.held()
    ours = [each for each in held if each.kind and bench.is_ours(each.label)]
    known = {each.label: each for each in record.keys}
    for each in held:
        if each.label not in known:
            yield f"key {each.label or 'without a label'}: not in the record"
    for label in known.keys() - {each.label for each in ours}:
        yield f"key {label}: not in the HSM"
    for each in ours:
        if each.label in known:
            yield from _of_key(core, each, known[each.label])


def _of_key(core: Core, held: Held, known: Key) -> Iterator[str]:
    try:
        value = core.token.proof(held.label)
    except (Error, BadData) as error:
        yield f"key {held.label}: can't be proven: {error}"
        return
    if value != known.check_value:
        yield f"key {held.label}: check value {known.check_value} in the record, {value} now"
    if held.closed != known.closed:
        words = {True: "closed", False: "not closed"}
        yield f"key {held.label}: {words[known.closed]} in the record, {words[held.closed]} now"
    if not held.private or not held.sensitive:
        yield f"key {held.label}: it can be read out"
    if held.kind != known.kind or set(held.uses) != set(_USES.get(held.kind, ())):
        yield f"key {held.label}: it may {', '.join(held.uses) or 'nothing'}"
    if known.public_key and papers.text(core.token.public_key_of(held.label)) != known.public_key:
        yield f"key {held.label}: another public key than in the record"


def _of_store(core: Core, record: Record) -> Iterator[str]:
    try:
        core.store.check()
        members = {each.id: each for each in members_of(core)}
        with core.store.read() as tx:
            quorum = ukeys.quorum(tx)
        instance = ukeys.instance(core)
    except (Error, StoreError) as error:
        yield f"store: it can't be read: {error}"
        return
    except SealBroken as error:
        yield f"store: {error}"
        return
    if instance != record.instance:
        yield f"store: of the installation {instance}, {record.instance} in the record"
    yield from _of_members(members, {each.id: each for each in record.ukeys})
    for name in ("administrators", "operators"):
        before, now = getattr(record.quorum, name), getattr(quorum, name)
        if before != now:
            yield f"quorum of {name}: {before} in the record, {now} now"


def _of_members(now: dict[str, Member], before: dict[str, Member]) -> Iterator[str]:
    for member_id in now.keys() - before.keys():
        yield f"UKey {now[member_id].name} ({now[member_id].role}): not in the record"
    for member_id in before.keys() - now.keys():
        yield f"UKey {before[member_id].name} ({before[member_id].role}): revoked, or not there"
    for member_id in now.keys() & before.keys():
        if now[member_id] != before[member_id]:
            yield f"UKey {before[member_id].name}: another one than in the record"


def _of_seals(settings: Settings, record: Record, folder: Path) -> Iterator[str]:
    if settings.seal.file is not None:
        yield from _of_seal(settings.seal.file, record, ukeys.OPERATOR, record.quorum.operators)
    if record.so_pin.startswith("split"):
        needed = record.quorum.administrators
        yield from _of_seal(folder / bench.SO_PIN_FILE, record, ukeys.ADMINISTRATOR, needed)
    if (settings.seal.file is not None) != record.pin.startswith("split"):
        yield f"user PIN: {record.pin} in the record, and the configuration says otherwise"


def _of_seal(path: Path, record: Record, role: str, needed: int) -> Iterator[str]:
    try:
        seal = sealfile.read(path)
    except ConfigError as error:
        yield str(error)
        return
    holders = {hashlib.sha256(each.holder.public_key).hexdigest() for each in seal.shares}
    if holders != {each.fingerprint for each in record.members(role) if each.opens}:
        yield f"{path}: others than the record's {role}s hold shares of it: {_named(seal)}"
    if seal.threshold != needed:
        yield f"{path}: {seal.threshold} shares open it, {needed} in the record"


def _named(seal: Seal) -> str:
    return ", ".join(each.holder.name for each in seal.shares)
