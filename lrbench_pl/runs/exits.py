"""The exit code of a run or a sweep: one rule for both, and for every launcher."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lrbench_pl.verdict import Status

EXIT_FAILED, EXIT_MISSED, EXIT_STOPPED = 1, 3, 130
_SELECTS = "hydra_plugins.lrbench_sweeper."  # a candidate of a selection may fail; the selection has a code of its own

_ended: dict[Path, tuple[Status, bool]] = {}


def exit_code(runs: Iterable[tuple[Status, bool]]) -> int:
    """The exit code of runs, each with its status and whether its target was required.

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


def note_end(folder: Path, status: Status, required: bool) -> None:
    """Remember how a job of the sweep ended, for the exit code of the whole."""
    _ended[folder] = status, required


class ExitCode(Callback):
    """A callback of Hydra that ends a sweep with the exit code of its jobs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget an earlier sweep of this process."""
        _ended.clear()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Leave with the code, if it is not 0."""
        selects = str(config.hydra.sweeper.get("_target_")).startswith(_SELECTS)
        if not selects and (code := exit_code(_ended.values())):
            sys.exit(code)
