"""Tags from end to end: put, replaced, taken away, and keys found by them."""

from typing import Any
from urllib.parse import quote

import huaweicloudsdkkms.v2 as kms
import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.cli.hsmctl import run
from hsmd.client import Client
from hsmd.pb.v1 import keys_pb2
from hsmd.pb.v1 import tags_pb2 as pb
from tests.backstage import backstage
from tests.calls import fresh, record, refusal, refused, sequence
from tests.stand import Answer, Stand, eventually

Filters = dict[str, list[str]]


def tag(client: Client, key: str, name: str, value: str = "") -> None:
    client.tags.CreateTag(pb.CreateTagRequest(key_id=key, tag=pb.Tag(key=name, value=value)))


def batch(client: Client, key: str, action: str, *pairs: tuple[str, str]) -> None:
    request = pb.BatchTagsRequest(key_id=key, action=f"TAG_ACTION_{action}")
    request.tags.extend(pb.Tag(key=name, value=value) for name, value in pairs)
    client.tags.BatchTags(request)


def shown(client: Client, key: str) -> list[tuple[str, str]]:
    answer = client.tags.ShowTags(pb.ShowTagsRequest(key_id=key))
    assert answer.exist_tags_num == len(answer.tags)
    return [(each.key, each.value) for each in answer.tags]


def search(
    client: Client, filters: Filters | None = None, name: str = "", **wanted: Any
) -> pb.ListKeysByTagsResponse:
    request = pb.ListKeysByTagsRequest(**{"resource_instances": "resource_instances", **wanted})
    for key, values in (filters or {}).items():
        request.tags.add(key=key, values=values)
    if name:
        request.matches.add(key="resource_name", value=name)
    answer: pb.ListKeysByTagsResponse = client.tags.ListKeysByTags(request)
    return answer


def ids(client: Client, filters: Filters | None = None, name: str = "", **wanted: Any) -> list[str]:
    answer = search(client, filters, name, limit=1000, **wanted)
    assert answer.total_count == len(answer.resources)
    return [each.resource_id for each in answer.resources]


class Rest:
    """Operations on tags over REST, with a token."""

    def __init__(self, stand: Stand, token: str) -> None:
        self._stand, self._token = stand, token

    def __call__(self, verb: str, path: str, body: object = None) -> Answer:
        base = f"/v1.0/{self._stand.dev.project_id}/kms/"
        return self._stand.rest(verb, base + path, body, token=self._token)


@pytest.fixture(scope="module")
def over_rest(stand: Stand) -> Rest:
    return Rest(stand, stand.token())


# On one key


def test_tags_are_put_replaced_and_taken_away(client: Client) -> None:
    alias = fresh()
    key_id = client.create_key(alias)
    assert shown(client, key_id) == []
    tag(client, key_id, "b", "1")
    tag(client, f"alias/{alias}", "a", "Zoë, 木 🔑")
    assert shown(client, key_id) == [("a", "Zoë, 木 🔑"), ("b", "1")]
    tag(client, key_id, "b", "2")
    tag(client, key_id, "a")
    assert shown(client, f"alias/{alias}") == [("a", ""), ("b", "2")]
    client.tags.DeleteTag(pb.DeleteTagRequest(key_id=key_id, key="a"))
    assert shown(client, key_id) == [("b", "2")]
    with refusal("KMS.0416"):
        client.tags.DeleteTag(pb.DeleteTagRequest(key_id=key_id, key="a"))
    assert shown(client, key_id) == [("b", "2")]


def test_many_at_once(client: Client) -> None:
    key_id = client.create_key(fresh())
    batch(client, key_id, "CREATE", ("a", "1"), ("b", "2"), ("c", "3"))
    batch(client, key_id, "CREATE", ("c", "4"), ("d", ""))
    assert shown(client, key_id) == [("a", "1"), ("b", "2"), ("c", "4"), ("d", "")]
    for pairs in ([("a", ""), ("x", "")], [("a", "1"), ("b", "other")], [("A", "")]):
        with refusal("KMS.0416"):
            batch(client, key_id, "DELETE", *pairs)
        assert len(shown(client, key_id)) == 4
    batch(client, key_id, "DELETE", ("a", "1"), ("b", ""), ("d", ""))
    assert shown(client, key_id) == [("c", "4")]


