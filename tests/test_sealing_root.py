"""What root on the host finds, with the disk, the configuration and the store, but without a UKey: nothing.

The token's own folder is left out: it stands for the HSM, which nobody looks into.
"""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hsmd import sealfile
from hsmd.client import ApiError
from tests.faults import change_rows, supervisor
from tests.seals import SealedStand, found_in_memory, health, operators, packed
from tests.softhsm import MODULE, needs_folder
from tests.stand import children_of, eventually

pytestmark = pytest.mark.soak  # it takes minutes

_TRIES = """
import ctypes, sys
module = ctypes.CDLL(sys.argv[1])
module.C_Initialize(None)
count = ctypes.c_ulong(8)
slots = (ctypes.c_ulong * 8)()
module.C_GetSlotList(1, slots, ctypes.byref(count))
session = ctypes.c_ulong()
assert module.C_OpenSession(slots[0], 4, None, None, ctypes.byref(session)) == 0
for number, line in enumerate(sys.stdin.buffer):
    pin = line.rstrip(b"\\n")
    if module.C_Login(session, 1, pin, len(pin)) == 0:
        print(number)
        module.C_Logout(session)
"""


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[SealedStand]:
    one = SealedStand(tmp_path / "stand", {"HSMD__GRPC__WORKERS": "2"})
    (one.dev.data / "so-pin").unlink()  # the ceremony splits it likewise
    try:
        one.start(gateway=False)
        yield one
    finally:
        one.stop()


def _serves(stand: SealedStand) -> bool:
    doors = (stand.dev.grpc, f"127.0.0.1:{stand.admin_port}")
    return all(health(each, stand) == "SERVING" for each in doors)


def _family(stand: SealedStand) -> list[int]:
    return [supervisor(stand), *children_of(supervisor(stand))]


def _disk(stand: SealedStand) -> dict[Path, bytes]:
    """Files and what is in them; some come and go with the processes that use the store."""
    token = stand.dev.data / "token"
    found = {}
    for path in stand.dev.data.rglob("*"):
        if path.is_file() and token not in path.parents:
            with suppress(FileNotFoundError):
                found[path] = path.read_bytes()
    return found


def _forms(secret: bytes) -> list[bytes]:
    """How it could be written."""
    text = secret.decode("latin-1")
    return [
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        base64.b64encode(secret)[:-4],
        text.encode("utf-16-le"),
        text.encode("utf-32-le"),
        secret[::-1],
    ]


def _secrets(stand: SealedStand) -> dict[str, bytes]:
    """The PIN, and the shares: M of them are as good as it."""
    seal = stand.seal()
    return {"pin": stand.pin.encode()} | {each.name: each.open(seal) for each in stand.operators}


def _known(stand: SealedStand) -> set[str]:
    """Which secrets any process of the daemon has in memory."""
    family = _family(stand)
    return {
        name
        for name, secret in _secrets(stand).items()
        if any(found_in_memory(pid, form) for pid in family for form in _forms(secret)[:1])
    }


def test_memory_of_a_sealed_daemon_and_of_one_that_was_unsealed(stand: SealedStand) -> None:
    assert _known(stand) == set()
    stand.unseal(stand.operators[:2])
    eventually(lambda: _serves(stand))
    # The search finds what is there: while it is unsealed, root can read it.
    pin = stand.pin.encode()
    assert all(found_in_memory(pid, pin) for pid in _family(stand))
    assert _known(stand) == {"pin"}  # shares are gone with the processes that took them

    before = set(children_of(supervisor(stand)))
    with stand.door() as door:
        door.shut(stand.operators[2])
    eventually(lambda: not before & set(children_of(supervisor(stand))))
    eventually(lambda: stand.health() == "NOT_SERVING")
    assert supervisor(stand) in _family(stand)
    for form in _forms(pin):
        assert not any(found_in_memory(pid, form) for pid in _family(stand))
    assert _known(stand) == set()
    stand.unseal(stand.operators[1:])  # once more, and once more nothing is left
    eventually(lambda: _serves(stand))
    with stand.door() as door:
        door.shut(stand.operators[0])
    eventually(lambda: stand.health() == "NOT_SERVING")
    eventually(lambda: len(_family(stand)) == 4)
    assert _known(stand) == set()


def test_one_share_in_memory_is_no_pin(stand: SealedStand) -> None:
    """One operator has given a share: that is there, and tells nothing of the PIN."""
    with stand.door() as door:
        door.give(stand.operators[0])
        assert _known(stand) <= {"Ada"}


def test_files_environment_arguments(stand: SealedStand) -> None:
    stand.unseal()
    eventually(lambda: _serves(stand))
    with stand.client() as client:
        client.encrypt(client.create_key("books"), b"data")
    with stand.door() as door:
        door.shut(stand.operators[2])
    eventually(lambda: stand.health() == "NOT_SERVING")
    disk = _disk(stand)
    assert {path.name for path in disk} >= {"seal.json", "hsmd.toml", "hsmd.db", "warden.jsonl", "serve.log"}
    needles = [form for secret in _secrets(stand).values() for form in _forms(secret)]
    assert [path for path, content in disk.items() if any(each in content for each in needles)] == []
    for pid in _family(stand):
        for name in ("environ", "cmdline"):
            content = Path(f"/proc/{pid}/{name}").read_bytes()
            assert not any(each in content for each in needles)


