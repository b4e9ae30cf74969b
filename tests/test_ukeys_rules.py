"""The registry of UKeys and their sessions, on a store of each kind: rules, time, a changed store."""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hsmd import ukey as keys
from hsmd.caller import Caller
from hsmd.config import Limits
from hsmd.domain import throttle, ukeys
from hsmd.domain.core import Call, Channel, Core
from hsmd.domain.ukey_sessions import Challenge, LoggedIn, Sessions, Shelf
from hsmd.domain.ukeys import ADMINISTRATOR, AUDITOR, OPERATOR, Quorum
from hsmd.errors import Error
from hsmd.store import SealBroken, Store, Tx
from hsmd.store import ukeys as rows
from hsmd.store.ukeys import UKey
from hsmd.ukey import Candidate, Purpose
from tests.stores import behind_its_back
from tests.ukeys import SoftUkey

DAY = 24 * 60 * 60 * 1000
HERE, THERE = Channel("ipv4:127.0.0.1:1", "a" * 64), Channel("ipv4:127.0.0.1:2", "a" * 64)
ADMIN, COMMON = "hsmd.v1.Other", "hsmd.v1.Ukeys"


class Clock:
    """Seconds and milliseconds that pass when they are told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def millis(self) -> int:
        return int(self.seconds * 1000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def core(store: Store, clock: Clock) -> Core:
    token = SimpleNamespace(random=os.urandom)
    keyring = SimpleNamespace(moment=0, forget=lambda _: None, clear=lambda: None)
    return Core(store, cast("Any", token), cast("Any", keyring), clock.millis, Limits(), "local-1")


@pytest.fixture
def call(core: Core) -> Call:
    return call_of(core)


def call_of(core: Core, channel: Channel = HERE) -> Call:
    core.refresh()
    made = Call(core, Caller("anonymous", source="127.0.0.1", request_id="0" * 32), lambda: None)
    made.channel = channel
    return made


def candidate(name: str, role: str = ADMINISTRATOR, key: SoftUkey | None = None, **changes: Any) -> Candidate:
    soft = key or SoftUkey()
    made = Candidate(name, role, "0815", soft.public_key, opens="ecdh" if role == OPERATOR else "")
    return replace(made, **changes)


def enrolled(call: Call, *candidates: Candidate) -> list[UKey]:
    with call.change() as tx:
        made = [ukeys.enrol(call, tx, each, "ceremony") for each in candidates]
    call.core.refresh()
    return made


def crew(call: Call) -> list[UKey]:
    """Three administrators, three operators, one auditor; two and two needed."""
    made = enrolled(
        call,
        *(candidate(f"admin-{number}") for number in range(3)),
        *(candidate(f"op-{number}", OPERATOR) for number in range(3)),
        candidate("auditor", AUDITOR),
    )
    with call.change() as tx:
        ukeys.set_quorum(tx, Quorum(2, 2))
    return made


def refused(code: str) -> Any:
    return pytest.raises(Error, match=code)


# The registry


def test_ukeys_are_enrolled_and_revoked_and_never_come_back(call: Call) -> None:
    soft = SoftUkey()
    made = crew(call)
    (late,) = enrolled(call, candidate("late", key=soft))
    with call.change() as tx:
        gone = ukeys.revoke(call, tx, late.id, "two of them")
    call.core.refresh()
    known = ukeys.registry(call.core)
    assert known.by_id[late.id] == gone
    assert gone.revoked == call.core.clock()
    assert gone.revoked_by == "two of them"
    assert {each.id for each in known.living()} == {each.id for each in made}
    assert {each.name for each in known.living(OPERATOR)} == {"op-0", "op-1", "op-2"}
    with call.change() as tx, refused("already, or was"):
        ukeys.enrol(call, tx, candidate("again", key=soft), "x")
    with call.change() as tx, refused("revoked already"):
        ukeys.revoke(call, tx, late.id, "x")
    enrolled(call, candidate("late"))  # another key; the name is free


def test_the_last_that_are_needed_stay(call: Call) -> None:
    made = crew(call)
    with call.change() as tx:
        ukeys.revoke(call, tx, made[0].id, "x")
        for other in made[1:3]:
            with refused("2 administrators are needed"):
                ukeys.revoke(call, tx, other.id, "x")
        ukeys.revoke(call, tx, made[3].id, "x")
        with refused("2 operators are needed"):
            ukeys.revoke(call, tx, made[4].id, "x")
        ukeys.revoke(call, tx, made[6].id, "x")  # auditors decide nothing together
        with refused("there are 2 of them"):
            ukeys.set_quorum(tx, Quorum(3, 2))
        with refused("there are 2 of them"):
            ukeys.set_quorum(tx, Quorum(2, 3))
        enrolled_now = ukeys.enrol(call, tx, candidate("new"), "x")
        ukeys.revoke(call, tx, made[1].id, "x")
        with refused("IAM.0104"):
            ukeys.revoke(call, tx, enrolled_now.id, "x")


@pytest.mark.parametrize("numbers", [(0, 2), (1, 2), (2, 1), (17, 2), (-1, 2), (2, 17)])
def test_a_quorum_is_at_least_two(call: Call, numbers: tuple[int, int]) -> None:
    crew(call)
    with call.change() as tx, refused("2 to 16"):
        ukeys.set_quorum(tx, Quorum(*numbers))
    with call.read() as tx:
        assert ukeys.quorum(tx) == Quorum(2, 2)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "-a"}, "name"),
        ({"role": "root"}, "role"),
        ({"role": ""}, "role"),
        ({"serial": "a b"}, "serial"),
        ({"serial": "x" * 65}, "serial"),
        ({"public_key": b"none"}, "public_key"),
        ({"opens": "rsa-oaep-sha1"}, "opens"),
        ({"role": OPERATOR, "opens": ""}, "opens"),
        ({"certificate": b"none"}, "certificate"),
        ({"certificate": bytes(9000)}, "certificate"),
    ],
)
def test_what_can_be_no_ukey_is_not_enrolled(call: Call, change: dict[str, Any], name: str) -> None:
    with call.change() as tx, refused(f"The parameter {name} is not valid"):
        ukeys.enrol(call, tx, replace(candidate("alice"), **change), "x")
    with call.read() as tx:
        assert rows.registry(tx) == ()


def test_a_name_is_one_living_ukey_s(call: Call) -> None:
    enrolled(call, candidate("alice"))
    with call.change() as tx, refused("IAM.0005"):
        ukeys.enrol(call, tx, candidate("alice"), "x")


def test_there_are_bounds(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ukeys, "MOST_UKEYS", 3)
    enrolled(call, *(candidate(f"a-{number}") for number in range(3)))
    with call.change() as tx, refused("there are 3 UKeys already"):
        ukeys.enrol(call, tx, candidate("one-more"), "x")


def test_the_instance_is_made_once(call: Call, core: Core) -> None:
    assert len(ukeys.instance(core)) == 32
    assert ukeys.instance(core) == ukeys.instance(core)


# A store that somebody changed


def _row(url: str, ukey_id: str) -> tuple[list[str], tuple[Any, ...]]:
    columns = [*UKey.__slots__, "seal"]
    (row,) = behind_its_back(url, f"SELECT {', '.join(columns)} FROM ukeys WHERE id = ?", ukey_id)  # noqa: S608  # names of ours
    return columns, tuple(row)


def _put(url: str, columns: list[str], row: tuple[Any, ...]) -> None:
    places = ", ".join("?" for _ in columns)
    behind_its_back(url, "DELETE FROM ukeys WHERE id = ?", row[0])
    behind_its_back(url, f"INSERT INTO ukeys ({', '.join(columns)}) VALUES ({places})", *row)  # noqa: S608  # the same


def test_an_older_row_put_back_whole_is_noticed(call: Call, store_url: str) -> None:
    made = crew(call)
    before = _row(store_url, made[0].id)
    with call.change() as tx:
        ukeys.revoke(call, tx, made[0].id, "x")
    after = _row(store_url, made[0].id)
    _put(store_url, *before)  # its seal is right: it was so once
    with call.read() as tx, pytest.raises(SealBroken):
        rows.registry(tx)
    with call.change() as tx, pytest.raises(SealBroken):  # nor is it overwritten
        rows.insert_ukey(tx, replace(made[1], id="new", fingerprint="f" * 64))
    _put(store_url, *after)
    with call.read() as tx:
        assert len(rows.registry(tx)) == 7


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM ukeys WHERE name = 'admin-0'",
        "DELETE FROM ukeys",
        "UPDATE ukeys SET role = 'administrator' WHERE name = 'auditor'",
        "UPDATE ukeys SET revoked = 1 WHERE name = 'admin-0'",
        "UPDATE ukeys SET name = 'x' WHERE name = 'admin-0'",
        "DELETE FROM service_settings WHERE name = 'ukeys'",
        'UPDATE service_settings SET document = \'{"number": 9, "digest": ""}\' WHERE name = \'ukeys\'',
    ],
)
def test_a_changed_registry_lets_nobody_in(call: Call, store_url: str, statement: str) -> None:
    crew(call)
    behind_its_back(store_url, statement)
    call.core.cache.evict_all()
    with pytest.raises(SealBroken):
        ukeys.registry(call.core)


def test_an_older_registry_put_back_whole_is_noticed_by_who_saw_the_newer_one(
    call: Call, store_url: str
) -> None:
    made = crew(call)
    row, query = (
        _row(store_url, made[0].id),
        "SELECT document, seal FROM service_settings WHERE name = 'ukeys'",
    )
    (before,) = behind_its_back(store_url, query)
    with call.change() as tx:
        ukeys.revoke(call, tx, made[0].id, "x")
    call.core.refresh()
    assert ukeys.registry(call.core).by_id[made[0].id].revoked
    _put(store_url, *row)
    behind_its_back(
        store_url, "UPDATE service_settings SET document = ?, seal = ? WHERE name = 'ukeys'", *before
    )
    call.core.cache.evict_all()
    with pytest.raises(SealBroken):
        ukeys.registry(call.core)


def test_who_reads_while_another_changes_is_no_alarm(
    call: Call, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before another thread saw the newer one is older, and right."""
    core, number = call.core, rows.serial_number
    enrolled(call, candidate("alice"))

    def overtaken(tx: Tx) -> int:
        monkeypatch.setattr(rows, "serial_number", number)
        enrolled(call, candidate("bob"))
        assert "bob" in {each.name for each in ukeys.registry(core).living()}
        return number(tx)

    core.refresh()
    monkeypatch.setattr(rows, "serial_number", overtaken)
    assert {each.name for each in ukeys.registry(core).living()} == {"alice"}
    assert {each.name for each in ukeys.registry(core).living()} == {"alice", "bob"}


