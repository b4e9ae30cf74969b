"""create-key of every spec and usage: what is made, what is refused, what of it survives a restart."""

from pathlib import Path

import huaweicloudsdkkms.v2 as kms
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from hsmd.client import Client
from hsmd.pb.v1 import keys_pb2
from tests.backstage import backstage
from tests.calls import Operation, all_listed, fresh, record, refusal, refused, sequence
from tests.specs import OPTIONAL, USAGES, Keys
from tests.stand import Stand, standing

PAIRS = [(spec, usage) for spec, usages in USAGES.items() for usage in usages]


@pytest.mark.parametrize(("spec", "usage"), PAIRS)
def test_every_spec_and_usage(client: Client, keys: Keys, rest: Operation, spec: str, usage: str) -> None:
    key_id = keys(spec, usage)
    told = client.describe_key(key_id)
    assert keys_pb2.KeySpec.Name(told.key_spec) == f"KEY_SPEC_{spec}"
    assert keys_pb2.KeyUsage.Name(told.key_usage) == f"KEY_USAGE_{usage}"
    assert told.key_state == keys_pb2.KEY_STATE_ENABLED
    shown = rest("describe-key", {"key_id": key_id}).json["key_info"]
    assert (shown["key_spec"], shown["key_usage"], shown["origin"]) == (spec, usage, "kms")
    found = {each.key_id: keys_pb2.KeySpec.Name(each.key_spec) for each in all_listed(client, key_spec=spec)}
    assert key_id in found
    assert set(found.values()) == {f"KEY_SPEC_{spec}"}


@pytest.mark.parametrize("spec", USAGES)
def test_the_usage_has_a_default(keys: Keys, rest: Operation, spec: str) -> None:
    if not keys.can(spec):
        pytest.skip(f"the token can't do {spec}")
    made = rest("create-key", {"key_alias": fresh(), "key_spec": spec})
    assert made.status == 200
    shown = rest("describe-key", {"key_id": made.json["key_info"]["key_id"]}).json["key_info"]
    assert shown["key_usage"] == USAGES[spec][0]


@pytest.mark.parametrize("spec", OPTIONAL)
def test_what_the_token_lacks_is_refused(client: Client, keys: Keys, rest: Operation, spec: str) -> None:
    (told,) = [each for each in client.status().capabilities if each.name == spec]
    assert told.available == keys.can(spec)
    if told.available:
        pytest.skip(f"the token can do {spec}")
    before = client.keys.CountKeys(keys_pb2.CountKeysRequest()).instance_num
    seen = refused(rest("create-key", {"key_alias": fresh(), "key_spec": spec}), "KMS.1110")
    assert spec in seen.message
    with refusal("KMS.1110"):
        client.create_key(fresh(), spec=spec)
    assert client.keys.CountKeys(keys_pb2.CountKeysRequest()).instance_num == before


@pytest.mark.parametrize("spec", ["SM2", "SM4", "HMAC_SM3", "RSA_1024", "EC_P521", "rsa_2048", "", 2, [], {}])
def test_specs_that_are_none(rest: Operation, spec: object) -> None:
    answer = rest("create-key", {"key_alias": fresh(), "key_spec": spec})
    if spec == "":  # the same as leaving it out
        assert answer.status == 200
    else:
        refused(answer, "KMS.1110")


@pytest.mark.parametrize(
    ("spec", "usage"),
    [
        (spec, usage)
        for spec in ("AES_256", "RSA_2048", "EC_P256", "ED25519", "HMAC_256", "ML_DSA_65")
        for usage in ("ENCRYPT_DECRYPT", "SIGN_VERIFY", "GENERATE_VERIFY_MAC", "KEY_AGREEMENT", "sign", 1)
        if usage not in USAGES[spec]
    ],
)
def test_usages_that_do_not_fit(rest: Operation, spec: str, usage: object) -> None:
    body = {"key_alias": fresh(), "key_spec": spec, "key_usage": usage}
    assert "key_usage" in refused(rest("create-key", body), "KMS.0308").message


def test_external_keys_come_by_import_only(rest: Operation) -> None:
    for spec in ("RSA_2048", "EC_P256", "HMAC_256"):
        answer = rest("create-key", {"key_alias": fresh(), "key_spec": spec, "origin": "external"})
        assert answer.status in (200, 400)
        if answer.status == 200:  # pending import, with nothing to use
            shown = rest("describe-key", {"key_id": answer.json["key_info"]["key_id"]}).json["key_info"]
            assert shown["key_state"] == "5"


def test_a_repeated_call_makes_one_pair(client: Client) -> None:
    alias, once = fresh(), sequence()
    first = client.create_key(alias, spec="EC_P256", usage="KEY_AGREEMENT", sequence=once)
    assert client.create_key(alias, spec="EC_P256", usage="KEY_AGREEMENT", sequence=once) == first
    with refusal("KMS.0206"):
        client.create_key(alias, spec="EC_P256", sequence=once)
    assert [each.key_id for each in client.list_keys() if each.key_alias == alias] == [first]


