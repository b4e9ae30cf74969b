"""JSON and messages: DEW's own examples, every form there and back, and what must not pass."""

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from hsmd import descriptors
from hsmd.gateway.bodies import DEPTH, NotJsonError, parse
from hsmd.gateway.readers import INTEGERS, Readers, UnreadableError
from hsmd.gateway.writers import Writers
from hsmd.pb.options.v1 import options_pb2 as forms
from hsmd.pb.v1 import crypto_pb2, datakeys_pb2, identity_pb2, keys_pb2, service_pb2

_READERS, _WRITERS = Readers(), Writers()
_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


def read(kind: type[Message], tree: Any) -> Any:
    descriptor: Any = kind.DESCRIPTOR
    return _READERS.message(descriptor)(tree)


def write(message: Message) -> Any:
    descriptor: Any = message.DESCRIPTOR
    return _WRITERS.message(descriptor)(message)


def routed_types() -> Iterator[Descriptor]:
    """Every message type that REST reads or writes, and those within."""
    seen: set[str] = set()
    waiting = [
        kind
        for service in descriptors.services()
        for method in service.methods
        if list(descriptors.http_rules(method))
        for kind in (method.input_type, method.output_type)
    ]
    while waiting:
        kind = waiting.pop()
        if kind.full_name in seen:
            continue
        seen.add(kind.full_name)
        yield kind
        waiting += [
            descriptors.message_type(field)
            for field in kind.fields
            if descriptors.holds_message(field) and not descriptors.is_map(field)
        ]


def in_body(kind: Descriptor) -> bool:
    """Whether a body alone makes such a message: no field that is due comes in a header."""
    declared = [descriptors.field_options(field) for field in kind.fields]
    return not any(each.header and each.required for each in declared)


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """What a field may hold; enum zeros and half filled times don't come back as they are."""
    if descriptors.is_map(field):
        return st.dictionaries(_TEXT, _TEXT, max_size=3)
    one: st.SearchStrategy[Any]
    if field.type in INTEGERS:
        one = st.integers(*INTEGERS[field.type])
    elif field.type == FieldDescriptor.TYPE_ENUM:
        one = st.sampled_from([value.number for value in descriptors.enum_type(field).values if value.number])
    elif field.type == FieldDescriptor.TYPE_BOOL:
        one = st.booleans()
    elif field.type == FieldDescriptor.TYPE_BYTES:
        as_text = descriptors.form_of(descriptors.field_options(field)) == forms.TEXT
        one = _TEXT.map(str.encode) if as_text else st.binary(max_size=40)
    elif field.type == FieldDescriptor.TYPE_STRING:
        as_json = descriptors.form_of(descriptors.field_options(field)) == forms.JSON
        one = _TEXT.map(partial(json.dumps, ensure_ascii=False)) if as_json else _TEXT
    elif descriptors.holds_message(field):
        one = messages(descriptors.message_type(field))
    else:
        one = st.integers(0, 253_402_300_799_999).map(
            lambda ms: timestamp_pb2.Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)
        )
    return st.lists(one, max_size=3) if field.is_repeated else one


def _cut(most: int, value: Any) -> Any:
    return value[:most]


def messages(kind: Descriptor) -> st.SearchStrategy[Message]:
    """Messages whose every field is set as its options want it."""
    build = GetMessageClass(kind)
    wanted: dict[str, st.SearchStrategy[Any]] = {}
    for field in kind.fields:
        declared = descriptors.field_options(field)
        if declared.header:
            continue
        strategy = values(field)
        if declared.required and not field.has_presence:
            strategy = strategy.filter(bool)
        if declared.max and not descriptors.holds_message(field):
            strategy = strategy.map(partial(_cut, declared.max))
        wanted[field.name] = strategy
    return st.fixed_dictionaries(wanted).map(lambda given: build(**given))


class TestThereAndBack:
    @pytest.mark.parametrize(
        "kind", [each for each in routed_types() if in_body(each)], ids=lambda kind: kind.full_name
    )
    def test_every_routed_type(self, kind: Descriptor) -> None:
        @settings(max_examples=25, deadline=None)
        @given(messages(kind))
        def check(message: Message) -> None:
            tree = json.loads(json.dumps(write(message)))
            again = _READERS.message(kind)(parse(json.dumps(tree).encode()))
            assert again == message

        check()

    @given(st.binary(max_size=200))
    def test_text_of_any_bytes(self, data: bytes) -> None:
        tree = write(crypto_pb2.DecryptDataResponse(plain_text=data))
        assert base64.b64decode(tree["plain_text_base64"]) == data
        assert tree["plain_text"] == data.decode("utf-8", "replace")


