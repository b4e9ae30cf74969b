"""The README is true: its examples run, its options exist with these defaults, its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hsmd.config import Settings
from tests.stand import Stand

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def option(path: str) -> object:
    value: object = Settings()
    for name in path.split("."):
        value = getattr(value, name)
    return value


def spelled(value: object) -> str:
    """A default as the table writes it; "" for what is empty."""
    return ", ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)


def test_the_two_commands_come_first() -> None:
    lines = [line.split()[0] for line in README.splitlines() if line and not line.startswith("#")]
    assert lines[:2] == ["scripts/quickstart", "scripts/test"]
    assert all(os.access(ROOT / line, os.X_OK) for line in lines[:2])


def test_the_examples_run_one_after_the_other(stand: Stand) -> None:
    assert len(EXAMPLES) == 2
    outputs = [
        subprocess.run(
            [sys.executable, "-c", example],
            env={**os.environ, **stand.dev.environment()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for example in EXAMPLES
    ]
    assert outputs[0] == ""
    assert len(outputs[1].strip()) == 188  # 8 bytes of plaintext


def test_the_options_exist_with_these_defaults() -> None:
    rows = re.findall(r"^\| (`[a-z_.`, ]+`) \| (.*?)\|", README, re.MULTILINE)
    assert len(rows) > 10
    for names, defaults in rows:
        values = [spelled(option(name)) for name in re.findall("`(.*?)`", names)]
        assert ", ".join(f"`{value}`" for value in values if value) == defaults.strip()


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md", "CHANGELOG.md"])
def test_what_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\((.*?)\)", text) if not link.startswith("https:")]
    named = re.findall(r"(?<![/\w])((?:scripts|conf|docs|systemd)/[a-z][\w./-]*\w)", text)
    beside = (ROOT / page).parent  # a link starts at its page, a name in the text at the top
    gone = [link for link in links if not (beside / link).exists()]
    assert gone + [path for path in named if not (ROOT / path).exists()] == []


def test_decisions_are_numbered_and_short() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {page.name[:4]}. ")
        assert len(text.splitlines()) < 60
