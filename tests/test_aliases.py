"""Aliases from end to end: given, moved, taken away, listed; keys named by them everywhere."""

from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest

from hsmd.cli.hsmctl import run
from hsmd.client import Client
from hsmd.pb.v1 import aliases_pb2 as pb
from hsmd.pb.v1 import keys_pb2
from tests.backstage import backstage
from tests.calls import KEY_CALLS, fresh, record, refusal, refused, snapshot
from tests.stand import Answer, Stand, Tenant, eventually

_PAGE_FIELDS = {"domain_id", "key_id", "alias", "alias_urn", "create_time", "update_time"}


def create(client: Client, key: str, alias: str) -> pb.Alias:
    made: pb.Alias = client.aliases.CreateAlias(pb.CreateAliasRequest(key_id=key, alias=alias))
    return made


def associate(client: Client, alias: str, key: str) -> pb.Alias:
    request = pb.AssociateAliasRequest(alias=alias, target_key_id=key)
    moved: pb.Alias = client.aliases.AssociateAlias(request)
    return moved


def delete(client: Client, key: str, *names: str) -> None:
    client.aliases.DeleteAlias(pb.DeleteAliasRequest(key_id=key, aliases=names))


def page(client: Client, **wanted: Any) -> pb.ListAliasesResponse.Page:
    (one,) = client.aliases.ListAliases(pb.ListAliasesRequest(**wanted)).body
    assert one.page_info.current_count == len(one.aliases)
    found: pb.ListAliasesResponse.Page = one
    return found


def names(client: Client, key: str = "") -> list[str]:
    return [each.alias for each in page(client, key_id=key, limit=1000).aliases]


@pytest.fixture(scope="module")
def token(stand: Stand) -> str:
    return stand.token()


class Rest:
    """The four operations over REST, with a token."""

    def __init__(self, stand: Stand, token: str) -> None:
        self._stand, self._token = stand, token

    def __call__(self, verb: str, path: str, body: object = None) -> Answer:
        base = f"/v1.0/{self._stand.dev.project_id}/kms/"
        return self._stand.rest(verb, base + path, body, token=self._token)


@pytest.fixture(scope="module")
def over_rest(stand: Stand, token: str) -> Rest:
    return Rest(stand, token)


def urn(stand: Stand, alias: str) -> str:
    return f"kms:{stand.dev.region}:{stand.dev.domain_id}:{alias.replace('/', ':', 1)}"


# What an alias is good for


def test_an_alias_names_its_key(stand: Stand, client: Client) -> None:
    key_id, alias = client.create_key(fresh()), "alias/" + fresh("a:b/c_d")
    made = create(client, key_id, alias)
    assert (made.key_id, made.alias, made.domain_id) == (key_id, alias, stand.dev.domain_id)
    assert made.alias_urn == urn(stand, alias)
    assert made.create_time == made.update_time
    assert made.create_time.seconds > 1_700_000_000
    for reference in (alias, made.alias_urn):
        assert client.describe_key(reference).key_id == key_id
        assert client.decrypt(client.encrypt(reference, b"x"), key_id=reference) == b"x"
        assert client.decrypt_data_key(reference, client.create_data_key(reference)[1])
    assert client.describe_key(alias).key_alias != alias  # its own name stays


@pytest.mark.parametrize("operation", [name for name in KEY_CALLS if not name.startswith("decrypt")])
def test_aliases_are_taken_wherever_a_key_is_named(stand: Stand, client: Client, operation: str) -> None:
    key_id, alias = client.create_key(fresh()), "alias/" + fresh()
    create(client, key_id, alias)
    if operation == "enable-key":
        client.disable(alias)
    if operation == "cancel-key-deletion":
        client.schedule_deletion(alias, 7)
    KEY_CALLS[operation](client, alias)
    events = [each for each in stand.audit() if each["resource"] == key_id]
    assert events[-1]["result"] == "OK"
    assert len({each["event"] for each in events}) >= 3


def test_a_moved_alias_is_in_force_for_the_next_call_everywhere(stand: Stand, client: Client) -> None:
    first, second, alias = client.create_key(fresh()), client.create_key(fresh()), "alias/" + fresh()
    create(client, first, alias)
    others = [stand.client() for _ in range(6)]  # whichever worker they end up with
    blobs = [other.encrypt(alias, b"x") for other in others]
    for target in (second, first, second):
        moved = associate(client, alias, target)
        assert moved.key_id == target
        for other in others:
            assert other.describe_key(alias).key_id == target
            assert other.encrypt(alias, b"x")[4:40] == target.encode()
    assert [other.decrypt(blob) for other, blob in zip(others, blobs, strict=True)] == [b"x"] * 6
    delete(client, second, alias)
    for other in others:
        with refusal("KMS.0207"):
            other.encrypt(alias, b"x")
    create(client, first, alias)
    for other in others:
        assert other.encrypt(alias, b"x")[4:40] == first.encode()
        other.close()


