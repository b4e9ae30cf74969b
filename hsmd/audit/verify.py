"""Whether the log is whole, by its files and the public audit key alone; the first bad record of a chain.

What is found: any changed, added, removed, doubled or moved record that a signed checkpoint counts, a chain
or a file that is gone, a changed or forged checkpoint, a tail that was cut behind a checkpoint that is there
or was kept elsewhere. What can't be found: a change behind the last checkpoint by somebody who links the
lines anew; `Report.unsigned` tells how many records that concerns.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial as with_marks
from hashlib import file_digest
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from hsmd.audit import checkpoints, segments
from hsmd.audit.chain import START
from hsmd.audit.checkpoints import Checkpoint
from hsmd.audit.walk import Fault, Mark, Walk

FILE_SET_ASIDE = "auditFileSetAside"


@dataclass(slots=True)
class Report:
    """What was found. The log is whole when there are no faults.

    `records` counts those of all chains, `unsigned` those behind the last checkpoint, by chain. `torn` are
    chains whose last line has no end (yet), and its bytes. `notices` are the log's own records of what befell
    it. `strangers` are files of other names, which nobody vouches for.
    """

    records: int = 0
    checkpoints: int = 0
    last: Checkpoint | None = None
    unsigned: dict[str, int] = field(default_factory=dict)
    torn: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    notices: list[dict[str, object]] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Keys:
    """Public audit keys, by the fingerprint that checkpoints name them by."""

    known: Mapping[str, ec.EllipticCurvePublicKey]

    @classmethod
    def of(cls, texts: Collection[bytes]) -> "Keys":
        """From PEM. Raises ValueError."""
        found = {}
        for text in texts:
            key = load_pem_public_key(text)
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise ValueError("an audit key is an EC key")  # noqa: TRY004  # the text is wrong, not a type
            der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            found[checkpoints.fingerprint(der)] = key
        return cls(found)

    def wrong(self, checkpoint: Checkpoint) -> str:
        """What is wrong with its signature; "" when nothing is."""
        key = self.known.get(checkpoint.key)
        if key is None:
            return f"signed by another key than is given ({checkpoint.key[:16]}...)"
        try:
            key.verify(checkpoint.signature, checkpoint.signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return "the signature is wrong"
        return ""


def verify(
    directory: Path, keys: Keys, kept: Collection[Checkpoint] = (), *, partial: bool = False
) -> Report:
    """Read the whole log in the directory. Raises OSError.

    `kept` are checkpoints from elsewhere. `partial`: chains may begin late, where a checkpoint says they
    stood; their earlier segments are somewhere else.
    """
    report = Report(strangers=segments.strangers(directory))
    marks: dict[str, dict[int, Mark]] = {}
    for each in _checkpoints(directory, keys, kept, report):
        for name, head in each.chains.items():
            if head.seq:
                marks.setdefault(name, {}).setdefault(head.seq, Mark(head.digest, each.seq))
    for name in sorted({*segments.chains(directory), *marks}):
        of_chain = marks.get(name, {})
        walk = _walk(directory, name, with_marks(Walk, marks=of_chain, partial=partial))
        _add(report, name, walk, max(of_chain, default=0))
    _check_aside(directory, report)
    return report


def _add(report: Report, name: str, walk: Walk, signed: int) -> None:
    report.records += walk.count
    report.notices += walk.notices
    if walk.fault is not None:
        report.faults.append(walk.fault.of(name))
    if walk.torn:
        report.torn[name] = walk.torn
    if walk.head.seq > signed:
        report.unsigned[name] = walk.head.seq - signed


def _walk(
    directory: Path,
    name: str,
    begin: Callable[[list[segments.Segment]], Walk],
    suffix: str = segments.RECORDS,
) -> Walk:
    """Walk over one chain; once more when its files were rotated or packed meanwhile."""
    while True:
        known = segments.chains(directory, suffix).get(name, [])
        walk = begin(known)
        with suppress(FileNotFoundError):
            walk.run()
            if walk.fault is None:
                return walk
        if segments.chains(directory, suffix).get(name, []) == known:
            return walk


class _Judge:
    """Of checkpoints, one after the other: what is wrong with one, besides its place."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.good: list[Checkpoint] = []

    def __call__(self, line: bytes) -> str:
        try:
            one = checkpoints.parse(line)
        except ValueError as error:
            return str(error)
        before = self.good[-1].chains if self.good else {}
        for name, head in before.items():
            if one.chains.get(name, START).seq < head.seq:
                return f"{name} was longer at the checkpoint before"
        if wrong := self._keys.wrong(one):
            return wrong
        self.good.append(one)
        return ""


def _checkpoints(
    directory: Path, keys: Keys, kept: Collection[Checkpoint], report: Report
) -> list[Checkpoint]:
    """All good checkpoints, those from elsewhere too."""
    elsewhere = []
    for each in kept:
        if wrong := keys.wrong(each):
            report.faults.append(Fault(each.seq, "", 0, f"the one kept elsewhere: {wrong}", checkpoints.NAME))
        else:
            elsewhere.append(each)
    marks = {each.seq: Mark(each.head.digest, each.seq) for each in elsewhere}
    judges: list[_Judge] = []

    def begin(known: list[segments.Segment]) -> Walk:
        judges.append(_Judge(keys))
        return Walk(known, marks, judge=judges[-1])

    walk = _walk(directory, checkpoints.NAME, begin, segments.CHECKPOINTS)
    good = judges[-1].good
    if walk.fault is not None:
        fault = walk.fault.of(checkpoints.NAME)
        report.faults.append(fault)
        good = [each for each in good if each.seq < fault.seq]
    if walk.torn:
        report.torn[checkpoints.NAME] = walk.torn
    report.checkpoints, report.last = walk.count, good[-1] if good else None
    return [*good, *elsewhere]


def _check_aside(directory: Path, report: Report) -> None:
    """Files that the log has set aside: it tells their SHA-256."""
    for each in report.notices:
        detail = each.get("detail")
        if each.get("event") != FILE_SET_ASIDE or not isinstance(detail, dict):
            continue
        name = Path(str(detail.get("file"))).name
        if wrong := _changed(directory / name, str(detail.get("sha256"))):
            reason = f"{name} was set aside here, and {wrong} since"
            report.faults.append(Fault(int(str(each["seq"])), name, 0, reason, str(each.get("process"))))
        elif name in report.strangers:
            report.strangers.remove(name)


def _changed(path: Path, digest: str) -> str:
    try:
        with path.open("rb") as file:
            return "" if file_digest(file, "sha256").hexdigest() == digest else "was changed"
    except FileNotFoundError:
        return "is gone"
