"""Run a sweep as groups of jobs in worker processes, and the jobs that cannot be fused beside them."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrbench_pl.runs.folder import FINISHED, read_result
from lrbench_pl.runs.imports import import_run
from lrbench_pl.runs.result import RESULT_FILE
from lrbench_pl.sweeps.fused.checkpoint import group_folders
from lrbench_pl.sweeps.fused.grouping import Call, cut, plan
from lrbench_pl.sweeps.fused.progress import clear_progress
from lrbench_pl.sweeps.launch import Job, JobCall, JobEnd
from lrbench_pl.sweeps.local import in_slots, slots_for
from lrbench_pl.words import counted

ENGINES = ("auto", "stacked", "captured")
_LOOK_S = 0.5  # between looks for results of a group


@dataclass(frozen=True)
class GroupCall:
    """A group as a callable that can be pickled and run in another process.

    Args:
        calls: The calls of its jobs.
        sweep: Folder of the sweep.
        engine: One of :data:`ENGINES`.
        resume: Folder of the group whose checkpoint they continue from; None to start.
    """

    calls: tuple[JobCall, ...]
    sweep: Path
    engine: str
    resume: Path | None = None

    def __call__(self) -> Any:
        """Train the group; return a ``GroupEnd``."""
        import_run()
        from lrbench_pl.sweeps.fused.session import train_group

        return train_group(self.calls, self.sweep, self.engine, self.resume)


def in_groups(
    calls: Sequence[Call], engine: str = "auto", n_jobs: int | None = None, max_group: int | None = None
) -> Iterator[tuple[Job, JobEnd]]:
    """Run jobs in worker processes, those that differ only in policy, rate, seed and optimizer numbers as one program.

    If a worker dies, its group continues as two, so that only the job which ends its process is lost.

    Args:
        calls: The jobs to run.
        engine: What trains a group: ``stacked``, ``captured``, or ``auto`` for what a short trial finds faster.
        n_jobs: Number of workers, see :func:`lrbench_pl.sweeps.local.in_workers`.
        max_group: Largest number of jobs in a group; None for as many as the memory holds.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if engine not in ENGINES:
        raise ValueError(f"hydra.launcher.engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if max_group is not None and (isinstance(max_group, bool) or not isinstance(max_group, int) or max_group < 2):
        raise ValueError(f"hydra.launcher.max_group must be an integer of at least 2 or null, got {max_group!r}")
    slots = slots_for(calls[0][0], n_jobs, 1)
    return _Placement(calls, slots, engine, max_group).run()


class _Placement:
    """The groups of a sweep, and what has become of them.

    Args:
        calls: The jobs to run.
        slots: Environment variables of each worker.
        engine: One of :data:`ENGINES`.
        max_group: Largest number of jobs in a group, or None.
    """

    def __init__(self, calls: Sequence[Call], slots: Sequence[Any], engine: str, max_group: int | None) -> None:
        self._calls, self._slots, self._engine, self._max_group = calls, slots, engine, max_group
        self._sweep = Path(str(calls[0][0].config.hydra.sweep.dir)).absolute()
        self._waiting: deque[tuple[list[Call], Any]] = deque()
        self._groups: list[list[Call]] = []  # that run or wait
        self._before = {job.number: _mark(job) for job, _ in calls}  # of a result of an earlier attempt
        self._ended: set[int] = set()

    def run(self) -> Iterator[tuple[Job, JobEnd]]:
        """Run all jobs; yield each with its end."""
        clear_progress(self._sweep)
        self._plan()
        try:
            for done in in_slots(self._slots, self._waiting, _LOOK_S):
                if done is not None:
                    yield from self._after(*done)
                for group in self._groups:
                    yield from self._finished_in(group)
        finally:
            self._discard_finished()
            clear_progress(self._sweep)

    def _plan(self) -> None:
        found = plan(self._calls, len(self._slots), self._max_group, group_folders(self._sweep))
        for group, folder in found.resumed:
            self._add_group(group, folder)
        for group in found.groups:
            self._add_group(group, None)
        for call, _ in found.alone:
            self._waiting.append(([call], call[1]))
        _explain([(call[0], reason) for call, reason in found.alone if reason is not None])

    def _add_group(self, calls: list[Call], resume: Path | None) -> None:
        self._groups.append(calls)
        group = GroupCall(tuple(call for _, call in calls), self._sweep, self._engine, resume)
        self._waiting.append((calls, group))

    def _after(self, calls: list[Call], end: Any) -> Iterator[tuple[Job, JobEnd]]:
        """Yield the jobs of an ended call, or have them run again."""
        if calls not in self._groups:
            yield calls[0][0], end
            return
        self._groups.remove(calls)
        yield from self._finished_in(calls)
        left = [(index, call) for index, call in enumerate(calls) if call[0].number not in self._ended]
        if isinstance(end, str):  # the process is gone, and with it whatever one of the jobs did to it
            rest = [call for _, call in left]
            if len(rest) == 1:
                yield rest[0][0], end
            elif rest:
                resume = self._checkpoint_of(rest)
                _print(f"{end}: the {len(rest)} jobs of its group continue as two groups")
                for half in cut(rest, 2):
                    self._add_group(half, resume)
            return
        reasons, failed = ({}, {}) if end is None else (end.alone, end.failed)  # None: interrupted before it began
        alone = [(call, reasons[index]) for index, call in left if index in reasons]
        _explain([(call[0], reason) for call, reason in alone])
        self._waiting.extend(([call], call[1]) for call, _ in alone)
        for index, (job, _) in left:
            if index not in reasons:
                self._ended.add(job.number)
                yield job, failed.get(index)

    def _finished_in(self, calls: list[Call]) -> Iterator[tuple[Job, JobEnd]]:
        """Yield the jobs of a group that have a new result."""
        for job, _ in calls:
            if job.number not in self._ended and _mark(job) not in (None, self._before[job.number]):
                self._ended.add(job.number)
                yield job, None

    def _checkpoint_of(self, calls: Sequence[Call]) -> Path | None:
        """Return the most advanced checkpoint that has one of the jobs."""
        jobs = {job.run_id for job, _ in calls}
        return next((folder.path for folder in group_folders(self._sweep) if folder.jobs & jobs), None)

    def _discard_finished(self) -> None:
        """Remove the checkpoints of groups of which every job is finished, also by an earlier command."""
        folders = group_folders(self._sweep)
        if folders:
            results = (read_result(path.parent) for path in self._sweep.rglob(RESULT_FILE))
            finished = {result.run_id for result in results if result is not None and result.status in FINISHED}
            for folder in folders:
                if folder.jobs <= finished:
                    folder.discard()


def _mark(job: Job) -> tuple[int, int] | None:
    """Return what tells a result of a job from an earlier one; None if there is none."""
    try:
        found = (job.folder / RESULT_FILE).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _explain(alone: Sequence[tuple[Job, str]]) -> None:
    """Print why jobs train by themselves, a line for each reason."""
    by_reason: dict[str, list[Job]] = {}
    for job, reason in alone:
        by_reason.setdefault(reason, []).append(job)
    for reason, jobs in by_reason.items():
        names = ", ".join(job.folder.name for job in jobs[:8]) + (", …" if len(jobs) > 8 else "")
        _print(f"not fused: {counted(len(jobs), 'job')} ({names}): {reason}")


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