def test_ten_tags_and_no_more(client: Client) -> None:
    key_id = client.create_key(fresh())
    batch(client, key_id, "CREATE", *((f"k{number}", "v") for number in range(9)))
    with refusal("KMS.0409"):
        batch(client, key_id, "CREATE", ("k0", "new"), ("k9", "v"), ("k10", "v"))
    assert ("k0", "v") in shown(client, key_id)
    tag(client, key_id, "k9", "v")
    with refusal("KMS.0409") as seen:
        tag(client, key_id, "k10", "v")
    assert "10" in seen.last.message
    batch(client, key_id, "CREATE", ("k0", "new"), ("k9", "new"))  # replacing needs no room
    assert len(shown(client, key_id)) == 10
    with refusal("KMS.0407"):
        batch(client, key_id, "DELETE", *((f"k{number}", "") for number in range(11)))
    assert len(shown(client, key_id)) == 10


LONG_KEY, LONG_VALUE = "ü" * 36, "ü" * 43
BAD_TAGS: list[tuple[str, str, str]] = [
    ("", "v", "KMS.0406"),
    ("  ", "v", "KMS.0406"),
    (LONG_KEY + "x", "v", "KMS.0411"),
    ("k", LONG_VALUE + "x", "KMS.0410"),
    *((f"k{bad}", "v", "KMS.0406") for bad in "*<>\\=\n\t\0\x1f\x7f\u202e"),
    *(("k", f"v{bad}", "KMS.0405") for bad in "*<>\\=\n\t\0\x1f\x7f\u202e"),
]


@pytest.mark.parametrize(("name", "value", "code"), BAD_TAGS)
def test_tags_that_may_not_be(client: Client, over_rest: Rest, name: str, value: str, code: str) -> None:
    key_id = client.create_key(fresh())
    tag(client, key_id, "old", "1")
    with refusal(code):
        tag(client, key_id, name, value)
    with refusal(code):
        batch(client, key_id, "CREATE", ("good", "x"), (name, value))
    body = {"tag": {"key": name, "value": value}}
    refused(over_rest("POST", f"{key_id}/tags", body), code)
    assert shown(client, key_id) == [("old", "1")]


def test_tags_as_long_as_they_may_be(client: Client) -> None:
    key_id = client.create_key(fresh())
    tag(client, key_id, LONG_KEY, LONG_VALUE)
    assert ids(client, {LONG_KEY: [LONG_VALUE]}) == [key_id]


def test_keys_that_take_no_tags(client: Client, over_rest: Rest) -> None:
    client.encrypt("alias/elb/default", b"x")
    default = client.describe_key("alias/elb/default").key_id
    waiting = client.create_key(fresh())
    tag(client, waiting, "a", "1")
    client.schedule_deletion(waiting, 7)
    for key_id, code in ((default, "KMS.0211"), (waiting, "KMS.0210")):
        with refusal(code):
            tag(client, key_id, "b", "1")
        with refusal(code):
            batch(client, key_id, "CREATE", ("b", "1"))
        with refusal(code):
            batch(client, key_id, "DELETE", ("a", "1"))
        with refusal(code):
            client.tags.DeleteTag(pb.DeleteTagRequest(key_id=key_id, key="a"))
    assert shown(client, waiting) == [("a", "1")]
    assert shown(client, default) == []


