"""The table of PKCS#11 faults knows every class of the library."""

import inspect

import pytest
from pkcs11 import exceptions as p11

from hsmd.hsm import faults
from hsmd.hsm.faults import TABLE, Sort, check, name_of, sort_of

_CLASSES = [kind for _, kind in inspect.getmembers(p11, inspect.isclass) if issubclass(kind, p11.PKCS11Error)]


@pytest.mark.parametrize("kind", _CLASSES)
def test_every_class_of_the_library_stands_in_the_table_once(kind: type[p11.PKCS11Error]) -> None:
    assert [row[0] for row in TABLE].count(kind) == 1


def test_every_return_value_stands_there_once_and_gives_its_class() -> None:
    codes = [code for _, code, _ in TABLE if code is not None]
    assert len(set(codes)) == len(codes)
    for kind, code, _ in TABLE:
        if code is not None:
            with pytest.raises(kind) as raised:
                check(code)
            assert type(raised.value) is kind


def test_unknown_values_are_unknown_and_named() -> None:
    for code in (0x190, 0x80000001):
        with pytest.raises(p11.PKCS11Error) as raised:
            check(code)
        assert sort_of(raised.value) is Sort.UNKNOWN
        assert name_of(raised.value) == f"PKCS11Error CKR 0x{code:X}"
    check(0)


def test_a_class_of_a_later_library_counts_as_its_parent() -> None:
    class Later(p11.KeyHandleInvalid):
        pass

    assert sort_of(Later()) is Sort.OBJECT


@pytest.mark.parametrize(
    "kind", [p11.PinIncorrect, p11.PinLocked, p11.PinExpired, p11.PinInvalid, p11.PinLenRange]
)
def test_what_the_pin_is_to_blame_for_is_never_tried_again(kind: type[p11.PKCS11Error]) -> None:
    assert sort_of(kind()) is Sort.PIN


def test_the_refusal_tells_about_the_pin() -> None:
    assert faults.TokenRefused("text", pin=True).pin
    assert not faults.TokenRefused("text").pin