def test_no_core_dumps(stand: SealedStand) -> None:
    stand.unseal()
    eventually(lambda: _serves(stand))
    for pid in _family(stand):
        (core,) = re.findall(r"Max core file size +(\S+) +(\S+)", Path(f"/proc/{pid}/limits").read_text())
        assert core == ("0", "0")
    before = set(_disk(stand)) | set(Path.cwd().glob("core*"))
    victim = children_of(supervisor(stand))[0]
    os.kill(victim, signal.SIGABRT)
    eventually(lambda: victim not in children_of(supervisor(stand)))
    assert set(_disk(stand)) | set(Path.cwd().glob("core*")) <= before


@needs_folder
def test_no_word_that_lies_about_opens_the_token(stand: SealedStand, tmp_path: Path) -> None:
    """Everything on disk and in the processes that looks like a PIN is tried on a copy of the token."""
    words = {
        word
        for content in [
            *_disk(stand).values(),
            *(Path(f"/proc/{pid}/environ").read_bytes() for pid in _family(stand)),
        ]
        for word in re.findall(rb"[!-~]{4,255}", content)
    }
    parts = {part for word in words for part in re.split(rb"[\"'=,:;/?\\]+", word) if len(part) >= 4}
    tried = sorted(words | parts)
    assert len(tried) > 200
    shutil.copytree(stand.dev.data / "token", tmp_path / "tokens")
    conf = tmp_path / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\n")
    right = stand.pin.encode()
    done = subprocess.run(
        [sys.executable, "-c", _TRIES, str(MODULE)],
        input=b"\n".join([*tried, right, b""]),
        env={**os.environ, "SOFTHSM2_CONF": str(conf)},
        capture_output=True,
        check=True,
        timeout=250,
    )
    assert done.stdout.split() == [str(len(tried)).encode()]  # the right one alone, which is nowhere there


def test_a_copy_of_the_host_stays_sealed(stand: SealedStand) -> None:
    """The same disk, started by somebody without a UKey, who tries what there is to try."""
    seal = stand.seal()
    with pytest.raises(sealfile.SealRefused):
        sealfile.unseal(seal, {})
    with pytest.raises(sealfile.SealRefused):
        sealfile.unseal(seal, {each.holder.ukey_id: each.digest for each in seal.shares})
    mallory, eve = operators("Mallory", "Eve")
    with stand.door() as door:
        for each in (mallory, eve):
            with pytest.raises(ApiError, match="no share"):
                door.begin(each)
        asked = door.begin(stand.operators[0])  # anybody may ask: what comes is for Ada's UKey alone
        request = packed(mallory, asked, bytes(32))
        request.fingerprint = stand.operators[0].fingerprint
        with pytest.raises(ApiError, match="not the share"):
            door.sealing.GiveShare(request)
    for option in ("init", "appoint"):
        argv = [Path(sys.executable).with_name("hsmd"), option, "--config", stand.dev.config]
        done = subprocess.run(
            [*argv, "--domain", "x", "--user", "y"],
            env={**os.environ, **stand.settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0


def test_a_seal_file_of_ones_own_opens_nothing(stand: SealedStand) -> None:
    """Shares for UKeys of one's own: but nobody who makes such a file knows the PIN that belongs in it."""
    ours = operators("Mallory", "Eve")
    real = json.loads(stand.seal_file.read_text())
    forged = json.loads(
        sealfile.encode(sealfile.make({"hsm": "guessed"}, [each.holder for each in ours], 2, now=0))
    )
    stand.seal_file.write_text(json.dumps(forged | {name: real[name] for name in ("iv", "sealed", "id")}))
    with stand.door() as door, pytest.raises(ApiError, match="not the share"):
        door.give(ours[0], bytes(32))
    stand.seal_file.write_text(json.dumps(forged))
    with stand.door() as door:
        door.give(ours[0])
        with pytest.raises(ApiError, match="refuses the PIN"):
            door.give(ours[1])
        assert door.status().sealed


def test_a_changed_registry_gets_no_share(stand: SealedStand) -> None:
    """Who changes the store of an unsealed daemon can't have the PIN sealed to a UKey of one's own."""
    stand.unseal()
    eventually(lambda: _serves(stand))
    before = stand.seal()
    (mallory,) = operators("Mallory")
    change_rows(
        stand,
        "UPDATE ukeys SET public_key = ?, fingerprint = ? WHERE name = 'Chen'",
        mallory.public_key,
        mallory.fingerprint,
    )
    change_rows(stand, "INSERT INTO changes (subject, id) VALUES ('ukeys', 'x')")
    stand.seal_file.unlink()
    eventually(lambda: "can't be kept in step" in stand.log())
    assert not stand.seal_file.exists()
    sealfile.write(stand.seal_file, before)
    assert mallory.fingerprint not in stand.seal_file.read_text()
