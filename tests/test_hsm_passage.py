"""Keys that pass from one token to another, and tokens that are initialised, on real tokens."""

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from pkcs11 import Attribute

from hsmd.algorithms import AES_256
from hsmd.errors import FORMAT_INVALID, UNAVAILABLE, Error
from hsmd.hsm import BadData, Officer, Passed, Token, TokenRefused, parse_address, templates
from hsmd.hsm.module import Template
from tests import opencryptoki
from tests.hsm_parts import connected
from tests.softhsm import OPENCRYPTOKI, DevToken, make_token, no_forgeries

LABELS = ["hsmd-audit-1", "hsmd-credential", "hsmd-root-1", "hsmd-sealing"]


def _make_all(token: Token, *, extractable: bool = True) -> bytes:
    token.make_root_key("hsmd-root-1", extractable=extractable)
    token.make_hmac_key("hsmd-sealing", extractable=extractable)
    token.make_hmac_key("hsmd-credential", extractable=extractable)
    return token.make_signing_key("hsmd-audit-1", extractable=extractable)


@pytest.fixture
def first(tmp_path: Path) -> DevToken:
    return make_token(tmp_path / "a")


@pytest.fixture
def token(first: DevToken) -> Iterator[Token]:
    with connected(first) as made:
        _make_all(made)
        yield made


@pytest.fixture
def second(tmp_path: Path) -> DevToken:
    return make_token(tmp_path / "b")


def _proofs(token: Token) -> dict[str, str]:
    return {label: token.proof(label) for label in LABELS}


def _held(token: Token) -> dict[str, tuple[bool, bool]]:
    return {each.label: (each.sensitive, each.extractable) for each in token.held() if each.kind}


def test_what_is_held_is_told(token: Token) -> None:
    found = {(each.label, each.kind): each for each in token.held()}
    assert [label for label, kind in found if kind] == LABELS
    assert found["hsmd-root-1", "aes"].uses == ("wrap", "unwrap")
    assert found["hsmd-sealing", "generic-secret"].uses == ("sign", "verify")
    assert found["hsmd-audit-1", "ec"].uses == ("sign",)
    assert all(each.private and each.sensitive and each.born for each in found.values() if each.kind)
    assert not any(each.closed for each in found.values())


