"""A thousand grants over ten keys, in one process: right answers, and none that costs more than it must."""

import random
import uuid
from itertools import product

import pytest
from sqlalchemy import event

from hsmd.caller import Caller
from hsmd.config import Limits
from hsmd.domain import access
from hsmd.domain.core import Call, Core
from hsmd.errors import ACTION_REFUSED, KEY_NOT_FOUND, Error
from hsmd.hsm import Token
from hsmd.keyring import Keyring
from hsmd.store import Store, grants, keys
from hsmd.store.grants import Grant
from tests.stores import make_key, make_version

OPERATIONS = (
    *("create-datakey", "create-datakey-without-plaintext", "encrypt-datakey", "decrypt-datakey"),
    *("describe-key", "create-grant", "encrypt-data", "decrypt-data"),
    *("sign", "verify", "generate-mac", "verify-mac", "get-publickey"),
)
OWNER = Caller("token", "a" * 32, "owner", "b" * 32, "c" * 32, frozenset(["KMS Administrator"]))
PRINCIPALS = [f"{number:032x}" for number in range(1, 41)]


class _NoToken(Token):
    """Finding a key asks the HSM for nothing but seals, which the store of these tests makes itself."""

    def __init__(self) -> None:
        pass


@pytest.fixture
def core(sqlite_store: Store) -> Core:
    token = _NoToken()
    return Core(sqlite_store, token, Keyring(token, 1), lambda: 1, Limits(), "region")


def ask(core: Core, caller: Caller, key_id: str, operation: str, refused: str = "") -> bool:
    """Whether this caller gets the key for this operation; what it is told otherwise is held here."""
    call = Call(core, caller, lambda: None, grant=operation, refused=refused)
    try:
        return access.key(call, key_id).id == key_id
    except Error as error:
        if call.granted or error.fault is not (ACTION_REFUSED if refused else KEY_NOT_FOUND):
            raise
        return False


def as_user(user: str, domain: str) -> Caller:
    return OWNER._replace(user_id=user, domain_id=domain, project_id="d" * 32)


def fill(store: Store) -> tuple[list[str], list[Grant]]:
    chance = random.Random(7)  # noqa: S311 -- no secret
    ids = [str(uuid.UUID(int=number)) for number in range(1, 11)]
    made = [
        Grant(
            id=f"{number:064x}",
            key_id=ids[number % 10],
            project_id=OWNER.project_id,
            name="",
            grantee=chance.choice(PRINCIPALS),
            grantee_type=chance.choice(["user", "domain"]),
            retiring="",
            issuing=OWNER.user_id,
            operations=" ".join(sorted(chance.sample(OPERATIONS, chance.randint(1, 4)))),
            created=number,
        )
        for number in range(1000)
    ]
    with store.write() as tx:
        for number, key_id in enumerate(ids):
            key = make_key(number, id=key_id, project_id=OWNER.project_id, domain_id=OWNER.domain_id)
            keys.insert_key(tx, key, make_version(key))
        for grant in made:
            grants.insert_grant(tx, grant)
    return ids, made


def test_a_thousand_grants(core: Core) -> None:
    ids, made = fill(core.store)
    core.refresh()
    allowed = {
        (grant.key_id, grant.grantee_type, grant.grantee, operation)
        for grant in made
        for operation in grant.operations.split()
    }
    nobody = "e" * 32
    answers = {True: 0, False: 0}
    for key_id, principal, operation in product(ids, PRINCIPALS, OPERATIONS):
        by_user = (key_id, "user", principal, operation) in allowed
        by_domain = (key_id, "domain", principal, operation) in allowed
        assert ask(core, as_user(principal, nobody), key_id, operation) is by_user
        assert ask(core, as_user(nobody, principal), key_id, operation) is by_domain
        assert ask(core, as_user(principal, principal), key_id, operation) is (by_user or by_domain)
        assert ask(core, as_user(principal, nobody), key_id, operation, refused="kms:cmk:crypto") is by_user
        answers[by_user] += 1
        answers[by_domain] += 1
    assert min(answers.values()) > 300  # the question was open
    assert not ask(core, as_user(nobody, nobody), ids[0], "encrypt-data")
    assert not ask(core, as_user(PRINCIPALS[0], PRINCIPALS[0]), ids[0], "")  # a method that no grant allows


def test_what_is_revoked_is_revoked_for_that_key_only(core: Core) -> None:
    ids, made = fill(core.store)
    core.refresh()
    gone = [grant for grant in made if grant.key_id == ids[3]]
    held = [grant for grant in made if grant.key_id != ids[3] and grant.grantee_type == "user"]

    def granted(grant: Grant) -> bool:
        caller = as_user(grant.grantee, grant.grantee)
        return all(ask(core, caller, grant.key_id, each) for each in grant.operations.split())

    assert all(granted(grant) for grant in made)
    with core.store.write() as tx:
        for grant in gone:
            grants.delete_grant(tx, grant)
    core.refresh()
    assert not any(granted(grant) for grant in gone)
    assert all(granted(grant) for grant in held)


def test_an_owner_pays_for_no_grant_and_a_grantee_once(core: Core) -> None:
    ids, made = fill(core.store)
    core.refresh()
    statements: list[str] = []
    for engine in (core.store._readers, core.store._writers):
        event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))

    def reads() -> int:
        found = sum("FROM" in statement for statement in statements)
        statements.clear()
        return found

    for _ in range(3):
        assert all(ask(core, OWNER, key_id, "encrypt-data") for key_id in ids)
    assert not any("grants" in statement for statement in statements)
    assert reads() == 10
    for grant in made * 2:
        assert ask(core, as_user(grant.grantee, grant.grantee), grant.key_id, grant.operations.split()[0])
    assert reads() == 10
    strangers = [as_user("e" * 32, "e" * 32)] * 3
    assert not any(ask(core, stranger, key_id, "encrypt-data") for stranger in strangers for key_id in ids)
    assert reads() == 0  # nor does a stranger cost anything that is known already
