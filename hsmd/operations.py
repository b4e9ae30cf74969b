"""The operations that nobody may do alone: their parameters and what they mean, in words.

Who approves and who carries out read the same table. `hsmctl` makes the words itself, from what the UKey is
about to sign; the daemon checks the parameters by the same rows. What an operation does is elsewhere
(`hsmd/domain/proposals.py`); nothing here has a state.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

Value = str | int | bool
Parameters = Mapping[str, Value]
Facts = Mapping[str, Value]
"""What the object of an operation is like now, by names for people: it is shown and signed with it."""

LONGEST = 32 * 1024  # characters of parameters, as JSON
MOST_FACTS = 16 * 1024  # characters of facts, as JSON

_MOST_NUMBER = 2**53 - 1  # the same everywhere that JSON is read


class OperationError(ValueError):
    """There is no such operation, or its parameters are not those that are due; the text says which."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One value: `check` tells what is due instead of it, or "". `default` None: it has to be given."""

    check: Callable[[object], str]
    words: str
    default: Value | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """What can be proposed.

    `words` says in one sentence what will happen, `event` names the audit record of its being done. `roles`
    are the UKeys that may propose it and carry it out; only administrators approve.
    """

    name: str
    event: str
    parameters: Mapping[str, Parameter]
    words: Callable[[Parameters], str]
    roles: frozenset[str] = frozenset({"administrator"})


def text(pattern: str, due: str) -> Callable[[object], str]:
    """A check for text of that pattern."""
    compiled = re.compile(pattern)
    return lambda value: "" if isinstance(value, str) and compiled.fullmatch(value) else due


def number(least: int, most: int) -> Callable[[object], str]:
    """A check for a whole number."""
    due = f"{least} to {most} is due"

    def check(value: object) -> str:
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return "" if fits else due

    return check


def flag(value: object) -> str:
    """A check for true or false."""
    return "" if isinstance(value, bool) else "true or false is due"


def _base64(value: object) -> str:
    try:
        base64.b64decode(value if isinstance(value, str) else "-", validate=True)
    except ValueError:
        return "base64 is due"
    return ""


_KEY = Parameter(
    text(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "a key's id is due"), "the key's id"
)
_ID = text(r"[0-9a-f]{32}", "an id of 32 hex digits is due")
_NAME = text(r"[!-~]{1,64}", "1 to 64 printable characters without spaces are due")
_MAYBE = text(r"[!-~]{0,128}", "at most 128 printable characters without spaces are due")
_LABEL = Parameter(text(r"[a-z0-9-]{1,64}", "the label of a root key is due"), "the root key's label")
_REASON = Parameter(
    lambda value: "" if isinstance(value, str) and value.isprintable() and len(value) <= 200 else _REASON_DUE,
    "why, for those who approve and for the record",
    "",
)
_REASON_DUE = "at most 200 printable characters are due"


def _fingerprint(encoded: Value) -> str:
    return hashlib.sha256(base64.b64decode(str(encoded))).hexdigest()


def _template(pattern: str) -> Callable[[Parameters], str]:
    return lambda parameters: pattern.format(**parameters)


def _enrol(given: Parameters) -> str:
    return (
        f"Enrol the UKey {given['name']} (serial {given['serial'] or 'none'}) as {given['role']}. The "
        f"fingerprint of its public key is {_fingerprint(given['public_key'])}."
    )


def _raise_limit(given: Parameters) -> str:
    value = "any number" if given["value"] == 0 and given["name"] != "keys" else given["value"]
    return f"Allow the project {given['project_id']} {value} of {given['name']}, whatever the bound is."


def _destroy_root(given: Parameters) -> str:
    pins = " PINs of the first format that it wraps are lost." if given["lose_pins"] else ""
    return f"Destroy the root key {given['label']} in the HSM, for good.{pins}"


