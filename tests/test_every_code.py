"""Every fault there is, provoked over REST and over gRPC: its code, both statuses, its own text.

A fault of hsmd/errors.py without a row is found, and a code of DEW's that no fault has. What needs more than
a call (a broken disk, another region, another day) is provoked elsewhere, and where is written here.
"""

import ast
import csv
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hsmd import errors
from hsmd.client import ApiError, Client
from tests import keyspaces, vaults, wrapping
from tests.calls import fresh, refusal, refused, sequence
from tests.operations import DEK, OPERATIONS, RIGHT, SOMEBODY, Fields, Wire, World
from tests.specs import Keys
from tests.stand import Answer, Stand, Tenant, b64, elsewhere, eventually
from tests.test_bad_input import Raw

_DEW = Path(__file__).parents[2] / "shared" / "dew" / "error-codes.tsv"
FAULTS = {name: value for name, value in vars(errors).items() if isinstance(value, errors.Fault)}

_PATIENCE = 600.0  # seconds until what comes at last must be there, however busy the machine is

# DEW's codes that no call gets here.
_NEVER = {
    "KMS.0201": "a URL that is not valid is no API's: APIGW.0101",
    "KMS.0203": "a body that is too long never gets past the gateway: APIGW.0201",
    "KMS.0301": "a request without a token is one without any evidence: APIGW.0301",
    "KMS.2203": "no digest is sent with a data key's ciphertext; its tag tells what was changed: KMS.2201",
}

# Provoked where it takes more than a call: the test, by file and name.
_ELSEWHERE = {
    "KEY_USED_UP": "test_time_passes.py::test_a_version_is_used_up",
    "PROJECT_REFUSED": "test_sdk.py::test_another_project_is_refused",
    "TOKEN_EXPIRED": "test_identity.py::test_an_expired_token",
    "RATE_EXCEEDED": "test_rotation.py::test_fifty_rotations_and_a_restart",
    "IMPORT_TOKEN_EXPIRED": "test_imports.py::test_an_expired_token",
    "QUOTA_EXCEEDED": "test_keys.py::test_counts_and_quota",
    "KEYSTORES_EXCEEDED": "test_keystores.py::test_a_domain_has_a_quota",
    "KEYSTORE_UNAVAILABLE": "test_keystores_away.py::test_a_token_that_is_taken_away_and_returned",
    "KEYSPACE_QUOTA_EXCEEDED": "test_capsules_time.py::test_quotas",
    "REPLICA_REFUSED": "test_regions.py::test_a_replica_does_not_rotate",
    "REPLICAS_PRESENT": "test_regions.py::test_a_primary_goes_after_its_replicas",
    "NOT_A_REPLICA": "test_regions_peers.py::test_forged_words_about_a_key",
    "ROOT_KEY_DIFFERS": "test_regions_peers.py::test_a_region_with_another_root_key",
    "ROOT_KEY_REFUSED": "test_roots.py::test_what_keeps_a_root_key",
    "BACKUP_REFUSED": "test_backups.py::test_a_full_disk_leaves_nothing",
    "SEALED": "test_sealing.py::test_sealed_start_unseal_by_two_of_three_restart",
    "NOT_SEALED": "test_sealing.py::test_sealed_start_unseal_by_two_of_three_restart",
    "SEAL_MISSING": "test_sealing.py::test_a_seal_file_that_goes_away_while_sealed",
    "SEAL_REFUSED": "test_sealing_keeper.py::test_no_change_without_its_seal",
    "SHARE_REFUSED": "test_sealing.py::test_wrong_shares_that_are_signed_rightly",
    "UNSEAL_FAILED": "test_sealing.py::test_a_refused_pin_is_tried_once",
    "PROPOSAL_REFUSED": "test_proposals.py::test_a_proposal_is_void_when_its_object_has_changed",
    "PROPOSALS_EXCEEDED": "test_proposals.py::test_one_ukey_cannot_fill_the_list",
    "QUORUM_MISSING": "test_proposals.py::test_one_alone_never_suffices_and_two_do",
    "LIMIT_NEEDS_QUORUM": "test_proposals.py::test_an_operator_alone_does_not_go_above_the_bound",
    "NOT_FROZEN": "test_proposals.py::test_states_that_do_not_fit_are_refused",
    "INTERNAL": "test_disk_faults.py::test_a_changed_row_is_refused_and_named",
    "STORAGE_FAILED": "test_store_faults.py::test_a_read_only_store_refuses_and_recovers",
    "UNAVAILABLE": "test_token_away.py::test_a_token_that_hangs_under_load",
    "DEADLINE": "test_daemon_doors.py::test_calls_without_a_deadline_end_by_the_servers_own",
    "ACCESS_KEYS_EXCEEDED": "test_access_keys.py::test_two_a_user_also_at_once",
    "ACCOUNT_LOCKED": "test_domain_settings.py::test_wrong_passwords_lock_the_account_on_every_worker",
    "AGENCY_REFUSED": "test_agencies.py::test_who_may_not_act_as_one",
    "IAM_ACTION_REFUSED": "test_agencies.py::test_who_may_not_keep_them",
    "IAM_EXISTS": "test_groups.py::test_a_name_is_taken_once",
    "IAM_INPUT_INVALID": "test_domain_settings.py::test_rules_out_of_their_range",
    "IAM_IN_USE": "test_projects.py::test_a_project_with_keys_stays",
    "IAM_NOT_FOUND": "test_access_keys.py::test_another_domains_are_not_there",
    "IAM_PROTECTED": "test_users.py::test_nobody_locks_the_domain_out",
    "IAM_QUOTA_EXCEEDED": "test_users.py::test_the_quota",
    "PASSWORD_EXPIRED": "test_domain_settings.py::test_an_expired_password_is_good_for_another_one_only",
    "PASSWORD_REFUSED": "test_domain_settings.py::test_passwords_that_were_in_use",
    "USER_IDLE": "test_domain_settings.py::test_who_was_away_too_long",
}


