"""Connecting to a token that is not as configured, and by many processes at once."""

import fcntl
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from hsmd.errors import UNAVAILABLE, Error
from hsmd.hsm import Refusal, TokenRefused, parse_address
from tests.hsm_parts import connected, live, opened
from tests.softhsm import MODULE, OPENCRYPTOKI, DevToken, late_token, make_token
from tests.stand import eventually


def other_pin(made: DevToken) -> str:
    return "0" * len(made.pin)


def set_pin(made: DevToken, pin: str) -> None:
    """Give the token another user PIN, by a process of its own."""
    script = (
        "import os, sys; from pkcs11 import lib;"
        "slots = lib(sys.argv[1]).get_slots(token_present=True);"
        "wanted = [each for each in slots if sys.argv[2] in ('None', str(each.slot_id))];"
        "token = next(each for each in (slot.get_token() for slot in wanted) if each.label == 'hsmd-test');"
        "session = token.open(rw=True, user_pin=os.environ['OLD']);"
        "session.set_pin(os.environ['OLD'], os.environ['NEW'])"
    )
    environment = {**made.environment, "OLD": made.pin, "NEW": pin}
    argv = [sys.executable, "-c", script, str(MODULE), str(parse_address(made.uri).slot_id)]
    subprocess.run(argv, env=environment, check=True)


def test_a_wrong_pin_is_refused_and_never_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_token(tmp_path)
    wrong = other_pin(made)
    token = opened(made, pin=wrong)
    with pytest.raises(TokenRefused) as refused:
        token.connect()
    assert refused.value.pin
    # The PIN becomes right: whoever tried it again would now be let in.
    set_pin(made, wrong)
    token.watch()
    with pytest.raises(TokenRefused):
        token.connect()
    time.sleep(1.0)
    status = token.status()
    assert status.state == "away"
    assert "PIN" in status.detail
    with pytest.raises(Error) as away:
        token.random(8)
    assert away.value.fault is UNAVAILABLE
    token.close()
    with connected(made, pin=wrong) as right:
        right.alive()
    said = f"{refused.value!r} {status!r} {away.value!r} {token!r} {vars(token)!r} {caplog.text}"
    assert wrong not in said
    assert made.pin not in said


def test_one_refusal_is_enough_for_all_who_share_it(tmp_path: Path) -> None:
    made, refusal = make_token(tmp_path), Refusal()
    wrong = other_pin(made)
    first, second = (opened(made, pin=wrong, refusal=refusal) for _ in range(2))
    with pytest.raises(TokenRefused, match="PinIncorrect"):
        first.connect()
    assert first.refused is not None
    assert second.refused is None
    # The PIN becomes right: whoever tried it again would now be let in.
    set_pin(made, wrong)
    with pytest.raises(TokenRefused, match="not tried again") as refused:
        second.connect()
    assert refused.value.pin
    assert second.refused is refused.value
    with connected(made, pin=wrong, refusal=Refusal()) as fresh:
        fresh.alive()


def test_a_refusal_counts_for_forked_processes() -> None:
    refusal = Refusal()
    assert not refusal
    for _ in range(2):
        pid = os.fork()
        if not pid:
            refusal.note()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert refusal


def test_a_pin_refused_while_reconnecting_is_not_tried_again(tmp_path: Path) -> None:
    made = make_token(tmp_path)
    with connected(made) as token:
        set_pin(made, other_pin(made))
        connection = token._link.live
        assert connection
        connection.module.finalize()  # as if the module had been restarted
        eventually(lambda: "PIN" in token.status().detail)
        set_pin(replace(made, pin=other_pin(made)), made.pin)
        time.sleep(1.0)
        assert token.status().state == "away"


@pytest.mark.parametrize(
    ("module", "why"),
    [("/nowhere/libp11.so", "can't be loaded"), ("/bin/sh", "can't be loaded")],
)
def test_a_missing_or_foreign_module_is_refused(tmp_path: Path, module: str, why: str) -> None:
    made = make_token(tmp_path)
    token = opened(made, uri=f"pkcs11:token=hsmd-test?module-path={module}")
    with pytest.raises(TokenRefused, match=why) as refused:
        token.connect()
    assert module in str(refused.value)
    token.close()


def test_a_library_that_is_no_pkcs11_module_is_refused(tmp_path: Path) -> None:
    with Path("/proc/self/maps").open(encoding="ascii") as maps:
        libc = next(line.split()[-1] for line in maps if "libc.so" in line)
    token = opened(make_token(tmp_path), uri=f"pkcs11:token=hsmd-test?module-path={libc}")
    with pytest.raises(TokenRefused, match="can't be loaded"):
        token.connect()
    token.close()


def test_an_absent_token_may_come(tmp_path: Path) -> None:
    made, come = late_token(tmp_path / "late")
    token = opened(made)
    try:
        with pytest.raises(Error) as absent:
            token.connect()
        assert absent.value.fault is UNAVAILABLE
        assert "absent" in token.status().detail
        token.watch()
        come()
        eventually(lambda: token.status().state == "connected")
        token.alive()
    finally:
        token.close()


