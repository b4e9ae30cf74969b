"""Capsules from end to end: opened for whom the policy allows, and for nobody else."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.cli.hsmctl import run
from hsmd.client import ApiError, Client
from hsmd.pb.v1 import access_points_pb2, capsules_pb2, key_policies_pb2, rotation_pb2
from tests.calls import Operation, fresh, records, refusal, refused
from tests.keyspaces import (
    Point,
    Scene,
    create_capsule,
    create_policy,
    custom_point,
    decrypt,
    moment,
    scene,
    statement,
    terms,
    update_policy,
)
from tests.specs import Keys
from tests.stand import Stand, b64, standing

PAGE = Path(__file__).parents[1] / "docs" / "trusted-keyspaces.md"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


@pytest.fixture(scope="module")
def shared(client: Client) -> Scene:
    """One that no test changes."""
    return scene(client)


@pytest.fixture(scope="module")
def recipient() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def public_der(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def refuses(client: Client, of: Scene, document: capsules_pb2.AttestationDocument, reason: str) -> None:
    with refusal("KMS.0306") as seen:
        decrypt(client, of.key, of.capsule, document)
    assert reason in seen.last.message, seen.last


# Opened


@pytest.mark.parametrize("bits", [128, 256])
def test_opened_for_an_allowed_access_point(client: Client, bits: int) -> None:
    of = scene(client)
    made = create_capsule(client, of.key, policy_id=of.policy, datakey_length=bits)
    assert made.key_id == of.key
    assert len(made.datakey) == bits // 8
    assert made.datakey not in made.datakey_capsule
    opened = decrypt(client, of.key, made.datakey_capsule, of.point.document(made.datakey_capsule))
    assert (opened.datakey, opened.key_id, opened.instance_id) == (made.datakey, of.key, of.point.id)
    assert not made.HasField("datakey_cipher")
    assert not opened.HasField("datakey_cipher")


def test_terms_of_its_own(client: Client, shared: Scene) -> None:
    text = terms(shared.point.id, validityPeriod={"end_time": moment(3600)})
    made = create_capsule(client, shared.key, key_policy=text)
    document = shared.point.document(made.datakey_capsule)
    assert decrypt(client, shared.key, made.datakey_capsule, document).datakey == made.datakey


def test_keys_by_name_and_after_rotation(client: Client) -> None:
    alias = fresh()
    key, point = client.create_key(alias), custom_point(client)
    made = create_capsule(client, f"alias/{alias}", key_policy=terms(point.id))
    client.rotation.EnableKeyRotation(rotation_pb2.EnableKeyRotationRequest(key_id=key))
    client.rotation.RotateOnDemand(rotation_pb2.RotateOnDemandRequest(key_id=key))
    for name in (key, f"alias/{alias}"):
        document = point.document(made.datakey_capsule)
        assert decrypt(client, name, made.datakey_capsule, document).datakey == made.datakey


@pytest.mark.parametrize("spelled", ["pem", "base64"])
def test_under_a_public_key(
    client: Client, shared: Scene, recipient: rsa.RSAPrivateKey, spelled: str
) -> None:
    public = b64(public_der(recipient))
    if spelled == "pem":
        form = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        public = recipient.public_key().public_bytes(*form).decode()
    made = create_capsule(client, shared.key, policy_id=shared.policy, public_key=public)
    assert not made.HasField("datakey")
    plain = recipient.decrypt(made.datakey_cipher, OAEP)
    document = shared.point.document(made.datakey_capsule, public)
    opened = decrypt(client, shared.key, made.datakey_capsule, document, public)
    assert not opened.HasField("datakey")
    assert recipient.decrypt(opened.datakey_cipher, OAEP) == plain
    again = decrypt(client, shared.key, made.datakey_capsule, shared.point.document(made.datakey_capsule))
    assert again.datakey == plain
    # Whoever has an attestation for an answer under one key gets no other answer by it.
    for other in ("", b64(public_der(rsa.generate_private_key(65537, 2048)))):
        document = shared.point.document(made.datakey_capsule, public)
        with refusal("KMS.0306"):
            decrypt(client, shared.key, made.datakey_capsule, document, other)


def test_public_keys_that_are_none(client: Client, shared: Scene) -> None:
    small = rsa.generate_private_key(65537, 1024)  # noqa: S505  # which is what is refused
    for key in (
        "x",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b64(b"x" * 100),
        b64(public_der(ec.generate_private_key(ec.SECP256R1()))),
        b64(public_der(small)),
        "x" * 4097,
    ):
        with refusal("KMS.0308"):
            create_capsule(client, shared.key, policy_id=shared.policy, public_key=key)
        document = shared.point.document(shared.capsule, key)
        with refusal("KMS.0308"):
            decrypt(client, shared.key, shared.capsule, document, key)


def test_an_exponent_that_would_keep_the_daemon_busy(client: Client, shared: Scene) -> None:
    modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n
    public = rsa.RSAPublicNumbers((1 << 2000) + 1, modulus).public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with refusal("KMS.0308"):
        create_capsule(client, shared.key, policy_id=shared.policy, public_key=b64(der))


# Attestations


def test_each_is_good_once(client: Client) -> None:
    of = scene(client)
    document = of.point.document(of.capsule)
    assert decrypt(client, of.key, of.capsule, document).datakey == of.plain
    refuses(client, of, document, "was used before")
    r, s = decode_dss_signature(document.custom_signature)
    document.custom_signature = encode_dss_signature(r, P256_ORDER - s)  # as valid as the first
    refuses(client, of, document, "was used before")
    assert decrypt(client, of.key, of.capsule, of.point.document(of.capsule)).datakey == of.plain


def test_one_of_many_at_once_gets_in(client: Client) -> None:
    of, codes = scene(client), []
    document = of.point.document(of.capsule)

    def enter() -> None:
        try:
            codes.append(str(decrypt(client, of.key, of.capsule, document).datakey == of.plain))
        except ApiError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == ["KMS.0306"] * 7 + ["True"]


def test_used_is_used_after_a_restart(tmp_path: Path) -> None:
    with standing(tmp_path, gateway=False) as stand:
        with stand.client() as client:
            of = scene(client)
            document = of.point.document(of.capsule, seconds=800)
            decrypt(client, of.key, of.capsule, document)
        stand.restart_daemon()
        with stand.client() as client:
            refuses(client, of, document, "was used before")
            assert decrypt(client, of.key, of.capsule, of.point.document(of.capsule)).datakey == of.plain


def test_signatures_that_do_not_hold(client: Client, shared: Scene) -> None:
    point, capsule, end = shared.point, shared.capsule, moment(300)
    other = create_capsule(client, shared.key, policy_id=shared.policy).datakey_capsule
    for wrong in (
        statement(end, other),
        statement(moment(301), capsule),
        statement(end, capsule, "x"),
        statement(end, capsule)[:-1],
        statement(end, capsule).replace(b"attestation 1", b"attestation 2"),
        b"",
        capsule,
    ):
        document = point.document(capsule, custom_signature=point.sign(wrong), expire_time=end)
        refuses(client, shared, document, "does not hold")
    right = point.sign(statement(end, capsule))
    for signature in (
        right[:-1],
        right + b"\0",
        right[:-1] + bytes((right[-1] ^ 1,)),
        b"x",
        bytes(70),
        point.key.sign(statement(end, capsule), ec.ECDSA(hashes.SHA384())),
        encode_dss_signature(0, 0),
        encode_dss_signature(P256_ORDER, 1),
    ):
        document = point.document(capsule, custom_signature=signature, expire_time=end)
        refuses(client, shared, document, "does not hold")


def test_keys_that_are_no_access_points(client: Client, strange: Client, shared: Scene) -> None:
    stray = Point("", "", ec.generate_private_key(ec.SECP256R1()))
    refuses(client, shared, stray.document(shared.capsule), "no access point that its policy allows")
    in_the_keyspace = custom_point(client, shared.point.keyspace)
    refuses(client, shared, in_the_keyspace.document(shared.capsule), "no access point that its policy")
    refuses(client, shared, custom_point(strange).document(shared.capsule), "no access point that its policy")
    # The right public key with another key's signature, and the reverse.
    mixed = stray.document(shared.capsule, custom_public_key=shared.point.public)
    refuses(client, shared, mixed, "does not hold")
    mixed = shared.point.document(shared.capsule, custom_public_key=stray.public)
    refuses(client, shared, mixed, "no access point")
    compressed = shared.point.key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    refuses(client, shared, shared.point.document(shared.capsule, custom_public_key=compressed), "no access")


def test_the_time(client: Client, shared: Scene) -> None:
    refuses(client, shared, shared.point.document(shared.capsule, seconds=-1), "has expired")
    refuses(client, shared, shared.point.document(shared.capsule, seconds=16 * 60), "15 minutes")
    for wrong in ("soon", "2030-01-01", moment(300)[:-1], moment(300) + " ", "2030-02-30T00:00:00Z"):
        document = shared.point.document(shared.capsule, expire_time=wrong)
        with refusal("KMS.0308"):
            decrypt(client, shared.key, shared.capsule, document)


def test_disabled_and_deleted_points(client: Client) -> None:
    of = scene(client)
    point = access_points_pb2.DisableAccessPointRequest(access_point_id=of.point.id)
    client.access_points.DisableAccessPoint(point)
    refuses(client, of, of.point.document(of.capsule), "is disabled")
    client.access_points.EnableAccessPoint(
        access_points_pb2.EnableAccessPointRequest(access_point_id=of.point.id)
    )
    assert decrypt(client, of.key, of.capsule, of.point.document(of.capsule)).datakey == of.plain
    client.access_points.DeleteAccessPoint(
        access_points_pb2.DeleteAccessPointRequest(access_point_id=of.point.id)
    )
    refuses(client, of, of.point.document(of.capsule), "no access point")


def test_policies_change_and_go(client: Client) -> None:
    of = scene(client)
    other = custom_point(client, of.point.keyspace)
    update_policy(client, of.policy, terms(other.id))
    refuses(client, of, of.point.document(of.capsule), "no access point")
    assert decrypt(client, of.key, of.capsule, other.document(of.capsule)).datakey == of.plain
    for period, reason in (
        ({"start_time": moment(3600)}, "its policy begins at"),
        ({"end_time": moment(-60)}, "its policy ended at"),
    ):
        update_policy(client, of.policy, terms(other.id, validityPeriod=period))
        refuses(client, of, other.document(of.capsule), reason)
    with refusal("KMS.0308"):  # nor is anything bound to what has ended
        create_capsule(client, of.key, policy_id=of.policy)
    update_policy(client, of.policy, terms(other.id, validityPeriod={"end_time": moment(3600)}))
    assert decrypt(client, of.key, of.capsule, other.document(of.capsule)).datakey == of.plain
    client.key_policies.DeleteKeyPolicy(key_policies_pb2.DeleteKeyPolicyRequest(policy_id=of.policy))
    refuses(client, of, other.document(of.capsule), "its policy is gone")


def test_when_the_policy_was_used_last(client: Client) -> None:
    of = scene(client)
    request = key_policies_pb2.ShowKeyPolicyRequest(policy_id=of.policy)
    assert not client.key_policies.ShowKeyPolicy(request).HasField("last_access_time")
    refuses(client, of, of.point.document(of.capsule, seconds=-1), "expired")
    assert not client.key_policies.ShowKeyPolicy(request).HasField("last_access_time")
    decrypt(client, of.key, of.capsule, of.point.document(of.capsule))
    found = client.key_policies.ShowKeyPolicy(request)
    assert found.last_access_time.ToNanoseconds() >= found.create_time.ToNanoseconds()


@pytest.mark.parametrize("evidence", ["ecs_signature", "service_token"])
def test_other_evidence_is_refused(rest: Operation, shared: Scene, evidence: str) -> None:
    body = {"key_id": shared.key, "datakey_capsule": b64(shared.capsule)}
    for document in ({evidence: "x"}, {evidence: "x", **json_document(shared)}):
        seen = refused(
            rest("datakey-capsule/decrypt", {**body, "attestation_document": document}), "KMS.0308"
        )
        assert evidence in seen.message
        assert "can't be checked here" in seen.message


def json_document(of: Scene) -> dict[str, str]:
    document = of.point.document(of.capsule)
    return {
        "custom_signature": b64(document.custom_signature),
        "custom_public_key": b64(document.custom_public_key),
        "expire_time": document.expire_time,
    }


# Capsules that are none


def test_every_byte_counts(client: Client, shared: Scene) -> None:
    for place in range(len(shared.capsule)):
        forged = bytearray(shared.capsule)
        forged[place] ^= 1
        with refusal("KMS.2201") as seen:
            decrypt(client, shared.key, bytes(forged), shared.point.document(bytes(forged)))
        assert seen.last.message == "The cipher_text is not valid."


def test_cut_and_lengthened(client: Client, shared: Scene) -> None:
    whole = shared.capsule
    for forged in (whole[:-1], whole + b"\0", whole[:9], whole[:45], whole[45:], b"x", whole * 2):
        with refusal("KMS.2201"):
            decrypt(client, shared.key, forged, shared.point.document(forged))


def test_moved_to_another_policy(client: Client, shared: Scene) -> None:
    point = custom_point(client)
    other = create_policy(client, point.keyspace, terms(point.id))
    forged = shared.capsule.replace(shared.policy.encode(), other.encode())
    assert forged != shared.capsule
    with refusal("KMS.2201"):
        decrypt(client, shared.key, forged, point.document(forged))
    own = create_capsule(client, shared.key, key_policy=terms(shared.point.id)).datakey_capsule
    forged = own.replace(shared.point.id.encode(), point.id.encode())
    assert forged != own
    with refusal("KMS.2201"):
        decrypt(client, shared.key, forged, point.document(forged))


def test_moved_to_another_key(client: Client, shared: Scene) -> None:
    other = client.create_key(fresh())
    with refusal("KMS.2201"):
        decrypt(client, other, shared.capsule, shared.point.document(shared.capsule))
    forged = shared.capsule.replace(shared.key.encode(), other.encode())
    with refusal("KMS.2201"):
        decrypt(client, other, forged, shared.point.document(forged))


def test_moved_to_another_project(client: Client, strange: Client, shared: Scene) -> None:
    with refusal("KMS.0207"):
        decrypt(strange, shared.key, shared.capsule, shared.point.document(shared.capsule))
    key = strange.create_key(fresh())
    with refusal("KMS.2201"):
        decrypt(strange, key, shared.capsule, shared.point.document(shared.capsule))
    with refusal("KMS.0207"):
        create_capsule(strange, key, policy_id=shared.policy)
    with refusal("KMS.0308"):
        create_capsule(strange, key, key_policy=terms(shared.point.id))


def test_a_capsule_is_no_other_ciphertext(client: Client, shared: Scene) -> None:
    envelope = shared.capsule[45:]
    assert envelope.startswith(b"HSM\x01")
    for blob in (shared.capsule, envelope):
        with refusal("KMS.2201"):
            client.decrypt(blob)
        with refusal("KMS.2201"):
            client.decrypt_data_key(shared.key, blob)
    others = (client.encrypt(shared.key, b"x" * 32), client.create_data_key(shared.key)[1])
    for blob in others:
        forged = shared.capsule[:45] + blob
        with refusal("KMS.2201"):
            decrypt(client, shared.key, forged, shared.point.document(forged))


# Bad input


def test_keys_of_other_kinds_and_states(client: Client, keys: Keys, shared: Scene) -> None:
    for (spec, _), key in keys.of_every_kind().items():
        if spec != "AES_256":
            with refusal("KMS.0341" if spec.startswith("HMAC") else "KMS.0325"):
                create_capsule(client, key, policy_id=shared.policy)
    of = scene(client)
    client.disable(of.key)
    with refusal("KMS.0209"):
        create_capsule(client, of.key, policy_id=of.policy)
    with refusal("KMS.0209"):
        decrypt(client, of.key, of.capsule, of.point.document(of.capsule))
    for missing in (str(uuid.uuid4()), f"alias/{fresh()}"):
        with refusal("KMS.0207"):
            create_capsule(client, missing, policy_id=of.policy)
    with refusal("KMS.0205"):
        create_capsule(client, "x", policy_id=of.policy)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key_id": None}, "KMS.0204"),
        ({"datakey_length": None}, "KMS.0204"),
        ({"datakey_length": "512"}, "KMS.0308"),
        ({"datakey_length": "0"}, "KMS.0308"),
        ({"datakey_length": "x"}, "KMS.0308"),
        ({"datakey_length": True}, "KMS.0308"),
        ({"policy_id": None}, "KMS.0308"),
        ({"policy_id": "x"}, "KMS.0308"),
        ({"policy_id": str(uuid.UUID(int=1))}, "KMS.0207"),
        ({"key_policy": "{}"}, "KMS.0308"),
        ({"policy_id": None, "key_policy": "{}"}, "KMS.0308"),
        ({"policy_id": None, "key_policy": terms(str(uuid.UUID(int=1)))}, "KMS.0308"),
        ({"policy_id": None, "key_policy": {"version": "1"}}, "KMS.0308"),
        ({"policy_id": None, "key_policy": "x" * 16_385}, "KMS.0308"),
    ],
)
def test_refused_parameters(rest: Operation, shared: Scene, changes: dict[str, object], code: str) -> None:
    body = {"key_id": shared.key, "datakey_length": "256", "policy_id": shared.policy}
    refused(rest("datakey-capsule/create", {**body, **changes}), code)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key_id": None}, "KMS.0204"),
        ({"datakey_capsule": None}, "KMS.0204"),
        ({"datakey_capsule": "!"}, "KMS.2201"),
        ({"datakey_capsule": "AAAA"}, "KMS.2201"),
        ({"datakey_capsule": b64(bytes(70_000))}, "KMS.2201"),
        ({"datakey_capsule": 7}, "KMS.2201"),
        ({"attestation_document": None}, "KMS.0204"),
        ({"attestation_document": {}}, "KMS.0204"),
        ({"attestation_document": "x"}, "KMS.0308"),
        ({"attestation_document": {"custom_signature": "!"}}, "KMS.0308"),
        ({"attestation_document": {"custom_signature": b64(bytes(129))}}, "KMS.0308"),
        ({"attestation_document": {"custom_public_key": b64(bytes(1025))}}, "KMS.0308"),
        ({"attestation_document": {"expire_time": 5}}, "KMS.0308"),
        ({"attestation_document": {"expire_time": "x" * 65}}, "KMS.0308"),
    ],
)
def test_refused_requests_to_decrypt(
    rest: Operation, shared: Scene, changes: dict[str, object], code: str
) -> None:
    body = {
        "key_id": shared.key,
        "datakey_capsule": b64(shared.capsule),
        "attestation_document": json_document(shared),
    }
    refused(rest("datakey-capsule/decrypt", {**body, **changes}), code)


@pytest.mark.parametrize("field", ["custom_signature", "custom_public_key", "expire_time"])
def test_a_part_of_an_attestation_is_missing(rest: Operation, shared: Scene, field: str) -> None:
    document = {name: value for name, value in json_document(shared).items() if name != field}
    body = {"key_id": shared.key, "datakey_capsule": b64(shared.capsule), "attestation_document": document}
    assert field in refused(rest("datakey-capsule/decrypt", body), "KMS.0204").message


def test_roles(stand: Stand, shared: Scene) -> None:
    looker = stand.add_tenant(f"looker-{fresh()}", ("KMS CMKReadOnlyAccess",))
    with stand.client(looker) as caller:
        with refusal("KMS.0330"):
            create_capsule(caller, shared.key, policy_id=shared.policy)
        with refusal("KMS.0330"):
            decrypt(caller, shared.key, shared.capsule, shared.point.document(shared.capsule))


# The SDK, the audit log, the command line, the page


def test_by_the_sdk(stand: Stand, shared: Scene, recipient: rsa.RSAPrivateKey) -> None:
    sdk, public = stand.sdk(), b64(public_der(recipient))
    for key in (None, public):
        body = kms.CreateDatakeyCapsuleRequestBody(
            key_id=shared.key, datakey_length="256", policy_id=shared.policy, public_key=key
        )
        made = sdk.create_datakey_capsule(kms.CreateDatakeyCapsuleRequest(body=body))
        capsule = base64.b64decode(made.datakey_capsule, validate=True)
        document = shared.point.document(capsule, key or "")
        attestation = kms.DecryptDatakeyCapsuleRequestBodyAttestationDocument(
            custom_signature=b64(document.custom_signature),
            custom_public_key=b64(document.custom_public_key),
            expire_time=document.expire_time,
        )
        asked = kms.DecryptDatakeyCapsuleRequestBody(shared.key, key, made.datakey_capsule, attestation)
        request = kms.DecryptDatakeyCapsuleRequest(body=asked)
        opened = sdk.decrypt_datakey_capsule(request)
        assert (opened.key_id, opened.instance_id) == (shared.key, shared.point.id)
        if key is None:
            assert opened.datakey == made.datakey
            assert re.fullmatch(r"[0-9a-f]{64}", opened.datakey)
        else:
            assert (made.datakey, opened.datakey) == (None, None)
            ciphers = [base64.b64decode(each.datakey_cipher) for each in (made, opened)]
            assert recipient.decrypt(ciphers[0], OAEP) == recipient.decrypt(ciphers[1], OAEP)
        with pytest.raises(ClientRequestException) as caught:
            sdk.decrypt_datakey_capsule(request)
        assert (caught.value.status_code, caught.value.error_code) == (403, "KMS.0306")


def test_the_records(stand: Stand, rest: Operation, shared: Scene) -> None:
    made = rest(
        "datakey-capsule/create",
        {"key_id": shared.key, "datakey_length": "256", "policy_id": shared.policy},
    )
    (entry,) = records(stand, made.headers["X-Request-Id"])
    assert (entry["event"], entry["resource"], entry["key_version"]) == (
        "createDatakeyCapsule",
        shared.key,
        1,
    )
    body = {
        "key_id": shared.key,
        "datakey_capsule": b64(shared.capsule),
        "attestation_document": json_document(shared),
    }
    opened = rest("datakey-capsule/decrypt", body)
    assert opened.status == 200, opened.raw
    found = records(stand, opened.headers["X-Request-Id"])
    assert [(each["event"], each["resource"], each["result"]) for each in found] == [
        ("attestAccessPoint", shared.point.id, "OK"),
        ("decryptDatakeyCapsule", shared.key, "OK"),
    ]
    again = rest("datakey-capsule/decrypt", body)
    (entry,) = records(stand, again.headers["X-Request-Id"])
    assert (entry["event"], entry["result"]) == ("decryptDatakeyCapsule", "KMS.0306")


def test_hsmctl(
    stand: Stand,
    client: Client,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in {
        "HSMD_GRPC": stand.dev.grpc,
        "HSMD_CA": str(stand.dev.ca),
        "HSMD_CERT": str(stand.dev.certificate),
        "HSMD_KEY": str(stand.dev.key),
    }.items():
        monkeypatch.setenv(name, value)
    of, key, capsule = scene(client), tmp_path / "till.pem", tmp_path / "capsule"

    def hsmctl(*words: str) -> str:
        assert run(words) == 0
        return capsys.readouterr().out

    hsmctl("access-point", "private-key", of.point.id, str(key))
    plain = hsmctl("capsule", "create", of.key, str(capsule), "--policy", of.policy).strip()
    assert hsmctl("capsule", "decrypt", of.key, str(capsule), "--point", str(key)).strip() == plain
    opened = json.loads(hsmctl("capsule", "decrypt", of.key, str(capsule), "--point", str(key), "--json"))
    assert (opened["datakey"], opened["instance_id"]) == (plain, of.point.id)
    for wrong in (b"x", public_der(of.point.key)):
        key.write_bytes(wrong)
        assert run(["capsule", "decrypt", of.key, str(capsule), "--point", str(key)]) != 0
    assert "Traceback" not in capsys.readouterr().err


def test_the_commands_of_the_page(stand: Stand, client: Client, tmp_path: Path) -> None:
    """Word for word, the shell's and Python's."""
    client.create_key("shelf")
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 5
    environment = {
        **os.environ,
        "HSMD": stand.dev.rest,
        "HSMD_CA": str(stand.dev.ca),
        "PROJECT": stand.dev.project_id,
        "TOKEN": stand.token(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    (python,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "attest.py").write_text(python)
    script = "set -euo pipefail\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    made, opened = ((tmp_path / f"{name}.json").read_text() for name in ("made", "opened"))
    assert json.loads(made)["datakey"] == json.loads(opened)["datakey"]
    assert json.loads((tmp_path / "again.json").read_text())["datakey"] == json.loads(made)["datakey"]
