"""The policy engine: documents read or refused with the place, operators, wildcards, and decisions.

Decisions are held against a slow reference written here from the rules alone.
"""

import ipaddress
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmd.domain import builtin, conditions, documents, wildcards
from hsmd.domain.documents import DocumentError
from hsmd.domain.permissions import Answer, Held, Permissions, narrowed

KEY = "kms:local-1:d0:keyid:k1"
ALLOW = {"Effect": "Allow", "Action": ["kms:cmk:*"]}


def policy(*statements: dict[str, Any], version: str = "1.1") -> str:
    return json.dumps({"Version": version, "Statement": list(statements)})


def permissions(*documents_: str, operates: bool = False) -> Permissions:
    return Permissions(
        Held(str(index), f"policy {index}", each, "user", operates) for index, each in enumerate(documents_)
    )


# Documents that are refused, and where

REFUSED = [
    ("", "", "not valid JSON"),
    ("[" * 5000, "", "nested too deeply|not valid JSON"),
    ("{" * 6144, "", "not valid JSON"),
    ("[]", "", "an object is due"),
    ("null", "", "an object is due"),
    ('{"Version": "1.1"}', "Statement", "missing"),
    ('{"Statement": []}', "Version", "missing"),
    ('{"Version": "1.0", "Statement": [{}]}', "Version", '"1.1" is due'),
    ('{"Version": 1.1, "Statement": [{}]}', "Version", '"1.1" is due'),
    ('{"Version": "1.1", "Version": "1.1", "Statement": []}', "", "twice"),
    ('{"Version": "1.1", "Statement": NaN}', "", "NaN"),
    ('{"Version": "1.1", "Statement": []}', "Statement", "1 to 32"),
    ('{"Version": "1.1", "Statement": {}}', "Statement", "1 to 32"),
    ('{"Version": "1.1", "Statement": [], "Depends": []}', "Depends", "of Statement, Version are due"),
    (policy(*[ALLOW] * 33), "Statement", "1 to 32"),
    (policy({}), "Statement[0].Action", "missing"),
    (policy({"Action": ["kms:cmk:get"]}), "Statement[0].Effect", "missing"),
    (policy(ALLOW, {**ALLOW, "Effect": "allow"}), "Statement[1].Effect", '"Allow" or "Deny"'),
    (policy({**ALLOW, "NotAction": ["kms:cmk:get"]}), "Statement[0].NotAction", "are due"),
    (policy({**ALLOW, "Principal": "*"}), "Statement[0].Principal", "are due"),
    (policy({**ALLOW, "Action": []}), "Statement[0].Action", "1 to 100"),
    (policy({**ALLOW, "Action": ["kms:cmk:get"] * 101}), "Statement[0].Action", "1 to 100"),
    (policy({**ALLOW, "Action": [1]}), "Statement[0].Action[0]", "string"),
    (policy({**ALLOW, "Action": ["kms:cmk:get", ""]}), "Statement[0].Action[1]", "string"),
    (policy({**ALLOW, "Action": "*"}), "Statement[0].Action[0]", "service:type:operation"),
    (policy({**ALLOW, "Action": ["KMS:cmk:get"]}), "Statement[0].Action[0]", "service:type:operation"),
    (policy({**ALLOW, "Action": ["kms:cmk"]}), "Statement[0].Action[0]", "service:type:operation"),
    (policy({**ALLOW, "Action": ["kms:cmk:get:x"]}), "Statement[0].Action[0]", "service:type:operation"),
    (policy({**ALLOW, "Action": ["kms:cmk:g?t"]}), "Statement[0].Action[0]", "service:type:operation"),
    (policy({**ALLOW, "Resource": []}), "Statement[0].Resource", "1 to 100"),
    (policy({**ALLOW, "Resource": ["x" * 513]}), "Statement[0].Resource[0]", "1 to 512"),
    (policy({**ALLOW, "Resource": ["k1"]}), "Statement[0].Resource[0]", "KMS:REGION:DOMAIN:KeyId:ID"),
    (policy({**ALLOW, "Resource": ["KMS:*:*:KeyId:a?b"]}), "Statement[0].Resource[0]", "is due"),
    (policy({**ALLOW, "Resource": ["obs:*:*:bucket:a"]}), "Statement[0].Resource[0]", "of KMS only"),
    (policy({**ALLOW, "Resource": ["KMS:*:*:alias:a"]}), "Statement[0].Resource[0]", "kind KeyId"),
    (
        policy({"Effect": "Deny", "Action": ["iam:*:*"], "Resource": ["KMS:*:*:KeyId:a"]}),
        "Statement[0].Action[0]",
        "only actions of kms",
    ),
    (
        policy({"Effect": "Deny", "Action": ["*:*:*"], "Resource": ["KMS:*:*:KeyId:a"]}),
        "Statement[0].Action[0]",
        "only actions of kms",
    ),
    (policy({**ALLOW, "Resource": {"uri": ["/iam/agencies/*"]}}), "Statement[0].Action[0]", "assume"),
    (
        policy({"Effect": "Allow", "Action": ["iam:agencies:assume"], "Resource": {"uri": ["/iam/users/*"]}}),
        "Statement[0].Resource.uri[0]",
        "/iam/agencies/ID",
    ),
    (policy({**ALLOW, "Condition": []}), "Statement[0].Condition", "an object"),
    (policy({**ALLOW, "Condition": {"Bool": {}}}), "Statement[0].Condition.Bool", "condition keys"),
    (policy({**ALLOW, "Condition": {"Bool": {"g:MFAPresent": []}}}), "Bool.g:MFAPresent", "1 to 100"),
    (policy({**ALLOW, "Condition": {"Bool": {"g:MFAPresent": ["yes"]}}}), "g:MFAPresent", "neither true"),
    (policy({**ALLOW, "Condition": {"Bool": {"g:MFAPresent": [True]}}}), "g:MFAPresent[0]", "string"),
    (policy({**ALLOW, "Condition": {"StringIs": {"g:UserName": ["a"]}}}), "StringIs", "no operator"),
    (policy({**ALLOW, "Condition": {"StringEquals": {"UserName": ["a"]}}}), "UserName", "no condition key"),
    (policy({**ALLOW, "Condition": {"IpAddress": {"g:SourceIp": ["10.0.0.0/33"]}}}), "g:SourceIp", "range"),
    (policy({**ALLOW, "Condition": {"NumberLessThan": {"kms:A": ["1e9"]}}}), "kms:A", "no number"),
    (policy({**ALLOW, "Condition": {"NumberLessThan": {"kms:A": ["9" * 41]}}}), "kms:A", "no number"),
    (policy({**ALLOW, "Condition": {"DateLessThan": {"g:CurrentTime": ["soon"]}}}), "CurrentTime", "no time"),
    (policy({**ALLOW, "Condition": {"Null": {"kms:A": ["maybe"]}}}), "Null.kms:A", "true"),
    (
        policy({**ALLOW, "Condition": {"StringEquals": {f"kms:A{n}": ["a"] for n in range(21)}}}),
        "Statement[0].Condition",
        "more than 20",
    ),
    (policy({**ALLOW, "Sid": "x" * 101}), "Statement[0].Sid", "string"),
    (policy({**ALLOW, "Action": ["kms:cmk:" + "a" * 60] * 99, "Sid": "x"}), "", "6144 characters"),
]


