"""What it takes for a file's name to be on disk, not only its content."""

import os
from pathlib import Path


def sync_directory(directory: Path) -> None:
    """Put the names in a directory on disk. Raises OSError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
