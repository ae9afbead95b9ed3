"""Values that a result cannot store are refused before training; settings without effect are refused or reported."""

import json
import logging

import pytest
from omegaconf import OmegaConf, open_dict

from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.build import build
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.describe import specify
from lrbench_pl.runs.options import as_text, remarks
from lrbench_pl.runs.result import Outcome, RunResult
from tests.analysis.test_ranking import write
from tests.cli.test_cli import call

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

SHORT = ("max_steps=40", "check_every=20", "trainer=cpu", "logger=none", "target=null")


def configure(*overrides, **nodes):
    cfg = compose([*SHORT, *overrides])
    with open_dict(cfg):
        for name, value in nodes.items():
            cfg[name] = value if isinstance(value, (int, str)) else OmegaConf.create(value)
    return cfg


@pytest.fixture
def never_trained(monkeypatch):
    def build(*arguments, **more):
        raise AssertionError("the training was started")

    monkeypatch.setattr(experiment, "build", build)


# -- values of a result ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "field", "text"),
    [
        ("study=2024", "study", "2024"),
        ("study=true", "study", "true"),
        ("study=1.5", "study", "1.5"),
        ("names.dataset=7", "dataset", "7"),
        ("names.model=18", "model", "18"),
        ("names.optimizer=3", "optimizer", "3"),
        ("names.policy=1", "policy", "1"),
        ("monitor=5", "monitor", "5"),
    ],
)
def test_a_number_is_a_name_too(override, field, text):
    assert getattr(RunResult.build(*specify(configure(override)), Outcome("missed")), field) == text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study=[a,b]", r"study must be text, got \['a', 'b'\]"),
        ("study={a:1}", "study must be text, got {'a': 1}"),
        ("names.policy=null", "names.policy must be text, got None"),
        ("names.model=[1]", "names.model must be text"),
        ("seed=4294967296", r"seed must be an integer below 2\*\*32, got 4294967296"),
        (
            "max_steps=9223372036854775808",
            "max_steps must be an integer of at most 9007199254740992, got 9223372036854775808",
        ),
        ("batch_size=9223372036854775808", "batch_size must be an integer of at most 9007199254740992"),
        ("trainer.accumulate_grad_batches=two", "trainer.accumulate_grad_batches must be an integer of at least 1"),
    ],
)
def test_values_that_a_result_cannot_store_are_refused_before_training(tmp_path, never_trained, override, message):
    result = experiment.run(configure(override), tmp_path)
    assert result.status == "failed"
    assert RunResult.read(tmp_path / "result.json") == result
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(result.message)


def test_check_on_of_the_data_must_be_text(tmp_path):
    """``check_on`` of a data module of the user's own."""
    dataset = {"_target_": "tests.workloads.own.TwoClouds", "batch_size": 16}
    model = {"_target_": "tests.workloads.own.Linear", "num_classes": 2}
    cfg = configure(dataset=dataset, model=model)
    parts = build(cfg)
    parts.data.check_on = ["a", "list"]
    with pytest.raises(ValueError, match="check_on of the data must be text"):
        experiment.specify_parts(cfg, parts, *specify(cfg))


def test_a_list_is_not_text():
    with pytest.raises(ValueError, match="mode must be text"):
        as_text("mode", ["max"])


# -- targets --------------------------------------------------------------------------------------------------


def test_a_loss_may_have_any_finite_target(tmp_path):
    result = experiment.run(configure("monitor=val/loss", "mode=min", "target=1000"), tmp_path)
    assert (result.status, result.target) == ("reached", 1000)


@pytest.mark.parametrize("target", ["95", ".inf", ".nan", "true", "x"])
def test_an_impossible_target_is_refused_before_training(tmp_path, never_trained, target):
    result = experiment.run(configure(f"target={target}"), tmp_path)
    assert result.status == "failed"
    assert result.message.startswith("target must ")
    assert ("did you mean 0.95?" in result.message) == (target == "95")


def test_a_required_target_must_be_given(tmp_path, never_trained):
    result = experiment.run(configure("require_target=true"), tmp_path)
    assert result.message == "require_target=true needs a target; give target="


@pytest.mark.parametrize("command", ["rank", "report"])
def test_another_target_follows_the_same_rule(tmp_path, monkeypatch, capsys, command):
    write(tmp_path, "tri", 100, 0)
    code, _, err = call(monkeypatch, capsys, command, tmp_path, "--target", "95")
    assert code == 2
    assert err == "error: --target must be at most 1 for 'val/accuracy', got 95; did you mean 0.95?\n"


def test_verify_refuses_runs_with_an_impossible_target(tmp_path, monkeypatch, capsys):
    write(tmp_path, "tri", None, 0, target=95)
    code, _, err = call(monkeypatch, capsys, "verify", tmp_path)
    assert code == 2
    assert "the runs' target must be at most 1 for 'val/accuracy', got 95" in err


# -- settings without effect ----------------------------------------------------------------------------------


def test_a_rate_of_the_optimizer_is_refused(tmp_path, never_trained):
    result = experiment.run(configure("optimizer.lr=0.3"), tmp_path)
    assert result.status == "failed"
    assert result.message.endswith("give lr=0.3 instead")
    assert experiment.run(configure("optimizer.lr=0.3", "lr=0.3"), tmp_path).message != result.message


OWN = {"_target_": "tests.workloads.own.Regression", "lr": 0.1}
FIXED = {"_target_": "lrbench_pl.policies.Constant", "lr": 0.3}