@pytest.mark.parametrize(("document", "place", "reason"), REFUSED)
def test_what_is_not_understood_is_refused_with_its_place(document: str, place: str, reason: str) -> None:
    for read in (documents.compiled, documents.written):
        with pytest.raises(DocumentError) as caught:
            read(document)
        assert place in caught.value.place
        assert bool(place) == bool(caught.value.place)
        assert re.search(reason, caught.value.reason)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_no_text_is_more_than_refused(text: str) -> None:
    with pytest.raises(DocumentError):
        documents.compiled(text)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["Version", "Statement", "Effect", "Action", "Resource", "Condition", "Bool", "uri", "g:A"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=24,
)


@given(TREES)
def test_no_tree_is_more_than_refused(tree: Any) -> None:
    for document in (json.dumps(tree), json.dumps({"Version": "1.1", "Statement": tree})):
        with suppress(DocumentError):
            assert documents.compiled(documents.written(document))


def test_a_document_is_kept_short_and_with_lists() -> None:
    given_ = """ {"Version": "1.1", "Statement": [{"Effect": "Allow", "Action": "kms:cmk:get",
        "Resource": "*", "Condition": {"StringEquals": {"g:UserName": "Zoë"}}}]} """
    assert documents.written(given_) == (
        '{"Version":"1.1","Statement":[{"Effect":"Allow","Action":["kms:cmk:get"],"Resource":["*"],'
        '"Condition":{"StringEquals":{"g:UserName":["Zoë"]}}}]}'
    )
    assert documents.written(documents.written(given_)) == documents.written(given_)


