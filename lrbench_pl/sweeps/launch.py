"""Launch the jobs of a sweep that are not finished, and collect their results. Knows Hydra; imports no torch."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from lrbench_pl.files import CHECKPOINTS, discard_checkpoints, open_to_append
from lrbench_pl.runs.budget import convert_budget
from lrbench_pl.runs.config import register_resolvers
from lrbench_pl.runs.describe import identity, refused, specify
from lrbench_pl.runs.exits import record_status
from lrbench_pl.runs.folder import (
    RECORD_FILE,
    ChangedConfigurationError,
    Record,
    check_same_run,
    finished_result,
    read_result,
    state_of,
)
from lrbench_pl.runs.hydra_files import restore_multirun
from lrbench_pl.runs.options import UserError, check_config, one_line, remarks
from lrbench_pl.runs.result import RESULT_FILE, Outcome, RunResult
from lrbench_pl.runs.spec import RunSpec
from lrbench_pl.sweeps.composer import (
    StoredConfig,
    began,
    parse_references_once,
    set_hydra_config,
    without_hydra,
)
from lrbench_pl.sweeps.hydra_job import job_folder, run_as_hydra, run_job, set_output_folder
from lrbench_pl.sweeps.reservations import Reservations, Reserved
from lrbench_pl.sweeps.view import SweepView
from lrbench_pl.verdict import Status
from lrbench_pl.words import counted

OUTPUT_FILE = "output.log"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        number: Its number, as Hydra counts.
        overrides: Its overrides.
        stored: Its whole configuration, the node ``hydra`` included.
        folder: Its folder.
        run_id: Hash of its specification; None if that cannot be resolved, which the run itself will report.
        spec: The specification itself, or None.
        require_target: Whether it fails if it misses its target.
    """

    number: int
    overrides: tuple[str, ...]
    stored: StoredConfig
    folder: Path
    run_id: str | None
    spec: RunSpec | None = None
    require_target: bool = False

    @property
    def config(self) -> DictConfig:
        """The whole configuration, a new object for each access."""
        return self.stored.load()

    @property
    def task_config(self) -> DictConfig:
        """The configuration without the node ``hydra``, as the run receives it."""
        return without_hydra(self.config)


@dataclass(frozen=True)
class JobCall:
    """A job as a callable that can be pickled and run in another process.

    Args:
        stored: The whole configuration of the job.
        function: The task function of the program.
        context: Hydra's context.
        state: State of Hydra's singletons.
        resolvers: Resolvers of the program, which a new process does not have.
        is_own: Whether the program is ``lrbench run``, whose jobs need less than Hydra does for a job.
    """

    stored: StoredConfig
    function: TaskFunction
    context: HydraContext
    state: Any
    resolvers: Mapping[str, Any] = field(default_factory=dict)
    is_own: bool = True

    @classmethod
    def of_all(
        cls, jobs: Sequence[Job], function: TaskFunction, context: HydraContext, is_own: bool = True
    ) -> list[tuple[Job, JobCall]]:
        """Return each job with its call, with the current state of this program."""
        state, resolvers = Singleton.get_state(), _own_resolvers()
        return [(job, cls(job.stored, function, context, state, resolvers, is_own)) for job in jobs]

    @property
    def config(self) -> DictConfig:
        """The whole configuration of the job, a new object for each access."""
        return self.stored.load()

    def __reduce__(self) -> Any:
        """Pickle by cloudpickle, with the import path of this program."""
        parts = [getattr(self, each.name) for each in fields(self)]
        return _unpickle, ([os.path.abspath(entry) for entry in sys.path], cloudpickle.dumps(parts))

    def __call__(self) -> JobReturn | None:
        """Run the job with its output in ``output.log`` of its folder.

        Returns:
            Hydra's return value; None if the job was interrupted.
        """
        try:
            with self.entered():
                return self.run()
        except (KeyboardInterrupt, SystemExit):
            ignore_ctrl_c()
            return None

    @contextlib.contextmanager
    def entered(self) -> Iterator[DictConfig]:
        """Let this process be that of the job: its configuration is Hydra's, its output goes to ``output.log``.

        Yields:
            The whole configuration of the job.
        """
        setup_globals()
        BaseContainer._resolvers.update(self.resolvers)
        Singleton.set_state(self.state)
        config = self.config
        set_hydra_config(config)
        with _output_into(set_output_folder(config)):
            yield config

    def run(self) -> JobReturn:
        """Run the job in this process."""
        if not self.is_own:
            return run_as_hydra(self.context, self.function, self.config)
        parse_references_once()
        return run_job(self.context, self.function, self.config)