@pytest.mark.parametrize(
    ("given", "nodes", "said"),
    [
        pytest.param([], {}, [], id="nothing"),
        pytest.param(["lr=0.1", "model=lenet", "channels_last=false", "batch_size=8"], {}, [], id="all-read"),
        pytest.param(["lr=0.1"], {"lr_policy": FIXED}, ["lr=0.1 has no effect: the policy does not"], id="fixed-rate"),
        pytest.param(
            ["lr=0.1", "lr_policy=tri"],
            {"lr_policy_file": "x.yaml"},
            ["lr=0.1 has no effect: the rates are those", "lr_policy=tri has no effect: the rates are those"],
            id="policy-of-a-file",
        ),
        pytest.param(
            ["model=lenet", "compile=true", "optimizer.weight_decay=0.1", "optimizer=sgd"],
            {"workload": OWN},
            ["model=lenet has no", "compile=true has no", "optimizer.weight_decay=0.1 has no"],
            id="beside-a-workload",
        ),
        pytest.param(
            ["model=lenet", "optimizer.weight_decay=0.1"],
            {"workload": {**OWN, "net": "${model}", "optimizer": "${optimizer}"}},
            [],
            id="workload-that-refers-to-them",
        ),
        pytest.param(
            ["batch_size=8"],
            {"dataset": {"_target_": "tests.workloads.own.TwoClouds", "batch_size": 16}},
            ["batch_size=8 has no effect: the data set does not"],
            id="data-of-one-batch-size",
        ),
        pytest.param(
            ["stop_at_target=false"],
            {"lr_policy": {"_target_": "lrbench_pl.callbacks.composer.LRPolicyComposer"}},
            ["stop_at_target=false has no effect"],
            id="auto",
        ),
        pytest.param(["+colour=red"], {"colour": "red"}, ["colour has no effect: nothing reads it"], id="unknown-key"),
        pytest.param(
            ["+width=8"], {"width": 8, "model": {"_target_": "x", "hidden": ["${width}"]}}, [], id="key-that-is-used"
        ),
    ],
)
def test_settings_without_effect_are_reported(given, nodes, said):
    cfg = configure(**nodes)
    for name, group in {"policy": "lr_policy", "model": "model", "optimizer": "optimizer"}.items():
        cfg.names[name] = f"${{hydra:runtime.choices.{group}}}"  # as a run gets it
    lines = remarks(cfg, given)
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))


def test_the_default_configuration_has_no_unknown_key():
    for overrides in ([], ["lr_policy=auto"], ["lr_policy=best"], ["lr_policy=range"], ["experiment=mnist_lenet"]):
        assert not remarks(compose(["target=null", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["max_steps=60", "check_every=22", "target=0.9"],
            "the last check is at step 44 of 60, so the last 16 ",
        ),
        (["max_steps=60", "check_every=20", "target=0.9"], None),
        (["max_steps=60", "check_every=22"], None),
    ],
)
def test_steps_after_the_last_check_are_reported(overrides, said):
    lines = remarks(configure(*overrides))
    assert [line.startswith(said or "?") for line in lines] == ([True] if said else [])


def test_a_run_reports_it_once(tmp_path, caplog, never_trained):
    with caplog.at_level(logging.WARNING):
        for number in range(2):
            experiment.run(configure("max_steps=61", "target=0.9"), tmp_path / str(number))
    assert caplog.text.count("the last check is at step 60 of 61") == 1


# -- the optimizer of a workload ------------------------------------------------------------------------------


def train(folder, *overrides, target="tests.workloads.builds.WithSGD", **more):
    return experiment.run(
        configure(
            *overrides,
            "monitor=val/error",
            "mode=min",
            dataset={"_target_": "tests.workloads.own.TwoClouds", "batch_size": 16},
            workload={"_target_": target, "lr": 0.1, **more},
        ),
        folder,
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer=adamw"], "the workload builds SGD, but optimizer=adamw is AdamW"),
        (["optimizer=sgd", "+optimizer.momentum=0.0"], "builds SGD with momentum=0.9, but optimizer=sgd has 0.0"),
        (["optimizer=nesterov"], "builds SGD with nesterov=False, but optimizer=nesterov has True"),
    ],
)
def test_the_name_of_another_optimizer_than_the_workload_builds_is_refused(tmp_path, overrides, message):
    result = train(tmp_path, *overrides)
    assert (result.status, result.steps_run) == ("failed", 0)
    assert message in result.message


@pytest.mark.parametrize(
    ("overrides", "label"),
    [(["optimizer=momentum"], "momentum"), (["optimizer=adamw", "names.optimizer=mine"], "mine")],
)
def test_a_true_name_and_a_name_of_the_users_own_are_kept(tmp_path, overrides, label):
    result = train(tmp_path, *overrides)
    assert (result.status, result.optimizer) == ("missed", label)


def test_a_workload_may_take_the_optimizer_of_the_configuration(tmp_path):
    given = {"target": "tests.workloads.builds.WithGiven", "optimizer": "${optimizer}"}
    result = train(tmp_path, "optimizer=nesterov", **given)
    assert (result.status, result.optimizer) == ("missed", "nesterov")


@pytest.mark.filterwarnings("ignore:the training loader has no `position`")
def test_auto_starts_from_the_rate_of_the_configuration_whatever_the_workload_was_built_with(tmp_path):
    """As with every other policy; the module's own rate is 0.1."""
    result = train(tmp_path, "lr_policy=auto", "lr=0.02", "target=0.001")
    assert (result.status, result.lr) == ("missed", 0.02)
    notes = [segment.get("why", "") for segment in json.loads((tmp_path / "tuning.json").read_text())]
    assert notes[0].startswith("decays from 0.06 ")
