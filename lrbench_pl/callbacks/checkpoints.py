"""Atomic checkpoints with exact mid-epoch resume."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.utilities.seed import _collect_rng_states, _set_rng_states
from pytorch_lightning import Callback

from lrbench_pl.callbacks.history_file import history_files, parse
from lrbench_pl.files import (
    FORMAT,
    UNFINISHED,
    NewerFormatError,
    check_format,
    checkpoints_in,
    discard_checkpoints,
    replacing,
    version,
    written_checkpoints,
)

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_KEY = "lrbench_pl"
_REFUSED = ".refused"  # suffix of a checkpoint that was set aside
_STEPS_BETWEEN_AGREEMENTS = 32  # several processes agree on whether to stop every so many steps

log = logging.getLogger(__name__)


class TrainingPaused(Exception):  # noqa: N818 - not an error: the training can be resumed from its checkpoint
    """Raised when a training is stopped from outside, after its checkpoint."""


class CheckpointError(ValueError):
    """Raised for a checkpoint that cannot be resumed; the message is the reason."""


class NewerCheckpointError(CheckpointError):
    """Raised for a checkpoint of a later version; the message names that version."""


class Checkpoints(Callback):
    """Writes checkpoints during a training and stops it at a time limit.

    A checkpoint is written between two optimizer steps, after the check if there is one. In addition to Lightning's
    state (weights, optimizer, loops, data position, callbacks) it contains the random state, the elapsed seconds and
    the rows of ``metrics.csv``. On a CPU a resumed training is bitwise identical to one that was never
    interrupted. If a checkpoint cannot be written, such as on a full disk, the training continues with a warning. Only
    files that this callback has written are deleted; a file ``.checkpoints.json`` beside the folder lists them.

    A checkpoint contains tensors and plain data alone, so that loading it executes nothing. A callback or module whose
    state contains other objects gets no checkpoints, with a warning; hyperparameters are left out.

    Args:
        folder: Folder of the checkpoints, which are named ``step=000000120.ckpt``.
        every: Optimizer steps between two checkpoints; None writes one only on :meth:`pause`.
        kept: Number of checkpoints to keep.
        max_time: Wall-clock limit of each start of the training in seconds, validation included, or None. At the limit
            a checkpoint is written and :class:`TrainingPaused` is raised.

    Attributes:
        has_started: Whether a batch or a check has started. An error before that is an error of restoring.

    Raises:
        ValueError: If an argument is out of range.
        TrainingPaused: At the time limit, or after :meth:`pause`.

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
        self._written = written_checkpoints(self.folder)
        self.every, self.kept, self.max_time = every, kept, max_time
        self.has_started = False
        self._step = 0
        self._began: float | None = None
        self._seconds_before = 0.0
        self._random: dict[str, Any] | None = None
        self._pause: str | None = None
        self._due = False
        self._reason: str | None = None
        self._is_saving = False  # a checkpoint of this callback, not one of the user's
        self._cannot_be_loaded = False  # a state contains objects

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the training, including those before a checkpoint."""
        return self._seconds_before + (0.0 if self._began is None else time.perf_counter() - self._began)

    def found(self) -> Iterator[Path]:
        """Yield the checkpoints in the folder, the newest first."""
        yield from checkpoints_in(self.folder)

    def discard(self) -> None:
        """Remove the checkpoints that were written, after the end of the training."""
        discard_checkpoints(self.folder)

    def set_aside(self, path: Path) -> None:
        """Rename a checkpoint that was written and cannot be resumed, so that it neither counts nor is lost."""
        if self._written.has(path):
            with contextlib.suppress(OSError):
                os.replace(path, path.with_name(path.name + _REFUSED))

    def pause(self, reason: str) -> None:
        """Request a checkpoint and the end of the training; safe in signal handlers."""
        self._pause = reason

    # -- hooks ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write checkpoints into their own folder directly."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = _InPlace()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = time.perf_counter()
        _running.append(self)
        _handle_signals()  # Lightning has replaced the handlers

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop_clock()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the clock."""
        self._stop_clock()

    def _stop_clock(self) -> None:
        if self in _running:
            _running.remove(self)
        self._seconds_before, self._began = self.seconds, None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the random state, after the loader has started."""
        self._restore_random_state(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random state, if the checkpoint was written just before a check."""
        self._restore_random_state(trainer)

    def _restore_random_state(self, trainer: Trainer) -> None:
        if not self.has_started:
            self.has_started = True
            self._step = trainer.global_step
            if self._random is not None:
                _set_rng_states(self._random)
                self._random = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if it is due, and stop the training if requested."""
        step = trainer.global_step
        if step == self._step:  # the step needs more batches
            return
        self._step = step
        self._due = self.every is not None and step % self.every == 0
        self._reason = self._why_stop(trainer)
        if not _check_follows(trainer):
            self._save_or_stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the same after a check, whose result is part of the state."""
        if trainer.state.fn is not None and trainer.state.fn.value == "fit" and not trainer.sanity_checking:
            self._save_or_stop(trainer)

    def _save_or_stop(self, trainer: Trainer) -> None:
        due, reason = self._due, self._reason
        self._due, self._reason = False, None
        step = trainer.global_step
        if trainer.should_stop or step >= trainer.max_steps > 0 or not (due or reason):
            return
        self._save(trainer)
        if reason is not None:
            raise TrainingPaused(f"{reason} at step {step}; the same command continues from there")

    def _why_stop(self, trainer: Trainer) -> str | None:
        reason = self._pause
        if self.max_time is not None and self._began is not None:
            over = time.perf_counter() - self._began >= self.max_time
            reason = f"out of time (max_time={self.max_time:g} s)" if over else reason
        if trainer.world_size == 1:
            return reason
        if self._step % _STEPS_BETWEEN_AGREEMENTS:
            return None
        agreed = trainer.strategy.reduce_boolean_decision(reason is not None, all=False)
        return (reason or "stopped by another process") if agreed else None

    def _save(self, trainer: Trainer) -> None:
        path = self.folder / f"step={trainer.global_step:09d}.ckpt"
        unfinished = self.folder / UNFINISHED
        if self._cannot_be_loaded:
            return
        try:
            for logger in trainer.loggers:
                logger.save()
            if path.exists() and not self._written.has(path):
                raise OSError(f"{path} was not written by this run")
            self._is_saving = True
            trainer.save_checkpoint(unfinished)
            if objects := self._objects_in(unfinished, trainer):
                self._cannot_be_loaded = True
                unfinished.unlink(missing_ok=True)
                log.warning(
                    "no checkpoints, so that this training cannot be resumed: a state_dict contains %s; keep tensors "
                    "and plain data there, or declare the type with torch.serialization.add_safe_globals",
                    ", ".join(objects),
                )
                return
            if trainer.is_global_zero:
                self._written.add(path.name, unfinished.stat())
                unfinished.replace(path)
                for old in [each for each in self.found() if self._written.has(each)][self.kept :]:
                    old.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            unfinished.unlink(missing_ok=True)
            log.warning("no checkpoint at step %d (%s); the training continues without it", trainer.global_step, error)
        finally:
            self._is_saving = False

    def _objects_in(self, path: Path, trainer: Trainer) -> list[str]:
        """Return what loading a checkpoint would execute; all processes return what the first one finds."""
        found = objects_in(path) if trainer.is_global_zero and path.is_file() else []
        return trainer.strategy.broadcast(found) if trainer.world_size > 1 else found

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state that Lightning does not store."""
        if self._is_saving:  # a ModelCheckpoint of the user's keeps them
            for name in [name for name in checkpoint if "hyper_parameters" in name or name.startswith("hparams_")]:
                del checkpoint[name]
        checkpoint[_KEY] = {
            "format": FORMAT,
            "version": version(),
            "random": _plain_random_state(),
            "seconds": self.seconds,
            "history": [file.text() for file in history_files(trainer.loggers)],
            "unlogged": _unlogged(trainer),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load the added state, and continue the history from the checkpoint."""
        state = checkpoint.get(_KEY)
        if state is None:
            raise CheckpointError("the checkpoint was not written by a run of lrbench_pl; train from the beginning")
        try:
            check_format(state.get("format", 1), state.get("version"))
        except NewerFormatError as error:
            raise NewerCheckpointError(f"the checkpoint in {self.folder} is {error}") from None
        self._random, self._seconds_before = state["random"], state["seconds"]
        for file, text in zip(history_files(trainer.loggers), state["history"], strict=False):
            file.continue_from(text)
            if state["unlogged"]:
                file.log_metrics(state["unlogged"], checkpoint["global_step"] - 1)
                file.save()


