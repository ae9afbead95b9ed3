"""A budget in epochs or tokens: converted to steps before anything else reads it."""

import json
import os
import sys

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lrbench_pl.cli.preview import planned_runs
from lrbench_pl.policies import policy_id
from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.budget import without_units
from lrbench_pl.runs.config import build_policy, compose
from lrbench_pl.runs.options import UserError, remarks
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import RunSpec
from tests import forks
from tests.workloads.own import TwoClouds

SAMPLES = 1137  # of the digits, without validation and test


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        pytest.param(["max_epochs=20", "batch_size=64"], 356, id="rounded-up"),  # 20 * 1137 / 64 = 355.3
        pytest.param(["max_epochs=0.5", "batch_size=64"], 9, id="half-an-epoch"),
        pytest.param(["max_epochs=64", "batch_size=64"], SAMPLES, id="exact"),
        pytest.param(["max_epochs=1.1", "batch_size=1137", "dataset.check_on=validation"], 2, id="just-above-one"),
        pytest.param(["max_epochs=20", "batch_size=32", "trainer.accumulate_grad_batches=2"], 356, id="accumulated"),
        pytest.param(["max_epochs=20", "batch_size=32", "trainer.devices=2"], 356, id="processes"),
        pytest.param(["max_epochs=20", "batch_size=32", "experiment=demo"], 711, id="instead-of-an-experiment's"),
        pytest.param(["max_epochs=2", "dataset.check_on=test"], 45, id="without-a-hold-out"),  # 1437 samples
    ],
)
def test_epochs_become_steps(overrides, steps):
    assert compose(overrides).max_steps == steps


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question. " * 100)  # 4,200 characters
    return ["dataset=text", "model=gpt", f"dataset.file={path}", "dataset.context=16", "batch_size=8"]


@pytest.mark.parametrize(
    ("budget", "steps"),
    [("max_tokens=1e6", 7813), ("max_tokens=1280", 10), ("max_tokens=1281", 11), ("max_epochs=2", 59)],
)
def test_tokens_become_steps(text, budget, steps):
    """A step shows 8 windows of 16 characters; the training part of 3,790 has 235 windows."""
    assert compose([*text, budget]).max_steps == steps


def test_everything_sees_the_steps():
    cfg, same = compose(["max_epochs=20", "lr_policy=wsd"]), compose(["max_steps=356", "lr_policy=wsd"])
    assert (cfg.check_every, cfg.checkpoint_every, cfg.trainer.max_steps) == (7, 36, 356)
    assert build_policy(cfg) == build_policy(same)
    assert RunSpec.from_config(cfg) == RunSpec.from_config(same)
    assert RunSpec.from_config(cfg).run_id == RunSpec.from_config(same).run_id
    assert compose(["max_epochs=20", "lr_policy=auto"]).lr_policy.max_steps == 356


def test_each_job_of_a_sweep_has_its_own():
    plans = [run.plan for run in planned_runs(["lr_policy=cosine", "max_epochs=1,2"])]
    assert [plan.max_steps for plan in plans] == [18, 36]
    assert policy_id(plans[0].policy, 18) == policy_id(build_policy(compose(["max_steps=18"])), 18)


