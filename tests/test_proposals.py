"""What needs a quorum: one alone never suffices, it is done once, and only as it was approved."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier
from typing import Any

import grpc
import pytest

from hsmd.client import ApiError, Client
from hsmd.client.admin import AdminClient
from hsmd.operations import OPERATIONS
from hsmd.pb.v1 import limits_pb2
from hsmd.pb.v1 import proposals_pb2 as pb
from hsmd.pb.v1 import ukeys_pb2 as ukeys
from hsmd.pb.v1.keys_pb2 import KeyState
from hsmd.pb.v1.proposals_pb2_grpc import ProposalsStub
from hsmd.ukey import open_box as opened_box
from hsmd.ukey import possession_context
from tests.calls import KEY_CALLS, fresh, record, records, refusal
from tests.faults import change_rows, rows
from tests.quorum import approve, decide, execute, propose, show, signed, stub
from tests.stand import Stand, eventually
from tests.ukeys import Crew, Holder

BOUND = 500  # keys that an operator gives a project alone


@dataclass
class Place:
    """A stand with four administrators, three operators, of whom two each are needed, and an auditor."""

    stand: Stand
    crew: Crew
    alice: Holder
    bob: Holder
    carl: Holder
    dora: Holder  # with a token
    olga: Holder
    oleg: Holder
    orla: Holder
    aude: Holder

    def client(self) -> Client:
        return self.stand.client()

    def candidate(self, name: str, role: str = "auditor") -> tuple[Holder, dict[str, Any]]:
        """Somebody new, with what shows that the UKey is theirs."""
        holder = self.crew.soft(name, role)
        assert holder.soft is not None
        with self.crew.client(replace(holder, soft=None)) as client:
            request = ukeys.BeginEnrolmentRequest(public_key=holder.public_key, opens=holder.opens)
            begun = client.ukeys.BeginEnrolment(request)
        context = possession_context(begun.instance, begun.nonce)
        opened = opened_box(holder.public_key, begun.box, context, holder.soft)
        made = replace(holder.candidate(), nonce=begun.nonce, opened=opened)
        made = replace(made, signature=holder.soft.sign(made.statement(begun.instance)))
        return holder, dict(made.to_values())

    def registry(self) -> ukeys.ListUkeysResponse:
        with self.crew.client(self.alice) as client:
            found: ukeys.ListUkeysResponse = client.ukeys.ListUkeys(ukeys.ListUkeysRequest())
        return found

    def enrolled(self, name: str, role: str) -> Holder:
        """Somebody new, taken in by a quorum."""
        holder, parameters = self.candidate(name, role)
        made = decide(self.crew, [self.alice, self.bob], "enrol-ukey", **parameters)
        holder.id = json.loads(made.result)["ukey_id"]
        return holder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("quorum")
    stand = Stand(folder, {"HSMD__LIMITS__KEYS_WITHOUT_QUORUM": str(BOUND)})
    crew = Crew(stand, folder)
    holders = (
        *(crew.soft(name, "administrator") for name in ("alice", "bob", "carl")),
        crew.token("dora", "administrator"),
        *(crew.soft(name, "operator") for name in ("olga", "oleg", "orla")),
        crew.soft("aude", "auditor"),
    )
    crew.enrol(2, 2, *holders)
    try:
        stand.start(gateway=False)
        yield Place(stand, crew, *holders)
    finally:
        stand.stop()


# One alone never suffices


@dataclass
class Case:
    """An operation: its parameters here, and whether it has been done."""

    parameters: dict[str, Any]
    done: Callable[[], bool]
    resource: str = ""
    after: Callable[[], object] = lambda: None


def _key(place: Place, state: str = "") -> str:
    with place.client() as client:
        key = client.create_key(fresh())
        if state == "pending deletion":
            client.schedule_deletion(key, 7)
    if state == "frozen":
        decide(place.crew, [place.alice, place.bob], "freeze-key", key_id=key, reason="")
    return str(key)


def _state(place: Place, key: str) -> int:
    with place.client() as client:
        return int(client.describe_key(key).key_state)


def _gone(place: Place, key: str) -> bool:
    try:
        return _state(place, key) == -1
    except ApiError as error:
        return error.code == "KMS.0207"


def _enrol(place: Place) -> Case:
    name = fresh("ukey")
    _, parameters = place.candidate(name)
    return Case(parameters, lambda: name in [each.name for each in place.registry().ukeys])


def _revoke(place: Place) -> Case:
    gone = place.enrolled(fresh("ukey"), "auditor")
    return Case(
        {"ukey_id": gone.id, "reason": "lost"},
        lambda: [each.HasField("revoked") for each in place.registry().ukeys if each.id == gone.id] == [True],
        gone.id,
    )


def _set_quorum(place: Place) -> Case:
    def back() -> None:
        three = [place.alice, place.bob, place.carl]
        decide(place.crew, three, "set-quorum", administrators=2, operators=2)

    wanted = ukeys.Quorum(administrators=3, operators=3)
    parameters: dict[str, Any] = {"administrators": 3, "operators": 3}
    return Case(parameters, lambda: place.registry().quorum == wanted, "quorum", back)


def _freeze(place: Place) -> Case:
    key = _key(place)
    return Case({"key_id": key, "reason": "court order 17"}, lambda: _state(place, key) == 7, key)


def _unfreeze(place: Place) -> Case:
    key = _key(place, "frozen")
    return Case({"key_id": key, "reason": ""}, lambda: _state(place, key) == 2, key)


def _delete(place: Place) -> Case:
    key = _key(place, "pending deletion")
    return Case({"key_id": key, "reason": ""}, lambda: _gone(place, key), key)


def _raise_limit(place: Place) -> Case:
    project = place.stand.dev.project_id

    def value() -> int:
        with place.client() as client:
            found = client.limits.ListLimits(limits_pb2.ListLimitsRequest(of_project=project)).limits
        return int(next(each.value for each in found if each.name == "keys"))

    wanted = value() + BOUND
    return Case({"project_id": project, "name": "keys", "value": wanted}, lambda: value() == wanted, project)


def _export(place: Place) -> Case:
    with place.crew.client(place.alice) as client:
        before = len(stub(client).ListProposals(pb.ListProposalsRequest(ended=True)).proposals)

    def exported() -> bool:
        with place.crew.client(place.alice) as client:
            found = stub(client).ListProposals(pb.ListProposalsRequest(ended=True)).proposals
        return len(found) > before and bool(json.loads(found[0].result)["files"])

    return Case({"reason": "yearly"}, exported, "audit")


CASES: dict[str, Callable[[Place], Case]] = {
    "enrol-ukey": _enrol,
    "revoke-ukey": _revoke,
    "set-quorum": _set_quorum,
    "freeze-key": _freeze,
    "unfreeze-key": _unfreeze,
    "delete-key-now": _delete,
    "raise-limit": _raise_limit,
    "export-audit": _export,
}


@pytest.mark.parametrize("operation", CASES)
def test_one_alone_never_suffices_and_two_do(place: Place, operation: str) -> None:
    case = CASES[operation](place)
    with place.crew.client(place.alice) as alice, place.crew.client(place.bob) as bob:
        made = propose(alice, operation, **case.parameters)
        with refusal("KMS.0306"):
            execute(alice, made.id)
        approve(alice, place.alice, made)
        made = approve(alice, place.alice, made)  # once more is well, and counts once
        assert [each.ukey for each in made.approvals] == ["alice"]
        with refusal("KMS.0306") as seen:
            execute(alice, made.id)
        assert "1 of the 2" in seen.last.message
        assert not case.done()
        approve(bob, place.bob, made)
        done = execute(bob, made.id)
        assert done.state == "executed"
        assert case.done()
        with refusal("IAM.0104"):  # it is done once
            execute(alice, made.id)
    case.after()
    event = OPERATIONS[operation].event
    (written,) = [each for each in place.stand.audit() if each["event"] == event and each["user"] == "bob"][
        -1:
    ]
    assert written["result"] == "OK"
    assert case.resource in ("", written["resource"])
    main, same = sorted(records(place.stand, written["request_id"]), key=lambda each: each["event"] == event)
    assert (main["event"], main["resource"], main["user_id"]) == ("executeProposal", made.id, place.bob.id)
    assert same == written


def test_every_operation_that_is_named_can_be_proposed() -> None:
    from hsmd.domain import proposals

    assert set(CASES) <= set(proposals.OPERATIONS) <= set(OPERATIONS)


# What is signed


def test_what_is_signed_is_spelled_in_one_way(place: Place) -> None:
    key = _key(place)
    with place.crew.client(place.alice) as client:
        made = propose(client, "freeze-key", reason="", key_id=key)
        instance = client.ukeys.ListUkeys(ukeys.ListUkeysRequest()).instance
        facts = json.loads(made.object)
        assert facts["project_id"] == place.stand.dev.project_id
        assert facts["state"] == "enabled"
        spelled = json.dumps(
            {
                "proposal": made.id,
                "operation": "freeze-key",
                "parameters": {"key_id": key, "reason": ""},
                "object": facts,
                "instance": instance,
                "expires": made.expires,
            },
            sort_keys=True,
            separators=(",", ":"),
        )
        assert place.alice.soft is not None
        signature = place.alice.soft.sign(b"hsmd-ukey-1\0approve\0" + spelled.encode())
        stub(client).Approve(pb.ApproveRequest(proposal_id=made.id, signature=signature))
        assert len(show(client, made.id).approvals) == 1


def test_an_approval_is_good_for_its_proposal_and_its_ukey_alone(place: Place) -> None:
    key = _key(place)
    with place.crew.client(place.alice) as alice, place.crew.client(place.bob) as bob:
        first = propose(alice, "freeze-key", key_id=key, reason="")
        second = propose(alice, "freeze-key", key_id=key, reason="")
        replayed = signed(place.alice, first)
        for signature in (replayed, signed(place.bob, second), b"\x00" * 64, b"x"):
            with refusal("KMS.0308") as seen:
                stub(alice).Approve(pb.ApproveRequest(proposal_id=second.id, signature=signature))
            assert record(place.stand, seen.last.request_id)["resource"] == second.id
        with refusal("KMS.0308"):
            stub(bob).Approve(pb.ApproveRequest(proposal_id=second.id, signature=signed(place.alice, second)))
        assert not show(alice, second.id).approvals


# The object changes


def test_a_proposal_is_void_when_its_object_has_changed(place: Place) -> None:
    key = _key(place)
    made = decide(place.crew, [place.alice, place.bob], "freeze-key", carry_out=False, key_id=key, reason="")
    with place.client() as client:
        client.disable(key)
    with place.crew.client(place.alice) as alice:
        with refusal("IAM.0104") as seen:
            execute(alice, made.id)
        assert "void" in seen.last.message
        assert "state" in seen.last.message
        with place.client() as client:
            client.enable(key)
        with refusal("IAM.0104"):  # it stays void, though the key is as it was
            execute(alice, made.id)
        assert show(alice, made.id).state == "void"
    assert _state(place, key) == 2
    events = [each["event"] for each in records(place.stand, seen.last.request_id)]
    assert sorted(events) == ["executeProposal", "voidProposal"]


def test_two_that_were_approved_for_the_same_are_not_both_carried_out(place: Place) -> None:
    key = _key(place)
    both = [
        decide(place.crew, [place.alice, place.bob], "freeze-key", carry_out=False, key_id=key, reason=each)
        for each in ("first", "second")
    ]
    with place.crew.client(place.alice) as alice:
        assert execute(alice, both[0].id).state == "executed"
        with refusal("IAM.0104"):
            execute(alice, both[1].id)


def test_nobody_is_enrolled_twice(place: Place) -> None:
    holder, parameters = place.candidate(fresh("ukey"))
    both = [
        decide(place.crew, [place.alice, place.bob], "enrol-ukey", carry_out=False, **parameters)
        for _ in range(2)
    ]
    with place.crew.client(place.alice) as alice:
        execute(alice, both[0].id)
        with refusal("IAM.0104"):
            execute(alice, both[1].id)
        with refusal("KMS.0308"):
            propose(alice, "enrol-ukey", **parameters)
        _, other = place.candidate(holder.name)
        with refusal("IAM.0005"):
            propose(alice, "enrol-ukey", **other)


# Once


def test_two_executing_at_once_do_it_once(place: Place) -> None:
    project = place.stand.dev.project_id
    for _ in range(3):
        key = _key(place)
        made = decide(
            place.crew, [place.alice, place.bob], "freeze-key", carry_out=False, key_id=key, reason=""
        )
        start = Barrier(4)

        def attempt(holder: Holder, proposal: str = made.id, start: Barrier = start) -> str:
            with place.crew.client(holder) as client:
                show(client, proposal)  # logged in
                start.wait()
                try:
                    return str(execute(client, proposal).state)
                except ApiError as error:
                    return error.code

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(attempt, [place.alice, place.bob, place.carl, place.alice]))
        assert sorted(found) == ["IAM.0104", "IAM.0104", "IAM.0104", "executed"]
        done = [
            each for each in place.stand.audit() if each["event"] == "freezeKey" and each["resource"] == key
        ]
        assert [(each["result"], each["project_id"]) for each in done] == [("OK", project)]


@pytest.mark.parametrize(
    ("where", "done"),
    [
        ("hsmd.store.keys:update_key:after", False),
        ("hsmd.store.proposals:update_proposal:before", False),
        ("hsmd.store.proposals:update_proposal:after", False),
        ("hsmd.domain.proposals:_view:before:2", True),  # it is committed, and nobody has been told
    ],
)
def test_killed_in_the_midst_it_is_done_once_or_not_at_all(place: Place, where: str, done: bool) -> None:
    key = _key(place)
    made = decide(place.crew, [place.alice, place.bob], "freeze-key", carry_out=False, key_id=key, reason="")
    argv = [sys.executable, "-m", "tests.dying", where, "-m", "tests.quorum", str(place.stand.dev.config)]
    ended = subprocess.run(
        [*argv, "execute", made.id, place.carl.id],
        env={**os.environ, **place.stand.settings, "HSMD__ADMIN__ENABLED": "false"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
    )
    assert ended.returncode == -9, ended.stderr
    assert (_state(place, key) == 7) is done
    with place.crew.client(place.alice) as alice:
        if done:
            assert show(alice, made.id).state == "executed"
            with refusal("IAM.0104"):
                execute(alice, made.id)
        else:
            assert show(alice, made.id).state == "open"
            assert execute(alice, made.id).state == "executed"
    assert _state(place, key) == 7


def test_what_was_decided_outlives_the_daemon(place: Place) -> None:
    key = _key(place)
    made = decide(place.crew, [place.alice, place.bob], "freeze-key", carry_out=False, key_id=key, reason="")
    place.stand.kill_everything()
    place.stand.start(gateway=False)
    with place.crew.client(place.carl) as carl:
        assert execute(carl, made.id).state == "executed"
    assert _state(place, key) == 7


# Who counts


def test_an_approval_of_a_revoked_ukey_does_not_count(place: Place) -> None:
    gone = place.enrolled(fresh("ukey"), "administrator")
    key = _key(place)
    made = decide(place.crew, [place.alice, gone], "freeze-key", carry_out=False, key_id=key, reason="")
    decide(place.crew, [place.alice, place.bob], "revoke-ukey", ukey_id=gone.id, reason="")
    with place.crew.client(place.alice) as alice:
        assert [each.ukey for each in show(alice, made.id).approvals] == ["alice"]
        with refusal("KMS.0306"):
            execute(alice, made.id)
        with place.crew.client(place.carl) as carl:
            approve(carl, place.carl, made)
        assert execute(alice, made.id).state == "executed"
    with place.crew.client(gone) as client, refusal("APIGW.0301"):
        show(client, made.id)


def test_the_last_that_are_needed_cannot_be_revoked(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    crew = Crew(stand, tmp_path)
    administrators = [crew.soft(name, "administrator") for name in ("alice", "bob", "carl", "dora")]
    operators = [crew.soft(name, "operator") for name in ("olga", "oleg")]
    crew.enrol(2, 2, *administrators, *operators)
    alice, bob, carl, dora = administrators
    try:
        stand.start(gateway=False)
        with crew.client(alice) as client, refusal("IAM.0104") as seen:
            propose(client, "revoke-ukey", ukey_id=operators[0].id, reason="")
        assert "2 operators are needed" in seen.last.message
        # Two of four can be spared when it is proposed; then three are needed.
        both = [
            decide(crew, administrators, "revoke-ukey", carry_out=False, ukey_id=each.id, reason="")
            for each in (carl, dora)
        ]
        decide(crew, [alice, bob], "set-quorum", administrators=3, operators=2)
        with crew.client(alice) as client:
            assert execute(client, both[0].id).state == "executed"
            with refusal("IAM.0104") as seen:
                execute(client, both[1].id)
            assert "3 administrators are needed" in seen.last.message
            with refusal("IAM.0104"):
                propose(client, "revoke-ukey", ukey_id=alice.id, reason="")
            with refusal("KMS.0308"):
                propose(client, "set-quorum", administrators=4, operators=2)
            back = propose(client, "set-quorum", administrators=2, operators=2)
            for each in (alice, bob):
                with crew.client(each) as own:
                    approve(own, each, back)
            with refusal("KMS.0306"):  # two of three
                execute(client, back.id)
            with crew.client(dora) as own:
                approve(own, dora, back)
            execute(client, back.id)
            assert execute(client, both[1].id).state == "executed"
            with refusal("IAM.0104"):
                propose(client, "revoke-ukey", ukey_id=bob.id, reason="")
    finally:
        stand.stop()


def test_roles_may_what_is_theirs(place: Place) -> None:
    key = _key(place)
    with place.crew.client(place.alice) as alice:
        made = propose(alice, "freeze-key", key_id=key, reason="")
    for holder in (place.olga, place.aude):
        with place.crew.client(holder) as client:
            assert show(client, made.id).id == made.id
            with refusal("KMS.0330"):
                approve(client, holder, made)
            with refusal("KMS.0330"):
                execute(client, made.id)
            with refusal("KMS.0330"):
                propose(client, "freeze-key", key_id=key, reason="")
    with place.crew.client(place.aude) as client:
        own = propose(client, "export-audit", reason="")
    with place.crew.client(place.bob) as client, refusal("IAM.0104"):
        stub(client).Withdraw(pb.WithdrawRequest(proposal_id=own.id))  # another one's
    for holder in (place.alice, place.bob):
        with place.crew.client(holder) as client:
            approve(client, holder, own)
    with place.crew.client(place.aude) as client:
        assert execute(client, own.id).state == "executed"


# Withdrawn, expired, too many


def test_who_has_made_it_withdraws_it(place: Place) -> None:
    key = _key(place)
    made = decide(place.crew, [place.alice, place.bob], "freeze-key", carry_out=False, key_id=key, reason="")
    with place.crew.client(place.alice) as alice:
        request = pb.WithdrawRequest(proposal_id=made.id)
        assert stub(alice).Withdraw(request).proposal.state == "withdrawn"
        for again in (lambda: stub(alice).Withdraw(request), lambda: execute(alice, made.id)):
            with refusal("IAM.0104"):
                again()
        with refusal("IAM.0104"):
            approve(alice, place.alice, made)
        listed = stub(alice).ListProposals(pb.ListProposalsRequest()).proposals
        assert made.id not in [each.id for each in listed]
        ended = stub(alice).ListProposals(pb.ListProposalsRequest(ended=True, limit=200)).proposals
        assert made.id in [each.id for each in ended]
    assert _state(place, key) == 2


def test_one_ukey_cannot_fill_the_list(place: Place) -> None:
    greedy = place.enrolled(fresh("ukey"), "administrator")
    with place.crew.client(greedy) as client:
        made = [propose(client, "export-audit", reason=str(number)) for number in range(20)]
        with refusal("KMS.1105"):
            propose(client, "export-audit", reason="one more")
        stub(client).Withdraw(pb.WithdrawRequest(proposal_id=made[0].id))
        made.append(propose(client, "export-audit", reason="one more"))
        for each in made[1:]:
            stub(client).Withdraw(pb.WithdrawRequest(proposal_id=each.id))
    with place.crew.client(place.alice) as client:
        made_by_alice = propose(client, "export-audit", reason="")
        stub(client).Withdraw(pb.WithdrawRequest(proposal_id=made_by_alice.id))


# Bad input

_KEY = "0d0466b0-e727-4d9c-b35d-f84bb474a37f"


@pytest.mark.parametrize(
    ("operation", "parameters", "code"),
    [
        ("", "{}", "KMS.0204"),
        ("freeze-key", "", "KMS.0204"),
        ("melt-key", "{}", "KMS.0308"),
        ("x" * 65, "{}", "KMS.0308"),
        ("freeze-key", "{", "KMS.0308"),
        ("freeze-key", "[]", "KMS.0308"),
        ("freeze-key", "{}", "KMS.0308"),
        ("freeze-key", json.dumps({"key_id": _KEY}), "KMS.0308"),
        ("freeze-key", json.dumps({"key_id": _KEY, "reason": "", "more": 1}), "KMS.0308"),
        ("freeze-key", json.dumps({"key_id": _KEY, "reason": 7}), "KMS.0308"),
        ("freeze-key", json.dumps({"key_id": "alias/x", "reason": ""}), "KMS.0308"),
        ("freeze-key", json.dumps({"key_id": _KEY, "reason": "x" * 201}), "KMS.0308"),
        ("freeze-key", json.dumps({"key_id": _KEY, "reason": "a\nb"}), "KMS.0308"),
        ("freeze-key", f'{{"key_id": "{_KEY}", "reason": "", "reason": "x"}}', "KMS.0308"),
        ("freeze-key", json.dumps({"key_id": _KEY, "reason": ""}), "KMS.0207"),
        ("freeze-key", "[" * 30000, "KMS.0308"),
        ("freeze-key", "x" * 32769, "KMS.0308"),
        ("set-quorum", json.dumps({"administrators": 1, "operators": 2}), "KMS.0308"),
        ("set-quorum", json.dumps({"administrators": True, "operators": 2}), "KMS.0308"),
        ("set-quorum", json.dumps({"administrators": 2.0, "operators": 2}), "KMS.0308"),
        ("set-quorum", '{"administrators": NaN, "operators": 2}', "KMS.0308"),
        ("set-quorum", json.dumps({"administrators": "2", "operators": 2}), "KMS.0308"),
        ("set-quorum", json.dumps({"administrators": 17, "operators": 2}), "KMS.0308"),
        ("set-quorum", json.dumps({"administrators": 9, "operators": 2}), "KMS.0308"),
        ("revoke-ukey", json.dumps({"ukey_id": "0" * 32, "reason": ""}), "IAM.0004"),
        ("revoke-ukey", json.dumps({"ukey_id": "x", "reason": ""}), "KMS.0308"),
        ("raise-limit", json.dumps({"project_id": "0" * 32, "name": "keys", "value": 5}), "KMS.0308"),
        ("raise-limit", json.dumps({"project_id": "0" * 32, "name": "wishes", "value": 5}), "KMS.0308"),
        ("raise-limit", json.dumps({"project_id": "0" * 32, "name": "calls", "value": 5000}), "KMS.0308"),
        ("raise-limit", json.dumps({"project_id": "0" * 32, "name": "keys", "value": -1}), "KMS.0308"),
        ("raise-limit", json.dumps({"project_id": "0" * 32, "name": "keys", "value": 10**30}), "KMS.0308"),
        ("unfreeze-key", json.dumps({"key_id": _KEY, "reason": ""}), "KMS.0207"),
        ("export-audit", json.dumps({"reason": "\ud800"}), "KMS.0308"),
    ],
)
def test_what_makes_no_sense_is_not_proposed(
    place: Place, operation: str, parameters: str, code: str
) -> None:
    with place.crew.client(place.alice) as client:
        before = stub(client).ListProposals(pb.ListProposalsRequest()).proposals
        with refusal(code) as seen:
            stub(client).Propose(pb.ProposeRequest(operation=operation, parameters=parameters))
        assert stub(client).ListProposals(pb.ListProposalsRequest()).proposals == before
    assert record(place.stand, seen.last.request_id)["result"] == code


def test_states_that_do_not_fit_are_refused(place: Place) -> None:
    enabled, frozen, leaving = _key(place), _key(place, "frozen"), _key(place, "pending deletion")
    with place.crew.client(place.alice) as client:
        for operation, key, code in (
            ("freeze-key", frozen, "KMS.0209"),
            ("unfreeze-key", enabled, "KMS.0209"),
            ("unfreeze-key", leaving, "KMS.0209"),
            ("delete-key-now", enabled, "KMS.1501"),
            ("delete-key-now", frozen, "KMS.1501"),
        ):
            with refusal(code):
                propose(client, operation, key_id=key, reason="")


def test_nothing_is_found_under_a_wrong_id(place: Place) -> None:
    with place.crew.client(place.alice) as client:
        for proposal_id in ("0" * 32, "x", "'; --"):
            for call in (
                lambda each: show(client, each),
                lambda each: execute(client, each),
                lambda each: stub(client).Approve(pb.ApproveRequest(proposal_id=each, signature=b"x")),
                lambda each: stub(client).Withdraw(pb.WithdrawRequest(proposal_id=each)),
                lambda each: stub(client).ReadExport(pb.ReadExportRequest(proposal_id=each, file="x")),
            ):
                with refusal("IAM.0004"):
                    call(proposal_id)
        with refusal("KMS.0204"):
            show(client, "")
        for limit, offset in ((201, 0), (-1, 0), (1, -1)):
            with refusal("KMS.0308"):
                stub(client).ListProposals(pb.ListProposalsRequest(limit=limit, offset=offset))


def test_who_shows_no_ukey_gets_nowhere(place: Place) -> None:
    with place.crew.client(replace(place.alice, soft=None)) as client:
        for call in (
            lambda: propose(client, "export-audit", reason=""),
            lambda: stub(client).ListProposals(pb.ListProposalsRequest()),
            lambda: execute(client, "0" * 32),
        ):
            with refusal("APIGW.0301"):
                call()


def test_the_public_port_knows_no_proposals(place: Place) -> None:
    request = pb.ProposeRequest(operation="export-audit", parameters='{"reason": ""}')
    dev = place.stand.dev
    files = [path.read_bytes() for path in (dev.ca, dev.key, dev.certificate)]
    credentials = grpc.ssl_channel_credentials(*files)
    with grpc.secure_channel(dev.grpc, credentials) as channel, pytest.raises(grpc.RpcError) as caught:
        ProposalsStub(channel).Propose(request, timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# Rows that somebody has changed


def refused_as_broken(place: Place, client: AdminClient, proposal_id: str) -> None:
    """It is not carried out, nobody outside is told more, and it is on record."""
    with pytest.raises(ApiError) as caught:
        execute(client, proposal_id)
    assert caught.value.code == "KMS.0101"
    written = record(place.stand, caught.value.request_id)
    assert [written[name] for name in ("event", "resource", "result")] == [
        "executeProposal",
        proposal_id,
        "KMS.0101",
    ]


def test_a_changed_proposal_is_refused(place: Place) -> None:
    key, other = _key(place), _key(place)
    made = decide(place.crew, [place.alice, place.bob], "freeze-key", carry_out=False, key_id=key, reason="")
    ((parameters,),) = rows(place.stand, "SELECT parameters FROM proposals WHERE id = ?", made.id)
    statement = "UPDATE proposals SET parameters = ? WHERE id = ?"
    change_rows(place.stand, statement, parameters.replace(key, other), made.id)
    with place.crew.client(place.alice) as alice:
        refused_as_broken(place, alice, made.id)
        assert (_state(place, key), _state(place, other)) == (2, 2)
        change_rows(place.stand, statement, parameters, made.id)
        assert execute(alice, made.id).state == "executed"


def test_what_was_done_is_not_open_again_when_its_row_is_put_back(place: Place) -> None:
    key = _key(place)
    made = decide(place.crew, [place.alice, place.bob], "freeze-key", carry_out=False, key_id=key, reason="")
    columns = "state, ended, ended_by, result, seal"
    look = f"SELECT {columns} FROM proposals WHERE id = ?"  # noqa: S608 # no input
    (before,) = rows(place.stand, look, made.id)
    put = "UPDATE proposals SET state = ?, ended = ?, ended_by = ?, result = ?, seal = ? WHERE id = ?"
    with place.crew.client(place.alice) as alice:
        execute(alice, made.id)
        (after,) = rows(place.stand, look, made.id)
        decide(place.crew, [place.alice, place.bob], "unfreeze-key", key_id=key, reason="")
        change_rows(place.stand, put, *before, made.id)
        refused_as_broken(place, alice, made.id)
        change_rows(place.stand, put, *after, made.id)
        assert show(alice, made.id).state == "executed"
    assert _state(place, key) == 2


def test_an_approval_moved_to_another_proposal_or_ukey_does_not_count(place: Place) -> None:
    key = _key(place)
    first = decide(place.crew, [place.alice, place.bob], "freeze-key", carry_out=False, key_id=key, reason="")
    with place.crew.client(place.alice) as alice:
        second = propose(alice, "freeze-key", key_id=key, reason="other")
        move = "UPDATE approvals SET proposal_id = ? WHERE proposal_id = ? AND ukey_id = ?"
        change_rows(place.stand, move, second.id, first.id, place.bob.id)
        refused_as_broken(place, alice, second.id)
        change_rows(place.stand, move, first.id, second.id, place.bob.id)
        move = "UPDATE approvals SET ukey_id = ? WHERE proposal_id = ? AND ukey_id = ?"
        change_rows(place.stand, move, place.carl.id, first.id, place.bob.id)
        refused_as_broken(place, alice, first.id)
        change_rows(place.stand, move, place.bob.id, first.id, place.carl.id)
        assert execute(alice, first.id).state == "executed"


# Keys


def test_nobody_uses_or_changes_a_frozen_key(place: Place) -> None:
    key = _key(place)
    with place.client() as client:
        blob = client.encrypt(key, b"before")
        other = client.create_key(fresh())
        decide(place.crew, [place.alice, place.bob], "freeze-key", key_id=key, reason="")
        for name, call in KEY_CALLS.items():
            if name == "describe-key":
                continue
            with pytest.raises(ApiError) as caught:
                call(client, key)
            assert caught.value.code == "KMS.0209", name
        with refusal("KMS.0209"):
            client.decrypt(blob)
        assert client.describe_key(key).key_state == KeyState.Value("KEY_STATE_FROZEN")
        assert client.encrypt(other, b"x")
        decide(place.crew, [place.alice, place.bob], "unfreeze-key", key_id=key, reason="")
        assert client.decrypt(blob) == b"before"


@pytest.mark.parametrize(("before", "after"), [("enabled", 2), ("disabled", 3), ("pending deletion", 3)])
def test_an_unfrozen_key_is_what_it_was(place: Place, before: str, after: int) -> None:
    key = _key(place)
    with place.client() as client:
        if before == "disabled":
            client.disable(key)
        if before == "pending deletion":
            client.schedule_deletion(key, 7)
    made = decide(place.crew, [place.alice, place.bob], "freeze-key", key_id=key, reason="")
    assert json.loads(made.object)["state"] == before
    assert json.loads(made.result) == {"state": "frozen"}
    made = decide(place.crew, [place.alice, place.bob], "unfreeze-key", key_id=key, reason="")
    assert json.loads(made.object)["frozen_from"] == before
    assert _state(place, key) == after
    with place.client() as client:
        assert not client.describe_key(key).HasField("scheduled_deletion_date")


def test_a_key_deleted_now_is_gone_at_once_and_its_material_soon(place: Place) -> None:
    key = _key(place)
    with place.client() as client:
        blob = client.encrypt(key, b"gone")
        client.schedule_deletion(key, 30)
        decide(place.crew, [place.alice, place.bob], "delete-key-now", key_id=key, reason="")
        with refusal("KMS.0207"):
            client.cancel_deletion(key)
        with refusal("KMS.2201"):
            client.decrypt(blob)
    material = "SELECT wrapped FROM key_versions WHERE key_id = ?"
    # A warden that was killed before may hold the job's lease for a minute.
    eventually(lambda: rows(place.stand, material, key) == [(None,)], 90)


# Limits


def test_an_operator_alone_does_not_go_above_the_bound(place: Place) -> None:
    project = place.stand.dev.project_id
    with place.client() as client:

        def put(value: int) -> Any:
            return client.limits.SetLimit(
                limits_pb2.SetLimitRequest(of_project=project, name="keys", value=value)
            ).limit

        assert put(BOUND).value == BOUND
        with refusal("KMS.0306") as seen:
            put(BOUND + 1)
        assert "raise-limit" in seen.last.message
        raised: dict[str, Any] = {"project_id": project, "name": "keys", "value": BOUND * 4}
        decide(place.crew, [place.alice, place.bob], "raise-limit", **raised)
        with refusal("KMS.0306"):
            put(BOUND * 4)
        assert put(BOUND - 1).value == BOUND - 1
        request = limits_pb2.SetLimitRequest(of_project=project, name="requests", value=0)
        assert client.limits.SetLimit(request).limit.value == 0  # that one has no bound here


# The exported log


def test_the_exported_log_is_for_who_has_exported_it(place: Place, tmp_path: Path) -> None:
    made = decide(place.crew, [place.alice, place.bob], "export-audit", reason="")
    files = json.loads(made.result)["files"]
    assert "warden.jsonl" in [each["name"] for each in files]
    with place.crew.client(place.alice) as alice:
        for each in files:
            data, request = b"", pb.ReadExportRequest(proposal_id=made.id, file=each["name"])
            while part := stub(alice).ReadExport(request).data:
                data += part
                request.offset = len(data)
            path = place.stand.dev.data / "audit" / each["name"]
            assert data == path.read_bytes()[: each["size"]]
            assert data.endswith(b"\n")
        for name, offset in (("../pin", 0), ("pin", 0), ("warden.jsonl", -1), ("warden.jsonl", 10**12)):
            with refusal("KMS.0308"):
                stub(alice).ReadExport(pb.ReadExportRequest(proposal_id=made.id, file=name, offset=offset))
    with place.crew.client(place.bob) as bob, refusal("KMS.0330"):
        stub(bob).ReadExport(pb.ReadExportRequest(proposal_id=made.id, file="warden.jsonl"))
    with place.crew.client(place.alice) as alice:
        waiting = propose(alice, "export-audit", reason="")
        with refusal("IAM.0104"):
            stub(alice).ReadExport(pb.ReadExportRequest(proposal_id=waiting.id, file="warden.jsonl"))


# hsmctl


def test_hsmctl_proposes_approves_and_executes(place: Place) -> None:
    key = _key(place)
    dora = place.dora
    done = place.crew.run(dora, "propose", "freeze-key", key, "reason=court order 17")
    assert done.returncode == 0, done.stderr
    proposal = done.stdout.strip()
    assert f"Freeze the key {key}" in done.stderr
    assert "court order 17" in done.stderr
    listed = json.loads(place.crew.hsmctl(dora, "--json", "proposals"))["proposals"]
    (mine,) = [each for each in listed if each["id"] == proposal]
    assert (mine["state"], mine["proposed_by"], mine["needed"]) == ("open", "dora", 2)
    asked = place.crew.run(dora, "approve", proposal, given="n\n")
    assert asked.returncode == 130
    assert f"Freeze the key {key}" in asked.stderr
    assert "state: enabled" in asked.stderr
    assert place.stand.dev.project_id in asked.stderr
    told = place.crew.run(dora, "approve", proposal, given="y\n")
    assert "1 of 2" in told.stderr
    refused = place.crew.run(dora, "execute", proposal, "--yes")
    assert refused.returncode == 1
    assert "KMS.0306" in refused.stderr
    with place.crew.client(place.bob) as bob:
        approve(bob, place.bob, show(bob, proposal))
    assert "It is executed" in place.crew.run(dora, "execute", proposal, "--yes").stderr
    assert _state(place, key) == 7
    shown = json.loads(place.crew.hsmctl(dora, "proposals", proposal, "--json"))
    assert shown["words"].startswith(f"Freeze the key {key}")
    assert [each["ukey"] for each in shown["approvals"]] == ["dora", "bob"]
    assert proposal in place.crew.hsmctl(dora, "proposals", "--ended")
    other = place.crew.hsmctl(dora, "propose", "unfreeze-key", key).strip()
    assert "withdrawn" in place.crew.run(dora, "withdraw", other).stderr


def test_hsmctl_enrols_by_a_file(place: Place, tmp_path: Path) -> None:
    new = place.crew.token(fresh("t")[:20], "operator", "rsa-2048")
    file = tmp_path / "request.json"
    place.crew.hsmctl(new, "ukey", "request", new.name, "--role", "operator", "--out", str(file))
    made = place.crew.run(place.dora, "propose", "enrol-ukey", "--from", str(file))
    assert new.fingerprint in made.stderr
    assert hashlib.sha256(new.public_key).hexdigest() == new.fingerprint
    proposal = made.stdout.strip()
    for holder in (place.alice, place.bob):
        with place.crew.client(holder) as client:
            approve(client, holder, show(client, proposal))
    place.crew.hsmctl(place.dora, "execute", proposal, "--yes")
    assert "open" not in place.crew.hsmctl(new, "ukey", "list")
    (row,) = [each for each in place.registry().ukeys if each.name == new.name]
    assert (row.role, row.created_by) == ("operator", "alice, bob")


def test_hsmctl_writes_the_exported_log(place: Place, tmp_path: Path) -> None:
    proposal = place.crew.hsmctl(place.dora, "propose", "export-audit", "yearly").strip()
    for holder in (place.alice, place.bob):
        with place.crew.client(holder) as client:
            approve(client, holder, show(client, proposal))
    out = tmp_path / "log"
    wrong = place.crew.run(place.dora, "execute", proposal, "--yes")
    assert wrong.returncode == 2
    place.crew.hsmctl(place.dora, "execute", proposal, "--yes", "--out", str(out))
    found = [json.loads(line) for file in out.iterdir() for line in file.read_text().splitlines()]
    assert any(each["event"] == "approveProposal" and each["resource"] == proposal for each in found)
    assert all(path.stat().st_mode & 0o077 == 0 for path in out.iterdir())
    again = tmp_path / "again"
    place.crew.hsmctl(place.dora, "execute", proposal, "--out", str(again))
    assert {path.name for path in again.iterdir()} == {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    "words",
    [
        ("propose",),
        ("propose", "melt-key"),
        ("propose", "freeze-key"),
        ("propose", "freeze-key", _KEY, "why", "more"),
        ("propose", "freeze-key", "key_id=" + _KEY, "key_id=" + _KEY),
        ("propose", "set-quorum", "two", "2"),
        ("propose", "raise-limit", "0" * 32, "keys", "many"),
        ("approve",),
        ("execute", "a", "b"),
    ],
)
def test_hsmctl_says_how_it_is_used(place: Place, words: tuple[str, ...]) -> None:
    assert place.crew.run(place.dora, *words).returncode == 2
