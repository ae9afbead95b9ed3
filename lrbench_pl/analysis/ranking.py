"""From a table of runs to a ranking of policies: tables in, tables out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from lrbench_pl.analysis import statistics as st
from lrbench_pl.analysis.load import AnalysisError
from lrbench_pl.runs.spec import PARTS, canonical, differing, named, shown
from lrbench_pl.words import is_accuracy

Metric = Literal["cost", "utility", "robustness"]
METRICS: tuple[Metric, ...] = get_args(Metric)

# What must agree for two runs to answer the same question.
QUESTION = (
    "dataset",
    "model",
    "batch_size",
    "max_steps",
    "monitor",
    "mode",
    "check_on",
    "target",
    "confirmations",
)
_MOST_GROUPS = 2000  # every pair of them is compared
_UNCOUNTED = ("failed", "stopped")


def default_keys(runs: pl.DataFrame) -> list[str]:
    """The columns that tell policies apart here: the policy, and optimizer and rate where they vary.

    Example:
        >>> default_keys(pl.DataFrame({"policy": ["a", "b"], "optimizer": ["sgd", "adam"], "lr": [0.1, 0.01]}))
        ['policy', 'optimizer']
    """
    keys = ["policy"]
    if runs["optimizer"].n_unique() > 1:
        keys.append("optimizer")
    if runs.group_by(keys).agg(pl.col("lr").n_unique())["lr"].max() > 1:  # type: ignore[operator]
        keys.append("lr")
    return keys


def check_comparable(runs: pl.DataFrame, keys: Sequence[str]) -> None:
    """Refuse to rank answers to different questions.

    Args:
        runs: The table of :func:`lrbench_pl.analysis.load.load_runs`.
        keys: The columns that make a group, those of :func:`with_settings` among them.

    Raises:
        AnalysisError: If the runs differ in workload, budget, monitor, target or settings and ``keys`` do not separate
            them.

    Example:
        >>> check_comparable(pl.DataFrame({"max_steps": [100, 200]}), keys=["policy"])
        Traceback (most recent call last):
        ...
        lrbench_pl.analysis.load.AnalysisError: the runs differ in max_steps (100, 200), so one ranking of them would \
