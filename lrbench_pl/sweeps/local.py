"""Run jobs on this machine: in this process, or in one worker process per core or share of a GPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, wait
from multiprocessing import resource_tracker, util
from types import FrameType
from typing import Any, TypeVar

from omegaconf import OmegaConf

from lrbench_pl.runs.processes import exit_with_parent
from lrbench_pl.sweeps.launch import Job, JobCall, JobEnd

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_ENDS_WITHIN_S = 5.0  # an idle worker, before it is killed


def one_by_one(calls: Sequence[tuple[Job, JobCall]]) -> Iterator[tuple[Job, JobEnd]]:
    """Run every job in this process, one after the other."""
    for job, call in calls:
        try:
            yield job, call.run()
        except Exception as error:
            yield job, f"{type(error).__name__}: {error}"


def in_workers(
    calls: Sequence[tuple[Job, JobCall]], n_jobs: int | None = None, jobs_per_gpu: int = 1
) -> Iterator[tuple[Job, JobEnd]]:
    """Run jobs in worker processes, each of which imports torch once.

    If a worker dies, out of memory or by a signal, only its job is lost, and a new worker replaces it. A worker exits
    when the process of the sweep dies.

    Args:
        calls: The jobs to run.
        n_jobs: Number of workers; None or -1 for one per ``threads`` cores, or one per share of a GPU if there are GPUs
            and ``trainer.accelerator`` is not ``cpu``; ``trainer.devices=N`` needs N times as many cores or GPUs each.
        jobs_per_gpu: Jobs that share a GPU.

    Raises:
        ValueError: If an argument is out of its range.
    """
    slots = slots_for(calls[0][0], n_jobs, jobs_per_gpu)
    for done in in_slots(slots, deque(calls)):
        if done is not None:
            yield done


T = TypeVar("T")


def in_slots(
    slots: Sequence[Mapping[str, str]], waiting: deque[tuple[T, Callable[[], Any]]], every_s: float | None = None
) -> Iterator[tuple[T, Any] | None]:
    """Run calls in worker processes, one for each slot.

    Args:
        slots: Environment variables of each worker.
        waiting: What to run: pairs of a key and a call. More may be added while this runs.
        every_s: Seconds after which None is yielded if no call has ended; None never yields it.

    Yields:
        Each key with the value of its call, or the reason why there is none, a text.
    """
    free = deque(range(len(slots)))
    workers: dict[int, Any] = {}
    running: dict[Future[Any], tuple[int, T]] = {}
    try:
        while waiting or running:
            while waiting and free:
                slot = free.popleft()
                key, call = waiting.popleft()
                if slot not in workers:
                    workers[slot] = _worker(slots[slot])
                with _ctrl_c_waits():
                    running[workers[slot].submit(_interruptible, call)] = slot, key
            done, _ = wait(running, timeout=every_s, return_when=FIRST_COMPLETED)
            if not done:
                yield None
            for future in done:
                slot, key = running.pop(future)
                end = end_of(future)
                if isinstance(end, str):
                    workers.pop(slot).shutdown(wait=False, kill_workers=True)
                free.append(slot)
                yield key, end
    finally:
        try:
            if running:  # interrupted: Ctrl-C has reached the workers too, which write their results
                wait(running, timeout=10)
        finally:
            _shut_down(workers, {slot for future, (slot, _) in running.items() if not future.done()})


def _worker(environment: Mapping[str, str]) -> Any:
    """Return a pool of one worker, so that a dead worker's job is known."""
    from loky.process_executor import ProcessPoolExecutor

    return ProcessPoolExecutor(1, env=environment, initializer=_prepare_worker, initargs=(os.getpid(),))


def end_of(future: Future[Any]) -> JobEnd:
    """Return the end of a job: its value, or the reason why there is none."""
    try:
        return future.result()  # type: ignore[no-any-return]
    except Exception as error:
        if "SIGKILL" in str(error):
            return "its process was killed (SIGKILL), probably for lack of memory"
        return f"its process ended: {type(error).__name__}: {' '.join(str(error).split())}"


def slots_for(job: Job, n_jobs: int | None, jobs_per_gpu: int) -> list[dict[str, str]]:
    """Return the environment variables of each worker.

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
        raise ValueError(f"trainer.devices={devices} needs as many GPUs, found {len(gpus)}")
    shares = [",".join(gpus[i : i + devices]) for i in range(0, len(gpus) - devices + 1, devices)]
    most = len(shares) * jobs_per_gpu if shares else max(1, cpu_count() // (threads * devices))
    number = most if n_jobs in (None, -1) else int(n_jobs or 1)
    environment = dict.fromkeys(_THREADS, str(threads))
    return [
        {**environment, "CUDA_VISIBLE_DEVICES": shares[slot % len(shares)]} if shares else dict(environment)
        for slot in range(number)
    ]


def threads_of(job: Job) -> int:
    """Return the CPU threads of one process of a job; 1 by default."""
    return int(OmegaConf.select(job.config, "threads", default=1))


def on_cpu(job: Job) -> bool:
    """Return whether a job trains on the CPU."""
    return bool(OmegaConf.select(job.config, "trainer.accelerator") == "cpu")


def devices_of(job: Job) -> int:
    """Return the number of devices of a job, each of which has its own process."""
    devices = OmegaConf.select(job.config, "trainer.devices")
    return devices if isinstance(devices, int) and devices > 1 else 1


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split() if listed.returncode == 0 else []


def _shut_down(workers: Mapping[int, Any], busy: Set[int]) -> None:
    """Shut down all workers at once and wait for it; kill those that are busy or hang."""
    processes = [process for worker in workers.values() for process in (worker._processes or {}).values()]
    threads = [
        threading.Thread(target=worker.shutdown, kwargs={"kill_workers": slot in busy}, daemon=True)
        for slot, worker in workers.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _ENDS_WITHIN_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        for process in processes:
            with contextlib.suppress(OSError):  # loky's own kind of process has no kill()
                os.kill(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Block SIGINT until the end of the context, and in a worker that starts in it until the worker is prepared.

    While its interpreter starts, a worker would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # before the signal is blocked: in Python 3.11 its start unblocks it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _CtrlC:
    """Handler of SIGINT in a worker: interrupts the running call, or, if the worker is idle, the next one."""

    def __init__(self) -> None:
        self._runs = self._pressed = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self._runs:
            self._runs = False
            raise KeyboardInterrupt
        self._pressed = True

    def run(self, call: Callable[[], T]) -> T | None:
        """Return the value of a call; None if it was interrupted."""
        signal.signal(signal.SIGINT, self)  # again: after an interrupt Lightning ignores the signal
        try:
            self._runs = True
            if self._pressed:
                self._pressed = False
                return None
            return call()
        except KeyboardInterrupt:
            return None
        finally:
            self._runs = False


_ctrl_c = _CtrlC()


def _interruptible(call: Callable[[], T]) -> T | None:
    """Run a call in a worker."""
    return _ctrl_c.run(call)


def _prepare_worker(parent: int) -> None:
    """Let this worker exit fast, and with the process of its sweep; let Ctrl-C interrupt nothing but jobs."""
    signal.signal(signal.SIGINT, _ctrl_c)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # after all other finalizers: to finalize an interpreter with torch takes longer than a short training
    util.Finalize(None, os._exit, args=(0,), exitpriority=-1000)
    exit_with_parent(parent)
