"""Proposals as time passes, and what is more than one transaction: begun, cut short, completed."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

import pytest
from google.protobuf import json_format

from hsmd import operations, sealfile, ukey
from hsmd.caller import Caller
from hsmd.cli.ctl import proposals as signable
from hsmd.domain import access, imports, proposals, sealing, ukeys
from hsmd.domain.backups import Place, Workshop
from hsmd.domain.core import Call
from hsmd.domain.proposals import Shown
from hsmd.domain.sealing import Keeper
from hsmd.domain.steps import Decided, Outcome
from hsmd.errors import (
    BACKUP_REFUSED,
    IAM_PROTECTED,
    KEY_STATE_REFUSED,
    PARAMETER_INVALID,
    PROPOSAL_REFUSED,
    QUORUM_MISSING,
    SEAL_REFUSED,
    UNAVAILABLE,
    Error,
    Fault,
)
from hsmd.hsm import Token
from hsmd.pb.v1 import proposals_pb2 as pb
from hsmd.store import SealBroken
from hsmd.store import keys as key_rows
from hsmd.store.keys import Key, KeyVersion
from hsmd.ukey import Candidate
from tests.house import House, furnished
from tests.hsm_parts import connected
from tests.softhsm import make_token
from tests.ukeys import SoftUkey

HOUR = 60 * 60 * 1000
KEY = "0d0466b0-e727-4d9c-b35d-f84bb474a37f"


@dataclass
class Council:
    """Administrators of a house, of whom two decide."""

    house: House
    ids: dict[str, str] = field(default_factory=dict)
    soft: dict[str, SoftUkey] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)  # of records, with their resources

    def enrol(self, *names: str, role: str = "administrator") -> None:
        with self.house.core.store.write() as tx:
            for name in names:
                self.soft[name] = SoftUkey()
                key = self.soft[name]
                candidate = Candidate(name, role, "", key.public_key, b"", key.opens())
                self.ids[name] = ukeys.enrol(self.house.call(), tx, candidate, "ceremony").id

    def settled(self) -> None:
        """Three administrators and operators, of whom two are needed."""
        self.enrol("alice", "bob", "carl")
        self.enrol("olga", "oleg", "otto", role="operator")
        with self.house.core.store.write() as tx:
            ukeys.set_quorum(tx, ukeys.Quorum(2, 2))

    def call(self, name: str) -> Call:
        core = self.house.core
        core.refresh()
        caller = Caller("ukey", user_id=self.ids[name], user_name=name, roles=frozenset({"administrator"}))
        call = Call(
            core,
            caller,
            lambda: self.events.append(("main", call.resource)),
            begin=lambda event: self.events.append((event, call.resource)),
        )
        return call

    def propose(self, name: str, operation: str, /, **parameters: object) -> Shown:
        return proposals.propose(self.call(name), operation, json.dumps(parameters))

    def approve(self, name: str, shown: Shown) -> Shown:
        signed = proposals.statement(shown.proposal, shown.instance)
        return proposals.approve(self.call(name), shown.proposal.id, self.soft[name].sign(signed))

    def decided(self, operation: str, /, **parameters: object) -> Shown:
        """Alice proposes, and can't do it alone; Bob approves, too."""
        shown = self.propose("alice", operation, **parameters)
        self.approve("alice", shown)
        if shown.needed:
            self.refused(QUORUM_MISSING, "alice", shown)
        return self.approve("bob", shown)

    def execute(self, name: str, shown: Shown) -> Shown:
        return proposals.execute(self.call(name), shown.proposal.id)

    def refused(self, fault: Fault, name: str, shown: Shown) -> str:
        with pytest.raises(Error) as caught:
            self.execute(name, shown)
        assert caught.value.fault is fault, caught.value
        return caught.value.message

    def key(self, state: int = access.ENABLED, **more: object) -> Key:
        """A key of some tenant's, straight into the store."""
        key = Key(
            id=KEY,
            project_id="2" * 32,
            domain_id="3" * 32,
            alias="k",
            description="",
            spec="AES_256",
            usage="ENCRYPT_DECRYPT",
            origin="external",
            state=state,
            is_default=False,
            created=self.house.now,
            deletion_date=None,
            enterprise_project_id="0",
            current_version=1,
        )
        version = KeyVersion(KEY, 1, "AES_256", b"wrapped", "hsmd-root-1", 1, None)
        with self.house.core.store.write() as tx:
            key_rows.insert_key(tx, replace(key, **more), version)  # type: ignore[arg-type]  # fields of a key
        return key

    def stored(self) -> Key:
        with self.house.core.store.read() as tx:
            found = key_rows.get_key(tx, KEY)
        assert found is not None
        return found


