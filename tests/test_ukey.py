"""What UKeys sign and open: one spelling, one purpose, one key; checked by `cryptography`."""

import base64
import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hsmd import ukey
from hsmd.ukey import Candidate, Purpose, SoftOpener, UKeyError
from tests.ukeys import SoftUkey

RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
KEYS: dict[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey] = {
    "rsa": RSA,
    "p256": P256,
    "p384": ec.generate_private_key(ec.SECP384R1()),
}
CONTEXT = {"for": "a share", "number": 3}


@pytest.fixture(params=KEYS)
def key(request: pytest.FixtureRequest) -> SoftUkey:
    return SoftUkey(KEYS[request.param])


# Statements


def test_a_statement_is_spelled_in_one_way() -> None:
    made = ukey.statement(Purpose.LOGIN, {"b": [1, True, "ü"], "a": {"y": "", "x": -1}})
    assert made == b'hsmd-ukey-1\0login\0{"a":{"x":-1,"y":""},"b":[1,true,"\\u00fc"]}'
    assert made == ukey.statement(Purpose.LOGIN, {"a": {"x": -1, "y": ""}, "b": (1, True, "ü")})


@pytest.mark.parametrize("value", [1.5, None, b"x", {1: "x"}, {"x": 1.0}, [None], object()])
def test_what_has_no_one_spelling_is_not_signed(value: object) -> None:
    with pytest.raises(UKeyError):
        ukey.statement(Purpose.LOGIN, {"a": value})


def test_a_statement_is_bounded() -> None:
    with pytest.raises(UKeyError, match="at most"):
        ukey.statement(Purpose.APPROVE, {"a": "x" * 65536})
    nested: dict[str, object] = {}
    for _ in range(20):
        nested = {"a": nested}
    with pytest.raises(UKeyError, match="deeply"):
        ukey.statement(Purpose.APPROVE, nested)


def test_a_signature_is_the_key_s_and_for_this_only(key: SoftUkey) -> None:
    signed = ukey.statement(Purpose.APPROVE, {"proposal": "1"})
    signature = key.sign(signed)
    assert ukey.verify(key.public_key, signed, signature)
    for other in (
        ukey.statement(Purpose.LOGIN, {"proposal": "1"}),
        ukey.statement(Purpose.APPROVE, {"proposal": "2"}),
        signed + b" ",
        b"",
    ):
        assert not ukey.verify(key.public_key, other, signature)
    for forged in (b"", b"\0" * len(signature), signature[:-1], signature + b"\0", bytes(4096)):
        assert not ukey.verify(key.public_key, signed, forged)
    for another in KEYS.values():
        if SoftUkey(another).public_key != key.public_key:
            assert not ukey.verify(SoftUkey(another).public_key, signed, signature)


def test_pss_is_a_signature_too() -> None:
    signed = ukey.statement(Purpose.LOGIN, {})
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    public = SoftUkey(RSA).public_key
    assert ukey.verify(public, signed, RSA.sign(signed, pss, hashes.SHA256()))
    assert not ukey.verify(public, signed, RSA.sign(signed, padding.PKCS1v15(), hashes.SHA512()))


# Public keys


def _der(key: object) -> bytes:
    return ukey.encoded(key)


_NO_KEYS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "cut": lambda: b"\x30\x03",
    "zeros": lambda: bytes(5000),
    "rsa-1024": lambda: _der(rsa.generate_private_key(65537, 1024).public_key()),  # noqa: S505  # the point
    "rsa-exponent-3": lambda: _der(rsa.generate_private_key(3, 2048).public_key()),
    "secp256k1": lambda: _der(ec.generate_private_key(ec.SECP256K1()).public_key()),
    "p-521": lambda: _der(ec.generate_private_key(ec.SECP521R1()).public_key()),
    "ed25519": lambda: _der(ed25519.Ed25519PrivateKey.generate().public_key()),
    "dsa": lambda: _der(dsa.generate_private_key(2048).public_key()),
    "longer": lambda: _der(P256.public_key()) + b"\0",
    "private": lambda: P256.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ),
}


@pytest.mark.parametrize("der", _NO_KEYS.values(), ids=_NO_KEYS)
def test_what_no_ukey_may_have_is_no_public_key(der: Callable[[], bytes]) -> None:
    made = der()
    with pytest.raises(UKeyError):
        ukey.public_key(made)


def test_a_key_has_one_spelling() -> None:
    """A compressed point is the same key under another fingerprint."""
    public = P256.public_key()
    whole = public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    small = public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    head = _der(public)[: -len(whole)]
    squeezed = head.replace(bytes([0x30, 0x59]), bytes([0x30, 0x39]), 1).replace(
        b"\x03\x42\x00", b"\x03\x22\x00"
    )
    assert serialization.load_der_public_key(squeezed + small) is not None
    with pytest.raises(UKeyError, match="DER"):
        ukey.public_key(squeezed + small)


def test_keys_are_described(key: SoftUkey) -> None:
    assert ukey.describe(key.public_key) in ("RSA-2048", "EC P-256", "EC P-384")
    assert len(key.fingerprint) == 64


