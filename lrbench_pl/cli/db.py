"""``lrbench db``: fill, query and export the policy database."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrbench_pl.overrides import quoted_path
from lrbench_pl.words import clean, counted

if TYPE_CHECKING:
    from lrbench_pl.selection.records import Refused, StoredRun

NOTHING_SUITABLE = 3

app = typer.Typer(
    name="db",
    help="Policy database: store runs of many sweeps and look up the policy that worked.",
    no_args_is_help=True,
    add_completion=False,
)

_Database = Annotated[
    str | None,
    typer.Option("--db", metavar="PATH|URL", help="SQLite file or URL; by default $LRBENCH_DB, or lrbench.db."),
]
_Filters = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Select runs, such as dataset=mnist optimizer=adam."),
]
_Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write to this file instead of standard output.")]


@app.command("add")
def add_command(
    sources: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Folders of runs or sweeps, or files of `lrbench db export`.")
    ],
    db: _Database = None,
) -> None:
    """Add finished runs. Runs already stored are not changed; invalid ones are refused with the reason."""
    from lrbench_pl.selection.database import DatabaseError, PolicyDatabase
    from lrbench_pl.selection.exchange import read_sources

    found = read_sources(sources)
    _print_refused(found.refused)
    if not found.runs:
        raise DatabaseError(f"nothing to add: all {counted(len(found.refused), 'run')} refused")
    with PolicyDatabase(db, create=True) as database:
        new = database.add(found.runs)
        name = database.name
    counts = [f"{new} added", f"{len(found.runs) - new} already stored", f"{len(found.refused)} refused"]
    print(f"{name}: {', '.join(counts)}")


@app.command("best")
def best_command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="As for lrbench run: experiment=mnist_lenet max_steps=5000 …"),
    ] = None,
    db: _Database = None,
    output: _Output = None,
) -> None:
    """Print the policy that `lrbench run lr_policy=best …` would use, as YAML. Exit code 3 without a suitable one."""
    from omegaconf import OmegaConf

    from lrbench_pl.files import write_output
    from lrbench_pl.policies import to_config
    from lrbench_pl.runs.config import compose
    from lrbench_pl.runs.spec import RunSpec
    from lrbench_pl.selection.distance import Query
    from lrbench_pl.selection.lookup import look_up

    cfg = compose(["lr_policy=best", *(overrides or [])])
    options: Any = OmegaConf.to_container(cfg.lr_policy, resolve=True)
    query = Query.from_task(RunSpec.from_config(cfg).task)
    found, reason = look_up(query, db or options["db"], options["max_distance"], report=_print)
    if not found:
        _print(f"{reason}; lr_policy=auto composes a policy while training")
        raise typer.Exit(NOTHING_SUITABLE)
    first, *others = found
    text = f"# {clean(str(first))}\n{OmegaConf.to_yaml(OmegaConf.create(to_config(first.policy)))}"
    if output is None:
        print(text, end="")
    else:
        write_output(output, text)
        command = shlex.join(["lrbench", "run", f"lr_policy_file={quoted_path(output)}"])
        print(f"{clean(str(first))}\nwritten to {output}: {command} …")
    for other in others[:4]:
        _print(f"next: {other}")


@app.command("list")
def list_command(
    filters: _Filters = None,
    db: _Database = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, json or markdown.")] = "table",
) -> None:
    """List the stored policies by task, with seeds, share reached and median steps."""
    from lrbench_pl.analysis.listing import listing, sections
    from lrbench_pl.analysis.load import AnalysisError
    from lrbench_pl.analysis.show import FORMATS, left_out_note, render, render_table

    if form not in FORMATS:
        raise AnalysisError(f"--format must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {form!r}")
    runs = _read(db, filters)
    table = listing(run.result.to_dict() for run in runs)
    if form == "table":
        left_out: dict[str, None] = {}
        for heading, monitor, rows in sections(table):
            text, titles = render_table(rows, monitor=monitor)
            left_out |= dict.fromkeys(titles)
            print(f"{clean(heading)}\n\n{text}\n")
        if left_out:
            print(f"{left_out_note(list(left_out))}\n")
    else:
        print(render(table, form))
    _print(f"{counted(len(runs), 'run')}; ∞: half of the seeds or more missed")


@app.command("export")
def export_command(
    filters: _Filters = None,
    db: _Database = None,
    form: Annotated[str, typer.Option("--format", help="jsonl or csv; by default the suffix of the file.")] = "",
    output: _Output = None,
) -> None:
    """Export runs with their policies as JSON lines or CSV, which `lrbench db add` reads."""
    from lrbench_pl.files import write_output
    from lrbench_pl.selection.exchange import export

    by_name = "csv" if output is not None and output.suffix == ".csv" else "jsonl"
    text = export(_read(db, filters), form or by_name)  # type: ignore[arg-type]
    if output is None:
        print(text, end="")
    else:
        write_output(output, text)


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
        where_from = database.name
    _print_refused(found.refused)
    if not found.runs:
        raise DatabaseError(f"{where_from}: no run" + (f" with {' '.join(filters)}" if filters else ""))
    return found.runs


def _print_refused(refused: tuple[Refused, ...]) -> None:
    for each in refused:
        _print(f"refused: {each.source}: {each.reason}")


def _print(line: str) -> None:
    """Print a message, apart from the output proper."""
    print(clean(line), file=sys.stderr)
