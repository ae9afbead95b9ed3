"""``lrbench rank --wandb``: send a ranking to W&B."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl

from lrbench_pl.analysis import plots
from lrbench_pl.analysis.comparable import with_settings
from lrbench_pl.analysis.load import AnalysisError
from lrbench_pl.analysis.ranking import default_keys, rank
from lrbench_pl.analysis.report import figures
from lrbench_pl.runs.wandb_mode import is_offline


def publish(runs: pl.DataFrame, project: str, by: Sequence[str] | None = None, folder: str | None = None) -> str:
    """Send ranking, figures and bands as one W&B run; offline without an API key.

    Args:
        runs: Table of :func:`lrbench_pl.analysis.load.load_runs`.
        project: W&B project.
        by: Columns that group the runs; by default those that vary.
        folder: Folder of W&B's files; by default the working directory.

    Returns:
        One line with the address of the run.

    Raises:
        AnalysisError: If W&B fails, or the runs cannot be ranked together.
    """
    keys = list(by) if by is not None else default_keys(runs)
    ranking = rank(runs, keys)
    runs = with_settings(runs, keys)
    made = figures(runs, ranking, keys)
    monitors = runs["monitor"].drop_nulls().unique().to_list()
    course = plots.course_info(plots.groups(runs, ranking, keys), None, monitors[0]) if len(monitors) == 1 else None
    try:
        return _send(ranking, made, course, project, folder or ".", runs)
    except Exception as error:  # W&B raises many kinds
        raise AnalysisError(f"W&B failed ({type(error).__name__}: {error}); the ranking above is complete") from error


def _send(
    ranking: pl.DataFrame,
    made: dict[str, go.Figure],
    course: plots.CourseInfo | None,
    project: str,
    folder: str,
    runs: pl.DataFrame,
) -> str:
    import wandb

    studies = runs["study"].drop_nulls().unique().to_list()
    run = wandb.init(
        project=project,
        job_type="ranking",
        name="ranking",
        group=studies[0] if len(studies) == 1 else None,
        dir=folder,
        config={"folders": sorted({os.path.dirname(each) for each in runs["folder"].to_list()}), "runs": runs.height},
        mode="offline" if is_offline() else None,
        reinit="finish_previous",
    )
    exit_code = 1
    try:
        _log(run, ranking, made, course)
        exit_code = 0
    finally:
        run.finish(exit_code=exit_code)
    return f"W&B: {run.url}" if run.url else f"W&B, offline: wandb sync {os.path.dirname(run.dir)}"


def _log(run: Any, ranking: pl.DataFrame, made: dict[str, go.Figure], course: plots.CourseInfo | None) -> None:
    import wandb

    run.define_metric("trainer/global_step")
    run.define_metric("policy/*", step_metric="trainer/global_step")
    for row in _bands(course):
        run.log(row)
    rows = [[str(x) if isinstance(x, float) and math.isinf(x) else x for x in row] for row in ranking.rows()]
    media: dict[str, object] = {"ranking": wandb.Table(columns=[*ranking.columns], data=rows, allow_mixed_types=True)}
    with tempfile.TemporaryDirectory() as pages:
        for name, figure in made.items():
            path = os.path.join(pages, f"{name}.html")
            figure.write_html(path, include_plotlyjs="cdn")
            media[f"report/{name}"] = wandb.Html(path)
        run.log(media)


def _bands(course: plots.CourseInfo | None) -> list[dict[str, float]]:
    """Return one row per check, with median and quartiles of every policy."""
    rows: dict[float, dict[str, float]] = {}
    for line in course.values if course is not None else ():
        for index, step in enumerate(line.x):
            row = rows.setdefault(step, {"trainer/global_step": step})
            row[f"policy/{line.name}/median"] = line.y[index]
            if line.low is not None and line.high is not None:
                row[f"policy/{line.name}/low"], row[f"policy/{line.name}/high"] = line.low[index], line.high[index]
    return [rows[step] for step in sorted(rows)]
