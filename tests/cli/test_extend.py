"""Extensions of runs: composites, checkpoints, equality with the unbroken run, and refusals."""

import contextlib
import csv
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from typer.testing import CliRunner

from lrbench_pl.analysis.ranking import rank
from lrbench_pl.callbacks.checkpoints import CheckpointError
from lrbench_pl.cli import app
from lrbench_pl.cli.extend import extend, run_here
from lrbench_pl.files import checkpoints_in
from lrbench_pl.policies import (
    Constant,
    Cyclic,
    MultiStep,
    Polynomial,
    Sequential,
    from_config,
    segments,
    table,
    to_config,
)
from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.extend import ExtendError, extended, resumed_findings, stable_phase
from lrbench_pl.runs.lint import TrainingPlan, lint, resumed
from lrbench_pl.runs.result import RunResult
from tests import forks
from tests.helpers import explode, script

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

WSD = Sequential((Polynomial(0.01, 5, end_lr=0.1), Constant(0.1), Polynomial(0.1, 30)), (5, 70))
SHORT = ("max_steps=100", "check_every=20", "trainer=cpu", "target=null", "batch_size=32")
TIMES = ("seconds_to_target", "wall_time_s", "git_sha")


@pytest.fixture
def weights(monkeypatch):
    """The weights at the end of each run, by its folder."""
    found, evaluate = {}, experiment._evaluate

    def keep(parts):
        found[parts.trainer.default_root_dir] = [value.clone() for value in parts.module.state_dict().values()]
        return evaluate(parts)

    monkeypatch.setattr(experiment, "_evaluate", keep)
    return found


def run(folder, *overrides, short=SHORT):
    folder.mkdir(parents=True, exist_ok=True)
    return experiment.run(compose([*short, f"logger.csv.save_dir={folder}", *overrides]), folder)


def in_process(arguments, directory):
    """Train as `lrbench run` does, but without Hydra's own files."""
    name = next(each for each in arguments if each.startswith("hydra.run.dir="))
    folder = name.partition("=")[2].strip("'")
    cfg = compose([*arguments, f"logger.csv.save_dir={folder}"])
    experiment.run(cfg, Path(folder))


def go(tmp_path, *names, decays=(0.2,), shapes=("linear",), **arguments):
    folders = [tmp_path / name for name in names or ("run",)]
    return extend(folders, decays, shapes, output=tmp_path / "out", **{"train": in_process, **arguments})


def history(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "check/seconds"} for row in csv.DictReader(file)]


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()}


# -- the composite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "phase"),
    [
        pytest.param(WSD, (5, 70), id="wsd"),
        pytest.param(Constant(0.1), (0, 100), id="fix"),
        pytest.param(
            Sequential((Polynomial(0.01, 5, end_lr=0.1), Constant(0.1)), (5,)), (5, 100), id="warm-up-and-fix"
        ),
        pytest.param(Sequential((WSD, Constant(0.01)), (100,)), (5, 70), id="nested-and-not-reached"),
        pytest.param(
            Sequential((Constant(0.1), Polynomial(0.1, 20), Constant(0.01)), (60, 80)), (0, 60), id="a-tail-is-no-phase"
        ),
        pytest.param(Sequential((Cyclic(0.02, 0.1, 20, "triangle"), Polynomial(0.1, 40)), (60,)), (0, 60), id="a-wave"),
        pytest.param(
            Sequential((Constant(0.1), Sequential((Cyclic(0.0, 0.1, 30, "half_cosine"), Constant(0.0)), (30,))), (70,)),
            (0, 70),
            id="a-nested-decay",
        ),
    ],
)
def test_the_stable_phase_is_found(policy, phase):
    found = stable_phase(policy, 100)
    assert (found.start, found.end) == phase


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(Polynomial(0.1, 100), id="linear"),
        pytest.param(Cyclic(0.0, 0.1, 100, "half_cosine"), id="cosine"),
        pytest.param(Cyclic(0.01, 0.1, 40, "triangle"), id="tri"),
        pytest.param(MultiStep(0.1, 0.1, (50, 75)), id="nstep"),
        pytest.param(Sequential((Polynomial(0.01, 5, end_lr=0.1), Polynomial(0.1, 95)), (5,)), id="warm-up-and-decay"),
    ],
)
def test_a_policy_without_a_stable_phase_is_refused(policy):
    with pytest.raises(ExtendError, match=r"^the policy has no stable phase: expected .*; train such a policy$"):
        stable_phase(policy, 100)


