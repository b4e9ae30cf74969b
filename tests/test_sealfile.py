"""The seal file by itself: who opens it, who doesn't, and what becomes of a changed one."""

import itertools
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from hsmd import sealfile, shares, ukey
from hsmd.config import ConfigError
from hsmd.sealfile import Holder, Seal, SealRefused

PINS = {"hsm": "canary-pin-4711", "keystore:vault-1": "canary-pin-4712"}


@cache
def _key(number: int) -> Any:
    """RSA and EC, as UKeys are."""
    if number % 2:
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())


def _holders(count: int) -> list[Holder]:
    found = []
    for number in range(count):
        der = ukey.encoded(_key(number).public_key())
        kind = ukey.box_kinds(der)[-1]
        found.append(Holder(f"{number:032x}", f"operator {number}", der, kind))
    return found


def _opened(seal: Seal, *numbers: int) -> dict[str, bytes]:
    """What these holders take out of their boxes."""
    found = {}
    for number in numbers:
        holder = _holders(number + 1)[number]
        held = seal.share_of(holder.ukey_id)
        assert held is not None
        context = seal.context(holder.ukey_id)
        opener = ukey.SoftOpener(_key(number))
        found[holder.ukey_id] = ukey.open_box(holder.public_key, held.box, context, opener)
    return found


def _made(threshold: int = 2, count: int = 3, pins: Mapping[str, str] = PINS) -> Seal:
    return sealfile.make(pins, _holders(count), threshold, now=1_700_000_000_000)


def test_any_two_of_three_open_it_and_no_one_alone() -> None:
    seal = _made()
    for pair in itertools.combinations(range(3), 2):
        assert sealfile.unseal(seal, _opened(seal, *pair)) == PINS
    assert sealfile.unseal(seal, _opened(seal, 0, 1, 2)) == PINS  # one more does no harm
    for number in range(3):
        with pytest.raises(SealRefused):
            sealfile.unseal(seal, _opened(seal, number))
    with pytest.raises(SealRefused):
        sealfile.unseal(seal, {})


def test_a_wrong_share_is_known_before_it_is_used() -> None:
    seal, other = _made(), _made()
    right, wrong = _opened(seal, 0, 1), _opened(other, 1)
    (first, second) = right
    assert sealfile.is_share(seal, first, right[first])
    assert not sealfile.is_share(seal, first, right[second])
    assert not sealfile.is_share(seal, second, wrong[second])
    assert not sealfile.is_share(seal, "f" * 32, right[first])
    with pytest.raises(SealRefused) as refused:
        sealfile.unseal(seal, right | wrong)
    assert str(refused.value) == "these shares don't open the seal"


def test_what_is_written_is_read_again_and_says_nothing(tmp_path: Path) -> None:
    path, seal = tmp_path / "seal.json", _made()
    mask = os.umask(0)
    try:
        sealfile.write(path, seal)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sealfile.read(path) == seal
    assert "canary" not in path.read_text()
    assert len(_made(pins={"hsm": "1"}).sealed) == len(_made(pins={"hsm": "1" * 64}).sealed)
    sealfile.write(path, replace(seal, created=5))
    assert sealfile.read(path).created == 5
    assert [each.name for each in tmp_path.iterdir()] == ["seal.json"]


def test_a_failed_write_leaves_the_file_that_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seal = tmp_path / "seal.json", _made()
    sealfile.write(path, seal)
    before = path.read_text()

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="No space"):
            sealfile.write(path, _made())
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["seal.json"]


_CHANGES: dict[str, Any] = {
    "id": "0" * 32,
    "purpose": "so-pin",
    "created": 1,
    "threshold": 3,
    "pins": ["hsm"],
    "iv": "AAAAAAAAAAAAAAAA",
}


