"""Whole lines of a segment, block by block, from its beginning or its end, and where a record is."""

import gzip
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from hsmd.audit import chain
from hsmd.audit.segments import ACTIVE, UnreadableError

BLOCK = 256 * 1024
PROBE = 16 * 1024  # many times a record


def forwards(file: BinaryIO) -> Iterator[bytes]:
    """Blocks of whole lines. Raises UnreadableError."""
    rest = b""
    try:
        while block := file.read(BLOCK):
            whole, newline, behind = block.rpartition(b"\n")
            if newline:
                yield rest + whole + newline
                rest = b""
            rest = _line(rest + behind)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableError(str(error)) from error


def backwards(handle: int, end: int) -> Iterator[bytes]:
    """Blocks of whole lines, the last one first, of what stands before `end`. Raises UnreadableError."""
    behind = b""  # the end of a line that begins in an earlier block
    while end > 0:
        start = max(0, end - BLOCK)
        block = os.pread(handle, end - start, start) + behind
        end = start
        cut = block.find(b"\n") + 1 if start else 0
        if start and not cut:
            behind = _line(block)
            continue
        behind = block[:cut]
        if whole := block[cut : block.rfind(b"\n") + 1]:  # what was torn, or is being written, has no end
            yield whole


def _line(part: bytes) -> bytes:
    if len(part) > chain.LONGEST_LINE:
        raise UnreadableError(f"more than {chain.LONGEST_LINE} bytes without a newline")
    return part


def span(handle: int, number: int) -> tuple[int, int]:
    """Two places where lines begin, near each other: one not behind that record, one not before it."""
    low, high = 0, os.fstat(handle).st_size
    while number != ACTIVE and high - low > PROBE:
        middle = (low + high) // 2
        block = os.pread(handle, PROBE, middle)
        start = block.find(b"\n") + 1
        found = chain.beginning(block[start:])
        if not start or found is None or middle + start >= high:
            break
        if found.seq >= number:
            high = middle + start
        else:
            low = middle + start
    return low, high
