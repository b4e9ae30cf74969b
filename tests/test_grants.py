"""Grants from end to end: who may do what with whose key, and until when."""

import json
import secrets
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import huaweicloudsdkkms.v2 as kms
import pytest

from hsmd.api.methods import methods_of
from hsmd.api.server import _MODULES
from hsmd.cli.hsmctl import run
from hsmd.client import ApiError, Client
from hsmd.pb.v1 import datakeys_pb2
from hsmd.pb.v1 import grants_pb2 as pb
from tests.backstage import backstage
from tests.calls import Operation, fresh, record, refusal, refused, sequence
from tests.stand import Stand, Tenant, eventually

SOMEBODY = "0123456789abcdef" * 2
NO_GRANT = "0" * 64
ECDSA, HMAC = "ECDSA_SHA_256", "HMAC_SHA_256"


def number(operation: str) -> Any:
    return pb.GrantOperation.Value("GRANT_OPERATION_" + operation.upper().replace("-", "_"))


OPERATIONS = [
    *("create-datakey", "create-datakey-without-plaintext", "encrypt-datakey", "decrypt-datakey"),
    *("describe-key", "create-grant", "retire-grant", "encrypt-data", "decrypt-data"),
    *("sign", "verify", "generate-mac", "verify-mac", "get-publickey"),
]


def give(client: Client, key: str, grantee: str, *operations: str, **more: Any) -> str:
    request = pb.CreateGrantRequest(
        key_id=key, grantee_principal=grantee, operations=[number(each) for each in operations], **more
    )
    return str(client.grants.CreateGrant(request).grant_id)


def revoke(client: Client, key: str, grant: str) -> None:
    client.grants.RevokeGrant(pb.RevokeGrantRequest(key_id=key, grant_id=grant))


def retire(client: Client, key: str, grant: str) -> None:
    client.grants.RetireGrant(pb.RetireGrantRequest(key_id=key, grant_id=grant))


def grants_of(client: Client, key: str, **page: Any) -> pb.ListGrantsResponse:
    response: pb.ListGrantsResponse = client.grants.ListGrants(pb.ListGrantsRequest(key_id=key, **page))
    return response


def retirable(client: Client) -> dict[str, pb.Grant]:
    found: dict[str, pb.Grant] = {}
    while True:
        request = pb.ListRetirableGrantsRequest(limit=1000, marker=len(found))
        page: pb.ListRetirableGrantsResponse = client.grants.ListRetirableGrants(request)
        found |= {each.grant_id: each for each in page.grants}
        if not page.truncated:
            assert page.total == len(found)
            return found


@pytest.fixture(scope="module")
def grantee(stand: Stand) -> Tenant:
    """An administrator of a domain of its own."""
    return stand.add_tenant("grantee")


@pytest.fixture(scope="module")
def granted(stand: Stand, grantee: Tenant) -> Iterator[Client]:
    with stand.client(grantee) as one:
        yield one


@pytest.fixture(scope="module")
def looking(stand: Stand, reader: Tenant) -> Iterator[Client]:
    """Whose roles allow nothing but to look."""
    with stand.client(reader) as one:
        yield one


# Who may do what


@dataclass
class Things:
    """A key, and what its owner made by it: what its kind makes."""

    key: str
    blob: bytes = b""
    wrapped: bytes = b""
    signature: bytes = b""
    mac: bytes = b""


def make(client: Client) -> Things:
    key = client.create_key(fresh())
    return Things(key, client.encrypt(key, b"text"), client.create_data_key(key)[1])


def make_pair(client: Client) -> Things:
    key = client.create_key(fresh(), spec="EC_P256")
    return Things(key, signature=client.sign(key, ECDSA, b"text"))


def make_mac_key(client: Client) -> Things:
    key = client.create_key(fresh(), spec="HMAC_256")
    return Things(key, mac=client.mac(key, HMAC, b"text"))


def _without_plaintext(client: Client, key: str) -> bytes:
    request = datakeys_pb2.CreateDataKeyRequest(key_id=key)
    return bytes(client.data_keys.CreateDataKeyWithoutPlaintext(request).cipher_text)


