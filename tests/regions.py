"""Several stands as regions of one world: their tokens share a root key, each has all else of its own.

The root key goes from one token to the others as in a ceremony's backup, wrapped by a key that both know;
`hsmd init` makes all else.
"""

import json
import os
import secrets
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc

from hsmd.client import Client
from hsmd.daemon import development
from hsmd.daemon.certificates import Authority, Pair
from hsmd.domain.core import ROOT_KEY_LABEL
from hsmd.hsm import Passed
from hsmd.pb.v1 import peers_pb2_grpc
from hsmd.pb.v1 import regions_pb2 as pb
from hsmd.pb.v1.tags_pb2 import Tag
from tests.hsm_parts import connected
from tests.softhsm import MODULE, DevToken
from tests.stand import Stand, other_token
from tests.stores import behind_its_back

CA_NAME = "hsmd development CA"


def tokens_with_one_root(folders: Iterable[Path]) -> Iterator[Mapping[str, str]]:
    """Settings for a new token in each folder; they have the same root key and nothing else."""
    carrier, passed = secrets.token_bytes(32), list[Passed]()
    for folder in folders:
        folder.mkdir(mode=0o700)
        settings = other_token(folder)
        if not settings:
            development._make_token(folder)
        # The module is told by the environment which configuration counts.
        with patch.dict(os.environ), connected(_token_of(folder, settings)) as token:
            if passed:
                assert token.unpack_under(passed, carrier) == [ROOT_KEY_LABEL]
            else:
                token.make_root_key(ROOT_KEY_LABEL, extractable=True)
                passed = token.pack_under([ROOT_KEY_LABEL], carrier)
            token.close_key(ROOT_KEY_LABEL)
        yield settings


def _token_of(folder: Path, settings: Mapping[str, str]) -> DevToken:
    pin = Path(settings.get("HSMD__HSM__PIN_FILE", folder / "pin")).read_text()
    uri = settings.get("HSMD__HSM__TOKEN", f"pkcs11:token={development.TOKEN_LABEL}?module-path={MODULE}")
    return DevToken(uri, pin, "", folder / "softhsm2.conf", folder / "token.lock")


class Wire:
    """A TCP relay to one port. While it is `muted` what the other side answers is lost."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.muted = False
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def drop(self) -> None:
        """End the connections that there are."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._to), timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        self._ends += (near, far)
        threading.Thread(
            target=self._pump, args=(near, far), kwargs={"backwards": False}, daemon=True
        ).start()
        self._pump(far, near, backwards=True)

    def _pump(self, source: socket.socket, target: socket.socket, *, backwards: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not (backwards and self.muted):
                    target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@dataclass
class World:
    """Stands by the names of their regions; `wires[a, b]` is what a reaches b by."""

    stands: dict[str, Stand]
    wires: dict[tuple[str, str], Wire] = field(default_factory=dict)

    def __getitem__(self, region: str) -> Stand:
        return self.stands[region]

    def client(self, region: str, **options: Any) -> Client:
        return self[region].client(**options)

    def certificate(self, of: str, issued_by: str) -> Pair:
        """What region `of` shows to region `issued_by`, issued there."""
        return Authority(self[issued_by].dev.ca.parent, CA_NAME).client(f"peer-{of}", f"hsmd-{of}")

    @contextmanager
    def peer(self, of: str, to: str) -> Iterator[peers_pb2_grpc.PeersStub]:
        """The peers' own service of region `to`, called with what belongs to region `of`."""
        pair = self.certificate(of, to)
        with raw_channel(self[to], pair) as channel:
            yield peers_pb2_grpc.PeersStub(channel)

    def connect(self, seconds: float) -> None:
        """Have every region know all others, and wait so long for an answer. Before they start."""
        for one, stand in self.stands.items():
            others = {name: other for name, other in self.stands.items() if name != one}
            stand.settings["HSMD__REGION"] = one
            tables = []
            for name, other in others.items():
                wire = self.wires[one, name] = Wire(int(other.dev.grpc.rpartition(":")[2]))
                pair = self.certificate(one, name)
                table = {
                    "region": name,
                    "address": f"127.0.0.1:{wire.port}",
                    "ca": str(other.dev.ca),
                    "certificate": str(pair.certificate),
                    "key": str(pair.key),
                    "names": [f"CN:hsmd-{name}"],
                    "deadline_seconds": seconds,
                }
                shared = f'{{theirs = "{other.dev.domain_id}", ours = "{stand.dev.domain_id}"}}'
                inline = ", ".join(f"{option} = {json.dumps(value)}" for option, value in table.items())
                tables.append(f"{{{inline}, domains = [{shared}]}}")
            stand.settings["HSMD__PEERS"] = f"[{', '.join(tables)}]"

    def stop(self) -> None:
        for stand in self.stands.values():
            stand.stop()
        for wire in self.wires.values():
            wire.close()


@contextmanager
def raw_channel(stand: Stand, pair: Pair) -> Iterator[grpc.Channel]:
    """gRPC to the stand's daemon with any certificate."""
    credentials = grpc.ssl_channel_credentials(
        stand.dev.ca.read_bytes(), pair.key.read_bytes(), pair.certificate.read_bytes()
    )
    with grpc.secure_channel(stand.dev.grpc, credentials) as channel:
        yield channel


def make_world(
    folder: Path,
    shared: tuple[str, ...],
    foreign: tuple[str, ...] = (),
    settings: Mapping[str, Mapping[str, str]] | None = None,
    seconds: float = 15.0,
) -> World:
    """Regions that share a root key, and regions with one of their own; nothing is started.

    They wait so many seconds for each other's answers.
    """
    tokens = dict(zip(shared, tokens_with_one_root(folder / name for name in shared), strict=True))
    stands = {
        name: Stand(folder / name, (settings or {}).get(name), own=True, token=tokens.get(name))
        for name in (*shared, *foreign)
    }
    world = World(stands)
    world.connect(seconds)
    return world


def replicate(
    world: World,
    client: Client,
    key: str,
    region: str,
    alias: str,
    *,
    tags: Mapping[str, str] | None = None,
    **fields: str,
) -> pb.ReplicateKeyResponse:
    """By gRPC, into the development project of that region."""
    request = {"replica_project_id": world[region].dev.project_id, "key_alias": alias, **fields}
    pairs = [Tag(key=name, value=value) for name, value in (tags or {}).items()]
    message = pb.ReplicateKeyRequest(key_id=key, replica_region=region, tags=pairs, **request)
    response: pb.ReplicateKeyResponse = client.regions.ReplicateKey(message)
    return response


def move(client: Client, key: str, region: str) -> str:
    """update-primary-region by gRPC; the primary region that is answered."""
    request = pb.UpdatePrimaryRegionRequest(key_id=key, primary_region=region)
    response: pb.UpdatePrimaryRegionResponse = client.regions.UpdatePrimaryRegion(request)
    assert response.key_id == key
    return response.primary_region


def query(stand: Stand, sql: str, *values: object) -> list[Any]:
    """Rows of the stand's store, behind its back."""
    return behind_its_back(f"sqlite:///{stand.dev.data}/store/hsmd.db", sql, *values)
