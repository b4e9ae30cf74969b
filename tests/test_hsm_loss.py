"""The token loses sessions, login and objects under our hands: what callers see, and that it comes back.

Sessions and login are taken away past the Token, by the same module in the same process, as PKCS#11 lets
any part of a process do. The token itself is taken away by moving SoftHSM2's folder.
"""

import ctypes
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from pkcs11 import Attribute

from hsmd.algorithms import AES_256
from hsmd.errors import UNAVAILABLE, Error
from hsmd.hsm import Handle, ObjectGone, Token
from tests.hsm_parts import PROMPTLY, connected, live
from tests.softhsm import MODULE, make_token, needs_folder
from tests.stand import eventually

_MODULE = ctypes.CDLL(str(MODULE))  # the copy that is loaded already


def close_all_sessions(token: Token) -> None:
    assert _MODULE.C_CloseAllSessions(ctypes.c_ulong(live(token).token.slot.slot_id)) == 0


def close_session_of_this_thread(token: Token) -> None:
    token.alive()
    assert _MODULE.C_CloseSession(ctypes.c_ulong(token._desk().session.handle)) == 0  # type: ignore[attr-defined]  # of the C library


def close_anchor(token: Token) -> None:
    assert _MODULE.C_CloseSession(ctypes.c_ulong(live(token).anchor.handle)) == 0  # type: ignore[attr-defined]  # of the C library


def log_out(token: Token) -> None:
    session = live(token).open_session()
    assert _MODULE.C_Logout(ctypes.c_ulong(session.handle)) == 0  # type: ignore[attr-defined]  # of the C library


def finalize(token: Token) -> None:
    assert _MODULE.C_Finalize(None) == 0


def destroy_every_session_object(token: Token) -> None:
    with token._desk().call() as desk:
        for each in list(desk.session.get_objects({Attribute.TOKEN: False})):
            each.destroy()


class Watcher:
    """Counts what the Token tells."""

    def __init__(self) -> None:
        self.lost = 0

    def on_lost(self) -> None:
        self.lost += 1


def decrypt_for_ever(token: Token, key: Handle, sealed: bytes) -> NoReturn:
    while True:
        assert token.decrypt(key, bytes(12), sealed, b"") == b"data"


@pytest.mark.parametrize(
    "take",
    [
        close_all_sessions,
        close_session_of_this_thread,
        close_anchor,
        log_out,
        finalize,
        destroy_every_session_object,
    ],
)
def test_one_repeat_after_reconnecting_is_enough(tmp_path: Path, take: Callable[[Token], None]) -> None:
    watcher = Watcher()
    with connected(make_token(tmp_path), on_lost=watcher.on_lost) as token:
        token.make_root_key("root")
        root = token.find("root")
        blob = token.generate(AES_256, root)
        key = token.unwrap(AES_256, blob, root)
        sealed = token.encrypt(key, bytes(12), b"data", b"")
        generation = key.generation
        take(token)
        # At the latest the keeper's ping finds it out; till then a call may do without what is lost.
        with pytest.raises((Error, ObjectGone)):
            decrypt_for_ever(token, key, sealed)
        eventually(lambda: token.status().state == "connected" and live(token).generation > generation)
        for stale in (key, root):
            with pytest.raises(ObjectGone):
                token.encrypt(stale, bytes(12), b"data", b"")
        key = token.unwrap(AES_256, blob, token.find("root"))
        assert token.decrypt(key, bytes(12), sealed, b"") == b"data"
        eventually(lambda: watcher.lost == 1)
        time.sleep(0.5)
        assert watcher.lost == 1
        assert live(token).generation == generation + 1


def test_a_root_key_that_is_deleted_is_gone_and_missed(tmp_path: Path) -> None:
    with connected(make_token(tmp_path)) as token:
        token.make_root_key("root")
        root = token.find("root")
        blob = token.generate(AES_256, root)
        writer = live(token).open_session(write=True)
        next(iter(writer.get_objects({Attribute.LABEL: "root"}))).destroy()
        with pytest.raises(ObjectGone):
            token.unwrap(AES_256, blob, root)
        with pytest.raises(Error) as missing:
            token.find("root")
        assert missing.value.fault is UNAVAILABLE
        eventually(lambda: token.status().state == "connected")  # anew: perhaps that brings it back
        with pytest.raises(Error, match="no keys labelled root"):
            token.find("root")
        assert token.status().state == "connected"


class Gate:
    """Lets one taker in while no user is inside, since SoftHSM2 crashes when a session goes in mid-call."""

    def __init__(self, users: int) -> None:
        self.users = [threading.Lock() for _ in range(users)]

    @contextmanager
    def alone(self) -> Iterator[None]:
        with ExitStack() as stack:
            for user in self.users:
                stack.enter_context(user)
            yield