USES: dict[str, Callable[[Client, Things], object]] = {
    "create-datakey": lambda client, of: len(client.create_data_key(of.key)[0]) == 32,
    "create-datakey-without-plaintext": lambda client, of: _without_plaintext(client, of.key),
    "encrypt-datakey": lambda client, of: client.encrypt_data_key(of.key, b"k" * 32),
    "decrypt-datakey": lambda client, of: client.decrypt_data_key(of.key, of.wrapped),
    "describe-key": lambda client, of: client.describe_key(of.key).key_id == of.key,
    "create-grant": lambda client, of: give(client, of.key, SOMEBODY, "describe-key"),
    "encrypt-data": lambda client, of: client.encrypt(of.key, b"x"),
    "decrypt-data": lambda client, of: client.decrypt(of.blob, key_id=of.key) == b"text",
    "sign": lambda client, of: client.sign(of.key, ECDSA, b"x"),
    "verify": lambda client, of: client.verify(of.key, ECDSA, b"text", of.signature),
    "get-publickey": lambda client, of: client.public_key(of.key).startswith("-----BEGIN PUBLIC KEY-----"),
    "generate-mac": lambda client, of: client.mac(of.key, HMAC, b"text") == of.mac,
    "verify-mac": lambda client, of: client.verify_mac(of.key, HMAC, b"text", of.mac),
}
MAKE: dict[str, Callable[[Client], Things]] = {
    **dict.fromkeys(("sign", "verify", "get-publickey"), make_pair),
    **dict.fromkeys(("generate-mac", "verify-mac"), make_mac_key),
}


def test_every_operation_that_a_grant_allows_is_held_here() -> None:
    declared = {method.grant for module in _MODULES for _, method in methods_of(module.SERVICE)} - {""}
    assert declared == set(USES)
    assert set(OPERATIONS) == set(USES) | {"retire-grant"}


@pytest.mark.parametrize("kind", ["user", "domain"])
@pytest.mark.parametrize("operation", USES)
def test_who_may_do_what(
    client: Client,
    granted: Client,
    looking: Client,
    strange: Client,
    grantee: Tenant,
    reader: Tenant,
    operation: str,
    kind: str,
) -> None:
    use, new = USES[operation], MAKE.get(operation, make)
    of = new(client)
    to_look = operation in ("describe-key", "get-publickey")  # the reader's right, on keys of its own
    without_role = "KMS.0207" if to_look else "KMS.0330"

    def allow(who: Tenant, *operations: str) -> str:
        to, number = (who.user_id, pb.PRINCIPAL_TYPE_USER) if kind == "user" else (who.domain_id, 2)
        return give(client, of.key, to, *operations, grantee_principal_type=number)

    assert use(client, of)  # the owner
    everything_else = set(OPERATIONS) - {operation}
    for who, caller, code in ((grantee, granted, "KMS.0207"), (reader, looking, without_role)):
        with refusal(code) as before:
            use(caller, of)
        others = allow(who, *everything_else)
        with refusal(code) as other:
            use(caller, of)
        assert other.last.message == before.last.message
        only = allow(who, operation, "describe-key")
        assert use(caller, of)
        revoke(client, of.key, others)
        assert use(caller, of)
        revoke(client, of.key, only)
        with refusal(code) as after:
            use(caller, of)
        assert after.last.message == before.last.message
    allow(grantee, operation, "describe-key")
    with refusal("KMS.0207"):
        use(strange, of)
    with refusal("KMS.0207"):  # another key of the same owner
        use(granted, new(client))


def test_a_ciphertext_names_the_granted_key(
    client: Client, granted: Client, strange: Client, looking: Client, grantee: Tenant, reader: Tenant
) -> None:
    of = make(client)
    give(client, of.key, grantee.user_id, "decrypt-data")
    give(client, of.key, reader.user_id, "decrypt-data", "encrypt-data")
    assert granted.decrypt(of.blob) == b"text"
    assert looking.decrypt(of.blob) == b"text"
    with refusal("KMS.2201"):
        strange.decrypt(of.blob)
    with refusal("KMS.2101"):  # whom a grant allows is told what is wrong, ...
        looking.encrypt(of.key, b"x" * 4097)
    not_allowed: list[Callable[[], object]] = [
        lambda: looking.encrypt(make(client).key, b"x" * 4097),
        lambda: looking.decrypt(b"x"),
    ]
    for wrong in not_allowed:
        with refusal("KMS.0330"):  # ... whom none does is told that
            wrong()
    with refusal("KMS.2201"):
        granted.decrypt(of.blob[:-1] + bytes([of.blob[-1] ^ 1]))
    with refusal("KMS.2201"):  # encrypted by another key than the named one
        granted.decrypt(make(client).blob, key_id=of.key)


