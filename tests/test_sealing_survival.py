"""kill -9 of whatever takes part in unsealing a daemon: sealed or unsealed afterwards, never half."""

import os
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hsmd.client import ApiError
from tests.faults import absent_token, frozen_token, gone, supervisor
from tests.seals import Door, SealedStand, health, sealed
from tests.softhsm import needs_folder
from tests.stand import children_of, eventually

_STATE, _SHARE = "KMS.0308", "KMS.0306"
pytestmark = pytest.mark.soak  # it takes minutes

_ONE = {"HSMD__GRPC__WORKERS": "1"}


def _serves(stand: SealedStand) -> bool:
    doors = (stand.dev.grpc, f"127.0.0.1:{stand.admin_port}")
    return all(health(each, stand) == "SERVING" for each in doors)


@contextmanager
def _giving(stand: SealedStand, number: int) -> Iterator[list[str]]:
    """The operator gives its share meanwhile; what it was told, once the block has ended."""
    told: list[str] = []

    def give() -> None:
        with stand.door() as door:
            try:
                told.append(str(door.give(stand.operators[number]).unsealed))
            except ApiError as error:
                told.append(error.code or error.status.name)

    thread = threading.Thread(target=give)
    thread.start()
    yield told
    thread.join(120)
    assert told


def _kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        eventually(lambda pid=pid: gone(pid))


def _works(stand: SealedStand) -> None:
    with stand.client() as client:
        key_id = client.create_key(f"key-{uuid.uuid4().hex}")
        assert client.decrypt(client.encrypt(key_id, b"data")) == b"data"


def test_all_but_the_supervisor_are_killed_after_a_share(tmp_path: Path) -> None:
    with sealed(tmp_path, _ONE) as stand:
        ada, bruno, chen = stand.operators
        with stand.door() as door:
            door.give(ada)
            attempt = door.status().attempt.id
            late = door.prepared(bruno)
        before = children_of(supervisor(stand))
        assert len(before) == 2
        _kill(*before)
        with stand.door() as door:
            status = eventually(lambda: _told(door))
            assert status.sealed
            assert not status.HasField("attempt")  # what was given is gone with who had it
            with pytest.raises(ApiError, match=_SHARE):
                door.sealing.GiveShare(late)
            assert not door.give(bruno).unsealed
            assert door.status().attempt.id != attempt
            assert door.give(chen).unsealed
        eventually(lambda: _serves(stand))
        _works(stand)


def _told(door: Door, *, sealed: bool = True) -> Any:
    """The status as soon as somebody tells that it is sealed or not, as is asked for."""
    try:
        found = door.status()
    except ApiError:
        return None
    return found if found.sealed is sealed else None


def test_the_supervisor_is_killed_after_a_share(tmp_path: Path) -> None:
    with sealed(tmp_path, _ONE) as stand:
        with stand.door() as door:
            door.give(stand.operators[0])
        family = [supervisor(stand), *children_of(supervisor(stand))]
        before = stand.seal_file.read_bytes()
        os.kill(family[0], signal.SIGKILL)
        for pid in family:
            eventually(lambda pid=pid: gone(pid))
        stand.stop()
        assert stand.seal_file.read_bytes() == before
        stand.start(gateway=False)
        with stand.door() as door:
            assert not door.status().HasField("attempt")
            assert not door.give(stand.operators[1]).unsealed
        assert stand.health() == "NOT_SERVING"
        stand.unseal([stand.operators[0]])
        eventually(lambda: _serves(stand))
        _works(stand)


@needs_folder
@pytest.mark.parametrize("who", ["check", "warden", "supervisor"])
def test_killed_while_the_pin_is_tried(tmp_path: Path, who: str) -> None:
    """The token hangs, so that the PIN is being tried when it happens."""
    with sealed(tmp_path, _ONE) as stand:
        stand.unseal(stand.operators[:1])
        resident = children_of(supervisor(stand))
        with frozen_token(stand), _giving(stand, 1) as told:
            (check,) = eventually(lambda: set(children_of(supervisor(stand))) - set(resident))
            if who == "check":
                _kill(check)
            elif who == "warden":
                _kill(*resident)  # the worker too: neither has a part in what is tried
            else:
                os.kill(supervisor(stand), signal.SIGKILL)
                for pid in (check, *resident):
                    eventually(lambda pid=pid: gone(pid))
        if who == "check":
            assert told == [_STATE]
            assert stand.health() == "NOT_SERVING"
            stand.unseal()
        elif who == "warden":
            assert told == ["UNAVAILABLE"]  # nobody is left to answer; the PIN was there already
        else:
            assert told[0] in (_STATE, "UNAVAILABLE")
            stand.stop()
            stand.start(gateway=False)
            assert stand.health() == "NOT_SERVING"
            stand.unseal()
        eventually(lambda: _serves(stand))
        _works(stand)


def test_killed_while_unsealed(tmp_path: Path) -> None:
    """Workers and warden come back by themselves; after the supervisor's end it is sealed."""
    with sealed(tmp_path) as stand:
        stand.unseal()
        eventually(lambda: _serves(stand))
        before = set(children_of(supervisor(stand)))
        _kill(*before)
        eventually(lambda: len(set(children_of(supervisor(stand))) - before) == 3 and _serves(stand))
        _works(stand)
        with stand.door() as door:
            assert not door.status().sealed
        family = [supervisor(stand), *children_of(supervisor(stand))]
        os.kill(family[0], signal.SIGKILL)
        for pid in family:
            eventually(lambda pid=pid: gone(pid))
        stand.stop()
        stand.start(gateway=False)
        assert stand.health() == "NOT_SERVING"
        stand.unseal(stand.operators[1:])
        eventually(lambda: _serves(stand))
        _works(stand)


@needs_folder
def test_the_token_comes_when_it_is_unsealed(tmp_path: Path) -> None:
    """Unsealed without the token: a wrong PIN is noticed when that comes, and seals again."""
    stand = SealedStand(tmp_path, _ONE)
    try:
        stand.seal_with({"hsm": "not-the-pin"})
        stand.start(gateway=False)
        with absent_token(stand):
            stand.unseal()
            with stand.door() as door:
                status = eventually(lambda: _told(door, sealed=False))
                assert status.pin_source == "seal"
        with stand.door() as door:
            status = eventually(lambda: _told(door))
            assert "refuses the PIN" in status.last_failure
            with pytest.raises(ApiError, match="refuses the PIN"):
                door.begin(stand.operators[0])
        assert stand.log().count("away: the token refuses the PIN") == 1
        stand.seal_with({"hsm": stand.pin})
        stand.unseal()
        eventually(lambda: _serves(stand))
        _works(stand)
    finally:
        stand.stop()
