"""Selecting as a Hydra sweeper: from outside with real trainings, and inside Hydra with a formula for each job."""

import json
import math
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException

from lrbench_pl.policies import Polynomial, Sequential, table, to_config
from lrbench_pl.runs.build import build_verifier
from lrbench_pl.runs.config import compose, conf_dir, read_policy, register_resolvers, use_own_launchers
from lrbench_pl.runs.describe import run_id
from lrbench_pl.runs.result import RunResult
from lrbench_pl.selection.database import PolicyDatabase
from lrbench_pl.selection.records import stored_run
from lrbench_pl.selection.request import SelectionError
from tests import forks
from tests.faults.sweeps import ENVIRONMENT, LIMIT_S, wait_for

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {"cosine": 130, "linear": 260, "fix": 2000}  # steps to the target at a rate of 0.1


class Formula:
    """Stands in for a training: a row from the configuration; may be interrupted at its ``stop_at``-th job."""

    def __init__(self, stop_at=math.inf, status=None, row=True):
        self.jobs, self.stop_at, self.status, self.row = [], stop_at, status, row

    def __call__(self, cfg):
        output = Path(HydraConfig.get().runtime.output_dir)
        self.jobs.append(output.parent.name + "/" + output.name)
        if len(self.jobs) == self.stop_at:
            raise KeyboardInterrupt
        lr = cfg.lr if cfg.lr_policy_file is None else 0.1
        steps = NEEDED["cosine" if cfg.lr_policy_file else cfg.names.policy] * (1 + abs(math.log(lr / 0.1)))
        steps = steps / 2 if cfg.names.optimizer == "adam" else steps
        reached = cfg.max_steps >= steps
        row = RunResult(
            run_id=run_id(cfg),
            policy=cfg.names.policy,
            optimizer=cfg.names.optimizer,
            target=cfg.target,
            lr=lr,
            status=self.status or ("reached" if reached else "missed"),
            message="out of luck" if self.status else None,
            seed=cfg.seed,
            max_steps=cfg.max_steps,
            steps_to_target=cfg.max_steps if reached else None,
            best_value=cfg.max_steps / (cfg.max_steps + steps),
            steps_run=cfg.max_steps,
            wall_time_s=1.0,
        )
        if self.row:
            row.write(output)
            (output / "policy.yaml").write_text(f"lr: {lr}\n")


def sweep(folder, *overrides, task=None):
    """What ``run.py -m hydra/sweeper=lrbench`` finds with a formula for each job."""
    register_resolvers()
    use_own_launchers()
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    hydra = Hydra.create_main_hydra2("run", create_config_search_path(str(conf_dir())))
    given = {
        "hydra/sweeper": "lrbench",
        "hydra/job_logging": "none",
        "hydra/hydra_logging": "none",
        "hydra.sweep.dir": str(folder),
        "max_steps": "1000",
        "check_every": "10",
        "hydra.sweeper.repeats": "0",
        "hydra.sweeper.shapes": "[cosine,linear,fix]",
        "lr": "0.1",
    }
    given |= dict(override.split("=", 1) for override in overrides)
    lines = [f"{key}={value}" for key, value in given.items() if value]
    try:
        return hydra.multirun("config", task or Formula(), lines, with_log_configuration=False)
    finally:
        GlobalHydra.instance().clear()