def test_a_grant_opens_the_key_by_its_id_only(
    stand: Stand, client: Client, granted: Client, grantee: Tenant
) -> None:
    alias = fresh()
    key = client.create_key(alias)
    give(client, key, grantee.user_id, "describe-key", "encrypt-data")
    assert granted.describe_key(key).key_alias == alias
    for name in (f"alias/{alias}", f"kms:{stand.dev.region}:{stand.dev.domain_id}:alias:{alias}"):
        with refusal("KMS.0207"):
            granted.describe_key(name)
    for change in (
        granted.disable,
        lambda key: granted.rename(key, fresh()),
        lambda key: granted.schedule_deletion(key, 7),
    ):
        with refusal("KMS.0207"):
            change(key)
    assert key not in {each.key_id for each in granted.list_keys()}
    client.disable(key)
    with refusal("KMS.0209"):
        granted.encrypt(key, b"x")
    client.schedule_deletion(key, 7)
    with refusal("KMS.0210"):
        granted.encrypt(key, b"x")


def test_use_by_a_grantee_is_recorded(stand: Stand, client: Client, granted: Client, grantee: Tenant) -> None:
    key = client.create_key(fresh())
    give(client, key, grantee.user_id, "encrypt-data")
    granted.encrypt(key, b"x")
    (entry,) = [each for each in stand.audit() if each["resource"] == key and each["event"] == "encryptData"]
    assert (entry["user_id"], entry["project_id"]) == (grantee.user_id, grantee.project_id)
    assert (entry["result"], entry["key_version"]) == ("OK", 1)


# Passed on


def test_passed_on_and_never_wider(
    stand: Stand, client: Client, granted: Client, strange: Client, grantee: Tenant, stranger: Tenant
) -> None:
    of = make(client)
    give(client, of.key, grantee.user_id, "create-grant", "encrypt-data")
    give(client, of.key, grantee.user_id, "decrypt-data")  # its own, but not to be passed on
    for wider in (("decrypt-data",), ("encrypt-data", "decrypt-data"), ("encrypt-data", "retire-grant")):
        with refusal("KMS.0306"):
            give(granted, of.key, stranger.user_id, *wider)
    with refusal("KMS.2401"):
        give(granted, of.key, stranger.user_id, "create-grant")
    before = grants_of(client, of.key).total
    assert before == 2
    passed = give(granted, of.key, stranger.user_id, "encrypt-data")
    (row,) = [each for each in grants_of(client, of.key).grants if each.grant_id == passed]
    assert (row.issuing_principal, list(row.operations)) == (grantee.user_id, [number("encrypt-data")])
    assert client.decrypt(strange.encrypt(of.key, b"x")) == b"x"
    with refusal("KMS.0207"):
        strange.decrypt(of.blob, key_id=of.key)
    with refusal("KMS.0207"):
        give(strange, of.key, SOMEBODY, "encrypt-data")
    again = give(granted, of.key, stranger.user_id, "encrypt-data", "create-grant")
    with refusal("KMS.0306"):
        give(strange, of.key, SOMEBODY, "encrypt-data", "decrypt-data")
    give(strange, of.key, SOMEBODY, "encrypt-data")
    revoke(granted, of.key, passed)  # by its maker
    revoke(client, of.key, again)  # by the owner
    with refusal("KMS.0207"):
        strange.encrypt(of.key, b"x")


def test_without_a_role_it_passes_on_no_more_in_its_own_project(stand: Stand, client: Client) -> None:
    helper = stand.add_tenant("helper", ("KMS CMKReadOnlyAccess",))
    backstage(stand, "role", helper.user_id, stand.dev.project_id, "KMS CMKReadOnlyAccess")
    key = client.create_key(fresh())
    with stand.client(helper, project_id=stand.dev.project_id) as inside:
        assert inside.describe_key(key).key_id == key
        for call in (lambda: inside.encrypt(key, b"x"), lambda: give(inside, key, SOMEBODY, "encrypt-data")):
            with refusal("KMS.0330"):
                call()
        give(client, key, helper.user_id, "encrypt-data", "create-grant")
        inside.encrypt(key, b"x")
        with refusal("KMS.0306"):
            give(inside, key, SOMEBODY, "encrypt-data", "decrypt-data")
        give(inside, key, SOMEBODY, "encrypt-data")
        with refusal("KMS.0330"):
            inside.decrypt(client.encrypt(key, b"x"))
        with refusal("KMS.0330"):
            inside.disable(key)
        with refusal("KMS.0330"):  # said of keys that there are and that there are not
            inside.encrypt(str(uuid.uuid4()), b"x")
        with refusal("KMS.0330"):
            inside.encrypt("alias/evs/default", b"x")


