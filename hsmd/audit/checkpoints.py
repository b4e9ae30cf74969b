"""Checkpoints: where all chains of the log stood at one moment, signed by the audit key inside the HSM.

They are a chain themselves, `checkpoints.chain` beside the records:

    {"seq":7,"prev":"...","time":"...","chains":{"worker-0":[4711,"<its head's SHA-256>"],...},"records":4911,
     "key":"<SHA-256 of the audit key's SubjectPublicKeyInfo>","signature":"<base64 of DER>"}

`records` is how many the log had in all. Signed (ECDSA, SHA-256) are SIGNED_AS and the line up to the comma
before "signature". So the last checkpoint vouches for all that was written before it, checkpoints included;
one that is kept elsewhere shows whether the log was cut behind it. Rule of evolution: as in chain.py; what
is signed begins with another SIGNED_AS when its meaning changes.
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hsmd.audit import chain, segments
from hsmd.audit.chain import Head
from hsmd.audit.file import UNROTATED, ChainFile, Rotation

NAME = "checkpoints"
SIGNED_AS = b"hsmd-audit-checkpoint-1\n"
_SIGNATURE = b',"signature":"'

Sign = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One line of the chain. `signed` is what the signature is of."""

    seq: int
    time: str
    chains: Mapping[str, Head]
    records: int
    key: str
    signed: bytes
    signature: bytes
    line: bytes

    @property
    def head(self) -> Head:
        """The head of the chain of checkpoints that ends with this one."""
        return Head(self.seq, sha256(self.line).hexdigest())


def fingerprint(public_key: bytes) -> str:
    """How a checkpoint names a key (DER SubjectPublicKeyInfo)."""
    return sha256(public_key).hexdigest()


def parse(line: bytes) -> Checkpoint:
    """The checkpoint that this line is. Its signature is not looked at. Raises ValueError."""
    begins = chain.beginning(line)
    before, mark, _ = line.rpartition(_SIGNATURE)
    if begins is None or not mark:
        raise ValueError("no checkpoint")
    try:
        tree = json.loads(line)
        signature = base64.b64decode(tree["signature"], validate=True)
        found = Checkpoint(
            begins.seq,
            str(tree["time"]),
            {str(name): _head(*each) for name, each in tree["chains"].items()},
            int(tree["records"]),
            str(tree["key"]),
            SIGNED_AS + before,
            signature,
            line,
        )
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, binascii.Error) as error:
        raise ValueError("no checkpoint") from error
    if line != before + _ending(signature):  # base64 can say the same in several ways
        raise ValueError("not as it was written")
    return found


def _ending(signature: bytes) -> bytes:
    """What stands behind all that is signed: the only bytes of a line that its signature does not cover."""
    return _SIGNATURE + base64.b64encode(signature) + b'"}'


def _head(seq: Any, digest: Any) -> Head:
    if type(seq) is not int or type(digest) is not str:
        raise ValueError("no head")
    return Head(seq, digest)


def last(directory: Path) -> Checkpoint | None:
    """The last checkpoint in the directory, as it stands; None when there is none. Raises OSError."""
    if not directory.exists():
        return None
    for segment in reversed(segments.chains(directory, segments.CHECKPOINTS).get(NAME, [])):
        found = _last_in(segment)
        if found is not None:
            return found
    return None


def _last_in(segment: segments.Segment) -> Checkpoint | None:
    try:
        return parse(segments.last_line(segment))
    except (ValueError, segments.UnreadableError):
        return None


def witness(directory: Path, name: str) -> Head | None:
    """How far the chain of that name had come at the last checkpoint; None when there is none."""
    found = last(directory)
    return found.chains.get(name) if found else None


class CheckpointFile:
    """Appends checkpoints in `directory`, signed by `sign`; one writer.

    Methods raise OSError, what `sign` raises, and ValueError for a signature by another key than is named.
    """

    def __init__(
        self,
        directory: Path,
        sign: Sign,
        *,
        durable: bool,
        rotation: Rotation = UNROTATED,
    ) -> None:
        self._sign = sign
        self._key: ec.EllipticCurvePublicKey | None = None
        path = directory / f"{NAME}{segments.CHECKPOINTS}"
        self._file = ChainFile(path, durable=durable, rotation=rotation, finish=self._signed, quiet=True)

    def append(self, chains: Mapping[str, Head], public_key: bytes) -> None:
        """Sign where the chains stand, with the key whose SubjectPublicKeyInfo (DER) this is."""
        key = load_der_public_key(public_key)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("no EC key")  # noqa: TRY004  # the key is wrong, not a type
        self._key = key
        body = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "chains": {name: [head.seq, head.digest] for name, head in sorted(chains.items())},
            "records": sum(head.seq for head in chains.values()),
            "key": fingerprint(public_key),
        }
        self._file.append([json.dumps(body, separators=(",", ":")).encode()])

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _signed(self, line: bytes) -> bytes:
        before = line[:-1]  # without its closing brace
        signature = self._sign(SIGNED_AS + before)
        try:
            assert self._key is not None  # noqa: S101  # append has set it
            self._key.verify(signature, SIGNED_AS + before, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise ValueError("the HSM has signed with another key") from error
        return before + _ending(signature)
