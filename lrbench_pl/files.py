"""Write files atomically, and check their format number. Standard library only."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import re
import stat
import uuid
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

from lrbench_pl.reading import read_json

_TEMPORARY = ".tmp"
FORMAT = 2  # of results, records of runs, checkpoints and databases; absent means 1


class ResultError(ValueError):
    """Raised for a ``result.json`` that is not a valid result.

    The message names the file and the reason.
    """


class NewerFormatError(ResultError):
    """Raised for a file of a later version of this package.

    The message names the version that reads it.
    """


def write_atomically(path: str | Path, text: str, is_durable: bool = True) -> Path:
    """Write a text file atomically, through a temporary file in the same folder.

    Args:
        path: The file.
        text: Its content.
        is_durable: Whether to wait until it is on the disk; if not, a power failure may leave an empty file.

    Example:
        >>> import tempfile
        >>> path = write_atomically(Path(tempfile.mkdtemp()) / "new" / "a.txt", "all of it")
        >>> path.read_text()
        'all of it'
    """
    path = Path(path)
    with replacing(path, is_durable) as file:
        file.write(text.encode())
    return path


def write_output(path: str | Path, text: str) -> Path:
    """Write a text file that a user named: atomically, but through a link, and into a device or a pipe.

    Args:
        path: The file.
        text: Its content.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
    else:
        write_atomically(path.resolve() if path.is_symlink() else path, text)
    return path


@contextlib.contextmanager
def replacing(path: Path, is_durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file in the same folder, which replaces ``path`` at the end of the context.

    After an error the temporary file is removed, and ``path`` is unchanged. A killed process leaves it to
    :func:`remove_temporary`.

    Args:
        path: The file.
        is_durable: Whether to wait until it is on the disk before it replaces the other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{_TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files of killed processes; nobody else may be writing into the folder."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        if is_temporary(path):
            with contextlib.suppress(OSError):
                path.unlink()


def is_temporary(path: Path) -> bool:
    """Return whether a file is, by its name, a temporary file of :func:`replacing`."""
    return re.fullmatch(rf"\..+\.[0-9a-f]{{12}}{re.escape(_TEMPORARY)}", path.name) is not None


class WrittenFiles:
    """The files in a folder that this package has written, so that only those are deleted.

    A file is known by name, size and time of modification: one that another program has put in its place is not ours.

    Args:
        record: File that stores them; its folder need not be that of the files.
    """

    def __init__(self, record: Path) -> None:
        self._record = record

    def add(self, name: str, written: os.stat_result) -> None:
        """Record a file before it gets its name."""
        write_atomically(self._record, json.dumps({**self._read(), name: _mark(written)}) + "\n")

    def has(self, path: Path) -> bool:
        """Return whether a file is one of them."""
        try:
            return self._read().get(path.name) == _mark(path.stat())
        except OSError:
            return False

    def delete(self, path: Path) -> None:
        """Delete a file if it is one of them."""
        if self.has(path):
            path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the record."""
        self._record.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            found = read_json(self._record)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


CHECKPOINTS = "checkpoints"  # folder in that of the run
CONFIGURATION = ".hydra"  # folder in that of the run
EXTENDABLE = "extendable"  # folder of the checkpoints from which a run can be extended
UNFINISHED = ".unfinished.ckpt"  # a checkpoint that is being written


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in their folder, the newest first."""
    return sorted((path for path in folder.glob("step=*.ckpt") if _CHECKPOINT.fullmatch(path.name)), reverse=True)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"step={step:09d}.ckpt"


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint from its name.

    Example:
        >>> step_of(checkpoint_path(Path("checkpoints"), 120))
        120
    """
    return int(checkpoint.stem.removeprefix("step="))


_CHECKPOINT = re.compile(r"step=\d{9,}\.ckpt")


def written_checkpoints(folder: Path) -> WrittenFiles:
    """Return the record of the checkpoints that a run has written into a folder; it is beside the folder."""
    return WrittenFiles(folder.with_name(f".{folder.name}.json"))


def discard_checkpoints(folder: Path) -> None:
    """Remove the checkpoints that a run has written, and their folder if nothing else is in it."""
    written = written_checkpoints(folder)
    for path in checkpoints_in(folder):
        written.delete(path)
    written.forget()
    remove_unfinished(folder)
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def remove_unfinished(folder: Path) -> None:
    """Remove checkpoints that killed processes were writing; a linked folder may be that of others too."""
    if folder.is_dir() and not folder.is_symlink():
        remove_temporary(folder)
        (folder / UNFINISHED).unlink(missing_ok=True)


def _mark(written: os.stat_result) -> list[int]:
    return [written.st_size, written.st_mtime_ns]


def open_to_append(path: Path) -> TextIOWrapper:
    """Open a text file to append to; a link or a pipe in its place is removed, not followed.

    Raises:
        OSError: If it cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    safe = flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()
    handle = os.open(path, safe, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path} is not a regular file")
        return open(handle, "a", encoding="utf-8")
    except BaseException:
        os.close(handle)
        raise


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