def test_a_composed_policy_may_decay_twice():
    policy = Sequential((Constant(0.05), Polynomial(0.1, 20), Polynomial(0.1, 40)), (40, 60))
    phase = stable_phase(policy, 100, may_be_empty=True)
    assert (phase.policy, phase.start, phase.end) == (Constant(0.1), 60, 60)
    assert extended(phase, 0.4, "linear", available=60).policy == policy
    assert table(extended(phase, 0.2, "linear", 60, 200).policy, 200)[60:160] == [0.1] * 100


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_the_composite_repeats_the_past_and_decays_to_zero(shape):
    found = extended(stable_phase(WSD, 100), 0.25, shape, available=70, max_steps=200)
    rates = table(found.policy, 200)
    assert rates[:70] == table(WSD, 70)
    assert set(rates[5:150]) == {0.1}
    assert rates[150:] == sorted(rates[150:], reverse=True)
    assert 0 <= rates[-1] < 0.005
    assert not [finding for finding in lint(TrainingPlan(found.policy, 200)) if finding.kind == "never-runs"]
    assert (
        from_config(OmegaConf.create(OmegaConf.to_container(OmegaConf.create(_stored(found.policy))))) == found.policy
    )


def _stored(policy):

    return to_config(policy)


def test_without_a_budget_the_decay_begins_at_the_checkpoint():
    found = extended(stable_phase(WSD, 100), 0.3, "linear", available=70)
    assert (found.decay_start, found.max_steps) == (70, 100)
    assert found.policy == WSD
    found = extended(stable_phase(Constant(0.1), 100), 0.3, "linear", available=100)
    assert (found.decay_start, found.max_steps) == (100, 143)
    found = extended(stable_phase(Constant(0.1), 100), 0.3, "linear", available=100, interval=20)
    assert (found.decay_start, found.max_steps) == (100, 160)


def test_a_wave_continues_with_its_own_clock():
    wave = Cyclic(0.02, 0.1, 20, "triangle")
    found = extended(stable_phase(Sequential((wave, Polynomial(0.1, 40)), (60,)), 100), 0.5, "linear", 60, 130)
    assert found.policy(64) == wave(64) != wave(4 + 10)
    assert found.policy(65) == wave(65)  # the decay begins where the wave is


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, "linear", 70, 200), "--decay must be a share of the new budget in (0, 1), got 0.0"),
        ((1.0, "linear", 70, 200), "--decay must be a share of the new budget in (0, 1), got 1.0"),
        ((0.2, "exp", 70, 200), "--shape must be one of linear, cosine, 1-sqrt, got 'exp'"),
        ((0.2, "linear", 70, 0), "--max-steps must be an integer of at least 1, got 0"),
        (
            (0.2, "linear", 70, 80),
            "a decay over 0.2 of 80 steps would begin at step 64, before the checkpoint of step 70; lower --decay to "
            "at most 0.125, or raise --max-steps to 88",
        ),
        (
            (0.2, "linear", 70, 60),
            "a decay over 0.2 of 60 steps would begin at step 48, before the checkpoint of step 70; raise --max-steps "
            "to 88",
        ),
    ],
)
def test_a_horizon_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ExtendError) as caught:
        extended(stable_phase(WSD, 100), *arguments)
    assert str(caught.value) == message


# -- equality with the unbroken run ---------------------------------------------------------------------------


def unbroken(tmp_path, extension, *overrides, short=SHORT):
    """Train the composite of an extension from scratch."""
    kept = [each for each in short if not each.startswith("max_steps")]
    steps = RunResult.read(extension / "result.json").max_steps
    policy = tmp_path / f"{extension.parent.name}.yaml"
    shutil.copy(extension / "policy.yaml", policy)
    own = (f"max_steps={steps}", f"lr_policy_file={policy}", "trainer.log_every_n_steps=1")
    return run(tmp_path / "unbroken", *overrides, *own, short=kept)


