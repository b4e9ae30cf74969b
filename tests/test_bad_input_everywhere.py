"""Bad input of every kind for every operation that is served, made of its right call and its descriptor.

Operations that come are held without a word here, but for what keys in other states answer. What is wrong
for one operation only stands in the tests of its subject.
"""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from hsmd.client import ApiError, Client
from hsmd.descriptors import field_options, json_name, method_options, redacted
from hsmd.pb.options.v1 import options_pb2
from hsmd.pb.v1 import keys_pb2
from tests.calls import fresh, refused, snapshot
from tests.operations import OPERATIONS, RIGHT, SERVED, Fields, Operation, Wire, World, is_served
from tests.specs import Keys
from tests.stand import Answer, Stand, Tenant, elsewhere
from tests.test_bad_input import CANARY, MALFORMED, NEVER_RIGHT

_WITH_BODY = [name for name in SERVED if OPERATIONS[name].body]
_KEY_FIELDS = ("key_id", "target_key_id", "destination_key_id")  # those that name a key of the caller's
_WITH_KEY = [
    name
    for name in SERVED
    if any(
        field in _KEY_FIELDS
        for field in (*OPERATIONS[name].variables, *OPERATIONS[name].query, *OPERATIONS[name].body_fields)
    )
]
# A NUL is a byte as any other there.
_BYTES = (
    "plain_text",
    "additional_authenticated_data",
    "source_additional_authenticated_data",
    "destination_additional_authenticated_data",
)


def _descriptors(operation: Operation) -> Iterator[Any]:
    assert operation.route is not None
    yield from operation.route.method.input_type.fields


def _options(name: str) -> options_pb2.Method:
    route = OPERATIONS[name].route
    assert route is not None
    return method_options(route.method)


def _key_field(right: Fields) -> str:
    """The field that names the key which the operation is about; "" for none."""
    return next((name for name in _KEY_FIELDS if name in right), "")


def _code(answer: Answer) -> str:
    """The code of a refusal, held to its form; "" for success."""
    if answer.status < 300:
        return ""
    error = answer.json.get("error", answer.json)
    refused(answer, error["error_code"])
    return str(error["error_code"])


class Rights:
    """A right call of each operation, made when first asked for: refused calls leave it right."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._made: dict[str, Fields] = {}

    def __getitem__(self, name: str) -> Fields:
        if name not in self._made:
            self._made[name] = RIGHT[name](self._world)
        return self._made[name]


@pytest.fixture(scope="module")
def world(stand: Stand, client: Client, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(stand, client, keys, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rights(world: World) -> Rights:
    return Rights(world)


@pytest.fixture(scope="module")
def wire(world: World) -> Wire:
    return world.wire


@pytest.fixture
def unchanged(client: Client, rights: Rights, request: pytest.FixtureRequest) -> Iterator[None]:
    """Keys are after the test what they were before it, the operation's own among them."""
    rights[request.node.callspec.params["name"]]
    before = snapshot(client)
    yield
    assert snapshot(client) == before


# Fields


@pytest.mark.parametrize("name", _WITH_BODY)
@pytest.mark.usefixtures("unchanged")
def test_required_fields(rights: Rights, wire: Wire, name: str) -> None:
    operation, right = OPERATIONS[name], rights[name]
    for field in _descriptors(operation):
        part = json_name(field)
        if not field_options(field).required or part in operation.variables:
            continue
        without = {each: value for each, value in right.items() if each != part}
        for fields in (without, {**without, part: None}):
            assert part in refused(wire.call(operation, fields), "KMS.0204").message
        if not field.has_presence or field.message_type is not None:
            empty: object = [] if field.is_repeated else ""
            assert _code(wire.call(operation, {**without, part: empty})), part


