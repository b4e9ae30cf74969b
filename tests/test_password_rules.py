"""What a password must be like: each rule by itself, and the regular expression that says the same."""

import re
from dataclasses import replace

import pytest

from hsmd.domain.password_rules import LONGEST, PasswordPolicy, check
from hsmd.errors import PASSWORD_REFUSED, Error

POLICY = PasswordPolicy()


def good(policy: PasswordPolicy, password: str, *, email: str = "", phone: str = "") -> bool:
    refused: Error | None = None
    try:
        check(policy, password, user="Ann-1", email=email, phone=phone)
    except Error as error:
        refused = error
    assert refused is None or refused.fault is PASSWORD_REFUSED
    assert refused is None or password not in refused.message
    return refused is None


@pytest.mark.parametrize(
    ("policy", "password", "fits"),
    [
        (POLICY, "abcdefg1", True),
        (POLICY, "abcdef1", False),
        (POLICY, "a1" * (LONGEST // 2), True),
        (POLICY, "a1" * (LONGEST // 2) + "x", False),
        (POLICY, "abcdefgh", False),
        (POLICY, "abcdefgH", True),
        (POLICY, "abcdefgé", True),  # what is no letter or digit of ASCII is special
        (replace(POLICY, password_char_combination=3), "abcdefgH", False),
        (replace(POLICY, password_char_combination=3), "abcdefH1", True),
        (replace(POLICY, password_char_combination=4), "abcdefH1", False),
        (replace(POLICY, password_char_combination=4), "abcde H1", True),
        (replace(POLICY, minimum_password_length=12), "abcdefg1-hi", False),
        (replace(POLICY, minimum_password_length=12), "abcdefg1-hij", True),
        (replace(POLICY, maximum_consecutive_identical_chars=2), "aab11-cc", True),
        (replace(POLICY, maximum_consecutive_identical_chars=2), "aaab1-cc", False),
        (replace(POLICY, maximum_consecutive_identical_chars=1), "aab1-cde", False),
    ],
)
def test_a_rule(policy: PasswordPolicy, password: str, fits: bool) -> None:
    assert good(policy, password) is fits
    assert bool(re.fullmatch(policy.regex, password)) is fits


def test_the_users_own_words() -> None:
    loose = replace(POLICY, minimum_password_length=6, password_not_username_or_invert=False)
    strict = replace(loose, password_not_username_or_invert=True)
    for word in ("annann-1", "1-nnAnna"):
        assert good(loose, word)
    check(loose, "ann-ann1", user="ann-ann1", email="", phone="")
    for word in ("ann-ann1", "ANN-ann1", "1nna-nna"):
        with pytest.raises(Error, match="backwards"):
            check(strict, word, user="ann-ann1", email="", phone="")
    assert not good(POLICY, "X-ann@example.com", email="Ann@example.com")
    assert not good(POLICY, "x-12345678901", phone="12345678901")
    assert good(POLICY, "x-12345678901", phone="")


@pytest.mark.parametrize("password", ["tab\tin it 1", "null\x00here1", "line\nbreak1", "bell\x07-here1"])
def test_what_cant_be_typed(password: str) -> None:
    assert not good(POLICY, password)
