"""Train the jobs of one group in a worker process, from their calls to their results."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lrbench_pl.runs.loggers import quiet_lightning
from lrbench_pl.runs.options import one_line
from lrbench_pl.sweeps.fused.checkpoint import GroupFolder
from lrbench_pl.sweeps.fused.choice import choose_engine, make_engine
from lrbench_pl.sweeps.fused.engine import CannotFuse, Engine, Replica
from lrbench_pl.sweeps.fused.group import Group, Streams, is_out_of_memory
from lrbench_pl.sweeps.fused.member import Member
from lrbench_pl.sweeps.launch import JobCall, ignore_ctrl_c
from lrbench_pl.workloads.data.loaders import StreamLoader

log = logging.getLogger(__name__)


@dataclass
class GroupEnd:
    """The jobs of a group that have no result, by their index.

    Args:
        alone: Why a job must train by itself.
        failed: Why a job can have no result, such as a folder that cannot be written.
    """

    alone: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


def train_group(calls: Sequence[JobCall], sweep: Path, engine: str, resume: Path | None) -> GroupEnd:
    """Train jobs as one program; each leaves what a run of its own leaves.

    Args:
        calls: The jobs.
        sweep: Folder of the sweep.
        engine: ``auto``, ``stacked`` or ``captured``.
        resume: Folder of a group that these jobs belonged to, whose checkpoint they continue from; None to start.
    """
    session = _Session([Member(call) for call in calls], sweep, engine)
    try:
        with quiet_lightning():
            session.run(resume)
    except (KeyboardInterrupt, SystemExit) as interrupt:
        ignore_ctrl_c()
        session.interrupt(interrupt)
    finally:
        for member in session.members:
            member.close()
    return session.end


class _Session:
    """The jobs of a group in this process.

    Args:
        members: The jobs, none of them open.
        sweep: Folder of the sweep.
        engine: ``auto``, ``stacked`` or ``captured``.
    """

    def __init__(self, members: Sequence[Member], sweep: Path, engine: str) -> None:
        self.members = list(members)
        self.end = GroupEnd()
        self._sweep, self._engine = sweep, engine
        self._group: Group | None = None

    def run(self, resume: Path | None) -> None:
        """Open the jobs and train them."""
        for index, member in enumerate(self.members):
            try:
                member.open()
            except Exception as error:
                self.end.failed[index] = one_line(error)
        waiting = [member for member in self.members if member.is_open and member.reason is None]
        saved = None if resume is None else GroupFolder(resume).load()
        if saved is not None and self._engine in ("auto", saved["engine"]):
            resumed = [member for member in waiting if member.run_id in saved["order"]]
            waiting = [member for member in waiting if member not in resumed]
            for member in resumed:
                member.note(f"resuming from step {saved['state']['step']} of its group")
            resumed = [member for member in resumed if not member.share(saved["engine"])]
            self._train_parts(saved["engine"], [(resumed, saved)])
        while waiting:
            waiting = self._train_distinct(waiting)
        for index, member in enumerate(self.members):
            if member.result is None and member.reason is not None:
                self.end.alone[index] = member.reason

    def _train_distinct(self, members: Sequence[Member]) -> list[Member]:
        """Train one of each set of equal jobs; return the others, where they can share no outcome."""
        leaders: dict[Any, Member] = {}
        for member in members:
            leaders.setdefault(member.equal_to, member)
        leader_of = {id(member): leaders[member.equal_to] for member in members}
        distinct = list(leaders.values())
        try:
            name, size = self._choose(distinct)
        except Exception as error:
            self._give_up(members, error)
            return []
        training = [member for member in distinct if not member.share(name)]
        self._train_parts(name, [(training[i : i + size], None) for i in range(0, len(training), size)])
        rest = [member for member in members if leader_of[id(member)] is not member and not member.share(name)]
        for member in rest:
            member.reason = leader_of[id(member)].reason
        return [member for member in rest if member.reason is None]

    def _choose(self, members: Sequence[Member]) -> tuple[str, int]:
        """Return the engine and the size of its groups."""
        if self._engine != "auto":
            return self._engine, len(members)
        streams = Streams(members)
        return choose_engine(streams.replicas(members), streams.train, **_place(members[0]))

    def _train_parts(self, name: str, parts: list[tuple[list[Member], Mapping[str, Any] | None]]) -> None:
        """Train groups one after the other; one that has not enough memory is split.

        Args:
            name: The engine.
            parts: The jobs of each group, and the checkpoint that they continue from.
        """
        while parts:
            members, saved = parts.pop(0)
            if not members:
                continue
            folder = GroupFolder.of(self._sweep, [member.run_id for member in members])
            place = _place(members[0])

            def make(
                replicas: Sequence[Replica], loaders: Sequence[StreamLoader], place: dict[str, Any] = place
            ) -> Engine:
                return make_engine(name, replicas, loaders, **place)

            try:
                self._group = Group(members, make, folder, saved)
                self._group.run()
                split = False
            except Exception as error:
                members = [member for member in members if member.is_open]
                split = is_out_of_memory(error) and len(members) > 1
                if not split:
                    self._give_up(members, error)
            self._group = None  # after the traceback, which holds the engine
            if split:
                _free_memory()
                parts[:0] = self._halves(members, folder.load() or saved)
                folder.discard()

    def _halves(
        self, members: Sequence[Member], saved: Mapping[str, Any] | None
    ) -> list[tuple[list[Member], Mapping[str, Any] | None]]:
        """Build jobs again and return them as two groups."""
        middle = len(members) // 2
        for member in members:
            member.restart()
        half = f"{middle} and {len(members) - middle} jobs"
        for member in members:
            if member.is_open:
                member.note(f"out of memory with {len(members)} jobs in a group; continuing as groups of {half}")
        parts = members[:middle], members[middle:]
        return [([member for member in part if member.is_open], saved) for part in parts]

    def _give_up(self, members: Sequence[Member], error: Exception) -> None:
        """Let jobs train by themselves."""
        if isinstance(error, CannotFuse):
            reason = str(error)
        elif is_out_of_memory(error):
            reason = "there is not enough memory for it in a group"
        else:
            log.debug("the group failed", exc_info=True)
            reason = f"the group failed: {one_line(error)}"
        for member in members:
            if member.is_open:
                member.reason = reason

    def interrupt(self, error: BaseException) -> None:
        """Write the results of the jobs that have none."""
        for member in self.members:
            if member.is_open and member.reason is None:
                member.stop(error, 0.0 if self._group is None else self._group.seconds)


def _place(member: Member) -> dict[str, Any]:
    """Return precision and device of a job, as arguments of an engine."""
    trainer = member.training.parts.trainer
    return {"precision": str(trainer.precision), "device": trainer.strategy.root_device}


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
