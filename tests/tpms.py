"""A TPM 2.0 for tests: swtpm, and tpm2-pkcs11 over it, in a folder of its own."""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.stand import free_port, kept

_PLACES = ("/usr/lib/*/pkcs11/libtpm2_pkcs11.so", "/usr/lib/*/libtpm2_pkcs11.so*")
SO_PIN, PIN = "tpm-so-pin", "tpm-pin"
_SECONDS = 20.0


def module() -> Path | None:
    """tpm2-pkcs11 as Debian has it."""
    found = [path for place in _PLACES for path in sorted(Path("/").glob(place[1:]))]
    return found[0] if found else None


def missing() -> str:
    """Why there can be no TPM here; "" where there can."""
    if shutil.which("swtpm") is None:
        return "swtpm is not installed (Debian: swtpm, libtss2-tcti-swtpm0)"
    return "" if module() else "tpm2-pkcs11 is not installed (Debian: libtpm2-pkcs11-1)"


@dataclass(frozen=True)
class Tpm:
    """A running TPM with one token. `environment` is what its module has to be told."""

    uri: str
    pin: str
    environment: dict[str, str]


@contextmanager
def running(folder: Path, label: str) -> Iterator[Tpm]:
    """A TPM with a token of that label, without a key."""
    path = module()
    assert path is not None
    for name in ("state", "store"):
        (folder / name).mkdir(parents=True)
    ports = _two_ports()
    servers = [f"type=tcp,port={port},bindaddr=127.0.0.1" for port in ports]
    argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder / 'state'}"]
    argv += ["--server", servers[0], "--ctrl", servers[1], "--flags", "not-need-init,startup-clear"]
    with (folder / "swtpm.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    environment = {
        "TPM2_PKCS11_TCTI": f"swtpm:host=127.0.0.1,port={ports[0]}",
        "TPM2_PKCS11_STORE": str(folder / "store"),
        "TPM2_PKCS11_BACKEND": "esysdb",
        "TSS2_LOG": "all+none",
    }
    try:
        _wait(ports[1], process)
        initialise = [sys.executable, "-m", "tests.tpms", str(path), label]
        done = subprocess.run(
            initialise,
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[1],
            check=False,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        yield Tpm(f"pkcs11:token={label};object=hsmd?module-path={path}", PIN, environment)
    finally:
        process.terminate()
        process.wait()


def _two_ports() -> tuple[int, int]:
    """One for commands, and the next one for control, as the TSS takes it."""
    while not kept((port := free_port()) + 1):
        pass
    return port, port + 1


def _wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "swtpm ended"
            assert time.monotonic() < end, "swtpm does not listen"
            time.sleep(0.05)
        else:
            return


def _initialise(path: str, label: str) -> None:
    """A token in the first slot, by the calls of PKCS#11; in a process of its own, as modules load once."""
    calls: Any = ctypes.CDLL(path)
    slots, count, session = (ctypes.c_ulong * 8)(), ctypes.c_ulong(8), ctypes.c_ulong()
    so_pin, pin = SO_PIN.encode(), PIN.encode()
    steps: tuple[Callable[[], int], ...] = (
        lambda: calls.C_Initialize(None),
        lambda: calls.C_GetSlotList(1, slots, ctypes.byref(count)),
        lambda: calls.C_InitToken(slots[0], so_pin, len(so_pin), label.encode().ljust(32)),
        lambda: calls.C_OpenSession(slots[0], 6, None, None, ctypes.byref(session)),
        lambda: calls.C_Login(session, 0, so_pin, len(so_pin)),
        lambda: calls.C_InitPIN(session, pin, len(pin)),
        lambda: calls.C_Finalize(None),
    )
    for number, step in enumerate(steps):
        answer = step()
        if answer:
            sys.exit(f"step {number}: CKR 0x{answer:x}")


if __name__ == "__main__":
    _initialise(*sys.argv[1:])