# Ended


def test_who_may_revoke(
    client: Client, granted: Client, strange: Client, looking: Client, grantee: Tenant, reader: Tenant
) -> None:
    key, other = client.create_key(fresh()), client.create_key(fresh())
    grant = give(
        client, key, grantee.user_id, "encrypt-data", "retire-grant", retiring_principal=reader.user_id
    )
    for caller, code in ((granted, "KMS.0207"), (strange, "KMS.0207"), (looking, "KMS.0330")):
        with refusal(code):
            revoke(caller, key, grant)
        with refusal(code):  # nor does it tell them what there is
            revoke(caller, key, NO_GRANT)
        with refusal(code):
            revoke(caller, str(uuid.uuid4()), grant)
    for wrong in ((other, grant), (key, NO_GRANT)):
        with refusal("KMS.2502"):
            revoke(client, *wrong)
    assert grants_of(client, key).total == 1
    revoke(client, f"alias/{client.describe_key(key).key_alias}", grant)
    assert grants_of(client, key).total == 0
    with refusal("KMS.2502"):
        revoke(client, key, grant)


def test_who_may_retire(
    client: Client,
    granted: Client,
    strange: Client,
    looking: Client,
    grantee: Tenant,
    reader: Tenant,
    stranger: Tenant,
) -> None:
    key = client.create_key(fresh())

    def some(*operations: str, **more: Any) -> str:
        return give(client, key, grantee.user_id, "encrypt-data", *operations, **more)

    plain = some()
    for caller, code in ((granted, "KMS.0207"), (strange, "KMS.0207"), (looking, "KMS.0330")):
        with refusal(code):
            retire(caller, key, plain)
    retire(client, key, plain)  # its maker
    named = some(retiring_principal=reader.user_id)
    with refusal("KMS.0207"):
        retire(granted, key, named)
    assert set(retirable(looking)) >= {named}
    retire(looking, key, named)  # the retiring principal, whatever its roles
    assert named not in retirable(looking)
    leave = some("retire-grant")
    assert leave in retirable(granted)
    assert leave not in retirable(strange)
    with refusal("KMS.2502"):
        retire(client, key, NO_GRANT)
    retire(granted, key, leave)  # the grantee, with leave to
    domain = give(
        client,
        key,
        grantee.domain_id,
        *("encrypt-data", "retire-grant"),
        grantee_principal_type=pb.PRINCIPAL_TYPE_DOMAIN,
    )
    assert retirable(granted)[domain].grantee_principal_type == pb.PRINCIPAL_TYPE_DOMAIN
    retire(granted, key, domain)
    some("create-grant")
    passed = give(granted, key, stranger.user_id, "encrypt-data")
    with refusal("KMS.0306"):  # the owner did not make it and is not named: it may revoke it
        retire(client, key, passed)
    assert passed in retirable(granted)
    assert passed not in retirable(client)
    retire(granted, key, passed)
    assert grants_of(client, key).total == 1
    with refusal("KMS.0207"):
        strange.encrypt(key, b"x")


def test_a_revoked_grant_is_over_for_every_later_call(stand: Stand, client: Client, grantee: Tenant) -> None:
    key = client.create_key(fresh())
    with ExitStack() as open_clients:
        clients = [open_clients.enter_context(stand.client(grantee)) for _ in range(8)]  # over all workers
        for _ in range(5):
            grant = give(client, key, grantee.user_id, "encrypt-data", "decrypt-data")
            blobs = [each.encrypt(key, b"x") for each in clients]
            revoke(client, key, grant)
            for each, blob in zip(clients, blobs, strict=True):
                with refusal("KMS.0207"):
                    each.encrypt(key, b"x")
                with refusal("KMS.2201"):
                    each.decrypt(blob)


