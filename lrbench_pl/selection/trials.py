"""Values of a selection: options, candidates, trials and their results. No torch, no Hydra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lrbench_pl.composing.range_test import RangeTest
from lrbench_pl.policies import _checks as check
from lrbench_pl.words import policy_file_name

Kind = Literal["range", "rung", "confirm", "shorten"]


@dataclass(frozen=True)
class SelectionOptions:
    """Options of a selection.

    Args:
        shapes: Names of policies in ``conf/lr_policy``.
        rates: Peak rates as shares of the peak that the range test suggests, each above 0.
        repeats: Repeats of the range test, each with initial weights of its own seed; 0 uses the optimizer's own rate.
        first: Horizon of the first rung as a share of the budget, in (0, 1].
        growth: Factor from one horizon to the next, above 1.
        eta: One in ``eta`` candidates is promoted to the next rung; above 1.
        confirm: Number of fresh seeds, with all of which the winner must reach the target.
        bisections: Maximum number of shorter horizons that are tried for the winner.
        tuning_budget: Optimizer steps of all trials, as a multiple of the budget; above 0.

    Raises:
        ValueError: If an option is out of its range.
    """

    shapes: tuple[str, ...] = ("cosine", "wsd", "onecycle", "nstep", "tri2", "composite_tri_cosine")
    rates: tuple[float, ...] = (1.0, 0.3)
    repeats: int = 2
    first: float = 1 / 32
    growth: float = 2.0
    eta: float = 2.0
    confirm: int = 2
    bisections: int = 2
    tuning_budget: float = 4.0

    def __post_init__(self) -> None:
        for name in ("shapes", "rates"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence) or not value:
                raise ValueError(f"{name} must be a list of at least one, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        for rate in self.rates:
            check.number("rates", rate, "be finite numbers above 0", lambda v: v > 0)
        check.count("repeats", self.repeats, least=0)
        check.number("first", self.first, "lie in (0, 1]", lambda v: 0 < v <= 1)
        check.number("growth", self.growth, "be a finite number above 1", lambda v: v > 1)
        check.number("eta", self.eta, "be a finite number above 1", lambda v: v > 1)
        check.count("confirm", self.confirm, least=0)
        check.count("bisections", self.bisections, least=0)
        check.number("tuning_budget", self.tuning_budget, "be a finite number above 0", lambda v: v > 0)


@dataclass(frozen=True)
class SelectionTask:
    """The training that a policy is selected for.

    Args:
        max_steps: The budget of one training, in optimizer steps.
        interval: Steps between two checks; every horizon is a multiple of it.
        optimizers: The optimizers to select from, each with its own rate.
        seeds: Seeds that all candidates of a rung share.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        files: Paths of further policies, each with its optimizer. They contain their rates and are tried first.
        rates: Peak rates to try instead of those of the range test.

    Raises:
        ValueError: If the budget is shorter than the interval, or a rate is not above 0.
    """

    max_steps: int
    interval: int
    optimizers: Mapping[str, float]
    seeds: tuple[int, ...] = (0,)
    mode: Literal["max", "min"] = "max"
    files: tuple[tuple[str, str], ...] = ()
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.interval > self.max_steps:
            raise ValueError(
                f"check_every must not exceed max_steps ({self.max_steps}), got {self.interval}: "
                "nothing would be checked"
            )
        for rate in self.rates:
            check.number("lr", rate, "be finite numbers above 0", lambda v: v > 0)


def exact(lr: float) -> str:
    """Return a rate with all its digits, so that different rates have different names.

    Example:
        >>> exact(0.0123456789), exact(1.0), exact(1e-05)
        ('0.0123456789', '1', '1e-05')
    """
    return repr(float(lr)).removesuffix(".0")


@dataclass(frozen=True)
class Candidate:
    """A policy at a peak rate with an optimizer.

    Args:
        policy: Name of a shape, or the path of a policy that contains its rates.
        optimizer: Name of the optimizer.
        lr: The peak rate; None for a path.

    Example:
        >>> print(Candidate("cosine", "adam", 0.002), "|", Candidate("a/policy.yaml", "sgd"))
        cosine at 0.002 (adam) | a (sgd)
    """

    policy: str
    optimizer: str
    lr: float | None = None

    def __str__(self) -> str:
        return (
            f"{policy_file_name(self.policy)} ({self.optimizer})"
            if self.lr is None
            else f"{self.policy} at {exact(self.lr)} ({self.optimizer})"
        )


@dataclass(frozen=True)
class Trial:
    """One training of a candidate: its complete policy over ``horizon`` steps."""

    kind: Kind
    candidate: Candidate
    horizon: int
    seed: int


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial.

    Args:
        status: Status of the run.
        steps: Optimizer steps taken.
        steps_to_target: Steps at the check that reached the target; None if none did.
        value: Best value of the monitor; None without a check.
        seconds: Seconds of training.
        message: Why the status is what it is.
        losses: Training loss of each step, for a range test.
    """

    status: str
    steps: int
    steps_to_target: int | None = None
    value: float | None = None
    seconds: float = 0.0
    message: str = ""
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Standing:
    """Results of a candidate at its longest horizon.

    Args:
        candidate: The candidate.
        horizon: Steps of its last rung.
        reached: Number of its trials that reached the target.
        runs: Number of its trials.
        steps: Median steps to the target; None if half of the trials or more missed.
        value: Mean of the best values; None if a trial has none.
        diverged: Number of its trials that diverged or failed.
    """

    candidate: Candidate
    horizon: int
    reached: int
    runs: int
    steps: float | None
    value: float | None
    diverged: int


@dataclass
class Selection:
    """State of a selection, updated after each batch of trials.

    Args:
        winner: The recommended candidate; the best so far while the selection runs.
        horizon: Steps of its policy.
        status: ``reached``, or ``missed`` if no candidate reached the target within the tuning budget.
        confirmed: Number of fresh seeds with which the winner reached the target at this horizon.
        asked: Number of fresh seeds that were tried.
        ranking: Candidates, best first.
        avoided: Choices that were found bad or were not tried, and why.
        lines: One line per finished batch.
        ranges: The range test of each optimizer.
        steps: Optimizer steps of all trials.
        seconds: Seconds of training.
        jobs: Number of trials.
        steps_to_first: Steps of all trials up to and including the first that reached the target.
        steps_to_confirmed: Steps of all trials when the winner was confirmed, before its horizon was shortened.
    """

    winner: Candidate | None = None
    horizon: int = 0
    status: Literal["reached", "missed"] = "missed"
    confirmed: int = 0
    asked: int = 0
    ranking: list[Standing] = field(default_factory=list)
    avoided: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    ranges: dict[str, RangeTest] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    jobs: int = 0
    steps_to_first: int | None = None
    steps_to_confirmed: int | None = None
