"""The command ``lrbench``."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrbench_pl import __version__
from lrbench_pl.cli import db as cli_db
from lrbench_pl.words import clean, counted

if TYPE_CHECKING:
    import polars as pl

    from lrbench_pl.analysis.load import Runs

_HELP = "Verify, rank and find learning-rate policies: which one reaches the target, how fast, and how certain is that?"

app = typer.Typer(
    name="lrbench",
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    if value:
        print(f"lrbench_pl {__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def lrbench(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Define the options of the command itself."""


@app.command(
    "run",
    add_help_option=False,  # --help is passed on to Hydra
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
)
def run_command(context: typer.Context) -> None:
    """Train once, or run a sweep with -m. `lrbench run --help` lists groups and options."""
    from lrbench_pl.cli.run import main

    main(context.args)


_Folders = Annotated[list[Path], typer.Argument(metavar="DIR", help="Folders of sweeps or runs.")]
_By = Annotated[
    str, typer.Option(help="Columns or settings that group the runs, such as policy,optimizer.weight_decay.")
]
_Baseline = Annotated[str, typer.Option(help="Policy to compare the others with.")]
_Target = Annotated[float | None, typer.Option(help="Judge the runs at another target, from their histories.")]


@app.command("rank")
def rank_command(
    folders: _Folders,
    by: _By = "",
    metric: Annotated[
        str, typer.Option(help="cost (steps), utility (accuracy) or robustness (test minus training loss).")
    ] = "cost",
    baseline: _Baseline = "",
    target: _Target = None,
    targets: Annotated[
        int | None,
        typer.Option(metavar="N", help="Show the speed-up over the baseline at N targets instead, from the histories."),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, json or markdown.")] = "table",
    wandb: Annotated[
        str, typer.Option(metavar="PROJECT", help="Also send ranking, figures and bands to this W&B project.")
    ] = "",
) -> None:
    """Rank policies, with 95 % intervals and tiers.

    Begins with the answer in one sentence, and the command that would decide what is open.

    Ordered by the share of runs that reached the target, then median steps to it, then best value.

    No policy in a tier is significantly worse than the tier's first.
    """
    from lrbench_pl.analysis.answer import answer_lines, answers
    from lrbench_pl.analysis.comparable import with_settings
    from lrbench_pl.analysis.notes import notes
    from lrbench_pl.analysis.ranking import default_keys, rank
    from lrbench_pl.analysis.show import render, the_monitor

    _check_format(form)
    runs, keys = _load(folders, target), _keys(by)
    ranking = rank(runs.table, keys, metric, baseline or None)  # type: ignore[arg-type]
    table = with_settings(runs.table, keys or default_keys(runs.table))
    width = shutil.get_terminal_size().columns
    if targets is not None:
        _print_by_target(replace(runs, table=table), ranking, baseline, targets, form, width)
    else:
        found = answers(table, ranking, baseline or None)
        lines = [line for each in found for line in answer_lines(each, table, width)]
        out = sys.stdout if form == "table" else sys.stderr  # the other formats are for programs
        print(*map(clean, lines), "", sep="\n", file=out)
        print(render(ranking, form, monitor=the_monitor(runs.table)))  # type: ignore[arg-type]
        print("", *map(clean, notes(ranking, runs)), sep="\n", file=sys.stderr)
    if wandb:
        from lrbench_pl.cli.publish import publish

        print(publish(runs.table, wandb, keys), file=sys.stderr)


def _print_by_target(runs: Runs, ranking: pl.DataFrame, baseline: str, number: int, form: str, width: int) -> None:
    """Print the speed-ups at several targets."""
    import textwrap

    from lrbench_pl.analysis.answer import CONSTANT
    from lrbench_pl.analysis.by_target import BUDGET_NOTE, STEPS_NOTE, by_target, columns_by_target, render_by_target
    from lrbench_pl.analysis.columns import group_keys
    from lrbench_pl.analysis.show import markdown, render_rows

    found = by_target(runs, ranking, group_keys(ranking), baseline or CONSTANT, number)
    if form == "table":
        print(render_by_target(found, width))
    elif form == "markdown":
        print(*(markdown(columns_by_target(found, name)) for name in ("speed_up", "budget_ratio")), sep="\n\n")
    else:
        print(render_rows(found.table, form))  # type: ignore[arg-type]
    notes = [STEPS_NOTE, BUDGET_NOTE, *(f"skipped: {each.path}: {each.reason}" for each in found.skipped)]
    lines = [line for note in notes for line in textwrap.wrap(clean(note), width)]
    print("", *lines, sep="\n", file=sys.stderr)


@app.command("report")
def report_command(
    folders: _Folders,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path("report.html"),
    by: _By = "",
    baseline: _Baseline = "",
    target: _Target = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Rewrite the page while a sweep runs; the open page reloads itself.")
    ] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="With --watch: time between two looks.")] = 5.0,
) -> None:
    """Write a self-contained page with the ranking and all figures; it needs no network."""
    from lrbench_pl.analysis.report import write_report
    from lrbench_pl.analysis.web_page import Live

    def write(live: Live | None = None) -> int:
        runs = _load(folders, target)
        write_report(runs, output, _keys(by), baseline or None, live)
        return runs.table.height

    if watch:
        from lrbench_pl.cli.watch import watch as watch_folders

        watch_folders(folders, write, output, every)
        return
    print(f"{counted(write(), 'run')} in {output}")