def test_a_grant_revoked_twice_at_once_is_revoked_once(stand: Stand, client: Client) -> None:
    key = client.create_key(fresh())
    grant = give(client, key, SOMEBODY, "encrypt-data")
    outcomes: list[str] = []

    def work() -> None:
        with stand.client() as own:
            try:
                revoke(own, key, grant)
                outcomes.append("OK")
            except ApiError as error:
                outcomes.append(error.code)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["KMS.2502"] * 3 + ["OK"]


def test_a_destroyed_key_takes_its_grants_along(
    stand: Stand, client: Client, granted: Client, grantee: Tenant
) -> None:
    key = client.create_key(fresh())
    grant = give(client, key, grantee.user_id, "encrypt-data", "retire-grant")
    client.schedule_deletion(key, 7)
    assert grant in retirable(granted)
    backstage(stand, "due", key)
    with refusal("KMS.0207"):
        granted.encrypt(key, b"x")
    with refusal("KMS.0207"):
        retire(granted, key, grant)
    eventually(lambda: grant not in retirable(granted))
    with closing(sqlite3.connect(f"file:{stand.dev.data}/store/hsmd.db?mode=ro", uri=True)) as store:
        assert store.execute("SELECT count(*) FROM grants WHERE key_id = ?", (key,)).fetchone() == (0,)


# Made and listed


def test_over_rest(stand: Stand, client: Client, rest: Operation, grantee: Tenant) -> None:
    key = client.create_key(fresh())
    body = {
        "key_id": key,
        "grantee_principal": grantee.user_id,
        "operations": ["encrypt-data", "describe-key", "encrypt-data"],
        "name": "A:name/of_a-grant",
        "retiring_principal": SOMEBODY,
        "grantee_principal_type": "user",
        "sequence": sequence(),
    }
    made = rest("create-grant", body)
    assert (made.status, list(made.json)) == (200, ["grant_id"])
    grant = made.json["grant_id"]
    assert len(grant) == 64
    assert set(grant) <= set("0123456789abcdef")
    assert rest("create-grant", body).json == made.json  # the same sequence: the same grant
    listed = rest("list-grants", {"key_id": key, "limit": "10", "marker": "0"}).json
    created = listed["grants"][0].pop("creation_date")
    assert (len(created), created.isdigit()) == (13, True)
    assert listed == {
        "grants": [
            {
                "key_id": key,
                "grant_id": grant,
                "grantee_principal": grantee.user_id,
                "grantee_principal_type": "user",
                "operations": ["describe-key", "encrypt-data"],
                "issuing_principal": stand.dev.user_id,
                "name": "A:name/of_a-grant",
                "retiring_principal": SOMEBODY,
            }
        ],
        "next_marker": "",
        "truncated": "false",
        "total": 1,
    }
    token = stand.token(grantee)
    used = stand.kms(
        "encrypt-data", {"key_id": key, "plain_text": "x"}, token=token, project=grantee.project_id
    )
    assert (used.status, used.json["key_id"]) == (200, key)
    answer = rest("revoke-grant", {"key_id": key, "grant_id": grant, "sequence": sequence()})
    assert (answer.status, answer.json) == (200, {})
    refused(rest("create-grant", body), "KMS.2502")  # what the sequence made is no more
    plain = rest("create-grant", {"key_id": key, "grantee_principal": SOMEBODY, "operations": ["sign"]}).json
    found = rest("list-retirable-grants", {"limit": "1000"}).json
    assert set(found) == {"grants", "next_marker", "truncated", "total"}
    (row,) = [each for each in found["grants"] if each["grant_id"] == plain["grant_id"]]
    assert (row["grantee_principal_type"], row["name"], row["retiring_principal"]) == ("user", "", "")
    answer = rest("retire-grant", {"key_id": key, "grant_id": plain["grant_id"], "sequence": sequence()})
    assert (answer.status, answer.json) == (200, {})


