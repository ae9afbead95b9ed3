"""Jobs on Ray: on this machine or a cluster, each with its cores and its share of a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lrbench_pl.sweeps.launch import Job, Outcome, Task


def on_ray(
    tasks: Sequence[tuple[Job, Task]],
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    init: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Job, Outcome]]:
    """Each job as one Ray task, never repeated by Ray: the same command goes on from the checkpoint.

    Args:
        tasks: What to run.
        num_cpus: Cores of a job; None for its ``threads``.
        num_gpus: GPUs of a job, such as 0.25; None for one where the cluster has any and ``trainer.accelerator`` is not
            ``cpu``.
        init: Arguments of ``ray.init``, such as ``address``; without an address a Ray of this sweep's own is started.

    Raises:
        ModuleNotFoundError: If Ray is not installed; the message says how.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("hydra/launcher=ray needs Ray: pip install 'lrbench_pl[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(**{"include_dashboard": False, "log_to_driver": False, "logging_level": "error", **(init or {})})
    first = tasks[0][0].config
    if num_gpus is None:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        has_gpus = resources.get("GPU", 0) > 0 and first.trainer.get("accelerator") != "cpu"
        num_gpus = 1.0 if has_gpus else 0.0
    run = ray.remote(num_cpus=num_cpus or int(first.threads), num_gpus=num_gpus, max_retries=0)(_run)
    running: dict[Any, Job] = {}
    try:
        running = {run.remote(task): job for job, task in tasks}
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
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _run(task: Task) -> Outcome:
    return task()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
