"""A sweep: which of its jobs are done, which go on, which run, and what came of each. Knows Hydra; imports no torch."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from lrbench_pl.runs.config import register_resolvers
from lrbench_pl.runs.describe import describe, identity, run_id
from lrbench_pl.runs.exits import note_end
from lrbench_pl.runs.folder import (
    RECORD_FILE,
    ChangedConfigurationError,
    Record,
    finished_result,
    check_same_run,
    read_result,
    state_of,
)
from lrbench_pl.runs.options import one_line, remarks
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import policy_name
from lrbench_pl.sweeps.view import SweepView
from lrbench_pl.words import counted

OUTPUT_FILE = "output.log"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        number: In the sweep, as Hydra counts.
        overrides: What makes it differ from the others.
        config: Its whole configuration, Hydra's part included.
        folder: Its own.
        run_id: Hash of what can change its numbers; None if that cannot be resolved, which the run itself will say.
    """

    number: int
    overrides: tuple[str, ...]
    config: DictConfig
    folder: Path
    run_id: str | None

    @property
    def task_config(self) -> DictConfig:
        """The configuration as the run gets it."""
        return OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])


@dataclass(frozen=True)
class Task:
    """A job as it travels to where it runs.

    Args:
        config: The job's whole configuration.
        function: What is run.
        context: Hydra's.
        state: Of Hydra's singletons.
        resolvers: The program's own, which a new process does not know.
    """

    config: DictConfig
    function: TaskFunction
    context: HydraContext
    state: Any
    resolvers: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, function: TaskFunction, context: HydraContext) -> Task:
        """The task of a job in this program as it is now."""
        return cls(job.config, function, context, Singleton.get_state(), _own_resolvers())

    def __reduce__(self) -> Any:
        """To another process, where the modules of this program are to be found as they are here."""
        parts = [getattr(self, each.name) for each in fields(self)]
        return _arrived, ([os.path.abspath(entry) for entry in sys.path], cloudpickle.dumps(parts))

    def __call__(self) -> JobReturn | None:
        """Run it in a process of its own: what it prints goes into ``output.log`` of its folder.

        Returns:
            What Hydra says of it; None if it was interrupted.
        """
        setup_globals()
        BaseContainer._resolvers.update(self.resolvers)
        Singleton.set_state(self.state)
        HydraConfig.instance().set_config(self.config)
        try:
            with _output_into(job_folder(self.config)):
                return self.run()
        except (KeyboardInterrupt, SystemExit):
            ignore_ctrl_c()
            return None

    def run(self) -> JobReturn:
        """Run it in this process."""
        return run_job(
            hydra_context=self.context,
            task_function=self.function,
            config=self.config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


def _arrived(path: list[str], parts: bytes) -> Task:
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
    return Task(*pickle.loads(parts))


def _own_resolvers() -> dict[str, Any]:
    """The resolvers that this program has registered itself, as far as they can travel."""
    own = {}
    for name, resolver in BaseContainer._resolvers.items():
        if not name.startswith("oc.") and name not in ("hydra", "now", "python_version"):  # which setup_globals brings
            with contextlib.suppress(Exception):  # whatever the pickling of what it refers to raises
                cloudpickle.dumps(resolver)
                own[name] = resolver
    return own


# What came of a job: what Hydra returned, or why there is nothing to return.
Outcome = JobReturn | str | None
Place = Callable[[Sequence[tuple[Job, Task]]], Iterator[tuple[Job, Outcome]]]


class Placing(Protocol):
    """A launcher as Hydra has set it up, which knows where jobs run."""

    config: DictConfig
    hydra_context: HydraContext
    task_function: TaskFunction

    def place(self, tasks: Sequence[tuple[Job, Task]]) -> Iterator[tuple[Job, Outcome]]:
        """Run every task, and yield each job when it has ended, in any order."""


class SweepLauncher:
    """Hands the jobs of a sweep that are not finished to where they run, and shows how far they are.

    Whatever happens to a job, it is a row in its folder and the others go on. Which process runs it is up to the
    launcher.
    """

    def __init__(self, launcher: Placing) -> None:
        self.config, self.hydra_context, self.task_function = (
            launcher.config,
            launcher.hydra_context,
            launcher.task_function,
        )
        self.place = launcher.place

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run what is not finished, and return one result per job in order.

        Raises:
            CompactHydraException: If the folder holds runs of another configuration, if the launcher refuses its
                arguments, or if a row could not be written.
        """
        setup_globals()
        register_resolvers()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = self._jobs(job_overrides, initial_job_idx)
        rows = {job.number: row for job in jobs if (row := finished_result(job.folder, job.run_id or "")) is not None}
        waiting = [job for job in jobs if job.number not in rows]
        tasks = [(job, self._task(job)) for job in waiting]
        _say_remarks(waiting)
        returns: dict[int, JobReturn] = {}
        lost: list[str] = []
        with SweepView([job.folder for job in jobs], self.config.hydra.sweep.dir, str(jobs[0].config.mode)) as view:
            try:
                for job, outcome in self.place(tasks) if tasks else ():
                    row, kept = _row_after(job, outcome)
                    rows[job.number] = row
                    if not kept:
                        lost.append(f"{job.folder}: {row.message}")
                    if isinstance(outcome, JobReturn):
                        returns[job.number] = outcome
                    view.ended(job.folder, row)
            except (ValueError, ModuleNotFoundError) as error:  # of the place's own arguments
                raise CompactHydraException(one_line(error)) from error
            except (KeyboardInterrupt, SystemExit):
                ignore_ctrl_c()
                for job in waiting:
                    if state_of(job.folder) == "begun":
                        _row_after(job, None)
                view.interrupted()
                sys.exit(130)
        if lost:
            raise CompactHydraException(f"{len(lost)} of {counted(len(jobs), 'job')} left no row: {'; '.join(lost)}")
        for job in jobs:
            note_end(job.folder, rows[job.number].status, bool(job.config.require_target))
        return [_returned(job, rows[job.number], returns.get(job.number)) for job in jobs]

    def _task(self, job: Job) -> Task:
        return Task.of(job, self.task_function, self.hydra_context)

    # -- which job is which folder --------------------------------------------------------------------------

    def _jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        before = HydraConfig.instance().cfg
        try:
            jobs = [self._compose(tuple(overrides), first + i) for i, overrides in enumerate(job_overrides)]
            return self._settle(jobs)
        finally:
            HydraConfig.instance().cfg = before

    def _compose(self, overrides: tuple[str, ...], number: int) -> Job:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.num = number
            config.hydra.job.id = f"{config.hydra.job.name}_{number}"
        HydraConfig.instance().set_config(config)
        job = Job(number, overrides, config, job_folder(config), None)
        with contextlib.suppress(OmegaConfBaseException, ValueError):
            job = replace(job, run_id=run_id(job.task_config))
        return job

    def _settle(self, jobs: list[Job]) -> list[Job]:
        """Send every job to the folder in which it was begun, whatever its number was then."""
        there = _runs_in(Path(self.config.hydra.sweep.dir))
        asked = {job.run_id for job in jobs}
        taken = {job.folder for job in jobs}
        settled: list[Job] = []
        refused: list[str] = []
        for job in jobs:
            begun = there.get(job.run_id, []) if job.run_id is not None else []
            if begun:
                folder = job.folder if job.folder in begun else begun[0]
                begun.remove(folder)
            else:
                folder = job.folder
                holder = next((run for run, folders in there.items() if folder in folders), None)
                if holder in asked or any(folder == other.folder for other in settled):
                    folder = _free(folder, taken)
                elif job.run_id is not None:
                    HydraConfig.instance().set_config(job.config)
                    try:
                        check_same_run(folder, job.run_id, identity(job.task_config))
                    except ChangedConfigurationError as error:
                        refused.append(str(error))
            taken.add(folder)
            settled.append(_moved(job, folder))
        if refused:
            more = f" ({len(refused) - 1} more like this)" if len(refused) > 1 else ""
            raise CompactHydraException(f"this sweep is not the one that was begun here: {refused[0]}{more}")
        return settled


def job_folder(config: DictConfig) -> Path:
    """The folder of a job, from its whole configuration."""
    return (Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)).absolute()


def _runs_in(sweep: Path) -> dict[str, list[Path]]:
    """Which configurations were begun below a folder, and where."""
    there: dict[str, list[Path]] = {}
    for path in sorted(sweep.absolute().glob(f"*/{RECORD_FILE}")):
        folder = path.parent
        begun = Record.read(folder) or read_result(folder)
        if begun is not None:
            there.setdefault(begun.run_id, []).append(folder)
    return there


def _free(folder: Path, taken: set[Path]) -> Path:
    number = 1 + max((int(path.name) for path in folder.parent.iterdir() if path.name.isdigit()), default=-1)
    while folder.parent / str(number) in taken:
        number += 1
    return folder.parent / str(number)


def _moved(job: Job, folder: Path) -> Job:
    if folder == job.folder:
        return job
    with read_write(job.config.hydra.sweep):
        job.config.hydra.sweep.subdir = os.path.relpath(folder, Path(job.config.hydra.sweep.dir).absolute())
    return replace(job, folder=folder)


def ignore_ctrl_c() -> None:
    """A second one changes nothing any more."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


_said: set[str] = set()


def _say_remarks(jobs: Sequence[Job]) -> None:
    """What is suspicious about jobs, one line for all that share it; they themselves only write to files."""
    before = HydraConfig.instance().cfg
    try:
        for job in jobs:
            HydraConfig.instance().set_config(job.config)
            with contextlib.suppress(
                OmegaConfBaseException, ValueError, TypeError, ZeroDivisionError
            ):  # it will say so
                for line in remarks(job.task_config, job.overrides):
                    if line not in _said:
                        _said.add(line)
                        print(line, file=sys.stderr, flush=True)
    finally:
        HydraConfig.instance().cfg = before


# -- what came of a job ---------------------------------------------------------------------------------------


def _row_after(job: Job, outcome: Outcome) -> tuple[RunResult, bool]:
    """The row of a job that has ended, and whether it is in its folder."""
    row = read_result(job.folder)
    if row is not None:
        return row, True
    if isinstance(outcome, JobReturn):
        why = one_line(outcome._return_value) if outcome.status == JobStatus.FAILED else "it left no row"
    else:
        why = outcome or "it was interrupted and left no row"
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(job.config)
    try:
        described = describe(job.task_config)
    except Exception:  # it was refused for this very reason, which is `why`
        described = {"run_id": "unknown", "policy": policy_name(job.config)}
    finally:
        HydraConfig.instance().cfg = before
    row = RunResult.from_dict({**described, "status": "stopped" if outcome is None else "failed", "message": why})
    try:
        row.write(job.folder)
    except OSError as error:
        return replace(row, message=f"{why}; {error}"), False
    return row, True


def _returned(job: Job, row: RunResult, returned: JobReturn | None) -> JobReturn:
    """What a sweeper gets for a job: the best accuracy, also of one that was finished before or that failed."""
    if returned is not None and returned.status == JobStatus.COMPLETED:
        return returned
    value = JobReturn()
    value.overrides = list(job.overrides)
    value.cfg = job.task_config
    with read_write(job.config.hydra.runtime), open_dict(job.config.hydra.runtime):
        job.config.hydra.runtime.output_dir = str(job.folder)
    value.hydra_cfg = OmegaConf.masked_copy(job.config, ["hydra"])
    value.working_dir = os.getcwd()
    value.task_name = job.config.hydra.job.name
    value.return_value = row.best_value
    value.status = JobStatus.COMPLETED
    return value


@contextlib.contextmanager
def _output_into(folder: Path) -> Iterator[None]:
    """Send what this process and its children print to ``output.log``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = open(folder / OUTPUT_FILE, "a", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError:  # the run will say so
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    try:
        os.dup2(target.fileno(), 1)
        os.dup2(target.fileno(), 2)
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        for number, old in zip((1, 2), saved, strict=True):
            os.dup2(old, number)
            os.close(old)
        target.close()
