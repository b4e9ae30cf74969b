"""Settings written down again as TOML, as they are in force, and the files that they name: for backups."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hsmd.config import Settings

# Options that name a file which is no secret of the HSM, nor a place to write to.
_FILES = frozenset(
    {
        *("certificate", "key", "client_ca", "client_crl", "ca", "jwks_ca"),
        *("daemon_ca", "daemon_certificate", "daemon_key"),
    }
)


def rendered(settings: Settings) -> str:
    """A configuration that loads as these settings, those of the environment included."""
    lines: list[str] = []
    tables: list[str] = []
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        if dataclasses.is_dataclass(value):
            tables += ["", f"[{each.name}]", *_options(value)]
        else:
            lines.append(f"{each.name} = {_value(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def files(settings: Settings) -> list[Path]:
    """The certificates, keys and revocation lists that the settings name, each once; no PIN, no password."""
    return sorted(set(_named(settings)))


def _named(value: Any) -> Iterator[Path]:
    for each in dataclasses.fields(value):
        found = getattr(value, each.name)
        if dataclasses.is_dataclass(found):
            yield from _named(found)
        elif isinstance(found, tuple):
            for item in found:
                if dataclasses.is_dataclass(item):
                    yield from _named(item)
        elif isinstance(found, Path) and each.name in _FILES:
            yield found


def _options(table: Any) -> list[str]:
    return [f"{each.name} = {_value(getattr(table, each.name))}" for each in dataclasses.fields(table)]


def _value(value: Any) -> str:
    if value is None:
        return '""'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if dataclasses.is_dataclass(value):
        return f"{{ {', '.join(_options(value))} }}"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
