"""Resuming from a checkpoint in mid-epoch, time limits, and refused checkpoints."""

import csv
import json

import pytest
import torch

from lrbench_pl.callbacks.checkpoints import CheckpointError, Checkpoints, TrainingPaused, check_intact, pause_all
from lrbench_pl.composing import forecast
from lrbench_pl.policies import Constant, Polynomial, Sequential, to_config
from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.folder import Record, state_of
from lrbench_pl.selection.database import PolicyDatabase
from lrbench_pl.selection.records import stored_run
from tests.faults.killable import runner
from tests.helpers import TinyModule, explode, script, tiny_trainer

TIMES = ("seconds_to_target", "wall_time_s")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run in a folder; with ``dies_at``, the process dies before that batch. ``weights`` has those of each run."""
    evaluate, weights = experiment._evaluate, {}
    common = ("max_steps=80", "check_every=10", "trainer=cpu", "target=1.0", "checkpoint_every=20")
    train = runner(tmp_path, monkeypatch, *common)

    def go(name, *overrides, dies_at=None):
        def keep(parts):
            weights[name] = [value.clone() for value in parts.module.state_dict().values()]
            return evaluate(parts)

        monkeypatch.setattr(experiment, "_evaluate", keep)
        return train(name, *overrides, dies_at=dies_at)

    go.weights = weights
    return go


def without_times(result):
    return {name: value for name, value in result.to_dict().items() if name not in TIMES}


def history(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "check/seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("overrides", "dies_at"),
    [
        pytest.param((), 20, id="right-after-a-checkpoint-at-a-check"),
        pytest.param((), 55, id="in-mid-epoch"),
        pytest.param(("lr_policy=plateau", "optimizer=adam"), 47, id="adaptive-policy", marks=pytest.mark.slow),
        pytest.param(("trainer.accumulate_grad_batches=2",), 95, id="accumulation", marks=pytest.mark.slow),
        pytest.param(("checkpoint_every=15", "logger=csv"), 50, id="between-checks"),
        pytest.param((), 5, id="before-the-first-checkpoint"),
    ],
)
def test_a_killed_run_resumes_exactly(run, tmp_path, overrides, dies_at):
    whole = run("whole", *overrides)
    run("killed", *overrides, dies_at=dies_at)
    resumed = run("killed", *overrides)
    assert without_times(resumed) == without_times(whole)
    assert all(torch.equal(a, b) for a, b in zip(run.weights["whole"], run.weights["killed"], strict=True))
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    assert not (tmp_path / "killed" / "checkpoints").exists()  # not needed after the end


# Batch statistics, dropout and augmentation; branches that miss the target, one of them with a tail after its decay.
COMPOSED = (
    *("lr_policy=auto", "model._target_=tests.callbacks.test_composer.Net", "~model.hidden", "~model.input_shape"),
    *("dataset=synthetic", "dataset.flip=true", "max_steps=700", "target=0.85", "lr_policy.growth=1.5"),
    *("+lr_policy.span=5", "lr_policy.repeats=2", "checkpoint_every=null", "monitor=val/given"),
)


@pytest.fixture
def scripted(monkeypatch):
    """Checks are a formula of the steps and rates above a limit diverge: the segments are the same on every machine."""
    script(monkeypatch, lambda step: 0.8 + 0.01 * (step // 10 % 2))
    explode(monkeypatch, above=1.0)


@pytest.fixture
def run_scripted(scripted, run):
    return run


def second_pass(record):
    return record["kind"] == "range" and record["spent"] > 0


def averaged(record):
    return record["averaged"] and record["policy_step"] > 100


def branch(record):
    return record["kind"] == "branch" and record["why"].startswith("decays")


def tail(record):
    return record["kind"] == "branch" and record["why"].startswith("held")


def diverged(record):
    return record["why"] == "diverged"


def reached(record):
    return record["why"] == "reached the target"


TOO_HIGH = ("lr=3", "optimizer.lr=3", "optimizer=sgd", "lr_policy.repeats=0", "max_steps=300")


@pytest.mark.parametrize(
    ("within", "after", "overrides"),
    [
        pytest.param(second_pass, 28, (), id="in-the-range-test", marks=pytest.mark.slow),
        pytest.param(averaged, 8, (), id="in-the-stable-phase", marks=pytest.mark.slow),
        pytest.param(
            averaged, 8, ("optimizer=adam", "target=1.0"), id="in-the-stable-phase-with-adam", marks=pytest.mark.slow
        ),
        pytest.param(branch, 18, (), id="in-a-branch", marks=pytest.mark.slow),
        pytest.param(branch, 22, ("lr_policy.reuse=false",), id="where-a-branch-was-abandoned", marks=pytest.mark.slow),
        pytest.param(tail, 8, ("target=0.811",), id="in-the-tail", marks=pytest.mark.slow),
        pytest.param(reached, 15, ("target=0.75", "confirmations=2"), id="between-two-confirmations"),
        pytest.param(diverged, 8, TOO_HIGH, id="in-a-stable-phase-that-diverges", marks=pytest.mark.slow),
        pytest.param(diverged, 28, TOO_HIGH, id="where-a-stable-phase-diverges", marks=pytest.mark.slow),
    ],
)
def test_a_killed_composition_resumes_exactly(run_scripted, tmp_path, within, after, overrides):
    resumes_exactly(run_scripted, tmp_path, within, after, overrides)


@pytest.mark.slow
def test_a_restarted_composition_resumes_too(run_scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "FROZEN", 1)  # any check counts as frozen
    begun = iter(("first", "again"))

    def restarted(record):
        return record["kind"] == "stable" and record["policy_step"] == 0 and next(begun) == "again"

    resumes_exactly(run_scripted, tmp_path, restarted, 8, ())


def resumes_exactly(run, tmp_path, within, after, overrides):
    """Kill a run some steps after the first segment of a kind, start it again, and compare it with an unbroken one."""
    whole = run("whole", *COMPOSED, *overrides)
    records = json.loads((tmp_path / "whole" / "tuning.json").read_text())
    dies_at = next(record["spent"] for record in records if within(record)) + after
    written = dies_at // 5 * 5
    run("killed", *COMPOSED, *overrides, f"checkpoint_every={written}", dies_at=dies_at)
    resumed = run("killed", *COMPOSED, *overrides)
    assert Record.read(tmp_path / "killed").notes == (f"resuming from step={written:09d}.ckpt",)
    assert without_times(resumed) == without_times(whole)
    assert all(torch.equal(a, b) for a, b in zip(run.weights["whole"], run.weights["killed"], strict=True))
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    for file in ("tuning.json", "policy.yaml"):
        assert (tmp_path / "killed" / file).read_text() == (tmp_path / "whole" / file).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "overrides"),
    [
        pytest.param(165, 385, (), id="from-one-branch-to-another"),
        pytest.param(25, 205, TOO_HIGH, id="after-divergence"),
    ],
)
def test_the_next_checkpoint_of_a_resumed_composition_is_that_of_an_unbroken_one(
    run_scripted, tmp_path, first, second, overrides
):
    run_scripted("whole", *COMPOSED, *overrides, f"checkpoint_every={second}", dies_at=second + 2)
    run_scripted("killed", *COMPOSED, *overrides, f"checkpoint_every={first}", dies_at=first + 2)
    run_scripted("killed", *COMPOSED, *overrides, f"checkpoint_every={second}", dies_at=second + 2)
    whole, killed = (
        torch.load(tmp_path / name / f"checkpoints/step={second:09d}.ckpt", weights_only=False)
        for name in ("whole", "killed")
    )
    (state,) = [kept for kept in whole["callbacks"].values() if "composition" in kept]
    assert {"start", "stable", "best"} == set(state["composition"]["snapshots"])
    for part in ("callbacks", "state_dict", "optimizer_states"):
        assert list(trained(killed[part])) == list(trained(whole[part]))


def trained(state):
    """The state of the training, without the counts of validation metrics, which this module never resets."""
    return [(path, value) for path, value in flat(state) if not any(str(name).startswith("val_") for name in path)]


def flat(state, path=()):
    """Names and values in a state without its times; tensors as lists."""
    if isinstance(state, (dict, list, tuple)):
        for name, part in state.items() if isinstance(state, dict) else enumerate(state):
            if name != "seconds":
                yield from flat(part, (*path, name))
    else:
        yield path, repr(state.tolist()) if isinstance(state, torch.Tensor) else repr(state)


def test_a_killed_range_test_keeps_its_losses(run, tmp_path):
    run("whole", "lr_policy=range")
    run("killed", "lr_policy=range", dies_at=55)
    run("killed", "lr_policy=range")
    found = json.loads((tmp_path / "whole" / "tuning.json").read_text())
    assert len(found[0]["losses"]) == 80
    assert json.loads((tmp_path / "killed" / "tuning.json").read_text()) == found


@pytest.mark.slow
@pytest.mark.parametrize("knows", [True, False], ids=["recommended", "fallen-back"])
def test_a_looked_up_policy_does_not_change_with_the_database(run, tmp_path, knows):
    def learn(policy, steps):
        known = {"dataset": "digits", "model": "mlp", "optimizer": "momentum", "batch_size": 64, "max_steps": 40}
        known |= {"target": 1.0, "monitor": "val/accuracy", "status": "reached", "steps_to_target": steps}
        stored = [stored_run({**known, "run_id": f"{steps}-{s}", "policy": "p", "seed": s}, policy) for s in range(3)]
        with PolicyDatabase(tmp_path / "runs.db", create=True) as database:
            database.add(stored)

    looks_up = ("lr_policy=best", f"lr_policy.db={tmp_path}/runs.db", "lr_policy@lr_policy.otherwise=fix")
    if knows:
        learn(to_config(Sequential((Constant(0.05), Polynomial(0.1, 25)), milestones=(15,))), 30)
    whole = run("whole", *looks_up)
    run("killed", *looks_up, dies_at=55)
    learn(to_config(Constant(0.02)), 10)
    assert "lr=0.02" in run("new", *looks_up).policy_repr
    resumed = run("killed", *looks_up)
    assert ("Sequential" if knows else "Constant(lr=0.05)") in whole.policy_repr
    assert without_times(resumed) == without_times(whole)
    assert all(torch.equal(a, b) for a, b in zip(run.weights["whole"], run.weights["killed"], strict=True))
    assert history(tmp_path / "killed") == history(tmp_path / "whole")


def test_an_unreadable_looked_up_policy(run, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "lookup.json").write_text('{"policy": {"_target_": "os.system"}}')
    failed = run("a", "lr_policy=best")
    assert failed.status == "failed"
    assert "lookup.json: " in failed.message
    assert "remove it to look a policy up again" in failed.message


def test_a_finished_run_is_not_repeated_and_another_is_refused(run, tmp_path):
    first = run("a")
    written = (tmp_path / "a" / "result.json").stat().st_mtime_ns
    assert run("a", "checkpoint_every=7", "max_time=100") == first  # these change no number
    other = run("a", "lr=0.01", "lr_policy=fix")
    assert other.status == "failed"
    assert "holds a run of another configuration: " in other.message
    assert "lr: 0.05 -> 0.01" in other.message
    assert (tmp_path / "a" / "result.json").stat().st_mtime_ns == written


def test_out_of_time_is_stopped_and_resumes_exactly(run, tmp_path):
    whole = run("whole")
    stopped = run("short", "max_time=1e-9")
    assert (stopped.status, stopped.steps_run) == ("stopped", 1)
    assert stopped.message == "out of time (max_time=1e-09 s) at step 1; the same command continues from there"
    assert state_of(tmp_path / "short") == "stopped"
    resumed = run("short")
    assert without_times(resumed) == without_times(whole)
    assert Record.read(tmp_path / "short").notes == ("resuming from step=000000001.ckpt",)


@pytest.mark.slow
def test_a_callback_that_cannot_resume_starts_from_the_beginning(run, tmp_path, monkeypatch):
    whole = run("whole")
    run("killed", dies_at=70)

    def refuse(self, state):
        raise RuntimeError("no resuming here")

    monkeypatch.setattr(experiment.LRPolicyCallback, "load_state_dict", refuse)
    resumed = run("killed")
    assert without_times(resumed) == without_times(whole)
    notes = Record.read(tmp_path / "killed").notes
    assert "cannot resume from step=000000060.ckpt: no resuming here" in notes
    assert notes[-1] == "starting from the beginning"


def test_pause_ends_a_training_between_two_steps(tmp_path):
    class Pausing(TinyModule):
        def on_train_batch_end(self, *args):
            if self.trainer.global_step == 3:
                assert pause_all("pre-empted")

    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(TrainingPaused, match="pre-empted at step 4"):
        tiny_trainer(checkpoints).fit(Pausing())
    assert [path.name for path in checkpoints.found()] == ["step=000000004.ckpt"]
    assert not pause_all("nobody trains")


def test_only_the_last_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=2, kept=2)
    tiny_trainer(checkpoints).fit(TinyModule())
    assert [path.name for path in checkpoints.found()] == ["step=000000008.ckpt", "step=000000006.ckpt"]
    for path in checkpoints.found():
        check_intact(path)


@pytest.mark.parametrize("damage", [lambda b: b[:-200], lambda b: b"", lambda b: b[:2000] + b"?" + b[2001:]])
def test_damage_is_detected(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, every=2)
    tiny_trainer(checkpoints).fit(TinyModule())
    (path,) = checkpoints.found()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError):
        check_intact(path)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    trainer = tiny_trainer()
    trainer.fit(TinyModule())
    trainer.save_checkpoint(tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="was not written by a run of lrbench_pl"):
        tiny_trainer(Checkpoints(tmp_path)).fit(TinyModule(), ckpt_path=tmp_path / "foreign.ckpt", weights_only=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be at least 1 step or None, got 0"),
        ({"kept": 0}, "kept must be at least 1, got 0"),
        ({"max_time": 0}, "max_time must be above 0 seconds or None, got 0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints("x", **arguments)
