"""Key pairs, agreement and HMACs in the token, held against `cryptography`."""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)
from pkcs11 import Attribute, PKCS11Error

from hsmd.algorithms import (
    AES_256,
    DATA_KEY_PAIRS,
    DIGEST_BYTES,
    KEY_SPECS,
    SIGNATURE_ALGORITHMS,
    KeyAlgorithm,
    SignatureAlgorithm,
)
from hsmd.errors import PARAMETER_INVALID, SPEC_INVALID, Error
from hsmd.hsm import BadData, Handle, ObjectGone, Pair, Token, operations, parse_address
from hsmd.hsm.loading import key_wrap
from hsmd.hsm.module import Module
from hsmd.hsm.pair_probe import probe_pairs
from hsmd.hsm.probe import Capability
from tests.softhsm import OPENCRYPTOKI, DevToken, make_token, no_forgeries

PAIRS = [row for row in KEY_SPECS.values() if row.asymmetric]
SIGNING = [
    pytest.param(row, algorithm, id=f"{row.name}-{algorithm.name}")
    for row in PAIRS
    for algorithm in SIGNATURE_ALGORITHMS.values()
    if algorithm.kind == row.kind
]
AGREEING = [row for row in PAIRS if row.kind == "ec"]
RSA = [row for row in PAIRS if row.kind == "rsa"]
MACS = [KEY_SPECS[name] for name in ("HMAC_256", "HMAC_384", "HMAC_512")]
CURVES: dict[str, ec.EllipticCurve] = {
    "EC_P256": ec.SECP256R1(),
    "EC_P384": ec.SECP384R1(),
    "SECP256K1": ec.SECP256K1(),
    "EC_P521": ec.SECP521R1(),
}
HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
ONE_REFUSAL = "not encrypted for this key by RSAES-OAEP"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class Loaded:
    """A pair of the token, its private key at work."""

    row: KeyAlgorithm
    pair: Pair
    key: Handle

    @property
    def public(self) -> Any:
        return load_der_public_key(self.pair.public_key)


