"""The monitored metric on the test set, in the ranking."""

import polars as pl
import pytest

from lrbench_pl.analysis.ranking import rank
from lrbench_pl.analysis.show import render


def runs(monitor, mode, **columns):
    defaults = {"best_value": [58.0, 59.0], "test_value": [57.5, 52.25], "test_accuracy": [None, None]}
    table = {"policy": ["fix", "tri"], "status": ["missed"] * 2, "lr": [0.1] * 2, "optimizer": ["adamw"] * 2}
    table |= {
        "max_steps": [100] * 2,
        "seed": [0, 0],
        "monitor": [monitor] * 2,
        "mode": [mode] * 2,
        "target": [50.0] * 2,
    }
    return pl.DataFrame(table | defaults | columns, schema_overrides={"test_accuracy": pl.Float64})


@pytest.mark.parametrize(("metric", "first"), [("cost", "fix"), ("utility", "tri")])
def test_a_regression_is_ranked_by_its_own_metric_on_the_test_set(metric, first):
    ranking = rank(runs("val/rmse", "min"), metric=metric)
    assert ranking["policy"][0] == first  # by the best check, or by the test set
    shown = render(ranking, "markdown", monitor="val/rmse")
    assert "test rmse" in shown
    assert "52.2500" in shown
    assert "acc" not in shown


def test_without_a_test_set_the_best_check_ranks():
    ranking = rank(runs("val/rmse", "min", test_value=[None, None]), metric="utility")
    assert ranking["policy"].to_list() == ["fix", "tri"]


def test_an_accuracy_is_shown_once():
    columns = {"best_value": [0.9, 0.8], "test_value": [0.85, 0.75], "test_accuracy": [0.85, 0.75]}
    shown = render(rank(runs("val/accuracy", "max", target=[0.95] * 2, **columns)), "markdown", monitor="val/accuracy")
    assert shown.count("0.8500") == 1
