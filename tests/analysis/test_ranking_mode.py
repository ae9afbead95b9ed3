"""Utility where the monitored value is a loss."""

import polars as pl
import pytest

from lrbench_pl.analysis.listing import listing
from lrbench_pl.analysis.ranking import rank


def runs(tested):
    return pl.DataFrame(
        {
            "policy": ["a"] * 6 + ["b"] * 6,
            "status": ["missed"] * 12,
            "mode": ["min"] * 12,
            "monitor": ["val/loss"] * 12,
            "lr": [0.1] * 12,
            "optimizer": ["sgd"] * 12,
            "steps_to_target": [None] * 12,
            "best_value": [0.40 + 0.01 * seed for seed in range(6)] + [0.20 + 0.01 * seed for seed in range(6)],
            "test_accuracy": [0.9] * 6 + [0.8] * 6 if tested else [None] * 12,
            "max_steps": [100] * 12,
            "seed": [*range(6)] * 2,
        },
        schema_overrides={"steps_to_target": pl.Int64, "test_accuracy": pl.Float64},
    )


def test_without_a_test_set_the_smaller_loss_comes_first_and_is_shown_as_it_is():
    table = rank(runs(tested=False), metric="utility")
    assert table["policy"].to_list() == ["b", "a"]
    assert table["best_value"].to_list() == pytest.approx([0.225, 0.425])
    bounds = table.select("best_value_low", "best_value", "best_value_high").rows()
    assert all(low <= value <= high for low, value, high in bounds)


def test_a_test_accuracy_is_larger_the_better_whatever_was_monitored():
    table = rank(runs(tested=True), metric="utility")
    assert table["policy"].to_list() == ["a", "b"]
    assert table["accuracy"].to_list() == pytest.approx([0.9, 0.8])


def test_a_loss_does_not_stand_in_for_a_test_accuracy():
    some = runs(tested=True).with_columns(
        pl.when(pl.col("policy") == "b").then(None).otherwise("test_accuracy").alias("test_accuracy")
    )
    table = rank(some, metric="utility")
    assert table.select("policy", "runs", "accuracy").rows() == [("a", 6, pytest.approx(0.9)), ("b", 0, None)]


def test_a_listing_goes_by_the_mode_too():
    rows = [
        {"dataset": "digits", "model": "mlp", "optimizer": "sgd", "batch_size": 64, "max_steps": 100, "lr": 0.1}
        | {"target": 0.1, "monitor": "val/loss", "mode": "min", "policy": name, "policy_id": name}
        | {"status": "missed", "seed": seed, "best_value": loss + 0.01 * seed}
        for name, loss in (("a", 0.4), ("b", 0.2))
        for seed in range(3)
    ]
    assert listing(rows)["policy"].to_list() == ["b", "a"]
