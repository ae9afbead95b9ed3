"""The table at the head of the main README, from the frozen rows of the studies.

    python experiments/headline.py [--write]

For each study the default, `auto`, and the best of the policies that were tuned, if there are any.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
from reading import compared, spread, stage, written

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"


def lines(studies: list[Path]) -> list[str]:
    """The table in Markdown."""
    shown = [
        "| workload, target | policy | reached | steps, median [95 %] | times sooner | tuning counted | test acc. |"
    ]
    shown.append("|---|---|---|---|---|---|---|")
    for path in studies:
        rows = pl.read_csv(path)
        first = stage(rows, "default").row(0, named=True)
        workload = f"{first['dataset']}/{first['model']}, {first['target']:.4f} in {first['max_steps']} steps"
        found = compared(rows)
        tuned = [row for row in found if row.name not in ("auto", "the default")][:1]
        chosen = [row for row in found if row.name in ("auto", "the default") or row in tuned]
        for row in chosen:
            default = row.name == "the default"
            name = f"`{first['policy']}` at {first['lr']:g}, the default" if default else f"`{row.name}`"
            name += f" at {row.lr:g}" if row in tuned else ""
            shown.append(
                f"| {workload} | {name} | {row.reached}/{row.n} | {spread(row.steps, '.0f')} "
                f"| {row.speed_up} | {row.counted} | {row.test_accuracy:.4f} |"
            )
    return shown


def main() -> None:
    """Print the table, or write it into the README."""
    text = "\n".join(lines(sorted(HERE.glob("policies_*/results.csv"), reverse=True)))
    if "--write" in sys.argv[1:]:
        README.write_text(written(README.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