def _unpickle(path: list[str], parts: bytes) -> JobCall:
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
    return JobCall(*pickle.loads(parts))


def _own_resolvers() -> dict[str, Any]:
    """Return the resolvers of this program that can be pickled."""
    own = {}
    for name, resolver in BaseContainer._resolvers.items():
        if not name.startswith("oc.") and name not in ("hydra", "now", "python_version"):  # from setup_globals
            with contextlib.suppress(Exception):  # pickling may raise anything
                cloudpickle.dumps(resolver)
                own[name] = resolver
    return own


class Stopped(str):
    """Reason for which a job was stopped from outside; it can be resumed."""


class QueuedAgain(str):
    """Message that a job was interrupted and waits for its turn again; not an end."""


# The end of a job: what Hydra returned, the reason why there is nothing, or None if it was interrupted.
JobEnd = JobReturn | str | None


class Placing(Protocol):
    """A launcher as Hydra has set it up, which runs jobs somewhere."""

    config: DictConfig
    hydra_context: HydraContext
    task_function: TaskFunction

    def place(self, calls: Sequence[tuple[Job, JobCall]]) -> Iterator[tuple[Job, JobEnd]]:
        """Run every call; yield each job with its end, in any order, and with :class:`QueuedAgain` before it."""


class SweepLauncher:
    """Launch the jobs of a sweep that are not finished, and show their progress.

    Every job ends with a result in its folder, and a job that fails does not affect the others.

    Args:
        launcher: The launcher that runs the jobs.
    """

    def __init__(self, launcher: Placing) -> None:
        self.config, self.hydra_context, self.task_function = (
            launcher.config,
            launcher.hydra_context,
            launcher.task_function,
        )
        self.place = launcher.place

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs that are not finished; return one value per job in order.

        Raises:
            CompactHydraException: If the folder holds runs of another configuration, if every job is refused for the
                same reason, if the launcher refuses its arguments, or if a result could not be written.
        """
        setup_globals()
        register_resolvers()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        start = began(self.hydra_context.config_loader)
        with Reservations(Path(self.config.hydra.sweep.dir)) as reservations:
            try:
                jobs = self._jobs(job_overrides, initial_job_idx, reservations)
            except CompactHydraException:
                restore_multirun(self.config)
                raise
            finished = {job.number: finished_result(job.folder, job.run_id or "") for job in jobs}
            results = {number: result for number, result in finished.items() if result is not None}
            waiting = [job for job in jobs if job.number not in results]
            for job in jobs:
                if job.number in results:  # a process may have been killed after it had written the result
                    discard_checkpoints(job.folder / CHECKPOINTS)
            if self._is_whole_sweep and (reason := _shared_mistake(waiting)) is not None:
                restore_multirun(self.config)
                raise CompactHydraException(f"{counted(len(waiting), 'job')} refused: {reason}")
            _print_remarks(waiting)
            folders, mode = [job.folder for job in jobs], str(jobs[0].config.mode)
            known = {job.folder: results[job.number] for job in jobs if job.number in results}
            with SweepView(folders, self.config.hydra.sweep.dir, mode, start=start, finished=known) as view:
                returns, unwritten = self._run(waiting, results, view)
        if unwritten:
            count = f"{len(unwritten)} of {counted(len(jobs), 'job')}"
            raise CompactHydraException(f"{count} could not write a result: {'; '.join(unwritten)}")
        for job in jobs:
            record_status(job.folder, results[job.number].status, job.require_target)
        return [_returned(job, results[job.number], returns.get(job.number)) for job in jobs]

    @property
    def _is_whole_sweep(self) -> bool:
        """Whether this launch has all jobs; sweepers that choose them by results, and batches, have several."""
        sweeper = self.config.hydra.sweeper
        is_grid = str(sweeper.get("_target_")).rpartition(".")[2] in ("GridSweeper", "BasicSweeper")
        return is_grid and sweeper.get("max_batch_size") is None

    def _run(
        self, jobs: Sequence[Job], results: dict[int, RunResult], view: SweepView
    ) -> tuple[dict[int, JobReturn], list[str]]:
        """Run jobs and add their results; return Hydra's values, and failed writes."""
        calls = JobCall.of_all(jobs, self.task_function, self.hydra_context)
        returns: dict[int, JobReturn] = {}
        unwritten: list[str] = []
        try:
            for job, end in self.place(calls) if calls else ():
                if isinstance(end, QueuedAgain):
                    view.queued_again(job.folder, end)
                    continue
                result, written = _result_after(job, end)
                results[job.number] = result
                if not written:
                    unwritten.append(f"{job.folder}: {result.message}")
                if isinstance(end, JobReturn):
                    returns[job.number] = end
                view.ended(job.folder, result)
        except (ValueError, ModuleNotFoundError) as error:  # of the launcher's own arguments
            raise CompactHydraException(one_line(error)) from error
        except (KeyboardInterrupt, SystemExit):
            ignore_ctrl_c()
            for job in jobs:
                if state_of(job.folder) == "unfinished":
                    _result_after(job, None)
            view.interrupted()
            sys.exit(130)
        return returns, unwritten

    # -- the folder of each job -----------------------------------------------------------------------------

    def _jobs(self, job_overrides: Sequence[Sequence[str]], first: int, reservations: Reservations) -> list[Job]:
        with _hydra_kept():
            jobs = [self._compose(tuple(overrides), first + i) for i, overrides in enumerate(job_overrides)]
            with reservations.exclusively():
                jobs = self._assign_folders(jobs, reservations.others())
                reservations.reserve({job.folder: job.run_id for job in jobs if job.run_id is not None})
            return jobs

    def _compose(self, overrides: tuple[str, ...], number: int) -> Job:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.num = number
            config.hydra.job.id = f"{config.hydra.job.name}_{number}"
        set_hydra_config(config)
        spec, require_target = None, False
        with contextlib.suppress(OmegaConfBaseException, ValueError):
            convert_budget(config)
            spec = RunSpec.from_config(without_hydra(config))
            require_target = bool(config.require_target)
        run_id = None if spec is None else spec.run_id
        return Job(number, overrides, StoredConfig(config), job_folder(config), run_id, spec, require_target)

    def _assign_folders(self, jobs: list[Job], reserved: Mapping[Path, Reserved] | None = None) -> list[Job]:
        """Give every job the folder in which it was started before, or a new one.

        Raises:
            CompactHydraException: If a folder holds a run of another configuration, or is reserved for one.
        """
        started, reserved = _runs_in(Path(self.config.hydra.sweep.dir)), reserved or {}
        known = {folder for folders in started.values() for folder in folders}
        for folder, reservation in reserved.items():
            if folder not in known:  # not started yet, started since, or below a folder of its own
                started.setdefault(reservation.run_id, []).append(folder)
        holders = {folder: run for run, folders in started.items() for folder in folders}
        in_sweep = {job.run_id for job in jobs}
        taken = {job.folder for job in jobs}
        assigned: list[Job] = []
        given: set[Path] = set()
        refusals: list[str] = []
        for job in jobs:
            folder = job.folder
            earlier = started.get(job.run_id, []) if job.run_id is not None else []
            if earlier:
                folder = folder if folder in earlier else earlier[0]
                earlier.remove(folder)
                holders.pop(folder)
            elif (folder in holders and holders[folder] in in_sweep) or folder in given:
                folder = _free(folder, taken)
            elif (refusal := _reserved(job, reserved) or _refusal(job)) is not None:
                refusals.append(refusal)
            taken.add(folder)
            given.add(folder)
            assigned.append(_moved(job, folder))
        if refusals:
            more = f" ({len(refusals) - 1} more like this)" if len(refusals) > 1 else ""
            raise CompactHydraException(f"the folder belongs to another sweep: {refusals[0]}{more}")
        return assigned