def test_the_result_keeps_both(tmp_path):
    overrides = ["batch_size=64", "target=null", "check_every=9", "trainer=cpu", f"logger.csv.save_dir={tmp_path}"]
    result = experiment.run(compose(["max_epochs=1", *overrides]), tmp_path)
    assert (result.max_steps, result.steps_run, result.max_epochs, result.max_tokens) == (18, 18, 1, None)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert (stored["max_steps"], stored["max_epochs"]) == (18, 1)
    again = experiment.run(compose(["max_steps=18", *overrides]), tmp_path)
    assert again == result  # it is the same run, and finished


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["max_epochs=2", "max_tokens=1e6"], "the budget must be given once, got max_epochs=2 and max_tokens=1000000"),
        (["max_steps=100", "max_epochs=2"], "the budget must be given once, got max_steps and max_epochs=2; leave one"),
        (["max_epochs=0"], "max_epochs must be a finite number above 0 or null, got 0"),
        (["max_epochs=-3"], "max_epochs must be a finite number above 0 or null, got -3"),
        (["max_epochs=inf"], "max_epochs must be a finite number above 0 or null, got inf"),
        (["max_epochs=nan"], "max_epochs must be a finite number above 0 or null, got nan"),
        (["max_epochs=many"], "max_epochs must be a finite number above 0 or null, got 'many'"),
        (["max_epochs=true"], "max_epochs must be a finite number above 0 or null, got True"),
        (["max_epochs=1e300"], "max_epochs must give at most 9007199254740992 steps, got max_epochs=1e+300; lower it"),
        (["max_tokens=1e6"], "the number of tokens of a sample, which TensorDataModule does not tell; give max_epochs"),
        (["max_epochs=2", "batch_size=0"], "batch_size must be an integer of at least 1, got 0"),
        (
            ["max_epochs=2", "trainer.devices=auto"],
            "needs the number of processes, got trainer.devices=auto",
        ),
        (
            ["max_epochs=2", "+trainer.limit_train_batches=5"],
            "leave out trainer.limit_train_batches",
        ),
        (["max_epochs=2", "dataset=mnist", "dataset.root=/nowhere"], "max_epochs: MNIST was not found in /nowhere"),
    ],
)
def test_what_is_no_budget_is_refused(overrides, message):
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_unit_of_a_file_gives_way_to_steps_only_when_it_is_told_to(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmax_epochs: 2\n")
    mine = [f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"]
    assert compose(mine).max_steps == 36
    with pytest.raises(UserError, match="leave one out, here with max_epochs=null"):
        compose([*mine, "max_steps=50"])
    assert compose([*mine, "max_steps=50", "max_epochs=null"]).max_steps == 50


def test_the_remark_on_unchecked_steps_names_the_unit():
    cfg = compose(["max_epochs=20", "check_every=100"])
    assert "give max_steps=300 instead of max_epochs, or another check_every" in remarks(cfg)[0]


class Plain(TwoClouds):
    """A data module that tells nothing but its loader."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(50, 2), torch.zeros(50)), batch_size=8, drop_last=True)


class Endless(TwoClouds):
    """A data module without a length."""

    def train_dataloader(self):
        class Stream(IterableDataset):
            def __iter__(self):
                yield from iter(int, 1)

        return DataLoader(Stream(), batch_size=8)


class Telling(Endless):
    """A data module that tells its size by attributes."""

    train_samples, tokens_per_sample = 100, 32


@pytest.fixture
def own_data(tmp_path):
    (tmp_path / "dataset").mkdir()

    def compose_own(kind, *overrides):
        (tmp_path / "dataset" / "own.yaml").write_text(
            f"_target_: tests.runs.test_budget.{kind}\nbatch_size: ${{batch_size}}\nnum_classes: 2\ninput_shape: [2]\n"
        )
        return compose([f"hydra.searchpath=['file://{tmp_path}']", "dataset=own", *overrides])

    return compose_own


@pytest.mark.parametrize(
    ("kind", "overrides", "steps"),
    [
        ("Plain", ["max_epochs=3"], 18),  # 6 batches of its own size
        ("Plain", ["max_epochs=3", "trainer.accumulate_grad_batches=4"], 6),  # the last batch of an epoch ends a step
        ("Plain", ["max_epochs=3", "trainer.devices=2"], 9),  # 25 samples each
        ("Telling", ["max_epochs=3", "batch_size=10"], 30),
        ("Telling", ["max_tokens=3200", "batch_size=10"], 10),
    ],
)
def test_data_of_ones_own_tells_its_size(own_data, kind, overrides, steps):
    assert own_data(kind, *overrides).max_steps == steps


def test_data_without_a_length_is_refused(own_data):
    with pytest.raises(UserError) as caught:
        own_data("Endless", "max_epochs=3")
    assert str(caught.value) == (
        "max_epochs needs the number of training samples, which Endless does not tell; give max_steps, or Endless an "
        "attribute train_samples"
    )


def test_a_selection_trains_over_steps(tmp_path):
    """Its trials set their own horizon, whether the unit is on the command line or in a file."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmax_epochs: 6\n")
    mine = [f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"]
    assert without_units(compose(mine)) == ["max_epochs=null"]
    assert without_units(compose([*mine, "max_epochs=null"])) == without_units(compose(["max_epochs=6"])) == []


@pytest.mark.slow
def test_a_sweep_of_the_program(tmp_path):
    """Jobs are composed by the launcher, and converted before their folders are assigned."""
    command = [sys.executable, "-m", "lrbench_pl", "run", "-m", "max_epochs=1,2", "target=null", "trainer=cpu"]
    done = forks.run([*command, "hydra.sweep.dir=sweep"], tmp_path, dict(os.environ), timeout=120)
    assert done.returncode == 0, done.stderr
    results = [RunResult.read(tmp_path / "sweep" / job / "result.json") for job in "01"]
    assert [(each.max_epochs, each.max_steps, each.steps_run) for each in results] == [(1, 18, 18), (2, 36, 36)]
