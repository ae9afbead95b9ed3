"""Share results within a sweep: of the runs with equal rates, one is trained and the others copy its outcome."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lrbench_pl.files import write_atomically
from lrbench_pl.reading import LARGEST_TABLE, UnreadableError, read_text
from lrbench_pl.runs.folder import FINISHED
from lrbench_pl.runs.result import RESULT_FILE, Outcome, RunResult, Setup

_HISTORY = "metrics.csv"
_LARGEST_MARKER = 4096  # bytes of a path
# of a setup: what does not change the numbers, or follows from the task
_OWN = ("study", "check_on", "policy_repr", "max_epochs", "max_tokens")


@dataclass(frozen=True)
class Pool:
    """A pool of runs of one sweep that differ only in how their policies are written.

    A finished run is entered; later ones copy its outcome. Runs do not wait for each other: two that run at the same
    time both train.

    Args:
        marker: File in the folder of the sweep that names the folder of the finished run, once there is one.

    Example:
        >>> import tempfile
        >>> sweep = Path(tempfile.mkdtemp())
        >>> pool = Pool.of(sweep, {"seed": 0}, Setup(policy_id="x"))
        >>> step = RunResult(run_id="a", policy="step", status="missed", policy_id="x", steps_run=100)
        >>> pool.offer(step, step.write(sweep / "0").parent)
        >>> shared = pool.take(sweep / "1")
        >>> shared.steps_run, shared.shared_with
        (100, 'a')
    """

    marker: Path

    @classmethod
    def of(cls, sweep: Path, but_for_rates: Mapping[str, Any], setup: Setup) -> Pool:
        """Return the pool of a run.

        Args:
            sweep: Folder of the sweep.
            but_for_rates: Everything that can change the numbers except the rates of the policy.
            setup: The rates, as ``policy_id``, and the code and device of the run.
        """
        known = {name: value for name, value in asdict(setup).items() if name not in _OWN}
        text = json.dumps([but_for_rates, known], sort_keys=True, default=str)
        return cls(sweep / ".equal" / hashlib.sha256(text.encode()).hexdigest()[:16])

    def take(self, output: Path) -> Outcome | None:
        """Return the outcome of the finished run, or None; copy its history."""
        try:
            folder = self._folder()
            twin = RunResult.read(folder / RESULT_FILE)
            history = read_text(folder / _HISTORY, LARGEST_TABLE) if (folder / _HISTORY).exists() else None
        except (OSError, ValueError):  # not finished yet, its folder was moved, or something else was put there
            return None
        if twin.status not in FINISHED:
            return None
        if history is not None:
            write_atomically(output / _HISTORY, history)
        return replace(twin.outcome, shared_with=twin.run_id)

    def _folder(self) -> Path:
        """Return the folder that the marker names.

        Raises:
            OSError: If there is no marker.
            UnreadableError: If it is not a marker, or names a folder outside of the sweep.
        """
        sweep = self.marker.parent.parent.resolve()
        named = read_text(self.marker, _LARGEST_MARKER)
        folder = (sweep / named).resolve() if "\0" not in named else sweep
        if folder == sweep or not folder.is_relative_to(sweep):
            raise UnreadableError(f"expected a folder inside of {sweep}, got {named!r}")
        return folder

    def offer(self, result: RunResult, output: Path) -> None:
        """Enter a run into the pool if it is finished, no copy and part of the sweep."""
        if result.status in FINISHED and result.shared_with is None:
            sweep = self.marker.parent.parent
            if output.resolve().is_relative_to(sweep.resolve()):
                folder = str(output.resolve().relative_to(sweep.resolve()))
                write_atomically(self.marker, folder, is_durable=False)  # a lost one costs a training
