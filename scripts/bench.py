"""The table of scripts/bench: what hsmd costs over its floors, all measured in the same rounds.

The machine's speed may change from second to second. So every round measures every row once, a ratio is
taken within its round, and the table shows medians. Load is made on the same cores.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import click
from bench_callers import CALLERS, REFUSALS
from bench_load import Load, Neighbours, grpc_load
from bench_meters import DATA, ECHO, ENCRYPT, RANDOM
from bench_processes import METERS, Meters, Turns, meter
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hsmd.cli.children import Children
from hsmd.cli.signing import signed_headers
from hsmd.client import Client
from hsmd.daemon.development import Development, prepare
from hsmd.pb.v1 import crypto_pb2, limits_pb2

_WORKERS = 2
_LOCAL_THREADS = 4
_HMAC = "token: HMAC-SHA-256 through hsmd's room hsm, one process"
_WAY = "the pipeline alone, for a method open to anybody"
_WAY_AND_HMAC = "the same, and the HSM's HMAC"
_MAY, _TIMES = 20, 20  # calls a second that a project may make; how many times as many it asks for, at least
_ALONE = f"a tenant's encrypt-data 1 KiB at {Neighbours.PACE} a second, 99th percentile"
_LIMIT = "the flood: what that tenant may ask for"
_READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a row is held against another: what is compared, of both rates, and how that is written."""

    name: str
    of: Callable[[float, float], float]
    form: str


RATES = Comparison("rates", lambda ours, theirs: ours / theirs, "{:.2f}")
TIMES = Comparison("times", lambda ours, theirs: theirs / ours, "{:.2f}")
GROWTH = Comparison("times, growth in %", lambda ours, theirs: 100 * (theirs / ours - 1), "{:+.0f} %")
BEYOND = Comparison("times, difference in µs", lambda ours, theirs: 1e6 / ours - 1e6 / theirs, "{:+.0f} µs")


@dataclass(slots=True)
class Row:
    """One line of the table: what is measured, and the row and target that it is held against."""

    name: str
    measure: Callable[[float], float]
    against: str = ""
    target: str = ""
    how: Comparison = RATES
    rates: list[float] = field(default_factory=list)


def rest_load(development: Development, key: str, folder: Path, seconds: float) -> float:
    """Measure encrypt-data over HTTPS; a signature is good for 15 minutes, so one serves for a round."""
    url = f"{development.rest}/v1.0/{development.project_id}/kms/encrypt-data"
    text = "".join(chr(97 + byte % 26) for byte in DATA)
    body = folder / "rest"
    body.write_text(json.dumps({"key_id": key, "plain_text": text}))
    headers = signed_headers(
        "POST", url, body.read_bytes(), development.access_key, development.secret_key, datetime.now(UTC)
    )
    headers.pop("host")
    given = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    return Load([["--h1", "-d", str(body), *given, url]], len(DATA))(seconds)