def test_a_renamed_keys_own_name_is_forgotten_everywhere(stand: Stand, client: Client) -> None:
    own = fresh()
    first = client.create_key(own)
    others = [stand.client() for _ in range(6)]
    for other in others:
        other.encrypt(f"alias/{own}", b"x")
    client.rename(first, fresh())
    for other in others:
        with refusal("KMS.0207"):
            other.encrypt(f"alias/{own}", b"x")
    second = client.create_key(fresh())
    create(client, second, f"alias/{own}")
    for other in others:
        assert other.encrypt(f"alias/{own}", b"x")[4:40] == second.encode()
        other.close()


def test_moving_keeps_when_it_was_made(client: Client) -> None:
    first, second, alias = client.create_key(fresh()), client.create_key(fresh()), "alias/" + fresh()
    made = create(client, first, alias)
    assert associate(client, alias, first) == made  # it is there already
    moved = associate(client, alias, second)
    assert moved.create_time == made.create_time
    assert moved.update_time.ToMilliseconds() >= made.update_time.ToMilliseconds()
    assert names(client, first) == []
    assert names(client, second) == [alias]


# One space of names


def test_a_name_is_one_keys_only(client: Client) -> None:
    own, alias = fresh(), fresh()
    first, second = client.create_key(own), client.create_key(fresh())
    create(client, first, f"alias/{alias}")
    for call in (
        lambda: create(client, second, f"alias/{alias}"),
        lambda: create(client, first, f"alias/{alias}"),
        lambda: create(client, second, f"alias/{own}"),
        lambda: create(client, first, f"alias/{own}"),
        lambda: client.create_key(alias),
        lambda: client.rename(second, alias),
        lambda: client.rename(first, alias),
    ):
        before = snapshot(client), names(client)
        with refusal("KMS.1104"):
            call()
        assert (snapshot(client), names(client)) == before
    delete(client, first, f"alias/{alias}")
    client.rename(second, alias)
    assert client.describe_key(f"alias/{alias}").key_id == second


@pytest.mark.parametrize(
    "alias",
    [
        *("books", "alias/", "alias/a b", "ALIAS/a", "alias/ä", "alias/a\n", "alias/x\0"),
        *("alias/obs/default", "alias", "/", "' OR 1=1", "kms:local-1:0:alias:a"),
        *("alias/" + "a" * 256, "a" * 5000),
    ],
)
def test_names_that_may_not_be(client: Client, over_rest: Rest, alias: str) -> None:
    key_id = client.create_key(fresh())
    for call in (
        lambda: create(client, key_id, alias),
        lambda: associate(client, alias, key_id),
        lambda: delete(client, key_id, alias),
    ):
        with refusal("KMS.1101"):
            call()
    refused(over_rest("POST", "aliases", {"key_id": key_id, "alias": alias}), "KMS.1101")
    assert names(client, key_id) == []


def test_names_as_long_as_they_may_be(client: Client) -> None:
    key_id, alias = client.create_key(fresh()), "alias/" + fresh().ljust(255, "x")
    create(client, key_id, alias)
    assert client.describe_key(alias).key_id == key_id


# What is refused


def test_an_alias_moves_to_a_key_of_its_kind_only(client: Client) -> None:
    key_id, alias = client.create_key(fresh()), "alias/" + fresh()
    create(client, key_id, alias)
    for spec in ("HMAC_256", "HMAC_512"):
        with refusal("KMS.0308") as seen:
            associate(client, alias, client.create_key(fresh(), spec=spec))
        assert "target_key_id" in seen.last.message
    assert client.describe_key(alias).key_id == key_id