@pytest.fixture
def council(tmp_path: Path) -> Iterator[Council]:
    with furnished(tmp_path) as house:
        made = Council(house)
        made.settled()
        yield made


def listed(council: Council, *, ended: bool) -> list[tuple[str, str]]:
    found = proposals.list_proposals(council.call("alice"), ended=ended, limit=200, offset=0)
    return [(each.proposal.id, each.proposal.state) for each in found]


# Time


def test_a_proposal_expires(council: Council) -> None:
    council.key()
    made = council.decided("freeze-key", key_id=KEY, reason="")
    assert made.proposal.expires == council.house.now + 24 * HOUR
    council.house.now += 24 * HOUR
    assert "expired" in council.refused(PROPOSAL_REFUSED, "alice", made)
    with pytest.raises(Error):
        council.approve("carl", made)
    with pytest.raises(Error):
        proposals.withdraw(council.call("alice"), made.proposal.id)
    assert listed(council, ended=False) == []
    assert listed(council, ended=True) == [(made.proposal.id, "expired")]
    assert proposals.show(council.call("alice"), made.proposal.id).proposal.state == "expired"
    other = council.propose("alice", "freeze-key", key_id=KEY, reason="")  # and now it is written down
    assert council.house.sql("SELECT id FROM proposals WHERE state = 'expired'") == [(made.proposal.id,)]
    assert listed(council, ended=True) == [(made.proposal.id, "expired")]
    assert listed(council, ended=False) == [(other.proposal.id, "open")]
    assert council.stored().state == access.ENABLED


def test_it_is_carried_out_up_to_its_last_moment(council: Council) -> None:
    council.key()
    made = council.decided("freeze-key", key_id=KEY, reason="")
    council.house.now += 24 * HOUR - 1
    assert council.execute("bob", made).proposal.state == "executed"
    assert council.stored().state == access.FROZEN


def test_expired_ones_make_room(council: Council) -> None:
    council.key()
    for _ in range(proposals.MOST_OPEN_EACH):
        council.propose("alice", "export-audit", reason="")
    with pytest.raises(Error):
        council.propose("alice", "export-audit", reason="")
    council.house.now += 24 * HOUR
    council.propose("alice", "export-audit", reason="")
    assert len(listed(council, ended=False)) == 1
    assert len(listed(council, ended=True)) == proposals.MOST_OPEN_EACH


def test_nothing_is_carried_out_before_the_ceremony_has_settled_a_quorum(tmp_path: Path) -> None:
    with furnished(tmp_path) as house:
        council = Council(house)
        council.enrol("alice", "bob")
        council.key()
        made = council.decided("freeze-key", key_id=KEY, reason="")
        assert made.needed == 0
        assert "not settled" in council.refused(PROPOSAL_REFUSED, "alice", made)
        assert council.stored().state == access.ENABLED


def test_a_lower_quorum_counts_for_what_waits_and_so_does_a_higher_one(council: Council) -> None:
    council.key()
    waiting = council.decided("freeze-key", key_id=KEY, reason="")
    council.execute("alice", council.decided("set-quorum", administrators=3, operators=2))
    council.refused(QUORUM_MISSING, "alice", waiting)
    council.approve("carl", waiting)
    assert council.execute("alice", waiting).proposal.state == "executed"


# What is more than one transaction


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> "Slow":
    """The rotation of the root key, which here does what the test says."""
    made = Slow()
    steps = replace(proposals.OPERATIONS["rotate-root-key"], finish=made.finish)
    monkeypatch.setattr(proposals, "OPERATIONS", {**proposals.OPERATIONS, "rotate-root-key": steps})
    return made