def rows(folder):
    return {path.parent.relative_to(folder): path.stat().st_mtime_ns for path in Path(folder).rglob("result.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A selection that ended: its folder, what it found, its jobs."""
    folder, task = tmp_path_factory.mktemp("whole") / "sweep", Formula()
    return folder, sweep(folder, task=task), task.jobs


@pytest.fixture
def ended(whole, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(whole[0], tmp_path / "sweep"))


def test_it_ends_with_a_policy_a_ranking_and_its_cost(tmp_path, capsys):
    task = Formula()
    found = sweep(tmp_path, "hydra.sweeper.bisections=10", task=task)
    assert (str(found.winner), found.horizon, found.confirmed) == ("cosine at 0.1 (momentum)", 130, 2)
    assert len(task.jobs) == len(set(task.jobs)) == found.jobs == len(rows(tmp_path))
    assert (tmp_path / "policy.yaml").read_text() == "lr: 0.1\n"
    stored = json.loads((tmp_path / "selection.json").read_text())["found"]
    assert stored["steps"] == found.steps == sum(int(job.split("-")[0]) for job in task.jobs)
    assert [entry["candidate"]["policy"] for entry in stored["ranking"]] == ["cosine", "linear", "fix"]
    shown = capsys.readouterr().out
    assert (
        "selection: rung 1 of 6, 30 steps each: 3 candidates, 0 reached; best cosine at 0.1 (momentum): 0.1875; 90"
        in shown
    )
    assert "selected: cosine at 0.1 (momentum) reaches 0.95 within 130 steps, on 2 of 2 fresh seeds" in shown
    assert f"tuning cost: {found.steps} steps in {found.jobs} trainings" in shown
    assert "  fix at 0.1 (momentum) over 30 steps: 0.01478, the last kept 0.1034" in shown
    assert f"lr_policy_file={tmp_path}/policy.yaml max_steps=130 check_every=10" in shown


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 5, 9])
def test_interrupted_it_goes_on_and_repeats_no_finished_job(whole, tmp_path, stop_at, capsys):
    first, second = Formula(stop_at=stop_at), Formula()
    with pytest.raises(SystemExit) as left:
        sweep(tmp_path, task=first)
    assert left.value.code == 130
    assert f"interrupted; continue with hydra.sweep.dir={tmp_path}" in capsys.readouterr().out
    assert not (tmp_path / "policy.yaml").exists()
    assert sweep(tmp_path, task=second) == whole[1]
    assert first.jobs[:-1] + second.jobs == whole[2]


@pytest.mark.slow
def test_ended_it_only_says_again_what_it_found(whole, ended, capsys):
    task = Formula()
    assert sweep(ended, "logger=none", "study=mine", "threads=2", task=task) == whole[1]  # these change no number
    assert task.jobs == []
    assert "selected: cosine" in capsys.readouterr().out


@pytest.mark.slow
def test_a_row_that_is_broken_is_run_again(whole, ended):
    job = next(ended.glob("60-steps/*"))
    (job / "result.json").write_text("{")
    task = Formula()
    assert sweep(ended, task=task) == whole[1]
    assert task.jobs == [f"60-steps/{job.name}"]


@pytest.mark.slow
def test_a_row_of_another_configuration_is_refused(ended):
    """As after a change of a file in conf/."""
    RunResult(run_id="another", policy="fix", status="missed").write(next(ended.glob("60-steps/*")))
    with pytest.raises(CompactHydraException, match="holds the run another of another configuration"):
        sweep(ended)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("batch_size=32", "batch_size was 64, is 32"),
        ("hydra.sweeper.eta=3", "eta was 2.0, is 3"),
        ("lr_policy=tri,fix", "shapes was ['cosine', 'linear', 'fix'], is ['tri', 'fix']"),
        ("target=0.9", "target was 0.95, is 0.9"),
    ],
)
def test_another_configuration_in_the_same_folder_is_refused(whole, other, message):
    before = rows(whole[0])
    with pytest.raises(SelectionError, match="contains another selection: ") as refused:
        sweep(whole[0], other)
    assert message in str(refused.value)
    assert str(refused.value).endswith("give another hydra.sweep.dir")
    assert rows(whole[0]) == before


