"""A study of policies: from a protocol in YAML to frozen rows, a table and a figure.

    python experiments/study.py NAME [--budget 0.05] [--stages default,auto] [--work multirun/NAME] [OVERRIDE...]
    python experiments/study.py NAME --table       # from the frozen rows: nothing is trained

``experiments/NAME/study.yaml`` is the protocol (see :class:`Protocol`). Its stages are sweeps in ``--work``:

``target``   the default policy over the whole budget, on seeds of its own: its median final accuracy is the target
``default``  the default policy, as it is, to the target
``auto``     the policy composed while it trains, to the target
``tune``     every policy (with every optimizer) at every rate over a short budget, on seeds of its own: the best rate
``run``      every policy at its best rate, to the target

Interrupted, the same command goes on where it was; ``--stages`` runs some of them only, ``target`` always. At the end
the rows of all stages are frozen in ``results.csv`` (the stage stands in the column ``study``), the figure is drawn,
and the table goes into the study's ``README.md``. Overrides are Hydra's, such as ``dataset.root=PATH``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import polars as pl
import yaml

from lrbench_pl.analysis import statistics as st
from lrbench_pl.analysis.load import load_runs
from lrbench_pl.analysis.ranking import rank

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- from results.csv -->", "<!-- end -->"
STAGES = ("default", "auto", "tune", "run")
_DROPPED = (
    "folder",
    "run_id",
    "policy_id",
    "policy_repr",
    "message",
    "versions",
    "shared_with",
    "mode",
    "confirmations",
)


@dataclass(frozen=True)
class Protocol:
    """What a study does.

    Args:
        workload: Overrides that name it.
        max_steps: The whole budget in optimizer steps, that of the paper.
        budget: Share of it that is run here.
        checks: Checks within the budget.
        default: The workload's default policy, whose rate is that of the first optimizer.
        optimizers: Names and own rates.
        policies: Names in ``conf/lr_policy``.
        factors: Rates that are tried, in units of the optimizer's own.
        horizon: Budget of a tuning run, as a share of the study's.
        target_seeds: Seeds that fix the target; none where ``target`` gives it.
        tune_seeds: Seeds of the tuning runs.
        seeds: Seeds of the rows that are compared.
        auto: Whether ``lr_policy=auto`` takes part.
        target: A target fixed otherwise.
    """

    workload: tuple[str, ...]
    max_steps: int
    budget: float
    checks: int
    default: str
    optimizers: dict[str, float]
    policies: tuple[str, ...]
    factors: tuple[float, ...]
    horizon: float
    target_seeds: tuple[int, ...]
    tune_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    auto: bool = True
    target: float | None = None

    def __post_init__(self) -> None:
        used = [*self.target_seeds, *self.tune_seeds, *self.seeds]
        if len(set(used)) < len(used):
            raise ValueError("expected target_seeds, tune_seeds and seeds that have none in common")

    @classmethod
    def read(cls, path: Path) -> Protocol:
        """From a YAML file; lists become tuples."""
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        if unknown := given.keys() - {field.name for field in fields(cls)}:
            raise ValueError(f"{path}: unknown: {', '.join(sorted(unknown))}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})

    def steps(self, budget: float) -> tuple[int, int]:
        """Optimizer steps in a budget and between its checks; a whole number of checks."""
        every = max(1, round(budget * self.max_steps / self.checks))
        return every * self.checks, every


# -- running ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """A protocol at a budget, in a folder.

    Args:
        name: Its folder under ``experiments``.
        protocol: What to do.
        budget: Share of the whole budget.
        work: Folder of its sweeps.
        launcher: Hydra's launcher.
        overrides: Further overrides of every run.
        stages: What is run beside ``target``.
    """

    name: str
    protocol: Protocol
    budget: float
    work: Path
    launcher: str
    overrides: tuple[str, ...]
    stages: tuple[str, ...] = STAGES

    def run(self) -> pl.DataFrame:
        """Train what is missing; the rows of all stages."""
        protocol = self.protocol
        first, own = next(iter(protocol.optimizers.items()))
        default = (f"lr_policy={protocol.default}", f"optimizer={first}", f"lr={own:g}")
        rows = []
        target = protocol.target
        if target is None:
            whole = ("target_accuracy=null", "stop_at_target=false")
            rows.append(self.sweep("target", protocol.target_seeds, self.budget, *default, *whole))
            target = final(rows[0])
        print(f"target {target:.4f}", flush=True)
        aim = f"target_accuracy={target!r}"
        if "default" in self.stages:
            rows.append(self.sweep("default", protocol.seeds, self.budget, *default, aim))
        if protocol.auto and "auto" in self.stages:
            auto = ("lr_policy=auto", f"optimizer={first}", f"lr={own:g}", aim)
            rows.append(self.sweep("auto", protocol.seeds, self.budget, *auto))
        if "tune" in self.stages or "run" in self.stages:
            rows.append(self.tune())
        if "run" in self.stages:
            for optimizer, lr, policies in together(best_rates(rows[-1])):
                chosen = (f"lr_policy={','.join(policies)}", f"optimizer={optimizer}", f"lr={lr!r}", aim)
                rows.append(self.sweep("run", protocol.seeds, self.budget, *chosen, folder=f"run/{optimizer}-{lr:g}"))
        return pl.concat(rows)

    def tune(self) -> pl.DataFrame:
        """The rows of the tuning runs."""
        protocol, rows = self.protocol, []
        free = ("target_accuracy=null", "stop_at_target=false", f"lr_policy={','.join(protocol.policies)}")
        for optimizer, own in protocol.optimizers.items():
            rates = ",".join(f"{own * factor:.3g}" for factor in protocol.factors)
            given = (*free, f"optimizer={optimizer}", f"lr={rates}")
            share = self.budget * protocol.horizon
            rows.append(self.sweep("tune", protocol.tune_seeds, share, *given, folder=f"tune/{optimizer}"))
        return pl.concat(rows)

    def sweep(self, stage: str, seeds: Sequence[int], budget: float, *given: str, folder: str = "") -> pl.DataFrame:
        """One sweep, and its rows; what has run is not run again."""
        steps, every = self.protocol.steps(budget)
        where = self.work / (folder or stage)
        command = [sys.executable, str(HERE.parent / "run.py"), "-m", *self.protocol.workload, *self.overrides, *given]
        command += [f"seed={','.join(map(str, seeds))}", f"max_steps={steps}", f"check_every={every}"]
        command += [f"study={self.name}/{stage}", f"hydra/launcher={self.launcher}", f"hydra.sweep.dir={where}"]
        print(f"-- {where}: {' '.join(given)}", flush=True)
        done = subprocess.run(command, check=False)
        if done.returncode != 0:
            sys.exit(f"{where}: the sweep ended with {done.returncode}; see above, and give the same command again")
        return load_runs([where]).table


def final(rows: pl.DataFrame) -> float:
    """The median of the final accuracy; of two in the middle the lower, so that it is the value of a check."""
    return statistics.median_low(rows["final_accuracy"].to_list())


def best_rates(tuned: pl.DataFrame) -> dict[tuple[str, str], float]:
    """For every optimizer and policy the rate with the best median final accuracy; one that diverged is worst.

    Example:
        >>> rows = {"optimizer": ["sgd"] * 3, "policy": ["fix"] * 3, "lr": [0.1, 0.2, 0.4], "seed": [1] * 3,
        ...     "status": ["missed", "missed", "diverged"], "final_accuracy": [0.8, 0.9, None]}
        >>> best_rates(pl.DataFrame(rows))
        {('sgd', 'fix'): 0.2}
    """
    value = pl.when(pl.col("status").cast(pl.String) == "diverged").then(0.0).otherwise("final_accuracy").fill_null(0.0)
    medians = tuned.group_by("optimizer", "policy", "lr").agg(value.median().alias("value"))
    best = medians.sort(["value", "lr"], descending=[True, False]).unique(["optimizer", "policy"], keep="first")
    return {(row["optimizer"], row["policy"]): row["lr"] for row in best.sort("optimizer", "policy").to_dicts()}


def together(rates: dict[tuple[str, str], float]) -> Iterator[tuple[str, float, list[str]]]:
    """Optimizer, rate, and the policies that take it: one sweep each."""
    groups: dict[tuple[str, float], list[str]] = {}
    for (optimizer, policy), lr in rates.items():
        groups.setdefault((optimizer, lr), []).append(policy)
    for (optimizer, lr), policies in sorted(groups.items()):
        yield optimizer, lr, policies


def freeze(rows: pl.DataFrame, path: Path) -> None:
    """Write the rows, without what says nothing outside of the machine."""
    kept = rows.drop(_DROPPED, strict=False).with_columns(pl.col("status").cast(pl.String))
    kept = kept.select([column for column in kept.columns if not kept[column].is_null().all()])
    kept.sort("study", "optimizer", "policy", "lr", "seed").write_csv(path)


# -- reading ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One policy of a study.

    Args:
        name: Its name.
        lr: Its rate; None for one that is composed.
        tier: Tier of the ranking.
        reached: Seeds that reached the target.
        n: Seeds.
        steps: Median steps in all, with its interval.
        speed_up: Times sooner than the default, by seed; the tuning left out.
        counted: The same with the tuning counted.
        tuning: Steps of its tuning, in the median.
        test_accuracy: Median where the training ended.
        each: Steps to the target by seed; infinite for a miss.
    """

    name: str
    lr: float | None
    tier: int
    reached: int
    n: int
    steps: st.Estimate
    speed_up: st.Estimate
    counted: st.Estimate
    tuning: int
    test_accuracy: float
    each: tuple[float, ...]


