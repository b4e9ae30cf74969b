"""The units: systemd accepts them, finds them hardened, and they fit the code that they start."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hsmd.config import Settings
from hsmd.daemon.supervisor import EX_CONFIG
from hsmd.daemon.wiring import PIN_CREDENTIAL

FOLDER = Path(__file__).parent.parent / "systemd"
UNITS = ("hsmd.service", "hsmd-gateway.service")

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)


def service(unit: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names are case-sensitive
    parser.read(FOLDER / unit, encoding="utf-8")
    return parser["Service"]


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_the_unit(tmp_path: Path, unit: str) -> None:
    here = (
        (FOLDER / unit).read_text(encoding="utf-8").replace("/opt/hsmd/bin", str(Path(sys.executable).parent))
    )
    (tmp_path / unit).write_text(here, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if unit in line] == []
    assert done.returncode == 0


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_exposure_is_low(unit: str) -> None:
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--no-pager",
        "--threshold=20",
        str(FOLDER / unit),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:]


@pytest.mark.parametrize(
    ("unit", "grace"),
    [
        ("hsmd.service", Settings().grpc.grace_seconds),
        ("hsmd-gateway.service", Settings().gateway.grace_seconds),
    ],
)
def test_stopping_waits_longer_than_the_grace_time(unit: str, grace: float) -> None:
    assert float(service(unit)["TimeoutStopSec"]) >= grace + 10


@pytest.mark.parametrize("unit", UNITS)
def test_what_a_restart_can_not_mend_is_not_restarted(unit: str) -> None:
    options = service(unit)
    assert options["Restart"] == "on-failure"
    assert options["RestartPreventExitStatus"] == str(EX_CONFIG)


def test_the_pin_comes_by_the_credential_that_the_daemon_reads() -> None:
    assert service("hsmd.service")["LoadCredential"].partition(":")[0] == PIN_CREDENTIAL
    assert Settings().hsm.pin_file is None


def test_default_paths_are_the_units_own() -> None:
    options, settings = service("hsmd.service"), Settings()
    assert settings.hsm.lock_file.parent == Path("/run") / options["RuntimeDirectory"]
    state = Path("/var/lib") / options["StateDirectory"]
    assert settings.audit.directory.is_relative_to(state)
    assert settings.store.url == f"sqlite:///{state}/hsmd.db"


def test_users_of_the_units_are_made() -> None:
    lines = (FOLDER / "hsmd.sysusers.conf").read_text(encoding="utf-8").splitlines()
    made = {line.split()[1] for line in lines if line.startswith("u ")}
    assert made == {service(unit)["User"] for unit in UNITS}


def test_the_gateway_can_not_read_what_is_the_daemons() -> None:
    hidden = service("hsmd-gateway.service")["InaccessiblePaths"].split()
    assert {"-/var/lib/hsmd", "-/etc/hsmd/hsm-pin"} <= set(hidden)
    assert "LoadCredential" not in service("hsmd-gateway.service")
