"""Jobs by submitit: as an array on SLURM, checkpointed and requeued when they are pre-empted, or as local processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sysconfig
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lrbench_pl.sweeps.launch import Job, Outcome, Task
from lrbench_pl.sweeps.local import slots_for

_LOOKS_EVERY_S = 0.5
_ENDS_WITHIN_S = 3.0  # an interrupted job, before it is told again


def on_submitit(
    tasks: Sequence[tuple[Job, Task]],
    cluster: Literal["local", "slurm"],
    folder: str | Path,
    parameters: Mapping[str, Any],
    at_once: int | None = None,
    max_num_timeout: int = 100,
) -> Iterator[tuple[Job, Outcome]]:
    """Each job as one job of submitit.

    When SLURM pre-empts a job or its time is nearly over, it finishes its step, writes a checkpoint and is queued
    again.
    A sweep that ends before its SLURM jobs leaves them to SLURM: the same command waits for those that still run.

    Args:
        tasks: What to run.
        cluster: ``slurm``, or ``local`` for processes of this machine.
        folder: Where submitit keeps its files; on SLURM one that all nodes see.
        parameters: What ``submitit.AutoExecutor.update_parameters`` takes, such as ``timeout_min``.
        at_once: Local processes at a time; None for one for each ``threads`` cores.
        max_num_timeout: How often a job that ran out of its time is queued again.

    Raises:
        ModuleNotFoundError: If submitit is not installed; the message says how.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        what = f"hydra/launcher=submitit_{cluster}"
        raise ModuleNotFoundError(f"{what} needs submitit: pip install 'lrbench_pl[submitit]'") from error
    _show_package_to_children()
    executor = submitit.AutoExecutor(folder, cluster=cluster, **{f"{cluster}_max_num_timeout": max_num_timeout})
    executor.update_parameters(**parameters)
    log = Path(str(folder).split("%")[0]) / "controllers.log"
    waiting = deque(tasks)
    running: dict[Any, Job] = {}
    if cluster == "slurm":
        submitted = executor.map_array(Requeued(), [task for _, task in waiting])
        running = dict(zip(submitted, [job for job, _ in waiting], strict=True))
        waiting.clear()
    else:
        at_once = len(slots_for(tasks[0][0], at_once, 1))
    try:
        while waiting or running:
            while waiting and len(running) < (at_once or 1):
                job, task = waiting.popleft()
                with _errors_into(log):  # where each job's own controller would print, also what Ctrl-C does to it
                    running[executor.submit(Requeued(), task)] = job
            ended = [submitted for submitted in running if submitted.done()]
            for submitted in ended:
                yield running.pop(submitted), _outcome_of(submitted, cluster)
            if not ended:
                time.sleep(_LOOKS_EVERY_S)
    finally:
        if cluster == "local":
            _end(list(running))


def _end(running: Sequence[Any]) -> None:
    """Wait until jobs that Ctrl-C has reached have written their rows, and end those that it has not reached."""
    for tell in (False, True):
        left = [submitted for submitted in running if not submitted.done()]
        for submitted in left if tell else ():
            submitted.cancel()
        deadline = time.monotonic() + _ENDS_WITHIN_S
        while time.monotonic() < deadline and not all(submitted.done() for submitted in left):
            time.sleep(0.05)


@contextlib.contextmanager
def _errors_into(path: Path) -> Iterator[None]:
    """Send what children that are started meanwhile print on standard error to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = os.dup(2)
    try:
        with open(path, "ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class Requeued:
    """A task that, when it is told of its pre-emption, finishes its step and writes a checkpoint before it goes."""

    def __call__(self, task: Task) -> Outcome:
        """Run it in this process."""
        from submitit.core.job_environment import JobEnvironment

        told: list[int] = []
        number = JobEnvironment._usr_sig()
        leave: Any = signal.getsignal(number)

        def on_signal(signum: int, frame: Any) -> None:
            from lrbench_pl.callbacks.checkpoints import pause_all

            told.append(signum)
            if not pause_all("pre-empted"):
                leave(signum, frame)

        if callable(leave):
            signal.signal(number, on_signal)
        outcome = task()
        if told:
            leave(told[0], None)  # requeues and ends this process
        return outcome

    def checkpoint(self, task: Task) -> Any:
        """What submitit queues again: the same, since the state is in the job's folder."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, task)


def _outcome_of(submitted: Any, cluster: str) -> Outcome:
    if cluster == "local" and not submitted.paths.result_pickle.exists():  # submitit would wait for it, as on a network
        return f"its process ended without a result, as one that is killed for memory; see {submitted.paths.stderr}"
    error = submitted.exception()
    if error is None:
        return submitted.results()[0]  # type: ignore[no-any-return]
    words = " ".join(str(error).split())
    return f"its process ended: {type(error).__name__}: {words[:300]}"


def _show_package_to_children() -> None:
    """Let processes that submitit starts import this package also from a checkout."""
    root = str(Path(__file__).resolve().parents[2])
    if root in map(sysconfig.get_path, ("purelib", "platlib")):  # installed: they find it
        return
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])