def _pattern(fault: errors.Fault) -> str:
    return re.sub(r"\\\{\w+\\\}", ".+", re.escape(fault.text))


# Calls


class Calls:
    """What provokes faults: a world, and whoever else calls."""

    def __init__(self, world: World, stranger: Tenant, reader: Tenant) -> None:
        self.world = world
        self.client = world.client
        self.stranger = stranger
        self.reader = reader

    def right(self, name: str, **changes: object) -> Fields:
        """A right call but for these changes."""
        return {**RIGHT[name](self.world), **changes}

    def rest(self, name: str, fields: Fields) -> Any:
        """What has to come before."""
        return self.world.rest(name, fields)


Case = tuple[str, Callable[[Calls], Fields]]


def _with(name: str, **changes: object) -> Case:
    """The right call with these changes."""
    return name, lambda calls: calls.right(name, **changes)


def _on(name: str, spec: str, usage: str = "", **changes: object) -> Case:
    """The right call on a key of another kind."""
    return name, lambda calls: calls.right(name, **{"key_id": calls.world.key(spec, usage), **changes})


def _again(name: str) -> Case:
    """The second of two same calls."""

    def fields(calls: Calls) -> Fields:
        made = calls.right(name)
        calls.rest(name, made)
        return made

    return name, fields


def _external(name: str, spec: str = "AES_256") -> Case:
    return name, lambda calls: calls.right(name, key_id=calls.world.external(spec))


def _state(name: str, change: Callable[[Client, str], object]) -> Case:
    def fields(calls: Calls) -> Fields:
        key = calls.world.another()
        change(calls.client, key)
        return calls.right(name, key_id=key)

    return name, fields


def _default(calls: Calls) -> Fields:
    calls.client.encrypt("alias/dds/default", b"x")
    return calls.right("disable_key", key_id="alias/dds/default")


def _material(calls: Calls, spec: str, material: bytes, private: bytes = b"") -> Fields:
    key = calls.world.external(spec)
    made = wrapping.request(calls.world.folder, wrapping.parameters(calls.client, key), material, private)
    fields: Fields = {
        "key_id": key,
        "import_token": b64(made.import_token),
        "encrypted_key_material": b64(made.encrypted_key_material),
    }
    if private:
        fields["encrypted_privatekey"] = b64(made.encrypted_privatekey)
    return fields


def _other_material(calls: Calls) -> Fields:
    fields = _material(calls, "AES_256", DEK)
    calls.rest("import_key_material", fields)
    calls.rest("delete_imported_key_material", {"key_id": fields["key_id"]})
    public = wrapping.parameters(calls.client, str(fields["key_id"]))
    made = wrapping.request(calls.world.folder, public, bytes(32))
    fields["import_token"] = b64(made.import_token)
    fields["encrypted_key_material"] = b64(made.encrypted_key_material)
    return fields


