"""Run jobs on Ray, on this machine or a cluster, each with its cores and its share of a GPU."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrbench_pl.runs.folder import state_of
from lrbench_pl.sweeps.launch import Job, JobCall, JobEnd, QueuedAgain
from lrbench_pl.sweeps.local import devices_of, on_cpu, threads_of

_POLL_S = 0.2
_MOST_MOVES = 20  # of one job to another node
_ENDS_WITHIN_S = 10.0  # an interrupted job, before its process is killed


def on_ray(
    calls: Sequence[tuple[Job, JobCall]],
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    init: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Job, JobEnd]]:
    """Run each job as one Ray task.

    A job whose node is lost is queued again and resumes from its checkpoint on another node, if the folder of the sweep
    is shared. A job whose process is lost is not: it resumes when the same command is run again.

    Args:
        calls: The jobs to run.
        num_cpus: Cores of a job; None for ``threads`` cores per device of ``trainer.devices``.
        num_gpus: GPUs of a job, such as 0.25; None for ``trainer.devices`` if the cluster has any and
            ``trainer.accelerator`` is not ``cpu``.
        init: Arguments of ``ray.init``, such as ``address``; without an address a local Ray is started for this sweep.

    Raises:
        ModuleNotFoundError: If Ray is not installed; the message says how to install it.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("hydra/launcher=ray needs Ray: pip install 'lrbench_pl[ray]'") from error
    first = calls[0][0]
    stop = Path(first.config.hydra.sweep.dir).absolute() / f".stop-{uuid.uuid4().hex}"
    running: dict[Any, Job] = {}
    started_here = not ray.is_initialized()
    try:
        if started_here:
            _start_ray(init or {})
        cpus, gpus = _resources(first, num_cpus, num_gpus)
        run = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_run)
        running = {run.remote(call, stop): job for job, call in calls}
        by_number, moves = {job.number: call for job, call in calls}, Counter[int]()
        while running:
            (reference, *_), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(reference)
            end = _end_of(reference)
            if isinstance(end, QueuedAgain) and moves[job.number] < _MOST_MOVES:
                moves[job.number] += 1
                running[run.remote(by_number[job.number], stop)] = job
                yield job, QueuedAgain(f"{job.folder.name}: queued again, {end}")
            else:
                yield job, str(end) if isinstance(end, QueuedAgain) else end
    finally:
        try:
            if running:
                _interrupt(stop, list(running.values()))
        finally:
            if started_here:
                ray.shutdown()
            else:
                for reference in running:
                    ray.cancel(reference, force=True)
            stop.unlink(missing_ok=True)


def _start_ray(init: Mapping[str, Any]) -> None:
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    given = {key: value for key, value in init.items() if value is not None}
    own = {} if os.environ.get("RAY_ADDRESS") else {"address": "local"}  # otherwise Ray joins a cluster that runs here
    with _ctrl_c_delayed():
        ray.init(**{**quiet, **own, **given})


def _resources(job: Job, num_cpus: float | None, num_gpus: float | None) -> tuple[float, float]:
    """Return the cores and the GPUs of a job."""
    import ray

    devices = devices_of(job)
    if num_gpus is None:
        cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        num_gpus = float(devices) if cluster.get("GPU", 0) > 0 and not on_cpu(job) else 0.0
    return num_cpus or threads_of(job) * devices, num_gpus


def _end_of(reference: Any) -> JobEnd:
    """Return the end of a job: its value, or the reason why there is none."""
    import ray

    try:
        end: JobEnd = ray.get(reference)
    except ray.exceptions.OutOfMemoryError:
        return "its process was killed by Ray: the machine is out of memory"
    except ray.exceptions.NodeDiedError:
        return QueuedAgain("its node was lost")
    except ray.exceptions.RayError as error:
        return f"its process ended: {_first_line(error)}"
    return end


def _interrupt(stop: Path, jobs: Sequence[Job]) -> None:
    """Interrupt jobs, which Ctrl-C does not reach, and wait for their results."""
    with contextlib.suppress(OSError):
        stop.touch()
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while time.monotonic() < deadline and any(state_of(job.folder) == "running" for job in jobs):
        time.sleep(0.1)


@contextlib.contextmanager
def _ctrl_c_delayed() -> Iterator[None]:
    """Delay the first Ctrl-C to the end of the context: half-started, Ray crashes."""
    if threading.current_thread() is not threading.main_thread():  # signals are handled in the main thread only
        yield
        return
    delayed: list[int] = []

    def hold(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        delayed.append(signum)

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if delayed:
        raise KeyboardInterrupt


def _run(call: JobCall, stop: Path) -> JobEnd:
    """Run a job, and interrupt it when the file ``stop`` appears.

    ``ray.cancel`` would leave the job no time to write its result.
    """
    if stop.exists():
        return None
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_S):
            if stop.exists():
                _thread.interrupt_main()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        return call()
    except KeyboardInterrupt:  # before or after the run
        return None
    finally:
        over.set()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
