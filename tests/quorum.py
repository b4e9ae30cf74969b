"""Decisions of administrators' UKeys, for tests of what needs a quorum.

    made = decide(crew, [alice, bob], "freeze-key", key_id=key, reason="")   # alice proposes, both approve
    made = decide(crew, [alice, bob], ..., carry_out=False)                   # all but carrying it out

python -m tests.quorum CONFIG execute PROPOSAL_ID UKEY_ID   carry it out in this process, without a daemon
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hsmd import config, operations, ukey
from hsmd.caller import Caller
from hsmd.client.admin import AdminClient
from hsmd.daemon import wiring
from hsmd.domain import proposals
from hsmd.domain.core import Call
from hsmd.pb.v1 import proposals_pb2 as pb
from hsmd.pb.v1.proposals_pb2_grpc import ProposalsStub
from tests.ukeys import Crew, Holder


def stub(client: AdminClient) -> ProposalsStub:
    return client.stub(ProposalsStub)


def propose(client: AdminClient, operation: str, /, **parameters: Any) -> pb.Proposal:
    request = pb.ProposeRequest(operation=operation, parameters=json.dumps(parameters))
    made: pb.Proposal = stub(client).Propose(request).proposal
    return made


def show(client: AdminClient, proposal_id: str) -> pb.Proposal:
    found: pb.Proposal = stub(client).ShowProposal(pb.ShowProposalRequest(proposal_id=proposal_id)).proposal
    return found


def signed(holder: Holder, proposal: pb.Proposal) -> bytes:
    """The holder's signature of it: of a key in memory."""
    assert holder.soft is not None
    values = operations.statement_values(
        proposal=proposal.id,
        name=proposal.operation,
        parameters=operations.read(proposal.operation, proposal.parameters),
        facts=operations.read_facts(proposal.object),
        instance=proposal.instance,
        expires=proposal.expires,
    )
    return holder.soft.sign(ukey.statement(ukey.Purpose.APPROVE, values))


def approve(client: AdminClient, holder: Holder, proposal: pb.Proposal) -> pb.Proposal:
    request = pb.ApproveRequest(proposal_id=proposal.id, signature=signed(holder, proposal))
    made: pb.Proposal = stub(client).Approve(request).proposal
    return made


def execute(client: AdminClient, proposal_id: str) -> pb.Proposal:
    done: pb.Proposal = stub(client).Execute(pb.ExecuteRequest(proposal_id=proposal_id)).proposal
    return done


def decide(
    crew: Crew, deciders: Sequence[Holder], operation: str, /, *, carry_out: bool = True, **parameters: Any
) -> pb.Proposal:
    """The first one proposes, all approve, the first one carries it out."""
    with crew.client(deciders[0]) as client:
        made = propose(client, operation, **parameters)
    for holder in deciders:
        with crew.client(holder) as client:
            made = approve(client, holder, made)
    if carry_out:
        with crew.client(deciders[0]) as client:
            made = execute(client, made.id)
    return made


def _main(path: str, _action: str, proposal_id: str, ukey_id: str) -> None:
    settings = config.load(Path(path), os.environ)
    core = wiring.open_core(settings, wiring.read_pins(settings))
    core.audit_directory = settings.audit.directory
    core.token.connect()
    try:
        caller = Caller("ukey", user_id=ukey_id, roles=frozenset({"administrator"}))
        proposals.execute(Call(core, caller, lambda: None), proposal_id)
    finally:
        core.store.close()
        core.token.close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
