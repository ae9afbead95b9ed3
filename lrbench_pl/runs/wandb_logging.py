"""Log runs to Weights & Biases. A failure of the service never stops a training."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.wandb_mode import is_offline


class WandbRun(Logger):
    """Log a training as one W&B run: its history, and its result as summary.

    The history is over ``trainer/global_step``. The run is offline unless a key is configured (``wandb login`` or
    ``WANDB_API_KEY``); W&B's environment variables, such as ``WANDB_MODE``, take precedence. The first error of the
    service is a warning, after which nothing more is sent.

    Args:
        project: W&B project.
        save_dir: Folder for W&B's files.
        job_type: W&B's job type.
        tags: Tags of the run.

    Example:
        >>> WandbRun(project="lrbench_pl", save_dir="outputs").name
        'lrbench_pl'
    """

    def __init__(self, project: str, save_dir: str | Path, job_type: str = "train", tags: Sequence[str] = ()) -> None:
        super().__init__()
        self._project = project
        self._save_dir = Path(save_dir)
        self._job_type = job_type
        self._tags = [str(tag) for tag in tags]
        self._run: WandbLogger | None = None
        self._broken = False

    @property
    def name(self) -> str:
        """Name of the project."""
        return self._project

    @property
    def version(self) -> str | None:
        """Id of the W&B run; None before it starts."""
        return None if self._run is None else self._run.version

    @rank_zero_only
    def open_with(self, config: Mapping[str, Any], name: str, group: str | None) -> None:
        """Start the W&B run.

        Args:
            config: Configuration of the run.
            name: Name of the run.
            group: Name of its sweep.
        """

        def start() -> None:
            mode: dict[str, Any] = {"mode": "offline"} if is_offline() else {}
            self._save_dir.mkdir(parents=True, exist_ok=True)
            run = WandbLogger(
                name=name,
                save_dir=str(self._save_dir),
                project=self._project,
                group=group,
                job_type=self._job_type,
                tags=self._tags,
                config=dict(config),
                reinit="finish_previous",
                **mode,
            )
            assert run.experiment is not None  # starts the run here, so that a failure is handled here
            self._run = run

        self._try(start)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send one row of the history."""
        if self._run is not None:
            self._try(lambda: self._run.log_metrics(metrics, step))  # type: ignore[union-attr]

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Ignore them: :meth:`open_with` sent the whole configuration."""

    @rank_zero_only
    def close_with(self, result: RunResult) -> None:
        """Finish the W&B run with the result as summary.

        It counts as failed unless the status is ``reached``, ``missed`` or ``diverged``.
        """

        def end() -> None:
            run = self._run.experiment  # type: ignore[union-attr]
            run.summary.update(_summary(result))
            run.finish(exit_code=0 if result.status in ("reached", "missed", "diverged") else 1)

        if self._broken and self._run is not None:
            with contextlib.suppress(Exception):  # an open run would receive the next training of this process
                self._run.experiment.finish(exit_code=1)
        elif self._run is not None:
            self._try(end)

    def _try(self, action: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # any error of the service
            self._broken = True
            rank_zero_warn(f"W&B failed ({type(error).__name__}: {error}); the training continues without it")


def _summary(result: RunResult) -> dict[str, Any]:
    """Return the fields of a result that have a value."""
    return {name: value for name, value in result.to_dict().items() if value is not None}