@pytest.mark.parametrize(
    ("policy", "overrides"),
    [
        pytest.param("wsd", (), id="wsd"),
        pytest.param("fix", ("optimizer=adam",), id="fix-from-its-last-step", marks=pytest.mark.slow),
        pytest.param("wsd", ("trainer.accumulate_grad_batches=2",), id="accumulation", marks=pytest.mark.slow),
    ],
)
def test_extended_equals_unbroken(tmp_path, weights, policy, overrides):
    original = run(tmp_path / "run", f"lr_policy={policy}", "extendable=true", *overrides)
    before = contents(tmp_path / "run")
    (result,) = go(tmp_path, max_steps=200)
    folder = tmp_path / "out" / f"{policy}-200-linear-0.2" / "run"
    whole = unbroken(tmp_path, folder, *overrides)
    assert (result.extends, result.inherited_steps) == (original.run_id, {"wsd": 70, "fix": 100}[policy])
    assert (whole.extends, whole.inherited_steps, whole.steps_run) == (None, None, 200)
    own = ("extends", "inherited_steps", *TIMES)
    assert {k: v for k, v in result.to_dict().items() if k not in own} == {
        k: v for k, v in whole.to_dict().items() if k not in own
    }
    assert all(
        torch.equal(a, b) for a, b in zip(weights[str(folder)], weights[str(tmp_path / "unbroken")], strict=True)
    )
    assert history(folder) == history(tmp_path / "unbroken")
    assert not (folder / "checkpoints").exists()
    assert contents(tmp_path / "run") == before


@pytest.mark.slow
def test_several_decays_share_the_stable_phase(tmp_path, weights):
    run(tmp_path / "run", "lr_policy=wsd", "extendable=true")
    results = go(tmp_path, decays=(0.3, 0.1), shapes=("linear", "cosine"), max_steps=200)
    trained = [(each.policy, each.inherited_steps) for each in results]
    assert trained == [
        ("wsd-200-linear-0.1", 70),
        ("wsd-200-cosine-0.1", 180),
        ("wsd-200-linear-0.3", 140),
        ("wsd-200-cosine-0.3", 140),
    ]
    assert len({each.extends for each in results}) == 1
    kept = {path.parent.parent.parent.name: int(path.stem[-9:]) for path in (tmp_path / "out").rglob("*.ckpt")}
    assert kept == {name: 180 if name.endswith("0.1") else 140 for name, _ in trained}
    folder = tmp_path / "out" / "wsd-200-cosine-0.3" / "run"
    unbroken(tmp_path, folder)
    assert all(
        torch.equal(a, b) for a, b in zip(weights[str(folder)], weights[str(tmp_path / "unbroken")], strict=True)
    )
    assert set(rank(tmp_path / "out", metric="utility")["policy"]) == {name for name, _ in trained}


class Killed(BaseException):
    """Ends a run at once, like a power failure."""


