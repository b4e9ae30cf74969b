"""sign, verify and get-publickey from end to end; signatures are checked by `cryptography` and openssl."""

import base64
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from hsmd.algorithms import SIGNATURE_ALGORITHMS
from hsmd.client import Client
from hsmd.domain.publickeys import verifies
from hsmd.pb.v1 import signing_pb2 as pb
from tests.calls import Operation, fresh, record, refusal, refused, sequence
from tests.specs import Keys
from tests.stand import Stand, b64

RSA = [f"RSASSA_{form}_SHA_{bits}" for form in ("PSS", "PKCS1_V1_5") for bits in (256, 384, 512)]
ECDSA = [f"ECDSA_SHA_{bits}" for bits in (256, 384, 512)]
MLDSA = ["ML_DSA"]
ALGORITHMS: dict[str, list[str]] = {
    **dict.fromkeys(("RSA_2048", "RSA_3072", "RSA_4096"), RSA),
    **dict.fromkeys(("EC_P256", "EC_P384", "SECP256K1"), ECDSA),
    "ED25519": ["ED25519_SHA_512"],
    **dict.fromkeys(("ML_DSA_44", "ML_DSA_65", "ML_DSA_87"), MLDSA),
}
CASES = [(spec, algorithm) for spec, algorithms in ALGORITHMS.items() for algorithm in algorithms]
WHOLE = ("ED25519_SHA_512", "ML_DSA")
ORDERS = {
    "EC_P256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "SECP256K1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
}


def _hash(algorithm: str) -> Any:
    return getattr(hashes, f"SHA{algorithm[-3:]}")()


def _digest(algorithm: str, message: bytes) -> bytes:
    return hashlib.new(f"sha{algorithm[-3:]}", message).digest()


def _holds(pem: str, algorithm: str, message: bytes, signature: bytes) -> bool:
    """Whether `cryptography` finds the signature right, PSS with a salt as long as the digest."""
    public: Any = load_pem_public_key(pem.encode())
    try:
        if algorithm in WHOLE:
            public.verify(signature, message)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, message, ec.ECDSA(_hash(algorithm)))
        else:
            assert isinstance(public, rsa.RSAPublicKey)
            size = int(algorithm[-3:]) // 8
            pss = padding.PSS(padding.MGF1(_hash(algorithm)), size)
            form = pss if "PSS" in algorithm else padding.PKCS1v15()
            public.verify(signature, message, form, _hash(algorithm))
    except InvalidSignature:
        return False
    return True


# Right signatures


@pytest.mark.parametrize(("spec", "algorithm"), CASES)
@pytest.mark.parametrize("size", [1, 64, 4096])
def test_messages(client: Client, keys: Keys, spec: str, algorithm: str, size: int) -> None:
    key_id, message = keys(spec), b"m" * size
    signature = client.sign(key_id, algorithm, message)
    assert _holds(client.public_key(key_id), algorithm, message, signature)
    assert client.verify(key_id, algorithm, message, signature)
    assert not client.verify(key_id, algorithm, message[:-1] + b"n", signature)


@pytest.mark.parametrize(("spec", "algorithm"), [case for case in CASES if case[1] not in WHOLE])
def test_digests(client: Client, keys: Keys, spec: str, algorithm: str) -> None:
    key_id, message = keys(spec), b"longer than any digest " * 1000
    digest = _digest(algorithm, message)
    signature = client.sign(key_id, algorithm, digest, digest=True)
    assert _holds(client.public_key(key_id), algorithm, message, signature)
    assert client.verify(key_id, algorithm, digest, signature, digest=True)
    assert not client.verify(key_id, algorithm, digest, signature)  # the digest is not the message
    assert not client.verify(key_id, algorithm, digest[::-1], signature, digest=True)