def connect(made: DevToken, **options: Any) -> Token:
    token = Token(parse_address(made.uri), made.pin, lock_file=made.lock, softhsm_conf=made.conf, **options)
    token.connect()
    return token


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DevToken:
    return make_token(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def token(made: DevToken) -> Iterator[Token]:
    token = connect(made, deadline_seconds=50)  # the primes of a long key take as long as they take
    token.make_root_key("root")
    yield token
    assert token.status().state == "connected"  # whatever the tests sent it
    token.close()


@pytest.fixture
def root(token: Token) -> Handle:
    return token.find("root")


@pytest.fixture(scope="module")
def loaded(token: Token) -> Callable[[KeyAlgorithm], Loaded]:
    """A pair of the row, made once; skips when the token can't."""
    kept: dict[str, Loaded] = {}

    def get(row: KeyAlgorithm) -> Loaded:
        if not token.supports(row):
            pytest.skip(f"this token can't do {row.name}")
        if row.name not in kept:
            pair = token.generate_pair(row, token.find("root"))
            kept[row.name] = Loaded(row, pair, token.unwrap(row, pair.wrapped, token.find("root")))
        return kept[row.name]

    return get


@pytest.fixture
def kek(token: Token) -> Iterator[tuple[bytes, Handle]]:
    value = secrets.token_bytes(32)
    handle = token.temporary_key(value)
    yield value, handle
    token.destroy(handle)


def pkcs8(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def spki(key: Any) -> bytes:
    made: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return made


def verify(public: Any, algorithm: SignatureAlgorithm, signature: bytes, message: bytes) -> None:
    """By `cryptography`, from the definition of each algorithm. Raises InvalidSignature."""
    if algorithm.scheme in ("eddsa", "ml-dsa"):
        return public.verify(signature, message)  # type: ignore[no-any-return]  # of any key
    used = Prehashed(HASHES[algorithm.hash])
    digest = hashlib.new(algorithm.hash, message).digest()
    if algorithm.scheme == "ecdsa":
        return public.verify(signature, digest, ec.ECDSA(used))  # type: ignore[no-any-return]  # the same
    if algorithm.scheme == "pkcs1":
        return public.verify(signature, digest, padding.PKCS1v15(), used)  # type: ignore[no-any-return]  # the same
    pss = padding.PSS(padding.MGF1(HASHES[algorithm.hash]), DIGEST_BYTES[algorithm.hash])
    return public.verify(signature, digest, pss, used)  # type: ignore[no-any-return]  # the same


def attribute(token: Token, key: Handle, name: Attribute) -> bytes:
    with token._call(key) as desk:
        return desk.connection.module.read(desk.session, desk.object, name, 64)


def trust(monkeypatch: pytest.MonkeyPatch, token: Token, *, fragile: bool = False) -> None:
    """As if the token were known to stand, or not to stand, wrapped keys that fail their check."""
    found = [each for each in token.capabilities if each.name != "refuses-forged-wraps"]
    told = Capability("refuses-forged-wraps", not fragile, "")
    monkeypatch.setattr(type(token), "capabilities", (*found, told))


def objects(token: Token) -> int:
    with token._desk().call() as desk:
        return len(list(desk.session.get_objects()))


# What the token can do


@pytest.mark.skipif(not OPENCRYPTOKI, reason="of opencryptoki")
def test_finds_out_what_opencryptoki_can_do(token: Token) -> None:
    found = {each.name: each for each in token.capabilities}
    assert {name for name, each in found.items() if not each.available} == {"refuses-forged-wraps"}
    assert {row.name for row in PAIRS} < set(found)
    assert "0x210B" in found["aes-key-wrap-kwp"].detail
    assert "told again" in found["unwrapped-stays-inside"].detail
    assert token.supports_oaep()


@pytest.mark.skipif(OPENCRYPTOKI, reason="of SoftHSM2")
def test_finds_out_what_softhsm_can_do(token: Token) -> None:
    found = {each.name: each for each in token.capabilities}
    able = {row.name for row in PAIRS if found[row.name].available}
    assert able == {row.name for row in PAIRS} - {"ED25519", "ML_DSA_44", "ML_DSA_65", "ML_DSA_87"}
    assert "KeyNotWrappable" in found["ED25519"].detail  # born and signing, but not to be kept
    assert "MechanismInvalid" in found["ML_DSA_65"].detail
    assert not found["oaep-sha-256"].available
    assert found["unwrapped-stays-inside"].detail == "as told on unwrapping"
    for name in ("ecdh", "rsa-bare", "hmac-sha-256", "hmac-sha-384", "hmac-sha-512", "EC_P521"):
        assert found[name].available, found[name]


@pytest.mark.parametrize("row", [*KEY_SPECS.values()], ids=lambda row: row.name)
def test_supports_what_can_be_made(token: Token, root: Handle, row: KeyAlgorithm) -> None:
    if not row.asymmetric:
        assert token.supports(row)
    elif not token.supports(row):
        for refused in (
            lambda: token.generate_pair(row, root),
            lambda: token.generate_exportable_pair(row),
        ):
            with pytest.raises(Error) as raised:
                refused()
            assert raised.value.fault is SPEC_INVALID
            assert row.name in str(raised.value)


def test_probing_leaves_nothing_behind(token: Token, made: DevToken) -> None:
    before = objects(token)
    connection = token._link.live
    assert connection
    with token._desk().call() as desk:
        again = probe_pairs(connection.module, desk.session, connection.found)
    assert objects(token) == before
    assert again.capabilities[-1].available


# Birth


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: row.name)
def test_a_pair_is_of_its_row(loaded: Callable[[KeyAlgorithm], Loaded], row: KeyAlgorithm) -> None:
    public = loaded(row).public
    if row.kind == "rsa":
        assert public.key_size == row.bits
        assert public.public_numbers().e == 65537
    elif row.kind == "ec":
        assert public.curve.name == CURVES[row.name].name
    else:
        assert type(public).__name__.upper().startswith(row.name.replace("_", ""))
    assert spki(public) == loaded(row).pair.public_key


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: row.name)
def test_a_private_key_never_leaves_but_wrapped(
    token: Token, loaded: Callable[[KeyAlgorithm], Loaded], row: KeyAlgorithm
) -> None:
    key = loaded(row).key
    for name in (Attribute.SENSITIVE, Attribute.PRIVATE, Attribute.SIGN):
        assert attribute(token, key, name) == b"\1", name.name
    for name in (Attribute.EXTRACTABLE, Attribute.TOKEN):
        assert attribute(token, key, name) == b"\0", name.name
    secret = Attribute.PRIVATE_EXPONENT if row.kind == "rsa" else Attribute.VALUE
    with token._call(key) as desk, pytest.raises(PKCS11Error):
        desk.connection.module.read(desk.session, desk.object, secret, 512)
    root = token.find("root")
    with token._call(root) as desk:
        wrap, root_object = key_wrap(desk.connection), desk.object
    with token._call(key) as desk, pytest.raises(PKCS11Error):
        operations.wrap(desk.session, wrap, root_object, desk.object)