def test_a_swapped_key_is_noticed(call: Call, store_url: str) -> None:
    one, two = enrolled(call, candidate("one"), candidate("two", AUDITOR))
    (columns, row), (_, other) = _row(store_url, one.id), _row(store_url, two.id)
    mixed = tuple(
        theirs if name in ("public_key", "fingerprint") else mine
        for name, mine, theirs in zip(columns, row, other, strict=True)
    )
    behind_its_back(store_url, "DELETE FROM ukeys WHERE id = ?", two.id)
    _put(store_url, columns, mixed)
    call.core.cache.evict_all()
    with pytest.raises(SealBroken):
        ukeys.registry(call.core)


# Possession


def proven(call: Call, soft: SoftUkey, **changes: Any) -> Candidate:
    begun = ukeys.begin_enrolment(call, soft.public_key, soft.opens())
    context = keys.possession_context(begun.instance, begun.nonce)
    made = candidate(
        "alice",
        OPERATOR,
        soft,
        opens=soft.opens(),
        nonce=begun.nonce,
        opened=keys.open_box(soft.public_key, begun.box, context, soft),
    )
    made = replace(made, **changes)
    return replace(made, signature=soft.sign(made.statement(begun.instance)))


def test_who_has_the_key_can_show_it(call: Call, clock: Clock) -> None:
    soft = SoftUkey()
    made = proven(call, soft)
    ukeys.check_possession(call, made)
    clock.seconds += 24 * 3600
    ukeys.check_possession(call, made)
    clock.seconds += 1
    with refused("more than a day"):
        ukeys.check_possession(call, made)