def _bad_private_key(calls: Calls) -> Fields:
    return _material(calls, "EC_P256", bytes(32), wrapping.private_key("EC_P384"))


def _no_private_key(calls: Calls) -> Fields:
    return {**_material(calls, "AES_256", DEK), "key_id": calls.world.external("EC_P256")}


def _others_token(calls: Calls) -> Fields:
    return {**_material(calls, "AES_256", DEK), "key_id": calls.world.external()}


def _imported_pair(calls: Calls) -> Fields:
    fields = _material(calls, "EC_P256", bytes(32), wrapping.private_key("EC_P256"))
    calls.rest("import_key_material", fields)
    return {"key_id": fields["key_id"]}


def _vault(calls: Calls) -> str:
    return str(calls.right("show_key_store")["keystore_id"])


def _vault_key(calls: Calls) -> Fields:
    """Keystores' tokens may be connected after the daemon's start, and take long to make a key.

    Whatever becomes of one try, the next is the same request: with its sequence it makes no second key.
    """
    wanted = {"key_alias": fresh(), "keystore_id": _vault(calls), "sequence": sequence()}

    def made() -> str:
        answer = calls.world.wire.call(OPERATIONS["create_key"], wanted)
        assert answer.status == 200 or answer.status >= 500, answer.raw
        return str(answer.json["key_info"]["key_id"]) if answer.status == 200 else ""

    return {"key_id": eventually(made, _PATIENCE)}


def _vault_name(calls: Calls) -> Fields:
    alias = vaults.show(calls.client, _vault(calls)).keystore_alias
    return {**calls.right("create_key_store"), "keystore_alias": alias}


def _full_of_grants(calls: Calls) -> Fields:
    fields = calls.right("create_grant", key_id=calls.world.another())
    for _ in range(100):
        calls.rest("create_grant", fields)
    return fields


def _full_of_aliases(calls: Calls) -> Fields:
    key = calls.world.another()
    for _ in range(50):
        calls.rest("create_alias", {"key_id": key, "alias": f"alias/{fresh()}"})
    return {"key_id": key, "alias": f"alias/{fresh()}"}


def _full_of_tags(calls: Calls) -> Fields:
    key = calls.world.another()
    tags = [{"key": f"tag-{number}"} for number in range(10)]
    calls.rest("batch_create_kms_tags", {"key_id": key, "tags": tags, "action": "create"})
    return {"key_id": key, "tag": {"key": "another", "value": ""}}


def _others_grant(calls: Calls) -> Fields:
    """The owner may revoke a grant that a grantee passed on, but not retire it."""
    key = calls.world.another()
    grant = calls.right("create_grant", key_id=key, grantee_principal=calls.stranger.user_id)
    calls.rest("create_grant", {**grant, "operations": ["create-grant", "encrypt-data"]})
    theirs = Wire(calls.world.stand, calls.world.stand.token(calls.stranger), calls.stranger.project_id)
    passed = {"key_id": key, "grantee_principal": SOMEBODY, "operations": ["encrypt-data"]}
    made = theirs.call(OPERATIONS["create_grant"], passed)
    return {"key_id": key, "grant_id": made.json["grant_id"]}


def _tags(*tags: Mapping[str, str], **more: object) -> Case:
    return _with("batch_create_kms_tags", tags=list(tags), **more)


def _find(**fields: object) -> Case:
    return "list_kms_by_tags", lambda _calls: {"resource_instances": "resource_instances", **fields}


def _taken_name(calls: Calls) -> Fields:
    space, name = keyspaces.keyspace(), fresh()
    keyspaces.create_point(calls.client, space, access_point_name=name)
    return {"keyspace_id": space, "access_point_name": name, "type": 3}


def _forged_attestation(calls: Calls) -> Fields:
    fields = calls.right("decrypt_datakey_capsule")
    document = {**fields["attestation_document"], "custom_signature": b64(bytes(70))}  # type: ignore[dict-item]  # it is one
    return {**fields, "attestation_document": document}


def _dek(digest: bytes = b"", length: str = "32") -> Case:
    text = (DEK + (digest or bytes(32))).hex()
    return _with("encrypt_datakey", plain_text=text, datakey_plain_length=length)