def test_what_is_missing_or_of_another_type(client: Client, over_rest: Rest) -> None:
    key_id, nobody = client.create_key(fresh()), "00000000-0000-4000-8000-000000000000"
    find = "resource_instances/action"
    for verb, path, body, code in (
        ("POST", f"{key_id}/tags", {}, "KMS.0204"),
        ("POST", f"{key_id}/tags", {"tag": None}, "KMS.0204"),
        ("POST", f"{key_id}/tags", {"tag": "a"}, "KMS.0414"),
        ("POST", f"{key_id}/tags", {"tag": {}}, "KMS.0406"),
        ("POST", f"{key_id}/tags", {"tag": {"key": 5}}, "KMS.0406"),
        ("POST", f"{key_id}/tags", {"tag": {"key": "a", "value": []}}, "KMS.0405"),
        ("POST", f"{key_id}/tags", {"tag": {"key": "a"}, "sequence": "short"}, "KMS.0206"),
        ("POST", f"{nobody}/tags", {"tag": {"key": "a"}}, "KMS.0207"),
        ("POST", "x/tags", {"tag": {"key": "a"}}, "KMS.0205"),
        ("GET", f"{nobody}/tags", None, "KMS.0207"),
        ("GET", "x/tags", None, "KMS.0205"),
        ("DELETE", f"{key_id}/tags/a", None, "KMS.0416"),
        ("DELETE", f"{key_id}/tags/{'a' * 37}", None, "KMS.0411"),
        ("DELETE", f"{key_id}/tags/a%3D", None, "KMS.0406"),
        ("DELETE", f"{nobody}/tags/a", None, "KMS.0207"),
        ("POST", f"{key_id}/tags/action", {"action": "create"}, "KMS.0401"),
        ("POST", f"{key_id}/tags/action", {"action": "create", "tags": []}, "KMS.0401"),
        ("POST", f"{key_id}/tags/action", {"action": "delete", "tags": []}, "KMS.0401"),
        ("POST", f"{key_id}/tags/action", {"tags": [{"key": "a"}]}, "KMS.0204"),
        ("POST", f"{key_id}/tags/action", {"action": "update", "tags": [{"key": "a"}]}, "KMS.0404"),
        ("POST", f"{key_id}/tags/action", {"action": 1, "tags": [{"key": "a"}]}, "KMS.0404"),
        ("POST", f"{key_id}/tags/action", {"action": "create", "tags": {}}, "KMS.0407"),
        ("POST", f"{key_id}/tags/action", {"action": "create", "tags": [{"key": "a"}] * 2}, "KMS.0412"),
        ("POST", f"{key_id}/tags/action", {"action": "create", "tags": [{"key": "a"}] * 11}, "KMS.0407"),
        ("POST", f"{key_id}/action", {"action": "filter"}, "KMS.0212"),
        ("POST", find, {"action": "find"}, "KMS.0404"),
        ("POST", find, {"limit": "0"}, "KMS.1601"),
        ("POST", find, {"limit": "1001"}, "KMS.1601"),
        ("POST", find, {"limit": "ten"}, "KMS.1601"),
        ("POST", find, {"offset": "-1"}, "KMS.0417"),
        ("POST", find, {"offset": "ten"}, "KMS.0417"),
        ("POST", find, {"offset": "9" * 30}, "KMS.0417"),
        ("POST", find, {"action": "count", "offset": "1"}, "KMS.0418"),
        ("POST", find, {"tags": [{"key": ""}]}, "KMS.0406"),
        ("POST", find, {"tags": [{"values": ["a"]}]}, "KMS.0406"),
        ("POST", find, {"tags": [{"key": "a" * 37}]}, "KMS.0411"),
        ("POST", find, {"tags": [{"key": "a", "values": ["v" * 44]}]}, "KMS.0410"),
        ("POST", find, {"tags": [{"key": "a", "values": ["="]}]}, "KMS.0405"),
        ("POST", find, {"tags": [{"key": "a", "values": "v"}]}, "KMS.0413"),
        ("POST", find, {"tags": [{"key": "a", "values": [str(n) for n in range(11)]}]}, "KMS.0413"),
        ("POST", find, {"tags": [{"key": "a", "values": ["v", "v"]}]}, "KMS.0412"),
        ("POST", find, {"tags": [{"key": "a"}, {"key": "a"}]}, "KMS.0412"),
        ("POST", find, {"tags": [{"key": str(n)} for n in range(11)]}, "KMS.0407"),
        ("POST", find, {"tags": "a"}, "KMS.0407"),
        ("POST", find, {"matches": "a"}, "KMS.0415"),
        ("POST", find, {"matches": [{"key": "resource_name", "value": "a"}] * 2}, "KMS.0415"),
        ("POST", find, {"matches": [{"key": "resource_name", "value": "a"}] * 11}, "KMS.0415"),
        ("POST", find, {"matches": [{"key": "key_id", "value": "a"}]}, "KMS.0403"),
        ("POST", find, {"matches": [{"value": "a"}]}, "KMS.0403"),
        ("POST", find, {"matches": [{"key": "resource_name"}]}, "KMS.0402"),
        ("POST", find, {"matches": [{"key": "resource_name", "value": "a" * 256}]}, "KMS.0402"),
        ("POST", find, {"matches": [{"key": "resource_name", "value": "\0"}]}, "KMS.0402"),
        ("POST", find, {"sequence": "short"}, "KMS.0206"),
        ("POST", find, b"[", "KMS.0202"),
        ("PUT", f"{key_id}/tags", {}, "KMS.0215"),
    ):
        refused(over_rest(verb, path, body), code)
    assert shown(client, key_id) == []