@pytest.mark.parametrize("name", _WITH_BODY)
@pytest.mark.usefixtures("unchanged")
def test_wrong_values(rights: Rights, wire: Wire, name: str) -> None:
    operation, right = OPERATIONS[name], rights[name]
    booleans = {json_name(each) for each in _descriptors(operation) if each.type == each.TYPE_BOOL}
    secret = {json_name(each) for each in _descriptors(operation) if redacted(each)}
    for field in operation.body_fields:
        if field in operation.variables:
            continue  # the path wins
        for value in NEVER_RIGHT:
            if (field in booleans and isinstance(value, bool)) or (field in _BYTES and value == "\0"):
                continue
            if isinstance(value, list) and not value and isinstance(right.get(field, []), list):
                continue  # an empty list of what may be left out; required ones are held above
            answer = wire.call(operation, {**right, field: value})
            assert answer.status == 400, (field, value, answer.raw)
            assert _code(answer)
            assert field not in secret or CANARY.encode() not in answer.raw, (field, value)


@pytest.mark.parametrize("name", [name for name in SERVED if OPERATIONS[name].query])
@pytest.mark.usefixtures("unchanged")
def test_wrong_values_in_the_query(world: World, rights: Rights, wire: Wire, name: str) -> None:
    operation, right = OPERATIONS[name], rights[name]
    for field in operation.query:
        for value in ("x" * 5000, "\0", b"\xff", "-1", "1.5", "9" * 30, "\u0663"):
            assert _code(wire.call(operation, {**right, field: value})), (field, value)
    path = operation.path(world.stand.dev.project_id, right)
    for field in operation.query:
        twice = f"{field}=1&{field}=2"
        assert _code(wire.send(operation.verb, f"{path}{'&' if '?' in path else '?'}{twice}", None))


@pytest.mark.parametrize("name", _WITH_KEY)
@pytest.mark.usefixtures("unchanged")
def test_names_of_no_key(rights: Rights, wire: Wire, name: str) -> None:
    operation, right = OPERATIONS[name], rights[name]
    field = _key_field(right)
    urn = "kms:elsewhere:" + "0" * 32 + ":alias:x"
    for value in (str(uuid.uuid4()), f"alias/{fresh()}", urn):
        refused(wire.call(operation, {**right, field: value}), "KMS.0207")
    for value in ("x", str(uuid.uuid4())[:-1] + "A", "alias/", "alias/a b", "0" * 5000, "../x", urn + "\n"):
        refused(wire.call(operation, {**right, field: value}), "KMS.0205")


# Bodies, verbs, evidence


@pytest.mark.parametrize("name", _WITH_BODY)
@pytest.mark.usefixtures("unchanged")
def test_bodies_that_are_no_json(world: World, rights: Rights, wire: Wire, name: str) -> None:
    operation = OPERATIONS[name]
    path = operation.path(world.stand.dev.project_id, rights[name])
    for body in MALFORMED[:10]:
        refused(wire.send(operation.verb, path, body), "KMS.0202")


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.usefixtures("unchanged")
def test_other_verbs(world: World, rights: Rights, wire: Wire, name: str) -> None:
    path = OPERATIONS[name].path(world.stand.dev.project_id, rights[name]).partition("?")[0]
    for verb in ("GET", "PUT", "POST", "DELETE", "PATCH"):
        if not is_served(verb, path):
            refused(wire.send(verb, path, None if verb == "GET" else b"{}"), "KMS.0215")


_CLOSED = [name for name in SERVED if _options(name).access != options_pb2.OPEN]


@pytest.mark.parametrize("name", _CLOSED)
@pytest.mark.usefixtures("unchanged")
def test_no_evidence_and_another_project(
    stand: Stand, stranger: Tenant, world: World, rights: Rights, name: str
) -> None:
    operation, right, source = OPERATIONS[name], rights[name], elsewhere()
    refused(Wire(stand, "", source=source).call(operation, right), "APIGW.0301")
    refused(Wire(stand, "x" * 500, source=source).call(operation, right), "KMS.0302")
    own = Wire(stand, world.stand.token(), stranger.project_id, source=source)
    refused(own.call(operation, right), "KMS.0321")


# Rights


@pytest.fixture(scope="module")
def looking(stand: Stand, reader: Tenant) -> Wire:
    return Wire(stand, stand.token(reader), reader.project_id)


@pytest.fixture(scope="module")
def strange_wire(stand: Stand, stranger: Tenant) -> Wire:
    return Wire(stand, stand.token(stranger), stranger.project_id)


