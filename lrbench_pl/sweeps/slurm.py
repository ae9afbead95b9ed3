"""Follow the jobs of a sweep on SLURM by ``squeue``, which needs no accounting database."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrbench_pl.files import write_atomically
from lrbench_pl.reading import read_json
from lrbench_pl.runs.folder import read_result
from lrbench_pl.sweeps.launch import Job, JobEnd, QueuedAgain, Stopped

_POLL_S = 0.5  # between two looks at the files of the jobs
_ASK_S = 4.0  # between two calls of squeue
_OVER = frozenset(
    (
        *("CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"),
        *("PREEMPTED", "REVOKED"),
    )
)
_UNKNOWN = "UNKNOWN"  # SLURM has forgotten the job
_STOPPING = {
    "CANCELLED": "it was cancelled on SLURM",
    "TIMEOUT": "its time on SLURM was over",
    "PREEMPTED": "it was pre-empted on SLURM and not queued again",
}


class Submitted:
    """The jobs of a sweep that SLURM has, stored in the folder of the sweep for the next command.

    Args:
        file: File that stores them.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._jobs: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            self._jobs = {str(folder): [str(each) for each in job] for folder, job in read_json(file).items()}

    def living(self, jobs: Sequence[Job]) -> dict[int, str]:
        """Return SLURM's ids of the jobs that are queued or running, by number."""
        known = {
            job.number: stored[0]
            for job in jobs
            if len(stored := self._jobs.get(job.folder.name, [])) == 2 and stored[1] == job.run_id
        }
        states = states_of(known.values()) or {}
        return {number: each for number, each in known.items() if each in states and states[each].name not in _OVER}

    def add(self, jobs: Iterable[tuple[Job, str]]) -> None:
        """Store the ids of jobs."""
        self._jobs |= {job.folder.name: [each, str(job.run_id)] for job, each in jobs}
        write_atomically(self._file, json.dumps(self._jobs) + "\n")


@dataclass(frozen=True)
class State:
    """The state of a job on SLURM.

    Args:
        name: Its name, such as ``PENDING``.
        restarts: How often the job was queued again.
    """

    name: str
    restarts: int


def states_of(ids: Iterable[str]) -> dict[str, State] | None:
    """Ask SLURM for the states of jobs; return None if it does not answer.

    Args:
        ids: Ids of jobs, such as ``12`` or ``12_0`` in an array.
    """
    numbers = sorted({each.partition("_")[0] for each in ids})
    if not numbers:
        return {}
    form = "--Format=JobArrayID:50,State:30,RestartCnt:20"
    command = ["squeue", "--noheader", "--array", "--states=all", form, f"--jobs={','.join(numbers)}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    if answer.returncode != 0:
        return {} if "Invalid job id" in answer.stderr else None
    lines = (line.split() for line in answer.stdout.splitlines())
    return {line[0]: State(line[1], int(line[2]) if line[2].isdigit() else 0) for line in lines if len(line) == 3}


def follow(running: Mapping[Any, Job], end_of: Any) -> Iterator[tuple[Job, JobEnd | QueuedAgain]]:
    """Wait for jobs on SLURM; yield each job with its end, and before that how often it is queued again.

    A job has ended when it has left a value, or when SLURM has said twice that it is over.

    Args:
        running: Jobs of submitit.
        end_of: Returns the end of a job that has left its value.
    """
    left = dict(running)
    before: dict[str, State] = {}
    asked = time.monotonic()
    while left:
        for submitted in [each for each in left if each.paths.result_pickle.exists()]:
            yield left.pop(submitted), end_of(submitted)
        if (
            left
            and time.monotonic() - asked >= _ASK_S
            and (found := states_of([each.job_id for each in left])) is not None
        ):
            states = {each.job_id: found.get(each.job_id, State(_UNKNOWN, 0)) for each in left}
            for submitted, job in list(left.items()):
                state, last = states[submitted.job_id], before.get(submitted.job_id, State("", 0))
                if state.name in {*_OVER, _UNKNOWN} and state == last and not submitted.paths.result_pickle.exists():
                    yield left.pop(submitted), _end_without_value(job, state.name, submitted)
                elif state.restarts > last.restarts:
                    yield job, QueuedAgain(f"{job.folder.name}: queued again by SLURM")
            before = states
            asked = time.monotonic()
        time.sleep(_POLL_S)


def _end_without_value(job: Job, state: str, submitted: Any) -> JobEnd:
    if read_result(job.folder) is not None:
        return None
    if state in _STOPPING:
        return Stopped(f"{_STOPPING[state]}; the same command resumes it")
    words = "SLURM does not know it any more" if state == _UNKNOWN else f"SLURM says {state}"
    return f"its process ended without a result: {words}; see {submitted.paths.stderr}"
