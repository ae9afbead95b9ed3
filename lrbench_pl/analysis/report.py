"""One page that shows a sweep: no network, no server, every figure and the numbers behind it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import polars as pl

from lrbench_pl.analysis import curves, plots
from lrbench_pl.analysis.load import Runs
from lrbench_pl.analysis.ranking import default_keys, equal_policies, rank, with_settings
from lrbench_pl.analysis.show import the_monitor
from lrbench_pl.files import write_atomically
from lrbench_pl.words import counted, is_accuracy, metric_name, metric_title

_MOST_COMPOSITIONS = 8


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: Its heading, as text.
        note: What to know to read it, as text.
        figures: Its figures, each with a heading or an empty one.
        body: More of it, as HTML.
    """

    title: str
    note: str = ""
    figures: tuple[tuple[str, go.Figure], ...] = ()
    body: str = ""


def report(runs: Runs, by: Sequence[str] | None = None, baseline: str | None = None) -> str:
    """The page, as HTML; parts without data are left out.

    Args:
        runs: What :func:`lrbench_pl.analysis.load.load_runs` found.
        by: Columns that make a row of the ranking; by default those that vary.
        baseline: Policy that the others are compared with in the table, as :func:`lrbench_pl.analysis.ranking.rank`
            takes it.

    Raises:
        AnalysisError: If the runs cannot be ranked together.
    """
    table = runs.table
    keys = list(by) if by is not None else default_keys(table)
    ranking = rank(table, keys, baseline=baseline)
    table = with_settings(table, keys)
    runs = replace(runs, table=table)
    return page(_title(table), _lead(runs), sections(runs, ranking, keys))


def write_report(runs: Runs, path: str | Path, by: Sequence[str] | None = None, baseline: str | None = None) -> Path:
    """Write :func:`report` at one stroke."""
    return write_atomically(path, report(runs, by, baseline))


def figures(runs: pl.DataFrame, ranking: pl.DataFrame, keys: Sequence[str]) -> dict[str, go.Figure]:
    """The figures for which there is data, by name.

    Args:
        runs: The table of runs.
        ranking: Its ranking by cost.
        keys: The columns that make a row of it.
    """
    grouped = plots.groups(runs, ranking, keys)
    if not grouped:
        return {}
    counts = pl.concat([group.runs for group in grouped])
    target, monitor = _only(counts, "target"), _only(counts, "monitor") or "val/accuracy"
    budget = float(counts["max_steps"].max() or 1)  # type: ignore[arg-type]
    made: dict[str, go.Figure] = {}
    order = [group.name for group in grouped]
    if target is not None and (places := plots.ranking_info(ranking, keys, budget, target)):
        made["ranking"] = plots.ranking_figure(places)
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
        "Dots are medians, whiskers 95 % intervals (none below 5 runs, for ranks below 3); × is a median of misses. "
        "Nothing within a tier can be told apart from its first.",
    ),
    "course": (
        "{metric} and learning rate",
        "Medians over the runs with their quartiles, the rate below. The best are in colour: click the legend to "
        "hide, a row of the table to highlight any other. A run that ended keeps its last value.",
    ),
    "arrivals": ("Who has arrived", "Kaplan-Meier: the share of runs at the target by step; a miss is censored."),
    "heat": ("Policy and optimizer", "Mean steps to the target, a miss counted as the whole budget; (reached/runs)."),
    "sensitivity": (
        "Sensitivity to the rate",
        "The width is the range of rates that stays within 1.5 times the best cost; "
        "≥: it reaches the edge of those tried.",
    ),
}


def sections(runs: Runs, ranking: pl.DataFrame, keys: Sequence[str]) -> list[Section]:
    """The parts of the page for which there is data."""
    made = figures(runs.table, ranking, keys)
    metric = metric_name(the_monitor(runs.table))
    found = []
    for name, figure in made.items():
        title, note = _WORDS[name]
        found.append(Section(title.format(metric=metric[0].upper() + metric[1:]), note, (("", figure),)))
    table = Section(
        "Table",
        "Click a heading to sort, a row to highlight it in the figures.",
        body=_table(ranking, keys, the_monitor(runs.table)),
    )
    found.insert(1 if "ranking" in made else 0, table)
    drawn = _compositions(runs.table)
    if drawn:
        more = runs.table.filter(pl.col("policy") == "auto").height - len(drawn)
        note = (
            "Above, the check at the end of each stretch (diamonds: averaged weights, a forecast); below, its rates."
            + (f" {more} more {'is' if more == 1 else 'are'} not drawn." if more > 0 else "")
        )
        found.append(Section("Composed while training", note, tuple(drawn)))
    found.append(Section("What was run", body=_provenance(runs)))
    return found


