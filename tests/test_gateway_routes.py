"""The tree of paths, and the operations of DEW held against it."""

import csv
from pathlib import Path

import pytest

from hsmd.descriptors import DescriptionError, services
from hsmd.gateway.routes import Match, Tree
from hsmd.gateway.transcoder import build

_TABLE = Path(__file__).parents[1] / ".." / "shared" / "dew" / "kms-operations.tsv"


@pytest.fixture
def tree() -> Tree[str]:
    one: Tree[str] = Tree()
    for verb, template in (
        ("GET", "/"),
        ("GET", "/{version_id}"),
        ("GET", "/v1/{project}/kms/{key_id}/tags"),
        ("POST", "/v1/{project}/kms/{key_id}/tags"),
        ("GET", "/v1/{project}/kms/access-points/{id}"),
        ("DELETE", "/v1/{project}/kms/access-points/{id}"),
        ("GET", "/v1/{project}/kms/access-points/{id}/state"),
        ("POST", "/v1/{project}/kms/{resource}/action"),
    ):
        one.add(verb, template, f"{verb} {template}")
    return one


@pytest.mark.parametrize(
    ("verb", "path", "target", "variables"),
    [
        ("GET", "/", "/", {}),
        ("GET", "/v1.0", "/{version_id}", {"version_id": "v1.0"}),
        ("GET", "/v1/p/kms/k/tags", "/v1/{project}/kms/{key_id}/tags", {"project": "p", "key_id": "k"}),
        (
            "GET",
            "/v1/p/kms/access-points/tags",
            "/v1/{project}/kms/access-points/{id}",
            {"project": "p", "id": "tags"},
        ),
        (
            "POST",
            "/v1/p/kms/access-points/tags",
            "/v1/{project}/kms/{key_id}/tags",
            {"project": "p", "key_id": "access-points"},
        ),
        (
            "POST",
            "/v1/p/kms/access-points/action",
            "/v1/{project}/kms/{resource}/action",
            {"project": "p", "resource": "access-points"},
        ),
        (
            "GET",
            "/v1/a%2Fb/kms/%C3%A4%20/tags",
            "/v1/{project}/kms/{key_id}/tags",
            {"project": "a/b", "key_id": "\u00e4 "},
        ),
    ],
)
def test_found(tree: Tree[str], verb: str, path: str, target: str, variables: dict[str, str]) -> None:
    assert tree.find(verb, path) == Match(f"{verb} {target}", variables)


@pytest.mark.parametrize(
    ("verb", "path", "verbs"),
    [
        ("PUT", "/v1/p/kms/access-points/tags", {"GET", "POST", "DELETE"}),
        ("POST", "/", {"GET"}),
        ("GET", "//", set()),
        ("GET", "/v1/p/kms/k/tags/", set()),
        ("GET", "/v1//kms/k/tags", set()),
        ("GET", "v1.0", set()),
        ("GET", "*", set()),
        ("GET", "", set()),
        ("GET", "/%ff", set()),
        ("GET", "/" + "x/" * 5000, set()),
    ],
)
def test_not_found(tree: Tree[str], verb: str, path: str, verbs: set[str]) -> None:
    assert tree.find(verb, path) == frozenset(verbs)


@pytest.mark.parametrize("template", ["/v1/{other}/kms/{name}/tags", "/{a}", "/"])
def test_twice(tree: Tree[str], template: str) -> None:
    with pytest.raises(DescriptionError, match="twice"):
        tree.add("GET", template, "another")


@pytest.mark.parametrize("template", ["/{a=**}", "/{a}:go", "/x{a}", "/{a}/{a}", "/{a.b}", "/*", "v1"])
def test_templates_that_are_not_understood(tree: Tree[str], template: str) -> None:
    with pytest.raises(DescriptionError):
        tree.add("GET", template, "x")


def test_the_same_service_twice_stops_the_start() -> None:
    with pytest.raises(DescriptionError, match="twice"):
        build([*services(), services()[0]])


def test_every_method_with_a_route_is_found_again() -> None:
    tree, routes = build(services())
    assert len(routes) > 20
    for route in routes:
        found = tree.find(route.verb, route.template.replace("{", "x").replace("}", "x"))
        assert isinstance(found, Match)
        assert found.target is route


@pytest.mark.skipif(not _TABLE.exists(), reason="the table of DEW's operations is not beside the repository")
def test_every_operation_of_dew_is_routed() -> None:
    tree, _ = build(services())
    with _TABLE.open(newline="") as file:
        rows = {row["operation"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert len(rows) > 60
    for name, row in rows.items():
        path = row["path"].replace("{", "x").replace("}", "x")
        assert isinstance(tree.find(row["method"], path), Match), name
