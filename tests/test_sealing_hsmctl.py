"""hsmctl seal, unseal, seal-status, with UKeys that are tokens of their own."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsmd import sealfile
from hsmd.client import ApiError
from hsmd.pb.v1 import ukeys_pb2
from tests.quorum import decide
from tests.seals import health
from tests.stand import Stand, eventually
from tests.ukeys import Crew, Holder


@dataclass
class House:
    """A sealed daemon and those who open it: two of three, by tokens of EC and RSA."""

    stand: Stand
    crew: Crew
    ada: Holder
    bruno: Holder
    chen: Holder
    alice: Holder
    bob: Holder

    @property
    def file(self) -> Path:
        return self.stand.dev.data / "seal.json"

    def serving(self) -> bool:
        doors = (self.stand.dev.grpc, self.crew.address)
        return all(health(each, self.stand) == "SERVING" for each in doors)

    def status(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.crew.hsmctl(self.ada, "seal-status", "--json"))
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    stand = Stand(folder / "stand", {"HSMD__GRPC__WORKERS": "1"})
    crew = Crew(stand, folder)
    operators = [crew.token(name, "operator", kind) for name, kind in _KINDS.items()]
    administrators = [crew.soft(name, "administrator") for name in ("alice", "bob", "carol")]
    crew.enrol(2, 2, *operators, *administrators)
    one = House(stand, crew, *operators, *administrators[:2])
    pin = stand.pin_file.read_text()
    holders = [sealfile.Holder(each.id, each.name, each.public_key, each.opens) for each in operators]
    sealfile.write(one.file, sealfile.make({sealfile.HSM: pin}, holders, 2, now=1_700_000_000_000))
    stand.pin_file.unlink()
    stand.settings |= {"HSMD__HSM__PIN_FILE": "", "HSMD__SEAL__FILE": str(one.file)}
    try:
        stand.start(gateway=False)
        yield one
    finally:
        stand.stop()


_KINDS = {"ada": "ec-p256", "bruno": "rsa-2048", "chen": "ec-p384"}


def test_unseal_seal_unseal(house: House) -> None:
    crew = house.crew
    status = house.status()
    assert (status["sealed"], status["threshold"], status["attempt"]) == (True, 2, None)
    assert status["holders"] == ["ada", "bruno", "chen"]

    first = crew.run(house.ada, "unseal")
    assert first.returncode == 0, first.stderr
    assert first.stderr.splitlines() == [
        "1 of 2 shares are given: ada.",
        "The daemon is sealed until the others are given.",
    ]
    assert not house.serving()
    told = crew.hsmctl(house.ada, "seal-status").splitlines()
    assert ["sealed", "yes"] in [line.split() for line in told]
    second = json.loads(crew.hsmctl(house.bruno, "unseal", "--json"))
    assert second["unsealed"] is True
    assert second["threshold"] == 2
    eventually(house.serving)
    assert (house.status()["sealed"], house.status()["pin_source"]) == (False, "seal")
    again = crew.run(house.chen, "unseal")
    assert (again.returncode, "not sealed" in again.stderr) == (1, True)

    asked = crew.run(house.chen, "seal")
    assert (asked.returncode, "--yes" in asked.stderr) == (2, True)
    before = set(house.stand.workers())
    done = crew.run(house.chen, "seal", "--yes")
    assert (done.returncode, done.stderr) == (0, "The daemon is sealed.\n")
    eventually(lambda: not before & set(house.stand.workers()))  # who ends does not serve either
    for door in (house.stand.dev.grpc, crew.address):
        eventually(lambda door=door: health(door, house.stand) == "NOT_SERVING")
    crew.hsmctl(house.chen, "unseal")
    crew.hsmctl(house.bruno, "unseal")
    eventually(house.serving)
    with house.stand.client() as client:
        assert client.decrypt(client.encrypt(client.create_key("key"), b"data")) == b"data"


def test_who_holds_no_share(house: House) -> None:
    """An operator that was never enrolled; a UKey with a wrong PIN; none at all."""
    house.stand.restart_daemon()
    mallory = house.crew.token("mallory", "operator")
    refused = house.crew.run(mallory, "unseal")
    assert (refused.returncode, "no share" in refused.stderr) == (1, True)
    (house.ada.folder / "pin").write_text("000000")
    wrong = house.crew.run(house.ada, "unseal")
    (house.ada.folder / "pin").write_text(house.ada.pin)
    assert wrong.returncode == 4
    assert "000000" not in wrong.stderr
    none = house.crew.run(house.ada, "unseal", more={"HSMD_UKEY": ""})
    assert (none.returncode, "--ukey" in none.stderr) == (2, True)
    assert house.status()["attempt"] is None
    house.crew.hsmctl(house.ada, "unseal")
    house.crew.hsmctl(house.chen, "unseal")
    eventually(house.serving)


def test_operators_that_a_quorum_lets_in_and_out(house: House, tmp_path: Path) -> None:
    """With the change itself the seal is another one: who came opens it, who went doesn't."""
    crew, deciders = house.crew, [house.alice, house.bob]
    if house.status()["sealed"]:
        crew.hsmctl(house.bruno, "unseal")
        crew.hsmctl(house.chen, "unseal")
        eventually(house.serving)
    dana = crew.token("dana", "operator")
    request = tmp_path / "dana.json"
    crew.hsmctl(dana, "ukey", "request", "dana", "--role", "operator", "--out", str(request))
    before = sealfile.read(house.file)
    made = decide(crew, deciders, "enrol-ukey", **json.loads(request.read_text()))
    dana.id = json.loads(made.result)["ukey_id"]
    assert [each.holder.name for each in sealfile.read(house.file).shares] == ["ada", "bruno", "chen", "dana"]
    decide(crew, deciders, "revoke-ukey", ukey_id=house.ada.id, reason="left")
    seal = sealfile.read(house.file)
    assert [each.holder.ukey_id for each in seal.shares] == [house.bruno.id, house.chen.id, dana.id]
    assert (seal.threshold, len({before.id, seal.id})) == (2, 2)
    decide(crew, deciders, "set-quorum", administrators=2, operators=3)
    assert sealfile.read(house.file).threshold == 3

    house.stand.restart_daemon()
    gone = crew.run(house.ada, "unseal")
    assert (gone.returncode, "no share" in gone.stderr) == (1, True)
    for holder, said in ((dana, False), (house.bruno, False), (house.chen, True)):
        assert json.loads(crew.hsmctl(holder, "unseal", "--json"))["unsealed"] is said
    eventually(house.serving)

    # No change without its seal.
    aside = house.file.with_name("aside")
    house.file.rename(aside)
    house.file.mkdir()  # and nothing can be put in its place
    with pytest.raises(ApiError, match="can't be made anew"):
        decide(crew, deciders, "set-quorum", administrators=2, operators=2)
    house.file.rmdir()
    aside.rename(house.file)
    with crew.client(house.alice) as client:
        assert client.ukeys.ListUkeys(ukeys_pb2.ListUkeysRequest()).quorum.operators == 3


def test_neither_a_share_nor_the_pin_is_told(house: House) -> None:
    seal = sealfile.read(house.file)
    said = house.stand.log() + json.dumps(house.stand.audit())
    for held in seal.shares:
        assert held.box.decode() not in said
        assert held.digest.hex() not in said
    assert "Traceback" not in said
