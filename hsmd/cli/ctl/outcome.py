"""What went wrong, as an exit code and a line for people: one row a kind of error."""

from enum import IntEnum

import click


class Exit(IntEnum):
    """The exit codes of hsmctl, a promise to scripts."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNAVAILABLE = 3
    LOCAL_FILE = 4
    INTERRUPTED = 130


HELP = """\b
Exit codes:
  0    done
  1    refused by the service, or failed there
  2    wrong usage
  3    the service is unavailable, or did not answer in time
  4    something local: a file can't be read, written or used
  130  interrupted, or not confirmed"""


def of(error: Exception) -> tuple[Exit, str]:
    """The exit code and the line for an exception."""
    if isinstance(error, click.FileError):
        return Exit.LOCAL_FILE, f"{error.ui_filename}: {error.message}"
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename is not None else ""
        return Exit.LOCAL_FILE, f"{name}{error.strerror or error}"
    if isinstance(error, ImportError):  # an extra is not installed; the text says which
        return Exit.LOCAL_FILE, str(error)
    return _of_ours(error) or (Exit.REFUSED, f"unexpected {type(error).__name__}; --debug shows where")


def _of_ours(error: Exception) -> tuple[Exit, str] | None:
    from hsmd.backupfile import BackupError
    from hsmd.client import ApiError, ClientError
    from hsmd.config import ConfigError
    from hsmd.daemon.ceremony.papers import CeremonyRefused
    from hsmd.errors import Error
    from hsmd.hsm import TokenRefused
    from hsmd.store import StoreError
    from hsmd.ukey import UKeyError

    if isinstance(error, ApiError):
        return Exit.UNAVAILABLE if error.unanswered else Exit.REFUSED, str(error)
    if isinstance(error, Error):
        absent = error.fault.grpc in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        return Exit.UNAVAILABLE if absent else Exit.REFUSED, str(error)
    if isinstance(error, CeremonyRefused):
        return Exit.REFUSED, str(error)
    # certificates, encrypted files, backups, settings, UKeys, the HSM's PIN
    if isinstance(error, BackupError | ClientError | ConfigError | StoreError | TokenRefused | UKeyError):
        return Exit.LOCAL_FILE, str(error)
    return None
