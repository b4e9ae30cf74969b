"""The record of every call: whole lines, on disk before the answer leaves."""

from hsmd.audit.log import Log

__all__ = ["Log"]
