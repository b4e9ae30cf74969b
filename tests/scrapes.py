"""What Prometheus would see of a stand: its listeners' settings, and their samples."""

import ssl
import urllib.request
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from tests.stand import free_port


@dataclass(frozen=True)
class Listeners:
    """Ports that nobody has, for a stand's daemon and gateway."""

    port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)

    @property
    def settings(self) -> dict[str, str]:
        return {
            "HSMD__METRICS__ENABLED": "true",
            "HSMD__METRICS__PORT": str(self.port),
            "HSMD__METRICS__GATEWAY_PORT": str(self.gateway_port),
        }

    def daemon(self, context: ssl.SSLContext | None = None) -> "Scrape":
        return scrape(self.port, context)

    def gateway(self) -> "Scrape":
        return scrape(self.gateway_port)


@dataclass(frozen=True)
class Scrape:
    """One answer."""

    text: str

    def samples(self, name: str, **labels: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Those of a name that have these labels, by all of their labels."""
        return {
            tuple(sorted(each.labels.items())): each.value
            for family in text_string_to_metric_families(self.text)
            for each in family.samples
            if each.name == name and labels.items() <= each.labels.items()
        }

    def sum(self, name: str, **labels: str) -> float:
        return sum(self.samples(name, **labels).values())

    def label(self, name: str, label: str) -> set[str]:
        """All values of one label."""
        return {value for labels in self.samples(name) for key, value in labels if key == label}


def scrape(port: int, context: ssl.SSLContext | None = None) -> Scrape:
    scheme = "https" if context else "http"
    url = f"{scheme}://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=30, context=context) as got:  # noqa: S310 -- http or https
        assert got.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return Scrape(got.read().decode())
