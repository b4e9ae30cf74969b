"""UKeys: who is enrolled in which role, and how many are needed together.

The registry is changed by the ceremony and by what a quorum has approved; the functions that do so take part
in a change that others begin. A UKey is never removed: it is revoked, and its key never comes back.
"""

import hmac
import json
import re
from dataclasses import dataclass, replace
from types import MappingProxyType

from cryptography import x509

from hsmd import ukey as ukeys
from hsmd.domain.core import DAY_MILLIS, Call, Core
from hsmd.errors import IAM_EXISTS, IAM_NOT_FOUND, IAM_PROTECTED, PARAMETER_INVALID, Error
from hsmd.store import SealBroken, Tx, service_settings
from hsmd.store import ukeys as rows
from hsmd.store.ukeys import UKey
from hsmd.ukey import Candidate, UKeyError

ADMINISTRATOR, OPERATOR, AUDITOR = ROLES = ("administrator", "operator", "auditor")
LEAST, MOST = 2, 16  # that a quorum may need: one alone must never suffice
MOST_UKEYS = 200  # revoked ones too: they are read as a whole

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SERIAL = re.compile(r"[!-~]{0,64}")
_NONCE = re.compile(r"([0-9]{1,15})-[0-9a-f]{32}")
_CERTIFICATE_BYTES = 8192
_ID_BYTES = 16
_NONCE_BYTES = 16
_FRESH_MILLIS = DAY_MILLIS
_POSSESSION = b"hsmd ukey possession 1\0"  # no sealed row begins so: they begin with a length
_OWNER = "ukeys"  # in the cache


@dataclass(frozen=True, slots=True)
class Quorum:
    """How many UKeys of a role are needed together; 0 before the ceremony has settled it."""

    administrators: int = 0
    operators: int = 0

    def of(self, role: str) -> int:
        """The number for a role; 0 for auditors, who decide nothing together."""
        return {ADMINISTRATOR: self.administrators, OPERATOR: self.operators}.get(role, 0)


@dataclass(frozen=True, slots=True)
class Registry:
    """All UKeys as they are now, by id and by fingerprint."""

    by_id: MappingProxyType[str, UKey]
    by_fingerprint: MappingProxyType[str, UKey]

    def living(self, role: str = "") -> list[UKey]:
        """Those that count, of a role or of any, oldest first."""
        return [each for each in self.by_id.values() if counts(each) and role in ("", each.role)]


def counts(ukey: UKey) -> bool:
    """Whether it was not revoked."""
    return ukey.revoked is None


def registry(core: Core) -> Registry:
    """The registry from the cache, which every change of it empties. Raises SealBroken."""
    return core.cache.get(_OWNER, "registry", lambda: _load(core))


def registry_in(tx: Tx) -> Registry:
    """The registry inside a change. Raises SealBroken."""
    found = rows.registry(tx)
    return Registry(
        MappingProxyType({each.id: each for each in found}),
        MappingProxyType({each.fingerprint: each for each in found}),
    )


def show(call: Call, ukey_id: str) -> UKey:
    """One UKey. Raises Error(IAM_NOT_FOUND)."""
    return known(registry(call.core), ukey_id)


def quorum(tx: Tx) -> Quorum:
    """What counts now. Raises SealBroken."""
    document = service_settings.setting(tx, service_settings.QUORUM)
    return Quorum(**json.loads(document)) if document else Quorum()


def set_quorum(tx: Tx, wanted: Quorum) -> None:
    """Settle it. Raises Error for numbers that are none, and for more than there are UKeys of the role."""
    check_quorum(registry_in(tx), wanted)
    document = {"administrators": wanted.administrators, "operators": wanted.operators}
    service_settings.put_setting(tx, service_settings.QUORUM, json.dumps(document))


def check_quorum(known: Registry, wanted: Quorum) -> None:
    """Raises Error(PARAMETER_INVALID) as `set_quorum` does."""
    for role in (ADMINISTRATOR, OPERATOR):
        number, there = wanted.of(role), len(known.living(role))
        if not LEAST <= number <= MOST:
            raise Error(PARAMETER_INVALID, name=f"{role}s", reason=f"{LEAST} to {MOST} is due")
        if number > there:
            raise Error(PARAMETER_INVALID, name=f"{role}s", reason=f"there are {there} of them")


