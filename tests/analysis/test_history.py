"""Runs judged at another target, and histories that cannot be used."""

import json
import random

import pytest

from lrbench_pl.analysis.history import History, at_target, read_history
from lrbench_pl.analysis.load import AnalysisError, load_runs
from lrbench_pl.analysis.ranking import rank
from lrbench_pl.verdict import Check, first_confirmed
from tests.analysis.test_ranking import write
from tests.runs.test_run import run as train

CHECKS = [(20, 0.5), (40, 0.9499999880790710), (60, 0.96), (80, 0.94), (100, 0.98)]


def history(folder, checks=CHECKS, steps=True, monitor="val/accuracy"):
    """A file as Lightning writes it: rates and losses between checks, whose rows are numbered one step too low."""
    lines = [f"check/seconds,check/step,epoch,lr,step,train/loss,{monitor}"]
    for step, value in checks:
        lines.append(f",,,0.05,{step - 1},,")
        lines.append(f"{step / 100},{float(step)},0,,{step - 1},,{value}" if steps else f",,0,,{step - 1},,{value}")
    (folder / "metrics.csv").write_text("\n".join([*lines, ",,1,,101,0.2,\n"]))
    return folder


def run(folder, policy="tri", steps=40, checks=CHECKS, **changes):
    final = checks[-1][1] if checks else None
    row = {"target": 0.95, "final_value": final, "steps_run": 1000, "mode": "max", "confirmations": 1}
    return history(write(folder, policy, steps, **{**row, **changes}), checks)


def only(folder, target):
    (row,) = at_target(load_runs([folder]), target).table.to_dicts()
    return row


def test_the_step_of_a_check_is_not_the_number_of_its_row(tmp_path):
    assert read_history(history(tmp_path), "val/accuracy").steps == (20, 40, 60, 80, 100)
    assert read_history(history(tmp_path, steps=False), "val/accuracy").steps == (20, 40, 60, 80, 100)


def test_float32_is_read_as_it_was_meant(tmp_path):
    assert read_history(history(tmp_path), "val/accuracy").values == (0.5, 0.95, 0.96, 0.94, 0.98)