def _runs_in(sweep: Path) -> dict[str, list[Path]]:
    """Return the folders of the runs started in a sweep, by run id."""
    started: dict[str, list[Path]] = {}
    for path in sorted(sweep.absolute().glob(f"*/{RECORD_FILE}")):
        folder = path.parent
        found = Record.read(folder) or read_result(folder)
        if found is not None:
            started.setdefault(found.run_id, []).append(folder)
    return started


def _reserved(job: Job, reserved: Mapping[Path, Reserved]) -> str | None:
    """Return why a job cannot use a folder that another sweep has reserved; None if none has."""
    if job.run_id is None or job.folder not in reserved:
        return None
    holder = reserved[job.folder].holder
    return f"{job.folder} is reserved by {holder}, which runs another sweep; choose another hydra.sweep.dir"


def _refusal(job: Job) -> str | None:
    """Return why a job cannot use its folder; None if it can."""
    if job.run_id is None or not any((job.folder / name).exists() for name in (RECORD_FILE, RESULT_FILE)):
        return None
    set_hydra_config(config := job.config)
    try:
        check_same_run(job.folder, job.run_id, identity(without_hydra(config)))
    except ChangedConfigurationError as error:
        return str(error)
    return None


def _free(folder: Path, taken: set[Path]) -> Path:
    """Return the next numbered folder that nobody has taken."""
    number = 1 + max((int(path.name) for path in folder.parent.iterdir() if path.name.isdigit()), default=-1)
    while folder.parent / str(number) in taken:
        number += 1
    return folder.parent / str(number)


