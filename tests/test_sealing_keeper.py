"""The seal beside the registry: what a change of operators makes of it, and what prevents the change."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hsmd import sealfile
from hsmd.domain.sealing import Keeper, Outcome
from hsmd.domain.ukeys import Quorum, set_quorum
from hsmd.errors import SEAL_REFUSED, UNSEAL_FAILED, Error
from hsmd.store import Store, ukeys
from hsmd.store.ukeys import UKey
from tests.seals import Operator, operators

_PINS = {sealfile.HSM: "the-pin"}
_NOW = 1_700_000_000_000


@pytest.fixture
def crew() -> list[Operator]:
    return operators("Ada", "Bruno", "Chen", "Dana")


@pytest.fixture
def filled(store: Store, crew: list[Operator]) -> Store:
    """Three operators, two of them due, and two administrators."""
    with store.write() as tx:
        for number, each in enumerate([*crew[:3], *operators("Alice", "Bob")]):
            role = "operator" if number < 3 else "administrator"
            ukeys.insert_ukey(tx, _row(each, role, number))
        set_quorum(tx, Quorum(2, 2))
    return store


def _row(who: Operator, role: str = "operator", created: int = 9) -> UKey:
    return UKey(
        id=who.id,
        name=who.name,
        role=role,
        serial="",
        fingerprint=who.fingerprint,
        public_key=who.public_key,
        certificate=b"",
        opens=who.holder.box_kind,
        created=created,
        created_by="test",
    )


def _keeper(
    path: Path, announce: Callable[[str, bytes], Outcome] = lambda _id, _pins: Outcome.DONE
) -> Keeper:
    return Keeper(path, _PINS, announce, lambda: Outcome.DONE)


def _core(store: Store) -> Any:
    return SimpleNamespace(store=store, clock=lambda: _NOW)


def _pins(path: Path, *who: Operator) -> dict[str, str]:
    seal = sealfile.read(path)
    return sealfile.unseal(seal, {each.id: each.open(seal) for each in who})


def test_who_comes_gets_a_share_and_who_goes_has_none(
    filled: Store, crew: list[Operator], tmp_path: Path
) -> None:
    path, (ada, bruno, chen, dana) = tmp_path / "seal.json", crew
    keeper = _keeper(path)
    assert keeper.keep(_core(filled))
    assert not keeper.keep(_core(filled))  # as it should be
    before = sealfile.read(path)
    with filled.write() as tx:
        ukeys.insert_ukey(tx, _row(dana))
        keeper.reshare(tx, _NOW)
    assert _pins(path, dana, ada) == _PINS
    with filled.write() as tx:
        (row,) = [each for each in ukeys.registry(tx) if each.id == ada.id]
        ukeys.update_ukey(tx, UKey(**{name: getattr(row, name) for name in UKey.__slots__} | {"revoked": 1}))
        set_quorum(tx, Quorum(2, 3))
        keeper.reshare(tx, _NOW)
    seal = sealfile.read(path)
    assert [each.holder for each in seal.shares] == [bruno.holder, chen.holder, dana.holder]
    assert seal.threshold == 3
    assert _pins(path, bruno, chen, dana) == _PINS
    with pytest.raises(sealfile.SealRefused):
        _pins(path, bruno, chen)
    with pytest.raises(sealfile.SealRefused):  # shares of the old file and the new one don't mix
        sealfile.unseal(seal, {each.id: each.open(before) for each in (ada, bruno, chen)})


def test_a_change_that_fails_is_undone_in_the_seal(
    filled: Store, crew: list[Operator], tmp_path: Path
) -> None:
    """The file is written before the commit: what becomes of neither is put right afterwards."""
    path, dana = tmp_path / "seal.json", crew[3]
    keeper = _keeper(path)
    keeper.keep(_core(filled))

    def change() -> None:
        with filled.write() as tx:
            ukeys.insert_ukey(tx, _row(dana))
            keeper.reshare(tx, _NOW)
            raise KeyError("the audit log is full")

    with pytest.raises(KeyError):
        change()
    assert sealfile.read(path).share_of(dana.id) is not None
    assert not keeper.keep(_core(filled))  # not while the change may still be committed
    assert _keeper(path).keep(_core(filled))  # but after it, as after a crash
    assert sealfile.read(path).share_of(dana.id) is None


def test_no_change_without_its_seal(filled: Store, crew: list[Operator], tmp_path: Path) -> None:
    path = tmp_path / "away" / "seal.json"
    keeper, dana = _keeper(path), crew[3]

    def enrol(row: UKey) -> None:
        with filled.write() as tx:
            ukeys.insert_ukey(tx, row)
            keeper.reshare(tx, _NOW)

    with pytest.raises(Error, match="can't be written") as caught:
        enrol(_row(dana))
    assert caught.value.fault is SEAL_REFUSED
    path.parent.mkdir()
    mute = UKey(**{name: getattr(_row(dana), name) for name in UKey.__slots__} | {"opens": ""})
    with pytest.raises(Error) as caught:  # its token can open no box
        enrol(mute)
    assert caught.value.fault is SEAL_REFUSED
    assert "the-pin" not in str(caught.value)
    with filled.read() as tx:
        assert dana.id not in {each.id for each in ukeys.registry(tx)}
    assert not path.exists()


def test_too_few_operators_for_a_seal(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "seal.json"
    keeper = _keeper(path)
    assert not keeper.keep(_core(store))
    assert not keeper.keep(_core(store))
    assert not path.exists()
    assert [each.message for each in caplog.records].count(caplog.records[0].message) == 1  # told once
    assert "the-pin" not in caplog.text


def test_a_pin_that_changes(filled: Store, crew: list[Operator], tmp_path: Path) -> None:
    path = tmp_path / "seal.json"
    told: list[dict[str, str]] = []

    def announce(_seal_id: str, pins: bytes) -> Outcome:
        told.append(json.loads(pins))
        return Outcome.DONE

    keeper = _keeper(path, announce)
    with filled.read() as tx:
        keeper.prepare(tx, "the-next-pin", _NOW)
    both = {sealfile.HSM: "the-pin", sealfile.HSM + sealfile.NEXT: "the-next-pin"}
    assert _pins(path, *crew[:2]) == both
    assert not keeper.keep(_core(filled))
    assert told == []
    with filled.read() as tx:
        keeper.settle(tx, "the-next-pin", _NOW)
    assert _pins(path, *crew[1:3]) == {sealfile.HSM: "the-next-pin"}
    assert told == [{sealfile.HSM: "the-next-pin"}]
    assert not keeper.keep(_core(filled))


def test_a_pin_that_may_have_changed_stays_in_the_seal(
    filled: Store, crew: list[Operator], tmp_path: Path
) -> None:
    """Until it is known which one counts: whatever else is sealed or begun meanwhile."""
    path, dana = tmp_path / "seal.json", crew[3]
    keeper = _keeper(path)
    both = {sealfile.HSM: "the-pin", sealfile.HSM + sealfile.NEXT: "the-next-pin"}
    with filled.read() as tx:
        assert keeper.prepare(tx, "the-next-pin", _NOW) == "the-next-pin"
        assert keeper.prepare(tx, "another-pin", _NOW) == "the-next-pin"
    with filled.write() as tx:
        ukeys.insert_ukey(tx, _row(dana))
        keeper.reshare(tx, _NOW)
    assert _pins(path, dana, crew[0]) == both
    path.unlink()
    keeper._ahead = 0.0
    assert keeper.keep(_core(filled))
    assert _pins(path, dana, crew[0]) == both
    keeper.abandon()
    assert keeper.keep(_core(filled))
    assert _pins(path, dana, crew[0]) == _PINS


def test_a_supervisor_that_does_not_listen(filled: Store, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "seal.json", _PINS, lambda _id, _pins: Outcome.FAILED, lambda: Outcome.NOT_NOW)
    with filled.read() as tx, pytest.raises(Error) as caught:
        keeper.settle(tx, "the-next-pin", _NOW)
    assert caught.value.fault is UNSEAL_FAILED
    with pytest.raises(Error, match="just now"):
        keeper.shut()
