"""Progress of a composition, as checkpoints store it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from pytorch_lightning import Callback

from lrbench_pl.callbacks.composer_request import plan_for
from lrbench_pl.composing.former_names import with_current_names
from lrbench_pl.composing.records import SegmentRecords
from lrbench_pl.composing.segments import Journal, RunningSegment, Segment
from lrbench_pl.composing.snapshot import Snapshot
from lrbench_pl.policies import Constant, Policy
from lrbench_pl.verdict import Check


class CompositionState:
    """Plan, running segment, records and snapshots of a composition.

    Attributes:
        request: What the plan was made for.
        journal: The plan; None before the first segment.
        running: Segment that is being trained.
        account: Records of the segments.
        snapshots: Snapshots by name.
        best: Best policy and its steps; None before the first branch has ended.
        reached: Check that reached the target.
        weights: ``averaged`` if averaged weights reached it.
        in_a_row: Consecutive checks that met the target.
        forecasts: Checks of the averaged weights.
    """

    def __init__(self) -> None:
        self.request: dict[str, Any] = {}
        self.journal: Journal | None = None
        self.running = RunningSegment(Segment("snapshot", Constant(0.0), 0, 0), 0)
        self.account = SegmentRecords()
        self.snapshots: dict[str, Snapshot] = {}
        self.best: tuple[Policy, int] | None = None
        self.reached: Check | None = None
        self.weights: str | None = None
        self.in_a_row = 0
        self.forecasts: list[Check] = []

    def policy_step(self, t: int) -> int:
        """Return the steps of the composed policy at step ``t`` of the training."""
        if self.reached is None and self.best is not None:
            return self.best[1]
        return self.running.policy_step(t)

    def realised(self) -> Policy:
        """Return the policy that reached the target, otherwise the best so far."""
        if self.reached is None and self.best is not None:
            return self.best[0]
        return self.running.segment.policy

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; call it after the first segment has started."""
        assert self.journal is not None
        return {
            "request": dict(self.request),
            "journal": self.journal.state_dict(),
            "snapshots": {name: snapshot.state_dict() for name, snapshot in self.snapshots.items()},
            **self.account.state_dict(),
            "forecasts": [asdict(check) for check in self.forecasts],
            "reached": None if self.reached is None else asdict(self.reached),
            "weights": self.weights,
            "segment_start": self.running.spent,
            "segment_losses": list(self.running.losses),
            "segment_diverged": self.running.diverged,
            "in_a_row": self.in_a_row,
        }

    def load_state_dict(self, stored: Mapping[str, Any], skip: Callable[[Callback], bool]) -> None:
        """Load the state that :meth:`state_dict` returned, in any version.

        Args:
            stored: The state.
            skip: As in :class:`~lrbench_pl.composing.snapshot.Snapshot`.

        Raises:
            ValueError: If the plan of this version differs from that of the checkpoint.
        """
        state = with_current_names(stored)
        self.request = state["request"]
        self.journal = Journal(plan_for(self.request))
        segments = self.journal.replay(state["journal"])
        for segment in segments:
            if segment.save == "best":
                self.best = segment.policy, segment.start
            if segment.steps:
                self.running.segment = segment
        self.running.spent = state["segment_start"]
        self.running.losses, self.running.diverged = list(state["segment_losses"]), state["segment_diverged"]
        self.account.load_state_dict(state)
        self.snapshots = {name: Snapshot.from_state_dict(each, skip) for name, each in state["snapshots"].items()}
        self.forecasts = [Check(**check) for check in state["forecasts"]]
        self.reached = None if state["reached"] is None else Check(**state["reached"])
        self.weights = state.get("weights")
        self.in_a_row = state["in_a_row"]

    def changes(self, request: Mapping[str, Any]) -> list[str]:
        """Return the differences between the loaded request and another one.

        A request that leaves the range test open continues a composition that began with one: earlier versions chose it
        themselves.
        """
        former = self.request
        names = [name for name in {**former, **request} if former.get(name) != request.get(name)]
        if request.get("repeats") is None and former["rules"] == "range test":
            names = [name for name in names if name not in ("repeats", "rules")]
        return [f"{name}: {former.get(name)} -> {request.get(name)}" for name in names]
