"""Keys in several regions, from end to end: daemons that share a root key and speak to each other by mTLS."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmd.cli.hsmctl import run
from hsmd.client import Client
from hsmd.pb.v1 import agreement_pb2, keys_pb2, rotation_pb2
from hsmd.pb.v1 import regions_pb2 as pb
from hsmd.pb.v1.tags_pb2 import ShowTagsRequest
from tests.backstage import backstage
from tests.calls import fresh, record, records, refusal, refused
from tests.regions import World, make_world, move, query, replicate
from tests.stand import Stand, eventually

SHARE = 2**28  # messages of a version's 2^32 that a replica may encrypt
ALL = 2**32


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """east, west and north share a root key; south, which is down until a test starts it, has another."""
    many, one = {"HSMD__LIMITS__KEYS_PER_PROJECT": "100000"}, {"HSMD__GRPC__WORKERS": "1"}
    settings = {
        "east": many,
        "west": {**many, **one},
        "north": {**one, "HSMD__LIMITS__KEYS_PER_PROJECT": "8"},
        "south": {**many, **one},
    }
    made = make_world(
        tmp_path_factory.mktemp("world"), ("east", "west", "north"), ("south",), settings=settings
    )
    try:
        made["east"].start()
        made["west"].start(gateway=False)
        made["north"].start(gateway=False)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def east(world: World) -> Iterator[Client]:
    with world.client("east") as client:
        yield client


@pytest.fixture(scope="module")
def west(world: World) -> Iterator[Client]:
    with world.client("west") as client:
        yield client


@pytest.fixture(scope="module")
def north(world: World) -> Iterator[Client]:
    with world.client("north") as client:
        yield client


def rotate(client: Client, key: str) -> None:
    client.rotation.RotateOnDemand(rotation_pb2.RotateOnDemandRequest(key_id=key))


def status(client: Client, key: str) -> rotation_pb2.GetKeyRotationStatusResponse:
    request = rotation_pb2.GetKeyRotationStatusRequest(key_id=key)
    response: rotation_pb2.GetKeyRotationStatusResponse = client.rotation.GetKeyRotationStatus(request)
    return response


def version_of(blob: bytes) -> int:
    return int.from_bytes(blob[44:48], "big")


def encrypts_with(client: Client, key: str) -> int:
    return version_of(client.encrypt(key, b"x"))


def primary(stand: Stand, key: str) -> str | None:
    ((found,),) = query(stand, "SELECT primary_region FROM keys WHERE id = ?", key)
    return found  # type: ignore[no-any-return]  # SQLite's values come untyped


def followers(stand: Stand, key: str) -> dict[str, str]:
    return dict(query(stand, "SELECT region, state FROM replicas WHERE key_id = ?", key))


def used(stand: Stand, key: str, version: int) -> int:
    ((found,),) = query(stand, "SELECT used FROM key_usage WHERE key_id = ? AND version = ?", key, version)
    return int(found)


def both_ways(one: Client, other: Client, key: str) -> None:
    for writer, reader in ((one, other), (other, one)):
        assert reader.decrypt(writer.encrypt(key, b"to and fro", b"aad"), b"aad") == b"to and fro"


# Regions


def test_the_regions_that_there_are(world: World, east: Client) -> None:
    def found(**wanted: Any) -> list[str]:
        return list(east.regions.ListSupportRegions(pb.ListSupportRegionsRequest(**wanted)).regions)

    assert found() == ["east", "north", "south", "west"]
    assert found(limit=2) == ["east", "north"]
    assert found(limit=1000, offset=3) == ["west"]
    assert found(offset=4) == []
    for limit in (0, -1, 1001):
        with refusal("KMS.1601"):
            found(limit=limit)
    with refusal("KMS.1603"):
        found(offset=-1)
    stand = world["east"]
    path = f"/v2/{stand.dev.project_id}/kms/regions"
    token = stand.token()
    assert stand.rest("GET", path, token=token).json == {"regions": ["east", "north", "south", "west"]}
    assert stand.rest("GET", f"{path}?limit=1&offset=1", token=token).json == {"regions": ["north"]}
    for wrong, code in (("limit=0", "KMS.1601"), ("limit=x", "KMS.1601"), ("offset=-1", "KMS.1603")):
        refused(stand.rest("GET", f"{path}?{wrong}", token=token), code)
    refused(stand.rest("GET", f"{path}?offset=1.5", token=token), "KMS.1603")


def test_with_the_official_sdk(world: World, east: Client, west: Client) -> None:
    sdk, key, alias = world["east"].sdk(), east.create_key(fresh()), fresh()
    assert sdk.list_support_regions(kms.ListSupportRegionsRequest(limit=3, offset=1)).regions == [
        "north",
        "south",
        "west",
    ]
    body = kms.ReplicateKeyRequestBody(
        key_id=key,
        replica_region="west",
        key_alias=alias,
        key_description="die Bücherei",
        enterprise_project_id="7",
        replica_project_id=world["west"].dev.project_id,
        tags=[kms.TagItem(key="floor", value="3"), kms.TagItem(key="bare", value="")],
    )
    made = sdk.replicate_key(kms.ReplicateKeyRequest(key_id=key, body=body))
    assert (made.key_id, made.domain_id, made.region) == (key, world["west"].dev.domain_id, "west")
    found = west.describe_key(f"alias/{alias}")
    assert (found.key_id, found.key_description) == (key, "die Bücherei")
    assert found.sys_enterprise_project_id == "7"
    assert {each.key: each.value for each in west.tags.ShowTags(ShowTagsRequest(key_id=key)).tags} == {
        "floor": "3",
        "bare": "",
    }
    moved = sdk.update_primary_region(
        kms.UpdatePrimaryRegionRequest(
            key_id=key, body=kms.UpdatePrimaryRegionRequestBody(key_id=key, primary_region="west")
        )
    )
    assert (moved.key_id, moved.primary_region) == (key, "west")
    assert primary(world["east"], key) == primary(world["west"], key) == "west"


# Replicas


def test_a_replica_decrypts_what_the_primary_encrypts(world: World, east: Client, west: Client) -> None:
    alias, there = fresh(), fresh()
    key = east.create_key(alias, description="here")
    blobs = [east.encrypt(key, b"before", b"aad"), east.create_data_key(key)[1]]
    assert primary(world["east"], key) is None
    made = replicate(world, east, key, "west", there, key_description="there", tags={"a": "1"})
    assert (made.key_id, made.region) == (key, "west")
    assert made.domain_id == world["west"].dev.domain_id != world["east"].dev.domain_id
    assert west.decrypt(blobs[0], b"aad") == b"before"
    assert len(west.decrypt_data_key(key, blobs[1])) == 32
    both_ways(east, west, key)
    ours, theirs = east.describe_key(key), west.describe_key(key)
    assert theirs.key_state == keys_pb2.KEY_STATE_ENABLED
    assert (ours.key_alias, ours.key_description) == (alias, "here")
    assert (theirs.key_alias, theirs.key_description) == (there, "there")
    assert theirs.domain_id == world["west"].dev.domain_id
    assert (theirs.key_spec, theirs.key_usage, theirs.origin) == (ours.key_spec, ours.key_usage, ours.origin)
    assert key in {each.key_id for each in west.list_keys()}
    assert primary(world["east"], key) == primary(world["west"], key) == "east"
    assert followers(world["east"], key) == {"west": "replicated"}
    assert followers(world["west"], key) == {}
    # Each its own state, its own names, and rows sealed by a key of its own.
    west.disable(key)
    assert east.decrypt(east.encrypt(key, b"x")) == b"x"
    with refusal("KMS.0209"):
        west.encrypt(key, b"x")
    columns = "key_id, version, algorithm, wrapped, root_label, created, seal"
    sql = f"SELECT {columns} FROM key_versions WHERE key_id = ?"  # noqa: S608 -- a fixed text
    (mine,), (its,) = query(world["east"], sql, key), query(world["west"], sql, key)
    assert mine[:-1] == its[:-1]
    assert mine[-1] != its[-1]


@pytest.mark.parametrize("spec", ["RSA_2048", "EC_P256", "SECP256K1", "HMAC_384"])
def test_keys_of_other_specs(world: World, east: Client, west: Client, spec: str) -> None:
    key = east.create_key(fresh(), spec=spec)
    replicate(world, east, key, "west", fresh())
    if spec.startswith("HMAC"):
        mac = west.mac(key, "HMAC_SHA_384", b"message")
        assert mac == east.mac(key, "HMAC_SHA_384", b"message")
        return
    assert west.public_key(key) == east.public_key(key)
    algorithm = "RSASSA_PSS_SHA_256" if spec.startswith("RSA") else "ECDSA_SHA_256"
    if spec == "SECP256K1":
        public: Any = serialization.load_pem_public_key(east.public_key(key).encode())
        public.verify(west.sign(key, algorithm, b"message"), b"message", ec.ECDSA(hashes.SHA256()))
    assert east.verify(key, algorithm, b"message", west.sign(key, algorithm, b"message"))
    assert west.verify(key, algorithm, b"message", east.sign(key, algorithm, b"message"))
    assert not west.verify(key, algorithm, b"massage", east.sign(key, algorithm, b"message"))


def test_other_usages(world: World, east: Client, west: Client) -> None:
    rsa = east.create_key(fresh(), spec="RSA_2048", usage="ENCRYPT_DECRYPT")
    replicate(world, east, rsa, "west", fresh())
    blob = east.encrypt(rsa, b"secret", algorithm="RSAES_OAEP_SHA_256")
    assert west.decrypt(blob, key_id=rsa, algorithm="RSAES_OAEP_SHA_256") == b"secret"
    pair = east.create_key(fresh(), spec="EC_P384", usage="KEY_AGREEMENT")
    replicate(world, east, pair, "west", fresh())
    own = ec.generate_private_key(ec.SECP384R1())
    der = own.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    request = agreement_pb2.DeriveSharedSecretRequest(
        key_id=pair,
        key_agreement_algorithm=agreement_pb2.KEY_AGREEMENT_ALGORITHM_ECDH,
        public_key=der,
    )
    public = serialization.load_pem_public_key(west.public_key(pair).encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    secret = own.exchange(ec.ECDH(), public)
    for client in (east, west):
        assert client.agreement.DeriveSharedSecret(request).shared_secret == secret


def test_all_generations_come_along(world: World, east: Client, west: Client) -> None:
    key = east.create_key(fresh())
    blobs = [east.encrypt(key, b"1")]
    for number in range(2, 6):
        rotate(east, key)
        blobs.append(east.encrypt(key, b"%d" % number))
    replicate(world, east, key, "west", fresh())
    assert [west.decrypt(blob) for blob in blobs] == [b"1", b"2", b"3", b"4", b"5"]
    assert encrypts_with(west, key) == 5
    assert [each.material_id for each in status(west, key).key_materials] == [
        each.material_id for each in status(east, key).key_materials
    ]


def test_more_versions_than_fit_into_one_message(world: World, east: Client, west: Client) -> None:
    key = east.create_key(fresh())
    oldest = east.encrypt(key, b"oldest")
    backstage(world["east"], "versions", key, "510")
    newest = east.encrypt(key, b"newest")
    assert version_of(newest) == 511
    replicate(world, east, key, "west", fresh())
    assert (west.decrypt(oldest), west.decrypt(newest)) == (b"oldest", b"newest")
    sql = "SELECT version, wrapped FROM key_versions WHERE key_id = ? ORDER BY version"
    assert query(world["west"], sql, key) == query(world["east"], sql, key)


def test_a_versions_messages_are_shared_out(world: World, east: Client, west: Client, north: Client) -> None:
    key = east.create_key(fresh())
    rotate(east, key)
    replicate(world, east, key, "west", fresh())
    assert (used(world["east"], key, 1), used(world["east"], key, 2)) == (0, SHARE)
    assert (used(world["west"], key, 1), used(world["west"], key, 2)) == (ALL, ALL - SHARE)
    replicate(world, east, key, "west", alias_of(west, key))  # again: nothing is given twice
    assert used(world["east"], key, 2) == SHARE
    replicate(world, east, key, "north", fresh())
    assert used(world["east"], key, 2) == 2 * SHARE
    rotate(east, key)
    assert used(world["east"], key, 3) == 2 * SHARE
    assert used(world["west"], key, 3) == used(world["north"], key, 3) == ALL - SHARE
    delete(world, "north", north, key)


def alias_of(client: Client, key: str) -> str:
    return client.describe_key(key).key_alias


def delete(world: World, region: str, client: Client, key: str) -> None:
    """To the end, as if its day had come."""
    client.schedule_deletion(key, 7)
    backstage(world[region], "due", key)
    gone(world[region], key)


def gone(stand: Stand, key: str) -> None:
    """Wait for its destruction: the lease of a warden that was stopped lasts a minute."""
    eventually(lambda: query(stand, "SELECT 1 FROM keys WHERE id = ? AND state = 0", key), 120)


def test_the_same_again(world: World, east: Client, west: Client) -> None:
    key, alias = east.create_key(fresh()), fresh()
    first = replicate(world, east, key, "west", alias, tags={"a": "1"})
    before = query(world["west"], "SELECT * FROM keys WHERE id = ?", key)
    assert replicate(world, east, key, "west", alias, tags={"a": "1"}) == first
    assert query(world["west"], "SELECT * FROM keys WHERE id = ?", key) == before
    with refusal("KMS.0308") as seen:
        replicate(world, east, key, "west", fresh())
    assert "west has this key already" in seen.last.message
    assert query(world["west"], "SELECT * FROM keys WHERE id = ?", key) == before
    assert followers(world["east"], key) == {"west": "replicated"}
    renamed = fresh()
    west.keys.UpdateKeyAlias(keys_pb2.UpdateKeyAliasRequest(key_id=key, key_alias=renamed))
    with refusal("KMS.0308"):
        replicate(world, east, key, "west", alias)
    assert replicate(world, east, key, "west", renamed) == first
    assert alias_of(west, key) == renamed


def test_two_at_once(world: World, east: Client, west: Client) -> None:
    key, alias = east.create_key(fresh()), fresh()
    clients = [world.client("east") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda client: replicate(world, client, key, "west", alias), clients))
    for client in clients:
        client.close()
    assert {each.SerializeToString() for each in made} == {made[0].SerializeToString()}
    assert used(world["east"], key, 1) == SHARE
    both_ways(east, west, key)


def test_replicated_while_it_rotates(world: World, east: Client, west: Client) -> None:
    key, alias = east.create_key(fresh()), fresh()
    stop, blobs = threading.Event(), []

    def turn() -> None:
        with world.client("east") as client:
            while not stop.wait(0.1):  # a hundred a day are all there may be
                rotate(client, key)
                blobs.append(client.encrypt(key, b"turn"))

    with ThreadPoolExecutor(1) as pool:
        turning = pool.submit(turn)
        eventually(lambda: len(blobs) > 2)
        replicate(world, east, key, "west", alias)
        count = len(blobs)
        eventually(lambda: len(blobs) > count + 3)
        stop.set()
        turning.result()
    assert [west.decrypt(blob) for blob in blobs] == [b"turn"] * len(blobs)
    both_ways(east, west, key)
    sql = "SELECT version, wrapped FROM key_versions WHERE key_id = ? ORDER BY version"
    assert query(world["west"], sql, key) == query(world["east"], sql, key)


def test_what_both_sides_record(world: World, east: Client) -> None:
    key = east.create_key(fresh())
    replicate(world, east, key, "west", fresh())
    mine = [each for each in world["east"].audit() if each["resource"] == key]
    sent, done = mine[-2:]
    assert (sent["event"], sent["result"], sent["identity"]) == ("sendReplica", "OK", "certificate")
    assert (done["event"], done["result"], done["identity"]) == ("replicateKey", "OK", "certificate")
    assert sent["request_id"] == done["request_id"]
    assert sent["user_id"] == done["user_id"] != ""  # known even of a call that never ends
    accepted = record(world["west"], done["request_id"])
    assert (accepted["event"], accepted["result"]) == ("acceptReplica", "OK")
    assert (accepted["identity"], accepted["user"], accepted["user_id"]) == ("peer", "east", "")
    assert (accepted["resource"], accepted["source"]) == (key, "127.0.0.1")
    assert accepted["project_id"] == world["west"].dev.project_id
    text = (world["west"].dev.data / "serve.log").read_text()
    ((wrapped,),) = query(world["east"], "SELECT wrapped FROM key_versions WHERE key_id = ?", key)
    assert wrapped.hex() not in text


# What is refused


def test_regions_that_may_not_be(world: World, east: Client) -> None:
    key = east.create_key(fresh())
    for region in ("east", "nowhere", "west ", "WEST", "x" * 64):
        request = pb.ReplicateKeyRequest(
            key_id=key, replica_region=region, key_alias=fresh(), replica_project_id="0" * 32
        )
        with refusal("KMS.0308") as seen:
            east.regions.ReplicateKey(request)
        assert "replica_region" in seen.last.message
        with refusal("KMS.0308"):
            move(east, key, region)
    assert primary(world["east"], key) is None


def test_keys_that_are_not_replicated(world: World, east: Client) -> None:
    stand = world["east"]

    def refuse(key: str, code: str) -> None:
        with refusal(code):
            replicate(world, east, key, "west", fresh())
        key_id = east.describe_key(key).key_id
        assert followers(stand, key_id) == {}
        assert query(world["west"], "SELECT 1 FROM keys WHERE id = ?", key_id) == []

    east.encrypt("alias/obs/default", b"x")
    refuse("alias/obs/default", "KMS.0211")
    refuse(east.create_key(fresh(), origin="external"), "KMS.0308")
    kept = east.create_key(fresh())
    backstage(stand, "alter", kept, json.dumps({"keystore_id": "1" * 32}))
    refuse(kept, "KMS.0340")
    disabled = east.create_key(fresh())
    east.disable(disabled)
    refuse(disabled, "KMS.0209")
    east.schedule_deletion(disabled, 7)
    refuse(disabled, "KMS.0210")
    for reference, code in (("x", "KMS.0205"), ("alias/nothing", "KMS.0207"), ("0" * 36, "KMS.0205")):
        with refusal(code):
            replicate(world, east, reference, "west", fresh())
        with refusal(code):
            move(east, reference, "west")


def test_what_the_other_region_refuses(world: World, east: Client, west: Client) -> None:
    key = east.create_key(fresh())
    taken = fresh()
    west.create_key(taken)
    stranger = world["west"].add_tenant(fresh("tenant"))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("KMS.1104", {"alias": taken}),
        ("KMS.0307", {"replica_project_id": "0" * 32}),
        ("KMS.0307", {"replica_project_id": world["east"].dev.project_id}),
        ("KMS.0307", {"replica_project_id": stranger.project_id}),
    ]
    for code, fields in cases:
        wanted = {"alias": fresh(), **fields}
        with refusal(code) as seen:
            replicate(world, east, key, "west", **wanted)
        if code != "KMS.1104":  # a project of others looks like one that is not
            assert seen.last.message == (
                f"Region west: You have no access to project {fields['replica_project_id']}."
            )
        assert record(world["west"], seen.last.request_id)["result"] == code
        sent, failed = records(world["east"], seen.last.request_id)
        assert (sent["event"], failed["result"]) == ("sendReplica", code)
    assert query(world["west"], "SELECT 1 FROM keys WHERE id = ?", key) == []
    assert used(world["east"], key, 1) == 0  # what was set aside for it is given back
    assert followers(world["east"], key) == {}
    replicate(world, east, key, "west", fresh())
    both_ways(east, west, key)


def test_what_is_refused_before_the_other_region_is_asked(world: World, east: Client) -> None:
    key = east.create_key(fresh())
    cases: list[tuple[str, dict[str, Any]]] = [
        ("KMS.1101", {"key_alias": "a b"}),
        ("KMS.1101", {"key_alias": "obs/default"}),
        ("KMS.1101", {"key_alias": "x" * 256}),
        ("KMS.1103", {"key_description": "x" * 256}),
        ("KMS.0308", {"replica_project_id": "0" * 31}),
        ("KMS.0308", {"replica_project_id": "G" * 32}),
        ("KMS.0308", {"replica_project_id": "0" * 65}),
        ("KMS.0308", {"enterprise_project_id": "0" * 37}),
        ("KMS.0411", {"tags": [{"key": "k" * 37}]}),
        ("KMS.0410", {"tags": [{"key": "k", "value": "v" * 44}]}),
        ("KMS.0412", {"tags": [{"key": "k"}, {"key": "k"}]}),
        ("KMS.0407", {"tags": [{"key": str(each)} for each in range(11)]}),
    ]
    stand, token = world["east"], world["east"].token()
    path = f"/v2/{stand.dev.project_id}/kms/keys/{key}/replicate"
    for code, fields in cases:
        body = {
            "key_id": key,
            "replica_region": "west",
            "key_alias": fresh(),
            "replica_project_id": world["west"].dev.project_id,
            **fields,
        }
        answer = refused(stand.rest("POST", path, body, token=token), code)
        assert records(world["west"], answer.request_id) == []
        with refusal(code):
            east.regions.ReplicateKey(pb.ReplicateKeyRequest(**body))
    whole = {"replica_region": "west", "key_alias": "a", "replica_project_id": "0" * 32}
    for name in whole:
        body = {"key_id": key} | {each: value for each, value in whole.items() if each != name}
        refused(stand.rest("POST", path, body, token=token), "KMS.0204")
        refused(
            stand.rest("POST", path, {**body, name: 7}, token=token),
            "KMS.1101" if name == "key_alias" else "KMS.0308",
        )
    moving = path.replace("/replicate", "/update-primary-region")
    refused(stand.rest("PUT", moving, {"key_id": key}, token=token), "KMS.0204")
    refused(stand.rest("PUT", moving, {"key_id": key, "primary_region": ["west"]}, token=token), "KMS.0308")
    refused(stand.rest("PUT", moving, b"{", token=token), "KMS.0202")
    assert followers(stand, key) == {}


def test_tenants_and_roles(world: World, east: Client) -> None:
    key, stand = east.create_key(fresh()), world["east"]
    stranger, reader = (
        stand.add_tenant(fresh("other")),
        stand.add_tenant(fresh("looks"), ("KMS CMKReadOnlyAccess",)),
    )
    backstage(stand, "role", reader.user_id, stand.dev.project_id, "KMS CMKReadOnlyAccess")
    with world.client("east", who=stranger) as other:
        with refusal("KMS.0207"):
            replicate(world, other, key, "west", fresh())
        with refusal("KMS.0207"):
            move(other, key, "west")
        # Its domain is not one whose keys may come into west.
        with refusal("KMS.0307"):
            replicate(world, other, other.create_key(fresh()), "west", fresh())
    with world.client("east", who=reader, project_id=stand.dev.project_id) as looking:
        assert looking.regions.ListSupportRegions(pb.ListSupportRegionsRequest(limit=1)).regions == ["east"]
        with refusal("KMS.0330"):
            replicate(world, looking, key, "west", fresh())
        with refusal("KMS.0330"):
            move(looking, key, "west")


def test_the_quota_of_the_other_region(world: World, east: Client, north: Client) -> None:
    key = east.create_key(fresh())
    room = 8 - north.keys.CountKeys(keys_pb2.CountKeysRequest()).instance_num
    made = [north.create_key(fresh()) for _ in range(room)]
    with refusal("KMS.1105") as seen:
        replicate(world, east, key, "north", fresh())
    assert "north" in seen.last.message
    for each in made:
        delete(world, "north", north, each)
    replicate(world, east, key, "north", fresh())
    both_ways(east, north, key)
    delete(world, "north", north, key)


# Rotation


def test_a_rotation_is_everywhere(world: World, east: Client, west: Client, north: Client) -> None:
    key = east.create_key(fresh())
    replicate(world, east, key, "west", fresh())
    replicate(world, east, key, "north", fresh())
    blobs = []
    for number in range(1, 4):
        for client in (east, west, north):
            blobs.append(client.encrypt(key, b"%d" % number))
            assert version_of(blobs[-1]) == number
        rotate(east, key)
    for client in (east, west, north):
        assert [client.decrypt(blob) for blob in blobs] == [b"1"] * 3 + [b"2"] * 3 + [b"3"] * 3
        assert status(client, key).number_of_rotations == 3
    assert status(west, key).last_rotation_time == status(east, key).last_rotation_time
    delete(world, "north", north, key)
    rotate(east, key)  # a replica that is gone holds nothing up
    assert followers(world["east"], key) == {"west": "replicated"}
    assert encrypts_with(west, key) == 5


def test_a_replica_does_not_rotate(world: World, east: Client, west: Client) -> None:
    key = east.create_key(fresh())
    replicate(world, east, key, "west", fresh())
    calls: list[Callable[[], object]] = [
        lambda: rotate(west, key),
        lambda: west.rotation.EnableKeyRotation(rotation_pb2.EnableKeyRotationRequest(key_id=key)),
        lambda: west.rotation.DisableKeyRotation(rotation_pb2.DisableKeyRotationRequest(key_id=key)),
        lambda: west.rotation.UpdateKeyRotationInterval(
            rotation_pb2.UpdateKeyRotationIntervalRequest(key_id=key, rotation_interval=90)
        ),
        lambda: replicate(world, west, key, "north", fresh()),
        lambda: move(west, key, "north"),
    ]
    for call in calls:
        with refusal("KMS.0308") as seen:
            call()
        assert "its primary region east" in seen.last.message
    assert status(west, key).number_of_rotations == 0


def test_two_rotations_at_once(world: World, east: Client, west: Client) -> None:
    key = east.create_key(fresh())
    replicate(world, east, key, "west", fresh())
    clients = [world.client("east") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda client: rotate(client, key), clients))
    for client in clients:
        client.close()
    assert status(east, key).number_of_rotations == 3
    eventually(lambda: encrypts_with(west, key) == 4)
    both_ways(east, west, key)
    sql = "SELECT version, wrapped FROM key_versions WHERE key_id = ? ORDER BY version"
    assert query(world["west"], sql, key) == query(world["east"], sql, key)


def test_a_due_rotation_is_everywhere(world: World, east: Client, west: Client) -> None:
    key = east.create_key(fresh())
    east.rotation.EnableKeyRotation(rotation_pb2.EnableKeyRotationRequest(key_id=key))
    replicate(world, east, key, "west", fresh())
    assert not west.describe_key(key).key_rotation_enabled
    world["west"].stop()
    backstage(world["east"], "rotations", "400")
    assert encrypts_with(east, key) == 1  # postponed
    world["west"].start(gateway=False)
    # The processes of east find west again by themselves; this one is new each time.
    backstage(world["east"], "rotations", "400")
    assert encrypts_with(east, key) == 2
    eventually(lambda: encrypts_with(west, key) == 2)
    both_ways(east, west, key)


# Deletion


def test_a_primary_goes_after_its_replicas(world: World, east: Client, west: Client) -> None:
    key = east.create_key(fresh())
    replicate(world, east, key, "west", fresh())
    blob = east.encrypt(key, b"kept")
    with refusal("KMS.0308") as seen:
        east.schedule_deletion(key, 7)
    assert "replicas in west" in seen.last.message
    west.schedule_deletion(key, 7)
    with refusal("KMS.0308"):
        east.schedule_deletion(key, 7)  # it may be cancelled yet
    west.cancel_deletion(key)
    delete(world, "west", west, key)
    with refusal("KMS.0207"):
        west.describe_key(key)
    # It comes back, by the same id, to where its tombstone is.
    alias = fresh()
    replicate(world, east, key, "west", alias)
    assert west.describe_key(f"alias/{alias}").key_id == key
    assert west.decrypt(blob) == b"kept"
    assert used(world["west"], key, 1) == ALL - SHARE
    delete(world, "west", west, key)
    east.schedule_deletion(key, 7)
    assert followers(world["east"], key) == {}
    backstage(world["east"], "due", key)
    gone(world["east"], key)


# The primary region


def test_the_primary_moves(world: World, east: Client, west: Client, north: Client) -> None:
    key = east.create_key(fresh())
    east.rotation.EnableKeyRotation(rotation_pb2.EnableKeyRotationRequest(key_id=key))
    for region in ("west", "north"):
        replicate(world, east, key, region, fresh())
    rotate(east, key)
    first = east.encrypt(key, b"first")
    assert move(east, key, "west") == "west"
    assert {primary(world[each], key) for each in ("east", "west", "north")} == {"west"}
    assert followers(world["east"], key) == followers(world["north"], key) == {}
    assert followers(world["west"], key) == {"east": "replicated", "north": "replicated"}
    assert west.describe_key(key).key_rotation_enabled
    assert not east.describe_key(key).key_rotation_enabled
    assert move(east, key, "west") == "west"  # the same answer, again
    assert move(west, key, "west") == "west"
    with refusal("KMS.0308"):
        rotate(east, key)
    with refusal("KMS.0308"):
        move(east, key, "north")
    rotate(west, key)
    for client in (east, west, north):
        assert encrypts_with(client, key) == 3
        assert client.decrypt(first) == b"first"
    with refusal("KMS.0308"):
        west.schedule_deletion(key, 7)
    assert move(west, key, "east") == "east"
    rotate(east, key)
    assert encrypts_with(north, key) == encrypts_with(west, key) == 4
    for region in ("west", "north"):
        assert primary(world[region], key) == "east"
    delete(world, "north", north, key)


def test_where_the_primary_does_not_move(world: World, east: Client, west: Client) -> None:
    key = east.create_key(fresh())
    for region in ("east", "west", "nowhere"):
        with refusal("KMS.0308") as seen:
            move(east, key, region)
        assert "primary_region" in seen.last.message
    replicate(world, east, key, "west", fresh())
    west.schedule_deletion(key, 7)
    with refusal("KMS.0210"):  # the heir's own reason; nothing has changed
        move(east, key, "west")
    assert followers(world["east"], key) == {"west": "replicated"}
    assert primary(world["east"], key) == primary(world["west"], key) == "east"
    west.cancel_deletion(key)
    east.disable(key)
    with refusal("KMS.0209"):
        move(east, key, "west")
    east.enable(key)
    assert move(east, key, "west") == "west"  # a disabled one may become the primary
    east.encrypt("alias/evs/default", b"x")
    with refusal("KMS.0211"):
        move(east, "alias/evs/default", "west")


# At the command line


def test_hsmctl(
    world: World,
    east: Client,
    west: Client,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in world["east"].dev.environment().items():
        monkeypatch.setenv(name, value)
    assert run(["region", "list"]) == 0
    assert capsys.readouterr().out.split() == ["Region", "east", "north", "south", "west"]
    assert run(["region", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"regions": ["east", "north", "south", "west"]}
    key, alias = east.create_key(fresh()), fresh()
    there = ["--project", world["west"].dev.project_id, "--alias", alias]
    assert run(["key", "replicate", key, "west", *there, "--tag", "a=1", "--description", "d"]) == 0
    assert f"{key} is in west, too." in capsys.readouterr().err
    assert west.describe_key(key).key_description == "d"
    assert run(["key", "replicate", key, "west", *there, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["region"] == "west"
    assert run(["key", "replicate", key, "west", *there, "--tag", "a"]) == 2
    assert run(["region", "primary", key, "west"]) == 0
    assert f"The primary region of {key} is west." in capsys.readouterr().err
    assert run(["key", "rotate", key]) == 1
    assert "KMS.0308" in capsys.readouterr().err
    assert run(["region", "primary", key, "nowhere"]) == 1
