"""The audit log, for whoever a quorum has allowed to take it away: as it was when that was carried out.

The log only grows, so files and their lengths are all that has to be kept; the bytes are read when they are
asked for, by the UKey that carried the proposal out and on the same day.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hsmd.domain.core import DAY_MILLIS, Call
from hsmd.domain.steps import Decided, Outcome, Steps
from hsmd.errors import ACTION_REFUSED, IAM_NOT_FOUND, PARAMETER_INVALID, PROPOSAL_REFUSED, UNAVAILABLE, Error
from hsmd.operations import Facts, Parameters
from hsmd.store import Tx
from hsmd.store import proposals as rows

NAME = "export-audit"
PART_BYTES = 512 * 1024

_FILE = re.compile(r"(?!.*\.(lock|part)$)[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # a lock holds nothing
_MOST_FILES = 2000


def read(call: Call, proposal_id: str, name: str, offset: int) -> bytes:
    """A part of one of the exported files, from `offset` on: at most 512 KiB, b"" at its end.

    Raises Error(IAM_NOT_FOUND, ACTION_REFUSED, PARAMETER_INVALID), Error(PROPOSAL_REFUSED) for one that is no
    export or too old, Error(UNAVAILABLE) for a file that is not what it was.
    """
    call.resource = proposal_id
    file = _file(call, proposal_id, name)
    size, wanted = int(file["size"]), min(PART_BYTES, int(file["size"]) - offset)
    if not 0 <= offset <= size:
        raise Error(PARAMETER_INVALID, name="offset", reason=f"0 to {size} is due")
    with _opened(_directory(call) / name) as handle:
        there = os.fstat(handle)
        if there.st_ino != file["inode"] or there.st_size < size:
            raise Error(UNAVAILABLE, reason=f"{name} was put away meanwhile: propose the export again")
        return os.pread(handle, wanted, offset)


def _file(call: Call, proposal_id: str, name: str) -> Mapping[str, int]:
    with call.read() as tx:
        proposal = rows.get_proposal(tx, proposal_id)
    if proposal is None:
        raise Error(IAM_NOT_FOUND, kind="proposal", id=proposal_id)
    if (proposal.operation, proposal.state) != (NAME, rows.EXECUTED) or proposal.ended is None:
        raise Error(PROPOSAL_REFUSED, id=proposal.id, reason="it is no export that was carried out")
    if proposal.ended_by != call.caller.user_id:
        raise Error(ACTION_REFUSED, action="of the UKey that has carried it out")
    if call.core.clock() - proposal.ended > DAY_MILLIS:
        raise Error(PROPOSAL_REFUSED, id=proposal.id, reason="it was carried out more than a day ago")
    files = {each["name"]: each for each in json.loads(proposal.result or "{}").get("files", ())}
    if name not in files:
        raise Error(PARAMETER_INVALID, name="file", reason="one of the exported files is due")
    found: Mapping[str, int] = files[name]
    return found


def _state(_call: Call, _tx: Tx, _parameters: Parameters) -> Facts:
    return {}  # the log is always another one: it is exported as it is then


def _export(call: Call, _tx: Tx, _decided: Decided) -> Outcome:
    files = []
    for path in sorted(_directory(call).iterdir()):
        there = path.lstat()
        if path.is_file() and not path.is_symlink() and _FILE.fullmatch(path.name):
            files.append({"name": path.name, "size": there.st_size, "inode": there.st_ino})
    if len(files) > _MOST_FILES:
        raise Error(UNAVAILABLE, reason=f"there are more than {_MOST_FILES} files of the audit log")
    return Outcome("audit", result={"files": files})


def _directory(call: Call) -> Path:
    if call.core.audit_directory is None:
        raise Error(UNAVAILABLE, reason="the audit log is not read here")
    return call.core.audit_directory


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Error(UNAVAILABLE, reason=f"{path.name} can't be read") from error
    try:
        yield handle
    finally:
        os.close(handle)


EXPORTING = Steps(_state, _export)