@pytest.mark.slow
def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "selection.json").write_text("[]")
    with pytest.raises(SelectionError, match="cannot be read as a selection"):
        sweep(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "batch_size=32,64",
            "expected one value for batch_size, got 32, 64; hydra/sweeper=lrbench takes several only for lr_policy",
        ),
        ("model=mlp,lenet", "expected one value for model, got mlp, lenet;"),
        ("batch_size=interval(1,2)", "expected a list of values, got batch_size=interval"),
        ("lr_policy=nope,cosine", "Could not find 'lr_policy/nope'"),
        ("lr_policy=cosine,auto", "expected policies to select from, got lr_policy=auto, a callback; leave it out"),
        ("lr_policy=range", "expected policies to select from, got lr_policy=range"),
        ("lr=high", "lr must be numbers, got high"),
        ("lr=0.1,-1", "lr must be finite numbers above 0, got -1.0"),
        ("seed=one", "seed must be numbers, got one"),
        ("optimizer=adam,none", "Could not find 'optimizer/none'"),
        ("lr_policy_file=nowhere.yaml", "lr_policy_file=nowhere.yaml: "),
        ("target=null", "hydra/sweeper=lrbench needs a target, got none; give target="),
        ("check_every=2000", "check_every must not exceed max_steps (1000), got 2000"),
        ("hydra.sweeper.eta=1", "eta must be a finite number above 1, got 1"),
        ("hydra.sweeper.shapes=[]", "shapes must be a list of at least one, got []"),
        ("+hydra.sweeper.colour=red", "hydra.sweeper has no option 'colour'; it takes shapes, rates,"),
    ],
)
def test_a_mistake_is_one_line_before_any_job(tmp_path, override, message):
    task = Formula()
    with pytest.raises(SelectionError) as refused:
        sweep(tmp_path / "sweep", override, task=task)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert task.jobs == []
    assert not list((tmp_path / "sweep").iterdir())


@pytest.mark.slow
def test_failing_jobs_are_told(tmp_path):
    with pytest.raises(
        SelectionError, match=r"every trial failed; the first: cosine at 0\.1 \(momentum\): out of luck"
    ):
        sweep(tmp_path, task=Formula(status="failed"))
    with pytest.raises(SelectionError, match=r"cosine at 0\.1 \(momentum\): it wrote no result"):
        sweep(tmp_path / "2", task=Formula(row=False))
    hydras_own = "hydra.launcher._target_=hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    with pytest.raises(
        SelectionError, match=r"30-steps/cosine-momentum-0\.1-seed-0: the trial wrote no result \(None\)"
    ):
        sweep(tmp_path / "3", hydras_own, task=Formula(row=False))


def test_a_job_that_was_stopped_stops_it(tmp_path):
    with pytest.raises(SystemExit):
        sweep(tmp_path, task=Formula(status="stopped"))


@pytest.mark.slow
def test_out_of_reach_it_ends_with_an_account(tmp_path, capsys):
    found = sweep(tmp_path, "lr_policy=fix")
    assert (found.status, found.horizon) == ("missed", 1000)
    assert "missed 0.95: the best policy is fix at 0.1 (momentum) over 1000 steps, 0.3333" in capsys.readouterr().out
    assert (tmp_path / "policy.yaml").exists()
    with pytest.raises(SystemExit) as left:
        sweep(tmp_path / "2", "lr_policy=fix", "require_target=true")
    assert left.value.code == 3


def test_a_tuning_budget_too_small_for_any_job(tmp_path, capsys):
    assert sweep(tmp_path, "hydra.sweeper.tuning_budget=0.01").winner is None
    assert "nothing selected: no training fits the tuning budget; target 0.95" in capsys.readouterr().out
    assert not (tmp_path / "policy.yaml").exists()


@pytest.mark.slow
def test_optimizers_rates_and_seeds_of_the_command_line_are_the_pool(tmp_path):
    task = Formula()
    found = sweep(
        tmp_path, "optimizer=momentum,adam", "lr=0.1,0.2", "seed=4,9", "lr_policy=cosine", "lr_policy_file=", task=task
    )
    first = [job for job in task.jobs if job.startswith("30-steps/")]
    assert len(first) == len(set(first)) == 2 * 2 * 2
    assert set(first) >= {"30-steps/cosine-adam-0.2-seed-9", "30-steps/cosine-momentum-0.1-seed-4"}
    assert str(found.winner) == "cosine at 0.1 (adam)"
    assert {job for job in task.jobs if job.endswith("seed-10")}


