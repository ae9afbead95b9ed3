"""How soon does ``auto`` reach a target on ordinary tasks, against the default policy?

The default policy of a task is a cosine from the optimizer's own rate to zero over the budget. The target is the median
of the value with which it ends, over three seeds of their own. All steps count, those of tuning included; a miss counts
as the whole budget.

    python experiments/auto_bench/bench.py --seeds 61,62,63
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cases import ADAPTIVE, CASES, HELD_OUT, OPTIMIZERS, TARGET_SEEDS, Case, tensors
from stacked import Job, train
from torch import nn

from lrbench_pl.composing.plan import plan_segments, rules_for
from lrbench_pl.composing.segments import Segment
from lrbench_pl.composing.settings import Settings
from lrbench_pl.policies import Cyclic

WAYS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "auto": {},
    "auto with range test": {"repeats": 2},
    "averages accepted": {"accept_average": True},
    "range test": {"rules": "range test"},  # those of earlier versions on long budgets
    "comparison": {"rules": "comparison"},  # those for short budgets and for optimizers other than SGD
    "holding": {"rules": "holding"},  # those for SGD on long budgets
}
FACTORS = (1.0, 0.3, 3.0, 10.0)  # own rates that are compared, in multiples of the usual one; the first one if equal
_MARGIN_ADAM = 9.0  # as in LRPolicyComposer
_Plan = Generator[Segment, Any, Any]


def cosine_plan(case: Case) -> _Plan:
    """Yield the segments of the default policy."""
    policy = Cyclic(0.0, case.rate, case.steps, "half_cosine")
    for start in range(0, case.steps, case.interval):
        yield Segment("stable", policy, start, case.interval)


def _plan(case: Case, way: str, target: float, mode: Any) -> _Plan:
    if way == "cosine":
        return cosine_plan(case)
    margin = _MARGIN_ADAM if case.optimizer in ("adam", "adamw") else None
    given = {"margin": margin, **WAYS[way]}
    rules = given.pop("rules", None)
    settings = Settings(**given)
    rules = rules or rules_for(settings, case.optimizer in ADAPTIVE, case.steps, case.interval)
    return plan_segments(settings, case.rate, case.steps, case.interval, target, mode, rules)


def tuned(case: Case) -> Case:
    """Return the case with the best of four own rates: that with which the default policy ends at the best value.

    The seeds are those that fix the target, so that it is at least as hard as that of the usual rate.
    """
    is_loss = tensors(case.data)[1].is_floating_point()

    def end(factor: float) -> float:
        given = replace(case, factor=factor)
        jobs = train_plans(given, [cosine_plan(given) for _ in TARGET_SEEDS], TARGET_SEEDS, None)
        value = statistics.median(job.trace[-1][2] for job in jobs)
        return -math.inf if math.isnan(value) else -value if is_loss else value

    return replace(case, factor=max(FACTORS, key=end))


def _model(case: Case, inputs: int, outputs: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    width = case.width
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def train_plans(
    case: Case, plans: Sequence[_Plan], seeds: Sequence[int], target: float | None, accepts: Sequence[bool] = ()
) -> list[Job]:
    """Train plans of one case beside each other, one for each seed; ``accepts`` as for :func:`stacked.train`."""
    x, y = tensors(case.data)
    outputs = 1 if y.is_floating_point() else int(y.max()) + 1
    held = round(HELD_OUT * len(x))
    orders = [torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return train(
        x,
        y,
        [(order[held:], order[:held]) for order in orders],
        [_model(case, x.shape[1], outputs, seed) for seed in seeds],
        plans,
        seeds,
        case.batch,
        case.steps,
        case.interval,
        case.optimizer,
        OPTIMIZERS[case.optimizer][2],
        [target] * len(plans),
        Settings().average,
        accepts,
    )


def run(
    case: Case, seeds: Sequence[int], ways: Sequence[str] = tuple(WAYS), real: bool = False
) -> list[dict[str, Any]]:
    """Return a row for each seed and way of a case."""
    defaults = train_plans(case, [cosine_plan(case) for _ in TARGET_SEEDS], TARGET_SEEDS, None)
    target = float(f"{statistics.median(job.trace[-1][2] for job in defaults):.7g}")
    mode = "min" if tensors(case.data)[1].is_floating_point() else "max"
    pairs = [(seed, way) for seed in seeds for way in ways]
    if real:
        from in_lightning import fit

        verdicts = [fit(case, seed, "cosine" if way == "cosine" else "auto", target, WAYS[way]) for seed, way in pairs]
        reached = [callback.verdict.steps_to_target for callback in verdicts]
    else:
        jobs = train_plans(
            case,
            [_plan(case, way, target, mode) for _, way in pairs],
            [seed for seed, _ in pairs],
            target,
            ["accept_average" in WAYS[way] for _, way in pairs],
        )
        reached = [job.reached for job in jobs]
    return [
        {"case": case.name, "seed": seed, "way": way, "target": target, "reached": steps is not None}
        | {"steps": case.steps if steps is None else steps}
        for (seed, way), steps in zip(pairs, reached, strict=True)
    ]


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table in Markdown: a line per case, then successes and ratios of each way over the default."""
    ways = list(dict.fromkeys(str(row["way"]) for row in rows))
    lines = [f"| case | {' | '.join(ways)} |", f"|---|{'---|' * len(ways)}"]
    ratios: dict[str, list[float]] = {way: [] for way in ways}
    hits = dict.fromkeys(ways, 0)
    for case in dict.fromkeys(str(row["case"]) for row in rows):
        cells = []
        for way in ways:
            mine = [row for row in rows if row["case"] == case and row["way"] == way]
            median = statistics.median(int(row["steps"]) for row in mine)
            good = sum(str(row["reached"]) == "True" for row in mine)
            base = statistics.median(int(row["steps"]) for row in rows if row["case"] == case and row["way"] == ways[0])
            ratios[way].append(median / base)
            hits[way] += good
            cells.append(f"{median:.0f} ({good}/{len(mine)})")
        lines.append(f"| {case} | {' | '.join(cells)} |")
    lines += [
        "",
        "| way | reached | ratio to the default: median | geometric mean | worst | above 1.1 |",
        "|---|" + "---|" * 5,
    ]
    for way, found in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, found)))
        lines.append(
            f"| {way} | {hits[way]}/{len(rows) // len(ways)} | {statistics.median(found):.2f} | {mean:.2f} "
            f"| {max(found):.2f} | {sum(ratio > 1.1 for ratio in found)}/{len(found)} |"
        )
    return "\n".join(lines)


