"""``lrbench db``: the policy database on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrbench_pl.words import counted

if TYPE_CHECKING:
    from lrbench_pl.selection.database import Refused, StoredRun

NOTHING_SUITABLE = 3

app = typer.Typer(
    name="db",
    help="The policy database: runs of many sweeps, asked for the policy that worked.",
    no_args_is_help=True,
    add_completion=False,
)

_Database = Annotated[
    str | None,
    typer.Option("--db", metavar="PATH|URL", help="SQLite file or URL; by default $LRBENCH_DB, or lrbench.db."),
]
_Filters = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Which runs, such as dataset=mnist optimizer=adam."),
]
_Output = Annotated[Path | None, typer.Option("-o", "--output", help="File to write instead of standard output.")]


@app.command("add")
def add_command(
    sources: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of runs or sweeps; files of `lrbench db export`.")
    ],
    db: _Database = None,
) -> None:
    """Add finished runs; those already there are left as they are, bad ones refused with the reason."""
    from lrbench_pl.selection.database import DatabaseError, PolicyDatabase, read_sources

    found = read_sources(sources)
    _say_refused(found.refused)
    if not found.runs:
        raise DatabaseError(f"nothing to add: all {counted(len(found.refused), 'run')} refused")
    with PolicyDatabase(db, create=True) as database:
        new = database.add(found.runs)
        name = database.name
    counts = [f"{new} added", f"{len(found.runs) - new} already there", f"{len(found.refused)} refused"]
    print(f"{name}: {', '.join(counts)}")


@app.command("best")
def best_command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="As for lrbench run: experiment=mnist_lenet max_steps=5000 …"),
    ] = None,
    db: _Database = None,
    output: _Output = None,
) -> None:
    """The policy that `lrbench run lr_policy=best …` would run, as YAML; exit code 3 if nothing is suitable."""
    from omegaconf import OmegaConf

    from lrbench_pl.files import write_atomically
    from lrbench_pl.policies import to_config
    from lrbench_pl.runs.config import compose
    from lrbench_pl.runs.spec import RunSpec
    from lrbench_pl.selection.lookup import Question, ask

    cfg = compose(["lr_policy=best", *(overrides or [])])
    asked: Any = OmegaConf.to_container(cfg.lr_policy, resolve=True)
    question = Question.from_task(RunSpec.from_config(cfg).task)
    answer, why = ask(question, db or asked["db"], asked["max_distance"], say=_say)
    if answer is None or not answer.recommendations:
        _say(f"{why}; lr_policy=auto composes one")
        raise typer.Exit(NOTHING_SUITABLE)
    first, *others = answer.recommendations
    text = f"# {first}\n{OmegaConf.to_yaml(OmegaConf.create(to_config(first.policy)))}"
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)
        print(f"{first}\nwritten to {output}: lrbench run lr_policy_file={output} …")
    for other in others[:4]:
        _say(f"next: {other}")


@app.command("list")
def list_command(
    filters: _Filters = None,
    db: _Database = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, json or markdown.")] = "table",
) -> None:
    """What is known: seeds, share reached and median steps of every policy on every workload."""
    from lrbench_pl.analysis.listing import listing, sections
    from lrbench_pl.analysis.load import AnalysisError
    from lrbench_pl.analysis.show import render

    if form not in ("table", "csv", "json", "markdown"):
        raise AnalysisError(f"--format must be table, csv, json or markdown, got {form!r}")
    runs = _read(db, filters)
    table = listing(run.result.to_dict() for run in runs)
    if form == "table":
        for heading, rows in sections(table):
            print(f"{heading}\n\n{render(rows, 'table')}\n")
    else:
        print(render(table, form))  # type: ignore[arg-type]
    _say(f"{counted(len(runs), 'run')}; ∞: half of the seeds or more missed")


@app.command("export")
def export_command(
    filters: _Filters = None,
    db: _Database = None,
    form: Annotated[str, typer.Option("--format", help="jsonl or csv; by default as the file is called.")] = "",
    output: _Output = None,
) -> None:
    """Every run with its policy as JSON lines or CSV, which `lrbench db add` reads back."""
    from lrbench_pl.files import write_atomically
    from lrbench_pl.selection.database import export

    by_name = "csv" if output is not None and output.suffix == ".csv" else "jsonl"
    text = export(_read(db, filters), form or by_name)  # type: ignore[arg-type]
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)


def _read(db: str | None, filters: list[str] | None) -> tuple[StoredRun, ...]:
    from lrbench_pl.selection.database import DatabaseError, PolicyDatabase

    where: dict[str, str] = {}
    for each in filters or ():
        name, equals, value = each.partition("=")
        if not equals:
            raise DatabaseError(f"expected KEY=VALUE, such as dataset=mnist, got {each!r}")
        where[name] = value
    with PolicyDatabase(db) as database:
        found = database.read(**where)
        at = database.name
    _say_refused(found.refused)
    if not found.runs:
        raise DatabaseError(f"{at}: no run" + (f" with {' '.join(filters)}" if filters else ""))
    return found.runs


def _say_refused(refused: tuple[Refused, ...]) -> None:
    for each in refused:
        _say(f"refused: {each.source}: {each.reason}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
