"""Every operation of the cloud's IAM SDK is routed here, or docs/iam.md says what it answers instead."""

import inspect
import re
from functools import cache
from pathlib import Path

import huaweicloudsdkiam.v3 as iam
import pytest

from hsmd.descriptors import services
from hsmd.gateway.routes import Match, Tree
from hsmd.gateway.transcoder import Route, build
from tests.calls import refused
from tests.stand import Stand

_PAGE = Path(__file__).parent.parent / "docs" / "iam.md"
_ROW = re.compile(r"\| `(\w+)` \| `(\w+) (\S+)` \| (\d+) `(\S+)` \|")
_OPERATION = re.compile(
    r"def _(\w+)_http_info\(cls, request\):\s+http_info = \{\s+"
    r'"method": "(\w+)",\s+"resource_path": "([^"]+)"'
)

# Whose paths belong to another operation here.
TAKEN = {"keystone_list_versions", "keystone_show_version"}


@cache
def operations() -> dict[str, tuple[str, str]]:
    """Verb and path of each, from the SDK's own code."""
    return {name: (verb, path) for name, verb, path in _OPERATION.findall(inspect.getsource(iam.IamClient))}


@cache
def not_built() -> dict[str, tuple[str, str, int, str]]:
    """Verb, path, status and code of each that the page lists."""
    return {
        name: (verb, path, int(status), code)
        for name, verb, path, status, code in _ROW.findall(_PAGE.read_text())
    }


@pytest.fixture(scope="module")
def tree() -> Tree[Route]:
    return build(services())[0]


def test_the_sdk_is_read_whole() -> None:
    own = re.compile(r"_(\w+)_http_info")
    assert len(operations()) > 140
    assert {match[1] for name in dir(iam.IamClient) if (match := own.fullmatch(name))} == set(operations())


@pytest.mark.parametrize("name", sorted(operations()))
def test_an_operation_is_routed_or_listed(name: str, tree: Tree[Route]) -> None:
    verb, path = operations()[name]
    found = tree.find(verb, path.replace("{", "x").replace("}", "x"))
    assert isinstance(found, Match) is (name not in not_built())
    if isinstance(found, Match):
        assert found.target.call.startswith("/hsmd.v1.Service/") is (name in TAKEN)


def test_what_is_listed_answers_so(stand: Stand) -> None:
    token = stand.token()
    for verb, path, status, code in not_built().values():
        answer = stand.rest(verb, path.replace("{", "x").replace("}", "x"), token=token)
        assert answer.status == status, (verb, path)
        refused(answer, code)


def test_the_list_is_the_sdks() -> None:
    known = operations()
    assert {name: row[:2] for name, row in not_built().items()} == {name: known[name] for name in not_built()}
