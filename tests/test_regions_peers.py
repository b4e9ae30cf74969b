"""Between regions: who is believed what, and what is left when one of them is away, or dies in between."""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from hsmd.client import ApiError, Client
from hsmd.client.errors import from_rpc
from hsmd.config import ConfigError, Peer, SharedDomain, load
from hsmd.daemon.certificates import Authority
from hsmd.pb.v1 import (
    crypto_pb2,
    crypto_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    peers_pb2_grpc,
    rotation_pb2,
    service_pb2,
    service_pb2_grpc,
)
from hsmd.pb.v1 import peers_pb2 as pb
from hsmd.pb.v1.tags_pb2 import Tag
from tests.calls import fresh, records, refusal
from tests.regions import CA_NAME, World, make_world, move, query, raw_channel, replicate
from tests.stand import eventually

LEASE_SECONDS = 60.0  # the jobs of a warden that was killed are taken over when its lease is over


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """east and west share a root key; south, which is down until a test starts it, has another."""
    settings = {"HSMD__LIMITS__KEYS_PER_PROJECT": "100000", "HSMD__GRPC__WORKERS": "1"}
    names = ("east", "west", "south")
    made = make_world(
        tmp_path_factory.mktemp("world"),
        names[:2],
        names[2:],
        settings=dict.fromkeys(names, settings),
        seconds=4.0,  # which many of these tests wait for in vain
    )
    try:
        for name in names[:2]:
            made[name].start(gateway=False)
        yield made
    finally:
        made.stop()


@pytest.fixture
def east(world: World) -> Iterator[Client]:
    with world.client("east") as client:
        yield client


@pytest.fixture
def west(world: World) -> Iterator[Client]:
    with world.client("west") as client:
        yield client


def rotate(client: Client, key: str) -> None:
    client.rotation.RotateOnDemand(rotation_pb2.RotateOnDemandRequest(key_id=key))


def encrypts_with(client: Client, key: str) -> int:
    return int.from_bytes(client.encrypt(key, b"x")[44:48], "big")


def versions(world: World, region: str, key: str) -> list[Any]:
    sql = "SELECT version, wrapped FROM key_versions WHERE key_id = ? ORDER BY version"
    return query(world[region], sql, key)


def primary(world: World, region: str, key: str) -> str | None:
    found = query(world[region], "SELECT primary_region FROM keys WHERE id = ?", key)
    return found[0][0] if found else None


def state(world: World, key: str) -> list[Any]:
    """What east knows of its replicas."""
    return query(world["east"], "SELECT region, state FROM replicas WHERE key_id = ?", key)


def both_ways(one: Client, other: Client, key: str) -> None:
    for writer, reader in ((one, other), (other, one)):
        assert reader.decrypt(writer.encrypt(key, b"to and fro")) == b"to and fro"


def replicated(world: World, east: Client) -> str:
    """A key with a replica in west; another test may just have cut the wire."""
    key, alias = east.create_key(fresh()), fresh()
    eventually(lambda: answered(lambda: replicate(world, east, key, "west", alias)))
    return key


def code_of(call: Callable[[], object]) -> str:
    """What the call is refused with; "" when it isn't."""
    try:
        call()
    except grpc.RpcError as error:
        return from_rpc(error, "").code
    return ""


# Who is believed what


