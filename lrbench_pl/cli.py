"""The command ``lrbench``: what to do with runs once they are there."""

from __future__ import annotations

import shutil
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
    form: Annotated[str, typer.Option("--format", help="table, csv, json or markdown.")] = "table",
    wandb: Annotated[str, typer.Option(help="W&B project that gets ranking, figures and bands as one run.")] = "",
) -> None:
    """Rank policies: by share of runs that reached the target, then median steps to it, then best accuracy."""
    from lrbench_pl.analysis.load import AnalysisError, load_runs
    from lrbench_pl.analysis.ranking import equal_policies, rank
    from lrbench_pl.analysis.show import honest_about_few, render

    if form not in ("table", "csv", "json", "markdown"):
        raise AnalysisError(f"--format must be table, csv, json or markdown, got {form!r}")
    runs = load_runs(folders)
    ranking = rank(runs.table, [key.strip() for key in by.split(",") if key.strip()] or None)
    print(render(ranking, form))  # type: ignore[arg-type]
    said: list[str] = []
    for row in runs.table.filter(runs.table["status"].is_in(["failed", "stopped"])).to_dicts():
        said.append(f"{row['status']}: {row['policy']} (seed {row['seed']}) in {row['folder']}: {row['message']}")
    said += [f"unreadable: {skipped.path}: {skipped.reason}" for skipped in runs.skipped]
    for names in equal_policies(runs.table):
        said.append(f"the same policy over this budget: {', '.join(names)}")
    counted = f"{runs.table.height} runs"
    counts = {name: int((runs.table["status"] == name).sum()) for name in ("failed", "stopped")}
    counts["unreadable"] = len(runs.skipped)
    counted += "".join(f", {n} {name}" for name, n in counts.items() if n)
    target = runs.table["target_accuracy"].unique().to_list()
    goal = f" to {target[0]:g}" if len(target) == 1 and target[0] is not None else ""
    print(f"\n{counted}; steps{goal}, medians; ∞: half of the runs or more missed", file=sys.stderr)
    said = [*honest_about_few(ranking), *said]
    for line in said:
        print(line, file=sys.stderr)
    if wandb:
        from lrbench_pl.analysis.publish import publish

        print(
            publish(runs.table, wandb, [key.strip() for key in by.split(",") if key.strip()] or None), file=sys.stderr
        )


@app.command("report")
def report_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of sweeps or runs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("report.html"),
    by: Annotated[str, typer.Option(help="Columns that make a row, such as optimizer,policy.")] = "",
) -> None:
    """Write one page with the ranking and every figure; it opens anywhere, without a network."""
    from lrbench_pl.analysis.load import load_runs
    from lrbench_pl.analysis.report import write_report

    runs = load_runs(folders)
    write_report(runs, output, [key.strip() for key in by.split(",") if key.strip()] or None)
    print(f"{runs.table.height} runs in {output}")


_Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE...", help="What run.py takes; several values make several runs."),
]


@app.command("preview")
def preview_command(
    overrides: _Overrides = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="FILE.html or FILE.png; else text.")] = None,
) -> None:
    """Show the learning rate over the budget, without any training."""
    from lrbench_pl.analysis import preview

    suffix = output.suffix.lower() if output is not None else ""
    if output is not None and suffix not in (".html", ".png"):
        raise ValueError(f"--output must end in .html or .png, got {str(output)!r}")
    curves = [preview.curve(job) for job in preview.jobs(overrides or [])]
    if output is None:
        print(preview.draw(curves, width=min(100, shutil.get_terminal_size().columns)))
    elif suffix == ".png":
        preview.write_png(curves, output)
    else:
        from lrbench_pl.analysis.report import write_preview

        write_preview(curves, output)
    if output is not None:
        print(f"{len(curves)} {'curve' if len(curves) == 1 else 'curves'} in {output}")
    for names in preview.equal_curves(curves):
        print(f"the same policy over this budget: {', '.join(names)}", file=sys.stderr)


@app.command("lint")
def lint_command(
    overrides: _Overrides = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 for warnings too.")] = False,
) -> None:
    """Look for what is wrong with policies in their budget, each finding with its fix; exit code 1 for errors."""
    from lrbench_pl.analysis import lint, preview

    jobs = preview.jobs(overrides or [])
    levels: list[str] = []
    for job in jobs:
        for finding in lint.lint(job.plan):
            levels.append(finding.level)
            print(f"{job.name}: {finding.level} [{finding.rule}] {finding}")
    for names in preview.equal_curves([preview.curve(job) for job in jobs]):
        print(f"the same policy over this budget: {', '.join(names)}")
    errors, warnings = levels.count("error"), levels.count("warning")
    print(f"{len(jobs)} checked: {errors} errors, {warnings} warnings", file=sys.stderr)
    if errors or (strict and warnings):
        raise typer.Exit(1)


def main() -> None:
    """Run a command; what a user did wrong is one line and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