@contextlib.contextmanager
def killed_at(at, monkeypatch):
    """Kill what trains in this context at a step."""
    step = experiment.LRPolicyCallback.on_train_batch_end

    def die(self, trainer, *arguments):
        if trainer.global_step == at:
            raise Killed
        step(self, trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(experiment.LRPolicyCallback, "on_train_batch_end", die)
        with pytest.raises(Killed):
            yield


def test_a_killed_run_is_extended_from_its_latest_checkpoint(tmp_path, monkeypatch):
    with killed_at(50, monkeypatch):
        run(tmp_path / "run", "lr_policy=fix", "checkpoint_every=20")
    (tmp_path / "run" / "result.json").unlink(missing_ok=True)
    (result,) = go(tmp_path, decays=(0.5,))
    assert (result.inherited_steps, result.max_steps, result.status) == (40, 80, "missed")
    assert [path.name for path in checkpoints_in(tmp_path / "run" / "checkpoints")] == ["step=000000040.ckpt"]


@pytest.mark.slow
def test_an_extension_is_extended_and_resumed(tmp_path, monkeypatch):
    run(tmp_path / "run", "lr_policy=fix", "extendable=true", "seed=3")
    (first,) = go(tmp_path, max_steps=150)
    (tmp_path / "out" / "fix-150-linear-0.2" / "run").rename(tmp_path / "longer")
    with killed_at(170, monkeypatch):
        go(tmp_path, "longer", max_steps=200)
    folder = tmp_path / "out" / "fix-150-linear-0.2-200-linear-0.2" / "longer"
    (folder / "result.json").unlink(missing_ok=True)
    assert [path.name for path in checkpoints_in(folder / "checkpoints")] == ["step=000000160.ckpt"]
    (second,) = go(tmp_path, "longer", max_steps=200)
    assert (second.extends, second.inherited_steps, second.seed) == (first.run_id, 120, 3)
    assert [start for start, _ in segments(from_config(OmegaConf.load(folder / "policy.yaml")))] == [0, 160]
    assert go(tmp_path, "longer", max_steps=200, train=lambda *_: None) == [second]  # it is finished


# -- a composition ---------------------------------------------------------------------------------------------

COMPOSED = (
    *("lr_policy=auto", "max_steps=700", "check_every=10", "trainer=cpu", "batch_size=32", "monitor=val/given"),
    *("target=0.85", "lr_policy.growth=1.5", "+lr_policy.span=5", "lr_policy.repeats=2", "optimizer=adam"),
)


@pytest.mark.slow
def test_a_composition_is_extended_from_its_last_branch(tmp_path, weights, monkeypatch):
    """Two passes of a range test and a branch that misses: the steps of the training are not those of the policy."""
    script(monkeypatch, lambda step: 0.9 if step > 550 else 0.8 + 0.01 * (step // 10 % 2))
    explode(monkeypatch, above=1.0)
    original = run(tmp_path / "run", "extendable=true", short=COMPOSED)
    assert original.status == "reached"
    assert original.tuning_steps > 0
    (result,) = go(tmp_path, decays=(0.1,), by=100, overrides=("stop_at_target=false",))
    folder = next((tmp_path / "out").glob("auto-*")) / "run"
    length = original.steps_run - original.tuning_steps
    assert (result.max_steps, result.steps_run, result.extends) == (length + 100, length + 100, original.run_id)
    assert 0 < result.inherited_steps < length
    short = [each for each in COMPOSED if not each.startswith(("lr_policy", "+lr_policy"))]
    unbroken(tmp_path, folder, "stop_at_target=false", short=short)
    assert all(
        torch.equal(a, b) for a, b in zip(weights[str(folder)], weights[str(tmp_path / "unbroken")], strict=True)
    )
    rows = history(folder)
    rates = {int(row["step"]): float(row["lr"]) for row in rows if row["lr"]}
    policy = from_config(OmegaConf.load(folder / "policy.yaml"))
    assert rates == pytest.approx({step: policy(step) for step in rates})
    steps = [float(row["check/step"]) for row in rows if row["check/step"]]
    assert steps == sorted(set(steps))


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("lr_policy=wsd",),
            "it has no checkpoint before its decay, which begins at step 70; train it with extendable",
        ),
        (("lr_policy=cosine",), "the policy has no stable phase"),
        (
            ("lr_policy=fix", "extendable=true", "target=0.2"),
            "it reached its target in the stable phase and stopped at step",
        ),
        (("lr_policy=fix", "extendable=true", "lr=1e30", "optimizer=sgd"), "expected a run that can continue, got one"),
    ],
)
def test_a_run_that_cannot_be_extended_is_refused(tmp_path, overrides, message):
    run(tmp_path / "run", *overrides, "max_steps=100")
    with pytest.raises(ExtendError) as caught:
        go(tmp_path, max_steps=200)
    assert str(caught.value).startswith(f"{tmp_path}/run: ")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def original(tmp_path, made_once):
    """A run of `wsd` that can be extended."""
    made = made_once("extendable", lambda folder: run(folder / "run", "lr_policy=wsd", "extendable=true"))
    return shutil.copytree(made / "run", tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_steps": 200, "by": 5}, "the new budget must be given once, got --max-steps 200 and --by 5; give one"),
        ({"by": 0}, "--by must be an integer of at least 1, got 0"),
        ({"decays": (0.2, 0.2)}, "--decay must be one value or several different ones, got '0.2,0.2'"),
        ({"shapes": ("linear", "exp")}, "--shape must be linear, cosine, 1-sqrt or several of them, got 'exp'"),
        ({"max_steps": 80}, "a decay over 0.2 of 80 steps would begin at step 64, before the checkpoint of step 70"),
    ],
)
def test_arguments_are_refused_before_anything_is_written(original, tmp_path, arguments, message):
    with pytest.raises(ExtendError) as caught:
        go(tmp_path, **arguments)
    assert message in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_damaged_checkpoint_and_a_foreign_folder_are_refused(original, tmp_path):
    with pytest.raises(ExtendError, match=r"nowhere: expected the folder of a run"):
        go(tmp_path, "nowhere")
    (checkpoint,) = checkpoints_in(original / "extendable")
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:1000])
    with pytest.raises(ExtendError, match=r"run: extendable/step=000000070.ckpt cannot be read"):
        go(tmp_path)
    checkpoint.write_bytes(whole)
    (original / "policy.yaml").write_text("_target_: lrbench_pl.policies.Constant\nlr: 0.1\n")
    with pytest.raises(ExtendError, match=r"run: policy.yaml is not the policy of result.json; restore it"):
        go(tmp_path)
    (original / "policy.yaml").unlink()
    with pytest.raises(ExtendError, match=r"run: expected a run that has begun to train, got one without policy.yaml"):
        go(tmp_path)