def test_who_has_not_can_not(call: Call) -> None:
    soft, other = SoftUkey(), SoftUkey()
    made = proven(call, soft)
    ours = ukeys.instance(call.core)
    for change in (
        {"signature": other.sign(made.statement(ours))},
        {"signature": soft.sign(made.statement("0" * 32))},  # for another daemon
        {"signature": soft.sign(keys.statement(Purpose.APPROVE, {}))},
        {"signature": b""},
        {"role": ADMINISTRATOR},
        {"name": "bob"},
        {"serial": "1"},
        {"public_key": other.public_key},
    ):
        with refused("signature is not valid"):
            ukeys.check_possession(call, replace(made, **change))
    for wrong in (
        proven(call, soft, opened=bytes(32)),
        proven(call, soft, opened=b""),
        proven(call, soft, opened=made.opened),  # of another box
        proven(call, soft, nonce=f"1-{'0' * 32}"),  # that we never gave
    ):
        with refused("opened is not valid"):
            ukeys.check_possession(call, wrong)
    for nonce in ("", "x", f"{10**14}-{'0' * 32}", "1" * 300):
        with refused("nonce is not valid"):
            ukeys.check_possession(call, proven(call, soft, nonce=nonce))


def test_a_box_is_made_for_what_can_open_it_only(call: Call) -> None:
    assert ukeys.begin_enrolment(call, SoftUkey().public_key, "").box == b""
    for public_key, opens in ((b"none", "ecdh"), (b"none", ""), (SoftUkey().public_key, "rsa-oaep-sha256")):
        with refused("public_key is not valid"):
            ukeys.begin_enrolment(call, public_key, opens)


