"""Equal policies of a sweep: the second copies the outcome of the first."""

import json
from dataclasses import replace

import pytest

from lrbench_pl.runs.result import Outcome, RunResult, Setup
from lrbench_pl.runs.sharing import Pool
from tests.sweeps.test_sweep import SHORT, call, rows

SETUP = Setup(policy_id="x", device="cpu")


def finished(sweep, name="0", status="missed", **changes):
    folder = sweep / name
    row = RunResult(run_id=f"run{name}", policy="step", policy_id="x", status=status, max_steps=10, **changes)
    row.write(folder)
    (folder / "metrics.csv").write_text("step,lr\n0,0.1\n")
    return row, folder


def test_the_outcome_and_the_history_are_copied(tmp_path):
    pool = Pool.of(tmp_path, {"seed": 0}, SETUP)
    assert pool.take(tmp_path / "1") is None
    pool.offer(*finished(tmp_path, best_value=0.9, wall_time_s=2.0))
    shared = pool.take(tmp_path / "1")
    assert shared == Outcome("missed", best_value=0.9, wall_time_s=2.0, shared_with="run0")
    assert (tmp_path / "1" / "metrics.csv").read_text() == "step,lr\n0,0.1\n"


@pytest.mark.parametrize(
    ("but_for_rates", "setup"), [({"seed": 1}, SETUP), ({"seed": 0}, replace(SETUP, policy_id="y"))]
)
def test_another_seed_or_other_rates_are_another_pool(tmp_path, but_for_rates, setup):
    Pool.of(tmp_path, {"seed": 0}, SETUP).offer(*finished(tmp_path))
    assert Pool.of(tmp_path, but_for_rates, setup).take(tmp_path / "1") is None


@pytest.mark.parametrize("code", [{"git_sha": "b"}, {"versions": {"torch": "9"}}, {"device": "gpu"}])
def test_other_code_or_another_device_is_another_pool(tmp_path, code):
    Pool.of(tmp_path, {}, SETUP).offer(*finished(tmp_path))
    assert Pool.of(tmp_path, {}, replace(SETUP, **code)).take(tmp_path / "1") is None


@pytest.mark.parametrize("status", ["failed", "stopped"])
def test_an_unfinished_run_is_not_shared(tmp_path, status):
    pool = Pool.of(tmp_path, {}, SETUP)
    pool.offer(*finished(tmp_path, status=status))
    assert pool.take(tmp_path / "1") is None


def test_a_copy_is_not_copied_and_a_lost_run_is_trained_again(tmp_path):
    pool = Pool.of(tmp_path, {}, SETUP)
    pool.offer(*finished(tmp_path, "1", shared_with="run0"))
    assert pool.take(tmp_path / "2") is None
    pool.offer(*finished(tmp_path))
    (tmp_path / "0" / "result.json").write_text('{"run_id":')
    assert pool.take(tmp_path / "2") is None
    (tmp_path / "0" / "result.json").unlink()
    assert pool.take(tmp_path / "2") is None
    finished(tmp_path, status="failed")
    assert pool.take(tmp_path / "2") is None


def test_a_run_outside_the_sweep_is_not_entered(tmp_path):
    pool = Pool.of(tmp_path / "sweep", {}, SETUP)
    pool.offer(*finished(tmp_path / "elsewhere"))
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_a_real_sweep_trains_equal_policies_once(tmp_path):
    sweep = ["-m", *SHORT, "target=1.0", "hydra.sweep.dir=sweep", "lr=0.05", "seed=0,1"]
    policies = ["lr_policy=linear,poly", "++lr_policy.power=1"]
    done = call(tmp_path, *sweep, *policies)
    assert done.returncode == 0, done.stderr
    found = {(row["policy"], row["seed"]): row for row in rows(tmp_path / "sweep")}
    assert len({row["run_id"] for row in found.values()}) == 2  # one for each seed: the policy is one value
    own = {"run_id", "policy", "policy_repr", "settings", "shared_with"}
    for seed in (0, 1):
        first, second = found["linear", seed], found["poly", seed]
        assert first["shared_with"] is None
        assert second["shared_with"] == first["run_id"]
        assert {name: first[name] for name in first if name not in own} == {
            name: second[name] for name in second if name not in own
        }
    assert done.stdout.count("poly: the same rates as run") == 2
    histories = [path.read_text() for path in sorted((tmp_path / "sweep").glob("*/metrics.csv"))]
    assert len(histories) == 4
    assert len(set(histories)) == 2

    call(tmp_path, *sweep, "seed=0", "hydra.sweep.dir=off", "share_equal=false", *policies)
    assert [row["shared_with"] for row in rows(tmp_path / "off")] == [None, None]
    same = [json.dumps(row["best_value"]) for row in rows(tmp_path / "off")]
    assert same[0] == same[1]