@pytest.mark.parametrize(("spec", "algorithm"), CASES)
def test_openssl_agrees(client: Client, keys: Keys, tmp_path: Path, spec: str, algorithm: str) -> None:
    if algorithm in WHOLE:
        pytest.skip("openssl 3.0 verifies by digest only; cryptography has done it")
    key_id = keys(spec)
    files = {name: tmp_path / name for name in ("key.pem", "message", "signature")}
    files["key.pem"].write_text(client.public_key(key_id))
    files["message"].write_bytes(b"to openssl")
    files["signature"].write_bytes(client.sign(key_id, algorithm, b"to openssl"))
    argv = ["openssl", "dgst", f"-sha{algorithm[-3:]}", "-verify", str(files["key.pem"])]
    if "PSS" in algorithm:
        argv += ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"]
    argv += ["-signature", str(files["signature"]), str(files["message"])]
    assert subprocess.run(argv, capture_output=True, check=False).stdout.strip() == b"Verified OK"


@pytest.mark.parametrize(("spec", "algorithm"), CASES)
def test_over_rest(rest: Operation, keys: Keys, spec: str, algorithm: str) -> None:
    key_id, message = keys(spec), b"m" * 4096
    body: dict[str, object] = {"key_id": key_id, "signing_algorithm": algorithm, "sequence": sequence()}
    raw = {**body, "message": b64(message), "message_type": "RAW"}
    made = rest("sign", raw)
    assert made.status == 200
    assert set(made.json) == {"key_id", "signature"}
    assert made.json["key_id"] == key_id
    shown = rest("get-publickey", {"key_id": key_id, "sequence": sequence()})
    assert set(shown.json) == {"key_id", "public_key"}
    signature = base64.b64decode(made.json["signature"], validate=True)
    assert _holds(shown.json["public_key"], algorithm, message, signature)
    right = rest("verify", {**raw, "signature": made.json["signature"]})
    assert right.json == {"key_id": key_id, "signature_valid": "true"}
    wrong = rest("verify", {**raw, "message": b64(b"other"), "signature": made.json["signature"]})
    assert (wrong.status, wrong.json) == (200, {"key_id": key_id, "signature_valid": "false"})
    # What is meant when the type is left out: the digest, where the algorithm has one.
    plain = message if algorithm in WHOLE else _digest(algorithm, message)
    untyped = {**body, "message": b64(plain)}
    again = rest("sign", untyped).json["signature"]
    assert rest("verify", {**raw, "signature": again}).json["signature_valid"] == "true"


def test_public_keys_are_pem(client: Client, keys: Keys) -> None:
    for spec in ("RSA_4096", "EC_P256"):
        lines = client.public_key(keys(spec)).split("\n")
        assert (lines[0], lines[-2], lines[-1]) == (
            "-----BEGIN PUBLIC KEY-----",
            "-----END PUBLIC KEY-----",
            "",
        )
        assert {len(each) for each in lines[1:-3]} <= {64}
    for usage in ("ENCRYPT_DECRYPT", "SIGN_VERIFY"):
        assert load_pem_public_key(client.public_key(keys("RSA_2048", usage)).encode())
    assert load_pem_public_key(client.public_key(keys("EC_P256", "KEY_AGREEMENT")).encode())


def test_keys_are_named_in_every_way(stand: Stand, client: Client) -> None:
    alias = fresh()
    key_id = client.create_key(alias, spec="EC_P256")
    urn = f"kms:{stand.dev.region}:{stand.dev.domain_id}:alias:{alias}"
    signature = client.sign(key_id, "ECDSA_SHA_256", b"x")
    for reference in (key_id, f"alias/{alias}", urn):
        assert client.verify(reference, "ECDSA_SHA_256", b"x", client.sign(reference, "ECDSA_SHA_256", b"x"))
        assert client.verify(reference, "ECDSA_SHA_256", b"x", signature)
        assert client.public_key(reference) == client.public_key(key_id)


# Signatures that are none


