"""Log runs with Lightning's loggers. A logger that fails never stops a training."""

from __future__ import annotations

import contextlib
import json
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers.logger import DummyLogger, Logger
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from lrbench_pl.callbacks.checkpoints import history_in
from lrbench_pl.files import CHECKPOINTS, checkpoints_in, write_atomically
from lrbench_pl.reading import read_json
from lrbench_pl.runs.options import one_line
from lrbench_pl.runs.result import Outcome, RunResult
from lrbench_pl.words import without_passwords

T = TypeVar("T")
Row = Mapping[str, float]

IDS_FILE = "loggers.json"
_LONGEST_ERROR = 300  # characters; some services return pages
# Fields of a result that are hyperparameters in a dashboard; its numbers are metrics.
_PARAMS = (
    *("policy", "optimizer", "lr", "seed", "status", "dataset", "model", "batch_size", "max_steps", "target"),
    *("monitor", "mode", "study"),
)
_NUMBERS = tuple(each.name for each in fields(Outcome) if "float" in str(each.type) or "int" in str(each.type))


def params_of(result: RunResult) -> dict[str, Any]:
    """Return the hyperparameters of a result, without those that are None."""
    return _given(result, _PARAMS)


def metrics_of(result: RunResult) -> dict[str, float]:
    """Return the numbers that a training has shown, as ``result/NAME``.

    Example:
        >>> metrics_of(RunResult(run_id="a", policy="tri", status="missed", best_value=0.9))
        {'result/best_value': 0.9}
    """
    return {f"result/{name}": value for name, value in _given(result, _NUMBERS).items()}


def _given(result: RunResult, names: Sequence[str]) -> dict[str, Any]:
    stored = result.to_dict()
    return {name: stored[name] for name in names if stored[name] is not None}


class RunLogger(Logger):
    """Log a training with a logger of Lightning, and stop logging at its first error.

    The error is a warning, and the training continues. The run of the service lasts from :meth:`open_with` to
    :meth:`close_with`, over fit and test. A subclass knows how a service stores a configuration and a result; this one
    uses what every logger has.

    Args:
        make: Creates the logger; it may be given further arguments.
        folder: Folder of the run.
        key: Name of the logger in the configuration.
        service: Name of the service, for messages.
    """

    shares_store = False  # whether all runs are in one store, which the first of them creates

    def __init__(self, make: Callable[..., Logger], folder: Path, key: str, service: str) -> None:
        super().__init__()
        self._make, self._folder, self._key, self._service = make, folder, key, service
        self._logger: Logger | None = None
        self._broken = False

    # -- the interface of Lightning's loggers ------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """Name of the experiment, as the logger calls it."""
        return self._read(lambda logger: logger.name)

    @property
    def version(self) -> int | str | None:
        """Version or id of the run, as the logger calls it."""
        return self._read(lambda logger: logger.version)

    @property
    def save_dir(self) -> str | None:
        """Folder of the logger's files, if it has one."""
        return self._read(lambda logger: logger.save_dir)

    @property
    def experiment(self) -> Any:
        """Object of the service, for images and the like; one that ignores everything after an error."""
        found = self._read(lambda logger: getattr(logger, "experiment", None))
        return DummyLogger().experiment if found is None else found

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values of one step."""
        self._use(lambda logger: logger.log_metrics(dict(metrics), step))

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Ignore the module's own: :meth:`open_with` logs the whole configuration."""

    def log_graph(self, model: Any, *args: Any, **kwargs: Any) -> None:
        """Log the graph of the model, if the logger does."""
        if (log := getattr(self._logger, "log_graph", None)) is not None:
            self._use(lambda _: log(model, *args, **kwargs))

    def save(self) -> None:
        """Write what is buffered."""
        self._use(lambda logger: logger.save())

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Pass a checkpoint of the user's own ``ModelCheckpoint`` on."""
        self._use(lambda logger: logger.after_save_checkpoint(checkpoint_callback))

    def finalize(self, status: str) -> None:
        """Write what is buffered; the run of the service ends with :meth:`close_with`."""
        self.save()

    # -- the run -----------------------------------------------------------------------------------------------

    @rank_zero_only
    def open_with(self, config: Mapping[str, Any], name: str, group: str | None) -> None:
        """Start the run of the service, or continue that of an interrupted training.

        Args:
            config: Configuration of the run.
            name: Name of the run.
            group: Name of its sweep.

        Raises:
            TypeError: If the logger does not take its arguments.
        """

        def start() -> None:
            self._logger = self._start(config, name, group)

        self._try(start)

    @rank_zero_only
    def begin(self, first: int, rows: Sequence[Row]) -> None:
        """Take up the history at the start of a fit.

        Args:
            first: Step from which the history is written anew.
            rows: The history from there up to the checkpoint, each row with its ``step``; none at the beginning.
        """
        self._use(lambda logger: self._take_up(logger, first, rows))

    @rank_zero_only
    def close_with(self, result: RunResult) -> None:
        """Log the result and end the run of the service."""
        self._use(lambda logger: self._end(logger, result))
        if self._broken and self._logger is not None:
            with contextlib.suppress(Exception):
                self._abandon(self._logger)

    # -- what differs between services --------------------------------------------------------------------------

    def _start(self, config: Mapping[str, Any], name: str, group: str | None) -> Logger:
        logger = self._make()
        _ = getattr(logger, "experiment", None)  # starts the run here, so that a failure is handled here
        logger.log_hyperparams({**config, "group": group})
        return logger

    def _take_up(self, logger: Logger, first: int, rows: Sequence[Row]) -> None:
        """Continue the history; a logger about which nothing is known cannot."""

    def _end(self, logger: Logger, result: RunResult) -> None:
        logger.log_metrics(metrics_of(result), result.steps_run or 0)
        logger.finalize("success" if has_ended(result) else "failed")

    def _abandon(self, logger: Logger) -> None:
        """End the run of a service that has failed."""
        logger.finalize("failed")

    # -- errors --------------------------------------------------------------------------------------------------

    def _use(self, action: Callable[[Logger], object]) -> None:
        logger = self._logger
        if logger is not None:
            self._try(lambda: action(logger))

    def _read(self, value: Callable[[Logger], T]) -> T | None:
        found: list[T] = []
        self._use(lambda logger: found.append(value(logger)))
        return found[0] if found else None

    def _try(self, action: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # any error of the service
            if self._logger is None and isinstance(error, TypeError):  # of the configuration
                raise
            self._broken = True
            kind = type(error).__name__
            text = without_passwords(one_line(error).removeprefix(f"{kind}: "))
            shown = text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}…"
            rank_zero_warn(f"{self._service} failed ({kind}: {shown}); the training continues without it")

    # -- the id of the service's run, in the folder ---------------------------------------------------------------

    @property
    def _has_checkpoint(self) -> bool:
        """Whether the training will resume, so that its run of the service is continued."""
        return bool(checkpoints_in(self._folder / CHECKPOINTS))

    def _stored_id(self) -> str | None:
        found = _stored_ids(self._folder).get(self._key)
        return found if isinstance(found, str) else None

    def _store_id(self, run: str) -> None:
        stored = {**_stored_ids(self._folder), self._key: run}
        write_atomically(self._folder / IDS_FILE, json.dumps(stored, indent=2) + "\n")