def show(rows: Path, table: Callable[[Sequence[Mapping[str, Any]]], str]) -> None:
    """Print the table of rows that are frozen."""
    with rows.open() as file:
        print(table(list(csv.DictReader(file))))


def train_all(
    cases: Sequence[Case],
    way: Callable[[Case], list[dict[str, Any]]],
    table: Callable[[Sequence[Mapping[str, Any]]], str],
    out: Path | None,
) -> None:
    """Train the cases, write their rows after each, and print the table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases, 1):
        rows += way(case)
        print(f"\r{number} of {len(cases)} cases", end="", file=sys.stderr, flush=True)
        if out is not None:
            with out.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    print(file=sys.stderr)
    print(table(rows))


def main() -> None:
    """Train the cases and print the table; or print that of rows that are frozen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", choices=CASES, default="development")
    parser.add_argument("--only", default="", help="part of the names of cases")
    parser.add_argument("--seeds", default="61,62,63")
    parser.add_argument("--ways", default="cosine,auto", help=f"the first is compared with: {', '.join(WAYS)}")
    parser.add_argument("--tuned", action="store_true", help="with the best of four own rates for the default policy")
    parser.add_argument("--real", action="store_true", help="train with LRPolicyComposer in a Lightning Trainer")
    parser.add_argument("--out", type=Path, help="write the rows there")
    parser.add_argument("--rows", type=Path, help="print the table of these rows, and train nothing")
    given = parser.parse_args()
    if given.rows is not None:
        show(given.rows, summary)
        return
    cases = [case for case in CASES[given.cases] if given.only in case.name]
    seeds, ways = [int(seed) for seed in given.seeds.split(",")], given.ways.split(",")
    known = [way for way in WAYS if not (given.real and "rules" in WAYS[way])]
    if unknown := [way for way in ways if way not in known]:
        parser.error(f"expected --ways of {', '.join(known)}{' with --real' * given.real}, got {unknown[0]}")
    train_all(
        cases, lambda case: run(tuned(case) if given.tuned else case, seeds, ways, given.real), summary, given.out
    )


if __name__ == "__main__":
    main()
