"""Customer master keys: made in the HSM, described, listed, switched on and off, renamed."""

import hashlib
import json
import logging
import re
import uuid
from dataclasses import dataclass, replace
from functools import partial

from hsmd.algorithms import AES_256, KEY_SPECS, KeyAlgorithm
from hsmd.domain import access, kept, keystores, limits
from hsmd.domain.core import DAY_MILLIS, Call
from hsmd.errors import (
    ALIAS_INVALID,
    DESCRIPTION_INVALID,
    KEY_IS_DEFAULT,
    KEY_NOT_DISABLED,
    KEY_NOT_ENABLED,
    KEY_NOT_FOUND,
    KEY_PENDING_DELETION,
    KEYSTORE_NOT_IMPORTED,
    LIMIT_INVALID,
    MARKER_INVALID,
    PARAMETER_INVALID,
    QUOTA_EXCEEDED,
    SEQUENCE_INVALID,
    SPEC_INVALID,
    Error,
)
from hsmd.hsm import Handle
from hsmd.keyring import with_token_key
from hsmd.store import SealBroken, Tx, aliases, keys, sequences
from hsmd.store.keys import Key, KeyVersion

# Services that have a default key in each project, made when they first use it. DEW: default keys.
SERVICES = frozenset(
    ["obs", "evs", "ims", "vbs", "sfs", "kps", "csms", "dlf", "dds", "elb", "mkp", "coc", "cce"]
)
DEFAULT_KEYSTORE = "0"
EXTERNAL = "external"
_IMPORTED_KINDS = ("aes", "generic-secret", "rsa", "ec")

