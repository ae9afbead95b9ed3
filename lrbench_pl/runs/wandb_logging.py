"""Log runs to Weights & Biases. A failure of the service never stops a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger

from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.tracking import RunLogger, has_ended
from lrbench_pl.runs.wandb_mode import is_offline


class WandbRun(RunLogger):
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
        super().__init__(WandbLogger, Path(save_dir), "wandb", "W&B")
        self._project = project
        self._job_type = job_type
        self._tags = [str(tag) for tag in tags]

    @property
    def name(self) -> str:
        """Name of the project."""
        return self._project

    def _start(self, config: Mapping[str, Any], name: str, group: str | None) -> Logger:
        mode: dict[str, Any] = {"mode": "offline"} if is_offline() else {}
        self._folder.mkdir(parents=True, exist_ok=True)
        logger: Any = self._make(
            name=name,
            save_dir=str(self._folder),
            project=self._project,
            group=group,
            job_type=self._job_type,
            tags=self._tags,
            config=dict(config),
            reinit="finish_previous",
            **mode,
        )
        assert logger.experiment is not None  # starts the run here, so that a failure is handled here
        return logger  # type: ignore[no-any-return]

    def _end(self, logger: Any, result: RunResult) -> None:
        run = logger.experiment
        run.summary.update({name: value for name, value in result.to_dict().items() if value is not None})
        run.finish(exit_code=0 if has_ended(result) else 1)

    def _abandon(self, logger: Any) -> None:
        logger.experiment.finish(exit_code=1)  # an open run would receive the next training of this process
