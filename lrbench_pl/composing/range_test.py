"""Learning-rate range test: usable rates, from losses at a rising rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from lrbench_pl.composing.divergence import noise
from lrbench_pl.composing.segments import Segment, SegmentResult
from lrbench_pl.policies import _checks as check

_WINDOWS = 12  # the window of the running mean is this part of a pass
_DIVERGED = 0.3  # a loss that rises above its start by this share of its largest fall has diverged
_NOISE_WINDOWS = 2.0  # windows over which the noise is measured
_CLEAR = 5.0  # a rise or fall is significant if it exceeds this multiple of the noise
_RISEN = 1 / 3  # share of its fall by which the loss must rise at the end of a pass to show an upper limit
MARGIN = 3.0  # largest usable rate over the peak: a rate that is stable for 50 steps may not be stable for 1,000


@dataclass(frozen=True)
class RateRamp:
    """Rate that rises exponentially from ``low`` to ``high`` over ``steps`` steps.

    Example:
        >>> [round(RateRamp(0.001, 0.1, 3)(t), 6) for t in range(4)]
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
        """Return the learning rate of step ``t``."""
        return self.low * math.pow(self.high / self.low, min(1.0, t / (self.steps - 1)))

    @property
    def centre(self) -> float:
        """Geometric mean of the lowest and the highest rate."""
        return math.sqrt(self.low * self.high)


@dataclass(frozen=True)
class RangeTest:
    """Result of a range test.

    The peak is the largest usable rate divided by a margin, but at most the rate of the lowest loss. The largest usable
    rate varies much less between samples than the rate of the lowest loss. There are two exceptions:

    - If the fall of the loss is within its noise, as on an initial plateau, or the loss rose again without diverging,
      the peak moves halfway, on a logarithmic scale, to the centre of the ramp.
    - If the loss fell significantly and rose by less than a third of that fall, the test met no upper limit and the
      network may be dead: the loss of a ResNet falls below its start when the network outputs a constant. The peak is
      then at most the centre of the ramp.

    Args:
        rates: Rates that all passes reached.
        losses: Smoothed loss at each of these rates, mean of the passes.
        low: Smallest rate at which the loss has fallen by a tenth of its largest fall.
        high: Largest usable rate, below any rate that diverged in any pass.
        peak: Suggested peak rate.
        diverged_at: Smallest rate that diverged in any pass; None if none did.
        steps: Optimizer steps of the test.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    low: float
    high: float
    peak: float
    diverged_at: float | None
    steps: int


def smoothed(losses: Sequence[float], window: float = 10.0) -> list[float]:
    """Return the bias-corrected running mean, up to the first non-finite loss.

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


def _steps_before_divergence(losses: Sequence[float], window: float) -> int:
    """Return the index of the first diverged loss, or the number of losses."""
    means = smoothed(losses, window)
    if not means:
        return 0
    best = min(range(len(means)), key=means.__getitem__)
    has_learned = means[0] - means[best] > _CLEAR * _noise_before(losses, best, window)
    for index, mean in enumerate(means):
        limit = _DIVERGED * (means[0] - means[best]) if has_learned else _CLEAR * _noise_before(losses, index, window)
        if index > 1 and mean - means[0] > limit:
            return index
    return len(means)


def _noise_before(losses: Sequence[float], index: int, window: float) -> float:
    """Return the noise of the losses just before a step; it grows with the rate."""
    return noise(losses[max(0, index - round(_NOISE_WINDOWS * window)) : index + 1])


def analyse(ramp: RateRamp, repeats: Sequence[Sequence[float]], margin: float = MARGIN) -> RangeTest:
    """Compute the usable range and the peak from the losses of all passes.

    Args:
        ramp: Rates of each pass.
        repeats: Losses of each pass, by step.
        margin: Largest usable rate over the peak.

    Raises:
        ValueError: If there is no pass, or one diverged before its third step.

    Example:
        >>> falling = [2.3 - 0.02 * t for t in range(100)]
        >>> found = analyse(RateRamp(1e-4, 1.0, 100), [[*falling[:80], float("nan")], falling])
        >>> found.high < found.diverged_at, round(found.diverged_at, 2), found.steps
        (True, 0.17, 181)
    """
    if not repeats or not all(repeats):
        raise ValueError("expected the losses of at least one repeat, got none")
    window = max(2, round(ramp.steps / _WINDOWS))
    ends = [min(_steps_before_divergence(losses, window), ramp.steps) for losses in repeats]
    shortest = min(ends)
    if shortest < 3:
        raise ValueError(
            f"the training diverged at a rate of {ramp(shortest):.3g}, the lowest of the range test; "
            "test a lower range, or look for another cause"
        )
    diverged = [ramp(end) for end, losses in zip(ends, repeats, strict=True) if end < min(len(losses), ramp.steps)]
    diverged_at = min(diverged, default=None)
    curves = [smoothed(losses[:shortest], window) for losses in repeats]
    mean = [math.fsum(values) / len(curves) for values in zip(*curves, strict=True)]
    best = min(range(shortest), key=mean.__getitem__)
    noise_at_best = statistics.fmean(_noise_before(losses, best, window) for losses in repeats)
    peak = _peak(ramp, mean, noise_at_best, diverged_at is not None, margin)
    fallen = (t for t, loss in enumerate(mean) if loss <= mean[0] - 0.1 * (mean[0] - mean[best]))
    return RangeTest(
        rates=tuple(ramp(t) for t in range(shortest)),
        losses=tuple(mean),
        low=min(ramp(next(fallen)), peak),
        high=ramp(shortest - 1),
        peak=peak,
        diverged_at=diverged_at,
        steps=sum(len(losses) for losses in repeats),
    )


def _peak(ramp: RateRamp, losses: Sequence[float], noise_at_best: float, has_diverged: bool, margin: float) -> float:
    """Return the suggested peak, as :class:`RangeTest` describes it."""
    best = min(range(len(losses)), key=losses.__getitem__)
    fall = losses[0] - losses[best]
    peak = min(ramp(best), ramp(len(losses) - 1) / margin)
    has_learned = fall > _CLEAR * noise_at_best
    if has_learned and not has_diverged and losses[-1] - losses[best] < _RISEN * fall:
        return min(peak, ramp.centre)
    if not has_learned or not has_diverged:
        return min(peak, math.sqrt(peak * ramp.centre))
    return peak


def range_passes(
    ramp: RateRamp, repeats: int = 2, restore: str | None = None, steps: int | None = None
) -> Generator[Segment, SegmentResult, tuple[list[tuple[float, ...]], int]]:
    """Plan the passes of a range test; the caller restores the snapshot at the end.

    Args:
        ramp: Rates of each pass.
        repeats: Number of passes, each on the next batches.
        restore: Name of the snapshot that each pass starts from.
        steps: Steps of all passes together, by default the steps of their ramps. The last pass stays at the highest
            rate for the additional steps.

    Returns:
        The losses of each pass, for :func:`analyse`, and the steps of all passes.
    """
    curves = []
    spent = 0
    additional = 0 if steps is None else steps - repeats * ramp.steps
    for number in range(repeats):
        note = f"range test {number + 1} of {repeats}: {ramp.low:.2g} to {ramp.high:.2g}"
        length = ramp.steps + (additional if number == repeats - 1 else 0)
        result = yield Segment("range", ramp, 0, length, restore=restore, skip=spent, note=note)
        curves.append(result.losses[: ramp.steps])
        spent += result.steps
    return curves, spent
