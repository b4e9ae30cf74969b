"""From where a domain may be used: its address rules, and how addresses are spelled.

A domain that has settled no rules may be used from everywhere. Its rules count for every kind of evidence,
passwords too; not for local sockets, which have no address and rules of their own (owner, group, mode).
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hsmd.domain.core import Call, Core
from hsmd.errors import IDENTITY_REFUSED, Error
from hsmd.store import settings

LOCAL = "local"  # the source of a call by a Unix socket
UNKNOWN = "unknown"  # the source of a call whose address a trusted proxy did not tell

_LONGEST = 64  # characters of an address with its zone: what is longer is none, and not remembered

log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Rules:
    """Ranges of addresses, each from its first to its last; `None` where any address is allowed."""

    ranges: tuple[tuple[Address, Address], ...] | None

    def allow(self, source: str) -> bool:
        """Whether a call from this source is allowed; one without a known address is by no range."""
        if self.ranges is None or source == LOCAL:
            return True
        address = parsed(source)
        return address is not None and any(
            first <= address <= last  # type: ignore[operator]  # of one version, as looked at before
            for first, last in self.ranges
            if first.version == address.version
        )


_ANYWHERE = Rules(None)
_NOWHERE = Rules(())


@lru_cache(maxsize=4096)
def parsed(text: str) -> Address | None:
    """The address; an IPv4 one also where it came mapped into IPv6; None for what is none, or has a zone."""
    if len(text) > _LONGEST or "%" in text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def spelled(text: str) -> str:
    """The address in its one spelling; "unknown" for what is none."""
    return _spelled(text) if len(text) <= _LONGEST else UNKNOWN


@lru_cache(maxsize=4096)
def _spelled(text: str) -> str:
    address = parsed(text)
    return UNKNOWN if address is None else str(address)


def check(call: Call, domain_id: str) -> None:
    """Raises Error(IDENTITY_REFUSED) when the domain's rules do not allow the call's source."""
    core, source = call.core, call.caller.source
    rules = core.people.get(domain_id, "sources", lambda: _load(core, domain_id), lambda _: (domain_id,))
    if not rules.allow(source):
        raise Error(IDENTITY_REFUSED, reason=f"current ip:{source} refused")


def read(document: str) -> Rules:
    """Rules from IAM's JSON: `allow_address_netmasks` and `allow_ip_ranges`; both empty: from anywhere.

    Raises ValueError for what is not of that form.
    """
    tree = json.loads(document)
    try:
        masks = [each["address_netmask"] for each in tree.get("allow_address_netmasks") or ()]
        ranges = [each["ip_range"] for each in tree.get("allow_ip_ranges") or ()]
        found = (*_of_masks(masks), *_of_ranges(ranges))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the address rules are not of IAM's form: {error!r}") from error
    return Rules(found) if found else _ANYWHERE


def _of_masks(masks: Iterable[str]) -> Iterable[tuple[Address, Address]]:
    for text in masks:
        network = ip_network(text, strict=False)
        yield network[0], network[-1]


def _of_ranges(ranges: Iterable[str]) -> Iterable[tuple[Address, Address]]:
    for text in ranges:
        first, _, last = text.partition("-")
        ends = ip_address(first.strip()), ip_address(last.strip() or first.strip())
        if ends[0].version != ends[1].version:
            raise ValueError("a range is of IPv4 or of IPv6 addresses")
        yield ends


def _load(core: Core, domain_id: str) -> Rules:
    with core.store.read() as tx:
        document = settings.setting(tx, domain_id, settings.API_ACL)
    if document is None:
        return _ANYWHERE
    try:
        return read(document)
    except ValueError:  # nobody is let in by rules that can't be read
        log.exception("the address rules of domain %s can't be read: all calls are refused", domain_id)
        return _NOWHERE
