"""Logs for tests of the audit: written as the daemon writes them, signed by a key that is no HSM's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsmd.audit import checkpoints
from hsmd.audit.checkpoints import CheckpointFile
from hsmd.audit.file import UNROTATED, ChainFile, Rotation
from hsmd.audit.follow import Follower
from hsmd.audit.verify import Keys, Report, verify


class Notary:
    """Writes records and checkpoints, and verifies what it wrote."""

    def __init__(self, directory: Path, rotation: Rotation = UNROTATED) -> None:
        self.directory = directory
        self.rotation = rotation
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.files: dict[str, ChainFile] = {}

    @property
    def public(self) -> bytes:
        """PEM."""
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def der(self) -> bytes:
        """SubjectPublicKeyInfo."""
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def write(self, name: str, *records: dict[str, Any]) -> None:
        """In one go."""
        if name not in self.files:
            path = self.directory / f"{name}.jsonl"
            self.files[name] = ChainFile(
                path,
                durable=False,
                rotation=self.rotation,
                witness=lambda: checkpoints.witness(self.directory, name),
            )
        self.files[name].append(
            json.dumps(each, separators=(",", ":"), ensure_ascii=False).encode() for each in records
        )

    def fill(self, name: str, count: int, each: int = 1) -> None:
        """So many records like those of calls, `each` at a time."""
        for start in range(0, count, each):
            self.write(name, *(like(number) for number in range(start, min(start + each, count))))

    def checkpoint(self, rotation: Rotation = UNROTATED) -> None:
        """Sign what is there."""
        found = checkpoints.last(self.directory)
        follower = Follower(self.directory, found.chains if found else {})
        follower.look()
        file = CheckpointFile(
            self.directory,
            lambda message: self.key.sign(message, ec.ECDSA(hashes.SHA256())),
            durable=False,
            rotation=rotation,
        )
        file.append(follower.heads, self.der)
        file.close()
        follower.close()
        assert follower.trouble() == []

    def verify(self, *kept: bytes, partial: bool = False) -> Report:
        parsed = [checkpoints.parse(line) for line in kept]
        return verify(self.directory, Keys.of([self.public]), parsed, partial=partial)

    def close(self) -> None:
        for each in self.files.values():
            each.close()
        self.files.clear()


def like(number: int) -> dict[str, Any]:
    """A record like that of a call."""
    return {
        "time": f"2026-11-22T05:{number // 60 % 60:02}:{number % 60:02}.207+00:00",
        "request_id": f"{number:032x}",
        "event": "encryptData",
        "method": "/hsmd.v1.Crypto/EncryptData",
        "result": "OK",
        "identity": "certificate",
        "user_id": "a" * 32,
        "user": "admin",
        "domain_id": "b" * 32,
        "project_id": "c" * 32,
        "source": "127.0.0.1",
        "resource": "0c1a5b4e-6d0e-4a3c-9a52-1f3a1d0f7c11",
        "key_version": 1,
        "process": "worker-0",
        "duration_ms": 1.234,
    }


def lines(path: Path) -> list[bytes]:
    """The lines of a file, each with its newline."""
    return path.read_bytes().splitlines(keepends=True)


def records(directory: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(directory.glob("*.jsonl")):
        yield from (json.loads(line) for line in path.read_bytes().splitlines())
