"""Imports from end to end: what openssl made, what is refused and why, material that goes and comes."""

import base64
import hashlib
import hmac
import json
import os
import re
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_private_key
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.cli.hsmctl import run
from hsmd.client import ApiError, Client
from hsmd.pb.v1 import imports_pb2 as pb
from hsmd.pb.v1 import keys_pb2
from tests.backstage import backstage
from tests.calls import Operation, fresh, records, refusal, refused
from tests.stand import Stand, Tenant, b64, eventually, standing
from tests.wrapping import (
    GENPKEY,
    MGF,
    OAEP,
    SECRETS,
    deleted,
    imported,
    kwp,
    oaep,
    openssl,
    parameters,
    pkcs8,
    private_key,
    public_key,
    request,
)

PAGE = Path(__file__).parents[1] / "docs" / "importing-keys.md"
DAY = 24 * 60 * 60
DISABLED, PENDING_IMPORT, ENABLED = 3, 5, 2


def awaiting(client: Client, spec: str = "AES_256", usage: str = "") -> str:
    key = client.create_key(fresh("import"), spec=spec, usage=usage, origin="external")
    found = client.describe_key(key)
    assert (found.key_state, found.origin) == (PENDING_IMPORT, keys_pb2.ORIGIN_EXTERNAL)
    return key


def state(client: Client, key: str) -> int:
    return client.describe_key(key).key_state


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes((data[place] ^ 1,)) + data[place + 1 :]


def code_of(client: Client, wanted: pb.ImportKeyMaterialRequest) -> str:
    with pytest.raises(ApiError) as caught:
        client.imports.ImportKeyMaterial(wanted)
    return caught.value.code


def row(stand: Stand, query: str, *values: str) -> Any:
    with closing(sqlite3.connect(f"file:{stand.dev.data}/store/hsmd.db?mode=ro", uri=True)) as store:
        return store.execute(query, values).fetchone()


def alter(stand: Stand, key: str, **fields: object) -> None:
    backstage(stand, "alter", key, json.dumps(fields))


# What openssl made is taken


@pytest.mark.parametrize("spec", GENPKEY)
def test_pairs(client: Client, tmp_path: Path, spec: str) -> None:
    private = private_key(spec)
    key = awaiting(client, spec, "SIGN_VERIFY")
    imported(client, tmp_path, key, os.urandom(16 if spec == "EC_P384" else 32), private)
    assert state(client, key) == ENABLED
    assert client.public_key(key) == public_key(private)
    algorithm, digest = ("RSASSA_PSS_SHA_256", "sha256") if spec[0] == "R" else ("ECDSA_SHA_384", "sha384")
    (tmp_path / "signature").write_bytes(client.sign(key, algorithm, b"message"))
    (tmp_path / "public.pem").write_text(public_key(private))
    options = ("-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32") if spec[0] == "R" else ()
    signature = ("-verify", str(tmp_path / "public.pem"), "-signature", str(tmp_path / "signature"))
    assert openssl("dgst", f"-{digest}", *options, *signature, given=b"message") == b"Verified OK\n"


@pytest.mark.parametrize("spec", SECRETS)
def test_secrets(stand: Stand, client: Client, tmp_path: Path, spec: str) -> None:
    key, material = awaiting(client, spec), os.urandom(SECRETS[spec])
    imported(client, tmp_path, key, material)
    assert state(client, key) == ENABLED
    if spec == "AES_256":
        assert client.decrypt(client.encrypt(key, b"data", b"aad"), b"aad") == b"data"
    else:
        bits = spec[-3:]
        right = hmac.new(material, b"message", f"sha{bits}").digest()
        assert client.mac(key, f"HMAC_SHA_{bits}", b"message") == right
    check, wrapped = row(stand, "SELECT material_check, wrapped FROM key_versions WHERE key_id = ?", key)
    assert len(check) == 32
    guesses = [hash_(material).digest() for hash_ in (hashlib.sha256, hashlib.sha3_256)]
    assert check not in (*guesses, hmac.new(material, b"hsmd material check\0", "sha256").digest())
    assert material not in wrapped