# Sessions


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions("b" * 64, (ADMIN, COMMON), COMMON, 600, clock.now)


@pytest.fixture
def alice(call: Call) -> Iterator[SoftUkey]:
    soft = SoftUkey()
    enrolled(call, candidate("alice", key=soft), *(candidate(f"a-{number}") for number in range(3)))
    return soft  # type: ignore[return-value]  # a fixture


def begin(sessions: Sessions, call: Call, soft: SoftUkey, purpose: str = ADMIN) -> Challenge:
    return sessions.begin(call, soft.fingerprint, purpose)


def log_in(sessions: Sessions, call: Call, soft: SoftUkey, purpose: str = ADMIN) -> LoggedIn:
    asked = begin(sessions, call, soft, purpose)
    return sessions.log_in(call, asked.challenge, soft.sign(asked.statement()))


def no_login(sessions: Sessions, call: Call, asked: Challenge, signature: bytes) -> None:
    with refused("the UKey or what it signed is not accepted"):
        sessions.log_in(call, asked.challenge, signature)


def no_session(sessions: Sessions, call: Call, name: str, service: str = ADMIN) -> None:
    with refused("a session of a UKey is due"):
        sessions.identify(call, name, service)


def test_a_session_is_its_ukey_s_for_ten_minutes(
    sessions: Sessions, call: Call, alice: SoftUkey, clock: Clock
) -> None:
    found = log_in(sessions, call, alice)
    assert call.caller.kind == "ukey"
    assert call.caller.user_name == "alice"
    assert call.caller.roles == {ADMINISTRATOR}
    assert found.expires == clock.millis() + 600_000
    clock.seconds += 599.9
    who = sessions.identify(call, found.session, ADMIN)
    assert (who.kind, who.user.id, who.ukey_role) == ("ukey", found.ukey.id, ADMINISTRATOR)
    clock.seconds += 0.1
    no_session(sessions, call, found.session)


