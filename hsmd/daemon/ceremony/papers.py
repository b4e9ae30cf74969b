"""What a ceremony writes down: JSON that is read strictly, and text that people sign.

Nothing in these files is secret: keys stand there only wrapped, PINs only sealed. Each kind names its format;
another form of it is another format, and readers refuse what they don't know.
"""

import hashlib
import json
import textwrap
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import hsmd
from hsmd import ukey
from hsmd.config import ConfigError, table
from hsmd.daemon.certificates import write_private
from hsmd.hsm import Passed

RECORD, PACKAGE, TRANSPORT, JOURNAL = (
    f"hsmd-{name}-1" for name in ("record", "package", "transport", "ceremony")
)
_MOST_BYTES = 4 << 20
_SIGNED = b"hsmd record 1\0"
_WIDTH = 78

Paper = TypeVar("Paper")


class CeremonyRefused(Exception):  # noqa: N818  # named for what happened
    """A step isn't carried out; the text says why. Nothing has changed, or the next time completes it."""


@dataclass(frozen=True, slots=True)
class Member:
    """A UKey of the ceremony: `public_key` is DER in base64, the fingerprint its SHA-256 in hex."""

    id: str
    name: str
    role: str
    serial: str
    fingerprint: str
    public_key: str
    opens: str

    @property
    def der(self) -> bytes:
        """The public key."""
        return b64decode(self.public_key)


@dataclass(frozen=True, slots=True)
class Quorum:
    """How many UKeys of a role are needed together."""

    administrators: int
    operators: int


@dataclass(frozen=True, slots=True)
class Machine:
    """The token, as it tells of itself, and its module."""

    label: str
    serial: str
    model: str
    module: str


@dataclass(frozen=True, slots=True)
class Key:
    """A key of hsmd's own in the token. `public_key` is DER in base64, "" of a secret key."""

    label: str
    kind: str
    check_value: str
    closed: bool
    public_key: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """A step of the ceremony: who approved it, by names."""

    time: str
    what: str
    approved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Software:
    """The program: its version, and the SHA-256 over all its files."""

    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """What people sign. `pin` and `so_pin` say who has them; `signature` is the audit key's, base64."""

    format: str
    id: str
    instance: str
    time: str
    software: Software
    token: Machine
    keys: tuple[Key, ...]
    quorum: Quorum
    ukeys: tuple[Member, ...]
    pin: str
    so_pin: str
    history: tuple[Event, ...]
    signature: str = ""

    def signed(self) -> bytes:
        """What the audit key signs."""
        return _SIGNED + ukey.canonical(plain(replace(self, signature="")))

    @property
    def digest(self) -> str:
        """SHA-256 of what is signed: what people compare and write down."""
        return hashlib.sha256(self.signed()).hexdigest()

    def members(self, role: str) -> list[Member]:
        """Those of a role."""
        return [each for each in self.ukeys if each.role == role]


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A key on its way: see hsm.Passed. Bytes are in base64."""

    label: str
    kind: str
    check_value: str
    wrapped: str
    public_key: str

    @classmethod
    def of(cls, passed: Passed) -> "Wrapped":
        """For the file."""
        return cls(
            passed.label, passed.kind, passed.check_value, text(passed.wrapped), text(passed.public_key)
        )

    def passed(self) -> Passed:
        """For the token. Raises ConfigError."""
        if self.kind not in ("aes", "generic-secret", "ec"):
            raise ConfigError(f"the key {self.label[:64]} is of a kind that is not known")
        return Passed(self.label, self.kind, self.check_value, data(self.wrapped), data(self.public_key))


@dataclass(frozen=True, slots=True)
class Approval:
    """An administrator's signature of a step's statement, base64."""

    ukey: str
    signature: str


@dataclass(frozen=True, slots=True)
class Package:
    """Keys on their way to another token.

    `transport` is the fingerprint of the key that opens `carrier`, or "", and then `seal` (a seal file's
    text) holds the carrier key. The approvals are of `statement()`.
    """

    format: str
    id: str
    instance: str
    time: str
    token: Machine
    record: str
    transport: str
    digest: str
    carrier: str
    seal: str
    keys: tuple[Wrapped, ...]
    approvals: tuple[Approval, ...] = ()

    def statement(self) -> dict[str, object]:
        """What administrators sign: that these keys leave that HSM, and who can take them in."""
        holders = json.loads(self.seal)["shares"] if self.seal else []
        return {
            "step": "backup",
            "package": self.id,
            "instance": self.instance,
            "record": self.record,
            "from": self.token.serial,
            "transport": self.transport,
            "holders": [each["name"] for each in holders],
            "keys": {each.label: each.check_value for each in self.keys},
            "content": hashlib.sha256(ukey.canonical(plain(replace(self, approvals=())))).hexdigest(),
        }


@dataclass(frozen=True, slots=True)
class Transport:
    """The public half (DER in base64) of the key by which a new token takes keys in."""

    format: str
    record: str
    token: Machine
    fingerprint: str
    public_key: str


@dataclass(frozen=True, slots=True)
class Seat:
    """A UKey that is to be enrolled, and that was: `id` and the rest are "" until then."""

    name: str
    role: str
    id: str = ""
    serial: str = ""
    fingerprint: str = ""
    public_key: str = ""
    opens: str = ""
    certificate: str = ""

    def member(self) -> Member:
        """The UKey, once it was there."""
        return Member(
            self.id, self.name, self.role, self.serial, self.fingerprint, self.public_key, self.opens
        )


@dataclass(frozen=True, slots=True)
class Journal:
    """Whose UKeys a founding has met so far."""

    format: str
    id: str
    instance: str
    time: str
    quorum: Quorum
    seats: tuple[Seat, ...]


def read(path: Path, kind: type[Paper], wanted: str) -> Paper:
    """The paper in that file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        tree = json.loads(raw[:_MOST_BYTES])
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: this is no JSON") from error
    if not isinstance(tree, dict) or tree.get("format") != wanted:
        raise ConfigError(f"{path}: this is no {wanted}")
    return table(kind, tree, f"{path}: ")