def _compositions(runs: pl.DataFrame) -> list[tuple[str, go.Figure]]:
    drawn: list[tuple[str, go.Figure]] = []
    for row in runs.to_dicts():
        if len(drawn) < _MOST_COMPOSITIONS and (records := curves.read_tuning(row["folder"])) is not None:
            title = f"{row['policy']}, {row['optimizer']}, seed {row['seed']}: {row['status']}"
            info = plots.tuning_info(records, title, row["target"], row["monitor"] or "val/accuracy")
            drawn.append((title, plots.tuning_figure(info)))
    return drawn


def write_preview(shown: Sequence[Any], path: str | Path) -> Path:
    """Write curves of :mod:`lrbench_pl.cli.preview` as a page."""
    figure = plots.rates_figure([each.name for each in shown], [each.rates for each in shown])
    names = ", ".join(each.name for each in shown)
    return write_atomically(path, page("Learning rates", names, [Section("Over the budget", figures=(("", figure),))]))


# -- the page -----------------------------------------------------------------------------------------------------


def page(title: str, lead: str, parts: Sequence[Section]) -> str:
    """A page that needs nothing but itself.

    Args:
        title: Its heading, as text.
        lead: What it is about, as text.
        parts: Its sections.
    """
    from plotly.offline import get_plotlyjs

    blocks: list[str] = []
    specs: list[str] = []
    for number, part in enumerate(parts):
        drawn = []
        for heading, figure in part.figures:
            name = f"spec-{len(specs)}"
            specs.append(f'<script type="application/json" id="{name}">{_json(figure)}</script>')
            head = f"<h3>{html.escape(heading)}</h3>" if heading else ""
            drawn.append(f'<figure>{head}<div class="plot" data-spec="{name}"></div></figure>')
        note = f'<p class="note">{html.escape(part.note)}</p>' if part.note else ""
        blocks.append(
            f'<section id="s{number}"><h2>{html.escape(part.title)}</h2>{note}{"".join(drawn)}{part.body}</section>'
        )
    links = "".join(f'<a href="#s{number}">{html.escape(part.title)}</a>' for number, part in enumerate(parts))
    files = resources.files("lrbench_pl.analysis") / "page"
    css, script = ((files / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{css}</style></head>\n<body><main><h1>{html.escape(title)}</h1>"
        f'<p class="lead">{html.escape(lead)}</p><nav>{links}</nav>\n{chr(10).join(blocks)}</main>\n'
        f"{chr(10).join(specs)}\n<script>{get_plotlyjs()}</script>\n<script>{script}</script></body></html>\n"
    )


def _json(figure: go.Figure) -> str:
    """A figure as JSON that cannot end the script element around it."""
    text: str = figure.to_json()
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


_COLUMNS = {
    "rank": "rank",
    "rank_low": "from",
    "rank_high": "to",
    "tier": "tier",
    "reached": "reached",
    "median_steps": "median steps",
    "median_low": "low",
    "median_high": "high",
    "speed_up": "times sooner",
    "speed_up_low": "at least",
    "speed_up_high": "at most",
    "mean_steps": "mean steps",
    "best_value": "best acc.",
    "test_value": "test",
    "test_accuracy": "test acc.",
    "more_seeds": "more seeds",
    "open": "open",
    "diverged": "diverged",
    "failed": "failed",
    "stopped": "stopped",
}


def _table(ranking: pl.DataFrame, keys: Sequence[str], monitor: str | None) -> str:
    names = ["rank", "rank_low", "rank_high", "tier", *keys]
    names += [name for name in _COLUMNS if name not in names and name in ranking.columns]
    names = [name for name in names if name in keys or ranking[name].drop_nulls().len()]
    counts = ("open", "diverged", "failed", "stopped")
    names = [name for name in names if name not in counts or ranking[name].sum()]
    text = {name for name in names if ranking.schema[name] == pl.String}
    names = [name for name in names if name != "test_value" or not is_accuracy(monitor)]  # shown as test_accuracy
    titles = {**_COLUMNS} | {f"{kind}_value": f"{kind} {metric_title(monitor)}" for kind in ("best", "test")}
    heads = "".join(
        f'<th scope="col"{" class=text" if name in text else ""}><button type="button">'
        f"{html.escape(titles.get(name, name))}</button></th>"
        for name in names
    )
    rows = []
    for row in ranking.to_dicts():
        group = plots.name_of([row[key] for key in keys])
        cells = "".join(_cell(name, row, name in text) for name in names)
        rows.append(f'<tr data-group="{html.escape(html.escape(group, quote=False))}">{cells}</tr>')
    inner = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="sorts">{inner}</table></div>'


def _cell(name: str, row: dict[str, Any], is_text: bool) -> str:
    value = row[name]
    if is_text:
        return f'<td class="text">{html.escape("–" if value is None else str(value))}</td>'
    if value is None:
        return '<td data-value="">–</td>'
    shown = "∞" if value == math.inf else f"{value:.4f}" if name.endswith("accuracy") else f"{value:.4g}"
    shown = str(value) if isinstance(value, int) else shown
    shown = f"{value}/{row['runs']}" if name == "reached" else shown
    return f'<td data-value="{"Infinity" if value == math.inf else value}">{shown}</td>'


def _only(runs: pl.DataFrame, column: str) -> Any:
    """The value on which all runs agree, or None."""
    values = runs[column].unique().to_list()
    return values[0] if len(values) == 1 else None


def _title(runs: pl.DataFrame) -> str:
    where = [_only(runs, column) for column in ("model", "dataset")]
    return f"Learning-rate policies: {' on '.join(map(str, where))}" if all(where) else "Learning-rate policies"


def _lead(runs: Runs) -> str:
    table = runs.table
    words = f"{counted(table.height, 'run')} of {counted(table['policy'].n_unique(), 'policy')}"
    if (n := table["optimizer"].n_unique()) > 1:
        words += f" with {counted(n, 'optimizer')}"
    if (target := _only(table, "target")) is not None:
        words += f", to {target:g} {_only(table, 'monitor') or ''}".rstrip()
    if (budget := _only(table, "max_steps")) is not None:
        words += f" within {counted(budget, 'step')}"
    return words + "."


def _provenance(runs: Runs) -> str:
    """The commands, the configuration of the first run, and what could not be shown."""
    folders = [Path(folder) for folder in runs.table["folder"].to_list()]
    commands: dict[str, None] = {}
    for folder in dict.fromkeys(folder.parent for folder in folders):
        if (command := _command(folder / "multirun.yaml", many=True)) is not None:
            commands[command] = None
    if not commands:
        for folder in folders[:20]:
            if (command := _command(folder / ".hydra" / "hydra.yaml", many=False)) is not None:
                commands[command] = None
    body = "".join(f"<pre>{html.escape(command)}</pre>" for command in commands)
    told = [
        f"{row['status']}: {row['policy']} (seed {row['seed']}): {row['message']}"
        for row in runs.table.filter(pl.col("status").cast(pl.String).is_in(["failed", "stopped"])).to_dicts()
    ]
    told += [f"unreadable: {skipped.path}: {skipped.reason}" for skipped in runs.skipped]
    told += [f"the same policy over this budget: {', '.join(names)}" for names in equal_policies(runs.table)]
    if (shared := runs.table["shared_with"].drop_nulls().len()) > 0:
        repeat = "repeats" if shared == 1 else "repeat"
        told.append(f"{counted(shared, 'row')} {repeat} the outcome of a run with the same rates")
    for column, label in (("device", "device"), ("precision", "precision"), ("git_sha", "commit")):
        if values := runs.table[column].drop_nulls().unique().sort().to_list():
            told.append(f"{label}: {', '.join(values)}")
    body += f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in told)}</ul>" if told else ""
    for folder in folders:
        try:
            config = (folder / ".hydra" / "config.yaml").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        body += f"<details><summary>Configuration of the first run</summary><pre>{html.escape(config)}</pre></details>"
        break
    return body


def _command(path: Path, many: bool) -> str | None:
    """The command that Hydra noted down, or None."""
    import shlex

    from omegaconf import OmegaConf

    try:
        task = OmegaConf.to_container(OmegaConf.load(path), resolve=False)["hydra"]["overrides"]["task"]  # type: ignore[index,call-overload]
    except Exception:  # missing, half-written or not Hydra's: then there is no command to show
        return None
    return shlex.join(["lrbench", "run", *(["-m"] if many else []), *map(str, task)])