def test_a_challenge_counts_once_and_for_a_minute(
    sessions: Sessions, call: Call, alice: SoftUkey, clock: Clock
) -> None:
    asked = begin(sessions, call, alice)
    signature = alice.sign(asked.statement())
    clock.seconds += 59.9
    sessions.log_in(call, asked.challenge, signature)
    no_login(sessions, call, asked, signature)
    late = begin(sessions, call, alice)
    clock.seconds += 60
    no_login(sessions, call, late, alice.sign(late.statement()))


def test_a_failed_login_uses_the_challenge_up(sessions: Sessions, call: Call, alice: SoftUkey) -> None:
    asked = begin(sessions, call, alice)
    no_login(sessions, call, asked, b"")
    no_login(sessions, call, asked, alice.sign(asked.statement()))


def test_of_two_who_come_with_one_challenge_one_is_let_in(
    sessions: Sessions, core: Core, alice: SoftUkey
) -> None:
    asked = begin(sessions, call_of(core), alice)
    signature = alice.sign(asked.statement())
    barrier, results = threading.Barrier(4), []

    def come() -> None:
        mine = call_of(core)
        barrier.wait()
        try:
            results.append(sessions.log_in(mine, asked.challenge, signature).session)
        except Error as error:
            results.append(error.fault.code)

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("APIGW.0301") == 3


def test_what_was_signed_for_something_else_is_worth_nothing(
    sessions: Sessions, call: Call, alice: SoftUkey
) -> None:
    def values(asked: Challenge) -> dict[str, object]:
        return dict(
            keys.login_values(
                challenge=asked.challenge,
                instance=asked.instance,
                server_certificate=asked.server_certificate,
                client_certificate=asked.channel.certificate,
                peer=asked.channel.peer,
                key=asked.key,
                purpose=asked.purpose,
                expires=asked.expires,
            )
        )

    for purpose in set(Purpose) - {Purpose.LOGIN}:
        asked = begin(sessions, call, alice)
        no_login(sessions, call, asked, alice.sign(keys.statement(purpose, values(asked))))
    for name in values(begin(sessions, call, alice)):
        asked = begin(sessions, call, alice)
        changed = {**values(asked), name: 1 if name == "expires" else "another"}
        no_login(sessions, call, asked, alice.sign(keys.statement(Purpose.LOGIN, changed)))
    asked = begin(sessions, call, alice)
    assert keys.statement(Purpose.LOGIN, values(asked)) == asked.statement()


def test_another_connection_is_another_caller(sessions: Sessions, core: Core, alice: SoftUkey) -> None:
    here, there = call_of(core), call_of(core, THERE)
    asked = begin(sessions, here, alice)
    no_login(sessions, there, asked, alice.sign(asked.statement()))
    found = log_in(sessions, here, alice)
    no_session(sessions, there, found.session)
    no_session(sessions, call_of(core, replace(HERE, certificate="c" * 64)), found.session)
    no_session(sessions, call_of(core, Channel()), found.session)
    assert sessions.identify(here, found.session, ADMIN).user.name == "alice"


def test_a_session_is_for_one_service_and_the_registry(
    sessions: Sessions, call: Call, alice: SoftUkey
) -> None:
    found = log_in(sessions, call, alice)
    sessions.identify(call, found.session, COMMON)
    for service in ("hsmd.v1.Keys", "", "hsmd.v1.Sealing"):
        no_session(sessions, call, found.session, service)
    found = log_in(sessions, call, alice, COMMON)
    no_session(sessions, call, found.session, ADMIN)


