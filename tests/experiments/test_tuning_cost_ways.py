"""Each way of tuning in the study ends, and counts its steps in all."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "tuning_cost"
SHORT = ["max_steps=60", "check_every=10", "trainer=cpu", "seed=3"]


@pytest.fixture
def way(monkeypatch):
    """A script of the study as a module."""
    monkeypatch.syspath_prepend(str(STUDY))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, STUDY / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_grid_trains_one_after_the_other_until_one_meets_the_target(way, tmp_path, monkeypatch):
    """Against trainings that are a formula: the fifth reaches."""
    protocol, grid = way("protocol"), way("grid")
    asked = []

    def train(overrides):
        asked.append(overrides[-3:-1])
        reached = len(asked) == 5
        return protocol.RunResult(
            run_id="a", policy="p", status="reached" if reached else "missed", steps_run=40 if reached else 60,
            steps_to_target=40 if reached else None,
        )  # fmt: skip

    monkeypatch.setattr(grid, "train", train)
    monkeypatch.setattr(sys, "argv", ["grid.py"])
    protocol.main(grid.grid, [*SHORT, "target=0.9", "--out", str(tmp_path / "rows.csv"), "--cap", "6"])
    (row,) = rows(tmp_path / "rows.csv")
    assert (row["method"], row["steps_in_all"], row["reached"], row["trainings"]) == ("grid", "280", "True", "5")
    assert (row["workload"], row["seed"], row["budget"], row["target"]) == ("digits/mlp", "3", "60", "0.9")
    assert row["command"].startswith("python experiments/tuning_cost/grid.py max_steps=60 ")
    assert [shape for shape, _ in asked] == [f"lr_policy={shape}" for shape in protocol.pool()][:5]
    assert {rate for _, rate in asked} == {"lr=0.05"}
    asked.clear()
    asked.extend([None] * 10)  # none will be the fifth
    assert grid.grid([], protocol.config.compose(SHORT), 200) == [protocol.Outcome("grid", 200, False, 4)]


@pytest.mark.parametrize("name", ["grid", "optuna_tpe", pytest.param("lr_finder_onecycle", marks=pytest.mark.slow)])
def test_a_way_ends_at_the_target_or_at_its_cap(way, tmp_path, name, monkeypatch):
    protocol, module = way("protocol"), way(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    function = getattr(module, {"optuna_tpe": "tpe"}.get(name, name))
    out, counted = tmp_path / "rows.csv", [0]
    hook = register_optimizer_step_post_hook(lambda *_: counted.__setitem__(0, counted[0] + 1))
    protocol.main(function, [*SHORT, "target=0.11", "--out", str(out)])
    protocol.main(function, [*SHORT, "target=1.0", "--out", str(out), "--cap", "2"])
    hook.remove()
    easy, hard = rows(out)
    assert easy["reached"] == "True"
    assert counted[0] == int(easy["steps_in_all"]) + int(hard["steps_in_all"])
    assert hard["reached"] == "False"
    if name != "lr_finder_onecycle":
        assert int(hard["steps_in_all"]) == 120


@pytest.mark.slow
def test_selection_counts_to_the_first_and_to_the_confirmed(way, tmp_path, monkeypatch):
    protocol, module = way("protocol"), way("selection")
    monkeypatch.setattr(sys, "argv", ["selection.py"])
    out = tmp_path / "rows.csv"
    protocol.main(module.selection, ["max_steps=400", "check_every=20", *SHORT[2:], "target=0.8", "--out", str(out)])
    first, confirmed = rows(out)
    assert (first["method"], confirmed["method"]) == ("selection", "selection, confirmed")
    assert first["reached"] == confirmed["reached"] == "True"
    assert 100 < int(first["steps_in_all"]) < int(confirmed["steps_in_all"]) <= 1600


def test_what_cannot_be_counted_is_refused(way, tmp_path, capsys):
    protocol, grid = way("protocol"), way("grid")
    for wrong in (["target=null"], ["--cap", "0"]):
        with pytest.raises(SystemExit):
            protocol.main(grid.grid, [*SHORT, *wrong, "--out", str(tmp_path / "a.csv")])
        assert "expected a target and a --cap above 0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="failed: a batch of 9000 samples is larger"):
        protocol.train([*SHORT, "batch_size=9000"])