_ALIAS = re.compile(r"[a-zA-Z0-9:/_-]{1,255}")
_SEQUENCE_LENGTH = 36
_DESCRIPTION_LENGTH = 255
_PAGE = 10
_LARGEST_PAGE = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: `next_marker` is None on the last one."""

    keys: list[Key]
    total: int
    next_marker: int | None


def check_sequence(sequence: str) -> None:
    """Raises Error(SEQUENCE_INVALID) for anything but nothing or 36 printable characters."""
    if sequence and (len(sequence) != _SEQUENCE_LENGTH or not sequence.isprintable()):
        raise Error(SEQUENCE_INVALID, reason="36 characters are due")


def create_key(
    call: Call,
    *,
    alias: str,
    spec: str = "",
    usage: str = "",
    description: str = "",
    origin: str = "",
    enterprise_project_id: str = "",
    keystore_id: str = "",
    sequence: str = "",
) -> Key:
    """A new enabled key, or one of origin external that awaits its material (imports.py).

    `keystore_id` may be "" or 0, the default keystore, or a dedicated one of the domain (keystores.py).
    The same `sequence` within 24 hours gives the key made at first. DEW: create-key.
    """
    row = _checked_spec(spec, usage, origin)
    keystore = _checked_keystore(call, keystore_id, origin)
    check_alias(alias)
    check_description(description)
    check_sequence(sequence)
    usage, enterprise = usage or row.usages[0], enterprise_project_id or "0"
    digest = _digest(alias, row.name, usage, description, enterprise, keystore)
    if sequence and (earlier := _answered(call, sequence, digest)):
        return earlier
    key = replace(_new_key(call, alias, row, description, enterprise, keystore), usage=usage)
    if origin == EXTERNAL:
        key = replace(key, origin=EXTERNAL, state=access.PENDING_IMPORT)
    return _made(call, access.admit(call, key), row, sequence, digest)


def _digest(*asked: str | None) -> bytes:
    """What tells one request from another; None is left out, as it always was where there is no keystore."""
    return hashlib.sha256(json.dumps([each for each in asked if each is not None]).encode()).digest()


def _made(call: Call, key: Key, row: KeyAlgorithm, sequence: str, digest: bytes) -> Key:
    """The key, with its first version unless that is to be imported."""
    quota = limits.of(call.core, key.project_id, limits.KEYS)
    if key.origin == EXTERNAL:
        return _inserted(call, key, None, quota, sequence, digest)
    if key.keystore_id is None:
        return _inserted(call, key, _new_version(call, key, row), quota, sequence, digest)

    def check(tx: Tx) -> None:  # before the object is born: it would outlive a refusal for a while
        if not (sequence and _recall(call, tx, sequence, digest)):
            _check_quota(tx, key, quota)
            keys.check_alias_free(tx, key)

    with kept.making(call, key, row, check) as version:
        return _inserted(call, key, version, quota, sequence, digest)


def _check_quota(tx: Tx, key: Key, quota: int) -> None:
    if keys.count_keys(tx, key.project_id, custom_only=True, at_most=quota) >= quota:
        raise Error(QUOTA_EXCEEDED, quota=quota)


def _inserted(
    call: Call, key: Key, version: KeyVersion | None, quota: int, sequence: str, digest: bytes
) -> Key:
    """The key, which is there from now on; or the one that the sequence has made before."""
    with call.change() as tx:
        if sequence and (earlier := _recall(call, tx, sequence, digest)):
            return earlier
        kept.take(call, tx, key)
        _check_quota(tx, key, quota)
        keys.insert_key(tx, key, version)
        if sequence:
            sequences.forget_older(tx, key.created - DAY_MILLIS)
            sequences.remember(tx, key.project_id, "create-key", sequence, digest, key.id, key.created)
        call.resource, call.key_version = key.id, version.version if version else 0
    return key


def describe_key(call: Call, reference: str) -> Key:
    """DEW: describe-key."""
    return access.key(call, reference)


def list_keys(
    call: Call,
    *,
    limit: int | None,
    marker: int | None,
    state: int = 0,
    spec: str = "",
    enterprise_project_id: str = "",
) -> Page:
    """The project's keys from position `marker` on, oldest first. DEW: list-keys.

    `spec` and `enterprise_project_id` may be "" or ALL (of all enterprise projects: all), for every one. A
    row that fails its seal is left out and told (docs/decisions/0015), and counts in `total`.
    """
    limit, marker = page_bounds(limit, marker)
    if spec not in ("", "ALL") and spec not in KEY_SPECS:
        raise Error(SPEC_INVALID, reason=f"ALL, {', '.join(KEY_SPECS)} are due")
    wanted_spec = None if spec in ("", "ALL") else spec
    enterprise = None if enterprise_project_id.lower() in ("", "all") else enterprise_project_id
    project, broken = call.caller.project_id, list[SealBroken]()
    fitting = partial(
        keys.list_keys,
        project_id=project,
        state=state or None,
        spec=wanted_spec,
        enterprise=enterprise,
        broken=broken,
    )
    with call.read() as tx:
        if access.sees_all(call):
            rows = fitting(tx, limit=limit, offset=marker)
            total = keys.count_keys(tx, project, state=state or None, spec=wanted_spec, enterprise=enterprise)
            after = marker + len(rows) + len(broken)
        else:  # policies tell keys apart: the page and the count are of those that the caller may see
            seen = access.visible(call, tx, fitting(tx), lambda key: key)
            rows, total = seen[marker : marker + limit], len(seen)
            after = marker + len(rows)
    _tell(call, broken)
    return Page(rows, total, after if marker < after < total else None)


def _tell(call: Call, broken: list[SealBroken]) -> None:
    """Rows that were refused, and nothing else was: in the log, and in the audit log."""
    for each in broken:
        log.error("%s", each)
        call.also("refuseRow", f"{each.table}/{each.id}")


def page_bounds(limit: int | None, marker: int | None, usual: int = _PAGE) -> tuple[int, int]:
    """(how many, from which position) of a list; `usual` many when nothing is said."""
    limit = usual if limit is None else limit
    marker = 0 if marker is None else marker
    if not 1 <= limit <= _LARGEST_PAGE:
        raise Error(LIMIT_INVALID)
    if marker < 0:
        raise Error(MARKER_INVALID)
    return limit, marker


def enable_key(call: Call, reference: str) -> Key:
    """DISABLED to ENABLED. DEW: enable-key."""
    with call.change() as tx:
        key = _own_key(call, tx, reference)
        if key.state != access.DISABLED:
            raise Error(KEY_NOT_DISABLED, key=key.id)
        return _save(tx, replace(key, state=access.ENABLED))


def disable_key(call: Call, reference: str) -> Key:
    """ENABLED to DISABLED. DEW: disable-key."""
    with call.change() as tx:
        key = _own_key(call, tx, reference)
        if key.state != access.ENABLED:
            raise Error(KEY_NOT_ENABLED, key=key.id)
        return _save(tx, replace(key, state=access.DISABLED))


def update_alias(call: Call, reference: str, alias: str) -> Key:
    """DEW: update-key-alias."""
    check_alias(alias)
    with call.change() as tx:
        key = _renamable_key(call, tx, reference)
        aliases.left(tx, key.project_id, key.alias)
        return _save(tx, replace(key, alias=alias))


def update_description(call: Call, reference: str, description: str) -> Key:
    """DEW: update-key-description."""
    check_description(description)
    with call.change() as tx:
        return _save(tx, replace(_renamable_key(call, tx, reference), description=description))


def count_keys(call: Call) -> int:
    """How many custom keys, of any state, the project has. DEW: user-instances."""
    project = call.caller.project_id
    with call.read() as tx:
        if access.sees_all(call):
            return keys.count_keys(tx, project, custom_only=True)
        custom = (key for key in keys.list_keys(tx, project) if not key.is_default)
        return len(access.visible(call, tx, custom, lambda key: key))


def key_for_encryption(call: Call, reference: str) -> Key:
    """An enabled key to encrypt with; a service's default key is made when it is first asked for."""
    try:
        key = access.key(call, reference)
    except Error as error:
        service = _default_service(call, reference)
        if error.fault is not KEY_NOT_FOUND or service is None:
            raise
        key = _default_key(call, service)
    return access.usable(key)


