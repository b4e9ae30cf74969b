"""Wycheproof's test vectors: outside of this repository, so whoever lacks the folder skips what needs it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_BESIDE = Path(__file__).parents[2] / "shared" / "vectors"
FOLDER = Path(os.environ.get("HSMD_TEST_VECTORS", _BESIDE)) / "wycheproof"


def cases(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each test of a file, with its group. Skips the calling test without the folder."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        pytest.skip(f"needs Wycheproof's vectors: no {path} (HSMD_TEST_VECTORS names another folder)")
    for group in json.loads(path.read_bytes())["testGroups"]:
        for test in group["tests"]:
            yield group, test