@pytest.mark.parametrize("name", ["AES_256", "HMAC_256"])
def test_a_secret_key_never_leaves_but_wrapped(token: Token, root: Handle, name: str) -> None:
    row = KEY_SPECS[name]
    key = token.unwrap(row, token.generate(row, root), root)
    assert attribute(token, key, Attribute.SENSITIVE) == b"\1"
    assert attribute(token, key, Attribute.EXTRACTABLE) == b"\0"
    with token._call(key) as desk, pytest.raises(PKCS11Error):
        desk.connection.module.read(desk.session, desk.object, Attribute.VALUE, 64)
    with token._call(root) as desk:
        wrap, root_object = key_wrap(desk.connection), desk.object
    with token._call(key) as desk, pytest.raises(PKCS11Error):
        operations.wrap(desk.session, wrap, root_object, desk.object)


def test_generating_leaves_nothing_behind(token: Token, root: Handle) -> None:
    before = objects(token)
    for name in ("EC_P256", "RSA_2048"):
        token.generate_pair(KEY_SPECS[name], root)
        token.generate_exportable_pair(KEY_SPECS[name])
    with pytest.raises(ObjectGone):
        token.generate_pair(KEY_SPECS["EC_P256"], Handle(root.generation - 1, root.value))
    assert objects(token) == before


@pytest.mark.parametrize("row", [*DATA_KEY_PAIRS.values()], ids=lambda row: row.name)
def test_an_exportable_pair_is_a_pair(token: Token, row: KeyAlgorithm) -> None:
    private, public = token.generate_exportable_pair(row)
    key: Any = load_der_private_key(private, None)
    assert spki(key.public_key()) == public
    assert key.key_size == row.bits
    if row.kind == "ec":
        assert key.curve.name == CURVES[row.name].name
    assert token.generate_exportable_pair(row)[1] != public


@pytest.mark.parametrize("name", ["EC_P256", "RSA_2048"])
def test_a_wrapped_pair_is_disclosed(token: Token, root: Handle, name: str) -> None:
    row = KEY_SPECS[name]
    pair = token.generate_pair(row, root)
    before = objects(token)
    private, public = token.disclose_pair(row, pair.wrapped, root)
    assert public == pair.public_key
    key: Any = load_der_private_key(private, None)
    assert spki(key.public_key()) == public
    assert token.disclose_pair(row, pair.wrapped, root) == (private, public)
    assert objects(token) == before


@no_forgeries
def test_a_changed_pair_is_not_disclosed(token: Token, root: Handle) -> None:
    row = KEY_SPECS["EC_P256"]
    wrapped = token.generate_pair(row, root).wrapped
    before = objects(token)
    for bad in (wrapped[:-8], wrapped[:-1] + bytes([wrapped[-1] ^ 1]), b"", bytes(len(wrapped))):
        with pytest.raises(BadData):
            token.disclose_pair(row, bad, root)
    assert objects(token) == before


@no_forgeries
def test_changed_private_blobs_are_refused(
    token: Token, root: Handle, loaded: Callable[[KeyAlgorithm], Loaded]
) -> None:
    before = objects(token)
    for name in ("EC_P256", "RSA_2048"):
        row = KEY_SPECS[name]
        blob = loaded(row).pair.wrapped
        before = objects(token)
        places = [*range(0, len(blob), 7), len(blob) - 1]
        flipped = [blob[:at] + bytes([blob[at] ^ 0x10]) + blob[at + 1 :] for at in places]
        for bad in [*flipped, b"", blob[:-8], blob[:-1], blob + bytes(8)]:
            with pytest.raises(BadData):
                token.unwrap(row, bad, root)
        assert objects(token) == before


