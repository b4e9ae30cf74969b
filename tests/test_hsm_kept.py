"""Keys that stay in the token, and two tokens of one module in one process."""

import hashlib
import hmac
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute

from hsmd.algorithms import KEY_SPECS, SIGNATURE_ALGORITHMS
from hsmd.errors import UNAVAILABLE, Error
from hsmd.hsm import ObjectGone, Token
from tests.hsm_parts import connected, live, opened
from tests.softhsm import OPENCRYPTOKI, DevToken, make_token
from tests.stand import eventually

AES, RSA, EC, MAC = (KEY_SPECS[name] for name in ("AES_256", "RSA_2048", "EC_P256", "HMAC_384"))


@pytest.fixture
def made(tmp_path: Path) -> DevToken:
    return make_token(tmp_path, "hsmd-kept")


@pytest.fixture
def token(made: DevToken) -> Iterator[Token]:
    with connected(made, apart=True) as one:
        yield one


def test_kept_keys_do_what_others_do(token: Token) -> None:
    iv, message = os.urandom(12), os.urandom(40)
    assert token.make_kept(AES, "aes") is None
    aes = token.find_kept(AES, "aes")
    assert token.decrypt(aes, iv, token.encrypt(aes, iv, message, b"a"), b"a") == message

    assert token.make_kept(MAC, "mac") is None
    first, second = (token.mac(token.find_kept(MAC, "mac"), "sha384", message) for _ in range(2))
    assert first == second
    assert len(first) == 48

    public = load_der_public_key(token.make_kept(EC, "ec") or b"")
    assert isinstance(public, ec.EllipticCurvePublicKey)
    algorithm = SIGNATURE_ALGORITHMS["ECDSA_SHA_256"]
    signature = token.sign(token.find_kept(EC, "ec"), EC, algorithm, message, digest=False)
    public.verify(signature, message, ec.ECDSA(SHA256()))

    rsa_public = load_der_public_key(token.make_kept(RSA, "rsa") or b"")
    assert isinstance(rsa_public, rsa.RSAPublicKey)
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
    blob = rsa_public.encrypt(message, oaep)
    assert token.decrypt_oaep(token.find_kept(RSA, "rsa"), RSA, blob) == message


@pytest.mark.parametrize("row", [AES, RSA, EC, MAC], ids=lambda row: row.name)
def test_kept_keys_stay_inside(token: Token, made: DevToken, row: object) -> None:
    assert row in KEY_SPECS.values()
    row = next(each for each in KEY_SPECS.values() if each == row)
    token.make_kept(row, "a-label")
    key = token.find_kept(row, "a-label")
    with token._call(key) as desk:
        module, session = desk.connection.module, desk.session

        def attribute(name: Attribute) -> bytes:
            return module.read(session, desk.object, name, 64)

        for name, value in {
            Attribute.TOKEN: 1,
            Attribute.PRIVATE: 1,
            Attribute.SENSITIVE: 1,
            Attribute.EXTRACTABLE: 0,
            Attribute.NEVER_EXTRACTABLE: 1,
            Attribute.LOCAL: 1,
        }.items():
            assert attribute(name) == bytes([value]), name
        assert attribute(Attribute.LABEL) == attribute(Attribute.ID) == b"a-label"
    assert token.destroy_kept("a-label") == 1  # of a pair nothing but the private half is kept


def test_destroyed_is_destroyed(token: Token) -> None:
    for label in ("one", "other"):
        token.make_kept(AES, label)
    one = token.find_kept(AES, "one")
    assert token.find_kept(AES, "one") == one
    assert token.destroy_kept("one") == 1
    with pytest.raises(ObjectGone):
        token.encrypt(one, bytes(12), b"x", b"")
    with pytest.raises(Error, match="no key labelled one") as missing:
        token.find_kept(AES, "one")
    assert missing.value.fault is UNAVAILABLE
    assert token.destroy_kept("one") == 0
    assert token.status().state == "connected"
    assert token.encrypt(token.find_kept(AES, "other"), bytes(12), b"x", b"")


def test_an_old_connection_is_not_believed(token: Token) -> None:
    token.make_kept(AES, "other")
    before = live(token)
    before.made -= 60
    with pytest.raises(Error) as missing:
        token.destroy_kept("one")
    assert missing.value.fault is UNAVAILABLE
    eventually(lambda: token.status().state == "connected")
    assert live(token).generation == before.generation + 1
    assert token.destroy_kept("one") == 0


def test_a_lost_key_costs_ever_fewer_connections(token: Token) -> None:
    token.make_kept(AES, "other")
    first = live(token).generation

    def ask(age: float, label: str = "lost") -> int:
        """Ask for the lost key by a connection of that age (s); how many connections there were before."""
        live(token).made = time.monotonic() - age
        with pytest.raises(Error) as missing:
            token.find_kept(AES, label)
        assert missing.value.fault is UNAVAILABLE
        eventually(lambda: token.status().state == "connected")
        assert token.find_kept(AES, "other")
        return live(token).generation - first

    assert [ask(5), ask(11), ask(11), ask(21), ask(21), ask(41)] == [0, 1, 1, 2, 2, 3]
    assert [ask(11, "another"), ask(11, "another"), ask(11)] == [4, 4, 4]
    for _ in range(8):
        ask(700)
    assert [ask(590), ask(610)] == [12, 13]
    token.make_kept(AES, "lost")
    assert token.find_kept(AES, "lost")
    assert token.destroy_kept("lost") == 1
    assert ask(11) == 14  # it was there meanwhile