class TestDewExamples:
    def test_describe_key(self) -> None:
        key = keys_pb2.Key(
            key_id="0d0466b0-e727-4d9c-b35d-f84bb474a37f",
            domain_id="b168fe00ff56492495a7d22974df2d0b",
            key_alias="kms_test",
            realm="aaa",
            key_spec="KEY_SPEC_AES_256",
            key_usage="KEY_USAGE_ENCRYPT_DECRYPT",
            creation_date=timestamp_pb2.Timestamp(seconds=1472442386),
            key_state="KEY_STATE_ENABLED",
            default_key_flag=False,
            key_type="1",
            origin="ORIGIN_KMS",
        )
        assert write(keys_pb2.DescribeKeyResponse(key_info=key)) == {
            "key_info": {
                "key_id": "0d0466b0-e727-4d9c-b35d-f84bb474a37f",
                "domain_id": "b168fe00ff56492495a7d22974df2d0b",
                "key_alias": "kms_test",
                "realm": "aaa",
                "key_spec": "AES_256",
                "key_usage": "ENCRYPT_DECRYPT",
                "key_description": "",
                "creation_date": "1472442386000",
                "scheduled_deletion_date": "",
                "key_state": "2",
                "default_key_flag": "0",
                "key_type": "1",
                "expiration_time": "",
                "origin": "kms",
                "key_rotation_enabled": "false",
                "sys_enterprise_project_id": "",
                "keystore_id": "",
            }
        }

    def test_list_keys(self) -> None:
        page = keys_pb2.ListKeysResponse(keys=["a"], next_marker="1", truncated=True, total=21)
        assert write(page) == {
            "keys": ["a"],
            "key_details": [],
            "next_marker": "1",
            "truncated": "true",
            "total": 21,
        }

    def test_data_key_in_hex_and_length_as_text(self) -> None:
        made = datakeys_pb2.EncryptDataKeyResponse(key_id="k", cipher_text=b"\x00\xff", datakey_length=64)
        assert write(made) == {"key_id": "k", "cipher_text": "00ff", "datakey_length": "64"}

    def test_token(self) -> None:
        time = timestamp_pb2.Timestamp(seconds=1550040733, nanos=855_000_000)
        token = identity_pb2.CreateTokenResponse(subject_token="secret", token={"expires_at": time})
        assert write(token) == {
            "token": {"methods": [], "expires_at": "2019-02-13T06:52:13.855000Z", "roles": []}
        }

    def test_names_that_no_field_may_have(self) -> None:
        locales = identity_pb2.ListRegionsResponse.Locales(en_us="Local")
        assert write(locales) == {"en-us": "Local"}

    def test_zero_values_stay_and_unset_messages_go(self) -> None:
        assert write(keys_pb2.CountKeysResponse()) == {"instance_num": 0}
        assert write(keys_pb2.DescribeKeyResponse()) == {}
        assert write(service_pb2.ListVersionsResponse()) == {"versions": []}


class TestLeniency:
    @pytest.mark.parametrize("value", [10, "10", 10.0])
    def test_numbers_and_numeric_strings(self, value: Any) -> None:
        assert read(keys_pb2.ListKeysRequest, {"limit": value}).limit == 10
        assert read(keys_pb2.ListKeysRequest, {"key_state": 2}).key_state == 2
        assert read(keys_pb2.CountKeysResponse, {"instance_num": value}).instance_num == 10

    @pytest.mark.parametrize(("value", "means"), [(True, True), ("true", True), ("false", False)])
    def test_booleans(self, value: Any, means: bool) -> None:
        assert read(identity_pb2.ListProjectsRequest, {"enabled": value}).enabled is means
        assert read(keys_pb2.Key, {"key_rotation_enabled": value}).key_rotation_enabled is means
        assert read(keys_pb2.Key, {"default_key_flag": value}).default_key_flag is means

    def test_null_is_absent_and_the_unknown_ignored(self) -> None:
        tree = {"limit": None, "marker": None, "sequence": None, "new_in_the_cloud": {"x": [1]}}
        assert read(keys_pb2.ListKeysRequest, tree) == keys_pb2.ListKeysRequest()

    def test_empty_times_and_enums_are_unset(self) -> None:
        tree = {"creation_date": "", "key_spec": "", "key_state": "", "expiration_time": 5}
        key = read(keys_pb2.Key, tree)
        assert not key.HasField("creation_date")
        assert key.expiration_time.nanos == 5_000_000

    def test_an_empty_description_is_given_but_no_description_is_missing(self) -> None:
        kind = keys_pb2.UpdateKeyDescriptionRequest
        assert read(kind, {"key_id": "k", "key_description": ""}).HasField("key_description")
        for tree in ({"key_id": "k"}, {"key_id": "k", "key_description": None}):
            with pytest.raises(UnreadableError) as refused:
                read(kind, tree)
            assert refused.value.error().fault.code == "KMS.0204"


