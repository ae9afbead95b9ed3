"""One run, from a configuration to a result."""

import csv
import json
import os
import signal
import time

import pytest
import torch
from omegaconf import OmegaConf, open_dict

from lrbench_pl.policies import from_config, table
from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.build import Classifier, build
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.result import RunResult

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

SHORT = ("max_steps=40", "check_every=10", "batch_size=32", "trainer=cpu")


def configure(folder, *overrides):
    return compose([*SHORT, f"logger.csv.save_dir={folder}", *overrides])


def run(folder, *overrides):
    folder.mkdir(exist_ok=True)
    return experiment.run(configure(folder, *overrides), folder)


def history(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_times(result):
    row = result.to_dict()
    return {name: row[name] for name in row if name not in ("seconds_to_target", "wall_time_s", "git_sha")}


def test_a_run_writes_a_result_a_history_and_a_policy(tmp_path):
    result = run(tmp_path, "lr_policy=composite_tri", "target=0.5", "stop_at_target=false")
    assert RunResult.read(tmp_path / "result.json") == result
    assert result.status == "reached"
    assert result.steps_to_target in (10, 20, 30, 40)
    assert (result.policy, result.dataset, result.model, result.optimizer) == (
        "composite_tri",
        "digits",
        "mlp",
        "momentum",
    )
    assert 0.5 <= result.best_value <= 1
    assert 0.5 <= result.test_accuracy <= result.test_top5 <= 1
    assert result.loss_difference == pytest.approx(result.test_loss - result.train_loss)
    assert 0 < result.confidence < 1
    assert result.steps_run == 40

    rows = history(tmp_path)
    rates = {int(row["step"]): float(row["lr"]) for row in rows if row["lr"]}
    policy = from_config(OmegaConf.load(tmp_path / "policy.yaml"))
    assert rates == pytest.approx(dict(enumerate(table(policy, 40))))
    checks = [(float(row["check/step"]), float(row["val/accuracy"])) for row in rows if row["check/step"]]
    assert [step for step, _ in checks] == [10, 20, 30, 40]
    assert max(value for _, value in checks) == pytest.approx(result.best_value, abs=1e-6)


def test_it_stops_at_the_target(tmp_path):
    result = run(tmp_path, "max_steps=400", "target=0.5")
    assert result.status == "reached"
    assert result.steps_run == result.steps_to_target < 400


def test_one_seed_gives_bitwise_equal_results(tmp_path, monkeypatch):
    weights = []
    evaluate = experiment._evaluate

    def keep(parts):
        weights.append([p.detach().clone() for p in parts.module.parameters()])
        return evaluate(parts)

    monkeypatch.setattr(experiment, "_evaluate", keep)
    first, second, other = (run(tmp_path / name, f"seed={seed}") for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert without_times(first) == without_times(second)
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert other.run_id != first.run_id
    assert not torch.equal(weights[0][0], weights[2][0])


def test_the_written_policy_runs_again(tmp_path):
    first = run(tmp_path / "a", "lr_policy=sgdr")
    again = run(tmp_path / "b", f"lr_policy_file={tmp_path}/a/policy.yaml")
    assert again.policy == "a"
    assert (again.policy_id, again.policy_repr) == (first.policy_id, first.policy_repr)
    assert (again.best_value, again.test_loss) == (first.best_value, first.test_loss)


def test_an_adaptive_policy_is_written_as_it_was_applied(tmp_path):
    result = run(tmp_path, "lr_policy=plateau", "max_steps=100", "target=1.0", "lr_policy.threshold=0.9")
    policy = from_config(OmegaConf.load(tmp_path / "policy.yaml"))
    assert result.steps_run == 100
    rates = {int(row["step"]): float(row["lr"]) for row in history(tmp_path) if row["lr"]}
    assert len(set(rates.values())) > 1
    assert rates == pytest.approx(dict(enumerate(table(policy, 100))))


def test_a_diverged_run_has_a_result(tmp_path):
    result = run(tmp_path, "optimizer=sgd", "lr=1e30", "lr_policy=fix")
    assert result.status == "diverged"
    assert "the training loss became non-finite at step" in result.message
    assert result.steps_to_target is None
    assert RunResult.read(tmp_path / "result.json") == result


def test_ctrl_c_gives_a_result(tmp_path, monkeypatch):
    def interrupt(self, batch, batch_idx):
        if batch_idx == 25:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    original = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", interrupt)
    result = run(tmp_path, "target=1.0")
    assert (result.status, result.message) == ("stopped", "interrupted at step 25")
    assert result.best_step in (10, 20)
    assert RunResult.read(tmp_path / "result.json") == result


@pytest.mark.parametrize("place", ["specify", "open_loggers"])
def test_ctrl_c_that_a_library_turns_into_another_error_is_ctrl_c(tmp_path, monkeypatch, place):
    def swallow(*arguments, **options):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise experiment.UserError("initialization failed") from None

    monkeypatch.setattr(experiment, place, swallow)
    before = signal.getsignal(signal.SIGINT)
    result = run(tmp_path)
    assert (result.status, result.message) == ("stopped", "interrupted before the first step")
    assert RunResult.read(tmp_path / "result.json") == result
    assert signal.getsignal(signal.SIGINT) is before


def test_the_protocol_of_the_paper_checks_on_the_test_set(tmp_path):
    result = run(tmp_path, "dataset.check_on=test", "target=1.0")
    assert result.check_on == "test"
    assert result.final_value == pytest.approx(result.test_accuracy)


def test_gradient_accumulation_counts_optimizer_steps(tmp_path):
    result = run(tmp_path, "trainer.accumulate_grad_batches=3", "target=1.0")
    assert (result.steps_run, result.batch_size) == (40, 96)
    assert [float(row["check/step"]) for row in history(tmp_path) if row["check/step"]] == [10, 20, 30, 40]


def test_bfloat16_runs(tmp_path):
    result = run(tmp_path, "trainer=bf16", "target=1.0")
    assert (result.precision, result.steps_run) == ("bf16-mixed", 40)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "adadelta"]
)
def test_every_optimizer_learns_at_its_own_rate(tmp_path, optimizer):
    result = run(tmp_path, f"optimizer={optimizer}", "max_steps=200", "check_every=50", "target=1.0")
    assert result.best_value > 0.6  # guessing gives 0.1
    assert result.lr == compose([f"optimizer={optimizer}"]).lr


