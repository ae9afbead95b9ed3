"""The Hydra side of selecting: the plan's jobs go to a launcher, their folders are the memory."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, Transformer
from hydra.errors import CompactHydraException, HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrbench_pl.files import ResultError, write_atomically
from lrbench_pl.policies import Policy, cut, stretched, to_config
from lrbench_pl.policies import _checks as check
from lrbench_pl.runs.config import program_options, quoted, read_policy
from lrbench_pl.runs.describe import identity, run_id
from lrbench_pl.runs.folder import finished_result
from lrbench_pl.runs.options import is_callback, one_line
from lrbench_pl.runs.result import RESULT_FILE, RunResult
from lrbench_pl.runs.spec import RunSpec, readable
from lrbench_pl.selection.lookup import Question, ask
from lrbench_pl.selection.select import Candidate, Job, Row, Selection, Settings, Task, exact, select
from lrbench_pl.words import counted

SELECTION_FILE = "selection.json"
_POOL = (
    "lr_policy",
    "lr",
    "optimizer",
    "lr_policy_file",
    "seed",
)  # what may have several values, and is given by the plan
_FORCED = ("max_steps", "check_every", "checkpoint_every", "stop_at_target")  # what else is given by the plan
_OWN = ("db", "known", "params")  # options that are not settings of the plan
_MAX_DISTANCE = 4.0  # of runs in the database, as in conf/lr_policy/best.yaml
_EXIT_MISSED, _EXIT_STOPPED = 3, 130
_PLAIN_PATH = re.compile(r"[\w./+-]*/[\w./+-]*", re.ASCII)  # which Hydra reads whole without quotes


class SelectionError(CompactHydraException):
    """A selection that cannot be run as it is; Hydra shows the message as one line."""


class Race:
    """One selection in one folder.

    Args:
        loader: Hydra's, which composes jobs.
        launcher: Runs batches of jobs.
        config: The configuration of the sweep.
    """

    def __init__(
        self,
        loader: ConfigLoader,
        launcher: Launcher,
        config: DictConfig,
    ) -> None:
        self._loader, self._launcher, self._config = loader, launcher, config
        self.folder = Path(str(config.hydra.sweep.dir))
        self._lines: dict[str, str] = {}  # overrides that every job gets
        self._pools_optimizers = False
        self._max_steps = self._interval = 0
        self._checkpoint_every = "null"  # as for the whole budget: a short training needs none
        self._files: dict[str, Policy] = {}
        self._launched = 0
        self._asked: dict[str, Any] = {}

    def run(self, arguments: Sequence[str], options: Mapping[str, Any]) -> Selection:
        """Select, or go on with a selection that was interrupted in this folder.

        Args:
            arguments: The overrides of the command line.
            options: Those of ``conf/hydra/sweeper/lrbench.yaml``.

        Returns:
            What was found; it is also in ``selection.json``, and its policy in ``policy.yaml``.

        Raises:
            SelectionError: If something cannot be run as it is.
        """
        try:
            settings, task = self._read(arguments, options)
            self._begin(settings, task)
            found = Selection()
            plan = select(settings, task, found)
            self._play(plan, found)
        except (KeyboardInterrupt, SystemExit):
            print(f"selection: interrupted; start it again with hydra.sweep.dir={self.folder} to go on", flush=True)
            sys.exit(_EXIT_STOPPED)
        except (ValueError, ResultError, OmegaConfBaseException, HydraException) as error:
            if isinstance(error, SelectionError):
                raise
            raise SelectionError(one_line(error)) from error
        self._end(found)
        if found.status != "reached" and self._config.require_target:
            sys.exit(_EXIT_MISSED)
        return found

    # -- before the first job -------------------------------------------------------------------------------

    def _read(self, arguments: Sequence[str], options: Mapping[str, Any]) -> tuple[Settings, Task]:
        """Settings and task from the options and overrides."""
        given = {key: value for key, value in options.items() if key not in _OWN}
        known = [field.name for field in fields(Settings)]
        if unknown := [key for key in given if key not in known]:
            raise SelectionError(f"hydra.sweeper has no option {unknown[0]!r}; it takes {', '.join([*known, *_OWN])}")
        params = [f"{key}={value}" for key, value in (options.get("params") or {}).items()]
        parser = OverridesParser.create(config_loader=self._loader)
        pool: dict[str, list[str]] = {}
        for override in parser.parse_overrides([*params, *arguments]):  # the command line comes last: its word stays
            key, values = override.get_key_element(), _values(override)
            if key in _POOL:
                pool[key] = values
            elif len(values) > 1:
                raise SelectionError(
                    f"expected one value for {key}, got {', '.join(values)}; selecting takes several only for "
                    f"{', '.join(_POOL)}"
                )
            else:
                self._lines[key] = f"{key}={values[0]}" if override.is_sweep_override() else str(override.input_line)
        self._pools_optimizers = "optimizer" in pool
        lines = [*self._lines.values()]
        plain = self._compose(lines)
        configs = [self._compose([*lines, f"optimizer={name}"]) for name in pool.get("optimizer", ())]
        base = (configs or [plain])[0]
        if base.target is None:
            raise SelectionError("selecting needs a target; give target=")
        self._max_steps, self._interval = int(base.max_steps), int(base.check_every)
        self._checkpoint_every = "null" if base.checkpoint_every is None else str(base.checkpoint_every)
        names = [str(cfg.names.optimizer) for cfg in configs or [base]]
        paths = [(path, name) for path in pool.get("lr_policy_file", ()) for name in names]
        files = [*self._from_database(configs or [base], options.get("db"), options.get("known", 0)), *paths]
        self._files = {path: read_policy(path) for path in dict.fromkeys(path for path, _ in files)}
        settings = Settings(**{**given, **({"shapes": tuple(pool["lr_policy"])} if "lr_policy" in pool else {})})
        task = Task(
            max_steps=self._max_steps,
            interval=self._interval,
            optimizers={name: float(cfg.lr) for name, cfg in zip(names, configs or [base], strict=True)},
            seeds=tuple(_numbers("seed", pool["seed"], int)) if "seed" in pool else (int(base.seed),),
            mode=base.mode,
            files=tuple(files),
            rates=tuple(_numbers("lr", pool.get("lr", ()), float)),
        )
        for shape in settings.shapes:
            if is_callback(self._compose([*lines, f"lr_policy={shape}"]).lr_policy):
                raise SelectionError(f"expected shapes of policies, got lr_policy={shape}, which is none; leave it out")
        self._asked = {
            "settings": _plain(asdict(settings)),
            "task": _plain(asdict(task)),
            "configuration": _plain(identity(plain)),
        }
        for key in _FORCED:
            self._lines.pop(key, None)
        return settings, task

    def _from_database(self, configs: Sequence[DictConfig], db: str | None, most: Any) -> list[tuple[str, str]]:
        """What the policy database recommends for each optimizer, as files; those of an interrupted selection stay."""
        folder = self.folder / "from_database"
        check.count("known", most, least=0)
        if most and not (self.folder / SELECTION_FILE).exists():
            for cfg in configs:
                question = Question.from_task(RunSpec.from_config(cfg).task)
                answer, _ = ask(question, db, _MAX_DISTANCE, say=lambda line: print(f"selection: {line}"))
                for number, each in enumerate(answer.recommendations[:most] if answer is not None else (), 1):
                    print(f"selection: the policy database knows {each}", flush=True)
                    text = OmegaConf.to_yaml(OmegaConf.create(to_config(each.policy)))
                    write_atomically(folder / f"{number}-{question.optimizer}.yaml", text)
        names = {str(cfg.names.optimizer) for cfg in configs}
        found = [(str(path), path.stem.partition("-")[2]) for path in sorted(folder.glob("*.yaml"))]
        return [(path, name) for path, name in found if name in names]

    def _begin(self, settings: Settings, task: Task) -> None:
        """Write down what is selected, or see that it is what was selected here before."""
        path = self.folder / SELECTION_FILE
        if path.exists():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))["asked"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise SelectionError(
                    f"{path}: cannot be read as a selection ({error!r}); give another hydra.sweep.dir"
                ) from error
            before = _of_this_format(before)
            if before != self._asked:
                there, here = (
                    _flat({**asked, "configuration": readable(asked["configuration"])})
                    for asked in (before, self._asked)
                )
                keys = [key for key in {*there, *here} if there.get(key) != here.get(key)]
                keys.sort(key=lambda key: (key.startswith("task."), key.count("."), key))  # what the user gave first
                shown = [f"{key.partition('.')[2]} was {there.get(key)!r}, is {here.get(key)!r}" for key in keys[:3]]
                more = f"; and {len(keys) - 3} more" if len(keys) > 3 else ""
                raise SelectionError(
                    f"{self.folder} holds another selection: {'; '.join(shown)}{more}; give another hydra.sweep.dir"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self._config, self.folder / "multirun.yaml")
        write_atomically(path, json.dumps({"asked": self._asked, "found": None}, indent=2) + "\n")

    # -- the jobs -------------------------------------------------------------------------------------------

    def _play(self, plan: Any, found: Selection) -> None:
        """Run the plan to its end; say a line after each batch."""
        said = 0
        rows: list[Row] | None = None
        while True:
            try:
                jobs = plan.send(rows)
            except StopIteration:
                jobs = None
            for line in found.lines[said:]:
                print(f"selection: {line}", flush=True)
            said = len(found.lines)
            if jobs is None:
                return
            rows = self._run(jobs)

    def _run(self, jobs: Sequence[Job]) -> list[Row]:
        """The rows of a batch; jobs that are finished already are not run again."""
        overrides = [self.overrides(job) for job in jobs]
        ids = [run_id(self._compose(lines)) for lines in overrides]
        due = [index for index, job in enumerate(jobs) if finished_result(self._job_folder(job), ids[index]) is None]
        errors: dict[int, Any] = {}
        if due:
            returns = self._launcher.launch([overrides[index] for index in due], initial_job_idx=self._launched)
            self._launched += len(due)
            errors = {index: ret._return_value for index, ret in zip(due, returns, strict=True)}
        rows, failed = [], []
        for index, job in enumerate(jobs):
            path = self._job_folder(job) / RESULT_FILE
            if not path.exists():
                raise SelectionError(f"{path.parent}: the job left no row ({errors.get(index)})")
            result = RunResult.read(path)
            if result.status == "stopped":
                raise KeyboardInterrupt
            if result.status == "failed":
                failed.append(f"{job.candidate}: {result.message}")
            rows.append(_row(result, path.parent))
        if len(failed) == len(jobs):
            raise SelectionError(f"every job failed; the first, {failed[0]}")
        return rows

    def overrides(self, job: Job) -> list[str]:
        """The overrides of a job, its folder among them."""
        candidate = job.candidate
        lines = dict(self._lines)
        if self._pools_optimizers:
            lines["optimizer"] = f"optimizer={candidate.optimizer}"
        if candidate.lr is None:
            lines["lr_policy_file"] = f"lr_policy_file={quoted(str(self._resized(candidate.policy, job.horizon)))}"
        else:
            lines["lr_policy"] = f"lr_policy={candidate.policy}"
            lines["lr"] = f"lr={candidate.lr!r}"
        if job.kind == "range":
            lines["target"] = "target=null"
        every = job.horizon if job.kind == "range" else self._interval
        given = [f"max_steps={job.horizon}", f"check_every={every}", "stop_at_target=true", f"seed={job.seed}"]
        given += [f"checkpoint_every={self._checkpoint_every}", "require_target=false"]  # of the selection as a whole
        return [*lines.values(), *given, f"hydra.sweep.subdir={quoted(self._subdir(job))}"]

    def _subdir(self, job: Job) -> str:
        return f"{job.horizon}-steps/{_stem(job.candidate)}-seed-{job.seed}"

    def _resized(self, path: str, horizon: int) -> Path:
        """The policy of a file over this horizon, as a file in the folder of the selection."""
        file = self.folder / "from_files" / f"{_stem(Candidate(path, 'any'))}-{horizon}-steps.yaml"
        if not file.exists():
            policy = stretched(self._files[path], horizon / _own_horizon(Path(path), self._max_steps))
            write_atomically(file, OmegaConf.to_yaml(OmegaConf.create(to_config(cut(policy, horizon)))))
        return file

    def _job_folder(self, job: Job) -> Path:
        return self.folder / self._subdir(job)

    def _compose(self, lines: Sequence[str]) -> DictConfig:
        """The configuration that a job of these overrides gets."""
        cfg = self._loader.load_sweep_config(self._config, list(lines))
        HydraConfig.instance().set_config(cfg)
        OmegaConf.resolve(cfg.names)  # it reads the choices from the singleton, which the next one replaces
        return cfg

    # -- after the last job ---------------------------------------------------------------------------------

    def _end(self, found: Selection) -> None:
        """``policy.yaml``, ``selection.json`` and a summary on the terminal."""
        policy = self.folder / "policy.yaml"
        if found.winner is not None:
            runs = self.folder.glob(f"{found.horizon}-steps/{_stem(found.winner)}-seed-*/policy.yaml")
            write_atomically(policy, min(runs).read_text(encoding="utf-8"))
        stored = {"asked": self._asked, "found": _plain(asdict(found))}
        write_atomically(self.folder / SELECTION_FILE, json.dumps(stored, indent=2) + "\n")
        print("\n" + "\n".join(summary(found, self._asked["configuration"]["task"]["target"])))
        if found.winner is not None:
            lines = [
                *program_options(self._config.hydra),
                *self._lines.values(),
                *([f"optimizer={found.winner.optimizer}"] if self._pools_optimizers else []),
            ]
            path = str(policy) if _PLAIN_PATH.fullmatch(str(policy)) else quoted(str(policy))
            lines += [f"lr_policy_file={path}", f"max_steps={found.horizon}", f"check_every={self._interval}"]
            print("\nrun it: lrbench run " + shlex.join(lines), flush=True)


def summary(found: Selection, target: float) -> list[str]:
    r"""What was found, for a person.

    Example:
        >>> winner = Candidate("cosine", "adam", 0.002)
        >>> found = Selection(winner, 120, "reached", confirmed=2, asked=2, steps=900, seconds=7.5, jobs=21)
        >>> print("\n".join(summary(found, 0.96)))
        selected: cosine at 0.002 (adam) reaches 0.96 within 120 steps, on 2 of 2 fresh seeds
        tuning cost: 900 steps in 21 trainings, 7.5 s
    """
    if found.winner is None:
        lines = [f"nothing selected: no training fits the tuning budget; target {target:g}"]
    elif found.status == "missed":
        best = next(standing for standing in found.ranking if standing.candidate == found.winner)
        value = "no value" if best.value is None else f"{best.value:.4g}"
        lines = [f"missed {target:g}: the best found is {found.winner} over {counted(found.horizon, 'step')}, {value}"]
    else:
        sure = f"on {found.confirmed} of {found.asked} fresh seeds" if found.asked else "on no fresh seed"
        lines = [f"selected: {found.winner} reaches {target:g} within {counted(found.horizon, 'step')}, {sure}"]
    first = (
        "" if found.steps_to_first is None else f"; the first to reach the target ended after {found.steps_to_first}"
    )
    spent = f"{counted(found.steps, 'step')} in {counted(found.jobs, 'training')}"
    lines.append(f"tuning cost: {spent}, {found.seconds:.1f} s{first}")
    if found.ranking:
        names = [str(standing.candidate) for standing in found.ranking]
        width = max(map(len, names))
        lines += ["", f"    {'ranking':{width}}  horizon  reached   steps    best"]
        for place, (name, standing) in enumerate(zip(names, found.ranking, strict=True), 1):
            steps = "∞" if standing.steps is None else f"{standing.steps:g}"
            value = "-" if standing.value is None else f"{standing.value:.4f}"
            reached = f"{standing.reached}/{standing.runs}"
            lines.append(f"{place:>3} {name:{width}} {standing.horizon:>8} {reached:>8} {steps:>7} {value:>7}")
    if found.avoided:
        lines += ["", "avoided", *(f"  {words}" for words in found.avoided)]
    return lines


def _stem(candidate: Candidate) -> str:
    """A name for folders, of one candidate alone."""
    if candidate.lr is not None:
        return f"{candidate.policy}-{candidate.optimizer}-{exact(candidate.lr)}"
    path = Path(candidate.policy)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{path.parent.name}-{path.stem}")
    return f"{name}-{hashlib.sha256(candidate.policy.encode()).hexdigest()[:6]}-{candidate.optimizer}"


def _own_horizon(path: Path, otherwise: int) -> int:
    """The steps for which a policy was made, as far as the folder that holds it says so."""
    try:
        if (selection := path.parent / SELECTION_FILE).exists():
            return int(json.loads(selection.read_text(encoding="utf-8"))["found"]["horizon"])
        row = RunResult.read(path.parent / RESULT_FILE)
    except (ResultError, OSError, ValueError, KeyError, TypeError):
        return otherwise
    composed = row.steps_run - row.tuning_steps if row.tuning_steps and row.steps_run else None
    return composed or row.max_steps or otherwise


def _row(result: RunResult, folder: Path) -> Row:
    """A result row as the plan wants it; with the losses, if it was a range test."""
    losses: tuple[float, ...] = ()
    if (records := folder / "tuning.json").exists():
        found = json.loads(records.read_text(encoding="utf-8"))[0].get("losses", ())
        losses = tuple(math.nan if loss is None else float(loss) for loss in found)
    return Row(
        status=result.status,
        steps=0 if result.shared_with else result.steps_run or 0,  # an equal policy has trained for it
        steps_to_target=result.steps_to_target,
        value=result.best_value,
        seconds=0.0 if result.shared_with else result.wall_time_s or 0.0,
        message=result.message or "",
        losses=losses,
    )


def _values(override: Override) -> list[str]:
    """The values that an override gives to its key."""
    if not override.is_sweep_override():
        return [str(override.value())]
    if not override.is_discrete_sweep():
        raise SelectionError(f"expected a list of values, got {override.input_line}")
    values = override.sweep_iterator(transformer=Transformer.identity)
    return [value.text if isinstance(value, QuotedString) else str(value) for value in values]


def _numbers(key: str, values: Sequence[str], kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(value) for value in values]
    except ValueError:
        raise SelectionError(f"{key} must be numbers, got {', '.join(values)}") from None


def _of_this_format(asked: Any) -> Any:
    """What was asked, its configuration as a specification also where format 1 wrote it."""
    try:
        if "task" in asked["configuration"]:
            return asked
        return {**asked, "configuration": _plain(RunSpec.from_format_1(asked["configuration"]).to_dict())}
    except (TypeError, KeyError, ValueError) as error:
        raise SelectionError(
            f"the selection there cannot be compared ({error}); give another hydra.sweep.dir"
        ) from error


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings by dotted key."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