_UNKNOWN = "12345678-1234-4123-8123-123456789012"
CASES: dict[str, Case] = {
    "PARAMETER_INVALID": _with("create_key", vm_id="x"),
    "SEQUENCE_INVALID": _with("list_key_detail", sequence="x"),
    "CONTEXT_INVALID": _with("encrypt_data", additional_authenticated_data="x" * 129),
    "KEY_ID_INVALID": _with("list_key_detail", key_id="x"),
    "KEY_NOT_FOUND": _with("list_key_detail", key_id=_UNKNOWN),
    "KEY_DISABLED": _state("encrypt_data", lambda client, key: client.disable(key)),
    "KEY_PENDING_DELETION": _state("encrypt_data", lambda client, key: client.schedule_deletion(key, 7)),
    "KEY_STATE_REFUSED": _external("encrypt_data"),
    "KEY_IS_DEFAULT": ("disable_key", _default),
    "KEY_NOT_DISABLED": _on("enable_key", "AES_256"),
    "KEY_NOT_ENABLED": _again("disable_key"),
    # Imports
    "EXTERNAL_KEY_DUE": _on("create_parameters_for_import", "AES_256"),
    "NOT_PENDING_IMPORT": _again("import_key_material"),
    "MATERIAL_NOT_DECRYPTED": _with("import_key_material", encrypted_key_material=b64(bytes(384))),
    "EXPIRATION_INVALID": _with("import_key_material", expiration_time=1),
    "IMPORT_TOKEN_OF_OTHER_KEY": ("import_key_material", _others_token),
    "MATERIAL_SIZE_INVALID": ("import_key_material", lambda calls: _material(calls, "AES_256", bytes(16))),
    "IMPORT_TOKEN_INVALID": _with("import_key_material", import_token=b64(bytes(2000))),
    "MATERIAL_DIFFERS": ("import_key_material", _other_material),
    "PRIVATE_KEY_MISSING": ("import_key_material", _no_private_key),
    "PRIVATE_KEY_INVALID": ("import_key_material", _bad_private_key),
    "TEMPORARY_KEY_INVALID": (
        "import_key_material",
        lambda calls: {**_material(calls, "EC_P256", bytes(15)), "encrypted_privatekey": b64(bytes(64))},
    ),
    "MATERIAL_NOT_DELETED": _external("delete_imported_key_material"),
    "PRIVATE_KEY_NOT_DELETED": ("delete_imported_key_material", _imported_pair),
    # Rotation
    "EXTERNAL_NOT_ROTATED": _external("rotate_on_demand"),
    "ROTATION_IS_OFF": _on("disable_key_rotation", "AES_256"),
    "ASYMMETRIC_NOT_ROTATED": _on("rotate_on_demand", "RSA_2048"),
    "KEYSTORE_NOT_ROTATED": ("rotate_on_demand", _vault_key),
    "ROTATION_IS_ON": _again("enable_key_rotation"),
    "INTERVAL_INVALID": _with("update_key_rotation_interval", rotation_interval=29),
    # Kinds of keys
    "HMAC_KEY_REFUSED": _on("encrypt_data", "HMAC_256"),
    "ASYMMETRIC_KEY_REFUSED": _on("create_datakey", "RSA_2048", "ENCRYPT_DECRYPT"),
    "SYMMETRIC_KEY_REFUSED": _on("show_public_key", "AES_256"),
    "SIGNING_ALGORITHM_REFUSED": _on("sign", "RSA_2048"),
    "USAGE_IS_ENCRYPTION": _on("sign", "RSA_2048", "ENCRYPT_DECRYPT", signing_algorithm="RSASSA_PSS_SHA_256"),
    "USAGE_IS_SIGNING": _on("encrypt_data", "RSA_2048", encryption_algorithm="RSAES_OAEP_SHA_256"),
    "USAGE_IS_AGREEMENT": _on("sign", "EC_P256", "KEY_AGREEMENT"),
    "EC_KEY_REFUSED": _on("encrypt_data", "EC_P256"),
    "SYMMETRIC_DOES_NOT_SIGN": _on("sign", "AES_256"),
    # Grants
    "GRANT_REFUSED": ("cancel_self_grant", _others_grant),
    "GRANT_ALONE": _with("create_grant", operations=["create-grant"]),
    "PRINCIPAL_INVALID": _with("create_grant", grantee_principal="x"),
    "GRANTS_EXCEEDED": ("create_grant", _full_of_grants),
    "GRANT_ID_INVALID": _with("cancel_grant", grant_id="x"),
    "GRANT_NOT_FOUND": _with("cancel_grant", grant_id="0" * 64),
    # Names and limits
    "ALIAS_INVALID": _with("create_key", key_alias="a b"),
    "DESCRIPTION_INVALID": _with("create_key", key_description="x" * 256),
    "ALIAS_IN_USE": _again("create_key"),
    "ALIAS_NOT_FOUND": (
        "delete_alias",
        lambda calls: calls.right("delete_alias", aliases=[f"alias/{fresh()}"]),
    ),
    "ALIAS_QUOTA_EXCEEDED": ("create_alias", _full_of_aliases),
    "SPEC_INVALID": _with("create_key", key_spec="ED25519", origin="external"),
    "DAYS_INVALID": _with("delete_key", pending_days="6"),
    "ALREADY_PENDING_DELETION": _again("delete_key"),
    "NOT_PENDING_DELETION": _on("cancel_key_deletion", "AES_256"),
    "LIMIT_INVALID": _with("list_keys", limit="0"),
    "MARKER_INVALID": _with("list_keys", marker="-1"),
    # Keystores
    "KEYSTORE_REFUSED": _with("create_key", keystore_id="no-such"),
    "KEYSTORE_NOT_IMPORTED": (
        "create_key",
        lambda calls: {"key_alias": fresh(), "origin": "external", "keystore_id": _vault(calls)},
    ),
    "KEYSTORE_ALIAS_INVALID": _with("create_key_store", keystore_alias="a b"),
    "KEYSTORE_ALIAS_IN_USE": ("create_key_store", _vault_name),
    "KEYSTORE_NOT_DISABLED": ("enable_key_store", lambda calls: {"keystore_id": _vault(calls)}),
    "KEYSTORE_NOT_ENABLED": _again("disable_key_store"),
    "KEYSTORE_OFFSET_INVALID": _with("list_key_stores", offset="-1"),
    # Regions
    "REGION_OFFSET_INVALID": _with("list_support_regions", offset="-1"),
    "REGION_UNAVAILABLE": _with("replicate_key"),
    # Keyspaces
    "KEYSPACE_THING_NOT_FOUND": _with("show_key_policy", policy_id=_UNKNOWN),
    "KEYSPACE_NAME_IN_USE": ("create_access_point", _taken_name),
    "ACCESS_POINT_NOT_DISABLED": ("enable_access_point", lambda calls: calls.right("disable_access_point")),
    "ACCESS_POINT_NOT_ENABLED": _again("disable_access_point"),
    "KEYSPACE_LIMIT_INVALID": _with("list_access_point", limit="101"),
    "KEYSPACE_MARKER_INVALID": _with("list_access_point", marker="x"),
    "CAPSULE_REFUSED": ("decrypt_datakey_capsule", _forged_attestation),
    # Tags
    "RESOURCE_TYPE_INVALID": _find(resource_instances="keys"),
    "TAGS_MISSING": _tags(),
    "MATCH_VALUE_INVALID": _find(matches=[{"key": "resource_name", "value": "x" * 256}]),
    "MATCH_KEY_INVALID": _find(matches=[{"key": "key_id", "value": "x"}]),
    "TAG_ACTION_INVALID": _tags({"key": "a"}, action="x"),
    "TAG_VALUE_INVALID": _tags({"key": "a", "value": "="}),
    "TAG_KEY_INVALID": _tags({"key": "="}),
    "TAG_COUNT_INVALID": _tags(*({"key": f"tag-{number}"} for number in range(11))),
    "TAGS_EXCEEDED": ("create_kms_tag", _full_of_tags),
    "TAG_VALUE_TOO_LONG": _tags({"key": "a", "value": "v" * 44}),
    "TAG_KEY_TOO_LONG": _tags({"key": "a" * 37}),
    "TAG_LIST_INVALID": _tags({"key": "a"}, {"key": "a"}),
    "TAG_VALUES_EXCEEDED": _find(tags=[{"key": "a", "values": [str(number) for number in range(11)]}]),
    "TAGS_INVALID": _with("create_kms_tag", tag="a"),
    "MATCHES_INVALID": _find(matches=[{"key": "resource_name", "value": "a"}] * 2),
    "TAG_NOT_FOUND": _with("delete_tag", key="none"),
    "OFFSET_INVALID": _find(action="filter", offset="-1"),
    "OFFSET_REFUSED": _find(action="count", offset="1"),
    # Data
    "RANDOM_LENGTH_INVALID": _with("create_random", random_data_length="8200"),
    "RANDOM_LENGTH_UNEVEN": _with("create_random", random_data_length="9"),
    "DATAKEY_LENGTH_INVALID": _with("create_datakey", datakey_length="8200"),
    "DATAKEY_SPEC_INVALID": _with("create_datakey", key_spec="RSA_2048"),
    "DATAKEY_LENGTH_UNEVEN": _with("create_datakey", datakey_length="9"),
    "PLAINTEXT_INVALID": _with("encrypt_data", plain_text="x" * 4097),
    "PLAIN_LENGTH_INVALID": _dek(length="1025"),
    "PLAIN_DIGEST_DIFFERS": _dek(),
    "PLAIN_LENGTH_DIFFERS": _dek(length="31"),
    "ALGORITHM_REFUSED": _with("encrypt_data", encryption_algorithm="RSAES_OAEP_SHA_256"),
    "RSA_ALGORITHM_REFUSED": _on("encrypt_data", "RSA_2048", "ENCRYPT_DECRYPT"),
    "PLAINTEXT_TOO_LONG": _on(
        "encrypt_data",
        "RSA_2048",
        "ENCRYPT_DECRYPT",
        plain_text="x" * 191,
        encryption_algorithm="RSAES_OAEP_SHA_256",
    ),
    "CIPHERTEXT_INVALID": _with("decrypt_data", cipher_text=b64(bytes(140))),
    "CIPHER_LENGTH_INVALID": _with("decrypt_datakey", datakey_cipher_length="0"),
    "CIPHER_LENGTH_DIFFERS": _with("decrypt_datakey", datakey_cipher_length="33"),
    "DIGEST_INVALID": _with("sign", message_type="DIGEST"),
}


