"""The token stops answering under load, goes away, and comes back, while the same processes go on.

Two ways, as no single one can do it all. SoftHSM2 in the workers themselves: locks on its files make it hang
inside the module, moving its folder takes the token away; every operation can be tried so. And SoftHSM2 in
another process, behind p11-kit's client module: that process can be stopped and killed, and then nothing at
all answers; but p11-kit 0.24 carries neither AES-GCM nor key wrap, so only sealed rows and random numbers can
be tried.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from hsmd.client import ApiError, Client
from hsmd.pb.v1 import crypto_pb2
from hsmd.pb.v1.crypto_pb2_grpc import CryptoStub
from tests import wrapping
from tests.faults import absent_token, frozen_token, processes
from tests.load import Load, encrypts, is_serving
from tests.softhsm import MODULE, needs_folder, other_process
from tests.stand import PATIENT, Stand, eventually, standing

_SOFT = {
    **PATIENT,
    "HSMD__GRPC__WORKERS": "2",
    "HSMD__HSM__LOADED_KEYS": "1",  # so that keys are unwrapped all the time
}


def channel(stand: Stand) -> grpc.Channel:
    """A plain gRPC client's connection, without ours around it."""
    files = (stand.dev.ca, stand.dev.key, stand.dev.certificate)
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    return grpc.secure_channel(stand.dev.grpc, credentials, [("grpc.use_local_subchannel_pool", 1)])


@pytest.fixture
def soft(tmp_path: Path) -> Iterator[Stand]:
    with standing(tmp_path, _SOFT, gateway=False) as one:
        yield one


def test_a_token_that_hangs_under_load(tmp_path: Path) -> None:
    # One worker: another, that nobody calls, would not notice what loaded keys and random numbers don't need.
    settings = {**_SOFT, "HSMD__GRPC__WORKERS": "1", "HSMD__HSM__DEADLINE_SECONDS": "2"}
    with standing(tmp_path, settings, gateway=False) as soft, soft.client() as client, channel(soft) as one:
        keys = [client.create_key(f"key-{number}") for number in range(4)]
        blobs = {client.encrypt(key, key.encode()): key for key in keys}
        before = processes(soft, workers=1)
        assert is_serving(one)
        with Load(soft, encrypts(keys)) as load:
            with frozen_token(soft):
                started = time.monotonic()
                eventually(lambda: not is_serving(one))
                print(f"NOT_SERVING {time.monotonic() - started:.1f} s after the token hung")
                load.is_refused()
                with soft.client(deadline=30) as other, pytest.raises(ApiError) as refused:
                    eventually(lambda: other.encrypt(keys[0], b"data") and None)
                assert refused.value.code == "KMS.0104"
            eventually(lambda: is_serving(one))
            load.goes_on()
        assert load.wrong == []
        assert {client.decrypt(blob): key for blob, key in blobs.items()} == {
            key.encode(): key for key in keys
        }
        assert processes(soft, workers=1) == before
        assert "unexpected" not in soft.log()


@needs_folder
def test_a_token_that_is_taken_away_and_returned(soft: Stand) -> None:
    with soft.client() as client:
        keys = [client.create_key(f"key-{number}") for number in range(4)]
        blobs = {client.encrypt(key, key.encode()): key for key in keys}
        before = processes(soft)
        for _ in range(2):
            with Load(soft, encrypts(keys)) as load:
                with absent_token(soft):
                    load.is_refused()
                load.goes_on()
            assert load.wrong == []
        eventually(lambda: answers(client))  # its worker may be one that the load has not come to
        for blob, key in blobs.items():
            assert client.decrypt(blob) == key.encode()
    assert processes(soft) == before


@needs_folder
def test_imports_while_the_token_is_away(soft: Stand, tmp_path: Path) -> None:
    """Its keys are loaded for one call each: what is gone is found anew, nothing told but KMS.0104."""
    with soft.client(deadline=60) as client:  # it makes a long RSA key for each request
        key = client.create_key("import", origin="external")
        made = wrapping.parameters(client, key)
        request = wrapping.request(tmp_path, made, bytes(range(32)))

        def done(call: Callable[[], object]) -> bool:
            try:
                call()
            except ApiError as error:
                if error.code != "KMS.0104":
                    raise
                return False
            return True

        for _ in range(2):
            with absent_token(soft):
                for call in (
                    lambda: wrapping.parameters(client, key),
                    lambda: client.imports.ImportKeyMaterial(request),
                ):
                    eventually(lambda: not done(call))  # noqa: B023  # called now
            eventually(lambda: done(lambda: wrapping.parameters(client, key)), 120)
        eventually(lambda: done(lambda: client.imports.ImportKeyMaterial(request)))
        assert client.decrypt(client.encrypt(key, b"data")) == b"data"