def test_the_rule_is_the_callbacks():
    rng = random.Random(0)
    for _ in range(300):
        values = [rng.randrange(5) / 4 if rng.random() < 0.9 else float("nan") for _ in range(8)]
        checks = [Check(10 * i, value, 0.0) for i, value in enumerate(values)]
        mode, confirmations = rng.choice(["max", "min"]), rng.randrange(1, 4)
        theirs = first_confirmed(checks, 0.5, mode, confirmations)
        ours = History(tuple(range(8)), tuple(values), (None,) * 8).first_confirmed(0.5, mode, confirmations)
        assert ours == (None if theirs is None else theirs.step // 10)


@pytest.mark.parametrize(
    ("target", "status", "step"),
    [(0.5, "reached", 20), (0.95, "reached", 40), (0.97, "reached", 100), (0.99, "missed", None)],
)
def test_a_run_at_another_target(tmp_path, target, status, step):
    run(tmp_path)
    row = only(tmp_path, target)
    assert (row["status"], row["steps_to_target"], row["target"], row["open"]) == (status, step, target, False)
    assert row["seconds_to_target"] == (None if step is None else step / 100)


def test_confirmations_and_mode_are_the_runs_own(tmp_path):
    run(tmp_path / "a", confirmations=2)
    assert only(tmp_path / "a", 0.9)["steps_to_target"] == 40
    assert only(tmp_path / "a", 0.96)["steps_to_target"] is None
    errors = [(20, 0.5), (40, 0.1), (60, 0.2)]
    run(tmp_path / "b", steps=40, checks=errors, mode="min", target=0.1)
    assert only(tmp_path / "b", 0.2)["steps_to_target"] == 40
    assert only(tmp_path / "b", 0.05)["status"] == "missed"


def test_older_results_get_their_rule_from_the_configuration(tmp_path):
    folder = run(tmp_path, steps=40, checks=[(20, 0.9), (40, 0.1), (60, 0.1)], mode=None, confirmations=None)
    row = json.loads((folder / "result.json").read_text())
    del row["mode"], row["confirmations"]
    (folder / "result.json").write_text(json.dumps({**row, "target": 0.1}))
    assert load_runs([tmp_path]).table.select("mode", "confirmations").rows() == [("max", 1)]
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text("confirmations: 2\nmodel:\n  mode: max\nmode: min\n")
    assert load_runs([tmp_path]).table.select("mode", "confirmations").rows() == [("min", 2)]
    assert only(tmp_path, 0.2)["steps_to_target"] == 40


def test_a_run_that_stopped_at_its_target_leaves_a_harder_one_open(tmp_path):
    stopped = [(20, 0.5), (40, 0.95)]
    run(tmp_path, "fast", seed=0, checks=stopped, steps_run=40)
    run(tmp_path, "fast", seed=1)
    run(tmp_path, "quick", seed=0, checks=stopped, steps_run=40)
    runs = at_target(load_runs([tmp_path]), 0.97)
    assert runs.table.select("status", "open").rows() == [("missed", True), ("reached", False), ("missed", True)]
    table = rank(runs.table)
    # fast: one of two is open at 40, the other arrives at 100, so the curve falls to 0; of quick nothing is known
    columns = ("policy", "reached", "open", "share", "share_low", "median_steps", "expected_steps")
    assert table.select(columns).rows() == [
        ("fast", 1, 1, 1.0, None, 100.0, None),
        ("quick", 0, 1, None, None, None, None),
    ]


def test_a_miss_or_a_divergence_stays_one_unless_the_target_was_met_before(tmp_path):
    low = [(20, 0.5), (40, 0.9)]
    run(tmp_path, "a", None, checks=low)
    run(tmp_path, "b", None, checks=low, status="diverged", steps_run=50)
    write(tmp_path, "c", None, status="failed", target=0.95)
    runs = load_runs([tmp_path])
    statuses = {target: at_target(runs, target).table["status"].to_list() for target in (0.9, 0.92)}
    assert statuses == {0.9: ["reached", "reached", "failed"], 0.92: ["missed", "diverged", "failed"]}
    assert not at_target(runs, 0.92).table["open"].any()


def test_a_check_that_is_no_number_meets_no_target(tmp_path):
    lost = [(20, 0.5), (40, float("nan"))]
    run(tmp_path, "a", None, checks=lost, status="diverged", final_value=float("nan"))
    assert (only(tmp_path, 0.5)["steps_to_target"], only(tmp_path, 0.6)["status"]) == (20, "diverged")


def test_the_checks_of_a_composed_policy(tmp_path):
    checks = [(20, 0.99), (40, 0.5), (60, 0.96), (80, 0.97), (100, 0.97)]
    folder = run(tmp_path, "auto", 80, checks=checks, confirmations=2)
    segments = [
        {"kind": "range", "policy_step": 0, "spent": 0, "steps": 20, "why": ""},
        {"kind": "trunk", "policy_step": 0, "spent": 20, "steps": 20, "why": ""},
        {"kind": "branch", "policy_step": 20, "spent": 40, "steps": 20, "why": ""},
        {"kind": "branch", "policy_step": 20, "spent": 60, "steps": 40, "why": "reached the target"},
    ]
    (folder / "tuning.json").write_text(json.dumps(segments))
    read = read_history(folder, "val/accuracy")
    # the range test does not count, and a branch begins to confirm anew; abandoned branches count
    assert (read.steps, read.diverged, read.resets) == ((40, 60, 80, 100), set(), {0, 2})
    assert only(tmp_path, 0.95)["steps_to_target"] == 80
    (folder / "tuning.json").write_text(json.dumps([{**segments[0], "kind": "trunk", "why": "diverged"}]))
    assert read_history(folder, "val/accuracy").diverged == {0}


def cut(folder):
    file = folder / "metrics.csv"
    text = file.read_text()
    file.write_text(text[: text.index(",0.94\n") + 3])


def test_a_check_of_averaged_weights_is_not_the_runs_own(tmp_path):
    folder = run(tmp_path, "auto", 80, checks=[(20, 0.5), (40, 0.97), (60, 0.96), (80, 0.96)], confirmations=2)
    lines = (folder / "metrics.csv").read_text().splitlines()
    marked = [f"check/averaged,{lines[0]}", *(f"{1.0 if ',40.0,' in line else 0.0},{line}" for line in lines[1:])]
    (folder / "metrics.csv").write_text("\n".join(marked) + "\n")
    assert read_history(folder, "val/accuracy").steps == (20, 60, 80)
    assert read_history(folder, "val/accuracy").resets == {1}
    assert read_history(folder, "val/accuracy").first_confirmed(0.95, confirmations=2) == 1


def test_a_check_of_averaged_weights_that_could_reach_the_target_counts(tmp_path):
    folder = run(tmp_path, "auto", 40, checks=[(20, 0.5), (40, 0.97)])
    lines = (folder / "metrics.csv").read_text().splitlines()
    marked = [f"check/averaged,{lines[0]}", *(f"{2.0 if ',40.0,' in line else 0.0},{line}" for line in lines[1:])]
    (folder / "metrics.csv").write_text("\n".join(marked) + "\n")
    segment = {"kind": "stable", "policy_step": 20, "spent": 20, "steps": 20, "averaged": True, "why": "reached"}
    (folder / "tuning.json").write_text(json.dumps([segment]))
    assert read_history(folder, "val/accuracy").steps == (20, 40)


BROKEN = {
    "no metrics.csv; train with logger=csv": lambda folder: (folder / "metrics.csv").unlink(),
    "metrics.csv must have the columns step and 'val/accuracy', got check/seconds": lambda folder: history(
        folder, monitor="val/other"
    ),
    "metrics.csv is not numeric": lambda folder: history(folder, [(20, "high")]),
    "metrics.csv is not": lambda folder: (folder / "metrics.csv").write_text(""),
    "metrics.csv ends at step 60 with 0.96, but final_value is 0.98: incomplete": cut,
    "metrics.csv reaches 0.95 at step 60, its result at step 40": lambda folder: history(
        folder, [CHECKS[2], CHECKS[4]]
    ),
    "metrics.csv has no check, but": lambda folder: history(folder, []),
    "metrics.csv cannot be read": lambda folder: [(folder / "metrics.csv").unlink(), (folder / "metrics.csv").mkdir()],
    "tuning.json cannot be read": lambda folder: (folder / "tuning.json").write_text("[{}]"),
    "metrics.csv has a check without its step": lambda folder: (folder / "metrics.csv").write_text(
        "step,val/accuracy\n,0.98\n"
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_an_unusable_history_is_skipped_with_the_reason(tmp_path, message):
    run(tmp_path, "good", seed=0)
    BROKEN[message](run(tmp_path, "bad", seed=1))
    runs = at_target(load_runs([tmp_path]), 0.97)
    assert runs.table["policy"].to_list() == ["good"]
    (skipped,) = runs.skipped
    assert (skipped.path.name, skipped.reason[: len(message)]) == ("1", message)


def test_a_result_without_its_monitor(tmp_path):
    run(tmp_path, monitor=None)
    with pytest.raises(
        AnalysisError, match=r"--target 0.9 needs a run with a usable history, got none; the first: .*monitor"
    ):
        at_target(load_runs([tmp_path]), 0.9)


def test_an_invalid_target(tmp_path):
    run(tmp_path)
    with pytest.raises(AnalysisError, match="--target must be a finite number or None, got nan"):
        at_target(load_runs([tmp_path]), float("nan"))


def test_mixed_targets_become_one(tmp_path):
    run(tmp_path, "a", seed=0)
    run(tmp_path, "b", 60, seed=0, target=0.96)
    runs = load_runs([tmp_path])
    with pytest.raises(AnalysisError, match="the runs differ in target"):
        rank(runs.table)
    assert rank(at_target(runs, 0.98).table)["median_steps"].to_list() == [100, 100]


def test_a_real_history_answers_as_training_at_that_target_does(tmp_path):
    train(tmp_path / "long", "target=0.5", "stop_at_target=false", "max_steps=80")
    row = only(tmp_path / "long", 0.85)
    again = train(tmp_path / "again", "target=0.85", "max_steps=80")
    assert again.status == "reached"
    assert (row["status"], row["steps_to_target"]) == ("reached", again.steps_to_target)
    assert (again.mode, again.confirmations) == ("max", 1)


def test_a_real_composition_answers_at_an_easier_target(tmp_path):
    result = train(tmp_path, "lr_policy=auto", "target=0.9", "max_steps=400", "check_every=20")
    assert result.status == "reached"
    assert only(tmp_path, 0.9)["steps_to_target"] == result.steps_to_target
    weights = json.loads((tmp_path / "tuning.json").read_text())
    own = [leg["spent"] + leg["steps"] for leg in weights if leg["kind"] != "range" and not leg["averaged"]]
    # neither in a range test nor of averaged weights
    assert only(tmp_path, 0.001)["steps_to_target"] <= own[0]
    assert all(only(tmp_path, 0.001)["steps_to_target"] > leg["spent"] for leg in weights if leg["kind"] == "range")
    assert only(tmp_path, 0.999)["open"]
