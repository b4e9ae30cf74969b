"""The alert rules of conf/prometheus, by Prometheus' own tool: well formed, firing when they should."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_PLACES = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
PROMTOOL = shutil.which("promtool", path=_PLACES) or ""
RULES = "conf/prometheus/hsmd.rules.yml"

pytestmark = pytest.mark.skipif(
    not PROMTOOL, reason="promtool is not on this machine (scripts/test fetches it)"
)


def promtool(*arguments: str) -> str:
    done = subprocess.run([PROMTOOL, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_are_well_formed() -> None:
    assert "SUCCESS" in promtool("check", "rules", RULES)


def test_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", "tests/hsmd.rules.test.yml")