# Signatures


@pytest.mark.parametrize(("row", "algorithm"), SIGNING)
def test_signatures_verify(
    token: Token,
    loaded: Callable[[KeyAlgorithm], Loaded],
    row: KeyAlgorithm,
    algorithm: SignatureAlgorithm,
) -> None:
    one = loaded(row)
    for size in (0, 1, 4096):
        message = secrets.token_bytes(size)
        signature = token.sign(one.key, row, algorithm, message, digest=False)
        verify(one.public, algorithm, signature, message)
        with pytest.raises(InvalidSignature):
            verify(one.public, algorithm, signature, message + b"x")
        if algorithm.hash:
            digest = hashlib.new(algorithm.hash, message).digest()
            signature = token.sign(one.key, row, algorithm, digest, digest=True)
            verify(one.public, algorithm, signature, message)


@pytest.mark.parametrize("row", AGREEING, ids=lambda row: row.name)
def test_ecdsa_signatures_are_der(
    token: Token, loaded: Callable[[KeyAlgorithm], Loaded], row: KeyAlgorithm
) -> None:
    one = loaded(row)
    sizes = set()
    for count in range(50):
        made = token.sign(one.key, row, SIGNATURE_ALGORITHMS["ECDSA_SHA_256"], bytes([count]), digest=False)
        r, s = decode_dss_signature(made)
        assert encode_dss_signature(r, s) == made
        assert 0 < r < 1 << row.bits
        assert 0 < s < 1 << row.bits
        sizes.add(len(made))
    assert len(sizes) > 1  # the integers are as short as DER wants them


def test_pkcs1_is_the_same_for_message_and_digest(
    token: Token, loaded: Callable[[KeyAlgorithm], Loaded]
) -> None:
    one = loaded(KEY_SPECS["RSA_2048"])
    for name in ("sha256", "sha384", "sha512"):
        algorithm = SIGNATURE_ALGORITHMS[f"RSASSA_PKCS1_V1_5_SHA_{name[3:]}"]
        digest = hashlib.new(name, b"message").digest()
        assert token.sign(one.key, one.row, algorithm, b"message", digest=False) == token.sign(
            one.key, one.row, algorithm, digest, digest=True
        )


def test_what_does_not_fit_is_not_signed(token: Token, loaded: Callable[[KeyAlgorithm], Loaded]) -> None:
    rsa_key, ec_key = loaded(KEY_SPECS["RSA_2048"]), loaded(KEY_SPECS["EC_P256"])
    ecdsa, pss = SIGNATURE_ALGORITHMS["ECDSA_SHA_256"], SIGNATURE_ALGORITHMS["RSASSA_PSS_SHA_256"]
    for one, algorithm, message, digest in (
        (rsa_key, ecdsa, b"", False),
        (ec_key, pss, b"", False),
        (rsa_key, SIGNATURE_ALGORITHMS["ML_DSA"], b"", False),
        (rsa_key, pss, bytes(31), True),
        (rsa_key, SIGNATURE_ALGORITHMS["RSASSA_PKCS1_V1_5_SHA_512"], bytes(32), True),
        (ec_key, ecdsa, b"", True),
        (ec_key, SIGNATURE_ALGORITHMS["ECDSA_SHA_384"], bytes(32), True),
    ):
        with pytest.raises(ValueError, match="does not go with"):
            token.sign(one.key, one.row, algorithm, message, digest=digest)
    token.destroy(gone := token.unwrap(ec_key.row, ec_key.pair.wrapped, token.find("root")))
    with pytest.raises(ObjectGone):
        token.sign(gone, ec_key.row, ecdsa, b"", digest=False)


# HMAC


