"""UKeys for tests: each a token of its own in its own folder, used by hsmctl in its own process.

    crew = Crew(stand, folder)                    # before the stand starts: it opens the administrators' door
    alice = crew.token("alice", "administrator")  # a SoftHSM2 token with a key
    bob = crew.soft("bob", "operator")            # a key in memory, for what needs no token
    crew.enrol(2, 2, alice, bob, ...)             # as the ceremony would; the stand has a store then
    stand.start(); crew.hsmctl(alice, "ukey", "list"); crew.client(bob).ukeys.ListUkeys(...)

Behind the stand's back, in a process of its own:

CONFIG enrol ADMINISTRATORS OPERATORS JSON...   these UKeys, and this quorum
CONFIG revoke UKEY_ID                           the UKey is revoked
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from hsmd import config, ukey
from hsmd.caller import Caller
from hsmd.client.admin import AdminClient
from hsmd.daemon import wiring
from hsmd.daemon.certificates import Authority, Pair
from hsmd.domain import ukeys
from hsmd.domain.core import Call, Core
from hsmd.hsm import ukey_token
from hsmd.store import Tx
from hsmd.ukey import Candidate
from tests import forked
from tests.forked import output_of
from tests.stand import Stand, free_port

__all__ = ["Crew", "Holder", "SoftUkey", "opened"]

_SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")  # UKeys are its tokens whatever the daemon's is
_PIN = "135790"


class SoftUkey:
    """A UKey in this process's memory: what the client and boxes need of one. `opens` is what it says."""

    serial = ""
    certificate = b""

    def __init__(self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> None:
        self._key = key or ec.generate_private_key(ec.SECP256R1())
        self._opener = ukey.SoftOpener(self._key)
        self.public_key = ukey.encoded(self._key.public_key())
        self.fingerprint = ukey.fingerprint(self.public_key)

    def sign(self, signed: bytes) -> bytes:
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        algorithm = hashes.SHA256() if self._key.curve.key_size == 256 else hashes.SHA384()
        return self._key.sign(signed, ec.ECDSA(algorithm))

    def decrypt(self, wrapped: bytes, digest: str) -> bytes:
        return self._opener.decrypt(wrapped, digest)

    def agree(self, point: bytes) -> bytes:
        return self._opener.agree(point)

    def opens(self) -> str:
        return ukey.box_kinds(self.public_key)[0]


@dataclass
class Holder:
    """A person with a UKey and a machine: a client certificate. `id` is known once it is enrolled."""

    name: str
    role: str
    public_key: bytes
    opens: str
    pair: Pair
    soft: SoftUkey | None = None
    uri: str = ""
    pin: str = ""
    folder: Path = Path()
    serial: str = ""
    id: str = ""
    more: dict[str, str] = field(default_factory=dict)  # variables that the module needs

    @property
    def fingerprint(self) -> str:
        return ukey.fingerprint(self.public_key)

    @property
    def environment(self) -> dict[str, str]:
        """What tells hsmctl which UKey it is."""
        return {"HSMD_UKEY": self.uri, "HSMD_UKEY_PIN_FILE": str(self.folder / "pin"), **self.more}

    def candidate(self) -> Candidate:
        return Candidate(self.name, self.role, self.serial, self.public_key, b"", self.opens)


class Crew:
    """The holders of a stand's UKeys, and its administrators' door."""

    def __init__(self, stand: Stand, folder: Path, **settings: str) -> None:
        """To be made before the stand starts; `settings` are options of [admin] in capitals."""
        self.stand, self.folder = stand, folder
        self.port = free_port()
        stand.settings |= {
            "HSMD__ADMIN__ENABLED": "true",
            "HSMD__ADMIN__PORT": str(self.port),
            **{f"HSMD__ADMIN__{name}": value for name, value in settings.items()},
        }
        self._authority = Authority(stand.dev.ca.parent, "hsmd development CA")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    # Holders

    def soft(self, name: str, role: str, key: SoftUkey | None = None) -> Holder:
        """A key in memory."""
        made = key or SoftUkey()
        return Holder(name, role, made.public_key, made.opens(), self._pair(name), soft=made)

    def token(self, name: str, role: str, kind: str = "ec-p256") -> Holder:
        """A SoftHSM2 token with a key, made by hsmctl."""
        folder = self.folder / f"ukey-{name}"
        (folder / "tokens").mkdir(parents=True)
        conf = folder / "softhsm2.conf"
        conf.write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n")
        subprocess.run(
            [
                *("softhsm2-util", "--init-token", "--free", "--label", name),
                *("--pin", _PIN, "--so-pin", "so-" + _PIN),
            ],
            env={**os.environ, "SOFTHSM2_CONF": str(conf)},
            check=True,
            capture_output=True,
        )
        uri = f"pkcs11:token={name};object=hsmd?module-path={_SOFTHSM}"
        return self.holder(name, role, kind, uri, _PIN, folder, {"SOFTHSM2_CONF": str(conf)})

    def holder(
        self, name: str, role: str, kind: str, uri: str, pin: str, folder: Path, more: Mapping[str, str]
    ) -> Holder:
        """Whoever holds the token at this address, which gets a key."""
        (folder / "pin").write_text(pin)
        (folder / "pin").chmod(0o600)
        made = Holder(name, role, b"", "", self._pair(name), uri=uri, pin=pin, folder=folder, more=dict(more))
        self.hsmctl(made, "ukey", "init", "--kind", kind)
        with opened(made) as token:
            return replace(made, public_key=token.public_key, opens=token.opens(), serial=token.serial)

    def enrol(self, administrators: int, operators: int, *holders: Holder) -> None:
        """As the ceremony does, straight into the store; more than once, if need be. Quorum 0, 0: none."""
        texts = [json.dumps(each.candidate().to_values()) for each in holders]
        made = self.backstage("enrol", str(administrators), str(operators), *texts).split()
        for holder, its in zip(holders, made, strict=True):
            holder.id = its

    def backstage(self, *words: str) -> str:
        """See the module's docstring."""
        return output_of(main, str(self.stand.dev.config), *words, settings=self.stand.settings).strip()

    # What they do

    def run(
        self, holder: Holder, *words: str, given: str | None = None, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """hsmctl on the holder's machine, with the UKey; however it ends. Standard input is `given`."""
        environment = {**os.environ, **self.environment(holder), **(more or {})}
        return forked.run(forked.hsmctl, *words, environment=environment, given=given or "")

    def hsmctl(self, holder: Holder, *words: str, **how: Any) -> str:
        """The same, which has to go well; what it printed."""
        done = self.run(holder, *words, **how)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def environment(self, holder: Holder) -> dict[str, str]:
        """What hsmctl of this holder is told."""
        return {
            "HSMD_ADMIN": self.address,
            "HSMD_CA": str(self.stand.dev.ca),
            "HSMD_CERT": str(holder.pair.certificate),
            "HSMD_KEY": str(holder.pair.key),
            "XDG_RUNTIME_DIR": str(self.folder),
            **holder.environment,
        }

    def client(self, holder: Holder, *, pair: Pair | None = None, **options: Any) -> AdminClient:
        """A connection of one whose key is in memory."""
        used = pair or holder.pair
        return AdminClient(
            self.address,
            ca=self.stand.dev.ca,
            certificate=used.certificate,
            key=used.key,
            signer=holder.soft,
            **options,
        )

    def _pair(self, name: str) -> Pair:
        return self._authority.client(f"ukey-{name}", name)


@contextmanager
def opened(holder: Holder) -> Iterator[ukey_token.UKeyToken]:
    """The holder's token in this process."""
    before = {name: os.environ.get(name) for name in holder.more}
    os.environ.update(holder.more)
    try:
        with ukey_token.open_ukey(holder.uri, lambda: holder.pin) as token:
            yield token
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _enrol(core: Core, tx: Tx, administrators: str, operators: str, *texts: str) -> None:
    call = Call(core, Caller("system"), lambda: None)
    for text in texts:
        made = ukeys.enrol(call, tx, Candidate.of_values(json.loads(text)), "ceremony")
        sys.stdout.write(f"{made.id}\n")
    if int(administrators):
        ukeys.set_quorum(tx, ukeys.Quorum(int(administrators), int(operators)))


def _revoke(core: Core, tx: Tx, ukey_id: str) -> None:
    ukeys.revoke(Call(core, Caller("system"), lambda: None), tx, ukey_id, "test")


_ACTIONS: dict[str, Callable[..., None]] = {"enrol": _enrol, "revoke": _revoke}


def main(path: str, action: str, *words: str) -> None:
    settings = config.load(Path(path), os.environ)
    core = wiring.open_core(settings, wiring.read_pins(settings))
    core.token.connect()
    try:
        with core.store.write() as tx:
            _ACTIONS[action](core, tx, *words)
    finally:
        core.store.close()
        core.token.close()