def test_keys_that_take_no_names(client: Client, over_rest: Rest) -> None:
    client.encrypt("alias/dds/default", b"x")
    with refusal("KMS.0211"):
        create(client, "alias/dds/default", "alias/" + fresh())
    key_id, waiting, alias = client.create_key(fresh()), client.create_key(fresh()), "alias/" + fresh()
    create(client, waiting, alias)
    client.schedule_deletion(waiting, 7)
    with refusal("KMS.0210"):
        create(client, waiting, "alias/" + fresh())
    associate(client, alias, key_id)  # but it gives up those it has
    with refusal("KMS.0210"):
        associate(client, alias, waiting)
    with refusal("KMS.0211"):
        associate(client, alias, "alias/dds/default")
    assert client.describe_key(alias).key_id == key_id
    refused(over_rest("POST", "aliases", {"key_id": waiting, "alias": "alias/x"}), "KMS.0210")


def test_what_is_not_there(client: Client, over_rest: Rest) -> None:
    own, alias, absent = fresh(), "alias/" + fresh(), "alias/" + fresh()
    key_id, other = client.create_key(own), client.create_key(fresh())
    create(client, key_id, alias)
    for call in (
        lambda: associate(client, absent, key_id),
        lambda: associate(client, f"alias/{own}", other),  # a key's own name does not move
        lambda: delete(client, key_id, absent),
        lambda: delete(client, key_id, f"alias/{own}"),
        lambda: delete(client, other, alias),
        lambda: delete(client, key_id, alias, absent),
        lambda: create(client, absent, "alias/" + fresh()),
        lambda: associate(client, alias, absent),
        lambda: page(client, key_id=absent),
    ):
        with refusal("KMS.0207"):
            call()
        assert names(client, key_id) == [alias]
    body = {"alias": alias, "target_key_id": "x"}
    refused(over_rest("POST", "alias/associate", body), "KMS.0205")
    refused(over_rest("POST", "aliases", {"key_id": "x", "alias": alias}), "KMS.0205")
    refused(over_rest("GET", "aliases?key_id=x"), "KMS.0205")


def test_what_is_missing_or_of_another_type(client: Client, over_rest: Rest) -> None:
    key_id = client.create_key(fresh())
    for verb, path, body, code in (
        ("POST", "aliases", {"key_id": key_id}, "KMS.0204"),
        ("POST", "aliases", {"alias": "alias/x"}, "KMS.0204"),
        ("POST", "aliases", None, "KMS.0204"),
        ("POST", "aliases", {"key_id": key_id, "alias": 5}, "KMS.1101"),
        ("POST", "aliases", {"key_id": [key_id], "alias": "alias/x"}, "KMS.0205"),
        ("POST", "aliases", b"{", "KMS.0202"),
        ("DELETE", "aliases", {"key_id": key_id}, "KMS.0204"),
        ("DELETE", "aliases", {"key_id": key_id, "aliases": []}, "KMS.0204"),
        ("DELETE", "aliases", {"key_id": key_id, "aliases": "alias/x"}, "KMS.1101"),
        ("DELETE", "aliases", {"key_id": key_id, "aliases": ["alias/x"] * 51}, "KMS.1101"),
        ("DELETE", "aliases", {"key_id": key_id, "aliases": [{}]}, "KMS.1101"),
        ("POST", "alias/associate", {"alias": "alias/x"}, "KMS.0204"),
        ("POST", "alias/associate", {"target_key_id": key_id}, "KMS.0204"),
        ("GET", "aliases?limit=0", None, "KMS.1601"),
        ("GET", "aliases?limit=1001", None, "KMS.1601"),
        ("GET", "aliases?limit=x", None, "KMS.1601"),
        ("GET", "aliases?marker=x", None, "KMS.0308"),
        ("GET", "aliases?marker=alias/%00", None, "KMS.0308"),
        ("PUT", "aliases", {}, "KMS.0215"),
    ):
        refused(over_rest(verb, path, body), code)
    with refusal("KMS.1101"):
        delete(client, key_id, *["alias/x"] * 51)
    assert names(client, key_id) == []


def test_a_key_has_fifty_names_at_most(client: Client) -> None:
    full, other = client.create_key(fresh()), client.create_key(fresh())
    given = sorted("alias/" + fresh() for _ in range(50))
    for alias in given:
        create(client, full, alias)
    more = "alias/" + fresh()
    with refusal("KMS.1105") as seen:
        create(client, full, more)
    assert "50" in seen.last.message
    create(client, other, more)
    with refusal("KMS.1105"):
        associate(client, more, full)
    assert page(client, key_id=full).aliases[:] == page(client, key_id=full, limit=50).aliases[:]
    first = page(client, key_id=full, limit=20)
    second = page(client, key_id=full, limit=20, marker=first.page_info.next_marker)
    last = page(client, key_id=full, limit=20, marker=second.page_info.next_marker)
    assert [each.alias for each in (*first.aliases, *second.aliases, *last.aliases)] == given
    assert last.page_info.next_marker == ""
    delete(client, full, *given)
    assert names(client, full) == []


