"""What a tenant notices while another one asks for twenty times what it may: figures, for people to read."""

import sys
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import quantiles

import pytest

from hsmd.client import ApiError, Client
from tests.stand import Stand, Tenant, standing

_RATE = 50  # calls a second for each project
_TIMES = 20
_SECONDS = 20.0
_FLOODING = 8  # threads, each over a connection of its own


def measured(client: Client, key: str, seconds: float) -> list[float]:
    """How long each call took of a tenant that makes half of the calls that it may; in seconds, sorted."""
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.monotonic()
        client.encrypt(key, b"sixteen bytes.. ")
        found.append(time.monotonic() - started)
        time.sleep(max(0.0, started + 2 / _RATE - time.monotonic()))
    return sorted(found)


class Flood:
    """Threads that ask, all together, for so many times what they may, whatever they are told."""

    def __init__(self, stand: Stand, who: Tenant) -> None:
        self.told: Counter[str] = Counter()
        self._clients = [stand.client(who) for _ in range(_FLOODING)]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(each,)) for each in self._clients]

    def __enter__(self) -> "Flood":
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()
        for client in self._clients:
            client.close()

    def _work(self, client: Client) -> None:
        pause = _FLOODING / (_RATE * _TIMES)
        due = time.monotonic()
        while not self._stop.is_set():
            try:
                client.random(8)
                code = "OK"
            except ApiError as error:
                code = error.code or error.status.name
            self.told[code] += 1
            due += pause
            time.sleep(max(0.0, due - time.monotonic()))


@pytest.mark.soak
def test_another_tenant_s_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"HSMD__GRPC__WORKERS": "2", "HSMD__LIMITS__REQUESTS_PER_PROJECT": str(_RATE)}
    with standing(tmp_path / "stand", settings, gateway=False) as stand:
        quiet, loud = stand.add_tenant("quiet"), stand.add_tenant("loud")
        with stand.client(quiet) as client:
            key = client.create_key("books")
            measured(client, key, 3)
            alone = measured(client, key, _SECONDS)
            with Flood(stand, loud) as flood:
                time.sleep(1)
                started, before = time.monotonic(), Counter(flood.told)
                beside = measured(client, key, _SECONDS)
                took, told = time.monotonic() - started, flood.told - before
    asked = sum(told.values()) / took
    lines = [f"the flood: {asked:.0f} calls a second, {told['OK'] / took:.1f} of them admitted"]
    for name, found in (("alone", alone), ("beside it", beside)):
        cuts = [1000 * each for each in quantiles(found, n=100)]
        lines.append(f"{name:>9}: p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms, {len(found)} calls")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert set(told) <= {"OK", "APIGW.0308"}  # and the quiet one was never refused, or it would have raised
    assert told["OK"] <= 1.1 * _RATE * (took + 1)