def test_pairs_are_no_two_alike_and_of_their_kind(client: Client) -> None:
    sizes = {"RSA_2048": 2048, "EC_P256": "secp256r1", "EC_P384": "secp384r1", "SECP256K1": "secp256k1"}
    for spec, size in sizes.items():
        pems = {client.public_key(client.create_key(fresh(), spec=spec)) for _ in range(2)}
        assert len(pems) == 2
        for pem in pems:
            public = load_pem_public_key(pem.encode())
            if isinstance(public, rsa.RSAPublicKey):
                assert (public.key_size, public.public_numbers().e) == (size, 65537)
            else:
                assert isinstance(public, ec.EllipticCurvePublicKey)
                assert public.curve.name == size


def test_edwards_keys_are_edwards_keys(client: Client, keys: Keys) -> None:
    assert isinstance(load_pem_public_key(client.public_key(keys("ED25519")).encode()), Ed25519PublicKey)


def test_the_record_names_the_key(stand: Stand, rest: Operation) -> None:
    made = rest("create-key", {"key_alias": fresh(), "key_spec": "EC_P384"})
    one = record(stand, made.headers["X-Request-Id"])
    assert (one["event"], one["resource"]) == ("createKey", made.json["key_info"]["key_id"])
    assert (one["result"], one["key_version"]) == ("OK", 1)


def test_the_sdk_makes_each_spec(stand: Stand, keys: Keys) -> None:
    sdk = stand.sdk()
    for spec in USAGES:
        if not keys.can(spec):
            continue
        body = kms.CreateKeyRequestBody(key_alias=fresh(), key_spec=spec, key_usage=USAGES[spec][-1])
        made = sdk.create_key(kms.CreateKeyRequest(body=body)).key_info
        told = sdk.list_key_detail(
            kms.ListKeyDetailRequest(body=kms.OperateKeyRequestBody(key_id=made.key_id))
        ).key_info
        assert (told.key_spec, told.key_usage, told.key_state) == (spec, USAGES[spec][-1], "2")


@pytest.mark.parametrize("state", ["disabled", "pending deletion", "pending import"])
def test_keys_that_are_not_enabled(stand: Stand, client: Client, state: str) -> None:
    pair = client.create_key(fresh(), spec="EC_P256")
    secret = client.create_key(fresh(), spec="HMAC_256")
    rsa_key = client.create_key(fresh(), spec="RSA_2048", usage="ENCRYPT_DECRYPT")
    made = client.sign(pair, "ECDSA_SHA_256", b"x")
    for key_id in (pair, secret, rsa_key):
        if state == "disabled":
            client.disable(key_id)
        elif state == "pending deletion":
            client.schedule_deletion(key_id, 7)
        else:
            backstage(stand, "alter", key_id, '{"state": 5}')
    code = "KMS.0210" if state == "pending deletion" else "KMS.0209"
    for attempt in (
        lambda: client.sign(pair, "ECDSA_SHA_256", b"x"),
        lambda: client.verify(pair, "ECDSA_SHA_256", b"x", made),
        lambda: client.public_key(pair),
        lambda: client.mac(secret, "HMAC_SHA_256", b"x"),
        lambda: client.verify_mac(secret, "HMAC_SHA_256", b"x", bytes(32)),
        lambda: client.encrypt(rsa_key, b"x", algorithm="RSAES_OAEP_SHA_256"),
        lambda: client.decrypt(bytes(256), key_id=rsa_key, algorithm="RSAES_OAEP_SHA_256"),
    ):
        with refusal(code):
            attempt()


def test_pairs_and_secrets_survive_a_restart(tmp_path: Path) -> None:
    with standing(tmp_path, gateway=False) as own:
        with own.client() as client:
            pair = client.create_key(fresh(), spec="EC_P256")
            secret = client.create_key(fresh(), spec="HMAC_384")
            rsa_key = client.create_key(fresh(), spec="RSA_2048", usage="ENCRYPT_DECRYPT")
            pem = client.public_key(pair)
            signature = client.sign(pair, "ECDSA_SHA_256", b"x")
            mac = client.mac(secret, "HMAC_SHA_384", b"x")
            blob = client.encrypt(rsa_key, b"secret", algorithm="RSAES_OAEP_SHA_256")
        own.restart_daemon()
        with own.client() as client:
            assert client.public_key(pair) == pem
            assert client.verify(pair, "ECDSA_SHA_256", b"x", signature)
            assert client.verify(pair, "ECDSA_SHA_256", b"y", client.sign(pair, "ECDSA_SHA_256", b"y"))
            assert client.mac(secret, "HMAC_SHA_384", b"x") == mac
            assert client.decrypt(blob, key_id=rsa_key, algorithm="RSAES_OAEP_SHA_256") == b"secret"