def answers(client: Client) -> bool:
    """Whether the worker at the other end has its token."""
    try:
        return len(client.random(16)) == 16
    except ApiError as error:
        if error.code != "KMS.0104":
            raise
        return False


@needs_folder
def test_a_daemon_that_starts_without_its_token(tmp_path: Path) -> None:
    stand = Stand(tmp_path, _SOFT)
    try:
        with absent_token(stand):
            stand.start(gateway=False)
            with channel(stand) as one, stand.client() as client:
                assert not is_serving(one)
                with pytest.raises(ApiError) as refused:
                    client.random(16)
                assert refused.value.code == "KMS.0104"
        before = processes(stand)
        with channel(stand) as one, stand.client() as client:
            eventually(lambda: is_serving(one))
            eventually(lambda: answers(client))  # another worker's turn to come back may be later
            blob = client.encrypt(client.create_key("key"), b"data")
            assert client.decrypt(blob) == b"data"
        assert processes(stand) == before
    finally:
        stand.stop()


# The token in another process

_CLIENT_MODULE = Path("/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so")
needs_p11_kit = pytest.mark.skipif(
    not (_CLIENT_MODULE.exists() and shutil.which("p11-kit")),
    reason="needs the Debian packages p11-kit and p11-kit-modules",
)


class Remote:
    """The stand's token in a process that can be stopped, killed and started again."""

    def __init__(self, stand: Stand, socket: Path) -> None:
        self._socket = socket
        self._conf = stand.dev.data / "softhsm2.conf"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        argv = ["p11-kit", "server", "--foreground", "--provider", str(MODULE), "--name", str(self._socket)]
        self._process = subprocess.Popen(
            [*argv, "pkcs11:token=hsmd"],
            env={**os.environ, "SOFTHSM2_CONF": str(self._conf)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # each of its clients gets a child of it, all in one group
        )
        eventually(self._socket.exists)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def remote(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stand, Remote]]:
    """A daemon whose token is in another process, and that process; keys key-0 to key-7."""
    settings = {"HSMD__GRPC__WORKERS": "2", "HSMD__GRPC__DEADLINE_SECONDS": "6"}
    with standing(tmp_path, settings, gateway=False) as stand:
        with stand.client() as client:
            for number in range(8):
                client.create_key(f"key-{number}")
        stand.stop()
        socket = tmp_path_factory.mktemp("s") / "s"
        server = Remote(stand, socket)
        server.start()
        stand.settings |= {
            "HSMD__HSM__TOKEN": f"pkcs11:token=hsmd?module-path={_CLIENT_MODULE}",
            "P11_KIT_SERVER_ADDRESS": f"unix:path={socket}",
        }
        try:
            stand.start(gateway=False)
            yield stand, server
            with suppress(ProcessLookupError, AssertionError):
                server.signal(signal.SIGCONT)
            stand.stop()
        finally:
            server.kill()


def seals(client: Client, number: int) -> bool:
    """Change a row, which the token seals, and read it back, which it checks; and draw a random number."""
    text = os.urandom(8).hex()
    alias = f"alias/key-{number % 8}"
    client.set_description(alias, text)
    first, second = client.random(16), client.random(16)
    return len(first) == 16 and first != second and client.describe_key(alias).key_id != ""


@pytest.mark.soak
@other_process
@needs_p11_kit
def test_a_process_of_the_token_that_stops(remote: tuple[Stand, Remote]) -> None:
    stand, server = remote
    before = processes(stand)
    with channel(stand) as one, channel(stand) as patient, Load(stand, seals, deadline=8) as load:
        for _ in range(2):
            server.signal(signal.SIGSTOP)
            started = time.monotonic()
            waiting = CryptoStub(patient).GenRandom.future(
                crypto_pb2.GenRandomRequest(random_data_length=512)
            )
            eventually(lambda: not is_serving(one))
            print(f"NOT_SERVING {time.monotonic() - started:.1f} s after the token stopped")
            load.is_refused()
            assert waiting.exception(90) is not None  # it brought no deadline of its own
            server.signal(signal.SIGCONT)
            eventually(lambda: is_serving(one))
            load.goes_on()
    assert load.wrong == []
    assert load.longest < 60
    assert processes(stand) == before


@pytest.mark.soak
@other_process
@needs_p11_kit
def test_a_process_of_the_token_that_dies(remote: tuple[Stand, Remote]) -> None:
    stand, server = remote
    before = processes(stand)
    with channel(stand) as one, Load(stand, seals) as load:
        for _ in range(2):
            server.kill()
            eventually(lambda: not is_serving(one))
            load.is_refused()
            server.start()
            started = time.monotonic()
            eventually(lambda: is_serving(one))
            print(f"SERVING {time.monotonic() - started:.1f} s after the token came back")
            load.goes_on()
    assert load.wrong == []
    assert processes(stand) == before