be wrong; separate them with --by policy,max_steps or give fewer folders
    """
    for column in QUESTION:
        if column in keys or column not in runs.columns:
            continue
        values = runs[column].unique().sort().to_list()
        if len(values) > 1:
            shown = ", ".join(str(value) for value in values[:4]) + (", …" if len(values) > 4 else "")
            raise AnalysisError(
                f"the runs differ in {column} ({shown}), so one ranking of them would be wrong; "
                f"separate them with --by {','.join([*keys, column])} or give fewer folders"
            )
    if "settings" in runs.columns and "settings" not in keys:
        _check_settings(runs, keys)


def _check_settings(runs: pl.DataFrame, keys: Sequence[str]) -> None:
    """Refuse runs under one question, or of one policy, whose settings differ.

    Settings of the optimizer are compared among runs of one optimizer, where it is one of the keys: two optimizers have
    different settings by nature. So are those of model and data set; those of the policy always are.
    """
    parts = {prefix: name for prefix, name in PARTS.items() if name in runs.columns}
    names = sorted(set(parts.values()))
    settings_of = _known_settings(runs)
    known = {key for settings in settings_of.values() for key in settings}
    scope = [key for key in keys if key in (*QUESTION, "precision") or key in known]
    distinct = runs.select(*dict.fromkeys([*scope, *names]), "settings").unique().drop_nulls("settings")
    if distinct["settings"].n_unique() < 2:
        return
    rows = [(row, settings_of[row["settings"]]) for row in distinct.to_dicts()]
    found: dict[str, list[Any]] = {}
    for prefix in (*parts, None):
        name = parts.get(prefix) if prefix is not None else None
        apart = [*scope, *([name] if name is not None and (name in keys or name == "policy") else [])]
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row, settings in rows:
            inside = {key: value for key, value in settings.items() if _part(key, parts) == prefix}
            groups.setdefault(tuple(row[key] for key in apart), []).append(inside)
        for group in groups.values():
            differ = differing(group)
            if differ and name is not None and name not in apart and distinct[name].n_unique() > 1:
                found[name] = distinct[name].unique().sort().to_list()
                break
            for key, values in differ.items():
                there = {canonical(value): value for value in (*found.get(key, ()), *values)}
                found[key] = list(there.values())
    if found:
        raise AnalysisError(
            f"the runs differ in {named(list(found.items()))}, so one ranking of them would be wrong; "
            f"separate them with --by {','.join([*keys, *found])} or give fewer folders"
        )


def _part(key: str, parts: Mapping[str, str]) -> str | None:
    return next((prefix for prefix in parts if key.startswith(prefix)), None)


def _known_settings(runs: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """The settings of the runs, by the text that holds them."""
    if "settings" not in runs.columns:
        return {}
    return {text: json.loads(text) for text in runs["settings"].drop_nulls().unique(maintain_order=True)}


def with_settings(runs: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Add a column for each key that is a setting of the runs, such as ``optimizer.weight_decay``.

    Numbers stay numbers; everything else becomes text, and null where a run has no such setting.

    Raises:
        AnalysisError: If a key is neither a column nor a setting.

    Example:
        >>> runs = pl.DataFrame({"settings": ['{"model.width": 0.1}', '{"model.width": 0}', None]})
        >>> with_settings(runs, ["model.width"])["model.width"].to_list()
        [0.1, 0.0, None]
    """
    missing = [key for key in keys if key not in runs.columns]
    if not missing:
        return runs
    settings = _known_settings(runs)
    texts = runs["settings"].to_list() if settings else [None] * runs.height
    known = sorted({key for each in settings.values() for key in each})
    for key in missing:
        if key not in known:
            columns = ", ".join(name for name in runs.columns if name != "settings")
            few = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
            more = f" or settings of the runs ({few})" if known else ""
            raise AnalysisError(f"--by must name columns of the results ({columns}){more}, got {key!r}")
    return runs.with_columns(_column(key, [settings.get(text or "", {}).get(key) for text in texts]) for key in missing)


def _column(name: str, values: Sequence[Any]) -> pl.Series:
    there = [value for value in values if value is not None]
    if there and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in there):
        kind = pl.Int64 if all(isinstance(value, int) for value in there) else pl.Float64
        return pl.Series(name, values, kind, strict=False)
    return pl.Series(name, [None if value is None else shown(value) for value in values], pl.String)


