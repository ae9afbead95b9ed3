"""The command ``lrbench``: what to do with runs once they are there."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrbench_pl import __version__
from lrbench_pl.cli import db as cli_db
from lrbench_pl.words import counted

if TYPE_CHECKING:
    from lrbench_pl.analysis.load import Runs

app = typer.Typer(
    name="lrbench",
    help="Which learning-rate policy reaches the accuracy you need, how soon, and how sure is that?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"lrbench_pl {__version__}")
        raise typer.Exit


@app.callback()
def lrbench(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Which learning-rate policy reaches the accuracy you need, how soon, and how sure is that?"""


@app.command(
    "run",
    add_help_option=False,  # --help, too, is Hydra's
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
)
def run_command(context: typer.Context) -> None:
    """Train once, or a sweep with -m; lrbench run --help lists groups and options."""
    from lrbench_pl.cli.run import main

    main(context.args)


_Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of sweeps or runs.")]
_By = Annotated[str, typer.Option(help="Columns or settings that make a row: policy,optimizer.weight_decay.")]
_Baseline = Annotated[str, typer.Option(help="Policy that the others are compared with.")]
_Target = Annotated[float | None, typer.Option(help="Judge the histories at this target instead.")]


@app.command("rank")
def rank_command(
    folders: _Folders,
    by: _By = "",
    metric: Annotated[str, typer.Option(help="cost (steps), utility (accuracy) or robustness (loss gap).")] = "cost",
    baseline: _Baseline = "",
    target: _Target = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, json or markdown.")] = "table",
    wandb: Annotated[str, typer.Option(help="W&B project that gets ranking, figures and bands as one run.")] = "",
) -> None:
    """Rank policies, with 95 % intervals and tiers of those that cannot be told apart.

    By share of runs that reached the target, then median steps to it, then best value.
    """
    from lrbench_pl.analysis.load import AnalysisError
    from lrbench_pl.analysis.ranking import rank
    from lrbench_pl.analysis.show import FORMATS, remarks, render, the_monitor

    if form not in FORMATS:
        raise AnalysisError(f"--format must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {form!r}")
    runs, keys = _judged(folders, target), _keys(by)
    ranking = rank(runs.table, keys, metric, baseline or None)  # type: ignore[arg-type]
    print(render(ranking, form, monitor=the_monitor(runs.table)))
    print("", *remarks(ranking, runs), sep="\n", file=sys.stderr)
    if wandb:
        from lrbench_pl.cli.publish import publish

        print(publish(runs.table, wandb, keys), file=sys.stderr)


@app.command("report")
def report_command(
    folders: _Folders,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("report.html"),
    by: _By = "",
    baseline: _Baseline = "",
    target: _Target = None,
) -> None:
    """Write one page with the ranking and every figure; it opens anywhere, without a network."""
    from lrbench_pl.analysis.report import write_report

    runs = _judged(folders, target)
    write_report(runs, output, _keys(by), baseline or None)
    print(f"{counted(runs.table.height, 'run')} in {output}")


def _judged(folders: list[Path], target: float | None) -> Runs:
    """The runs, at another target if one is given."""
    from lrbench_pl.analysis.history import at_target
    from lrbench_pl.analysis.load import load_runs

    runs = load_runs(folders)
    return runs if target is None else at_target(runs, target)


def _keys(by: str) -> list[str] | None:
    """The columns of ``--by``; None if it names none."""
    return [key.strip() for key in by.split(",") if key.strip()] or None


_Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE...", help="What lrbench run takes; several values make several runs."),
]
_ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", metavar="DIR", help="Folder of your own YAML files, as for lrbench run.")
]


@app.command("preview")
def preview_command(
    overrides: _Overrides = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="FILE.html or FILE.png; else text.")] = None,
    config_dir: _ConfigDir = None,
) -> None:
    """Show the learning rate over the budget, without any training."""
    from lrbench_pl.cli import preview

    suffix = output.suffix.lower() if output is not None else ""
    if output is not None and suffix not in (".html", ".png"):
        raise ValueError(f"--output must end in .html or .png, got {str(output)!r}")
    curves = [preview.curve(job) for job in preview.jobs(_with_own(config_dir, overrides))]
    if output is None:
        print(preview.draw(curves, width=min(100, shutil.get_terminal_size().columns)))
    elif suffix == ".png":
        preview.write_png(curves, output)
    else:
        from lrbench_pl.analysis.report import write_preview

        write_preview(curves, output)
    if output is not None:
        print(f"{counted(len(curves), 'curve')} in {output}")
    for names in preview.equal_curves(curves):
        print(f"the same policy over this budget: {', '.join(names)}", file=sys.stderr)


