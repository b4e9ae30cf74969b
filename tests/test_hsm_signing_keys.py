"""The pair that signs for the daemon itself: made once, found by its label, never out of the token."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, ObjectClass

from hsmd.errors import FORMAT_INVALID, UNAVAILABLE, Error
from hsmd.hsm import Token, templates
from tests.hsm_parts import connected, live
from tests.softhsm import DevToken, make_token

LABEL = "hsmd-audit-1"


@pytest.fixture
def made(tmp_path: Path) -> DevToken:
    return make_token(tmp_path)


@pytest.fixture
def token(made: DevToken) -> Iterator[Token]:
    with connected(made) as one:
        yield one


def halves(token: Token, kind: ObjectClass) -> list[int]:
    connection = live(token)
    like = templates.like(kind, label=LABEL)
    return connection.module.find(connection.anchor, like, 9)


def test_it_signs_and_stays(made: DevToken, token: Token) -> None:
    assert not token.has_signing_key(LABEL)
    public = token.make_signing_key(LABEL, extractable=False)
    assert token.has_signing_key(LABEL)
    assert token.public_key_of(LABEL) == public
    key = load_der_public_key(public)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    signature = token.sign_with(LABEL, b"message")
    key.verify(signature, b"message", ec.ECDSA(SHA256()))
    with pytest.raises(InvalidSignature):
        key.verify(signature, b"another", ec.ECDSA(SHA256()))
    connection, (private,) = live(token), halves(token, ObjectClass.PRIVATE_KEY)
    flags = {
        name: connection.module.read(connection.anchor, private, name, 1)
        for name in (Attribute.SENSITIVE, Attribute.EXTRACTABLE, Attribute.SIGN, Attribute.DERIVE)
    }
    assert flags == {
        Attribute.SENSITIVE: b"\1",
        Attribute.EXTRACTABLE: b"\0",
        Attribute.SIGN: b"\1",
        Attribute.DERIVE: b"\0",
    }


def test_another_connection_finds_it(made: DevToken) -> None:
    with connected(made) as one:
        public = one.make_signing_key(LABEL, extractable=False)
    with connected(made) as one:
        assert one.public_key_of(LABEL) == public
        with pytest.raises(Error) as taken:
            one.make_signing_key(LABEL, extractable=False)
        assert taken.value.fault is FORMAT_INVALID


def test_without_one(token: Token) -> None:
    calls: list[Callable[[], bytes]] = [
        lambda: token.sign_with(LABEL, b""),
        lambda: token.public_key_of(LABEL),
    ]
    for call in calls:
        with pytest.raises(Error) as refused:
            call()
        assert refused.value.fault is UNAVAILABLE
        assert LABEL in refused.value.message


@pytest.mark.parametrize("kind", [ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY])
def test_half_a_pair_is_none(token: Token, kind: ObjectClass) -> None:
    """As a process leaves it that dies while it is made."""
    token.make_signing_key(LABEL, extractable=False)
    connection, (half,) = live(token), halves(token, kind)
    session = connection.open_session(write=True)
    connection.module.destroy(session, half)
    session.close()
    assert not token.has_signing_key(LABEL)
    assert token.destroy_labelled([LABEL]) == 1
    public = token.make_signing_key(LABEL, extractable=False)
    assert token.public_key_of(LABEL) == public
    assert len(halves(token, ObjectClass.PRIVATE_KEY)) == len(halves(token, ObjectClass.PUBLIC_KEY)) == 1