def test_an_imported_rsa_key_decrypts_what_was_encrypted_before(client: Client, tmp_path: Path) -> None:
    private = private_key("RSA_2048")
    key = awaiting(client, "RSA_2048", "ENCRYPT_DECRYPT")
    blob = oaep(tmp_path, openssl("pkey", "-pubout", "-outform", "DER", given=private), b"offline")
    imported(client, tmp_path, key, os.urandom(32), private)
    assert client.decrypt(blob, key_id=key, algorithm="RSAES_OAEP_SHA_256") == b"offline"


@pytest.mark.parametrize("spec", ["ED25519", "ML_DSA_44"])
def test_kinds_that_are_not_imported(rest: Operation, spec: str) -> None:
    body = {"key_alias": fresh(), "key_spec": spec, "origin": "external"}
    refused(rest("create-key", body), "KMS.1110")


# The parameters


def test_the_parameters(stand: Stand, client: Client) -> None:
    key, before = awaiting(client), int(time.time())
    made, other = parameters(client, key), parameters(client, key)
    assert made.key_id == key
    public = load_der_public_key(made.public_key)
    assert public.key_size == 3072  # type: ignore[union-attr]  # an RSA key has it, any other fails here
    assert before + DAY <= made.expiration_time <= int(time.time()) + DAY
    assert made.import_token != other.import_token
    assert made.public_key != other.public_key
    found = [each for each in stand.audit() if each["resource"] == key]
    assert found[-1]["event"] == "getParametersForImport"


def test_what_parameters_are_refused_for(stand: Stand, client: Client, rest: Operation) -> None:
    own, key = client.create_key(fresh()), awaiting(client)
    right = {"key_id": key, "wrapping_algorithm": "RSAES_OAEP_SHA_256"}
    assert rest("get-parameters-for-import", right).status == 200
    for change, code in (
        ({"key_id": own}, "KMS.0309"),
        ({"key_id": "12345678-1234-4123-8123-123456789012"}, "KMS.0207"),
        ({"key_id": "x"}, "KMS.0205"),
        ({"key_id": ""}, "KMS.0204"),
        ({"key_id": 5}, "KMS.0205"),
        ({"wrapping_algorithm": ""}, "KMS.0204"),
        ({"wrapping_algorithm": "RSAES_OAEP_SHA_1"}, "KMS.0308"),
        ({"wrapping_algorithm": ["RSAES_OAEP_SHA_256"]}, "KMS.0308"),
        ({"sequence": "short"}, "KMS.0206"),
    ):
        refused(rest("get-parameters-for-import", {**right, **change}), code)
    refused(rest("get-parameters-for-import", b"{"), "KMS.0202")


def test_only_pending_keys_take_material(client: Client, tmp_path: Path) -> None:
    key, material = awaiting(client), os.urandom(32)
    made = parameters(client, key)
    client.imports.ImportKeyMaterial(request(tmp_path, made, material))
    for change in (lambda: None, lambda: client.disable(key), lambda: client.schedule_deletion(key, 7)):
        change()
        with refusal("KMS.0310"):
            parameters(client, key)
        with refusal("KMS.0310"):
            client.imports.ImportKeyMaterial(request(tmp_path, made, material))
    made.key_id = client.create_key(fresh())
    with refusal("KMS.0309"):
        client.imports.ImportKeyMaterial(request(tmp_path, made, material))


# What is refused


