"""Jobs on this machine: one after the other, or in worker processes, one for each core or each share of a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, wait
from multiprocessing import util
from typing import Any

from omegaconf import OmegaConf

from lrbench_pl.runs.processes import end_with
from lrbench_pl.sweeps.launch import Job, Outcome, Task

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_ENDS_WITHIN_S = 5.0  # an idle worker, before it is killed


def one_by_one(tasks: Sequence[tuple[Job, Task]]) -> Iterator[tuple[Job, Outcome]]:
    """Every job in this process."""
    for job, task in tasks:
        try:
            yield job, task.run()
        except Exception as error:
            yield job, f"{type(error).__name__}: {error}"


def in_workers(
    tasks: Sequence[tuple[Job, Task]], n_jobs: int | None = None, jobs_per_gpu: int = 1
) -> Iterator[tuple[Job, Outcome]]:
    """Each job in one of several worker processes, which import torch once and then take one job after the other.

    A worker that dies, for memory or by a signal, takes its own job with it and no other; a new one takes its place. A
    worker whose sweep has died ends itself.

    Args:
        tasks: What to run.
        n_jobs: Workers; None or -1 for one for each ``threads`` cores, or for each share of a GPU where there is one
            and ``trainer.accelerator`` is not ``cpu``; with ``trainer.devices=N`` for N times as many cores or GPUs.
        jobs_per_gpu: Jobs that share a GPU.

    Raises:
        ValueError: If an argument is out of its range.
    """
    from loky.process_executor import ProcessPoolExecutor

    slots = slots_for(tasks[0][0], n_jobs, jobs_per_gpu)
    waiting = deque(tasks)
    free = deque(range(min(len(slots), len(tasks))))
    workers: dict[int, Any] = {}
    running: dict[Future[Any], tuple[int, Job]] = {}
    try:
        while waiting or running:
            while waiting and free:
                slot = free.popleft()
                job, task = waiting.popleft()
                if slot not in workers:
                    # a pool of one: so it is known which job a dead worker had, and what it sees of the GPUs
                    workers[slot] = ProcessPoolExecutor(
                        1, env=slots[slot], initializer=_prepare_end, initargs=(os.getpid(),)
                    )
                running[workers[slot].submit(task)] = slot, job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                slot, job = running.pop(future)
                outcome = outcome_of(future)
                if isinstance(outcome, str):
                    workers.pop(slot).shutdown(wait=False, kill_workers=True)
                free.append(slot)
                yield job, outcome
    finally:
        try:
            if running:  # interrupted: Ctrl-C has reached the workers too, which write their rows
                wait(running, timeout=10)
        finally:
            _end(workers, {slot for future, (slot, _) in running.items() if not future.done()})


def outcome_of(future: Future[Any]) -> Outcome:
    """What a worker gave back, or how it ended."""
    try:
        return future.result()  # type: ignore[no-any-return]
    except Exception as error:
        if "SIGKILL" in str(error):
            return "its process was killed (SIGKILL), which is what a machine out of memory does"
        return f"its process ended: {type(error).__name__}: {' '.join(str(error).split())}"


def slots_for(job: Job, n_jobs: int | None, jobs_per_gpu: int) -> list[dict[str, str]]:
    """The environment of each worker.

    Raises:
        ValueError: If an argument is out of its range.
    """
    from loky import cpu_count

    if n_jobs == 0 or (n_jobs is not None and n_jobs < -1):
        raise ValueError(f"hydra.launcher.n_jobs must be at least 1, or -1 or null for all, got {n_jobs}")
    if jobs_per_gpu < 1:
        raise ValueError(f"hydra.launcher.jobs_per_gpu must be at least 1, got {jobs_per_gpu}")
    threads, devices = threads_of(job), devices_of(job)
    gpus = [] if on_cpu(job) else visible_gpus()
    if gpus and len(gpus) < devices:
        raise ValueError(f"trainer.devices={devices} needs as many GPUs, there are {len(gpus)}")
    shares = [",".join(gpus[i : i + devices]) for i in range(0, len(gpus) - devices + 1, devices)]
    most = len(shares) * jobs_per_gpu if shares else max(1, cpu_count() // (threads * devices))
    number = most if n_jobs in (None, -1) else int(n_jobs or 1)
    environment = dict.fromkeys(_THREADS, str(threads))
    return [
        {**environment, "CUDA_VISIBLE_DEVICES": shares[slot % len(shares)]} if shares else dict(environment)
        for slot in range(number)
    ]


def threads_of(job: Job) -> int:
    """The CPU threads of one process of a job; 1 where its configuration has no ``threads``."""
    return int(OmegaConf.select(job.config, "threads", default=1))


def on_cpu(job: Job) -> bool:
    """Whether a job asks for the CPU."""
    return bool(OmegaConf.select(job.config, "trainer.accelerator") == "cpu")


def devices_of(job: Job) -> int:
    """On how many devices a job trains, each with a process and ``threads`` of its own."""
    devices = OmegaConf.select(job.config, "trainer.devices")
    return devices if isinstance(devices, int) and devices > 1 else 1


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, asked without importing torch."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name.strip() for name in told.split(",") if name.strip() and name.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split() if listed.returncode == 0 else []


def _end(workers: Mapping[int, Any], busy: Set[int]) -> None:
    """End all workers at once and wait for it, so that they leave nothing behind; kill those that are busy or hang."""
    processes = [process for worker in workers.values() for process in (worker._processes or {}).values()]
    ends = [
        threading.Thread(target=worker.shutdown, kwargs={"kill_workers": slot in busy}, daemon=True)
        for slot, worker in workers.items()
    ]
    for end in ends:
        end.start()
    deadline = time.monotonic() + _ENDS_WITHIN_S
    for end in ends:
        end.join(max(0.0, deadline - time.monotonic()))
    if any(end.is_alive() for end in ends):
        for process in processes:
            process.kill()


def _prepare_end(parent: int) -> None:
    """Let this worker end fast, and not outlive its sweep."""
    # once all else is put back: taking down an interpreter that holds torch takes longer than a short training
    util.Finalize(None, os._exit, args=(0,), exitpriority=-1000)
    end_with(parent)
