"""kill -9 at each step of a root key's replacement: the same again goes on, and every key is right."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import testimony
from tests.faults import rows
from tests.stand import Stand

FIRST, SECOND = "hsmd-root-1", "hsmd-root-2"
pytestmark = pytest.mark.soak  # it takes minutes

_ROTATE = [
    "hsmd.hsm.token:Token.make_root_key:before",
    "hsmd.hsm.token:Token.make_root_key:after",
    "hsmd.domain.roots:_tried:after",
    "hsmd.store.roots:put_root_keys:before",
    "hsmd.store.roots:put_root_keys:after",
    "hsmd.domain.roots:rotate:after",
]
_MOVE = [
    "hsmd.hsm.pairs:PairWork.rewrap:before:2",
    "hsmd.hsm.pairs:PairWork.rewrap:after:2",
    "hsmd.domain.roots:_moved:after:3",
    "hsmd.store.rewraps:put_row:before:2",
    "hsmd.store.rewraps:put_row:after:3",
    "hsmd.domain.roots:move:after:2",
    "hsmd.store.roots:put_root_keys:after",
    "hsmd.domain.roots:settle:after",
]
_DESTROY = ["hsmd.store.roots:put_root_keys:before", "hsmd.store.roots:put_root_keys:after"]
_SETTLE = [
    "hsmd.hsm.passage:PassageWork.destroy_labelled:before",
    "hsmd.hsm.passage:PassageWork.destroy_labelled:after",
    "hsmd.store.roots:put_root_keys:after",
    "hsmd.domain.roots:settle:after",
]


def step(stand: Stand, at: str, *words: str) -> int:
    command = [sys.executable, "-m", "tests.dying", at, "-m", "tests.rooting", str(stand.dev.config), *words]
    done = subprocess.run(
        command, env={**os.environ, **stand.settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def labels(stand: Stand) -> set[str]:
    query = "SELECT root_label FROM key_versions WHERE wrapped IS NOT NULL"
    query += " UNION SELECT root_label FROM access_keys"
    return {label for (label,) in rows(stand, query)}


@pytest.mark.timeout(1200)
def test_killed_at_each_step(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "stand", {"HSMD__LIMITS__KEYS_PER_PROJECT": "10000"})

    def works() -> None:
        """A daemon starts on what is left, and every key does what it did."""
        stand.start(gateway=False)
        try:
            with stand.client() as client:
                for each in told:
                    testimony.check(client, each)
        finally:
            stand.stop()

    stand.start(gateway=False)
    try:
        with stand.client() as client:
            kinds = [kind for kind in testimony.kinds(client) if not kind[0].startswith("RSA_4")]
            told = [testimony.make(client, *kind) for kind in kinds]
    finally:
        stand.stop()
    for words, places in (
        (("rotate", SECOND), _ROTATE),
        (("move",), _MOVE),
        (("destroy", FIRST), _DESTROY),
        (("settle",), _SETTLE),
    ):
        killed = [at for at in places if step(stand, at, *words) == -signal.SIGKILL]
        # Once all is done there is nothing left to be killed in: what comes after that is not reached.
        assert killed == places[: len(killed)]
        assert len(killed) >= len(places) - 1
        if words[0] == "rotate":
            assert labels(stand) == {FIRST}
        assert step(stand, "-", *words) == 0
        if words[0] == "move":
            works()
    assert labels(stand) == {SECOND}
    works()
    stand.add_tenant("late")  # by `hsmd init`, which finds the root key that wraps what is new
    assert labels(stand) == {SECOND}
    ((count,),) = rows(stand, "SELECT count(*) FROM service_settings WHERE document LIKE '%destroyed%'")
    assert count == 1