@pytest.mark.parametrize("name", [name for name in SERVED if _options(name).action])
@pytest.mark.usefixtures("unchanged")
def test_roles(looking: Wire, rights: Rights, name: str) -> None:
    """Who may only look, in a project of its own."""
    operation, right, options = OPERATIONS[name], rights[name], _options(name)
    code = _code(looking.call(operation, right))
    if options.action.rpartition(":")[2].startswith(("get", "list")):
        foreign = "KMS.0207" if _key_field(right) or "policy_id" in right else ""
        assert code == ("KMS.0340" if "keystore_id" in right else foreign)
    elif options.access == options_pb2.PARTY and not _key_field(right):
        assert code == ""  # what is a party's own
    else:
        assert code == "KMS.0330"


@pytest.mark.parametrize("name", _WITH_KEY)
@pytest.mark.usefixtures("unchanged")
def test_keys_of_others(strange_wire: Wire, rights: Rights, name: str) -> None:
    refused(strange_wire.call(OPERATIONS[name], rights[name]), "KMS.0207")


# States

# What is answered about a key that is disabled, pending deletion and pending import. "" is success, None a
# state that the key can't come into. What is not here uses the key.
_USE = ("KMS.0209", "KMS.0210", "KMS.0209")
_CHANGE = ("", "KMS.0210", "")
_ALWAYS = ("", "", "")
_ROTATION = ("", "KMS.0210", "KMS.0312")
_STATES: dict[str, tuple[str | None, str | None, str | None]] = {
    "associate_alias": _CHANGE,
    "batch_create_kms_tags": _CHANGE,
    "cancel_grant": ("", "", "KMS.2502"),  # the grant is another key's
    "cancel_key_deletion": (None, None, "KMS.1501"),  # pending already
    "cancel_self_grant": ("", "", "KMS.2502"),
    "create_alias": _CHANGE,
    "create_kms_tag": _CHANGE,
    "create_parameters_for_import": (None, "KMS.0310", ""),
    "delete_alias": ("", "", "KMS.0207"),  # the alias is another key's
    "delete_imported_key_material": ("", "KMS.2701", "KMS.2701"),
    "delete_key": ("", "KMS.1402", ""),
    "delete_tag": ("", "KMS.0210", "KMS.0416"),
    "disable_key": ("KMS.1301", "KMS.1301", "KMS.1301"),
    "disable_key_rotation": _ROTATION,
    "enable_key": (None, "KMS.1201", "KMS.1201"),  # disabled already
    "enable_key_rotation": ("KMS.0209", "KMS.0210", "KMS.0312"),
    "import_key_material": (None, "KMS.0310", "KMS.2603"),  # the token is another key's
    "list_aliases": _ALWAYS,
    "list_grants": _ALWAYS,
    "list_key_detail": _ALWAYS,
    "replicate_key": ("KMS.0209", "KMS.0210", "KMS.0308"),  # imported material is not replicated
    "rotate_on_demand": ("KMS.0209", "KMS.0210", "KMS.0312"),
    "show_key_rotation_status": _ALWAYS,
    "show_kms_tags": _ALWAYS,
    "update_key_alias": _CHANGE,
    "update_key_description": _CHANGE,
    "update_key_rotation_interval": _ROTATION,
}


def _emptied(client: Client, key_id: str) -> str:
    """A key of the same kind whose material has yet to come."""
    key = client.describe_key(key_id)
    return client.create_key(
        fresh("empty"),
        spec=keys_pb2.KeySpec.Name(key.key_spec).removeprefix("KEY_SPEC_"),
        usage=keys_pb2.KeyUsage.Name(key.key_usage).removeprefix("KEY_USAGE_"),
        origin="external",
    )


@pytest.mark.parametrize("name", _WITH_KEY)
def test_states(client: Client, world: World, name: str) -> None:
    operation, alone = OPERATIONS[name], world.alone()
    found: list[str | None] = []
    for change in (client.disable, lambda key: client.schedule_deletion(key, 7)):
        right = RIGHT[name](alone)
        try:
            change(str(right[_key_field(right)]))
        except ApiError:
            found.append(None)
            continue
        found.append(_code(world.wire.call(operation, right)))
    right = RIGHT[name](alone)
    right[_key_field(right)] = _emptied(client, str(right[_key_field(right)]))
    found.append(_code(world.wire.call(operation, right)))
    assert tuple(found) == _STATES.get(name, _USE)
