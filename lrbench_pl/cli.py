"""The command ``lrbench``: what to do with runs once they are there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="lrbench",
    help="Which learning-rate policy reaches the accuracy you need, how soon, and how sure is that?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def lrbench() -> None:
    """Which learning-rate policy reaches the accuracy you need, how soon, and how sure is that?"""


@app.command("rank")
def rank_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of sweeps or runs.")],
    by: Annotated[str, typer.Option(help="Columns that make a row, such as optimizer,policy.")] = "",
    metric: Annotated[str, typer.Option(help="cost (steps), utility (accuracy) or robustness (loss gap).")] = "cost",
    baseline: Annotated[str, typer.Option(help="Policy that the others are compared with.")] = "",
    target: Annotated[float | None, typer.Option(help="Judge the histories at this target instead.")] = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, json or markdown.")] = "table",
) -> None:
    """Rank policies, with 95 % intervals and tiers of those that cannot be told apart.

    By share of runs that reached the target, then median steps to it, then best accuracy.
    """
    from lrbench_pl.analysis.history import at_target
    from lrbench_pl.analysis.load import AnalysisError, load_runs
    from lrbench_pl.analysis.ranking import rank
    from lrbench_pl.analysis.show import FORMATS, remarks, render

    if form not in FORMATS:
        raise AnalysisError(f"--format must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {form!r}")
    runs = load_runs(folders)
    if target is not None:
        runs = at_target(runs, target)
    keys = [key.strip() for key in by.split(",") if key.strip()] or None
    ranking = rank(runs.table, keys, metric, baseline or None)  # type: ignore[arg-type]
    print(render(ranking, form))
    print("", *remarks(ranking, runs), sep="\n", file=sys.stderr)


def main() -> None:
    """Run a command; what a user did wrong is one line and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