class Bench:
    """The parts that are measured, running."""

    def __init__(self, stack: ExitStack, data: Path, sockets: Path, ports: tuple[int, int]) -> None:
        self._stack = stack
        self._sockets = sockets
        self.development = prepare(data, grpc_port=ports[0], rest_port=ports[1])
        with self.development.config.open("a", encoding="utf-8") as file:
            file.write(
                f'\n[[grpc.unix]]\npath = "{sockets}/{{worker}}.sock"\n'
                f'user_id = "{self.development.user_id}"\nproject_id = "{self.development.project_id}"\n'
            )
        environment = {
            **os.environ,
            "HSMD__GRPC__WORKERS": str(_WORKERS),
            "HSMD__LIMITS__KEYS_PER_PROJECT": "1000000",
            "HSMD__LOG__LEVEL": "WARNING",
        }
        self._loud = self._add_loud(environment)
        children = stack.enter_context(Children(20.0))
        hsmd = str(Path(sys.executable).with_name("hsmd"))
        unaudited = [sys.executable, str(METERS), "unaudited"]
        self._start_apart(children, data / "unaudited", unaudited, environment, ports[0] + 1)
        counted = {**environment, "HSMD__METRICS__ENABLED": "true", "HSMD__METRICS__PORT": str(ports[0] + 5)}
        self._start_apart(children, data / "counted", [hsmd], counted, ports[0] + 3)
        for command in ("serve", "gateway"):
            argv = [hsmd, command, "--config", str(self.development.config)]
            child = children.start(f"hsmd {command}", argv, data / f"{command}.log", environment)
            child.wait_until_ready(_READY_SECONDS)
            if command == "serve":
                self.idle_bytes = [resident(pid) for pid in _children_of(child.process.pid)]

    def _add_loud(self, settings: dict[str, str]) -> str:
        """A second tenant with a socket of its own; its project's id."""
        config = self.development.config
        argv = [str(Path(sys.executable).with_name("hsmd")), "init", "--config", str(config)]
        argv += ["--domain", "loud", "--user", "loud"]
        made = json.loads(subprocess.run(argv, capture_output=True, check=True, env=settings).stdout)  # noqa: S603 -- our own
        with config.open("a", encoding="utf-8") as file:
            file.write(
                f'\n[[grpc.unix]]\npath = "{self._sockets}/loud-{{worker}}.sock"\n'
                f'user_id = "{made["user_id"]}"\nproject_id = "{made["project_id"]}"\n'
            )
        return str(made["project_id"])

    def _start_apart(
        self, children: Children, data: Path, command: list[str], settings: dict[str, str], port: int
    ) -> None:
        """One more daemon, with one worker; its socket has the name of its folder."""
        other = prepare(data, grpc_port=port, rest_port=port + 1)
        with other.config.open("a", encoding="utf-8") as file:
            file.write(
                f'\n[[grpc.unix]]\npath = "{self._sockets}/{data.name}.sock"\n'
                f'user_id = "{other.user_id}"\nproject_id = "{other.project_id}"\n'
            )
        argv = [*command, "serve", "--config", str(other.config)]
        environment = {**settings, "HSMD__GRPC__WORKERS": "1"}
        child = children.start(f"hsmd {data.name}", argv, data / "serve.log", environment)
        child.wait_until_ready(_READY_SECONDS)

    def _apart(self, name: str) -> Load:
        target = self._sockets / f"{name}.sock"
        with Client(f"unix:{target}") as client:
            key = client.create_key("bench")
            answer = len(client.encrypt(key, DATA))
        request = crypto_pb2.EncryptDataRequest(key_id=key, plain_text=DATA).SerializeToString()
        return grpc_load([target], ENCRYPT, request, self._sockets / f"encrypt-{name}", answer)

    def rows(self) -> list[Row]:
        """Everything to measure, floors first."""
        dev, path, folder = self.development, str(self.development.config), self._sockets
        workers = [folder / f"{number}.sock" for number in range(_WORKERS)]
        echoes = [folder / f"echo-{number}.sock" for number in range(_WORKERS)]
        for echo in echoes:
            self._stack.enter_context(meter(["echo", str(echo)]))
        with Client(f"unix:{workers[0]}") as client:
            key = client.create_key("bench")
            answer = len(client.encrypt(key, DATA))
        request = crypto_pb2.EncryptDataRequest(key_id=key, plain_text=DATA).SerializeToString()

        def empty(targets: list[Path]) -> Load:
            return grpc_load(targets, ECHO, b"", folder / "empty", 0)

        def encrypt(targets: list[Path]) -> Load:
            return grpc_load(targets, ENCRYPT, request, folder / "encrypt", answer)

        def python(target: str) -> Meters:
            files = [str(each) for each in (dev.ca, dev.certificate, dev.key)]
            return Meters(self._stack, ["encrypt_data", target, *files, request.hex(), str(_LOCAL_THREADS)])

        def meters(*command: str, processes: int = 1) -> Meters:
            return Meters(self._stack, *[list(command)] * processes)

        durable = str(dev.data / "floor.db")
        return [
            Row("token: AES-GCM 1 KiB, python-pkcs11, one process", meters("raw_token", path)),
            Row("token: the same, two processes", meters("raw_token", path, processes=2)),
            Row(
                "token: the same through hsmd's room hsm, one process",
                meters("token", path),
                "token: AES-GCM 1 KiB, python-pkcs11, one process",
            ),
            Row("gRPC: empty echo, one process", empty(echoes[:1])),
            Row("gRPC: empty echo, two processes", empty(echoes)),
            Row("encrypt-data 1 KiB, one worker", encrypt(workers[:1]), "gRPC: empty echo, one process"),
            Row(
                "encrypt-data 1 KiB, one worker, no audit log",
                self._apart("unaudited"),
                "encrypt-data 1 KiB, one worker",
            ),
            Row(
                "encrypt-data 1 KiB, one worker, metrics on",
                self._apart("counted"),
                "encrypt-data 1 KiB, one worker",
                "≥ 0.97",
            ),
            Row(
                "encrypt-data 1 KiB, two workers",
                encrypt(workers),
                "gRPC: empty echo, two processes",
                "≥ 0.85",
            ),
            Row("encrypt-data 1 KiB, Python client, socket", python(f"unix:{workers[0]}")),
            Row(
                "encrypt-data 1 KiB, Python client, mutual TLS",
                python(dev.grpc),
                "encrypt-data 1 KiB, Python client, socket",
            ),
            Row(
                "REST encrypt-data 1 KiB, AK/SK, HTTPS",
                lambda seconds: rest_load(dev, key, folder, seconds),
                "encrypt-data 1 KiB, two workers",
                "≥ 0.35",
            ),
            Row("generate + wrap + one durable commit", meters("make_and_commit", path, durable)),
            Row(
                "create-key, durable, one after the other",
                meters("create_key", f"unix:{workers[0]}"),
                "generate + wrap + one durable commit",
                "≤ 3.00",
                TIMES,
            ),
            *self._neighbours(request, answer),
            Row(_HMAC, meters("mac", path, key)),
            *self._callers(path, key),
            *self._refusals(path, key),
        ]

    def _neighbours(self, request: bytes, answer: int) -> Iterator[Row]:
        """What a tenant's calls take while another one asks for more than it may."""
        dev, folder = self.development, self._sockets
        with Client(dev.grpc, ca=dev.ca, certificate=dev.certificate, key=dev.key) as client:
            limit = limits_pb2.SetLimitRequest(of_project=self._loud, name="requests", value=_MAY)
            client.limits.SetLimit(limit)
        quiet = [folder / f"{number}.sock" for number in range(_WORKERS)]
        loud = [folder / f"loud-{number}.sock" for number in range(_WORKERS)]
        refused = crypto_pb2.GenRandomRequest(random_data_length=64).SerializeToString()
        asked = grpc_load(loud, RANDOM, refused, folder / "refused", None)
        both = Neighbours(
            grpc_load(quiet, ENCRYPT, request, folder / "quiet", answer),
            replace(asked, pace=_MAY * (_TIMES + 1)),
            folder,
        )
        yield Row(
            f"a tenant that may make {_MAY} calls a second: refusals, two workers",
            asked,
            "encrypt-data 1 KiB, two workers",
        )
        yield Row(_ALONE, both.alone)
        yield Row("the same beside the flood of another tenant", both.beside, _ALONE, "≤ +50 %", GROWTH)
        yield Row(_LIMIT, lambda _seconds: float(_MAY))
        yield Row("the flood: what it did ask for", both.asked, _LIMIT, f"≥ {_TIMES}")

    def _callers(self, path: str, key: str) -> Iterator[Row]:
        """What it takes to know who calls and what it may; signatures are checked by an HMAC in the HSM."""
        turns = Turns(self._stack, ["callers", path, key])
        yield Row(_WAY, turns.of(0))
        yield Row(_WAY_AND_HMAC, turns.of(1))
        for number, (kind, conditions) in enumerate(CALLERS, 2):
            policy = "a policy with conditions" if conditions else "a plain policy"
            floor = _WAY_AND_HMAC if kind in ("signature", "temporary-key") else _WAY
            name = f"who calls and may it: {kind}, {policy}"
            yield Row(name, turns.of(number), floor, "≤ +60 µs", BEYOND)

    def _refusals(self, path: str, key: str) -> Iterator[Row]:
        """Who is known and who is not: what could be told by the time that a refusal takes."""
        turns = Turns(self._stack, ["refusals", path, key])
        for number, (name, known) in enumerate(REFUSALS):
            yield Row(name, turns.of(number), known, how=BEYOND)


