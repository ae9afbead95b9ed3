"""A ranking for people and for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import polars as pl
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lrbench_pl.analysis.load import Runs
from lrbench_pl.analysis.ranking import equal_policies
from lrbench_pl.analysis.statistics import FEWEST_FOR_INTERVAL, FEWEST_FOR_RANK
from lrbench_pl.words import counted, metric_title

Format = Literal["table", "csv", "json", "markdown"]
FORMATS: tuple[Format, ...] = get_args(Format)
MONITOR = "val/accuracy"  # of rows of old versions, which do not say it
_GAP = 2  # characters between columns
_NAME = 24  # of a name before it folds, while other columns can be left out
_SHORTEST_NAME = 8
_TRAINING = ("dataset", "model", "optimizer", "batch_size", "policy", "policy_id", "lr", "max_steps", "seed")


def render(ranking: pl.DataFrame, form: Format, width: int | None = None, monitor: str | None = None) -> str:
    """The ranking as text.

    Args:
        ranking: From :func:`lrbench_pl.analysis.ranking.rank`, or :func:`lrbench_pl.analysis.listing.listing`.
        form: ``table`` for a terminal, or ``csv``, ``json``, ``markdown``. The table leaves out what its width has no
            room for, least important columns first.
        width: Characters per line of the table; by default those of the terminal.
        monitor: What was checked, for the titles; None where that is not one metric (see :func:`the_monitor`).

    Example:
        >>> ranking = pl.DataFrame({"rank": [1], "rank_low": [1], "rank_high": [2], "tier": [1], "policy": ["tri"],
        ...     "runs": [5], "reached": [5], "median_steps": [240.0], "median_low": [220.0], "median_high": [300.0],
        ...     "best_value": [0.983], "test_accuracy": [0.97]})
        >>> print(render(ranking, "markdown", monitor="val/accuracy"))
        | tier | rank | policy | reached | median steps | best acc. | test acc. |
        |---|---|---|---|---|---|---|
        | 1 | 1 [1, 2] | tri | 5/5 | 240 [220, 300] | 0.9830 | 0.9700 |
    """
    if form == "csv":
        return ranking.write_csv().rstrip("\n")
    if form == "json":
        rows = [{name: _json(value) for name, value in row.items()} for row in ranking.to_dicts()]
        return json.dumps(rows, indent=2, allow_nan=False)
    columns = _columns(ranking, monitor)
    if form == "markdown":
        lines = [[column.title for column in columns], ["---"] * len(columns)]
        lines += [[cell.replace("|", "\\|") for cell in row] for row in zip(*(c.cells for c in columns), strict=True)]
        return "\n".join(
            "|" + "|".join(line) + "|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines
        )
    return _fitted(columns, ranking, Console(width=width).width)


class _Column:
    """A column as it is shown."""

    def __init__(self, title: str, cells: Sequence[str], name: bool = False, need: int = 0) -> None:
        self.title, self.cells, self.name, self.need = title, list(cells), name, need

    @property
    def width(self) -> int:
        """Characters of its widest cell; titles break between words."""
        return max(cell_len(text) for text in [*self.title.split(), *self.cells])


def _columns(ranking: pl.DataFrame, monitor: str | None) -> list[_Column]:
    """What a person wants to see, in order; ``need`` says what to leave out first when room is short."""
    rows = ranking.to_dicts()
    names = ranking.columns
    keys = names[names.index("tier") + 1 : names.index("runs")]
    best, tested = (f"{kind} {metric_title(monitor)}" for kind in ("best", "test"))

    def one(title: str, name: str, need: int = 0) -> _Column:
        return _Column(title, [_number(name, row[name]) for row in rows], need=need)

    def spread(title: str, name: str, stem: str, need: int = 0) -> _Column:
        return _Column(title, [_with_interval(name, stem, row) for row in rows], need=need)

    shown: list[_Column | None] = [_Column("tier", ["–" if row["tier"] is None else str(row["tier"]) for row in rows])]
    shown.append(_Column("rank", [_rank(row) for row in rows]) if "rank" in names else None)
    shown += [
        _Column(key, [_number(key, row[key]) for row in rows], name=ranking.schema[key] == pl.String) for key in keys
    ]
    if "reached" in names:
        shown.append(_Column("reached", [f"{row['reached']}/{row['runs']}" for row in rows]))
        shown.append(_optional(rows, "open", 0))
        shown.append(_Column("share", [_share(row) for row in rows], need=5) if "share_low" in names else None)
        shown.append(spread("median steps", "median_steps", "median"))
        if "speed_up" in names:
            shown.append(spread("times faster", "speed_up", "speed_up"))
        shown.append(one("expected steps", "expected_steps", need=4) if "expected_steps" in names else None)
        shown.append(one("profile", "profile") if "profile" in names else None)
        shown.append(one(best, "best_value", need=2))
        shown.append(one(tested, "test_value", need=1) if tested != "test acc." else None)
        shown.append(one("test acc.", "test_accuracy", need=1))
    else:
        shown.append(one("runs", "runs"))
        if "loss_difference" not in names:
            ranked = ("accuracy", "test_value", "best_value")
            main = next(name for name in ranked if f"{name}_low" in names)
            titles = {"accuracy": "accuracy", "test_value": tested, "best_value": best}
            shown.append(spread(titles[main], main, main))
            shown.append(one(best, "best_value", need=2) if main != "best_value" else None)
            shown.append(one("top 5", "test_top5", need=3))
            shown.append(_Column("confidence", [_plus_minus(row) for row in rows], need=1))
        else:
            shown.append(spread("loss test - train", "loss_difference", "loss_difference"))
            shown.append(one("CDAC", "cdac", need=1))
            shown.append(one("acc. spread", "accuracy_spread", need=2))
    shown.append(_optional(rows, "more_seeds", 3, "more seeds"))
    shown += [_optional(rows, name, 0) for name in ("diverged", "failed", "stopped")]
    return [column for column in shown if column is not None and any(cell != "–" for cell in column.cells)]


def _optional(rows: Sequence[Mapping[str, Any]], name: str, need: int, title: str | None = None) -> _Column | None:
    """A column of counts, where there is something to count."""
    if not any(row.get(name) for row in rows):
        return None
    blank = "" if name == "more_seeds" else "0"
    return _Column(title or name, [str(row[name] or blank) for row in rows], need=need)


def _fitted(columns: list[_Column], ranking: pl.DataFrame, width: int) -> str:
    """The table with the columns that the width has room for."""
    kept = list(columns)

    def missing() -> int:
        """Characters short of what the columns need with titles broken and names folded."""
        return sum(min(c.width, _NAME) if c.name else c.width for c in kept) + _GAP * (len(kept) - 1) - width

    while missing() > 0 and any(column.need for column in kept):
        kept.remove(max(kept, key=lambda column: column.need))
    widths = [min(column.width, _NAME) if column.name else column.width for column in kept]
    room = -missing()
    for index in sorted(range(len(kept)), key=lambda i: not kept[i].name):  # names first, then titles
        wanted = max(kept[index].width, cell_len(kept[index].title))
        if kept[index].name:
            more = max(min(_SHORTEST_NAME, wanted) - widths[index], min(wanted - widths[index], room))
        else:
            more = wanted - widths[index] if wanted - widths[index] <= room else 0
        widths[index] += more
        room -= more
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column, each in zip(kept, widths, strict=True):
        table.add_column(column.title, justify="left" if column.name else "right", overflow="fold", width=each)
    ranks = ranking["rank"] if "rank" in ranking.columns else [0] * ranking.height  # a listing has none
    places = list(zip(ranking["tier"], ranks, strict=True))
    for index, row in enumerate(zip(*(column.cells for column in kept), strict=True)):
        here, below = places[index], places[min(index + 1, len(places) - 1)]
        ends = here[0] != below[0] or here[1] > below[1]  # of a tier, or of the answers to one question
        table.add_row(*[escape(cell) for cell in row], end_section=ends)
    console = Console(width=sum(widths) + (_GAP + 1) * len(widths))
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def the_monitor(runs: pl.DataFrame) -> str | None:
    """What all these runs checked; None if they differ. Rows of old versions, which do not say it, checked accuracy.

    Example:
        >>> the_monitor(pl.DataFrame({"monitor": ["val/loss", "val/loss"]})), the_monitor(pl.DataFrame({"seed": [0]}))
        ('val/loss', 'val/accuracy')
    """
    if "monitor" not in runs.columns:
        return MONITOR
    found = {monitor or MONITOR for monitor in runs["monitor"].to_list()}
    return found.pop() if len(found) == 1 else None


def _rank(row: Mapping[str, Any]) -> str:
    low, high = row["rank_low"], row["rank_high"]
    if low is None or (low == high == row["rank"]):
        return str(row["rank"])
    return f"{row['rank']} [{low}, {high}]"


def _share(row: Mapping[str, Any]) -> str:
    if row["share"] is None:
        return "–"
    interval = "" if row["share_low"] is None else f" [{row['share_low']:.2f}, {row['share_high']:.2f}]"
    return f"{row['share']:.2f}{interval}"


def _with_interval(name: str, stem: str, row: Mapping[str, Any]) -> str:
    value, low, high = row[name], row[f"{stem}_low"], row[f"{stem}_high"]
    text = _number(name, value)
    if low is None or high is None or (low == high == value):
        return text
    return f"{text} [{_number(name, low)}, {_number(name, high)}]"


def _plus_minus(row: Mapping[str, Any]) -> str:
    if row["confidence"] is None:
        return "–"
    return f"{row['confidence']:.3f}" + (f" ± {row['confidence_std']:.3f}" if row["confidence_std"] is not None else "")


def _number(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float) or isinstance(value, bool):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if name.endswith(("accuracy", "top5", "spread", "best_value", "test_value")) and name != "target":
        return f"{value:.4f}"
    if name == "loss_difference" or name == "cdac":
        return f"{value:.3f}"
    if name in ("speed_up", "profile"):
        return f"{value:.2f}"
    if name in ("median_steps", "expected_steps"):
        return f"{value:.0f}" if value >= 10 else f"{value:.3g}"
    return f"{value:g}"


def _json(value: Any) -> Any:
    """JSON knows no infinity: a median of misses is null, which ``share`` explains."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remarks(ranking: pl.DataFrame, runs: Runs, most: int = 5) -> list[str]:
    """What a reader of the table must know: how to read it, what it does not show, what was left out and why.

    Args:
        ranking: From :func:`lrbench_pl.analysis.ranking.rank`.
        runs: What was ranked.
        most: Lines for each kind of failure before the rest is only counted.
    """
    table = runs.table
    said = [_summary(ranking, runs)]
    if ranking["rank_low"].is_not_null().any():
        said.append(
            "[low, high]: 95 % intervals; nothing in a tier is told apart from its first as worse (5 % for all)"
        )
    said += honest_about_few(ranking)
    if "seed" in table.columns and (unequal := _unequal_seeds(ranking)):
        said.append(unequal)
    said += _mixed(table, ranking)
    if (twice := _repeated(table)) is not None:
        said.append(twice)
    if "open" in ranking.columns and (n := int(ranking["open"].sum() or 0)):
        said.append(
            f"open: {counted(n, 'run')} stopped at an easier target, so the answer is not known beyond; "
            "shares and medians are Kaplan-Meier's; train with stop_at_target=false to know"
        )
    if "speed_up" in ranking.columns:
        said.append("times faster: median ratio of the baseline's steps, by seed where all seeds match")
    for status in ("failed", "stopped"):
        lost = table.filter(table["status"].cast(pl.String) == status)
        for row in lost.head(most).to_dicts():
            message = row["message"] or "no reason given"
            said.append(f"{status}: {row['policy']} (seed {row['seed']}) in {row['folder']}: {message}")
        if lost.height > most:
            said.append(f"{status}: {lost.height - most} more")
    said += [f"skipped: {skipped.path}: {skipped.reason}" for skipped in runs.skipped[:most]]
    if len(runs.skipped) > most:
        said.append(f"skipped: {len(runs.skipped) - most} more")
    if (same := equal_policies(table)) and "policy" in ranking.columns:
        said += [f"the same policy over this budget: {', '.join(names)}" for names in same]
    return said


