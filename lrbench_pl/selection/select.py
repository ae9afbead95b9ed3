"""Select a policy from a pool: the plan, as a generator of batches of trials. No torch, no Hydra."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from lrbench_pl.composing.range_test import RateRamp, analyse
from lrbench_pl.selection.standings import note_dropped, promoted, rung_line, standings, update_ranking
from lrbench_pl.selection.trials import (
    Candidate,
    Selection,
    SelectionOptions,
    SelectionTask,
    Standing,
    Trial,
    TrialResult,
    exact,
)
from lrbench_pl.words import counted

SPAN = 100.0  # a range test covers the optimizer's own rate divided and multiplied by this
_RANGE_TEST_SHARE = 0.01  # steps of one repeat of the range test as a share of the budget ...
_RANGE_TEST_STEPS = (50, 200)  # ... but at least and at most these
_RANGE_TESTS_SHARE = 0.25  # maximum share of the budget for all repeats; above it, the optimizer's own rate is used

Batches = Generator[list[Trial], Sequence[TrialResult], Selection]
_Results = Generator[list[Trial], Sequence[TrialResult], list[TrialResult]]
_Nothing = Generator[list[Trial], Sequence[TrialResult], None]


def horizons(options: SelectionOptions, max_steps: int, interval: int) -> list[int]:
    """Return the steps of each rung: multiples of the interval, growing up to the budget.

    Example:
        >>> horizons(SelectionOptions(), 10_000, 100)
        [300, 600, 1200, 2500, 5000, 10000]
    """
    last = max_steps // interval * interval
    found: list[int] = []
    exact_steps = options.first * max_steps
    while exact_steps < 0.999 * max_steps:
        steps = min(last, interval * max(1, round(exact_steps / interval)))
        if not found or steps > found[-1]:
            found.append(steps)
        exact_steps *= options.growth
    return found if found and found[-1] == last else [*found, last]


def select(options: SelectionOptions, task: SelectionTask, found: Selection | None = None) -> Batches:
    """Plan a selection: range tests, rungs at growing horizons, confirmation on fresh seeds, bisection.

    Every trial applies a complete policy. The plan yields batches of trials that may run in parallel, and is sent their
    results in the same order. It depends only on the results, so it can be replayed from those of an interrupted
    selection. No batch is started that could exceed the tuning budget.

    Args:
        options: Options of the selection.
        task: The training to select a policy for.
        found: State of the selection, updated after each batch and returned in the end.

    Example:
        >>> options = SelectionOptions(shapes=("fix", "linear"), rates=(1.0,), repeats=0, confirm=1, bisections=0)
        >>> plan = select(options, SelectionTask(max_steps=320, interval=10, optimizers={"sgd": 0.1}))
        >>> [f"{trial.candidate}, {trial.horizon} steps" for trial in next(plan)]
        ['fix at 0.1 (sgd), 10 steps', 'linear at 0.1 (sgd), 10 steps']
        >>> results = [TrialResult("missed", 10, value=0.5), TrialResult("reached", 10, 10, 0.9)]
        >>> [(trial.kind, str(trial.candidate), trial.seed) for trial in plan.send(results)]
        [('confirm', 'linear at 0.1 (sgd)', 1)]
    """
    plan = _Plan(options, task, Selection() if found is None else found)
    yield from plan.run()
    return plan.found


@dataclass
class _Plan:
    """The stages of a selection, which share its state."""

    options: SelectionOptions
    task: SelectionTask
    found: Selection

    def __post_init__(self) -> None:
        self.budget = math.floor(self.options.tuning_budget * self.task.max_steps)
        first = max(self.task.seeds) + 1
        self.fresh_seeds = list(range(first, first + self.options.confirm))
        self.missed_at: dict[Candidate, int] = {}  # longest horizon at which a candidate missed

    @property
    def remaining(self) -> int:
        """Steps left of the tuning budget."""
        return self.budget - self.found.steps

    def run(self) -> _Nothing:
        """Run all stages."""
        yield from self.range_tests()
        candidates = self.pool()
        rungs = horizons(self.options, self.task.max_steps, self.task.interval)
        for number, horizon in enumerate(rungs, 1):
            candidates = self.affordable(candidates, horizon)
            if not candidates:
                return
            kept = yield from self.rung(candidates, horizon, f"rung {number} of {len(rungs)}", number == len(rungs))
            if self.found.steps_to_confirmed is not None:
                return
            candidates = [standing.candidate for standing in kept]

    def batch(self, trials: list[Trial]) -> _Results:
        """Run a batch and count its cost."""
        results = yield trials
        for result in results:
            self.found.steps += result.steps
            self.found.seconds += result.seconds
            self.found.jobs += 1
            if result.status == "reached" and self.found.steps_to_first is None:
                self.found.steps_to_first = self.found.steps
        return list(results)

    # -- candidates -------------------------------------------------------------------------------------------

    def range_tests(self) -> _Nothing:
        """Run the range test of each optimizer, if the rates are not given and the budgets suffice."""
        options, task, found = self.options, self.task, self.found
        least, most = _RANGE_TEST_STEPS
        steps = max(least, min(most, round(_RANGE_TEST_SHARE * task.max_steps)))
        total = steps * options.repeats * len(task.optimizers)
        affordable = min(_RANGE_TESTS_SHARE * task.max_steps * len(task.optimizers), self.budget / 2)
        if not options.repeats or task.rates or total > affordable:
            return
        seeds = range(task.seeds[0], task.seeds[0] + options.repeats)
        results = yield from self.batch(
            [
                Trial("range", Candidate("range", name, lr), steps, seed)
                for name, lr in task.optimizers.items()
                for seed in seeds
            ]
        )
        for index, name in enumerate(task.optimizers):
            repeats = results[index * options.repeats : (index + 1) * options.repeats]
            self.analyse(name, steps, [result.losses for result in repeats if result.losses])
        words = ", ".join(f"{name} {t.low:.2g} to {t.high:.2g}, peak {t.peak:.2g}" for name, t in found.ranges.items())
        found.lines.append(f"range test: {words or 'none usable'}; {counted(found.steps, 'step')} spent")

    def analyse(self, optimizer: str, steps: int, losses: Sequence[Sequence[float]]) -> None:
        """Analyse the range test of an optimizer."""
        lr = self.task.optimizers[optimizer]
        try:
            test = analyse(RateRamp(lr / SPAN, lr * SPAN, steps), losses)
        except ValueError as error:
            self.found.avoided.append(f"the range test of {optimizer}: {error}; its own rate {exact(lr)} is used")
            return
        self.found.ranges[optimizer] = test
        if test.diverged_at is not None:
            self.found.avoided.append(f"{optimizer} at {test.diverged_at:.3g} and above: the range test diverged")

    def pool(self) -> list[Candidate]:
        """Return all candidates: files first, then every shape at the first rate, then at the next one."""
        found = [Candidate(path, name) for path, name in self.task.files]
        for rate in self.task.rates or self.options.rates:
            for shape in self.options.shapes:
                for optimizer in self.task.optimizers:
                    lr = rate if self.task.rates else self.share_of_peak(optimizer, rate)
                    test = self.found.ranges.get(optimizer)
                    if test is not None and lr > test.high:
                        self.found.avoided.append(f"{shape} at {exact(lr)} ({optimizer}): above the usable rates")
                    else:
                        found.append(Candidate(shape, optimizer, lr))
        return list(dict.fromkeys(found))

    def share_of_peak(self, optimizer: str, share: float) -> float:
        """Return a share of the peak rate, with three digits if a range test measured the peak."""
        test = self.found.ranges.get(optimizer)
        if test is not None:
            return float(f"{share * test.peak:.3g}")
        own = self.task.optimizers[optimizer]
        return own if share == 1 else float(f"{share * own:.12g}")  # 3 * 0.1 is 0.3

    # -- rungs ------------------------------------------------------------------------------------------------

    def affordable(self, candidates: list[Candidate], horizon: int) -> list[Candidate]:
        """Return the candidates for which the tuning budget suffices."""
        fits = self.remaining // (horizon * len(self.task.seeds))
        if fits < len(candidates):
            left_out = ", ".join(map(str, candidates[fits:]))
            self.found.avoided.append(
                f"{left_out}: not tried at {counted(horizon, 'step')}, beyond the tuning budget of {self.budget}"
            )
        return candidates[:fits]

    def rung(
        self, candidates: list[Candidate], horizon: int, name: str, is_last: bool
    ) -> Generator[list[Trial], Sequence[TrialResult], list[Standing]]:
        """Train all candidates at a horizon and confirm the best ones; return those to promote."""
        trials = [Trial("rung", candidate, horizon, seed) for candidate in candidates for seed in self.task.seeds]
        results: dict[Candidate, list[TrialResult]] = {candidate: [] for candidate in candidates}
        for trial, result in zip(trials, (yield from self.batch(trials)), strict=True):
            results[trial.candidate].append(result)
        ranked = standings(results, horizon, self.task.mode)
        update_ranking(self.found, ranked)
        self.found.lines.append(rung_line(self.found, name, ranked))
        self.missed_at |= {standing.candidate: horizon for standing in ranked if standing.steps is None}
        for standing in promoted(ranked, self.options):
            if standing.steps is None:
                break
            fresh = yield from self.confirm(standing.candidate, horizon)
            if self.found.steps_to_confirmed is not None:
                yield from self.shorten(self.missed_at.get(standing.candidate, 0))
                return []
            results[standing.candidate] += fresh
            self.missed_at[standing.candidate] = horizon
        ranked = standings(results, horizon, self.task.mode)  # fresh seeds may change the order
        update_ranking(self.found, ranked)
        kept = promoted(ranked, self.options)
        note_dropped(self.found, ranked, kept, results, is_last)
        return kept

    # -- the winner -------------------------------------------------------------------------------------------

    def confirm(self, candidate: Candidate, horizon: int) -> _Results:
        """Train a candidate with fresh seeds; it is confirmed if all of them reach the target."""
        found, seeds = self.found, self.fresh_seeds
        if found.status != "reached":
            found.winner, found.horizon, found.status = candidate, horizon, "reached"
        fits = min(len(seeds), self.remaining // horizon)
        if fits < len(seeds):
            more = counted(len(seeds) - fits, "more seed")
            found.avoided.append(f"confirming {candidate} on {more}: beyond the tuning budget of {self.budget}")
        results: list[TrialResult] = []
        if fits:
            results = yield from self.batch([Trial("confirm", candidate, horizon, seed) for seed in seeds[:fits]])
        good = sum(result.status == "reached" for result in results)
        if results:
            over, on = counted(horizon, "step"), f"on {good} of {len(results)}"
            found.lines.append(
                f"fresh seeds: {candidate} reaches the target within {over} {on}; {counted(found.steps, 'step')} spent"
            )
            if good < len(results):
                found.avoided.append(f"{candidate} over {over}: reached the target {on} fresh seeds")
            if not found.asked or good / len(results) > found.confirmed / found.asked:  # of equals the shorter
                found.winner, found.horizon, found.confirmed, found.asked = candidate, horizon, good, len(results)
        if good == len(seeds):
            found.steps_to_confirmed = found.steps
        return results

    def shorten(self, missed: int) -> _Nothing:
        """Bisect the winner's horizon between the longest that missed and the shortest that reached the target."""
        found = self.found
        assert found.winner is not None
        seeds = self.fresh_seeds or list(self.task.seeds)
        for _ in range(self.options.bisections):
            middle = (missed + found.horizon) // 2 // self.task.interval * self.task.interval
            if middle <= missed:
                return
            over = f"{found.winner} over {counted(middle, 'step')}"
            if middle * len(seeds) > self.remaining:
                found.avoided.append(f"{over}: not tried, beyond the tuning budget of {self.budget}")
                return
            results = yield from self.batch([Trial("shorten", found.winner, middle, seed) for seed in seeds])
            good = sum(result.status == "reached" for result in results)
            on = f"on {good} of {len(results)}"
            found.lines.append(
                f"shorter: {found.winner} reaches the target within {counted(middle, 'step')} {on}; "
                f"{counted(found.steps, 'step')} spent"
            )
            if good == len(results):
                found.horizon = middle
            else:
                missed = middle
                found.avoided.append(f"{over}: reached the target {on} seeds")