def history_in(checkpoint: Mapping[str, Any]) -> tuple[int, list[dict[str, float]]]:
    r"""Return the rows of ``metrics.csv`` in a checkpoint.

    Returns:
        The step at which they begin, and the rows, each with its ``step``. Without ``metrics.csv`` that step is the one
        of the checkpoint, and the only row is what the loggers had not received yet.

    Example:
        >>> state = {"history": ["loss,step\n0.5,0\n"], "unlogged": {"loss": 0.25}}
        >>> history_in({"global_step": 2, "lrbench_pl": state})
        (0, [{'loss': 0.5, 'step': 0.0}, {'loss': 0.25, 'step': 1.0}])
    """
    state, step = checkpoint.get(_KEY, {}), checkpoint["global_step"]
    rows = [{name: float(value) for name, value in row.items()} for row in parse("".join(state.get("history", ())[:1]))]
    first = 0 if rows else step
    if unlogged := state.get("unlogged"):
        rows.append({**unlogged, "step": float(step - 1)})
    return first, rows


class _InPlace(TorchCheckpointIO):
    """Writes a checkpoint through a temporary file in its own folder, and atomically.

    Lightning's own class holds all of it in memory and passes it through the folder of temporary files of the system,
    which may be another, smaller disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)


_running: list[Checkpoints] = []


def pause_all(reason: str) -> bool:
    """Request a checkpoint and the end of all trainings of this process.

    Returns:
        Whether there is a training.
    """
    for checkpoints in _running:
        checkpoints.pause(reason)
    return bool(_running)


_handlers: dict[int, Callable[[int, FrameType | None], None]] = {}


def pause_on(signals: Iterable[int], reason: str, interrupted: Callable[[int], None]) -> None:
    """Let signals pause the trainings of this process from now on; without a training they raise SystemExit.

    Args:
        signals: Numbers of the signals.
        reason: Why a training is stopped, for its message.
        interrupted: Called with each signal.
    """

    def handle(signum: int, frame: FrameType | None) -> None:
        interrupted(signum)
        if not pause_all(reason):
            raise SystemExit(reason)

    _handlers.update(dict.fromkeys(signals, handle))
    _handle_signals()


def _handle_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handle in _handlers.items():
            signal.signal(number, handle)


def check_intact(path: Path) -> None:
    """Verify that a checkpoint is undamaged, and that it contains tensors and plain data alone.

    Raises:
        CheckpointError: If it is damaged or truncated, or if loading it would execute code.
    """
    try:
        if not path.is_file():
            raise CheckpointError("expected a regular file")
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        objects = [] if damaged is not None else objects_in(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(str(error)) from error
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"expected a checkpoint of torch ({str(error).splitlines()[0]})") from error
    if damaged is not None:
        raise CheckpointError(f"the checksum of {damaged} in it is wrong")
    if objects:
        raise CheckpointError(
            f"expected tensors and plain data, got {', '.join(objects)}; it is not loaded, since that would execute "
            "code (a checkpoint of an earlier version can be finished with that version)"
        )


def plain_data() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which ``torch.load(weights_only=True)`` reads arrays of NumPy too.

    They are data. Checkpoints of earlier versions contain the random state as one.
    """
    kinds = [*_ARRAYS, *(type(np.dtype(name)) for name in ("u1", "i4", "u4", "i8", "u8", "f4", "f8", "?"))]
    return torch.serialization.safe_globals(kinds)