def test_what_only_grpc_can_ask(client: Client) -> None:
    key_id = client.create_key(fresh())
    for wanted, code in (
        ({"action": 9}, "KMS.0404"),
        ({"resource_instances": ""}, "KMS.0212"),
        ({"limit": 0}, "KMS.1601"),
        ({"offset": -(2**31)}, "KMS.0417"),
    ):
        with refusal(code):
            search(client, **wanted)
    with refusal("KMS.0204"):
        client.tags.BatchTags(pb.BatchTagsRequest(key_id=key_id, tags=[pb.Tag(key="a")]))
    with refusal("KMS.0413"):
        search(client, {"a": [str(number) for number in range(11)]})
    request = pb.ListKeysByTagsRequest(resource_instances="resource_instances")
    for number in range(11):
        request.tags.add(key=str(number))
    with refusal("KMS.0407"):
        client.tags.ListKeysByTags(request)


# Keys found


def test_keys_are_found_by_all_tags_and_any_of_their_values(client: Client) -> None:
    room, floor = fresh("r")[:36], fresh("f")[:36]
    keys = [client.create_key(fresh()) for _ in range(4)]
    for key_id, pairs in zip(
        keys,
        ([(room, "1"), (floor, "a")], [(room, "2"), (floor, "a")], [(room, "3")], [(floor, "b")]),
        strict=True,
    ):
        batch(client, key_id, "CREATE", *pairs)
    assert ids(client, {room: []}) == keys[:3]
    assert ids(client, {room: ["1", "2"]}) == keys[:2]
    assert ids(client, {room: ["1", "3"], floor: ["a"]}) == keys[:1]
    assert ids(client, {room: [], floor: []}) == keys[:2]
    assert ids(client, {room: ["4"]}) == []
    assert ids(client, {floor: ["a"], room: ["3"]}) == []
    assert ids(client, {room.upper(): []}) == []
    tag(client, keys[0], room, "2")
    assert ids(client, {room: ["2"]}) == keys[:2]
    client.tags.DeleteTag(pb.DeleteTagRequest(key_id=keys[0], key=room))
    assert ids(client, {room: []}) == keys[1:3]


def test_keys_are_found_by_their_names(client: Client) -> None:
    part = fresh("x_")[2:]
    first = client.create_key(f"Shelf_{part}")
    second = client.create_key(f"{part}/box")
    client.create_key(f"shelf-{part[:-1]}")
    assert ids(client, name=part) == [first, second]
    assert ids(client, name=part.upper()) == [first, second]
    assert ids(client, name=f"f_{part}") == [first]
    assert ids(client, name=f"f%{part}") == []  # no pattern: these are letters like any others
    assert ids(client, name=f"{part[:-1]}_box") == []
    tag(client, second, "kind", "box")
    assert ids(client, {"kind": ["box"]}, name=part) == [second]


