"""What the token does, on a real token, checked against independent implementations."""

import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from pkcs11 import Attribute, Mechanism, exceptions

from hsmd.algorithms import ACCESS_KEY, AES_256
from hsmd.errors import DEADLINE, FORMAT_INVALID, UNAVAILABLE, Error
from hsmd.hsm import BadData, Handle, ObjectGone, Token, TokenRefused, operations, templates
from tests.hsm_parts import connected, live
from tests.softhsm import MODEL, OPENCRYPTOKI, make_token, no_forgeries
from tests.stand import eventually

if TYPE_CHECKING:
    from hsmd.hsm.desk import Desk


@pytest.fixture
def token(tmp_path: Path) -> Iterator[Token]:
    with connected(make_token(tmp_path)) as made:
        made.make_root_key("root")
        yield made


def known_root(token: Token, value: bytes) -> Handle:
    """A root key of known value, so that blobs can be made and read from outside."""
    with token._desk().call() as desk:
        made = desk.connection.module.create(desk.session, templates.trial("aes", value))
        return desk.connection.handles.admit(made)


def attribute(token: Token, key: Handle, name: Attribute) -> bytes:
    with token._call(key) as desk:
        return desk.connection.module.read(desk.session, desk.object, name, 64)


def test_finds_out_what_the_token_can_do(token: Token) -> None:
    available = {each.name: each.available for each in token.capabilities}
    for name in ("random", "aes-256-generate", "aes-key-wrap-kwp", "aes-256-gcm", "hmac-sha-256"):
        assert available[name], name
    by_name = {each.name: each.detail for each in token.capabilities}
    number = "0x210B" if OPENCRYPTOKI else "0x210A"  # by which SoftHSM2 2.6.1 knows RFC 5649
    assert number in by_name["aes-key-wrap-kwp"]


def test_tells_its_state(token: Token) -> None:
    status = token.status()
    assert (status.label, status.model, status.state) == ("hsmd-test", MODEL, "connected")
    assert len(status.serial) == (0 if OPENCRYPTOKI else 16)
    assert status.since.tzinfo is not None
    token.alive()


def test_root_keys_wrap_and_do_nothing_else(token: Token) -> None:
    root = token.find("root")
    for name, value in {
        Attribute.SENSITIVE: 1,
        Attribute.EXTRACTABLE: 0,
        Attribute.NEVER_EXTRACTABLE: 1,
        Attribute.TOKEN: 1,
        Attribute.PRIVATE: 1,
        Attribute.WRAP: 1,
        Attribute.UNWRAP: 1,
        Attribute.ENCRYPT: 0,
        Attribute.DECRYPT: 0,
        Attribute.SIGN: 0,
        Attribute.VERIFY: 0,
        Attribute.DERIVE: 0,
    }.items():
        assert attribute(token, root, name) == bytes([value]), name.name
    with pytest.raises(Error):
        token.encrypt(root, bytes(12), b"data", b"")
    token.alive()
    assert token.status().state == "connected"


def test_token_objects_have_one_label_each(token: Token) -> None:
    token.make_hmac_key("seal")
    assert token.labels() == ["root", "seal"]
    for make in (token.make_root_key, token.make_hmac_key):
        with pytest.raises(Error) as refused:
            make("root")
        assert refused.value.fault is FORMAT_INVALID
    assert token.labels() == ["root", "seal"]
    with pytest.raises(Error) as absent:
        token.find("another")
    assert absent.value.fault is UNAVAILABLE
    assert token.status().state == "connected"
    assert len(token.hmac(token.find("seal"), b"")) == 32


def test_token_objects_outlive_the_connection(tmp_path: Path) -> None:
    made = make_token(tmp_path)
    with connected(made) as token:
        token.make_root_key("root")
        token.make_hmac_key("seal")
        check_value = token.check_value(token.find("root"))
        blob = token.generate(AES_256, token.find("root"))
        key = token.unwrap(AES_256, blob, token.find("root"))
        mac = token.hmac(token.find("seal"), b"row")
        sealed = token.encrypt(key, bytes(12), b"data", b"aad")
    with connected(made) as token:
        assert token.labels() == ["root", "seal"]
        assert token.check_value(token.find("root")) == check_value
        key = token.unwrap(AES_256, blob, token.find("root"))
        assert token.decrypt(key, bytes(12), sealed, b"aad") == b"data"
        assert token.hmac(token.find("seal"), b"row") == mac


def test_check_values_tell_keys_apart(token: Token) -> None:
    token.make_root_key("second")
    first, second = (token.check_value(token.find(label)) for label in ("root", "second"))
    assert len(first) == len(second) == 16
    assert first != second
    assert first == token.check_value(token.find("root"))


