"""One folder or several, as strings or paths, wherever runs are read."""

import polars as pl
import pytest

import lrbench_pl
from lrbench_pl.analysis.curves import curves
from lrbench_pl.analysis.load import AnalysisError, load_runs
from lrbench_pl.analysis.ranking import rank
from lrbench_pl.analysis.report import report
from tests.analysis.test_history import run
from tests.analysis.test_ranking import write

FORMS = {
    "string": lambda folder: str(folder),
    "path": lambda folder: folder,
    "strings": lambda folder: [str(folder / "one"), str(folder / "two")],
    "paths": lambda folder: (folder / "one", folder / "two"),
    "generator": lambda folder: (folder / name for name in ("one", "two")),
}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "one", "tri", 100)
    run(tmp_path / "two", "cos", 200, checks=[(20, 0.5), (200, 0.96)])
    return tmp_path


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_runs_are_loaded_and_ranked(folder, form):
    assert load_runs(form(folder)).table["policy"].to_list() == ["tri", "cos"]
    table = load_runs(form(folder)).table.with_columns(pl.lit(0.97).alias("target"))
    assert rank(table, by=["policy", "confirmations"])["policy"].to_list() == ["tri", "cos"]
    assert rank(form(folder), by=["policy", "target"])["policy"].to_list() == ["cos", "tri"]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_curves_have_a_row_for_each_check(folder, form):
    found = curves(form(folder))
    assert found.select("policy", "seed", "step", "value").rows() == [("cos", 0, 20, 0.5), ("cos", 0, 200, 0.96)]


def test_loaded_runs_and_tables_are_accepted_too(folder):
    runs = load_runs(folder / "two")
    assert curves(runs).equals(curves(runs.table))
    assert rank(runs).equals(rank(runs.table))
    assert report(runs) == report(str(folder / "two"))


def test_runs_without_a_history_have_no_curve(folder):
    found = lrbench_pl.curves(folder / "one")
    assert found.height == 0
    assert found.columns[-2:] == ["step", "value"]


def test_a_missing_folder_is_named_whole(folder):
    with pytest.raises(AnalysisError, match=r"^nowhere: no such folder; expected the folder of a run or of a sweep$"):
        load_runs("nowhere")
