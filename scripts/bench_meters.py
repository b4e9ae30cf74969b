"""What scripts/bench measures in processes of its own: each repeats one operation for as long as it is told.

    python bench_meters.py METER ARGUMENT...

says "ready", then answers each line (seconds) on standard input with a line: operations a second. Meters
whose operations take turns say that of each.
"""

import os
import secrets
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path

import grpc
import pkcs11
from bench_callers import callers, mac, refusals

from hsmd import config
from hsmd.algorithms import AES_256
from hsmd.audit import Log
from hsmd.cli import hsmd as command
from hsmd.client import Client
from hsmd.client.calls import open_channel
from hsmd.daemon import wiring
from hsmd.domain.core import ROOT_KEY_LABEL
from hsmd.hsm import Token

DATA = secrets.token_bytes(1024)
ECHO = "/bench.Echo/Call"
ENCRYPT = "/hsmd.v1.Crypto/EncryptData"
RANDOM = "/hsmd.v1.Crypto/GenRandom"
_IV = bytes(12)
_ECHO_THREADS = 8  # as the daemon's
_TURN_SECONDS = 0.01  # of an operation, before it is another one's turn
Operation = Callable[[], object]


def raw_token(path: str) -> list[Operation]:
    """AES-GCM of 1 KiB through python-pkcs11 and nothing else."""
    settings = config.load(Path(path), {})
    os.environ["SOFTHSM2_CONF"] = str(settings.hsm.softhsm_conf)
    address = pkcs11.lib(settings.hsm.token.partition("module-path=")[2])
    session = address.get_token(token_label="hsmd").open(user_pin=wiring.read_pin(settings.hsm).value)  # noqa: S106 -- a label
    key = session.generate_key(pkcs11.KeyType.AES, 256, store=False)
    parameters = pkcs11.GCMParams(_IV, b"", 128)

    def encrypt() -> object:
        return key.encrypt(  # type: ignore[attr-defined]  # a mixin that the library adds by template
            DATA, mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=parameters
        )

    return [encrypt]


def token(path: str) -> list[Operation]:
    """The same through the room hsm."""
    connected = _token(path)
    root = connected.find(ROOT_KEY_LABEL)
    key = connected.unwrap(AES_256, connected.generate(AES_256, root), root)
    return [lambda: connected.encrypt(key, _IV, DATA, b"")]


def make_and_commit(path: str, database: str) -> list[Operation]:
    """What a durable create-key can't do without: generate, wrap, one commit with full synchronisation."""
    connected = _token(path)
    root = connected.find(ROOT_KEY_LABEL)
    store = sqlite3.connect(database, isolation_level=None, check_same_thread=False)  # one at a time
    for statement in (
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "CREATE TABLE keys (wrapped BLOB)",
    ):
        store.execute(statement)

    def make() -> None:
        store.execute("INSERT INTO keys VALUES (?)", (connected.generate(AES_256, root),))

    return [make]


def encrypt_data(
    target: str, ca: str, certificate: str, key: str, request: str, threads: str
) -> list[Operation]:
    """EncryptData over mutual TLS, or over a socket (unix:PATH); a connection a thread."""
    body = bytes.fromhex(request)
    calls = []
    for _ in range(int(threads)):
        channel = open_channel(
            target, ca=Path(ca), certificate=Path(certificate), key=Path(key), server_name=""
        )
        calls.append(channel.unary_unary(ENCRYPT))  # type: ignore[call-arg]  # the stubs want serializers
    return [lambda call=call: call(body, timeout=30) for call in calls]  # type: ignore[misc]  # mypy sees no default


def create_key(target: str) -> list[Operation]:
    """CreateKey over a socket, one after the other."""
    client = Client(target)
    return [lambda: client.create_key(f"bench-{secrets.token_hex(12)}")]


def _token(path: str) -> Token:
    settings = config.load(Path(path), {})
    connected = wiring.open_token(settings.hsm, wiring.read_pin(settings.hsm))
    connected.connect()
    return connected


def echo(path: str) -> None:
    """Serve empty answers on a socket, as bare as a synchronous Python server can be."""
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")
    server = grpc.server(futures.ThreadPoolExecutor(_ECHO_THREADS))
    service, method = ECHO.strip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    _say("ready")
    sys.stdin.readline()


def unaudited(*arguments: str) -> None:
    """Hsmd without an audit log, which hsmd itself can't be: what the log costs is the difference."""

    def forget(_log: Log, _record: Mapping[str, object], timeout: float) -> None:
        pass

    Log.append = forget  # type: ignore[method-assign, assignment]  # here alone
    sys.argv = ["hsmd", *arguments]
    command.main()


def repeat(operation: Operation, seconds: float) -> float:
    """Operations a second."""
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        operation()
        count += 1
    return count / elapsed


def in_turn(operations: list[Operation], seconds: float) -> list[float]:
    """Of each: how many there would be a second, if all took what the median one does."""
    took: list[list[float]] = [[] for _ in operations]
    end = time.perf_counter() + seconds * len(operations)
    while time.perf_counter() < end:
        for operation, found in zip(operations, took, strict=True):
            until = time.perf_counter() + _TURN_SECONDS
            while (began := time.perf_counter()) < until:
                operation()
                found.append(time.perf_counter() - began)
    return [1 / statistics.median(each) for each in took]


def main() -> None:
    """Be the meter that is asked for."""
    name, *arguments = sys.argv[1:]
    if name in ("echo", "unaudited"):
        {"echo": echo, "unaudited": unaudited}[name](*arguments)
        return
    known = (raw_token, token, mac, make_and_commit, encrypt_data, create_key, callers, refusals)
    meters = {each.__name__: each for each in known}
    operations: list[Operation] = meters[name](*arguments)
    for operation in operations:
        operation()
    _say("ready")
    with futures.ThreadPoolExecutor(len(operations)) as pool:
        for line in sys.stdin:
            seconds = float(line)
            if name in ("callers", "refusals"):
                _say(" ".join(map(str, in_turn(operations, seconds))))
            else:
                _say(str(sum(pool.map(repeat, operations, [seconds] * len(operations)))))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