def _moved(job: Job, folder: Path) -> Job:
    if folder == job.folder:
        return job
    config = job.config
    with read_write(config.hydra.sweep):
        config.hydra.sweep.subdir = os.path.relpath(folder, Path(config.hydra.sweep.dir).absolute())
    return replace(job, stored=StoredConfig(config), folder=folder)


def ignore_ctrl_c() -> None:
    """Ignore further Ctrl-C, while the first one is being handled."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _hydra_kept() -> Iterator[None]:
    """Give Hydra its configuration back at the end, after those of jobs."""
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def _shared_mistake(jobs: Sequence[Job]) -> str | None:
    """Return the one reason for which all jobs would be refused; None if some would not, or for another one."""
    reason = None
    with _hydra_kept():
        for job in jobs:
            set_hydra_config(config := job.config)
            try:
                convert_budget(config)
                check_config(without_hydra(config))
                return None
            except UserError as error:
                if reason not in (None, str(error)):
                    return None
                reason = str(error)
            except (OmegaConfBaseException, ValueError, TypeError, ZeroDivisionError):  # the run reports it
                return None
    return reason


_printed: set[str] = set()


def _print_remarks(jobs: Sequence[Job]) -> None:
    """Print the remarks about jobs once each; the jobs themselves only print to files."""
    with _hydra_kept():
        for job in jobs:
            set_hydra_config(config := job.config)
            with contextlib.suppress(
                OmegaConfBaseException, ValueError, TypeError, ZeroDivisionError
            ):  # the run reports it
                for line in remarks(without_hydra(config), job.overrides):
                    if line not in _printed:
                        _printed.add(line)
                        print(line, file=sys.stderr, flush=True)


# -- the end of a job -----------------------------------------------------------------------------------------


def _result_after(job: Job, end: JobEnd) -> tuple[RunResult, bool]:
    """Return the result of an ended job, and whether it could be written."""
    result = read_result(job.folder)
    if result is not None:
        return result, True
    if isinstance(end, JobReturn):
        why = one_line(end._return_value) if end.status == JobStatus.FAILED else "it wrote no result"
    else:
        why = end or "it was interrupted and wrote no result"
    status: Status = "stopped" if end is None or isinstance(end, Stopped) else "failed"
    with _hydra_kept():
        set_hydra_config(config := job.config)
        try:
            result = RunResult.build(*specify(without_hydra(config)), Outcome(status, message=why))
        except Exception:  # the run was refused for this very reason, which is `why`
            result = refused(config, status, why)
    try:
        result.write(job.folder)
    except OSError as error:
        return replace(result, message=f"{why}; {error}"), False
    return result, True


def _returned(job: Job, result: RunResult, returned: JobReturn | None) -> JobReturn:
    """Return the value of a job for the sweeper, also if it finished before.

    It has no configurations: nobody reads them, and those of thousands of jobs take gigabytes.
    """
    if returned is not None and returned.status == JobStatus.COMPLETED:
        return returned
    value = JobReturn(overrides=list(job.overrides), working_dir=os.getcwd(), status=JobStatus.COMPLETED)
    value.task_name = JobRuntime.instance().get("name")
    value.return_value = result.best_value
    return value


@contextlib.contextmanager
def _output_into(folder: Path) -> Iterator[None]:
    """Redirect the output of this process and its children to ``output.log``."""
    try:
        target = open_to_append(folder / OUTPUT_FILE)
    except OSError:  # the run reports it
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