def _check_format(form: str) -> None:
    """Require a format of tables."""
    from lrbench_pl.analysis.load import AnalysisError
    from lrbench_pl.analysis.show import FORMATS

    if form not in FORMATS:
        raise AnalysisError(f"--format must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {form!r}")


def _load(folders: list[Path], target: float | None) -> Runs:
    """Load the runs, judged at another target if one is given."""
    from lrbench_pl.analysis.history import at_target
    from lrbench_pl.analysis.load import load_runs

    runs = load_runs(folders)
    return runs if target is None else at_target(runs, target)


def _keys(by: str) -> list[str] | None:
    """Return the columns of ``--by``; None if there are none."""
    return [key.strip() for key in by.split(",") if key.strip()] or None


_Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides as for lrbench run; several values give several runs."),
]
_ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", metavar="DIR", help="Folder of your own YAML files, as for lrbench run.")
]


@app.command("preview")
def preview_command(
    overrides: _Overrides = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write FILE.html or FILE.png instead of text.")
    ] = None,
    config_dir: _ConfigDir = None,
) -> None:
    """Show the learning rate over the budget, and momentum and weight decay if they have a policy, without training."""
    from lrbench_pl.cli import preview

    suffix = output.suffix.lower() if output is not None else ""
    if output is not None and suffix not in (".html", ".png"):
        raise ValueError(f"--output must end in .html or .png, got {str(output)!r}")
    curves = [preview.curve(run) for run in preview.planned_runs(_with_config_dir(config_dir, overrides))]
    if output is None:
        print(preview.draw(curves, width=min(100, shutil.get_terminal_size().columns)))
    elif suffix == ".png":
        preview.write_png(curves, output)
    else:
        from lrbench_pl.analysis.report import write_preview

        write_preview(preview.panels(curves), output)
    if output is not None:
        print(f"{counted(len(curves), 'curve')} in {output}")
    for names in preview.equal_curves(curves):
        print(f"the same policy over this budget: {', '.join(names)}", file=sys.stderr)


@app.command("lint")
def lint_command(
    overrides: _Overrides = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 for warnings too.")] = False,
    config_dir: _ConfigDir = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", metavar="CHECKPOINT", help="A checkpoint, or a run, from which the training would resume."
        ),
    ] = None,
) -> None:
    """Check policies for mistakes within their budget, without training. Exit code 1 for errors."""
    from lrbench_pl.cli import preview
    from lrbench_pl.runs import lint
    from lrbench_pl.runs.extend import resumed_findings

    runs = preview.planned_runs(_with_config_dir(config_dir, overrides))
    levels: list[str] = []
    for run in runs:
        for finding in [*lint.lint(run.plan), *([] if resume is None else resumed_findings(run.plan, resume))]:
            levels.append(finding.level)
            print(f"{run.name}: {finding.level} [{finding.rule}] {finding}")
    for names in preview.equal_curves([preview.curve(run) for run in runs]):
        print(f"the same policy over this budget: {', '.join(names)}")
    errors, warnings = levels.count("error"), levels.count("warning")
    print(f"{len(runs)} checked: {counted(errors, 'error')}, {counted(warnings, 'warning')}", file=sys.stderr)
    if errors or (strict and warnings):
        raise typer.Exit(1)


def _with_config_dir(config_dir: Path | None, overrides: list[str] | None) -> list[str]:
    """Add the user's folder to the search path, and the working directory to the import path."""
    from lrbench_pl.cli.run import import_from_working_directory

    import_from_working_directory()
    if config_dir is None:
        return overrides or []
    if not config_dir.is_dir():
        raise ValueError(f"--config-dir must be a folder, got {str(config_dir)!r}")
    url = f"file://{config_dir.absolute()}".replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.searchpath=['{url}']", *(overrides or [])]


