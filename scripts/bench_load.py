"""The load of scripts/bench: h2load with a fixed gRPC request, as fast as answers come, or at a pace."""

import re
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import click

_CONNECTIONS, _STREAMS = 8, 4
_AHEAD_SECONDS = 2.0  # a flood begins so long before what it is to disturb, and ends after it
_LEAST_CALLS = 2_000  # for a 99th percentile
_RATE = re.compile(r"finished in [^,]*, ([0-9.]+) req/s")
_DONE = re.compile(r"(\d+) succeeded, (\d+) failed, (\d+) errored")
_DATA = re.compile(r"\((\d+)\) data")


@dataclass(frozen=True, slots=True)
class Load:
    """Several targets are loaded at the same time, sharing the connections.

    `answer_bytes` are those of a good answer's data, None where any will do: a gRPC error has none. `pace` is
    calls a second, 0 for as many as are answered. `log`, if any, gets a file a target, for `p99`.
    """

    targets: list[list[str]]
    answer_bytes: int | None
    pace: float = 0.0
    log: Path | None = None

    def __call__(self, seconds: float) -> float:
        """Measure; requests a second. Raises ClickException unless every answer was a good one."""
        share = max(1, _CONNECTIONS // len(self.targets))
        common = ["h2load", f"-D{max(1, round(seconds))}", "-t1"]
        if self.pace:  # on one connection, as the calls of several would begin at the same moments
            common += ["-c1", f"-m{_CONNECTIONS * _STREAMS}", f"--rps={self.pace / len(self.targets):g}"]
        else:
            common += [f"-c{share}", f"-m{_STREAMS}"]
        running = [
            subprocess.Popen(  # noqa: S603 -- our own
                [*common, *self._logged(number), *target], stdout=subprocess.PIPE, text=True
            )
            for number, target in enumerate(self.targets)
        ]
        return sum(self._rate(process.communicate()[0]) for process in running)

    def _logged(self, number: int) -> list[str]:
        return [f"--log-file={self.log}.{number}"] if self.log else []

    def _rate(self, text: str) -> float:
        rate, done, data = (each.search(text) for each in (_RATE, _DONE, _DATA))
        if rate is None or done is None or data is None:
            raise click.ClickException(f"h2load said something else:\n{text}")
        succeeded, failed, errored = map(int, done.groups())
        if failed or errored or int(data[1]) < succeeded * (self.answer_bytes or 0):
            raise click.ClickException(f"not every answer was a good one:\n{text}")
        return float(rate[1])

    def p99(self, seconds: float) -> float:
        """Load, and give the 99th percentile of what an answer took; in seconds."""
        self(seconds)
        found = []
        for number in range(len(self.targets)):
            log = Path(f"{self.log}.{number}")
            found += [int(line.split("\t")[2]) / 1e6 for line in log.read_text().splitlines()]
            log.unlink()
        return statistics.quantiles(found, n=100)[98]


def grpc_load(sockets: list[Path], method: str, request: bytes, body: Path, answer_bytes: int | None) -> Load:
    """Calls of a gRPC method over Unix sockets; body becomes the file of the framed request."""
    body.write_bytes(_framed(request))
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    return Load(
        [
            ["-d", str(body), *headers, f"--base-uri=unix:{path}", f"http://localhost{method}"]
            for path in sockets
        ],
        None if answer_bytes is None else len(_framed(b"")) + answer_bytes,
    )


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


class Neighbours:
    """Two tenants: what the quiet one's calls take, alone and while the loud one asks and asks."""

    PACE = 200  # calls a second of the quiet one

    def __init__(self, quiet: Load, loud: Load, folder: Path) -> None:
        """Take what they ask for; `loud` has its pace."""
        self._quiet = replace(quiet, pace=self.PACE, log=folder / "quiet.log")
        self._loud = loud
        self._asked = 0.0

    def alone(self, seconds: float) -> float:
        """Measure, for as long as a percentile takes; 1 / the 99th percentile."""
        return 1 / self._quiet.p99(_long(seconds))

    def beside(self, seconds: float) -> float:
        """The same while the other one asks."""
        with ThreadPoolExecutor(1) as pool:
            flood = pool.submit(self._loud, _long(seconds) + 2 * _AHEAD_SECONDS)
            time.sleep(_AHEAD_SECONDS)
            found = 1 / self._quiet.p99(_long(seconds))
            self._asked = flood.result()
        return found

    def asked(self, seconds: float) -> float:
        """How often the other one asked, a second, at the latest measurement beside it."""
        if not self._asked:
            self.beside(seconds)
        return self._asked


def _long(seconds: float) -> float:
    return max(seconds, _LEAST_CALLS / Neighbours.PACE)
