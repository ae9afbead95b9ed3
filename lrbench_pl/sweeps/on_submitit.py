"""Run jobs by submitit: as an array on SLURM, requeued after pre-emption, or as local processes."""

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

from lrbench_pl.sweeps.launch import Job, JobCall, JobEnd
from lrbench_pl.sweeps.local import slots_for

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
    again. SLURM jobs continue if the process of the sweep ends; the same command then waits for those still running.

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
    waiting = deque(calls)
    running: dict[Any, Job] = {}
    if cluster == "slurm":
        submitted = executor.map_array(Requeued(), [call for _, call in waiting])
        running = dict(zip(submitted, [job for job, _ in waiting], strict=True))
        waiting.clear()
    else:
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
        if cluster == "local":
            _await_ends(list(running))


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
    """A job for submitit that writes a checkpoint when it is pre-empted."""

    def __call__(self, call: JobCall) -> JobEnd:
        """Run the job in this process."""
        from submitit.core.job_environment import JobEnvironment

        signals: list[int] = []
        number = JobEnvironment._usr_sig()
        leave: Any = signal.getsignal(number)

        def on_signal(signum: int, frame: Any) -> None:
            from lrbench_pl.callbacks.checkpoints import pause_all

            signals.append(signum)
            if not pause_all("pre-empted"):
                leave(signum, frame)

        if callable(leave):
            signal.signal(number, on_signal)
        end = call()
        if signals:
            leave(signals[0], None)  # requeues and ends this process
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