def _children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def compared(row: Row, rows: dict[str, Row]) -> float | None:
    """The median of what comes out of each round."""
    if row.against not in rows:  # none is meant, or it was not asked for
        return None
    pairs = list(zip(row.rates, rows[row.against].rates, strict=True))
    return statistics.median(row.how.of(*pair) for pair in pairs)


def table(rows: list[Row]) -> Table:
    """The figures, for people."""
    named = {row.name: row for row in rows}
    numbers = {row.name: str(number) for number, row in enumerate(rows, 1)}
    shown = Table(
        "", "what", "a second", "least to most", "µs each", "ratio", "to", "target", title="hsmd bench"
    )
    for column in (shown.columns[0], *shown.columns[2:]):
        column.justify, column.no_wrap = "right", True
    for row in rows:
        middle, share = statistics.median(row.rates), compared(row, named)
        shown.add_row(
            numbers[row.name],
            row.name,
            f"{middle:,.0f}",
            f"{min(row.rates):,.0f} to {max(row.rates):,.0f}",
            f"{1e6 / middle:,.0f}",
            "" if share is None else row.how.form.format(share),
            numbers.get(row.against, ""),
            row.target,
        )
    return shown


def document(rows: list[Row], bench: Bench, rounds: int, seconds: float) -> dict[str, object]:
    """The figures, for programs."""
    named = {row.name: row for row in rows}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "rounds": rounds,
        "seconds": seconds,
        "idle_resident_bytes": bench.idle_bytes,
        "rows": [
            {
                "name": row.name,
                "unit": "operations a second",
                "median": statistics.median(row.rates),
                "rounds": row.rates,
                "against": row.against or None,
                "ratio": compared(row, named),
                "ratio_of": row.how.name,
                "target": row.target or None,
            }
            for row in rows
        ],
    }


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--seconds", type=click.IntRange(1), default=3, show_default=True, help="For each row, a round."
)
@click.option("--only", default="", help="Rows with this in their names, and those they are held against.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("bench.json"))
@click.option("--grpc-port", type=int, default=17443, show_default=True)
@click.option("--rest-port", type=int, default=18443, show_default=True)
def main(rounds: int, seconds: int, only: str, out: Path, grpc_port: int, rest_port: int) -> None:
    """Measure hsmd against its floors on this machine."""
    if shutil.which("h2load") is None:
        raise click.ClickException("h2load is missing: the Debian package is nghttp2-client")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)  # a file has no width
    with ExitStack() as stack:
        # Data on the disk of the working folder, as durable as that; sockets need a short path.
        data = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix=".hsmd-dev-bench-", dir=Path.cwd()))
        )
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hsmd-")))
        bench = Bench(stack, data, sockets, (grpc_port, rest_port))
        rows = bench.rows()
        wanted = {name for row in rows if only in row.name for name in (row.name, row.against)}
        rows = [row for row in rows if row.name in wanted]
        for _ in track(range(rounds), "Rounds", console=console):
            for row in rows:
                row.rates.append(row.measure(seconds))
    out.write_text(json.dumps(document(rows, bench, rounds, seconds), indent=2) + "\n", encoding="utf-8")
    console.print(table(rows))
    megabytes = ", ".join(f"{each / 1e6:.0f} MB" for each in bench.idle_bytes)
    console.print(f"Resident when idle, each worker and the warden: {megabytes}")
    console.print(f"Written to {out}")


if __name__ == "__main__":
    main()
