"""Failures in a row make pauses that grow, for whom they are counted and for nobody else."""

import threading

import argon2
import pytest

from hsmd.domain import passwords
from hsmd.domain.throttle import Limit, Recent, Throttle, key, network
from hsmd.errors import RATE_EXCEEDED, Error

USER = Limit(key("user", "a"), 5)
SOURCE = Limit(key("source", "a"), 50)


def _paused(throttle: Throttle, limit: Limit, now: float) -> bool:
    try:
        throttle.admit((limit,), now)
    except Error as error:
        return error.fault is RATE_EXCEEDED
    return False


def _fail(throttle: Throttle, times: int, now: float, limit: Limit = USER) -> None:
    for _ in range(times):
        throttle.failed((limit,), now)


def test_the_fifth_failure_in_a_row_makes_a_pause() -> None:
    throttle = Throttle()
    _fail(throttle, 4, 100)
    assert not _paused(throttle, USER, 100)
    _fail(throttle, 1, 200)
    assert _paused(throttle, USER, 200)
    assert _paused(throttle, USER, 200.9)
    assert not _paused(throttle, USER, 201)


def test_pauses_double_to_five_minutes() -> None:
    throttle, now = Throttle(), 0.0
    _fail(throttle, 4, now)
    for pause in (1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, *[300] * 100):
        _fail(throttle, 1, now)
        assert _paused(throttle, USER, now + pause - 0.1)
        now += pause
        assert not _paused(throttle, USER, now)


def test_the_text_tells_how_long() -> None:
    throttle = Throttle()
    _fail(throttle, 7, 0)
    with pytest.raises(Error, match="the next one in 3 s") as caught:
        throttle.admit((SOURCE, USER), 1.5)
    assert caught.value.fault.http == 429


def test_refused_attempts_do_not_count() -> None:
    throttle = Throttle()
    _fail(throttle, 5, 0)
    for _ in range(100):
        assert _paused(throttle, USER, 0.5)
    assert not _paused(throttle, USER, 1)


def test_success_begins_anew() -> None:
    throttle = Throttle()
    _fail(throttle, 4, 0)
    throttle.succeeded(USER, 0)
    assert len(throttle) == 0
    _fail(throttle, 4, 0)
    assert not _paused(throttle, USER, 0)


def test_what_was_good_lately_is_known() -> None:
    throttle = Throttle(capacity=3)
    assert not throttle.is_good(USER.key, 0)
    throttle.succeeded(USER, 0)
    throttle.succeeded(USER, 100)  # too soon to count anew
    assert throttle.is_good(USER.key, 899)
    assert not throttle.is_good(USER.key, 901)
    throttle.succeeded(USER, 1000)
    throttle.succeeded(USER, 1500)
    assert throttle.is_good(USER.key, 2399)
    for number in range(3):
        throttle.succeeded(Limit(key(str(number)), 5), 1600)
    assert not throttle.is_good(USER.key, 1600)


def test_nothing_holds_up_what_was_good_a_moment_ago() -> None:
    """Then neither admitting it nor its success would change anything."""
    throttle = Throttle()
    assert not throttle.is_clear(USER.key, 0)
    throttle.succeeded(USER, 0)
    assert throttle.is_clear(USER.key, 449)
    assert not throttle.is_clear(USER.key, 451)  # to be noted again, before it is forgotten
    throttle.failed([USER], 10)
    assert not throttle.is_clear(USER.key, 11)
    throttle.succeeded(USER, 12)
    assert throttle.is_clear(USER.key, 13)


@pytest.mark.parametrize(("later", "paused"), [(899, True), (901, False)])
def test_failures_count_together_for_15_minutes(later: float, paused: bool) -> None:
    throttle = Throttle()
    _fail(throttle, 1, 0)
    _fail(throttle, 3, 600)
    _fail(throttle, 1, later)
    assert _paused(throttle, USER, later) == paused


def test_the_pause_stays_long_until_15_minutes_are_quiet() -> None:
    throttle = Throttle()
    _fail(throttle, 9, 0)  # 16 s
    _fail(throttle, 1, 890)
    assert _paused(throttle, USER, 890 + 31)
    _fail(throttle, 1, 890 + 901)
    assert not _paused(throttle, USER, 890 + 901)