def test_nothing_is_left_of_an_emptied_token(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsmd.hsm.passage._MOST_OBJECTS", 2)  # more objects than are found at once
    assert token.empty() == 5
    assert token.held() == []


def test_closing_is_for_good(token: Token) -> None:
    before = _proofs(token)
    for label in LABELS:
        assert token.close_key(label) is True
        assert token.close_key(label) is False
    assert _held(token) == dict.fromkeys(LABELS, (True, False))
    assert all(each.closed for each in token.held() if each.kind)
    assert _proofs(token) == before
    for label in LABELS:
        with pytest.raises(Error) as refused:
            token.pack_under([label], secrets.token_bytes(32))
        assert refused.value.fault is FORMAT_INVALID
    with token._desk().call() as desk:
        module, session = desk.connection.module, desk.connection.open_session(write=True)
        key = module.find(session, templates.labelled("hsmd-root-1"), 1)[0]
        with pytest.raises(Exception, match="0x10"):  # CKR_ATTRIBUTE_READ_ONLY
            module.change(session, key, Template({Attribute.EXTRACTABLE: True}))
        session.close()
    assert token.status().state == "connected"
    with pytest.raises(Error) as absent:
        token.close_key("another")
    assert absent.value.fault is UNAVAILABLE


def test_keys_pass_under_a_key_of_known_value(token: Token, second: DevToken) -> None:
    carrier = secrets.token_bytes(32)
    before = _proofs(token)
    blob = token.generate(AES_256, token.find("hsmd-root-1"))
    mac = token.hmac(token.find("hsmd-sealing"), b"row")
    audit = token.public_key_of("hsmd-audit-1")
    passed = token.pack_under(LABELS, carrier)
    assert [each.label for each in passed] == LABELS
    assert all(len(aes_key_unwrap_with_padding(carrier, each.wrapped)) == 32 for each in passed[1:])
    key = token.unwrap(AES_256, blob, token.find("hsmd-root-1"))
    sealed = token.encrypt(key, bytes(12), b"data", b"")
    token.close()
    with connected(second) as other:
        assert other.unpack_under(passed, carrier) == LABELS
        assert other.unpack_under(passed, carrier) == []  # once more is well
        assert _held(other) == dict.fromkeys(LABELS, (True, True))
        assert _proofs(other) == before
        assert other.check_value(other.find("hsmd-root-1")) == before["hsmd-root-1"]
        opened = other.unwrap(AES_256, blob, other.find("hsmd-root-1"))
        assert other.decrypt(opened, bytes(12), sealed, b"") == b"data"
        assert other.hmac(other.find("hsmd-sealing"), b"row") == mac
        assert other.public_key_of("hsmd-audit-1") == audit
        _verify(audit, other.sign_with("hsmd-audit-1", b"message"), b"message")
        for label in LABELS:
            other.close_key(label)
        assert all(each.closed for each in other.held() if each.kind)
    with connected(second) as other:
        assert _proofs(other) == before


def test_keys_pass_from_token_to_token(token: Token, first: DevToken, second: DevToken) -> None:
    before = _proofs(token)
    token.close()
    with connected(second) as other:
        transport = other.make_transport_key("hsmd-transport-1")
        assert other.public_key_of("hsmd-transport-1") == transport
        key = load_der_public_key(transport)
        assert isinstance(key, rsa.RSAPublicKey)
        assert key.key_size == 3072
        (private,) = [each for each in other.held() if each.kind == "rsa"]
        assert (private.sensitive, private.extractable, private.uses) == (True, False, ("unwrap",))
    with connected(first) as again:
        carrier, passed = again.pack(LABELS, transport)
        assert carrier.digest == ("sha256" if OPENCRYPTOKI else "sha1")
        assert len(again.held()) == 5  # four keys and the public half of one: what carried them is gone
    with connected(second) as other:
        with pytest.raises(BadData):
            other.unpack(passed, replace(carrier, wrapped=secrets.token_bytes(384)), "hsmd-transport-1")
        with pytest.raises(Error):
            other.unpack(passed, carrier, "hsmd-transport-2")
        assert [each.label for each in other.held()] == ["hsmd-transport-1"] * 2
        assert other.unpack(passed, carrier, "hsmd-transport-1") == LABELS
        assert _proofs(other) == before
        assert other.destroy_labelled(["hsmd-transport-1"]) == 2
        assert other.destroy_labelled(["hsmd-transport-1"]) == 0
        assert sorted({each.label for each in other.held()}) == LABELS


@no_forgeries
def test_what_was_changed_or_is_anothers_leaves_no_trace(token: Token, second: DevToken) -> None:
    carrier = secrets.token_bytes(32)
    passed = token.pack_under(LABELS, carrier)
    token.close()
    with connected(second) as other:
        for carrying in (secrets.token_bytes(32), carrier[::-1]):
            with pytest.raises(BadData):
                other.unpack_under(passed, carrying)
            assert other.held() == []
        for index in range(len(passed)):
            for wrong in _wrongs(passed[index], passed[index - 1]):
                with pytest.raises((BadData, Error)):
                    other.unpack_under([*passed[:index], wrong, *passed[index + 1 :]], carrier)
                assert other.held() == [], wrong.label
        assert other.status().state == "connected"
        assert other.unpack_under(passed, carrier) == LABELS


def _wrongs(right: Passed, neighbour: Passed) -> Iterator[Passed]:
    changed = bytearray(right.wrapped)
    changed[9] ^= 1
    yield replace(right, wrapped=bytes(changed))
    yield replace(right, wrapped=right.wrapped[:-8])
    yield replace(right, check_value="00" * 8)
    if right.kind == "ec":
        stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
        der = stranger.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        yield replace(right, public_key=der, check_value=hashlib.sha256(der).hexdigest()[:16])
    elif neighbour.kind != "ec":
        yield replace(right, wrapped=neighbour.wrapped)


def test_another_key_of_that_label_is_not_touched(token: Token, second: DevToken) -> None:
    carrier = secrets.token_bytes(32)
    passed = token.pack_under(LABELS, carrier)
    token.close()
    with connected(second) as other:
        other.make_hmac_key("hsmd-sealing")
        before = other.proof("hsmd-sealing")
        with pytest.raises(Error) as refused:
            other.unpack_under(passed, carrier)
        assert refused.value.fault is FORMAT_INVALID
        assert _held(other) == {"hsmd-sealing": (True, False)}
        assert other.proof("hsmd-sealing") == before


def test_what_a_killed_attempt_left_is_completed(token: Token, second: DevToken) -> None:
    carrier = secrets.token_bytes(32)
    passed = token.pack_under(LABELS, carrier)
    token.close()
    with connected(second) as other:
        other.unpack_under(passed, carrier)
        with other._desk().call() as desk:  # as if killed before the pair's public half was there
            session = desk.connection.open_session(write=True)
            for each in desk.connection.module.find(session, templates.labelled_public("hsmd-audit-1"), 4):
                desk.connection.module.destroy(session, each)
            session.close()
        with pytest.raises(Error):
            other.proof("hsmd-audit-1")
        assert other.unpack_under(passed, carrier) == []
        assert other.proof("hsmd-audit-1") == passed[0].check_value


@pytest.mark.parametrize("bad", ["no key", "EC", "RSA-2048"])
def test_only_a_transport_key_carries(token: Token, bad: str) -> None:
    key = {
        "no key": b"0" * 40,
        "EC": _der(ec.generate_private_key(ec.SECP256R1())),
        "RSA-2048": _der(rsa.generate_private_key(65537, 2048)),
    }[bad]
    with pytest.raises(Error) as refused:
        token.pack(LABELS, key)
    assert refused.value.fault is FORMAT_INVALID


def test_labels_are_taken_once(token: Token) -> None:
    for make in (token.make_transport_key, lambda label: token.make_signing_key(label, extractable=True)):
        with pytest.raises(Error) as refused:
            make("hsmd-root-1")
        assert refused.value.fault is FORMAT_INVALID


def test_the_pin_changes_and_logins_go_on(tmp_path: Path) -> None:
    made = make_token(tmp_path)
    new = "87654320" if OPENCRYPTOKI else secrets.token_urlsafe(24)
    with connected(made) as token:
        for old, wanted in ((new, "12345670"), (made.pin, "1")):
            with pytest.raises(TokenRefused):
                token.change_pin(old, wanted)
        token.change_pin(made.pin, new)
        assert token.has_pin(new, instead_of=made.pin)
        assert not token.has_pin(made.pin, instead_of=new)
        assert not token.has_pin("99999999", instead_of=made.pin)
        token.make_hmac_key("hsmd-sealing")
        assert len(token.hmac(token.find("hsmd-sealing"), b"")) == 32
    with pytest.raises(TokenRefused), connected(made):
        pass
    with connected(replace(made, pin=new)) as token:
        assert token.labels() == ["hsmd-sealing"]


# The security officer's side


def _blank(folder: Path, label: str = "hsmd-new") -> tuple[Officer, DevToken, str | None]:
    """The officer of a token that is yet to be; who it is then; and the SO PIN it comes with."""
    folder.mkdir(parents=True)
    if OPENCRYPTOKI:
        uri, conf, current = opencryptoki.uri(opencryptoki.next_slot(), label), folder / "none", "87654321"
        so_pin, pin = secrets.token_hex(4), secrets.token_hex(4)
    else:
        uri = f"pkcs11:token={label}?module-path=/usr/lib/softhsm/libsofthsm2.so"
        conf, current = folder / "softhsm2.conf", None
        (folder / "tokens").mkdir()
        conf.write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
        so_pin, pin = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    made = DevToken(uri, pin, so_pin, conf, folder / "lock")
    officer = Officer(parse_address(uri), lock_file=made.lock, softhsm_conf=conf)
    return officer, made, current


def test_a_blank_token_is_made_ours(tmp_path: Path) -> None:
    officer, made, current = _blank(tmp_path / "new")
    before = officer.look()
    assert (before.initialised, before.has_pin) == (False, False)
    assert before.shortest == 4
    assert before.longest == (8 if OPENCRYPTOKI else 255)
    after = officer.initialise(made.so_pin, made.pin, current)
    assert (after.label, after.initialised, after.has_pin) == ("hsmd-new", True, True)
    assert officer.look() == after
    with connected(made) as token:
        _make_all(token)
        assert token.status().serial == after.serial.strip()
    with pytest.raises(TokenRefused):  # it is in use
        officer.initialise(made.so_pin, made.pin, current)
    with connected(made) as token:
        assert sorted(_held(token)) == LABELS


def test_a_token_that_was_half_made_is_completed_with_the_same_so_pin_only(tmp_path: Path) -> None:
    officer, made, current = _blank(tmp_path / "new")
    with pytest.raises(TokenRefused):  # as if killed between the two: the user PIN is too short
        officer.initialise(made.so_pin, "1", current)
    half = officer.look()
    assert (half.initialised, half.has_pin) == (True, False)
    with pytest.raises(TokenRefused) as refused:
        officer.initialise("1234567", made.pin, None)
    assert refused.value.pin
    assert officer.look() == half
    assert officer.initialise(made.so_pin, made.pin, current).has_pin
    with connected(made):
        pass


def test_what_cant_become_the_token_is_told(tmp_path: Path) -> None:
    officer, made, _ = _blank(tmp_path / "new")
    strange = parse_address(made.uri.replace("pkcs11:", "pkcs11:model=other;"))
    with pytest.raises(TokenRefused, match="no token"):
        Officer(strange, lock_file=made.lock, softhsm_conf=made.conf).look()
    maker = officer.look().manufacturer.replace(" ", "%20")
    nameless = parse_address(made.uri.replace("token=hsmd-new", f"manufacturer={maker}"))
    with pytest.raises(TokenRefused, match="label"):
        Officer(nameless, lock_file=made.lock, softhsm_conf=made.conf).initialise("12345678", "12345678")


def _der(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _verify(public: bytes, signature: bytes, message: bytes) -> None:
    key = load_der_public_key(public)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
