"""Dedicated keystores for tests: calls that make them, and a look into their tokens from outside."""

import json
import subprocess
import sys
from pathlib import Path

from pkcs11 import Attribute

from hsmd import config
from hsmd.algorithms import AES_256
from hsmd.client import Client
from hsmd.hsm import Token, parse_address
from hsmd.hsm.module import Template
from hsmd.pb.v1 import keystores_pb2 as pb
from tests.calls import fresh
from tests.stand import Stand


def make(client: Client, cluster: str, alias: str = "") -> str:
    """A keystore on that cluster; its id."""
    request = pb.CreateKeyStoreRequest(keystore_alias=alias or fresh("vault"), cluster_id=cluster)
    return str(client.keystores.CreateKeyStore(request).keystore.keystore_id)


def enable(client: Client, keystore: str) -> pb.KeystoreStatus:
    answer: pb.EnableKeyStoreResponse = client.keystores.EnableKeyStore(
        pb.EnableKeyStoreRequest(keystore_id=keystore)
    )
    return answer.keystore


def disable(client: Client, keystore: str) -> pb.KeystoreStatus:
    answer: pb.DisableKeyStoreResponse = client.keystores.DisableKeyStore(
        pb.DisableKeyStoreRequest(keystore_id=keystore)
    )
    return answer.keystore


def delete(client: Client, keystore: str) -> None:
    client.keystores.DeleteKeyStore(pb.DeleteKeyStoreRequest(keystore_id=keystore))


def show(client: Client, keystore: str) -> pb.Keystore:
    answer: pb.ShowKeyStoreResponse = client.keystores.ShowKeyStore(
        pb.ShowKeyStoreRequest(keystore_id=keystore)
    )
    return answer.keystore


def listed(client: Client) -> list[str]:
    """The ids of all of the domain's keystores."""
    page: pb.ListKeyStoresResponse = client.keystores.ListKeyStores(pb.ListKeyStoresRequest(limit=1000))
    assert page.total == len(page.keystores)
    return [each.keystore_id for each in page.keystores]


def objects(stand: Stand, cluster: str) -> list[str]:
    """The labels of keys that the token on that cluster holds. Nothing in it can be taken out."""
    found: list[str] = json.loads(_inside(stand, cluster, "objects"))
    return found


def destroy(stand: Stand, cluster: str, key: str) -> None:
    """Destroy the key's object behind the daemon's back."""
    _inside(stand, cluster, "destroy", f"hsmd-key-{key}-1")


def plant(stand: Stand, cluster: str, key: str) -> None:
    """Make an object as the key's would be."""
    _inside(stand, cluster, "plant", f"hsmd-key-{key}-1")


def _inside(stand: Stand, cluster: str, *words: str) -> str:
    """Do it with the token's PIN, in a process of its own."""
    tables = stand.settings["HSMD__KEYSTORES"]
    argv = [sys.executable, "-m", "tests.vaults", str(stand.dev.data), tables, cluster, *words]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return done.stdout


def _main(data: str, tables: str, cluster: str, action: str, *labels: str) -> None:
    configured = config.load(Path(data) / "hsmd.toml", {"HSMD__KEYSTORES": tables})
    (one,) = [each for each in configured.keystores if each.cluster_id == cluster]
    assert one.pin_file
    token = Token(
        parse_address(one.token),
        one.pin_file.read_text(),
        lock_file=Path(data) / "vaults.lock",
        softhsm_conf=configured.hsm.softhsm_conf,
    )
    token.connect()
    for label in labels:
        if action == "plant":
            token.make_kept(AES_256, label)
        else:
            assert token.destroy_kept(label) == 1
    with token._desk().call() as desk:
        module, session = desk.connection.module, desk.session
        found = [
            [module.read(session, each, name, 200) for name in (Attribute.LABEL, Attribute.EXTRACTABLE)]
            for each in module.find(session, Template({Attribute.TOKEN: True}), 10_000)
        ]
    assert all(extractable == b"\0" for _, extractable in found)
    sys.stdout.write(json.dumps(sorted(label.decode() for label, _ in found if label != b"hsmd-keystore")))
    token.close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