def has_ended(result: RunResult) -> bool:
    """Return whether a training ended by itself: not by an error or an interruption."""
    return result.status in ("reached", "missed", "diverged")


def _log_rows(logger: Logger, rows: Iterable[Row]) -> None:
    for row in rows:
        logger.log_metrics({name: value for name, value in row.items() if name != "step"}, int(row["step"]))


def _stored_ids(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / IDS_FILE)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class TensorBoardRun(RunLogger):
    """Log a training with a :class:`TensorBoardLogger`: its history, and its result as HParams.

    What an interrupted training wrote is hidden by TensorBoard, and the history of the checkpoint written anew, so that
    no point is missing or double. A run that failed or was stopped has HParams once it has been resumed and has ended.
    """

    def _start(self, config: Mapping[str, Any], name: str, group: str | None) -> Logger:
        logger: Any = self._make()
        self._is_continued = any(Path(logger.log_dir).glob("events.out.tfevents.*"))
        logger.hparams.update(config)  # for its file hparams.yaml
        _ = logger.experiment  # creates its file here, so that a failure is handled here
        return logger  # type: ignore[no-any-return]

    def _take_up(self, logger: Any, first: int, rows: Sequence[Row]) -> None:
        if self._is_continued:
            writer = logger.experiment
            writer.close()
            writer.purge_step = first  # of its next file, which replaces everything from that step on
        _log_rows(logger, rows)
        self._is_continued = True  # a second start of this fit, from an older checkpoint

    def _end(self, logger: Any, result: RunResult) -> None:
        if has_ended(result):  # TensorBoard shows the first HParams of a folder, and others may be resumed
            params = {**params_of(result), **_settings(result)}
            logger.log_hyperparams(params, metrics_of(result), result.steps_run or 0)
        logger.finalize("success")


def _settings(result: RunResult) -> dict[str, Any]:
    """Return the settings of policy and optimizer, such as ``lr_policy.period``."""
    parts = ("lr_policy.", "optimizer.")
    kept = {name: value for name, value in (result.settings or {}).items() if name.startswith(parts)}
    return {name: value for name, value in kept.items() if isinstance(value, (bool, int, float, str))}