def test_a_folder_of_another_run_is_left_alone(original, tmp_path):
    folder = tmp_path / "out" / "wsd-200-linear-0.2" / "run"
    shutil.copytree(original, folder)
    before = contents(folder)
    with pytest.raises(ExtendError, match=r"holds another run; choose another folder with -o"):
        go(tmp_path, max_steps=200)
    assert contents(folder) == before


def test_code_of_others_is_not_run(original, tmp_path):
    record = json.loads((original / "run.json").read_text())
    record["configuration"]["task"]["settings"]["model._target_"] = "os.system"
    (original / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"its extension would execute os.system, which is not of this package; --trust"
    ):
        go(tmp_path, max_steps=200)


@pytest.mark.slow
def test_a_network_of_ones_own_is_extended_by_its_stored_command(tmp_path, capsys):
    overrides = ["model._target_=tests.callbacks.test_composer.Net", "~model.hidden", "~model.input_shape"]
    overrides += ["lr_policy=fix", "extendable=true", "optimizer.weight_decay='${per_budget:7}'", *SHORT]
    run(tmp_path / "run", *overrides, short=())
    stored = {"overrides.yaml": overrides, "hydra.yaml": {"hydra": {"runtime": {"cwd": os.getcwd()}}}}
    stored["hydra.yaml"]["hydra"]["runtime"]["config_sources"] = []
    for name, content in stored.items():
        (tmp_path / "run" / ".hydra").mkdir(exist_ok=True)
        (tmp_path / "run" / ".hydra" / name).write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    with pytest.raises(ValueError, match=r"its extension would execute tests\.callbacks\.test_composer\.Net, which"):
        go(tmp_path)
    (result,) = go(tmp_path, trust=True)
    assert (result.inherited_steps, result.steps_run, result.max_steps) == (100, 140, 140)
    assert "run in optimizer.weight_decay (0.05, 0.07), so that it continues another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr_policy=cosine", "extendable=true"], "extendable=true: the policy has no stable phase"),
        (["lr_policy=wsd", "extendable=[50,90]"], "extendable must be steps of the stable phase, 5 to 70, got 90"),
        (["lr_policy=wsd", "extendable=[x]"], "extendable must be an integer of at least 1, got 'x'"),
        (["lr_policy=wsd", "extendable=yes please"], "extendable must be true, false or a list of steps, got"),
        (["lr_policy=auto", "extendable=[50]"], "extendable must be true or false for a policy that is composed"),
        (["lr_policy=plateau", "extendable=true"], "extendable=true: an adaptive policy cannot be extended"),
    ],
)
def test_extendable_is_checked_before_training(tmp_path, overrides, message):
    result = run(tmp_path, *overrides)
    assert result.status == "failed"
    assert message in result.message
    assert result.steps_run is None