@pytest.mark.slow
def test_the_params_of_hydras_own_sweeper_are_overrides_of_which_the_command_line_has_the_last_word(tmp_path):
    task = Formula()
    sweep(tmp_path, "+hydra.sweeper.params={lr_policy:'fix,cosine',seed:7}", "seed=3", "lr_policy=", task=task)
    assert {job for job in task.jobs if job.startswith("30-")} == {
        "30-steps/fix-momentum-0.1-seed-3",
        "30-steps/cosine-momentum-0.1-seed-3",
    }


@pytest.mark.slow
def test_a_policy_from_a_file_is_stretched_to_each_horizon(tmp_path):
    """One that was made for 400 steps, as the row beside it says."""
    written = tmp_path / "a b" / "policy.yaml"
    written.parent.mkdir()
    written.write_text("_target_: lrbench_pl.policies.Polynomial\ninit_lr: 0.3\ndecay_steps: 400\n")
    RunResult(run_id="a", policy="linear", status="missed", max_steps=400).write(written.parent)
    found = sweep(tmp_path / "sweep", f"lr_policy_file='{written}'", "lr_policy=fix")
    assert found.winner.policy == str(written)
    for horizon in (30, 60, 120, 250):
        (stored,) = (tmp_path / "sweep" / "from_files").glob(f"*-{horizon}-steps.yaml")
        assert read_policy(stored) == Polynomial(0.3, horizon)


@pytest.mark.slow
def test_the_own_horizon_of_a_composed_policy_is_what_was_not_given_up(tmp_path):
    written = tmp_path / "a" / "policy.yaml"
    written.parent.mkdir()
    written.write_text("_target_: lrbench_pl.policies.Polynomial\ninit_lr: 0.3\ndecay_steps: 60\n")
    RunResult(
        run_id="a", policy="auto", status="reached", steps_to_target=90, max_steps=400, steps_run=90, tuning_steps=30
    ).write(written.parent)
    sweep(tmp_path / "sweep", f"lr_policy_file='{written}'", "lr_policy=fix")
    (stored,) = (tmp_path / "sweep" / "from_files").glob("*-30-steps.yaml")
    assert read_policy(stored) == Polynomial(0.3, 30)


@pytest.mark.slow
def test_what_the_policy_database_knows_is_tried_first_and_stays_when_it_learns_more(tmp_path, capsys):
    """A policy that reached the target in the same workload with momentum; there is none for adam."""

    def learn(*policies):
        row = {"policy": "known", "status": "reached", "steps_to_target": 300, "steps_run": 300, "max_steps": 1000}
        row |= {"batch_size": 64, "dataset": "digits", "model": "mlp", "optimizer": "momentum"}
        row |= {"monitor": "val/accuracy", "mode": "max", "target": 0.95, "best_value": 0.96, "lr": 0.1}
        with PolicyDatabase(tmp_path / "runs.db", create=True) as database:
            for number, policy in enumerate(policies):
                database.add([stored_run({**row, "run_id": f"{policy}", "seed": number}, to_config(policy))])

    learn(Polynomial(0.3, 1000))
    given = ("optimizer=momentum,adam", f"hydra.sweeper.db={tmp_path}/runs.db", "lr_policy=fix")
    with pytest.raises(SystemExit):
        sweep(tmp_path / "sweep", *given, task=Formula(stop_at=4))
    assert (
        "selection: the policy database recommends known reached the target in 1 of 1 seed" in capsys.readouterr().out
    )
    learn(Polynomial(0.4, 1000))
    found = sweep(tmp_path / "sweep", *given)
    assert str(found.winner) == "1-momentum (momentum)"
    assert len(found.ranking) == 3
    (stored,) = (tmp_path / "sweep" / "from_files").glob("*-30-steps.yaml")
    assert read_policy(stored) == Polynomial(0.3, 30)
    with pytest.raises(SelectionError, match="known must be an integer of at least 0, got -1"):
        sweep(tmp_path / "sweep", "hydra.sweeper.known=-1")