def _summary(ranking: pl.DataFrame, runs: Runs) -> str:
    counts = {name: int((runs.table["status"] == name).sum()) for name in ("failed", "stopped")}
    counts["skipped"] = len(runs.skipped)
    there = counted(runs.table.height, "run") + "".join(f", {n} {name}" for name, n in counts.items() if n)
    if "reached" not in ranking.columns:
        return f"{there}; medians"
    targets = runs.table["target"].unique().to_list()
    if targets == [None]:
        return f"{there}; no target was set, so all count as missed: rank by --metric utility or give a --target"
    goal = f" to {targets[0]:g}" if len(targets) == 1 else ""
    return f"{there}; steps{goal}, medians; ∞: half of the runs or more missed"


def _unequal_seeds(ranking: pl.DataFrame) -> str | None:
    counts = ranking.filter(pl.col("runs") > 0)["runs"]
    if counts.n_unique() < 2:
        return None
    return f"unequal numbers of runs: {min(counts)} to {max(counts)} per policy"


def _mixed(table: pl.DataFrame, ranking: pl.DataFrame) -> list[str]:
    """Rows of the ranking that hold different policies under one name, as of two files or of two values of a field.

    Example:
        >>> table = pl.DataFrame({"policy": ["step"] * 2, "policy_id": ["a", "b"], "max_steps": [9, 9]})
        >>> _mixed(table, pl.DataFrame({"tier": [1], "policy": ["step"], "runs": [2]}))
        ['step: 2 policies under one name are ranked as one; separate them with --by policy,policy_id']
    """
    names = ranking.columns
    keys = names[names.index("tier") + 1 : names.index("runs")]
    if "policy_id" not in table.columns or "policy_id" in keys or "policy" not in keys:
        return []
    # the budget is part of an id, and so would other questions be
    apart = [*keys, *(name for name in ("max_steps",) if name in table.columns and name not in keys)]
    counts = table.drop_nulls("policy_id").group_by(apart, maintain_order=True).agg(pl.col("policy_id").n_unique())
    by = ",".join([*keys, "policy_id"])
    return [
        f"{row['policy']}: {row['policy_id']} policies under one name are ranked as one; separate them with --by {by}"
        for row in counts.filter(pl.col("policy_id") > 1).to_dicts()
    ]


