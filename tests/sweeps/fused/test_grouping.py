"""Which jobs of a sweep are fused, and why others are not."""

from dataclasses import replace
from pathlib import Path

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from lrbench_pl.runs.config import conf_dir, register_resolvers, use_own_launchers
from lrbench_pl.runs.spec import RunSpec
from lrbench_pl.sweeps.composer import StoredConfig
from lrbench_pl.sweeps.fused.checkpoint import GroupFolder, group_folders
from lrbench_pl.sweeps.fused.grouping import cut, plan
from lrbench_pl.sweeps.launch import Job


def job(folder, number, *overrides):
    """A job as the launcher composes it."""
    register_resolvers()
    use_own_launchers()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("config", ["target=0.9", *overrides], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.job.num, cfg.hydra.sweep.dir = number, str(folder)
        cfg.hydra.job.id = f"run_{number}"
        cfg.hydra.runtime.output_dir = str(folder / str(number))
    HydraConfig.instance().set_config(cfg)
    made = Job(number, tuple(overrides), StoredConfig(cfg), folder / str(number), None)
    spec = RunSpec.from_config(made.task_config)
    return Job(number, tuple(overrides), StoredConfig(cfg), folder / str(number), spec.run_id, spec)


def planned(folder, *jobs, workers=1, most=None, folders=()):
    calls = [(job(folder, number, *overrides), None) for number, overrides in enumerate(jobs)]
    found = plan(calls, workers, most, folders)
    numbers = [[each.number for each, _ in group] for group in found.groups]
    return numbers, {call[0].number: reason for call, reason in found.alone}


@pytest.mark.parametrize(
    "differing",
    [
        ["lr_policy=fix", "lr_policy=composite_tri", "lr_policy=fix lr=0.3", "lr_policy=fix seed=4"],
        ["optimizer.momentum=0.5", "optimizer.weight_decay=0.1", "++optimizer.dampening=0.1", ""],
        ["optimizer=adamw +optimizer.betas=[0.9,0.99]", "optimizer=adamw +optimizer.eps=1e-6", "optimizer=adamw"],
        ["study=a", "study=b", "require_target=true", "share_equal=false"],
    ],
)
def test_jobs_that_differ_in_numbers_are_one_group(tmp_path, differing):
    groups, alone = planned(tmp_path, *([*["+optimizer.dampening=0.0"], *each.split()] for each in differing))
    assert sorted(map(sorted, groups)) == [list(range(len(differing)))]
    assert not alone


@pytest.mark.parametrize(
    "other",
    [
        "model.hidden=[32]",
        "batch_size=32",
        "max_steps=500",
        "check_every=50",
        "target=0.8",
        "confirmations=2",
        "stop_at_target=false",
        "optimizer=adam",
        "optimizer=nesterov",
        "dataset.validation=200",
        "trainer=bf16",
        "trainer.log_every_n_steps=7",
        "checkpoint_every=7",
        "threads=2",
        "param_groups=[{params: '*.bias', weight_decay: 0.0}]",
    ],
)
def test_jobs_that_differ_otherwise_are_two_groups(tmp_path, other):
    jobs = [["seed=0"], ["seed=1"], ["seed=0", other], ["seed=1", other]]
    groups, alone = planned(tmp_path, *jobs)
    assert sorted(map(sorted, groups)) == [[0, 1], [2, 3]]
    assert not alone


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["lr_policy=auto"], "lr_policy=auto decides on its rates while it trains"),
        (["lr_policy=best"], "lr_policy=best decides on its rates while it trains"),
        (["lr_policy=range"], "lr_policy=range decides on its rates while it trains"),
        (["lr_policy=plateau"], "lr_policy=plateau is adaptive: its rates depend on the checks"),
        (["momentum_policy=onecycle"], "the policy sets momentum too, and a fused program changes one rate for all"),
        (
            ["param_groups=[{params: '*.bias', lr_policy: {_target_: lrbench_pl.policies.Constant, lr: 0.1}}]"],
            "the policy sets lr/*.bias too, and a fused program changes one rate for all groups alone",
        ),
        (["workload={_target_: a.B}"], "workload is a LightningModule of your own, whose steps are unknown"),
        (["dataset=image_folder"], "dataset._target_=lrbench_pl.workloads.data.ImageFolderDataModule does not hold"),
        (["compile=true"], "compile=true compiles one network"),
        (["extendable=true"], "extendable keeps a checkpoint of a run of its own"),
        (["max_time=60"], "max_time=60 limits a run of its own"),
        (["trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches=2 needs the loop of a Trainer"),
        (["+trainer.gradient_clip_val=1.0"], "trainer.gradient_clip_val=1.0 needs the loop of a Trainer"),
        (["trainer.devices=2"], "trainer.devices=2 needs the loop of a Trainer"),
        (["trainer=ddp"], "trainer.devices=2 needs the loop of a Trainer"),
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed needs the loop of a Trainer"),
        (["+trainer.limit_val_batches=1"], "trainer.limit_val_batches=1 needs the loop of a Trainer"),
        (
            ["+trainer.callbacks=[{_target_: pytorch_lightning.callbacks.Timer}]"],
            "trainer.callbacks are called in the loop of a Trainer",
        ),
        (["logger=wandb"], "logger=wandb: a process has one W&B run at a time"),
        (["logger=tensorboard"], "logger.tensorboard (TensorBoardLogger): fused jobs write metrics.csv alone"),
        (["logger=mlflow"], "logger.mlflow (MLFlowLogger): fused jobs write metrics.csv alone"),
        (
            ["+logger.tb={_target_: pytorch_lightning.loggers.TensorBoardLogger}"],
            "logger.tb (TensorBoardLogger): fused jobs write metrics.csv alone",
        ),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true: a process has one working directory"),
        (["+hydra.job.env_set.A=1"], "hydra.job.env_set: a process has one environment"),
        (["+hydra.callbacks.mine={_target_: a.B}"], "hydra.callbacks.mine is called around one job"),
    ],
)
def test_jobs_that_train_by_themselves_have_a_reason(tmp_path, overrides, reason):
    groups, alone = planned(tmp_path, ["seed=0"], ["seed=1"], ["seed=2", *overrides])
    assert groups == [[0, 1]]
    assert list(alone) == [2]
    assert alone[2].startswith(reason)
    assert "\n" not in alone[2]