def test_each_tampered_part_has_its_own_code(  # noqa: C901 -- a list of cases on one import, in rows
    client: Client, tmp_path: Path
) -> None:
    """Every single change of a right request; in the end the right one is taken."""
    private, temporary = private_key("EC_P256"), os.urandom(32)
    key, other = awaiting(client, "EC_P256"), awaiting(client, "EC_P256")
    made, foreign = parameters(client, key), parameters(client, other)
    right = request(tmp_path, made, temporary, private)

    def but(**fields: Any) -> pb.ImportKeyMaterialRequest:
        wanted = pb.ImportKeyMaterialRequest()
        wanted.CopyFrom(right)
        for name, value in fields.items():
            setattr(wanted, name, value)
        return wanted

    token, material, blob = right.import_token, right.encrypted_key_material, right.encrypted_privatekey
    for place in (0, 5, 45, 48, 50, 200, len(token) - 40, -1 % len(token)):
        assert code_of(client, but(import_token=flipped(token, place))) == "KMS.2605", place
    for bad in (b"x", token[:-1], token + b"\0", token[:32], bytes(4096)):
        assert code_of(client, but(import_token=bad)) == "KMS.2605"
    assert code_of(client, but(import_token=bytes(4097))) == "KMS.2605"
    assert code_of(client, but(import_token=foreign.import_token)) == "KMS.2603"
    for place in (0, 1, 200, len(material) - 1):
        assert code_of(client, but(encrypted_key_material=flipped(material, place))) == "KMS.0311"
    sha1 = oaep(tmp_path, made.public_key, temporary, ("-pkeyopt", "rsa_padding_mode:oaep"))
    mixed = oaep(tmp_path, made.public_key, temporary, (*OAEP, "-pkeyopt", "rsa_mgf1_md:sha1"))
    labelled = oaep(tmp_path, made.public_key, temporary, (*OAEP, *MGF, "-pkeyopt", "rsa_oaep_label:aa"))
    pkcs1 = oaep(tmp_path, made.public_key, temporary, ("-pkeyopt", "rsa_padding_mode:pkcs1"))
    strange = oaep(tmp_path, foreign.public_key, temporary)
    bad_ones = (sha1, mixed, labelled, pkcs1, strange, b"x", material[:-1], bytes(384), b"\xff" * 384)
    for number, bad in enumerate((*bad_ones, bytes(1025))):
        assert code_of(client, but(encrypted_key_material=bad)) == "KMS.0311", number
    for size in (1, 15, 17, 24, 31, 33, 64):
        short = oaep(tmp_path, made.public_key, bytes(size))
        assert code_of(client, but(encrypted_key_material=short)) == "KMS.2610"
    for place in (0, 8, len(blob) - 1):
        assert code_of(client, but(encrypted_privatekey=flipped(blob, place))) == "KMS.2609"
    der = pkcs8(private)
    public = openssl("pkey", "-pubout", "-outform", "DER", given=private)
    sec1 = openssl("ec", "-outform", "DER", given=private)
    others = [pkcs8(private_key(spec)) for spec in ("EC_P384", "SECP256K1", "RSA_2048")]
    for number, bad in enumerate((private, public, sec1, der[:-1], os.urandom(len(der)), *others)):
        assert code_of(client, but(encrypted_privatekey=kwp(temporary, bad))) == "KMS.2609", number
    for bad in (kwp(os.urandom(32), der), b"x", blob[:-8], blob + bytes(8), bytes(8193)):
        assert code_of(client, but(encrypted_privatekey=bad)) == "KMS.2609"
    assert code_of(client, but(encrypted_privatekey=b"")) == "KMS.2608"
    assert code_of(client, but(expiration_time=int(time.time()))) == "KMS.2602"
    assert code_of(client, but(expiration_time=0)) == "KMS.2602"
    assert code_of(client, but(expiration_time=-(2**63))) == "KMS.2602"
    assert code_of(client, but(expiration_time=2**63 - 1)) == "KMS.0308"
    for name in ("import_token", "encrypted_key_material", "key_id"):
        assert code_of(client, but(**{name: "" if name == "key_id" else b""})) == "KMS.0204"
    assert state(client, key) == PENDING_IMPORT
    client.imports.ImportKeyMaterial(right)
    assert client.public_key(key) == public_key(private)