def stage(rows: pl.DataFrame, *names: str) -> pl.DataFrame:
    """The rows of some stages."""
    return rows.filter(pl.col("study").str.split("/").list.last().is_in(names))


def compared(rows: pl.DataFrame) -> list[Row]:
    """Every policy beside the default, the best first.

    Speed-ups are medians over seeds with the interval of :func:`lrbench_pl.analysis.statistics.speed_up`. The tuning of
    a policy is all steps of its tuning runs, of ``auto`` what it gave up.
    """
    default = stage(rows, "default").with_columns(pl.lit("the default").alias("policy"))
    shown = pl.concat([default, stage(rows, "run", "auto")])
    tuning = dict(stage(rows, "tune").group_by("policy").agg(pl.col("steps_run").sum()).rows())
    base = _outcomes(default)
    found = []
    for place in rank(shown, by=["policy"]).to_dicts():
        mine = shown.filter(pl.col("policy") == place["policy"]).sort("seed")
        steps, hit = _outcomes(mine)
        if place["policy"] == "auto":
            given_up = [float(spent) for spent in mine["tuning_steps"]]
            alone, whole = [step - spent for step, spent in zip(steps, given_up, strict=True)], steps
        else:
            given_up = [float(tuning.get(place["policy"], 0))]
            alone, whole = steps, [step + given_up[0] for step in steps]
        found.append(
            Row(
                name=place["policy"],
                lr=None if place["policy"] == "auto" else mine["lr"][0],
                tier=place["tier"],
                reached=sum(hit),
                n=len(hit),
                steps=st.Estimate(place["median_steps"], place["median_low"], place["median_high"], len(hit)),
                speed_up=st.speed_up(*base, alone, hit, rng=0, paired=True),
                counted=st.speed_up(*base, whole, hit, rng=0, paired=True),
                tuning=round(statistics.median(given_up)),
                test_accuracy=statistics.median(mine["test_accuracy"].to_list()),
                each=tuple(step if ok else math.inf for step, ok in zip(steps, hit, strict=True)),
            )
        )
    return found


