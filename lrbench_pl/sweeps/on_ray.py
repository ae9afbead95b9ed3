"""Jobs on Ray: on this machine or a cluster, each with its cores and its share of a GPU."""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrbench_pl.runs.folder import state_of
from lrbench_pl.sweeps.launch import Job, Outcome, Task
from lrbench_pl.sweeps.local import devices_of, on_cpu, threads_of

_LOOKS_EVERY_S = 0.2
_ENDS_WITHIN_S = 10.0  # an interrupted job, before its process is killed


def on_ray(
    tasks: Sequence[tuple[Job, Task]],
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    init: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Job, Outcome]]:
    """Each job as one Ray task, never repeated by Ray: the same command goes on from the checkpoint.

    Args:
        tasks: What to run.
        num_cpus: Cores of a job; None for its ``threads`` for each of its ``trainer.devices``.
        num_gpus: GPUs of a job, such as 0.25; None for its ``trainer.devices`` where the cluster has any and
            ``trainer.accelerator`` is not ``cpu``.
        init: Arguments of ``ray.init``, such as ``address``; without an address a Ray of this sweep's own is started.

    Raises:
        ModuleNotFoundError: If Ray is not installed; the message says how.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("hydra/launcher=ray needs Ray: pip install 'lrbench_pl[ray]'") from error
    ours = not ray.is_initialized()
    first = tasks[0][0]
    devices = devices_of(first)
    stop = Path(first.config.hydra.sweep.dir).absolute() / f".stop-{uuid.uuid4().hex}"
    running: dict[Any, Job] = {}
    try:
        if ours:
            with _uninterrupted():
                quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
                ray.init(**{**quiet, **(init or {})})
        if num_gpus is None:
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            has_gpus = resources.get("GPU", 0) > 0 and not on_cpu(first)
            num_gpus = float(devices) if has_gpus else 0.0
        run = ray.remote(num_cpus=num_cpus or threads_of(first) * devices, num_gpus=num_gpus, max_retries=0)(_run)
        running = {run.remote(task, stop): job for job, task in tasks}
        while running:
            (reference, *_), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(reference)
            try:
                yield job, ray.get(reference)
            except ray.exceptions.OutOfMemoryError:
                yield job, "its process was killed by Ray: the machine is out of memory"
            except ray.exceptions.RayError as error:
                yield job, f"its process ended: {_first_line(error)}"
    finally:
        try:
            if running:
                _interrupt(stop, list(running.values()))
        finally:
            if ours:
                ray.shutdown()
            else:
                for reference in running:
                    ray.cancel(reference, force=True)
            stop.unlink(missing_ok=True)


def _interrupt(stop: Path, jobs: Sequence[Job]) -> None:
    """Interrupt jobs, which Ctrl-C does not reach, and wait until those that were begun have written their rows."""
    with contextlib.suppress(OSError):
        stop.touch()
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while time.monotonic() < deadline and any(state_of(job.folder) == "running" for job in jobs):
        time.sleep(0.1)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back, since a Ray that was half started crashes; the second one is not held back."""
    if threading.current_thread() is not threading.main_thread():  # which has no signals
        yield
        return
    told: list[int] = []

    def hold(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        told.append(signum)

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if told:
        raise KeyboardInterrupt


def _run(task: Task, stop: Path) -> Outcome:
    """Run a job until it ends or the file ``stop`` is there: of ``ray.cancel`` the job would not get to its row."""
    if stop.exists():
        return None
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOKS_EVERY_S):
            if stop.exists():
                _thread.interrupt_main()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        return task()
    except KeyboardInterrupt:  # before or after the run
        return None
    finally:
        over.set()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