def test_every_built_in_role_is_a_valid_policy() -> None:
    assert len(builtin.BY_ID) == len(builtin.BY_NAME) == len(builtin.ROLES)
    for role in builtin.ROLES:
        assert re.fullmatch("[0-9a-f]{32}", role.id)
        assert documents.written(role.document) == role.document


# Wildcards


def by_regex(pattern: str, text: str, *, single: bool) -> bool:
    wild = {"*": "(?s:.*)", **({"?": "(?s:.)"} if single else {})}
    return re.fullmatch("".join(wild.get(each, re.escape(each)) for each in pattern), text) is not None


@given(st.text("ab*?", max_size=8), st.text("ab?", max_size=10), st.booleans())
def test_wildcards(pattern: str, text: str, single: bool) -> None:
    assert wildcards.compiled(pattern, single=single)(text) == by_regex(pattern, text, single=single)


def test_no_pattern_takes_long() -> None:
    text = "a" * 512
    for pattern in ("*a" * 250 + "b", "*?" * 250 + "b", "a*" * 250, "*a?" * 170 + "b"):
        matches = wildcards.compiled(pattern, single=True)
        started = time.process_time()
        for _ in range(10):
            matches(text)
        assert time.process_time() - started < 5


# Operators

FACTS: conditions.Told = {
    "g:username": ("TestUser1",),
    "g:sourceip": ("10.1.2.3",),
    "g:currenttime": ("2024-05-01T12:00:00+00:00",),
    "g:mfapresent": ("false",),
    "kms:pendingdays": ("7",),
    "kms:grantoperations": ("encrypt-data", "decrypt-data"),
    "g:resourcetag/Team": ("red",),
    "kms:empty": ("",),
}

