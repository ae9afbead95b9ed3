"""Run jobs by submitit: as an array on SLURM, requeued after pre-emption, or as local processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lrbench_pl.runs.folder import state_of
from lrbench_pl.runs.result import RESULT_FILE
from lrbench_pl.sweeps.hydra_job import job_folder
from lrbench_pl.sweeps.launch import Job, JobCall, JobEnd
from lrbench_pl.sweeps.local import slots_for
from lrbench_pl.sweeps.slurm import Submitted, follow

_POLL_S = 0.5
_ENDS_WITHIN_S = 3.0  # an interrupted job, before it is cancelled


def on_submitit(
    calls: Sequence[tuple[Job, JobCall]],
    cluster: Literal["local", "slurm"],
    folder: str | Path,
    parameters: Mapping[str, Any],
    at_once: int | None = None,
    max_num_timeout: int = 100,
) -> Iterator[tuple[Job, JobEnd]]:
    """Run each job as one job of submitit.

    When SLURM pre-empts a job, or its time is nearly over, the job finishes its step, writes a checkpoint and is queued
    again; the sweep waits for it. SLURM jobs stay there if the process of the sweep ends; the same command then waits
    for those that are queued or running, and submits only the others.

    Args:
        calls: The jobs to run.
        cluster: ``slurm``, or ``local`` for processes of this machine.
        folder: Folder of submitit's files; on SLURM one that is visible on all nodes.
        parameters: Arguments of ``submitit.AutoExecutor.update_parameters``, such as ``timeout_min``.
        at_once: Local processes at a time; None for one per ``threads`` cores.
        max_num_timeout: Number of times that a job which ran out of time is queued again.

    Raises:
        ModuleNotFoundError: If submitit is not installed; the message says how to install it.
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
    if cluster == "slurm":
        yield from follow(_submitted(executor, calls), lambda each: _end_of(each, cluster))
        return
    waiting = deque(calls)
    running: dict[Any, Job] = {}
    at_once = len(slots_for(calls[0][0], at_once, 1))
    try:
        while waiting or running:
            while waiting and len(running) < (at_once or 1):
                job, call = waiting.popleft()
                with _errors_into(log):  # the controller of each job prints there
                    running[executor.submit(Requeued(), call)] = job
            ended = [submitted for submitted in running if submitted.done()]
            for submitted in ended:
                yield running.pop(submitted), _end_of(submitted, cluster)
            if not ended:
                time.sleep(_POLL_S)
    finally:
        _await_ends(list(running))


def _submitted(executor: Any, calls: Sequence[tuple[Job, JobCall]]) -> dict[Any, Job]:
    """Submit the jobs that an earlier command has not left on SLURM; return all."""
    from submitit.slurm.slurm import SlurmJob

    jobs = [job for job, _ in calls]
    stored = Submitted(Path(jobs[0].config.hydra.sweep.dir) / ".submitted.json")
    living = stored.living(jobs)
    found: dict[Any, Job] = {SlurmJob(executor.folder, living[job.number]): job for job in jobs if job.number in living}
    new = [(job, call) for job, call in calls if job.number not in living]
    if new:
        submitted = executor.map_array(Requeued(), [call for _, call in new])
        stored.add((job, each.job_id) for each, (job, _) in zip(submitted, new, strict=True))
        found.update(zip(submitted, [job for job, _ in new], strict=True))
    return found


def _await_ends(running: Sequence[Any]) -> None:
    """Wait for the results of jobs that Ctrl-C reached; cancel the others."""
    for cancel in (False, True):
        left = [submitted for submitted in running if not submitted.done()]
        for submitted in left if cancel else ():
            submitted.cancel()
        deadline = time.monotonic() + _ENDS_WITHIN_S
        while time.monotonic() < deadline and not all(submitted.done() for submitted in left):
            time.sleep(0.05)


@contextlib.contextmanager
def _errors_into(path: Path) -> Iterator[None]:
    """Redirect the standard error of children started in this context to a file."""
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
    """A job for submitit that writes a checkpoint when it is pre-empted or its time is nearly over.

    The signal before the time limit, which submitit handles, lets the job be queued again. SIGTERM is the beginning of
    a pre-emption, after which SLURM queues the job again by itself, or of ``scancel``.
    """

    def __call__(self, call: JobCall) -> JobEnd:
        """Run the job in this process."""
        from submitit.core.job_environment import JobEnvironment

        from lrbench_pl.callbacks.checkpoints import pause_on

        signals: list[int] = []
        requeue = JobEnvironment._usr_sig()
        leave: Any = signal.getsignal(requeue)

        def interrupted(signum: int) -> None:
            signals.append(signum)

        pause_on([requeue, *([signal.SIGTERM] if "SLURM_JOB_ID" in os.environ else [])], "pre-empted", interrupted)
        end = call()
        folder = job_folder(call.config)
        if signals and state_of(folder) != "finished":
            (folder / RESULT_FILE).unlink(missing_ok=True)  # it is not over: the sweep waits for it
            if requeue in signals and callable(leave):
                leave(requeue, None)  # requeues and ends this process
            sys.exit(1)
        return end

    def checkpoint(self, call: JobCall) -> Any:
        """Return the job to queue again: the same, since its state is in its folder."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, call)


def _end_of(submitted: Any, cluster: str) -> JobEnd:
    if (
        cluster == "local" and not submitted.paths.result_pickle.exists()
    ):  # submitit would wait for it, as on a network file system
        return f"its process ended without a result, probably killed for lack of memory; see {submitted.paths.stderr}"
    error = submitted.exception()
    if error is None:
        return submitted.results()[0]  # type: ignore[no-any-return]
    words = " ".join(str(error).split())
    return f"its process ended: {type(error).__name__}: {words[:300]}"


def _show_package_to_children() -> None:
    """Let the processes of submitit import this package from a checkout too."""
    root = str(Path(__file__).resolve().parents[2])
    if root in map(sysconfig.get_path, ("purelib", "platlib")):  # installed, so they find it
        return
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])