def test_a_revoked_ukey_has_no_session_from_the_next_call_on(
    sessions: Sessions, core: Core, alice: SoftUkey
) -> None:
    found = log_in(sessions, call_of(core), alice)
    asked = begin(sessions, call_of(core), alice)
    with core.store.write() as tx:
        ukeys.revoke(call_of(core), tx, found.ukey.id, "x")
    call = call_of(core)
    no_session(sessions, call, found.session)
    assert call.resource == found.ukey.id  # the audit record says whose it was
    no_login(sessions, call, asked, alice.sign(asked.statement()))
    assert call.resource == found.ukey.id
    again = begin(sessions, call, alice)  # told nothing
    no_login(sessions, call, again, alice.sign(again.statement()))


def test_an_unknown_ukey_is_told_nothing(sessions: Sessions, call: Call, alice: SoftUkey) -> None:
    stranger = SoftUkey()
    asked, known = begin(sessions, call, stranger), begin(sessions, call, alice)
    assert asked.instance == known.instance
    assert len(asked.challenge) == len(known.challenge)
    no_login(sessions, call, asked, stranger.sign(asked.statement()))
    no_login(sessions, call, known, stranger.sign(known.statement()))
    with refused("not accepted"):
        sessions.log_in(call, "0" * 64, b"")


def test_logging_out_ends_the_sessions_of_the_connection(
    sessions: Sessions, core: Core, alice: SoftUkey
) -> None:
    here, there = call_of(core), call_of(core, THERE)
    mine = [log_in(sessions, here, alice), log_in(sessions, here, alice, COMMON)]
    other = log_in(sessions, there, alice)
    sessions.log_out(here)
    for each in mine:
        no_session(sessions, here, each.session, COMMON)
    sessions.identify(there, other.session, ADMIN)


@pytest.mark.parametrize("fingerprint", ["", "x" * 64, "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"])
def test_a_fingerprint_is_one(sessions: Sessions, call: Call, fingerprint: str) -> None:
    with refused("fingerprint is not valid"):
        sessions.begin(call, fingerprint, ADMIN)


@pytest.mark.parametrize("purpose", ["", "hsmd.v1.Keys", "login", "hsmd.v1.Ukeys/ListUkeys"])
def test_a_purpose_is_a_service_of_the_door(sessions: Sessions, call: Call, purpose: str) -> None:
    with refused("purpose is not valid"):
        sessions.begin(call, "a" * 64, purpose)


def test_guessing_slows_down(
    sessions: Sessions, call: Call, alice: SoftUkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "FIRST_PAUSE_SECONDS", 200.0)  # by the machine's own clock, busy or not
    for _ in range(26):
        asked = begin(sessions, call, alice)
        with pytest.raises(Error):
            sessions.log_in(call, asked.challenge, b"x")
    asked = begin(sessions, call, alice)
    with refused("APIGW.0308"):
        sessions.log_in(call, asked.challenge, alice.sign(asked.statement()))


def test_a_shelf_is_bounded() -> None:
    shelf: Shelf[int] = Shelf(most=5, each=2)
    for number in range(4):
        shelf.put(f"a{number}", "a", number)
    assert [shelf.get(f"a{number}") for number in range(4)] == [None, None, 2, 3]
    for number in range(10):
        shelf.put(f"b{number}", f"owner {number}", number)
    assert shelf.get("a3") is None
    assert [shelf.get(f"b{number}") for number in (4, 5, 9)] == [None, 5, 9]
    assert shelf.take("b9") == 9
    assert shelf.take("b9") is None


def test_names_of_sessions_are_not_in_memory(sessions: Sessions, call: Call, alice: SoftUkey) -> None:
    found = log_in(sessions, call, alice)
    assert found.session not in repr(vars(sessions._sessions))