HOLDS = [
    ("StringEquals", "g:UserName", ["TestUser1"], True),
    ("StringEquals", "G:username", ["TestUser1"], True),
    ("StringEquals", "g:UserName", ["x", "TestUser1"], True),
    ("StringEquals", "g:UserName", ["testuser1"], False),
    ("StringEquals", "g:Missing", [""], False),
    ("StringEqualsIfExists", "g:Missing", ["x"], True),
    ("StringEqualsIfExists", "g:UserName", ["x"], False),
    ("StringNotEquals", "g:UserName", ["x", "y"], True),
    ("StringNotEquals", "g:UserName", ["x", "TestUser1"], False),
    ("StringNotEquals", "g:Missing", ["x"], True),
    ("StringEqualsIgnoreCase", "g:UserName", ["TESTUSER1"], True),
    ("StringNotEqualsIgnoreCase", "g:UserName", ["TESTUSER1"], False),
    ("StringLike", "g:UserName", ["stUs"], True),
    ("StringLike", "g:UserName", ["User*"], False),
    ("StringLike", "g:UserName", ["*User?"], True),
    ("StringNotLike", "g:UserName", ["stUs"], False),
    ("StringMatch", "g:UserName", ["stUs"], False),
    ("StringMatch", "g:UserName", ["Test*"], True),
    ("StringNotMatch", "g:UserName", ["Test*"], False),
    ("StringStartWith", "g:UserName", ["Test"], True),
    ("StringStartWithAnyOf", "g:UserName", ["x", "Test"], True),
    ("StringNotStartWith", "g:UserName", ["Test"], False),
    ("StringEndWith", "g:UserName", ["1"], True),
    ("StringEndWithIfExists", "g:UserName", ["2"], False),
    ("StringNotEndWith", "g:UserName", ["2"], True),
    ("StringEquals", "g:ResourceTag/Team", ["red"], True),
    ("StringEquals", "g:ResourceTag/team", ["red"], False),
    ("NumberEquals", "kms:PendingDays", ["7.0"], True),
    ("NumberNotEquals", "kms:PendingDays", ["7"], False),
    ("NumberLessThan", "kms:PendingDays", ["7"], False),
    ("NumberLessThanEquals", "kms:PendingDays", ["7"], True),
    ("NumberGreaterThan", "kms:PendingDays", ["6"], True),
    ("NumericGreaterThanEquals", "kms:PendingDays", ["8"], False),
    ("NumberLessThan", "g:UserName", ["7"], False),
    ("NumberNotEquals", "g:UserName", ["7"], True),
    ("DateLessThan", "g:CurrentTime", ["2024-05-01T12:00:01Z"], True),
    ("DateLessThan", "g:CurrentTime", ["2024-05-01T14:00:00+02:00"], False),
    ("DateLessThanEquals", "g:CurrentTime", ["2024-05-01T14:00:00+02:00"], True),
    ("DateGreaterThan", "g:CurrentTime", ["2024-05-01"], True),
    ("DateNotEquals", "g:CurrentTime", ["2024-05-01T12:00:00"], False),
    ("DateEquals", "g:UserName", ["2024-05-01T12:00:00"], False),
    ("Bool", "g:MFAPresent", ["true"], False),
    ("Bool", "g:MFAPresent", ["FALSE"], True),
    ("BoolIfExists", "g:Missing", ["true"], True),
    ("IpAddress", "g:SourceIp", ["10.0.0.0/8"], True),
    ("IpAddress", "g:SourceIp", ["10.1.2.3"], True),
    ("IpAddress", "g:SourceIp", ["10.1.2.0/30"], True),
    ("IpAddress", "g:SourceIp", ["10.1.2.4/30", "10.1.2.0/31"], False),
    ("IpAddress", "g:SourceIp", ["2001:db8::/32", "::/0"], False),
    ("IpAddress", "g:UserName", ["0.0.0.0/0"], False),
    ("NotIpAddress", "g:SourceIp", ["10.0.0.0/8"], False),
    ("NotIpAddress", "g:SourceIp", ["192.168.0.0/16", "172.16.0.0/12"], True),
    ("NotIpAddress", "g:UserName", ["0.0.0.0/0"], True),
    ("Null", "g:Missing", ["true"], True),
    ("Null", "g:UserName", ["true"], False),
    ("IsNullOrEmpty", "kms:Empty", ["true"], True),
    ("IsNullOrEmpty", "g:UserName", ["false"], True),
    ("IsNotNullOrEmpty", "g:UserName", ["true"], True),
    ("IsNotNullOrEmpty", "kms:Empty", ["true"], False),
    ("StringEquals", "kms:GrantOperations", ["encrypt-data"], True),
    ("StringNotEquals", "kms:GrantOperations", ["encrypt-data"], False),
    ("ForAnyValue:StringEquals", "kms:GrantOperations", ["encrypt-data", "sign"], True),
    ("ForAnyValue:StringEquals", "kms:GrantOperations", ["sign"], False),
    ("ForAnyValue:StringNotEquals", "kms:GrantOperations", ["encrypt-data"], True),
    ("ForAnyValue:StringEquals", "g:Missing", ["sign"], False),
    ("ForAnyValue:StringEqualsIfExists", "g:Missing", ["sign"], True),
    ("ForAllValues:StringEquals", "kms:GrantOperations", ["encrypt-data"], False),
    ("ForAllValues:StringEquals", "kms:GrantOperations", ["encrypt-data", "decrypt-data", "x"], True),
    ("ForAllValues:StringNotEquals", "kms:GrantOperations", ["sign"], True),
    ("ForAllValues:StringLike", "kms:GrantOperations", ["crypt-data"], True),
    ("ForAllValues:StringEquals", "g:Missing", ["sign"], True),
]


