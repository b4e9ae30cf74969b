"""A ceremony for tests: seven people with UKeys, each a token in its own folder, and HSMs on their hosts."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsmd.daemon.certificates import Authority
from hsmd.hsm import ukey_token
from tests import opencryptoki
from tests.softhsm import OPENCRYPTOKI
from tests.stand import free_port

ROOT = Path(__file__).parents[1]
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
PEOPLE = {
    "anna": ("administrator", "ec-p256"),
    "ben": ("administrator", "rsa-2048"),
    "carla": ("administrator", "ec-p384"),
    "otto": ("operator", "ec-p256"),
    "olga": ("operator", "rsa-2048"),
    "oskar": ("operator", "ec-p256"),
    "ada": ("auditor", "ec-p256"),
}
LABELS = ["hsmd-audit-1", "hsmd-credential", "hsmd-root-1", "hsmd-sealing"]


@dataclass(frozen=True)
class Person:
    """Somebody with a UKey."""

    name: str
    role: str
    uri: str
    folder: Path

    @property
    def conf(self) -> Path:
        return self.folder / "softhsm2.conf"

    def answer(self) -> str:
        """As the answers file has it."""
        return "\n".join(
            (
                "[[ukeys]]",
                f'name = "{self.name}"',
                f'role = "{self.role}"',
                f'uri = "{self.uri}"',
                f'pin_file = "{self.folder / "pin"}"',
                f'softhsm_conf = "{self.conf}"',
                "",
            )
        )


def people(folder: Path, names: Sequence[str] = tuple(PEOPLE)) -> dict[str, Person]:
    """Each with a UKey that has a key."""
    return {name: person(folder, name, *PEOPLE[name]) for name in names}


def pick(crew: Mapping[str, Person], names: str) -> list[Person]:
    """These of them."""
    return [crew[name] for name in names.split()]


def person(folder: Path, name: str, role: str, kind: str = "ec-p256") -> Person:
    """One, with a new UKey."""
    its = folder / name
    (its / "tokens").mkdir(parents=True)
    made = Person(name, role, f"pkcs11:token={name}?module-path={SOFTHSM}", its)
    made.conf.write_text(f"directories.tokendir = {its / 'tokens'}\nobjectstore.backend = file\n")
    (its / "pin").write_text("135790")
    (its / "pin").chmod(0o600)
    util = [
        "softhsm2-util",
        "--init-token",
        "--free",
        "--label",
        name,
        "--pin",
        "135790",
        "--so-pin",
        "97531000",
    ]
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(made.conf)
    try:
        subprocess.run(util, check=True, capture_output=True)
        ukey_token.generate(made.uri, lambda: "135790", kind, "hsmd")
    finally:
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before
    return made


@dataclass
class Host:
    """A machine with an HSM that nobody has touched, and hsmd's configuration; on SoftHSM2 unless said."""

    folder: Path
    kind: str = "softhsm"
    sealed: bool = True
    token: str = ""
    so_pin_file: Path | None = None
    grpc: int = field(default_factory=free_port)
    admin: int = field(default_factory=free_port)
    authority: Authority = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "tokens").mkdir()
        (self.folder / "tls").mkdir()
        self.conf = self.folder / "softhsm2.conf"
        self.conf.write_text(f"directories.tokendir = {self.folder / 'tokens'}\nlog.level = ERROR\n")
        if self.kind == "softhsm":
            self.token = self.token or f"pkcs11:token=hsm-{self.folder.name}?module-path={SOFTHSM}"
        else:
            self.token = opencryptoki.uri(opencryptoki.next_slot(), f"hsm-{self.folder.name}")
            self.so_pin_file = self.folder / "so-pin"
            self.so_pin_file.write_text("87654321\n")
            self.so_pin_file.chmod(0o600)
        self.authority = Authority(self.folder / "tls", "test CA")
        server = self.authority.server("server", ["localhost", "127.0.0.1"])
        tables: dict[str, dict[str, Any]] = {
            "hsm": {
                "token": self.token,
                "softhsm_conf": str(self.conf),
                "lock_file": str(self.folder / "token.lock"),
                **({} if self.sealed else {"pin_file": str(self.folder / "pin")}),
            },
            "store": {"url": f"sqlite:///{self.folder / 'hsmd.db'}"},
            "grpc": {
                "port": self.grpc,
                "workers": 1,
                "certificate": str(server.certificate),
                "key": str(server.key),
                "client_ca": str(self.authority.pair.certificate),
            },
            "admin": {"enabled": True, "port": self.admin},
            "audit": {"directory": str(self.folder / "audit")},
            **({"seal": {"file": str(self.seal)}} if self.sealed else {}),
        }
        lines = []
        for name, options in tables.items():
            lines += [
                f"[{name}]",
                *(f"{option} = {json.dumps(value)}" for option, value in options.items()),
                "",
            ]
        self.config.write_text("\n".join(lines))

    @property
    def config(self) -> Path:
        return self.folder / "hsmd.toml"

    @property
    def seal(self) -> Path:
        return self.folder / "seal.json"

    @property
    def papers(self) -> Path:
        return self.folder / "ceremony"

    @property
    def record_file(self) -> Path:
        return self.papers / "record.json"

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.record_file.read_text())
        return found

    def answers(self, who: Sequence[Person], *more: str, quorum: tuple[int, int] = (2, 2)) -> Path:
        """The answers file."""
        path = self.folder / "answers.toml"
        token = [f'[token]\nso_pin_file = "{self.so_pin_file}"\n'] if self.so_pin_file else []
        numbers = f"[quorum]\nadministrators = {quorum[0]}\noperators = {quorum[1]}\n"
        path.write_text("\n".join((numbers, *token, *(each.answer() for each in who), *more)))
        return path

    def run(
        self,
        step: str,
        *words: str,
        who: Sequence[Person] = (),
        more: Sequence[str] = (),
        die: str = "-",
        **how: Any,
    ) -> subprocess.CompletedProcess[str]:
        """`hsmctl ceremony STEP`, however it ends; by these people, killed at that place."""
        quorum = how.pop("quorum", (2, 2))
        answers = self.answers(who, *more, quorum=quorum)
        arguments = [
            "ceremony",
            step,
            "--config",
            self.config,
            "--dir",
            self.papers,
            "--answers",
            answers,
            *words,
        ]
        return subprocess.run(
            [sys.executable, "-m", "tests.dying", die, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "XDG_RUNTIME_DIR": str(self.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def do(self, step: str, *words: str, **how: Any) -> str:
        """The same, which has to go well; what it printed."""
        done = self.run(step, *words, **how)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What is in the store, read past hsmd."""
        with closing(sqlite3.connect(self.folder / "hsmd.db")) as store:
            return store.execute(query).fetchall()

    def audited(self) -> list[tuple[str, str]]:
        """Event and result of the ceremony's audit records."""
        path = self.folder / "audit" / "ceremony.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(record["event"], record["result"]) for record in map(json.loads, lines)]


def first_user(*words: str) -> str:
    """Answers for one."""
    return "\n".join(
        ('[first_user]\ndomain = "example"\nuser = "admin"\ncertificates = ["CN:admin"]', *words)
    )


__all__ = ["LABELS", "OPENCRYPTOKI", "PEOPLE", "Host", "Person", "first_user", "people", "person", "pick"]