def _reasoned(words: str) -> Callable[[Parameters], str]:
    return lambda given: words + (f" The reason: {given['reason']}." if given["reason"] else "")


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        each.name: each
        for each in (
            Operation(
                "enrol-ukey",
                "enrolUkey",
                {
                    "name": Parameter(_NAME, "its name"),
                    "role": Parameter(_NAME, "administrator, operator or auditor"),
                    "serial": Parameter(_MAYBE, "of its token"),
                    "public_key": Parameter(_base64, "DER in base64"),
                    "certificate": Parameter(_base64, "DER in base64", ""),
                    "opens": Parameter(_MAYBE, "the boxes that it can open", ""),
                    "nonce": Parameter(_MAYBE, "of the begun enrolment"),
                    "opened": Parameter(_base64, "what was in its box, in base64", ""),
                    "signature": Parameter(_base64, "by the UKey, in base64"),
                },
                _enrol,
            ),
            Operation(
                "revoke-ukey",
                "revokeUkey",
                {"ukey_id": Parameter(_ID, "the UKey's id"), "reason": _REASON},
                _reasoned(
                    "Revoke a UKey, for good: it counts no more, and its key can never be enrolled again."
                ),
            ),
            Operation(
                "set-quorum",
                "setQuorum",
                {
                    "administrators": Parameter(number(2, 16), "how many are needed to decide"),
                    "operators": Parameter(number(2, 16), "how many are needed to unseal"),
                },
                _template(
                    "From now on {administrators} administrators decide together, "
                    "and {operators} operators unseal together."
                ),
            ),
            Operation(
                "freeze-key",
                "freezeKey",
                {"key_id": _KEY, "reason": _REASON},
                lambda given: _reasoned(
                    f"Freeze the key {given['key_id']}: nobody can use, change or delete it until it is "
                    "unfrozen. A deletion that is scheduled is called off."
                )(given),
            ),
            Operation(
                "unfreeze-key",
                "unfreezeKey",
                {"key_id": _KEY, "reason": _REASON},
                lambda given: _reasoned(
                    f"Unfreeze the key {given['key_id']}: it is again what it was before; one whose deletion "
                    "was scheduled is disabled."
                )(given),
            ),
            Operation(
                "delete-key-now",
                "deleteKeyNow",
                {"key_id": _KEY, "reason": _REASON},
                lambda given: _reasoned(
                    f"Delete the key {given['key_id']} now, before its time: what it has encrypted can never "
                    "be decrypted again. That can't be undone."
                )(given),
            ),
            Operation(
                "export-audit",
                "exportAudit",
                {"reason": _REASON},
                _reasoned("Export the audit log as it is when this is carried out, to whoever does so."),
                frozenset({"administrator", "auditor"}),
            ),
            Operation(
                "raise-limit",
                "raiseLimit",
                {
                    "project_id": Parameter(_ID, "the project's id"),
                    "name": Parameter(
                        text("keys|requests|calls", "keys, requests or calls is due"), "the limit"
                    ),
                    "value": Parameter(number(0, 1_000_000_000), "its new value"),
                },
                _raise_limit,
            ),
            Operation(
                "create-backup",
                "createBackup",
                {"reason": _REASON},
                _reasoned(
                    "Make a backup of store, configuration and wrapped keys, in the daemon's backup folder."
                ),
            ),
            Operation(
                "rotate-root-key",
                "rotateRootKey",
                {"label": _LABEL},
                _template("Wrap what is new by the root key {label}, and move all keys to it."),
            ),
            Operation(
                "destroy-root-key",
                "destroyRootKey",
                {
                    "label": _LABEL,
                    "lose_pins": Parameter(flag, "whether old PINs may be lost", default=False),
                },
                _destroy_root,
            ),
            Operation(
                "change-pin",
                "changePin",
                {
                    "token": Parameter(_NAME, '"hsm", or the cluster id of a dedicated keystore', "hsm"),
                    "reason": _REASON,
                },
                lambda given: _reasoned(
                    f"Change the user PIN of the token {given['token']} to a random one."
                )(given),
            ),
            Operation(
                "destroy-hsm",
                "destroyHsm",
                {"serial": Parameter(_NAME, "the token's serial number"), "reason": _REASON},
                lambda given: _reasoned(
                    f"Destroy all that is in the HSM token of serial number {given['serial']}: what its keys "
                    "protect is lost unless they are in a backup. That can't be undone."
                )(given),
            ),
        )
    }
)


def operation(name: str) -> Operation:
    """The operation of that name. Raises OperationError."""
    found = OPERATIONS.get(name)
    if found is None:
        raise OperationError(f"there is no such operation; there are {', '.join(OPERATIONS)}")
    return found


def checked(name: str, given: Mapping[str, object]) -> Parameters:
    """The parameters themselves, all that are due and no others. Raises OperationError."""
    due = operation(name).parameters
    for missing in due.keys() - given.keys():
        raise OperationError(f"{name}: the parameter {missing} is missing")
    made: dict[str, Value] = {}
    for each, value in given.items():
        if each not in due:
            raise OperationError(f"{name}: it has no such parameter; it has {', '.join(due) or 'none'}")
        wrong = due[each].check(value)
        if wrong or not isinstance(value, str | int):
            raise OperationError(f"{name}: {each}: {wrong}")
        made[each] = value
    if len(json.dumps(made)) > LONGEST:
        raise OperationError(f"{name}: the parameters are too long")
    return made


def read(name: str, document: str) -> Parameters:
    """The parameters in a JSON document. Raises OperationError."""
    return checked(name, read_object(document))


def read_object(document: str, most: int = LONGEST) -> dict[str, object]:
    """A JSON object, each name in it once, and no numbers but whole ones. Raises OperationError."""
    if len(document) > most:
        raise OperationError(f"at most {most} characters are due")
    try:
        found = json.loads(
            document, object_pairs_hook=_unique, parse_float=_no_number, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        raise OperationError("a JSON object is due, each name in it once") from error
    if not isinstance(found, dict):
        raise OperationError("a JSON object is due, each name in it once")
    for value in found.values():
        if isinstance(value, int) and abs(value) > _MOST_NUMBER:
            raise OperationError("a number is too large")
    return found


def read_facts(document: str) -> Facts:
    """The facts in a JSON document. Raises OperationError."""
    found = read_object(document, MOST_FACTS)
    if not all(isinstance(value, str | int) for value in found.values()):
        raise OperationError("facts are text, whole numbers and bools")
    return found  # type: ignore[return-value]  # just checked


def words(name: str, parameters: Parameters) -> str:
    """What will happen, for people. `parameters` are `checked`."""
    return operation(name).words(parameters)


def statement_values(
    *, proposal: str, name: str, parameters: Parameters, facts: Facts, instance: str, expires: int
) -> Mapping[str, object]:
    """What a UKey signs to approve, for the purpose "approve". `expires` in ms since 1970 UTC."""
    return {
        "proposal": proposal,
        "operation": name,
        "parameters": dict(parameters),
        "object": dict(facts),
        "instance": instance,
        "expires": expires,
    }


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _no_number(_text: str) -> object:
    raise ValueError("only whole numbers are due")