def rank(
    runs: pl.DataFrame,
    by: Sequence[str] | None = None,
    metric: Metric = "cost",
    baseline: str | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """One row per policy, best first, with what the runs allow to say of its place.

    A diverged run is a miss; one that failed or was stopped says nothing of the policy and is only counted. Groups
    without a run that counts stand last. Where ``by`` separates questions (see ``QUESTION``), each has its own ranks.

    ``cost`` orders by share of runs that reached the target, then median steps to it (a miss counts as infinitely
    many), then best value of the monitor; ``utility`` by median accuracy on the test set, or by the monitored metric
    there if no accuracy is known, or by its best checked value where there is no test set; ``robustness`` by median
    loss difference between test and training, smallest first.

    Which policies are told apart is judged run by run, by :func:`~lrbench_pl.analysis.statistics.compare`: for
    ``cost`` the run with fewer steps is the better one, of two misses the one that came closer; else the value itself.

    Args:
        runs: The table of :func:`lrbench_pl.analysis.load.load_runs`.
        by: Columns that make a group, and settings such as ``optimizer.weight_decay``; by default
            :func:`default_keys`.
        metric: ``cost``, ``utility`` or ``robustness``.
        baseline: With ``cost``, the policy that the others are compared with: its name, or all values of ``by`` with
            commas. A name is looked for among rows that agree in the other columns of ``by``.
        seed: Of the resampling.

    Returns:
        Columns ``rank`` (equals share one), ``rank_low`` and ``rank_high`` (its 95 % interval, null below 3 runs),
        ``tier``, those of ``by``, ``runs``, then those of the metric, some with an interval in ``…_low`` and ``…_high``
        (null below 5 runs, but for ``share``), then ``more_seeds`` (runs to add to tell it from the first of its tier,
        at 80 % power; null for the first and where the runs show no lead of it), ``diverged``, ``failed``, ``stopped``.

        ``cost``: ``reached``, ``open`` (runs that ended before the budget without an answer), ``share``,
        ``median_steps`` (infinite: half of the runs or more missed), ``mean_steps`` (within the budget),
        ``expected_steps`` (with restarts), ``par2``, ``best_value``, ``test_value``, ``test_accuracy`` (medians); with
        a baseline ``speed_up`` and ``log_rank_p``; with several data sets or models ``profile``, the score of the
        performance profile. ``utility``: ``accuracy`` where one is known, ``best_value``, ``test_value``,
        ``test_accuracy``, ``test_top5``, ``confidence``, ``confidence_std`` (medians). ``robustness``:
        ``loss_difference``, ``cdac`` (medians), ``accuracy_spread`` (standard deviation over runs).

    Raises:
        AnalysisError: If a column, the metric or the baseline is unknown, the runs cannot be compared, or none of them
            has the metric.

    Example:
        >>> runs = pl.DataFrame({"policy": ["a", "a", "b"], "status": ["reached", "missed", "reached"], "lr": [0.1] * 3,
        ...     "optimizer": ["sgd"] * 3, "steps_to_target": [40, None, 60], "best_value": [0.9, 0.8, 0.9],
        ...     "test_accuracy": [0.9, 0.8, 0.9], "max_steps": [100] * 3, "seed": [0, 1, 0]})
        >>> rank(runs).select("rank", "policy", "share", "median_steps", "tier", "rank_low").rows()
        [(1, 'b', 1.0, 60.0, 1, None), (2, 'a', 0.5, inf, 1, None)]
    """
    if metric not in METRICS:
        raise AnalysisError(f"--metric must be {', '.join(METRICS[:-1])} or {METRICS[-1]}, got {metric!r}")
    if baseline is not None and metric != "cost":
        raise AnalysisError(f"--baseline compares steps, which --metric {metric} does not rank; leave one of them out")
    keys = list(by) if by is not None else default_keys(runs)
    asked_for = [key for key in keys if key not in runs.columns]
    runs = with_settings(runs, keys)
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise AnalysisError(f"--by must name each column once, got {repeated[0]!r} twice")
    counted = runs.filter(~pl.col("status").cast(pl.String).is_in(_UNCOUNTED))
    check_comparable(counted, keys)
    runs = runs.with_columns(pl.col("status").cast(pl.String))
    of_question = {*QUESTION, "settings"}
    of_question |= {key for key in asked_for if not key.startswith(("optimizer.", "lr_policy."))}  # like their parts
    asked = [key for key in keys if key in of_question and counted[key].n_unique() > 1]
    parts = runs.sort(asked, maintain_order=True).partition_by(asked, maintain_order=True) if asked else [runs]
    tables = [_rank_one(part, keys, asked, metric, baseline, seed) for part in parts]
    table = pl.concat(tables, how="vertical_relaxed")
    return _with_profile(table, keys) if metric == "cost" else table


def _rank_one(
    runs: pl.DataFrame, keys: Sequence[str], asked: Sequence[str], metric: Metric, baseline: str | None, seed: int
) -> pl.DataFrame:
    """The ranking of runs that answer one question."""
    if (n := runs.select(keys).n_unique()) > _MOST_GROUPS:
        raise AnalysisError(f"--by {','.join(keys)} makes {n} rows, of which at most {_MOST_GROUPS} can be compared")
    utility = _utility(runs)
    groups = [_Group(dict(zip(keys, key, strict=True)), part, utility) for key, part in _grouped(runs, keys)]
    rows = [group.row(metric) for group in groups]
    places = [group.place(metric, row) for group, row in zip(groups, rows, strict=True)]
    order, ranks = _places(rows, places, keys)
    groups, rows = [groups[i] for i in order], [rows[i] for i in order]
    for row, place in zip(rows, ranks, strict=True):
        row["rank"] = place
    judged = [i for i, group in enumerate(groups) if group.n(metric)]
    if metric != "cost" and not judged:
        needed = "test_accuracy or best_value" if metric == "utility" else "loss_difference"
        raise AnalysisError(f"no run has {needed}, which --metric {metric} ranks by; take --metric cost")
    if judged:
        _judge([groups[i] for i in judged], [rows[i] for i in judged], metric, seed)
    if baseline is not None:
        _compare_with(baseline, groups, rows, [key for key in keys if key not in asked], seed)
    schema = _schema(runs, keys, metric, baseline is not None, groups[0].utility)
    return pl.DataFrame(rows, schema=schema, orient="row")


def _grouped(runs: pl.DataFrame, keys: Sequence[str]) -> list[tuple[tuple[Any, ...], pl.DataFrame]]:
    return [(key, part) for key, part in runs.group_by(keys, maintain_order=True)]


class _Group:
    """The runs of one policy, as numbers; ``is_tested``: whether any run of the question has a test accuracy."""

    def __init__(self, key: Mapping[str, Any], runs: pl.DataFrame, utility: str = "accuracy") -> None:
        self.key = key
        self.utility = utility
        self.status = runs["status"].to_numpy()
        counted = runs.filter(~pl.col("status").is_in(_UNCOUNTED))
        self.table = counted
        self.seeds: list[int | None] = counted["seed"].to_list() if "seed" in counted.columns else []
        self.reached: st.Bools = counted["status"].to_numpy() == "reached"
        self.diverged: st.Bools = counted["status"].to_numpy() == "diverged"
        budget = _numbers(counted, "max_steps")
        self.budget = float(np.nanmax(budget)) if np.isfinite(budget).any() else math.nan
        self.open: st.Bools = (
            counted["open"].to_numpy().astype(bool) if "open" in counted.columns else np.zeros(len(self.reached), bool)
        )
        watched = np.where(self.open, _numbers(counted, "steps_run"), self.budget)
        self.steps = np.where(self.reached, _numbers(counted, "steps_to_target"), watched)
        smaller_is_better = "mode" in counted.columns and counted["mode"].to_list()[:1] == ["min"]
        self.sign = 1.0 if smaller_is_better else -1.0
        self.monitors_accuracy: st.Bools = np.array(_monitors_accuracy(counted), bool)

    @property
    def utility_sign(self) -> float:
        """1 where a smaller utility is better, else -1."""
        return -1.0 if self.utility == "accuracy" else self.sign

    def values(self, metric: Metric) -> st.Floats:
        """One number per run, smaller is better; a diverged one is the worst."""
        if metric == "utility":
            if self.utility == "accuracy":
                best = _numbers(self.table, "best_value")
                accuracy = _numbers(self.table, "test_accuracy")
                known = self.monitors_accuracy & np.isnan(accuracy)
                values = -np.where(known, best, accuracy)
            else:
                values = self.sign * _numbers(self.table, self.utility)
        else:
            values = _numbers(self.table, "loss_difference")
        values = np.where(self.diverged, math.inf, values)
        return values[~np.isnan(values)]

    def n(self, metric: Metric) -> int:
        """Runs that count."""
        return len(self.reached) if metric == "cost" else len(self.values(metric))

    def row(self, metric: Metric) -> dict[str, Any]:
        """What the table says of the policy alone."""
        row = {**self.key, "runs": self.n(metric)}
        row |= {name: int((self.status == name).sum()) for name in ("diverged", *_UNCOUNTED)}
        if metric == "cost":
            return row | self._cost()
        names = {"utility": _UTILITY, "robustness": ("cdac",)}[metric]
        row |= {name: _middle(self.table, name) for name in names}
        main, sign = (self.utility, self.utility_sign) if metric == "utility" else ("loss_difference", 1.0)
        values = self.values(metric)
        if len(values):
            found = st.median(values)
            ends = [found.value, *((found.low, found.high) if sign > 0 else (found.high, found.low))]
            row |= dict(zip(_with_interval(main), [None if x is None else sign * x for x in ends], strict=True))
        if metric == "robustness":
            accuracy = _numbers(self.table, "test_accuracy")
            accuracy = accuracy[~np.isnan(accuracy)]
            row["accuracy_spread"] = float(accuracy.std(ddof=1)) if len(accuracy) > 1 else None
        return row

    def _cost(self) -> dict[str, Any]:
        n, reached = len(self.reached), int(self.reached.sum())
        row: dict[str, Any] = {"reached": reached, "open": int(self.open.sum())}
        row |= {name: _middle(self.table, name) for name in ("best_value", *_TESTED)}
        if not n:
            return row
        if self.open.any():
            curve = st.kaplan_meier(self.steps, self.reached)
            row["share"] = 1 - curve.survival[-1] if self._is_followed(curve) else None
        else:
            row |= _spread("share", st.success_rate(reached, n))
        if math.isnan(self.budget):  # a row that does not say its budget
            return row | _spread("median_steps", st.median(np.where(self.reached, self.steps, math.inf)))
        row |= _spread("median_steps", st.median_steps(self.steps, self.reached, self.budget))
        row["mean_steps"] = st.restricted_mean(self.steps, self.reached, self.budget).value
        if not self.open.any():
            row["expected_steps"] = st.expected_steps(self.steps, self.reached)
            row["par2"] = st.penalised_mean(self.steps, self.reached, self.budget)
        return row

    def _is_followed(self, curve: st.SurvivalCurve) -> bool:
        """Whether the runs say what share arrives within the budget."""
        return curve.survival[-1] == 0 or curve.steps[-1] >= self.budget

    def place(self, metric: Metric, row: Mapping[str, Any]) -> tuple[float, ...]:
        """What the order goes by, smallest first; what is missing comes last."""
        found: dict[str, list[tuple[float | None, float]]] = {
            "cost": [(row.get("share"), -1), (row.get("median_steps"), 1), (row.get("best_value"), self.sign)],
            "utility": [(row.get(self.utility), self.utility_sign)],
            "robustness": [(row.get("loss_difference"), 1)],
        }
        return tuple(math.inf if value is None else sign * value for value, sign in found[metric])


def _monitors_accuracy(runs: pl.DataFrame) -> list[bool]:
    """Whether what each run checked is an accuracy; rows of old versions do not say it, and checked one."""
    if "monitor" not in runs.columns:
        return [True] * runs.height
    return [monitor is None or is_accuracy(monitor) for monitor in runs["monitor"].to_list()]


def _utility(runs: pl.DataFrame) -> str:
    """Return the column to rank by: an accuracy if there is one, else the monitored metric on the test set, or best."""
    if all(_monitors_accuracy(runs)) or np.isfinite(_numbers(runs, "test_accuracy")).any():
        return "accuracy"
    return "test_value" if np.isfinite(_numbers(runs, "test_value")).any() else "best_value"


def _places(
    rows: Sequence[Mapping[str, Any]], places: Sequence[tuple[float, ...]], keys: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The order of the rows, and in it the rank of each; equals share the first of theirs."""
    worth = [(row["runs"] == 0, place) for row, place in zip(rows, places, strict=True)]
    names = [[(row[key] is None, row[key]) for key in keys] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (worth[i], names[i]))
    ranks: list[int] = []
    for position, index in enumerate(order):
        same = position > 0 and worth[index] == worth[order[position - 1]]
        ranks.append(ranks[-1] if same else position + 1)
    return order, ranks


def _judge(groups: Sequence[_Group], rows: Sequence[dict[str, Any]], metric: Metric, seed: int) -> None:
    """Intervals of ranks, tiers, and how many more seeds would tell a policy from the first of its tier."""
    values = _scores(groups) if metric == "cost" else [group.values(metric) for group in groups]
    found = st.compare(values, np.random.default_rng(seed))
    pairs = max(1, len(groups) * (len(groups) - 1) // 2)
    first = 0
    for i, (row, tier) in enumerate(zip(rows, st.tiers(found.better), strict=True)):
        low, high = found.low[i], found.high[i]
        row["tier"] = tier
        if low is not None and high is not None:
            row |= {"rank_low": min(low, row["rank"]), "rank_high": max(high, row["rank"])}
        if i == 0 or tier > rows[i - 1]["tier"]:
            first = i
        elif (z := float(found.z[first, i])) > 0:
            n = min(len(values[first]), len(values[i]))
            needed = st.seeds_needed(z, n, pairs)
            row["more_seeds"] = None if needed is None else max(1, needed - n)


def _scores(groups: Sequence[_Group]) -> list[npt.NDArray[np.float64]]:
    """One number per run: fewer steps first, misses by how close they came; an open run stands amid what is left."""
    steps = np.concatenate([np.where(group.reached, group.steps, math.inf) for group in groups])
    close = np.concatenate(
        [np.where(group.reached, -math.inf, group.sign * _numbers(group.table, "best_value")) for group in groups]
    )
    close = np.where(np.isnan(close), math.inf, close)
    _, codes = np.unique(np.column_stack([steps, close]), axis=0, return_inverse=True)
    scores = codes.reshape(-1).astype(float)
    is_open = np.concatenate([group.open for group in groups])
    if is_open.any():
        ends = np.concatenate([group.steps for group in groups])
        worst = scores.max() + 1
        for index in np.flatnonzero(is_open):
            sooner = scores[~is_open & (steps <= ends[index])]
            scores[index] = ((sooner.max() if len(sooner) else -1) + worst) / 2
    return np.split(scores, np.cumsum([len(group.reached) for group in groups])[:-1])


def _compare_with(
    baseline: str, groups: Sequence[_Group], rows: Sequence[dict[str, Any]], keys: Sequence[str], seed: int
) -> None:
    """Speed-up over the baseline, by seed where the seeds match, and the log-rank test."""
    whole = {",".join(str(group.key[key]) for key in keys): group for group in groups}
    column = next((key for key in keys if any(str(group.key[key]) == baseline for group in groups)), None)
    if baseline not in whole and column is None:
        shown = ", ".join(list(whole)[:8]) + (", …" if len(whole) > 8 else "")
        raise AnalysisError(f"--baseline must name one of {shown}, got {baseline!r}")
    partners = {
        tuple(group.key[key] for key in keys if key != column): group
        for group in groups
        if column is not None and str(group.key[column]) == baseline
    }
    for group, row in zip(groups, rows, strict=True):
        partner = whole.get(baseline) or partners.get(tuple(group.key[key] for key in keys if key != column))
        if partner is None or not len(partner.reached) or not len(group.reached) or group.open.any():
            continue
        if partner is group:
            row["speed_up"] = 1.0
            continue
        if partner.open.any() or math.isnan(group.budget):
            continue
        pairs = st.pair_by_seed(partner.seeds, group.seeds)
        first, second = pairs if pairs is not None else (slice(None), slice(None))
        sides = (partner.steps[first], partner.reached[first], group.steps[second], group.reached[second])
        row |= _spread("speed_up", st.speed_up(*sides, rng=seed, paired=pairs is not None))
        row["log_rank_p"] = st.log_rank(*sides, rng=seed).p


def _with_profile(table: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """With several workloads, the score of each policy's performance profile over them."""
    workload = [key for key in keys if key in ("dataset", "model")]
    others = [key for key in keys if key not in workload]
    if not workload or not others or table.select(workload).unique().height < 2:
        return table
    costs: dict[tuple[Any, ...], dict[tuple[Any, ...], float]] = {}
    for row in table.to_dicts():
        steps = row["median_steps"]
        name, where = tuple(row[key] for key in others), tuple(row[key] for key in workload)
        costs.setdefault(name, {})[where] = math.inf if steps is None else steps
    places = sorted({place for cost in costs.values() for place in cost}, key=str)
    names = {str(number): name for number, name in enumerate(costs)}
    profile = st.performance_profile(
        {number: [costs[name].get(place, math.inf) for place in places] for number, name in names.items()}
    )
    scores = {name: profile.scores[number] for number, name in names.items()}
    column = [scores[tuple(row[key] for key in others)] for row in table.to_dicts()]
    return table.with_columns(pl.Series("profile", column))


_TESTED = ("test_value", "test_accuracy")
_UTILITY = ("best_value", *_TESTED, "test_top5", "confidence", "confidence_std")


def _with_interval(name: str) -> tuple[str, str, str]:
    stem = name.removesuffix("_steps") if name == "median_steps" else name
    return name, f"{stem}_low", f"{stem}_high"


def _spread(name: str, estimate: st.Estimate) -> dict[str, float | None]:
    return dict(zip(_with_interval(name), (estimate.value, estimate.low, estimate.high), strict=True))


def _schema(
    runs: pl.DataFrame, keys: Sequence[str], metric: Metric, has_baseline: bool, utility: str
) -> dict[str, pl.DataType | type[pl.DataType]]:
    columns: dict[str, pl.DataType | type[pl.DataType]] = dict.fromkeys(
        ("rank", "rank_low", "rank_high", "tier"), pl.Int64
    )
    columns |= {key: runs.schema[key] for key in keys}
    columns["runs"] = pl.Int64
    if metric == "cost":
        columns |= dict.fromkeys(("reached", "open"), pl.Int64)
        names = [*_with_interval("share"), *_with_interval("median_steps"), "mean_steps", "expected_steps", "par2"]
        names += ["best_value", *_TESTED]
        names += [*_with_interval("speed_up"), "log_rank_p"] if has_baseline else []
    elif metric == "utility":
        names = [*_with_interval(utility), *_UTILITY]
    else:
        names = [*_with_interval("loss_difference"), "cdac", "accuracy_spread"]
    columns |= dict.fromkeys(names, pl.Float64)
    return columns | dict.fromkeys(("more_seeds", "diverged", *_UNCOUNTED), pl.Int64)


def _numbers(table: pl.DataFrame, column: str) -> st.Floats:
    """A column as floats, NaN where it is missing."""
    if column not in table.columns:
        return np.full(table.height, math.nan)
    numbers: st.Floats = table[column].cast(pl.Float64).fill_null(math.nan).to_numpy()
    return numbers


def _middle(table: pl.DataFrame, column: str) -> float | None:
    values = _numbers(table, column)
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else None


def equal_policies(runs: pl.DataFrame) -> list[list[str]]:
    """Groups of names whose rates over the budget are the same.

    Example:
        >>> equal_policies(pl.DataFrame({"policy": ["fix", "step", "tri"], "policy_id": ["x", "x", "y"]}))
        [['fix', 'step']]
    """
    known = runs.drop_nulls("policy_id")
    names = known.group_by("policy_id").agg(pl.col("policy").unique().sort())["policy"].to_list()
    return sorted(list(group) for group in names if len(group) > 1)
