"""Dedicated keystores from end to end: who has them, in which states, and what their keys do."""

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.cli.hsmctl import run
from hsmd.client import ApiError, Client
from hsmd.pb.v1 import (
    agreement_pb2,
    crypto_pb2,
    datakeys_pb2,
    grants_pb2,
    imports_pb2,
    keys_pb2,
    rotation_pb2,
)
from hsmd.pb.v1 import keystores_pb2 as pb
from tests import vaults
from tests.backstage import backstage
from tests.calls import fresh, record, refusal, refused, sequence
from tests.faults import change_rows, rows
from tests.specs import OPTIONAL, USAGES
from tests.stand import CLUSTERS, PATIENT, Stand, Tenant, eventually
from tests.test_sdk import checked


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A stand with three clusters for the development domain."""
    settings = {
        **PATIENT,
        "HSMD__GRPC__WORKERS": "2",
        "HSMD__LIMITS__KEYS_PER_PROJECT": "10000",
        "HSMD__LIMITS__KEYSTORES_PER_DOMAIN": "2",
    }
    stand = Stand(tmp_path_factory.mktemp("house"), settings)
    stand.add_clusters(*CLUSTERS)
    try:
        stand.start()
        stand.clusters_come()
        yield stand
    finally:
        stand.stop()


@pytest.fixture(scope="module")
def owner(house: Stand) -> Iterator[Client]:
    with house.client(deadline=60) as client:  # it makes long RSA keys
        yield client


@pytest.fixture(scope="module")
def neighbour(house: Stand) -> Tenant:
    """An administrator of another domain."""
    return house.add_tenant("neighbour")


@pytest.fixture(scope="module")
def outside(house: Stand, neighbour: Tenant) -> Iterator[Client]:
    with house.client(neighbour) as client:
        yield client


@pytest.fixture(scope="module")
def vault(house: Stand, owner: Client) -> str:
    """An enabled keystore for all tests, on vault-1."""
    assert house
    return vaults.make(owner, "vault-1")


@pytest.fixture
def own(owner: Client) -> Iterator[str]:
    """A keystore of one's own, on vault-2; its keys are gone afterwards, or the test says so."""
    made = vaults.make(owner, "vault-2")
    yield made
    if made in vaults.listed(owner):
        vaults.delete(owner, made)


def ended(stand: Stand, client: Client, *keys: str) -> None:
    """The keys are deleted, and the warden has been there."""
    for key in keys:
        client.schedule_deletion(key, 7)
    backstage(stand, "due", *keys)
    _gone(stand, *keys)


def _gone(stand: Stand, *keys: str) -> None:
    eventually(lambda: _states(stand, keys) == {0})
    eventually(lambda: rows(stand, "SELECT * FROM keystore_drafts") == [])


def _states(stand: Stand, keys: tuple[str, ...]) -> set[int]:
    return {rows(stand, "SELECT state FROM keys WHERE id = ?", key)[0][0] for key in keys}


# The resource