def _repeated(table: pl.DataFrame) -> str | None:
    """Trainings that are there more than once, as of two sweeps with the same seeds.

    Example:
        >>> _repeated(pl.DataFrame({"policy": ["tri", "tri", "cos"], "seed": [0, 0, 0]}))
        '1 run repeats the seed of another with the same policy and counts again: give fresh seeds, or leave one out'
        >>> _repeated(pl.DataFrame({"policy": ["tri", "tri"], "seed": [0, 1]})) is None
        True
    """
    known = [name for name in _TRAINING if name in table.columns]
    if "seed" not in known or not (n := table.height - table.select(known).unique().height):
        return None
    runs = counted(n, "run") + (" repeats the seed of another" if n == 1 else " repeat the seeds of others")
    again = "counts" if n == 1 else "count"
    return f"{runs} with the same policy and {again} again: give fresh seeds, or leave one out"


def honest_about_few(ranking: pl.DataFrame) -> list[str]:
    """What the number of runs does not allow to say, one line for each.

    Example:
        >>> honest_about_few(pl.DataFrame({"policy": ["a", "b"], "runs": [1, 1]}))
        ['1 run each: no interval; which policy is better takes 3 seeds or more, an interval of the median 5']
    """
    counts = ranking.filter(pl.col("runs") > 0)["runs"]
    if not len(counts) or counts.min() >= FEWEST_FOR_INTERVAL:  # type: ignore[operator]
        return []
    least, most = int(counts.min()), int(counts.max())  # type: ignore[arg-type]
    said = counted(least, "run") + (" each" if least == most else f" of some, {most} of others")
    if least < FEWEST_FOR_RANK:
        lacks = "no interval" if most < FEWEST_FOR_RANK else "no interval where there are fewer than 3"
        return [
            f"{said}: {lacks}; which policy is better takes {FEWEST_FOR_RANK} seeds or more, an interval of the "
            f"median {FEWEST_FOR_INTERVAL}"
        ]
    return [f"{said}: no interval of the median below {FEWEST_FOR_INTERVAL} runs"]