@dataclass
class Slow:
    """What is cut short as often as `failures` says."""

    failures: int = 0
    calls: int = 0
    running: int = 0
    most: int = 0
    go_on: Event = field(default_factory=Event)

    def finish(self, call: Call, decided: Decided) -> Outcome:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.go_on.wait(0.2)
        self.running -= 1
        if self.calls <= self.failures:
            raise Error(UNAVAILABLE, reason="the HSM is away")
        with call.change():
            call.resource = f"done by {decided.by}"
        return Outcome(result={"calls": self.calls})


def test_what_was_begun_and_cut_short_is_completed_later(council: Council, slow: Slow) -> None:
    slow.failures = 2
    made = council.decided("rotate-root-key", label="hsmd-root-2")
    council.events.clear()
    council.refused(UNAVAILABLE, "alice", made)
    assert council.events == [("beginProposal", made.proposal.id)]
    assert listed(council, ended=False) == [(made.proposal.id, "begun")]
    council.house.now += 48 * HOUR  # what is decided doesn't expire
    council.refused(UNAVAILABLE, "carl", made)
    council.events.clear()
    done = council.execute("carl", made)
    assert (done.proposal.state, done.proposal.result) == ("executed", '{"calls": 3}')
    assert council.events == [("rotateRootKey", "done by alice, bob"), ("main", made.proposal.id)]
    council.refused(PROPOSAL_REFUSED, "alice", made)
    assert slow.calls == 3


def test_what_is_begun_and_never_comes_to_its_end_is_withdrawn(council: Council, slow: Slow) -> None:
    slow.failures = 9
    made = council.decided("rotate-root-key", label="hsmd-root-2")
    council.refused(UNAVAILABLE, "bob", made)
    with pytest.raises(Error):
        proposals.withdraw(council.call("bob"), made.proposal.id)
    assert proposals.withdraw(council.call("alice"), made.proposal.id).proposal.state == "withdrawn"
    council.refused(PROPOSAL_REFUSED, "alice", made)
    assert slow.calls == 1
    assert listed(council, ended=False) == []


def test_what_is_begun_is_not_made_void_by_who_looked_before(council: Council, slow: Slow) -> None:
    slow.failures = 1
    made = council.decided("rotate-root-key", label="hsmd-root-2")

    def look() -> None:
        with proposals._voiding(council.call("carl"), made.proposal.id):
            council.refused(UNAVAILABLE, "alice", made)
            raise proposals._Changed("it was another one for a moment")

    with pytest.raises(Error, match="begun"):
        look()
    assert council.execute("alice", made).proposal.state == "executed"


def test_a_backup_that_this_store_has_no_way_for_is_not_proposed(council: Council, tmp_path: Path) -> None:
    place = Place(tmp_path, "postgresql://localhost/hsmd", list)
    council.house.core.backups = Workshop(place)
    with pytest.raises(Error, match="its own means") as caught:
        council.propose("alice", "create-backup", reason="")
    assert caught.value.fault is BACKUP_REFUSED
    assert listed(council, ended=False) == []


def test_what_is_begun_needs_its_quorum_still(council: Council, slow: Slow) -> None:
    slow.failures = 1
    made = council.decided("rotate-root-key", label="hsmd-root-2")
    council.refused(UNAVAILABLE, "alice", made)
    with council.house.core.store.write() as tx:
        ukeys.revoke(council.house.call(), tx, council.ids["bob"], "test")
    council.refused(QUORUM_MISSING, "alice", made)
    council.approve("carl", made)
    assert council.execute("alice", made).proposal.state == "executed"


def test_two_completing_at_once_do_it_once(council: Council, slow: Slow) -> None:
    slow.failures = 1
    made = council.decided("rotate-root-key", label="hsmd-root-2")
    council.refused(UNAVAILABLE, "alice", made)

    def attempt(name: str) -> str:
        with council.house.token.within(20.0):
            try:
                return council.execute(name, made).proposal.state
            except Error as error:
                return error.fault.code

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(attempt, ["alice", "bob", "carl"]))
    assert sorted(found) == ["IAM.0104", "IAM.0104", "executed"]
    assert (slow.calls, slow.most) == (2, 1)


