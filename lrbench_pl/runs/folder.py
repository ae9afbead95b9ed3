"""The folder of a run: its lock, its record ``run.json`` and its state, by which a run resumes. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from lrbench_pl.files import (
    CHECKPOINTS,
    CONFIGURATION,
    FORMAT,
    ResultError,
    check_format,
    discard_checkpoints,
    remove_temporary,
    remove_unfinished,
    version,
    write_atomically,
)
from lrbench_pl.policies import to_config
from lrbench_pl.reading import read_json
from lrbench_pl.runs.locks import NO_LOCKS, is_held, lock_of
from lrbench_pl.runs.result import RESULT_FILE, RunResult
from lrbench_pl.runs.spec import RunSpec, readable
from lrbench_pl.words import clean as clean_text
from lrbench_pl.words import masked

RECORD_FILE = "run.json"
LOCK_FILE = ".lock"
FINISHED = ("reached", "missed", "diverged")  # final; a failed or stopped run is resumed by the same command
State = Literal["missing", "running", "unfinished", "finished", "failed", "stopped"]

_BRIEF_S = 0.5  # reading a state takes the lock for a moment, which is not worth a warning

log = logging.getLogger(__name__)


class ChangedConfigurationError(ValueError):
    """Raised for a folder that holds a run of another configuration.

    The message names the differences.
    """


@dataclass(frozen=True)
class Record:
    """The start of a run, as ``run.json`` stores it.

    Args:
        run_id: Hash of the specification.
        configuration: The specification itself, see :meth:`lrbench_pl.runs.spec.RunSpec.to_dict`.
        started: Time of the latest start, in ISO 8601 and UTC.
        host: Host of the process.
        pid: Id of the process.
        notes: Events worth showing to the user, such as a checkpoint that cannot be read.
        format: Number of the file format.
        version: Version of this package that wrote the file.
    """

    run_id: str
    configuration: dict[str, Any]
    started: str
    host: str
    pid: int
    notes: tuple[str, ...] = ()
    format: int = FORMAT
    version: str = field(default_factory=version)

    def write(self, folder: Path) -> None:
        """Write ``run.json`` into ``folder`` atomically."""
        write_atomically(folder / RECORD_FILE, json.dumps(asdict(self), indent=2, default=str) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """Read ``run.json`` in ``folder``; return None if there is no readable one.

        A file of format 1 holds the whole configuration, from which the specification is built.
        """
        try:
            stored = read_json(folder / RECORD_FILE)
            if check_format(stored.pop("format", 1), stored.pop("version", None)) == 1:
                spec = RunSpec.from_format_1(stored["configuration"], _stored_policy(folder))
                stored |= {"run_id": spec.run_id, "configuration": spec.to_dict()}
            if (without := masked(stored["configuration"])) != stored["configuration"]:  # of a version that kept them
                stored |= {"run_id": RunSpec.from_dict(without).run_id, "configuration": without}
            shown = {"host": clean_text(stored["host"]), "notes": tuple(map(clean_text, stored["notes"]))}
            return cls(**{**stored, **shown})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def _stored_policy(folder: Path) -> dict[str, Any] | None:
    """Read ``policy.yaml`` in a folder; return None if there is no readable one."""
    from lrbench_pl.runs.config import read_policy

    try:
        return to_config(read_policy(folder / "policy.yaml"))
    except ValueError:
        return None


def read_result(folder: Path) -> RunResult | None:
    """Read the result in a folder; return None if there is no readable one."""
    try:
        return RunResult.read(folder / RESULT_FILE)
    except ResultError:
        return None


def finished_result(folder: Path, run_id: str) -> RunResult | None:
    """Return the result of run ``run_id`` if it is in the folder and final, else None."""
    result, record = read_result(folder), Record.read(folder)
    if result is None or result.status not in FINISHED:
        return None
    started_as = record.run_id if record is not None else result.run_id  # lr_policy=best changes the result's
    return result if started_as == run_id else None


def state_of(folder: Path, result: RunResult | None = None) -> State:
    """Return the state of a run; ``unfinished``: no result and no live process.

    Args:
        folder: Folder of the run.
        result: The result in it, if it was read already.
    """
    result = result or read_result(folder)
    if result is not None:
        return "finished" if result.status in FINISHED else result.status  # type: ignore[return-value]
    if not (folder / RECORD_FILE).exists():
        return "missing"
    return "running" if is_held(folder / LOCK_FILE) else "unfinished"


def check_same_run(folder: Path, run_id: str, configuration: Mapping[str, Any]) -> None:
    """Refuse a folder that holds a run of another configuration.

    Raises:
        ChangedConfigurationError: If it does, or if its files cannot be compared.
    """
    record = Record.read(folder)
    if record is None:
        _check_comparable(folder)
        result = read_result(folder)
        if result is not None and result.run_id not in (run_id, "unknown"):
            raise ChangedConfigurationError(
                f"{folder} holds the run {result.run_id} of another configuration; choose another folder"
            )
    elif record.run_id != run_id:
        both = readable(record.configuration), readable(configuration)
        changed = "; ".join(differences(*both)) or "written by an incompatible version"
        raise ChangedConfigurationError(
            f"{folder} holds a run of another configuration: {changed}. "
            "Choose another folder, or restore the configuration"
        )


def _check_comparable(folder: Path) -> None:
    """Refuse a folder of a version that this one cannot compare with."""
    for name in (RECORD_FILE, RESULT_FILE):
        try:
            stored = read_json(folder / name)
        except (OSError, ValueError):
            continue
        if not isinstance(stored, dict):
            continue
        versions = stored.get("versions")
        writer = stored.get("version") or (versions.get("lrbench_pl") if isinstance(versions, dict) else None)
        try:
            found = check_format(stored.get("format", 1), writer)
        except ResultError as error:
            raise ChangedConfigurationError(f"{folder / name}: {error}") from None
        if name == RECORD_FILE and found == 1 and isinstance(stored.get("configuration"), dict):
            raise ChangedConfigurationError(
                f"{folder / name}: the run was started by an earlier version and cannot be compared with this one; "
                "choose another folder"
            )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the differences of two configurations, one ``key: old -> new`` per key.

    Example:
        >>> differences({"lr": 0.1, "model": {"depth": 20}}, {"lr": 0.1, "model": {"depth": 32}, "seed": 1})
        ['model.depth: 20 -> 32', 'seed: (unset) -> 1']
    """
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = (side.get(key, "(unset)") for side in (old, new))
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif json.dumps(before, sort_keys=True, default=str) != json.dumps(after, sort_keys=True, default=str):
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


