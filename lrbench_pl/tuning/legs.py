"""A training cut into legs: what a tuner asks for, and what it is told. No torch, no Lightning."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal

from lrbench_pl.policies import Policy

Kind = Literal["range", "trunk", "branch", "keep"]


@dataclass(frozen=True)
class Leg:
    """A stretch of training that ends at a check; a sweep of a range test may end between two.

    Args:
        kind: ``range`` (a range test), ``trunk`` (goes on), ``branch`` (decays) or ``keep`` (no steps: only snapshots).
        policy: The whole policy, whose rate at ``start``, ``start + 1``, … is applied.
        start: The policy's own clock at the first step.
        steps: Optimizer steps; the leg ends at the first check at or after them. 0: nothing is trained.
        restore: Name of the snapshot to go back to before it.
        skip: Steps whose batches are passed over after that.
        save: Name under which the state after it is kept.
        averaged: Whether the check at its end looks at the averaged weights; it can then not reach the target.
        note: Why it is taken, for the record.
    """

    kind: Kind
    policy: Policy
    start: int
    steps: int
    restore: str | None = None
    skip: int = 0
    save: str | None = None
    averaged: bool = False
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a leg.

    Args:
        steps: Optimizer steps taken.
        value: The monitored metric at its last check; None if it took no step.
        diverged: Whether the training loss became non-finite or several times what it was at the start.
        losses: Training loss of each step, only for a ``range`` leg.
        spent: Steps of the whole training so far.
    """

    steps: int
    value: float | None = None
    diverged: bool = False
    losses: tuple[float, ...] = field(default=())
    spent: int = 0


# A tuner yields legs, is sent their outcomes, and returns what it found.
Tuner = Generator[Leg, Outcome, Any]
