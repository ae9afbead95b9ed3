"""Train a group of jobs with one engine: checks, checkpoints, leaving, and going on after a failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lrbench_pl.callbacks.lr_policy import STEPS_BETWEEN_LOOKS, LRPolicyError
from lrbench_pl.stopwatch import Stopwatch
from lrbench_pl.sweeps.fused.checkpoint import GroupFolder
from lrbench_pl.sweeps.fused.engine import Engine, Replica, subset
from lrbench_pl.sweeps.fused.member import Member
from lrbench_pl.sweeps.fused.progress import Progress
from lrbench_pl.workloads.data.loaders import StreamLoader

_PROGRESS_S = 1.0

MakeEngine = Callable[[Sequence[Replica], Sequence[StreamLoader]], Engine]


class Streams:
    """The data of a group: one data module and one set of loaders for each seed.

    Args:
        members: The jobs of the group.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._number: dict[int, int] = {}
        self.train: list[StreamLoader] = []
        self.validation: list[Any] = []
        self._data: list[Any] = []
        for member in members:
            seed = int(member.cfg.seed)
            if seed not in self._number:
                self._number[seed] = len(self._data)
                data: Any = member.data
                data.prepare_data()
                data.setup("fit")
                self._data.append(data)
                self.train.append(data.train_dataloader())
                self.validation.append(data.val_dataloader())
            member.data = self._data[self._number[seed]]

    def replicas(self, members: Sequence[Member]) -> list[Replica]:
        """Return the jobs as an engine sees them."""
        return [member.replica(self._number[int(member.cfg.seed)]) for member in members]


class Group:
    """Jobs that train with one engine, to the end of each.

    Args:
        members: The jobs, built.
        make_engine: Makes the engine.
        folder: Where to write checkpoints.
        saved: The checkpoint to continue from; None to start.
    """

    def __init__(
        self, members: Sequence[Member], make_engine: MakeEngine, folder: GroupFolder, saved: Mapping[str, Any] | None
    ) -> None:
        self._members, self._folder = list(members), folder
        cfg = members[0].cfg
        self._max_steps, self._check_every = int(cfg.max_steps), int(cfg.check_every)
        self._checkpoint_every = None if cfg.checkpoint_every is None else int(cfg.checkpoint_every)
        self._seconds_before = self._shown = 0.0
        self._clock = Stopwatch()
        self._looked = 0  # step of the last check, from which a serial run on an accelerator counts its looks
        streams = Streams(members)
        self._began = time.perf_counter()
        self._engine = make_engine(streams.replicas(members), streams.train)
        self._validation = streams.validation
        if saved is not None:
            self._restore(saved)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the training, including those before a checkpoint."""
        return self._seconds_before + time.perf_counter() - self._began

    def run(self) -> None:
        """Train until every job has its result."""
        engine = self._engine
        while engine.alive and engine.step < self._max_steps:
            first, end = engine.step, self._next_stop(engine.step)
            self._clock.start()
            self._show_progress()
            engine.advance(end - first)
            losses, lost = engine.train_losses(), engine.nonfinite()
            self._clock.stop()
            for replica, own in losses.items():
                steps = min(lost.get(replica, end), end) - first
                self._members[replica].log_steps(first, own[:steps].tolist())
            if end % self._check_every == 0:
                self._check(lost)
                self._looked = end
            elif lost:
                self._check(lost, ended=True)
            if end >= self._max_steps:
                self._finish(list(engine.alive))
            elif self._checkpoint_every is not None and end % self._checkpoint_every == 0 and engine.alive:
                self._save()
        self._folder.discard()

    def _show_progress(self) -> None:
        if self.seconds - self._shown >= _PROGRESS_S:
            self._shown = self.seconds
            jobs = len(self._engine.alive)
            Progress(jobs, self._engine.step, self._max_steps, self.seconds).write(self._folder.path)

    def _next_stop(self, step: int) -> int:
        ends = [(step // every + 1) * every for every in (self._check_every, self._checkpoint_every) if every]
        return min(self._max_steps, *ends)

    def _check(self, lost: Mapping[int, int], ended: bool = False) -> None:
        """Check the jobs; those that reached their target or diverged end.

        Args:
            lost: Jobs whose loss is no longer finite, with the step.
            ended: Whether only these are checked, as a serial run is when it ends.
        """
        metrics = self._engine.evaluate(self._validation)
        done = []
        for replica, own in metrics.items():
            member = self._members[replica]
            if replica in lost:
                member.diverge(*self._as_noticed(lost[replica]))
                member.log_check(own, self._clock.seconds)
                done.append(replica)
            elif not ended:
                try:
                    if member.check(own, self._clock.seconds):
                        done.append(replica)
                except LRPolicyError as error:
                    member.stop(error, self.seconds)
                    self._engine.leave([replica])
        self._finish(done)

    def _as_noticed(self, step: int) -> tuple[int, str]:
        """Return the step at which a serial run notices a loss that is not finite, and its words for it."""
        if self._is_on_cpu:
            return step, f"at step {step}"
        every = STEPS_BETWEEN_LOOKS
        looks = self._looked + -(-(step - self._looked) // every) * every
        check = -(-step // self._check_every) * self._check_every
        noticed = min(looks, check, self._max_steps)
        return noticed, f"within {every} batches before step {noticed}"

    @property
    def _is_on_cpu(self) -> bool:
        return self._members[0].training.parts.trainer.strategy.root_device.type == "cpu"

    def _finish(self, replicas: Sequence[int]) -> None:
        """End the training of jobs: evaluate their weights and write their results."""
        self._engine.leave(replicas)
        for replica in replicas:
            seconds = self.seconds
            self._engine.export(replica)
            self._members[replica].finish(seconds)

    # -- checkpoints ------------------------------------------------------------------------------------------

    def _save(self) -> None:
        members = {str(replica): self._members[replica].state_dict() for replica in self._engine.alive}
        self._folder.save(
            self._engine.step,
            [self._members[replica].run_id for replica in self._engine.alive],
            {
                "engine": self._engine.name,
                "order": [None if each.result is not None else each.run_id for each in self._members],
                "members": members,
                "state": self._engine.state_dict(),
                "seconds": self.seconds,
                "clock": self._clock.seconds,
                "looked": self._looked,
            },
        )

    def _restore(self, saved: Mapping[str, Any]) -> None:
        numbers = [saved["order"].index(member.run_id) for member in self._members]
        self._engine.load_state_dict(subset(saved["state"], numbers))
        for number, member in zip(numbers, self._members, strict=True):
            member.load_state_dict(saved["members"][str(number)])
        self._seconds_before = self._shown = saved["seconds"]
        self._clock = Stopwatch(saved["clock"])
        self._looked = saved["looked"]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is not enough memory.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
    """
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)