def test_by_pages(client: Client) -> None:
    mark = fresh("m")[:36]
    keys = [client.create_key(fresh()) for _ in range(12)]
    for key_id in keys:
        tag(client, key_id, mark)
    usual = search(client, {mark: []})
    assert [each.resource_id for each in usual.resources] == keys[:10]
    assert usual.total_count == 12
    seen: list[str] = []
    for offset in range(0, 15, 5):
        page = search(client, {mark: []}, limit=5, offset=offset)
        assert page.total_count == 12
        seen += [each.resource_id for each in page.resources]
    assert seen == keys
    assert not search(client, {mark: []}, offset=12).resources
    counted = search(client, {mark: []}, action=pb.TAG_QUERY_COUNT)
    assert (counted.total_count, len(counted.resources)) == (12, 0)
    everything = search(client, action=pb.TAG_QUERY_COUNT).total_count
    assert everything == len(list(client.list_keys()))


def test_what_is_found_is_told_in_full(client: Client) -> None:
    alias = fresh()
    key_id = client.create_key(alias, description="of the house")
    batch(client, key_id, "CREATE", ("b", "2"), ("a", ""))
    (found,) = search(client, name=alias).resources
    assert found.resource_detail == client.describe_key(key_id)
    assert (found.resource_id, found.resource_name) == (key_id, alias)
    assert [(each.key, each.value) for each in found.tags] == [("a", ""), ("b", "2")]


def test_every_tag_of_the_project(stand: Stand) -> None:
    with stand.client(stand.add_tenant("tagger")) as client:
        assert list(client.tags.ListTags(pb.ListTagsRequest()).tags) == []
        first, second = client.create_key(fresh()), client.create_key(fresh())
        batch(client, first, "CREATE", ("floor", "1"), ("room", "a"))
        batch(client, second, "CREATE", ("floor", "2"), ("room", "a"), ("mark", ""))
        told = client.tags.ListTags(pb.ListTagsRequest()).tags
        assert [(each.key, list(each.values)) for each in told] == [
            ("floor", ["1", "2"]),
            ("mark", [""]),
            ("room", ["a"]),
        ]


def test_a_destroyed_key_has_none(stand: Stand, client: Client) -> None:
    name = fresh("gone")[:36]
    key_id = client.create_key(fresh())
    tag(client, key_id, name, "x")
    client.schedule_deletion(key_id, 7)
    assert ids(client, {name: []}) == [key_id]
    backstage(stand, "due", key_id)
    with refusal("KMS.0207"):
        shown(client, key_id)
    eventually(lambda: ids(client, {name: []}) == [])
    assert name not in {each.key for each in client.tags.ListTags(pb.ListTagsRequest()).tags}
    assert search(client, {name: []}, action=pb.TAG_QUERY_COUNT).total_count == 0


# Tenants, roles, audit


def test_tenants_do_not_see_each_other(client: Client, strange: Client) -> None:
    name = fresh("t")[:36]
    mine, theirs = client.create_key(fresh()), strange.create_key(fresh())
    tag(client, mine, name, "1")
    for call in (
        lambda: tag(strange, mine, "a", "1"),
        lambda: batch(strange, mine, "CREATE", ("a", "1")),
        lambda: batch(strange, mine, "DELETE", (name, "1")),
        lambda: strange.tags.DeleteTag(pb.DeleteTagRequest(key_id=mine, key=name)),
        lambda: shown(strange, mine),
    ):
        with refusal("KMS.0207"):
            call()
    assert ids(strange, {name: []}) == []
    tag(strange, theirs, name, "2")
    assert ids(strange, {name: []}) == [theirs]
    assert ids(client, {name: []}) == [mine]
    assert mine not in ids(strange)
    told = {each.key: list(each.values) for each in strange.tags.ListTags(pb.ListTagsRequest()).tags}
    assert told[name] == ["2"]