def _outcomes(rows: pl.DataFrame) -> tuple[list[float], list[bool]]:
    """By seed: steps to the target, or those run in vain, and whether it was reached."""
    rows = rows.sort("seed")
    hit = [steps is not None for steps in rows["steps_to_target"]]
    run = rows.select(pl.coalesce("steps_to_target", "steps_run")).to_series().to_list()
    return [float(steps) for steps in run], hit


def table(rows: pl.DataFrame) -> list[str]:
    """The table of a study in Markdown, with what it rests on."""
    first = stage(rows, "default").row(0, named=True)
    aims, runs = stage(rows, "target"), stage(rows, "default", "run", "auto")
    lines = [
        f"{first['dataset']}/{first['model']}, budget {first['max_steps']} steps, "
        f"target {first['target_accuracy']:.4f}, seeds {_seeds(runs)}.",
    ]
    if len(aims):
        test = statistics.median(aims["test_accuracy"].to_list())
        lines.append(
            f"Target: the median final accuracy of `{first['policy']}` at {first['lr']:g} on seeds {_seeds(aims)}: "
            f"{aims['final_accuracy'].min():.4f} to {aims['final_accuracy'].max():.4f}; on the test set {test:.4f}."
        )
    lines += [
        "",
        "| tier | policy | rate | reached | steps, median [95 %] | times sooner | tuning counted | tuning | test |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in compared(rows):
        name = f"**{row.name}**: `{first['policy']}`" if row.name == "the default" else f"`{row.name}`"
        lines.append(
            f"| {row.tier} | {name} | {'' if row.lr is None else f'{row.lr:g}'} | {row.reached}/{row.n} "
            f"| {spread(row.steps, '.0f')} | {spread(row.speed_up, '.2f')} | {spread(row.counted, '.2f')} "
            f"| {row.tuning} | {row.test_accuracy:.4f} |"
        )
    return lines


def grid(rows: pl.DataFrame) -> list[str]:
    """Policies by optimizers in Markdown: median steps to the target, or how many of the seeds reached it; the rate."""
    optimizers, policies, medians = _medians(rows)
    lines = [f"| policy | {' | '.join(optimizers)} |", "|---" * (len(optimizers) + 1) + "|"]
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
    """Optimizers and policies, the best first, and the median steps of each pair; infinite for a miss."""
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
    """An estimate with its interval, if it has one."""

    def say(value: float) -> str:
        return "missed" if math.isinf(value) and form == ".0f" else "∞" if math.isinf(value) else f"{value:{form}}"

    if estimate.value is None:
        return "–"
    shown = say(estimate.value)
    if estimate.low is None or estimate.high is None:
        return shown
    return f"{shown} [{say(estimate.low)}, {say(estimate.high)}]"


def stability(rows: pl.DataFrame) -> list[str]:
    """How often a ranking by some of the seeds names the winner that all seeds name, in Markdown.

    All sets of that many seeds are counted. A winner has the smallest median of steps; of equals each gets its share.
    """
    runs = stage(rows, "run", "auto")
    steps: dict[str, dict[int, float]] = {}
    for policy, seed, at in runs.select("policy", "seed", "steps_to_target").rows():
        steps.setdefault(policy, {})[seed] = math.inf if at is None else float(at)
    seeds = sorted({seed for each in steps.values() for seed in each})
    best = _winners(steps, seeds)
    lines = [f"All {len(seeds)} seeds name {' and '.join(f'`{name}`' for name in sorted(best))}.", ""]
    lines += ["| seeds | name the same winner | policies named |", "|---|---|---|"]
    for n in range(1, len(seeds) + 1):
        named = [_winners(steps, chosen) for chosen in itertools.combinations(seeds, n)]
        right = statistics.fmean(len(each & best) / len(each) for each in named)
        lines.append(f"| {n} | {right:.0%} | {len(set().union(*named))} |")
    return lines


def _winners(steps: dict[str, dict[int, float]], seeds: Sequence[int]) -> set[str]:
    medians = {policy: statistics.median(each[seed] for seed in seeds) for policy, each in steps.items()}
    return {policy for policy, median in medians.items() if median == min(medians.values())}


def figure(rows: pl.DataFrame, path: Path) -> None:
    """Steps to the target by policy: a dot for each seed, a bar at the median, a cross at the budget for a miss."""
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
                f" {misses} missed", (budget, y), va="center", fontsize=8, color=colour, annotation_clip=False
            )
        if row.name == "the default" and row.steps.value is not None and math.isfinite(row.steps.value):
            axes.axvline(row.steps.value, color=colour, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(found)), [row.name for row in reversed(found)])
    axes.set(xlabel="optimizer steps to the target (auto: tuning counted)", xlim=(0, budget * 1.02))
    axes.grid(axis="x", alpha=0.2)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    picture.savefig(path, dpi=150)
    pyplot.close(picture)