@contextlib.contextmanager
def hold_folder(folder: Path, run_id: str, configuration: Mapping[str, Any]) -> Iterator[RunResult | None]:
    """Hold the lock of a folder for one run; wait while another process holds it.

    The operating system releases the lock when the process ends, however it ends.

    Args:
        folder: Folder of the run.
        run_id: Hash of the specification.
        configuration: The specification as plain data.

    Yields:
        The final result of this run if the folder has it, else None: the run has to be trained.

    Raises:
        ChangedConfigurationError: If the folder holds a run of another configuration.
        OSError: If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_of(folder / LOCK_FILE)
    _acquire(lock, folder)
    try:
        check_same_run(folder, run_id, configuration)
        clean(folder)
        result = finished_result(folder, run_id)
        if result is not None:
            discard_checkpoints(folder / CHECKPOINTS)  # of a process that was killed after it had written the result
        else:
            (folder / RESULT_FILE).unlink(missing_ok=True)  # of an attempt that failed or was stopped
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            Record(run_id, dict(configuration), now, socket.gethostname(), os.getpid()).write(folder)
        yield result
    finally:
        lock.release()


def clean(folder: Path) -> None:
    """Remove what killed processes left half-written in the folder of a run, which is locked."""
    remove_temporary(folder)
    remove_temporary(folder / CONFIGURATION)
    remove_unfinished(folder / CHECKPOINTS)


def add_note(folder: Path, text: str) -> None:
    """Log a note and append it to the record of the run, for the view of the sweep."""
    log.warning("%s", text)
    record = Record.read(folder)
    if record is not None:
        with contextlib.suppress(OSError):
            Record(**{**asdict(record), "notes": (*record.notes, text)}).write(folder)


def _acquire(lock: FileLock, folder: Path) -> None:
    """Acquire the lock, with a warning if that takes time.

    On a file system without locks the run goes without.
    """
    try:
        try:
            lock.acquire(timeout=_BRIEF_S)
        except Timeout:
            holder = Record.read(folder)
            name = f"process {holder.pid} on {holder.host}" if holder else "another process"
            log.warning("%s is in use by %s; waiting for it to end", folder, name)
            lock.acquire()
    except NO_LOCKS as error:
        log.debug("%s cannot be locked: %s", folder, error)