@pytest.mark.parametrize("spec", ["RSA_2048", "SECP256K1", "EC_P384", "AES_256", "HMAC_384"])
def test_tampered_blobs_of_every_kind(client: Client, tmp_path: Path, spec: str) -> None:
    """One change each of what openssl made, and others' keys; the right one is taken in the end."""
    private = private_key(spec) if spec in GENPKEY else b""
    key, temporary = awaiting(client, spec), os.urandom(SECRETS.get(spec, 32))
    made = parameters(client, key)
    right = request(tmp_path, made, temporary, private)
    for field, code in (
        ("import_token", "KMS.2605"),
        ("encrypted_key_material", "KMS.0311"),
        ("encrypted_privatekey", "KMS.2609"),
    ):
        whole: bytes = getattr(right, field)
        if not whole:
            continue
        wanted = pb.ImportKeyMaterialRequest()
        wanted.CopyFrom(right)
        for bad in (flipped(whole, 0), flipped(whole, len(whole) // 2), flipped(whole, len(whole) - 1)):
            setattr(wanted, field, bad)
            assert code_of(client, wanted) == code
        setattr(wanted, field, whole[:-1])
        assert code_of(client, wanted) == code
    if private:
        others = [pkcs8(private_key(each)) for each in ("EC_P256", "RSA_3072", "SECP256K1") if each != spec]
        small = openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024")
        wanted.CopyFrom(right)
        for der in (*others, pkcs8(small), pkcs8(private)[:-2]):
            wanted.encrypted_privatekey = kwp(temporary, der)
            assert code_of(client, wanted) == "KMS.2609"
    assert state(client, key) == PENDING_IMPORT
    client.imports.ImportKeyMaterial(right)
    assert state(client, key) == ENABLED
    if private:
        assert client.public_key(key) == public_key(private)


@pytest.mark.parametrize("spec", SECRETS)
def test_secrets_of_another_length(client: Client, tmp_path: Path, spec: str) -> None:
    key = awaiting(client, spec)
    made = parameters(client, key)
    for size in {1, 16, 31, 32, 33, 48, 63, 64, 65, 300} - {SECRETS[spec]}:
        assert code_of(client, request(tmp_path, made, os.urandom(size))) == "KMS.2604"
    wanted = request(tmp_path, made, os.urandom(SECRETS[spec]))
    wanted.encrypted_privatekey = bytes(48)
    assert code_of(client, wanted) == "KMS.0308"


def test_bodies_that_are_wrong(client: Client, rest: Operation, tmp_path: Path) -> None:
    made = parameters(client, awaiting(client))
    material = oaep(tmp_path, made.public_key, os.urandom(32))
    right = {
        "key_id": made.key_id,
        "import_token": b64(made.import_token),
        "encrypted_key_material": b64(material),
    }
    for change, code in (
        ({"import_token": "?"}, "KMS.2605"),
        ({"import_token": 5}, "KMS.2605"),
        ({"encrypted_key_material": "?"}, "KMS.0311"),
        ({"encrypted_key_material": [1]}, "KMS.0311"),
        ({"encrypted_privatekey": "?"}, "KMS.2609"),
        ({"expiration_time": "tomorrow"}, "KMS.0308"),
        ({"expiration_time": 10**30}, "KMS.0308"),
        ({"expiration_time": int(time.time() * 1000)}, "KMS.0308"),
        ({"sequence": "x"}, "KMS.0206"),
        ({"key_id": "alias/" + fresh()}, "KMS.0207"),
    ):
        refused(rest("import-key-material", {**right, **change}), code)
    assert rest("import-key-material", right).json == {}


def test_tokens_of_others(
    stand: Stand, client: Client, strange: Client, stranger: Tenant, tmp_path: Path
) -> None:
    key, theirs = awaiting(client), awaiting(strange)
    made, foreign = parameters(client, key), parameters(strange, theirs)
    foreign.key_id = key
    assert code_of(client, request(tmp_path, foreign, bytes(32))) == "KMS.2605"
    with refusal("KMS.0207"):
        parameters(strange, key)
    assert code_of(strange, request(tmp_path, made, bytes(32))) == "KMS.0207"
    with refusal("KMS.0207"):
        deleted(strange, key)
    assert state(client, key) == PENDING_IMPORT


def test_who_may_only_look(stand: Stand, reader: Tenant, client: Client, tmp_path: Path) -> None:
    made = parameters(client, awaiting(client))
    with stand.client(reader) as looking:
        with refusal("KMS.0330"):
            deleted(looking, made.key_id)
        assert code_of(looking, request(tmp_path, made, bytes(32))) == "KMS.0330"


def test_an_expired_token(stand: Stand, client: Client, tmp_path: Path) -> None:
    key = awaiting(client)
    wanted = request(tmp_path, parameters(client, key), bytes(32))
    wanted.import_token = bytes.fromhex(backstage(stand, "expired-token", key))
    with refusal("KMS.2601"):
        client.imports.ImportKeyMaterial(wanted)
    wanted.key_id = awaiting(client)
    assert code_of(client, wanted) == "KMS.2603"


# Material that goes and comes


def test_deleted_material_comes_again_and_no_other(stand: Stand, client: Client, tmp_path: Path) -> None:
    key, material = awaiting(client), os.urandom(32)
    imported(client, tmp_path, key, material)
    blob, (dek, wrapped) = client.encrypt(key, b"data"), client.create_data_key(key)
    deleted(client, key)
    assert state(client, key) == PENDING_IMPORT
    assert row(stand, "SELECT wrapped FROM key_versions WHERE key_id = ?", key) == (None,)
    with refusal("KMS.0209"):
        client.decrypt(blob)
    with refusal("KMS.0209"):
        client.encrypt(key, b"x")
    with refusal("KMS.2701"):
        deleted(client, key)
    made = parameters(client, key)
    for other in (os.urandom(32), material[:-1] + bytes((material[-1] ^ 1,)), bytes(32)):
        assert code_of(client, request(tmp_path, made, other)) == "KMS.2606"
    client.imports.ImportKeyMaterial(request(tmp_path, made, material))
    assert client.decrypt(blob) == b"data"
    assert client.decrypt_data_key(key, wrapped) == dek
    client.disable(key)
    deleted(client, key)
    assert state(client, key) == PENDING_IMPORT
    client.imports.ImportKeyMaterial(request(tmp_path, made, material))  # the token is good for a day
    assert client.decrypt(blob) == b"data"
    events = [each["event"] for each in stand.audit() if each["resource"] == key and each["result"] == "OK"]
    assert (events.count("importKeyMaterial"), events.count("deleteImportedKeyMaterial")) == (3, 2)
    assert row(stand, "SELECT count(*) FROM key_versions WHERE key_id = ?", key) == (1,)


def test_what_is_not_deleted(client: Client, tmp_path: Path) -> None:
    pair = awaiting(client, "EC_P256")
    imported(client, tmp_path, pair, os.urandom(32), private_key("EC_P256"))
    with refusal("KMS.2702"):
        deleted(client, pair)
    with refusal("KMS.0309"):
        deleted(client, client.create_key(fresh()))
    key = awaiting(client)
    with refusal("KMS.2701"):
        deleted(client, key)
    imported(client, tmp_path, key, bytes(32))
    client.schedule_deletion(key, 7)
    with refusal("KMS.2701"):
        deleted(client, key)
    client.cancel_deletion(key)
    assert state(client, key) == DISABLED


def test_a_key_without_material_is_deleted_and_not(stand: Stand, client: Client) -> None:
    key = awaiting(client)
    with refusal("KMS.1201"):
        client.enable(key)
    with refusal("KMS.1301"):
        client.disable(key)
    client.schedule_deletion(key, 7)
    client.cancel_deletion(key)
    assert state(client, key) == PENDING_IMPORT
    client.schedule_deletion(key, 7)
    backstage(stand, "due", key)
    with refusal("KMS.0207"):
        parameters(client, key)


def test_expired_material(stand: Stand, client: Client, tmp_path: Path) -> None:
    key, material = awaiting(client), os.urandom(32)
    end = int(time.time()) + 7 * DAY
    imported(client, tmp_path, key, material, expiration_time=end)
    assert client.describe_key(key).expiration_time.seconds == end
    blob = client.encrypt(key, b"data")
    alter(stand, key, expires=1)
    with refusal("KMS.0209"):  # whether or not the job was there
        client.decrypt(blob)
    assert state(client, key) == PENDING_IMPORT
    eventually(lambda: row(stand, "SELECT wrapped FROM key_versions WHERE key_id = ?", key) == (None,))
    assert row(stand, "SELECT state, expires FROM keys WHERE id = ?", key) == (PENDING_IMPORT, None)
    (entry,) = [
        each
        for each in stand.audit()
        if each["event"] == "deleteImportedKeyMaterial" and each["resource"] == key
    ]
    assert (entry["identity"], entry["result"], entry["project_id"]) == (
        "system",
        "OK",
        stand.dev.project_id,
    )
    assert not client.describe_key(key).HasField("expiration_time")
    made = parameters(client, key)
    assert code_of(client, request(tmp_path, made, os.urandom(32))) == "KMS.2606"
    client.imports.ImportKeyMaterial(request(tmp_path, made, material))
    assert client.decrypt(blob) == b"data"
    assert not client.describe_key(key).HasField("expiration_time")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A stand that lives in other days and is killed."""
    with standing(tmp_path_factory.mktemp("imports")) as one:
        yield one


def test_the_job_by_its_clock(own: Stand, tmp_path: Path) -> None:
    with own.client() as client:
        now = int(time.time())
        soon, later, never, leaving, resting = (awaiting(client) for _ in range(5))
        pair = awaiting(client, "EC_P256")
        for key, days in ((soon, 1), (later, 3), (leaving, 1), (resting, 1)):
            imported(client, tmp_path, key, os.urandom(32), expiration_time=now + days * DAY)
        imported(client, tmp_path, never, os.urandom(32))
        imported(client, tmp_path, pair, os.urandom(32), private_key("EC_P256"), expiration_time=now + DAY)
        client.schedule_deletion(leaving, 30)
        client.disable(resting)
        backstage(own, "expirations", "0")
        assert [state(client, key) for key in (soon, later, never, resting)] == [2, 2, 2, 3]
        backstage(own, "expirations", "2")
        states = [state(client, key) for key in (soon, later, never, leaving, resting, pair)]
        assert states == [5, 2, 2, 4, 5, 5]
        client.cancel_deletion(leaving)
        assert state(client, leaving) == PENDING_IMPORT
        backstage(own, "expirations", "2")
        backstage(own, "expirations", "4")
        assert [state(client, key) for key in (later, never)] == [5, 2]
        assert len([each for each in own.audit() if each["method"] == "warden/expired-material"]) == 5


def test_two_imports_at_once_are_one(stand: Stand, client: Client, tmp_path: Path) -> None:
    key, results = awaiting(client), list[str]()
    made = parameters(client, key)
    wanted = [request(tmp_path, made, os.urandom(32)) for _ in range(6)]

    def work(each: pb.ImportKeyMaterialRequest) -> None:
        with stand.client() as own:
            try:
                own.imports.ImportKeyMaterial(each)
                results.append("OK")
            except ApiError as error:
                results.append(error.code)

    threads = [threading.Thread(target=work, args=(each,)) for each in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["KMS.0310"] * 5 + ["OK"]
    assert client.decrypt(client.encrypt(key, b"x")) == b"x"


def test_killed_while_material_comes_and_goes(own: Stand, tmp_path: Path) -> None:
    material = os.urandom(32)
    with own.client() as client:
        key = awaiting(client)
        made = parameters(client, key)
        wanted = request(tmp_path, made, material)
        client.imports.ImportKeyMaterial(wanted)
        blob = client.encrypt(key, b"before")
    turns = threading.Semaphore(0)

    def work() -> None:
        with own.client() as one:
            while True:
                try:
                    deleted(one, key)
                    one.imports.ImportKeyMaterial(wanted)
                except ApiError:
                    return
                turns.release()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(5):
        assert turns.acquire(timeout=60)
    own.kill_everything()
    thread.join()
    own.start()
    with own.client() as client:
        present = state(client, key) == ENABLED
        found = row(own, "SELECT wrapped IS NOT NULL FROM key_versions WHERE key_id = ?", key)
        assert found == (int(present),)
        if not present:
            client.imports.ImportKeyMaterial(wanted)  # the token outlives the daemon
        assert client.decrypt(blob) == b"before"


# Secrets, SDK, page and command line


def test_nothing_of_it_is_written_down(stand: Stand, client: Client, tmp_path: Path) -> None:
    material = bytes(range(100, 132))
    key = awaiting(client)
    made = parameters(client, key)
    wanted = request(tmp_path, made, material)
    with refusal("KMS.2605") as seen:
        wanted.import_token = flipped(made.import_token, len(made.import_token) - 1)
        client.imports.ImportKeyMaterial(wanted)
    wanted.import_token = made.import_token
    client.imports.ImportKeyMaterial(wanted)
    (entry,) = records(stand, seen.last.request_id)
    assert (entry["event"], entry["result"]) == ("importKeyMaterial", "KMS.2605")
    written = stand.log() + stand.log("gateway") + json.dumps(stand.audit())
    for secret in (material, made.import_token, wanted.encrypted_key_material):
        for spelled in (secret.hex(), b64(secret), repr(secret)):
            assert spelled not in written
    store = (stand.dev.data / "store" / "hsmd.db").read_bytes()
    assert material not in store


def test_the_sdk(stand: Stand, tmp_path: Path) -> None:
    sdk = stand.sdk()
    body = kms.CreateKeyRequestBody(key_alias=fresh(), origin="external")
    key = sdk.create_key(kms.CreateKeyRequest(body=body)).key_info.key_id
    for once in range(2):
        asked = kms.GetParametersForImportRequestBody(key_id=key, wrapping_algorithm="RSAES_OAEP_SHA_256")
        made = sdk.create_parameters_for_import(kms.CreateParametersForImportRequest(body=asked))
        assert (made.key_id, type(made.expiration_time), type(made.import_token)) == (key, int, str)
        material = oaep(tmp_path, base64.b64decode(made.public_key), bytes(range(32)))
        brought = kms.ImportKeyMaterialRequestBody(
            key_id=key,
            import_token=made.import_token,
            encrypted_key_material=b64(material),
            expiration_time=int(time.time()) + DAY if once else None,
        )
        sdk.import_key_material(kms.ImportKeyMaterialRequest(body=brought))
        with pytest.raises(ClientRequestException) as caught:
            sdk.import_key_material(kms.ImportKeyMaterialRequest(body=brought))
        assert caught.value.error_code == "KMS.0310"
        shown = sdk.list_key_detail(
            kms.ListKeyDetailRequest(body=kms.OperateKeyRequestBody(key_id=key))
        ).key_info
        assert (shown.key_state, shown.origin) == ("2", "external")
        assert shown.expiration_time == (f"{brought.expiration_time}000" if once else "")
        gone = kms.OperateKeyRequestBody(key_id=key)
        sdk.delete_imported_key_material(kms.DeleteImportedKeyMaterialRequest(body=gone))


def test_the_page_is_true(stand: Stand, tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 10
    environment = {
        **os.environ,
        "HSMD": stand.dev.rest,
        "HSMD_CA": str(stand.dev.ca),
        "PROJECT": stand.dev.project_id,
        "TOKEN": stand.token(),
    }
    script = "set -euo pipefail\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".pem") == [
        "imported.pem",
        "seals.pem",
    ]


@pytest.fixture
def at_the_shell(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stand.dev.environment().items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("at_the_shell")
@pytest.mark.parametrize(
    ("spec", "form"),
    [
        ("RSA_2048", "pem"),
        ("RSA_2048", "der"),
        ("EC_P256", "pem"),
        ("EC_P256", "scalar"),
        ("EC_P384", "der"),
        ("EC_P384", "scalar"),
        ("SECP256K1", "pem"),
        ("SECP256K1", "scalar"),
    ],
)
def test_hsmctl_pairs(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, form: str
) -> None:
    pem, file, name = private_key(spec), tmp_path / "key", fresh()
    if form == "scalar":
        key = load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        scalar = key.private_numbers().private_value
        file.write_bytes(scalar.to_bytes(key.curve.key_size // 8, "big"))
    else:
        file.write_bytes(pem if form == "pem" else pkcs8(pem))
    assert run(["key", "create", name, "--spec", spec, "--external"]) == 0
    assert run(["import", f"alias/{name}", str(file)]) == 0
    assert "is ENABLED." in capsys.readouterr().err
    assert client.public_key(f"alias/{name}") == public_key(pem)


@pytest.mark.usefixtures("at_the_shell")
def test_hsmctl_secrets_and_refusals(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, file = awaiting(client, "HMAC_512"), tmp_path / "key"
    file.write_bytes(os.urandom(64))
    assert run(["import", key, str(file), "--expires", "2999-12-31", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"key_id": key, "key_state": "ENABLED"}
    assert client.describe_key(key).expiration_time.ToJsonString() == "2999-12-31T00:00:00Z"
    assert run(["import", key, str(file)]) == 1
    assert "KMS.0310" in capsys.readouterr().err
    assert run(["import", key, str(tmp_path / "none")]) == 2
    pair = awaiting(client, "EC_P256")
    private = private_key("EC_P256")
    locked = openssl("pkey", "-aes256", "-passout", "pass:secret", given=private)
    for content, text in (
        (private_key("EC_P384"), "none of EC_P256"),
        (private_key("RSA_2048"), "none of EC_P256"),
        (locked, "is encrypted"),
        (os.urandom(31), "no private key"),
        (bytes(32), "no private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key"),
    ):
        file.write_bytes(content)
        assert run(["import", pair, str(file)]) == 4
        assert text in capsys.readouterr().err
    short = awaiting(client)
    assert run(["import", short, str(file)]) == 4
    assert "AES_256 has 32 bytes" in capsys.readouterr().err
    assert state(client, pair) == state(client, short) == PENDING_IMPORT
