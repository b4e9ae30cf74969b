"""The gateway believes only proxies that it is told to, and only the entries that they have written."""

from dataclasses import replace

import pytest

from hsmd.config import ConfigError, Gateway
from hsmd.gateway.forwarded import Proxies

TRUSTED = ("10.0.0.0/8", "fd00::/8")


def source(
    peer: str, *lines: str, header: str = "X-Forwarded-For", trusted: tuple[str, ...] = TRUSTED
) -> str:
    settings = replace(Gateway(), trusted_proxies=trusted, proxy_header=header)
    pairs = [(header.lower().encode(), line.encode("latin-1")) for line in lines]
    return Proxies(settings).source(peer, pairs)


def test_nobody_is_believed_by_default() -> None:
    assert Gateway().trusted_proxies == ()
    assert source("10.0.0.1", "192.0.2.1", trusted=()) == "10.0.0.1"


def test_a_stranger_is_not_believed() -> None:
    assert source("198.51.100.1", "192.0.2.1") == "198.51.100.1"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1:4711"], "192.0.2.1"),
        (["192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        (["192.0.2.1", "10.0.0.2, 10.0.0.3"], "192.0.2.1"),
        (["203.0.113.9, 192.0.2.1"], "192.0.2.1"),  # what the client made up
        (["203.0.113.9", "192.0.2.1"], "192.0.2.1"),  # in a line of its own
        (["10.9.9.9, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        (["garbage, 192.0.2.1"], "192.0.2.1"),  # nobody looks so far left
        (["2001:db8::1"], "2001:db8::1"),
        (["[2001:DB8:0::1]:443"], "2001:db8::1"),
        (["2001:db8::1, fd00::7"], "2001:db8::1"),
        (["::ffff:192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1, ::ffff:10.0.0.2"], "192.0.2.1"),
        (["10.0.0.7, 10.0.0.2"], "10.0.0.7"),  # all trusted: the first of them calls
        ([], "10.0.0.1"),  # the proxy itself
    ],
)
def test_the_rightmost_entry_that_no_proxy_could_be(lines: list[str], expected: str) -> None:
    assert source("10.0.0.1", *lines) == expected


@pytest.mark.parametrize(
    "line",
    [
        "unknown",
        "",
        "192.0.2.1,",
        "192.0.2.256",
        "192.0.2.1 10.0.0.2",
        "fe80::1%eth0",
        "localhost",
        "1" * 9999,
        "192.0.2.1:99999999",
        "[192.0.2.1",
        "010.0.0.1",
        "\xff",
        "192.0.2.1\x00",
    ],
)
def test_an_entry_of_a_proxy_that_can_not_be_read_is_nobody(line: str) -> None:
    assert source("10.0.0.1", line) == "unknown"
    assert source("10.0.0.1", f"{line}, 10.0.0.2" if line else "") == "unknown"


def test_a_long_chain_ends() -> None:
    assert source("10.0.0.1", ", ".join(["192.0.2.1", *["10.0.0.2"] * 1000])) == "10.0.0.2"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("for=192.0.2.1", "192.0.2.1"),
        ('For="192.0.2.1:4711"; proto=https ;by=10.0.0.1', "192.0.2.1"),
        ('for="[2001:db8::1]:443"', "2001:db8::1"),
        ("for=203.0.113.9, for=192.0.2.1;proto=https, for=10.0.0.2", "192.0.2.1"),
        ('for=203.0.113.9;x=", for="[2001:db8::1]"', "2001:db8::1"),  # a quote that the client opened
        ('for="203.0.113.9, for=192.0.2.1', "192.0.2.1"),
        ("for=unknown", "unknown"),
        ("for=_hidden", "unknown"),
        ("proto=https", "unknown"),
        ("for=192.0.2.1;for=203.0.113.9", "unknown"),
        ("192.0.2.1", "unknown"),
    ],
)
def test_forwarded(line: str, expected: str) -> None:
    assert source("10.0.0.1", line, header="Forwarded") == expected


def test_only_the_header_of_the_proxies_is_read() -> None:
    settings = replace(Gateway(), trusted_proxies=TRUSTED)
    pairs = [(b"forwarded", b"for=203.0.113.9"), (b"x-forwarded-for", b"192.0.2.1")]
    assert Proxies(settings).source("10.0.0.1", pairs) == "192.0.2.1"


@pytest.mark.parametrize(
    ("peer", "expected"),
    [("::ffff:192.0.2.1", "192.0.2.1"), ("fe80::1%eth0", "fe80::1"), ("", "unknown"), ("unix", "unknown")],
)
def test_the_socket_s_own_address(peer: str, expected: str) -> None:
    assert source(peer) == expected


def test_a_mapped_proxy_is_trusted_by_its_ipv4_address() -> None:
    assert source("::ffff:10.0.0.1", "192.0.2.1") == "192.0.2.1"


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"trusted_proxies": ("10.0.0.1/8",)}, "trusted_proxies"),  # bits outside the network: a slip
        ({"trusted_proxies": ("proxy",)}, "trusted_proxies"),
        ({"proxy_header": "X-Real-IP"}, "proxy_header"),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(options: dict[str, object], option: str) -> None:
    with pytest.raises(ConfigError, match=f"gateway.{option}"):
        Proxies(replace(Gateway(), **options))  # type: ignore[arg-type]  # wrong ones on purpose
