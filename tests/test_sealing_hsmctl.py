"""hsmctl seal, unseal, seal-status, with UKeys that are tokens of their own."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsmd import sealfile
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
    pin = (stand.dev.data / "pin").read_text()
    holders = [sealfile.Holder(each.id, each.name, each.public_key, each.opens) for each in operators]
    sealfile.write(one.file, sealfile.make({sealfile.HSM: pin}, holders, 2, now=1_700_000_000_000))
    (stand.dev.data / "pin").unlink()
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
    done = crew.run(house.chen, "seal", "--yes")
    assert (done.returncode, done.stderr) == (0, "The daemon is sealed.\n")
    eventually(lambda: health(house.stand.dev.grpc, house.stand) == "NOT_SERVING")
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


def test_neither_a_share_nor_the_pin_is_told(house: House) -> None:
    seal = sealfile.read(house.file)
    said = house.stand.log() + json.dumps(house.stand.audit())
    for held in seal.shares:
        assert held.box.decode() not in said
        assert held.digest.hex() not in said
    assert "Traceback" not in said
