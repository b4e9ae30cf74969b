"""From where a request comes: the socket's address, or behind trusted proxies what they say.

Each proxy adds the address that it was called from at the right end of one header. So the list is read from
the right, and only as long as who wrote the next entry is trusted; what a client made up stands further
left. Only the one header that the proxies are said to write is read: the other could be the client's own.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from hsmd.config import ConfigError, Gateway

UNKNOWN = "unknown"

_HEADERS = ("x-forwarded-for", "forwarded")
_MOST_HOPS = 64
_LONGEST = 64  # entry that may be an address: what was read is remembered, with its text
_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+)(?::[0-9]{1,5})?")

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Pairs = Iterable[tuple[bytes, bytes]]


class Proxies:
    """The proxies in front of the gateway. Raises ConfigError for networks and headers that are none."""

    def __init__(self, settings: Gateway) -> None:
        self._header = settings.proxy_header.lower().encode("ascii", "replace")
        if settings.proxy_header.lower() not in _HEADERS:
            raise ConfigError(f"gateway.proxy_header: one of {', '.join(_HEADERS)} is due")
        self._networks: list[Network] = []
        for text in settings.trusted_proxies:
            try:
                self._networks.append(ip_network(text))
            except ValueError as error:
                raise ConfigError(f"gateway.trusted_proxies: {error}") from error

    def trust(self, peer: str) -> bool:
        """Whether the socket's address is a trusted proxy's."""
        address = _parsed(peer.partition("%")[0]) if self._networks else None
        return address is not None and self._trusts(address)

    def source(self, peer: str, headers: Pairs) -> str:
        """The address of who calls; "unknown" where a trusted proxy names none that can be read."""
        address = _parsed(peer.partition("%")[0])  # an interface's name means nothing elsewhere
        if address is None:
            return UNKNOWN
        if not self._networks or not self._trusts(address):
            return str(address)
        for hop in self._hops(headers):
            address = _parsed(hop)
            if address is None:
                return UNKNOWN
            if not self._trusts(address):
                break
        return str(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)

    def _hops(self, headers: Pairs) -> Iterator[str]:
        """The entries from right to left, at most so many; "" for one that can't be read."""
        lines = [value for name, value in headers if name == self._header]
        # Also commas in quotes part: a quote that the client opened must not reach into a proxy's entry.
        entries = b",".join(lines).decode("latin-1").rsplit(",", _MOST_HOPS)[-_MOST_HOPS:]
        for entry in reversed(entries if lines else []):
            hop = _for(entry) if self._header == b"forwarded" else entry.strip(" \t")
            yield hop if len(hop) <= _LONGEST else ""


def _for(entry: str) -> str:
    """The value of an RFC 7239 entry's one pair `for=...`; "" where there is none, or several."""
    pairs = [pair.strip(" \t").partition("=") for pair in entry.split(";")]
    found = [value for name, _, value in pairs if name.lower() == "for"]
    return found[0].removeprefix('"').removesuffix('"') if len(found) == 1 else ""


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Address | None:
    match = _WITH_PORT.fullmatch(text)
    bare = (match[1] or match[2]) if match else text
    if "%" in bare:
        return None
    try:
        address = ip_address(bare)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