@app.command("lint")
def lint_command(
    overrides: _Overrides = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 for warnings too.")] = False,
    config_dir: _ConfigDir = None,
) -> None:
    """Look for what is wrong with policies in their budget, each finding with its fix; exit code 1 for errors."""
    from lrbench_pl.cli import preview
    from lrbench_pl.runs import lint

    jobs = preview.jobs(_with_own(config_dir, overrides))
    levels: list[str] = []
    for job in jobs:
        for finding in lint.lint(job.plan):
            levels.append(finding.level)
            print(f"{job.name}: {finding.level} [{finding.rule}] {finding}")
    for names in preview.equal_curves([preview.curve(job) for job in jobs]):
        print(f"the same policy over this budget: {', '.join(names)}")
    errors, warnings = levels.count("error"), levels.count("warning")
    found = f"{counted(errors, 'error')}, {counted(warnings, 'warning')}"
    print(f"{len(jobs)} checked: {found}", file=sys.stderr)
    if errors or (strict and warnings):
        raise typer.Exit(1)


def _with_own(config_dir: Path | None, overrides: list[str] | None) -> list[str]:
    """The overrides, with a folder of the user's own before ``conf/``; his modules lie in the working directory."""
    from lrbench_pl.cli.run import see_working_directory

    see_working_directory()
    if config_dir is None:
        return overrides or []
    if not config_dir.is_dir():
        raise ValueError(f"--config-dir must be a folder, got {str(config_dir)!r}, which is none")
    url = f"file://{config_dir.absolute()}".replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.searchpath=['{url}']", *(overrides or [])]


@app.command("verify")
def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep or a run.")],
    policy: Annotated[str | None, typer.Option(help="Name of the policy, where there are several.")] = None,
    where: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Which runs: optimizer=adam.")] = None,
    share: Annotated[float, typer.Option("--share", "-q", help="The probability in question.")] = 0.8,
    confidence: Annotated[float, typer.Option(help="Of the decision.")] = 0.95,
    most: Annotated[int | None, typer.Option("--run", metavar="N", help="Train further seeds, N in all.")] = None,
) -> None:
    """Decide whether a policy reaches its target with probability q; exit code 0 if confirmed, else 3."""
    from lrbench_pl.analysis.load import AnalysisError
    from lrbench_pl.analysis.sequential import seeds_to_confirm
    from lrbench_pl.cli.verify import verify

    wanted = {} if policy is None else {"policy": policy}
    for each in where or ():
        name, equals, value = each.partition("=")
        if not equals:
            raise AnalysisError(f"--where must be KEY=VALUE, such as optimizer=adam, got {each!r}")
        wanted[name] = value
    seeds, decision = verify(folder, wanted, share, confidence, most, lambda line: print(line, file=sys.stderr))
    words = f"{seeds.claim} with probability at least {share:g}"
    seen = f"{decision.reached} of {counted(decision.seeds, 'seed')}"
    if decision.verdict == "undecided":
        more = seeds_to_confirm(decision.reached, decision.seeds, share, confidence)
        print(f"undecided: {words}: {seen} reached it; {more} more in a row would confirm it (--run trains them)")
    else:
        left = f", the other {len(seeds.runs) - decision.seeds} not needed" if len(seeds.runs) > decision.seeds else ""
        print(f"{decision.verdict} at confidence {confidence:g}: {words}: {seen} reached it{left}")
    if decision.verdict != "confirmed":
        raise typer.Exit(3)


app.add_typer(cli_db.app)


def main() -> None:
    """Run a command; what a user did wrong is one line and exit code 2."""
    try:
        app()
    except Exception as error:
        words = _said(error)
        if words is None:
            raise
        print(f"error: {words}", file=sys.stderr)
        sys.exit(2)


def _said(error: Exception) -> str | None:
    """A mistake of the user's in one line; None for any other error."""
    if "hydra" in sys.modules:  # a command that composes a configuration: the others do without
        from lrbench_pl.runs.config_errors import explain

        if (words := explain(error)) is not None:
            return words
    return " ".join(str(error).split()) if isinstance(error, (ValueError, OSError)) else None
