"""Wycheproof's cases on the token, through import, unwrap, derive, decrypt and MAC: each verdict held."""

import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hsmd.algorithms import KEY_SPECS, KeyAlgorithm
from hsmd.hsm import BadData, Handle, Token, parse_address, templates
from hsmd.hsm.loading import load
from tests.softhsm import FORGED_BLOBS_KILL, make_token
from tests.vectors import cases


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    made = make_token(tmp_path_factory.mktemp("wycheproof"))
    token = Token(parse_address(made.uri), made.pin, lock_file=made.lock, softhsm_conf=made.conf)
    token.connect()
    token.make_root_key("root")
    yield token
    assert token.status().state == "connected"
    token.close()


@pytest.fixture
def root(token: Token) -> Handle:
    return token.find("root")


def secret_row(value: bytes) -> KeyAlgorithm:
    """Return a row for a secret of any length."""
    return KeyAlgorithm("ANY", 255, "generic-secret", 8 * len(value), ())


def imported(token: Token, row: KeyAlgorithm, pkcs8: bytes) -> Handle:
    """Load a private key the way a customer's comes in."""
    value, root = secrets.token_bytes(32), token.find("root")
    kek = token.temporary_key(value)
    pair = token.import_pair(row, aes_key_wrap_with_padding(value, pkcs8), kek, root, value)
    token.destroy(kek)
    return token.unwrap(row, pair.wrapped, root)


def test_key_unwrap(token: Token) -> None:
    verdicts: Counter[str] = Counter()
    for _, case in cases("aes_kwp_test"):
        if FORGED_BLOBS_KILL and case["result"] != "valid":
            continue
        with token._desk().call() as desk:
            template = templates.unwrapper(bytes.fromhex(case["key"]))
            kek = load(desk, lambda module, anchor: module.create(anchor, template))  # noqa: B023 -- called now
        value = bytes.fromhex(case["msg"])
        try:
            key = token.unwrap(secret_row(value), bytes.fromhex(case["ct"]), kek)
        except BadData:
            verdicts["refused"] += 1
            assert case["result"] != "valid", case["tcId"]
        else:
            verdicts["unwrapped"] += 1
            assert case["result"] != "invalid", case["tcId"]
            if len(value) >= 32:  # SoftHSM2 makes no HMAC-SHA-256 with shorter keys
                assert token.mac(key, "sha256", b"") == hmac.digest(value, b"", hashlib.sha256)
            token.destroy(key)
        token.destroy(kek)
    assert verdicts["refused"] >= 177 or FORGED_BLOBS_KILL
    assert verdicts["unwrapped"] >= 70


@pytest.mark.parametrize("bits", [2048, 3072])
def test_oaep(token: Token, bits: int) -> None:
    row = KEY_SPECS[f"RSA_{bits}"]
    keys: dict[str, Handle] = {}
    for group, case in cases(f"rsa_oaep_{bits}_sha256_mgf1sha256_test"):
        pkcs8 = group["privateKeyPkcs8"]
        key = keys.get(pkcs8) or keys.setdefault(pkcs8, imported(token, row, bytes.fromhex(pkcs8)))
        data = bytes.fromhex(case["ct"])
        if case["result"] == "valid" and not case["label"]:
            assert token.decrypt_oaep(key, row, data) == bytes.fromhex(case["msg"]), case["tcId"]
        else:  # a label is none of DEW's: refused, valid or not
            with pytest.raises(BadData):
                token.decrypt_oaep(key, row, data)
    assert keys


@pytest.mark.parametrize(
    ("name", "spec", "curve"),
    [("secp256r1", "EC_P256", ec.SECP256R1()), ("secp384r1", "EC_P384", ec.SECP384R1())],
)
def test_ecdh(token: Token, name: str, spec: str, curve: ec.EllipticCurve) -> None:
    row = KEY_SPECS[spec]
    keys: dict[int, Handle] = {}
    verdicts: Counter[str] = Counter()
    for _, case in cases(f"ecdh_{name}_test"):
        scalar = int(case["private"], 16)
        if scalar not in keys:
            private = ec.derive_private_key(scalar, curve)
            pkcs8 = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
            keys[scalar] = imported(token, row, pkcs8)
        try:
            shared = token.derive(keys[scalar], row, bytes.fromhex(case["public"]))
        except BadData:
            verdicts[f"{case['result']} refused"] += 1
            assert case["result"] != "valid", case["tcId"]
        else:
            verdicts[f"{case['result']} agreed"] += 1
            assert case["result"] != "invalid", case["tcId"]
            assert shared.hex() == case["shared"], case["tcId"]
    assert verdicts["valid agreed"] >= 300
    assert verdicts["invalid refused"] >= 40
    for key in keys.values():
        token.destroy(key)


@pytest.mark.parametrize("name", ["sha256", "sha384", "sha512"])
def test_hmac(token: Token, root: Handle, name: str) -> None:
    """SoftHSM2 refuses keys shorter than the hash. Wrapping, it fills keys up to 8 bytes with zeros, which
    changes those longer than a block: such are wrapped here. No key spec is of either kind.
    """
    shortest, kek = hashlib.new(name).digest_size, secrets.token_bytes(32)
    other = token.temporary_key(kek)
    done = 0
    for group, case in cases(f"hmac_{name}_test"):
        value = bytes.fromhex(case["key"])
        if len(value) < shortest:
            continue
        row = secret_row(value)
        if len(value) % 8:
            key = token.unwrap(row, aes_key_wrap_with_padding(kek, value), other)
        else:
            key = token.unwrap(row, token.wrap_value(row, value, root), root)
        tag = token.mac(key, name, bytes.fromhex(case["msg"]))[: group["tagSize"] // 8]
        assert (tag.hex() == case["tag"]) == (case["result"] == "valid"), case["tcId"]
        token.destroy(key)
        done += 1
    assert done >= 100
