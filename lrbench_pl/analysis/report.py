"""Write a report of a sweep: one self-contained page with the ranking and all figures."""

from __future__ import annotations

import html
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import polars as pl

from lrbench_pl.analysis import curves, plots
from lrbench_pl.analysis.answer import CONSTANT, Answer, answers
from lrbench_pl.analysis.by_target import by_target, columns_by_target
from lrbench_pl.analysis.columns import Column, columns
from lrbench_pl.analysis.comparable import with_settings
from lrbench_pl.analysis.further import commands
from lrbench_pl.analysis.load import AnalysisError, Folders, Runs, load_runs
from lrbench_pl.analysis.ranking import default_keys, equal_policies, rank
from lrbench_pl.analysis.show import the_monitor
from lrbench_pl.analysis.web_page import Live, Section, as_html, command, page
from lrbench_pl.files import write_output
from lrbench_pl.reading import LARGEST_YAML, UnreadableError, read_text, read_yaml
from lrbench_pl.words import counted, metric_name

_MOST_COMPOSITIONS = 8
_MOST_COMMANDS = 20


def report(
    runs: Runs | Folders, by: Sequence[str] | None = None, baseline: str | None = None, live: Live | None = None
) -> str:
    """Return the report as HTML; sections without data are left out.

    Args:
        runs: One folder or several, or what :func:`lrbench_pl.analysis.load.load_runs` returns.
        by: Columns that group the runs; by default those that vary.
        baseline: Policy to compare the others with in the table, see :func:`lrbench_pl.analysis.ranking.rank`.
        live: Set if the page reloads itself.

    Raises:
        AnalysisError: If the runs cannot be ranked together.
    """
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    table = runs.table
    keys = list(by) if by is not None else default_keys(table)
    ranking = rank(table, keys, baseline=baseline)
    runs = replace(runs, table=with_settings(table, keys))
    found = answers(runs.table, ranking, baseline)
    answer = _answer(found, runs.table)
    return page(_title(table), _lead(table), sections(runs, ranking, keys, baseline), live, answer)


def _answer(found: Sequence[Answer], runs: pl.DataFrame) -> str:
    """Return the answers as HTML, with the commands that would decide."""
    blocks = []
    for each in found:
        lines = commands(runs, each.undecided, each.seeds)
        first, *rest = each.sentence.split("; ", 1)
        more = "".join(f"; {as_html(clause)}" for clause in rest)
        blocks.append(f'<p class="answer"><strong>{as_html(first)}</strong>{more}{":" if lines else "."}</p>')
        blocks += map(command, lines)
    return "".join(blocks)


def write_report(
    runs: Runs | Folders,
    path: str | Path,
    by: Sequence[str] | None = None,
    baseline: str | None = None,
    live: Live | None = None,
) -> Path:
    """Write :func:`report` to a file, atomically."""
    return write_output(path, report(runs, by, baseline, live))


def figures(runs: pl.DataFrame, ranking: pl.DataFrame, keys: Sequence[str]) -> dict[str, go.Figure]:
    """Return the figures for which there is data, by name.

    Args:
        runs: The table of runs.
        ranking: Its ranking by cost.
        keys: Columns that group the runs.
    """
    grouped = plots.groups(runs, ranking, keys)
    if not grouped:
        return {}
    counts = pl.concat([group.runs for group in grouped])
    target, monitor = _only(counts, "target"), _only(counts, "monitor") or "val/accuracy"
    budget = float(counts["max_steps"].max() or 1)  # type: ignore[arg-type]
    made: dict[str, go.Figure] = {}
    order = [group.name for group in grouped]
    if target is not None and (info := plots.ranking_info(ranking, keys, budget)):
        made["ranking"] = plots.ranking_figure(info)
    if course := plots.course_info(grouped, target, monitor, _only(counts, "mode") or "max"):
        made["course"] = plots.course_figure(course)
    if arrivals := plots.arrivals_info(grouped, target):
        made["arrivals"] = plots.arrivals_figure(arrivals)
    if heat := plots.heat_info(runs):
        made["heat"] = plots.heat_figure(heat)
    if sensitivity := plots.sensitivity_info(runs, order):
        made["sensitivity"] = plots.sensitivity_figure(sensitivity)
    return made


