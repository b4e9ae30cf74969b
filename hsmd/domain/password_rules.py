"""What a password must be like, by the rules that a domain has settled. Pure logic."""

from dataclasses import dataclass
from itertools import combinations, groupby

from hsmd.errors import PASSWORD_REFUSED, Error

LONGEST = 128
KINDS = "uppercase letters, lowercase letters, digits, special characters"


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    """IAM's password policy, by its names there. 0 is no rule, where the range begins with it."""

    maximum_consecutive_identical_chars: int = 0
    minimum_password_age: int = 0  # minutes
    minimum_password_length: int = 8
    number_of_recent_passwords_disallowed: int = 1
    password_not_username_or_invert: bool = True
    password_validity_period: int = 0  # days
    password_char_combination: int = 2  # of KINDS

    @property
    def requirements(self) -> str:
        """The rules on the password's own text, in words."""
        return (
            f"{self.minimum_password_length} to {LONGEST} characters,"
            f" with at least {self.password_char_combination} of these: {KINDS}"
        )

    @property
    def regex(self) -> str:
        """The same rules as a regular expression with lookaheads, as JavaScript, Java and Python read it."""
        kinds = ("[A-Z]", "[a-z]", "[0-9]", "[^A-Za-z0-9]")
        choices = "|".join("".join(f"(?=.*{kind})" for kind in some) for some in _choices(kinds, self))
        run = self.maximum_consecutive_identical_chars
        no_run = rf"(?!.*(.)\1{{{run},}})" if run else ""
        return f"^(?:{choices}){no_run}.{{{self.minimum_password_length},{LONGEST}}}$"


# The least and the most that each may be.
PASSWORD_BOUNDS: dict[str, tuple[int, int]] = {
    "maximum_consecutive_identical_chars": (0, 32),
    "minimum_password_age": (0, 1440),
    "minimum_password_length": (6, 32),
    "number_of_recent_passwords_disallowed": (0, 10),
    "password_validity_period": (0, 180),
    "password_char_combination": (2, 4),
}


def check(policy: PasswordPolicy, password: str, *, user: str, email: str, phone: str) -> None:
    """Raises Error(PASSWORD_REFUSED) for a password that the rules refuse to this user."""
    if not policy.minimum_password_length <= len(password) <= LONGEST:
        raise _refused(f"{policy.minimum_password_length} to {LONGEST} characters are due")
    if not password.isprintable():
        raise _refused("characters that can't be typed may not stand there")
    if _kinds(password) < policy.password_char_combination:
        raise _refused(f"at least {policy.password_char_combination} of these are due: {KINDS}")
    run = policy.maximum_consecutive_identical_chars
    if run and max(len(list(same)) for _, same in groupby(password)) > run:
        raise _refused(f"the same character may follow itself {run} times at most")
    lower, name = password.casefold(), user.casefold()
    if policy.password_not_username_or_invert and lower in (name, name[::-1]):
        raise _refused("it is the user's name, as it is or backwards")
    if any(known and known.casefold() in lower for known in (email, phone)):
        raise _refused("the user's e-mail address or telephone number stands in it")


def _kinds(password: str) -> int:
    found = {
        "A" if "A" <= each <= "Z" else "a" if "a" <= each <= "z" else "0" if "0" <= each <= "9" else "-"
        for each in password
    }
    return len(found)


def _choices(kinds: tuple[str, ...], policy: PasswordPolicy) -> list[tuple[str, ...]]:
    return list(combinations(kinds, policy.password_char_combination))


def _refused(reason: str) -> Error:
    return Error(PASSWORD_REFUSED, reason=reason)
