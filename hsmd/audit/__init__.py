"""The record of every call: whole lines, chained and signed for, on disk before the answer leaves."""

from hsmd.audit.file import Rotation
from hsmd.audit.log import Log

__all__ = ["Log", "Rotation"]
