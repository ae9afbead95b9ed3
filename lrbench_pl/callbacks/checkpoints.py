"""Checkpoints of a run: written at one stroke, gone on from in mid-epoch as if nothing had happened."""

from __future__ import annotations

import csv
import logging
import os
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_fabric.utilities.seed import _collect_rng_states, _set_rng_states
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger, Logger

from lrbench_pl.files import FORMAT, NewerFormatError, check_format, version

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_KEY = "lrbench_pl"
_STEPS_BETWEEN_LOOKS = 32  # with several processes, which agree on the time

log = logging.getLogger(__name__)


class TrainingPaused(Exception):  # noqa: N818 - no error: the training can go on from its checkpoint
    """A training that was ended from outside, its state kept; the message says why."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be gone on from; the message says why."""


class NewerCheckpointError(CheckpointError):
    """A checkpoint of a later version of this package; the message says which version reads it."""


class Checkpoints(Callback):
    """Keeps the last checkpoints of a training, and ends it when its time is up.

    A checkpoint is written between two optimizer steps, after the check if there is one, and holds, beside what
    Lightning keeps (weights, optimizer, loops, data position, callbacks), the random numbers, the seconds so far and
    how much of ``metrics.csv`` was written: on a CPU a training that goes on from it equals, bit for bit, one that was
    never interrupted. A disk that has no room for it costs the checkpoint, not the training.

    Args:
        folder: Where they are kept, as ``step=000000120.ckpt``.
        every: Optimizer steps from one to the next; None for none but those of :meth:`pause`.
        kept: How many of the last to keep.
        max_time: Wall-clock seconds of this start of the training, validation included, or None. When they are over it
            writes a checkpoint and raises :class:`TrainingPaused`.

    Attributes:
        went_on: Whether a batch or a check has begun: what fails before that failed in restoring.

    Raises:
        ValueError: If an argument is out of its range.
        TrainingPaused: After the time, or after :meth:`pause`.

    Example:
        >>> Checkpoints(Path("run/checkpoints"), every=100, max_time=3600.0).seconds
        0.0
    """

    def __init__(
        self, folder: str | Path, every: int | None = None, kept: int = 1, max_time: float | None = None
    ) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1 step or None, got {every}")
        if kept < 1:
            raise ValueError(f"kept must be at least 1, got {kept}")
        if max_time is not None and not max_time > 0:
            raise ValueError(f"max_time must be above 0 seconds or None, got {max_time}")
        self.folder = Path(folder)
        self.every, self.kept, self.max_time = every, kept, max_time
        self.went_on = False
        self._step = 0
        self._began: float | None = None
        self._seconds_before = 0.0
        self._random: dict[str, Any] | None = None
        self._history: list[list[dict[str, str]]] = []
        self._pause: str | None = None
        self._due = False
        self._reason: str | None = None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the training so far, those before the checkpoint included."""
        return self._seconds_before + (0.0 if self._began is None else time.perf_counter() - self._began)

    def found(self) -> Iterator[Path]:
        """The checkpoints at hand, the newest first."""
        yield from sorted(self.folder.glob("step=*.ckpt"), reverse=True)

    def remember(self, loggers: Iterable[Logger]) -> None:
        """Read what was logged so far; the loggers begin anew when the fit does."""
        self._history = [_read_rows(logger) for logger in _csv_loggers(loggers)]

    def discard(self) -> None:
        """Remove what is there: of a training that has ended."""
        for path in self.folder.glob("*.ckpt"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def pause(self, reason: str) -> None:
        """Ask for a checkpoint and the end at the next step; may be called from a signal handler."""
        self._pause = reason

    # -- hooks ----------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = time.perf_counter()
        _under_way.append(self)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop_clock()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the clock."""
        self._stop_clock()

    def _stop_clock(self) -> None:
        if self in _under_way:
            _under_way.remove(self)
        self._seconds_before, self._began = self.seconds, None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the random numbers back, once the loader has begun."""
        self._go_on(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same, where the checkpoint was written just before a check."""
        self._go_on(trainer)

    def _go_on(self, trainer: Trainer) -> None:
        if not self.went_on:
            self.went_on = True
            self._step = trainer.global_step
            if self._random is not None:
                _set_rng_states(self._random)
                self._random = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Between two optimizer steps: write, if it is due; end, if it is time."""
        step = trainer.global_step
        if step == self._step:  # more batches to this step
            return
        self._step = step
        self._due = self.every is not None and step % self.every == 0
        self._reason = self._why_end(trainer)
        if not _check_follows(trainer):
            self._save_or_end(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same where a check was made: it belongs to the state."""
        if trainer.state.fn is not None and trainer.state.fn.value == "fit" and not trainer.sanity_checking:
            self._save_or_end(trainer)

    def _save_or_end(self, trainer: Trainer) -> None:
        due, reason = self._due, self._reason
        self._due, self._reason = False, None
        step = trainer.global_step
        if trainer.should_stop or step >= trainer.max_steps > 0 or not (due or reason):
            return
        self._save(trainer)
        if reason is not None:
            raise TrainingPaused(f"{reason} at step {step}; the same command goes on from there")

    def _why_end(self, trainer: Trainer) -> str | None:
        reason = self._pause
        if self.max_time is not None and self._began is not None:
            over = time.perf_counter() - self._began >= self.max_time
            reason = f"out of time (max_time={self.max_time:g} s)" if over else reason
        if trainer.world_size == 1:
            return reason
        if self._step % _STEPS_BETWEEN_LOOKS:
            return None
        agreed = trainer.strategy.reduce_boolean_decision(reason is not None, all=False)
        return (reason or "ended by another process") if agreed else None

    def _save(self, trainer: Trainer) -> None:
        path = self.folder / f"step={trainer.global_step:09d}.ckpt"
        unfinished = self.folder / ".unfinished.ckpt"
        try:
            for logger in trainer.loggers:
                logger.save()
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(unfinished)
            if trainer.is_global_zero:
                with open(unfinished, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(unfinished, path)
                for old in list(self.found())[self.kept :]:
                    old.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:  # torch's writer raises the second
            unfinished.unlink(missing_ok=True)
            log.warning("no checkpoint at step %d (%s); the training goes on", trainer.global_step, error)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not keep."""
        checkpoint[_KEY] = {
            "format": FORMAT,
            "version": version(),
            "random": _collect_rng_states(),
            "seconds": self.seconds,
            "rows": [len(_read_rows(logger)) for logger in _csv_loggers(trainer.loggers)],
            "unlogged": _unlogged(trainer),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take it back, and put the history up to the checkpoint back into the loggers."""
        kept = checkpoint.get(_KEY)
        if kept is None:
            raise CheckpointError("the checkpoint is not one of this program's runs")
        try:
            check_format(kept.get("format", 1), kept.get("version"))
        except NewerFormatError as error:
            raise NewerCheckpointError(f"the checkpoint in {self.folder} is {error}") from None
        self._random, self._seconds_before = kept["random"], kept["seconds"]
        for logger, history, rows in zip(_csv_loggers(trainer.loggers), self._history, kept["rows"], strict=False):
            for row in history[:rows]:
                numbers = {name: value for name, value in row.items() if name != "step" and value}
                logger.experiment.log_metrics(numbers, int(row["step"]))
            if kept["unlogged"]:
                logger.experiment.log_metrics(kept["unlogged"], checkpoint["global_step"] - 1)
            logger.save()


_under_way: list[Checkpoints] = []


def pause_all(reason: str) -> bool:
    """Ask the training of this process, if there is one, for a checkpoint and its end; for signal handlers."""
    for checkpoints in _under_way:
        checkpoints.pause(reason)
    return bool(_under_way)


def check_intact(path: Path) -> None:
    """Compare a checkpoint with its own checksums, which reading it does not.

    Raises:
        CheckpointError: If it is damaged or cut off.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(str(error)) from error
    if damaged is not None:
        raise CheckpointError(f"{damaged} does not match its checksum")


def _check_follows(trainer: Trainer) -> bool:
    """Whether the Trainer validates after this batch, before the next one."""
    loop = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))  # type: ignore[arg-type]


def _unlogged(trainer: Trainer) -> dict[str, float]:
    """What the module logged in this step and the Trainer hands on only after it."""
    connector = trainer._logger_connector
    if not trainer.training or not connector.should_update_logs:
        return {}
    logged = {name: float(value) for name, value in connector.metrics["log"].items()}
    return {**logged, "epoch": trainer.current_epoch} if logged else {}


def _csv_loggers(loggers: Iterable[Logger]) -> list[CSVLogger]:
    return [logger for logger in loggers if isinstance(logger, CSVLogger)]


def _read_rows(logger: CSVLogger) -> list[dict[str, str]]:
    path = Path(logger.log_dir) / "metrics.csv"
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