def test_a_job_like_no_other_and_one_with_a_checkpoint_of_its_own(tmp_path):
    (tmp_path / "2" / "checkpoints").mkdir(parents=True)
    (tmp_path / "2" / "checkpoints" / "step=000000010.ckpt").touch()
    groups, alone = planned(tmp_path, ["seed=0"], ["seed=1"], ["seed=2"], ["batch_size=7"])
    assert groups == [[0, 1]]
    assert alone == {
        2: "it resumes from a checkpoint of its own",
        3: "no other job differs from it in policy, rate, seed or optimizer alone",
    }


def test_a_configuration_that_cannot_be_read_is_left_to_its_run(tmp_path):
    bad = job(tmp_path, 2, "seed=2")
    calls = [(job(tmp_path, n, f"seed={n}"), None) for n in (0, 1)]
    calls.append((replace(bad, run_id=None, spec=None), None))
    calls.append((job(tmp_path, 3, "seed=3", "lr_policy.lr=high", "lr_policy=fix"), None))
    found = plan(calls, 1)
    assert [reason for _, reason in found.alone] == [None, None]


@pytest.mark.slow
def test_groups_are_cut_for_the_workers_with_the_jobs_of_a_seed_together(tmp_path):
    jobs = [[f"lr_policy={policy}", f"seed={seed}"] for policy in ("fix", "tri", "cos") for seed in (0, 1)]
    groups, _ = planned(tmp_path, *jobs, workers=2)
    assert groups == [[0, 2, 4], [1, 3, 5]]
    groups, _ = planned(tmp_path, *jobs, workers=8)
    assert list(map(len, groups)) == [2, 2, 2]  # one job alone would not be fused
    groups, _ = planned(tmp_path, *jobs, workers=1, most=4)
    assert list(map(len, groups)) == [3, 3]


def test_jobs_of_a_checkpoint_stay_together(tmp_path):
    jobs = [[f"seed={seed}"] for seed in range(5)]
    made = [job(tmp_path, number, *overrides) for number, overrides in enumerate(jobs)]
    for step, members in ((40, (1, 3)), (20, (0, 1, 2))):
        folder = GroupFolder.of(tmp_path, [made[n].run_id for n in members])
        folder.save(step, [made[n].run_id for n in members], {"state": {}})
    found = plan([(each, None) for each in made], 1, folders=group_folders(tmp_path))
    assert [[each.number for each, _ in group] for group, _ in found.resumed] == [[0, 2], [1, 3]]
    assert [each[0].number for each, _ in found.alone] == [4]


def test_cut():
    assert cut(range(7), 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert cut([1], 1) == [[1]]


def test_a_damaged_checkpoint_is_not_loaded(tmp_path):
    folder = GroupFolder.of(tmp_path, ["a", "b"])
    folder.save(20, ["a", "b"], {"seconds": 1.0})
    assert folder.load()["seconds"] == 1.0
    assert [path.name for path in sorted(folder.path.iterdir())] == ["jobs.json", "step=000000020.ckpt"]
    text = folder.file(20).read_bytes()
    folder.file(40).write_bytes(text[: len(text) // 2])
    assert folder.steps == [40, 20]
    assert folder.load()["seconds"] == 1.0
    folder.file(20).write_bytes(b"")
    assert folder.load() is None
    folder.discard()
    assert not (tmp_path / ".fused").exists()


def test_a_checkpoint_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / ".fused").write_text("in the way")
    GroupFolder.of(tmp_path, ["a"]).save(20, ["a"], {})
    assert "no checkpoint at step 20" in caplog.text
    assert Path(tmp_path / ".fused").is_file()