@pytest.mark.parametrize("algorithm", ["RSASSA_PSS_SHA_256", "RSASSA_PKCS1_V1_5_SHA_256", "ECDSA_SHA_256"])
def test_wrong_signatures_are_answers(client: Client, keys: Keys, algorithm: str) -> None:
    spec = "EC_P256" if algorithm.startswith("EC") else "RSA_2048"
    key_id = keys(spec)
    right = client.sign(key_id, algorithm, b"x")
    assert client.verify(key_id, algorithm, b"x", right)
    other = client.create_key(fresh(), spec=spec)
    for wrong in (
        client.sign(other, algorithm, b"x"),
        right[:-1] + bytes([right[-1] ^ 1]),
        bytes([right[0] ^ 0x80]) + right[1:],
        right[:-1],
        right + b"\0",
        b"\0" + right,
        right[::-1],
        bytes(len(right)),
        b"\xff" * len(right),
        b"x",
        b"x" * 8192,
    ):
        assert not client.verify(key_id, algorithm, b"x", wrong)


def test_another_algorithm_is_another_signature(client: Client, keys: Keys) -> None:
    key_id = keys("RSA_2048")
    made = {each: client.sign(key_id, each, b"x") for each in RSA}
    for algorithm in RSA:
        for other, signature in made.items():
            assert client.verify(key_id, algorithm, b"x", signature) == (algorithm == other)


@pytest.mark.parametrize("algorithm", [each for each in RSA if "PSS" in each])
def test_the_salt_is_a_digest_long(algorithm: str) -> None:
    """Other salts than ours come from other signers only, so the verifier is asked by itself."""
    private, used = rsa.generate_private_key(65537, 2048), _hash(algorithm)
    size = int(algorithm[-3:]) // 8
    row = SIGNATURE_ALGORITHMS[algorithm]
    for length in (0, 20, size - 1, size, size + 1, padding.PSS.MAX_LENGTH):
        signature = private.sign(b"x", padding.PSS(padding.MGF1(used), length), used)
        valid = verifies(private.public_key(), row, b"x", signature, digest=False)
        assert valid == (length == size)


@pytest.mark.parametrize("spec", ORDERS)
def test_ecdsa_numbers_out_of_range(client: Client, keys: Keys, spec: str) -> None:
    key_id, order = keys(spec), ORDERS[spec]
    r, s = decode_dss_signature(client.sign(key_id, "ECDSA_SHA_256", b"x"))
    for pair in ((0, s), (r, 0), (0, 0), (order, s), (r, order), (r + order, s), (r, s + order)):
        assert not client.verify(key_id, "ECDSA_SHA_256", b"x", encode_dss_signature(*pair))


# What is refused