@pytest.mark.parametrize("row", MACS, ids=lambda row: row.name)
def test_macs_are_macs(token: Token, root: Handle, row: KeyAlgorithm) -> None:
    value, name = secrets.token_bytes(row.bits // 8), f"sha{row.bits}"
    key = token.unwrap(row, token.wrap_value(row, value, root), root)
    for size in (0, 1, 128, 4096):
        data = secrets.token_bytes(size)
        assert token.mac(key, name, data) == hmac.digest(value, data, name)
    first, second = (token.unwrap(row, token.generate(row, root), root) for _ in range(2))
    assert len(token.mac(first, name, b"")) == row.bits // 8
    assert token.mac(first, name, b"") != token.mac(second, name, b"")


# RSAES-OAEP


@pytest.mark.parametrize("row", RSA, ids=lambda row: row.name)
def test_decrypts_what_was_encrypted_elsewhere(
    token: Token, loaded: Callable[[KeyAlgorithm], Loaded], row: KeyAlgorithm
) -> None:
    one = loaded(row)
    most = row.bits // 8 - 66
    for size in (0, 1, 32, most - 1, most):
        for data in (secrets.token_bytes(size), bytes(size), b"\1" * size):
            assert token.decrypt_oaep(one.key, row, one.public.encrypt(data, OAEP)) == data


def test_every_wrong_ciphertext_gets_one_answer(
    token: Token, loaded: Callable[[KeyAlgorithm], Loaded]
) -> None:
    one, other = loaded(KEY_SPECS["RSA_2048"]), loaded(KEY_SPECS["RSA_3072"])
    good = one.public.encrypt(b"data", OAEP)
    sha1 = hashes.SHA1()  # noqa: S303 -- to be refused
    old = padding.OAEP(padding.MGF1(sha1), sha1, None)
    mixed = padding.OAEP(padding.MGF1(sha1), hashes.SHA256(), None)
    labelled = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"label")
    modulus = one.public.public_numbers().n
    for bad in (
        *(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, 256, 5)),
        *(one.public.encrypt(b"data", wrong) for wrong in (old, mixed, labelled, padding.PKCS1v15())),
        *(number.to_bytes(256, "big") for number in (0, 1, modulus - 1, modulus, modulus + 1)),
        *(b"", b"\0", good[:-1], good[1:], b"\0" + good, good + b"\0", b"\xff" * 256),
        other.public.encrypt(b"data", OAEP),
        secrets.token_bytes(256),
    ):
        with pytest.raises(BadData) as refused:
            token.decrypt_oaep(one.key, one.row, bad)
        assert str(refused.value) == ONE_REFUSAL
        assert refused.value.__cause__ is None
    assert token.decrypt_oaep(one.key, one.row, good) == b"data"


