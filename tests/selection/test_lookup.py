"""Recommendations of the look-up, and a run with lr_policy=best."""

import dataclasses

import pytest

from lrbench_pl.policies import Constant, Polynomial, to_config
from lrbench_pl.runs.result import RunResult
from lrbench_pl.selection.database import PolicyDatabase
from lrbench_pl.selection.distance import Query, UnsuitableError, distance
from lrbench_pl.selection.lookup import recommend
from lrbench_pl.selection.records import stored_run
from tests.runs.test_run import run as train

QUERY = Query("digits", "mlp", "momentum", 64, 1000, 0.95)


def row(seed, steps, name="p", **changes):
    status = "missed" if steps is None else "reached"
    common = {"dataset": "digits", "model": "mlp", "optimizer": "momentum", "batch_size": 64, "max_steps": 1000}
    common |= {"target": 0.95, "monitor": "val/accuracy", "steps_to_target": steps, "steps_run": steps or 1000}
    return RunResult(**{"run_id": f"{name}{seed}", "policy": name, "status": status, "seed": seed, **common, **changes})


def names(runs, query=QUERY):
    return [each.name for each in recommend(query, runs).recommendations]


def test_one_lucky_seed_does_not_beat_ten_good_ones():
    good = [(row(seed, 300, "good"), Constant(0.1)) for seed in range(10)]
    lucky = [(row(0, 20, "lucky"), Constant(0.2))] * 10  # one seed, however often it is stored
    assert names([*lucky, *good]) == ["good", "lucky"]


def test_of_the_sure_ones_the_fastest_and_no_policy_that_mostly_missed():
    runs = [(row(seed, 300, "slow"), Constant(0.1)) for seed in range(9)]
    runs += [(row(seed, 200, "fast"), Constant(0.2)) for seed in range(3)]
    runs += [(row(seed, 10 if seed == 0 else None, "bad"), Constant(0.3)) for seed in range(4)]
    assert names(runs) == ["fast", "slow"]


def test_an_exact_match_comes_first_and_misses_there_outweigh_luck_elsewhere():
    near = [(row(seed, 100, "near", max_steps=500), Polynomial(0.1, 500)) for seed in range(5)]
    exact = [(row(seed, 900, "exact"), Constant(0.1)) for seed in range(3)]
    found = recommend(QUERY, [*near, *exact]).recommendations
    assert [each.name for each in found] == ["exact", "near"]
    assert (found[1].policy, found[1].median_steps, found[1].distance) == (Polynomial(0.1, 1000), 200, 1.0)
    missed = [(row(seed, None, "near"), Polynomial(0.1, 1000)) for seed in range(3)]
    assert names([*near, *missed]) == []


def test_an_easier_target_is_judged_by_the_checks_and_a_harder_one_is_at_a_distance():
    runs = [(row(seed, 300, best_value=0.96), Constant(0.1)) for seed in range(3)]
    easier = recommend(dataclasses.replace(QUERY, target=0.9), runs).recommendations[0]
    harder = recommend(dataclasses.replace(QUERY, target=0.975), runs).recommendations[0]
    assert (easier.distance, harder.distance) == pytest.approx((1.0, 1.0))
    assert harder.differences == ("target 0.95 instead of 0.975",)
    whole = [(dataclasses.replace(each, steps_run=1000), policy) for each, policy in runs]
    assert names(whole, dataclasses.replace(QUERY, target=0.975)) == []


def test_a_composed_policy_counts_from_its_own_start():
    (found,) = recommend(QUERY, [(row(0, 300, "auto", tuning_steps=120), Constant(0.1))]).recommendations
    assert found.median_steps == 180
    assert names([(row(0, None, "auto", tuning_steps=120), Constant(0.1))]) == []


def test_a_target_that_only_averaged_weights_reached_recommends_nothing():
    reached = [(row(seed, 300, "auto", weights="averaged"), Constant(0.1)) for seed in range(3)]
    accepting = {"lr_policy.accept_average": True}
    missed = [(row(3, None, "auto", settings=accepting, best_value=0.94), Constant(0.1))]
    answer = recommend(dataclasses.replace(QUERY, target=0.9), [*reached, *missed])
    assert answer.recommendations == ()
    assert answer.unsuitable == {"checks of averaged weights": 4}
    plain = [(row(seed, 300, "auto", settings=accepting), Constant(0.1)) for seed in range(3)]
    assert names(plain) == ["auto"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"monitor": "val/loss"}, "another monitor"),
        ({"optimizer": "adam"}, "another optimizer"),
        ({"model": "lenet"}, "another model"),
        ({"dataset": "mnist", "model": "lenet"}, "another data set"),
        ({"max_steps": None}, "unknown budget or batch size"),
        ({"optimizer": "nesterov"}, 1.0),
        ({"dataset": "mnist"}, 3.0),
        ({"batch_size": 16}, 2.0),
    ],
)
def test_the_distance(change, expected):
    if isinstance(expected, str):
        with pytest.raises(UnsuitableError, match=f"^{expected}$"):
            distance(QUERY, row(0, 100, **change))
    else:
        assert distance(QUERY, row(0, 100, **change))[0] == expected


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"max_steps": 1.5}, {"target": None}, {"mode": "up"}])
def test_an_invalid_query_is_refused(change):
    with pytest.raises(ValueError, match="must be"):
        dataclasses.replace(QUERY, **change)


def test_best_runs_what_the_database_knows_else_auto(tmp_path, capsys):
    known = {"max_steps": 40, "batch_size": 32, "target": 0.5, "steps_to_target": 20}
    where = f"lr_policy.db={tmp_path}/runs.db"
    before = train(tmp_path / "a", "lr_policy=best", "target=0.5", where)
    assert "no policy database" in capsys.readouterr().out
    assert before.policy_repr.startswith("composed")
    ids = set()
    for lr in (0.05, 0.04):
        with PolicyDatabase(tmp_path / "runs.db", create=True) as database:
            policy = to_config(Constant(lr))
            database.add(
                stored_run({**row(s, 1).to_dict(), **known, "steps_to_target": int(lr * 400)}, policy) for s in range(3)
            )
        result = train(tmp_path / str(lr), "lr_policy=best", "target=0.5", where)
        assert (result.policy, result.policy_repr, result.lr) == ("best", f"Constant(lr={lr})", lr)
        assert "exact match" in capsys.readouterr().out
        assert (tmp_path / str(lr) / "lookup.json").is_file()
        ids.add(result.run_id)
    assert len(ids | {before.run_id}) == 3
