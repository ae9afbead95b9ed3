"""Exit codes of runs and sweeps: one rule for both, under every launcher."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lrbench_pl.verdict import Status

EXIT_FAILED, EXIT_MISSED, EXIT_STOPPED = 1, 3, 130
_SELECTION = "hydra_plugins.lrbench_sweeper.LRBenchSweeper"  # its candidates may fail; it exits with a code of its own

_statuses: dict[Path, tuple[Status, bool]] = {}


def exit_code(runs: Iterable[tuple[Status, bool]]) -> int:
    """Return the exit code of runs, given as pairs (status, target required).

    Example:
        >>> exit_code([("reached", True), ("missed", False)])
        0
        >>> exit_code([("reached", True), ("missed", True)])
        3
        >>> exit_code([("diverged", True), ("failed", False)])
        1
    """
    runs = list(runs)
    if any(status == "failed" for status, _ in runs):
        return EXIT_FAILED
    return EXIT_MISSED if any(required and status != "reached" for status, required in runs) else 0


def record_status(folder: Path, status: Status, required: bool) -> None:
    """Record the status of a job for the exit code of the sweep.

    Args:
        folder: Folder of the job.
        status: Status of its result.
        required: Whether the job required its target.
    """
    _statuses[folder] = status, required


class ExitCode(Callback):
    """Hydra callback that exits a sweep with the exit code of its jobs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Reset the statuses of an earlier sweep in this process."""
        _statuses.clear()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with the code if it is not 0."""
        is_selection = str(config.hydra.sweeper.get("_target_")) == _SELECTION
        if not is_selection and (code := exit_code(_statuses.values())):
            sys.exit(code)