@pytest.mark.parametrize(("operator", "key", "values", "holds"), HOLDS)
def test_operators(operator: str, key: str, values: list[str], holds: bool) -> None:
    assert conditions.compiled(operator, key, tuple(values)).holds(FACTS) is holds


def test_an_address_in_ipv6_clothes_is_the_same_address() -> None:
    inside = conditions.compiled("IpAddress", "g:SourceIp", ("10.0.0.0/8",))
    assert inside.holds({"g:sourceip": ("::ffff:10.1.2.3",)})
    assert not inside.holds({"g:sourceip": ("::ffff:11.1.2.3",)})
    assert not inside.holds({"g:sourceip": ("local",)})


def test_ranges_of_ipv6() -> None:
    inside = conditions.compiled("IpAddress", "g:SourceIp", ("2001:db8::/32",))
    assert inside.holds({"g:sourceip": ("2001:db8:ffff::1",)})
    assert not inside.holds({"g:sourceip": ("2001:db9::1",)})


def test_the_table_of_operators_is_all_there_is() -> None:
    bases = {re.sub("^For[A-Za-z]+:|IfExists$", "", operator) for operator, *_ in HOLDS}
    tried = {each.removesuffix("AnyOf") for each in bases}
    numeric = {each.replace("Numeric", "Number") for each in conditions.OPERATORS}
    dates = {"DateGreaterThanEquals"}  # as the others of its kind
    assert {each.replace("Numeric", "Number") for each in tried} >= numeric - dates - {
        "NumberGreaterThanEquals"
    }


# Decisions against a slow reference: every statement looked at, in the words of the rules

ACTIONS = ["kms:cmk:get", "kms:cmk:list", "kms:dek:create", "kms:grant:list", "iam:users:listUsers"]
ACTION_PATTERNS = [
    *ACTIONS,
    "kms:*:*",
    "kms:cmk:*",
    "kms:*:list",
    "kms:CMK:G*",
    "*:*:*",
    "iam:*:*",
    "hsmd:*:*",
]
KEYS = ["k1", "k2", ""]
RESOURCES = ["*", "KMS:*:*:KeyId:k1", "kms:local-1:d0:keyid:k2", "KMS:*:d1:KeyId:*", "KMS:local-*:*:KeyId:k*"]
CONDITIONS: list[dict[str, dict[str, list[str]]]] = [
    {},
    {"StringEquals": {"g:UserName": ["ann"]}},
    {"StringNotEquals": {"g:UserName": ["ann", "bob"]}},
    {"IpAddress": {"g:SourceIp": ["10.0.0.0/8"]}},
    {"NotIpAddress": {"g:SourceIp": ["10.0.0.0/8"]}, "StringStartWith": {"g:UserName": ["b"]}},
    {"DateLessThan": {"g:CurrentTime": ["2024-01-01T00:00:00Z"]}},
    {"StringEquals": {"g:ResourceTag/team": ["red"]}},
    {"StringNotEquals": {"g:ResourceTag/team": ["red"]}},
    {"StringEqualsIfExists": {"g:ResourceTag/team": ["red"]}},
    {"StringEquals": {"kms:KeySpec": ["AES_256"]}},
    {"NumberGreaterThan": {"kms:PendingDays": ["10"]}},
    {"ForAllValues:StringEquals": {"kms:GrantOperations": ["sign", "verify"]}},
]

