"""Reserve the folders of a sweep's jobs, so that another sweep in the same folder does not take them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from lrbench_pl.files import is_temporary, remove_temporary, write_atomically
from lrbench_pl.reading import read_json
from lrbench_pl.runs.folder import LOCK_FILE
from lrbench_pl.runs.locks import NO_LOCKS, is_held, lock_of

_FOLDER = ".sweeps"


@dataclass(frozen=True)
class Reserved:
    """A folder that a running sweep has reserved.

    Args:
        run_id: The run that it will hold.
        holder: The process of that sweep, for messages.
    """

    run_id: str
    holder: str


class Reservations:
    """Context manager that keeps the folders of a sweep reserved as long as its process lives.

    The operating system releases the lock of a killed process, and the next sweep removes its reservations. On a file
    system without locks nothing is reserved.

    Args:
        sweep: Folder of the sweep.
    """

    def __init__(self, sweep: Path) -> None:
        self._sweep = sweep.absolute()
        self._folder = self._sweep / _FOLDER
        self._name = uuid.uuid4().hex[:12]
        self._lock = lock_of(self._path(".lock"))

    def _path(self, suffix: str, name: str | None = None) -> Path:
        return self._folder / f"{name or self._name}{suffix}"

    def __enter__(self) -> Reservations:
        """Begin without reservations."""
        with contextlib.suppress(*NO_LOCKS):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the folders."""
        self._lock.release(force=True)
        self._remove(self._name)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Let no other sweep choose folders in this context."""
        lock = lock_of(self._sweep / LOCK_FILE)
        with contextlib.suppress(*NO_LOCKS):
            lock.acquire()
        try:
            yield
        finally:
            lock.release(force=True)

    def others(self) -> dict[Path, Reserved]:
        """Return the folders that other running sweeps have reserved."""
        found: dict[Path, Reserved] = {}
        for path in self._folder.glob("*.json"):
            if path.stem != self._name and self._is_held(path.stem):
                found.update(self._read(path))
        return found

    def reserve(self, folders: Mapping[Path, str]) -> None:
        """Reserve folders, each for a run."""
        if self._lock.is_locked:
            holder = f"process {os.getpid()} on {socket.gethostname()}"
            runs = {os.path.relpath(folder, self._sweep): run for folder, run in folders.items()}
            write_atomically(self._path(".json"), json.dumps({"holder": holder, "runs": runs}) + "\n")

    def _read(self, path: Path) -> dict[Path, Reserved]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            stored = read_json(path)
            holder = str(stored["holder"])
            return {self._sweep / folder: Reserved(str(run), holder) for folder, run in stored["runs"].items()}
        return {}

    def _is_held(self, name: str) -> bool:
        """Return whether a sweep is running; remove what is left of one that was killed."""
        if is_held(self._path(".lock", name)):
            return True
        self._remove(name)
        return False

    def _remove(self, name: str) -> None:
        for suffix in (".json", ".lock"):
            with contextlib.suppress(OSError):
                self._path(suffix, name).unlink(missing_ok=True)


def running_sweeps(sweep: Path) -> dict[Path, Reserved]:
    """Return the folders that sweeps running in a folder have reserved for their jobs."""
    return Reservations(sweep).others() if (sweep / _FOLDER).is_dir() else {}


def clean_sweep(sweep: Path) -> None:
    """Remove what killed sweeps left half-written in a folder, if no sweep is running there."""
    folders = [sweep, sweep / ".equal", sweep / _FOLDER]
    if not any(is_temporary(path) for folder in folders for path in folder.glob(".*")):
        return
    with Reservations(sweep) as reservations, reservations.exclusively():
        if not reservations.others():
            for folder in folders:
                remove_temporary(folder)