@pytest.fixture(scope="module")
def calls(
    stand: Stand,
    client: Client,
    keys: Keys,
    stranger: Tenant,
    reader: Tenant,
    tmp_path_factory: pytest.TempPathFactory,
) -> Calls:
    return Calls(World(stand, client, keys, tmp_path_factory.mktemp("codes")), stranger, reader)


@pytest.fixture(scope="module")
def raw(stand: Stand) -> Raw:
    return Raw(stand)


def _check(name: str, answer: Answer) -> None:
    fault = FAULTS[name]
    seen = refused(answer, fault.code)
    assert answer.status == fault.http
    assert re.fullmatch(_pattern(fault), seen.message), seen.message


@pytest.mark.parametrize("name", CASES)
def test_provoked(calls: Calls, raw: Raw, name: str) -> None:
    operation, make = OPERATIONS[CASES[name][0]], CASES[name][1]
    fields, fault = make(calls), FAULTS[name]
    _check(name, calls.world.wire.call(operation, fields))
    try:
        method, message = operation.message(calls.world.stand.dev.project_id, fields)
    except errors.Error:  # what JSON can say and protobuf can't: the gateway has refused it as above
        return
    with pytest.raises(ApiError) as caught:
        raw.call(method, message)
    assert (caught.value.code, caught.value.status.name) == (fault.code, fault.grpc)


