"""What a run leaves in its folder while it is under way, so that the same command can go on from there. No torch."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from lrbench_pl.files import FORMAT, ResultError, check_format, version, write_atomically
from lrbench_pl.policies import to_config
from lrbench_pl.runs.result import RESULT_FILE, RunResult
from lrbench_pl.runs.spec import RunSpec, readable

RECORD_FILE = "run.json"
LOCK_FILE = ".lock"
FINISHED = ("reached", "missed", "diverged")  # a failed or stopped run may end otherwise next time
State = Literal["missing", "running", "begun", "finished", "failed", "stopped"]

log = logging.getLogger(__name__)


class ChangedConfigurationError(ValueError):
    """A folder that holds a run of another configuration; the message shows the difference."""


@dataclass(frozen=True)
class Record:
    """A run that was begun.

    Args:
        run_id: Hash of its specification.
        configuration: The specification itself, as :meth:`lrbench_pl.runs.spec.RunSpec.to_dict` gives it.
        started: When it was begun last, in ISO 8601 and UTC.
        host: Where.
        pid: By which process.
        notes: What a person should know of it, such as a checkpoint that could not be read.
        format: Number of the format, for later versions.
        version: Version of this package that wrote it.
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
        """Write ``run.json`` into ``folder`` at one stroke."""
        write_atomically(folder / RECORD_FILE, json.dumps(asdict(self), indent=2, default=str) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """What ``run.json`` in ``folder`` says; None if there is none that can be read.

        One of format 1 holds the whole configuration, of which the specification is made.
        """
        try:
            row = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
            if check_format(row.pop("format", 1), row.pop("version", None)) == 1:
                spec = RunSpec.from_format_1(row["configuration"], _stored_policy(folder))
                row |= {"run_id": spec.run_id, "configuration": spec.to_dict()}
            return cls(**{**row, "notes": tuple(row["notes"])})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def _stored_policy(folder: Path) -> dict[str, Any] | None:
    """The policy that a run wrote beside its record; None if there is none."""
    from lrbench_pl.runs.config import read_policy

    try:
        return to_config(read_policy(folder / "policy.yaml"))
    except ValueError:
        return None


def row_of(folder: Path) -> RunResult | None:
    """The row in a folder; None if there is none that can be read."""
    try:
        return RunResult.read(folder / RESULT_FILE)
    except ResultError:
        return None


def finished_row(folder: Path, run_id: str) -> RunResult | None:
    """The row of a run that has ended by itself and need not run again, or None."""
    row, record = row_of(folder), Record.read(folder)
    if row is None or row.status not in FINISHED:
        return None
    begun_as = record.run_id if record is not None else row.run_id  # a policy that is looked up changes the row's
    return row if begun_as == run_id else None


def state_of(folder: Path) -> State:
    """How far the run of a folder is; ``begun`` is one that nobody runs any more, such as a killed one."""
    row = row_of(folder)
    if row is not None:
        return "finished" if row.status in FINISHED else row.status  # type: ignore[return-value]
    if not (folder / RECORD_FILE).exists():
        return "missing"
    return "running" if _is_locked(folder) else "begun"


def refuse_other(folder: Path, run_id: str, configuration: Mapping[str, Any]) -> None:
    """Refuse a folder in which a run of another configuration was begun.

    Raises:
        ChangedConfigurationError: If it holds another run.
    """
    record = Record.read(folder)
    if record is None:
        _refuse_unknown(folder)
        row = row_of(folder)
        if row is not None and row.run_id not in (run_id, "unknown"):
            raise ChangedConfigurationError(
                f"{folder} holds the run {row.run_id} of another configuration; give another folder"
            )
    elif record.run_id != run_id:
        both = readable(record.configuration), readable(configuration)
        changed = "; ".join(differences(*both)) or "another version of it"
        raise ChangedConfigurationError(
            f"{folder} holds a run of another configuration: {changed}. Give another folder, or the old configuration"
        )


def _refuse_unknown(folder: Path) -> None:
    """Refuse a folder whose files say that a run was begun there, in a format that cannot be compared."""
    for name in (RECORD_FILE, RESULT_FILE):
        try:
            row = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(row, dict):
            continue
        by = row.get("version") or (
            row["versions"].get("lrbench_pl") if isinstance(row.get("versions"), dict) else None
        )
        try:
            found = check_format(row.get("format", 1), by)
        except ResultError as error:
            raise ChangedConfigurationError(f"{folder / name}: {error}") from None
        if name == RECORD_FILE and found == 1 and isinstance(row.get("configuration"), dict):
            raise ChangedConfigurationError(
                f"{folder / name}: the run was begun by an earlier version and cannot be compared with this one; "
                "give another folder"
            )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two configurations differ, one ``key: old -> new`` for each key.

    Example:
        >>> differences({"lr": 0.1, "model": {"depth": 20}}, {"lr": 0.1, "model": {"depth": 32}, "seed": 1})
        ['model.depth: 20 -> 32', 'seed: (nothing) -> 1']
    """
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = (side.get(key, "(nothing)") for side in (old, new))
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif json.dumps(before, sort_keys=True, default=str) != json.dumps(after, sort_keys=True, default=str):
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


@contextlib.contextmanager
def claim(folder: Path, run_id: str, configuration: Mapping[str, Any]) -> Iterator[RunResult | None]:
    """Hold a folder for one run; while another process holds it, wait.

    Args:
        folder: The run's own.
        run_id: Hash of the configuration.
        configuration: What is hashed.

    Yields:
        The row of this very configuration if it is finished, else None: run it.

    Raises:
        ChangedConfigurationError: If the folder holds a run of another configuration.
        OSError: If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_FILE, "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = Record.read(folder)
            whom = f"process {holder.pid} on {holder.host}" if holder else "another process"
            log.warning("%s is being run by %s; waiting for it", folder, whom)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            log.debug("%s cannot be locked: %s", folder, error)
        refuse_other(folder, run_id, configuration)
        row = finished_row(folder, run_id)
        if row is None:
            (folder / RESULT_FILE).unlink(missing_ok=True)  # of an attempt that failed or was stopped
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            Record(run_id, dict(configuration), now, socket.gethostname(), os.getpid()).write(folder)
        yield row


def note(folder: Path, text: str) -> None:
    """Add a line to the record of a run, which whoever watches the sweep shows, and to its log."""
    log.warning("%s", text)
    record = Record.read(folder)
    if record is not None:
        with contextlib.suppress(OSError):
            Record(**{**asdict(record), "notes": (*record.notes, text)}).write(folder)


def _is_locked(folder: Path) -> bool:
    try:
        with open(folder / LOCK_FILE, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