def test_the_default_pool_is_made_of_policies():
    options = yaml.safe_load((conf_dir() / "hydra" / "sweeper" / "lrbench.yaml").read_text())
    policies = [build_verifier(compose([f"lr_policy={name}"])).policy for name in options["shapes"]]
    assert 6 <= len(policies) <= 8
    assert any(isinstance(policy, Sequential) and not policy.is_homogeneous for policy in policies)
    assert all(len(table(policy, 10)) == 10 for policy in policies)


# -- with real trainings --------------------------------------------------------------------------------------

# the target is met at the check at step 50, by every policy: what is learnt by then differs by machine
REAL = (
    *("max_steps=100", "check_every=10", "trainer=cpu", "monitor=val/given", "target=0.9", "hydra.sweep.dir=sweep"),
    "+trainer.callbacks=[{_target_:tests.selection.scripted.Scripted,steps:50}]",
)


def command(*arguments):
    return [sys.executable, str(ROOT / "run.py"), "-m", "hydra/sweeper=lrbench", *REAL, *arguments]


@pytest.mark.slow
def test_a_real_selection_whose_policy_runs_alone(tmp_path):
    """Basic launcher; the policy of the answer repeats a run of the selection to the last digit."""
    given = command("lr_policy=cosine,fix", "max_steps=400", "hydra.sweeper.confirm=1", "hydra.sweeper.bisections=1")
    done = forks.run(given, tmp_path, ENVIRONMENT, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "sweep" / "selection.json").read_text())["found"]
    assert found["status"] == "reached"
    test = found["ranges"]["momentum"]
    assert 0.0005 < test["low"] < test["peak"] <= test["high"] < 5
    ran = [RunResult.read(path) for path in (tmp_path / "sweep").rglob("result.json")]
    assert sum(row.steps_run for row in ran) == found["steps"]
    assert {row.status for row in ran if row.policy != "range"} <= {"reached", "missed", "diverged"}
    shown = shlex.split(done.stdout.split("run it: lrbench run ")[1])
    words = [sys.executable, str(ROOT / "run.py"), *shown, "hydra.run.dir=alone", f"seed={found['asked']}"]
    alone = forks.run(words, tmp_path, ENVIRONMENT, timeout=LIMIT_S)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    row = RunResult.read(tmp_path / "alone" / "result.json")
    twin = [other for other in ran if other.max_steps == row.max_steps and other.policy_id == row.policy_id]
    assert learnt(row) in map(learnt, twin)


def learnt(row):
    assert row.test_loss is not None
    return row.status, row.steps_to_target, row.test_loss, row.train_loss


@pytest.mark.slow
def test_with_joblib_killed_in_the_middle_and_started_again(tmp_path):
    arguments = command("lr_policy=cosine,fix", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    arguments += ["hydra.sweeper.rates=[1.0]", "hydra.sweeper.confirm=1", "hydra.sweeper.bisections=0"]
    with (tmp_path / "log").open("w") as log:
        process = forks.start(arguments, tmp_path, ENVIRONMENT, log)
    wait_for(lambda: process.poll() is not None or len(rows(tmp_path)) >= 2)
    process.kill_group()
    before = rows(tmp_path)
    assert len(before) >= 2, (tmp_path / "log").read_text()
    assert not (tmp_path / "sweep" / "policy.yaml").exists()
    done = forks.run(arguments, tmp_path, ENVIRONMENT, LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "selected: " in done.stdout
    after = rows(tmp_path)
    assert len(after) > len(before)
    assert {job: after[job] for job in before} == before
    assert (tmp_path / "sweep" / "policy.yaml").exists()
