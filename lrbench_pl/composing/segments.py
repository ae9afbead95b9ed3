"""Segments of a training, their results, and a journal of both. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lrbench_pl.policies import Policy

SegmentKind = Literal["range", "stable", "branch", "snapshot"]


@dataclass(frozen=True)
class Segment:
    """Part of a training that ends at a check, or is a pass of a range test.

    Args:
        kind: ``range`` (one pass of a range test), ``stable`` (stable phase), ``branch`` (decay branch) or ``snapshot``
            (no steps, only snapshots are restored or taken).
        policy: The whole policy; the segment applies its rates at ``start``, ``start + 1``, …
        start: Step of the policy at the beginning.
        steps: Optimizer steps. The segment ends at the first check at or after them. 0: nothing is trained.
        restore: Name of the snapshot to restore first.
        skip: Steps whose batches are skipped after that.
        save: Name of the snapshot to take at the end: ``start``, ``stable``, ``trial`` or ``best``.
        averaged: Whether the check at the end uses the averaged weights. Such a check cannot reach the target.
        note: Reason for the segment, for the record.
        avoided: Choices that the segments before it showed to be bad, for the record.
    """

    kind: SegmentKind
    policy: Policy
    start: int
    steps: int
    restore: str | None = None
    skip: int = 0
    save: str | None = None
    averaged: bool = False
    note: str = ""
    avoided: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class SegmentResult:
    """Result of a segment.

    Args:
        steps: Optimizer steps taken.
        value: Monitored metric at the last check; None if no step was taken.
        diverged: Whether the training loss became non-finite, rose clearly above its start, or returned to it after a
            clear fall.
        losses: Training loss of each step, for a ``range`` segment only.
        spent: Optimizer steps of the whole training so far.
        has_learned: Whether the training loss is below its start by more than its noise.
        has_memorised: Whether hardly anything is left of the training loss.
    """

    steps: int
    value: float | None = None
    diverged: bool = False
    losses: tuple[float, ...] = field(default=())
    spent: int = 0
    has_learned: bool = True
    has_memorised: bool = False


@dataclass
class RunningSegment:
    """Segment that is being trained.

    Args:
        segment: The segment.
        spent: Steps of the training at its start.
        losses: Loss of each step so far, for a range test.
        diverged: Whether it has diverged.
    """

    segment: Segment
    spent: int
    losses: list[float] = field(default_factory=list)
    diverged: bool = False

    def steps_at(self, t: int) -> int:
        """Return the steps of the segment at step ``t`` of the training."""
        return t - self.spent

    def policy_step(self, t: int) -> int:
        """Return the step of the policy at step ``t`` of the training."""
        return self.segment.start + t - self.spent

    def is_complete(self, t: int) -> bool:
        """Return whether the segment has all its steps at step ``t`` of the training."""
        return t - self.spent >= self.segment.steps

    def result(
        self, t: int, value: float, diverged: bool, has_learned: bool = True, has_memorised: bool = False
    ) -> SegmentResult:
        """Return the result of the segment if it ends at step ``t`` of the training."""
        return SegmentResult(self.steps_at(t), value, diverged, tuple(self.losses), t, has_learned, has_memorised)


# A plan yields segments, is sent their results, and returns what it found.
SegmentPlan = Generator[Segment, SegmentResult, Any]


class Journal:
    """Runs a plan and records its results, so that it can be replayed.

    Args:
        plan: A plan that has not been started.

    Attributes:
        found: Return value of the plan; None before it has ended.
        failure: Message of the ``ValueError`` that ended the plan; None if there was none.

    Example:
        >>> def two_segments():
        ...     result = yield Segment("stable", float, 0, 10)
        ...     yield Segment("stable", float, result.steps, 10)
        ...     return "done"
        >>> journal, resumed = Journal(two_segments()), Journal(two_segments())
        >>> journal.send(None).start, journal.send(SegmentResult(20)).start
        (0, 20)
        >>> [segment.start for segment in resumed.replay(journal.state_dict())]
        [0, 20]
        >>> resumed.send(SegmentResult(10)) is None, resumed.found
        (True, 'done')
    """

    def __init__(self, plan: SegmentPlan) -> None:
        self._plan = plan
        self._results: list[SegmentResult] = []
        self._fingerprints: list[str] = []  # of the segment that followed each result
        self.found: Any = None
        self.failure: str | None = None

    @property
    def has_ended(self) -> bool:
        """Return whether the plan has ended."""
        return bool(self._fingerprints) and self._fingerprints[-1] == _END

    def send(self, result: SegmentResult | None) -> Segment | None:
        """Send a result to the plan and return the next segment.

        Args:
            result: Result of the last segment; None for the first segment.

        Returns:
            The next segment; None if the plan has ended.
        """
        if result is not None:
            self._results.append(result)
        segment: Segment | None = None
        try:
            segment = self._plan.send(result)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            self.found = end.value
        except ValueError as error:
            self.failure = str(error)
        self._fingerprints.append(_END if segment is None else _fingerprint(segment))
        return segment

    def replay(self, state: Mapping[str, Any]) -> list[Segment]:
        """Send the recorded results of another journal to the plan.

        Args:
            state: :meth:`state_dict` of the other journal.

        Returns:
            The segments so far; the last one is not finished.

        Raises:
            ValueError: If the plan requests a segment that differs from the recorded one.
        """
        segments = []
        results = [SegmentResult(**{**stored, "losses": tuple(stored["losses"])}) for stored in state["results"]]
        for number, (result, expected) in enumerate(zip((None, *results), state["fingerprints"], strict=True), 1):
            segment = self.send(result)
            if self._fingerprints[-1] != expected:
                raise ValueError(_describe_difference(number, segment))
            if segment is not None:
                segments.append(segment)
        return segments

    def state_dict(self) -> dict[str, Any]:
        """Return the results and the fingerprints of the segments, as plain data."""
        return {"results": [asdict(result) for result in self._results], "fingerprints": list(self._fingerprints)}


_END = "end"

# Names in the texts that are hashed. They stay those of version 0.1, so that its checkpoints still match.
_HASHED_NAMES = {"Segment(": "Leg(", "RateRamp(": "Sweep(", "'stable'": "'trunk'", "'snapshot'": "'keep'"}


def _fingerprint(segment: Segment) -> str:
    """Return a hash of a segment without its note."""
    text = repr(replace(segment, note=""))
    for name, hashed in _HASHED_NAMES.items():
        text = text.replace(name, hashed)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _describe_difference(number: int, segment: Segment | None) -> str:
    if segment is None:
        return f"the plan ends before segment {number} of the checkpoint"
    found = f"{segment.kind}, {segment.steps} steps from step {segment.start}"
    return f"segment {number} of the plan ({found}) differs from that of the checkpoint"
