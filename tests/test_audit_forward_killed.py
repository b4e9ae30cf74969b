"""A whole daemon that is killed forwards every record all the same."""

import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

from hsmd.audit import cursors
from tests.receivers import Syslog, authority, context
from tests.stand import eventually, free_port, standing

_HSMCTL = str(Path(sys.executable).with_name("hsmctl"))
NAME = "siem"


def reads_some(server: Syslog, connection: ssl.SSLSocket) -> None:
    server.read(connection, most=3)


def test_a_daemon_that_is_killed(tmp_path: Path) -> None:
    """Every record that was written is forwarded, with its checkpoints, over kill -9 and a bad receiver."""
    tls = tmp_path / "tls"
    tls.mkdir()
    server = Syslog(context(authority(tls).server("server", ["127.0.0.1"])), port=free_port())
    target = f'name = "{NAME}", url = "syslog+tls://127.0.0.1:{server.port}", ca = "{tls / "ca.pem"}"'
    settings = {
        "HSMD__AUDIT__FORWARD": f"[{{ {target}, batch_records = 5 }}]",
        "HSMD__AUDIT__CHECKPOINT_SECONDS": "0.5",
    }
    with standing(tmp_path / "stand", settings, gateway=False) as stand:
        directory = stand.dev.data / "audit"

        def calls(count: int) -> None:
            with stand.client() as client:
                for _ in range(count):
                    client.status()

        calls(10)
        server.serve = reads_some
        with server.listening():
            eventually(lambda: len(server.messages) > 3)
            stand.kill_everything()
        server.serve = lambda self, connection: self.read(connection)
        with server.listening():
            stand.start(gateway=False)
            calls(10)
            eventually(lambda: cursors.standing(directory, NAME).behind == 0, 60)
            eventually(lambda: server.lines("checkpoints"), 60)
            argv = [_HSMCTL, "--json", "audit", "forwarders", "--config", str(stand.dev.config)]
            done = subprocess.run(argv, capture_output=True, check=True, env={**os.environ, **settings})
            assert [(each["name"], each["error"]) for each in json.loads(done.stdout)] == [(NAME, "")]
            stand.stop()
        written = {each["request_id"] for each in stand.audit() if each["method"].endswith("GetStatus")}
        assert len(written) == 20
        assert written <= {each.record.get("request_id") for each in server.messages}
        assert "is not forwarded" in stand.log()