def test_by_sdk(house: Stand, owner: Client) -> None:
    sdk, alias = house.sdk(), fresh("sdk")
    body = kms.CreateKeyStoreRequestBody(
        keystore_alias=alias, hsm_cluster_id="vault-2", hsm_ca_cert="MIIB", keystore_type="DHSM"
    )
    made = checked(sdk.create_key_store(kms.CreateKeyStoreRequest(body=body))).keystore
    assert str(uuid.UUID(made.keystore_id)) == made.keystore_id
    assert made.domain_id == house.dev.domain_id
    found = checked(sdk.show_key_store(kms.ShowKeyStoreRequest(keystore_id=made.keystore_id))).keystore
    assert (found.keystore_id, found.domain_id) == (made.keystore_id, house.dev.domain_id)
    assert (found.keystore_alias, found.keystore_type) == (alias, "DHSM")
    assert found.hsm_cluster_id == found.cluster_id == "vault-2"
    assert found.create_time.isdigit()
    assert len(found.create_time) == 13
    page = checked(sdk.list_key_stores(kms.ListKeyStoresRequest(limit=1000, offset=0)))
    assert page.total == len(page.keystores)
    assert found.to_dict() in [each.to_dict() for each in page.keystores]
    request = kms.CreateKeyRequestBody(key_alias=fresh("sdk"), keystore_id=made.keystore_id)
    key = checked(sdk.create_key(kms.CreateKeyRequest(body=request))).key_info
    detail = sdk.list_key_detail(kms.ListKeyDetailRequest(body=kms.OperateKeyRequestBody(key_id=key.key_id)))
    assert detail.key_info.keystore_id == made.keystore_id
    off = checked(sdk.disable_key_store(kms.DisableKeyStoreRequest(keystore_id=made.keystore_id))).keystore
    assert (off.keystore_id, off.keystore_state) == (made.keystore_id, "3")
    on = checked(sdk.enable_key_store(kms.EnableKeyStoreRequest(keystore_id=made.keystore_id))).keystore
    assert (on.keystore_id, on.keystore_state) == (made.keystore_id, "2")
    delete = kms.DeleteKeyStoreRequest(keystore_id=made.keystore_id)
    with pytest.raises(ClientRequestException) as full:
        sdk.delete_key_store(delete)
    assert (full.value.status_code, full.value.error_code) == (400, "KMS.0340")
    ended(house, owner, key.key_id)
    assert sdk.delete_key_store(delete).status_code == 200
    with pytest.raises(ClientRequestException) as gone:
        sdk.show_key_store(kms.ShowKeyStoreRequest(keystore_id=made.keystore_id))
    assert (gone.value.status_code, gone.value.error_code) == (400, "KMS.0340")


def test_pages(owner: Client, vault: str, own: str) -> None:
    def page(**bounds: Any) -> pb.ListKeyStoresResponse:
        answer: pb.ListKeyStoresResponse = owner.keystores.ListKeyStores(pb.ListKeyStoresRequest(**bounds))
        return answer

    assert [each.keystore_id for each in page().keystores] == [vault, own]
    assert [each.keystore_id for each in page(limit=1).keystores] == [vault]
    assert [each.keystore_id for each in page(limit=1, offset=1).keystores] == [own]
    assert (list(page(offset=2).keystores), page(offset=2).total) == ([], 2)
    for code, bounds in (
        ("KMS.1601", {"limit": 0}),
        ("KMS.1601", {"limit": 1001}),
        ("KMS.1603", {"offset": -1}),
    ):
        with refusal(code):
            page(**bounds)


def test_states_follow_each_other(house: Stand, owner: Client, own: str) -> None:
    assert vaults.disable(owner, own).keystore_state == pb.KEYSTORE_STATE_DISABLED
    with refusal("KMS.1301") as again:
        vaults.disable(owner, own)
    assert own in again.last.message
    assert vaults.enable(owner, own).keystore_state == pb.KEYSTORE_STATE_ENABLED
    with refusal("KMS.1201"):
        vaults.enable(owner, own)
    vaults.disable(owner, own)
    vaults.delete(owner, own)  # a disabled one goes, too
    for call in (vaults.show, vaults.enable, vaults.disable, vaults.delete):
        with refusal("KMS.0340") as absent:
            call(owner, own)
        assert "no such keystore" in absent.last.message
    entry = record(house, again.last.request_id)
    assert (entry["event"], entry["result"], entry["resource"]) == ("disableKeyStore", "KMS.1301", own)


def test_names(owner: Client, vault: str) -> None:
    taken = vaults.show(owner, vault).keystore_alias
    with refusal("KMS.1104"):
        vaults.make(owner, "vault-2", taken)
    for alias in ("a b", "ä", "x" * 256, "a\n"):
        with refusal("KMS.1101"):
            vaults.make(owner, "vault-2", alias)
    longest = vaults.make(owner, "vault-2", "aZ09:/_-" + "x" * 247)
    assert len(vaults.show(owner, longest).keystore_alias) == 255
    vaults.delete(owner, longest)


