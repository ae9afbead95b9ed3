"""Run a selection as a Hydra sweeper: a launcher runs its trials, their folders store the results."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrbench_pl.files import NewerFormatError, ResultError, write_atomically
from lrbench_pl.overrides import quoted_path
from lrbench_pl.policies import cut, stretched, to_config
from lrbench_pl.reading import read_json
from lrbench_pl.runs.config import program_options, quoted
from lrbench_pl.runs.describe import run_id
from lrbench_pl.runs.folder import finished_result
from lrbench_pl.runs.hydra_files import write_multirun
from lrbench_pl.runs.options import one_line
from lrbench_pl.runs.result import RESULT_FILE, RunResult
from lrbench_pl.selection.request import Request, SelectionError, compose_trial, read_request
from lrbench_pl.selection.select import Batches, select
from lrbench_pl.selection.selection_file import SELECTION_FILE, differences, read_asked, read_selection, write_selection
from lrbench_pl.selection.summary import summary
from lrbench_pl.selection.trials import Candidate, Selection, Trial, TrialResult, exact

_EXIT_MISSED, _EXIT_STOPPED = 3, 130


class Race:
    """One selection in one folder.

    Args:
        loader: Hydra's, which composes configurations.
        launcher: Runs batches of jobs.
        config: Configuration of the sweep.
    """

    request: Request

    def __init__(self, loader: ConfigLoader, launcher: Launcher, config: DictConfig) -> None:
        self._loader, self._launcher, self._config = loader, launcher, config
        self.folder = Path(str(config.hydra.sweep.dir))
        self._launched = 0

    def run(self, arguments: Sequence[str], options: Mapping[str, Any]) -> Selection:
        """Run a selection, or continue one that was interrupted in this folder.

        Args:
            arguments: Overrides of the command line.
            options: Options of ``conf/hydra/sweeper/lrbench.yaml``.

        Returns:
            The outcome, which is also in ``selection.json``. The policy is in ``policy.yaml``.

        Raises:
            SelectionError: If the selection cannot be run.
        """
        try:
            self.request = read_request(self._loader, self._config, self.folder, arguments, options)
            self._begin()
            found = Selection()
            self._play(select(self.request.options, self.request.task, found), found)
        except (KeyboardInterrupt, SystemExit):
            print(f"selection: interrupted; continue with hydra.sweep.dir={self.folder}", flush=True)
            sys.exit(_EXIT_STOPPED)
        except (ValueError, ResultError, OmegaConfBaseException, HydraException) as error:
            if isinstance(error, SelectionError):
                raise
            raise SelectionError(one_line(error)) from error
        self._end(found)
        if found.status != "reached" and self._config.require_target:
            sys.exit(_EXIT_MISSED)
        return found

    def _begin(self) -> None:
        """Store the request, or require that the folder contains the same one."""
        if not (self.folder / SELECTION_FILE).exists():
            write_multirun(self._config)
            write_selection(self.folder, self.request.asked, None)
            return
        try:
            before = read_asked(self.folder)
        except NewerFormatError:
            raise
        except ResultError as error:
            raise SelectionError(f"{error}; give another hydra.sweep.dir") from error
        if (changes := differences(before, self.request.asked)) is not None:
            raise SelectionError(f"{self.folder} contains another selection: {changes}; give another hydra.sweep.dir")

    # -- trials -----------------------------------------------------------------------------------------------

    def _play(self, plan: Batches, found: Selection) -> None:
        """Run all batches of a plan; print a line after each."""
        printed = 0
        results: list[TrialResult] | None = None
        while True:
            try:
                trials = plan.send(results)  # type: ignore[arg-type]  # None starts a generator
            except StopIteration:
                trials = None
            for line in found.lines[printed:]:
                print(f"selection: {line}", flush=True)
            printed = len(found.lines)
            if trials is None:
                return
            results = self._run_batch(trials)

    def _run_batch(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Run the trials of a batch that have not finished yet; return all results."""
        overrides = [self.overrides(trial) for trial in trials]
        ids = [run_id(compose_trial(self._loader, self._config, lines)) for lines in overrides]
        due = [i for i, trial in enumerate(trials) if finished_result(self._folder(trial), ids[i]) is None]
        errors: dict[int, Any] = {}
        if due:
            returns = self._launcher.launch([overrides[i] for i in due], initial_job_idx=self._launched)
            self._launched += len(due)
            errors = {i: ret._return_value for i, ret in zip(due, returns, strict=True)}
        results, failed = [], []
        for i, trial in enumerate(trials):
            path = self._folder(trial) / RESULT_FILE
            if not path.exists():
                raise SelectionError(f"{path.parent}: the trial wrote no result ({errors.get(i)})")
            result = RunResult.read(path)
            if result.status == "stopped":
                raise KeyboardInterrupt
            if result.status == "failed":
                failed.append(f"{trial.candidate}: {result.message}")
            results.append(_trial_result(result, path.parent))
        if len(failed) == len(trials):
            raise SelectionError(f"every trial failed; the first: {failed[0]}")
        return results

    def overrides(self, trial: Trial) -> list[str]:
        """Return the overrides of a trial, with its folder."""
        candidate, request = trial.candidate, self.request
        lines = dict(request.overrides)
        if request.has_optimizers:
            lines["optimizer"] = f"optimizer={candidate.optimizer}"
        if candidate.lr is None:
            lines["lr_policy_file"] = f"lr_policy_file={quoted(str(self._resized(candidate.policy, trial.horizon)))}"
        else:
            lines["lr_policy"] = f"lr_policy={candidate.policy}"
            lines["lr"] = f"lr={candidate.lr!r}"
        if trial.kind == "range":
            lines["target"] = "target=null"
        interval = trial.horizon if trial.kind == "range" else request.task.interval
        own = [
            *request.steps_only,
            f"max_steps={trial.horizon}",
            f"check_every={interval}",
            "stop_at_target=true",
            f"seed={trial.seed}",
        ]
        own += [f"checkpoint_every={request.checkpoint_every}", "require_target=false"]  # meant for the whole selection
        return [*lines.values(), *own, f"hydra.sweep.subdir={quoted(self._subdir(trial))}"]

    def _subdir(self, trial: Trial) -> str:
        return f"{trial.horizon}-steps/{_stem(trial.candidate)}-seed-{trial.seed}"

    def _folder(self, trial: Trial) -> Path:
        return self.folder / self._subdir(trial)

    def _resized(self, path: str, horizon: int) -> Path:
        """Return the file of a policy stretched to a horizon, which is written if it does not exist."""
        file = self.folder / "from_files" / f"{_stem(Candidate(path, 'any'))}-{horizon}-steps.yaml"
        if not file.exists():
            factor = horizon / _own_horizon(Path(path), self.request.task.max_steps)
            policy = cut(stretched(self.request.policies[path], factor), horizon)
            write_atomically(file, OmegaConf.to_yaml(OmegaConf.create(to_config(policy))))
        return file

    # -- the outcome ------------------------------------------------------------------------------------------

    def _end(self, found: Selection) -> None:
        """Write ``policy.yaml`` and ``selection.json``, and print a summary with the command to run next."""
        policy = self.folder / "policy.yaml"
        if found.winner is not None:
            runs = self.folder.glob(f"{found.horizon}-steps/{_stem(found.winner)}-seed-*/policy.yaml")
            write_atomically(policy, min(runs).read_text(encoding="utf-8"))
        write_selection(self.folder, self.request.asked, found)
        print("\n" + "\n".join(summary(found, self.request.target)))
        if found.winner is not None:
            lines = [
                *program_options(self._config.hydra),
                *self.request.overrides.values(),
                *([f"optimizer={found.winner.optimizer}"] if self.request.has_optimizers else []),
            ]
            interval = self.request.task.interval
            lines += [
                f"lr_policy_file={quoted_path(policy)}",
                *self.request.steps_only,
                f"max_steps={found.horizon}",
                f"check_every={interval}",
            ]
            print("\nrun it: lrbench run " + shlex.join(lines), flush=True)