def test_each_key_has_its_own_limit() -> None:
    throttle = Throttle()
    for _ in range(49):
        throttle.failed((USER, SOURCE), 0)
    assert _paused(throttle, USER, 0)
    assert not _paused(throttle, SOURCE, 0)
    _fail(throttle, 1, 0, SOURCE)
    assert _paused(throttle, SOURCE, 0)
    assert not _paused(throttle, Limit(key("user", "b"), 5), 0)


def test_the_table_is_bounded_and_loses_the_oldest_first() -> None:
    throttle = Throttle(capacity=100)
    _fail(throttle, 5, 0)
    for number in range(99):
        _fail(throttle, 5, 0, Limit(key("user", str(number)), 5))
    _fail(throttle, 1, 0)  # not the oldest any longer
    _fail(throttle, 5, 0, SOURCE)
    assert len(throttle) == 100
    assert _paused(throttle, USER, 0)
    assert not _paused(throttle, Limit(key("user", "0"), 5), 0)


def test_keys_are_not_confused() -> None:
    assert len({key("a", "b"), key("ab"), key("a", "", "b"), key("b", "a"), key("a', 'b")}) == 5


@pytest.mark.parametrize(
    ("source", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("local", "local"),
        ("", ""),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::9", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("no:address", "no:address"),
    ],
)
def test_an_ipv6_host_is_one_source(source: str, counted: str) -> None:
    assert network(source) == counted


def test_recent_things_are_forgotten_soon_and_when_there_are_many() -> None:
    recent = Recent(seconds=3, capacity=10)
    assert not recent.holds("a", 0)
    recent.add("a", 0)
    assert recent.holds("a", 2.9)
    assert not recent.holds("a", 3)
    recent.add("a", 5)
    assert recent.holds("a", 7)
    for number in range(10):
        recent.add(number, 5)
    assert len(recent) == 10
    assert not recent.holds("a", 5)


# Passwords


@pytest.fixture(scope="module")
def stored() -> str:
    return passwords.hash_password("right")


def test_a_hash_says_how_it_was_made(stored: str) -> None:
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=1$")
    assert passwords.is_right(stored, "right")
    assert not passwords.is_right(stored, "wrong")
    assert not passwords.is_right("", "right")


def test_hashes_made_with_four_lanes_are_good_still() -> None:
    older = argon2.PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=4).hash("right")
    assert passwords.is_right(older, "right")
    assert not passwords.is_right(older, "wrong")


def test_few_passwords_are_checked_at_once(stored: str) -> None:
    start = threading.Barrier(16)
    told: list[object] = []

    def check() -> None:
        start.wait()
        try:
            told.append(passwords.is_right(stored, "right"))
        except Error as error:
            told.append(error.fault)

    threads = [threading.Thread(target=check) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(told) == {True, RATE_EXCEEDED}
    assert passwords.is_right(stored, "right")  # each gave its place back
    assert passwords.is_right(stored, "right")


def test_who_changes_passwords_keeps_nobody_from_logging_in(
    stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many changes as may wait, and more: they have one place among them, which is none of a login's."""
    hashing, go_on = threading.Semaphore(0), threading.Event()
    real = passwords._HASHER

    class Slow:
        def hash(self, password: str) -> str:
            hashing.release()
            assert go_on.wait(60)
            return real.hash(password)

        def verify(self, stored: str, password: str) -> bool:
            return real.verify(stored, password)

    monkeypatch.setattr(passwords, "_HASHER", Slow())
    monkeypatch.setattr(passwords, "_PATIENCE_SECONDS", 60.0)
    told: list[object] = []

    def change() -> None:
        try:
            told.append(passwords.hash_password("another")[:9])
        except Error as error:
            told.append(error.fault)

    threads = [threading.Thread(target=change) for _ in range(3 * passwords.CHANGES_AT_ONCE)]
    for thread in threads:
        thread.start()
    assert hashing.acquire(timeout=60)
    assert passwords.is_right(stored, "right")
    go_on.set()
    for thread in threads:
        thread.join()
    assert told.count(RATE_EXCEEDED) <= 2 * passwords.CHANGES_AT_ONCE
    assert told.count("$argon2id") >= passwords.CHANGES_AT_ONCE
    assert passwords.hash_password("another")  # each gave its place back
