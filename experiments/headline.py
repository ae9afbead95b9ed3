"""The table of results in the main README, from the frozen results of the studies.

    python experiments/headline.py [--write]

One line per study with a protocol: its default policy, the best of its tuned policies with the steps of the short runs
that chose its rate, and `auto`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import polars as pl
from tables import Row, compared, stage, workload, written

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"


def lines(studies: list[Path]) -> list[str]:
    """Return the table in Markdown."""
    shown = [
        "| workload, target, budget | default policy | best tuned policy | `auto` | speed-up of `auto`, with tuning |",
        "|---|---|---|---|---|",
    ]
    for path in studies:
        results = pl.read_csv(path)
        first = stage(results, "default").row(0, named=True)
        task = f"{workload(first)}, {first['target']:.4f}, {first['max_steps']} steps"
        found = compared(results)
        by_name = {row.name: row for row in found}
        tuned = next(row for row in found if row.name not in ("auto", "the default"))
        auto = by_name["auto"]
        shown.append(
            f"| {task} | `{first['policy']}`: {_steps(by_name['the default'])} "
            f"| `{tuned.name}`: {_steps(tuned)}, tuning {tuned.tuning} | {_steps(auto)} | {auto.counted} |"
        )
    return shown


def _steps(row: Row) -> str:
    """Median steps to the target, and how many seeds reached it.

    A median that is infinite because most seeds missed is shown as ``missed``.
    """
    value = row.steps.value
    return f"{'missed' if value is None or math.isinf(value) else f'{value:.0f}'} ({row.reached}/{row.n})"


def main() -> None:
    """Print the table, or write it into the README."""
    text = "\n".join(
        lines(sorted((path.with_name("results.csv") for path in HERE.glob("policies_*/study.yaml")), reverse=True))
    )
    if "--write" in sys.argv[1:]:
        README.write_text(written(README.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