class TestRefusals:
    @pytest.mark.parametrize(
        ("kind", "tree", "code", "path"),
        [
            (keys_pb2.ListKeysRequest, {"limit": "ten"}, "KMS.1601", "limit"),
            (keys_pb2.ListKeysRequest, {"limit": True}, "KMS.1601", "limit"),
            (keys_pb2.ListKeysRequest, {"limit": 1.5}, "KMS.1601", "limit"),
            (keys_pb2.ListKeysRequest, {"limit": 2**31}, "KMS.1601", "limit"),
            (keys_pb2.ListKeysRequest, {"limit": "9" * 5000}, "KMS.1601", "limit"),
            (keys_pb2.ListKeysRequest, {"limit": float("inf")}, "KMS.1601", "limit"),
            (keys_pb2.ListKeysRequest, {"marker": []}, "KMS.1602", "marker"),
            (keys_pb2.ListKeysRequest, {"key_state": "6"}, "KMS.0308", "key_state"),
            (keys_pb2.ListKeysRequest, {"key_state": True}, "KMS.0308", "key_state"),
            (keys_pb2.ListKeysRequest, {"key_spec": "x" * 33}, "KMS.1110", "key_spec"),
            (keys_pb2.CreateKeyRequest, {"key_alias": 5}, "KMS.1101", "key_alias"),
            (keys_pb2.CreateKeyRequest, {"key_alias": ""}, "KMS.0204", "key_alias"),
            (keys_pb2.CreateKeyRequest, {"key_spec": "aes_256"}, "KMS.1110", "key_spec"),
            (keys_pb2.CreateKeyRequest, {"key_usage": 1}, "KMS.0308", "key_usage"),
            (keys_pb2.Key, {"default_key_flag": 2}, "KMS.0308", "default_key_flag"),
            (keys_pb2.Key, {"creation_date": "-1"}, "KMS.0308", "creation_date"),
            (keys_pb2.Key, {"creation_date": "253402300800000"}, "KMS.0308", "creation_date"),
            (datakeys_pb2.EncryptDataKeyRequest, {"plain_text": "0g"}, "KMS.2101", "plain_text"),
            (datakeys_pb2.EncryptDataKeyRequest, {"plain_text": "000"}, "KMS.2101", "plain_text"),
            (datakeys_pb2.EncryptDataKeyRequest, {"plain_text": "00 00"}, "KMS.2101", "plain_text"),
            (datakeys_pb2.EncryptDataKeyRequest, {"plain_text": "\u0660\u0660"}, "KMS.2101", "plain_text"),
            (datakeys_pb2.CreateDataKeyRequest, {"pin": "x" * 1025}, "KMS.0308", "pin"),
            (crypto_pb2.DecryptDataRequest, {"cipher_text": "AA"}, "KMS.2201", "cipher_text"),
            (crypto_pb2.DecryptDataRequest, {"cipher_text": "AA=="}, "", ""),
            (crypto_pb2.DecryptDataRequest, {"cipher_text": "A A=="}, "KMS.2201", "cipher_text"),
            (crypto_pb2.DecryptDataRequest, {"cipher_text": "AA==="}, "KMS.2201", "cipher_text"),
            (crypto_pb2.DecryptDataRequest, {"cipher_text": "-_=="}, "KMS.2201", "cipher_text"),
            (
                crypto_pb2.EncryptDataRequest,
                {"encryption_context": {"a": 1}},
                "KMS.0208",
                "encryption_context",
            ),
            (crypto_pb2.EncryptDataRequest, {"encryption_context": "a"}, "KMS.0208", "encryption_context"),
            (crypto_pb2.EncryptDataRequest, {"sequence": "\udc00"}, "KMS.0206", "sequence"),
            (identity_pb2.CreateTokenRequest, {"auth": []}, "KMS.0308", "auth"),
            (identity_pb2.CreateTokenRequest, {"auth": {}}, "KMS.0204", "auth.identity"),
            (
                identity_pb2.CreateTokenRequest,
                {"auth": {"identity": {"methods": ["password", 7]}}},
                "KMS.0308",
                "auth.identity.methods[1]",
            ),
            (
                identity_pb2.CreateTokenRequest,
                {"auth": {"identity": {"methods": ["x"] * 5}}},
                "KMS.0308",
                "auth.identity.methods",
            ),
            (
                identity_pb2.CreateTokenResponse,
                {"token": {"roles": [{"id": "a"}, {"id": 7}]}},
                "KMS.0308",
                "token.roles[1].id",
            ),
            (
                identity_pb2.CreateTokenResponse,
                {"token": {"issued_at": "yesterday"}},
                "KMS.0308",
                "token.issued_at",
            ),
        ],
    )
    def test_wrong_values(self, kind: type[Message], tree: Any, code: str, path: str) -> None:
        if not code:
            read(kind, tree)
            return
        with pytest.raises(UnreadableError) as refused:
            read(kind, tree)
        error = refused.value.error()
        assert error.fault.code == code
        assert refused.value.path == path
        if "{name}" in error.fault.text:
            assert path in error.message

    @given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
    def test_any_json_is_read_or_refused(self, value: Any) -> None:
        for name in [*keys_pb2.Key.DESCRIPTOR.fields_by_name, "auth", "token", "plain_text"]:
            for kind in (keys_pb2.Key, identity_pb2.CreateTokenRequest, crypto_pb2.EncryptDataRequest):
                with suppress(UnreadableError):  # anything else fails the test
                    read(kind, {name: value})

    def test_values_are_shown_short_and_never_those_of_redacted_fields(self) -> None:
        with pytest.raises(UnreadableError) as refused:
            read(keys_pb2.CreateKeyRequest, {"key_spec": "x" * 100})
        assert '"xxx' in refused.value.error().message
        assert "x" * 41 not in refused.value.error().message
        for tree in ({"encryption_context": {"a": 12345}}, {"plain_text": 12345}):
            with pytest.raises(UnreadableError) as refused:
                read(crypto_pb2.EncryptDataRequest, tree)
            assert "12345" not in refused.value.error().message


