"""The rules in this process, over a real token and a real store, on a clock that the test sets."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsmd import store as stores
from hsmd.audit import Log
from hsmd.caller import Caller
from hsmd.config import Hsm, Limits, Settings
from hsmd.config import Store as StoreSettings
from hsmd.daemon import jobs, wiring
from hsmd.domain.core import TOKEN_KEYS, Call, Core
from hsmd.hsm import Token
from hsmd.keyring import Keyring
from tests.hsm_parts import connected
from tests.softhsm import DevToken, make_token

CALLER = Caller("certificate", user_id="1" * 32, project_id="2" * 32, domain_id="3" * 32)


@dataclass
class House:
    """A core and the ways to use it: `now` is its clock, in ms since 1970; `records` are events of calls."""

    folder: Path
    token: Token
    audit: Log
    now: int = 1_700_000_000_000
    records: list[tuple[str, str]] = field(default_factory=list)
    core: Core = field(init=False)

    def __post_init__(self) -> None:
        self.core = self.new_core()

    def new_core(self) -> Core:
        """Another process's parts, over the same token and store."""
        settings = Settings(hsm=Hsm(), store=StoreSettings(f"sqlite:///{self.folder / 'hsmd.db'}"))
        store = wiring.open_store(settings, self.token)
        limits = Limits(keys_per_project=1_000_000)
        return Core(store, self.token, Keyring(self.token, 100), lambda: self.now, limits, "local-1")

    def call(self, core: Core | None = None, name: str = "test") -> Call:
        """A request that begins now."""
        core = core or self.core
        core.refresh()
        call = Call(core, CALLER, lambda: self.records.append((name, call.resource)))
        return call

    def rounds(self, *each: jobs.Job, count: int = 3) -> list[int]:
        """What the warden's jobs do in so many rounds; no trouble is met."""
        done = []
        for _ in range(count):
            trouble: dict[str, str] = {}
            self.core.refresh()
            turn = jobs.Jobs(self.core, self.audit, "test")
            done.append(sum(turn.carry_out(job, trouble) for job in each))
            assert trouble == {}
        return done

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.folder / "hsmd.db", timeout=30)) as connection, connection:
            return connection.execute(statement, values).fetchall()


@contextmanager
def furnished(folder: Path, made: DevToken | None = None) -> Iterator[House]:
    """A house with the keys that initialisation makes."""
    with connected(made or make_token(folder), deadline_seconds=50.0) as token:  # for long RSA keys
        root, *others = TOKEN_KEYS
        token.make_root_key(root)
        for label in others:
            token.make_hmac_key(label)
        stores.upgrade(f"sqlite:///{folder / 'hsmd.db'}")
        audit = Log(folder / "audit" / "warden.jsonl", durable=False)
        house = House(folder, token, audit)
        yield house
        audit.close()
        house.core.store.close()
