"""Studies of policies: their protocols, their stages, and that every figure comes out of the frozen rows."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from tests import forks

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import study  # noqa: E402
import tables  # noqa: E402

STUDIES = sorted(path.parent for path in EXPERIMENTS.glob("*/study.yaml"))


def test_stages_without_the_default_are_refused_before_anything_is_trained(capsys, tmp_path):
    work = tmp_path / "work"
    with pytest.raises(SystemExit):
        study.main([STUDIES[0].name, "--stages", "auto", "--work", str(work)])
    assert "--stages must have default, with which the others are compared, got auto" in capsys.readouterr().err
    assert not work.exists()


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_the_table_in_the_readme_is_that_of_the_frozen_rows(folder, capsys):
    study.main([folder.name, "--table"])
    found = capsys.readouterr().out.strip()
    assert len(found.splitlines()) > 4
    readme = (folder / "README.md").read_text()
    assert tables.written(readme, found) == readme
    assert (folder / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_a_protocol_names_policies_that_exist_and_its_rows_follow_it(folder):
    protocol = study.Protocol.read(folder / "study.yaml")
    conf = EXPERIMENTS.parent / "conf" / "lr_policy"
    assert all((conf / f"{policy}.yaml").is_file() for policy in (protocol.default, *protocol.policies))
    rows = pl.read_csv(folder / "results.csv")
    assert set(tables.stage(rows, "default", "run", "auto")["seed"]) == set(protocol.seeds)
    assert set(tables.stage(rows, "target")["seed"]) == set(protocol.target_seeds)
    assert rows.select("study", "optimizer", "policy", "lr", "seed").is_duplicated().sum() == 0


def test_a_protocol_that_does_not_fit_is_refused(tmp_path):
    text = (STUDIES[0] / "study.yaml").read_text()
    (tmp_path / "study.yaml").write_text(text.replace("tune_seeds: [31]", "tune_seeds: [81]"))
    with pytest.raises(ValueError, match="none in common"):
        study.Protocol.read(tmp_path / "study.yaml")
    (tmp_path / "study.yaml").write_text(text + "seed: 3\n")
    with pytest.raises(ValueError, match="unknown: seed"):
        study.Protocol.read(tmp_path / "study.yaml")
    (tmp_path / "study.yaml").write_text(text + "options: {onecycle: [momentum_policy=onecycle]}\n")
    with pytest.raises(ValueError, match="policies that take part, got onecycle"):
        study.Protocol.read(tmp_path / "study.yaml")


def rows_of(steps, tuning=100):
    """Rows of a study: by policy the steps to the target of each seed, None for a miss."""
    found = [
        {"study": f"s/{'default' if policy == 'inv' else 'run'}", "policy": policy, "optimizer": "momentum", "lr": 0.1}
        | {"seed": seed, "status": "missed" if at is None else "reached", "steps_to_target": at, "max_steps": 1000}
        | {
            "steps_run": at or 1000,
            "tuning_steps": 0,
            "best_value": 0.9,
            "test_accuracy": 0.9,
            "final_value": 0.89,
        }
        | {"dataset": "d", "model": "m", "batch_size": 64, "target": 0.9}
        for policy, each in steps.items()
        for seed, at in enumerate(each)
    ]
    tuned = {
        **found[-1],
        "study": "s/tune",
        "seed": 99,
        "steps_run": tuning,
        "status": "missed",
        "steps_to_target": None,
    }
    return pl.DataFrame([*found, tuned], infer_schema_length=None)


def test_speed_ups_are_by_seed_with_and_without_the_tuning():
    rows = rows_of({"inv": [800, 600, 800, 600, 800], "tri": [200, 100, 100, None, 200]}, tuning=200)
    found = {row.name: row for row in tables.compared(rows)}
    assert (found["the default"].reached, found["the default"].speed_up.times.value) == (5, pytest.approx(1.0))
    tri = found["tri"]
    assert (tri.reached, tri.n, tri.steps.value) == (4, 5, 200)
    assert tri.speed_up.times.value == pytest.approx(4)  # of 4, 6, 8, 0, 4
    assert tri.counted.times.value == pytest.approx(2)  # of 2, 2, 2.7, 0, 2
    assert any("| `tri` | 0.1 | 4/5 | 200" in line for line in tables.table(rows))


def test_runs_that_diverged_have_no_accuracy_on_the_test_set():
    rows = rows_of({"inv": [800, 600, 800], "tri": [200, None, None]})
    lost = (pl.col("policy") == "tri") & pl.col("steps_to_target").is_null()
    some = rows.with_columns(pl.when(lost).then(None).otherwise("test_accuracy").alias("test_accuracy"))
    every = rows.with_columns(pl.when(policy="tri").then(None).otherwise("test_accuracy").alias("test_accuracy"))
    shown = [next(line for line in tables.table(each) if "`tri`" in line) for each in (some, every)]
    assert shown[0].endswith("| 0.9000 |")
    assert shown[1].endswith("|  |")


@pytest.mark.parametrize(
    ("inv", "tri", "gain", "counted"),
    [
        # neither arrived on the last seed: of 2, 4 or more, 1, 2 or more
        ([800, None, 600, None, None], [400, 250, 600, 500, None], "≥ 2.00", "≥ 1.63"),
        ([800, None, 600, None, None], [400, 250, 600, 500, 500], "≥ 2.00 [1.00, ∞]", "≥ 1.67 [0.86, ∞]"),
        # of 4, 2, 3, and twice 1.25 or more: the median is bounded too, though it lies on an arrival
        ([800, 600, 600, None, None], [200, 300, 200, 800, 800], "≥ 2.00 [1.25, ∞]", "≥ 1.50 [1.11, ∞]"),
        ([800, 600, 800, 600, 800], [400, 300, 400, None, 400], "2.00 [0.00, 2.00]", "1.60 [0.00, 1.60]"),
    ],
)
def test_a_miss_of_the_default_is_an_arrival_at_the_end_of_its_budget(inv, tri, gain, counted):
    found = next(row for row in tables.compared(rows_of({"inv": inv, "tri": tri}, tuning=100)) if row.name == "tri")
    assert (str(found.speed_up), str(found.counted)) == (gain, counted)


def test_the_best_case_is_set_against_the_tuning_runs():
    rows = rows_of({"inv": [600, 670, 800], "tri": [200, 100, 100]})
    assert tables.best_case(rows)[-1] == (
        "A speed-up of 6.7, the paper's best case, would mean 100 steps. "
        "Of 1 tuning runs over 1000 the best ended at 0.8900, the median at 0.8900."
    )
    assert tables.best_case(rows_of({"inv": [600, None, None], "tri": [200, 100, 100]})) == []
    assert tables.best_case(rows.filter(pl.col("study") != "s/tune")) == []


def test_a_policy_over_the_short_budget_is_a_row_of_its_own_with_the_same_tuning():
    rows = rows_of({"inv": [800, 600, 800], "tri": [200, 100, 100]}, tuning=50)
    short = rows.filter(policy="tri", study="s/run").with_columns(
        pl.lit("s/short").alias("study"), pl.lit(100, pl.Int64).alias("max_steps"), pl.lit(80).alias("steps_to_target")
    )
    found = {row.name: row for row in tables.compared(pl.concat([rows, short], how="vertical_relaxed"))}
    assert set(found) == {"the default", "tri", "tri in 100"}
    assert (found["tri in 100"].steps.value, found["tri in 100"].tuning, found["tri"].tuning) == (80, 50, 50)


def forked(command, check):
    """Run a sweep of a study in a forked process, with its output to this one's."""
    with os.fdopen(os.dup(1), "w") as output:
        process = forks.start(command, Path.cwd(), {**os.environ, "OMP_NUM_THREADS": "1"}, output)
        return SimpleNamespace(returncode=process.wait(600))


