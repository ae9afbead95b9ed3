"""Runs in this process that die at a batch, as a power failure ends them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.config import compose
from lrbench_pl.workloads.classifier import Classifier


class Killed(BaseException):
    """Ends a run at once, like a power failure."""


def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *common: str) -> Callable[..., Any]:
    """Return ``go(name, *overrides, dies_at=None)``, which runs in a folder; the process dies before that batch.

    Args:
        tmp_path: Folder of the folders.
        monkeypatch: Of the test.
        *common: Overrides of every run.
    """
    step = Classifier.training_step

    def go(name: str, *overrides: str, dies_at: int | None = None) -> Any:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)

        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            if batch_idx == dies_at:
                raise Killed
            return step(self, batch, batch_idx)

        monkeypatch.setattr(Classifier, "training_step", training_step)
        cfg = compose([*common, f"logger.csv.save_dir={folder}", *overrides])
        if dies_at is None:
            return experiment.run(cfg, folder)
        with pytest.raises(Killed):
            experiment.run(cfg, folder)
        (folder / "result.json").unlink(missing_ok=True)  # a killed process writes none
        return None

    return go
