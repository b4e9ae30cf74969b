"""PKCS#11 URIs (RFC 7512): what is read, what is refused, and that writing gives it back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmd.hsm import Address, AddressError, parse_address

_TEXT = st.text(min_size=0, max_size=40)
_PATH = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40).map(
    lambda text: Path("/" + text)
)


def test_reads_what_it_names() -> None:
    uri = (
        "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;"
        "serial=4a5b&6;slot-id=327;slot-description=SLOT;slot-manufacturer=M"
        "?module-path=/usr/lib/p11%20kit/x.so&x-vendor=1&x-vendor=2"
    )
    assert parse_address(uri) == Address(
        module_path=Path("/usr/lib/p11 kit/x.so"),
        token="The Software PKCS#11 Softtoken",
        manufacturer="Snake Oil, Inc.",
        model="1.0",
        serial="4a5b&6",
        slot_id=327,
        slot_description="SLOT",
        slot_manufacturer="M",
    )


def test_the_scheme_has_no_case_and_an_empty_value_is_a_value() -> None:
    assert parse_address("PKCS11:token=?module-path=/m") == Address(Path("/m"), token="")
    assert parse_address("pkcs11:?module-path=/m") == Address(Path("/m"))


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("", "begins with pkcs11"),
        ("pkcs12:token=a?module-path=/m", "begins with pkcs11"),
        ("pkcs11:token=a", "module-path: is missing"),
        ("pkcs11:token=a?module-path=m.so", "absolute path"),
        ("pkcs11:token=a?module-path=/m%00", "absolute path"),
        ("pkcs11:token=a?module-path=/m&module-path=/m", "stands twice"),
        ("pkcs11:token=a;token=b?module-path=/m", "token: stands twice"),
        ("pkcs11:token?module-path=/m", "name=value"),
        ("pkcs11:token=a;?module-path=/m", "name=value"),
        ("pkcs11:token=a b?module-path=/m", "percent-encoded"),
        ("pkcs11:token=é?module-path=/m", "percent-encoded"),
        ("pkcs11:token=a%2?module-path=/m", "percent-encoded"),
        ("pkcs11:token=a%FF?module-path=/m", "not UTF-8"),
        ("pkcs11:token=a\n?module-path=/m", "percent-encoded"),
        ("pkcs11:slot-id=x?module-path=/m", "decimal"),
        ("pkcs11:slot-id=-1?module-path=/m", "decimal"),
        ("pkcs11:tokens=a?module-path=/m", "no such attribute"),
        ("pkcs11:x-vendor=a?module-path=/m", "no such attribute"),
        ("pkcs11:token=a;object=k?module-path=/m", "names an object"),
        ("pkcs11:token=a?module-name=softhsm", "chosen by module-path"),
        ("pkcs11:token=a?module-path=/m&pin-source=/p", "PIN's file"),
    ],
)
def test_refuses(uri: str, why: str) -> None:
    with pytest.raises(AddressError, match=why):
        parse_address(uri)


def test_a_pin_is_refused_and_not_repeated() -> None:
    with pytest.raises(AddressError) as refused:
        parse_address("pkcs11:token=a?module-path=/m&pin-value=271828")
    assert "271828" not in str(refused.value)


@given(
    st.builds(
        Address,
        module_path=_PATH,
        token=st.none() | _TEXT,
        serial=st.none() | _TEXT,
        manufacturer=st.none() | _TEXT,
        model=st.none() | _TEXT,
        slot_description=st.none() | _TEXT,
        slot_manufacturer=st.none() | _TEXT,
        slot_id=st.none() | st.integers(0, 2**63 - 1),
    )
)
def test_written_and_read_again_it_is_the_same(address: Address) -> None:
    assert parse_address(str(address)) == address


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    for uri in (
        text,
        "pkcs11:" + text,
        f"pkcs11:token={text}?module-path=/m",
        "pkcs11:?module-path=/" + text,
    ):
        try:
            address = parse_address(uri)
        except AddressError:
            continue
        assert parse_address(str(address)) == address