def test_clusters(house: Stand, owner: Client, outside: Client, vault: str) -> None:
    assert vault

    def create(**fields: Any) -> object:
        return owner.keystores.CreateKeyStore(pb.CreateKeyStoreRequest(keystore_alias=fresh(), **fields))

    with refusal("KMS.0340") as busy:
        create(cluster_id="vault-1")
    assert "already" in busy.last.message
    with refusal("KMS.0340") as unknown:
        create(hsm_cluster_id="vault-9")
    with refusal("KMS.0340") as foreign:
        outside.keystores.CreateKeyStore(
            pb.CreateKeyStoreRequest(keystore_alias=fresh(), cluster_id="vault-2")
        )
    assert foreign.last.message == unknown.last.message  # that it is there is not for others to know
    with refusal("KMS.0204"):
        create()
    with refusal("KMS.0308"):
        create(cluster_id="vault-2", hsm_cluster_id="vault-3")
    for kind in (pb.KEYSTORE_TYPE_CDMS, pb.KEYSTORE_TYPE_DEFAULT):
        with refusal("KMS.0340"):
            create(cluster_id="vault-2", keystore_type=kind)
    with refusal("KMS.0308"):
        create(cluster_id="x" * 37)
    with refusal("KMS.0308"):
        create(cluster_id="vault-2", hsm_ca_cert="x" * 16385)
    with refusal("KMS.0308"):
        create(cluster_id="vault-2", hsm_ca_cert="no certificate!")
    token, path = house.token(), f"/v1.0/{house.dev.project_id}/keystores"
    for body, code in (
        ({}, "KMS.0204"),
        ({"keystore_alias": 1, "cluster_id": "vault-2"}, "KMS.1101"),
        ({"keystore_alias": "a", "cluster_id": ["vault-2"]}, "KMS.0308"),
        ({"keystore_alias": "a", "cluster_id": "vault-2", "keystore_type": "TPM"}, "KMS.0340"),
    ):
        refused(house.rest("POST", path, body, token=token), code)
    refused(house.rest("GET", f"{path}?limit=x", token=token), "KMS.1601")
    refused(house.rest("GET", f"{path}?offset=x", token=token), "KMS.1603")
    refused(house.rest("GET", f"{path}/{'x' * 37}", token=token), "KMS.0340")
    refused(house.rest("PUT", path, {}, token=token), "KMS.0215")


def test_a_domain_has_a_quota(owner: Client, own: str, vault: str) -> None:
    assert {vault, own} == set(vaults.listed(owner))
    with refusal("KMS.1105"):
        vaults.make(owner, "vault-3")


def test_nobody_else_has_it(
    house: Stand, owner: Client, outside: Client, neighbour: Tenant, vault: str
) -> None:
    assert vaults.listed(outside) == []
    for call in (vaults.show, vaults.enable, vaults.disable, vaults.delete):
        with refusal("KMS.0340") as foreign:
            call(outside, vault)
        with refusal("KMS.0340") as absent:
            call(outside, str(uuid.uuid4()))
        assert foreign.last.message == absent.last.message
    with refusal("KMS.0340"):
        outside.create_key(fresh(), keystore_id=vault)
    for wrong in ("x", "1", str(uuid.uuid4()), "x" * 37):
        with refusal("KMS.0340"):
            owner.create_key(fresh(), keystore_id=wrong)
    assert {each.cluster_id for each in owner.status().keystores} == set(CLUSTERS)
    assert list(outside.status().keystores) == []
    path = f"/v1.0/{neighbour.project_id}/keystores/{vault}"
    refused(house.rest("DELETE", path, token=house.token(neighbour)), "KMS.0340")
    refused(house.rest("DELETE", path, token=house.token()), "KMS.0321")


def test_roles(house: Stand, vault: str) -> None:
    looker = house.add_tenant("looker", ("KMS CMKReadOnlyAccess",))
    full = house.add_tenant("full", ("KMS CMKFullAccess",))
    for who in (looker, full):
        with house.client(who) as client:
            assert vaults.listed(client) == []
            with refusal("KMS.0340"):
                vaults.show(client, vault)
            for call in (vaults.enable, vaults.disable, vaults.delete):
                with refusal("KMS.0330"):
                    call(client, vault)
            with refusal("KMS.0330"):
                vaults.make(client, "vault-2")