def _stem(candidate: Candidate) -> str:
    """Return a name for the folders of a candidate, different for each."""
    if candidate.lr is not None:
        return f"{candidate.policy}-{candidate.optimizer}-{exact(candidate.lr)}"
    path = Path(candidate.policy)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{path.parent.name}-{path.stem}")
    return f"{name}-{hashlib.sha256(candidate.policy.encode()).hexdigest()[:6]}-{candidate.optimizer}"


def _own_horizon(path: Path, otherwise: int) -> int:
    """Return the steps a policy was made for, from the files beside it, or else ``otherwise``."""
    try:
        if (path.parent / SELECTION_FILE).exists():
            return int(read_selection(path.parent)["found"]["horizon"])
        result = RunResult.read(path.parent / RESULT_FILE)
    except NewerFormatError:
        raise
    except (ResultError, ValueError, KeyError, TypeError):
        return otherwise
    composed = result.steps_run - result.tuning_steps if result.tuning_steps and result.steps_run else None
    return composed or result.max_steps or otherwise


def _trial_result(result: RunResult, folder: Path) -> TrialResult:
    """Return the result of a run as that of a trial, with the losses of a range test."""
    losses: tuple[float, ...] = ()
    if (records := folder / "tuning.json").exists():
        try:
            found = read_json(records)[0].get("losses", ())
            losses = tuple(math.nan if loss is None else float(loss) for loss in found)
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise SelectionError(
                f"{records}: cannot be read ({one_line(error)}); remove the folder {folder}"
            ) from error
    return TrialResult(
        status=result.status,
        steps=0 if result.shared_with else result.steps_run or 0,  # an equal policy was trained instead
        steps_to_target=result.steps_to_target,
        value=result.best_value,
        seconds=0.0 if result.shared_with else result.wall_time_s or 0.0,
        message=result.message or "",
        losses=losses,
    )