def test_a_begun_one_whose_row_is_put_back_is_not_open(council: Council, slow: Slow) -> None:
    slow.failures = 1
    made = council.decided("rotate-root-key", label="hsmd-root-2")
    (before,) = council.house.sql("SELECT state, seal FROM proposals")
    council.refused(UNAVAILABLE, "alice", made)
    council.house.sql("UPDATE proposals SET state = ?, seal = ?", *before)
    with pytest.raises(SealBroken):
        council.execute("alice", made)
    with pytest.raises(SealBroken):
        listed(council, ended=False)


def test_an_older_list_that_was_put_back_is_noticed(council: Council) -> None:
    council.key()
    made = council.decided("freeze-key", key_id=KEY, reason="")
    (proposal,) = council.house.sql("SELECT state, seal FROM proposals")
    look = "SELECT document, seal FROM service_settings WHERE name = 'proposals'"
    (setting,) = council.house.sql(look)
    council.execute("alice", made)
    council.house.sql(
        "UPDATE proposals SET state = ?, ended = NULL, ended_by = NULL, result = NULL, seal = ?", *proposal
    )
    put = "UPDATE service_settings SET document = ?, seal = ? WHERE name = 'proposals'"
    council.house.sql(put, *setting)
    with council.house.core.store.write() as tx:  # its object is as it was, too
        key_rows.update_key(tx, replace(council.stored(), state=access.ENABLED, frozen_from=None))
    for act in (council.execute, lambda name, shown: council.approve(name, shown)):
        with pytest.raises(SealBroken):
            act("carl", made)
    assert council.stored().state == access.ENABLED


def test_a_proposal_that_was_taken_away_is_missed(council: Council) -> None:
    made = council.propose("alice", "export-audit", reason="")
    council.house.sql("DELETE FROM proposals")
    with pytest.raises(SealBroken):
        proposals.show(council.call("alice"), made.proposal.id)
    with pytest.raises(SealBroken):
        council.propose("alice", "export-audit", reason="")


# The seal


def _candidate(council: Council, name: str, role: str) -> dict[str, str]:
    """Somebody new, who shows the UKey."""
    key = SoftUkey()
    begun = ukeys.begin_enrolment(council.call("alice"), key.public_key, key.opens())
    context = ukey.possession_context(begun.instance, begun.nonce)
    opened = ukey.open_box(key.public_key, begun.box, context, ukey.SoftOpener(key._key))
    made = Candidate(name, role, "", key.public_key, b"", key.opens(), begun.nonce, opened)
    return replace(made, signature=key.sign(made.statement(begun.instance))).to_values()


def _holders(path: Path) -> tuple[list[str], int]:
    seal = sealfile.read(path)
    return sorted(each.holder.name for each in seal.shares), seal.threshold


def test_the_seal_follows_what_is_decided_about_operators(council: Council, tmp_path: Path) -> None:
    path = tmp_path / "seal" / "seal.json"
    path.parent.mkdir()
    pins = {sealfile.HSM: "1234"}
    done = sealing.Outcome.DONE
    council.house.core.seal = Keeper(path, pins, lambda *_: done, lambda: done)
    orla = _candidate(council, "orla", "operator")
    council.execute("alice", council.decided("enrol-ukey", **orla))
    assert _holders(path) == (["oleg", "olga", "orla", "otto"], 2)
    council.execute("alice", council.decided("set-quorum", administrators=2, operators=3))
    assert _holders(path) == (["oleg", "olga", "orla", "otto"], 3)
    council.execute("alice", council.decided("set-quorum", administrators=2, operators=2))
    made = council.decided("revoke-ukey", ukey_id=council.ids["oleg"], reason="")
    before = path.read_bytes()
    path.parent.rename(tmp_path / "away")  # the seal can't be made: so the change must not be, either
    council.refused(SEAL_REFUSED, "alice", made)
    assert listed(council, ended=False) == [(made.proposal.id, "open")]
    with council.house.core.store.read() as tx:
        assert len(ukeys.registry_in(tx).living("operator")) == 4
    (tmp_path / "away").rename(path.parent)
    assert path.read_bytes() == before
    council.execute("alice", made)
    assert _holders(path) == (["olga", "orla", "otto"], 2)
    council.execute("alice", council.decided("enrol-ukey", **_candidate(council, "aude", "auditor")))
    assert _holders(path) == (["olga", "orla", "otto"], 2)