def test_with_the_official_sdk(stand: Stand, client: Client, granted: Client, grantee: Tenant) -> None:
    key, sdk, theirs = client.create_key(fresh()), stand.sdk(), stand.sdk(grantee)

    def made(*operations: str) -> str:
        body = kms.CreateGrantRequestBody(
            key_id=key, grantee_principal=grantee.user_id, operations=list(operations), name="of-the-SDK"
        )
        return str(sdk.create_grant(kms.CreateGrantRequest(body=body)).grant_id)

    first, second = made("encrypt-data", "decrypt-data"), made("encrypt-data", "retire-grant")
    cipher = theirs.encrypt_data(
        kms.EncryptDataRequest(body=kms.EncryptDataRequestBody(key_id=key, plain_text="for both"))
    ).cipher_text
    for each in (sdk, theirs):
        opened = each.decrypt_data(
            kms.DecryptDataRequest(body=kms.DecryptDataRequestBody(cipher_text=cipher))
        )
        assert opened.plain_text == "for both"
    listed = sdk.list_grants(kms.ListGrantsRequest(body=kms.ListGrantsRequestBody(key_id=key, limit="1")))
    assert ([each.grant_id for each in listed.grants], listed.total) == ([first], 2)
    assert (listed.truncated, listed.next_marker) == ("true", "1")
    body = kms.ListGrantsRequestBody(key_id=key, limit="1", marker=listed.next_marker)
    rest_of = sdk.list_grants(kms.ListGrantsRequest(body=body))
    assert ([each.grant_id for each in rest_of.grants], rest_of.truncated) == ([second], "false")
    row = rest_of.grants[0]
    assert (row.operations, row.issuing_principal) == (["encrypt-data", "retire-grant"], stand.dev.user_id)
    assert (row.name, row.key_id, row.grantee_principal_type) == ("of-the-SDK", key, "user")
    found = theirs.list_retirable_grants(
        kms.ListRetirableGrantsRequest(body=kms.ListRetirableGrantsRequestBody(limit="1000"))
    )
    assert second in [each.grant_id for each in found.grants]
    assert first not in [each.grant_id for each in found.grants]
    theirs.cancel_self_grant(
        kms.CancelSelfGrantRequest(body=kms.RevokeGrantRequestBody(key_id=key, grant_id=second))
    )
    sdk.cancel_grant(kms.CancelGrantRequest(body=kms.RevokeGrantRequestBody(key_id=key, grant_id=first)))
    assert grants_of(client, key).total == 0


def test_a_hundred_a_key_and_their_pages(client: Client) -> None:
    key = client.create_key(fresh())
    made = [give(client, key, secrets.token_hex(16), "describe-key") for _ in range(100)]
    with refusal("KMS.2404"):
        give(client, key, SOMEBODY, "describe-key")
    assert [each.grant_id for each in grants_of(client, key).grants] == made
    pages, marker = [], 0
    while True:
        page = grants_of(client, key, limit=30, marker=marker)
        pages.append([each.grant_id for each in page.grants])
        assert page.total == 100
        if not page.truncated:
            break
        marker = int(page.next_marker)
    assert [len(each) for each in pages] == [30, 30, 30, 10]
    assert [grant for page in pages for grant in page] == made
    assert not grants_of(client, key, marker=100).grants
    revoke(client, key, made[50])
    give(client, key, SOMEBODY, "describe-key")
    with refusal("KMS.2404"):
        give(client, key, SOMEBODY, "describe-key")
    give(client, client.create_key(fresh()), SOMEBODY, "describe-key")  # a bound of each key


def test_a_sequence_makes_one_grant(client: Client, granted: Client, grantee: Tenant) -> None:
    key, same = client.create_key(fresh()), sequence()
    grant = give(client, key, grantee.user_id, "encrypt-data", "create-grant", sequence=same)
    again = give(client, key, grantee.user_id, "create-grant", "encrypt-data", sequence=same)
    assert (again, grants_of(client, key).total) == (grant, 1)
    for other in ((key, SOMEBODY, "encrypt-data", "create-grant"), (key, grantee.user_id, "encrypt-data")):
        with refusal("KMS.0206"):
            give(client, *other, sequence=same)
    give(granted, key, SOMEBODY, "encrypt-data", sequence=same)  # another project's sequences are its own
    assert grants_of(client, key).total == 2


# What is refused