def test_the_fallback_can_be_refused(
    token: Token, loaded: Callable[[KeyAlgorithm], Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = loaded(KEY_SPECS["RSA_2048"])
    data = one.public.encrypt(b"data", OAEP)
    assert token.supports_oaep()
    if any(each.name == "oaep-sha-256" and each.available for each in token.capabilities):
        pytest.skip("this token needs no fallback")
    monkeypatch.setattr(token, "_oaep_fallback", False)
    assert not token.supports_oaep()
    with pytest.raises(Error) as refused:
        token.decrypt_oaep(one.key, one.row, data)
    assert refused.value.fault is PARAMETER_INVALID


# Agreement


@pytest.mark.parametrize("row", AGREEING, ids=lambda row: row.name)
def test_agrees_with_a_peer_elsewhere(
    token: Token, loaded: Callable[[KeyAlgorithm], Loaded], row: KeyAlgorithm
) -> None:
    one = loaded(row)
    before = objects(token)
    for _ in range(300):  # so that some secrets begin with a zero
        peer = ec.generate_private_key(CURVES[row.name])
        shared = token.derive(one.key, row, spki(peer.public_key()))
        assert shared == peer.exchange(ec.ECDH(), one.public)
        assert len(shared) == row.bits // 8
    assert objects(token) == before


@pytest.mark.parametrize("row", AGREEING, ids=lambda row: row.name)
def test_no_other_point_gets_near_the_key(
    token: Token, loaded: Callable[[KeyAlgorithm], Loaded], row: KeyAlgorithm
) -> None:
    one = loaded(row)
    good = spki(ec.generate_private_key(CURVES[row.name]).public_key())
    size = row.bits // 8
    head, point = good[: -2 * size - 1], good[-2 * size - 1 :]
    off_curve = point[:-1] + bytes([point[-1] ^ 1])
    infinity = bytes([0x30, head[1] - 2 * size, *head[2:]])
    infinity = infinity[:-2] + bytes([2, 0]) + b"\0"
    others = [ec.generate_private_key(curve) for name, curve in CURVES.items() if name != row.name]
    for bad in (
        head + off_curve,
        head + b"\4" + b"\xff" * 2 * size,
        head + b"\4" + bytes(2 * size),
        head + b"\5" + point[1:],
        infinity,
        *(spki(each.public_key()) for each in others),
        spki(ed25519.Ed25519PrivateKey.generate().public_key()),
        spki(rsa.generate_private_key(65537, 2048).public_key()),
        *(b"", b"0", good[:-1], good[1:], good + b"\0", point, secrets.token_bytes(len(good))),
    ):
        with pytest.raises(BadData):
            token.derive(one.key, row, bad)
    assert len(token.derive(one.key, row, good)) == size


# Import


def software_key(row: KeyAlgorithm) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    if row.kind == "rsa":
        return rsa.generate_private_key(65537, row.bits)
    return ec.generate_private_key(CURVES[row.name])


@pytest.mark.parametrize("row", [*RSA, *AGREEING], ids=lambda row: row.name)
def test_imports_what_openssl_made(token: Token, root: Handle, row: KeyAlgorithm) -> None:
    key = software_key(row)
    for size in (16, 32):
        value = secrets.token_bytes(size)
        kek = token.temporary_key(value)
        before = objects(token)
        pair = token.import_pair(row, aes_key_wrap_with_padding(value, pkcs8(key)), kek, root, value)
        assert objects(token) == before
        assert pair.public_key == spki(key.public_key())
        one = Loaded(row, pair, token.unwrap(row, pair.wrapped, root))
        for algorithm in SIGNATURE_ALGORITHMS.values():
            if algorithm.kind == row.kind:
                signature = token.sign(one.key, row, algorithm, b"message", digest=False)
                verify(key.public_key(), algorithm, signature, b"message")
        token.destroy(kek)


def test_imports_unlike_scalars(token: Token, root: Handle, kek: tuple[bytes, Handle]) -> None:
    """Both signs of y, scalars and coordinates that begin with zeros."""
    for row in AGREEING:
        scalars = [1, 2, 3, 255, 1 << 130, *(secrets.randbits(row.bits - 16) for _ in range(20))]
        for scalar in scalars:
            key = ec.derive_private_key(scalar, CURVES[row.name])
            pair = token.import_pair(row, aes_key_wrap_with_padding(kek[0], pkcs8(key)), kek[1], root, kek[0])
            assert pair.public_key == spki(key.public_key()), (row.name, scalar)


def test_nothing_else_is_imported(token: Token, root: Handle, kek: tuple[bytes, Handle]) -> None:
    rows = {row.name: row for row in (KEY_SPECS["RSA_2048"], *AGREEING)}
    keys: dict[str, PrivateKey] = {name: software_key(row) for name, row in rows.items()}
    strangers: list[PrivateKey] = [
        rsa.generate_private_key(65537, 1024),  # noqa: S505 -- to be refused
        rsa.generate_private_key(65537, 2056),
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.BrainpoolP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ]
    before = objects(token)
    for name, row in rows.items():
        good = pkcs8(keys[name])
        traditional = keys[name].private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        contents = [
            *(pkcs8(key) for other, key in keys.items() if other != name),
            *(pkcs8(key) for key in strangers),
            *(traditional, good[:-8], good[1:], b"\0", bytes(32), secrets.token_bytes(200)),
            spki(keys[name].public_key()),
        ]
        blob = aes_key_wrap_with_padding(kek[0], good)
        flipped = [blob[:at] + bytes([blob[at] ^ 4]) + blob[at + 1 :] for at in (0, 7, 8, 40, len(blob) - 1)]
        foreign = aes_key_wrap_with_padding(secrets.token_bytes(32), good)
        forged = [*flipped, blob[:-1], blob[:-8], blob + bytes(8), b"", foreign, secrets.token_bytes(160)]
        for bad in (
            *(aes_key_wrap_with_padding(kek[0], content) for content in contents),
            *forged,
        ):
            with pytest.raises(BadData):
                token.import_pair(row, bad, kek[1], root, kek[0])
        assert token.import_pair(row, blob, kek[1], root, kek[0]).public_key == spki(keys[name].public_key())
    assert objects(token) == before
    with pytest.raises(ValueError, match="not imported"):
        token.import_pair(KEY_SPECS["ED25519"], b"", kek[1], root, kek[0])


def replaced(data: bytes, number: int, other: int) -> bytes:
    size = (max(number, other).bit_length() + 7) // 8  # one number in 256 is shorter than its field
    assert number.to_bytes(size, "big") in data
    return data.replace(number.to_bytes(size, "big"), other.to_bytes(size, "big"))


def test_an_inconsistent_key_is_not_imported(token: Token, root: Handle, kek: tuple[bytes, Handle]) -> None:
    row = KEY_SPECS["RSA_2048"]
    first, second = (rsa.generate_private_key(65537, 2048).private_numbers() for _ in range(2))
    good = pkcs8(first.private_key())
    for mine, foreign in ((first.public_numbers.n, second.public_numbers.n), (first.d, first.d ^ 1 << 99)):
        # The first prime goes too: OpenSSL takes whichever of exponent and primes gives a right signature.
        bad = replaced(replaced(good, mine, foreign), first.p, second.p)
        with pytest.raises(BadData):
            token.import_pair(row, aes_key_wrap_with_padding(kek[0], bad), kek[1], root, kek[0])
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    row, key = KEY_SPECS["EC_P256"], ec.generate_private_key(CURVES["EC_P256"])
    for wrong in (0, order):
        bad = replaced(pkcs8(key), key.private_numbers().private_value, wrong)
        with pytest.raises(BadData):
            token.import_pair(row, aes_key_wrap_with_padding(kek[0], bad), kek[1], root, kek[0])


def test_a_public_key_that_came_along_is_not_believed(
    token: Token, root: Handle, kek: tuple[bytes, Handle]
) -> None:
    row = KEY_SPECS["EC_P256"]
    key, other = (ec.generate_private_key(CURVES[row.name]) for _ in range(2))
    points = [
        each.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint) for each in (key, other)
    ]
    blob = aes_key_wrap_with_padding(kek[0], pkcs8(key).replace(points[0], points[1]))
    try:
        pair = token.import_pair(row, blob, kek[1], root, kek[0])
    except BadData:
        return
    assert pair.public_key == spki(key.public_key())


@pytest.mark.parametrize("trusted", [False, True])
def test_the_temporary_key_comes_by_oaep(
    token: Token,
    root: Handle,
    loaded: Callable[[KeyAlgorithm], Loaded],
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,
) -> None:
    """The whole way of an import: the temporary key under the wrapping key, the private key under it."""
    if trusted:  # as a token without opencryptoki's defect would be; the blobs here are right ones
        trust(monkeypatch, token)
    one, row = loaded(KEY_SPECS["RSA_3072"]), KEY_SPECS["SECP256K1"]
    for size in (16, 32):
        value, key = secrets.token_bytes(size), ec.generate_private_key(CURVES[row.name])
        data = one.public.encrypt(value, OAEP)
        kek = token.unwrap_oaep(one.key, one.row, data)
        assert (kek is not None) is (OPENCRYPTOKI and trusted)
        if kek is None:
            kek = token.temporary_key(token.decrypt_oaep(one.key, one.row, data))
        assert attribute(token, kek, Attribute.SENSITIVE) == b"\1"
        assert attribute(token, kek, Attribute.EXTRACTABLE) == b"\0"
        pair = token.import_pair(
            row, aes_key_wrap_with_padding(value, pkcs8(key)), kek, root, None if trusted else value
        )
        assert pair.public_key == spki(key.public_key())
    for wrong in (b"", bytes(15), bytes(24), bytes(33)):
        with pytest.raises(BadData):
            token.temporary_key(wrong)


def test_a_token_that_forgeries_harm_sees_none(
    token: Token, root: Handle, kek: tuple[bytes, Handle], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = KEY_SPECS["EC_P256"]
    blob = aes_key_wrap_with_padding(kek[0], pkcs8(software_key(row)))
    trust(monkeypatch, token, fragile=True)
    unwraps: list[bytes] = []
    unwrap = Module.unwrap

    def noted(module: Module, *arguments: Any) -> int:
        unwraps.append(arguments[3])
        return unwrap(module, *arguments)

    monkeypatch.setattr(Module, "unwrap", noted)
    for bad in (blob[:-8], blob[:-1], blob + bytes(8), b"", bytes(16), blob[:-1] + bytes([blob[-1] ^ 1])):
        with pytest.raises(BadData):
            token.import_pair(row, bad, kek[1], root, kek[0])
    with pytest.raises(BadData):
        token.import_pair(row, blob, kek[1], root, secrets.token_bytes(32))
    with pytest.raises(ValueError, match="value"):
        token.import_pair(row, blob, kek[1], root)
    assert unwraps == []
    token.import_pair(row, blob, kek[1], root, kek[0])
    assert unwraps == [blob]
    monkeypatch.setattr(token, "_oaep_fallback", False)
    assert not token.supports_foreign_pairs()
    for refused in (
        lambda: token.import_pair(row, blob, kek[1], root, kek[0]),
        lambda: token.unwrap_oaep(kek[1], KEY_SPECS["RSA_3072"], bytes(384)),
    ):
        with pytest.raises(Error) as error:
            refused()
        assert error.value.fault is SPEC_INVALID
    assert unwraps == [blob]


def test_a_temporary_key_only_unwraps(token: Token, kek: tuple[bytes, Handle]) -> None:
    assert attribute(token, kek[1], Attribute.UNWRAP) == b"\1"
    for name in (
        *(Attribute.EXTRACTABLE, Attribute.TOKEN, Attribute.WRAP, Attribute.ENCRYPT),
        *(Attribute.DECRYPT, Attribute.SIGN, Attribute.VERIFY, Attribute.DERIVE),
    ):
        assert attribute(token, kek[1], name) == b"\0", name.name


# All at once


def test_sixteen_threads_get_their_own_results(
    token: Token, root: Handle, loaded: Callable[[KeyAlgorithm], Loaded]
) -> None:
    rsa_key, ec_key = loaded(KEY_SPECS["RSA_2048"]), loaded(KEY_SPECS["EC_P384"])
    pss, ecdsa = SIGNATURE_ALGORITHMS["RSASSA_PSS_SHA_384"], SIGNATURE_ALGORITHMS["ECDSA_SHA_384"]
    value, mac_row = secrets.token_bytes(48), KEY_SPECS["HMAC_384"]
    mac_key = token.unwrap(mac_row, token.wrap_value(mac_row, value, root), root)
    kek_value = secrets.token_bytes(32)
    kek = token.temporary_key(kek_value)
    aes = token.unwrap(AES_256, token.generate(AES_256, root), root)

    def work(number: int) -> int:
        for turn in range(12):
            message = secrets.token_bytes(16 + turn)
            verify(
                rsa_key.public, pss, token.sign(rsa_key.key, rsa_key.row, pss, message, digest=False), message
            )
            verify(
                ec_key.public,
                ecdsa,
                token.sign(ec_key.key, ec_key.row, ecdsa, message, digest=False),
                message,
            )
            sealed = rsa_key.public.encrypt(message, OAEP)
            assert token.decrypt_oaep(rsa_key.key, rsa_key.row, sealed) == message
            with pytest.raises(BadData):
                token.decrypt_oaep(rsa_key.key, rsa_key.row, secrets.token_bytes(256))
            peer = ec.generate_private_key(ec.SECP384R1())
            assert token.derive(ec_key.key, ec_key.row, spki(peer.public_key())) == peer.exchange(
                ec.ECDH(), ec_key.public
            )
            assert token.mac(mac_key, "sha384", message) == hmac.digest(value, message, "sha384")
            own = token.import_pair(
                ec_key.row, aes_key_wrap_with_padding(kek_value, pkcs8(peer)), kek, root, kek_value
            )
            assert own.public_key == spki(peer.public_key())
            born = token.generate_pair(ec_key.row, root)
            key = token.unwrap(ec_key.row, born.wrapped, root)
            signature = token.sign(key, ec_key.row, ecdsa, message, digest=False)
            verify(load_der_public_key(born.public_key), ecdsa, signature, message)
            token.destroy(key)
            iv = bytes([number, turn]) + bytes(10)
            assert token.decrypt(aes, iv, token.encrypt(aes, iv, message, b""), b"") == message
        return number

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(16))) == list(range(16))
    assert token.status().state == "connected"
