"""The answers file: what people would be asked, for who has written it down before. TOML, read strictly."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from hsmd.config import ConfigError, table
from hsmd.daemon.ceremony.bench import TokenAnswers
from hsmd.daemon.ceremony.founding import FirstUser
from hsmd.daemon.ceremony.papers import Quorum


@dataclass(frozen=True, slots=True)
class UKeyAnswer:
    """A UKey: its address, and the file of its PIN; without one the PIN is asked.

    `softhsm_conf` is SOFTHSM2_CONF for a UKey that is a SoftHSM2 token of its own.
    """

    uri: str
    name: str = ""
    role: str = ""
    pin_file: Path | None = None
    softhsm_conf: Path | None = None


@dataclass(frozen=True, slots=True)
class BackupAnswers:
    """Whose UKeys open a backup together; nobody named: the administrators', as many as decide."""

    needed: int = 0
    holders: tuple[UKeyAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """All of it."""

    quorum: Quorum | None = None
    ukeys: tuple[UKeyAnswer, ...] = ()
    token: TokenAnswers = field(default_factory=TokenAnswers)
    first_user: FirstUser | None = None
    backup: BackupAnswers = field(default_factory=BackupAnswers)


def read(path: Path) -> Answers:
    """The answers in that file. Raises ConfigError."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return table(Answers, tree, f"{path}: ")