@pytest.mark.slow
def test_a_small_study_runs_whole_and_goes_on_where_it_was(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=forked))
    protocol = study.Protocol(
        workload=("trainer=cpu", "logger=none"),
        max_steps=200,
        budget=0.5,
        checks=5,
        default="fix",
        optimizers={"momentum": 0.05},
        policies=("tri", "cos"),
        factors=(0.5, 1.0),
        horizon=0.4,
        target_seeds=(1,),
        tune_seeds=(2,),
        seeds=(3, 4),
        options={"cos": ("momentum_policy=onecycle",)},
    )
    small = study.Study("small", protocol, 0.5, tmp_path / "work", "basic", ())
    rows = small.run()
    stages = dict(rows.group_by(pl.col("study").str.split("/").list.last()).len().rows())
    target = tables.stage(rows, "target")["final_value"][0]
    tuned = tables.stage(rows, "tune")
    met = tuned.filter(pl.col("final_value") >= target)["policy"].n_unique()
    assert stages == {"target": 1, "default": 2, "auto": 2, "tune": 4, "run": 4} | ({"short": 2 * met} if met else {})
    assert set(tables.stage(rows, "run", "default", "auto")["target"]) == {target}
    assert tuned["max_steps"].unique().to_list() == [40]
    assert set(tables.stage(rows, "tune", "run")["policy"]) == {"tri", "cos + momentum onecycle"}
    study.freeze(rows, tmp_path / "results.csv")
    frozen = pl.read_csv(tmp_path / "results.csv")
    lines = tables.table(frozen)
    assert sum(line.startswith("| ") for line in lines) == 1 + 4 + met
    tables.figure(frozen, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    capfd.readouterr()
    again = study.Study("small", protocol, 0.5, tmp_path / "work", "basic", ()).run()
    assert again.sort("run_id")["run_id"].to_list() == rows.sort("run_id")["run_id"].to_list()
    assert "".join(capfd.readouterr()).count("2 finished before") == 6  # default, auto, and tune and run of each
