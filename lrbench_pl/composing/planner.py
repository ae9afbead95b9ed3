"""Base of the planners of a composition. No torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

from lrbench_pl.composing.segments import Segment, SegmentResult
from lrbench_pl.composing.settings import Settings
from lrbench_pl.composing.state import Composition


@dataclass(frozen=True)
class Conditions:
    """Conditions of a composition, which its training gives.

    Args:
        lr: The optimizer's own rate.
        max_steps: Optimizer steps in total, abandoned branches included.
        interval: Steps between two checks.
        target: Value to reach; None spends the budget on one policy.
        mode: ``max`` if larger values are better, ``min`` if smaller ones are.
    """

    lr: float
    max_steps: int
    interval: int
    target: float | None
    mode: Literal["max", "min"]


class Planner(ABC):
    """Decides the next segment of a composition. Larger signed values are better.

    Args:
        settings: Settings of the composition.
        given: Its conditions.
    """

    def __init__(self, settings: Settings, given: Conditions) -> None:
        self.settings, self.max_steps, self.interval, self.target = (
            settings,
            given.max_steps,
            given.interval,
            given.target,
        )
        self.sign = 1.0 if given.mode == "max" else -1.0
        self.goal = math.inf if given.target is None else self.sign * given.target
        self.own_lr = given.lr
        self.found = Composition()
        self.spent = 0  # steps in total
        self.restore: str | None = None  # snapshot that the next segment starts from

    @abstractmethod
    def segments(self) -> Generator[Segment, SegmentResult, Composition]:
        """Yield all segments of the composition."""

    def _whole_intervals(self, steps: float) -> int:
        """Return the nearest multiple of the interval, at least one interval."""
        return self.interval * max(1, round(steps / self.interval))
