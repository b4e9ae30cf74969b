"""docs/audit.md: its commands run one after the other, and its names are the product's."""

import os
import re
import subprocess
import sys
from pathlib import Path

from hsmd.config import Audit
from hsmd.domain.core import AUDIT_KEY_LABEL
from tests.stand import standing

PAGE = (Path(__file__).parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


def test_the_commands_run_one_after_the_other(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with standing(tmp_path / "stand", {"HSMD__AUDIT__CHECKPOINT_SECONDS": "0.2"}, gateway=False) as stand:
        with stand.client() as client:
            client.create_key("key")
        stand.restart_daemon()  # it has signed for all of it
        environment = {
            **os.environ,
            **stand.settings,
            "CONFIG": str(stand.dev.config),
            "AUDIT": str(stand.dev.data / "audit"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = [
            subprocess.run(
                ["bash", "-euo", "pipefail", "-c", each],
                cwd=work,
                env=environment,
                capture_output=True,
                text=True,
            )
            for each in COMMANDS
        ]
    assert [each.stderr for each in done if each.returncode] == []
    assert len(done) == 5
    assert done[1].stdout.count("The log is whole") == 2
    assert "The log is whole" in done[2].stdout
    assert '"event": "createKey"' in done[3].stdout
    assert done[4].stdout.startswith("Receiver")
    assert '"event":"createKey"' in (work / "audit.jsonl").read_text()
    assert '"createKey"' in (work / "audit.csv").read_text()


def test_names_are_those_of_the_product() -> None:
    options = set(re.findall(r"`audit\.([a-z_]+)", PAGE))
    assert options <= set(Audit.__dataclass_fields__)
    assert len(options) > 5
    assert f"`{AUDIT_KEY_LABEL}`" in PAGE
    events = re.findall(r"`(audit[A-Z][A-Za-z]+)`", PAGE)
    source = "".join(path.read_text() for path in (Path(__file__).parents[1] / "hsmd" / "audit").glob("*.py"))
    assert len(set(events)) == 5
    assert all(f'"{event}"' in source for event in events)