def test_a_new_pin_is_not_lost_when_it_cannot_be_sealed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, or the folder gone, just when the HSM has taken it; and then it is done once more."""
    path, dev = tmp_path / "seal" / "seal.json", make_token(tmp_path)
    path.parent.mkdir()
    with furnished(tmp_path, dev) as house:
        council = Council(house)
        council.settled()
        done, pins = sealing.Outcome.DONE, {"": ""}

        def announced(_seal_id: str, told: bytes) -> sealing.Outcome:
            pins.update(json.loads(told))
            return done

        house.core.seal = Keeper(path, {sealfile.HSM: dev.pin}, announced, lambda: done)
        change = type(house.token).change_pin

        def then_the_disk_is_full(token: Token, old: str, new: str) -> None:
            change(token, old, new)
            path.parent.rename(tmp_path / "away")

        monkeypatch.setattr(type(house.token), "change_pin", then_the_disk_is_full)
        made = council.decided("change-pin", token="hsm", reason="")
        council.refused(SEAL_REFUSED, "alice", made)
        monkeypatch.undo()
        (tmp_path / "away").rename(path.parent)
        council.execute("alice", council.decided("set-quorum", administrators=2, operators=3))
        assert sealfile.read(path).names == ("hsm", "hsm:next")
        assert council.execute("alice", made).proposal.state == "executed"
        assert sealfile.read(path).names == ("hsm",)
    with connected(replace(dev, pin=pins["hsm"])) as token:
        assert token.status().state == "connected"


def test_who_does_not_show_the_ukey_is_not_proposed(council: Council) -> None:
    good, other = _candidate(council, "zoe", "operator"), _candidate(council, "yve", "operator")
    for wrong in (
        {"name": "yve"},
        {"role": "administrator"},
        {"role": "king"},
        {"signature": other["signature"]},
        {"opened": other["opened"]},
        {"opened": ""},
        {"opens": ""},
        {"nonce": other["nonce"]},
        {"public_key": other["public_key"]},
        {"public_key": "AAAA"},
        {"certificate": "AAAA"},
        {"signature": "-"},
        {"name": "zo e"},
    ):
        with pytest.raises(Error) as caught:
            council.propose("alice", "enrol-ukey", **{**good, **wrong})
        assert caught.value.fault is PARAMETER_INVALID, wrong
    council.house.now += 25 * HOUR
    with pytest.raises(Error) as caught:  # it is of yesterday
        council.propose("alice", "enrol-ukey", **good)
    assert caught.value.fault is PARAMETER_INVALID
    assert listed(council, ended=False) == []


# Frozen keys as time passes


def test_imported_material_does_not_expire_while_it_is_frozen(council: Council) -> None:
    council.key(expires=council.house.now + HOUR)
    council.execute("alice", council.decided("freeze-key", key_id=KEY, reason=""))
    council.house.now += 2 * HOUR
    assert imports.expire(council.house.call(), KEY) is False
    material = "SELECT wrapped FROM key_versions"
    assert council.house.sql(material) == [(b"wrapped",)]
    council.execute("alice", council.decided("unfreeze-key", key_id=KEY, reason=""))
    assert council.stored().state == access.PENDING_IMPORT
    assert imports.expire(council.house.call(), KEY) is True
    assert council.house.sql(material) == [(None,)]


@pytest.mark.parametrize("state", [access.PENDING_IMPORT, access.DISABLED])
def test_a_key_in_other_states_can_be_frozen_and_is_changed_by_nobody(council: Council, state: int) -> None:
    key = council.key(state=state)
    council.execute("alice", council.decided("freeze-key", key_id=KEY, reason=""))
    caller = Caller("certificate", domain_id=key.domain_id, project_id=key.project_id)
    call = Call(council.house.core, caller, lambda: None)
    with council.house.core.store.read() as tx, pytest.raises(Error) as caught:
        access.key_for_change(call, tx, KEY)
    assert caught.value.fault is KEY_STATE_REFUSED
    council.execute("alice", council.decided("unfreeze-key", key_id=KEY, reason=""))
    assert council.stored().state == state
    assert council.stored().frozen_from is None


def test_only_ukeys_come_to_a_key_past_its_tenant(council: Council) -> None:
    key = council.key()
    for kind in ("certificate", "system", "peer"):
        caller = Caller(kind, domain_id=key.domain_id, project_id=key.project_id)
        with council.house.core.store.read() as tx, pytest.raises(Error):
            access.key_of_quorum(Call(council.house.core, caller, lambda: None), tx, KEY)


# The table


@pytest.mark.parametrize("name", operations.OPERATIONS)
def test_every_operation_says_what_it_does(name: str) -> None:
    sample: dict[str, dict[str, object]] = {
        "enrol-ukey": {
            "name": "zoe",
            "role": "auditor",
            "serial": "17",
            "public_key": "AAAA",
            "certificate": "",
            "opens": "",
            "nonce": "1-" + "0" * 32,
            "opened": "",
            "signature": "AAAA",
        },
        "revoke-ukey": {"ukey_id": "0" * 32, "reason": "lost"},
        "set-quorum": {"administrators": 3, "operators": 2},
        "raise-limit": {"project_id": "0" * 32, "name": "requests", "value": 0},
        "rotate-root-key": {"label": "hsmd-root-2"},
        "destroy-root-key": {"label": "hsmd-root-1", "lose_pins": True},
        "destroy-hsm": {"serial": "17", "reason": ""},
        "change-pin": {"token": "hsm", "reason": ""},
    }
    given = sample.get(name, {"reason": "why"} | ({"key_id": KEY} if "key" in name else {}))
    parameters = operations.checked(name, given)
    told = operations.words(name, parameters)
    assert told.endswith(".")
    for each, value in given.items():
        if each in ("name", "role", "serial", "key_id", "project_id", "label") or value == "why":
            assert str(value) in told
    values = operations.statement_values(
        proposal="0" * 32, name=name, parameters=parameters, facts={}, instance="1" * 32, expires=5
    )
    signed = ukey.statement(ukey.Purpose.APPROVE, values)
    for each in given:
        others = {**given, each: "changed"}
        changed = {**values, "parameters": others}
        assert ukey.statement(ukey.Purpose.APPROVE, changed) != signed


def test_nobody_revokes_the_last_that_are_needed_by_another_way(council: Council) -> None:
    with council.house.core.store.write() as tx:
        ukeys.revoke(council.house.call(), tx, council.ids["carl"], "test")
    with pytest.raises(Error) as caught:
        council.propose("alice", "revoke-ukey", ukey_id=council.ids["bob"], reason="")
    assert caught.value.fault is IAM_PROTECTED


@pytest.mark.parametrize(
    "shown",
    [
        {"operation": "melt-key"},  # of a newer daemon, perhaps
        {"parameters": "{}"},
        {"parameters": json.dumps({"key_id": KEY, "reason": "", "also": "delete it"})},
        {"parameters": f'{{"key_id": "{KEY}", "reason": "", "key_id": "{KEY[::-1]}"}}'},
        {"object": '{"alias": 1.5}'},
        {"object": '{"alias": {"deep": "er"}}'},
        {"id": "1" * 32},  # not the one that was asked for
        {"instance": "2" * 32},  # not the daemon that has let us in
    ],
)
def test_hsmctl_has_nothing_signed_that_it_does_not_understand(shown: dict[str, str]) -> None:
    document = json.dumps({"key_id": KEY, "reason": ""})
    fields = {"id": "0" * 32, "operation": "freeze-key", "parameters": document, "object": "{}"}
    good = json_format.ParseDict({**fields, "instance": "1" * 32}, pb.Proposal())
    values = signable.statement_values(good, "0" * 32, "1" * 32)
    assert values["parameters"] == {"key_id": KEY, "reason": ""}
    json_format.ParseDict(shown, good)
    with pytest.raises(ukey.UKeyError, match="signed"):
        signable.statement_values(good, "0" * 32, "1" * 32)