@pytest.mark.parametrize("algorithm", [*RSA, *ECDSA])
@pytest.mark.parametrize("off", [-1, 1, 20 - 32])
def test_digests_of_another_length(client: Client, keys: Keys, algorithm: str, off: int) -> None:
    key_id = keys("EC_P384" if algorithm.startswith("EC") else "RSA_2048")
    wrong = bytes(int(algorithm[-3:]) // 8 + off)
    with refusal("KMS.0329") as seen:
        client.sign(key_id, algorithm, wrong, digest=True)
    assert str(int(algorithm[-3:]) // 8) in seen.last.message
    with refusal("KMS.0329"):
        client.verify(key_id, algorithm, wrong, b"x", digest=True)


def test_algorithms_without_digest(client: Client, keys: Keys, rest: Operation) -> None:
    key_id = keys("ED25519")
    with refusal("KMS.0308"):
        client.sign(key_id, "ED25519_SHA_512", bytes(64), digest=True)
    body = {"key_id": key_id, "message": b64(bytes(64)), "signing_algorithm": "ED25519_SHA_512"}
    refused(rest("sign", {**body, "message_type": "DIGEST"}), "KMS.0308")


@pytest.mark.parametrize("spec", ["RSA_2048", "EC_P256", "SECP256K1", "ED25519", "ML_DSA_65"])
def test_algorithms_of_other_keys(client: Client, keys: Keys, spec: str) -> None:
    key_id = keys(spec)
    for algorithm in (*RSA, *ECDSA, *WHOLE):
        if algorithm in ALGORITHMS[spec]:
            continue
        with refusal("KMS.0332") as seen:
            client.sign(key_id, algorithm, b"x")
        assert algorithm in seen.last.message
        with refusal("KMS.0332"):
            client.verify(key_id, algorithm, b"x", b"x")


def test_keys_of_another_kind(client: Client, keys: Keys) -> None:
    codes = {
        ("AES_256", "ENCRYPT_DECRYPT"): ("KMS.1115", "KMS.0331"),
        ("RSA_2048", "ENCRYPT_DECRYPT"): ("KMS.0334", None),
        ("EC_P256", "KEY_AGREEMENT"): ("KMS.0308", None),
        ("HMAC_256", "GENERATE_VERIFY_MAC"): ("KMS.0341", "KMS.0341"),
    }
    for (spec, usage), (code, public_code) in codes.items():
        algorithm = "ECDSA_SHA_256" if spec == "EC_P256" else "RSASSA_PSS_SHA_256"
        key_id = keys(spec, usage)
        with refusal(code):
            client.sign(key_id, algorithm, b"x")
        with refusal(code):
            client.verify(key_id, algorithm, b"x", b"x")
        if public_code:
            with refusal(public_code):
                client.public_key(key_id)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key_id": None}, "KMS.0204"),
        ({"key_id": ""}, "KMS.0204"),
        ({"key_id": "no reference"}, "KMS.0205"),
        ({"key_id": 5}, "KMS.0205"),
        ({"key_id": "00000000-0000-0000-0000-000000000000"}, "KMS.0207"),
        ({"key_id": "alias/nobody"}, "KMS.0207"),
        ({"message": None}, "KMS.0204"),
        ({"message": ""}, "KMS.0204"),
        ({"message": "not base64"}, "KMS.0308"),
        ({"message": "eA"}, "KMS.0308"),
        ({"message": 1}, "KMS.0308"),
        ({"message": ["eA=="]}, "KMS.0308"),
        ({"message": b64(bytes(4097)), "message_type": "RAW"}, "KMS.0308"),
        ({"message": b64(bytes(100_000)), "message_type": "RAW"}, "KMS.0308"),
        ({"signing_algorithm": None}, "KMS.0204"),
        ({"signing_algorithm": ""}, "KMS.0204"),
        ({"signing_algorithm": "SM2DSA_SM3"}, "KMS.0308"),
        ({"signing_algorithm": "ecdsa_sha_256"}, "KMS.0308"),
        ({"signing_algorithm": 7}, "KMS.0308"),
        ({"message_type": "raw"}, "KMS.0308"),
        ({"message_type": "HASH"}, "KMS.0308"),
        ({"message_type": True}, "KMS.0308"),
        ({"sequence": "short"}, "KMS.0206"),
    ],
)
def test_bad_input(rest: Operation, keys: Keys, changes: dict[str, object], code: str) -> None:
    body = {"key_id": keys("EC_P256"), "message": b64(bytes(32)), "signing_algorithm": "ECDSA_SHA_256"}
    assert rest("sign", body).status == 200
    refused(rest("sign", {**body, **changes}), code)
    refused(rest("verify", {**body, "signature": "eA==", **changes}), code)


@pytest.mark.parametrize(
    ("signature", "code"),
    [(None, "0204"), ("", "0204"), ("*", "0308"), (1, "0308"), ([], "0308"), (b64(bytes(8193)), "0308")],
)
def test_bad_signatures(rest: Operation, keys: Keys, signature: object, code: str) -> None:
    body = {"key_id": keys("EC_P256"), "message": b64(bytes(32)), "signing_algorithm": "ECDSA_SHA_256"}
    refused(rest("verify", {**body, "signature": signature}), f"KMS.{code}")