def test_who_may_call_what_is_for_peers(world: World, east: Client, west: Client) -> None:
    key = replicated(world, east)
    request = pb.FindReplicaRequest(key_id=key)
    stand, own = world["west"], Authority(world["west"].dev.ca.parent, CA_NAME)
    with world.peer("east", "west") as stub:
        assert not stub.FindReplica(request).gone
        assert stub.FindReplica(pb.FindReplicaRequest(key_id=fresh()[-36:])).gone
    for pair, code in (
        (own.client("nobody", "nobody"), "APIGW.0301"),
        (own.client("gateway-client", "hsmd-gateway"), "APIGW.0301"),
        (own.client("admin", "admin"), "KMS.0330"),
        (world.certificate("south", "west"), "KMS.0207"),  # a peer, but not the one of this key
    ):
        with raw_channel(stand, pair) as channel:
            assert code_of(lambda: peers_pb2_grpc.PeersStub(channel).FindReplica(request)) == code
    # What east's own CA says of somebody is nothing to west.
    with raw_channel(
        stand, Authority(world["east"].dev.ca.parent, CA_NAME).client("x", "hsmd-east")
    ) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            peers_pb2_grpc.PeersStub(channel).FindReplica(request)
        assert from_rpc(caught.value, "").code == ""
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_peer_may_call_nothing_else(world: World, west: Client) -> None:
    key = west.create_key(fresh())
    with raw_channel(world["west"], world.certificate("east", "west")) as channel:
        crypto, keys = crypto_pb2_grpc.CryptoStub(channel), keys_pb2_grpc.KeysStub(channel)
        service, people = service_pb2_grpc.ServiceStub(channel), identity_pb2_grpc.IdentityStub(channel)
        project = world["west"].dev.project_id
        encrypt = crypto_pb2.EncryptDataRequest(key_id=key, plain_text=b"x")
        for call in (
            lambda: keys.DescribeKey(keys_pb2.DescribeKeyRequest(key_id=key)),
            lambda: keys.ListKeys(keys_pb2.ListKeysRequest()),
            lambda: crypto.EncryptData(encrypt),
            lambda: crypto.GenRandom(crypto_pb2.GenRandomRequest(random_data_length=64)),
            lambda: service.GetStatus(service_pb2.GetStatusRequest()),
            lambda: people.ListProjects(identity_pb2.ListProjectsRequest()),
        ):
            assert code_of(call) == "KMS.0330"
        encrypt.project_id = project
        assert code_of(lambda: crypto.EncryptData(encrypt)) == "KMS.0307"
        metadata = (("hsmd-project-id", project), ("hsmd-auth-token", "x"))
        encrypt.project_id = ""
        assert code_of(lambda: crypto.EncryptData(encrypt, metadata=metadata)) == "KMS.0307"
        assert service.ListVersions(service_pb2.ListVersionsRequest()).versions  # as for everybody


def right_offer(world: World, east: Client, key: str) -> pb.AcceptReplicaRequest:
    """What east would send to west."""
    ((wrapped, created),) = query(
        world["east"], "SELECT wrapped, created FROM key_versions WHERE key_id = ?", key
    )
    label, check_value = east.status().root_key.split()
    return pb.AcceptReplicaRequest(
        key_id=key,
        key_spec="AES_256",
        key_usage="ENCRYPT_DECRYPT",
        domain_id=world["east"].dev.domain_id,
        replica_project_id=world["west"].dev.project_id,
        key_alias=fresh(),
        enterprise_project_id="0",
        current_version=1,
        roots=[pb.RootKey(label=label, check_value=check_value)],
        versions=[pb.Material(version=1, wrapped=wrapped, root_label=label, created=created, messages=9)],
    )


def flip(blob: bytes) -> bytes:
    return blob[:-1] + bytes([blob[-1] ^ 1])