def test_a_generated_key_never_leaves_but_wrapped(token: Token) -> None:
    value = secrets.token_bytes(32)
    root = known_root(token, value)
    first, second = (token.generate(AES_256, root) for _ in range(2))
    assert len(first) == len(second) == 40
    assert first != second
    key = token.unwrap(AES_256, first, root)
    for name, expected in {
        Attribute.SENSITIVE: 1,
        Attribute.EXTRACTABLE: 0,
        Attribute.TOKEN: 0,
        Attribute.WRAP: 0,
        Attribute.UNWRAP: 0,
        Attribute.SIGN: 0,
    }.items():
        assert attribute(token, key, name) == bytes([expected]), name.name
    objects = live(token).handles.objects
    with token._call(root) as desk, pytest.raises(exceptions.KeyUnextractable):
        operations.wrap(desk.session, Mechanism.AES_KEY_WRAP_PAD, desk.object, objects[key.value])
    with token._call(key) as desk, pytest.raises(exceptions.AttributeSensitive):
        desk.connection.module.read(desk.session, desk.object, Attribute.VALUE, 64)


def test_generating_leaves_nothing_behind(token: Token) -> None:
    root = token.find("root")

    def count() -> int:
        with token._desk().call() as desk:
            return len(list(desk.session.get_objects()))

    before = count()
    for _ in range(5):
        token.generate(AES_256, root)
        token.wrap_value(ACCESS_KEY, secrets.token_bytes(40), root)
    token.destroy(token.unwrap(AES_256, token.generate(AES_256, root), root))
    assert count() == before


def test_gcm_is_gcm(token: Token) -> None:
    kek, value = secrets.token_bytes(32), secrets.token_bytes(32)
    key = token.unwrap(AES_256, aes_key_wrap_with_padding(kek, value), known_root(token, kek))
    other = AESGCM(value)
    for size in (0, 1, 15, 16, 17, 4096, 100_000):
        iv, data, aad = secrets.token_bytes(12), secrets.token_bytes(size), secrets.token_bytes(size % 33)
        sealed = token.encrypt(key, iv, data, aad)
        assert sealed == other.encrypt(iv, data, aad)
        assert token.decrypt(key, iv, sealed, aad) == data


def test_hmac_is_hmac_with_an_imported_key(token: Token) -> None:
    secret = secrets.token_urlsafe(30).encode()
    root = token.find("root")
    key = token.unwrap(ACCESS_KEY, token.wrap_value(ACCESS_KEY, secret, root), root)
    for size in (0, 1, 64, 10_000):
        data = secrets.token_bytes(size)
        assert token.hmac(key, data) == hmac.digest(secret, data, hashlib.sha256)
    with pytest.raises(ValueError, match="320 bits"):
        token.wrap_value(ACCESS_KEY, secret[1:], root)


def test_random_has_its_length_and_changes(token: Token) -> None:
    assert [len(token.random(size)) for size in (0, 1, 32, 1024)] == [0, 1, 32, 1024]
    assert token.random(32) != token.random(32)


def test_changed_ciphertexts_are_the_callers_fault(token: Token) -> None:
    root = token.find("root")
    key, other = (token.unwrap(AES_256, token.generate(AES_256, root), root) for _ in range(2))
    iv = bytes(12)
    sealed = token.encrypt(key, iv, b"thirty-two bytes of a user's data", b"aad")
    flipped = [
        sealed[:at] + bytes([sealed[at] ^ 1 << at % 8]) + sealed[at + 1 :] for at in range(len(sealed))
    ]
    for blob in [*flipped, b"", sealed[:15], sealed[:16], sealed[:-1], sealed + b"\0"]:
        with pytest.raises(BadData):
            token.decrypt(key, iv, blob, b"aad")
    for args in (
        (other, iv, sealed, b"aad"),
        (key, b"another one!", sealed, b"aad"),
        (key, iv, sealed, b""),
    ):
        with pytest.raises(BadData):
            token.decrypt(*args)
    assert token.decrypt(key, iv, sealed, b"aad") == b"thirty-two bytes of a user's data"
    assert token.status().state == "connected"


@no_forgeries
def test_changed_wrapped_keys_are_refused(token: Token) -> None:
    root = token.find("root")
    token.make_root_key("other")
    blob = token.generate(AES_256, root)
    for bad in [
        *(blob[:at] + bytes([blob[at] ^ 0x80]) + blob[at + 1 :] for at in range(len(blob))),
        b"",
        blob[:-8],
        blob[:-1],
        blob + bytes(8),
    ]:
        with pytest.raises(BadData):
            token.unwrap(AES_256, bad, root)
    with pytest.raises(BadData):
        token.unwrap(AES_256, blob, token.find("other"))
    token.destroy(token.unwrap(AES_256, blob, root))
    assert token.status().state == "connected"


def test_destroyed_keys_are_gone_and_the_token_is_not(token: Token) -> None:
    root = token.find("root")
    blob = token.generate(AES_256, root)
    key, kept = token.unwrap(AES_256, blob, root), token.unwrap(AES_256, blob, root)
    sealed = token.encrypt(kept, bytes(12), b"data", b"")
    token.destroy(key)
    token.destroy(key)
    with pytest.raises(ObjectGone):
        token.encrypt(key, bytes(12), b"data", b"")
    with pytest.raises(ObjectGone):
        token.decrypt(key, bytes(12), sealed, b"")
    with pytest.raises(ObjectGone):
        token.hmac(key, b"data")
    with pytest.raises(ObjectGone):
        token.unwrap(AES_256, blob, key)
    assert token.decrypt(kept, bytes(12), sealed, b"") == b"data"
    assert token.status().state == "connected"