# What is said before any operation is looked at


def _scoped(stand: Stand, scope: object) -> Answer:
    password = {"user": {"id": stand.dev.user_id, "password": stand.dev.password}}
    identity = {"methods": ["password"], "password": password}
    body = {"auth": {"identity": identity, "scope": scope} if scope else {"identity": identity}}
    return stand.rest("POST", "/v3/auth/tokens", body)


def _without_project(calls: Calls) -> Answer:
    stand = calls.world.stand
    token = str(_scoped(stand, None).headers["X-Subject-Token"])
    return Wire(stand, token).call(OPERATIONS["list_keys"], {})


def _wrong_password(calls: Calls) -> Answer:
    user = {"id": "0" * 32, "password": "wrong"}
    body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}
    return calls.world.stand.rest("POST", "/v3/auth/tokens", body, source=elsewhere())


def _as(calls: Calls, token: str) -> Wire:
    return Wire(calls.world.stand, token, source=elsewhere())


def _reader(calls: Calls) -> Answer:
    wire = Wire(calls.world.stand, calls.world.stand.token(calls.reader), calls.reader.project_id)
    return wire.call(OPERATIONS["create_key"], {"key_alias": fresh()})


def _many_parameters(calls: Calls) -> Answer:
    path = f"/v1.0/{calls.world.stand.dev.project_id}/kms/aliases?" + "&".join(["limit=1"] * 101)
    return calls.world.wire.send("GET", path, None)