def first(offer: pb.AcceptReplicaRequest, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(offer.versions[0], name, value)


def rooted(offer: pb.AcceptReplicaRequest, **fields: str) -> None:
    for name, value in fields.items():
        setattr(offer.roots[0], name, value)


def without_public_key(offer: pb.AcceptReplicaRequest) -> None:
    """A pair that lacks half."""
    offer.key_spec, offer.key_usage = "RSA_2048", "SIGN_VERIFY"


SPOILT: list[tuple[str, Callable[[pb.AcceptReplicaRequest], object]]] = [
    ("KMS.0205", lambda offer: setattr(offer, "key_id", "x")),
    ("KMS.0308", lambda offer: setattr(offer, "key_id", "x" * 37)),
    ("KMS.0204", lambda offer: offer.ClearField("key_id")),
    ("KMS.1110", lambda offer: setattr(offer, "key_spec", "AES_128")),
    ("KMS.0308", lambda offer: setattr(offer, "key_usage", "SIGN_VERIFY")),
    ("KMS.0307", lambda offer: setattr(offer, "domain_id", "0" * 32)),
    ("KMS.0307", lambda offer: setattr(offer, "replica_project_id", "0" * 32)),
    ("KMS.1101", lambda offer: setattr(offer, "key_alias", "a b")),
    ("KMS.1101", lambda offer: setattr(offer, "key_alias", "obs/default")),
    ("KMS.1103", lambda offer: setattr(offer, "key_description", "x" * 256)),
    ("KMS.0308", lambda offer: setattr(offer, "enterprise_project_id", "0" * 37)),
    ("KMS.0412", lambda offer: offer.tags.extend([Tag(key="k"), Tag(key="k")])),
    ("KMS.0406", lambda offer: offer.tags.append(Tag(key="a=b"))),
    ("KMS.0308", lambda offer: setattr(offer, "current_version", 2)),
    ("KMS.0204", lambda offer: setattr(offer, "current_version", 0)),
    ("KMS.0204", lambda offer: offer.ClearField("roots")),
    ("KMS.0204", lambda offer: offer.ClearField("versions")),
    ("KMS.0308", lambda offer: rooted(offer, check_value="000000")),
    ("KMS.0308", lambda offer: rooted(offer, check_value="")),
    ("KMS.0308", lambda offer: rooted(offer, label="hsmd-root-2")),
    ("KMS.0308", lambda offer: rooted(offer, label="hsmd-sealing")),
    ("KMS.0308", lambda offer: first(offer, root_label="hsmd-sealing")),
    ("KMS.0308", lambda offer: first(offer, root_label="hsmd-root-2")),
    ("KMS.0308", lambda offer: first(offer, wrapped=flip(offer.versions[0].wrapped))),
    ("KMS.0308", lambda offer: first(offer, wrapped=b"x" * 40)),
    ("KMS.0308", lambda offer: first(offer, wrapped=b"x" * 16385)),
    ("KMS.0204", lambda offer: first(offer, wrapped=b"")),
    ("KMS.0204", lambda offer: first(offer, version=0)),
    ("KMS.0308", lambda offer: first(offer, version=-1)),
    ("KMS.0308", lambda offer: first(offer, created=-1)),
    ("KMS.0308", lambda offer: first(offer, created=2**62)),
    ("KMS.0308", lambda offer: first(offer, messages=-1)),
    ("KMS.0308", lambda offer: first(offer, messages=2**32 + 1)),
    ("KMS.0308", lambda offer: first(offer, public_key=b"x")),
    ("KMS.0308", lambda offer: offer.versions.append(offer.versions[0])),
    ("KMS.0308", lambda offer: offer.versions.extend([offer.versions[0]] * 250)),
    ("KMS.0204", lambda offer: setattr(offer, "key_spec", "")),
    ("KMS.0308", without_public_key),
]


def test_forged_offers(world: World, east: Client, west: Client) -> None:
    key = east.create_key(fresh())
    right = right_offer(world, east, key)
    with world.peer("east", "west") as stub:
        for number, (code, spoil) in enumerate(SPOILT):
            offer = pb.AcceptReplicaRequest.FromString(right.SerializeToString())
            spoil(offer)
            got = code_of(lambda offer=offer: stub.AcceptReplica(offer))  # type: ignore[misc]  # mypy can't type a lambda's default
            assert got == code, number
        assert query(world["west"], "SELECT 1 FROM keys WHERE id = ?", key) == []
        # A key of west's own, and one that belongs to a third region.
        mine = west.create_key(fresh())
        before = query(world["west"], "SELECT * FROM keys WHERE id = ?", mine)
        stolen = pb.AcceptReplicaRequest.FromString(right.SerializeToString())
        stolen.key_id = mine
        assert code_of(lambda: stub.AcceptReplica(stolen)) == "KMS.0207"
        assert stub.AcceptReplica(right).domain_id == world["west"].dev.domain_id
        assert west.decrypt(east.encrypt(key, b"x")) == b"x"
    with world.peer("south", "west") as stub:
        right.domain_id = world["south"].dev.domain_id
        assert code_of(lambda: stub.AcceptReplica(right)) == "KMS.0207"
        other = pb.AcceptReplicaRequest.FromString(right.SerializeToString())
        other.domain_id = world["east"].dev.domain_id  # of east's, by which south can bring nothing
        other.key_id = mine[:-1] + ("0" if mine[-1] != "0" else "1")
        assert code_of(lambda: stub.AcceptReplica(other)) == "KMS.0307"
    assert query(world["west"], "SELECT * FROM keys WHERE id = ?", mine) == before


def test_forged_words_about_a_key(world: World, east: Client, west: Client) -> None:
    key, mine = replicated(world, east), west.create_key(fresh())
    offer = right_offer(world, east, key)
    other = right_offer(world, east, east.create_key(fresh()))

    def words(key_id: str) -> list[Callable[[peers_pb2_grpc.PeersStub], object]]:
        handover = pb.AcceptPrimaryRequest(key_id=key_id, current_version=1)
        given = pb.AcceptVersionsRequest(key_id=key_id, roots=offer.roots, versions=other.versions)
        return [
            lambda stub: stub.AcceptVersions(given),
            lambda stub: stub.AcceptPrimary(handover),
            lambda stub: stub.FollowPrimary(pb.FollowPrimaryRequest(key_id=key_id, primary_region="south")),
            lambda stub: stub.FindReplica(pb.FindReplicaRequest(key_id=key_id)),
        ]

    def rows() -> list[Any]:
        tables = ("SELECT * FROM keys", "SELECT * FROM key_versions", "SELECT * FROM replicas")
        return [sorted(map(repr, query(world["west"], each))) for each in tables]

    before = rows()
    for region, key_id in (("east", mine), ("south", key), ("south", mine)):
        with world.peer(region, "west") as stub:
            for word in words(key_id):
                assert code_of(lambda word=word, stub=stub: word(stub)) == "KMS.0207"  # type: ignore[misc]  # mypy can't type a lambda's default
    with world.peer("east", "west") as stub:
        # Its own key: what is in use is never replaced, in silence neither, and nothing is made up.
        given = pb.AcceptVersionsRequest(key_id=key, roots=offer.roots, versions=other.versions)
        assert code_of(lambda: stub.AcceptVersions(given)) == "KMS.0308"
        assert rows() == before
        given = pb.AcceptVersionsRequest(key_id=key, roots=offer.roots, versions=offer.versions)
        assert not stub.AcceptVersions(given).gone
        assert rows() == before
        wrong: list[tuple[str, Callable[[], object]]] = [
            ("KMS.0308", lambda: stub.AcceptVersions(changed(given, current_version=2))),
            ("KMS.0308", lambda: stub.AcceptVersions(changed(given, current_version=-1))),
            ("KMS.0308", lambda: follow(stub, key, "nowhere")),
            ("KMS.0308", lambda: follow(stub, key, "west")),
            ("KMS.0308", lambda: hand_over(stub, key, current_version=2)),
            ("KMS.0308", lambda: hand_over(stub, key, current_version=-1)),
            ("KMS.0308", lambda: hand_over(stub, key, rotation_days=29, rotation_due=1)),
            ("KMS.0308", lambda: hand_over(stub, key, rotation_days=30)),
            ("KMS.0308", lambda: hand_over(stub, key, rotation_due=1)),
            ("KMS.0308", lambda: hand_over(stub, key, rotation_days=30, rotation_due=-1)),
            ("KMS.0308", lambda: hand_over(stub, key, replicas=[("nowhere", 1)])),
            ("KMS.0308", lambda: hand_over(stub, key, replicas=[("east", 1)])),
            ("KMS.0308", lambda: hand_over(stub, key, replicas=[("south", 1), ("south", 1)])),
            ("KMS.0308", lambda: hand_over(stub, key, replicas=[("south", -1)])),
            ("KMS.0207", lambda: hand_over(stub, "0" * 36)),
        ]
        for number, (code, call) in enumerate(wrong):
            assert code_of(call) == code, number
        assert stub.AcceptVersions(changed(given, key_id="0" * 36)).gone
        assert follow(stub, "0" * 36, "south").gone
    assert rows() == before


def test_a_versions_messages_are_not_given_back(world: World, east: Client, west: Client) -> None:
    key = replicated(world, east)
    offer = right_offer(world, east, key)
    for messages, left in ((9, 9), (20, 9), (3, 3), (0, 0), (9, 0)):
        waiting = pb.AcceptVersionsRequest(key_id=key, roots=offer.roots, versions=offer.versions)
        waiting.versions[0].version, waiting.versions[0].messages = 2, messages
        with world.peer("east", "west") as stub:
            assert not stub.AcceptVersions(waiting).gone
        sql = "SELECT used FROM key_usage WHERE key_id = ? AND version = 2"
        assert query(world["west"], sql, key) == [(2**32 - left,)]


def changed(request: pb.AcceptVersionsRequest, **fields: Any) -> pb.AcceptVersionsRequest:
    copy = pb.AcceptVersionsRequest.FromString(request.SerializeToString())
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy


def follow(stub: peers_pb2_grpc.PeersStub, key: str, region: str) -> pb.FollowPrimaryResponse:
    answer: pb.FollowPrimaryResponse = stub.FollowPrimary(
        pb.FollowPrimaryRequest(key_id=key, primary_region=region)
    )
    return answer


def hand_over(
    stub: peers_pb2_grpc.PeersStub,
    key: str,
    *,
    current_version: int = 1,
    replicas: list[tuple[str, int]] | None = None,
    **fields: int,
) -> None:
    told = [pb.AcceptPrimaryRequest.Replica(region=region, told=each) for region, each in replicas or ()]
    stub.AcceptPrimary(
        pb.AcceptPrimaryRequest(key_id=key, current_version=current_version, replicas=told, **fields)
    )


# Away


def test_a_region_with_another_root_key(world: World, east: Client) -> None:
    key = east.create_key(fresh())
    with refusal("KMS.0104") as seen:  # it is down yet
        replicate(world, east, key, "south", fresh())
    assert "Region south is not available now: it does not answer" in seen.last.message
    assert state(world, key) == [("south", "pending")]
    rotate(east, key)  # what was only begun holds nothing up
    with refusal("KMS.0308"):  # but it may be there
        east.schedule_deletion(key, 7)
    world["south"].start(gateway=False)
    try:

        def differs() -> bool:
            """Once the connection is back, which may take a moment."""
            with pytest.raises(ApiError) as caught:
                replicate(world, east, key, "south", fresh())
            assert caught.value.code in ("KMS.0104", "KMS.0308")
            return "another root key" in caught.value.message

        eventually(differs)
        assert query(world["south"], "SELECT 1 FROM keys WHERE id = ?", key) == []
        with refusal("KMS.0308"):  # what was sent before may still be on its way there
            east.schedule_deletion(key, 7)
        assert state(world, key) == [("south", "pending")]
    finally:
        world["south"].stop()


def test_while_a_replica_is_away(world: World, east: Client, west: Client) -> None:
    key = replicated(world, east)
    blob = west.encrypt(key, b"before")
    world["west"].stop()
    assert east.decrypt(blob) == b"before"
    for call in (lambda: rotate(east, key), lambda: move(east, key, "west")):
        with refusal("KMS.0104") as seen:
            call()
        assert "Region west" in seen.last.message
        assert records(world["east"], seen.last.request_id)[-1]["result"] == "KMS.0104"
    assert encrypts_with(east, key) == 1
    assert primary(world, "east", key) == "east"
    other = east.create_key(fresh())
    rotate(east, other)  # a key without replicas knows nothing of it
    with refusal("KMS.0308"):
        east.schedule_deletion(key, 7)
    world["west"].start(gateway=False)
    with world.client("west") as back:
        eventually(lambda: answered(lambda: move(east, key, "west")))  # it had begun, and is completed
        assert primary(world, "east", key) == primary(world, "west", key) == "west"
        rotate(back, key)
        assert encrypts_with(back, key) == encrypts_with(east, key) == 2
        assert back.decrypt(blob) == east.decrypt(blob) == b"before"


def answered(call: Callable[[], object]) -> bool:
    """Whether the call is answered, now that all are there again; nothing else than that they aren't."""
    try:
        call()
    except ApiError as error:
        if error.code not in ("KMS.0104", ""):
            raise
        return False
    return True


# In between


@contextmanager
def unheard(world: World, east: Client) -> Iterator[None]:
    """What east says arrives at west, and nothing comes back. The connection stands before."""
    replicated(world, east)
    wire = world.wires["east", "west"]
    wire.muted = True
    try:
        yield
    finally:
        wire.drop()
        wire.muted = False
        wire.drop()  # what was connected meanwhile has lost its beginning


def test_the_answer_to_a_replication_is_lost(world: World, east: Client, west: Client) -> None:
    key, alias = east.create_key(fresh()), fresh()
    blobs = [east.encrypt(key, b"0")]
    with unheard(world, east):
        with refusal("KMS.0104"):
            replicate(world, east, key, "west", alias)
        assert eventually(lambda: primary(world, "west", key)) == "east"
        assert state(world, key) == [("west", "pending")]
        rotate(east, key)
        blobs.append(east.encrypt(key, b"1"))
    eventually(lambda: answered(lambda: replicate(world, east, key, "west", alias)))
    assert state(world, key) == [("west", "replicated")]
    assert [west.decrypt(blob) for blob in blobs] == [b"0", b"1"]
    assert versions(world, "west", key) == versions(world, "east", key)
    assert encrypts_with(west, key) == 2
    both_ways(east, west, key)


def test_who_waits_for_a_region_holds_nobody_else_up(world: World, east: Client) -> None:
    """More callers than there are threads wait for west, and east serves others meanwhile."""
    threads, other = 8, east.create_key(fresh())
    pending = "SELECT key_id FROM replicas WHERE state = 'pending'"

    def served_meanwhile() -> bool:
        """Not seen by a test that is so slow that they have waited long enough."""
        keys = [east.create_key(fresh()) for _ in range(threads + 2)]
        with unheard(world, east), ThreadPoolExecutor(len(keys)) as pool:
            waiting = [pool.submit(refused_replica, world, key) for key in keys]
            eventually(lambda: len({key for (key,) in query(world["east"], pending)} & set(keys)) >= threads)
            assert east.decrypt(east.encrypt(other, b"x")) == b"x"
            meanwhile = not any(each.done() for each in waiting)
            assert [each.result() for each in waiting] == ["KMS.0104"] * len(keys)
        return meanwhile

    eventually(served_meanwhile, 90)


def refused_replica(world: World, key: str) -> str:
    with world.client("east", deadline=60.0) as client, refusal("KMS.0104") as seen:
        replicate(world, client, key, "west", fresh())
    return seen.last.code


def test_the_answer_to_a_rotation_is_lost(world: World, east: Client, west: Client) -> None:
    key = replicated(world, east)
    with unheard(world, east):
        with refusal("KMS.0104"):
            rotate(east, key)
        eventually(lambda: len(versions(world, "west", key)) == 2)
        waiting = versions(world, "west", key)
        assert encrypts_with(east, key) == encrypts_with(west, key) == 1
        found = east.rotation.GetKeyRotationStatus(rotation_pb2.GetKeyRotationStatusRequest(key_id=key))
        assert (found.number_of_rotations, len(found.key_materials)) == (0, 1)
        both_ways(east, west, key)
    eventually(lambda: answered(lambda: rotate(east, key)))
    assert encrypts_with(east, key) == 2
    assert versions(world, "east", key) == versions(world, "west", key) == waiting
    eventually(lambda: encrypts_with(west, key) == 2)
    both_ways(east, west, key)


def test_the_answer_to_a_move_is_lost(world: World, east: Client, west: Client) -> None:
    key = replicated(world, east)
    with unheard(world, east):
        with refusal("KMS.0104"):
            move(east, key, "west")
        assert eventually(lambda: primary(world, "west", key) == "west")
        assert primary(world, "east", key) == "east"
        for client in (east, west):  # neither side does what only the primary may
            with refusal("KMS.0104"):
                rotate(client, key)
        both_ways(east, west, key)
        with refusal("KMS.0104"):
            replicate(world, east, key, "south", fresh())
    eventually(lambda: answered(lambda: move(east, key, "west")))
    assert primary(world, "east", key) == "west"
    rotate(west, key)
    assert encrypts_with(east, key) == encrypts_with(west, key) == 2


def test_the_heir_moves_it_on_before_its_answer_is_heard(world: World, east: Client, west: Client) -> None:
    key = replicated(world, east)
    east.rotation.EnableKeyRotation(rotation_pb2.EnableKeyRotationRequest(key_id=key))
    with world.peer("west", "east") as stub:
        assert code_of(lambda: follow(stub, key, "south")) == "KMS.0207"  # no heir of anything
        with unheard(world, east):
            with refusal("KMS.0104"):
                move(east, key, "west")
            assert eventually(lambda: primary(world, "west", key) == "west")
            told = [each for each in world["east"].audit() if each["resource"] == key]
            begun = [each for each in told if each["user"] != "warden"]  # which may have tried to complete it
            assert [(each["event"], each["result"]) for each in begun[-2:]] == [
                ("appointPrimary", "OK"),
                ("updatePrimaryRegion", "KMS.0104"),
            ]
            assert begun[-2]["user_id"] == begun[-1]["user_id"] != ""
            with world.peer("south", "east") as other:
                assert code_of(lambda: follow(other, key, "south")) == "KMS.0207"
            assert (primary(world, "east", key), state(world, key)) == ("east", [("west", "heir")])
            assert not follow(stub, key, "south").gone
    assert (primary(world, "east", key), state(world, key)) == ("south", [])
    days = query(world["east"], "SELECT rotation_days, rotation_due FROM keys WHERE id = ?", key)
    assert days == [(None, None)]


@pytest.mark.soak
def test_a_move_that_was_cut_short_is_completed(world: World, east: Client, west: Client) -> None:
    key = replicated(world, east)
    rotate(east, key)
    with unheard(world, east):
        with refusal("KMS.0104"):
            move(east, key, "west")
        assert eventually(lambda: primary(world, "west", key) == "west")
        world["east"].kill_everything()
    world["east"].start(gateway=False)
    eventually(lambda: primary(world, "east", key) == "west", LEASE_SECONDS)
    assert state(world, key) == []
    told = [each for each in world["east"].audit() if (each["resource"], each["user"]) == (key, "warden")]
    assert [(each["event"], each["result"]) for each in told] == [("updatePrimaryRegion", "OK")]
    with world.client("east") as back:
        rotate(west, key)
        assert encrypts_with(back, key) == encrypts_with(west, key) == 3


@pytest.mark.soak
@pytest.mark.parametrize("victim", ["east", "west"])
def test_killed_while_keys_are_replicated_and_rotated(world: World, victim: str) -> None:
    going, done = threading.Event(), []
    with world.client("east") as client:
        keys = {client.create_key(fresh()): fresh() for _ in range(30)}

    def work(mine: list[str]) -> None:
        with world.client("east") as one:
            for key in mine:
                try:
                    replicate(world, one, key, "west", keys[key])
                    rotate(one, key)
                except ApiError:
                    return
                done.append(key)
                if len(done) == 3:
                    going.set()

    names = list(keys)
    threads = [threading.Thread(target=work, args=(names[start::3],)) for start in range(3)]
    for thread in threads:
        thread.start()
    assert going.wait(120)
    world[victim].kill_everything()
    for thread in threads:
        thread.join()
    assert len(done) < len(keys)
    world[victim].start(gateway=False)
    with world.client("east") as one, world.client("west") as other:
        for key, alias in keys.items():
            eventually(
                lambda key=key, alias=alias: answered(lambda: replicate(world, one, key, "west", alias))
            )
            both_ways(one, other, key)
            turned = encrypts_with(one, key)
            assert turned <= 2
            assert turned == 2 or key not in done
            eventually(lambda key=key: answered(lambda: rotate(one, key)))
            assert encrypts_with(one, key) == turned + 1
            both_ways(one, other, key)
            assert versions(world, "east", key) == versions(world, "west", key)


def test_a_restart_of_both(world: World, east: Client, west: Client) -> None:
    key = replicated(world, east)
    blobs = [east.encrypt(key, b"east"), west.encrypt(key, b"west")]
    for region in ("east", "west"):
        world[region].restart_daemon()
    with world.client("east") as one, world.client("west") as other:
        assert [other.decrypt(blob) for blob in blobs] == [b"east", b"west"]
        assert [one.decrypt(blob) for blob in blobs] == [b"east", b"west"]
        eventually(lambda: answered(lambda: rotate(one, key)))
        both_ways(one, other, key)


# Settings

_PEER = {"region": "b", "address": "h:1", "ca": "c", "certificate": "d", "key": "e", "names": ["CN:b"]}


def configured(folder: Path, *peers: dict[str, Any]) -> tuple[Peer, ...]:
    tables = []
    for peer in peers:
        lines = [
            f"{name} = {value}" if name == "domains" else f"{name} = {value!r}"
            for name, value in peer.items()
        ]
        tables.append("\n".join(["[[peers]]", *lines]))
    path = folder / "hsmd.toml"
    path.write_text('region = "a"\n' + "\n".join(tables))
    return load(path, {}).peers


def test_peers_in_the_configuration(tmp_path: Path) -> None:
    ours, theirs = "0" * 32, "f" * 32
    found = configured(tmp_path, _PEER | {"domains": f'[{{theirs="{theirs}", ours="{ours}"}}]'})
    assert found == (
        Peer("b", "h:1", Path("c"), Path("d"), Path("e"), ("CN:b",), (SharedDomain(theirs, ours),)),
    )
    assert configured(tmp_path, _PEER)[0].domains == ()


@pytest.mark.parametrize(
    ("peers", "path"),
    [
        ([_PEER | {"region": "a"}], "peers[0].region"),
        ([_PEER | {"region": "a:b"}], "peers[0].region"),
        ([_PEER, _PEER | {"names": ["CN:c"]}], "peers[1].region"),
        ([_PEER, _PEER | {"region": "c"}], "peers[1].names"),
        ([_PEER | {"names": ["CN:x", "CN:hsmd-gateway"]}], "peers[0].names"),
        *[
            ([_PEER | {"names": ["CN:good", wrong]}], "peers[0].names")
            for wrong in (
                "b",
                "",
                "CN:",
                "CN: ",
                "cn:b",
                "IP:1.2.3.4",
                " CN:b",
                "CN:b ",
                "CN=b",
            )
        ],
        ([_PEER | {"domains": '[{theirs="x", ours="y"}]'}], "peers[0].domains"),
        ([_PEER | {"domains": '[{theirs="x"}]'}], "peers[0].domains[0].ours"),
        ([_PEER | {"deadline_seconds": 61.0}], "peers[0].deadline_seconds"),
        ([{name: value for name, value in _PEER.items() if name != "names"}], "peers[0].names"),
        ([_PEER | {"region": f"r{each}", "names": [f"CN:{each}"]} for each in range(9)], "peers"),
    ],
)
def test_peers_that_may_not_be(tmp_path: Path, peers: list[dict[str, Any]], path: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)}: "):
        configured(tmp_path, *peers)


def test_the_sample_shows_every_option_of_a_peer() -> None:
    text = (Path(__file__).parent.parent / "conf" / "hsmd.toml").read_text(encoding="utf-8")
    example = text.split("[[peers]]\n")[-1].split("\n\n")[0]
    shown = {line.removeprefix("#").split("=")[0].strip() for line in example.splitlines() if line}
    assert shown == set(Peer.__dataclass_fields__)
