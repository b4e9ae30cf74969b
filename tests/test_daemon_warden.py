"""The warden and what fails: it stops no others, does not fill logs, is on record, and goes on by itself."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backstage import backstage
from tests.faults import absent_token, change_rows, frozen_token, processes, rows, writable
from tests.softhsm import needs_folder
from tests.stand import Stand, eventually, standing

_KEYS = 90


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Stand]:
    """A stand with keys to be deleted one day."""
    with standing(tmp_path, {"HSMD__GRPC__WORKERS": "1"}, gateway=False) as stand:
        with stand.client() as client:
            for number in range(_KEYS):
                client.schedule_deletion(client.create_key(f"key-{number}"), 7)
        yield stand


def wardens(stand: Stand) -> set[int]:
    return {pid for pid, name in processes(stand, workers=1).items() if name == "warden"}


def left(stand: Stand) -> int:
    ((count,),) = rows(stand, "SELECT count(*) FROM keys WHERE state = 4")
    return int(count)


def lease(stand: Stand, holder: str, until: int) -> None:
    change_rows(stand, "UPDATE leases SET holder = ?, until = ? WHERE name = 'due deletions'", holder, until)


def rounds(stand: Stand, count: int) -> None:
    """Wait until so many rounds have begun."""

    def until() -> list[tuple[int]]:
        return rows(stand, "SELECT until FROM leases WHERE name = 'due deletions'")

    for _ in range(count):
        before = until()
        eventually(lambda: until() != before)  # noqa: B023 -- called before the next turn


def ids(stand: Stand) -> list[str]:
    return [key for (key,) in rows(stand, "SELECT id FROM keys WHERE state = 4")]


def test_a_module_that_hangs_within_a_change_does_not_keep_the_store_locked(doomed: Stand) -> None:
    stand = doomed
    stand.settings["HSMD__HSM__DEADLINE_SECONDS"] = "1"
    stand.restart_daemon()
    before = wardens(stand)
    backstage(stand, "due", *ids(stand))
    while left(stand):
        now = left(stand)
        while left(stand) == now:
            time.sleep(0.001)
        with frozen_token(stand):
            time.sleep(0.2)
            now = left(stand)
            time.sleep(0.5)
            if writable(stand) or left(stand) != now or not now:
                continue  # it does not hang, or not within a change: try again
            eventually(lambda: writable(stand))
            eventually(lambda: wardens(stand) != before)
            assert "this process ends, another takes its place" in stand.log()
            break
    else:
        pytest.fail("never caught within a change")
    lease(stand, "nobody", 0)  # that of the warden which left would be over in a minute
    eventually(lambda: left(stand) == 0)
    with stand.client() as client:
        assert list(client.list_keys()) == []
    assert "Traceback" not in stand.log()


def failures(stand: Stand) -> list[tuple[str, ...]]:
    """What is on record of deletions that failed."""
    found = [each for each in stand.audit() if each["method"] == "warden/due-deletions"]
    assert {each["event"] for each in found} <= {"deleteKey"}
    return [
        (each["resource"], each["result"], each["detail"]["reason"])
        for each in found
        if each["result"] != "OK"
    ]


@needs_folder
def test_what_fails_is_told_once(doomed: Stand) -> None:
    """A token that is away, then a row that was changed: in the journal and in the audit log."""
    stand = doomed
    before = wardens(stand)
    eventually(lambda: rows(stand, "SELECT * FROM leases"))
    lease(stand, "another node", 1 << 50)
    backstage(stand, "due", *ids(stand)[:3])
    with absent_token(stand):
        lease(stand, "nobody", 0)
        eventually(lambda: "nothing is done" in stand.log())
        rounds(stand, 3)
        told = [line for line in stand.log().splitlines() if "nothing is done" in line]
        assert len(told) <= 2, told  # that it failed, and perhaps that it is away
        (away,) = failures(stand)
        assert away[1:] == ("KMS.0104", "UNAVAILABLE")
    eventually(lambda: left(stand) == _KEYS - 3)
    eventually(lambda: "due keys are seen to again" in stand.log())
    assert wardens(stand) == before

    lease(stand, "another node", 1 << 50)
    broken = ids(stand)[0]
    backstage(stand, "due", broken)
    change = "UPDATE keys SET description = ? WHERE id = ?"
    change_rows(stand, change, "changed", broken)
    lease(stand, "nobody", 0)
    eventually(lambda: len(failures(stand)) == 2)
    rounds(stand, 3)
    assert failures(stand) == [away, (broken, "KMS.0101", "SealBroken")]
    change_rows(stand, change, "", broken)
    eventually(lambda: broken not in ids(stand))
    assert len(failures(stand)) == 2