@app.command("verify")
def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep or a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Where and how --run trains: dataset.root=/data trainer=gpu."),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Name of the policy, if there are several.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Select runs, such as optimizer=adam.")
    ] = None,
    share: Annotated[float, typer.Option("--share", "-q", help="Probability to decide about.")] = 0.8,
    confidence: Annotated[float, typer.Option(help="Confidence of the decision.")] = 0.95,
    most: Annotated[int | None, typer.Option("--run", metavar="N", help="Train further seeds, up to N in all.")] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Train them by the command in the folder, which may execute anything."),
    ] = False,
) -> None:
    """Decide whether a policy reaches its target with at least a given probability.

    Exit code 0 if it is confirmed, 3 if it is refuted or undecided.
    """
    from lrbench_pl.analysis.load import AnalysisError
    from lrbench_pl.analysis.sequential import seeds_to_confirm
    from lrbench_pl.cli.verify import verify

    wanted = {} if policy is None else {"policy": policy}
    for each in where or ():
        name, equals, value = each.partition("=")
        if not equals:
            raise AnalysisError(f"--where must be KEY=VALUE, such as optimizer=adam, got {each!r}")
        wanted[name] = value

    def print_note(line: str) -> None:
        print(clean(line), file=sys.stderr)

    seeds, decision = verify(folder, wanted, share, confidence, most, print_note, overrides or (), trust)
    claim = f"{clean(seeds.claim)} with probability at least {share:g}"
    evidence = f"{decision.reached} of {counted(decision.seeds, 'seed')} reached it"
    if decision.verdict == "undecided":
        more = seeds_to_confirm(decision.reached, decision.seeds, share, confidence)
        print(f"undecided: {claim}: {evidence}; {more} further successes in a row confirm it (--run N trains seeds)")
    else:
        unused = len(seeds.runs) - decision.seeds
        left = f", the other {unused} not needed" if unused else ""
        print(f"{decision.verdict} at confidence {confidence:g}: {claim}: {evidence}{left}")
    if decision.verdict != "confirmed":
        raise typer.Exit(3)


@app.command("extend")
def extend_command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR... [KEY=VALUE...]",
            help="Folders of runs trained with extendable=true, and where and how to train: dataset.root=/data "
            "trainer=gpu.",
        ),
    ],
    decay: Annotated[
        str, typer.Option(help="Decay as a share of the new budget; several give a branch each: 0.1,0.2.")
    ] = "0.2",
    shape: Annotated[str, typer.Option(help="Shape of the decay: linear, cosine, 1-sqrt, or several of them.")] = (
        "linear"
    ),
    max_steps: Annotated[
        int | None,
        typer.Option("--max-steps", metavar="N", help="The new budget; by default the decay begins at once."),
    ] = None,
    by: Annotated[int | None, typer.Option("--by", metavar="N", help="Steps to add to the budget.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the extensions.")] = Path(
        "outputs/extended"
    ),
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Train by the command in the folder, which may execute anything."),
    ] = False,
) -> None:
    """Continue runs from a checkpoint of their stable phase to a longer horizon, and decay there.

    The runs themselves are not changed.
    """
    from lrbench_pl.cli.extend import extend, summary
    from lrbench_pl.runs.extend import ExtendError

    overrides = [each for each in arguments if "=" in each and not Path(each).is_dir()]
    folders = [Path(each) for each in arguments if each not in overrides]
    try:
        decays = [float(each) for each in decay.split(",")]
    except ValueError:
        raise ExtendError(
            f"--decay must be a share of the new budget, such as 0.2, or several, got {decay!r}"
        ) from None
    shapes = [each.strip() for each in shape.split(",")]
    results = extend(folders, decays, shapes, max_steps, by, output, overrides, trust)
    print(summary(results, output), file=sys.stderr)


app.add_typer(cli_db.app)


def main() -> None:
    """Run a command. A mistake of the user is one line and exit code 2."""
    try:
        app()
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        print(f"error: {clean(message)}", file=sys.stderr)
        sys.exit(2)


def _message(error: Exception) -> str | None:
    """Return the message for a mistake of the user; None for any other error."""
    if "hydra" in sys.modules:  # only commands that compose a configuration import it
        from lrbench_pl.runs.config_errors import explain

        if (message := explain(error)) is not None:
            return message
    return " ".join(str(error).split()) if isinstance(error, (ValueError, OSError)) else None
