"""Counts, names of metrics and names of policies in all output."""

import re

import pytest
from rich.console import Console

from lrbench_pl.analysis.load import load_runs
from lrbench_pl.analysis.plots import course_info, groups
from lrbench_pl.analysis.plots._course import _upper_range
from lrbench_pl.analysis.ranking import rank
from lrbench_pl.analysis.report import report
from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.describe import headline
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import RunSpec
from lrbench_pl.sweeps.view import SweepView
from tests.analysis.test_ranking import write
from tests.cli.test_cli import call
from tests.runs.test_run import configure, run

LOSS = {"monitor": "val/loss", "mode": "min", "target": 0.05}


def losses(folder, **changes):
    for policy, best in (("tri", 0.0475), ("fix", 0.0625)):
        for seed in range(5):
            write(folder, policy, 40 + seed, seed, best=best + seed / 1e4, **LOSS, **changes)
    return folder


def test_a_ranking_by_loss_is_labelled_loss(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = call(monkeypatch, capsys, "rank", losses(tmp_path))
    assert code == 0
    assert "best loss" in " ".join(out.split())
    assert "best acc" not in out


def test_utility_without_a_test_set_is_the_loss_smallest_first(tmp_path, monkeypatch, capsys):
    losses(tmp_path, test_accuracy=None)
    ranking = rank(load_runs([tmp_path]).table, metric="utility")
    rows = ranking.select("policy", "best_value", "best_value_low", "best_value_high").rows()
    assert [(policy, pytest.approx(value)) for policy, value, *_ in rows] == [("tri", 0.0477), ("fix", 0.0627)]
    assert all(0 < low <= value <= high for _, value, low, high in rows)
    assert "accuracy" not in ranking.columns
    code, out, _ = call(monkeypatch, capsys, "rank", tmp_path, "--metric", "utility", "--format", "markdown")
    assert code == 0
    assert "best loss" in out
    assert "-0.0" not in out
    assert "acc" not in out


def test_utility_with_a_test_set_is_its_accuracy_in_either_mode(tmp_path):
    losses(tmp_path, test_accuracy=0.97)
    write(tmp_path, "tri", None, 7, status="missed", best=0.9, **LOSS)  # no test: a loss stands for no accuracy
    ranking = rank(load_runs([tmp_path]).table, metric="utility")
    assert ranking["accuracy"].to_list() == [0.97, 0.97]
    assert sorted(ranking["runs"].to_list()) == [5, 5]


def test_a_report_by_loss_is_labelled_loss(tmp_path):
    text = re.sub("<script.*?</script>", "", report(load_runs([losses(tmp_path)])), flags=re.DOTALL)
    assert "best loss" in text
    assert "best acc." not in text
    assert "to 0.05 val/loss" in text


@pytest.fixture(scope="module")
def by_loss(tmp_path_factory):
    """Return a run whose monitor is a loss."""
    folder = tmp_path_factory.mktemp("by_loss") / "0"
    run(folder, "monitor=val/loss", "mode=min", "lr_policy=tri", "target=0.9")
    return folder


def test_a_page_of_a_run_by_loss_heads_the_curves_by_loss(by_loss):
    text = report(load_runs([by_loss]))
    assert "<h2>Loss and learning rate</h2>" in text
    assert "Accuracy and learning rate" not in text


def test_the_curves_of_a_loss_keep_their_low_end(by_loss):
    runs = load_runs([by_loss]).table
    ranking = rank(runs)
    info = course_info(groups(runs, ranking, ["policy"]), 0.9, "val/loss", "min")
    low, high = _upper_range(info)
    assert low < min(info.values[0].y)
    assert high > 0.9


@pytest.mark.parametrize(
    ("row", "line"),
    [
        pytest.param(
            {"status": "reached", "target": 0.97, "steps_to_target": 40, "best_value": 0.98,
             "monitor": "val/accuracy"},
            "tri: reached 0.970 at step 40 of 1000, best 0.980",
            id="accuracy",
        ),
        pytest.param(
            {"status": "reached", "target": 0.05, "steps_to_target": 40, "best_value": 0.0475,
             "monitor": "val/loss", "mode": "min", "test_accuracy": 0.972},
            "tri: reached loss 0.05 at step 40 of 1000, best loss 0.0475, test accuracy 0.972",
            id="loss",
        ),
        pytest.param({"status": "missed", "max_steps": 1, "target": 0.9}, "tri: missed 0.900 within 1 step",
                     id="one-step"),
        pytest.param({"status": "missed", "steps_run": 1}, "tri: ran 1 step without a target", id="no-target"),
        pytest.param(
            {"policy": "auto", "optimizer": "momentum", "lr": 0.05, "peak_found": 0.187, "tuning_steps": 120,
             "status": "reached", "target": 0.97, "steps_to_target": 200},
            "auto (momentum, peak 0.187 found): reached 0.970 at step 200, 120 of them search",
            id="composed",
        ),
    ],
)  # fmt: skip
def test_the_headline_of_a_run(row, line):
    assert headline(RunResult(**{"run_id": "a", "policy": "tri", "max_steps": 1000, **row})) == line


@pytest.mark.slow
def test_the_headline_of_a_composition_has_the_peak_it_found(tmp_path):
    wanted = ("lr_policy=auto", "lr_policy.repeats=2", "max_steps=700", "target=0.9999")
    folder = tmp_path / "auto"
    folder.mkdir()
    row = experiment.run(configure(folder, *wanted), folder)
    assert row.peak_found is not None
    assert row.peak_found != pytest.approx(row.lr)
    assert f"auto (momentum, peak {row.peak_found:.3g} found): " in headline(row)
    assert row.tuning_steps
    assert f", {row.tuning_steps} of them search" in headline(row)


def test_a_given_policy_has_no_found_peak(by_loss):
    assert RunResult.read(by_loss / "result.json").peak_found is None


@pytest.mark.parametrize(
    ("path", "name"),
    [("mine/warm.yaml", "warm"), ("a/select/policy.yaml", "select"), ("b/first/0/policy.yaml", "first/0")],
)
def test_the_name_of_a_policy_from_a_file(path, name, tmp_path):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text("_target_: lrbench_pl.policies.Constant\nlr: 0.1\n")
    assert RunSpec.from_config(configure(tmp_path, f"lr_policy_file={file}")).policy_name == name


def test_two_policies_under_one_name_are_reported(tmp_path, monkeypatch, capsys):
    write(tmp_path, "warm", 40, 0, policy_id="x")
    write(tmp_path, "warm", 60, 1, policy_id="y")
    _, _, error = call(monkeypatch, capsys, "rank", tmp_path)
    assert "warm: 2 policies of this name are ranked as one; separate them with --by policy,policy_id" in error


def test_a_sweep_of_one_job(tmp_path, capsys):
    with SweepView([tmp_path / "0"], "there", console=Console(soft_wrap=True, highlight=False)):
        pass
    assert capsys.readouterr().out.startswith("1 job in there\n1 job: ")
