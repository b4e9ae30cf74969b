"""A wrong PIN and a token that comes late: one try by all processes together, for three may lock it."""

import re
from pathlib import Path

import pytest

from tests.faults import absent_token, processes
from tests.softhsm import MODULE, needs_folder
from tests.stand import Stand

_SPY = Path("/usr/lib/x86_64-linux-gnu/pkcs11-spy.so")  # passes calls on to the module, and writes them down
_LOGIN = re.compile(r"C_Login\n")
_REFUSED = re.compile(r"Returned: +\d+ CKR_PIN_INCORRECT")


@pytest.fixture
def spied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Stand, Path]:
    """A stand of two workers whose calls into the module are written to a file, where there is a spy."""
    stand, calls = Stand(tmp_path / "stand", {"HSMD__GRPC__WORKERS": "2"}), tmp_path / "calls"
    if _SPY.exists():
        monkeypatch.setenv("PKCS11SPY", str(MODULE))
        monkeypatch.setenv("PKCS11SPY_OUTPUT", str(calls))
        stand.settings["HSMD__HSM__TOKEN"] = f"pkcs11:token=hsmd?module-path={_SPY}"
    return stand, calls


@needs_folder
def test_a_wrong_pin_is_tried_once_when_the_token_comes_late(
    spied: tuple[Stand, Path], tmp_path: Path
) -> None:
    stand, calls = spied
    right = stand.dev.data / "pin"
    wrong = tmp_path / "wrong-pin"
    wrong.write_text("not-the-pin")
    wrong.chmod(0o600)
    stand.settings["HSMD__HSM__PIN_FILE"] = str(wrong)
    try:
        with absent_token(stand):
            stand.start(gateway=False)
            assert len(processes(stand)) == 3  # two workers and the warden: each will see it come back
            assert "PIN" not in stand.log()
        assert stand.daemon is not None
        assert stand.daemon.process.wait(60) == 78
        log = stand.log()
        assert log.count("away: the token refuses the PIN: PinIncorrect") == 1
        assert "Traceback" not in log
        assert "not-the-pin" not in log
        if _SPY.exists():
            assert len(_LOGIN.findall(calls.read_text())) == 1
            assert len(_REFUSED.findall(calls.read_text())) == 1
        stand.stop()

        stand.settings["HSMD__HSM__PIN_FILE"] = str(right)
        stand.start(gateway=False)
        with stand.client() as client:
            assert client.decrypt(client.encrypt(client.create_key("key"), b"data")) == b"data"
    finally:
        stand.stop()
