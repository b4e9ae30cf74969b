"""hsmctl propose, proposals, approve, execute, withdraw: what administrators' UKeys decide together.

What will happen is put into words here, from the very values that the UKey signs: whoever is between may
hide a proposal, but not have another one approved.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hsmd import operations
from hsmd.cli.ctl import output
from hsmd.cli.ctl.admin import administration
from hsmd.cli.ctl.context import Context, Leaf, example, pass_context
from hsmd.cli.ctl.newfile import new_file
from hsmd.operations import OPERATIONS, OperationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hsmd.client.admin import AdminClient
    from hsmd.operations import Parameters, Value
    from hsmd.pb.v1.proposals_pb2 import Proposal
    from hsmd.pb.v1.proposals_pb2_grpc import ProposalsStub

_SHORT = 120  # characters of a value that are shown: keys and certificates are in the words
_EXPORT = "export-audit"
_ID = click.argument("proposal_id", metavar="ID")
_YES = click.option("--yes", is_flag=True, help="Don't ask.")


def _list_of_operations() -> str:
    rows = [
        " ".join((name, *(_usage(each, row.default) for each, row in operation.parameters.items())))
        for name, operation in OPERATIONS.items()
    ]
    return "\n".join(("\b", "Operations:", *(f"  {row}" for row in rows)))


def _usage(name: str, default: Value | None) -> str:
    return name.upper() if default is None else f"[{name.upper()}]"


@click.command("propose", cls=Leaf, epilog=_list_of_operations())
@click.argument("operation", type=click.Choice(list(OPERATIONS)), metavar="OPERATION")
@click.argument("given", nargs=-1, metavar="[VALUE | NAME=VALUE]...")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Parameters from a JSON file, such as `hsmctl ukey request` writes.",
)
@pass_context
def propose(context: Context, operation: str, given: tuple[str, ...], source: Path | None) -> None:
    """Propose an operation that needs a quorum, and print the proposal's id.

    Nothing happens before enough administrators have approved it (`hsmctl approve`) and somebody carries it
    out (`hsmctl execute`). Values are taken in the order of the operation's parameters, or by their names.
    """
    try:
        parameters = _parameters(operation, given, source)
    except OperationError as error:
        raise click.UsageError(str(error)) from error
    with administration(context) as (_, client):
        from hsmd.pb.v1 import proposals_pb2 as pb

        request = pb.ProposeRequest(operation=operation, parameters=json.dumps(dict(parameters)))
        made = _stub(client).Propose(request).proposal
    output.say(operations.words(operation, parameters))
    if context.json:
        output.print_json(_document(made))
    else:
        click.echo(made.id)


@click.command("proposals", cls=Leaf, epilog=example("hsmctl proposals", "hsmctl proposals --ended"))
@click.argument("proposal_id", metavar="[ID]", required=False)
@click.option("--ended", is_flag=True, help="Those that have ended, the newest first.")
@click.option("--limit", type=click.IntRange(1, 200), default=100, show_default=True, help="How many.")
@click.option("--offset", type=click.IntRange(0), default=0, help="How many to leave out before.")
@pass_context
def proposals(context: Context, proposal_id: str | None, *, ended: bool, limit: int, offset: int) -> None:
    """The proposals that wait, the oldest first; or the one of this ID, whole."""
    with administration(context) as (_, client):
        from hsmd.pb.v1 import proposals_pb2 as pb

        if proposal_id is not None:
            _print(context, _shown(client, proposal_id))
            return
        request = pb.ListProposalsRequest(ended=ended, limit=limit, offset=offset)
        found = _stub(client).ListProposals(request).proposals
    if context.json:
        output.print_json({"proposals": [_document(each) for each in found]})
        return
    output.print_table(
        ("Id", "State", "Approvals", "By", "Ends", "What"),
        [
            (
                each.id,
                each.state,
                f"{len(each.approvals)} of {each.needed}",
                each.proposed_by,
                _time(each.expires),
                _words(each),
            )
            for each in found
        ],
    )


@click.command("approve", cls=Leaf, epilog=example("hsmctl approve 5f0c6b1e9a3d4e278b6a1c0d9e8f7a6b"))
@_ID
@_YES
@pass_context
def approve(context: Context, proposal_id: str, *, yes: bool) -> None:
    """Have the UKey sign that the proposal of this ID is to be carried out.

    What would happen is shown before.
    """
    with administration(context) as (token, client):
        from hsmd import ukey
        from hsmd.pb.v1 import proposals_pb2 as pb

        found = _shown(client, proposal_id)
        values = statement_values(found, proposal_id, client.instance)
        _explain(found)
        if not yes:
            click.confirm("Have the UKey sign this?", abort=True, err=True)
        signature = token.sign(ukey.statement(ukey.Purpose.APPROVE, values))
        request = pb.ApproveRequest(proposal_id=proposal_id, signature=signature)
        approved = _stub(client).Approve(request).proposal
    if context.json:
        output.print_json(_document(approved))
    else:
        output.say(f"Approved: {len(approved.approvals)} of {approved.needed} approvals.")


@click.command("execute", cls=Leaf, epilog=example("hsmctl execute 5f0c6b1e9a3d4e278b6a1c0d9e8f7a6b"))
@_ID
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"The folder that {_EXPORT} writes to; again within a day for the same export.",
)
@_YES
@pass_context
def execute(context: Context, proposal_id: str, out: Path | None, *, yes: bool) -> None:
    """Carry out the proposal of this ID, once enough administrators have approved it."""
    with administration(context) as (_, client):
        from hsmd.pb.v1 import proposals_pb2 as pb

        found = _shown(client, proposal_id)
        exports = found.operation == _EXPORT
        if exports is (out is None):
            raise click.UsageError(f"--out is needed for {_EXPORT}, and for nothing else.")
        if not (exports and found.state == "executed"):
            _explain(found)
            if not yes:
                click.confirm("Carry it out?", abort=True, err=True)
            found = _stub(client).Execute(pb.ExecuteRequest(proposal_id=proposal_id)).proposal
        if out is not None:
            _download(client, found, out)
    if context.json:
        output.print_json(_document(found))
    else:
        output.say(f"It is {found.state}.")
        output.print_fields(_result(found).items())


@click.command("withdraw", cls=Leaf, epilog=example("hsmctl withdraw 5f0c6b1e9a3d4e278b6a1c0d9e8f7a6b"))
@_ID
@pass_context
def withdraw(context: Context, proposal_id: str) -> None:
    """Take back the own proposal of this ID."""
    with administration(context) as (_, client):
        from hsmd.pb.v1 import proposals_pb2 as pb

        found = _stub(client).Withdraw(pb.WithdrawRequest(proposal_id=proposal_id)).proposal
    if context.json:
        output.print_json(_document(found))
    else:
        output.say("It is withdrawn.")


COMMANDS = (propose, proposals, approve, execute, withdraw)


def _stub(client: AdminClient) -> ProposalsStub:
    from hsmd.pb.v1.proposals_pb2_grpc import ProposalsStub

    return client.stub(ProposalsStub)


def _shown(client: AdminClient, proposal_id: str) -> Proposal:
    from hsmd.pb.v1 import proposals_pb2 as pb

    found: Proposal = _stub(client).ShowProposal(pb.ShowProposalRequest(proposal_id=proposal_id)).proposal
    return found


def _parameters(operation: str, given: Sequence[str], source: Path | None) -> Parameters:
    """What was typed, and what is in the file, with defaults for the rest. Raises OperationError."""
    due = OPERATIONS[operation].parameters
    found: dict[str, Any] = {}
    if source is not None:
        found |= operations.read_object(source.read_text(encoding="utf-8"))
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in due:
            name, value = next((each for each in due if each not in found), ""), text
        if name not in due or name in found:
            raise OperationError(f"{operation}: {text!r} is more than it takes")
        found[name] = _value(value, due[name].check)
    for name, parameter in due.items():
        if parameter.default is not None:
            found.setdefault(name, parameter.default)
    return operations.checked(operation, found)


def _value(text: str, check: Any) -> Value:
    """The text as what is due: itself, a number, or true or false."""
    candidates: list[Value] = [text]
    if text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 16:
        candidates.append(int(text))
    if text in ("true", "false"):
        candidates.append(text == "true")
    return next((each for each in candidates if not check(each)), text)


def statement_values(found: Proposal, proposal_id: str, instance: str) -> Mapping[str, object]:
    """What the UKey signs. Raises UKeyError for a proposal that can't be put into words, or is another's."""
    from hsmd.ukey import UKeyError

    try:
        parameters = operations.read(found.operation, found.parameters)
        facts = operations.read_facts(found.object)
    except OperationError as error:
        raise UKeyError(f"the proposal is not understood, and so not signed: {error}") from error
    if (found.id, found.instance) != (proposal_id, instance):
        raise UKeyError("the daemon shows another proposal than the one asked for; nothing was signed")
    return operations.statement_values(
        proposal=found.id,
        name=found.operation,
        parameters=parameters,
        facts=facts,
        instance=found.instance,
        expires=found.expires,
    )


def _words(found: Proposal) -> str:
    try:
        return operations.words(found.operation, operations.read(found.operation, found.parameters))
    except OperationError:
        return f"{found.operation}: this hsmctl does not know it"


def _explain(found: Proposal) -> None:
    """What will happen, to what, on standard error: standard output is for results."""
    output.say(_words(found))
    for title, document in (("Parameters", found.parameters), ("It is now", found.object)):
        values = _shortened(json.loads(document))
        if values:
            output.say(f"{title}:")
        for name, value in values.items():
            output.say(f"  {name}: {value}")
    output.say(f"Proposed by {found.proposed_by}, until {_time(found.expires)}, at {found.instance}.")


def _print(context: Context, found: Proposal) -> None:
    if context.json:
        output.print_json(_document(found))
        return
    approved = ", ".join(each.ukey for each in found.approvals) or "nobody"
    output.print_fields(
        [
            ("id", found.id),
            ("what", _words(found)),
            *_shortened(json.loads(found.parameters)).items(),
            *((f"it is: {name}", value) for name, value in _shortened(json.loads(found.object)).items()),
            ("state", found.state),
            ("proposed by", found.proposed_by),
            ("ends", _time(found.expires)),
            ("approved by", f"{approved} ({len(found.approvals)} of {found.needed})"),
            *_result(found).items(),
        ]
    )


def _document(found: Proposal) -> dict[str, Any]:
    made = output.document(found)
    return made | {
        "words": _words(found),
        **{name: json.loads(made[name]) for name in ("parameters", "object")},
        "result": json.loads(made["result"]) if made["result"] else None,
    }


def _result(found: Proposal) -> dict[str, object]:
    result: dict[str, object] = json.loads(found.result) if found.result else {}
    return {name: value for name, value in result.items() if isinstance(value, str | int)}


def _shortened(values: Mapping[str, object]) -> dict[str, object]:
    return {
        name: value if len(str(value)) <= _SHORT else f"{str(value)[:_SHORT]}…"
        for name, value in values.items()
        if value != ""
    }


def _time(millis: int) -> str:
    return datetime.fromtimestamp(millis / 1000, UTC).isoformat(timespec="seconds")


def _download(client: AdminClient, found: Proposal, folder: Path) -> None:
    """Every file of the export, whole or not at all. Raises OSError, ClientError, ApiError."""
    from hsmd.client.errors import ClientError
    from hsmd.pb.v1 import proposals_pb2 as pb

    read = _stub(client).ReadExport
    folder.mkdir(mode=0o700, exist_ok=True)
    for each in json.loads(found.result)["files"]:
        name, size, offset = each["name"], each["size"], 0
        if Path(name).name != name:
            raise ClientError(f"the daemon names a file {name!r}; it is not written")
        with new_file(folder / name, force=False) as file:
            while offset < size:
                request = pb.ReadExportRequest(proposal_id=found.id, file=name, offset=offset)
                part = read(request).data
                if not part:
                    raise ClientError(f"{name} ends before its length; it is not kept")
                file.write(part)
                offset += len(part)
        output.say(f"{folder / name}: {size} bytes")