def test_a_token_that_was_emptied_is_not_believed(token: Token) -> None:
    token.make_kept(AES, "one")
    for label in ("one", "hsmd-keystore"):
        assert token.destroy_kept(label) == 1
    with pytest.raises(Error, match="is it the same"):
        token.destroy_kept("one")


def test_keys_outlive_the_connection(made: DevToken) -> None:
    with connected(made, apart=True) as token:
        token.make_kept(MAC, "mac")
        before = token.mac(token.find_kept(MAC, "mac"), "sha384", b"text")
    with connected(made, apart=True) as token:
        assert hmac.compare_digest(token.mac(token.find_kept(MAC, "mac"), "sha384", b"text"), before)


def test_two_keys_of_one_label_are_refused(token: Token) -> None:
    for _ in range(2):
        token.make_kept(AES, "twice")
    with pytest.raises(Error, match="several keys labelled twice"):
        token.find_kept(AES, "twice")
    assert token.destroy_kept("twice") == 2


@pytest.mark.skipif(OPENCRYPTOKI, reason="its tokens are no folder that could be moved away")
def test_a_token_apart_goes_and_comes_back_alone(tmp_path: Path) -> None:
    main = make_token(tmp_path, "hsmd-main")
    before = set((tmp_path / "tokens").iterdir())
    other = make_token(tmp_path, "hsmd-other")
    (folder,) = set((tmp_path / "tokens").iterdir()) - before
    lost: list[str] = []
    with (
        connected(main, on_lost=lambda: lost.append("main")) as one,
        connected(other, apart=True, lock_file=tmp_path / "other.lock") as two,
    ):
        assert [each.status().label for each in (one, two)] == ["hsmd-main", "hsmd-other"]
        one.make_root_key("root")
        two.make_kept(AES, "kept")
        generation = live(one).generation
        root, data = one.find("root"), os.urandom(16)
        key = one.unwrap(AES, one.generate(AES, root), root)
        wrong: list[BaseException] = []
        ended = threading.Event()

        def work() -> None:
            try:
                while not ended.is_set():
                    one.destroy(one.unwrap(AES, one.generate(AES, one.find("root")), root))
                    assert one.decrypt(key, bytes(12), one.encrypt(key, bytes(12), data, b""), b"") == data
            except BaseException as error:
                wrong.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        for _ in range(2):
            sealed = two.encrypt(two.find_kept(AES, "kept"), bytes(12), data, b"")
            folder.rename(tmp_path / "aside")
            eventually(lambda: not used(two))
            (tmp_path / "aside").rename(folder)
            eventually(lambda: used(two))
            assert two.decrypt(two.find_kept(AES, "kept"), bytes(12), sealed, b"") == data
        ended.set()
        worker.join()
        assert (wrong, lost, live(one).generation) == ([], [], generation)
        assert hashlib.sha256(one.random(16)).digest()


def used(token: Token) -> bool:
    with suppress(Error, ObjectGone):
        token.encrypt(token.find_kept(AES, "kept"), bytes(12), b"x", b"")
        return True
    return False


@pytest.mark.skipif(OPENCRYPTOKI, reason="its tokens are no folder that could be moved away")
def test_dead_objects_that_nobody_used_before(tmp_path: Path) -> None:
    made = make_token(tmp_path)
    (folder,) = (tmp_path / "tokens").iterdir()
    with connected(made, apart=True) as token:
        token.make_kept(EC, "pair")
    with connected(made, apart=True) as token:
        folder.rename(tmp_path / "aside")
        with suppress(Error):
            token.destroy_kept("another")
        (tmp_path / "aside").rename(folder)

        def found() -> bool:
            with suppress(Error, ObjectGone):
                return token.find_kept(EC, "pair") is not None
            return False

        eventually(found)


def test_a_token_apart_is_one_of_many(tmp_path: Path) -> None:
    made = [make_token(tmp_path, f"hsmd-{number}") for number in range(3)]
    tokens = [
        opened(each, apart=True, lock_file=tmp_path / f"{number}.lock") for number, each in enumerate(made)
    ]
    try:
        for number, each in enumerate(tokens):
            each.connect()
            each.make_kept(AES, f"of {number}")
        for number, each in enumerate(tokens):
            assert each.find_kept(AES, f"of {number}")
            with pytest.raises(Error):
                each.find_kept(AES, f"of {(number + 1) % 3}")
            each.close()
            assert all(other.random(8) for other in tokens[number + 1 :])
    finally:
        for each in tokens:
            each.close()
