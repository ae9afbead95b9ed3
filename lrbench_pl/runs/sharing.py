"""Equal policies of one sweep run once: the second of them takes over the outcome of the first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrbench_pl.files import ResultError, write_atomically
from lrbench_pl.runs.result import RESULT_FILE, RunResult

_HISTORY = "metrics.csv"
_OWN = ("run_id", "policy", "policy_repr", "lr", "settings", "study", "shared_with")  # fields that stay a run's own
_FINAL = ("reached", "missed", "diverged")


@dataclass(frozen=True)
class Pool:
    """Where the finished runs of a sweep that differ in nothing but their policy's spelling find each other.

    No run waits for another: what is not finished is not shared, and of two that run at the same time both train.

    Args:
        marker: A file in the sweep's folder that names the run which finished, once one has.

    Example:
        >>> import tempfile
        >>> sweep = Path(tempfile.mkdtemp())
        >>> pool = Pool.of(sweep, {"seed": 0}, {"policy_id": "x"})
        >>> step = RunResult(run_id="a", policy="step", status="missed", policy_id="x", steps_run=100)
        >>> pool.offer(step, step.write(sweep / "0").parent)
        >>> shared = pool.take(sweep / "1")
        >>> shared["steps_run"], shared["shared_with"]
        (100, 'a')
    """

    marker: Path

    @classmethod
    def of(cls, sweep: Path, config: Mapping[str, Any], row: Mapping[str, Any]) -> Pool:
        """The pool of a run.

        Args:
            sweep: Folder of the sweep.
            config: Everything that can change the numbers of the run, but for its policy.
            row: What is known of the run before it trains: its rates, and the code and device that would train.
        """
        known = {name: row.get(name) for name in ("policy_id", "versions", "git_sha", "device", "precision")}
        text = json.dumps([config, known], sort_keys=True, default=str)
        return cls(sweep / ".equal" / hashlib.sha256(text.encode()).hexdigest()[:16])

    def take(self, output: Path) -> dict[str, Any] | None:
        """The outcome of a finished run of the pool, and its history copied to ``output``; None if there is none."""
        try:
            folder = self.marker.parent.parent / self.marker.read_text(encoding="utf-8")
            twin = RunResult.read(folder / RESULT_FILE)
        except (OSError, ResultError):  # none yet, or its folder was moved
            return None
        if twin.status not in _FINAL:
            return None
        if (folder / _HISTORY).is_file():
            write_atomically(output / _HISTORY, (folder / _HISTORY).read_text(encoding="utf-8"))
        outcome = {name: value for name, value in twin.to_dict().items() if name not in _OWN}
        return {**outcome, "shared_with": twin.run_id}

    def offer(self, result: RunResult, output: Path) -> None:
        """Let others share a finished run, unless it is itself a copy."""
        if result.status in _FINAL and result.shared_with is None:
            sweep = self.marker.parent.parent
            if output.resolve().is_relative_to(sweep.resolve()):
                write_atomically(self.marker, str(output.resolve().relative_to(sweep.resolve())))