def check_alias(alias: str) -> None:
    """Raises Error(ALIAS_INVALID) for what a tenant may not set."""
    if not _ALIAS.fullmatch(alias):
        raise Error(ALIAS_INVALID, reason="1 to 255 of letters, digits and :/_- are due")
    if alias.endswith("/default"):
        raise Error(ALIAS_INVALID, reason="names ending in /default belong to services")


def check_description(description: str) -> None:
    """Raises Error(DESCRIPTION_INVALID) beyond 255 characters."""
    if len(description) > _DESCRIPTION_LENGTH:
        raise Error(DESCRIPTION_INVALID, reason=f"at most {_DESCRIPTION_LENGTH} characters are due")


def custom(key: Key) -> Key:
    """The key itself, unless it is a default key: Error(KEY_IS_DEFAULT)."""
    if key.is_default:
        raise Error(KEY_IS_DEFAULT, key=key.alias)
    return key


def _checked_keystore(call: Call, keystore_id: str, origin: str) -> str | None:
    """The dedicated keystore that a key is to be made in; None for the default one."""
    if keystore_id in ("", DEFAULT_KEYSTORE):
        return None
    with call.read() as tx:
        found = keystores.of_caller(call, tx, keystore_id)
    if origin == EXTERNAL:
        raise Error(KEYSTORE_NOT_IMPORTED, reason="a key of origin external is due in the default keystore")
    return found.id


def _checked_spec(spec: str, usage: str, origin: str) -> KeyAlgorithm:
    row = KEY_SPECS.get(spec or AES_256.name)
    if row is None:
        raise Error(SPEC_INVALID, reason=f"{', '.join(KEY_SPECS)} are due")
    if usage and usage not in row.usages:
        raise Error(
            PARAMETER_INVALID, name="key_usage", reason=f"{', '.join(row.usages)} is due for {row.name}"
        )
    if origin not in ("", "kms", EXTERNAL):
        raise Error(PARAMETER_INVALID, name="origin", reason=f"kms or {EXTERNAL} is due")
    if origin == EXTERNAL and row.kind not in _IMPORTED_KINDS:
        raise Error(SPEC_INVALID, reason=f"{row.name} is not imported")
    return row