def test_the_projects_aliases_by_pages(client: Client) -> None:
    keys = [client.create_key(fresh()) for _ in range(2)]
    mine = {create(client, key, "alias/" + fresh()).alias for key in keys for _ in range(3)}
    found, marker = [], ""
    while True:
        one = page(client, limit=2, marker=marker)
        found += [each.alias for each in one.aliases]
        marker = one.page_info.next_marker
        if not marker:
            break
    assert found == sorted(found)
    assert mine <= set(found)
    assert len(found) == len(set(found))


# The end of a key


def test_the_names_of_a_destroyed_key_are_free(stand: Stand, client: Client) -> None:
    own, alias = fresh(), "alias/" + fresh()
    gone = client.create_key(own)
    create(client, gone, alias)
    for name in (alias, f"alias/{own}"):
        client.encrypt(name, b"x")
    client.schedule_deletion(gone, 7)
    with refusal("KMS.0210"):
        client.encrypt(alias, b"x")
    backstage(stand, "due", gone)
    for name in (alias, f"alias/{own}"):
        with refusal("KMS.0207"):
            client.describe_key(name)
    eventually(lambda: alias not in names(client))
    heir = client.create_key(fresh())
    for name in (alias, f"alias/{own}"):
        create(client, heir, name)
        assert client.encrypt(name, b"x")[4:40] == heir.encode()


# Tenants, roles, audit


def test_tenants_have_names_of_their_own(
    stand: Stand, client: Client, strange: Client, stranger: Tenant
) -> None:
    alias = "alias/" + fresh()
    mine, theirs = client.create_key(fresh()), strange.create_key(fresh())
    create(client, mine, alias)
    for call in (
        lambda: strange.describe_key(alias),
        lambda: strange.describe_key(urn(stand, alias)),
        lambda: associate(strange, alias, theirs),
        lambda: associate(strange, alias, mine),
        lambda: delete(strange, mine, alias),
        lambda: delete(strange, theirs, alias),
        lambda: create(strange, mine, "alias/" + fresh()),
        lambda: page(strange, key_id=mine),
    ):
        with refusal("KMS.0207"):
            call()
    made = create(strange, theirs, alias)
    assert made.domain_id == stranger.domain_id
    assert strange.describe_key(alias).key_id == theirs
    assert client.describe_key(alias).key_id == mine
    assert [each.key_id for each in page(strange).aliases if each.alias == alias] == [theirs]


def test_a_reader_may_look_and_nothing_else(stand: Stand, client: Client) -> None:
    reader = stand.add_tenant("alias-reader", ())
    backstage(stand, "role", reader.user_id, stand.dev.project_id, "KMS CMKReadOnlyAccess")
    key_id, alias = client.create_key(fresh()), "alias/" + fresh()
    create(client, key_id, alias)
    with stand.client(reader, project_id=stand.dev.project_id) as looking:
        assert names(looking, key_id) == [alias]
        assert looking.describe_key(alias).key_id == key_id
        for call in (
            lambda: create(looking, key_id, "alias/" + fresh()),
            lambda: associate(looking, alias, key_id),
            lambda: delete(looking, key_id, alias),
        ):
            with refusal("KMS.0330") as seen:
                call()
            assert record(stand, seen.last.request_id)["result"] == "KMS.0330"
    assert names(client, key_id) == [alias]


def test_what_the_audit_log_says(stand: Stand, client: Client, over_rest: Rest) -> None:
    first, second, alias = client.create_key(fresh()), client.create_key(fresh()), "alias/" + fresh()
    for verb, path, body, event, resource in (
        ("POST", "aliases", {"key_id": first, "alias": alias}, "createAlias", first),
        ("POST", "alias/associate", {"alias": alias, "target_key_id": second}, "associateAlias", second),
        ("GET", f"aliases?key_id={alias}", None, "listAliases", second),
        ("DELETE", "aliases", {"key_id": alias, "aliases": [alias]}, "deleteAlias", second),
    ):
        answer = over_rest(verb, path, body)
        assert answer.status in (200, 204), answer.raw
        one = record(stand, answer.headers["X-Request-Id"])
        assert (one["event"], one["resource"], one["result"]) == (event, resource, "OK")


