"""The answer of a ranking in one sentence: who is first, by how much, how sure, and what would decide."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from lrbench_pl.analysis.baseline import compared_with
from lrbench_pl.analysis.columns import MOST_SEEDS, group_keys
from lrbench_pl.analysis.further import commands
from lrbench_pl.analysis.groups import UNCOUNTED, Group
from lrbench_pl.analysis.ranking import task_keys
from lrbench_pl.analysis.statistics import FEWEST_FOR_INTERVAL
from lrbench_pl.words import clean, counted, is_accuracy, metric_name, metric_value

CONSTANT = "fix"  # the policy that others are compared with if no baseline is given
_FASTER = 1.05  # a smaller speed-up rounds to 1, or is below it although the median is the smallest
_NAMED = 3  # policies that a sentence names; the others are counted

_Row = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """The answer of one ranking.

    Args:
        sentence: The answer, without a period.
        seeds: Seeds to add to each of ``undecided`` in order to decide; 0 if none are suggested.
        undecided: The groups that the seeds would decide between, as values of the columns that identify them.
    """

    sentence: str
    seeds: int = 0
    undecided: tuple[dict[str, Any], ...] = field(default=())


@dataclass(frozen=True)
class _Task:
    """Target, monitor and budget of the runs of one ranking; missing values are None."""

    target: float | None
    monitor: str | None
    budget: int | None

    @property
    def words(self) -> str:
        """The target as the object of a sentence."""
        value = f"{self.target:g}"
        return value if is_accuracy(self.monitor or "accuracy") else f"{metric_name(self.monitor)} {value}"


def answers(runs: pl.DataFrame, ranking: pl.DataFrame, baseline: str | None = None) -> list[Answer]:
    """Answer in one sentence which policy is best; one answer for each task.

    Args:
        runs: The table of runs that were ranked, with the columns that group them.
        ranking: From :func:`lrbench_pl.analysis.ranking.rank`.
        baseline: Policy to compare the first with; by default ``fix``, if it is ranked.

    Example:
        >>> from lrbench_pl.analysis.ranking import rank
        >>> runs = pl.DataFrame({"policy": ["tri", "cos"], "status": ["reached", "missed"], "lr": [0.1] * 2,
        ...     "optimizer": ["sgd"] * 2, "steps_to_target": [40, None], "best_value": [0.9, 0.8], "target": [0.9] * 2,
        ...     "test_accuracy": [0.9, 0.8], "max_steps": [100] * 2, "seed": [0, 0], "monitor": ["val/accuracy"] * 2})
        >>> print(answers(runs, rank(runs))[0].sentence)
        tri reached 0.9 soonest, after 40 steps; 1 seed is too few to compare policies; to compare, add 4 seeds each
    """
    keys = group_keys(ranking)
    counts = runs.filter(~pl.col("status").cast(pl.String).is_in(UNCOUNTED))
    tasks = task_keys(counts, keys)
    parts = ranking.partition_by(tasks, maintain_order=True) if tasks else [ranking]
    found = []
    for part in parts:
        rows = [row for row in part.to_dicts() if row["runs"]]
        where = {key: part[key][0] for key in tasks}
        own = counts.filter(*(pl.col(key).eq_missing(value) for key, value in where.items())) if where else counts
        names = [key for key in keys if key not in tasks]
        answer = _answer(rows, own, names, baseline) if rows else Answer("No run finished")
        prefix = f"{', '.join(f'{clean(key)} {clean(str(value))}' for key, value in where.items())}: " if where else ""
        found.append(Answer(prefix + answer.sentence, answer.seeds, answer.undecided))
    return found


def answer_lines(answer: Answer, runs: pl.DataFrame, width: int) -> list[str]:
    """Return an answer as lines: the sentence, wrapped to a width, and the commands that would decide, each in one."""
    found = commands(runs, answer.undecided, answer.seeds)
    return [*textwrap.wrap(answer.sentence + (":" if found else "."), width), *(f"  {command}" for command in found)]


def _answer(rows: Sequence[_Row], runs: pl.DataFrame, keys: Sequence[str], baseline: str | None) -> Answer:
    leaders = [row for row in rows if row["rank"] == 1]
    names = _join([_name(row, keys) for row in leaders])
    task = _Task(*(_shared(runs, column) for column in ("target", "monitor", "max_steps")))
    if "reached" not in rows[0]:
        first = _best_value(rows, names, task)
    elif task.target is None:
        best = rows[0]["best_value"]
        value = "" if best is None else f" ({metric_value(task.monitor, best, 4)} in the median)"
        first = f"The runs have no target; {names} came to the best {metric_name(task.monitor)}{value}"
    elif not any(row["reached"] for row in rows):
        first = _nobody(rows, names, task)
    else:
        first = _reached(rows, leaders, names, task, _speed_up(rows, runs, keys, baseline))
    separation, seeds, undecided = _separation(rows, leaders, keys)
    return Answer(f"{first}; {separation}", seeds, tuple({key: row[key] for key in keys} for row in undecided))


def _best_value(rows: Sequence[_Row], names: str, task: _Task) -> str:
    """Return the sentence of a ranking by utility or robustness."""
    if "loss_difference" in rows[0]:
        column, words = "loss_difference", "smallest difference between test and training loss"
    else:
        column = next(name for name in ("accuracy", "test_value", "best_value") if f"{name}_low" in rows[0])
        where = "test " if column == "test_value" else ""
        words = f"best {where}{'accuracy' if column == 'accuracy' else metric_name(task.monitor)}"
    value, low, high = (rows[0][name] for name in (column, f"{column}_low", f"{column}_high"))
    if value is None:
        return f"No run has a {words.partition(' ')[2]}"
    return f"{names} {'has' if ' and ' not in names else 'have'} the {words}, {_interval(value, low, high, '.4g')}"


def _nobody(rows: Sequence[_Row], names: str, task: _Task) -> str:
    best = rows[0]["best_value"]
    within = "" if task.budget is None else f" within {counted(task.budget, 'step')}"
    closest = "" if best is None else f" {names} came closest, with {metric_value(task.monitor, best, 4)} in the median"
    if len(rows) == 1 and best is not None:
        closest = f" its best is {metric_value(task.monitor, best, 4)} in the median"
        return f"No run of {names} reached {task.words}{within};{closest}"
    return f"No run reached {task.words}{within}{';' if closest else ''}{closest}"


def _reached(
    rows: Sequence[_Row], leaders: Sequence[_Row], names: str, task: _Task, gain: tuple[str, _Row, _Row] | None
) -> str:
    """Return who reached the target soonest or most often, and how much faster than the baseline."""
    first = leaders[0]
    steps, share = first["median_steps"], f"{first['reached']} of {counted(first['runs'], 'seed')}"
    medians = [row["median_steps"] for row in rows if row["median_steps"] is not None]
    is_soonest = steps is not None and math.isfinite(steps) and steps == min(medians)
    equals = [row for row in rows if row["share"] == first["share"]]
    each = " each" if len(leaders) > 1 else ""
    if len(leaders) > 1:
        how = " equally soon" if is_soonest else f" equally often ({share}{each})"
    elif len(rows) == 1 or is_soonest:
        how = "" if len(rows) == 1 else " soonest"
    elif len(equals) > 1 and steps is not None and math.isfinite(steps):
        how = f" on {share}, soonest of the {len(equals)} that did"
    else:
        how = f" most often ({share})"
    if (is_soonest or len(rows) == 1) and first["reached"] < first["runs"]:
        how += f" ({share}{each})"
    sentence = f"{names} reached {task.words}{how}"
    if gain is not None and len(leaders) == 1:
        name, other, times = gain
        value = times["speed_up"]
        if math.isfinite(value) and value > 0:
            interval = _interval(value, times["speed_up_low"], times["speed_up_high"], ".2g")
            if value < _FASTER:
                return f"{sentence}, about as fast as {name} ({interval} times)"
            return f"{sentence}, {interval} times as fast as {name}"
        if math.isinf(value):
            return f"{sentence}, {name} on {other['reached']} of {other['runs']}"
    if steps is None or not math.isfinite(steps):
        return sentence
    return f"{sentence}, after {_interval(steps, first['median_low'], first['median_high'], '.0f')} steps"


def _speed_up(
    rows: Sequence[_Row], runs: pl.DataFrame, keys: Sequence[str], baseline: str | None
) -> tuple[str, _Row, _Row] | None:
    """Return the name and the row of the baseline, and the speed-up of the first over it; None without one."""
    name = baseline or CONSTANT
    rivals = [row for row in rows[1:] if name in (",".join(str(row[k]) for k in keys), *(str(row[k]) for k in keys))]
    if not rivals:
        return None  # the first is the baseline, or there is none
    shown = [rows[0], *rivals]
    found = compared_with(
        name, [Group({key: row[key] for key in keys}, _runs_of(runs, row, keys)) for row in shown], keys
    )
    if found is None:
        return None
    other, times = found
    return _name(shown[other], keys), shown[other], times


def _runs_of(runs: pl.DataFrame, row: _Row, keys: Sequence[str]) -> pl.DataFrame:
    return runs.filter(*(pl.col(key).eq_missing(row[key]) for key in keys))


def _separation(rows: Sequence[_Row], leaders: Sequence[_Row], keys: Sequence[str]) -> tuple[str, int, Sequence[_Row]]:
    """Return whether the first is significantly better than the others, and the seeds that would decide."""
    if len(rows) == 1:
        return "there is no other policy to compare it with", 0, ()
    first = leaders[0]
    rivals = [row for row in rows[1:] if not row["separated"]]  # some may be in a later tier
    numbers = [row["runs"] for row in (first, *rivals)]
    least, most = min(numbers), max(numbers)
    seeds = counted(least, "seed") if least == most else f"{least} to {most} seeds"
    if first["rank_low"] is None or (rivals and all(row["rank_low"] is None for row in rivals)):
        more = FEWEST_FOR_INTERVAL - least
        few = f"{seeds} {'is' if most == 1 else 'are'} too few to compare policies"
        return f"{few}; to compare, add {_each(more)}", more, (first, *rivals)
    if not rivals:
        return f"{seeds} separate it from all others", 0, ()
    them, one = ("it", "") if len(leaders) == 1 else ("them", "each other")
    others = [row for row in rivals if row not in leaders]
    names = _join([_name(row, keys) for row in others], _NAMED)
    if one and others:
        one = f"{one} and {names}"
    words = f"{seeds} do not separate {them} from {one or names}"
    return _decision(words, first, rivals, keys, least)


def _decision(
    words: str, first: _Row, rivals: Sequence[_Row], keys: Sequence[str], least: int
) -> tuple[str, int, Sequence[_Row]]:
    """Add what would decide between the first and its rivals."""
    in_tier = [row for row in rivals if row["tier"] == first["tier"] and row["more_seeds"] is not None]
    apart = [row for row in in_tier if row["more_seeds"] <= MOST_SEEDS]
    if not apart and least < FEWEST_FOR_INTERVAL:
        more = FEWEST_FOR_INTERVAL - least
        return f"{words}; to see more, add {_each(more)}", more, (first, *rivals)
    if not apart:
        return f"{words}; to decide would take more than {MOST_SEEDS} more", 0, ()
    first_few = apart[:_NAMED]
    more = max(row["more_seeds"] for row in first_few)
    on = "" if len(first_few) == len(rivals) else f" on {_join([_name(row, keys) for row in first_few])}"
    return f"{words}; to decide{on}, add {_each(more)}", more, (first, *first_few)


def _each(seeds: int) -> str:
    return f"{counted(seeds, 'seed')} each"


def _interval(value: float, low: float | None, high: float | None, form: str) -> str:
    """Format an estimate with its interval.

    Example:
        >>> _interval(1.84, 1.4, math.inf, ".2g"), _interval(140.0, None, None, ".0f"), _interval(12.4, 9, 15, ".2g")
        ('1.8 [1.4, ∞]', '140', '12 [9, 15]')
    """

    def text(number: float) -> str:
        return "∞" if math.isinf(number) else f"{number:{form}}"

    if low is None or high is None or (low == high == value):
        return text(value)
    return f"{text(value)} [{text(low)}, {text(high)}]"


def _name(row: _Row, keys: Sequence[str]) -> str:
    """Return the name of a group within a sentence.

    Example:
        >>> _name({"policy": "tri", "optimizer": "adam", "lr": 0.05}, ["policy", "optimizer", "lr"])
        'tri with adam at 0.05'
        >>> _name({"policy": "tri", "optimizer.weight_decay": 0.1}, ["policy", "optimizer.weight_decay"])
        'tri (optimizer.weight_decay 0.1)'
    """
    rest = [f"{key} {_value(row[key])}" for key in keys if key not in ("policy", "optimizer", "lr")]
    words = _value(row["policy"]) if "policy" in keys else ""
    words += f" with {_value(row['optimizer'])}" if "optimizer" in keys else ""
    words += f" at {_value(row['lr'])}" if "lr" in keys else ""
    if not words:
        return ", ".join(rest)
    return f"{words.strip()} ({', '.join(rest)})" if rest else words.strip()


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else clean(str(value))


def _join(names: Sequence[str], most: int | None = None) -> str:
    """Join names to a list in words; above ``most`` the others are counted.

    Example:
        >>> _join(["a"]), _join(["a", "b", "c"]), _join(["a", "b", "c", "d", "e"], 3)
        ('a', 'a, b and c', 'a, b, c and 2 others')
    """
    if most is not None and len(names) > most + 1:
        names = [*names[:most], f"{len(names) - most} others"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _shared(runs: pl.DataFrame, column: str) -> Any:
    """Return the value that all runs share, or None."""
    values = runs[column].unique().to_list() if column in runs.columns else []
    return values[0] if len(values) == 1 else None