def _new_key(
    call: Call,
    alias: str,
    row: KeyAlgorithm,
    description: str,
    enterprise_project_id: str,
    keystore_id: str | None = None,
) -> Key:
    token = call.core.token
    identifier = uuid.UUID(bytes=token.random(16), version=4)
    if keystore_id is None and not token.supports(row):  # a keystore's token tells so itself
        raise Error(SPEC_INVALID, reason=f"this HSM can't do {row.name}")
    return Key(
        id=str(identifier),
        project_id=call.caller.project_id,
        domain_id=call.caller.domain_id,
        alias=alias,
        description=description,
        spec=row.name,
        usage=row.usages[0],
        origin="kms",
        state=access.ENABLED,
        is_default=False,
        created=call.core.clock(),
        deletion_date=None,
        enterprise_project_id=enterprise_project_id,
        current_version=1,
        keystore_id=keystore_id,
    )


def _new_version(call: Call, key: Key, row: KeyAlgorithm) -> KeyVersion:
    token, label = call.core.token, call.core.root_label()

    def make(root: Handle) -> tuple[bytes, bytes | None]:
        if not row.asymmetric:
            return token.generate(row, root), None
        pair = token.generate_pair(row, root)
        return pair.wrapped, pair.public_key

    wrapped, public_key = with_token_key(token, label, make)
    return KeyVersion(
        key_id=key.id,
        version=key.current_version,
        algorithm=row.name,
        wrapped=wrapped,
        root_label=label,
        created=key.created,
        destroyed=None,
        public_key=public_key,
    )


def _answered(call: Call, sequence: str, digest: bytes) -> Key | None:
    with call.read() as tx:
        return _recall(call, tx, sequence, digest)


def _recall(call: Call, tx: Tx, sequence: str, digest: bytes) -> Key | None:
    """The key that this sequence made within 24 hours; Error(SEQUENCE_INVALID) if it asked otherwise."""
    found = sequences.recall(tx, call.caller.project_id, "create-key", sequence)
    if found is None or found[2] < call.core.clock() - DAY_MILLIS:
        return None
    if found[0] != digest:
        raise Error(SEQUENCE_INVALID, reason="it was used for a request with other parameters")
    return access.key_for_change(call, tx, found[1])


def _own_key(call: Call, tx: Tx, reference: str) -> Key:
    return custom(access.key_for_change(call, tx, reference))


def _renamable_key(call: Call, tx: Tx, reference: str) -> Key:
    key = _own_key(call, tx, reference)
    if key.state == access.PENDING_DELETION:
        raise Error(KEY_PENDING_DELETION, key=key.id)
    return key


def _save(tx: Tx, key: Key) -> Key:
    keys.update_key(tx, key)
    return key


def _default_service(call: Call, reference: str) -> str | None:
    alias = access.alias_of(call, reference) or ""
    service, _, name = alias.partition("/")
    return service if name == "default" and service in SERVICES else None


def _default_key(call: Call, service: str) -> Key:
    """Make the project's default key for the service, unless another call was faster.

    Who may encrypt with it may have it made: that is no act of the caller's but of the service it calls for.
    """
    alias = f"{service}/default"
    draft = _new_key(call, alias, AES_256, f"Default key of {service}", "0")
    key = access.admit(call, replace(draft, is_default=True))
    version = _new_version(call, key, AES_256)
    present: Key | None = None

    def record() -> None:
        if present is None:
            call.also("createKey", key.id)

    with call.core.store.write(record) as tx:
        present = keys.get_key_by_alias(tx, call.caller.project_id, alias)
        if present is not None:
            return present
        keys.insert_key(tx, key, version)
    call.resource = key.id
    return key