@pytest.mark.parametrize("member", [*_CHANGES, "name", "public_key", "box_kind", "box", "digest"])
def test_a_changed_file_opens_to_nobody(member: str) -> None:
    seal = _made(threshold=2, count=3)
    given = _opened(seal, 0, 1, 2)
    document = json.loads(sealfile.encode(seal))
    if member in _CHANGES:
        document[member] = _CHANGES[member]
    else:
        shares_there = document["shares"]
        shares_there[0][member] = shares_there[1][member]
    changed = sealfile.decode(json.dumps(document), "test")
    with pytest.raises(SealRefused):
        sealfile.unseal(changed, given)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        "[" * 5000,
        '{"format": "hsmd-seal-2"}',
        '{"format": "hsmd-seal-1"}',
        "\ufffd",
    ],
)
def test_what_is_no_seal_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "seal.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no seal file") as refused:
        sealfile.read(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("extra", 1),
        ("id", "x"),
        ("id", 5),
        ("threshold", 1),
        ("threshold", 4),
        ("threshold", True),
        ("threshold", "2"),
        ("created", -1),
        ("pins", []),
        ("pins", ["x" * 257]),
        ("pins", [5]),
        ("shares", []),
        ("shares", [5]),
        ("shares", "x"),
        ("iv", "AAAA"),
        ("iv", "!"),
        ("sealed", 7),
        ("sealed", "A" * 100_000),
    ],
)
def test_a_malformed_member_is_refused(member: str, value: object) -> None:
    document = json.loads(sealfile.encode(_made())) | {member: value}
    with pytest.raises(ConfigError, match="no seal file"):
        sealfile.decode(json.dumps(document), "test")


def test_a_share_twice_is_refused() -> None:
    document = json.loads(sealfile.encode(_made()))
    document["shares"][1]["index"] = document["shares"][0]["index"]
    with pytest.raises(ConfigError, match="twice"):
        sealfile.decode(json.dumps(document), "test")


def test_a_file_that_is_away_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        sealfile.read(tmp_path / "none")
    large = tmp_path / "large"
    large.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="larger"):
        sealfile.read(large)


@pytest.mark.parametrize(
    ("threshold", "count"), [(1, 3), (0, 3), (4, 3), (2, 65), (-1, 3)], ids=lambda value: str(value)
)
def test_one_alone_and_more_than_all_are_no_quorum(threshold: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least are due"):
        _made(threshold, count)


@pytest.mark.parametrize("pins", [{}, {"hsm": ""}, {"": "x"}, {"hsm": "x" * 1025}, {"n" * 257: "x"}])
def test_pins_that_cant_be_kept_are_refused(pins: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="PINs"):
        _made(pins=pins)


def test_nothing_is_made_that_no_reader_takes() -> None:
    """Else the HSM would stay shut to everybody."""
    many = {f"keystore:{number}": "x" * 1000 for number in range(40)}
    with pytest.raises(ValueError, match="malformed"):
        _made(pins=many)


def test_nobody_holds_two_shares() -> None:
    one, other = _holders(2)
    for twice in (replace(other, ukey_id=one.ukey_id), replace(other, public_key=one.public_key)):
        with pytest.raises(ValueError, match="twice"):
            sealfile.make(PINS, [one, twice], 2, now=0)


@given(
    secret=st.binary(min_size=32, max_size=32),
    threshold=st.integers(2, 5),
    extra=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
def test_shares_give_the_secret_back(secret: bytes, threshold: int, extra: int, order: Any) -> None:
    parts = shares.split(secret, threshold, threshold + extra)
    chosen = dict(order.sample(sorted(parts.items()), threshold))
    assert shares.combine(chosen, threshold) == secret
    assert secret not in parts.values() or threshold == 1
    with pytest.raises(ValueError, match="shares are due"):
        shares.combine(dict(list(chosen.items())[:-1]), threshold)


@pytest.mark.parametrize("bad", [{1: b"x" * 31, 2: b"x" * 32}, {0: b"x" * 32, 2: b"x" * 32}])
def test_what_is_no_share_is_refused(bad: dict[int, bytes]) -> None:
    with pytest.raises(ValueError, match="can't be a share"):
        shares.combine(bad, 2)