def test_a_key_in_use_is_not_destroyed_under_the_user(token: Token) -> None:
    """SoftHSM2 answers with faults of all kinds if it is; a destroyed number never names another key."""
    root = token.find("root")
    blob = token.generate(AES_256, root)
    keys = [token.unwrap(AES_256, blob, root)]
    expected = token.encrypt(keys[0], bytes(12), b"data", b"")
    stop = threading.Event()

    def use() -> int:
        done = 0
        while not stop.is_set():
            with suppress(ObjectGone):
                assert token.encrypt(keys[-1], bytes(12), b"data", b"") == expected
                done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        users = [pool.submit(use) for _ in range(4)]
        for _ in range(1500):
            keys.append(token.unwrap(AES_256, blob, root))
            token.destroy(keys[-2])
        stop.set()
    assert all(user.result() for user in users)
    assert len(set(keys)) == 1501
    assert token.status().state == "connected"
    eventually(lambda: not live(token).handles.withdrawn)
    with pytest.raises(ValueError, match="persists"):
        token.destroy(root)


def test_a_handle_of_another_connection_is_gone(token: Token) -> None:
    root = token.find("root")
    with pytest.raises(ObjectGone):
        token.generate(AES_256, Handle(root.generation - 1, root.value))
    token.destroy(Handle(root.generation - 1, root.value))
    assert len(token.generate(AES_256, root)) == 40


def test_calls_end_within_the_callers_time(token: Token) -> None:
    with token.within(-1), pytest.raises(Error) as late:
        token.random(8)
    assert late.value.fault is DEADLINE
    with token.within(60):
        assert len(token.random(8)) == 8
        with token.within(-1), pytest.raises(Error):
            token.random(8)
        with token.within(120):
            assert len(token.random(8)) == 8
    assert len(token.random(8)) == 8
    assert token.status().state == "connected"


def test_an_answer_after_the_callers_time_is_dropped(token: Token) -> None:
    with token.within(60), pytest.raises(Error) as late, token._desk().call() as desk:
        desk.until = 0.0  # the time passes inside the module
    assert late.value.fault is DEADLINE
    assert token.status().state == "connected"


def test_a_key_loaded_too_late_is_not_left_behind(token: Token) -> None:
    root = token.find("root")
    blob = token.generate(AES_256, root)
    before = dict(live(token).handles.objects)
    begun = threading.Event()
    with live(token).anchor_lock, ThreadPoolExecutor(1) as pool:

        def load() -> None:
            with token.within(1):
                begun.set()
                token.unwrap(AES_256, blob, root)

        loading = pool.submit(load)
        assert begun.wait(60)
        time.sleep(1.2)
        live(token).anchor_lock.release()
        with pytest.raises(Error) as late:
            loading.result()
        live(token).anchor_lock.acquire()
    assert late.value.fault is DEADLINE
    assert live(token).handles.objects == before
    eventually(lambda: not live(token).handles.withdrawn)


def test_a_forked_child_is_refused_and_the_parent_goes_on(token: Token) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            token.random(8)
        except TokenRefused as refused:
            os.write(writer, str(refused).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        assert b"forked" in answers.read()
    token.alive()


def test_sessions_of_ended_threads_are_closed(token: Token) -> None:
    seats: list[Desk] = []

    def visit() -> None:
        token.random(8)
        seats.append(token._desk())

    for _ in range(3):
        thread = threading.Thread(target=visit)
        thread.start()
        thread.join()
    eventually(lambda: not any(seat in token._desks for seat in seats))
    eventually(lambda: not any(hasattr(seat, "session") for seat in seats))
    token.alive()


def test_sixteen_threads_get_their_own_results(token: Token) -> None:
    root = token.find("root")
    blobs = [token.generate(AES_256, root) for _ in range(4)]
    keys = [token.unwrap(AES_256, blob, root) for blob in blobs]
    mac_keys = {
        secret: token.unwrap(ACCESS_KEY, token.wrap_value(ACCESS_KEY, secret, root), root)
        for secret in (secrets.token_bytes(40) for _ in range(4))
    }

    def work(number: int) -> int:
        done = 0
        for turn in range(150):
            key, blob = keys[turn % 4], blobs[turn % 4]
            iv, data, aad = secrets.token_bytes(12), secrets.token_bytes(turn), bytes([number])
            sealed = token.encrypt(key, iv, data, aad)
            loaded = token.unwrap(AES_256, blob, root)
            assert token.decrypt(loaded, iv, sealed, aad) == data
            token.destroy(loaded)
            secret, mac_key = list(mac_keys.items())[turn % 4]
            assert token.hmac(mac_key, data) == hmac.digest(secret, data, hashlib.sha256)
            with pytest.raises(BadData):
                token.decrypt(key, iv, sealed, aad + b"x")
            assert len(token.random(16)) == 16
            if turn % 10 == 0:
                assert len(token.generate(AES_256, root)) == 40
            done += 1
        return done

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(16))) == [150] * 16
    assert token.status().state == "connected"
