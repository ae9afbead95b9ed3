"""A study of policies: from a protocol in YAML to frozen results, a table and a figure.

    python experiments/study.py NAME [--budget 0.05] [--stages default,auto] [--work multirun/NAME] [OVERRIDE...]
    python experiments/study.py NAME --table [--write]      # from the frozen results: nothing is trained

``experiments/NAME/study.yaml`` is the protocol (see :class:`Protocol`). Its stages are sweeps in ``--work``:

``target``   the default policy over the whole budget, on seeds of its own: its median final value is the target
``default``  the default policy, as it is, to the target
``auto``     the policy composed during training, to the target
``tune``     every policy (with every optimizer) at every rate over a short budget, on seeds of its own: the best rate
``run``      every policy at its best rate, to the target
``short``    those whose tuning run reached the target, stretched over that short budget, to the target

Interrupted, the same command resumes it; ``--stages`` runs only some of them, and ``target`` always. At the end the
results of all stages are frozen in ``results.csv`` (the column ``study`` has the stage), the checks in ``curves.csv``
(see ``by_target.py``), the figure is drawn, and the table is written into the study's ``README.md``. Overrides are
Hydra's, such as ``dataset.root=PATH``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import polars as pl
import yaml
from by_target import freeze_curves
from tables import blocks, figure, heat, sign, written

from lrbench_pl.analysis.load import load_runs

HERE = Path(__file__).resolve().parent
STAGES = ("default", "auto", "tune", "run", "short")
_DROPPED = (
    "folder",
    "run_id",
    "policy_id",
    "policy_repr",
    "settings",
    "message",
    "versions",
    "shared_with",
    "confirmations",
)


@dataclass(frozen=True)
class Protocol:
    """Protocol of a study.

    Args:
        workload: Overrides that select it.
        max_steps: The whole budget in optimizer steps, that of the paper.
        budget: Share of it that this study runs.
        checks: Checks within the budget.
        default: The workload's default policy, whose rate is that of the first optimizer.
        optimizers: Names and own rates.
        policies: Names in ``conf/lr_policy``.
        factors: Rates to try, in units of the optimizer's own.
        horizon: Budget of a tuning run, as a share of the study's.
        target_seeds: Seeds that fix the target; none if ``target`` is given.
        tune_seeds: Seeds of the tuning runs.
        seeds: Seeds of the results that are compared.
        auto: Whether ``lr_policy=auto`` takes part.
        target: A target that is fixed beforehand.
        options: Further overrides of single policies, such as ``{"onecycle": ["momentum_policy=onecycle"]}``.
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
    options: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        used = [*self.target_seeds, *self.tune_seeds, *self.seeds]
        if len(set(used)) < len(used):
            raise ValueError("expected target_seeds, tune_seeds and seeds that have none in common")
        if unknown := self.options.keys() - set(self.policies):
            raise ValueError(f"expected options of policies that take part, got {', '.join(sorted(unknown))}")

    @classmethod
    def read(cls, path: Path) -> Protocol:
        """Read a protocol from a YAML file; lists become tuples."""
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        if unknown := given.keys() - {each.name for each in fields(cls)}:
            raise ValueError(f"{path}: unknown: {', '.join(sorted(unknown))}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})

    def steps(self, budget: float) -> tuple[int, int]:
        """Return the optimizer steps of a budget and between its checks; a whole number of checks."""
        every = max(1, round(budget * self.max_steps / self.checks))
        return every * self.checks, every

    def sweeps(self, policies: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield a suffix for the folder and the overrides of each sweep of policies: one for those without options."""
        plain = [policy for policy in policies if policy not in self.options]
        if plain:
            yield "", (f"lr_policy={','.join(plain)}",)
        for policy in policies:
            if policy in self.options:
                yield f"-{policy}", (f"lr_policy={policy}", *self.options[policy])


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
        stages: What is run in addition to ``target``.
    """

    name: str
    protocol: Protocol
    budget: float
    work: Path
    launcher: str
    overrides: tuple[str, ...]
    stages: tuple[str, ...] = STAGES

    def run(self) -> pl.DataFrame:
        """Train what is missing and return the results of all stages."""
        protocol = self.protocol
        first, own = next(iter(protocol.optimizers.items()))
        default = (f"lr_policy={protocol.default}", f"optimizer={first}", f"lr={own:g}")
        rows = []
        target = protocol.target
        if target is None:
            whole = ("target=null", "stop_at_target=false")
            rows.append(self.sweep("target", protocol.target_seeds, self.budget, *default, *whole))
            target = final(rows[0])
        print(f"target {target:.4f}", flush=True)
        aim = f"target={target!r}"
        if "default" in self.stages:
            rows.append(self.sweep("default", protocol.seeds, self.budget, *default, aim))
        if protocol.auto and "auto" in self.stages:
            auto = ("lr_policy=auto", f"optimizer={first}", f"lr={own:g}", aim)
            rows.append(self.sweep("auto", protocol.seeds, self.budget, *auto))
        if not {"tune", "run", "short"} & set(self.stages):
            return pl.concat(rows)
        tuned = self.tune()
        rows.append(tuned)
        best = best_rates(tuned)
        met = best_rates(tuned.filter(pl.col("final_value").mul(sign(tuned)) >= target * sign(tuned)))
        for stage, budget, rates in (("run", 1.0, best), ("short", protocol.horizon, met)):
            for optimizer, lr, policies in together(rates) if stage in self.stages else ():
                names = [policy.partition(" + ")[0] for policy in policies]  # "onecycle + momentum onecycle"
                for suffix, chosen in protocol.sweeps(names):
                    given = (*chosen, f"optimizer={optimizer}", f"lr={lr!r}", aim)
                    folder = f"{stage}/{optimizer}-{lr:g}{suffix}"
                    rows.append(self.sweep(stage, protocol.seeds, self.budget * budget, *given, folder=folder))
        return pl.concat(rows)

    def tune(self) -> pl.DataFrame:
        """Train the tuning runs and return their results."""
        protocol, rows = self.protocol, []
        share = self.budget * protocol.horizon
        for optimizer, own in protocol.optimizers.items():
            rates = ",".join(f"{own * factor:.3g}" for factor in protocol.factors)
            for suffix, chosen in protocol.sweeps(protocol.policies):
                given = ("target=null", "stop_at_target=false", *chosen, f"optimizer={optimizer}", f"lr={rates}")
                folder = f"tune/{optimizer}{suffix}"
                rows.append(self.sweep("tune", protocol.tune_seeds, share, *given, folder=folder))
        return pl.concat(rows)

    def sweep(self, stage: str, seeds: Sequence[int], budget: float, *given: str, folder: str = "") -> pl.DataFrame:
        """Run one sweep and return its results; finished runs are not repeated."""
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
    """Return the median final value; of an even number of runs the worse of the middle two, the value of a check."""
    values = [sign(rows) * value for value in rows["final_value"]]
    return sign(rows) * statistics.median_low(values)


def best_rates(tuned: pl.DataFrame) -> dict[tuple[str, str], float]:
    """Return the rate with the best median final value for every optimizer and policy; a diverged run is worst.

    Example:
        >>> rows = {"optimizer": ["sgd"] * 3, "policy": ["fix"] * 3, "lr": [0.1, 0.2, 0.4], "seed": [1] * 3,
        ...     "status": ["missed", "missed", "diverged"], "final_value": [0.8, 0.9, None]}
        >>> best_rates(pl.DataFrame(rows))
        {('sgd', 'fix'): 0.2}
        >>> best_rates(pl.DataFrame(rows | {"mode": ["min"] * 3}))
        {('sgd', 'fix'): 0.1}
    """
    value = pl.when(pl.col("status").cast(pl.String) != "diverged").then(pl.col("final_value") * sign(tuned))
    medians = tuned.group_by("optimizer", "policy", "lr").agg(value.fill_null(-math.inf).median().alias("value"))
    best = medians.sort(["value", "lr"], descending=[True, False]).unique(["optimizer", "policy"], keep="first")
    return {(row["optimizer"], row["policy"]): row["lr"] for row in best.sort("optimizer", "policy").to_dicts()}


def together(rates: dict[tuple[str, str], float]) -> Iterator[tuple[str, float, list[str]]]:
    """Yield each optimizer and rate with the policies that use them: one sweep each."""
    groups: dict[tuple[str, float], list[str]] = {}
    for (optimizer, policy), lr in rates.items():
        groups.setdefault((optimizer, lr), []).append(policy)
    for (optimizer, lr), policies in sorted(groups.items()):
        yield optimizer, lr, policies


def freeze(rows: pl.DataFrame, path: Path) -> None:
    """Write the results, without columns that mean nothing on another machine."""
    if sign(rows) > 0:
        rows = rows.drop("mode", strict=False)
    kept = rows.drop(_DROPPED, strict=False).with_columns(pl.col("status").cast(pl.String))
    kept = kept.select([column for column in kept.columns if not kept[column].is_null().all()])
    kept.sort("study", "optimizer", "policy", "lr", "seed").write_csv(path)


# -- the command -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a study, or print its table."""
    names = sorted(path.parent.name for path in HERE.glob("*/study.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("overrides", nargs="*", help="as for lrbench run")
    parser.add_argument("--budget", type=float, help="share of the paper's budget; by default that of the protocol")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"some of {', '.join(STAGES)} (default all)")
    parser.add_argument("--launcher", default="joblib", help="Hydra's launcher (default joblib)")
    parser.add_argument("--work", type=Path, help="folder of the sweeps (default multirun/NAME)")
    parser.add_argument("--table", action="store_true", help="print the table of the frozen results")
    parser.add_argument("--write", action="store_true", help="with --table: write it into the README too")
    given = parser.parse_intermixed_args(arguments)
    folder = HERE / given.name
    results = folder / "results.csv"
    if given.table:
        write_table(folder, pl.read_csv(results), given.write)
        return
    protocol = Protocol.read(folder / "study.yaml")
    budget = protocol.budget if given.budget is None else given.budget
    if not 0 < budget <= 1:
        parser.error(f"--budget must lie in (0, 1], got {budget}")
    stages = tuple(given.stages.split(","))
    if unknown := set(stages) - set(STAGES):
        parser.error(f"--stages must be of {', '.join(STAGES)}, got {unknown.pop()}")
    if "default" not in stages:
        parser.error(f"--stages must have default, with which the others are compared, got {given.stages}")
    work = given.work or Path("multirun") / given.name
    study = Study(given.name, protocol, budget, work, given.launcher, tuple(given.overrides), stages)
    found = study.run()
    freeze(found, results)
    freeze_curves(found, folder / "curves.csv")
    rows = pl.read_csv(results)
    draw = heat if len(protocol.optimizers) > 1 else figure
    draw(rows, folder / "figure.png")
    write_table(folder, rows)


def write_table(folder: Path, rows: pl.DataFrame, into_readme: bool = True) -> None:
    """Print the table of a study and write it into its README."""
    text = blocks(rows)
    print(text)
    if into_readme:
        readme = folder / "README.md"
        readme.write_text(written(readme.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
