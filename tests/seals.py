"""A stand with a seal: its PIN is in no file, and operators' UKeys (here: keys in memory) open it."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from hsmd import sealfile, ukey
from hsmd.client.calls import Calls, open_channel
from hsmd.pb.v1 import sealing_pb2 as pb
from hsmd.pb.v1 import ukeys_pb2
from hsmd.pb.v1.sealing_pb2_grpc import SealingStub
from hsmd.pb.v1.ukeys_pb2_grpc import UkeysStub
from hsmd.sealfile import Holder
from tests.backstage import backstage
from tests.stand import Stand, free_port

SERVICE = pb.DESCRIPTOR.services_by_name["Sealing"].full_name


@dataclass(frozen=True)
class Operator:
    """Somebody with a UKey: here a private key in memory."""

    name: str
    key: Any = field(repr=False)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def public_key(self) -> bytes:
        return ukey.encoded(self.key.public_key())

    @property
    def fingerprint(self) -> str:
        return ukey.fingerprint(self.public_key)

    @property
    def holder(self) -> Holder:
        return Holder(self.id, self.name, self.public_key, ukey.box_kinds(self.public_key)[0])

    @property
    def row(self) -> str:
        """As tests.backstage takes it."""
        fields = {"id": self.id, "name": self.name, "opens": self.holder.box_kind}
        return json.dumps(fields | {"public_key": self.public_key.hex()})

    def sign(self, statement: bytes) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(statement, padding.PKCS1v15(), hashes.SHA256())
        signed: bytes = self.key.sign(statement, ec.ECDSA(hashes.SHA256()))
        return signed

    def open(self, seal: sealfile.Seal) -> bytes:
        """The share in this file."""
        held = seal.share_of(self.id)
        assert held is not None
        opener = ukey.SoftOpener(self.key)
        return ukey.open_box(self.public_key, held.box, seal.context(self.id), opener)


def operators(*names: str) -> list[Operator]:
    """RSA and EC in turn."""
    makers = (lambda: rsa.generate_private_key(65537, 2048), lambda: ec.generate_private_key(ec.SECP256R1()))
    return [Operator(name, makers[number % 2]()) for number, name in enumerate(names)]


class SealedStand(Stand):
    """A stand whose daemon starts sealed; two of three operators unseal it."""

    def __init__(self, folder: Path, settings: dict[str, str] | None = None, *, due: int = 2) -> None:
        super().__init__(folder, settings)
        self.operators = operators("Ada", "Bruno", "Chen")
        self.pin = self.pin_file.read_text()
        self.seal_file = self.dev.data / "seal.json"
        self.admin_port = free_port()
        backstage(self, "operators", str(due), *(each.row for each in self.operators))
        self.seal_with({sealfile.HSM: self.pin}, due=due)
        self.pin_file.unlink()
        self.settings |= {
            "HSMD__HSM__PIN_FILE": "",
            "HSMD__ADMIN__ENABLED": "true",
            "HSMD__ADMIN__PORT": str(self.admin_port),
            "HSMD__SEAL__FILE": str(self.seal_file),
        }

    def seal_with(self, pins: dict[str, str], *, due: int = 2) -> None:
        """Make the seal file, as the ceremony does."""
        holders = [each.holder for each in self.operators]
        sealfile.write(self.seal_file, sealfile.make(pins, holders, due, now=1_700_000_000_000))

    def seal(self) -> sealfile.Seal:
        return sealfile.read(self.seal_file)

    def behind(self, *words: str) -> str:
        """tests.backstage, which needs the PIN, for a moment."""
        path = self.dev.data / "pin-for-a-moment"
        path.touch(0o600)
        path.write_text(self.pin)
        open_settings = {
            "HSMD__HSM__PIN_FILE": str(path),
            "HSMD__ADMIN__ENABLED": "false",
            "HSMD__SEAL__FILE": "",
        }
        try:
            with patch.dict(self.settings, open_settings):
                return backstage(self, *words)
        finally:
            path.unlink()

    @contextmanager
    def door(self) -> Iterator["Door"]:
        """A connection to the administrators' door."""
        target = f"127.0.0.1:{self.admin_port}"
        channel = open_channel(
            target, ca=self.dev.ca, certificate=self.dev.certificate, key=self.dev.key, server_name=""
        )
        with contextlib.closing(channel):
            yield Door(channel)

    def unseal(self, who: Sequence[Operator] | None = None) -> None:
        """By two of the three, each on a connection of its own."""
        for each in who or self.operators[:2]:
            with self.door() as door:
                door.give(each)

    def health(self) -> str:
        return health(self.dev.grpc, self)