@pytest.mark.parametrize(
    "principal", ["x", "0" * 31, "0" * 33, "A" * 32, "g" * 32, " " + "0" * 31, "é" * 32, "0" * 5000]
)
def test_principals_that_may_not_be(client: Client, principal: str) -> None:
    key = client.create_key(fresh())
    with refusal("KMS.2402"):
        give(client, key, principal, "encrypt-data")
    with refusal("KMS.2402"):
        give(client, key, SOMEBODY, "encrypt-data", retiring_principal=principal)
    assert grants_of(client, key).total == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"operations": ["create-grant"]}, "KMS.2401"),
        ({"operations": ["create-grant", "create-grant"]}, "KMS.2401"),
        ({"operations": []}, "KMS.0204"),
        ({"operations": None}, "KMS.0204"),
        ({"operations": [""]}, "KMS.0308"),
        ({"operations": ["encrypt-data", ""]}, "KMS.0308"),
        ({"operations": ["disable-key"]}, "KMS.0308"),
        ({"operations": ["Encrypt-Data"]}, "KMS.0308"),
        ({"operations": ["encrypt-data"] * 33}, "KMS.0308"),
        ({"operations": "encrypt-data"}, "KMS.0308"),
        ({"operations": [8]}, "KMS.0308"),
        ({"operations": [None]}, "KMS.0308"),
        ({"operations": [["encrypt-data"]]}, "KMS.0308"),
        ({"grantee_principal": ""}, "KMS.0204"),
        ({"grantee_principal": None}, "KMS.0204"),
        ({"grantee_principal": 7}, "KMS.2402"),
        ({"retiring_principal": ["0" * 32]}, "KMS.2402"),
        ({"grantee_principal_type": "group"}, "KMS.0308"),
        ({"grantee_principal_type": 3}, "KMS.0308"),
        ({"name": "a b"}, "KMS.0308"),
        ({"name": "n" * 256}, "KMS.0308"),
        ({"name": "ä"}, "KMS.0308"),
        ({"sequence": "short"}, "KMS.0206"),
        ({"key_id": "x"}, "KMS.0205"),
        ({"key_id": ""}, "KMS.0204"),
        ({"key_id": "0" * 5000}, "KMS.0205"),
        ({"key_id": "alias/no-such-key"}, "KMS.0207"),
    ],
)
def test_grants_that_may_not_be(
    client: Client, rest: Operation, change: dict[str, object], code: str
) -> None:
    key = client.create_key(fresh())
    body = {"key_id": key, "grantee_principal": SOMEBODY, "operations": ["encrypt-data"], "name": "n" * 255}
    refused(rest("create-grant", body | change), code)
    assert grants_of(client, key).total == 0
    assert rest("create-grant", body).status == 200


def test_an_operation_that_no_version_knows(client: Client) -> None:
    key = client.create_key(fresh())
    wrong: Any = ([99], [0], [8, 99])
    for operations in wrong:
        with refusal("KMS.0308"):
            client.grants.CreateGrant(
                pb.CreateGrantRequest(key_id=key, grantee_principal=SOMEBODY, operations=operations)
            )
    with refusal("KMS.0308"):
        give(client, key, SOMEBODY, "encrypt-data", grantee_principal_type=7)


@pytest.mark.parametrize("operation", ["revoke-grant", "retire-grant"])
def test_grant_ids_that_may_not_be(client: Client, rest: Operation, operation: str) -> None:
    key = client.create_key(fresh())
    for grant, code in (
        ("x", "KMS.2501"),
        ("0" * 63, "KMS.2501"),
        ("A" * 64, "KMS.2501"),
        ("0" * 65, "KMS.2501"),
        (7, "KMS.2501"),
        ("", "KMS.0204"),
        (None, "KMS.0204"),
        (NO_GRANT, "KMS.2502"),
    ):
        refused(rest(operation, {"key_id": key, "grant_id": grant}), code)
    refused(rest(operation, {"key_id": "x", "grant_id": NO_GRANT}), "KMS.0205")
    refused(rest(operation, {"grant_id": NO_GRANT}), "KMS.0204")
    refused(rest(operation, {"key_id": key, "grant_id": NO_GRANT, "sequence": "s"}), "KMS.0206")


@pytest.mark.parametrize("operation", ["list-grants", "list-retirable-grants"])
def test_pages_that_may_not_be(client: Client, rest: Operation, operation: str) -> None:
    body = {"key_id": client.create_key(fresh())}
    for wrong, code in (
        ({"limit": "0"}, "KMS.1601"),
        ({"limit": "1001"}, "KMS.1601"),
        ({"limit": "ten"}, "KMS.1601"),
        ({"limit": "-1"}, "KMS.1601"),
        ({"marker": "-1"}, "KMS.1602"),
        ({"marker": "x"}, "KMS.1602"),
        ({"marker": "9" * 400}, "KMS.1602"),
        ({"sequence": "s"}, "KMS.0206"),
    ):
        refused(rest(operation, body | wrong), code)
    assert rest(operation, body | {"marker": str(2**31 - 1)}).json["grants"] == []


