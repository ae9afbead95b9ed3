"""Print the table of the frozen trials, and write it into the README: ``python experiments/reliability/table.py``."""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tables import written  # noqa: E402

STRIKES = ("write", "time", "two", "ENOSPC", "EIO")
WRONG = ("lost", "doubled", "unequal", "histories", "left", "silent")
_HEAD = ("act", "strike", "trials", "struck", *WRONG, "batches repeated", "at most", "of")


def table(trials: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the table in Markdown, a line for each act and strike."""
    rows = list(trials)
    killed = sum(row["struck"] == "1" and row["strike"] in ("write", "time", "two") for row in rows)
    failed = sum(row["struck"] == "1" and row["strike"] in ("ENOSPC", "EIO") for row in rows)
    lines = [f"{len(rows)} trials, {killed} of them with a SIGKILL and {failed} with a failed operation.", ""]
    lines += [f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD)]
    for act in dict.fromkeys(row["act"] for row in rows):
        for strike in STRIKES:
            lines += _line(act, strike, [row for row in rows if (row["act"], row["strike"]) == (act, strike)])
    return lines + _line("all", "", rows)


def _line(act: str, strike: str, rows: list[Mapping[str, str]]) -> list[str]:
    if not rows:
        return []
    struck = [row for row in rows if row["struck"] == "1"]
    counts = [sum(int(row[name]) for row in rows) for name in WRONG]
    repeated, whole = [int(row["repeated"]) for row in struck], {row["whole"] for row in rows}
    mean = f"{statistics.mean(repeated):.1f}" if repeated else ""
    cells = [act, strike, len(rows), len(struck), *counts, mean, max(repeated, default=""), "".join(whole)[:5]]
    if not strike:
        cells[-3:] = ["", "", ""]
    return [f"| {' | '.join(map(str, cells))} |"]


def main() -> None:
    """Print the table; without an argument also write it."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results.csv"
    with path.open(newline="") as file:
        text = "\n".join(table(csv.DictReader(file)))
    print(text)
    if len(sys.argv) == 1:
        readme = HERE / "README.md"
        readme.write_text(written(readme.read_text(), text))


if __name__ == "__main__":
    main()