def test_a_change_at_the_last_check_leaves_a_policy_that_runs_again(tmp_path):
    never_better = ("lr_policy.threshold=1", "lr_policy.cooldown=0", "lr_policy.switch_fraction=0")
    for patience, stones in ((2, (30,)), (3, ())):
        folder = tmp_path / str(patience)
        run(folder, "lr_policy=plateau", *never_better, f"lr_policy.patience={patience}", "target=null")
        policy = from_config(OmegaConf.load(folder / "policy.yaml"))
        assert getattr(policy, "milestones", ()) == stones
        again = run(folder / "again", f"lr_policy_file={folder}/policy.yaml", "target=null")
        assert again.status == "missed", again.message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["max_steps=0"], "max_steps must be an integer of at least 1, got 0"),
        (["max_steps=1.5"], "max_steps must be an integer of at least 1, got 1.5"),
        (["seed=-1"], "seed must be an integer of at least 0, got -1"),
        (["lr=0"], "lr must be a finite number above 0, got 0"),
        (["lr=fast"], "lr must be a finite number above 0, got 'fast'"),
        (["target=1.5"], r"target must be at most 1 for 'val/accuracy', got 1.5"),
        (["checkpoint_every=0"], "checkpoint_every must be an integer of at least 1 or null, got 0"),
        (["checkpoints_kept=0"], "checkpoints_kept must be an integer of at least 1, got 0"),
        (["max_time=0"], "max_time must be a number of seconds above 0 or null, got 0"),
        (["check_every=41"], "check_every must not exceed max_steps (40), got 41"),
        (
            ["monitor=val/acc"],
            "monitor 'val/acc' was not logged in validation; logged were: train/loss, val/",
        ),
        (["lr_policy=step", "lr_policy.gamma=2"], "lr_policy: gamma must lie in (0, 1], got 2"),
        (["lr_policy=step", "+lr_policy.gama=2"], "unexpected keyword argument 'gama'"),
        (["lr_policy=nstep", "lr_policy.milestones=[20,10]"], "milestones must increase strictly, got (20, 10)"),
        (["lr_policy=nstep", "lr_policy.milestones=[20,50]"], "milestones must lie below max_steps (40), got 50"),
        (["lr_policy_file=nowhere.yaml"], "lr_policy_file=nowhere.yaml: "),
        (["batch_size=5000"], "a batch of 5000 samples is larger than the training set of 1137"),
        (["dataset.validation=1430"], "a hold-out of 1430 samples leaves nothing of a class to train on"),
        (["dataset.validation=0"], "dataset.validation must be at least 1 to check on held-out data, got 0"),
        (["dataset.check_on=train"], "dataset.check_on must be 'validation' or 'test', got 'train'"),
        (["dataset.num_classes=9"], "dataset.num_classes must be above the largest label, 9, got 9"),
        (["model.num_classes=7"], "the model gives 7 classes, but the data set has 10"),
        (["model=lenet"], "lenet needs images of at least 16 x 16 pixels, got 8 x 8"),
        (["dataset=mnist", "dataset.root=/nowhere"], "MNIST was not found in /nowhere; set dataset.root=PATH"),
        (["dataset=cifar10", "dataset.root=/nowhere"], "CIFAR10 was not found in /nowhere; set dataset.root=PATH"),
        (
            ["dataset=image_folder", "dataset.root=/nowhere", "model=resnet18"],
            "images were not found in /nowhere/train",
        ),
    ],
)
def test_a_mistake_gives_a_failed_result_with_one_clear_line(tmp_path, overrides, message):
    result = run(tmp_path, *overrides)
    assert result.status == "failed"
    assert message in result.message
    assert "\n" not in result.message
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"


