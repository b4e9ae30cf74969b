"""What the gateway does by itself, told to the daemon, which has the audit log: its start, and its refusals.

No refusal waits for this. They are counted by address and code, and told once a second: so a flood costs the
daemon's disk no more than some records a second, and one that is away misses none, only their details.
"""

import asyncio
import contextlib
import logging
import time

import grpc.aio

from hsmd.gateway.channels import Channels
from hsmd.pb.v1 import gateways_pb2 as pb

_START, _REFUSALS = "/hsmd.v1.Gateways/ReportStart", "/hsmd.v1.Gateways/ReportRefusals"
_PAUSE_SECONDS = 1.0
_CALL_SECONDS = 5.0
_PARTING_SECONDS = 1.0
_MOST_KINDS = 32  # of address and code that are counted apart; the rest by code alone

_log = logging.getLogger(__name__)


class Reports:
    """What is still to be told. Made within a running event loop; `configuration`: what it started with."""

    def __init__(self, channels: Channels, configuration: str) -> None:
        self._channels = channels
        self._start = pb.ReportStartRequest(configuration=configuration).SerializeToString()
        self._waiting: dict[tuple[str, str], pb.Refusal] = {}
        self._failing = False
        self._telling = asyncio.get_running_loop().create_task(self._tell_on())

    def refused(self, request_id: str, source: str, request: str, code: str) -> None:
        """One more. `request`: verb and template of its path, which hold nothing of the caller's."""
        first = round(time.time() * 1000)
        self._add(
            pb.Refusal(request_id=request_id, source=source, request=request, code=code, count=1, first=first)
        )

    async def close(self) -> None:
        """Tell what is left, for a moment."""
        self._telling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._telling
        if self._waiting:
            await self._tell(_PARTING_SECONDS)
        if self._waiting:
            _log.warning(
                "%d refusals are not in the audit log", sum(each.count for each in self._waiting.values())
            )

    def _add(self, refusal: pb.Refusal) -> None:
        known = self._waiting.get((refusal.source, refusal.code))
        if known is None and len(self._waiting) >= _MOST_KINDS:
            refusal.source = refusal.request = ""
            known = self._waiting.get(("", refusal.code))
        if known is None:
            self._waiting[refusal.source, refusal.code] = refusal
        else:
            known.count += refusal.count

    async def _tell_on(self) -> None:
        started = False
        while True:
            started = started or await self._said(_START, self._start, _CALL_SECONDS)
            await asyncio.sleep(_PAUSE_SECONDS)
            if self._waiting:
                await self._tell(_CALL_SECONDS)

    async def _tell(self, seconds: float) -> None:
        told, self._waiting = self._waiting, {}
        message = pb.ReportRefusalsRequest(refusals=told.values()).SerializeToString()
        said = False
        try:
            said = await self._said(_REFUSALS, message, seconds)
        finally:  # also when it was cancelled: it is told again then
            if not said:
                newer, self._waiting = self._waiting, told
                for each in newer.values():
                    self._add(each)

    async def _said(self, method: str, message: bytes, seconds: float) -> bool:
        try:
            await self._channels.call(method, message, [], seconds=seconds, repeatable=False)
        except grpc.aio.AioRpcError as error:
            if not self._failing:
                _log.warning("the audit log can't be told of refusals now: %s", error.code().name)
            self._failing = True
            return False
        if self._failing:
            _log.info("the audit log is told of refusals again")
        self._failing = False
        return True
