"""What Prometheus is told: the sheets of all processes joined, and what is known without counting."""

import math
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from hsmd import __version__, counting
from hsmd import metrics as _definitions  # noqa: F401  # they are in METRICS when this is loaded
from hsmd.config import Settings, admin_door
from hsmd.counting import METRICS, Gauge, Histogram, Labels, Metric, Reading, Sheet

_DAY = 24 * 60 * 60
_UNREADABLE = -1.0  # days: as good as expired
_GATEWAYS = "hsmd_gateway_"
_EVERYBODYS = "hsmd_process_"

Series = dict[Labels, list[float]]


class Exposition(Collector):
    """All metrics of a daemon, or of a gateway. `certificates` are PEM files by what they are for."""

    def __init__(self, certificates: Mapping[str, Path], *, of_gateway: bool) -> None:
        self._certificates = certificates
        self._of_gateway = of_gateway

    def collect(self) -> Iterator[Family]:
        """Everything, as it is now."""
        sheets = {name: sheet for name, sheet in counting.sheets().items() if sheet.pid}
        found = _joined(sheets)
        for metric in METRICS.values():
            if metric.name.startswith(_EVERYBODYS) or metric.name.startswith(_GATEWAYS) is self._of_gateway:
                yield _family(metric, found.get(metric.name, {}))
        yield from _processes(sheets)
        yield self._expiries()

    def _expiries(self) -> Family:
        family = GaugeMetricFamily(
            "hsmd_certificate_expiry_days",
            "Days until the certificate expires (of several in a file, the first); negative when it has, or"
            " can't be read. Renew it and restart what uses it.",
            labels=["certificate"],
        )
        for name, path in self._certificates.items():
            family.add_metric([name], _days_left(path))
        return family


def certificates(settings: Settings, *, of_gateway: bool) -> dict[str, Path]:
    """The certificates that a daemon or gateway uses, by what they are for."""
    gateway, grpc, own = settings.gateway, settings.grpc, settings.metrics
    found: dict[str, Path | None] = {"metrics": own.certificate, "metrics client_ca": own.client_ca}
    if of_gateway:
        found |= {
            "gateway": gateway.certificate,
            "gateway daemon": gateway.daemon_certificate,
            "gateway daemon_ca": gateway.daemon_ca,
        }
    else:
        found |= {"grpc": grpc.certificate, "grpc client_ca": grpc.client_ca}
        if settings.admin.enabled:
            door = admin_door(settings)
            found |= {"admin": door.certificate, "admin client_ca": door.client_ca}
        for peer in settings.peers:
            found |= {f"peer {peer.region}": peer.certificate, f"peer {peer.region} ca": peer.ca}
    return {name: path for name, path in found.items() if path is not None}


def _joined(sheets: Mapping[str, Sheet]) -> dict[str, Series]:
    """Counts summed over the processes; gauges of those that live, with the process as first label."""
    found: dict[str, Series] = {}
    for process, sheet in sheets.items():
        lives = _lives(sheet.pid)
        for metric, labels, values in sheet.read():
            series = found.setdefault(metric.name, {})
            if not isinstance(metric, Gauge):
                sums = series.setdefault(labels, [0.0] * metric.width)
                series[labels] = [one + other for one, other in zip(sums, values, strict=True)]
            elif lives and not math.isnan(values[0]):
                series[(process, *labels)] = values
    return found


def _family(metric: Metric, series: Series) -> Family:
    if isinstance(metric, Histogram):
        histogram = HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
        bounds = [*(f"{each:g}" for each in metric.bounds), "+Inf"]
        for labels, (total, *counts) in sorted(series.items()):
            reached = [sum(counts[: index + 1]) for index in range(len(counts))]
            histogram.add_metric(labels, list(zip(bounds, reached, strict=True)), total)
        return histogram
    names = ("process", *metric.labels) if isinstance(metric, Gauge) else metric.labels
    kind = CounterMetricFamily if metric.kind == Reading.kind else GaugeMetricFamily
    family = kind(metric.name, metric.text, labels=names)
    for labels, (value,) in sorted(series.items()):
        family.add_metric(labels, value)
    return family


def _processes(sheets: Mapping[str, Sheet]) -> Iterator[Family]:
    of_process = ["process"]
    up = GaugeMetricFamily("hsmd_process_up", "1 while the process lives.", labels=of_process)
    starts = CounterMetricFamily(
        "hsmd_process_starts_total",
        "Starts of the process, the first one included; they grow when it died or was replaced.",
        labels=of_process,
    )
    started = GaugeMetricFamily(
        "hsmd_process_start_time_seconds", "When the process was started (Unix time).", labels=of_process
    )
    lost = CounterMetricFamily(
        "hsmd_process_metrics_lost_total",
        "What was not counted as there was no room for more series: tell us, that is a bug.",
        labels=of_process,
    )
    for name, sheet in sheets.items():
        up.add_metric([name], _lives(sheet.pid))
        starts.add_metric([name], sheet.starts)
        started.add_metric([name], sheet.started)
        lost.add_metric([name], sheet.lost)
    build = GaugeMetricFamily(
        "hsmd_process_build_info", "Always 1; which version runs.", labels=["version", "python"]
    )
    build.add_metric([__version__, platform.python_version()], 1)
    yield from (up, starts, started, lost, build)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _days_left(path: Path) -> float:
    try:
        ends = min(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError):
        return _UNREADABLE
    return (ends - datetime.now(UTC)).total_seconds() / _DAY