class Door:
    """Calls to the administrators' door."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        calls = Calls(channel, deadline=60, project_id="")
        self.sealing = SealingStub(calls)
        self.ukeys = UkeysStub(calls)

    def status(self) -> pb.GetSealStatusResponse:
        found: pb.GetSealStatusResponse = self.sealing.GetSealStatus(pb.GetSealStatusRequest())
        return found

    def begin(self, who: Operator) -> pb.BeginUnsealResponse:
        found: pb.BeginUnsealResponse = self.sealing.BeginUnseal(
            pb.BeginUnsealRequest(fingerprint=who.fingerprint)
        )
        return found

    def prepared(self, who: Operator, share: bytes | None = None) -> pb.GiveShareRequest:
        """What the operator would send."""
        asked = self.begin(who)
        if share is None:
            context = {"box": sealfile.FORMAT, "purpose": "unseal", "seal": asked.seal, "ukey": who.id}
            share = ukey.open_box(who.public_key, asked.box, context, ukey.SoftOpener(who.key))
        return packed(who, asked, share)

    def give(self, who: Operator, share: bytes | None = None) -> pb.GiveShareResponse:
        found: pb.GiveShareResponse = self.sealing.GiveShare(self.prepared(who, share))
        return found

    def shut(self, who: Operator) -> None:
        """`hsmctl seal`: by a session of the operator's."""
        session = self.session(who)
        seal = self.channel.unary_unary(
            f"/{SERVICE}/Seal",
            request_serializer=pb.SealRequest.SerializeToString,
            response_deserializer=pb.SealResponse.FromString,
        )
        seal(pb.SealRequest(), timeout=60, metadata=(("hsmd-admin-session", session),))

    def session(self, who: Operator) -> str:
        """Log in for this service."""
        asked = self.ukeys.BeginLogin(
            ukeys_pb2.BeginLoginRequest(fingerprint=who.fingerprint, purpose=SERVICE)
        )
        names = (
            *("challenge", "instance", "server_certificate", "client_certificate"),
            *("peer", "key", "purpose", "expires"),
        )
        values = ukey.login_values(**{name: getattr(asked, name) for name in names})
        signature = who.sign(ukey.statement(ukey.Purpose.LOGIN, values))
        request = ukeys_pb2.LoginRequest(challenge=asked.challenge, signature=signature)
        return str(self.ukeys.Login(request).session)


def packed(who: Operator, asked: pb.BeginUnsealResponse, share: bytes) -> pb.GiveShareRequest:
    """A share in a box for the attempt's key, signed."""
    context = sealfile.attempt_context(asked.attempt.id, asked.seal, who.id)
    box = ukey.make_box(asked.attempt_key, "ecdh", share, context)
    statement = sealfile.share_statement(asked.attempt.id, asked.attempt_key, asked.seal, who.id, box)
    return pb.GiveShareRequest(
        attempt=asked.attempt.id, fingerprint=who.fingerprint, box=box, signature=who.sign(statement)
    )


def health(target: str, stand: Stand) -> str:
    """What the standard health service says there, or the status with which it doesn't answer."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    files = [path.read_bytes() for path in (stand.dev.ca, stand.dev.key, stand.dev.certificate)]
    with grpc.secure_channel(target, grpc.ssl_channel_credentials(*files)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        except grpc.RpcError as error:
            return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@contextmanager
def sealed(
    folder: Path, settings: dict[str, str] | None = None, *, gateway: bool = False
) -> Iterator[SealedStand]:
    """A stand of one's own, sealed."""
    stand = SealedStand(folder, {"HSMD__GRPC__WORKERS": "2", **(settings or {})})
    try:
        stand.start(gateway=gateway)
        yield stand
    finally:
        stand.stop()


def found_in_memory(pid: int, needle: bytes) -> bool:
    """Whether the bytes stand anywhere in the process's memory, as root reads it."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            if "r" not in rights or "[v" in line:
                continue
            begin, end = (int(each, 16) for each in span.split("-"))
            with contextlib.suppress(OSError, ValueError):  # some pages can't be read
                os.lseek(memory.fileno(), begin, os.SEEK_SET)
                if needle in os.read(memory.fileno(), end - begin):
                    return True
    return False
