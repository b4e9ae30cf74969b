"""Servicer of proposals.proto."""

from hsmd.api.convert import timestamp
from hsmd.domain import exports, proposals
from hsmd.domain.core import Call
from hsmd.domain.proposals import Shown
from hsmd.pb.v1 import proposals_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Proposals"]
_PAGE = 100


def propose(call: Call, request: pb.ProposeRequest) -> pb.ProposeResponse:
    """It waits for approvals."""
    shown = proposals.propose(call, request.operation, request.parameters)
    return pb.ProposeResponse(proposal=_proposal(shown))


def list_proposals(call: Call, request: pb.ListProposalsRequest) -> pb.ListProposalsResponse:
    """Open or ended ones."""
    found = proposals.list_proposals(
        call, ended=request.ended, limit=request.limit or _PAGE, offset=request.offset
    )
    return pb.ListProposalsResponse(proposals=[_proposal(each) for each in found])


def show_proposal(call: Call, request: pb.ShowProposalRequest) -> pb.ShowProposalResponse:
    """One of them."""
    return pb.ShowProposalResponse(proposal=_proposal(proposals.show(call, request.proposal_id)))


def approve(call: Call, request: pb.ApproveRequest) -> pb.ApproveResponse:
    """One approval more."""
    shown = proposals.approve(call, request.proposal_id, request.signature)
    return pb.ApproveResponse(proposal=_proposal(shown))


def withdraw(call: Call, request: pb.WithdrawRequest) -> pb.WithdrawResponse:
    """It is no more."""
    return pb.WithdrawResponse(proposal=_proposal(proposals.withdraw(call, request.proposal_id)))


def execute(call: Call, request: pb.ExecuteRequest) -> pb.ExecuteResponse:
    """It is done."""
    return pb.ExecuteResponse(proposal=_proposal(proposals.execute(call, request.proposal_id)))


def read_export(call: Call, request: pb.ReadExportRequest) -> pb.ReadExportResponse:
    """A part of the audit log."""
    data = exports.read(call, request.proposal_id, request.file, request.offset)
    return pb.ReadExportResponse(data=data)


def _proposal(shown: Shown) -> pb.Proposal:
    row = shown.proposal
    approvals = [
        pb.Approval(
            ukey_id=ukey.id, ukey=ukey.name, signature=each.signature, created=timestamp(each.created)
        )
        for ukey, each in shown.approvals
    ]
    return pb.Proposal(
        id=row.id,
        operation=row.operation,
        parameters=row.parameters,
        object=row.facts,
        instance=shown.instance,
        expires=row.expires,
        state=row.state,
        proposed_by=shown.proposer,
        created=timestamp(row.created),
        approvals=approvals,
        needed=shown.needed,
        ended=timestamp(row.ended),
        result=row.result or "",
    )
