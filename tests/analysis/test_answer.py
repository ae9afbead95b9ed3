"""The answer of a ranking in one sentence, and the commands that add the seeds it takes."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from lrbench_pl.analysis.answer import answer_lines, answers
from lrbench_pl.analysis.history import at_target
from lrbench_pl.analysis.load import load_runs
from lrbench_pl.analysis.ranking import rank
from tests import forks
from tests.analysis.test_history import run as trained
from tests.analysis.test_ranking import write
from tests.cli.test_cli import call
from tests.faults.sweeps import ENVIRONMENT, LIMIT_S

ROOT = Path(__file__).resolve().parents[2]


def say(folder, by=None, metric="cost", baseline=None):
    runs = load_runs([folder]).table
    return [each.sentence for each in answers(runs, rank(runs, by, metric), baseline)]


def sweep(folder, steps, **changes):
    """Write the runs of a sweep: by policy the steps to the target of each seed, None for a miss."""
    for policy, each in steps.items():
        for seed, at in enumerate(each):
            write(folder, policy, at, seed, **changes)


FAST, SLOW = [100, 110, 120, 130, 140], [200, 230, 240, 250, 300]


@pytest.mark.parametrize(
    ("steps", "baseline", "sentence"),
    [
        pytest.param(
            {"tri": FAST},
            None,
            "tri reached 0.97, after 120 [100, 140] steps; there is no other policy to compare it with",
            id="one-policy",
        ),
        pytest.param(
            {"tri": FAST, "fix": SLOW},
            None,
            "tri reached 0.97 soonest, 2 [1.9, 2.1] times as fast as fix; 5 seeds separate it from all others",
            id="constant-is-the-baseline",
        ),
        pytest.param(
            {"tri": [100, 100, 110, 300, 310], "fix": [100, 100, 120, 120, 130]},
            None,
            "tri reached 0.97 soonest, about as fast as fix (1 [0.4, 1.1] times); 5 seeds do not separate it from fix; "
            "to decide would take more than 100 more",
            id="soonest-but-no-faster",
        ),
        pytest.param(
            {"tri": FAST, "cos": SLOW},
            None,
            "tri reached 0.97 soonest, after 120 [100, 140] steps; 5 seeds separate it from all others",
            id="no-baseline",
        ),
        pytest.param(
            {"tri": FAST, "cos": SLOW, "fix": SLOW},
            "cos",
            "tri reached 0.97 soonest, 2 [1.9, 2.1] times as fast as cos; 5 seeds separate it from all others",
            id="a-baseline",
        ),
        pytest.param(
            {"fix": FAST, "tri": SLOW},
            None,
            "fix reached 0.97 soonest, after 120 [100, 140] steps; 5 seeds separate it from all others",
            id="the-baseline-is-first",
        ),
        pytest.param(
            {"tri": [100, 120, 140], "cos": [110, 140, 150], "fix": [190, 210, 240]},
            None,
            "tri reached 0.97 soonest, 1.8 times as fast as fix; 3 seeds do not separate it from cos and fix; "
            "to decide, add 42 seeds each",
            id="not-separated",
        ),
        pytest.param(
            {"tri": [None] * 5, "cos": [None] * 5},
            None,
            "No run reached 0.97 within 1000 steps; cos and tri came closest, with 0.9800 in the median; 5 seeds do "
            "not separate them from each other; to decide would take more than 100 more",
            id="nobody-reached",
        ),
        pytest.param(
            {"tri": FAST, "cos": FAST},
            None,
            "cos and tri reached 0.97 equally soon, after 120 [100, 140] steps; 5 seeds do not separate them from "
            "each other; to decide would take more than 100 more",
            id="ties",
        ),
        pytest.param(
            {"tri": [100], "cos": [200]},
            None,
            "tri reached 0.97 soonest, after 100 steps; 1 seed is too few to compare policies; to compare, add 4 seeds "
            "each",
            id="one-seed",
        ),
        pytest.param(
            {"tri": [300] * 5, "cos": [100, 110, 120, 130, None]},
            None,
            "tri reached 0.97 most often (5 of 5 seeds), after 300 steps; 5 seeds do not separate it from cos; "
            "to decide would take more than 100 more",
            id="most-often-is-not-soonest",
        ),
        pytest.param(
            {"tri": [300] * 5, "sin": [400] * 5, "cos": [100, 110, 120, 130, None]},
            None,
            "tri reached 0.97 on 5 of 5 seeds, soonest of the 2 that did, after 300 steps; 5 seeds do not separate it "
            "from cos; to decide would take more than 100 more",
            id="soonest-of-those-that-always-did",
        ),
        pytest.param(
            {"tri": [100, 110, 120, 130, None], "fix": [None] * 5},
            None,
            "tri reached 0.97 soonest (4 of 5 seeds), fix on 0 of 5; 5 seeds separate it from all others",
            id="the-baseline-misses",
        ),
        pytest.param(
            {"tri": [100, None, None], "cos": [None] * 3},
            None,
            "tri reached 0.97 most often (1 of 3 seeds); 3 seeds do not separate it from cos; to decide, add 48 seeds "
            "each",
            id="most-missed",
        ),
    ],
)
def test_the_sentence(tmp_path, steps, baseline, sentence):
    sweep(tmp_path, steps)
    assert say(tmp_path, baseline=baseline) == [sentence]


def test_a_smaller_value_is_better(tmp_path):
    loss = {"target": 0.05, "monitor": "val/loss", "mode": "min"}
    sweep(tmp_path / "a", {"tri": FAST, "fix": SLOW}, best=0.04, **loss)
    assert say(tmp_path / "a")[0].startswith(
        "tri reached loss 0.05 soonest, 2 [1.9, 2.1] times as fast as fix; 5 seeds"
    )
    sweep(tmp_path / "b", {"tri": [None] * 5}, best=0.0612, **loss)
    sweep(tmp_path / "b", {"cos": [None] * 5}, best=0.0711, **loss)
    assert say(tmp_path / "b")[0].startswith(
        "No run reached loss 0.05 within 1000 steps; tri came closest, with 0.0612 in the median; 5 seeds separate it"
    )


def test_several_optimizers_are_named_and_compared_with_the_same(tmp_path):
    sweep(tmp_path, {"tri": FAST, "fix": SLOW}, optimizer="adam")
    sweep(tmp_path, {"tri": [500] * 5, "fix": [900] * 5}, optimizer="momentum")
    assert say(tmp_path) == [
        "tri with adam reached 0.97 soonest, 2 [1.9, 2.1] times as fast as fix with adam; 5 seeds separate it from all "
        "others"
    ]


def test_each_task_has_its_answer(tmp_path):
    sweep(tmp_path, {"tri": FAST}, dataset="mnist")
    sweep(tmp_path, {"cos": SLOW}, dataset="digits")
    assert [each.partition(" reached")[0] for each in say(tmp_path, ["dataset", "policy"])] == [
        "dataset digits: cos",
        "dataset mnist: tri",
    ]


def test_other_metrics_and_no_target(tmp_path):
    for policy, accuracy in (("tri", 0.95), ("cos", 0.9)):
        for seed in range(5):
            more = {"test_accuracy": accuracy + 0.001 * seed, "loss_difference": 1 - accuracy, "target": None}
            write(tmp_path, policy, None, seed, best=accuracy, **more)
    assert say(tmp_path, metric="utility") == [
        "tri has the best accuracy, 0.952 [0.95, 0.954]; 5 seeds separate it from all others"
    ]
    assert say(tmp_path, metric="robustness")[0].startswith(
        "tri has the smallest difference between test and training loss, 0.05;"
    )
    assert say(tmp_path)[0].startswith("The runs have no target; tri came to the best accuracy (0.9500 in the median);")


def test_runs_without_an_end_are_no_answer(tmp_path):
    write(tmp_path, "tri", None, status="failed")
    assert say(tmp_path) == ["No run finished"]


# -- the commands -------------------------------------------------------------------------------------------------


def hydra(folder, task, choice, given=("hydra.sweep.dir=x", "hydra.mode=MULTIRUN", "hydra/launcher=joblib")):
    stored = ["hydra:", "  job: {config_name: config}", "  runtime:", "    config_sources: []"]
    stored += [
        f"    choices: {{lr_policy: {choice}}}",
        "  overrides:",
        f"    hydra: {list(given)}",
        f"    task: {task}",
    ]
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "hydra.yaml").write_text("\n".join(stored) + "\n")


def lines_of(folder, runs=None):
    runs = runs or load_runs([folder])
    return [line for each in answers(runs.table, rank(runs.table)) for line in answer_lines(each, runs.table, 500)]


def test_the_command_is_that_of_the_sweep_with_further_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for policy, steps in {"tri": [100, 120, 140], "cos": [110, 140, 150]}.items():
        for seed, at in enumerate(steps, start=3):
            hydra(
                write(tmp_path / "s", policy, at, seed), [f"lr_policy={policy}", f"seed={seed}", "max_steps=9"], policy
            )
    sentence, command = lines_of(tmp_path / "s")
    more = int(re.search(r"add (\d+) seeds each:$", sentence)[1])
    assert command == (
        f"  lrbench run -m max_steps=9 hydra/launcher=joblib lr_policy=tri,cos 'seed=range(6,{6 + more})' "
        "hydra.sweep.dir=s/seeds-6"
    )
    (tmp_path / "s" / "seeds-6").mkdir()  # of an earlier command
    assert lines_of(tmp_path / "s")[1].endswith("hydra.sweep.dir=s/seeds-6-2")


def test_groups_that_differ_in_more_than_the_policy_have_commands_of_their_own(tmp_path):
    for policy, optimizer, steps in (("tri", "adam", 100), ("cos", "momentum", 110), ("fix", "adam", 120)):
        task = [f"lr_policy={policy}", f"optimizer={optimizer}", "seed=0"]
        hydra(write(tmp_path, policy, steps, 0, optimizer=optimizer), task, policy, given=())
    _, first, second = lines_of(tmp_path)
    assert first.endswith(f"optimizer=adam lr_policy=tri,fix 'seed=range(1,5)' hydra.sweep.dir={tmp_path}/seeds-1")
    assert second.endswith(f"optimizer=momentum lr_policy=cos 'seed=range(1,5)' hydra.sweep.dir={tmp_path}/seeds-1-2")


def test_runs_judged_at_another_target_are_trained_to_the_end(tmp_path):
    for policy in ("tri", "cos"):
        checks = [(20, 0.9), (40, 0.96)]
        at = trained(tmp_path, policy, 40, checks, seed=0)
        hydra(at, [f"lr_policy={policy}", "seed=0"], policy)
    (_, command) = lines_of(tmp_path, at_target(load_runs([tmp_path]), 0.9))
    assert "lr_policy=cos,tri stop_at_target=false 'seed=range(1,5)'" in command


def test_there_is_no_command_without_the_files_of_hydra(tmp_path):
    write(tmp_path, "tri", 100)
    hydra(write(tmp_path, "cos", 200), ["lr_policy=cos"], "cos")
    (sentence,) = lines_of(tmp_path)
    assert sentence.endswith("; to compare, add 4 seeds each.")


def test_rank_begins_with_the_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    sweep(tmp_path, {"tri": FAST, "fix": SLOW})
    out = call(monkeypatch, capsys, "rank", tmp_path)[1]
    assert out.startswith("tri reached 0.97 soonest, 2 [1.9, 2.1] times as fast as fix; 5 seeds separate it\nfrom all")
    assert max(map(len, out.splitlines())) <= 80
    _, out, err = call(monkeypatch, capsys, "rank", tmp_path, "--format", "csv")
    assert out.startswith("rank,")
    assert err.startswith("tri reached 0.97 soonest")


@pytest.mark.slow
def test_the_command_of_a_real_sweep_adds_its_seeds(tmp_path, monkeypatch, capsys):
    given = ["lr_policy=fix,tri", "seed=0,1", "max_steps=20", "check_every=10", "target=0.3", "trainer=cpu"]
    given = [sys.executable, ROOT / "run.py", "-m", *given, "hydra.sweep.dir=s"]
    assert forks.run(given, tmp_path, ENVIRONMENT, LIMIT_S).returncode == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    out = call(monkeypatch, capsys, "rank", "s")[1]
    (command,) = [line.strip() for line in out.splitlines() if line.startswith("  lrbench run -m ")]
    assert "'seed=range(2,5)'" in command
    words = [sys.executable, ROOT / "run.py", *shlex.split(command)[2:]]
    done = forks.run(words, tmp_path, ENVIRONMENT, LIMIT_S)
    assert done.returncode == 0, done.stderr[-2000:]
    seeds = load_runs("s").table.group_by("policy").agg("seed").rows()
    assert {policy: sorted(each) for policy, each in seeds} == {"fix": [0, 1, 2, 3, 4], "tri": [0, 1, 2, 3, 4]}
    assert "5 seeds" in call(monkeypatch, capsys, "rank", "s")[1]