STATEMENTS = st.builds(
    lambda effect, actions, resource, condition: {
        "Effect": effect,
        "Action": actions,
        **({"Resource": resource} if all(each.startswith("kms:") for each in actions) and resource else {}),
        **({"Condition": condition} if condition else {}),
    },
    st.sampled_from(["Allow", "Allow", "Deny"]),
    st.lists(st.sampled_from(ACTION_PATTERNS), min_size=1, max_size=3),
    st.none() | st.lists(st.sampled_from(RESOURCES), min_size=1, max_size=2),
    st.sampled_from(CONDITIONS),
)
POLICIES = st.lists(st.lists(STATEMENTS, min_size=1, max_size=3), max_size=3)
CALLS = st.fixed_dictionaries(
    {"g:username": st.sampled_from(["ann", "bob", "cy"])},
    optional={
        "g:sourceip": st.sampled_from(["10.0.0.1", "11.0.0.1", "local"]),
        "g:currenttime": st.sampled_from(["2023-01-01T00:00:00+00:00", "2025-01-01T00:00:00+00:00"]),
        "kms:pendingdays": st.sampled_from(["7", "11"]),
        "kms:grantoperations": st.sampled_from([("sign",), ("sign", "encrypt-data")]),
    },
).map(lambda facts: {name: (value,) if isinstance(value, str) else value for name, value in facts.items()})
OF_KEYS = st.fixed_dictionaries(
    {"kms:keyspec": st.sampled_from([("AES_256",), ("RSA_2048",)])},
    optional={"g:resourcetag/team": st.sampled_from([("red",), ("blue",)])},
)


def slow(policies: list[list[dict[str, Any]]], action: str, facts: dict[str, Any], urn: str) -> Answer:
    found = {
        each["Effect"]
        for statements in policies
        for each in statements
        if _about(each, action) and _covers(each, urn) and all(_holding(each.get("Condition", {}), facts))
    }
    if "Deny" in found:
        return Answer.DENIED
    return Answer.ALLOWED if "Allow" in found else Answer.SILENT


def _about(statement: dict[str, Any], action: str) -> bool:
    if statement["Effect"] == "Allow" and action.startswith("hsmd:"):
        return False
    return any(by_regex(each.lower(), action.lower(), single=False) for each in statement["Action"])


def _covers(statement: dict[str, Any], urn: str) -> bool:
    return any(
        each == "*" or (urn != "" and by_regex(_small(each), _small(urn), single=False))
        for each in statement.get("Resource", ["*"])
    )


def _small(urn: str) -> str:
    service, region, domain, kind, name = urn.split(":")
    return ":".join([service.lower(), region, domain, kind.lower(), name])


def _holding(condition: dict[str, dict[str, list[str]]], facts: dict[str, Any]) -> Iterator[bool]:
    for operator, keys in condition.items():
        for key, wanted in keys.items():
            name, _, rest = key.partition("/")
            values = facts.get(name.lower() + ("/" + rest if rest else ""), ())
            yield _one(operator, list(values), wanted)


def _one(operator: str, values: list[str], wanted: list[str]) -> bool:
    if operator.endswith("IfExists") and not values:
        return True
    match operator.removesuffix("IfExists"):
        case "StringEquals":
            return any(value in wanted for value in values)
        case "StringNotEquals":
            return not any(value in wanted for value in values)
        case "StringStartWith":
            return any(value.startswith(each) for value in values for each in wanted)
        case "IpAddress":
            return any(_inside(value, each) for value in values for each in wanted)
        case "NotIpAddress":
            return not any(_inside(value, each) for value in values for each in wanted)
        case "DateLessThan":
            limit = datetime.fromisoformat(wanted[0])
            return any(datetime.fromisoformat(value).astimezone(UTC) < limit for value in values)
        case "NumberGreaterThan":
            return any(Decimal(value) > Decimal(wanted[0]) for value in values)
        case "ForAllValues:StringEquals":
            return set(values) <= set(wanted)
    raise AssertionError(operator)


def _inside(value: str, network: str) -> bool:
    return value != "local" and ipaddress.ip_address(value) in ipaddress.ip_network(network)


