"""How soon can a task of the bench be solved at all? Fixed policies, the best of them chosen afterwards.

Each policy warms up to a multiple of the optimizer's own rate and then decays linearly to zero, over a share of the
budget. The best of them in the median over the seeds is a bound for ``auto``, which must find it during the training.

    python experiments/auto_bench/oracle.py --out oracle.csv
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import cosine_plan, show, train_all, train_plans
from cases import CASES, TARGET_SEEDS, Case

from lrbench_pl.composing.segments import Segment
from lrbench_pl.policies import Polynomial, warmup

PEAKS, SHARES = (0.3, 1.0, 3.0, 10.0), (0.1, 0.25, 0.5, 1.0)
_WARMUP = 0.05  # share of the steps
_Row = dict[str, Any]


def _decay(peak: float, steps: int, interval: int) -> Generator[Segment, Any, Any]:
    policy = warmup(Polynomial(peak, steps), max(1, round(_WARMUP * steps)))
    for start in range(0, steps, interval):
        yield Segment("stable", policy, start, interval)


def run(case: Case, seeds: Sequence[int]) -> list[_Row]:
    """Return a row for the default, and one for each peak and share: median steps and how many seeds reached it."""
    defaults = train_plans(case, [cosine_plan(case) for _ in TARGET_SEEDS], TARGET_SEEDS, None)
    target = float(f"{statistics.median(job.trace[-1][2] for job in defaults):.7g}")
    ways: list[tuple[float | None, float]] = [(None, 1.0), *((peak, share) for peak in PEAKS for share in SHARES)]
    plans = [
        cosine_plan(case) if peak is None else _decay(peak * case.rate, round(share * case.steps), case.interval)
        for peak, share in ways
        for _ in seeds
    ]
    reached = [job.reached for job in train_plans(case, plans, list(seeds) * len(ways), target)]
    rows = []
    for number, (peak, share) in enumerate(ways):
        mine = reached[number * len(seeds) : (number + 1) * len(seeds)]
        median = statistics.median(case.steps if steps is None else steps for steps in mine)
        hits = sum(steps is not None for steps in mine)
        rows.append(
            {"case": case.name, "peak": peak or "own, cosine", "share": share, "steps": median, "reached": hits}
        )
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table in Markdown: for each fixed policy, and for the best of each case, the ratio to the default."""
    default = {row["case"]: float(row["steps"]) for row in rows if row["peak"] == "own, cosine"}
    ratios: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["peak"] != "own, cosine":
            way = f"{float(row['peak']):g} x own rate over {100 * float(row['share']):g} % of the budget"
            ratios.setdefault(way, {})[row["case"]] = float(row["steps"]) / default[row["case"]]
    best = {case: min(found[case] for found in ratios.values()) for case in default}
    lines = ["| policy | median | geometric mean | worst |", "|---|---|---|---|"]
    for way, found in {**ratios, "the best of them for each task": best}.items():
        mean = math.exp(statistics.fmean(map(math.log, found.values())))
        lines.append(f"| {way} | {statistics.median(found.values()):.2f} | {mean:.2f} | {max(found.values()):.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Train the cases and print the table; or print that of rows that are frozen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="61,62,63,64,65")
    parser.add_argument("--out", type=Path, help="write the rows there")
    parser.add_argument("--rows", type=Path, help="print the table of these rows, and train nothing")
    given = parser.parse_args()
    if given.rows is not None:
        show(given.rows, summary)
        return
    cases = [case for case in (*CASES["development"], *CASES["former"]) if case.width * case.batch < 8192]
    seeds = [int(seed) for seed in given.seeds.split(",")]
    train_all(cases, lambda case: run(case, seeds), summary, given.out)


if __name__ == "__main__":
    main()