# Boxes


def test_only_the_key_opens_its_box_and_only_as_what_it_is_for(key: SoftUkey) -> None:
    for kind in ukey.box_kinds(key.public_key):
        box = ukey.make_box(key.public_key, kind, b"a secret", CONTEXT)
        assert b"a secret" not in box
        assert ukey.open_box(key.public_key, box, CONTEXT, key) == b"a secret"
        assert box != ukey.make_box(key.public_key, kind, b"a secret", CONTEXT)
        with pytest.raises(UKeyError):
            ukey.open_box(key.public_key, box, {**CONTEXT, "number": 4}, key)
        for other in KEYS.values():
            if SoftUkey(other).public_key != key.public_key:
                with pytest.raises(UKeyError):
                    ukey.open_box(SoftUkey(other).public_key, box, CONTEXT, SoftUkey(other))
                with pytest.raises(UKeyError):
                    ukey.open_box(key.public_key, box, CONTEXT, SoftUkey(other))


@pytest.mark.parametrize("name", ["p256", "rsa"])
def test_a_changed_box_opens_nothing(name: str) -> None:
    key = SoftUkey(KEYS[name])
    kind = ukey.box_kinds(key.public_key)[0]
    box = ukey.make_box(key.public_key, kind, bytes(40), CONTEXT)
    tree = json.loads(box)
    for field in ("wrapped", "sealed"):
        raw = base64.b64decode(tree[field])
        for place in (0, len(raw) // 2, len(raw) - 1):
            changed = bytearray(raw)
            changed[place] ^= 1
            text = base64.b64encode(bytes(changed)).decode()
            with pytest.raises(UKeyError):
                ukey.open_box(key.public_key, json.dumps({**tree, field: text}).encode(), CONTEXT, key)
    for wrong in (
        b"",
        b"{}",
        b"[]",
        b"[" * 5000,
        b"\xff",
        json.dumps({**tree, "v": 2}).encode(),
        json.dumps({**tree, "kind": "other"}).encode(),
        json.dumps({**tree, "kind": 1}).encode(),
        json.dumps({**tree, "wrapped": "%%"}).encode(),
        json.dumps({**tree, "wrapped": ""}).encode(),
        json.dumps({**tree, "sealed": None}).encode(),
        json.dumps({**tree, "sealed": ""}).encode(),
        box + b" " * 70000,
    ):
        with pytest.raises(UKeyError):
            ukey.open_box(key.public_key, wrong, CONTEXT, key)


def test_a_box_is_made_for_its_kind_of_key_only() -> None:
    public = SoftUkey(RSA).public_key
    for kind in ("ecdh", "", "rsa"):
        with pytest.raises(UKeyError):
            ukey.make_box(public, kind, b"x", CONTEXT)
    with pytest.raises(UKeyError, match="at most"):
        ukey.make_box(public, "rsa-oaep-sha256", bytes(40000), CONTEXT)


def test_a_box_is_what_the_module_says_it_is() -> None:
    """Opened by hand, from its description."""
    private = P256
    public = ukey.encoded(private.public_key())
    tree = json.loads(ukey.make_box(public, "ecdh", b"by hand", CONTEXT))
    point = base64.b64decode(tree["wrapped"])
    shared = private.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
    parts = (b"ecdh", _sha256(public), _sha256(point), b'{"for":"a share","number":3}')
    info = b"hsmd-ukey-box-1\0" + b"".join(len(each).to_bytes(4, "big") + each for each in parts)
    opener = AESGCM(HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(shared))
    assert opener.decrypt(bytes(12), base64.b64decode(tree["sealed"]), None) == b"by hand"


def _sha256(data: bytes) -> bytes:
    made = hashes.Hash(hashes.SHA256())
    made.update(data)
    return made.finalize()


def test_a_key_in_memory_opens_what_is_of_its_kind_only() -> None:
    with pytest.raises(UKeyError):
        SoftOpener(RSA).agree(bytes(65))
    with pytest.raises(UKeyError):
        SoftOpener(KEYS["p256"]).decrypt(bytes(256), "sha256")
    with pytest.raises(UKeyError):
        SoftOpener(KEYS["p256"]).agree(bytes(65))


# Candidates


def test_a_candidate_comes_back_as_it_was() -> None:
    made = Candidate("alice", "operator", "1", b"\1\2", b"", "ecdh", "n", b"\0", b"\xff")
    assert Candidate.of_values(made.to_values()) == made
    assert made.statement("a") != made.statement("b")


@pytest.mark.parametrize(
    "change",
    [
        {"name": 1},
        {"more": "x"},
        {"public_key": "%%"},
        {"public_key": "é"},
        {"signature": None},
        {"name": "x" * 100_000},
    ],
)
def test_what_is_no_candidate_is_refused(change: dict[str, object]) -> None:
    values = Candidate("alice", "operator", "1", b"\1\2").to_values()
    with pytest.raises(UKeyError):
        Candidate.of_values({**values, **change})
    with pytest.raises(UKeyError):
        Candidate.of_values({name: text for name, text in values.items() if name != "name"})