class Load:
    """Sixteen threads that use keys as the keyring does, checking every result."""

    def __init__(self, token: Token, blobs: list[bytes], gate: Gate) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[object] = []
        self._token = token
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(blobs[number % len(blobs)], gate.users[number]))
            for number in range(16)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        if any(thread.is_alive() for thread in self._threads):
            self.wrong.append("a thread hangs")

    def goes_on(self) -> None:
        before = self.counts["done"]
        eventually(lambda: self.counts["done"] > before + 50)

    def _once(self, blob: bytes, gate: threading.Lock) -> None:
        iv, data = secrets.token_bytes(12), secrets.token_bytes(40)
        with gate:
            key = self._token.unwrap(AES_256, blob, self._token.find("root"))
        with gate:
            sealed = self._token.encrypt(key, iv, data, b"aad")
        with gate:
            if self._token.decrypt(key, iv, sealed, b"aad") != data:
                self.wrong.append("another plaintext")
        with gate:
            self._token.destroy(key)

    def _work(self, blob: bytes, gate: threading.Lock) -> None:
        while not self._stop.is_set():
            try:
                self._once(blob, gate)
                self.counts["done"] += 1
            except ObjectGone:
                self.counts["gone"] += 1
            except Error as error:
                self.counts[error.fault.grpc] += 1
                time.sleep(0.01)
            except BaseException as error:
                self.wrong.append(error)
                raise


def test_threads_live_through_losses(tmp_path: Path) -> None:
    gate = Gate(17)

    class GatedToken(Token):
        def _ping(self) -> None:
            with gate.users[16]:
                super()._ping()

    with connected(make_token(tmp_path), kind=GatedToken) as token:
        token.make_root_key("root")
        blobs = [token.generate(AES_256, token.find("root")) for _ in range(4)]
        with Load(token, blobs, gate) as load:
            for turn, take in enumerate((close_all_sessions, log_out, close_anchor, close_all_sessions)):
                load.goes_on()
                assert live(token).generation == turn + 1
                with gate.alone():
                    take(token)
                eventually(lambda turn=turn: token._link._generation > turn + 1)
            load.goes_on()
        assert not load.wrong
        assert set(load.counts) <= {"done", "gone", "UNAVAILABLE"}
        token.alive()


@needs_folder
def test_the_token_is_taken_away_and_put_back(tmp_path: Path) -> None:
    with connected(make_token(tmp_path)) as token:
        token.make_root_key("root")
        blob = token.generate(AES_256, token.find("root"))
        folder = next((tmp_path / "tokens").iterdir())
        folder.rename(tmp_path / "away")
        close_all_sessions(token)
        eventually(lambda: token.status().state == "away" and "absent" in token.status().detail)
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(Error) as away:
                token.random(8)
            assert away.value.fault is UNAVAILABLE
        assert time.monotonic() - began < PROMPTLY
        (tmp_path / "away").rename(folder)
        back = time.monotonic()
        eventually(lambda: token.status().state == "connected")
        assert time.monotonic() - back < PROMPTLY
        assert token.status().detail == ""
        key = token.unwrap(AES_256, blob, token.find("root"))
        assert len(token.encrypt(key, bytes(12), b"data", b"")) == 20


@needs_folder
def test_a_key_first_looked_for_while_the_token_is_away(tmp_path: Path) -> None:
    made = make_token(tmp_path)
    with connected(made) as token:
        token.make_root_key("root")
    with connected(made) as token:
        folder = next((tmp_path / "tokens").iterdir())
        folder.rename(tmp_path / "away")
        with pytest.raises(Error) as away:
            token.find("root")
        assert away.value.fault is UNAVAILABLE
        (tmp_path / "away").rename(folder)
        eventually(lambda: token.status().state == "connected")
        token.generate(AES_256, token.find("root"))


@needs_folder
def test_another_token_in_its_place_is_not_taken_for_it(tmp_path: Path) -> None:
    with connected(make_token(tmp_path)) as token:
        token.make_root_key("root")
        serial = token.status().serial
        (tmp_path / "tokens").rename(tmp_path / "away")
        close_all_sessions(token)
        make_token(tmp_path)
        eventually(lambda: "another token" in token.status().detail)
        assert token.status().serial == serial
        (tmp_path / "tokens").rename(tmp_path / "other")
        (tmp_path / "away").rename(tmp_path / "tokens")
        eventually(lambda: token.status().state == "connected")
        assert token.labels() == ["root"]
