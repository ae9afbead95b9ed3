"""Table in Markdown and figure of a study.

Results are those of ``results.csv``; the column ``study`` has the stage of each, after a slash.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from lrbench_pl.analysis import statistics as st
from lrbench_pl.analysis.ranking import rank

PAPER_BEST = 6.7  # speed-up over a default policy; the paper's range is 1.6 to 6.7
BEGIN, END = "<!-- from results.csv -->", "<!-- end -->"


@dataclass(frozen=True)
class Gain:
    """Speed-up of a policy over the default, by seed.

    Args:
        times: Median and interval. A miss of the default counts as its whole budget; in the upper end of the interval,
            which that does not bound, as infinitely many steps.
        bound: Whether the median would be larger with such misses as infinitely many steps.
    """

    times: st.Estimate
    bound: bool

    def __str__(self) -> str:
        return ("≥ " if self.bound else "") + spread(self.times, ".2f")


@dataclass(frozen=True)
class Row:
    """One policy of a study.

    Args:
        name: Its name; with its steps if it is stretched over fewer than the budget.
        lr: Its rate; None for a composed policy.
        tier: Tier of the ranking.
        reached: Seeds that reached the target.
        n: Seeds.
        steps: Median steps in all, with its interval.
        speed_up: Speed-up over the default, without tuning.
        counted: The same, with tuning.
        budget_ratio: The default's whole budget over its steps in all, 0 for a miss.
        tuning: Steps of its tuning, in the median.
        test: Median of the test set where the training ended.
        each: Steps to the target by seed; infinite for a miss.
    """

    name: str
    lr: float | None
    tier: int
    reached: int
    n: int
    steps: st.Estimate
    speed_up: Gain
    counted: Gain
    budget_ratio: st.Estimate
    tuning: int
    test: float
    each: tuple[float, ...]


def stage(rows: pl.DataFrame, *names: str) -> pl.DataFrame:
    """Return the results of some stages."""
    return rows.filter(pl.col("study").str.split("/").list.last().is_in(names))


def sign(rows: pl.DataFrame) -> int:
    """Return 1 if a larger value of the monitored metric is better, -1 if a smaller one is."""
    return -1 if "mode" in rows.columns and "min" in set(rows["mode"]) else 1


def _test(rows: pl.DataFrame) -> float:
    """Return the median accuracy on the test set, or that of the metric that was monitored.

    A run that diverged was not tested; NaN if none was.
    """
    column = "test_accuracy" if "test_accuracy" in rows.columns and sign(rows) > 0 else "test_value"
    tested = rows[column].drop_nulls().to_list()
    return statistics.median(tested) if tested else math.nan


def compared(rows: pl.DataFrame) -> list[Row]:
    """Compare every policy with the default, the best first.

    Speed-ups are medians over seeds with the interval of :func:`lrbench_pl.analysis.statistics.speed_up`. The tuning of
    a policy is all steps of its tuning runs, of ``auto`` its ``tuning_steps``.
    """
    default = stage(rows, "default").with_columns(pl.lit("the default").alias("name"))
    plain = stage(rows, "run", "auto").with_columns(pl.col("policy").alias("name"))
    short = stage(rows, "short").with_columns(
        pl.format("{} in {}", "policy", "max_steps").alias("name"),
        pl.lit(default["max_steps"][0], default.schema["max_steps"]).alias("max_steps"),
    )
    shown = pl.concat([default, plain, short])
    tuning = dict(stage(rows, "tune").group_by("policy").agg(pl.col("steps_run").sum()).rows())
    base = _outcomes(default)
    found = []
    for place in rank(shown, by=["name"]).to_dicts():
        mine = shown.filter(pl.col("name") == place["name"]).sort("seed")
        steps, hit = _outcomes(mine)
        is_auto = place["name"] == "auto"
        if is_auto:
            given_up = [float(spent) for spent in mine["tuning_steps"]]
            alone, whole = [step - spent for step, spent in zip(steps, given_up, strict=True)], steps
        else:
            given_up = [0.0 if place["name"] == "the default" else float(tuning.get(mine["policy"][0], 0))]
            alone, whole = steps, [step + given_up[0] for step in steps]
        found.append(
            Row(
                name=place["name"],
                lr=None if is_auto else mine["lr"][0],
                tier=place["tier"],
                reached=sum(hit),
                n=len(hit),
                steps=st.Estimate(place["median_steps"], place["median_low"], place["median_high"], len(hit)),
                speed_up=_gain(base, alone, hit),
                counted=_gain(base, whole, hit),
                budget_ratio=st.budget_ratio(float(default["max_steps"][0]), steps, hit).times,
                tuning=round(statistics.median(given_up)),
                test=_test(mine),
                each=tuple(step if ok else math.inf for step, ok in zip(steps, hit, strict=True)),
            )
        )
    return found


def _gain(default: tuple[list[float], list[bool]], steps: list[float], hit: list[bool]) -> Gain:
    """Return the speed-up of a policy, at least; seeds on which both missed are ignored."""
    early = default[0], [ours or its for ours, its in zip(hit, default[1], strict=True)]
    late, least = (st.speed_up(*base, steps, hit, rng=0, paired=True) for base in (default, early))
    return Gain(st.Estimate(least.value, least.low, late.high, least.n), least.value != late.value)


def _outcomes(rows: pl.DataFrame) -> tuple[list[float], list[bool]]:
    """Return by seed the steps to the target, or all steps of a miss, and whether it was reached."""
    rows = rows.sort("seed")
    hit = [steps is not None for steps in rows["steps_to_target"]]
    run = rows.select(pl.coalesce("steps_to_target", "steps_run")).to_series().to_list()
    return [float(steps) for steps in run], hit


def workload(row: Mapping[str, Any]) -> str:
    """Name the workload of a run: data set, model and batch."""
    return f"{row['dataset']}/{row['model']}, batch {row['batch_size']}"


def aim(rows: pl.DataFrame) -> list[str]:
    """Describe the aim of a study: workload, budget, target and seeds, and the source of the target."""
    first = stage(rows, "default").row(0, named=True)
    aims, runs = stage(rows, "target"), stage(rows, "default", "run", "auto", "short")
    lines = [
        f"{workload(first)}, budget {first['max_steps']} steps, target {first['target']:.4f}, seeds {_seeds(runs)}."
    ]
    if len(aims):
        what = "accuracy" if sign(rows) > 0 else "loss"
        lines.append(
            f"Target: the median final {what} of `{first['policy']}` at {first['lr']:g} on seeds {_seeds(aims)}: "
            f"{aims['final_value'].min():.4f} to {aims['final_value'].max():.4f}; on the test set {_test(aims):.4f}."
        )
    return lines


def table(rows: pl.DataFrame) -> list[str]:
    """Return the table of a study in Markdown, with its aim and the paper's best case."""
    first = stage(rows, "default").row(0, named=True)
    lines = aim(rows)
    lines += [
        "",
        "| tier | policy | rate | reached | steps, median [95 %] "
        "| speed-up | with tuning | budget ratio | tuning | test |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in compared(rows):
        name = f"**{row.name}**: `{first['policy']}`" if row.name == "the default" else f"`{row.name}`"
        lines.append(
            f"| {row.tier} | {name} | {'' if row.lr is None else f'{row.lr:g}'} | {row.reached}/{row.n} "
            f"| {spread(row.steps, '.0f')} | {row.speed_up} | {row.counted} | {spread(row.budget_ratio, '.2f')} "
            f"| {row.tuning} | {'' if math.isnan(row.test) else format(row.test, '.4f')} |"
        )
    return lines + best_case(rows)


def best_case(rows: pl.DataFrame) -> list[str]:
    """Compare the steps of the paper's best case with the tuning runs of about as many steps."""
    tuned = stage(rows, "tune")
    usual = statistics.median(math.inf if each is None else each for each in stage(rows, "default")["steps_to_target"])
    if not len(tuned) or not math.isfinite(usual):
        return []
    final = tuned["final_value"].fill_null(-math.inf * sign(rows)) * sign(rows)
    return [
        "",
        f"A speed-up of {PAPER_BEST}, the paper's best case, would mean {usual / PAPER_BEST:.0f} steps. "
        f"Of {len(tuned)} tuning runs over {tuned['max_steps'][0]} the best ended at {sign(rows) * final.max():.4f}, "
        f"the median at {sign(rows) * final.median():.4f}.",
    ]


def grid(rows: pl.DataFrame) -> list[str]:
    """Return policies by optimizers in Markdown: median steps to the target, or the share that reached it; the rate."""
    optimizers, policies, medians = _medians(rows)
    lines = [*aim(rows), "", f"| policy | {' | '.join(optimizers)} |", "|---" * (len(optimizers) + 1) + "|"]
    for policy in policies:
        shown = []
        for optimizer in optimizers:
            part = stage(rows, "run").filter(policy=policy, optimizer=optimizer)
            middle = medians[policy, optimizer]
            hits = part["steps_to_target"].is_not_null().sum()
            shown.append(f"{f'{middle:.0f}' if math.isfinite(middle) else f'{hits}/{len(part)}'} ({part['lr'][0]:g})")
        lines.append(f"| `{policy}` | {' | '.join(shown)} |")
    return lines


def _medians(rows: pl.DataFrame) -> tuple[list[str], list[str], dict[tuple[str, str], float]]:
    """Return optimizers and policies, the best first, and the median steps of each pair; infinite for a miss."""
    medians: dict[tuple[str, str], float] = {}
    for (policy, optimizer), part in stage(rows, "run").group_by("policy", "optimizer"):
        steps, hit = _outcomes(part)
        reached = [step if ok else math.inf for step, ok in zip(steps, hit, strict=True)]
        medians[str(policy), str(optimizer)] = statistics.median(reached)

    def middle(name: str, at: int) -> tuple[float, str]:
        return statistics.median(value for key, value in medians.items() if key[at] == name), name

    policies, optimizers = (sorted({key[at] for key in medians}, key=lambda name: middle(name, at)) for at in (0, 1))
    return optimizers, policies, medians


def _seeds(rows: pl.DataFrame) -> str:
    seeds = sorted(set(rows["seed"]))
    return f"{seeds[0]} to {seeds[-1]}" if seeds == list(range(seeds[0], seeds[-1] + 1)) else ", ".join(map(str, seeds))


def spread(estimate: st.Estimate, form: str) -> str:
    """Format an estimate with its interval, if it has one."""

    def say(value: float) -> str:
        return "missed" if math.isinf(value) and form == ".0f" else "∞" if math.isinf(value) else f"{value:{form}}"

    if estimate.value is None:
        return "–"
    shown = say(estimate.value)
    if estimate.low is None or estimate.high is None:
        return shown
    return f"{shown} [{say(estimate.low)}, {say(estimate.high)}]"


def figure(rows: pl.DataFrame, path: Path) -> None:
    """Draw the steps to the target by policy: a dot per seed, a bar at the median, a cross for misses."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    found = compared(rows)
    budget = rows["max_steps"].max()
    picture, axes = pyplot.subplots(figsize=(8, 0.9 + 0.3 * len(found)), layout="constrained")
    for y, row in enumerate(reversed(found)):
        colour = {"the default": "#555555", "auto": "#d62728"}.get(row.name, "#1f77b4")
        hits, misses = [step for step in row.each if math.isfinite(step)], sum(map(math.isinf, row.each))
        axes.plot(hits, [y] * len(hits), "o", color=colour, alpha=0.6, markersize=5, markeredgewidth=0)
        if row.steps.value is not None and math.isfinite(row.steps.value):
            axes.plot([row.steps.value] * 2, [y - 0.32, y + 0.32], color=colour, linewidth=2.5)
        if misses:
            axes.plot(budget, y, "x", color=colour, markersize=6)
            axes.annotate(
                f"{misses} missed",
                (budget, y),
                (7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=colour,
                annotation_clip=False,
            )
        if row.name == "the default" and row.steps.value is not None and math.isfinite(row.steps.value):
            axes.axvline(row.steps.value, color=colour, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(found)), [row.name for row in reversed(found)])
    axes.set(
        xlabel="optimizer steps to the target (auto: tuning counted)",
        xlim=(0, budget * 1.02),
        ylim=(-0.6, len(found) - 0.4),
    )
    save(picture, path)


def save(picture: Any, path: Path) -> None:
    """Write a figure that has one line of values for each name, with a minimal frame."""
    from matplotlib import pyplot

    (axes,) = picture.axes
    axes.grid(axis="x", alpha=0.2)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    picture.savefig(path, dpi=150)
    pyplot.close(picture)


def save_lines(picture: Any, path: Path) -> None:
    """Write a figure of curves, with a minimal frame."""
    from matplotlib import pyplot

    for axes in picture.axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    picture.savefig(path, dpi=150)
    pyplot.close(picture)


def heat(rows: pl.DataFrame, path: Path) -> None:
    """Draw the median steps to the target by policy and optimizer."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    optimizers, policies, medians = _medians(rows)
    picture, axes = pyplot.subplots(
        figsize=(1.5 + 0.95 * len(optimizers), 1.2 + 0.5 * len(policies)), layout="constrained"
    )
    values = [[medians[policy, optimizer] for optimizer in optimizers] for policy in policies]
    known = [value for line in values for value in line if math.isfinite(value)]
    masked = [[value if math.isfinite(value) else math.nan for value in line] for line in values]
    scale = matplotlib.colors.LogNorm(min(known), max(known))
    axes.imshow(masked, cmap="viridis_r", norm=scale, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            dark = math.isfinite(value) and scale(value) > 0.4
            text = f"{value:.0f}" if math.isfinite(value) else "missed"
            axes.text(x, y, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axes.set_xticks(range(len(optimizers)), optimizers)
    axes.set_yticks(range(len(policies)), policies)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_title("median steps to the target, each pair at its best rate; lighter is sooner", fontsize=10)
    picture.savefig(path, dpi=150)
    pyplot.close(picture)


def blocks(rows: pl.DataFrame) -> str:
    """Return the text between the marks of a study's README."""
    if len(set(stage(rows, "run")["optimizer"])) > 1:
        return "\n".join(grid(rows))
    return "\n".join(table(rows))


def written(readme: str, text: str, begin: str = BEGIN) -> str:
    r"""Return a README with the text between its marks.

    Raises:
        ValueError: If it has no marks.

    Example:
        >>> written(f"a\n\n{BEGIN}\n\nold\n\n{END}\n", "new")
        'a\n\n<!-- from results.csv -->\n\nnew\n\n<!-- end -->\n'
    """
    found, count = re.subn(f"{begin}.*?{END}", lambda _: f"{begin}\n\n{text}\n\n{END}", readme, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"expected one {begin} … {END}, found {count}")
    return found