_WORDS = {
    "ranking": (
        "Ranking",
        "Ordered by the share of runs that reached the target, then by median steps. Dots are medians, open if some "
        "runs missed; × is a median of misses. Whiskers are 95 % intervals (none below 5 runs, for ranks below 3). "
        "No policy in a tier is significantly worse than the tier's first.",
    ),
    "course": (
        "{metric} and learning rate",
        "Medians over the runs with quartiles, and the learning rate below. The best policies are in colour. Click the "
        "legend to hide a curve, a row of the table to highlight one. A run that ended keeps its last value.",
    ),
    "arrivals": (
        "Runs at the target",
        "Kaplan-Meier estimate of the share of runs at the target by step; misses are censored.",
    ),
    "heat": (
        "Policy and optimizer",
        "Expected steps to the target if misses are restarted: all steps divided by the runs that reached it (in "
        "brackets, of all). Dark is fast.",
    ),
    "sensitivity": (
        "Sensitivity to the learning rate",
        "Expected steps by rate; a rate at which every run missed has no point. The width is the range of rates "
        "with at most 1.5 times the best; ≥: it ends at the edge of those tried.",
    ),
}


def sections(runs: Runs, ranking: pl.DataFrame, keys: Sequence[str], baseline: str | None = None) -> list[Section]:
    """Return the sections of the report for which there is data."""
    made = figures(runs.table, ranking, keys)
    metric = metric_name(the_monitor(runs.table))
    found = []
    for name, figure in made.items():
        title, note = _WORDS[name]
        found.append(Section(title.format(metric=metric[0].upper() + metric[1:]), note, (("", figure),)))
    table = Section(
        "Table",
        "Click a heading to sort, a row to highlight it in the figures. Square brackets are 95 % intervals.",
        body=_table(ranking, keys, the_monitor(runs.table)),
    )
    found.insert(1 if "ranking" in made else 0, table)
    if (section := _by_target(runs, ranking, keys, baseline)) is not None:
        found.append(section)
    if drawn := _compositions(runs.table):
        more = runs.table.filter(pl.col("policy") == "auto").height - len(drawn)
        note = (
            "Above, the check at the end of each segment (diamonds: averaged weights, a forecast); below, its rates."
            + (f" {more} more {'is' if more == 1 else 'are'} not drawn." if more > 0 else "")
        )
        found.append(Section("Composed while training", note, tuple(drawn)))
    found.append(Section("Runs", body=_provenance(runs)))
    return found


def _by_target(runs: Runs, ranking: pl.DataFrame, keys: Sequence[str], baseline: str | None) -> Section | None:
    """Return the section of speed-ups by target; None without a baseline, its histories, or another policy."""
    try:
        found = by_target(runs, ranking, keys, baseline or CONSTANT)
    except AnalysisError:
        return None
    if (info := plots.targets_info(found)) is None:
        return None
    note = (
        f"Above, the speed-up: the steps of {info.baseline} to a target divided by those of the policy, median over "
        f"seeds, with 95 % intervals of the two best (all are in the table); △: at least, since {info.baseline} missed "
        f"the target on some seeds. Below, the whole budget of {info.baseline} divided by the steps of the policy: a "
        f"ratio that is often called a speed-up too, although {info.baseline} itself has one above 1."
    )
    tables = "".join(
        f"<details><summary>{title}</summary>{_html_table(columns_by_target(found, name))}</details>"
        for name, title in (("speed_up", "Table of speed-ups"), ("budget_ratio", "Table of budget ratios"))
    )
    return Section("Speed-up by target", note, (("", plots.targets_figure(info)),), tables)


def _compositions(runs: pl.DataFrame) -> list[tuple[str, go.Figure]]:
    drawn: list[tuple[str, go.Figure]] = []
    for run in runs.to_dicts():
        if len(drawn) < _MOST_COMPOSITIONS and (records := curves.read_tuning(run["folder"])) is not None:
            title = f"{run['policy']}, {run['optimizer']}, seed {run['seed']}: {run['status']}"
            info = plots.tuning_info(records, title, run["target"], run["monitor"] or "val/accuracy")
            drawn.append((title, plots.tuning_figure(info)))
    return drawn


def write_preview(shown: Mapping[str, Sequence[tuple[str, Sequence[float]]]], path: str | Path) -> Path:
    """Write the curves of :func:`lrbench_pl.cli.preview.panels` as a page."""
    figures = [
        (title, plots.rates_figure([name for name, _ in curves], [values for _, values in curves], title))
        for title, curves in shown.items()
    ]
    rates, *others = figures
    names = ", ".join(name for name, _ in shown["learning rate"])
    section = Section("Over the budget", figures=(("", rates[1]), *others))
    return write_output(path, page("Learning rates", names, [section]))


# -- the table ----------------------------------------------------------------------------------------------------


def _table(ranking: pl.DataFrame, keys: Sequence[str], monitor: str | None) -> str:
    """Return the table of :func:`lrbench_pl.analysis.columns.columns` as HTML."""
    found = [column for column in columns(ranking, monitor) if any(column.cells)]
    return _html_table(found, [plots.name_of(row) for row in ranking.select(keys).rows()])