# REST and the official SDK


def test_forms_over_rest(stand: Stand, client: Client, over_rest: Rest) -> None:
    key_id, alias = client.create_key(fresh()), "alias/" + fresh()
    made = over_rest("POST", "aliases", {"key_id": key_id, "alias": alias, "more": 1})
    assert made.status == 200
    assert set(made.json) == _PAGE_FIELDS
    assert all(type(value) is str for value in made.json.values())
    assert made.json["create_time"].isdigit()
    listed = over_rest("GET", f"aliases?key_id={key_id}&limit=10")
    assert listed.status == 200
    assert listed.json == [{"aliases": [made.json], "page_info": {"next_marker": "", "current_count": 1}}]
    empty = over_rest("GET", f"aliases?key_id={client.create_key(fresh())}")
    assert empty.json == [{"aliases": [], "page_info": {"next_marker": "", "current_count": 0}}]
    gone = over_rest("DELETE", "aliases", {"key_id": key_id, "aliases": [alias, alias]})
    assert (gone.status, gone.raw) == (204, b"")


def test_the_official_sdk(stand: Stand, client: Client) -> None:
    sdk = stand.sdk()
    first, second, alias = client.create_key(fresh()), client.create_key(fresh()), "alias/" + fresh()
    body = kms.CreateAliasRequestBody(key_id=first, alias=alias)
    made = sdk.create_alias(kms.CreateAliasRequest(body=body))
    assert (made.key_id, made.alias, made.alias_urn) == (first, alias, urn(stand, alias))
    assert made.domain_id == stand.dev.domain_id
    assert made.create_time == made.update_time
    (one,) = sdk.list_aliases(kms.ListAliasesRequest(key_id=first)).body
    assert [each.alias for each in one.aliases] == [alias]
    assert (one.page_info.current_count, one.page_info.next_marker) == (1, "")
    body = kms.AssociateAliasRequestBody(alias=alias, target_key_id=second)
    moved = sdk.associate_alias(kms.AssociateAliasRequest(body=body))
    assert (moved.key_id, moved.create_time) == (second, made.create_time)
    body = kms.OperateKeyRequestBody(key_id=alias)
    described = sdk.list_key_detail(kms.ListKeyDetailRequest(body=body))
    assert described.key_info.key_id == second
    body = kms.DeleteAliasRequestBody(key_id=second, aliases=[alias])
    assert sdk.delete_alias(kms.DeleteAliasRequest(body=body)).status_code == 204
    (one,) = sdk.list_aliases(kms.ListAliasesRequest(key_id=second, limit="5")).body
    assert one.aliases == []


# hsmctl


@pytest.fixture
def shell(stand: Stand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {
        "HSMD_GRPC": stand.dev.grpc,
        "HSMD_CA": stand.dev.ca,
        "HSMD_CERT": stand.dev.certificate,
        "HSMD_KEY": stand.dev.key,
    }.items():
        monkeypatch.setenv(name, str(value))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_hsmctl(client: Client, shell: Any) -> None:
    first, second, alias = client.create_key(fresh()), client.create_key(fresh()), "alias/" + fresh()
    assert shell("alias", "create", alias, first) == (0, "", f"{alias} names {first}.\n")
    code, out, _ = shell("alias", "list", first)
    head, row = out.splitlines()
    assert (code, head.split()[0], row.split()[:2]) == (0, "Alias", [alias, first])
    code, out, _ = shell("alias", "associate", alias, second, "--json")
    assert (code, f'"key_id": "{second}"' in out) == (0, True)
    code, out, _ = shell("--json", "alias", "list")
    assert (code, alias in out) == (0, True)
    assert shell("alias", "delete", first, alias)[0] == 1
    assert shell("alias", "delete", alias, alias) == (0, "", f"{alias} deleted.\n")
    assert shell("alias", "list", second)[1].splitlines()[1:] == []
    assert shell("alias", "create", alias)[0] == 2
    assert "KMS.1101" in shell("alias", "create", "books", first)[2]


def test_disabled_keys_have_names_too(client: Client) -> None:
    key_id, alias = client.create_key(fresh()), "alias/" + fresh()
    client.disable(key_id)
    create(client, key_id, alias)
    assert client.describe_key(alias).key_state == keys_pb2.KEY_STATE_DISABLED
    with refusal("KMS.0209"):
        client.encrypt(alias, b"x")
    client.enable(alias)
    assert client.decrypt(client.encrypt(alias, b"x")) == b"x"