def test_a_hostile_policy_file_is_data(tmp_path):
    (tmp_path / "evil.yaml").write_text("_target_: os.system\ncommand: touch pwned\n")
    result = run(tmp_path / "run", f"lr_policy_file={tmp_path}/evil.yaml")
    assert result.status == "failed"
    assert "_target_ must be lrbench_pl.policies.X" in result.message
    assert not list(tmp_path.rglob("pwned"))


def own(cfg, **changes):
    with open_dict(cfg):
        for name, value in changes.items():
            cfg[name] = OmegaConf.create(value)
    return cfg


def test_a_model_and_a_data_set_of_the_users_own(tmp_path):
    cfg = own(
        configure(tmp_path),
        dataset={"_target_": "tests.workloads.own.TwoClouds", "batch_size": 16},
        model={"_target_": "tests.workloads.own.Linear", "num_classes": 2},
    )
    result = experiment.run(cfg, tmp_path)
    assert (result.status, result.test_accuracy) == ("reached", None)


def test_a_whole_workload_of_the_users_own(tmp_path):
    cfg = own(
        configure(
            tmp_path,
            "monitor=val/error",
            "mode=min",
            "target=0.1",
            "lr=0.1",
            "lr_policy=cosine",
            "optimizer=adam",
        ),
        dataset={"_target_": "tests.workloads.own.TwoClouds", "batch_size": 16},
        workload={"_target_": "tests.workloads.own.Regression", "lr": 0.1},
    )
    result = experiment.run(cfg, tmp_path)
    assert result.status == "reached", result.message
    assert result.model == "tests.workloads.own.Regression"
    assert result.best_value <= 0.1


def test_two_policies_with_one_seed_see_the_same_batches_and_weights():
    parts = [build(configure("x", f"lr_policy={policy}")) for policy in ("tri", "cosine")]
    first, second = (part.data for part in parts)
    for _ in range(3):
        (x, y), (x2, y2) = next(first.train_dataloader()), next(second.train_dataloader())
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