def test_two_tokens_of_one_label_need_a_serial(tmp_path: Path) -> None:
    first, second = make_token(tmp_path, "hsmd-twin"), make_token(tmp_path, "hsmd-twin")
    token = opened(first, uri=f"pkcs11:token=hsmd-twin?module-path={MODULE}")
    with pytest.raises(TokenRefused, match="2 tokens") as refused:
        token.connect()
    token.close()
    serials = str(refused.value).rpartition(": ")[2].split(", ")
    assert len(serials) == 2
    if OPENCRYPTOKI:  # its tokens have no serial numbers: the slots tell them apart
        assert [parse_address(made.uri).slot_id for made in (first, second)] == [
            int(each) for each in serials
        ]
        serials = []
        for made in (first, second):
            with connected(made) as one:
                one.alive()
    opening = 0
    for made in (first, second):
        for serial in serials:
            token = opened(made, uri=made.uri.replace("?", f";serial={serial}?"))
            try:
                token.connect()
                assert token.status().serial == serial
                opening += 1
            except TokenRefused as wrong_pin:
                assert wrong_pin.pin  # noqa: PT017 -- either this or connected, and each twice
            finally:
                token.close()
    assert opening == len(serials)


def test_another_token_of_this_name_is_refused(tmp_path: Path) -> None:
    made = make_token(tmp_path)
    token = opened(made, uri=made.uri.replace("?", ";serial=0123456789abcdef?"))
    with pytest.raises(TokenRefused, match="another token"):
        token.connect()
    token.close()


def test_one_token_a_process(tmp_path: Path) -> None:
    made = make_token(tmp_path)
    with connected(made) as token:
        second = opened(made)
        with pytest.raises(TokenRefused, match="in use in this process"):
            second.connect()
        second.close()
        token.connect()
        token.alive()


def test_a_closed_token_stays_closed(tmp_path: Path) -> None:
    made = make_token(tmp_path)
    with connected(made) as token:
        pass
    assert token.status().state == "away"
    for use in (token.connect, token.alive):
        with pytest.raises(Error) as closed:
            use()
        assert closed.value.fault is UNAVAILABLE


def test_no_file_of_others_is_closed(tmp_path: Path) -> None:
    """opencryptoki forgets that it closed a file, and would close whatever has its number then."""
    made = make_token(tmp_path)
    with ExitStack() as stack:
        for _ in range(4):
            with connected(made) as token:
                token.alive()
                connection = live(token)
                eventually(lambda: not token._link.calls.others())  # the keeper pings: nobody may be inside
                connection.module.finalize()
                files = [stack.enter_context((tmp_path / "file").open("w")) for _ in range(20)]
                eventually(lambda before=connection: token._link.live not in (None, before))
                token.alive()
            files += [stack.enter_context((tmp_path / "file").open("w")) for _ in range(20)]
            for each in files:
                assert Path(f"/proc/self/fd/{each.fileno()}").readlink() == tmp_path / "file"


def test_the_lock_file_must_be_possible(tmp_path: Path) -> None:
    token = opened(make_token(tmp_path), lock_file=tmp_path / "none" / "lock")
    with pytest.raises(TokenRefused, match="lock file"):
        token.connect()
    token.close()


def test_waits_for_the_lock_but_not_for_ever(tmp_path: Path) -> None:
    made = make_token(tmp_path)
    token = opened(made, deadline_seconds=0.5)
    with made.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Error) as busy:
            token.connect()
        assert busy.value.fault is UNAVAILABLE
        assert "locked" in str(busy.value)

    def connects() -> bool:
        try:
            token.connect()
            token.alive()
        except Error as error:  # so short a deadline may pass once more
            if error.fault is not UNAVAILABLE:
                raise
            return False
        return True

    eventually(connects)
    token.close()


_STARTER = """
import json, os, sys
from pathlib import Path
from hsmd.hsm import Token, parse_address
uri, lock, conf = sys.argv[1:]
sys.stdin.readline()
for turn in range(5):
    token = Token(parse_address(uri), os.environ["PIN"], lock_file=Path(lock), softhsm_conf=Path(conf))
    token.connect()
    token.alive()
    assert token.labels() == ["root"]
    token.close()
print(json.dumps("well"))
"""


def test_processes_that_start_together_all_come_up(tmp_path: Path) -> None:
    made = make_token(tmp_path)
    with connected(made) as token:
        token.make_root_key("root")
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", _STARTER, made.uri, str(made.lock), str(made.conf)],
            env={**os.environ, "PIN": made.pin},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for starter in starters:
        assert starter.stdin
        starter.stdin.write("go\n")
        starter.stdin.flush()
    for starter in starters:
        out, errors = starter.communicate(timeout=120)
        assert starter.returncode == 0, errors
        assert json.loads(out) == "well"