@pytest.mark.slow
def test_a_run_can_keep_several_checkpoints(tmp_path):
    result = run(tmp_path / "run", "lr_policy=wsd", "extendable=[30,50]")
    assert [int(path.stem[-9:]) for path in checkpoints_in(tmp_path / "run" / "extendable")] == [50, 30]
    assert result.run_id == run(tmp_path / "other", "lr_policy=wsd").run_id
    (found,) = go(tmp_path, decays=(0.5,), max_steps=80)
    assert found.inherited_steps == 30


# -- lint and the program -----------------------------------------------------------------------------------------


def test_a_checkpoint_resumed_under_another_horizon_is_reported(original, tmp_path, caplog):
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    shutil.copy(checkpoints_in(original / "extendable")[0], other / "checkpoints")
    result = run(other, "lr_policy=cosine", "max_steps=150")
    assert (result.inherited_steps, result.steps_run) == (70, 150)
    assert (
        "lint: the checkpoint of step 70 was made for max_steps=100, under which step 0 had a rate of 0.0005, not "
        "0.05; resume with max_steps=100, or continue its stable phase with lrbench extend"
    ) in caplog.text


def test_lint_compares_with_a_checkpoint(original):
    checkpoint = str(checkpoints_in(original / "extendable")[0])
    lint = ["lint", "--resume", checkpoint]
    other = CliRunner().invoke(app, [*lint, "lr_policy=cosine", "max_steps=200"])
    assert "cosine: warning [horizon] the checkpoint of step 70 was made for max_steps=100, under which" in other.output
    same = CliRunner().invoke(app, [*lint, "lr_policy=wsd", "max_steps=100"])
    assert same.output.startswith("1 checked: 0 errors, 0 warnings")
    short = CliRunner().invoke(app, [*lint, "lr_policy=wsd", "max_steps=60"])
    assert (
        "error [horizon] the checkpoint of step 70 lies after the budget of 60 steps; raise max_steps" in short.output
    )
    assert short.exit_code == 1
    folder = CliRunner().invoke(app, ["lint", "lr_policy=cosine", "max_steps=200", "--resume", str(original)])
    assert folder.output == other.output


def test_lint_needs_a_checkpoint(original, tmp_path):
    plan = TrainingPlan(Constant(0.1), 100)
    shutil.rmtree(original / "extendable")
    with pytest.raises(
        CheckpointError, match=r"run: there is no checkpoint; give a file, or a run with extendable=true"
    ):
        resumed_findings(plan, original)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    for name in ("nowhere.ckpt", "other.pt", "run/result.json"):
        with pytest.raises(CheckpointError, match=rf"{name}: expected a checkpoint of a Lightning Trainer \("):
            resumed_findings(plan, tmp_path / name)


def test_lint_takes_the_last_rate_of_a_checkpoint_of_another_program():
    plan = TrainingPlan(Constant(0.1), 100)
    assert resumed(plan, 50, None, 0.1) == resumed(plan, 50, None, None) == []
    (finding,) = resumed(plan, 50, None, 0.05)
    assert str(finding) == (
        "the checkpoint of step 50 was made for another policy, under which step 49 had a rate of 0.05, not 0.1; "
        "resume with that policy, or continue its stable phase with lrbench extend"
    )


@pytest.mark.slow
def test_the_command_of_the_program(original, tmp_path):
    words = ["extend", "run", "--decay", "0.1,0.3", "--max-steps", "200", "-o", "longer", "threads=1"]
    done = forks.run([sys.executable, "-m", "lrbench_pl", *words], tmp_path, dict(os.environ), timeout=120)
    assert done.returncode == 0, done.stderr
    assert "wsd-200-linear-0.3 (momentum, lr 0.05): ran 200 steps without a target, 140 steps inherited" in done.stdout
    assert "2 extensions in longer: 190 steps trained, 210 inherited; lrbench rank longer" in done.stderr
    assert (tmp_path / "longer" / "wsd-200-linear-0.1" / "run" / ".hydra" / "overrides.yaml").is_file()


def test_a_training_in_this_process_leaves_it_as_it_was(original, tmp_path, monkeypatch):
    argv, folder = list(sys.argv), os.getcwd()
    with pytest.raises(ExtendError, match="failed: threads must be an integer of at least 1, got 0"):
        go(tmp_path, max_steps=200, overrides=("threads=0",), train=run_here)
    assert (sys.argv, os.getcwd()) == (argv, folder)