class TestBodies:
    @pytest.mark.parametrize("text", [b"", b"  \n", b"null"])
    def test_nothing(self, text: bytes) -> None:
        assert parse(text) is None

    @pytest.mark.parametrize(
        "text",
        [b"{'a':1}", b'{"a":1,}', b"\xef\xbb\xbf{}", b'"\xed\xa0\x80"', b"-Infinity", "{}".encode("utf-16")],
    )
    def test_not_json(self, text: bytes) -> None:
        with pytest.raises(NotJsonError):
            parse(text)

    def test_depth(self) -> None:
        deep = b"[" * DEPTH + b"]" * DEPTH
        assert parse(deep)
        assert parse(b'"' + b"[" * 1000 + b'"') == "[" * 1000
        with pytest.raises(NotJsonError):
            parse(b"[" + deep + b"]")
        with pytest.raises(NotJsonError):
            parse(b"[" * 200_000)


def _as(form: int) -> forms.Field:
    field = forms.Field()
    setattr(field, "as", form)  # a keyword can not be written as an attribute
    return field


class TestDescriptions:
    """What can't be served stops the start."""

    def declared(self, kind: int, text: bytes) -> Descriptor:
        """A message with one field of a type and options."""
        file = descriptor_pb2.FileDescriptorProto(
            name=f"t{kind}{text.hex()}.proto", package="t", syntax="proto3"
        )
        file.dependency.append("hsmd/options/v1/options.proto")
        message = file.message_type.add(name=f"M{kind}x{text.hex()}")
        field = message.field.add(name="f", number=1, label=1, type=kind)
        field.options.MergeFromString(text)
        descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
        found = descriptor_pool.Default().FindMessageTypeByName(f"t.{message.name}")
        assert isinstance(found, Descriptor)
        return found

    @pytest.mark.parametrize(
        ("kind", "option"),
        [
            (FieldDescriptor.TYPE_STRING, _as(forms.HEX)),
            (FieldDescriptor.TYPE_BYTES, forms.Field()),
            (FieldDescriptor.TYPE_DOUBLE, forms.Field()),
            (FieldDescriptor.TYPE_INT32, _as(forms.BOOL_STRING)),
            (FieldDescriptor.TYPE_STRING, forms.Field(fault="KMS.9999")),
            (FieldDescriptor.TYPE_STRING, forms.Field(fault="KMS.0209")),
        ],
    )
    def test_unfit(self, kind: int, option: forms.Field) -> None:
        holder = descriptor_pb2.FieldOptions()
        holder.Extensions[forms.field].CopyFrom(option)  # type: ignore[index]  # the stubs lack our extension
        descriptor = self.declared(kind, holder.SerializeToString())
        with pytest.raises(descriptors.DescriptionError):
            Readers().message(descriptor)