@given(POLICIES, st.sampled_from([*ACTIONS, "hsmd:limits:set"]), CALLS, OF_KEYS, st.sampled_from(KEYS))
def test_decisions(
    policies: list[list[dict[str, Any]]],
    action: str,
    of_call: dict[str, Any],
    of_key: dict[str, Any],
    key: str,
) -> None:
    urn = f"kms:local-1:d0:keyid:{key}" if key else ""
    facts = {**of_call, **of_key} if key else of_call
    rules = permissions(*(policy(*each) for each in policies)).rules(action)
    expected = slow(policies, action, facts, urn)
    assert rules.with_key(facts, urn) is expected
    reasons = [each for each in rules.explain(facts, urn) if each.applies]
    assert {each.statement.allows for each in reasons[:1]} == (
        set() if expected is Answer.SILENT else {expected is Answer.ALLOWED}
    )
    # What is answered before the key is known is never other than what the key would have given.
    early = rules.at_once(lambda: of_call)
    if early is Answer.SILENT:
        assert expected is not Answer.ALLOWED
    elif early is not Answer.LATER:
        assert expected is early


@given(POLICIES, POLICIES, st.sampled_from(ACTIONS), CALLS)
def test_more_policies_never_turn_a_denial_around(
    some: list[list[dict[str, Any]]], more: list[list[dict[str, Any]]], action: str, facts: dict[str, Any]
) -> None:
    few = permissions(*(policy(*each) for each in some)).rules(action).with_key(facts, KEY)
    many = permissions(*(policy(*each) for each in some + more)).rules(action).with_key(facts, KEY)
    if few is Answer.DENIED:
        assert many is Answer.DENIED
    if few is Answer.ALLOWED:
        assert many is not Answer.SILENT


def test_the_plain_case_asks_nothing() -> None:
    def unasked() -> conditions.Facts:
        raise AssertionError("facts were asked for")

    role = builtin.KMS_ADMINISTRATOR.document
    assert permissions(role).rules("kms:cmk:get").at_once(unasked) is Answer.ALLOWED
    assert permissions(role).rules("iam:users:listUsers").at_once(unasked) is Answer.SILENT
    denial = policy({"Effect": "Deny", "Action": ["kms:cmk:get"]})
    assert permissions(role, denial).rules("kms:cmk:get").at_once(unasked) is Answer.DENIED


def test_what_depends_on_the_key_waits_for_it() -> None:
    only = policy({**ALLOW, "Resource": ["KMS:*:*:KeyId:k1"]})
    rules = permissions(only).rules("kms:cmk:get")
    assert rules.at_once(dict) is Answer.LATER
    assert rules.with_key({}, KEY) is Answer.ALLOWED
    assert rules.with_key({}, KEY.replace("k1", "k2")) is Answer.SILENT
    assert rules.with_key({}, "") is Answer.SILENT
    but = policy({"Effect": "Deny", "Action": ["kms:*:*"], "Resource": ["KMS:*:*:KeyId:k1"]})
    rules = permissions(builtin.KMS_ADMINISTRATOR.document, but).rules("kms:cmk:get")
    assert rules.at_once(dict) is Answer.LATER
    assert rules.with_key({}, KEY) is Answer.DENIED
    assert rules.with_key({}, "") is Answer.ALLOWED


def test_only_the_daemons_own_role_allows_what_is_the_daemons() -> None:
    everything = policy({"Effect": "Allow", "Action": ["*:*:*", "hsmd:*:*"]})
    assert permissions(everything).rules("hsmd:limits:set").with_key({}, "") is Answer.SILENT
    own = permissions(builtin.OPERATOR.document, operates=True)
    assert own.rules("hsmd:limits:set").with_key({}, "") is Answer.ALLOWED
    no = policy({"Effect": "Deny", "Action": ["hsmd:*:*"]})
    both = Permissions([*own.held, Held("x", "no", no, "user")])
    assert both.rules("hsmd:limits:set").with_key({}, "") is Answer.DENIED


def test_a_second_set_of_policies_narrows() -> None:
    order = [Answer.DENIED, Answer.SILENT, Answer.LATER, Answer.ALLOWED]
    for first in order:
        for second in order:
            assert narrowed(first, second) is order[min(order.index(first), order.index(second))]