def instance(core: Core) -> str:
    """The id of this installation, 32 hex digits: what UKeys sign names it. Made at its first use."""
    found = core.cache.get(_OWNER, "instance", lambda: _instance(core))
    if found is None:
        with core.store.write() as tx:
            found = instance_in(core, tx)
    return found


def instance_in(core: Core, tx: Tx) -> str:
    """The same inside a change. Raises SealBroken."""
    document = service_settings.setting(tx, service_settings.INSTANCE)
    if document is not None:
        return str(json.loads(document))
    made = core.token.random(_ID_BYTES).hex()
    service_settings.put_setting(tx, service_settings.INSTANCE, json.dumps(made))
    return made


# Enrolment


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a UKey signs and opens to show that it is there."""

    nonce: str
    instance: str
    box: bytes


def begin_enrolment(call: Call, public_key: bytes, opens: str) -> Enrolment:
    """A nonce, and a box where the UKey says it `opens` some. Nothing is kept: it can be told again.

    Raises Error(PARAMETER_INVALID).
    """
    core = call.core
    nonce = f"{core.clock()}-{core.token.random(_NONCE_BYTES).hex()}"
    ours = instance(core)
    try:
        ukeys.public_key(public_key)
        if not opens:
            return Enrolment(nonce, ours, b"")
        with call.read() as tx:
            data = _boxed(tx, nonce, public_key)
        context = ukeys.possession_context(ours, nonce)
        return Enrolment(nonce, ours, ukeys.make_box(public_key, opens, data, context))
    except UKeyError as error:
        raise Error(PARAMETER_INVALID, name="public_key", reason=str(error)) from error


def check_candidate(candidate: Candidate) -> None:
    """Raises Error(PARAMETER_INVALID) for a name, role, key or certificate that no UKey may have."""
    if not _NAME.fullmatch(candidate.name):
        raise _invalid("name", "1 to 64 of letters, digits and ._@- are due, a letter or digit first")
    if candidate.role not in ROLES:
        raise _invalid("role", f"one of {', '.join(ROLES)} is due")
    if not _SERIAL.fullmatch(candidate.serial):
        raise _invalid("serial", "at most 64 printable characters without spaces are due")
    try:
        kinds = ukeys.box_kinds(candidate.public_key)
    except UKeyError as error:
        raise _invalid("public_key", str(error)) from error
    if candidate.opens not in ("", *kinds):
        raise _invalid("opens", f"one of {', '.join(kinds)} is due for this key, or nothing")
    if candidate.role == OPERATOR and not candidate.opens:
        raise _invalid("opens", "an operator's UKey has to open boxes, as shares of the PIN are kept in them")
    _check_certificate(candidate)


def check_possession(call: Call, candidate: Candidate) -> None:
    """Whether the UKey signed that it is to be enrolled so, and opened the box that it says it can open.

    It has to have done so within 24 hours. Raises Error(PARAMETER_INVALID).
    """
    check_candidate(candidate)
    found = _NONCE.fullmatch(candidate.nonce)
    if found is None:
        raise _invalid("nonce", "that of a begun enrolment is due")
    age = call.core.clock() - int(found[1])
    if not 0 <= age <= _FRESH_MILLIS:
        raise _invalid("nonce", "the enrolment was begun more than a day ago")
    signed = candidate.statement(instance(call.core))
    if not ukeys.verify(candidate.public_key, signed, candidate.signature):
        raise _invalid("signature", "it is not the UKey's, or not for this")
    if candidate.opens:
        with call.read() as tx:
            data = _boxed(tx, candidate.nonce, candidate.public_key)
        if not hmac.compare_digest(data, candidate.opened):
            raise _invalid("opened", "the UKey did not open the box")
    elif candidate.opened:
        raise _invalid("opened", "there was no box")


def enrol(call: Call, tx: Tx, candidate: Candidate, by: str, ukey_id: str = "") -> UKey:
    """Take the UKey in. `by` says who decided it, `ukey_id` is for who knows its id before.

    Raises Error(IAM_EXISTS, PARAMETER_INVALID).
    """
    check_candidate(candidate)
    known = registry_in(tx)
    fingerprint = ukeys.fingerprint(candidate.public_key)
    if len(known.by_id) >= MOST_UKEYS:
        raise Error(IAM_PROTECTED, reason=f"there are {MOST_UKEYS} UKeys already, revoked ones counted")
    if fingerprint in known.by_fingerprint:  # a revoked key may be in anybody's hands
        raise _invalid("public_key", "this key is enrolled already, or was")
    if any(each.name == candidate.name for each in known.living()):
        raise Error(IAM_EXISTS, kind="UKey")
    ukey = UKey(
        id=ukey_id or call.core.token.random(_ID_BYTES).hex(),
        name=candidate.name,
        role=candidate.role,
        serial=candidate.serial,
        fingerprint=fingerprint,
        public_key=candidate.public_key,
        certificate=candidate.certificate,
        opens=candidate.opens,
        created=call.core.clock(),
        created_by=by,
    )
    rows.insert_ukey(tx, ukey)
    return ukey


def revoke(call: Call, tx: Tx, ukey_id: str, by: str) -> UKey:
    """It counts no more, from the next call on. Raises Error(IAM_NOT_FOUND, IAM_PROTECTED).

    As many administrators and operators stay as are needed together.
    """
    found = registry_in(tx)
    ukey = known(found, ukey_id)
    check_revocable(found, quorum(tx), ukey)
    revoked = replace(ukey, revoked=call.core.clock(), revoked_by=by)
    rows.update_ukey(tx, revoked)
    return revoked


def check_revocable(registry: Registry, needed: Quorum, ukey: UKey) -> None:
    """Raises Error(IAM_PROTECTED) for one of the last that are needed, and for one that is revoked."""
    check_counting(ukey)
    most = needed.of(ukey.role)
    if len(registry.living(ukey.role)) <= most:
        raise Error(IAM_PROTECTED, reason=f"{most} {ukey.role}s are needed, and no more are there")


def check_counting(ukey: UKey) -> None:
    """Raises Error(IAM_PROTECTED) for one that is revoked."""
    if not counts(ukey):
        raise Error(IAM_PROTECTED, reason=f"the UKey {ukey.name} is revoked already")


def known(registry: Registry, ukey_id: str) -> UKey:
    """The UKey of that id, revoked or not. Raises Error(IAM_NOT_FOUND)."""
    ukey = registry.by_id.get(ukey_id)
    if ukey is None:
        shown = ukey_id if re.fullmatch(r"[0-9a-f]{32}", ukey_id) else "of that id"
        raise Error(IAM_NOT_FOUND, kind="UKey", id=shown)
    return ukey


def _boxed(tx: Tx, nonce: str, public_key: bytes) -> bytes:
    """What is in the box of an enrolment: others have to open it, we can tell it again."""
    return tx.seal(_POSSESSION + f"{nonce}\0{ukeys.fingerprint(public_key)}".encode())


def _check_certificate(candidate: Candidate) -> None:
    if not candidate.certificate:
        return
    if len(candidate.certificate) > _CERTIFICATE_BYTES:
        raise _invalid("certificate", f"at most {_CERTIFICATE_BYTES} bytes are due")
    try:
        certificate = x509.load_der_x509_certificate(candidate.certificate)
        its = ukeys.encoded(certificate.public_key())
    except Exception as error:  # cryptography raises many kinds for what is none
        raise _invalid("certificate", "DER is due") from error
    if its != candidate.public_key:
        raise _invalid("certificate", "it is of another key")


def _invalid(name: str, reason: str) -> Error:
    return Error(PARAMETER_INVALID, name=name, reason=reason)


def _load(core: Core) -> Registry:
    """Read it. An older one that is right in itself is noticed while this process lives."""
    seen = core.ukeys_seen  # before: what others see meanwhile may be newer than what is read here
    with core.store.read() as tx:
        found, number = registry_in(tx), rows.serial_number(tx)
    if number < seen:
        raise SealBroken("ukeys", "registry")
    core.ukeys_seen = max(core.ukeys_seen, number)
    return found


def _instance(core: Core) -> str | None:
    with core.store.read() as tx:
        document = service_settings.setting(tx, service_settings.INSTANCE)
    return None if document is None else str(json.loads(document))