def _list_keys(calls: Calls, body: bytes) -> Answer:
    operation = OPERATIONS["list_keys"]
    return calls.world.wire.send("POST", operation.path(calls.world.stand.dev.project_id, {}), body)


FIRST: dict[str, Callable[[Calls], Answer]] = {
    "BODY_NOT_JSON": lambda calls: _list_keys(calls, b"{"),
    "PARAMETER_MISSING": lambda calls: calls.world.wire.call(OPERATIONS["list_key_detail"], {}),
    "FORMAT_INVALID": _many_parameters,
    "METHOD_NOT_SUPPORTED": lambda calls: calls.world.wire.send("PATCH", "/v3/regions", b"{}"),
    "BODY_TOO_LARGE": lambda calls: calls.world.stand.kms("list-keys", b" " * (12 * 1024 * 1024 + 1)),
    "NO_SUCH_API": lambda calls: calls.world.wire.send("GET", "/v1.0/no/such", None),
    "IDENTITY_REFUSED": lambda calls: _as(calls, "").call(OPERATIONS["list_keys"], {}),
    "TOKEN_INVALID": lambda calls: _as(calls, "x" * 100).call(OPERATIONS["list_keys"], {}),
    "TOKEN_WITHOUT_PROJECT": _without_project,
    "PROJECT_DIFFERS": lambda calls: Wire(calls.world.stand, project=calls.stranger.project_id).call(
        OPERATIONS["list_keys"], {}
    ),
    "ACTION_REFUSED": _reader,
    "TOKEN_REQUEST_REFUSED": _wrong_password,
    "TOKEN_REQUEST_INVALID": lambda calls: calls.world.stand.rest("POST", "/v3/auth/tokens", {"auth": 1}),
}


@pytest.mark.parametrize("name", FIRST)
def test_provoked_before_any_operation(calls: Calls, name: str) -> None:
    answer = FIRST[name](calls)
    if FAULTS[name].code.startswith("IAM."):
        assert re.fullmatch(_pattern(FAULTS[name]), refused(answer, FAULTS[name].code).message)
    else:
        _check(name, answer)


def test_provoked_before_any_operation_over_grpc(stand: Stand, raw: Raw, reader: Tenant) -> None:
    for message, code in ((b"", "KMS.0204"), (b"\xff", "KMS.0214")):
        with refusal(code):
            raw.call("Keys/DescribeKey", message)
    with stand.client(reader) as looking, refusal("KMS.0330"):
        looking.create_key(fresh())


# The tables are whole


def _source(place: str) -> str:
    """The source of a test."""
    file, _, name = place.partition("::")
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    (found,) = (
        each for each in ast.parse(text).body if isinstance(each, ast.FunctionDef) and each.name == name
    )
    return ast.get_source_segment(text, found) or ""


def test_every_fault_is_provoked() -> None:
    tables = (CASES, FIRST, _ELSEWHERE)
    named = [name for table in tables for name in table]
    assert len(named) == len(set(named))
    assert set(named) == set(FAULTS)


@pytest.mark.parametrize("name", _ELSEWHERE)
def test_it_is_provoked_there(name: str) -> None:
    source = _source(_ELSEWHERE[name])
    assert FAULTS[name].code in source or name in source


@pytest.mark.skipif(not _DEW.exists(), reason="DEW's table is not part of the repository")
def test_every_code_of_dew_is_one_of_ours_or_listed() -> None:
    with _DEW.open(encoding="utf-8", newline="") as file:
        theirs = {row["error_code"] for row in csv.DictReader(file, delimiter="\t")}
    ours = {fault.code for fault in FAULTS.values()}
    assert {code for code in theirs - ours if code.startswith(("KMS.", "APIGW."))} == set(_NEVER)
    assert not ours & set(_NEVER)
