"""The range test: which learning rates a network takes, from a rate that rises exponentially over a few steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from lrbench_pl.composing.divergence import noise
from lrbench_pl.composing.segments import Leg, Outcome
from lrbench_pl.policies import _checks as check

_WINDOWS = 12  # the running mean of the loss looks back over this part of a sweep
_BLOWN = 0.3  # share of the whole fall by which a smoothed loss must stand above the start to have diverged
_NEAR = 2.0  # windows that the noise looks back over
_CLEAR = 5.0  # noise that a rise or a fall must exceed, to say more of a rate than that it does not diverge
_RISEN = 1 / 3  # share of its fall that the loss must rise again by the end of a sweep to have met a limit
MARGIN = 3.0  # from the peak to the highest usable rate: what holds for 50 steps may not for 1,000


@dataclass(frozen=True)
class Sweep:
    """A rate that rises exponentially from ``low`` to ``high`` over ``steps`` iterations.

    Example:
        >>> [round(Sweep(0.001, 0.1, 3)(t), 6) for t in range(4)]
        [0.001, 0.01, 0.1, 0.1]
    """

    low: float
    high: float
    steps: int

    def __post_init__(self) -> None:
        check.number("low", self.low, "be a finite number above 0", lambda v: v > 0)
        check.number("high", self.high, f"be above low ({self.low})", lambda v: v > self.low)
        check.count("steps", self.steps, least=2)

    def __call__(self, t: int) -> float:
        """The rate of step ``t``."""
        return self.low * math.pow(self.high / self.low, min(1.0, t / (self.steps - 1)))


@dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    Args:
        rates: The rates tried.
        losses: The smoothed loss at each, mean of the repeats, as far as all of them went.
        low: The least rate at which the loss fell by a tenth of its whole fall.
        high: The largest usable rate: below any that diverged in any repeat.
        peak: The suggested peak: a share of the largest usable rate, by default a third, and not above that where the
            loss is lowest. The first varies far less from sample to sample than the second. Where the loss fell by no
            more than its noise, as in a network that starts on a plateau, or rose again but never diverged, the peak
            lies half way, on a logarithmic scale, to the middle of the sweep. Where it did not even rise by a third of
            its fall, no limit was met and the network may have died (a ResNet's loss falls below that of its start as
            it comes to answer a constant): the peak is then at most the middle of the sweep.
        diverged_at: The least rate that diverged in any repeat; None if none did.
        steps: Optimizer steps that it took.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    low: float
    high: float
    peak: float
    diverged_at: float | None
    steps: int


def smoothed(losses: Sequence[float], window: float = 10.0) -> list[float]:
    """Running mean over about ``window`` steps with bias correction, up to the first loss that is no finite number.

    Example:
        >>> smoothed([2.0, 2.0, float("nan"), 1.0])
        [2.0, 2.0]
    """
    memory = 1 - 1 / window
    mean, means = 0.0, []
    for n, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            break
        mean = memory * mean + (1 - memory) * loss
        means.append(mean / (1 - memory**n))
    return means


def _end(losses: Sequence[float], window: float) -> int:
    """Index of the first loss that has diverged, else their number."""
    means = smoothed(losses, window)
    if not means:
        return 0
    best = min(range(len(means)), key=means.__getitem__)
    has_learnt = means[0] - means[best] > _CLEAR * _noise(losses, best, window)
    for index, mean in enumerate(means):
        limit = _BLOWN * (means[0] - means[best]) if has_learnt else _CLEAR * _noise(losses, index, window)
        if index > 1 and mean - means[0] > limit:
            return index
    return len(means)


def _noise(losses: Sequence[float], index: int, window: float) -> float:
    """The noise just before a step, which grows with the rate."""
    return noise(losses[max(0, index - round(_NEAR * window)) : index + 1])


def analyse(sweep: Sweep, repeats: Sequence[Sequence[float]], margin: float = MARGIN) -> RangeTest:
    """Usable range and peak from the losses of the repeats.

    Args:
        sweep: The rates.
        repeats: The losses of each, by step.
        margin: The largest usable rate over the peak.

    Raises:
        ValueError: If there is no repeat, or one diverged before its third step.

    Example:
        >>> falling = [2.3 - 0.02 * t for t in range(100)]
        >>> found = analyse(Sweep(1e-4, 1.0, 100), [[*falling[:80], float("nan")], falling])
        >>> found.high < found.diverged_at, round(found.diverged_at, 2), found.steps
        (True, 0.17, 181)
    """
    if not repeats or not all(repeats):
        raise ValueError("expected the losses of at least one repeat, got none")
    window = max(2, round(sweep.steps / _WINDOWS))
    ends = [min(_end(losses, window), sweep.steps) for losses in repeats]
    shortest = min(ends)
    if shortest < 3:
        raise ValueError(
            f"the training diverged at a rate of {sweep(shortest):.3g}, the least of the range test; "
            "give it a lower range, or look for another cause"
        )
    whole = [end == min(len(losses), sweep.steps) for end, losses in zip(ends, repeats, strict=True)]
    diverged_at = None if all(whole) else min(sweep(end) for end, ok in zip(ends, whole, strict=True) if not ok)
    curves = [smoothed(losses[:shortest], window) for losses in repeats]
    mean = [math.fsum(values) / len(curves) for values in zip(*curves, strict=True)]
    rates = [sweep(t) for t in range(shortest)]
    best = min(range(shortest), key=mean.__getitem__)
    fall = mean[0] - mean[best]
    low = next(rate for rate, loss in zip(rates, mean, strict=True) if loss <= mean[0] - 0.1 * fall)
    peak = min(rates[best], rates[-1] / margin)
    own = math.sqrt(sweep.low * sweep.high)
    has_learnt = fall > _CLEAR * statistics.fmean(_noise(losses, best, window) for losses in repeats)
    if has_learnt and diverged_at is None and mean[-1] - mean[best] < _RISEN * fall:
        peak = min(peak, own)
    elif not has_learnt or diverged_at is None:
        peak = min(peak, math.sqrt(peak * own))
    return RangeTest(
        rates=tuple(rates),
        losses=tuple(mean),
        low=min(low, peak),
        high=rates[-1],
        peak=peak,
        diverged_at=diverged_at,
        steps=sum(len(losses) for losses in repeats),
    )


def range_test(
    sweep: Sweep,
    repeats: int = 2,
    restore: str | None = None,
    steps: int | None = None,
    margin: float = MARGIN,
) -> Generator[Leg, Outcome, RangeTest]:
    """Run the repeats from one snapshot; their caller goes back to it afterwards.

    Args:
        sweep: The rates.
        repeats: Number of sweeps, each on the next batches.
        restore: Name of the snapshot that each repeat starts from.
        steps: Steps of all repeats together, by default what they need; more let the last one stay at its end.
        margin: As in :func:`analyse`.
    """
    curves = []
    spent = 0
    spare = 0 if steps is None else steps - repeats * sweep.steps
    for number in range(repeats):
        note = f"range test {number + 1} of {repeats}: {sweep.low:.2g} to {sweep.high:.2g}"
        length = sweep.steps + (spare if number == repeats - 1 else 0)
        outcome = yield Leg("range", sweep, 0, length, restore=restore, skip=spent, note=note)
        curves.append(outcome.losses[: sweep.steps])
        spent += outcome.steps
    return replace(analyse(sweep, curves, margin), steps=spent)