def write(path: Path, paper: Any) -> None:
    """Put the paper there, whole or not at all. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, (json.dumps(plain(paper), indent=1) + "\n").encode())


def plain(paper: Any) -> dict[str, Any]:
    """The paper as JSON has it."""
    tree: dict[str, Any] = json.loads(json.dumps(asdict(paper)))
    return tree


def write_record(folder: Path, record: Record) -> None:
    """The record as record.json, and as record.txt for people."""
    write(folder / "record.json", record)
    write_private(folder / "record.txt", printed(record).encode())


def read_record(path: Path) -> Record:
    """The record in that file. Raises ConfigError."""
    return read(path, Record, RECORD)


def printed(record: Record) -> str:
    """The record for people: to print, to read aloud, to sign."""
    lines = [
        "RECORD OF THE CEREMONY",
        "",
        *_fields(
            {
                "Record": record.id,
                "Time": record.time,
                "Installation": record.instance,
                "hsmd": record.software.version,
                "SHA-256 of it": grouped(record.software.sha256),
                "HSM": f"{record.token.label}, {record.token.model}",
                "Serial number": record.token.serial.strip() or "none",
                "Module": record.token.module,
                "User PIN": record.pin,
                "SO PIN": record.so_pin,
            }
        ),
        "",
        "KEYS (check value; closed: it can't leave this HSM any more)",
        *_rows([(each.label, grouped(each.check_value), _closed(each)) for each in record.keys]),
        *(
            line
            for each in record.keys
            if each.public_key
            for line in _fields({each.label: grouped(hashlib.sha256(data(each.public_key)).hexdigest())})
        ),
        "",
        f"UKEYS ({record.quorum.administrators} administrators are needed together, "
        f"{record.quorum.operators} operators)",
        *(line for each in record.ukeys for line in _of_member(each)),
        "",
        "WHAT WAS DONE",
        *(line for each in record.history for line in _of_event(each)),
        "",
        "SHA-256 of this record (record.json; signed by the key hsmd-audit-1):",
        *_fields({"": grouped(record.digest)}),
        "",
        "We were there, and have compared what is above with what we saw.",
        "",
    ]
    for each in (*(member.name for member in record.ukeys), "witness"):
        lines += ["", f"{each[:24]:<24}  ________________________  ____________________"]
    return "\n".join(lines) + "\n"


def grouped(digits: str) -> str:
    """Hex digits as they are read aloud."""
    return " ".join(textwrap.wrap(digits, 4))


def now_text() -> str:
    """The time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def text(value: bytes) -> str:
    """Base64."""
    return b64encode(value).decode()


def data(value: str) -> bytes:
    """From base64. Raises ConfigError."""
    try:
        return b64decode(value, validate=True)
    except ValueError as error:
        raise ConfigError("base64 is due") from error


@cache
def software() -> Software:
    """The program as it is installed: each of its files counts, by name and content."""
    folder = Path(hsmd.__file__).parent
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".mako", ".html") and path.is_file():
            name = path.relative_to(folder).as_posix()
            total.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n".encode())
    return Software(hsmd.__version__, total.hexdigest())


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Names of what differs between two papers, with both values."""
    found = []
    for name in (each.name for each in fields(before)):
        one, other = getattr(before, name), getattr(now, name)
        if one != other:
            found.append(f"{path}{name}: {one!r} in the record, {other!r} now")
    return found


def _closed(key: Key) -> str:
    return "closed" if key.closed else "NOT CLOSED"


def _of_member(member: Member) -> list[str]:
    head = f"  {member.name}, {member.role}, {ukey.describe(member.der)}, serial {member.serial or 'none'}"
    return [head, *_wrapped(grouped(member.fingerprint), "      ")]


def _of_event(event: Event) -> list[str]:
    by = f" (approved by {', '.join(event.approved)})" if event.approved else ""
    return _wrapped(f"{event.time}  {event.what}{by}", "  ")


def _fields(named: Mapping[str, str]) -> list[str]:
    return [line for name, value in named.items() for line in _wrapped(f"{name:<16}{value}", "  ", 18)]


def _rows(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return ["  " + "  ".join(f"{each:<20}" for each in row).rstrip() for row in rows]


def _wrapped(line: str, before: str, more: int = 0) -> list[str]:
    after = before + " " * max(more - len(before), 0)
    return textwrap.wrap(line, _WIDTH, initial_indent=before, subsequent_indent=after, break_long_words=True)


def private_folder(path: Path) -> Path:
    """The folder, made when it is missing. Raises ConfigError where others may look in."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path}: others may look into it: chmod 700 is due")
    return path
