"""After the ceremony: the daemon is unsealed by two, serves, changes its PIN and ends, as people decide."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from hsmd.cli.children import Child
from hsmd.client import Client, ClientError
from tests.ceremonies import Host, Person, first_user, people, pick
from tests.stand import children_of, eventually
from tests.test_ceremony import ALL, deviations

pytestmark = pytest.mark.soak  # it takes minutes

_BIN = Path(sys.executable).parent
_UNAVAILABLE = 3
# `hsmd serve` whose warden ends by kill -9 at a place, once: the next one goes by it.
_DYING = """
import os, sys
from pathlib import Path
from tests.dying import die_at

place, flag, kill = sys.argv.pop(1), Path(sys.argv.pop(1)), os.kill

def once(pid, number):
    if (pid, number) == (os.getpid(), 9):
        if flag.exists():
            return
        flag.touch()
    kill(pid, number)

os.kill = once
die_at(place)
from hsmd.cli.hsmd import main
main()
"""


@contextmanager
def serving(host: Host, die: str = "") -> Iterator[Child]:
    """The daemon; its warden is killed when it comes to that place for the first time."""
    argv = [str(_BIN / "hsmd"), "serve", "--config", str(host.config)]
    if die:
        argv = [sys.executable, "-c", _DYING, die, str(host.folder / "killed"), *argv[1:]]
    child = Child("serve", argv, host.folder / "serve.log", dict(os.environ))
    try:
        child.wait_until_ready(60)
        yield child
    finally:
        child.stop(60)


def hsmctl(host: Host, who: Person, *words: str, code: int = 0) -> str:
    """What it printed; on that person's machine."""
    pair = host.authority.client(f"of-{who.name}", who.name)
    environment = {
        **os.environ,
        "HSMD_ADMIN": f"127.0.0.1:{host.admin}",
        "HSMD_CA": str(host.authority.pair.certificate),
        "HSMD_CERT": str(pair.certificate),
        "HSMD_KEY": str(pair.key),
        "HSMD_UKEY": who.uri,
        "HSMD_UKEY_PIN_FILE": str(who.folder / "pin"),
        "SOFTHSM2_CONF": str(who.conf),
        "XDG_RUNTIME_DIR": str(host.folder),
    }
    ended: list[subprocess.CompletedProcess[str]] = []

    def there() -> bool:
        """While the door is being opened or closed, nobody answers."""
        ended.append(
            subprocess.run(
                [str(_BIN / "hsmctl"), *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
        )
        return code == _UNAVAILABLE or ended[-1].returncode != _UNAVAILABLE

    eventually(there, 90)
    done = ended[-1]
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def decided(host: Host, crew: dict[str, Person], *operation: str) -> str:
    """Proposed by anna, approved by anna and carla: the proposal's id. Anna alone does not suffice."""
    anna, carla = crew["anna"], crew["carla"]
    proposal = hsmctl(host, anna, "propose", *operation).strip()
    hsmctl(host, anna, "approve", "--yes", proposal)
    assert "1 of the 2" in hsmctl(host, anna, "execute", "--yes", proposal, code=1)
    hsmctl(host, carla, "approve", "--yes", proposal)
    return proposal


def client(host: Host) -> Client:
    pair = host.authority.client("admin", "admin")
    ca = host.authority.pair.certificate
    return Client(f"127.0.0.1:{host.grpc}", ca=ca, certificate=pair.certificate, key=pair.key, deadline=30)


Result = TypeVar("Result")


def at_last(what: Callable[[], Result]) -> Result:
    """Its result, once the service has nothing against it."""
    found: list[Result] = []

    def tried() -> bool:
        try:
            found.append(what())
        except ClientError:
            return False
        return True

    eventually(tried, 90)
    return found[0]


def works(host: Host, key: str, sealed: bytes) -> bool:
    with client(host) as one:
        return one.decrypt(sealed) == b"data" and one.decrypt(one.encrypt(key, b"more")) == b"more"


def seal_id(host: Host) -> str:
    return str(json.loads(host.seal.read_text())["id"])


def test_from_the_ceremony_to_the_end_of_the_hsm(tmp_path: Path) -> None:
    crew, host = people(tmp_path / "people"), Host(tmp_path / "a")
    host.do("init", who=pick(crew, ALL), more=[first_user()])
    with serving(host) as daemon:
        otto, olga, oskar = pick(crew, "otto olga oskar")
        assert "sealed" in hsmctl(host, otto, "seal-status")
        hsmctl(host, otto, "unseal")
        hsmctl(host, otto, "unseal")
        assert json.loads(hsmctl(host, otto, "seal-status", "--json"))["sealed"] is True
        hsmctl(host, olga, "unseal")

        def created() -> str:
            with client(host) as one:
                return str(one.create_key("first"))

        key = at_last(created)
        with client(host) as one:
            sealed = one.encrypt(key, b"data")
        assert deviations(host, pick(crew, "otto oskar")) == []  # beside the running daemon

        wrong = hsmctl(host, crew["anna"], "propose", "change-pin", "token=hsm-2", code=1)
        assert "its maker's tool" in wrong
        before, processes = seal_id(host), set(children_of(daemon.process.pid))
        hsmctl(host, crew["anna"], "execute", "--yes", decided(host, crew, "change-pin"))
        assert seal_id(host) != before
        eventually(lambda: not processes & set(children_of(daemon.process.pid)), 90)  # all know the new one
        at_last(lambda: works(host, key, sealed))
        hsmctl(host, oskar, "seal", "--yes")
        for who in (oskar, otto):
            hsmctl(host, who, "unseal")
        at_last(lambda: works(host, key, sealed))
        assert deviations(host, pick(crew, "olga oskar")) == []

        wrong = hsmctl(host, crew["anna"], "propose", "destroy-hsm", "serial=0000", code=1)
        assert "another serial number" in wrong
        serial = host.record()["token"]["serial"]
        proposal = decided(host, crew, "destroy-hsm", serial)
        with client(host) as one:
            assert one.decrypt(sealed) == b"data"
        told = hsmctl(host, crew["carla"], "execute", "--yes", proposal, code=_UNAVAILABLE)
        assert "all that was in the HSM is destroyed" in told
    objects = [each for each in (host.folder / "tokens").rglob("*.object") if each.name != "token.object"]
    assert objects == []
    records = [json.loads(line) for line in (host.folder / "audit" / "warden.jsonl").read_text().splitlines()]
    events = [(each["event"], each["result"]) for each in records]
    assert ("changePin", "OK") in events
    assert ("destroyHsm", "OK") in events


@pytest.mark.parametrize(
    ("place", "seals"),
    [
        ("hsmd.domain.sealing:Keeper.prepare:after", False),
        ("hsmd.hsm.passage:PassageWork.change_pin:after", True),
    ],
)
def test_a_change_of_the_pin_that_was_killed_is_completed(tmp_path: Path, place: str, seals: bool) -> None:
    """The HSM may have the new PIN, and the daemon the old one: unsealing finds the one that counts."""
    crew, host = people(tmp_path / "people", ("anna", "carla", "otto", "olga")), Host(tmp_path / "a")
    who = list(crew.values())
    host.do("init", who=who, more=[first_user()])
    with serving(host, place):
        unsealed = partial(_unseal, host, crew)
        unsealed()
        with client(host) as one:
            key = at_last(lambda: one.create_key("first"))
            sealed = one.encrypt(key, b"data")
        proposal = decided(host, crew, "change-pin")
        hsmctl(host, crew["anna"], "execute", "--yes", proposal, code=_UNAVAILABLE)
        assert (host.folder / "killed").exists()
        if seals:
            eventually(lambda: _is_sealed(host, crew["otto"]), 90)
            unsealed()
        at_last(lambda: works(host, key, sealed))
        hsmctl(host, crew["carla"], "execute", "--yes", proposal)
        at_last(lambda: works(host, key, sealed))
        hsmctl(host, crew["otto"], "seal", "--yes")
        unsealed()
        at_last(lambda: works(host, key, sealed))
        assert deviations(host, pick(crew, "otto olga")) == []
    assert json.loads(host.seal.read_text())["pins"] == ["hsm"]


def _unseal(host: Host, crew: dict[str, Person]) -> None:
    for each in pick(crew, "otto olga"):
        hsmctl(host, each, "unseal")


def _is_sealed(host: Host, who: Person) -> bool:
    return bool(json.loads(hsmctl(host, who, "seal-status", "--json"))["sealed"])
