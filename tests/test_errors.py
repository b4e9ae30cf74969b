"""The table of faults holds together, and agrees with DEW's own table where that is at hand."""

import csv
import string
from pathlib import Path
from typing import Any

import grpc
import pytest

from hsmd.errors import BY_CODE, FAULTS, KEY_DISABLED, KEY_NOT_FOUND, Error, Fault

DEW_TABLE = Path(__file__).parent.parent.parent / "shared" / "dew" / "error-codes.tsv"


def fields(fault: Fault) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(fault.text) if name is not None]


def identify(fault: Fault) -> str:
    return f"{fault.code}-{fault.grpc}"


@pytest.mark.skipif(not DEW_TABLE.exists(), reason="DEW's table is not part of the repository")
def test_every_code_is_dews_with_its_status() -> None:
    with DEW_TABLE.open(encoding="utf-8", newline="") as file:
        theirs = {row["error_code"]: int(row["http_status"]) for row in csv.DictReader(file, delimiter="\t")}
    ours = {(fault.code, fault.http) for fault in FAULTS if not fault.code.startswith("IAM.")}
    assert {(code, theirs.get(code)) for code, _ in ours} == ours


def test_one_code_means_one_http_status() -> None:
    assert {(fault.code, fault.http) for fault in FAULTS} == {
        (code, fault.http) for code, fault in BY_CODE.items()
    }


def test_the_table_is_whole() -> None:
    assert len(FAULTS) > 40
    assert len({(fault.code, fault.text) for fault in FAULTS}) == len(FAULTS)
    assert BY_CODE["KMS.0209"] is KEY_DISABLED  # of those that share a code, the first


@pytest.mark.parametrize("fault", FAULTS, ids=identify)
def test_a_fault_is_well_formed(fault: Fault) -> None:
    room, _, number = fault.code.partition(".")
    assert room in {"KMS", "APIGW", "IAM"}
    assert len(number) == 4
    assert number.isdigit()
    assert fault.http in {400, 401, 403, 404, 405, 409, 413, 429, 500, 503}
    assert fault.grpc in grpc.StatusCode.__members__
    assert (fault.http >= 500) == (fault.grpc in {"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"})


@pytest.mark.parametrize("fault", FAULTS, ids=identify)
def test_a_text_is_one_sentence_or_two_with_all_its_values(fault: Fault) -> None:
    values: dict[str, Any] = {name: f"<{name}>" for name in fields(fault)}
    assert all(name.isidentifier() for name in values)
    message = Error(fault, **values).message
    assert message.endswith(".")
    assert not message.endswith("..")
    assert "\n" not in message
    assert "{" not in message
    assert all(value in message for value in values.values())


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fields(fault)], ids=identify)
def test_a_text_without_its_values_is_a_mistake_of_ours(fault: Fault) -> None:
    with pytest.raises(KeyError):
        Error(fault)


def test_an_error_carries_its_fault_and_text() -> None:
    error = Error(KEY_DISABLED, key="1f2e")
    assert error.fault is KEY_DISABLED
    assert error.message == "The key 1f2e is disabled."
    assert str(error) == "KMS.0209: The key 1f2e is disabled."


def test_a_missing_key_says_nothing_about_whose_it_is() -> None:
    assert fields(KEY_NOT_FOUND) == []