def test_a_reader_may_look_and_nothing_else(stand: Stand, client: Client) -> None:
    reader = stand.add_tenant("tag-reader", ())
    backstage(stand, "role", reader.user_id, stand.dev.project_id, "KMS CMKReadOnlyAccess")
    key_id = client.create_key(fresh())
    tag(client, key_id, "a", "1")
    with stand.client(reader, project_id=stand.dev.project_id) as looking:
        assert shown(looking, key_id) == [("a", "1")]
        assert key_id in ids(looking)
        assert "a" in {each.key for each in looking.tags.ListTags(pb.ListTagsRequest()).tags}
        for call in (
            lambda: tag(looking, key_id, "b", "1"),
            lambda: batch(looking, key_id, "DELETE", ("a", "1")),
            lambda: looking.tags.DeleteTag(pb.DeleteTagRequest(key_id=key_id, key="a")),
        ):
            with refusal("KMS.0330") as seen:
                call()
            assert record(stand, seen.last.request_id)["result"] == "KMS.0330"
    assert shown(client, key_id) == [("a", "1")]


def test_what_the_audit_log_says(stand: Stand, client: Client, over_rest: Rest) -> None:
    alias = fresh()
    key_id = client.create_key(alias)
    by_alias = quote(f"alias/{alias}", safe="")
    for verb, path, body, event, resource in (
        ("POST", f"{by_alias}/tags", {"tag": {"key": "a"}}, "dealUnifiedTags", key_id),
        ("GET", f"{by_alias}/tags", None, "showKmsTags", key_id),
        ("DELETE", f"{by_alias}/tags/a", None, "dealUnifiedTags", key_id),
        ("GET", "tags", None, "listKmsTags", ""),
        ("POST", "resource_instances/action", {}, "listKmsByTags", ""),
    ):
        answer = over_rest(verb, path, body)
        assert answer.status in (200, 204), answer.raw
        one = record(stand, answer.headers["X-Request-Id"])
        assert (one["event"], one["resource"], one["result"]) == (event, resource, "OK")


# REST, the official SDK, hsmctl


def test_forms_over_rest(client: Client, over_rest: Rest) -> None:
    alias, mark = fresh(), fresh("f")[:36]
    key_id = client.create_key(alias)
    put = over_rest("POST", f"{key_id}/tags", {"tag": {"key": mark, "value": "1"}, "sequence": sequence()})
    assert (put.status, put.raw) == (204, b"")
    more = {"action": "create", "tags": [{"key": "a/b c"}], "sequence": sequence()}
    assert over_rest("POST", f"{key_id}/tags/action", more).status == 204
    tags = [{"key": "a/b c", "value": ""}, {"key": mark, "value": "1"}]
    assert over_rest("GET", f"{key_id}/tags").json == {"tags": tags, "existTagsNum": 2}
    found = over_rest("POST", "resource_instances/action", {"action": "filter", "tags": [{"key": mark}]}).json
    assert set(found) == {"resources", "total_count"}
    assert found["total_count"] == 1
    (resource,) = found["resources"]
    detail = over_rest("POST", "describe-key", {"key_id": key_id}).json["key_info"]
    assert resource == {
        "resource_id": key_id,
        "resource_detail": detail,
        "resource_name": alias,
        "tags": tags,
    }
    counted = over_rest(
        "POST", "resource_instances/action", {"action": "count", "tags": [{"key": mark}]}
    ).json
    assert counted == {"resources": [], "total_count": 1}
    assert {"key": mark, "values": ["1"]} in over_rest("GET", "tags").json["tags"]
    assert over_rest("DELETE", f"{key_id}/tags/{quote('a/b c', safe='')}").status == 204
    assert over_rest("GET", f"{key_id}/tags").json["existTagsNum"] == 1