def _html_table(found: Sequence[Column], groups: Sequence[str] = ()) -> str:
    """Return columns as a table in HTML that sorts; a row with a group highlights it in the figures."""
    heads = "".join(
        f'<th scope="col"{" class=text" if column.is_name else ""}>'
        f'<button type="button">{as_html(column.title)}</button></th>'
        for column in found
    )
    rows = []
    for number in range(len(found[0].cells)):
        cells = "".join(_cell(column, number) for column in found)
        group = f' data-group="{as_html(html.escape(groups[number], quote=False))}"' if groups else ""
        rows.append(f"<tr{group}>{cells}</tr>")
    inner = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><div class="scroll"><table class="sorts">{inner}</table></div></div>'


def _cell(column: Column, row: int) -> str:
    text, value = as_html(column.cells[row]), column.values[row]
    if column.is_name:
        return f'<td class="text">{text}</td>'
    shown = "" if value is None else "Infinity" if value == math.inf else str(value)
    return f'<td data-value="{as_html(shown)}">{text}</td>'


# -- words about the runs -----------------------------------------------------------------------------------------


def _only(runs: pl.DataFrame, column: str) -> Any:
    """Return the value that all runs share, or None."""
    values = runs[column].unique().to_list()
    return values[0] if len(values) == 1 else None


def _title(runs: pl.DataFrame) -> str:
    where = [_only(runs, column) for column in ("model", "dataset")]
    return f"Learning-rate policies: {' on '.join(map(str, where))}" if all(where) else "Learning-rate policies"


def _lead(runs: pl.DataFrame) -> str:
    words = f"{counted(runs.height, 'run')} of {counted(runs['policy'].n_unique(), 'policy')}"
    if (n := runs["optimizer"].n_unique()) > 1:
        words += f" with {counted(n, 'optimizer')}"
    if (target := _only(runs, "target")) is not None:
        words += f", to {target:g} {_only(runs, 'monitor') or ''}".rstrip()
    if (budget := _only(runs, "max_steps")) is not None:
        words += f" within {counted(budget, 'step')}"
    return words + "."


def _provenance(runs: Runs) -> str:
    """Return the commands, notes on the runs, and the configuration of the first run."""
    folders = [Path(folder) for folder in runs.table["folder"].to_list()]
    body = "".join(map(command, _commands(folders)))
    if found := _notes(runs):
        body += f"<ul>{''.join(f'<li>{as_html(line)}</li>' for line in found)}</ul>"
    return body + _first_configuration(folders)


def _commands(folders: Sequence[Path]) -> list[str]:
    """Return the commands of the sweeps, or else of the first runs."""
    sweeps = [_command(folder / "multirun.yaml", many=True) for folder in dict.fromkeys(at.parent for at in folders)]
    found = [command for command in sweeps if command is not None]
    if not found:
        runs = [_command(folder / ".hydra" / "hydra.yaml", many=False) for folder in folders[:_MOST_COMMANDS]]
        found = [command for command in runs if command is not None]
    return list(dict.fromkeys(found))


def _notes(runs: Runs) -> list[str]:
    table = runs.table
    found = [
        f"{row['status']}: {row['policy']} (seed {row['seed']}): {row['message']}"
        for row in table.filter(pl.col("status").cast(pl.String).is_in(["failed", "stopped"])).to_dicts()
    ]
    found += [f"unreadable: {skipped.path}: {skipped.reason}" for skipped in runs.skipped]
    found += [f"the same policy over this budget: {', '.join(names)}" for names in equal_policies(table)]
    if (shared := table["shared_with"].drop_nulls().len()) > 0:
        repeat = "repeats" if shared == 1 else "repeat"
        found.append(f"{counted(shared, 'result')} {repeat} the outcome of a run with the same rates")
    for column, label in (
        ("device", "device"),
        ("engine", "engine"),
        ("precision", "precision"),
        ("git_sha", "commit"),
    ):
        if values := table[column].drop_nulls().unique().sort().to_list():
            found.append(f"{label}: {', '.join(values)}")
    return found


def _first_configuration(folders: Sequence[Path]) -> str:
    for folder in folders:
        try:
            config = read_text(folder / ".hydra" / "config.yaml", LARGEST_YAML)
        except (OSError, UnreadableError):
            continue
        return f"<details><summary>Configuration of the first run</summary><pre>{as_html(config)}</pre></details>"
    return ""


def _command(path: Path, many: bool) -> str | None:
    """Return the command that Hydra stored, or None."""
    try:
        task = read_yaml(path)["hydra"]["overrides"]["task"]
    except Exception:  # missing, incomplete, or not written by Hydra
        return None
    return shlex.join(["lrbench", "run", *(["-m"] if many else []), *map(str, task)])
