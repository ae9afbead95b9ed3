"""Write files atomically, and check their format number. Standard library only."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import tempfile
from pathlib import Path
from typing import Any

FORMAT = 2  # of results, records of runs, checkpoints and databases; absent means 1


class ResultError(ValueError):
    """Raised for a ``result.json`` that is not a valid result.

    The message names the file and the reason.
    """


class NewerFormatError(ResultError):
    """Raised for a file of a later version of this package.

    The message names the version that reads it.
    """


def write_atomically(path: str | Path, text: str) -> Path:
    """Write a text file atomically, through a temporary file in the same folder.

    Example:
        >>> import tempfile
        >>> path = write_atomically(Path(tempfile.mkdtemp()) / "new" / "a.txt", "all of it")
        >>> path.read_text()
        'all of it'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def check_format(found: Any, version: Any = None) -> int:
    """Return a format number if this version reads that format.

    Args:
        found: The number in the file.
        version: Version of this package that wrote the file, if known.

    Raises:
        NewerFormatError: If the format is a later one.
        ResultError: If it is not a format number.

    Example:
        >>> check_format(9, "3.1.0")
        Traceback (most recent call last):
        ...
        lrbench_pl.files.NewerFormatError: written in format 9, of which this version reads up to 2; install \
lrbench_pl 3.1.0 or later
    """
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ResultError(f"format must be an integer of at least 1, got {found!r}")
    if found > FORMAT:
        which = f"lrbench_pl {version} or later" if isinstance(version, str) else "a later version of lrbench_pl"
        raise NewerFormatError(
            f"written in format {found}, of which this version reads up to {FORMAT}; install {which}"
        )
    return found


@functools.cache
def version() -> str:
    """Return the version of this package, which files store beside their format."""
    return importlib.metadata.version("lrbench_pl")