def test_grants_of_keys_that_take_none(client: Client) -> None:
    client.encrypt("alias/sfs/default", b"x")
    with refusal("KMS.0211"):
        give(client, "alias/sfs/default", SOMEBODY, "encrypt-data")
    key = client.create_key(fresh())
    grant = give(client, key, SOMEBODY, "encrypt-data")
    client.disable(key)
    with refusal("KMS.0209"):
        give(client, key, SOMEBODY, "encrypt-data")
    assert grants_of(client, key).total == 1
    client.schedule_deletion(key, 7)
    with refusal("KMS.0210"):
        give(client, key, SOMEBODY, "encrypt-data")
    revoke(client, key, grant)  # what takes rights away is always possible


def test_grants_are_their_owners_business(
    stand: Stand, client: Client, strange: Client, granted: Client, looking: Client, grantee: Tenant
) -> None:
    key = client.create_key(fresh())
    give(client, key, grantee.user_id, "encrypt-data")
    for caller in (strange, granted, looking):
        with refusal("KMS.0207"):
            grants_of(caller, key)
    with refusal("KMS.0207") as seen:
        give(strange, key, SOMEBODY, "encrypt-data")
    entry = record(stand, seen.last.request_id)
    assert (entry["event"], entry["result"], entry["resource"]) == ("createGrant", "KMS.0207", key)
    with refusal("KMS.0330"):
        give(looking, key, SOMEBODY, "encrypt-data")
    made = [each for each in stand.audit() if each["resource"] == key and each["result"] == "OK"]
    assert [each["event"] for each in made] == ["createKey", "createGrant"]


def test_a_forged_grant_opens_nothing(stand: Stand, client: Client, granted: Client, grantee: Tenant) -> None:
    of = make(client)
    give(client, of.key, grantee.user_id, "encrypt-data")
    with closing(sqlite3.connect(stand.dev.data / "store" / "hsmd.db", timeout=30)) as store, store:
        store.execute(
            "UPDATE grants SET operations = 'decrypt-data encrypt-data' WHERE key_id = ?", (of.key,)
        )
    uses: list[Callable[[], object]] = [
        lambda: granted.decrypt(of.blob),
        lambda: granted.encrypt(of.key, b"x"),
    ]
    for call in uses:
        with pytest.raises(ApiError) as caught:
            call()
        assert caught.value.code == "KMS.0101"
    assert client.decrypt(of.blob) == b"text"  # the owner needs no grant
    with pytest.raises(ApiError):
        grants_of(client, of.key)
    with closing(sqlite3.connect(stand.dev.data / "store" / "hsmd.db", timeout=30)) as store, store:
        store.execute("DELETE FROM grants WHERE key_id = ?", (of.key,))  # for the lists of other tests


# At the command line


def test_hsmctl(
    stand: Stand,
    client: Client,
    granted: Client,
    grantee: Tenant,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in stand.dev.environment().items():
        monkeypatch.setenv(name, value)
    key = client.create_key(fresh())
    made = ["grant", "create", key, "encrypt-data", "create-datakey-without-plaintext"]
    assert run([*made, "--user", grantee.user_id, "--name", "by-hand"]) == 0
    grant = capsys.readouterr().out.strip()
    assert granted.encrypt(key, b"x")
    assert run(["grant", "list", key, "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["grants"]
    assert (shown["grant_id"], shown["name"], shown["grantee_principal_type"]) == (grant, "by-hand", "user")
    assert shown["operations"] == ["create-datakey-without-plaintext", "encrypt-data"]
    assert run(["grant", "list", key]) == 0
    assert grant in capsys.readouterr().out
    assert run(["grant", "revoke", key, grant]) == 0
    assert "is revoked" in capsys.readouterr().err
    assert run([*made, "--domain", grantee.domain_id, "--json"]) == 0
    grant = json.loads(capsys.readouterr().out)["grant_id"]
    assert granted.encrypt(key, b"x")
    assert run(["grant", "list", "--retirable"]) == 0
    assert grant in capsys.readouterr().out
    assert run(["grant", "retire", key, grant, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"grant_id": grant}
    assert run(["grant", "retire", key, grant]) == 1
    assert "KMS.2502" in capsys.readouterr().err
    for wrong in (
        made,
        [*made, "--user", SOMEBODY, "--domain", SOMEBODY],
        ["grant", "list"],
        ["grant", "create", key],
    ):
        assert run(wrong) == 2