_REBUILD, _SCALAR = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
_ARRAYS: tuple[Any, ...] = (
    (_REBUILD, "numpy.core.multiarray._reconstruct"),  # of NumPy 1
    (_REBUILD, "numpy._core.multiarray._reconstruct"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.ndarray,
    np.dtype,
)


def objects_in(path: Path) -> list[str]:
    """Return the names of functions and classes that loading a file would need, without loading it.

    Raises:
        OSError: If it cannot be read.
        RuntimeError: If it is not a file of torch.
    """
    with plain_data():
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))


def _plain_random_state() -> dict[str, Any]:
    """Return the state of all random number generators, that of NumPy as a list of numbers."""
    states = _collect_rng_states()
    if "numpy" in states:
        kind, numbers, *rest = states["numpy"]
        states["numpy"] = (kind, numbers.tolist(), *rest)
    return states


def _check_follows(trainer: Trainer) -> bool:
    """Return whether the Trainer validates after this batch, before the next one."""
    loop = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))  # type: ignore[arg-type]


def _unlogged(trainer: Trainer) -> dict[str, float]:
    """Return the metrics of this step that the loggers have not received yet."""
    connector = trainer._logger_connector
    if not trainer.training or not connector.should_update_logs:
        return {}
    logged = {name: float(value) for name, value in connector.metrics["log"].items()}
    return {**logged, "epoch": trainer.current_epoch} if logged else {}