class MLflowRun(RunLogger):
    """Log a training with an :class:`MLFlowLogger`: configuration, names, history and result.

    The configuration is logged as params, its names, status and message as tags, history and numbers of the result as
    metrics. The run of an interrupted training is continued; points that it has already are not logged twice. A
    training that starts from the beginning has a new run.
    """

    shares_store = True
    _last: Mapping[str, int] = MappingProxyType({})  # the latest step of each metric that the run has already

    def _start(self, config: Mapping[str, Any], name: str, group: str | None) -> Logger:
        from mlflow.exceptions import MlflowException

        before = self._stored_id()
        logger: Any = None
        if before is not None:
            with contextlib.suppress(MlflowException):  # it was deleted, or is in another store
                logger = self._continued(before)
        if logger is None:
            logger = self._make()
            self._store_id(logger.run_id)
            logger.log_hyperparams(config)
        names = config.get("names") or {}
        tags = {**{str(key): value for key, value in names.items()}, "group": group, "folder": str(self._folder)}
        for key, value in tags.items():
            if value is not None:
                logger.experiment.set_tag(logger.run_id, key, str(value))
        return logger  # type: ignore[no-any-return]

    def _continued(self, run: str) -> Any:
        """Return a logger of an earlier run; None if the training starts from the beginning."""
        logger: Any = self._make(run_id=run)
        client = logger.experiment
        if not self._has_checkpoint:
            if client.get_run(run).info.status == "RUNNING":  # of a killed process
                client.set_terminated(run, "KILLED")
            return None
        client.update_run(run, status="RUNNING")
        names = client.get_run(run).data.metrics
        self._last = {name: max(each.step for each in client.get_metric_history(run, name)) for name in names}
        return logger

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values of one step, except those that the continued run has already."""
        new = {name: value for name, value in metrics.items() if (step or 0) > self._last_step(name)}
        if new:
            super().log_metrics(new, step)

    def _last_step(self, name: str) -> int:
        return self._last.get(name, -1)

    def _take_up(self, logger: Any, first: int, rows: Sequence[Row]) -> None:
        _log_rows(self, rows)

    def _end(self, logger: Any, result: RunResult) -> None:
        for name in ("status", "message"):
            if (value := getattr(result, name)) is not None:
                logger.experiment.set_tag(logger.run_id, name, value)
        logger.log_metrics(metrics_of(result), result.steps_run or 0)
        logger.finalize("success" if has_ended(result) else "KILLED" if result.status == "stopped" else "failed")


class AimRun(RunLogger):
    """Log a training with Aim's own logger: configuration, history and result.

    The run of an interrupted training is continued; Aim stores one value for each step.
    """

    shares_store = True

    def _start(self, config: Mapping[str, Any], name: str, group: str | None) -> Logger:
        before = self._stored_id() if self._has_checkpoint else None
        logger: Any = None
        if before is not None:
            with contextlib.suppress(Exception):  # it was deleted, or is in another repository
                logger = self._make(run_hash=before)
                _ = logger.experiment
        if logger is None or before is None:
            logger = self._make()
            self._store_id(logger.experiment.hash)
            logger.log_hyperparams(config)
        logger.experiment["group"] = group
        return logger  # type: ignore[no-any-return]

    def _take_up(self, logger: Any, first: int, rows: Sequence[Row]) -> None:
        _log_rows(logger, rows)

    def save(self) -> None:
        """Do nothing: Aim writes by itself."""

    def _end(self, logger: Any, result: RunResult) -> None:
        run = logger.experiment
        run["result"] = {name: value for name, value in result.to_dict().items() if value is not None}
        run.add_tag(result.status)
        logger.finalize("success")


_KINDS: dict[str, tuple[type[RunLogger], str]] = {
    "TensorBoardLogger": (TensorBoardRun, "TensorBoard"),
    "MLFlowLogger": (MLflowRun, "MLflow"),
    "AimLogger": (AimRun, "Aim"),
}


def run_logger(make: Callable[..., Logger], kind: Any, folder: Path, key: str) -> RunLogger:
    """Return the logger of a run for a logger of Lightning.

    Args:
        make: Creates the logger.
        kind: Its class.
        folder: Folder of the run.
        key: Name of the logger in the configuration.
    """
    names = [each.__name__ for each in getattr(kind, "__mro__", ())]  # each of Lightning's two packages has its own
    known = (_KINDS[name] for name in names if name in _KINDS)
    found, service = next(known, (RunLogger, f"logger.{key}"))
    return found(make, folder, key, service)


class TakeUpHistory(Callback):
    """Callback that lets the loggers of a run continue the history of a checkpoint."""

    def __init__(self) -> None:
        self._history: tuple[int, Sequence[Row]] = 0, ()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the history from the checkpoint."""
        self._history = history_in(checkpoint)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass it to the loggers."""
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.begin(*self._history)