def test_the_official_sdk(stand: Stand, client: Client) -> None:
    sdk = stand.sdk()
    alias, mark = fresh(), fresh("ü s")[:36]
    key_id = client.create_key(alias)
    body = kms.CreateKmsTagRequestBody(tag=kms.TagItem(key=mark, value="1"))
    assert sdk.create_kms_tag(kms.CreateKmsTagRequest(key_id=key_id, body=body)).status_code == 204
    body = kms.BatchCreateKmsTagsRequestBody(
        tags=[kms.TagItem(key="a/b", value="x"), kms.TagItem(key="c")], action="create"
    )
    done = sdk.batch_create_kms_tags(kms.BatchCreateKmsTagsRequest(key_id=key_id, body=body))
    assert done.status_code == 204
    told = sdk.show_kms_tags(kms.ShowKmsTagsRequest(key_id=key_id))
    assert told.exist_tags_num == 3
    assert [(each.key, each.value) for each in told.tags] == [("a/b", "x"), ("c", ""), (mark, "1")]
    every = sdk.list_kms_tags(kms.ListKmsTagsRequest()).tags
    assert [each.values for each in every if each.key == mark] == [["1"]]
    body = kms.ListKmsByTagsRequestBody(
        action="filter",
        limit="10",
        offset="0",
        tags=[kms.Tag(key=mark, values=["1", "2"])],
        matches=[kms.TagItem(key="resource_name", value=alias[4:])],
    )
    request = kms.ListKmsByTagsRequest(resource_instances="resource_instances", body=body)
    found = sdk.list_kms_by_tags(request)
    (resource,) = found.resources
    assert (found.total_count, resource.resource_id, resource.resource_name) == (1, key_id, alias)
    assert (resource.resource_detail.key_id, resource.resource_detail.key_state) == (key_id, "2")
    assert resource.tags == told.tags
    for name in (mark, "a/b"):
        request = kms.DeleteTagRequest(key_id=key_id, key=name)
        assert sdk.delete_tag(request).status_code == 204
    body = kms.BatchCreateKmsTagsRequestBody(tags=[kms.TagItem(key="c")], action="delete")
    sdk.batch_create_kms_tags(kms.BatchCreateKmsTagsRequest(key_id=key_id, body=body))
    assert sdk.show_kms_tags(kms.ShowKmsTagsRequest(key_id=f"alias/{alias}")).tags == []


def test_hsmctl(
    stand: Stand, client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"HSMD_CA": stand.dev.ca, "HSMD_CERT": stand.dev.certificate, "HSMD_KEY": stand.dev.key}
    for name, value in {"HSMD_GRPC": stand.dev.grpc, **files}.items():
        monkeypatch.setenv(name, str(value))
    alias, mark = "alias/" + fresh(), fresh("c")[:36]
    key_id = client.create_key(alias.removeprefix("alias/"))
    assert run(["tag", "add", alias, f"{mark}=a b", "owner="]) == 0
    assert shown(client, key_id) == [(mark, "a b"), ("owner", "")]
    capsys.readouterr()
    assert run(["tag", "list", alias]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["Name", "Value"],
        [mark, "a", "b"],
        ["owner"],
    ]
    assert run(["--json", "tag", "list"]) == 0
    assert mark in capsys.readouterr().out
    assert run(["tag", "remove", alias, mark]) == 0
    assert f"{mark} removed from {alias}." in capsys.readouterr().err
    assert run(["tag", "remove", alias, mark]) == 1
    assert run(["tag", "add", alias, "novalue"]) == 2
    assert shown(client, key_id) == [("owner", "")]
    assert client.describe_key(key_id).key_state == keys_pb2.KEY_STATE_ENABLED


def test_slashes_in_a_signed_path(stand: Stand, client: Client) -> None:
    """A signature does not show which slashes belong to a name: one name may have some, not two."""
    sdk = stand.sdk()
    alias = f"a/{fresh()}"
    key_id = client.create_key(alias)
    batch(client, key_id, "CREATE", ("a", ""), ("a/b", ""), ("tags/c", ""))
    for key, name in ((f"alias/{alias}", "a"), (key_id, "a/b"), (key_id, "tags/c")):
        assert sdk.delete_tag(kms.DeleteTagRequest(key_id=key, key=name)).status_code == 204
    tag(client, key_id, "a/b")
    with pytest.raises(ClientRequestException) as caught:
        sdk.delete_tag(kms.DeleteTagRequest(key_id=f"alias/{alias}", key="a/b"))
    assert (caught.value.status_code, caught.value.error_code) == (401, "APIGW.0301")
    assert shown(client, key_id) == [("a/b", "")]