def test_records(house: Stand, owner: Client) -> None:
    made = vaults.make(owner, "vault-2")
    for call in (vaults.show, vaults.disable, vaults.enable, vaults.delete):
        call(owner, made)
    entries = [each for each in house.audit() if each["resource"] == made]
    assert [(each["event"], each["result"]) for each in sorted(entries, key=lambda each: each["time"])] == [
        (event, "OK")
        for event in ("createKeyStore", "showKeyStore", "disableKeyStore", "enableKeyStore", "deleteKeyStore")
    ]


def test_of_two_that_make_one_at_once_one_does(owner: Client) -> None:
    made: list[str] = []
    codes: list[str] = []
    barrier = threading.Barrier(2)

    def work(alias: str) -> None:
        barrier.wait()
        try:
            made.append(vaults.make(owner, "vault-2", alias))
        except ApiError as error:
            codes.append(error.code)

    for _ in range(3):
        threads = [threading.Thread(target=work, args=(fresh(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(made), codes) == (1, ["KMS.0340"])
        vaults.delete(owner, made.pop())
        codes.clear()


# Keys in it


def _aes(owner: Client, key: str, other: str) -> None:
    blob = owner.encrypt(key, b"text", b"aad")
    assert len(blob) == 140
    assert owner.decrypt(blob, b"aad") == b"text"
    with refusal("KMS.2201"):
        owner.decrypt(blob, b"else")
    dek, wrapped = owner.create_data_key(key)
    assert owner.decrypt_data_key(key, wrapped) == dek
    assert owner.decrypt_data_key(key, owner.encrypt_data_key(key, dek)) == dek
    pair = owner.data_keys.CreateEcDataKeyPair(
        datakeys_pb2.CreateEcDataKeyPairRequest(
            key_id=key, key_spec=datakeys_pb2.EC_DATA_KEY_PAIR_SPEC_ECC_NIST_P256, with_plain_text=True
        )
    )
    assert pair.private_key_plain_text
    for source, destination, start in ((key, other, blob), (other, key, None)):
        start = start or owner.encrypt(other, b"text", b"aad")
        request = crypto_pb2.ReEncryptRequest(
            source_key_id=source,
            destination_key_id=destination,
            cipher_text=start,
            source_additional_authenticated_data=b"aad",
        )
        moved = owner.crypto.ReEncrypt(request)
        assert owner.decrypt(moved.cipher_text, key_id=destination) == b"text"


def _rsa(owner: Client, key: str, _other: str) -> None:
    public = load_pem_public_key(owner.public_key(key).encode())
    assert isinstance(public, rsa.RSAPublicKey)
    if owner.describe_key(key).key_usage == keys_pb2.KEY_USAGE_ENCRYPT_DECRYPT:
        blob = public.encrypt(b"text", padding.OAEP(padding.MGF1(SHA256()), SHA256(), None))
        assert owner.decrypt(blob, key_id=key, algorithm="RSAES_OAEP_SHA_256") == b"text"
        return
    pss = padding.PSS(padding.MGF1(SHA256()), 32)
    signature = owner.sign(key, "RSASSA_PSS_SHA_256", b"text")
    public.verify(signature, b"text", pss, SHA256())
    assert owner.verify(key, "RSASSA_PSS_SHA_256", b"text", signature)


_CURVES: dict[str, Callable[[], ec.EllipticCurve]] = {
    "EC_P256": ec.SECP256R1,
    "EC_P384": ec.SECP384R1,
    "SECP256K1": ec.SECP256K1,
}


def _ec(owner: Client, key: str, _other: str) -> None:
    public = load_pem_public_key(owner.public_key(key).encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    if owner.describe_key(key).key_usage == keys_pb2.KEY_USAGE_KEY_AGREEMENT:
        peer = ec.generate_private_key(public.curve)
        der = peer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        request = agreement_pb2.DeriveSharedSecretRequest(
            key_id=key, public_key=der, key_agreement_algorithm=agreement_pb2.KEY_AGREEMENT_ALGORITHM_ECDH
        )
        secret = owner.agreement.DeriveSharedSecret(request).shared_secret
        assert secret == peer.exchange(ec.ECDH(), public)
        return
    algorithm = {"secp384r1": "ECDSA_SHA_384"}.get(public.curve.name, "ECDSA_SHA_256")
    signature = owner.sign(key, algorithm, b"text")
    if algorithm == "ECDSA_SHA_256":
        public.verify(signature, b"text", ec.ECDSA(SHA256()))
    assert owner.verify(key, algorithm, b"text", signature)
    assert not owner.verify(key, algorithm, b"else", signature)


def _mac(owner: Client, key: str, _other: str) -> None:
    algorithm = owner.describe_key(key).key_spec - keys_pb2.KEY_SPEC_HMAC_256
    name = ("HMAC_SHA_256", "HMAC_SHA_384", "HMAC_SHA_512")[algorithm]
    mac = owner.mac(key, name, b"text")
    assert owner.verify_mac(key, name, b"text", mac)
    assert not owner.verify_mac(key, name, b"else", mac)


_USES = {"AES": _aes, "RSA": _rsa, "EC_": _ec, "SEC": _ec, "HMA": _mac}


@pytest.mark.parametrize(
    ("spec", "usage"),
    [(spec, usage) for spec, usages in USAGES.items() if spec not in OPTIONAL for usage in usages],
)
def test_its_keys_do_what_others_do(house: Stand, owner: Client, vault: str, spec: str, usage: str) -> None:
    if spec == "RSA_4096" and usage == "SIGN_VERIFY":
        pytest.skip("held for the other usage: to make one takes long")
    key = owner.create_key(fresh(), spec=spec, usage=usage, keystore_id=vault)
    found = owner.describe_key(key)
    assert (found.keystore_id, found.key_state) == (vault, keys_pb2.KEY_STATE_ENABLED)
    assert {each.key_id: each.keystore_id for each in owner.list_keys()}[key] == vault
    other = owner.create_key(fresh())
    assert owner.describe_key(other).keystore_id == "0"
    _USES[spec[:3]](owner, key, other)
    _USES[spec[:3]](owner, key, other)  # by the other worker, perhaps
    assert vaults.objects(house, "vault-1").count(f"hsmd-key-{key}-1") == 1
    ((wrapped, label),) = rows(house, "SELECT wrapped, root_label FROM key_versions WHERE key_id = ?", key)
    assert (wrapped, label) == (b"", "")  # there is nothing of it outside its token


@pytest.mark.parametrize("spec", OPTIONAL)
def test_specs_that_not_every_token_has(owner: Client, vault: str, spec: str) -> None:
    if spec not in {each.name for each in owner.status().capabilities if each.available}:
        pytest.skip(f"the token can't do {spec}")
    key = owner.create_key(fresh(), spec=spec, keystore_id=vault)
    algorithm = "ED25519_SHA_512" if spec == "ED25519" else "ML_DSA"
    signature = owner.sign(key, algorithm, b"text")
    assert owner.verify(key, algorithm, b"text", signature)
    assert not owner.verify(key, algorithm, b"else", signature)


def test_what_the_token_cannot_do(owner: Client, vault: str) -> None:
    can = {each.name for each in owner.status().capabilities if each.available}
    for spec in set(OPTIONAL) - can:
        with refusal("KMS.1110"):
            owner.create_key(fresh(), spec=spec, keystore_id=vault)


def test_no_import_and_no_rotation(owner: Client, vault: str) -> None:
    key = owner.create_key(fresh(), keystore_id=vault)
    rotation: list[Callable[[], object]] = [
        lambda: owner.rotation.RotateOnDemand(rotation_pb2.RotateOnDemandRequest(key_id=key)),
        lambda: owner.rotation.EnableKeyRotation(rotation_pb2.EnableKeyRotationRequest(key_id=key)),
        lambda: owner.rotation.DisableKeyRotation(rotation_pb2.DisableKeyRotationRequest(key_id=key)),
    ]
    for call in rotation:
        with refusal("KMS.0338"):
            call()
    imports: list[Callable[[], object]] = [
        lambda: owner.create_key(fresh(), origin="external", keystore_id=vault),
        lambda: owner.imports.GetParametersForImport(
            imports_pb2.GetParametersForImportRequest(
                key_id=key, wrapping_algorithm=imports_pb2.WRAPPING_ALGORITHM_RSAES_OAEP_SHA_256
            )
        ),
        lambda: owner.imports.DeleteImportedKeyMaterial(
            imports_pb2.DeleteImportedKeyMaterialRequest(key_id=key)
        ),
    ]
    for call in imports:
        with refusal("KMS.0339"):
            call()


def test_the_same_request_makes_one_key_and_one_object(house: Stand, owner: Client, vault: str) -> None:
    alias, number = fresh(), sequence()
    before = len(vaults.objects(house, "vault-1"))
    barrier, made = threading.Barrier(2), []

    def work() -> None:
        barrier.wait()
        made.append(owner.create_key(alias, keystore_id=vault, sequence=number))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert len(set(made)) == 1
    assert owner.create_key(alias, keystore_id=vault, sequence=number) == made[0]
    for elsewhere in ("", "0"):
        with refusal("KMS.0206"):
            owner.create_key(alias, keystore_id=elsewhere, sequence=number)
    with refusal("KMS.1104"):
        owner.create_key(alias, keystore_id=vault)
    assert len(vaults.objects(house, "vault-1")) == before + 1
    assert rows(house, "SELECT * FROM keystore_drafts") == []


def test_a_disabled_keystore_refuses_every_use(
    house: Stand, owner: Client, outside: Client, own: str
) -> None:
    neighbour = house.add_tenant(fresh("granted"))
    aes = owner.create_key(fresh(), keystore_id=own)
    pair = owner.create_key(fresh(), spec="EC_P256", keystore_id=own)
    mac = owner.create_key(fresh(), spec="HMAC_256", keystore_id=own)
    plain = owner.create_key(fresh())
    blob, signature = owner.encrypt(aes, b"text"), owner.sign(pair, "ECDSA_SHA_256", b"text")
    request = grants_pb2.CreateGrantRequest(
        key_id=aes, grantee_principal=neighbour.user_id, operations=[grants_pb2.GRANT_OPERATION_DECRYPT_DATA]
    )
    owner.grants.CreateGrant(request)
    with house.client(neighbour) as granted:
        assert granted.decrypt(blob) == b"text"
        vaults.disable(owner, own)
        uses: list[Callable[[], object]] = [
            lambda: owner.encrypt(aes, b"x"),
            lambda: owner.decrypt(blob),
            lambda: granted.decrypt(blob),
            lambda: owner.create_data_key(aes),
            lambda: owner.sign(pair, "ECDSA_SHA_256", b"text"),
            lambda: owner.verify(pair, "ECDSA_SHA_256", b"text", signature),
            lambda: owner.public_key(pair),
            lambda: owner.mac(mac, "HMAC_SHA_256", b"text"),
            lambda: owner.create_key(fresh(), keystore_id=own),
            lambda: owner.crypto.ReEncrypt(
                crypto_pb2.ReEncryptRequest(source_key_id=aes, destination_key_id=plain, cipher_text=blob)
            ),
        ]
        for _ in range(2):
            for use in uses:
                with refusal("KMS.0340") as refused_use:
                    use()
                assert "disabled" in refused_use.last.message
        assert owner.describe_key(aes).key_state == keys_pb2.KEY_STATE_ENABLED
        assert owner.decrypt(owner.encrypt(plain, b"x")) == b"x"
        vaults.enable(owner, own)
        for _ in range(4):  # both workers know
            assert granted.decrypt(blob) == owner.decrypt(blob) == b"text"
    vaults.disable(owner, own)
    ended(house, owner, aes, pair, mac)  # what is to go goes, also from a disabled one
    assert vaults.objects(house, "vault-2") == []


def test_only_an_empty_one_is_deleted(house: Stand, owner: Client, own: str) -> None:
    keys = [owner.create_key(fresh(), spec=spec, keystore_id=own) for spec in ("AES_256", "RSA_2048")]
    with refusal("KMS.0340") as full:
        vaults.delete(owner, own)
    assert "2 keys" in full.last.message
    for key in keys:
        owner.schedule_deletion(key, 7)
    with refusal("KMS.0340"):  # they may come back yet
        vaults.delete(owner, own)
    owner.cancel_deletion(keys[0])
    owner.enable(keys[0])
    assert owner.decrypt(owner.encrypt(keys[0], b"x")) == b"x"
    ended(house, owner, keys[0])
    with refusal("KMS.0340") as rest:
        vaults.delete(owner, own)
    assert "1 key" in rest.last.message
    assert vaults.objects(house, "vault-2") == [f"hsmd-key-{keys[1]}-1"]
    backstage(house, "due", keys[1])
    _gone(house, keys[1])
    vaults.delete(owner, own)
    assert vaults.objects(house, "vault-2") == []
    for key in keys:
        with refusal("KMS.0207"):
            owner.describe_key(key)
        (entry,) = [
            each for each in house.audit() if each["resource"] == key and each["event"] == "deleteKey"
        ]
        assert (entry["result"], entry["domain_id"]) == ("OK", house.dev.domain_id)


def test_by_hsmctl(
    house: Stand, owner: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in house.dev.environment().items():
        monkeypatch.setenv(name, value)

    def shell(*words: str, code: int = 0) -> str:
        assert run(list(words)) == code
        return capsys.readouterr().out.strip()

    alias = fresh("vault")
    made = shell("keystore", "create", alias, "--cluster", "vault-2")
    assert json.loads(shell("--json", "keystore", "show", made))["keystore_alias"] == alias
    assert alias in shell("keystore", "list")
    assert made in [
        each["keystore_id"] for each in json.loads(shell("keystore", "list", "--json"))["keystores"]
    ]
    key = shell("key", "create", fresh(), "--keystore", made)
    assert json.loads(shell("key", "show", key, "--json"))["keystore_id"] == made
    shell("keystore", "disable", made)
    assert shell("keystore", "disable", made, code=1) == ""
    shell("keystore", "enable", made)
    assert "vault-2" in shell("status")
    states = {
        each["cluster_id"]: each["token"]["state"]
        for each in json.loads(shell("status", "--json"))["keystores"]
    }
    assert states == dict.fromkeys(CLUSTERS, "connected")
    ended(house, owner, key)
    assert json.loads(shell("keystore", "delete", made, "--json")) == {"keystore_id": made}


def test_it_is_kept(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.add_clusters("vault-1", "vault-2")
    try:
        stand.start(gateway=False)
        stand.clusters_come()
        with stand.client() as client:
            made, off = vaults.make(client, "vault-1"), vaults.make(client, "vault-2")
            key, resting = (client.create_key(fresh(), keystore_id=each) for each in (made, off))
            blob = client.encrypt(key, b"text")
            vaults.disable(client, off)
        stand.restart_daemon()
        with stand.client() as client:
            assert vaults.listed(client) == [made, off]
            assert client.decrypt(blob) == b"text"
            with refusal("KMS.0340"):
                client.encrypt(resting, b"x")
        assert len(vaults.objects(stand, "vault-1")) == 1
    finally:
        stand.stop()
    # Without its token in the configuration it is as one whose token is away.
    del stand.settings["HSMD__KEYSTORES"]
    try:
        stand.start(gateway=False)
        with stand.client() as client:
            with refusal("KMS.0104") as away:
                client.decrypt(blob)
            assert "no token is configured" in away.last.message
            assert client.decrypt(client.encrypt(client.create_key(fresh()), b"x")) == b"x"
            client.schedule_deletion(key, 7)
        assert "no token is configured for the keystore on cluster vault-1" in stand.log()
    finally:
        stand.stop()


def test_a_row_that_was_changed_is_refused(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.add_clusters("vault-1")
    try:
        stand.start(gateway=False)
        stand.clusters_come()
        with stand.client() as client:
            made = vaults.make(client, "vault-1")
            key = client.create_key(fresh(), keystore_id=made)
            vaults.disable(client, made)
        change_rows(stand, "UPDATE keystores SET enabled = 1 WHERE id = ?", made)
        stand.restart_daemon()
        with stand.client() as client, pytest.raises(ApiError) as broken:
            client.encrypt(key, b"x")
        assert broken.value.code == "KMS.0101"
    finally:
        stand.stop()
