"""Speed-ups of a study at many targets, from the frozen checks of its runs.

    python experiments/by_target.py NAME [--write]              # from NAME/curves.csv: nothing is trained
    python experiments/by_target.py NAME --freeze FOLDER...     # freeze the runs below the folders first

``curves.csv`` has one line for each run: its checks as steps and values, both separated by spaces; equal steps are
``first:last:distance``. ``experiments/study.py`` freezes it with the results. The table and the figure compare every
policy with the default, stage ``default``, at 30 targets from its first check to its best; ``--write`` puts them into
the folder's README and ``by_target.png``.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from tables import save_lines, written

from lrbench_pl.analysis import statistics as st
from lrbench_pl.analysis.by_target import Course, Key, compare
from lrbench_pl.analysis.history import History, HistoryError, read_history
from lrbench_pl.analysis.load import METRICS_FILE, load_runs

HERE = Path(__file__).resolve().parent
BEGIN = "<!-- from curves.csv -->"
STAGES = ("default", "auto", "run", "short")  # tuning runs are not compared
DEFAULT: Key = ("the default",)
_COLUMNS = ("study", "policy", "optimizer", "lr", "seed", "status", "mode", "max_steps", "steps_run")


# -- freezing --------------------------------------------------------------------------------------------------


def freeze_curves(runs: pl.DataFrame, path: Path) -> None:
    """Write the checks of the runs that are compared; nothing if no run has a history."""
    lines = []
    for row in runs.filter(pl.col("study").str.split("/").list.last().is_in(STAGES)).to_dicts():
        try:
            history = read_history(row["folder"], row["monitor"] or "val/accuracy", row["target"])
        except HistoryError:
            continue
        kept = [i for i in range(len(history.steps)) if i not in history.diverged and math.isfinite(history.values[i])]
        steps = [history.steps[i] for i in kept]
        values = " ".join(f"{history.values[i]:.6g}" for i in kept)
        line = {name: row[name] for name in _COLUMNS} | {"steps": packed(steps), "values": values}
        lines.append(line | _averaged(Path(row["folder"]), row["monitor"] or "val/accuracy"))
    if lines:
        table = pl.DataFrame(lines, infer_schema_length=None).with_columns(pl.col("status").cast(pl.String))
        table.sort("study", "optimizer", "policy", "lr", "seed").write_csv(path)


def _averaged(folder: Path, monitor: str) -> dict[str, str | None]:
    """Return the checks of averaged weights, which are forecasts and count for no verdict."""
    table = pl.read_csv(folder / METRICS_FILE, infer_schema_length=None)
    if "check/averaged" not in table.columns:
        return {"averaged_steps": None, "averaged_values": None}
    checks = table.filter(pl.col("check/averaged") > 0).select("check/step", monitor).rows()
    steps, values = packed([int(step) for step, _ in checks]), " ".join(f"{value:.6g}" for _, value in checks)
    return {"averaged_steps": steps or None, "averaged_values": values or None}


def packed(steps: Sequence[int]) -> str:
    """Return steps as text.

    Example:
        >>> packed([100, 200, 300]), packed([100, 250, 300]), unpacked("100:300:100")
        ('100:300:100', '100 250 300', [100, 200, 300])
    """
    distances = {b - a for a, b in itertools.pairwise(steps)}
    if len(steps) > 2 and len(distances) == 1:
        return f"{steps[0]}:{steps[-1]}:{distances.pop()}"
    return " ".join(map(str, steps))


def unpacked(text: str) -> list[int]:
    """Return the steps of :func:`packed`."""
    if ":" in text:
        first, last, distance = map(int, text.split(":"))
        return list(range(first, last + 1, distance))
    return [int(step) for step in text.split()]


# -- reading ---------------------------------------------------------------------------------------------------


def courses(path: Path, with_averages: bool = False) -> tuple[dict[Key, list[Course]], float, str]:
    """Read the courses of each policy, the default first, with the default's budget and the mode.

    Args:
        path: A ``curves.csv``.
        with_averages: Whether a policy with checks of averaged weights has a second group, in which they count.
    """
    table = pl.read_csv(path, infer_schema_length=None)
    found: dict[Key, list[Course]] = {DEFAULT: []}
    for row in table.to_dicts():
        stage = row["study"].rpartition("/")[2]
        name = row["policy"] + (f" in {row['max_steps']}" if stage == "short" else "")
        key = DEFAULT if stage == "default" else (name,)
        steps, values = unpacked(str(row["steps"])), tuple(map(float, str(row["values"]).split()))
        history = History(tuple(steps), values, (None,) * len(steps))
        complete = row["status"] == "diverged" or row["steps_run"] >= row["max_steps"]
        course = Course(row["seed"], history, row["steps_run"], complete)
        found.setdefault(key, []).append(course)
        if with_averages and row["averaged_steps"] is not None:
            forecasts = map(float, str(row["averaged_values"]).split())
            checks = sorted(
                [*zip(steps, values, strict=True), *zip(unpacked(row["averaged_steps"]), forecasts, strict=True)]
            )
            both = History(
                tuple(step for step, _ in checks), tuple(value for _, value in checks), (None,) * len(checks)
            )
            found.setdefault((f"{name}, averaged weights too",), []).append(replace(course, history=both))
    default = table.filter(pl.col("study").str.ends_with("/default"))
    return found, float(default["max_steps"][0]), default["mode"][0] or "max"


def at_targets(path: Path, targets: Sequence[float]) -> list[str]:
    """Return a table of the steps to some targets in Markdown, with each seed; > for a run that was stopped before."""
    groups, budget, mode = courses(path, with_averages=True)
    lines = [
        "| target | policy | reached | stopped before | steps, median [95 %] | by seed |",
        "|---|---|---|---|---|---|",
    ]
    for target in targets:
        for key, runs in groups.items():
            outcomes = [run.outcome(target, mode, 1) for run in sorted(runs, key=lambda run: run.seed or 0)]
            steps, reached, is_open = (list(each) for each in zip(*outcomes, strict=True))
            median = st.median_steps(steps, reached, budget)
            each = [
                f"{step:.0f}" if hit else f"> {step:.0f}" if censored else "missed" for step, hit, censored in outcomes
            ]
            lines.append(
                f"| {target:g} | {_name(key)} | {sum(reached)}/{len(runs)} | {sum(is_open)} "
                f"| {_interval(median.value, median.low, median.high, '.0f')} | {', '.join(each)} |"
            )
    return lines


def table(path: Path, number: int = 30) -> list[str]:
    """Return both counts at many targets in Markdown."""
    groups, budget, mode = courses(path)
    others = [key for key in groups if key != DEFAULT]
    rows = compare(groups, DEFAULT, budget, mode, number=number)
    by_target: dict[float, dict[Key, dict[str, Any]]] = {}
    for row in rows:
        by_target.setdefault(row["target"], {})[row["group"]] = row
    heads = [f"speed-up of {_name(key)}" for key in others] + [f"budget ratio of {_name(key)}" for key in groups]
    lines = [f"| target | the default reached | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for target, found in by_target.items():
        own = found[DEFAULT]
        cells = [f"{target:.4g}", f"{own['reached']}/{own['runs']}"]
        cells += [_times(found[key], "speed_up") for key in others]
        cells += [_times(found[key], "budget_ratio") for key in groups]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _times(row: dict[str, Any], name: str) -> str:
    bound = "≥ " if row[f"{name}_at_least"] else ""
    return bound + _interval(row[name], row[f"{name}_low"], row[f"{name}_high"], ".2f")


def _name(key: Key) -> str:
    name, comma, rest = str(key[0]).partition(", ")
    return name if key == DEFAULT else f"`{name}`{comma}{rest}"


def _interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    def text(number: float) -> str:
        return "∞" if math.isinf(number) else f"{number:{form}}"

    if value is None:
        return "–"
    return text(value) if low is None or high is None else f"{text(value)} [{text(low)}, {text(high)}]"


# -- drawing ---------------------------------------------------------------------------------------------------


def figure(path: Path, picture: Path, number: int = 30) -> None:
    """Draw both counts over the targets, at distances of the default's steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    groups, budget, mode = courses(path)
    rows = compare(groups, DEFAULT, budget, mode, number=number)
    drawn, axes = pyplot.subplots(2, 1, figsize=(8, 6.4), sharex=True, layout="constrained")
    styles = {DEFAULT: ("#555555", "-"), ("auto",): ("#d62728", "-")}
    others = iter(("#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b"))
    for key in groups:
        colour, dash = styles.get(key) or (next(others, "#999999"), "-")
        for axis, name in zip(axes, ("speed_up", "budget_ratio"), strict=True):
            mine = [row for row in rows if row["group"] == key and row[name] is not None and math.isfinite(row[name])]
            x, y = [row["step"] for row in mine], [row[name] for row in mine]
            axis.plot(x, y, dash, color=colour, label=str(key[0]), linewidth=1.8)
            bounds = [row for row in mine if row[f"{name}_at_least"]]
            axis.plot(
                [row["step"] for row in bounds], [row[name] for row in bounds], "^", color=colour, fillstyle="none"
            )
            known = [row for row in mine if row[f"{name}_low"] is not None]
            low, high = ([min(row[f"{name}_{end}"], 1e6) for row in known] for end in ("low", "high"))
            axis.fill_between([row["step"] for row in known], low, high, color=colour, alpha=0.14, linewidth=0)
    own = [row for row in rows if row["group"] == DEFAULT]
    places = sorted({round(i * (len(own) - 1) / 7) for i in range(8)})
    axes[1].set_xticks([own[i]["step"] for i in places], [f"{own[i]['target']:.4g}" for i in places])
    tops = [max((row[name] or 0) for row in rows if name == "speed_up" or row["step"] > budget / 8) for name in _COUNTS]
    for axis, top in zip(axes, tops, strict=True):
        axis.set_ylim(0, 1.25 * top)
        axis.axhline(1, color="#555555", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.2)
    axes[0].set_ylabel("default's steps / steps")
    axes[1].set_ylabel("default's budget / steps")
    axes[1].set_xlabel("target, at distances of the default's steps; △: at least")
    axes[1].legend(frameon=False)
    save_lines(drawn, picture)


_COUNTS = ("speed_up", "budget_ratio")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, write them, or freeze runs first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a folder beside this file")
    parser.add_argument("--at", default="", help="targets of the first table, separated by commas")
    parser.add_argument("--write", action="store_true", help="write the table into the README, and the figure")
    parser.add_argument("--freeze", nargs="+", type=Path, metavar="FOLDER", help="freeze the runs below these folders")
    given = parser.parse_args(arguments)
    folder = HERE / given.name
    if given.freeze:
        from study import freeze

        runs = load_runs(given.freeze).table
        freeze(runs, folder / "results.csv")
        freeze_curves(runs, folder / "curves.csv")
    path = folder / "curves.csv"
    if not path.is_file():
        parser.error(f"{given.name} has no curves.csv: the histories of its runs were not frozen")
    targets = [float(each) for each in given.at.split(",") if each]
    lines = [*at_targets(path, targets), ""] if targets else []
    text = "\n".join([*lines, *table(path)])
    print(text)
    if given.write or given.freeze:
        figure(path, folder / "by_target.png")
        readme = folder / "README.md"
        readme.write_text(written(readme.read_text(encoding="utf-8"), text, BEGIN), encoding="utf-8")


if __name__ == "__main__":
    main()