def heat(rows: pl.DataFrame, path: Path) -> None:
    """Median steps to the target by policy and optimizer."""
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
            dark = math.isfinite(value) and scale(value) > 0.55
            text = f"{value:.0f}" if math.isfinite(value) else "missed"
            axes.text(x, y, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axes.set_xticks(range(len(optimizers)), optimizers)
    axes.set_yticks(range(len(policies)), policies)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_title("median steps to the target, each pair at its best rate", fontsize=10)
    picture.savefig(path, dpi=150)
    pyplot.close(picture)


# -- the command -----------------------------------------------------------------------------------------------


def blocks(rows: pl.DataFrame) -> str:
    """What stands between the marks of a study's README."""
    if len(set(stage(rows, "run")["optimizer"])) > 1:
        return "\n".join(grid(rows))
    return "\n".join(table(rows))


def written(readme: str, text: str) -> str:
    r"""A README with the text between its marks.

    Raises:
        ValueError: If it has no marks.

    Example:
        >>> written(f"a\n\n{BEGIN}\n\nold\n\n{END}\n", "new")
        'a\n\n<!-- from results.csv -->\n\nnew\n\n<!-- end -->\n'
    """
    found, count = re.subn(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n\n{text}\n\n{END}", readme, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"expected one {BEGIN} … {END}, found {count}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a study, or print its table."""
    names = sorted(path.parent.name for path in HERE.glob("*/study.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("overrides", nargs="*", help="as run.py takes them")
    parser.add_argument("--budget", type=float, help="share of the paper's budget; by default that of the protocol")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"some of {', '.join(STAGES)} (default all)")
    parser.add_argument("--launcher", default="joblib", help="Hydra's launcher (default joblib)")
    parser.add_argument("--work", type=Path, help="folder of the sweeps (default multirun/NAME)")
    parser.add_argument("--table", action="store_true", help="print the table of the frozen rows and end")
    given = parser.parse_intermixed_args(arguments)
    folder = HERE / given.name
    results = folder / "results.csv"
    if given.table:
        print(blocks(pl.read_csv(results)))
        return
    protocol = Protocol.read(folder / "study.yaml")
    budget = protocol.budget if given.budget is None else given.budget
    if not 0 < budget <= 1:
        parser.error(f"--budget must lie in (0, 1], got {budget}")
    stages = tuple(given.stages.split(","))
    if unknown := set(stages) - set(STAGES):
        parser.error(f"--stages must be of {', '.join(STAGES)}, got {unknown.pop()}")
    work = given.work or Path("multirun") / given.name
    study = Study(given.name, protocol, budget, work, given.launcher, tuple(given.overrides), stages)
    freeze(study.run(), results)
    rows = pl.read_csv(results)
    draw = heat if len(protocol.optimizers) > 1 else figure
    draw(rows, folder / "figure.png")
    readme = folder / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8"), blocks(rows)), encoding="utf-8")
    print(blocks(rows))


if __name__ == "__main__":
    main()
