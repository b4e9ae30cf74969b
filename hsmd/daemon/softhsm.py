"""Makes a SoftHSM2 token in a folder of its own, for development and tests."""

import os
import shutil
import subprocess
from pathlib import Path

from hsmd.config import ConfigError

_TOOL = "softhsm2-util"
_MODULES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),  # Debian, Ubuntu
    Path("/usr/lib64/pkcs11/libsofthsm2.so"),  # Fedora
    Path("/usr/local/lib/softhsm/libsofthsm2.so"),  # from source
)


def module() -> Path:
    """Return where SoftHSM2's PKCS#11 module lies. Raises ConfigError when it is not installed."""
    for path in _MODULES:
        if path.exists():
            return path
    raise ConfigError("SoftHSM2 is not installed: the Debian package is softhsm2")


def configuration(tokens: Path) -> str:
    """Return the text of a softhsm2.conf for the tokens in that folder."""
    return (
        f"directories.tokendir = {tokens}\n"
        "objectstore.backend = file\n"
        "log.level = ERROR\n"
        "slots.removable = false\n"
    )


def make_token(folder: Path, label: str, so_pin: str, pin: str) -> None:
    """Make folder, holding one initialised token; it appears whole or not at all.

    Raises ConfigError when softhsm2-util is missing or refuses.
    """
    if shutil.which(_TOOL) is None:
        raise ConfigError(f"{_TOOL} is missing: the Debian package is softhsm2")
    staged = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(mode=0o700)
    conf = folder.with_name(f"{folder.name}.new.conf")
    conf.write_text(configuration(staged), encoding="utf-8")
    said, code = _answer_prompts(
        [_TOOL, "--init-token", "--free", "--label", label],
        {**os.environ, "SOFTHSM2_CONF": str(conf)},
        [so_pin, so_pin, pin, pin],
    )
    conf.unlink()
    if code != 0:
        raise ConfigError(f"{_TOOL} could not make a token in {folder}: {said.strip()}")
    staged.rename(folder)


def _answer_prompts(argv: list[str], environment: dict[str, str], answers: list[str]) -> tuple[str, int]:
    """Run argv on a terminal of its own and answer its PIN prompts; returns what it said and its exit code.

    softhsm2-util takes PINs as arguments, which every user of the machine can read, or from a terminal.
    It does not read them from a pipe.
    """
    ours, its = os.openpty()
    with subprocess.Popen(  # noqa: S603 -- fixed argv
        argv, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True
    ) as process:
        os.close(its)
        said, waiting = b"", list(answers)
        while chunk := _read(ours):
            said += chunk
            if said.rstrip().endswith(b"PIN:") and waiting:
                os.write(ours, waiting.pop(0).encode() + b"\n")
                said += b"\n"
        os.close(ours)
    return said.decode(errors="replace"), process.returncode


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # EIO: the other side has closed
        return b""