def test_bad_input_over_grpc(client: Client, keys: Keys) -> None:
    key_id = keys("EC_P256")
    for request in (
        pb.SignRequest(key_id=key_id, message=b"x", signing_algorithm=99),  # type: ignore[arg-type]  # none of the enum's
        pb.SignRequest(key_id=key_id, message=b"x", signing_algorithm=7, message_type=9),  # type: ignore[arg-type]  # none of the enum's
        pb.SignRequest(key_id=key_id, message=bytes(4097), signing_algorithm=7, message_type=2),  # type: ignore[arg-type]  # numbers of the enums
    ):
        with refusal("KMS.0308"):
            client.signing.Sign(request)
    for empty in (
        pb.SignRequest(),
        pb.SignRequest(key_id=key_id),
        pb.SignRequest(key_id=key_id, message=b"x"),
    ):
        with refusal("KMS.0204"):
            client.signing.Sign(empty)
    with refusal("KMS.0204"):
        client.signing.GetPublicKey(pb.GetPublicKeyRequest())


def test_foreign_keys_look_absent(client: Client, strange: Client, keys: Keys) -> None:
    key_id = keys("EC_P256")
    signature = client.sign(key_id, "ECDSA_SHA_256", b"x")
    for attempt in (
        lambda: strange.sign(key_id, "ECDSA_SHA_256", b"x"),
        lambda: strange.verify(key_id, "ECDSA_SHA_256", b"x", signature),
        lambda: strange.public_key(key_id),
        lambda: strange.sign(keys("AES_256"), "ECDSA_SHA_256", b"x"),
    ):
        with refusal("KMS.0207"):
            attempt()


def test_readers_see_public_keys_alone(stand: Stand, reader: Any) -> None:
    with stand.client(reader) as looking:
        for attempt, code in (
            (lambda: looking.sign("alias/nobody", "ECDSA_SHA_256", b"x"), "KMS.0330"),
            (lambda: looking.verify("alias/nobody", "ECDSA_SHA_256", b"x", b"x"), "KMS.0330"),
            (lambda: looking.public_key("alias/nobody"), "KMS.0207"),
        ):
            with refusal(code):
                attempt()


# The SDK, and the audit


@pytest.mark.parametrize(("spec", "algorithm"), [case for case in CASES if case[1] not in WHOLE])
def test_the_sdk(stand: Stand, keys: Keys, spec: str, algorithm: str) -> None:
    sdk, key_id = stand.sdk(), keys(spec)
    digest = b64(_digest(algorithm, b"x"))
    body = kms.SignRequestBody(key_id=key_id, message=digest, signing_algorithm=algorithm)
    made = sdk.sign(kms.SignRequest(body=body))
    assert made.key_id == key_id
    shown = sdk.show_public_key(kms.ShowPublicKeyRequest(body=kms.OperateKeyRequestBody(key_id=key_id)))
    assert _holds(shown.public_key, algorithm, b"x", base64.b64decode(made.signature))
    for message, valid in ((digest, "true"), (b64(_digest(algorithm, b"y")), "false")):
        seen = sdk.validate_signature(
            kms.ValidateSignatureRequest(
                body=kms.VerifyRequestBody(
                    key_id=key_id,
                    message=message,
                    signature=made.signature,
                    signing_algorithm=algorithm,
                    message_type="DIGEST",
                )
            )
        )
        assert (seen.key_id, seen.signature_valid) == (key_id, valid)


def test_records_name_the_key_and_not_the_message(stand: Stand, rest: Operation, keys: Keys) -> None:
    key_id, message = keys("EC_P256"), b64(b"the message in question!")
    body = {"key_id": key_id, "message": message, "signing_algorithm": "ECDSA_SHA_256", "message_type": "RAW"}
    made = rest("sign", body)
    checked = rest("verify", {**body, "signature": made.json["signature"]})
    shown = rest("get-publickey", {"key_id": key_id})
    for answer, event in ((made, "sign"), (checked, "verify"), (shown, "getPublicKey")):
        one = record(stand, answer.headers["X-Request-Id"])
        assert (one["event"], one["resource"], one["key_version"], one["result"]) == (event, key_id, 1, "OK")
        assert message not in str(one)
    refused(rest("sign", {**body, "message": "*" + message}), "KMS.0308")
    assert message not in refused(rest("sign", {**body, "message": "*" + message}), "KMS.0308").message
